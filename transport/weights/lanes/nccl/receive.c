/* The receiver's end of the nccl lane: makes the id, posts a receive for every announced bucket, unpacks what has come. */
#include "base/clock.h"
#include "transport/weights/lanes/nccl/internal.h"

#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define LAND_TIMEOUT_NS (30 * CORRAL_NS_PER_S)

enum corral_status nccl_rx_open(struct corral_lane **out, const struct corral_link *link,
                                const struct corral_lane_options *options, struct corral_lane_blob *offer,
                                struct corral_error *err)
{
    struct nccl_end *e = NULL;
    CORRAL_TRY(nccl_end_create(&e, link, options, 0, 0, err));
    corral_lane_blob_begin(offer, CORRAL_LANE_NCCL, link);
    uint8_t *at = offer->data + CORRAL_LANE_BLOB_HEAD;
    const char *host = options->local_host != NULL ? options->local_host : "127.0.0.1";
    enum corral_status status = corral_side_listen(&e->side, host, at, err);
    if (status == CORRAL_OK) {
        status = nccl_worker_id(e->worker, &e->id, err);
    }
    if (status != CORRAL_OK) {
        nccl_end_destroy(e);
        return status;
    }
    memcpy(at + CORRAL_SIDE_OFFER_BYTES, &e->id, NCCL_ID_BYTES);
    corral_lane_put32(at + CORRAL_SIDE_OFFER_BYTES + NCCL_ID_BYTES, e->window);
    offer->bytes = NCCL_OFFER_BYTES;
    *out = &e->base;
    return CORRAL_OK;
}

enum corral_status nccl_rx_connect(struct corral_lane *lane, const struct corral_lane_blob *answer,
                                   struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    CORRAL_TRY(corral_lane_blob_check(answer, CORRAL_LANE_NCCL, lane->link, CORRAL_LANE_BLOB_HEAD, err));
    CORRAL_TRY(corral_side_accept(&e->side, e->open_timeout_ns, err));
    return corral_lane_watch(&lane->fd, e->side.fd, EPOLLIN, err);
}

enum corral_status nccl_rx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *destination,
                                 struct corral_lane_blob *place, struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    CORRAL_TRY(nccl_end_begin(e, push, destination, CORRAL_LINK_DESTINATION, err));
    corral_lane_blob_begin(place, CORRAL_LANE_NCCL, lane->link);
    corral_lane_put64(place->data + CORRAL_LANE_BLOB_HEAD, push);
    place->bytes = NCCL_PLACE_BYTES;
    return CORRAL_OK;
}

/* Post a receive for the bucket that the sender sends next. */
static enum corral_status expect(struct nccl_end *e, const struct corral_side_message *m,
                                 struct corral_error *err)
{
    const struct corral_link *link = e->base.link;
    if (m->type != NCCL_ANNOUNCE || e->shard == NULL || m->push != e->push || m->bucket >= link->buckets ||
        m->a != corral_link_bucket_size(link, m->bucket) || e->posted - e->released >= e->window) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "the nccl lane's sender announces bucket %u, which is not due", m->bucket);
    }
    uint32_t slot = (uint32_t)(e->posted % e->window);
    uint64_t direct = nccl_end_direct(e, m->bucket, CORRAL_LINK_DESTINATION);
    struct nccl_transfer t = {.slot = slot,
                              .address =
                                  direct != 0 ? direct : e->memory.staging + slot * nccl_slot_bytes(link),
                              .bytes = m->a};
    e->bucket[slot] = m->bucket;
    e->direct[slot] = direct != 0;
    e->direct_posted = e->direct_posted || direct != 0;
    e->posted++;
    nccl_worker_post(e->worker, &t);
    return CORRAL_OK;
}

static enum corral_status read_side(struct nccl_end *e, struct corral_error *err)
{
    /* Until the communicator is there, what is announced waits in the socket. */
    enum corral_status status = nccl_end_ready(e, err);
    while (status == CORRAL_OK) {
        struct corral_side_message m;
        status = corral_side_receive(&e->side, &m, err);
        if (status == CORRAL_OK) {
            status = expect(e, &m, err);
        }
    }
    return status == CORRAL_AGAIN ? CORRAL_OK : status;
}

static enum corral_status unpack(struct nccl_end *e, uint32_t slot, struct corral_error *err)
{
    const struct corral_link *link = e->base.link;
    uint64_t offset = slot * nccl_slot_bytes(link);
    struct corral_cuda_end from = {e->memory.staging + offset, CORRAL_CUDA_PACKED};
    struct corral_cuda_end to =
        e->on_device
            ? (struct corral_cuda_end){e->shard->device_address, CORRAL_CUDA_DESTINATION}
            : (struct corral_cuda_end){(uint64_t)(uintptr_t)(e->memory.pinned + offset), CORRAL_CUDA_PACKED};
    struct corral_link_cursor cursor = corral_link_seek(link, e->bucket[slot]);
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, e->device.cuda, e->device.context, err));
    CORRAL_TRY(corral_cuda_copy_spans(e->device.cuda, link, &cursor,
                                      corral_link_bucket_size(link, e->bucket[slot]), from, to,
                                      e->device.stream, err));
    CORRAL_CUDA_TRY(e->device.cuda, cuEventRecord(e->event[0], e->device.stream), err,
                    "cannot record a CUDA event");
    CORRAL_TRY(corral_cuda_wait(e->device.cuda, e->event[0], LAND_TIMEOUT_NS, err));
    return e->on_device
               ? CORRAL_OK
               : e->shard->ops->scatter(e->shard, link, e->bucket[slot], e->memory.pinned + offset, err);
}

static enum corral_status hand_on(struct nccl_end *e, uint32_t *bucket, struct corral_error *err)
{
    uint32_t slot = (uint32_t)(e->released % e->window);
    if (!e->direct[slot]) {
        CORRAL_TRY(unpack(e, slot, err));
    }
    *bucket = e->bucket[slot];
    e->released++;
    struct corral_side_message credit = {.type = NCCL_CREDIT, .push = e->push};
    enum corral_status status = corral_side_send(&e->side, &credit, err);
    /* No more than a window of them is ever unread. */
    return status == CORRAL_AGAIN ? corral_fail(err, CORRAL_PEER, "the lane's sender reads nothing") : status;
}

enum corral_status nccl_rx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint32_t *bucket,
                                    uint32_t room, uint32_t *count, struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    uint32_t found = 0;
    if (e->shard == NULL) {
        return corral_fail(err, CORRAL_STATE, "progress of a nccl lane outside of a push");
    }
    for (;;) {
        CORRAL_TRY(nccl_end_look(e, err));
        enum corral_status peer = read_side(e, err);
        while (found < room && e->released < e->done) {
            CORRAL_TRY(hand_on(e, &bucket[found], err));
            found++;
        }
        if (found > 0) {
            break; /* that the sender has gone is said again by the next call */
        }
        CORRAL_TRY(peer);
        if (corral_now_ns(&corral_clock_monotonic) >= deadline) {
            break;
        }
        corral_lane_wait(lane->fd, deadline);
    }
    *count = found;
    return CORRAL_OK;
}

enum corral_status nccl_rx_taken(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    /* A slot is free as soon as its bucket is in its place. */
    return bucket < lane->link->buckets
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "the link has no bucket %u", bucket);
}

enum corral_status nccl_rx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct nccl_end *e = nccl_end_of(lane);
    if (e->shard == NULL) {
        return corral_fail(err, CORRAL_STATE, "no push is under way on this lane");
    }
    e->shard = NULL;
    e->failed = !ok || e->released != e->posted;
    return ok && e->released != e->posted
               ? corral_fail(err, CORRAL_STATE, "buckets are still arriving on this lane")
               : CORRAL_OK;
}

void nccl_rx_close(struct corral_lane *lane, int32_t *tainted_pid)
{
    int32_t tainted = 0;
    if (lane != NULL) {
        struct nccl_end *e = nccl_end_of(lane);
        bool direct = e->direct_posted && e->released != e->posted;
        /* What hangs then is a thread of this process. */
        tainted = nccl_end_destroy(e) && direct ? getpid() : 0;
    }
    if (tainted_pid != NULL) {
        *tainted_pid = tainted;
    }
}
