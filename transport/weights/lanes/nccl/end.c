/* What both ends of the nccl lane do. */
#include "base/clock.h"
#include "transport/weights/lanes/nccl/internal.h"

#include <stdlib.h>
#include <sys/epoll.h>

uint64_t nccl_slot_bytes(const struct corral_link *link)
{
    return CORRAL_MIN(link->bucket_bytes, (link->bytes + 511) / 512 * 512);
}

enum corral_status nccl_available(const struct corral_lane_options *options, struct corral_error *err)
{
    (void)options;
    const struct corral_cuda *cuda = NULL;
    const struct nccl *nccl = NULL;
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    CORRAL_TRY(nccl_open(&nccl, err));
    uint32_t abandoned = nccl_abandoned();
    return abandoned < NCCL_ABANDONED_MAX
               ? CORRAL_OK
               : corral_fail(err, CORRAL_UNSUPPORTED,
                             "%u calls of NCCL in this process have hung and never returned", abandoned);
}

enum corral_status nccl_end_create(struct nccl_end **out, const struct corral_link *link,
                                   const struct corral_lane_options *options, int rank, uint32_t window,
                                   struct corral_error *err)
{
    CORRAL_TRY(nccl_available(options, err));
    struct nccl_end *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a lane");
    }
    e->base = (struct corral_lane){.ops = &corral_lane_nccl_ops, .link = link, .fd = -1};
    e->window = window != 0 ? window : corral_lane_window(options);
    e->open_timeout_ns = corral_side_open_timeout(options);
    corral_side_init(&e->side);
    struct nccl_worker_options worker = {.rank = rank,
                                         .window = e->window,
                                         .slot_bytes = nccl_slot_bytes(link),
                                         .open_timeout_ns = e->open_timeout_ns,
                                         .stop_timeout_ns = NCCL_STOP_TIMEOUT_NS};
    enum corral_status status = nccl_worker_start(&e->worker, &worker, err);
    if (status == CORRAL_OK) {
        status = corral_lane_watch(&e->base.fd, nccl_worker_fd(e->worker), EPOLLIN, err);
    }
    if (status != CORRAL_OK) {
        nccl_end_destroy(e);
        return status;
    }
    *out = e;
    return CORRAL_OK;
}

bool nccl_end_destroy(struct nccl_end *e)
{
    bool abandoned = nccl_worker_stop(e->worker);
    struct corral_cuda_scope scope = {0};
    /* An abandoned thread keeps what it may still use: the context and the events it was given. */
    if (!abandoned && e->device.cuda != NULL &&
        corral_cuda_enter(&scope, e->device.cuda, e->device.context, NULL) == CORRAL_OK) {
        for (uint32_t i = 0; i < CORRAL_LANE_WINDOW_MAX; i++) {
            if (e->event[i] != NULL) {
                e->device.cuda->cuEventDestroy(e->event[i]);
            }
        }
    }
    corral_cuda_leave(&scope);
    if (!abandoned) {
        corral_lane_device_close(&e->device);
    }
    corral_side_close(&e->side);
    corral_cleanup_close(&e->base.fd);
    free(e);
    return abandoned;
}

static enum corral_status make_events(struct nccl_end *e, struct corral_error *err)
{
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, e->device.cuda, e->device.context, err));
    for (uint32_t i = 0; i < e->window; i++) {
        if (e->event[i] == NULL) {
            CORRAL_CUDA_TRY(e->device.cuda, cuEventCreate(&e->event[i], CORRAL_CUDA_EVENT_NO_TIMING), err,
                            "cannot make a CUDA event for a lane");
        }
    }
    return CORRAL_OK;
}

enum corral_status nccl_end_begin(struct nccl_end *e, uint64_t push, struct corral_shard *shard,
                                  enum corral_link_side side, struct corral_error *err)
{
    if (e->shard != NULL || e->failed) {
        return corral_fail(err, CORRAL_STATE, "the last push of this lane %s",
                           e->failed ? "has failed" : "has not ended");
    }
    CORRAL_TRY(corral_lane_check_shard(shard, e->base.link, side, err));
    bool on_device = corral_shard_on_device(shard);
    if (e->joining && (on_device != e->on_device || !corral_lane_device_suits(&e->device, shard))) {
        return corral_fail(
            err, CORRAL_INVALID,
            "the shard is not where this lane's communicator is (CUDA device %d): open the lane again",
            e->device.ordinal);
    }
    if (!e->joining && e->base.link->buckets > 0) {
        CORRAL_TRY(corral_lane_device_of(&e->device, shard, err));
        CORRAL_TRY(make_events(e, err));
        nccl_worker_join(e->worker, &e->id, e->device.ordinal, e->device.context, !on_device);
        e->joining = true;
        e->joining_since_ns = corral_now_ns(&corral_clock_monotonic);
        e->on_device = on_device;
    }
    if (on_device && side == CORRAL_LINK_SOURCE && e->joining) {
        CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
        CORRAL_TRY(corral_cuda_enter(&scope, e->device.cuda, e->device.context, err));
        CORRAL_TRY(corral_shard_cuda_order(shard, e->device.stream, err));
    }
    e->shard = shard;
    e->push = push;
    e->begun = e->posted;
    return CORRAL_OK;
}

enum corral_status nccl_end_ready(struct nccl_end *e, struct corral_error *err)
{
    if (e->ready) {
        return CORRAL_OK;
    }
    enum corral_status status = nccl_worker_ready(e->worker, &e->memory, err);
    if (status == CORRAL_OK) {
        e->ready = true;
        e->base.memory_bytes = e->memory.bytes;
    } else if (status == CORRAL_AGAIN && e->joining &&
               corral_now_ns(&corral_clock_monotonic) - e->joining_since_ns > e->open_timeout_ns) {
        /* The thread has the same deadline, but may be stuck in a call. */
        return corral_fail(err, CORRAL_TIMEOUT, "NCCL has not made a communicator in time");
    }
    return status;
}

enum corral_status nccl_end_look(struct nccl_end *e, struct corral_error *err)
{
    return nccl_worker_done(e->worker, &e->done, err);
}

uint64_t nccl_end_direct(const struct nccl_end *e, uint32_t bucket, enum corral_link_side side)
{
    struct corral_link_cursor cursor = corral_link_seek(e->base.link, bucket);
    struct corral_span span;
    if (!e->on_device || !corral_link_next(e->base.link, &cursor, &span)) {
        return 0;
    }
    uint64_t first = side == CORRAL_LINK_SOURCE ? span.source_offset : span.destination_offset, end = first;
    do {
        uint64_t at = side == CORRAL_LINK_SOURCE ? span.source_offset : span.destination_offset;
        if (at != end) {
            return 0;
        }
        end = at + span.bytes;
    } while (corral_link_next(e->base.link, &cursor, &span));
    return e->shard->device_address + first;
}
