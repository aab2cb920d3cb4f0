#include "trainer-bridge/batching/replay.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define NONE UINT32_MAX

struct item {
    void *user;
    uint64_t bytes;
    uint32_t generation; /* odd while somebody may name it */
    uint32_t times, lent;
    bool in;                          /* can be sampled */
    enum corral_replay_reason reason; /* why not */
    uint32_t older, newer;            /* in: the order of insertion; free: `newer` only */
    uint32_t place;                   /* in: index in `dense` */
};

struct corral_replay {
    struct corral_replay_config config;
    struct corral_replay_stats stats;
    struct item *item;
    uint32_t *dense; /* those that are in, in any order */
    uint32_t size, oldest, newest, spare, leaves;
    double *sum, *least; /* trees over the items: root at 1, leaf of item i at leaves + i */
    double most;         /* the largest priority that was given, to the power of alpha */
};

static enum corral_status check(const struct corral_replay_config *c, struct corral_error *err)
{
    if (c->items_max == 0 || c->items_max > CORRAL_REPLAY_ITEMS_MAX || c->bytes_max == 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "replay buffer: %u items and %llu bytes: at least 1 of each and at most %u items",
                           c->items_max, (unsigned long long)c->bytes_max, CORRAL_REPLAY_ITEMS_MAX);
    }
    if (c->order == CORRAL_REPLAY_FIFO && c->max_times == 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "replay buffer: in FIFO order max_times must be set, or the oldest item would be "
                           "sampled for ever");
    }
    if (c->order == CORRAL_REPLAY_PRIORITISED && !(c->alpha >= 0 && c->alpha <= 16)) {
        return corral_fail(err, CORRAL_INVALID, "replay buffer: alpha %g is not between 0 and 16", c->alpha);
    }
    return CORRAL_OK;
}

enum corral_status corral_replay_create(struct corral_replay **out, const struct corral_replay_config *config,
                                        struct corral_error *err)
{
    CORRAL_TRY(check(config, err));
    CORRAL_CLEANUP(corral_replay_destroyp) struct corral_replay *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create a replay buffer");
    }
    r->config = *config;
    r->oldest = r->newest = NONE;
    r->most = 1;
    r->item = calloc(config->items_max, sizeof *r->item);
    r->dense = calloc(config->items_max, sizeof *r->dense);
    bool ok = r->item != NULL && r->dense != NULL;
    if (config->order == CORRAL_REPLAY_PRIORITISED) {
        for (r->leaves = 1; r->leaves < config->items_max; r->leaves *= 2) {
        }
        r->sum = calloc(2 * (size_t)r->leaves, sizeof *r->sum);
        r->least = calloc(2 * (size_t)r->leaves, sizeof *r->least);
        ok = ok && r->sum != NULL && r->least != NULL;
    }
    if (!ok) {
        return corral_fail(err, CORRAL_NOMEM, "a replay buffer of %u items", config->items_max);
    }
    for (uint32_t i = 0; i < 2 * r->leaves; i++) {
        r->least[i] = INFINITY;
    }
    for (uint32_t i = 0; i < config->items_max; i++) {
        r->item[i].newer = i + 1 < config->items_max ? i + 1 : NONE;
    }
    *out = CORRAL_STEAL(r);
    return CORRAL_OK;
}

/* ---- trees ---- */

static void set_leaf(struct corral_replay *r, uint32_t i, double p)
{
    if (r->leaves == 0) {
        return;
    }
    uint32_t at = r->leaves + i;
    r->sum[at] = p;
    r->least[at] = p > 0 ? p : INFINITY;
    for (at /= 2; at > 0; at /= 2) {
        r->sum[at] = r->sum[2 * at] + r->sum[2 * at + 1];
        r->least[at] = fmin(r->least[2 * at], r->least[2 * at + 1]);
    }
}

static uint32_t find_leaf(const struct corral_replay *r, double at)
{
    uint32_t node = 1;
    while (node < r->leaves) {
        node *= 2;
        /* Never into a branch of nothing, whatever rounding has done to `at`. */
        if (r->sum[node + 1] > 0 && (at >= r->sum[node] || r->sum[node] <= 0)) {
            at -= r->sum[node];
            node++;
        }
    }
    return node - r->leaves;
}

/* ---- coming and going ---- */

static uint64_t key_of(const struct corral_replay *r, uint32_t i)
{
    return (uint64_t)r->item[i].generation << 32 | i;
}

static struct item *find(struct corral_replay *r, uint64_t key, uint32_t *index)
{
    uint32_t i = (uint32_t)key;
    *index = i;
    return i < r->config.items_max && (r->item[i].generation & 1) == 1 &&
                   r->item[i].generation == (uint32_t)(key >> 32)
               ? &r->item[i]
               : NULL;
}

static void release(struct corral_replay *r, uint32_t i)
{
    struct item *e = &r->item[i];
    r->stats.items--;
    r->stats.bytes -= e->bytes;
    e->generation++;
    e->newer = r->spare;
    r->spare = i;
    if (r->config.released != NULL) {
        r->config.released(r->config.ctx, e->user, e->reason);
    }
}

/* Out of what can be sampled; released when nobody has it. */
static void take_out(struct corral_replay *r, uint32_t i, enum corral_replay_reason reason)
{
    struct item *e = &r->item[i];
    *(e->older != NONE ? &r->item[e->older].newer : &r->oldest) = e->newer;
    *(e->newer != NONE ? &r->item[e->newer].older : &r->newest) = e->older;
    uint32_t last = r->dense[--r->size];
    r->dense[e->place] = last;
    r->item[last].place = e->place;
    set_leaf(r, i, 0);
    e->in = false;
    e->reason = reason;
    r->stats.evicted += reason == CORRAL_REPLAY_EVICTED;
    r->stats.sampled_out += reason == CORRAL_REPLAY_SAMPLED_OUT;
    r->stats.removed += reason == CORRAL_REPLAY_REMOVED;
    if (e->lent == 0) {
        release(r, i);
    }
}

void corral_replay_destroy(struct corral_replay *r)
{
    if (r == NULL) {
        return;
    }
    for (uint32_t i = 0; r->item != NULL && i < r->config.items_max; i++) {
        if ((r->item[i].generation & 1) == 1) {
            r->item[i].reason = CORRAL_REPLAY_CLOSED;
            release(r, i);
        }
    }
    free(r->item);
    free(r->dense);
    free(r->sum);
    free(r->least);
    free(r);
}

static bool has_room(const struct corral_replay *r, uint64_t bytes)
{
    return r->spare != NONE && bytes <= r->config.bytes_max - r->stats.bytes;
}

enum corral_status corral_replay_insert(struct corral_replay *r, uint64_t bytes, double priority, void *user,
                                        uint64_t *key, struct corral_error *err)
{
    double p = priority == CORRAL_REPLAY_NEWEST ? r->most : pow(priority, r->config.alpha);
    if (bytes > r->config.bytes_max) {
        return corral_fail(err, CORRAL_INVALID,
                           "a record of %llu bytes is larger than the replay buffer, %llu",
                           (unsigned long long)bytes, (unsigned long long)r->config.bytes_max);
    }
    if (!(priority >= 0 || priority == CORRAL_REPLAY_NEWEST) || !isfinite(p)) {
        return corral_fail(err, CORRAL_INVALID, "%g is not a priority", priority);
    }
    while (r->oldest != NONE && !has_room(r, bytes)) {
        take_out(r, r->oldest, CORRAL_REPLAY_EVICTED);
    }
    if (!has_room(r, bytes)) {
        return corral_fail(err, CORRAL_AGAIN,
                           "the replay buffer waits for %llu samples that have not been given back",
                           (unsigned long long)r->stats.lent);
    }
    uint32_t i = r->spare;
    struct item *e = &r->item[i];
    r->spare = e->newer;
    *e = (struct item){.user = user,
                       .bytes = bytes,
                       .generation = e->generation + 1,
                       .in = true,
                       .older = r->newest,
                       .newer = NONE,
                       .place = r->size};
    *(r->newest != NONE ? &r->item[r->newest].newer : &r->oldest) = i;
    r->newest = i;
    r->dense[r->size++] = i;
    r->most = CORRAL_MAX(r->most, p);
    set_leaf(r, i, p);
    r->stats.items++;
    r->stats.bytes += bytes;
    r->stats.inserted++;
    *key = key_of(r, i);
    return CORRAL_OK;
}

/* ---- sampling ---- */

static uint32_t choose(const struct corral_replay *r, struct corral_rng *rng, double beta,
                       struct corral_replay_sample *out)
{
    out->weight = 1;
    if (r->config.order == CORRAL_REPLAY_FIFO) {
        out->probability = 1;
        return r->oldest;
    }
    if (r->config.order == CORRAL_REPLAY_UNIFORM) {
        out->probability = 1.0 / r->size;
        return r->dense[corral_rng_below(rng, r->size)];
    }
    uint32_t i = find_leaf(r, corral_rng_uniform(rng) * r->sum[1]);
    double p = r->sum[r->leaves + i];
    out->probability = p / r->sum[1];
    out->weight = pow(p / r->least[1], -beta);
    return i;
}

enum corral_status corral_replay_take(struct corral_replay *r, struct corral_rng *rng, double beta,
                                      struct corral_replay_sample *out, struct corral_error *err)
{
    if (r->size == 0 || (r->leaves > 0 && r->sum[1] <= 0)) {
        return corral_fail(err, CORRAL_AGAIN, "nothing to sample in the replay buffer");
    }
    struct corral_replay_sample s;
    uint32_t i = choose(r, rng, beta, &s);
    struct item *e = &r->item[i];
    e->times++;
    e->lent++;
    r->stats.lent++;
    r->stats.sampled++;
    s.key = key_of(r, i);
    s.user = e->user;
    s.times = e->times;
    if (r->config.max_times > 0 && e->times >= r->config.max_times) {
        take_out(r, i, CORRAL_REPLAY_SAMPLED_OUT);
    }
    *out = s;
    return CORRAL_OK;
}

void corral_replay_give_back(struct corral_replay *r, uint64_t key)
{
    uint32_t i;
    struct item *e = find(r, key, &i);
    assert(e != NULL && e->lent > 0);
    e->lent--;
    r->stats.lent--;
    if (e->lent == 0 && !e->in) {
        release(r, i);
    }
}

bool corral_replay_set_priority(struct corral_replay *r, uint64_t key, double priority)
{
    uint32_t i;
    struct item *e = find(r, key, &i);
    double p = pow(priority, r->config.alpha);
    if (e == NULL || !e->in || !(priority >= 0) || !isfinite(p)) {
        return false;
    }
    r->most = CORRAL_MAX(r->most, p);
    set_leaf(r, i, p);
    return true;
}

bool corral_replay_remove(struct corral_replay *r, uint64_t key)
{
    uint32_t i;
    struct item *e = find(r, key, &i);
    if (e == NULL || !e->in) {
        return false;
    }
    take_out(r, i, CORRAL_REPLAY_REMOVED);
    return true;
}

uint32_t corral_replay_size(const struct corral_replay *r)
{
    return r->size;
}

void corral_replay_stats(const struct corral_replay *r, struct corral_replay_stats *out)
{
    *out = r->stats;
}
