/* The sender's copying threads: each takes the next bucket and copies all of it, so that several buckets in flight use several cores. */
#include "transport/weights/lanes/shm/internal.h"

#include <string.h>

#define SHORT_RUN \
    512u /* shorter runs are left to link.h's loops over rows, which cannot be cancelled in the middle of a bucket */

void shm_post(struct shm_tx *tx, const struct shm_job *job)
{
    struct shm_control *c = tx->control;
    uint64_t n = atomic_load_explicit(&c->posted, memory_order_relaxed); /* only we write it */
    uint64_t bytes = job->encoded != 0 ? job->encoded : corral_link_bucket_size(tx->base.link, job->bucket);
    c->ring[n % SHM_RING] =
        (struct shm_arrival){.push = tx->push, .bucket = job->bucket, .slot = job->slot, .bytes = bytes};
    atomic_store_explicit(&c->posted, n + 1, memory_order_release); /* pairs with rx.c's acquire in take() */
    corral_lane_signal(tx->peer_event);
}

void shm_advance(struct shm_tx *tx)
{
    while (tx->left < tx->claimed && tx->job[tx->left % tx->window].state == SHM_JOB_DONE) {
        tx->left++;
    }
}

static bool stopped(const struct shm_tx *tx)
{
    return atomic_load_explicit(&tx->cancel, memory_order_relaxed) ||
           atomic_load_explicit(&tx->control->closed, memory_order_relaxed) != 0;
}

static bool copy_pieces(const struct shm_tx *tx, uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += SHM_PIECE) {
        if (stopped(tx)) {
            return false;
        }
        uint64_t piece = CORRAL_MIN(bytes - at, (uint64_t)SHM_PIECE);
        if (tx->mode == SHM_DIRECT) {
            corral_link_place(tx->base.link, to + at, from + at, piece);
        } else { /* a slot: read again at once */
            memcpy(to + at, from + at, piece);
        }
    }
    return true;
}

static bool copy_spans(const struct shm_tx *tx, const struct shm_job *job, const uint8_t *source,
                       uint8_t *destination, uint8_t *slot)
{
    struct corral_link_cursor cursor = corral_link_seek(tx->base.link, job->bucket);
    struct corral_span s;
    uint64_t done = 0;
    while (corral_link_next(tx->base.link, &cursor, &s)) {
        const uint8_t *from = job->packed != NULL ? job->packed + done : source + s.source_offset;
        uint8_t *to = slot != NULL ? slot + done : destination + s.destination_offset;
        if (!copy_pieces(tx, to, from, s.bytes)) {
            return false;
        }
        done += s.bytes;
    }
    return true;
}

static bool copy_job(const struct shm_tx *tx, const struct shm_job *job)
{
    const struct corral_link *link = tx->base.link;
    const uint8_t *source = tx->source->host;
    uint8_t *memory = tx->here->base + tx->offset;
    uint8_t *slot = tx->mode == SHM_STAGED ? memory + job->slot * tx->slot_bytes : NULL;
    if (job->encoded != 0) {
        return copy_pieces(tx, slot, job->packed, job->encoded);
    }
    if (tx->run_bytes >= SHORT_RUN) {
        return copy_spans(tx, job, source, memory, slot);
    }
    if (stopped(tx)) {
        return false;
    }
    if (slot != NULL) {
        corral_link_pack(link, job->bucket, source, slot);
    } else if (job->packed != NULL) {
        corral_link_unpack(link, job->bucket, job->packed, memory);
    } else {
        corral_link_copy(link, job->bucket, source, memory);
    }
    return true;
}

static void *work(void *arg)
{
    struct shm_tx *tx = arg;
    struct shm_control *c = tx->control;
    pthread_mutex_lock(&tx->lock);
    for (;;) {
        while (!tx->stop && tx->claimed == tx->sent) {
            pthread_cond_wait(&tx->work, &tx->lock);
        }
        if (tx->stop) {
            break;
        }
        struct shm_job *job = &tx->job[tx->claimed++ % tx->window];
        tx->running++;
        pthread_mutex_unlock(&tx->lock);
        atomic_fetch_add(&c->begun, 1); /* before copy_job() looks at `closed`: see struct shm_control */
        bool over = tx->mode == SHM_DIRECT && atomic_load(&c->over) >= tx->push;
        bool ok = atomic_load(&c->closed) == 0 && (over || copy_job(tx, job));
        atomic_fetch_add(&c->ended, 1);
        pthread_mutex_lock(&tx->lock);
        tx->running--;
        job->state = ok ? SHM_JOB_DONE : SHM_JOB_FAILED;
        if (ok) {
            if (!over) {
                shm_post(tx, job);
            }
            shm_advance(tx);
        } else {
            tx->failed = true;
        }
        corral_lane_signal(tx->event);
        pthread_cond_broadcast(&tx->idle);
    }
    pthread_mutex_unlock(&tx->lock);
    return NULL;
}

enum corral_status shm_start_threads(struct shm_tx *tx, struct corral_error *err)
{
    for (uint32_t i = 0; i < tx->threads; i++) {
        CORRAL_TRY(corral_lane_start(&tx->thread[i], work, tx, err));
    }
    return CORRAL_OK;
}

void shm_stop_threads(struct shm_tx *tx)
{
    atomic_store_explicit(&tx->cancel, true, memory_order_relaxed);
    pthread_mutex_lock(&tx->lock);
    tx->stop = true;
    pthread_cond_broadcast(&tx->work);
    pthread_mutex_unlock(&tx->lock);
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        corral_lane_join(&tx->thread[i]);
    }
}

bool shm_quiet(struct shm_tx *tx)
{
    atomic_store_explicit(&tx->cancel, true, memory_order_relaxed);
    pthread_mutex_lock(&tx->lock);
    bool whole = tx->left == tx->sent && !tx->failed;
    tx->claimed = tx->sent;
    while (tx->running > 0) {
        pthread_cond_wait(&tx->idle, &tx->lock);
    }
    pthread_mutex_unlock(&tx->lock);
    atomic_store_explicit(&tx->cancel, false, memory_order_relaxed);
    return whole;
}
