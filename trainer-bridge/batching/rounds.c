#include "trainer-bridge/batching/rounds.h"
#include <stdlib.h>
#include <string.h>

struct line {
    void **item;
    uint32_t count, room;
};

struct corral_rounds {
    uint32_t workers, per_worker, ready; /* ready: workers that have enough */
    struct line line[];
};

enum corral_status corral_rounds_create(struct corral_rounds **out, uint32_t workers, uint32_t per_worker,
                                        struct corral_error *err)
{
    if (workers == 0 || workers > CORRAL_ROUNDS_WORKERS_MAX || per_worker == 0 ||
        per_worker > CORRAL_ROUNDS_PER_WORKER_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "batches of %u records of each of %u workers: at least 1 and at most %u of %u",
                           per_worker, workers, CORRAL_ROUNDS_PER_WORKER_MAX, CORRAL_ROUNDS_WORKERS_MAX);
    }
    struct corral_rounds *r = calloc(1, sizeof *r + workers * sizeof r->line[0]);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "batches of %u workers", workers);
    }
    r->workers = workers;
    r->per_worker = per_worker;
    *out = r;
    return CORRAL_OK;
}

void corral_rounds_destroy(struct corral_rounds *r)
{
    if (r == NULL) {
        return;
    }
    for (uint32_t w = 0; w < r->workers; w++) {
        free(r->line[w].item);
    }
    free(r);
}

enum corral_status corral_rounds_reserve(struct corral_rounds *r, uint32_t worker, struct corral_error *err)
{
    if (worker >= r->workers) {
        return corral_fail(err, CORRAL_PROTOCOL, "a record of worker %u; %u workers were expected", worker,
                           r->workers);
    }
    struct line *l = &r->line[worker];
    if (l->count == CORRAL_ROUNDS_QUEUE_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "worker %u is more than %u records ahead", worker,
                           CORRAL_ROUNDS_QUEUE_MAX);
    }
    if (l->count == l->room) {
        uint32_t room = l->room > 0 ? 2 * l->room : CORRAL_MAX(r->per_worker, 16u);
        void **grown = reallocarray(l->item, room, sizeof *grown);
        if (grown == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "a queue of %u records of worker %u", room, worker);
        }
        l->item = grown;
        l->room = room;
    }
    return CORRAL_OK;
}

enum corral_status corral_rounds_add(struct corral_rounds *r, uint32_t worker, void *item,
                                     struct corral_error *err)
{
    CORRAL_TRY(corral_rounds_reserve(r, worker, err));
    struct line *l = &r->line[worker];
    l->item[l->count++] = item;
    r->ready += l->count == r->per_worker;
    return CORRAL_OK;
}

uint32_t corral_rounds_drop(struct corral_rounds *r, bool (*drop)(void *ctx, void *item), void *ctx)
{
    uint32_t dropped = 0;
    r->ready = 0;
    for (uint32_t w = 0; w < r->workers; w++) {
        struct line *l = &r->line[w];
        uint32_t kept = 0;
        for (uint32_t i = 0; i < l->count; i++) {
            if (drop(ctx, l->item[i])) {
                dropped++;
            } else {
                l->item[kept++] = l->item[i];
            }
        }
        l->count = kept;
        r->ready += kept >= r->per_worker;
    }
    return dropped;
}

bool corral_rounds_ready(const struct corral_rounds *r)
{
    return r->ready == r->workers;
}

uint32_t corral_rounds_take(struct corral_rounds *r, void **out)
{
    if (!corral_rounds_ready(r)) {
        return 0;
    }
    uint32_t count = 0;
    r->ready = 0;
    for (uint32_t w = 0; w < r->workers; w++) {
        struct line *l = &r->line[w];
        memcpy(&out[count], l->item, r->per_worker * sizeof *out);
        count += r->per_worker;
        l->count -= r->per_worker;
        memmove(l->item, l->item + r->per_worker, l->count * sizeof *l->item);
        r->ready += l->count >= r->per_worker;
    }
    return count;
}

uint32_t corral_rounds_waiting_for(const struct corral_rounds *r, uint32_t *missing)
{
    uint32_t worst = UINT32_MAX, most = 0;
    for (uint32_t w = 0; w < r->workers; w++) {
        uint32_t gap = r->per_worker - CORRAL_MIN(r->per_worker, r->line[w].count);
        if (gap > most) {
            most = gap;
            worst = w;
        }
    }
    *missing = most;
    return worst;
}
