/* The sending end. */
#include "transport/weights/lanes/rdma/internal.h"
#include "transport/weights/lanes/support.h"
#include <arpa/inet.h>
#include <string.h>

static struct corral_rdma_lane *lane_of(struct corral_lane *lane)
{
    return (struct corral_rdma_lane *)lane;
}

/* Slices large enough to be cheap, small enough to share a bucket out evenly, never more on one queue pair than the work requests there are. */
static uint64_t slice_bytes(uint64_t slot_bytes, uint32_t queue_pairs)
{
    uint64_t slice = (slot_bytes / queue_pairs / 4 + 4095) & ~UINT64_C(4095);
    slice = CORRAL_MIN(CORRAL_MAX(slice, CORRAL_RDMA_SLICE_MIN), CORRAL_RDMA_SLICE_MAX);
    uint64_t least = (slot_bytes / ((uint64_t)CORRAL_RDMA_SLICES_MAX * queue_pairs) + 4096) & ~UINT64_C(4095);
    return CORRAL_MAX(slice, least);
}

static uint32_t slices_per_queue_pair(uint64_t bytes, uint64_t slice, uint32_t queue_pairs)
{
    uint64_t slices = (bytes + slice - 1) / slice;
    return (uint32_t)((slices + queue_pairs - 1) / queue_pairs);
}

static bool fits(struct corral_rdma_lane *lane, struct corral_rdma_port *port,
                 const struct corral_rdma_rail_address *peer, struct corral_error *err)
{
    if (!peer->ethernet || !port->ethernet) {
        return peer->ethernet == port->ethernet;
    }
    /* Our address in the peer's subnet. Version 1 and version 2 do not hear each other. */
    return corral_rdma_port_choose_gid(lane->verbs, port, peer->gid, err) == CORRAL_OK &&
           peer->gid_type == (uint8_t)port->gid.type;
}

/* Each of our ports with a port of the receiver's that it can reach; those without one are closed. */
static enum corral_status pair_ports(struct corral_rdma_lane *lane, struct corral_rdma_port *port,
                                     uint32_t ports, const struct corral_rdma_address *offer,
                                     uint8_t pairs[CORRAL_RDMA_RAILS_MAX], uint32_t *count,
                                     struct corral_error *err)
{
    uint32_t used = 0, rails = 0;
    struct corral_error last = {.status = CORRAL_OK};
    for (uint32_t i = 0; i < ports; i++) {
        uint32_t j = 0;
        while (j < offer->rails && ((used >> j & 1) != 0 || !fits(lane, &port[i], &offer->rail[j], &last))) {
            j++;
        }
        if (j == offer->rails) {
            corral_rdma_port_close(lane->verbs, &port[i]);
            continue;
        }
        used |= 1u << j;
        pairs[rails] = (uint8_t)j;
        lane->peer[rails] = offer->rail[j];
        struct corral_rdma_port taken = port[i];
        port[i].context = NULL;
        port[rails++] = taken;
    }
    *count = rails;
    if (rails == 0) {
        return last.status != CORRAL_OK ? corral_fail(err, last.status, "%s", last.text)
                                        : corral_fail(err, CORRAL_UNSUPPORTED,
                                                      "rdma: no port here and port there have the same kind "
                                                      "of network (InfiniBand, RoCE v1, RoCE v2)");
    }
    return CORRAL_OK;
}

static enum corral_status open_rails(struct corral_rdma_lane *lane, struct corral_rdma_port *port,
                                     uint32_t ports, const struct corral_rdma_address *offer,
                                     uint32_t streams, struct corral_lane_blob *answer,
                                     struct corral_error *err)
{
    uint8_t pairs[CORRAL_RDMA_RAILS_MAX];
    uint32_t rails;
    CORRAL_TRY(pair_ports(lane, port, ports, offer, pairs, &rails, err));
    lane->streams = streams;
    lane->slice_bytes = slice_bytes(lane->slot_bytes, rails * streams);
    uint32_t per_bucket = 1 + slices_per_queue_pair(lane->slot_bytes, lane->slice_bytes, rails * streams);
    for (uint32_t i = 0; i < rails; i++) {
        CORRAL_TRY(corral_rdma_lane_add_rail(lane, &port[i], streams, lane->window * per_bucket + 1, err));
    }
    CORRAL_TRY(corral_rdma_lane_connect(lane, err));
    struct corral_rdma_address address;
    corral_rdma_lane_describe(lane, &address);
    for (uint32_t i = 0; i < rails; i++) {
        address.rail[i].peer = pairs[i];
    }
    corral_rdma_address_write(&address, CORRAL_RDMA_ANSWER, answer);
    return CORRAL_OK;
}

enum corral_status corral_rdma_tx_open(struct corral_lane **out, const struct corral_link *link,
                                       const struct corral_lane_options *options,
                                       const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                       struct corral_error *err)
{
    const struct corral_verbs *verbs;
    struct corral_rdma_address o;
    CORRAL_TRY(corral_verbs_load(&verbs, err));
    CORRAL_TRY(corral_rdma_address_read(offer, CORRAL_RDMA_OFFER, &o, err));
    if (!corral_digest_equal(o.link, link->hash) || o.slot_bytes != corral_rdma_slot_bytes(link)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "rdma: the receiver's link is another one (plan or bucket size differ)");
    }
    CORRAL_CLEANUP(corral_rdma_lane_closep) struct corral_rdma_lane *lane = NULL;
    CORRAL_TRY(corral_rdma_lane_create(&lane, link, verbs, true, err));
    lane->generation = o.generation;
    uint32_t window = options->window != 0 ? CORRAL_MIN(options->window, o.window) : o.window;
    uint32_t streams = options->streams != 0 ? CORRAL_MIN(options->streams, o.streams) : o.streams;
    CORRAL_TRY(corral_rdma_staging_map(lane, window, err));
    struct corral_rdma_port port[CORRAL_RDMA_RAILS_MAX];
    uint32_t ports;
    CORRAL_TRY(corral_rdma_ports_open(verbs, options, port, &ports, err));
    enum corral_status status = open_rails(lane, port, ports, &o, streams, answer, err);
    for (uint32_t i = 0; i < ports; i++) {
        corral_rdma_port_close(verbs, &port[i]);
    }
    CORRAL_TRY(status);
    *out = &CORRAL_STEAL(lane)->base;
    return CORRAL_OK;
}

enum corral_status corral_rdma_tx_begin(struct corral_lane *tx, uint64_t push, struct corral_shard *source,
                                        const struct corral_lane_blob *place, struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(tx);
    struct corral_rdma_place p;
    CORRAL_TRY(corral_rdma_check(lane, err));
    if (lane->in_push) {
        return corral_fail(err, CORRAL_STATE, "rdma: the last push has not been ended");
    }
    CORRAL_TRY(corral_lane_check_shard(source, tx->link, CORRAL_LINK_SOURCE, err));
    CORRAL_TRY(corral_rdma_place_read(place, &p, err));
    if (p.generation != lane->generation || p.push != push || p.serial != lane->serial + 1) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: the place is of another lane or push");
    }
    lane->in_push = true;
    lane->serial = p.serial;
    lane->shard = source;
    lane->order = lane->left = lane->left_ahead = 0;
    return CORRAL_OK;
}

static uint64_t all_queue_pairs(const struct corral_rdma_lane *lane)
{
    return UINT64_MAX >> (64 - lane->queue_pairs);
}

static void free_if_done(struct corral_rdma_lane *lane, struct corral_rdma_slot *s)
{
    if (s->given_back && s->seen == all_queue_pairs(lane)) {
        s->state = CORRAL_RDMA_FREE;
        lane->changed = true;
    }
}

static void has_left(struct corral_rdma_lane *lane, const struct corral_rdma_slot *s)
{
    if (s->serial != lane->serial || !lane->in_push) {
        return; /* of the push before; that one has been counted by its receiver */
    }
    lane->left_ahead |= UINT64_C(1) << (s->order - lane->left);
    while ((lane->left_ahead & 1) != 0) {
        lane->left_ahead >>= 1;
        lane->left++;
        lane->changed = true;
    }
}

enum corral_status corral_rdma_tx_completed(struct corral_rdma_lane *lane, uint32_t qp,
                                            const struct ibv_wc *wc, struct corral_error *err)
{
    if (wc->opcode == IBV_WC_RDMA_WRITE) {
        struct corral_rdma_slot *s = &lane->slot[wc->wr_id / CORRAL_RDMA_STREAMS_MAX];
        s->seen |= UINT64_C(1) << qp;
        if (s->seen == all_queue_pairs(lane)) {
            has_left(lane, s);
        }
        free_if_done(lane, s);
        return CORRAL_OK;
    }
    struct corral_rdma_immediate i = corral_rdma_immediate_unpack(ntohl(wc->imm_data));
    struct corral_rdma_slot *s = &lane->slot[i.slot];
    if (wc->opcode != IBV_WC_RECV || (wc->wc_flags & IBV_WC_WITH_IMM) == 0 || i.slot >= lane->window ||
        s->state != CORRAL_RDMA_FILLING || s->given_back || s->bucket != i.bucket ||
        (s->serial & 15) != i.push) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "rdma: the receiver gives back slot %u with bucket %u, which it does not have",
                           i.slot, i.bucket);
    }
    s->given_back = true;
    free_if_done(lane, s);
    return corral_rdma_rail_receive(&lane->rail[qp / lane->streams], qp % lane->streams, 1, err);
}

/* The requests of one queue pair: its slices, unsignalled, and the immediate. One doorbell. */
static enum corral_status post(struct corral_rdma_lane *lane, uint32_t slot, uint64_t bytes, uint32_t qp,
                               struct corral_error *err)
{
    uint32_t r = qp / lane->streams, stream = qp % lane->streams, n = 0;
    const struct corral_rdma_rail *rail = &lane->rail[r];
    const struct corral_rdma_rail_address *peer = &lane->peer[r];
    uint64_t base = slot * lane->slot_bytes;
    /* Starting with another queue pair for each slot shares small buckets out as well. */
    uint64_t first = (qp + lane->queue_pairs - slot % lane->queue_pairs) % lane->queue_pairs;
    for (uint64_t at = first * lane->slice_bytes; at < bytes; at += lane->slice_bytes * lane->queue_pairs) {
        lane->sge[n] = (struct ibv_sge){(uintptr_t)lane->staging + base + at,
                                        (uint32_t)CORRAL_MIN(lane->slice_bytes, bytes - at), rail->mr->lkey};
        lane->wr[n] = (struct ibv_send_wr){
            .wr_id = slot * CORRAL_RDMA_STREAMS_MAX + stream,
            .next = &lane->wr[n + 1],
            .sg_list = &lane->sge[n],
            .num_sge = 1,
            .opcode = IBV_WR_RDMA_WRITE,
            .wr.rdma = {peer->staging + base + at, peer->rkey},
        };
        n++;
    }
    const struct corral_rdma_slot *s = &lane->slot[slot];
    lane->wr[n] = (struct ibv_send_wr){
        .wr_id = slot * CORRAL_RDMA_STREAMS_MAX + stream,
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .send_flags = IBV_SEND_SIGNALED,
        .imm_data = htonl(
            corral_rdma_immediate_pack((struct corral_rdma_immediate){s->bucket, slot, (uint32_t)s->serial})),
        .wr.rdma = {peer->staging + base, peer->rkey},
    };
    struct ibv_send_wr *bad;
    int rc = ibv_post_send(rail->qp[stream], lane->wr, &bad);
    if (rc != 0) {
        return corral_fail_sys(err, rc, "rdma %s: posting bucket %u on queue pair 0x%x", rail->port.name,
                               s->bucket, rail->qp[stream]->qp_num);
    }
    return CORRAL_OK;
}

static uint32_t free_slot(const struct corral_rdma_lane *lane)
{
    for (uint32_t i = 0; i < lane->window; i++) {
        if (lane->slot[i].state == CORRAL_RDMA_FREE) {
            return i;
        }
    }
    return UINT32_MAX;
}

/* A slot that is free; CORRAL_AGAIN: none is. */
static enum corral_status take_slot(struct corral_rdma_lane *lane, uint32_t bucket, uint32_t *slot,
                                    struct corral_error *err)
{
    CORRAL_TRY(corral_rdma_check(lane, err));
    if (!lane->in_push || bucket >= lane->base.link->buckets) {
        return corral_fail(err, CORRAL_STATE, "rdma: bucket %u of %u outside a push", bucket,
                           lane->base.link->buckets);
    }
    CORRAL_TRY(corral_rdma_poll(lane, err));
    *slot = free_slot(lane);
    return *slot == UINT32_MAX || lane->order - lane->left >= 64 ? CORRAL_AGAIN : CORRAL_OK;
}

/* The slot has been filled (or could not be: `status`). */
static enum corral_status send_slot(struct corral_rdma_lane *lane, uint32_t slot, uint32_t bucket,
                                    uint64_t bytes, enum corral_status status, struct corral_error *e,
                                    struct corral_error *err)
{
    lane->slot[slot] = (struct corral_rdma_slot){
        .state = CORRAL_RDMA_FILLING, .bucket = bucket, .serial = lane->serial, .order = lane->order};
    corral_lane_put64(lane->staging + slot * lane->slot_bytes, bytes);
    for (uint32_t qp = 0; qp < lane->queue_pairs && status == CORRAL_OK; qp++) {
        status = post(lane, slot, CORRAL_RDMA_HEADER + bytes, qp, e);
    }
    if (status != CORRAL_OK) {
        corral_rdma_fail(lane, e);
        return corral_rdma_check(lane, err);
    }
    lane->order++;
    return CORRAL_OK;
}

enum corral_status corral_rdma_tx_send(struct corral_lane *tx, uint32_t bucket, struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(tx);
    uint32_t slot = 0;
    CORRAL_TRY(take_slot(lane, bucket, &slot, err));
    struct corral_error e = {.status = CORRAL_OK};
    uint8_t *to = lane->staging + slot * lane->slot_bytes + CORRAL_RDMA_HEADER;
    enum corral_status status = lane->shard->ops->gather(lane->shard, tx->link, bucket, to, &e);
    return send_slot(lane, slot, bucket, corral_link_bucket_size(tx->link, bucket), status, &e, err);
}

enum corral_status corral_rdma_tx_send_encoded(struct corral_lane *tx, uint32_t bucket, const void *encoded,
                                               uint64_t bytes, struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(tx);
    uint32_t slot = 0;
    CORRAL_TRY(corral_lane_check_encoded(tx->link, bucket, bytes, err));
    CORRAL_TRY(take_slot(lane, bucket, &slot, err));
    struct corral_error e = {.status = CORRAL_OK};
    memcpy(lane->staging + slot * lane->slot_bytes + CORRAL_RDMA_HEADER, encoded, bytes);
    return send_slot(lane, slot, bucket, bytes, CORRAL_OK, &e, err);
}

/* Something happened in this call, or there is nothing to wait for. */
static bool moved(const struct corral_rdma_lane *lane)
{
    return lane->changed || (lane->left == lane->order && free_slot(lane) != UINT32_MAX);
}

/* Buckets are there, and their slots do not come back? */
static bool waits(const struct corral_rdma_lane *lane)
{
    bool waiting = false;
    for (uint32_t i = 0; i < lane->window; i++) {
        waiting |= lane->slot[i].state == CORRAL_RDMA_FILLING && !lane->slot[i].given_back;
    }
    return waiting;
}

enum corral_status corral_rdma_tx_progress(struct corral_lane *tx, uint64_t timeout_ns, uint64_t *left,
                                           struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(tx);
    CORRAL_TRY(corral_rdma_check(lane, err));
    lane->changed = false;
    for (;;) {
        uint64_t part = CORRAL_MIN(timeout_ns, CORRAL_RDMA_PROBE_NS);
        CORRAL_TRY(corral_rdma_wait(lane, part, moved, err));
        CORRAL_TRY(corral_rdma_probe(lane, waits(lane), err));
        timeout_ns -= part;
        if (timeout_ns == 0 || moved(lane)) {
            break;
        }
    }
    *left = lane->left;
    return CORRAL_OK;
}

enum corral_status corral_rdma_tx_end(struct corral_lane *tx, bool ok, struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(tx);
    if (!ok) {
        struct corral_error e;
        corral_fail(&e, CORRAL_STATE, "rdma: the last push failed, the lane must be opened anew");
        corral_rdma_fail(lane, &e);
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_rdma_check(lane, err));
    lane->in_push = false;
    lane->shard = NULL;
    return CORRAL_OK;
}
