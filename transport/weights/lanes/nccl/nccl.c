/* The sender's end of the nccl lane, and the lane's table. */
#include "base/clock.h"
#include "transport/weights/lanes/nccl/internal.h"

#include <string.h>
#include <sys/epoll.h>

#define DRAIN_TIMEOUT_NS \
    (250 * CORRAL_NS_PER_MS) /* for credits that are on their way; longer than that, the lane is not clean */

static enum corral_status tx_open(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options,
                                  const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                  struct corral_error *err)
{
    CORRAL_TRY(corral_lane_blob_check(offer, CORRAL_LANE_NCCL, link, NCCL_OFFER_BYTES, err));
    const uint8_t *at = offer->data + CORRAL_LANE_BLOB_HEAD;
    uint32_t window = corral_lane_get32(at + CORRAL_SIDE_OFFER_BYTES + NCCL_ID_BYTES);
    if (window == 0 || window > CORRAL_LANE_WINDOW_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver offers a window of %u", window);
    }
    struct nccl_end *e = NULL;
    CORRAL_TRY(nccl_end_create(&e, link, options, 1, window, err));
    memcpy(&e->id, at + CORRAL_SIDE_OFFER_BYTES, NCCL_ID_BYTES);
    enum corral_status status = corral_side_connect(&e->side, at, e->open_timeout_ns, err);
    if (status == CORRAL_OK) {
        status = corral_lane_watch(&e->base.fd, e->side.fd, EPOLLIN, err);
    }
    if (status != CORRAL_OK) {
        nccl_end_destroy(e);
        return status;
    }
    corral_lane_blob_begin(answer, CORRAL_LANE_NCCL, link);
    *out = &e->base;
    return CORRAL_OK;
}

static enum corral_status tx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *source,
                                   const struct corral_lane_blob *place, struct corral_error *err)
{
    CORRAL_TRY(corral_lane_blob_check(place, CORRAL_LANE_NCCL, lane->link, NCCL_PLACE_BYTES, err));
    if (corral_lane_get64(place->data + CORRAL_LANE_BLOB_HEAD) != push) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver's place is for another push");
    }
    return nccl_end_begin(nccl_end_of(lane), push, source, CORRAL_LINK_SOURCE, err);
}

/* The bucket's bytes to where NCCL reads them, and an event for when they are there. */
static enum corral_status pack(struct nccl_end *e, uint32_t bucket, struct nccl_transfer *t,
                               struct corral_error *err)
{
    const struct corral_link *link = e->base.link;
    uint64_t offset = t->slot * nccl_slot_bytes(link);
    struct corral_cuda_end from = {e->shard->device_address, CORRAL_CUDA_SOURCE};
    struct corral_cuda_end to = {e->memory.staging + offset, CORRAL_CUDA_PACKED};
    uint64_t direct = nccl_end_direct(e, bucket, CORRAL_LINK_SOURCE);
    if (!e->on_device) {
        CORRAL_TRY(e->shard->ops->gather(e->shard, link, bucket, e->memory.pinned + offset, err));
        from = (struct corral_cuda_end){(uint64_t)(uintptr_t)(e->memory.pinned + offset), CORRAL_CUDA_PACKED};
    }
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, e->device.cuda, e->device.context, err));
    if (direct == 0) {
        struct corral_link_cursor cursor = corral_link_seek(link, bucket);
        CORRAL_TRY(
            corral_cuda_copy_spans(e->device.cuda, link, &cursor, t->bytes, from, to, e->device.stream, err));
    }
    t->address = direct != 0 ? direct : to.address;
    t->after = e->event[t->slot];
    CORRAL_CUDA_TRY(e->device.cuda, cuEventRecord(t->after, e->device.stream), err,
                    "cannot record a CUDA event");
    return CORRAL_OK;
}

/* CORRAL_AGAIN: no slot is free. */
static enum corral_status send_bucket(struct nccl_end *e, uint32_t bucket, struct corral_error *err)
{
    if (e->posted - e->released >= e->window || e->posted - e->done >= e->window) {
        return CORRAL_AGAIN;
    }
    struct nccl_transfer t = {.slot = (uint32_t)(e->posted % e->window),
                              .bytes = corral_link_bucket_size(e->base.link, bucket)};
    CORRAL_TRY(pack(e, bucket, &t, err));
    struct corral_side_message m = {.type = NCCL_ANNOUNCE, .bucket = bucket, .push = e->push, .a = t.bytes};
    /* CORRAL_AGAIN: nothing was said and nothing posted; packing it again later is harmless. */
    CORRAL_TRY(corral_side_send(&e->side, &m, err));
    nccl_worker_post(e->worker, &t);
    e->posted++;
    return CORRAL_OK;
}

/* What was accepted before the communicator was there. */
static enum corral_status send_queued(struct nccl_end *e, struct corral_error *err)
{
    uint32_t sent = 0;
    enum corral_status status = CORRAL_OK;
    while (sent < e->queued && status == CORRAL_OK) {
        status = send_bucket(e, e->queue[sent], err);
        sent += status == CORRAL_OK;
    }
    memmove(e->queue, e->queue + sent, (e->queued - sent) * sizeof e->queue[0]);
    e->queued -= sent;
    return status == CORRAL_AGAIN ? CORRAL_OK : status;
}

static enum corral_status tx_send(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    if (e->shard == NULL || bucket >= lane->link->buckets) {
        return corral_fail(err, e->shard == NULL ? CORRAL_STATE : CORRAL_INVALID,
                           "no bucket %u to send on this lane", bucket);
    }
    enum corral_status status = nccl_end_ready(e, err);
    if (status == CORRAL_AGAIN) {
        if (e->queued == e->window) {
            return CORRAL_AGAIN;
        }
        e->queue[e->queued++] = bucket;
        return CORRAL_OK;
    }
    CORRAL_TRY(status);
    CORRAL_TRY(send_queued(e, err));
    return e->queued > 0 ? CORRAL_AGAIN : send_bucket(e, bucket, err);
}

static enum corral_status take_credits(struct nccl_end *e, struct corral_error *err)
{
    for (;;) {
        struct corral_side_message m;
        enum corral_status status = corral_side_receive(&e->side, &m, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        if (m.type != NCCL_CREDIT || e->released == e->posted) {
            return corral_fail(err, CORRAL_PROTOCOL, "message %u on the nccl lane", m.type);
        }
        e->released++;
    }
}

static enum corral_status tx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint64_t *left,
                                      struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    uint64_t deadline = corral_lane_deadline(timeout_ns), done = e->done, released = e->released;
    bool was_ready = e->ready;
    for (;;) {
        CORRAL_TRY(nccl_end_look(e, err)); /* first: it takes the signal that what follows has changed */
        enum corral_status status = nccl_end_ready(e, err);
        if (status != CORRAL_AGAIN) {
            CORRAL_TRY(status);
        }
        CORRAL_TRY(take_credits(e, err));
        if (e->ready) {
            CORRAL_TRY(send_queued(e, err));
        }
        bool idle = e->ready && e->queued == 0 && e->posted == e->released && e->posted == e->done;
        if (e->done != done || e->released != released || e->ready != was_ready || idle || !e->joining ||
            corral_now_ns(&corral_clock_monotonic) >= deadline) {
            break;
        }
        corral_lane_wait(lane->fd, deadline);
    }
    *left = e->done - e->begun;
    return CORRAL_OK;
}

static enum corral_status tx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    if (e->shard == NULL) {
        return corral_fail(err, CORRAL_STATE, "no push is under way on this lane");
    }
    uint64_t deadline = corral_lane_deadline(ok ? DRAIN_TIMEOUT_NS : 0), left = 0;
    enum corral_status status = CORRAL_OK;
    while (ok && status == CORRAL_OK && (e->queued > 0 || e->released != e->posted)) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        status = now < deadline ? tx_progress(lane, deadline - now, &left, err)
                                : corral_fail(err, CORRAL_TIMEOUT, "the receiver has not taken every bucket");
    }
    e->shard = NULL;
    e->queued = 0;
    e->failed = !ok || status != CORRAL_OK;
    return status;
}

static void tx_close(struct corral_lane *lane)
{
    if (lane != NULL) {
        nccl_end_destroy(nccl_end_of(lane));
    }
}

const struct corral_lane_ops corral_lane_nccl_ops = {
    .name = "nccl",
    .kind = CORRAL_LANE_NCCL,
    .available = nccl_available,
    .rx_open = nccl_rx_open,
    .rx_connect = nccl_rx_connect,
    .rx_begin = nccl_rx_begin,
    .rx_progress = nccl_rx_progress,
    .rx_taken = nccl_rx_taken,
    .rx_end = nccl_rx_end,
    .rx_close = nccl_rx_close,
    .tx_open = tx_open,
    .tx_begin = tx_begin,
    .tx_send = tx_send,
    .tx_progress = tx_progress,
    .tx_end = tx_end,
    .tx_close = tx_close,
};
