/* The receiver's end: exports the destination, or staging for it, and hands on what the sender says is there. */
#include "base/clock.h"
#include "transport/weights/lanes/cuda_ipc/ipc.h"

#include <poll.h>
#include <stdlib.h>

#define LAND_TIMEOUT_NS (30 * CORRAL_NS_PER_S)
#define CLOSE_TIMEOUT_NS (250 * CORRAL_NS_PER_MS)

struct rx {
    struct corral_lane base; /* first */
    struct corral_side side;
    struct corral_lane_device device;
    uint64_t open_timeout_ns;
    uint32_t window;
    uint64_t staging; /* window slots of device memory; 0: none */
    void *pinned;     /* one slot, for a destination that is not on a device */
    corral_cuda_event landed;
    struct corral_shard *destination; /* NULL: between pushes */
    uint64_t push;
    bool direct, pending;    /* pending: the sender has not said END for the last push */
    bool ended_well, failed; /* failed: only closing is left */
};

static struct rx *rx_of(struct corral_lane *lane)
{
    return (struct rx *)lane;
}

enum corral_status ipc_rx_open(struct corral_lane **out, const struct corral_link *link,
                               const struct corral_lane_options *options, struct corral_lane_blob *offer,
                               struct corral_error *err)
{
    CORRAL_TRY(ipc_available(options, err));
    ipc_sweep();
    struct rx *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a lane");
    }
    r->base = (struct corral_lane){.ops = &corral_lane_cuda_ipc_ops, .link = link, .fd = -1};
    r->open_timeout_ns = corral_side_open_timeout(options);
    r->window = corral_lane_window(options);
    corral_side_init(&r->side);
    corral_lane_blob_begin(offer, CORRAL_LANE_CUDA_IPC, link);
    enum corral_status status = corral_side_listen(&r->side, NULL, offer->data + CORRAL_LANE_BLOB_HEAD, err);
    if (status != CORRAL_OK) {
        corral_side_close(&r->side);
        free(r);
        return status;
    }
    offer->bytes = IPC_OFFER_BYTES;
    *out = &r->base;
    return CORRAL_OK;
}

enum corral_status ipc_rx_connect(struct corral_lane *lane, const struct corral_lane_blob *answer,
                                  struct corral_error *err)
{
    struct rx *r = rx_of(lane);
    CORRAL_TRY(corral_lane_blob_check(answer, CORRAL_LANE_CUDA_IPC, lane->link, CORRAL_LANE_BLOB_HEAD, err));
    CORRAL_TRY(corral_side_accept(&r->side, r->open_timeout_ns, err));
    lane->fd = r->side.fd;
    return CORRAL_OK;
}

/* ---- where the bytes go ---- */

/* The whole of a plain allocation can be exported; pools, mapped and managed memory cannot. */
static bool export_destination(struct rx *r, struct ipc_place *place)
{
    const struct corral_cuda *cuda = r->device.cuda;
    uint64_t base = 0;
    size_t bytes = 0;
    if (!corral_shard_on_device(r->destination) ||
        cuda->cuMemGetAddressRange(&base, &bytes, r->destination->device_address) != CORRAL_CUDA_SUCCESS) {
        return false;
    }
    uint64_t offset = r->destination->device_address - base;
    if (offset > bytes || r->destination->bytes > bytes - offset ||
        cuda->cuIpcGetMemHandle(&place->handle, base) != CORRAL_CUDA_SUCCESS) {
        return false;
    }
    place->offset = offset;
    place->address = r->destination->device_address;
    place->bytes = r->destination->bytes;
    place->direct = true;
    return true;
}

static enum corral_status make_staging(struct rx *r, struct corral_error *err)
{
    const struct corral_cuda *cuda = r->device.cuda;
    uint64_t slot = ipc_slot_bytes(r->base.link);
    if (r->staging == 0) {
        CORRAL_CUDA_TRY(cuda, cuMemAlloc(&r->staging, r->window * slot), err,
                        "cannot allocate staging for weights on CUDA device %d", r->device.ordinal);
        r->base.memory_bytes += r->window * slot;
    }
    if (r->landed == NULL) {
        CORRAL_CUDA_TRY(cuda, cuEventCreate(&r->landed, CORRAL_CUDA_EVENT_NO_TIMING), err,
                        "cannot make a CUDA event for a lane");
    }
    if (r->pinned == NULL && !corral_shard_on_device(r->destination)) {
        CORRAL_TRY(corral_lane_device_pin(&r->device, slot, &r->pinned, err));
        r->base.memory_bytes += slot;
    }
    return CORRAL_OK;
}

static enum corral_status export_staging(struct rx *r, struct ipc_place *place, struct corral_error *err)
{
    CORRAL_TRY(make_staging(r, err));
    CORRAL_CUDA_TRY(r->device.cuda, cuIpcGetMemHandle(&place->handle, r->staging), err,
                    "cannot export memory of CUDA device %d to another process", r->device.ordinal);
    place->offset = 0;
    place->address = r->staging;
    place->bytes = r->window * ipc_slot_bytes(r->base.link);
    return CORRAL_OK;
}

static void drop_memory(struct rx *r, bool importer_may_write)
{
    const struct corral_cuda *cuda = r->device.cuda;
    struct corral_cuda_scope scope = {0};
    if (cuda == NULL || corral_cuda_enter(&scope, cuda, r->device.context, NULL) != CORRAL_OK) {
        return;
    }
    if (r->staging != 0 && importer_may_write) {
        ipc_park(r->side.peer_pid, r->device.ordinal, r->staging);
    } else if (r->staging != 0) {
        cuda->cuMemFree(r->staging);
    }
    if (r->pinned != NULL) {
        cuda->cuMemFreeHost(r->pinned);
    }
    if (r->landed != NULL) {
        cuda->cuEventDestroy(r->landed);
    }
    corral_cuda_leave(&scope);
    r->staging = 0;
    r->pinned = NULL;
    r->landed = NULL;
    r->base.memory_bytes = 0;
}

enum corral_status ipc_rx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *destination,
                                struct corral_lane_blob *blob, struct corral_error *err)
{
    struct rx *r = rx_of(lane);
    if (r->destination != NULL || r->failed) {
        return corral_fail(err, CORRAL_STATE, "push %llu of this lane %s", (unsigned long long)r->push,
                           r->failed ? "has failed" : "has not ended");
    }
    CORRAL_TRY(corral_lane_check_shard(destination, lane->link, CORRAL_LINK_DESTINATION, err));
    if (!corral_lane_device_suits(&r->device, destination)) {
        drop_memory(r, r->pending); /* staging is on the destination's device */
    }
    CORRAL_TRY(corral_lane_device_of(&r->device, destination, err));
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, r->device.cuda, r->device.context, err));
    struct ipc_place place = {.push = push, .window = r->window};
    CORRAL_CUDA_TRY(r->device.cuda, cuDeviceGetUuid(&place.device, r->device.ordinal), err,
                    "cannot name CUDA device %d", r->device.ordinal);
    r->destination = destination;
    enum corral_status status = CORRAL_OK;
    if (lane->link->buckets > 0 && !export_destination(r, &place)) {
        status = export_staging(r, &place, err);
    }
    if (status != CORRAL_OK) {
        r->destination = NULL;
        return status;
    }
    ipc_place_write(blob, lane->link, &place);
    r->push = push;
    r->direct = place.direct;
    r->pending = true;
    r->ended_well = false;
    return CORRAL_OK;
}

/* ---- what arrives ---- */

static enum corral_status wait_landed(struct rx *r, struct corral_error *err)
{
    CORRAL_CUDA_TRY(r->device.cuda, cuEventRecord(r->landed, r->device.stream), err,
                    "cannot record a CUDA event");
    return corral_cuda_wait(r->device.cuda, r->landed, LAND_TIMEOUT_NS, err);
}

/* From a slot of staging to its place. */
static enum corral_status land(struct rx *r, uint32_t bucket, uint64_t slot, struct corral_error *err)
{
    const struct corral_link *link = r->base.link;
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, r->device.cuda, r->device.context, err));
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_cuda_end from = {r->staging + slot * ipc_slot_bytes(link), CORRAL_CUDA_PACKED}, to;
    bool device = corral_shard_on_device(r->destination);
    to = device ? (struct corral_cuda_end){r->destination->device_address, CORRAL_CUDA_DESTINATION}
                : (struct corral_cuda_end){(uint64_t)(uintptr_t)r->pinned, CORRAL_CUDA_PACKED};
    CORRAL_TRY(corral_cuda_copy_spans(r->device.cuda, link, &cursor, corral_link_bucket_size(link, bucket),
                                      from, to, r->device.stream, err));
    CORRAL_TRY(wait_landed(r, err));
    return device ? CORRAL_OK : r->destination->ops->scatter(r->destination, link, bucket, r->pinned, err);
}

static enum corral_status take_data(struct rx *r, const struct corral_side_message *m,
                                    struct corral_error *err)
{
    if (r->destination == NULL || m->push != r->push || m->bucket >= r->base.link->buckets ||
        m->a >= r->window) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "the cuda_ipc lane's sender names bucket %u, which is not due", m->bucket);
    }
    if (r->direct) {
        return CORRAL_OK;
    }
    CORRAL_TRY(land(r, m->bucket, m->a, err));
    struct corral_side_message credit = {.type = IPC_CREDIT, .push = r->push, .a = m->a};
    enum corral_status status = corral_side_send(&r->side, &credit, err);
    /* As many are under way as there are slots: they always fit. */
    return status == CORRAL_AGAIN ? corral_fail(err, CORRAL_PEER, "the lane's sender reads nothing") : status;
}

enum corral_status ipc_rx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint32_t *bucket,
                                   uint32_t room, uint32_t *count, struct corral_error *err)
{
    struct rx *r = rx_of(lane);
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    uint32_t found = 0;
    while (found < room) {
        struct corral_side_message m;
        enum corral_status status = corral_side_receive(&r->side, &m, err);
        if (status == CORRAL_AGAIN) {
            if (found > 0 || timeout_ns == 0 || !corral_lane_poll(r->side.fd, POLLIN, deadline)) {
                break;
            }
            continue;
        }
        if (status == CORRAL_PEER && found > 0) {
            break; /* it will say so again */
        }
        CORRAL_TRY(status);
        if (m.type == IPC_END && m.push == r->push) {
            r->pending = false;
        } else if (m.type == IPC_DATA) {
            CORRAL_TRY(take_data(r, &m, err));
            bucket[found++] = m.bucket;
        } else if (m.type != IPC_END) {
            return corral_fail(err, CORRAL_PROTOCOL, "message %u on the cuda_ipc lane", m.type);
        }
    }
    *count = found;
    return CORRAL_OK;
}

enum corral_status ipc_rx_taken(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    /* Staging is free as soon as the bucket is in its place. */
    return bucket < lane->link->buckets
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "the link has no bucket %u", bucket);
}

enum corral_status ipc_rx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct rx *r = rx_of(lane);
    if (r->destination == NULL) {
        return corral_fail(err, CORRAL_STATE, "no push is under way on this lane");
    }
    r->destination = NULL;
    r->ended_well = ok;
    r->failed = !ok;
    return CORRAL_OK;
}

/* The sender's END may be on its way; after a push that went well it is worth a moment. */
static void await_end(struct rx *r)
{
    uint64_t deadline = corral_lane_deadline(r->ended_well ? CLOSE_TIMEOUT_NS : 0);
    while (r->pending && r->side.fd >= 0) {
        struct corral_side_message m;
        enum corral_status status = corral_side_receive(&r->side, &m, NULL);
        if (status == CORRAL_OK) {
            r->pending = !(m.type == IPC_END && m.push == r->push);
        } else if (status != CORRAL_AGAIN || !corral_lane_poll(r->side.fd, POLLIN, deadline)) {
            return;
        }
    }
}

void ipc_rx_close(struct corral_lane *lane, int32_t *tainted_pid)
{
    struct rx *r = rx_of(lane);
    if (tainted_pid != NULL) {
        *tainted_pid = 0;
    }
    if (r == NULL) {
        return;
    }
    await_end(r);
    bool unsafe = r->pending && r->side.fd >= 0;
    if (unsafe && r->direct && tainted_pid != NULL) {
        *tainted_pid = r->side.peer_pid;
    }
    drop_memory(r, unsafe);
    corral_lane_device_close(&r->device);
    corral_side_close(&r->side);
    ipc_sweep();
    free(r);
}
