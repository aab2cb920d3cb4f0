#include "transport/weights/lanes/shm/internal.h"

#include "base/clock.h"
#include "base/sync.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

/* rx_close() gives a sender that copies this long to stop; it looks every SHM_PIECE bytes. */
#define STOP_NS (200 * CORRAL_NS_PER_MS)
#define STOP_LOOK_NS (CORRAL_NS_PER_MS)

struct shm_rx {
    struct corral_lane base;
    uint8_t name[SHM_NAME_BYTES], token[CORRAL_LANE_TOKEN_BYTES];
    struct shm_peer peer;
    int listener, event, peer_event;
    struct shm_control *control;
    uint32_t window;
    uint64_t open_timeout_ns;
    int staging; /* made at the first push that needs it */
    uint8_t *slots;
    uint64_t slot_bytes;
    /* of the push */
    struct corral_shard *destination;
    uint64_t push;
    enum shm_mode mode;
    bool active, ended_badly, direct_ever;
};

static void close_fd(int *fd)
{
    corral_cleanup_close(fd);
    *fd = -1;
}

/* Whether the sender may still write into a destination that it was given. Also stops it. */
static bool still_writes(struct shm_rx *rx)
{
    if (rx->control == NULL) {
        return false;
    }
    struct shm_control *c = rx->control;
    atomic_store(&c->closed, 1); /* seq_cst, with the sender's `begun`: see struct shm_control */
    if (!rx->direct_ever) {
        return false;
    }
    uint64_t deadline = corral_lane_deadline(STOP_NS);
    for (;;) {
        uint32_t begun = atomic_load(&c->begun), ended = atomic_load(&c->ended);
        if (begun == ended || corral_lane_poll(rx->peer.pidfd, POLLIN, corral_lane_deadline(STOP_LOOK_NS))) {
            return false;
        }
        if (corral_now_ns(&corral_clock_monotonic) >= deadline) {
            return true;
        }
    }
}

static void rx_close(struct corral_lane *lane, int32_t *tainted_pid)
{
    struct shm_rx *rx = (struct shm_rx *)lane;
    if (tainted_pid != NULL) {
        *tainted_pid = 0;
    }
    if (rx == NULL) {
        return;
    }
    if (still_writes(rx) && tainted_pid != NULL) {
        *tainted_pid = (int32_t)rx->peer.pid;
    }
    if (rx->control != NULL) {
        munmap(rx->control, sizeof *rx->control);
    }
    if (rx->slots != NULL) {
        munmap(rx->slots, rx->window * rx->slot_bytes);
    }
    close_fd(&rx->staging);
    close_fd(&rx->listener);
    shm_hang_up(&rx->peer);
    close_fd(&rx->event);
    close_fd(&rx->peer_event);
    close_fd(&rx->base.fd);
    free(rx);
}

static void close_rx(struct shm_rx **rx)
{
    rx_close(*rx != NULL ? &(*rx)->base : NULL, NULL);
}

static enum corral_status rx_open(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options, struct corral_lane_blob *offer,
                                  struct corral_error *err)
{
    CORRAL_CLEANUP(close_rx) struct shm_rx *rx = calloc(1, sizeof *rx);
    if (rx == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot open the shm lane: out of memory");
    }
    rx->base = (struct corral_lane){.ops = &corral_lane_shm_ops, .link = link, .fd = -1};
    rx->listener = rx->event = rx->peer_event = rx->staging = rx->peer.socket = rx->peer.pidfd = -1;
    rx->window = corral_lane_window(options);
    rx->open_timeout_ns = corral_lane_open_timeout(options);
    corral_random_bytes(rx->name, sizeof rx->name);
    corral_random_bytes(rx->token, sizeof rx->token);
    CORRAL_TRY(shm_listen(rx->name, &rx->listener, err));
    CORRAL_TRY(corral_lane_event(&rx->event, err));
    CORRAL_TRY(corral_lane_event(&rx->peer_event, err));
    CORRAL_TRY(corral_lane_watch(&rx->base.fd, rx->event, EPOLLIN, err));
    corral_lane_blob_begin(offer, CORRAL_LANE_SHM, link);
    memcpy(offer->data + offer->bytes, rx->name, sizeof rx->name);
    memcpy(offer->data + offer->bytes + sizeof rx->name, rx->token, sizeof rx->token);
    offer->bytes = SHM_OFFER_BYTES;
    *out = &CORRAL_STEAL(rx)->base;
    return CORRAL_OK;
}

static enum corral_status rx_connect(struct corral_lane *lane, const struct corral_lane_blob *answer,
                                     struct corral_error *err)
{
    struct shm_rx *rx = (struct shm_rx *)lane;
    if (rx->peer.socket >= 0) {
        return corral_fail(err, CORRAL_STATE, "the shm lane is connected already");
    }
    CORRAL_TRY(corral_lane_blob_check(answer, CORRAL_LANE_SHM, lane->link, CORRAL_LANE_BLOB_HEAD, err));
    uint8_t hello[SHM_HELLO_BYTES];
    shm_hello(lane->link, rx->token, hello);
    CORRAL_TRY(shm_accept(rx->listener, hello, rx->open_timeout_ns, &rx->peer, err));
    close_fd(&rx->listener);
    CORRAL_TRY(shm_watch_peer(&lane->fd, &rx->peer, err));
    CORRAL_AUTO_CLOSE int fd = -1;
    CORRAL_TRY(shm_memory("corral-lane", sizeof *rx->control, &fd, err));
    void *base = mmap(NULL, sizeof *rx->control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map the shm lane's control memory");
    }
    rx->control = base;
    lane->memory_bytes += sizeof *rx->control;
    rx->control->magic = SHM_MAGIC;
    rx->control->version = SHM_VERSION;
    struct shm_message m = {.magic = SHM_MAGIC, .type = SHM_CONTROL};
    return shm_send(rx->peer.socket, &m, (int[]){fd, rx->event, rx->peer_event}, 3, err);
}

static enum corral_status make_staging(struct shm_rx *rx, struct corral_error *err)
{
    if (rx->slots != NULL) {
        return CORRAL_OK;
    }
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t each = CORRAL_MAX(CORRAL_MIN(rx->base.link->bucket_bytes, rx->base.link->bytes), 1u);
    rx->slot_bytes = (each + page - 1) / page * page;
    CORRAL_AUTO_CLOSE int fd = -1;
    CORRAL_TRY(shm_memory("corral-lane-staging", rx->window * rx->slot_bytes, &fd, err));
    void *base = mmap(NULL, rx->window * rx->slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map %" PRIu64 " bytes of staging for the shm lane",
                               rx->window * rx->slot_bytes);
    }
    rx->slots = base;
    rx->staging = fd;
    rx->base.memory_bytes += rx->window * rx->slot_bytes;
    fd = -1;
    return CORRAL_OK;
}

static enum corral_status rx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *destination,
                                   struct corral_lane_blob *place, struct corral_error *err)
{
    struct shm_rx *rx = (struct shm_rx *)lane;
    if (rx->active || rx->ended_badly || rx->control == NULL || push <= rx->push) {
        return corral_fail(err, CORRAL_STATE, "push %" PRIu64 " after %" PRIu64 " on a shm lane that %s",
                           push, rx->push,
                           rx->active            ? "is in another one"
                           : rx->control == NULL ? "is not connected"
                           : rx->ended_badly     ? "has failed and must be closed"
                                                 : "counts upwards");
    }
    CORRAL_TRY(corral_lane_check_shard(destination, lane->link, CORRAL_LINK_DESTINATION, err));
    /* Without the sender's number nobody could be told who still writes; without the seal its access could fault. */
    bool direct =
        destination->host != NULL && destination->fd >= 0 && rx->peer.pid > 0 && shm_sealed(destination->fd);
    struct shm_message m = {.magic = SHM_MAGIC, .type = SHM_BEGIN, .push = push, .mode = SHM_DIRECT};
    if (direct) {
        m.offset = destination->fd_offset;
    } else {
        CORRAL_TRY(make_staging(rx, err));
        m.mode = SHM_STAGED;
        m.slots = rx->window;
        m.slot_bytes = rx->slot_bytes;
    }
    CORRAL_TRY(shm_send(rx->peer.socket, &m, direct ? &destination->fd : &rx->staging, 1, err));
    rx->destination = destination;
    rx->push = push;
    rx->mode = (enum shm_mode)m.mode;
    rx->direct_ever = rx->direct_ever || direct;
    rx->active = true;
    corral_lane_blob_begin(place, CORRAL_LANE_SHM, lane->link);
    corral_lane_put64(place->data + place->bytes, push);
    place->bytes = SHM_PLACE_BYTES;
    return CORRAL_OK;
}

static void free_slot(struct shm_rx *rx, uint32_t slot)
{
    /* release: what we read of the slot is over; pairs with find_slot() */
    atomic_store_explicit(&rx->control->slot_used[slot], 0, memory_order_release);
    corral_lane_signal(rx->peer_event);
}

/* One arrival. *mine: of this push, and its bytes are in the destination now. */
static enum corral_status take(struct shm_rx *rx, const struct shm_arrival *a, bool *mine,
                               struct corral_error *err)
{
    *mine = false;
    bool slot_wrong = a->slot != SHM_NO_SLOT && (rx->slots == NULL || a->slot >= rx->window);
    if (slot_wrong ||
        (a->push == rx->push &&
         (a->bucket >= rx->base.link->buckets || (a->slot == SHM_NO_SLOT) != (rx->mode == SHM_DIRECT) ||
          a->bytes > corral_link_bucket_size(rx->base.link, a->bucket)))) {
        return corral_fail(err, CORRAL_PROTOCOL, "the sender of the shm lane posted bucket %u in slot %u",
                           a->bucket, a->slot);
    }
    if (a->slot != SHM_NO_SLOT) {
        if (a->push == rx->push) {
            CORRAL_TRY(corral_lane_deliver(rx->destination, rx->base.link, a->bucket,
                                           rx->slots + a->slot * rx->slot_bytes, a->bytes, err));
        }
        free_slot(rx, a->slot);
    }
    *mine = a->push == rx->push;
    return CORRAL_OK;
}

static enum corral_status take_all(struct shm_rx *rx, uint32_t *bucket, uint32_t room, uint32_t *count,
                                   struct corral_error *err)
{
    struct shm_control *c = rx->control;
    uint64_t taken = atomic_load_explicit(&c->taken, memory_order_relaxed); /* ours */
    uint64_t posted = atomic_load_explicit(&c->posted, memory_order_acquire);
    if (posted - taken > SHM_RING) {
        return corral_fail(err, CORRAL_PROTOCOL, "the sender of the shm lane posted %" PRIu64 " arrivals",
                           posted - taken);
    }
    while (taken != posted && *count < room) {
        struct shm_arrival a = c->ring[taken % SHM_RING]; /* a copy: the sender could still change it */
        bool mine;
        CORRAL_TRY(take(rx, &a, &mine, err));
        atomic_store_explicit(&c->taken, ++taken, memory_order_release);
        if (mine) {
            bucket[(*count)++] = a.bucket;
        }
    }
    if (taken != posted) {
        corral_lane_signal(rx->event); /* stay readable */
    }
    if (posted - taken < SHM_RING / 2 && *count > 0 && rx->mode == SHM_DIRECT) {
        corral_lane_signal(rx->peer_event); /* a sender that found the ring full waits for this */
    }
    return CORRAL_OK;
}

static enum corral_status rx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint32_t *bucket,
                                      uint32_t room, uint32_t *count, struct corral_error *err)
{
    struct shm_rx *rx = (struct shm_rx *)lane;
    if (!rx->active) {
        return corral_fail(err, CORRAL_STATE, "progress of a shm lane outside of a push");
    }
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    for (;;) {
        uint32_t n = 0;
        bool gone = shm_gone(&rx->peer); /* before the ring is read: what it posted before it went counts */
        corral_lane_drain(rx->event);
        CORRAL_TRY(take_all(rx, bucket, room, &n, err));
        if (n == 0 && gone) {
            return corral_fail(err, CORRAL_PEER, "the sender of the shm lane has gone");
        }
        if (n > 0 || room == 0 || timeout_ns == 0 || corral_now_ns(&corral_clock_monotonic) >= deadline) {
            *count = n;
            return CORRAL_OK;
        }
        corral_lane_wait(lane->fd, deadline);
    }
}

static enum corral_status rx_taken(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    const struct shm_rx *rx = (struct shm_rx *)lane;
    if (!rx->active || bucket >= lane->link->buckets) {
        return corral_fail(err, CORRAL_STATE, "bucket %u taken outside of a push", bucket);
    }
    return CORRAL_OK; /* its slot is free since it was scattered */
}

static enum corral_status rx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct shm_rx *rx = (struct shm_rx *)lane;
    if (!rx->active) {
        return corral_fail(err, CORRAL_STATE, "the end of a push that has not begun");
    }
    rx->active = false;
    rx->destination = NULL;
    if (!ok) {
        rx->ended_badly = true;
        atomic_store(&rx->control->closed, 1);
    } else if (rx->mode == SHM_DIRECT) {
        atomic_store(&rx->control->over, rx->push); /* seq_cst, with the sender's `begun` */
        /* A bucket that was sent twice is being written right now: only rx_close() can tell when that is over. */
        rx->ended_badly = atomic_load(&rx->control->begun) != atomic_load(&rx->control->ended);
    }
    return CORRAL_OK;
}

static enum corral_status available(const struct corral_lane_options *options, struct corral_error *err)
{
    (void)options;
    CORRAL_AUTO_CLOSE int fd = memfd_create("corral-lane-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fcntl(fd, F_ADD_SEALS, SHM_SEALS) != 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "no sealed shared memory (memfd_create) on this machine");
    }
    return CORRAL_OK;
}

const struct corral_lane_ops corral_lane_shm_ops = {
    .name = "shm",
    .kind = CORRAL_LANE_SHM,
    .available = available,
    .rx_open = rx_open,
    .rx_connect = rx_connect,
    .rx_begin = rx_begin,
    .rx_progress = rx_progress,
    .rx_taken = rx_taken,
    .rx_end = rx_end,
    .rx_close = rx_close,
    .tx_open = corral_shm_tx_open,
    .tx_begin = corral_shm_tx_begin,
    .tx_send = corral_shm_tx_send,
    .tx_progress = corral_shm_tx_progress,
    .tx_end = corral_shm_tx_end,
    .tx_close = corral_shm_tx_close,
    .tx_send_encoded = corral_shm_tx_send_encoded,
};
