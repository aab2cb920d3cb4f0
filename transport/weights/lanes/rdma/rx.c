/* The receiving end. */
#include "transport/weights/lanes/rdma/internal.h"
#include "transport/weights/lanes/support.h"
#include <arpa/inet.h>
#include <string.h>

static struct corral_rdma_lane *lane_of(struct corral_lane *lane)
{
    return (struct corral_rdma_lane *)lane;
}

enum corral_status corral_rdma_rx_open(struct corral_lane **out, const struct corral_link *link,
                                       const struct corral_lane_options *options,
                                       struct corral_lane_blob *offer, struct corral_error *err)
{
    const struct corral_verbs *verbs;
    uint32_t window = options->window != 0 ? options->window : CORRAL_RDMA_WINDOW_DEFAULT;
    uint32_t streams = options->streams != 0 ? options->streams : CORRAL_RDMA_STREAMS_DEFAULT;
    window = CORRAL_MIN(window, CORRAL_RDMA_WINDOW_MAX);
    streams = CORRAL_MIN(streams, CORRAL_RDMA_STREAMS_MAX);
    CORRAL_TRY(corral_verbs_load(&verbs, err));
    CORRAL_CLEANUP(corral_rdma_lane_closep) struct corral_rdma_lane *lane = NULL;
    CORRAL_TRY(corral_rdma_lane_create(&lane, link, verbs, false, err));
    CORRAL_TRY(corral_rdma_staging_map(lane, window, err));
    corral_random_bytes(&lane->generation, sizeof(lane->generation));

    struct corral_rdma_port port[CORRAL_RDMA_RAILS_MAX];
    uint32_t ports;
    CORRAL_TRY(corral_rdma_ports_open(verbs, options, port, &ports, err));
    enum corral_status status = CORRAL_OK;
    for (uint32_t i = 0; i < ports && status == CORRAL_OK; i++) {
        /* Credits are the only thing sent. */
        status = corral_rdma_lane_add_rail(lane, &port[i], streams, window + 1, err);
    }
    for (uint32_t i = 0; i < ports; i++) {
        corral_rdma_port_close(verbs, &port[i]); /* those that no rail has taken */
    }
    CORRAL_TRY(status);
    struct corral_rdma_address address;
    corral_rdma_lane_describe(lane, &address);
    corral_rdma_address_write(&address, CORRAL_RDMA_OFFER, offer);
    *out = &CORRAL_STEAL(lane)->base;
    return CORRAL_OK;
}

/* The sender has fewer ports, or uses them in another order: keep the rails it answered for, in its order. */
static enum corral_status keep_rails(struct corral_rdma_lane *lane, const struct corral_rdma_address *answer,
                                     struct corral_error *err)
{
    struct corral_rdma_rail kept[CORRAL_RDMA_RAILS_MAX];
    uint32_t used = 0;
    for (uint32_t i = 0; i < answer->rails; i++) {
        uint32_t mine = answer->rail[i].peer;
        if (mine >= lane->rails || (used >> mine & 1) != 0) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "rdma: the answer is for a port that was not offered, or twice for one");
        }
        used |= 1u << mine;
        kept[i] = lane->rail[mine];
        lane->peer[i] = answer->rail[i];
    }
    for (uint32_t r = 0; r < lane->rails; r++) {
        if ((used >> r & 1) == 0) {
            corral_rdma_rail_close(&lane->rail[r], lane->verbs);
        }
    }
    memcpy(lane->rail, kept, answer->rails * sizeof(kept[0]));
    lane->rails = answer->rails;
    for (uint32_t r = 0; r < lane->rails; r++) {
        corral_rdma_rail_trim(&lane->rail[r], lane->verbs, answer->streams);
    }
    lane->streams = answer->streams;
    return CORRAL_OK;
}

enum corral_status corral_rdma_rx_connect(struct corral_lane *rx, const struct corral_lane_blob *answer,
                                          struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(rx);
    struct corral_rdma_address a;
    if (lane->connected) {
        return corral_fail(err, CORRAL_STATE, "rdma: the lane is connected already");
    }
    CORRAL_TRY(corral_rdma_address_read(answer, CORRAL_RDMA_ANSWER, &a, err));
    if (a.generation != lane->generation) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: an answer to another offer");
    }
    if (!corral_digest_equal(a.link, rx->link->hash) || a.slot_bytes != lane->slot_bytes ||
        a.window > lane->window || a.rails > lane->rails || a.streams > lane->rail[0].qps) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: the answer does not fit the offer");
    }
    lane->window = a.window;
    CORRAL_TRY(keep_rails(lane, &a, err));
    return corral_rdma_lane_connect(lane, err);
}

enum corral_status corral_rdma_rx_begin(struct corral_lane *rx, uint64_t push,
                                        struct corral_shard *destination, struct corral_lane_blob *place,
                                        struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(rx);
    CORRAL_TRY(corral_rdma_check(lane, err));
    if (lane->in_push) {
        return corral_fail(err, CORRAL_STATE, "rdma: the last push has not been ended");
    }
    CORRAL_TRY(corral_lane_check_shard(destination, rx->link, CORRAL_LINK_DESTINATION, err));
    lane->in_push = true;
    lane->serial++;
    lane->moved_ns = 0;
    lane->shard = destination;
    corral_rdma_place_write(&(struct corral_rdma_place){lane->generation, push, lane->serial}, place);
    return CORRAL_OK;
}

/* Room in the queue is only taken from requests whose completion has been seen. */
static enum corral_status give_back(struct corral_rdma_lane *lane, uint32_t slot, struct corral_error *err)
{
    struct corral_rdma_slot *s = &lane->slot[slot];
    uint32_t qp = slot % lane->queue_pairs, r = qp / lane->streams, stream = qp % lane->streams;
    if (lane->sends[qp] >= lane->window) {
        return CORRAL_OK;
    }
    uint32_t immediate =
        corral_rdma_immediate_pack((struct corral_rdma_immediate){s->bucket, slot, (uint32_t)s->serial});
    struct ibv_send_wr wr = {
        .wr_id = stream,
        .opcode = IBV_WR_SEND_WITH_IMM,
        .send_flags = IBV_SEND_SIGNALED,
        .imm_data = htonl(immediate),
    };
    struct ibv_send_wr *bad;
    int rc = ibv_post_send(lane->rail[r].qp[stream], &wr, &bad);
    if (rc != 0) {
        struct corral_error e;
        corral_fail_sys(&e, rc, "rdma %s: giving a slot back on queue pair 0x%x", lane->rail[r].port.name,
                        lane->rail[r].qp[stream]->qp_num);
        corral_rdma_fail(lane, &e);
        return corral_rdma_check(lane, err);
    }
    lane->sends[qp]++;
    s->state = CORRAL_RDMA_FREE;
    s->seen = 0;
    return CORRAL_OK;
}

static enum corral_status arrived(struct corral_rdma_lane *lane, uint32_t qp, struct corral_rdma_immediate i,
                                  struct corral_error *err)
{
    struct corral_rdma_slot *s = &lane->slot[i.slot];
    bool first = s->state == CORRAL_RDMA_FREE;
    if (i.slot >= lane->window || i.bucket >= lane->base.link->buckets ||
        (!first && s->state != CORRAL_RDMA_FILLING) || (!first && s->bucket != i.bucket) ||
        (s->seen >> qp & 1) != 0) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "rdma: queue pair %u announces bucket %u in slot %u, which is not free for it", qp,
                           i.bucket, i.slot);
    }
    lane->changed = true;
    s->state = CORRAL_RDMA_FILLING;
    s->bucket = i.bucket;
    s->serial = lane->serial - ((lane->serial - i.push) & 15);
    s->seen |= UINT64_C(1) << qp;
    if (s->seen != UINT64_MAX >> (64 - lane->queue_pairs)) {
        return CORRAL_OK;
    }
    if (lane->in_push && s->serial == lane->serial) {
        s->state = CORRAL_RDMA_ARRIVED;
        s->order = lane->order++;
        return CORRAL_OK;
    }
    /* Sent twice, and its push ended with the first: it has only been in staging. */
    s->state = CORRAL_RDMA_CREDIT;
    return give_back(lane, i.slot, err);
}

enum corral_status corral_rdma_rx_completed(struct corral_rdma_lane *lane, uint32_t qp,
                                            const struct ibv_wc *wc, struct corral_error *err)
{
    if (wc->opcode == IBV_WC_SEND) {
        lane->sends[qp]--;
        for (uint32_t i = 0; i < lane->window; i++) {
            if (lane->slot[i].state == CORRAL_RDMA_CREDIT) {
                CORRAL_TRY(give_back(lane, i, err));
            }
        }
        return CORRAL_OK;
    }
    if (wc->opcode != IBV_WC_RECV_RDMA_WITH_IMM) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: a message that is no immediate (opcode %d)",
                           wc->opcode);
    }
    CORRAL_TRY(arrived(lane, qp, corral_rdma_immediate_unpack(ntohl(wc->imm_data)), err));
    return corral_rdma_rail_receive(&lane->rail[qp / lane->streams], qp % lane->streams, 1, err);
}

/* The slot whose bucket came first; UINT32_MAX: none. */
static uint32_t next_arrived(const struct corral_rdma_lane *lane)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < lane->window; i++) {
        if (lane->slot[i].state == CORRAL_RDMA_ARRIVED &&
            (best == UINT32_MAX || lane->slot[i].order < lane->slot[best].order)) {
            best = i;
        }
    }
    return best;
}

static bool has_arrived(const struct corral_rdma_lane *lane)
{
    return next_arrived(lane) != UINT32_MAX;
}

static enum corral_status scatter(struct corral_rdma_lane *lane, uint32_t slot, struct corral_error *err)
{
    struct corral_rdma_slot *s = &lane->slot[slot];
    struct corral_error e = {.status = CORRAL_OK};
    const uint8_t *from = lane->staging + slot * lane->slot_bytes;
    if (corral_lane_deliver(lane->shard, lane->base.link, s->bucket, from + CORRAL_RDMA_HEADER,
                            corral_lane_get64(from), &e) != CORRAL_OK) {
        corral_rdma_fail(lane, &e);
        return corral_rdma_check(lane, err);
    }
    /* The bytes are in final memory: the sender may go on while they are digested there. */
    s->state = CORRAL_RDMA_CREDIT;
    return give_back(lane, slot, err);
}

enum corral_status corral_rdma_rx_progress(struct corral_lane *rx, uint64_t timeout_ns, uint32_t *bucket,
                                           uint32_t room, uint32_t *count, struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(rx);
    CORRAL_TRY(corral_rdma_check(lane, err));
    timeout_ns = room > 0 ? timeout_ns : 0;
    lane->changed = false;
    for (;;) {
        uint64_t part = CORRAL_MIN(timeout_ns, CORRAL_RDMA_PROBE_NS);
        CORRAL_TRY(corral_rdma_wait(lane, part, has_arrived, err));
        CORRAL_TRY(corral_rdma_probe(lane, lane->in_push, err));
        timeout_ns -= part;
        if (timeout_ns == 0 || has_arrived(lane)) {
            break;
        }
    }
    uint32_t n = 0;
    for (uint32_t slot; n < room && (slot = next_arrived(lane)) != UINT32_MAX; n++) {
        bucket[n] = lane->slot[slot].bucket;
        CORRAL_TRY(scatter(lane, slot, err));
    }
    corral_rdma_kick(lane, has_arrived(lane));
    *count = n;
    return CORRAL_OK;
}

/* Nothing of the bucket is in staging any more. */
enum corral_status corral_rdma_rx_taken(struct corral_lane *rx, uint32_t bucket, struct corral_error *err)
{
    CORRAL_TRY(corral_rdma_check(lane_of(rx), err));
    if (bucket >= rx->link->buckets) {
        return corral_fail(err, CORRAL_INVALID, "rdma: bucket %u of %u", bucket, rx->link->buckets);
    }
    return CORRAL_OK;
}

enum corral_status corral_rdma_rx_end(struct corral_lane *rx, bool ok, struct corral_error *err)
{
    struct corral_rdma_lane *lane = lane_of(rx);
    if (!ok) {
        struct corral_error e;
        corral_fail(&e, CORRAL_STATE, "rdma: the last push failed, the lane must be opened anew");
        corral_rdma_fail(lane, &e);
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_rdma_check(lane, err));
    for (uint32_t i = 0; i < lane->window; i++) {
        if (lane->slot[i].state == CORRAL_RDMA_ARRIVED) { /* sent again, and not needed */
            lane->slot[i].state = CORRAL_RDMA_CREDIT;
            CORRAL_TRY(give_back(lane, i, err));
        }
    }
    lane->in_push = false;
    lane->shard = NULL;
    return CORRAL_OK;
}
