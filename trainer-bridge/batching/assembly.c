/* Records in, batches done. */
#include "trainer-bridge/batching/assembly_private.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLAB_ENTRIES 256u
struct slab {
    struct slab *next;
    struct corral_assembly_entry entry[SLAB_ENTRIES];
};

/* ---- lists ---- */

static bool reserve(struct corral_assembly_list *l, uint64_t count)
{
    if ((uint64_t)l->first + count <= l->room) {
        return true;
    }
    if (count <= l->room &&
        l->first >= l->room / 2) { /* half of it has been taken: move the rest to the front */
        memmove(l->entry, l->entry + l->first, l->count * sizeof(l->entry[0]));
        l->first = 0;
        return true;
    }
    uint64_t room = l->room > 0 ? 2 * (uint64_t)l->room : 64;
    while (room < l->first + count) {
        room *= 2;
    }
    void *grown = room <= UINT32_MAX / 2 ? reallocarray(l->entry, room, sizeof(l->entry[0])) : NULL;
    if (grown == NULL &&
        count <= l->room) { /* what has been taken from the front makes room without memory */
        memmove(l->entry, l->entry + l->first, l->count * sizeof(l->entry[0]));
        l->first = 0;
        return true;
    }
    if (grown == NULL) {
        return false;
    }
    l->entry = grown;
    l->room = (uint32_t)room;
    return true;
}

bool corral_assembly_reserve(struct corral_assembly_list *l, uint32_t more)
{
    return reserve(l, (uint64_t)l->count + more);
}

bool corral_assembly_push(struct corral_assembly_list *l, struct corral_assembly_entry *e)
{
    if (!reserve(l, (uint64_t)l->count + 1)) {
        return false;
    }
    l->entry[l->first + l->count++] = e;
    return true;
}

/* ---- making ---- */

static void on_finish(void *ctx, void *user)
{
    struct corral_assembly *a = ctx;
    struct corral_assembly_entry *e = user;
    const void *item = e->item;
    a->stats.held_bytes -= e->facts.bytes;
    a->stats.acknowledged++;
    e->next_free = a->spare;
    a->spare = e;
    a->finish(a->ctx, item);
}

static void on_replay_released(void *ctx, void *user, enum corral_replay_reason reason)
{
    (void)ctx;
    (void)reason;
    free(user);
}

static enum corral_status make_replay(struct corral_assembly *a, struct corral_error *err)
{
    const struct corral_trainer_options *o = &a->o;
    struct corral_replay_config c = {.order = (enum corral_replay_order)(o->replay - CORRAL_TRAINER_FIFO),
                                     .items_max = o->replay_items,
                                     .bytes_max = o->replay_bytes,
                                     .max_times = o->replay_times,
                                     .alpha = o->replay_alpha,
                                     .released = on_replay_released};
    CORRAL_TRY(corral_replay_create(&a->replay, &c, err));
    if (o->samples_per_insert > 0) {
        return corral_limiter_init(&a->limiter, o->samples_per_insert, o->replay_min, o->samples_error, err);
    }
    return corral_limiter_init_bounds(&a->limiter, 1, o->replay_min, -INFINITY, INFINITY, err);
}

enum corral_status corral_assembly_make_groups(struct corral_assembly *a, uint64_t first,
                                               const uint64_t *skip, uint32_t skip_count,
                                               struct corral_error *err)
{
    const struct corral_trainer_options *o = &a->o;
    struct corral_groups_config c = {.group_size = o->group_size,
                                     .group_min = o->group_min,
                                     .groups_max = o->groups_max,
                                     .replacements_max = o->group_replacements,
                                     .deadline_ns = (uint64_t)o->group_deadline_ms * 1000000,
                                     .first = first,
                                     .skip = skip,
                                     .skip_count = skip_count,
                                     .ordered = o->group_ordered != 0,
                                     .drop_flat = o->drop_flat != 0,
                                     .flat_within = o->flat_within};
    struct corral_groups *made;
    CORRAL_TRY(corral_groups_create(&made, &c, err));
    corral_groups_destroy(a->groups);
    a->groups = made;
    return CORRAL_OK;
}

enum corral_status corral_assembly_create(struct corral_assembly **out,
                                          const struct corral_trainer_options *options,
                                          corral_assembly_finish_fn finish, void *ctx,
                                          struct corral_error *err)
{
    CORRAL_CLEANUP(corral_assembly_destroyp) struct corral_assembly *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create a trainer's reader");
    }
    a->o = *options;
    a->finish = finish;
    a->ctx = ctx;
    a->version = options->version;
    CORRAL_TRY(corral_handoff_create(&a->handoff, on_finish, a, err));
    if (options->mode == CORRAL_TRAINER_FRAGMENTS) {
        CORRAL_TRY(corral_rounds_create(&a->rounds, options->workers, options->batch, err));
    } else if (options->mode == CORRAL_TRAINER_GROUPS) {
        CORRAL_TRY(corral_assembly_make_groups(a, 0, NULL, 0, err));
        a->coming = calloc(options->batch, sizeof *a->coming);
        a->group_items = calloc(options->group_size, sizeof *a->group_items);
        if (a->coming == NULL || a->group_items == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "batches of %u groups", options->batch);
        }
    } else if (options->replay != CORRAL_TRAINER_NO_REPLAY) {
        CORRAL_TRY(make_replay(a, err));
    }
    *out = CORRAL_STEAL(a);
    return CORRAL_OK;
}

void corral_assembly_batch_free(struct corral_assembly_batch *b)
{
    if (b == NULL) {
        return;
    }
    free(b->record);
    free(b->group);
    free(b->entry);
    free(b->key);
    free(b->settled);
    free(b->skip);
    free(b);
}

void corral_assembly_destroy(struct corral_assembly *a)
{
    if (a == NULL) {
        return;
    }
    while (a->oldest != NULL) {
        struct corral_assembly_batch *b = a->oldest;
        a->oldest = b->next;
        corral_assembly_batch_free(b);
    }
    corral_handoff_destroy(a->handoff);
    corral_rounds_destroy(a->rounds);
    corral_groups_destroy(a->groups);
    corral_replay_destroy(a->replay);
    free(a->queue.entry);
    free(a->settled.entry);
    free(a->ready.entry);
    free(a->coming);
    free(a->done_skip);
    free(a->restored_skip);
    free(a->group_items);
    while (a->slabs != NULL) {
        struct slab *s = a->slabs;
        a->slabs = s->next;
        free(s);
    }
    free(a);
}

/* ---- records in ---- */

static struct corral_assembly_entry *take_spare(struct corral_assembly *a)
{
    if (a->spare == NULL) {
        struct slab *s = malloc(sizeof *s);
        if (s == NULL) {
            return NULL;
        }
        s->next = a->slabs;
        a->slabs = s;
        for (uint32_t i = 0; i < SLAB_ENTRIES; i++) {
            s->entry[i].next_free = a->spare;
            a->spare = &s->entry[i];
        }
    }
    struct corral_assembly_entry *e = a->spare;
    a->spare = e->next_free;
    return e;
}

bool corral_assembly_too_old(const struct corral_assembly *a, const struct corral_assembly_entry *e)
{
    return a->o.staleness_bounded != 0 && a->version > e->facts.version_min &&
           a->version - e->facts.version_min > a->o.max_staleness;
}

void corral_assembly_drop(struct corral_assembly *a, struct corral_assembly_entry *e, uint64_t *counter)
{
    corral_handoff_batch(e->handoff, a->number + 1);
    (void)corral_assembly_push(&a->settled, e); /* there is room: corral_assembly_add() has seen to it */
    if (counter != NULL) {
        ++*counter;
    }
    if (counter == &a->stats.stale) {
        corral_length_bias_add(&a->bias, e->facts.tokens, false);
    }
}

static void malformed(struct corral_assembly *a, struct corral_assembly_entry *e, const char *why)
{
    snprintf(a->stats.last_error, sizeof a->stats.last_error, "worker %u, record %u/%llu: %s",
             e->facts.worker, e->facts.epoch, (unsigned long long)e->facts.sequence, why);
    corral_assembly_drop(a, e, &a->stats.malformed);
}

/* Why a record cannot be in any batch; NULL: it can. */
static const char *unfit(const struct corral_assembly *a, const struct corral_trainer_record *f)
{
    if (a->o.pack_tokens > 0 && (f->tokens == 0 || f->tokens > a->o.pack_tokens)) {
        return "it has no tokens, or more than a bin has room for (pack_tokens)";
    }
    if (a->o.mode == CORRAL_TRAINER_FRAGMENTS && f->worker >= a->o.workers) {
        return "its worker is not one of those expected";
    }
    if (a->o.mode == CORRAL_TRAINER_GROUPS &&
        (f->group_size != a->o.group_size || f->group_index >= a->o.group_size)) {
        return "its group is not of the size expected";
    }
    if (a->o.mode == CORRAL_TRAINER_GROUPS && !isfinite(f->score)) {
        return "it lacks the score, or that is not finite";
    }
    return a->replay != NULL && f->bytes > a->o.replay_bytes ? "it is larger than the replay buffer" : NULL;
}

enum corral_status corral_assembly_into_group(struct corral_assembly *a, struct corral_assembly_entry *e,
                                              uint64_t now_ns, struct corral_error *err)
{
    const struct corral_trainer_record *f = &e->facts;
    struct corral_group_item item = {
        .index = f->group_index, .score = f->score, .tokens = f->tokens, .user = e};
    enum corral_group_fate fate;
    CORRAL_TRY(corral_groups_add(a->groups, f->group, &item, now_ns, &fate, err));
    switch (fate) {
    case CORRAL_GROUP_KEPT:
        break;
    case CORRAL_GROUP_LATE:
        corral_assembly_drop(a, e, &a->stats.late);
        break;
    case CORRAL_GROUP_SURPLUS:
        corral_assembly_drop(a, e, &a->stats.surplus);
        break;
    case CORRAL_GROUP_BEYOND:
        if (!corral_assembly_push(&a->queue, e)) {
            return corral_fail(err, CORRAL_NOMEM, "hold back %u records", a->queue.count);
        }
    }
    return CORRAL_OK;
}

static enum corral_status sort_in(struct corral_assembly *a, struct corral_assembly_entry *e,
                                  enum corral_assembly_verdict verdict, const char *why, uint64_t now_ns,
                                  struct corral_error *err)
{
    const struct corral_trainer_record *f = &e->facts;
    bool old = corral_assembly_too_old(a, e);
    const char *reason = verdict == CORRAL_ASSEMBLY_MALFORMED ? (why != NULL ? why : "malformed")
                         : verdict == CORRAL_ASSEMBLY_USABLE  ? unfit(a, f)
                                                              : NULL;
    if (reason != NULL) {
        malformed(a, e, reason);
        return CORRAL_OK;
    }
    if (verdict == CORRAL_ASSEMBLY_FAILED || old) {
        if (a->groups != NULL && f->group_size == a->o.group_size && f->group_index < a->o.group_size) {
            enum corral_group_fate
                fate; /* an old one is as good as lost: it is made again, with newer weights */
            CORRAL_TRY(corral_groups_fail(a->groups, f->group, f->group_index, now_ns, &fate, err));
        }
        corral_assembly_drop(a, e, old ? &a->stats.stale : &a->stats.failed);
        return CORRAL_OK;
    }
    if (a->rounds != NULL) {
        return corral_rounds_add(a->rounds, f->worker, e, err);
    }
    if (a->groups != NULL) {
        return corral_assembly_into_group(a, e, now_ns, err);
    }
    return corral_assembly_push(&a->queue, e)
               ? CORRAL_OK
               : corral_fail(err, CORRAL_NOMEM, "a queue of %u records", a->queue.count);
}

enum corral_status corral_assembly_add(struct corral_assembly *a, const struct corral_trainer_record *facts,
                                       enum corral_assembly_verdict verdict, const char *why,
                                       const void *item, uint64_t now_ns, struct corral_error *err)
{
    /* Everything that is held may have to be settled with one batch. All memory is there before the record counts as come: one that had come and were nowhere would be taken for used. */
    if (!reserve(&a->settled, a->settled.count + corral_handoff_held(a->handoff) + 1) ||
        !reserve(&a->queue, (uint64_t)a->queue.count + 1)) {
        return corral_fail(err, CORRAL_NOMEM, "a list of records");
    }
    if (a->rounds != NULL && facts->worker < a->o.workers) {
        CORRAL_TRY(corral_rounds_reserve(a->rounds, facts->worker, err));
    }
    struct corral_assembly_entry *e = take_spare(a);
    if (e == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "hold a record");
    }
    *e = (struct corral_assembly_entry){.facts = *facts, .item = item};
    e->facts.times = 1;
    e->facts.probability = e->facts.weight = 1;
    a->stats.held_bytes += facts->bytes;
    bool fresh;
    enum corral_status status = corral_handoff_add(a->handoff, facts->worker, facts->epoch, facts->sequence,
                                                   e, &fresh, &e->handoff, err);
    if (status != CORRAL_OK) {
        a->stats.held_bytes -= facts->bytes;
        e->next_free = a->spare;
        a->spare = e;
        return status;
    }
    a->stats.received++;
    if (!fresh) { /* the restored state has used it; the entry may be gone already */
        a->stats.duplicates++;
        return CORRAL_OK;
    }
    return sort_in(a, e, verdict, why, now_ns, err);
}

bool corral_assembly_wants(const struct corral_assembly *a)
{
    return a->replay == NULL || a->queue.count == 0;
}

/* ---- batches done ---- */

static bool drop_old(void *ctx, void *item)
{
    struct corral_assembly *a = ctx;
    if (!corral_assembly_too_old(a, item)) {
        return false;
    }
    corral_assembly_drop(a, item, &a->stats.stale);
    return true;
}

static void on_new_version(struct corral_assembly *a)
{
    if (a->rounds != NULL) {
        corral_rounds_drop(a->rounds, drop_old, a);
    }
    if (a->o.mode == CORRAL_TRAINER_STREAM) {
        struct corral_assembly_list *q = &a->queue;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < q->count; i++) {
            struct corral_assembly_entry *e = q->entry[q->first + i];
            if (!drop_old(a, e)) {
                q->entry[q->first + kept++] = e;
            }
        }
        q->count = kept;
    }
}

static void settle_batch(struct corral_assembly *a, struct corral_assembly_batch *b)
{
    for (uint32_t i = 0; i < b->public.count; i++) {
        if (b->key != NULL) {
            corral_replay_give_back(a->replay, b->key[i]);
        } else {
            corral_handoff_use(a->handoff, b->entry[i]->handoff);
        }
    }
    for (uint32_t i = 0; i < b->settled_count; i++) {
        corral_handoff_use(a->handoff, b->settled[i]->handoff);
    }
    a->done_number = b->public.number;
    a->done_position = b->position;
    free(a->done_skip);
    a->done_skip = CORRAL_STEAL(b->skip);
    a->done_skip_count = b->skip_count;
}

struct corral_assembly_batch *corral_assembly_out(const struct corral_assembly *a,
                                                  const struct corral_trainer_batch *batch)
{
    struct corral_assembly_batch *b = a->oldest;
    while (b != NULL && &b->public != batch) {
        b = b->next;
    }
    return b != NULL && !b->done ? b : NULL;
}

void corral_assembly_done(struct corral_assembly *a, const struct corral_trainer_batch *batch,
                          uint64_t version)
{
    struct corral_assembly_batch *const finished = corral_assembly_out(a, batch);
    if (finished == NULL) {
        return; /* it was done before */
    }
    finished->done = true;
    /* In the order they were handed out: a saved position says "up to this batch". */
    while (a->oldest != NULL && a->oldest->done) {
        struct corral_assembly_batch *b = a->oldest;
        a->oldest = b->next;
        if (a->oldest == NULL) {
            a->newest = NULL;
        }
        settle_batch(a, b);
        a->stats.batches_out--;
        corral_assembly_batch_free(b);
    }
    if (version > a->version) {
        a->version = version;
        on_new_version(a);
    }
}

enum corral_status corral_assembly_priorities(struct corral_assembly *a,
                                              const struct corral_trainer_batch *batch,
                                              const double *priority, struct corral_error *err)
{
    const struct corral_assembly_batch *b = corral_assembly_out(a, batch);
    if (b == NULL) {
        return corral_fail(err, CORRAL_INVALID, "priorities: the batch is done, or of another reader");
    }
    if (b->key == NULL) {
        return corral_fail(err, CORRAL_STATE, "priorities: the batch is not from a replay buffer");
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        if (!(priority[i] >= 0) || !isfinite(pow(priority[i], a->o.replay_alpha))) {
            return corral_fail(err, CORRAL_INVALID, "priority %u is %g", i, priority[i]);
        }
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        corral_replay_set_priority(a->replay, b->key[i], priority[i]);
    }
    return CORRAL_OK;
}

bool corral_assembly_replacement(struct corral_assembly *a, uint64_t *group, uint32_t *index)
{
    return a->groups != NULL && corral_groups_replacement(a->groups, group, index);
}

uint32_t corral_assembly_unsettled(const struct corral_assembly *a)
{
    return a->settled.count;
}

uint64_t corral_assembly_deadline(const struct corral_assembly *a)
{
    return a->groups != NULL ? corral_groups_deadline(a->groups) : UINT64_MAX;
}
