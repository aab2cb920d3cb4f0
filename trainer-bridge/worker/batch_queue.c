#include "trainer-bridge/worker/batch_queue.h"
#include "base/log.h"
#include <stdlib.h>
#include <string.h>

/* A lease allows quota * (1 + max_versions), and a worker that is started again leaves as much behind each time; the receiver's buffer bounds them all in bytes. */
#define QUEUE_PER_WORKER_MAX (1u << 20)
#define QUEUE_FIRST_ROOM 16u

struct worker_queue {
    uint32_t quota, count, room;
    const struct corral_fragment **item; /* arrival order, which is sequence order per epoch */
};

struct corral_batch_queue {
    uint32_t workers, max_versions, missing; /* missing: workers below their quota */
    uint32_t batch_count, batch_max, drop_count, drop_room, queued;
    const struct corral_fragment **drop; /* dropped, not yet acknowledged, in the order of each worker */
    uint64_t dropped;
    const struct corral_fragment **batch;
    struct worker_queue worker[];
};

enum corral_status corral_batch_queue_create(struct corral_batch_queue **out,
                                             const struct corral_fragment_share *share, uint32_t rank,
                                             uint32_t max_versions, struct corral_error *err)
{
    struct corral_batch_queue *q = calloc(1, sizeof *q + share->workers * sizeof q->worker[0]);
    if (!q) {
        return corral_fail(err, CORRAL_NOMEM, "batch queue for %u workers", share->workers);
    }
    q->workers = share->workers;
    q->max_versions = max_versions;
    for (uint32_t w = 0; w < share->workers; w++) {
        q->worker[w].quota = corral_fragment_quota(share, w, rank);
        q->batch_max += q->worker[w].quota;
        q->missing += q->worker[w].quota > 0;
    }
    q->batch = calloc(CORRAL_MAX(q->batch_max, 1u), sizeof(*q->batch));
    if (!q->batch) {
        enum corral_status status =
            corral_fail(err, CORRAL_NOMEM, "batch queue for %u fragments", q->batch_max);
        corral_batch_queue_destroy(q);
        return status;
    }
    *out = q;
    return CORRAL_OK;
}

void corral_batch_queue_destroy(struct corral_batch_queue *q)
{
    if (!q) {
        return;
    }
    for (uint32_t w = 0; w < q->workers; w++) {
        free(q->worker[w].item);
    }
    free(q->drop);
    free(q->batch);
    free(q);
}

/* In versions, from the oldest step that may be trained on. */
static uint64_t fragment_staleness(const struct corral_fragment *f, uint64_t version)
{
    uint64_t oldest = f->version[0];
    for (uint32_t t = 1; t < f->steps; t++) {
        oldest = CORRAL_MIN(oldest, f->version[t]);
    }
    return version > oldest ? version - oldest : 0;
}

/* There is always room to drop everything that is queued, so that dropping cannot fail. */
static enum corral_status make_drop_room(struct corral_batch_queue *q, struct corral_error *err)
{
    if (q->drop_count + q->queued < q->drop_room) {
        return CORRAL_OK;
    }
    uint32_t room = q->drop_room ? 2 * q->drop_room : QUEUE_FIRST_ROOM;
    void *item = reallocarray(q->drop, room, sizeof q->drop[0]);
    if (!item) {
        return corral_fail(err, CORRAL_NOMEM, "a list of %u dropped fragments", room);
    }
    q->drop = item;
    q->drop_room = room;
    return CORRAL_OK;
}

static void drop(struct corral_batch_queue *q, const struct corral_fragment *f, uint64_t staleness)
{
    q->drop[q->drop_count++] = f;
    q->dropped++;
    /* Powers of two: the first says what happens, the later ones how often, and a flood stays a few lines. */
    if ((q->dropped & (q->dropped - 1)) == 0) {
        corral_log_warn("fragment dropped as too stale", LOG_U64("worker", f->worker),
                        LOG_U64("sequence", f->sequence), LOG_U64("versions", staleness),
                        LOG_U64("bound", q->max_versions), LOG_U64("dropped", q->dropped));
    }
}

static enum corral_status make_room(struct worker_queue *w, uint32_t worker, struct corral_error *err)
{
    if (w->count < w->room) {
        return CORRAL_OK;
    }
    if (w->room >= QUEUE_PER_WORKER_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "rollout worker %u sent more than %u fragments ahead of its lease", worker,
                           QUEUE_PER_WORKER_MAX);
    }
    uint32_t room = w->room ? 2 * w->room : CORRAL_MAX(w->quota, QUEUE_FIRST_ROOM);
    void *item = reallocarray(w->item, room, sizeof w->item[0]);
    if (!item) {
        return corral_fail(err, CORRAL_NOMEM, "a queue of %u fragments of rollout worker %u", room, worker);
    }
    w->item = item;
    w->room = room;
    return CORRAL_OK;
}

enum corral_status corral_batch_queue_add(struct corral_batch_queue *q, const struct corral_fragment *f,
                                          uint64_t version, struct corral_error *err)
{
    if (f->worker >= q->workers || q->worker[f->worker].quota == 0) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "a fragment of rollout worker %u came to this rank, which expects none of it",
                           f->worker);
    }
    struct worker_queue *w = &q->worker[f->worker];
    CORRAL_TRY(make_drop_room(q, err));
    /* Only the head of the line may be dropped: fragments of one worker are finished in the order they came. */
    uint64_t staleness = fragment_staleness(f, version);
    if (staleness > q->max_versions && w->count == 0) {
        drop(q, f, staleness);
        return CORRAL_OK;
    }
    CORRAL_TRY(make_room(w, f->worker, err));
    w->item[w->count++] = f;
    q->queued++;
    q->missing -= w->count == w->quota;
    return CORRAL_OK;
}

bool corral_batch_queue_ready(const struct corral_batch_queue *q)
{
    return q->missing == 0;
}

static void pop(struct corral_batch_queue *q, struct worker_queue *w, uint32_t count)
{
    q->queued -= count;
    memmove(&w->item[0], &w->item[count], (w->count - count) * sizeof(w->item[0]));
    w->count -= count;
}

static bool drop_stale_heads(struct corral_batch_queue *q, uint64_t version)
{
    bool dropped = false;
    for (uint32_t i = 0; i < q->workers; i++) {
        struct worker_queue *w = &q->worker[i];
        while (w->count > 0 && fragment_staleness(w->item[0], version) > q->max_versions) {
            drop(q, w->item[0], fragment_staleness(w->item[0], version));
            q->missing += w->count == w->quota;
            pop(q, w, 1);
            dropped = true;
        }
    }
    return dropped;
}

uint32_t corral_batch_queue_take(struct corral_batch_queue *q, uint64_t version,
                                 const struct corral_fragment *const **out,
                                 struct corral_batch_staleness *staleness)
{
    if (drop_stale_heads(q, version) && q->missing > 0) {
        return 0;
    }
    double sum = 0;
    *staleness = (struct corral_batch_staleness){0};
    q->batch_count = 0;
    for (uint32_t i = 0; i < q->workers; i++) {
        for (uint32_t k = 0; k < q->worker[i].quota; k++) {
            const struct corral_fragment *f = q->worker[i].item[k];
            uint64_t s = fragment_staleness(f, version);
            sum += (double)s;
            staleness->max = CORRAL_MAX(staleness->max, s);
            q->batch[q->batch_count++] = f;
        }
    }
    staleness->mean = q->batch_count ? sum / q->batch_count : 0;
    *out = q->batch;
    return q->batch_count;
}

void corral_batch_queue_finish(struct corral_batch_queue *q, struct corral_traj_receiver *receiver)
{
    for (uint32_t i = 0; i < q->batch_count; i++) {
        corral_traj_receiver_finish(receiver, q->batch[i]);
    }
    corral_traj_receiver_flush(receiver); /* the next step may begin without a look at the receiver */
    q->batch_count = 0;
    q->missing = 0;
    for (uint32_t i = 0; i < q->workers; i++) {
        struct worker_queue *w = &q->worker[i];
        if (w->quota > 0) {
            pop(q, w, w->quota);
            q->missing += w->count < w->quota;
        }
    }
}

uint32_t corral_batch_queue_drops(const struct corral_batch_queue *q,
                                  const struct corral_fragment *const **out)
{
    *out = q->drop;
    return q->drop_count;
}

void corral_batch_queue_finish_drops(struct corral_batch_queue *q, struct corral_traj_receiver *receiver)
{
    for (uint32_t i = 0; i < q->drop_count; i++) {
        corral_traj_receiver_finish(receiver, q->drop[i]);
    }
    corral_traj_receiver_flush(receiver);
    q->drop_count = 0;
}

uint64_t corral_batch_queue_dropped(const struct corral_batch_queue *q)
{
    return q->dropped;
}

uint32_t corral_batch_queue_waiting_for(const struct corral_batch_queue *q)
{
    uint32_t worst = UINT32_MAX, gap = 0;
    for (uint32_t i = 0; i < q->workers; i++) {
        const struct worker_queue *w = &q->worker[i];
        if (w->count < w->quota && w->quota - w->count > gap) {
            gap = w->quota - w->count;
            worst = i;
        }
    }
    return worst;
}
