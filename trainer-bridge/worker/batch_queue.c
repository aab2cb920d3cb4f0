#include "trainer-bridge/worker/batch_queue.h"
#include "base/log.h"
#include <corral/trajectory.h>
#include <stdlib.h>
#include <string.h>

/* A lease allows quota * (1 + max_versions), and a worker that is started again leaves as much behind each time; the receiver's buffer bounds them all in bytes. */
#define QUEUE_PER_WORKER_MAX (1u << 20)
#define QUEUE_FIRST_ROOM 16u

struct entry {
    struct corral_fragment fragment; /* its tensors lie in the record */
    const struct corral_traj_item *item;
    struct entry *next_spare;
};

struct worker_queue {
    uint32_t quota, count, room;
    struct entry **entry; /* arrival order, which is sequence order per epoch */
};

struct corral_batch_queue {
    uint32_t workers, max_versions, missing; /* missing: workers below their quota */
    uint32_t batch_count, batch_max, drop_count, drop_room, queued;
    const struct corral_traj_item **drop; /* dropped, not yet acknowledged */
    uint64_t dropped, malformed;
    const struct corral_fragment **batch;
    const struct corral_traj_item **batch_item;
    uint64_t rebase_from[CORRAL_BATCH_REBASES_MAX], rebase_to[CORRAL_BATCH_REBASES_MAX];
    uint32_t rebase_count;
    struct entry *spare;
    struct corral_traj_view view; /* of the record that is being taken in */
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
    q->batch_item = calloc(CORRAL_MAX(q->batch_max, 1u), sizeof(*q->batch_item));
    if (!q->batch || !q->batch_item) {
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
        for (uint32_t i = 0; i < q->worker[w].count; i++) {
            free(q->worker[w].entry[i]);
        }
        free(q->worker[w].entry);
    }
    while (q->spare) {
        struct entry *e = q->spare;
        q->spare = e->next_spare;
        free(e);
    }
    free(q->drop);
    free(q->batch);
    free(q->batch_item);
    free(q);
}

void corral_batch_queue_rebase(struct corral_batch_queue *q, uint64_t from, uint64_t to)
{
    if (q->rebase_count == CORRAL_BATCH_REBASES_MAX) {
        memmove(q->rebase_from, q->rebase_from + 1, sizeof q->rebase_from - sizeof q->rebase_from[0]);
        memmove(q->rebase_to, q->rebase_to + 1, sizeof q->rebase_to - sizeof q->rebase_to[0]);
        q->rebase_count--;
    }
    q->rebase_from[q->rebase_count] = from;
    q->rebase_to[q->rebase_count++] = to;
}

static uint64_t rebased(const struct corral_batch_queue *q, uint64_t version)
{
    for (uint32_t i = 0; i < q->rebase_count; i++) {
        if (version < q->rebase_to[i]) {
            version += q->rebase_to[i] - q->rebase_from[i];
        }
    }
    return version;
}

/* In versions, from the oldest step that may be trained on. */
static uint64_t fragment_staleness(const struct corral_batch_queue *q, const struct corral_fragment *f,
                                   uint64_t version)
{
    uint64_t oldest = f->version[0];
    for (uint32_t t = 1; t < f->steps; t++) {
        oldest = CORRAL_MIN(oldest, f->version[t]);
    }
    oldest = rebased(q, oldest);
    return version > oldest ? version - oldest : 0;
}

static struct entry *take_spare(struct corral_batch_queue *q)
{
    struct entry *e = q->spare;
    if (!e) {
        return malloc(sizeof *e);
    }
    q->spare = e->next_spare;
    return e;
}

static void put_spare(struct corral_batch_queue *q, struct entry *e)
{
    e->next_spare = q->spare;
    q->spare = e;
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

/* Powers of two: the first says what happens, the later ones how often, and a flood stays a few lines. */
static bool worth_a_line(uint64_t count)
{
    return (count & (count - 1)) == 0;
}

static void drop(struct corral_batch_queue *q, const struct corral_traj_item *item, uint64_t staleness)
{
    q->drop[q->drop_count++] = item;
    q->dropped++;
    if (worth_a_line(q->dropped)) {
        corral_log_warn("fragment dropped as too stale", LOG_U64("worker", item->worker),
                        LOG_U64("sequence", item->sequence), LOG_U64("versions", staleness),
                        LOG_U64("bound", q->max_versions), LOG_U64("dropped", q->dropped));
    }
}

static void drop_malformed(struct corral_batch_queue *q, const struct corral_traj_item *item, const char *why)
{
    q->drop[q->drop_count++] = item;
    q->malformed++;
    if (worth_a_line(q->malformed)) {
        corral_log_warn("record dropped: it holds no fragment to train on", LOG_U64("worker", item->worker),
                        LOG_U64("sequence", item->sequence), LOG_STR("why", why),
                        LOG_U64("dropped", q->malformed));
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
    void *entry = reallocarray(w->entry, room, sizeof w->entry[0]);
    if (!entry) {
        return corral_fail(err, CORRAL_NOMEM, "a queue of %u fragments of rollout worker %u", room, worker);
    }
    w->entry = entry;
    w->room = room;
    return CORRAL_OK;
}

static enum corral_status read_fragment(struct corral_batch_queue *q, const struct corral_traj_item *item,
                                        struct corral_fragment *out, struct corral_error *err)
{
    CORRAL_TRY(corral_traj_record_decode(item->data, item->bytes, &q->view, err));
    return corral_fragment_of(&q->view.record, out, err);
}

static enum corral_status queue_entry(struct corral_batch_queue *q, struct worker_queue *w,
                                      const struct corral_traj_item *item, const struct corral_fragment *f,
                                      struct corral_error *err)
{
    CORRAL_TRY(make_room(w, item->worker, err));
    struct entry *e = take_spare(q);
    if (!e) {
        return corral_fail(err, CORRAL_NOMEM, "queue a fragment of rollout worker %u", item->worker);
    }
    e->fragment = *f;
    e->item = item;
    w->entry[w->count++] = e;
    q->queued++;
    q->missing -= w->count == w->quota;
    return CORRAL_OK;
}

enum corral_status corral_batch_queue_add(struct corral_batch_queue *q, const struct corral_traj_item *item,
                                          uint64_t version, struct corral_error *err)
{
    if (item->worker >= q->workers || q->worker[item->worker].quota == 0) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "a fragment of rollout worker %u came to this rank, which expects none of it",
                           item->worker);
    }
    struct worker_queue *w = &q->worker[item->worker];
    struct corral_fragment f;
    struct corral_error why;
    CORRAL_TRY(make_drop_room(q, err));
    if (read_fragment(q, item, &f, &why) != CORRAL_OK) {
        drop_malformed(q, item, why.text);
        return CORRAL_OK;
    }
    /* Only the head of the line is dropped: what is behind others may be trained on before they are finished, and cursors tell one place per worker. */
    uint64_t staleness = fragment_staleness(q, &f, version);
    if (staleness > q->max_versions && w->count == 0) {
        drop(q, item, staleness);
        return CORRAL_OK;
    }
    return queue_entry(q, w, item, &f, err);
}

bool corral_batch_queue_ready(const struct corral_batch_queue *q)
{
    return q->missing == 0;
}

static void pop(struct corral_batch_queue *q, struct worker_queue *w, uint32_t count)
{
    q->queued -= count;
    for (uint32_t i = 0; i < count; i++) {
        put_spare(q, w->entry[i]);
    }
    memmove(&w->entry[0], &w->entry[count], (w->count - count) * sizeof(w->entry[0]));
    w->count -= count;
}

static bool drop_stale_heads(struct corral_batch_queue *q, uint64_t version)
{
    bool dropped = false;
    for (uint32_t i = 0; i < q->workers; i++) {
        struct worker_queue *w = &q->worker[i];
        while (w->count > 0 && fragment_staleness(q, &w->entry[0]->fragment, version) > q->max_versions) {
            drop(q, w->entry[0]->item, fragment_staleness(q, &w->entry[0]->fragment, version));
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
            const struct entry *e = q->worker[i].entry[k];
            uint64_t s = fragment_staleness(q, &e->fragment, version);
            sum += (double)s;
            staleness->max = CORRAL_MAX(staleness->max, s);
            q->batch_item[q->batch_count] = e->item;
            q->batch[q->batch_count++] = &e->fragment;
        }
    }
    staleness->mean = q->batch_count ? sum / q->batch_count : 0;
    *out = q->batch;
    return q->batch_count;
}

uint32_t corral_batch_queue_items(const struct corral_batch_queue *q,
                                  const struct corral_traj_item *const **out)
{
    *out = q->batch_item;
    return q->batch_count;
}

void corral_batch_queue_finish(struct corral_batch_queue *q, struct corral_traj_receiver *receiver)
{
    for (uint32_t i = 0; i < q->batch_count; i++) {
        corral_traj_receiver_finish(receiver, q->batch_item[i]);
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
                                  const struct corral_traj_item *const **out)
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

uint64_t corral_batch_queue_malformed(const struct corral_batch_queue *q)
{
    return q->malformed;
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
