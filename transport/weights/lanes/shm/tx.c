#include "transport/weights/lanes/shm/internal.h"

#include "base/clock.h"
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void close_fd(int *fd)
{
    corral_cleanup_close(fd);
    *fd = -1;
}

void corral_shm_tx_close(struct corral_lane *lane)
{
    struct shm_tx *tx = (struct shm_tx *)lane;
    if (tx == NULL) {
        return;
    }
    shm_stop_threads(tx);
    for (uint32_t i = 0; i < SHM_MAPPINGS; i++) {
        if (tx->mapping[i].base != NULL) {
            munmap(tx->mapping[i].base, tx->mapping[i].bytes);
        }
    }
    if (tx->control != NULL) {
        munmap(tx->control, sizeof *tx->control);
    }
    shm_hang_up(&tx->peer);
    close_fd(&tx->event);
    close_fd(&tx->peer_event);
    close_fd(&tx->base.fd);
    pthread_mutex_destroy(&tx->lock);
    pthread_cond_destroy(&tx->work);
    pthread_cond_destroy(&tx->idle);
    free(tx->bounce);
    free(tx);
}

static void close_tx(struct shm_tx **tx)
{
    corral_shm_tx_close(*tx != NULL ? &(*tx)->base : NULL);
}

static uint32_t threads_of(const struct corral_lane_options *options)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t streams = options->streams != 0 ? options->streams : cores < 2 ? 1 : cores < 4 ? 2 : 4;
    return CORRAL_MIN(streams, (uint32_t)CORRAL_LANE_STREAMS_MAX);
}

enum corral_status corral_shm_tx_open(struct corral_lane **out, const struct corral_link *link,
                                      const struct corral_lane_options *options,
                                      const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                      struct corral_error *err)
{
    CORRAL_TRY(corral_lane_blob_check(offer, CORRAL_LANE_SHM, link, SHM_OFFER_BYTES, err));
    CORRAL_CLEANUP(close_tx) struct shm_tx *tx = calloc(1, sizeof *tx);
    if (tx == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot open the shm lane: out of memory");
    }
    tx->base = (struct corral_lane){.ops = &corral_lane_shm_ops, .link = link, .fd = -1};
    tx->event = tx->peer_event = tx->peer.socket = tx->peer.pidfd = -1;
    pthread_mutex_init(&tx->lock, NULL);
    pthread_cond_init(&tx->work, NULL);
    pthread_cond_init(&tx->idle, NULL);
    tx->window = tx->slots_at_once = corral_lane_window(options);
    tx->threads = CORRAL_MIN(threads_of(options), tx->window);
    tx->open_timeout_ns = corral_lane_open_timeout(options);
    tx->run_bytes = corral_lane_run_bytes(link);
    const uint8_t *name = offer->data + CORRAL_LANE_BLOB_HEAD;
    uint8_t hello[SHM_HELLO_BYTES];
    shm_hello(link, name + SHM_NAME_BYTES, hello);
    CORRAL_TRY(shm_call(name, hello, &tx->peer, err));
    CORRAL_TRY(shm_watch_peer(&tx->base.fd, &tx->peer, err));
    corral_lane_blob_begin(answer, CORRAL_LANE_SHM, link);
    *out = &CORRAL_STEAL(tx)->base;
    return CORRAL_OK;
}

/* The receiver's first message: the control mapping and the two events. */
static enum corral_status attach(struct shm_tx *tx, uint64_t deadline, struct corral_error *err)
{
    struct shm_message m;
    int fd[SHM_FDS_MAX];
    CORRAL_TRY(shm_receive(tx->peer.socket, deadline, &m, fd, 3, err));
    CORRAL_AUTO_CLOSE int control = fd[0];
    tx->peer_event = fd[1];
    tx->event = fd[2];
    if (m.type != SHM_CONTROL) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver of the shm lane began with message %u",
                           m.type);
    }
    void *base;
    uint64_t bytes;
    CORRAL_TRY(shm_map(control, sizeof *tx->control, &base, &bytes, err));
    if (bytes > sizeof *tx->control) { /* of a whole number of pages */
        uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE),
                 ours = (sizeof *tx->control + page - 1) & ~(page - 1);
        if (bytes > ours) {
            munmap((uint8_t *)base + ours, bytes - ours);
        }
    }
    tx->control = base;
    if (tx->control->magic != SHM_MAGIC || tx->control->version != SHM_VERSION) {
        return corral_fail(err, CORRAL_PROTOCOL, "the shm lane's control memory is of another version");
    }
    CORRAL_TRY(corral_lane_watch(&tx->base.fd, tx->event, EPOLLIN, err));
    return shm_start_threads(tx, err);
}

/* Kept from an earlier push, or mapped now in place of the one that was used longest ago. */
static enum corral_status find_mapping(struct shm_tx *tx, int fd, uint64_t bytes_min,
                                       struct corral_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "the shm lane was given a descriptor without memory");
    }
    struct shm_mapping *m = &tx->mapping[0];
    for (uint32_t i = 0; i < SHM_MAPPINGS; i++) {
        struct shm_mapping *one = &tx->mapping[i];
        if (one->base != NULL && one->device == st.st_dev && one->inode == st.st_ino &&
            one->bytes >= bytes_min) {
            one->used = ++tx->uses;
            tx->here = one;
            return CORRAL_OK;
        }
        m = one->used < m->used ? one : m;
    }
    if (m->base != NULL) {
        munmap(m->base, m->bytes);
        *m = (struct shm_mapping){0};
    }
    void *base;
    uint64_t bytes;
    CORRAL_TRY(shm_map(fd, bytes_min, &base, &bytes, err));
    *m = (struct shm_mapping){
        .device = st.st_dev, .inode = st.st_ino, .base = base, .bytes = bytes, .used = ++tx->uses};
    tx->here = m;
    return CORRAL_OK;
}

static enum corral_status take_place(struct shm_tx *tx, const struct shm_message *m, int fd,
                                     struct corral_error *err)
{
    const struct corral_link *link = tx->base.link;
    uint64_t need = m->mode == SHM_DIRECT ? link->destination_extent : m->slots * m->slot_bytes;
    bool good = m->mode == SHM_DIRECT || (m->mode == SHM_STAGED && m->slots > 0 && m->offset == 0 &&
                                          m->slots <= CORRAL_LANE_WINDOW_MAX &&
                                          m->slot_bytes >= CORRAL_MIN(link->bucket_bytes, link->bytes) &&
                                          m->slot_bytes <= CORRAL_BUCKET_BYTES_MAX);
    if (!good || m->offset > UINT64_MAX - need) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver of the shm lane sent an impossible place");
    }
    CORRAL_TRY(find_mapping(tx, fd, m->offset + need, err));
    tx->mode = (enum shm_mode)m->mode;
    tx->offset = m->offset;
    tx->slots = m->slots;
    tx->slot_bytes = m->slot_bytes;
    return CORRAL_OK;
}

static enum corral_status make_bounce(struct shm_tx *tx, const struct corral_shard *source,
                                      struct corral_error *err)
{
    if (source->host != NULL || tx->mode == SHM_STAGED || tx->bounce != NULL) {
        return CORRAL_OK;
    }
    uint64_t each = CORRAL_MIN(tx->base.link->bucket_bytes, tx->base.link->bytes);
    tx->bounce = malloc(tx->slots_at_once * each + 1);
    if (tx->bounce == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot get %u buckets of %" PRIu64 " bytes for the shm lane",
                           tx->slots_at_once, each);
    }
    tx->base.memory_bytes += tx->slots_at_once * each;
    return CORRAL_OK;
}

enum corral_status corral_shm_tx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *source,
                                       const struct corral_lane_blob *place, struct corral_error *err)
{
    struct shm_tx *tx = (struct shm_tx *)lane;
    if (tx->active || tx->ended_badly) {
        return corral_fail(err, CORRAL_STATE, "push %" PRIu64 " on a shm lane that %s", push,
                           tx->active ? "is in another one" : "has failed and must be closed");
    }
    CORRAL_TRY(corral_lane_check_shard(source, lane->link, CORRAL_LINK_SOURCE, err));
    CORRAL_TRY(corral_lane_blob_check(place, CORRAL_LANE_SHM, lane->link, SHM_PLACE_BYTES, err));
    if (corral_lane_get64(place->data + CORRAL_LANE_BLOB_HEAD) != push) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver's place is for another push than %" PRIu64,
                           push);
    }
    uint64_t deadline = corral_lane_deadline(tx->open_timeout_ns);
    tx->ended_badly = true; /* until all went well */
    if (tx->control == NULL) {
        CORRAL_TRY(attach(tx, deadline, err));
    }
    struct shm_message m = {0};
    do { /* a push that the receiver began and this side never did */
        CORRAL_AUTO_CLOSE int fd = -1;
        CORRAL_TRY(shm_receive(tx->peer.socket, deadline, &m, &fd, 1, err));
        if (m.type != SHM_BEGIN || m.push > push) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "the receiver of the shm lane is at push %" PRIu64 ", not %" PRIu64, m.push,
                               push);
        }
        if (m.push == push) {
            CORRAL_TRY(take_place(tx, &m, fd, err));
        }
    } while (m.push != push);
    CORRAL_TRY(make_bounce(tx, source, err));
    bool unstaged = tx->mode == SHM_DIRECT && source->host != NULL;
    pthread_mutex_lock(&tx->lock);
    tx->window = unstaged ? CORRAL_MAX(tx->slots_at_once, SHM_DIRECT_WINDOW) : tx->slots_at_once;
    tx->source = source;
    tx->push = push;
    tx->sent = tx->claimed = tx->left = tx->reported = 0;
    tx->failed = false;
    pthread_mutex_unlock(&tx->lock);
    tx->active = true;
    tx->ended_badly = false;
    return CORRAL_OK;
}

static enum corral_status find_slot(struct shm_tx *tx, uint32_t *slot)
{
    *slot = SHM_NO_SLOT;
    if (tx->mode == SHM_DIRECT) {
        return CORRAL_OK;
    }
    for (uint32_t i = 0; i < tx->slots; i++) {
        /* pairs with the receiver's release when it has emptied the slot */
        if (atomic_load_explicit(&tx->control->slot_used[i], memory_order_acquire) == 0) {
            *slot = i;
            return CORRAL_OK;
        }
    }
    return CORRAL_AGAIN;
}

/* Bytes that are not in host memory are fetched here, on the caller's thread, while the copying threads are at earlier buckets. */
static enum corral_status gather(struct shm_tx *tx, struct shm_job *job, struct corral_error *err)
{
    const struct corral_link *link = tx->base.link;
    uint8_t *to;
    if (tx->mode == SHM_STAGED) {
        to = tx->here->base + tx->offset + job->slot * tx->slot_bytes;
    } else {
        to = tx->bounce + tx->sent % tx->window * CORRAL_MIN(link->bucket_bytes, link->bytes);
        job->packed = to;
    }
    CORRAL_TRY(tx->source->ops->gather(tx->source, link, job->bucket, to, err));
    if (tx->mode == SHM_STAGED) {
        job->state = SHM_JOB_DONE;
    }
    return CORRAL_OK;
}

/* CORRAL_AGAIN: as many are in flight as fit. */
static enum corral_status may_send(struct shm_tx *tx, uint32_t bucket, uint32_t *slot,
                                   struct corral_error *err)
{
    if (!tx->active || bucket >= tx->base.link->buckets) {
        return corral_fail(err, CORRAL_STATE, "bucket %u of %u sent outside of a push", bucket,
                           tx->base.link->buckets);
    }
    uint64_t taken = atomic_load_explicit(&tx->control->taken, memory_order_acquire);
    uint64_t posted = atomic_load_explicit(&tx->control->posted, memory_order_relaxed);
    pthread_mutex_lock(&tx->lock);
    bool failed = tx->failed, full = tx->sent - tx->left >= tx->window;
    for (uint64_t n = tx->left; n < tx->sent; n++) { /* two threads never copy one bucket */
        full = full || tx->job[n % tx->window].bucket == bucket;
    }
    pthread_mutex_unlock(&tx->lock);
    if (failed) {
        return corral_fail(err, CORRAL_PEER, "the receiver of the shm lane has closed it");
    }
    if (full || posted - taken >= SHM_RING - CORRAL_LANE_WINDOW_MAX) {
        return CORRAL_AGAIN;
    }
    return find_slot(tx, slot);
}

static void queue(struct shm_tx *tx, const struct shm_job *job)
{
    if (job->slot != SHM_NO_SLOT) {
        atomic_store_explicit(&tx->control->slot_used[job->slot], 1, memory_order_relaxed);
    }
    pthread_mutex_lock(&tx->lock);
    tx->job[tx->sent % tx->window] = *job;
    tx->sent++;
    if (job->state != SHM_JOB_DONE) {
        pthread_cond_signal(&tx->work);
    } else { /* in its slot: nothing left for the threads, which have nothing else of this push either */
        tx->claimed = tx->sent;
        shm_post(tx, job);
        shm_advance(tx);
    }
    pthread_mutex_unlock(&tx->lock);
}

enum corral_status corral_shm_tx_send(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    struct shm_tx *tx = (struct shm_tx *)lane;
    struct shm_job job = {.bucket = bucket, .state = SHM_JOB_QUEUED};
    CORRAL_TRY(may_send(tx, bucket, &job.slot, err));
    if (tx->source->host == NULL) {
        CORRAL_TRY(gather(tx, &job, err));
    }
    queue(tx, &job);
    return CORRAL_OK;
}

enum corral_status corral_shm_tx_send_encoded(struct corral_lane *lane, uint32_t bucket, const void *encoded,
                                              uint64_t bytes, struct corral_error *err)
{
    struct shm_tx *tx = (struct shm_tx *)lane;
    struct shm_job job = {.bucket = bucket, .state = SHM_JOB_QUEUED, .packed = encoded, .encoded = bytes};
    CORRAL_TRY(corral_lane_check_encoded(lane->link, bucket, bytes, err));
    if (tx->active && tx->mode == SHM_DIRECT) {
        return corral_fail(err, CORRAL_STATE, "bucket %u encoded for memory that takes buckets as they are",
                           bucket);
    }
    CORRAL_TRY(may_send(tx, bucket, &job.slot, err));
    if (tx->source->host == NULL) { /* as all of this push: see queue() */
        memcpy(tx->here->base + tx->offset + job.slot * tx->slot_bytes, encoded, bytes);
        job.state = SHM_JOB_DONE;
    }
    queue(tx, &job);
    return CORRAL_OK;
}

enum corral_status corral_shm_tx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint64_t *left,
                                          struct corral_error *err)
{
    struct shm_tx *tx = (struct shm_tx *)lane;
    if (!tx->active) {
        return corral_fail(err, CORRAL_STATE, "progress of a shm lane outside of a push");
    }
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    for (bool waited = false;; waited = true) {
        /* It may have told of a slot that is free again, and does so once: then there is something to do although nothing has left. */
        bool told = corral_lane_drain(tx->event);
        pthread_mutex_lock(&tx->lock);
        uint64_t now_left = tx->left;
        bool failed = tx->failed;
        pthread_mutex_unlock(&tx->lock);
        if (failed || (now_left == tx->reported && shm_gone(&tx->peer))) {
            return corral_fail(err, CORRAL_PEER, "the receiver of the shm lane has gone");
        }
        if (waited || told || now_left != tx->reported || timeout_ns == 0) {
            tx->reported = now_left;
            *left = now_left;
            return CORRAL_OK;
        }
        corral_lane_wait(lane->fd, deadline);
    }
}

enum corral_status corral_shm_tx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct shm_tx *tx = (struct shm_tx *)lane;
    if (!tx->active) {
        return corral_fail(err, CORRAL_STATE, "the end of a push that has not begun");
    }
    bool whole = shm_quiet(tx);
    tx->active = false;
    tx->source = NULL;
    tx->ended_badly = !ok || !whole;
    if (ok && !whole) {
        return corral_fail(err, CORRAL_STATE, "push %" PRIu64 " ended before its buckets had left", tx->push);
    }
    return CORRAL_OK;
}
