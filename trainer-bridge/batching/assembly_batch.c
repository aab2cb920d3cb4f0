/* Batches out. */
#include "base/rng.h"
#include "trainer-bridge/batching/assembly_private.h"
#include "trainer-bridge/batching/packing.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED_SHUFFLE 1u
#define SEED_SAMPLE 2u

/* ---- a batch ---- */

/* With room for `count` records, of `groups` groups; it takes nothing yet. */
static enum corral_status batch_new(const struct corral_assembly *a, uint32_t count, uint32_t groups,
                                    struct corral_assembly_batch **out, struct corral_error *err)
{
    struct corral_assembly_batch *b = calloc(1, sizeof *b);
    bool ok = b != NULL;
    if (ok) {
        b->record = calloc(CORRAL_MAX(count, 1u), sizeof *b->record);
        b->group = calloc(CORRAL_MAX(groups, 1u), sizeof *b->group);
        b->settled = calloc(CORRAL_MAX(a->settled.count + count, 1u), sizeof(struct corral_assembly_entry *));
        if (a->replay != NULL) {
            b->key = calloc(CORRAL_MAX(count, 1u), sizeof *b->key);
        } else {
            b->entry = calloc(CORRAL_MAX(count, 1u), sizeof(struct corral_assembly_entry *));
        }
        ok = b->record != NULL && b->group != NULL && b->settled != NULL &&
             (b->key != NULL || b->entry != NULL);
    }
    if (!ok) {
        corral_assembly_batch_free(b);
        return corral_fail(err, CORRAL_NOMEM, "a batch of %u records", count);
    }
    *out = b;
    return CORRAL_OK;
}

static enum corral_status pack(const struct corral_assembly *a, struct corral_assembly_batch *b,
                               struct corral_error *err)
{
    uint32_t count = b->public.count;
    if (a->o.pack_tokens == 0 || count == 0) {
        return CORRAL_OK;
    }
    CORRAL_AUTO_FREE uint64_t *tokens = calloc(count, sizeof *tokens);
    CORRAL_AUTO_FREE struct corral_pack_place *place = calloc(count, sizeof *place);
    if (tokens == NULL || place == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "pack a batch of %u records", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = b->record[i].tokens;
    }
    struct corral_pack_config c = {.budget = a->o.pack_tokens, .ranks = 1, .cost_linear = 1};
    struct corral_pack_stats s;
    CORRAL_TRY(corral_pack(&c, tokens, count, place, &s, err));
    for (uint32_t i = 0; i < count; i++) {
        b->record[i].bin = place[i].round;
    }
    b->public.bins = s.bins;
    b->public.padding = s.padding;
    return CORRAL_OK;
}

/* Nothing fails from here on. */
static const struct corral_trainer_batch *hand_out(struct corral_assembly *a, struct corral_assembly_batch *b)
{
    struct corral_trainer_batch *p = &b->public;
    double staleness = 0;
    p->size = sizeof *p;
    p->number = ++a->number;
    p->records = b->record;
    p->groups = b->group;
    for (uint32_t i = 0; i < p->count; i++) {
        const struct corral_trainer_record *r = &b->record[i];
        uint64_t old = a->version > r->version_min ? a->version - r->version_min : 0;
        staleness += (double)old;
        p->staleness_max = CORRAL_MAX(p->staleness_max, old);
        p->tokens += r->tokens;
        if (b->entry != NULL) {
            corral_handoff_batch(b->entry[i]->handoff, p->number);
        }
        corral_length_bias_add(&a->bias, r->tokens, true);
    }
    p->staleness_mean = p->count > 0 ? staleness / p->count : 0;
    if (a->settled.count > 0) {
        memcpy(b->settled, a->settled.entry, a->settled.count * sizeof *b->settled);
    }
    p->settled = b->settled_count = a->settled.count;
    a->settled.count = 0;
    if (a->groups != NULL && b->skip == NULL) {
        b->position = corral_groups_position(a->groups);
    }
    *(a->newest != NULL ? &a->newest->next : &a->oldest) = b;
    a->newest = b;
    a->stats.batches_out++;
    a->stats.handed_out += p->count;
    return p;
}

static void shuffle_order(const struct corral_assembly *a, uint32_t *order, uint32_t count)
{
    if (a->o.shuffle != 0) {
        struct corral_rng rng;
        corral_rng_seed(&rng, corral_seed_derive(a->o.seed, SEED_SHUFFLE, a->number + 1, 0));
        corral_rng_permutation(&rng, order, count);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        order[i] = i;
    }
}

static enum corral_status again(const struct corral_assembly *a, struct corral_error *err)
{
    char why[192];
    corral_assembly_waiting(a, why, sizeof why);
    return corral_fail(err, CORRAL_AGAIN, "no batch yet: %s", why);
}

/* ---- STREAM and FRAGMENTS ---- */

static enum corral_status next_plain(struct corral_assembly *a, const struct corral_trainer_batch **out,
                                     struct corral_error *err)
{
    uint32_t count = a->rounds != NULL ? a->o.workers * a->o.batch : a->o.batch;
    if (a->rounds != NULL ? !corral_rounds_ready(a->rounds) : a->queue.count < count) {
        return again(a, err);
    }
    struct corral_assembly_batch *b;
    CORRAL_AUTO_FREE void **taken = calloc(count, sizeof *taken);
    CORRAL_AUTO_FREE uint32_t *order = calloc(count, sizeof *order);
    if (taken == NULL || order == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "a batch of %u records", count);
    }
    CORRAL_TRY(batch_new(a, count, 0, &b, err));
    if (a->rounds != NULL) {
        corral_rounds_take(a->rounds, taken);
    } else {
        memcpy(taken, a->queue.entry + a->queue.first, count * sizeof *taken);
        a->queue.first += count;
        a->queue.count -= count;
    }
    shuffle_order(a, order, count);
    b->public.count = count;
    for (uint32_t i = 0; i < count; i++) {
        b->entry[i] = taken[order[i]];
        b->record[i] = b->entry[i]->facts;
    }
    struct corral_error packing;
    if (pack(a, b, &packing) != CORRAL_OK) { /* out of memory: the records are whole in order, without bins */
        b->public.bins = 0;
    }
    *out = hand_out(a, b);
    return CORRAL_OK;
}

/* ---- GROUPS ---- */

/* A group that is decided joins the coming batch, or is settled. */
static enum corral_status take_group(struct corral_assembly *a, const struct corral_group *g,
                                     struct corral_error *err)
{
    uint64_t *reason = NULL;
    bool old = false;
    for (uint32_t i = 0; i < g->count; i++) {
        old = old || corral_assembly_too_old(a, a->group_items[i].user);
    }
    if (g->verdict == CORRAL_GROUP_TOO_FEW) {
        reason = &a->stats.group_short;
    } else if (g->verdict == CORRAL_GROUP_FLAT) {
        reason = &a->stats.flat;
    } else if (old) {
        reason = &a->stats.stale;
    }
    a->stats.groups_flat += g->flat;
    a->stats.groups_shortened += g->verdict == CORRAL_GROUP_SHORT;
    if (reason != NULL) {
        a->stats.groups_dropped++;
        for (uint32_t i = 0; i < g->count; i++) {
            corral_assembly_drop(a, a->group_items[i].user, reason);
        }
        return CORRAL_OK;
    }
    a->coming[a->coming_count] = (struct corral_trainer_group){.id = g->id,
                                                               .first = a->ready.count,
                                                               .count = g->count,
                                                               .flat = g->flat,
                                                               .mean = g->mean,
                                                               .deviation = g->deviation};
    for (uint32_t i = 0; i < g->count; i++) {
        if (!corral_assembly_push(&a->ready, a->group_items[i].user)) {
            return corral_fail(err, CORRAL_NOMEM, "a batch of %u records", a->ready.count);
        }
    }
    a->coming_count++;
    a->stats.groups++;
    return CORRAL_OK;
}

/* What was beyond the window may be within it now. */
static enum corral_status retry_held_back(struct corral_assembly *a, uint64_t now_ns,
                                          struct corral_error *err)
{
    uint32_t count = a->queue.count;
    for (uint32_t i = 0; i < count; i++) {
        struct corral_assembly_entry *e = a->queue.entry[a->queue.first];
        a->queue.first++;
        a->queue.count--;
        CORRAL_TRY(corral_assembly_into_group(a, e, now_ns, err));
    }
    return CORRAL_OK;
}

static enum corral_status gather_groups(struct corral_assembly *a, uint64_t now_ns, struct corral_error *err)
{
    struct corral_group g;
    while (a->coming_count < a->o.batch) {
        if (!corral_assembly_reserve(&a->ready, a->o.group_size)) { /* before a group leaves its place */
            return corral_fail(err, CORRAL_NOMEM, "a batch of %u records", a->ready.count);
        }
        const uint64_t position = corral_groups_position(a->groups);
        if (!corral_groups_next(a->groups, now_ns, &g, a->group_items)) {
            if (corral_groups_position(a->groups) == position) {
                break;
            }
            CORRAL_TRY(retry_held_back(
                a, now_ns, err)); /* the window has moved over groups that came out before a restart */
            continue;
        }
        CORRAL_TRY(take_group(a, &g, err));
        CORRAL_TRY(retry_held_back(a, now_ns, err));
    }
    return CORRAL_OK;
}

/* Versions may have moved since a group came out. True: some went. */
static bool drop_old_groups(struct corral_assembly *a)
{
    uint32_t kept = 0, members = 0;
    for (uint32_t g = 0; g < a->coming_count; g++) {
        struct corral_trainer_group group = a->coming[g];
        struct corral_assembly_entry **e = a->ready.entry + a->ready.first + group.first;
        bool old = false;
        for (uint32_t i = 0; i < group.count; i++) {
            old = old || corral_assembly_too_old(a, e[i]);
        }
        if (old) {
            a->stats.groups_dropped++;
            a->stats.groups--;
            for (uint32_t i = 0; i < group.count; i++) {
                corral_assembly_drop(a, e[i], &a->stats.stale);
            }
            continue;
        }
        memmove(a->ready.entry + a->ready.first + members, e,
                group.count * sizeof(struct corral_assembly_entry *));
        group.first = members;
        members += group.count;
        a->coming[kept++] = group;
    }
    bool dropped = kept < a->coming_count;
    a->coming_count = kept;
    a->ready.count = members;
    return dropped;
}

/* A state saved with the batch begins at the first group that has come out of the order's window and is in no batch, `coming` of them, and names those behind it that are decided. What an earlier state named and the
 * order has not come to yet is named again: its records do not come any more. */
static enum corral_status name_decided(const struct corral_assembly *a, struct corral_assembly_batch *b,
                                       uint32_t coming, struct corral_error *err)
{
    if (a->groups == NULL || a->o.group_ordered == 0 || (coming == 0 && a->restored_skip_count == 0)) {
        return CORRAL_OK;
    }
    uint64_t end = corral_groups_position(a->groups);
    b->position = coming > 0 ? a->coming[0].id : end;
    b->skip = calloc(end - b->position + a->restored_skip_count + 1, sizeof *b->skip);
    if (b->skip == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "groups that are decided");
    }
    uint32_t g = 0;
    for (uint64_t id = b->position; id < end; id++) {
        if (g < coming && a->coming[g].id == id) {
            g++;
        } else {
            b->skip[b->skip_count++] = id;
        }
    }
    for (uint32_t i = 0; i < a->restored_skip_count; i++) {
        if (a->restored_skip[i] >= end) {
            b->skip[b->skip_count++] = a->restored_skip[i];
        }
    }
    return CORRAL_OK;
}

static enum corral_status next_groups(struct corral_assembly *a, uint64_t now_ns,
                                      const struct corral_trainer_batch **out, struct corral_error *err)
{
    do {
        CORRAL_TRY(gather_groups(a, now_ns, err));
    } while (drop_old_groups(a));
    if (a->coming_count < a->o.batch) {
        return again(a, err);
    }
    struct corral_assembly_batch *b;
    CORRAL_AUTO_FREE uint32_t *order = calloc(a->coming_count, sizeof *order);
    if (order == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "a batch of %u groups", a->coming_count);
    }
    CORRAL_TRY(batch_new(a, a->ready.count, a->coming_count, &b, err));
    enum corral_status status = name_decided(a, b, 0, err);
    if (status != CORRAL_OK) {
        corral_assembly_batch_free(b);
        return status;
    }
    shuffle_order(a, order, a->coming_count);
    for (uint32_t g = 0; g < a->coming_count; g++) {
        struct corral_trainer_group group = a->coming[order[g]];
        for (uint32_t i = 0; i < group.count; i++) {
            struct corral_assembly_entry *e = a->ready.entry[a->ready.first + group.first + i];
            b->entry[b->public.count + i] = e;
            b->record[b->public.count + i] = e->facts;
        }
        group.first = b->public.count;
        b->public.count += group.count;
        b->group[b->public.group_count++] = group;
    }
    struct corral_error packing;
    if (pack(a, b, &packing) != CORRAL_OK) {
        b->public.bins = 0;
    }
    a->coming_count = 0;
    a->ready.first = a->ready.count = 0;
    *out = hand_out(a, b);
    return CORRAL_OK;
}

/* ---- replay ---- */

struct copy { /* a record in the replay buffer; its bytes follow, at a multiple of 64 */
    struct corral_trainer_record facts;
};
#define COPY_OFFSET ((sizeof(struct copy) + 63) / 64 * 64)

static void count_deletes(struct corral_assembly *a)
{
    a->limiter.deletes = a->limiter.inserts - corral_replay_size(a->replay);
}

static enum corral_status absorb_one(struct corral_assembly *a, bool *absorbed, struct corral_error *err)
{
    struct corral_assembly_entry *e = a->queue.entry[a->queue.first];
    uint64_t key;
    struct copy *c = aligned_alloc(64, COPY_OFFSET + (e->facts.bytes + 63) / 64 * 64);
    if (c == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "a record of %llu bytes for the replay buffer",
                           (unsigned long long)e->facts.bytes);
    }
    c->facts = e->facts;
    c->facts.data = memcpy((char *)c + COPY_OFFSET, e->facts.data, e->facts.bytes);
    enum corral_status status =
        corral_replay_insert(a->replay, e->facts.bytes, CORRAL_REPLAY_NEWEST, c, &key, err);
    if (status != CORRAL_OK) {
        free(c);
        *absorbed = false;
        return status == CORRAL_AGAIN ? CORRAL_OK : status;
    }
    corral_limiter_inserted(&a->limiter, 1);
    count_deletes(a);
    a->queue.first++;
    a->queue.count--;
    corral_assembly_drop(a, e, NULL);
    *absorbed = true;
    return CORRAL_OK;
}

static enum corral_status next_replay(struct corral_assembly *a, const struct corral_trainer_batch **out,
                                      struct corral_error *err)
{
    bool more = true;
    while (more && a->queue.count > 0 && corral_limiter_may_insert(&a->limiter, 1)) {
        CORRAL_TRY(absorb_one(a, &more, err));
    }
    if (!corral_limiter_may_sample(&a->limiter, a->o.batch)) {
        return again(a, err);
    }
    struct corral_assembly_batch *b;
    struct corral_rng rng;
    CORRAL_TRY(batch_new(a, a->o.batch, 0, &b, err));
    corral_rng_seed(&rng, corral_seed_derive(a->o.seed, SEED_SAMPLE, a->number + 1, 0));
    for (uint32_t *i = &b->public.count; *i < a->o.batch; ++*i) {
        struct corral_replay_sample s;
        if (corral_replay_take(a->replay, &rng, a->o.replay_beta, &s, err) != CORRAL_OK) {
            break; /* no priority is above 0 */
        }
        b->record[*i] = ((struct copy *)s.user)->facts;
        b->record[*i].times = s.times;
        b->record[*i].probability = s.probability;
        b->record[*i].weight = s.weight;
        b->key[*i] = s.key;
    }
    if (b->public.count == 0) {
        corral_assembly_batch_free(b);
        return again(a, err);
    }
    corral_limiter_sampled(&a->limiter, b->public.count);
    count_deletes(a);
    struct corral_error packing;
    if (pack(a, b, &packing) != CORRAL_OK) {
        b->public.bins = 0;
    }
    *out = hand_out(a, b);
    return CORRAL_OK;
}

/* ---- which ---- */

enum corral_status corral_assembly_next(struct corral_assembly *a, uint64_t now_ns,
                                        const struct corral_trainer_batch **out, struct corral_error *err)
{
    if (a->groups != NULL) {
        return next_groups(a, now_ns, out, err);
    }
    return a->replay != NULL ? next_replay(a, out, err) : next_plain(a, out, err);
}

enum corral_status corral_assembly_settle(struct corral_assembly *a, const struct corral_trainer_batch **out,
                                          struct corral_error *err)
{
    if (a->settled.count == 0) {
        return again(a, err);
    }
    struct corral_assembly_batch *b;
    CORRAL_TRY(batch_new(a, 0, 0, &b, err));
    enum corral_status status = name_decided(a, b, a->coming_count, err);
    if (status != CORRAL_OK) {
        corral_assembly_batch_free(b);
        return status;
    }
    *out = hand_out(a, b);
    return CORRAL_OK;
}

/* ---- who waits ---- */

static void missing_records(const struct corral_assembly *a, char *out, size_t bytes)
{
    uint64_t group;
    uint32_t have, need, missing;
    if (a->rounds != NULL) {
        uint32_t worker = corral_rounds_waiting_for(a->rounds, &missing);
        snprintf(out, bytes, "the trainer waits for worker %u: %u of its %u records are missing", worker,
                 missing, a->o.batch);
    } else if (a->groups != NULL && corral_groups_waiting_for(a->groups, &group, &have, &need)) {
        snprintf(out, bytes,
                 "the trainer waits for group %llu: %u of %u completions are here; %u of %u groups are ready",
                 (unsigned long long)group, have, need, a->coming_count, a->o.batch);
    } else if (a->groups != NULL) {
        snprintf(out, bytes, "the trainer waits for rollouts: no group has begun; %u of %u groups are ready",
                 a->coming_count, a->o.batch);
    } else if (a->replay != NULL && corral_limiter_waits(&a->limiter) != CORRAL_LIMITER_NOBODY) {
        snprintf(out, bytes, "%s (%u records)", corral_limiter_wait_name(corral_limiter_waits(&a->limiter)),
                 corral_replay_size(a->replay));
    } else {
        snprintf(out, bytes, "the trainer waits for rollouts: %u of %u records are here", a->queue.count,
                 a->o.batch);
    }
}

void corral_assembly_waiting(const struct corral_assembly *a, char *out, size_t bytes)
{
    missing_records(a, out, bytes);
    const size_t used = strlen(out);
    if (a->stats.held_bytes > 0) { /* a worker sends no more when its share of the buffer is full */
        snprintf(out + used, bytes - used, "; %llu batches are not done, %llu of %llu bytes are held",
                 (unsigned long long)a->stats.batches_out, (unsigned long long)a->stats.held_bytes,
                 (unsigned long long)a->o.buffer_bytes);
    }
}
