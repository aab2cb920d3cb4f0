/* The sender's end, and the lane's table: copies on the device into what the receiver exported. */
#include "base/clock.h"
#include "transport/weights/lanes/cuda_ipc/ipc.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define DRAIN_TIMEOUT_NS (10 * CORRAL_NS_PER_S)

struct flight {
    uint32_t bucket, slot;
    void *pinned; /* one bucket, for a source that is not on a device */
    corral_cuda_event copied;
};

struct tx {
    struct corral_lane base; /* first */
    struct corral_side side;
    struct corral_lane_device device;
    struct corral_shard *source; /* NULL: between pushes */
    struct ipc_place place;
    uint64_t remote; /* the exported memory, as mapped here */
    uint64_t mapped; /* what is to be closed; 0: nothing */
    bool lost;       /* the device did not answer: nothing of it may be freed */
    bool failed;     /* only closing is left */
    int event; /* readable while copies are under way: the device cannot say when they are done, it must be asked */
    uint32_t window;
    struct flight flight[CORRAL_LANE_WINDOW_MAX];
    uint64_t sent, left; /* of this push; the flights between them are under way */
    uint64_t free_slots; /* a bit each */
};

static struct tx *tx_of(struct corral_lane *lane)
{
    return (struct tx *)lane;
}

static void tx_close(struct corral_lane *lane);

static enum corral_status connect_sender(struct tx *t, const struct corral_lane_options *options,
                                         const struct corral_lane_blob *offer, struct corral_error *err)
{
    CORRAL_TRY(corral_side_connect(&t->side, offer->data + CORRAL_LANE_BLOB_HEAD,
                                   corral_side_open_timeout(options), err));
    CORRAL_TRY(corral_lane_event(&t->event, err));
    CORRAL_TRY(corral_lane_watch(&t->base.fd, t->event, EPOLLIN, err));
    return corral_lane_watch(&t->base.fd, t->side.fd, EPOLLIN, err);
}

static enum corral_status tx_open(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options,
                                  const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                  struct corral_error *err)
{
    CORRAL_TRY(ipc_available(options, err));
    CORRAL_TRY(corral_lane_blob_check(offer, CORRAL_LANE_CUDA_IPC, link, IPC_OFFER_BYTES, err));
    struct tx *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a lane");
    }
    t->base = (struct corral_lane){.ops = &corral_lane_cuda_ipc_ops, .link = link, .fd = -1};
    t->window = corral_lane_window(options);
    t->event = -1;
    corral_side_init(&t->side);
    enum corral_status status = connect_sender(t, options, offer, err);
    if (status != CORRAL_OK) {
        tx_close(&t->base);
        return status;
    }
    corral_lane_blob_begin(answer, CORRAL_LANE_CUDA_IPC, link);
    *out = &t->base;
    return CORRAL_OK;
}

/* ---- a push ---- */

/* Work where the source is; the receiver's device must be the same one or one it can reach. */
static void drop_flights(struct tx *t);
static enum corral_status choose_device(struct tx *t, const struct corral_shard *source,
                                        struct corral_error *err)
{
    const struct corral_cuda *cuda = NULL;
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    int there = corral_lane_device_find(cuda, &t->place.device), reaches = 0;
    if (there < 0) {
        return corral_fail(
            err, CORRAL_UNSUPPORTED,
            "the receiver's CUDA device is not visible to this process (CUDA_VISIBLE_DEVICES)");
    }
    bool device = corral_shard_on_device(source);
    int here = device ? source->device : there;
    corral_cuda_context context = device ? corral_shard_cuda_context(source) : NULL;
    if (!corral_lane_device_is(&t->device, here, context)) {
        drop_flights(t); /* events belong to a context */
    }
    if (here != there &&
        (cuda->cuDeviceCanAccessPeer(&reaches, here, there) != CORRAL_CUDA_SUCCESS || reaches == 0)) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "CUDA device %d has no peer access to device %d", here,
                           there);
    }
    return corral_lane_device_open(&t->device, here, context, err);
}

static enum corral_status make_flights(struct tx *t, const struct corral_shard *source,
                                       struct corral_error *err)
{
    uint64_t bytes = ipc_slot_bytes(t->base.link);
    for (uint32_t i = 0; i < t->window; i++) {
        struct flight *f = &t->flight[i];
        if (f->copied == NULL) {
            CORRAL_CUDA_TRY(t->device.cuda, cuEventCreate(&f->copied, CORRAL_CUDA_EVENT_NO_TIMING), err,
                            "cannot make a CUDA event for a lane");
        }
        if (f->pinned == NULL && !corral_shard_on_device(source)) {
            CORRAL_TRY(corral_lane_device_pin(&t->device, bytes, &f->pinned, err));
            t->base.memory_bytes += bytes;
        }
    }
    return CORRAL_OK;
}

static void drop_flights(struct tx *t)
{
    struct corral_cuda_scope scope = {0};
    if (t->device.cuda == NULL || t->lost ||
        corral_cuda_enter(&scope, t->device.cuda, t->device.context, NULL) != CORRAL_OK) {
        return;
    }
    for (uint32_t i = 0; i < CORRAL_LANE_WINDOW_MAX; i++) {
        if (t->flight[i].copied != NULL) {
            t->device.cuda->cuEventDestroy(t->flight[i].copied);
        }
        if (t->flight[i].pinned != NULL) {
            t->device.cuda->cuMemFreeHost(t->flight[i].pinned);
        }
        t->flight[i] = (struct flight){0};
    }
    corral_cuda_leave(&scope);
    t->base.memory_bytes = 0;
}

static enum corral_status map_place(struct tx *t, struct corral_error *err)
{
    if (t->side.peer_pid == getpid()) {
        t->remote = t->place.address;
        return CORRAL_OK;
    }
    CORRAL_CUDA_TRY(t->device.cuda,
                    cuIpcOpenMemHandle(&t->mapped, t->place.handle, CORRAL_CUDA_IPC_LAZY_PEER_ACCESS), err,
                    "cannot map the receiver's device memory");
    /* A receiver that says more than is there would have us write over what lies behind the mapping, which is this process's own. */
    uint64_t base = t->mapped;
    size_t bytes = 0;
    bool known = t->device.cuda->cuMemGetAddressRange(&base, &bytes, t->mapped) == CORRAL_CUDA_SUCCESS;
    uint64_t room = known ? base + bytes - t->mapped : UINT64_MAX;
    if (t->place.offset > room || t->place.bytes > room - t->place.offset) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "the receiver says %" PRIu64 " bytes of device memory, and %" PRIu64 " are there",
                           t->place.bytes, room - CORRAL_MIN(room, t->place.offset));
    }
    t->remote = t->mapped + t->place.offset;
    return CORRAL_OK;
}

static enum corral_status tx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *source,
                                   const struct corral_lane_blob *blob, struct corral_error *err)
{
    struct tx *t = tx_of(lane);
    if (t->source != NULL || t->failed) {
        return corral_fail(err, CORRAL_STATE, "the last push of this lane %s",
                           t->failed ? "has failed" : "has not ended");
    }
    CORRAL_TRY(corral_lane_check_shard(source, lane->link, CORRAL_LINK_SOURCE, err));
    if (lane->link->buckets > 0) {
        CORRAL_TRY(ipc_place_read(blob, lane->link, &t->place, err));
        if (t->place.push != push) {
            return corral_fail(err, CORRAL_PROTOCOL, "the receiver's place is for another push");
        }
        CORRAL_TRY(choose_device(t, source, err));
        CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
        CORRAL_TRY(corral_cuda_enter(&scope, t->device.cuda, t->device.context, err));
        CORRAL_TRY(make_flights(t, source, err));
        CORRAL_TRY(map_place(t, err));
        if (corral_shard_on_device(source)) {
            CORRAL_TRY(corral_shard_cuda_order(source, t->device.stream, err));
        }
    }
    t->place.push = push;
    t->source = source;
    t->sent = t->left = 0;
    t->free_slots = t->place.window >= 64 ? UINT64_MAX : (UINT64_C(1) << t->place.window) - 1;
    return CORRAL_OK;
}

static enum corral_status queue_copy(struct tx *t, struct flight *f, struct corral_error *err)
{
    const struct corral_link *link = t->base.link;
    uint64_t bytes = corral_link_bucket_size(link, f->bucket);
    struct corral_cuda_end from = {t->source->device_address, CORRAL_CUDA_SOURCE};
    struct corral_cuda_end to = {t->remote, CORRAL_CUDA_DESTINATION};
    if (!corral_shard_on_device(t->source)) {
        CORRAL_TRY(t->source->ops->gather(t->source, link, f->bucket, f->pinned, err));
        from = (struct corral_cuda_end){(uint64_t)(uintptr_t)f->pinned, CORRAL_CUDA_PACKED};
    }
    if (!t->place.direct) {
        to = (struct corral_cuda_end){t->remote + f->slot * ipc_slot_bytes(link), CORRAL_CUDA_PACKED};
    }
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, t->device.cuda, t->device.context, err));
    struct corral_link_cursor cursor = corral_link_seek(link, f->bucket);
    CORRAL_TRY(corral_cuda_copy_spans(t->device.cuda, link, &cursor, bytes, from, to, t->device.stream, err));
    CORRAL_CUDA_TRY(t->device.cuda, cuEventRecord(f->copied, t->device.stream), err,
                    "cannot record a CUDA event");
    return CORRAL_OK;
}

static enum corral_status tx_send(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    struct tx *t = tx_of(lane);
    if (t->source == NULL || bucket >= lane->link->buckets) {
        return corral_fail(err, t->source == NULL ? CORRAL_STATE : CORRAL_INVALID,
                           "no bucket %u to send on this lane", bucket);
    }
    if (t->sent - t->left >= t->window || (!t->place.direct && t->free_slots == 0)) {
        return CORRAL_AGAIN;
    }
    struct flight *f = &t->flight[t->sent % t->window];
    f->bucket = bucket;
    f->slot = t->place.direct ? 0 : (uint32_t)__builtin_ctzll(t->free_slots);
    CORRAL_TRY(queue_copy(t, f, err));
    if (!t->place.direct) {
        t->free_slots &= ~(UINT64_C(1) << f->slot);
    }
    if (t->sent++ == t->left) {
        corral_lane_signal(t->event);
    }
    return CORRAL_OK;
}

/* Slots that the receiver has emptied. */
static enum corral_status take_credits(struct tx *t, struct corral_error *err)
{
    for (;;) {
        struct corral_side_message m;
        enum corral_status status = corral_side_receive(&t->side, &m, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        if (m.type != IPC_CREDIT || m.a >= t->place.window) {
            return corral_fail(err, CORRAL_PROTOCOL, "message %u on the cuda_ipc lane", m.type);
        }
        if (m.push == t->place.push) {
            t->free_slots |= UINT64_C(1) << m.a;
        }
    }
}

/* Tell the receiver of the oldest flight once its bytes are there. CORRAL_AGAIN: not yet. */
static enum corral_status announce(struct tx *t, uint64_t timeout_ns, struct corral_error *err)
{
    struct flight *f = &t->flight[t->left % t->window];
    enum corral_status status = corral_cuda_wait(t->device.cuda, f->copied, timeout_ns, err);
    if (status != CORRAL_OK) {
        return status == CORRAL_TIMEOUT ? CORRAL_AGAIN : status;
    }
    struct corral_side_message m = {
        .type = IPC_DATA, .bucket = f->bucket, .push = t->place.push, .a = f->slot};
    CORRAL_TRY(corral_side_send(&t->side, &m, err));
    t->left++;
    return CORRAL_OK;
}

static enum corral_status tx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint64_t *left,
                                      struct corral_error *err)
{
    struct tx *t = tx_of(lane);
    uint64_t deadline = corral_lane_deadline(timeout_ns), before = t->left;
    CORRAL_TRY(take_credits(t, err));
    while (t->left < t->sent) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        enum corral_status status =
            announce(t, t->left > before || now >= deadline ? 0 : deadline - now, err);
        if (status == CORRAL_AGAIN) {
            break;
        }
        CORRAL_TRY(status);
    }
    bool starved = t->left == t->sent && !t->place.direct && t->free_slots == 0;
    if (t->left == before && starved && timeout_ns > 0 && corral_lane_poll(t->side.fd, POLLIN, deadline)) {
        CORRAL_TRY(take_credits(t, err));
    }
    if (t->left == t->sent && t->left > before) {
        corral_lane_drain(t->event);
    }
    *left = t->left;
    return CORRAL_OK;
}

/* Nothing of this push touches the receiver's memory after this. */
static enum corral_status let_go(struct tx *t, struct corral_error *err)
{
    if (t->device.cuda != NULL) {
        /* Recorded after everything that was ever queued, also by a tx_send that failed half way. */
        corral_cuda_event last = t->flight[0].copied;
        int result = t->device.cuda->cuEventRecord(last, t->device.stream);
        enum corral_status status =
            result == CORRAL_CUDA_SUCCESS
                ? corral_cuda_wait(t->device.cuda, last, DRAIN_TIMEOUT_NS, err)
                : corral_cuda_fail(t->device.cuda, result, err, "cannot wait for copies to a receiver");
        if (status != CORRAL_OK) {
            t->lost = true;
            return status;
        }
    }
    if (t->mapped != 0) {
        CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
        CORRAL_TRY(corral_cuda_enter(&scope, t->device.cuda, t->device.context, err));
        uint64_t mapped = t->mapped;
        t->mapped = 0;
        CORRAL_CUDA_TRY(t->device.cuda, cuIpcCloseMemHandle(mapped), err,
                        "cannot unmap the receiver's device memory");
    }
    struct corral_side_message m = {.type = IPC_END, .push = t->place.push};
    return corral_side_send(&t->side, &m, err);
}

static enum corral_status tx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct tx *t = tx_of(lane);
    if (t->source == NULL) {
        return corral_fail(err, CORRAL_STATE, "no push is under way on this lane");
    }
    t->source = NULL;
    enum corral_status status = let_go(t, err);
    t->failed = !ok || status != CORRAL_OK;
    corral_lane_drain(t->event);
    /* A receiver that has gone needs no END; one that reads nothing would have to be told: then the lane is of no more use. */
    return status == CORRAL_PEER && !ok ? CORRAL_OK : status;
}

static void tx_close(struct corral_lane *lane)
{
    struct tx *t = tx_of(lane);
    if (t == NULL) {
        return;
    }
    if (!t->lost && (t->source != NULL || t->mapped != 0)) {
        let_go(t, NULL);
    }
    drop_flights(t);
    if (!t->lost) {
        corral_lane_device_close(&t->device);
    }
    corral_side_close(&t->side);
    corral_cleanup_close(&t->event);
    corral_cleanup_close(&t->base.fd);
    free(t);
}

const struct corral_lane_ops corral_lane_cuda_ipc_ops = {
    .name = "cuda_ipc",
    .kind = CORRAL_LANE_CUDA_IPC,
    .available = ipc_available,
    .rx_open = ipc_rx_open,
    .rx_connect = ipc_rx_connect,
    .rx_begin = ipc_rx_begin,
    .rx_progress = ipc_rx_progress,
    .rx_taken = ipc_rx_taken,
    .rx_end = ipc_rx_end,
    .rx_close = ipc_rx_close,
    .tx_open = tx_open,
    .tx_begin = tx_begin,
    .tx_send = tx_send,
    .tx_progress = tx_progress,
    .tx_end = tx_end,
    .tx_close = tx_close,
};
