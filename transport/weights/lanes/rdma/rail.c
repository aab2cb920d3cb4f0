#include "transport/weights/lanes/rdma/rail.h"
#include "base/clock.h"
#include "transport/weights/lanes/support.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>

/* 4.096 µs · 2^16 = 0.27 s, tried 7 times: a dead peer is noticed in about 2 s. Not 7 retries, which soft-RoCE takes for "for ever". The push has a deadline of its own. */
#define ACK_TIMEOUT 16
#define RETRIES 6
#define RNR_RETRIES 7 /* for ever; receives are posted ahead, so it is for adapters that refill late */
#define RNR_TIMER 12  /* 0.64 ms */
#define FLUSH_NS (250 * CORRAL_NS_PER_MS)

static enum corral_status set_nonblocking(int fd, const struct corral_rdma_rail *rail,
                                          struct corral_error *err)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
        return corral_fail_sys(err, errno, "rdma %s: making an event descriptor non-blocking",
                               rail->port.name);
    }
    return CORRAL_OK;
}

static enum corral_status register_staging(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                           const struct corral_rdma_rail_needs *needs,
                                           struct corral_error *err)
{
    unsigned access = IBV_ACCESS_LOCAL_WRITE | (needs->remote_write ? IBV_ACCESS_REMOTE_WRITE : 0u);
    /* Relaxed ordering lets PCI writes pass each other. Data is looked at only after the completion of its immediate, before which all writes of that queue pair are visible. */
    if (verbs->reg_mr_iova2 != NULL) {
        rail->mr = verbs->reg_mr_iova2(rail->pd, needs->staging, needs->staging_bytes,
                                       (uintptr_t)needs->staging, access | IBV_ACCESS_RELAXED_ORDERING);
    }
    if (rail->mr == NULL) {
        rail->mr = verbs->reg_mr(rail->pd, needs->staging, needs->staging_bytes, (int)access);
    }
    if (rail->mr != NULL) {
        return CORRAL_OK;
    }
    int sys = errno;
    struct rlimit locked = {.rlim_cur = RLIM_INFINITY};
    getrlimit(RLIMIT_MEMLOCK, &locked);
    return corral_fail_sys(
        err, sys,
        "rdma %s: registering %llu bytes of staging (locked memory is limited to %llu bytes: ulimit -l)",
        rail->port.name, (unsigned long long)needs->staging_bytes, (unsigned long long)locked.rlim_cur);
}

static enum corral_status create_queue_pair(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                            const struct corral_rdma_rail_needs *needs,
                                            struct corral_error *err)
{
    struct ibv_qp_init_attr init = {
        .send_cq = rail->cq,
        .recv_cq = rail->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = needs->send_depth + 1, /* the mark */
                .max_recv_wr = needs->receive_depth,
                .max_send_sge = 1,
                .max_recv_sge = 1},
    };
    struct ibv_qp *qp = verbs->create_qp(rail->pd, &init);
    if (qp == NULL) {
        return corral_fail_sys(err, errno, "rdma %s: creating queue pair %u of %u work requests",
                               rail->port.name, rail->qps, needs->send_depth);
    }
    uint32_t random;
    corral_random_bytes(&random, sizeof(random));
    rail->psn[rail->qps] = random & 0xffffff;
    rail->qp[rail->qps++] = qp;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .port_num = rail->port.number,
        /* On both sides, for probes of no bytes. What can be written to is decided by the registration. */
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE,
    };
    int rc =
        verbs->modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (rc != 0) {
        return corral_fail_sys(err, rc, "rdma %s: queue pair 0x%x to INIT", rail->port.name, qp->qp_num);
    }
    return CORRAL_OK;
}

static enum corral_status open_parts(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                     const struct corral_rdma_rail_needs *needs, struct corral_error *err)
{
    const char *name = rail->port.name;
    /* All requests can end in a completion when a queue pair fails, the unsignalled ones too. */
    uint64_t completions = (uint64_t)needs->queue_pairs * (needs->send_depth + 1 + needs->receive_depth);
    uint32_t deepest = CORRAL_MAX(needs->send_depth + 1, needs->receive_depth);
    if (deepest > (uint32_t)rail->port.queue_depth_max ||
        completions > (uint64_t)rail->port.completions_max) {
        return corral_fail(err, CORRAL_UNSUPPORTED,
                           "rdma %s has queues of %d and %d entries, %u and %llu are needed: use fewer "
                           "streams or a smaller window",
                           name, rail->port.queue_depth_max, rail->port.completions_max, deepest,
                           (unsigned long long)completions);
    }
    CORRAL_TRY(set_nonblocking(rail->port.context->async_fd, rail, err));
    if ((rail->pd = verbs->alloc_pd(rail->port.context)) == NULL) {
        return corral_fail_sys(err, errno, "rdma %s: protection domain", name);
    }
    CORRAL_TRY(register_staging(rail, verbs, needs, err));
    if ((rail->channel = verbs->create_comp_channel(rail->port.context)) == NULL) {
        return corral_fail_sys(err, errno, "rdma %s: completion channel", name);
    }
    CORRAL_TRY(set_nonblocking(rail->channel->fd, rail, err));
    if ((rail->cq = verbs->create_cq(rail->port.context, (int)completions, NULL, rail->channel, 0)) == NULL) {
        return corral_fail_sys(err, errno, "rdma %s: completion queue of %llu entries", name,
                               (unsigned long long)completions);
    }
    while (rail->qps < needs->queue_pairs) {
        CORRAL_TRY(create_queue_pair(rail, verbs, needs, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_rdma_rail_open(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                         struct corral_rdma_port *port,
                                         const struct corral_rdma_rail_needs *needs, struct corral_error *err)
{
    memset(rail, 0, sizeof(*rail));
    rail->port = *port;
    port->context = NULL;
    enum corral_status status = open_parts(rail, verbs, needs, err);
    if (status != CORRAL_OK) {
        corral_rdma_rail_close(rail, verbs);
    }
    return status;
}

/* Takes completions; false while some of the requests of the queue pairs are out. */
static bool flushed(struct corral_rdma_rail *rail, uint32_t marks[static 1])
{
    struct ibv_wc wc[16];
    int n;
    while ((n = ibv_poll_cq(rail->cq, CORRAL_COUNT_OF(wc), wc)) > 0) {
        for (int i = 0; i < n; i++) {
            uint32_t qp = (uint32_t)(wc[i].wr_id % CORRAL_RDMA_STREAMS_MAX);
            if ((wc[i].wr_id & CORRAL_RDMA_RECEIVE) != 0) {
                rail->receives[qp]--;
            } else if ((wc[i].wr_id & CORRAL_RDMA_MARK) != 0) {
                *marks &= ~(1u << qp);
            }
        }
    }
    uint32_t out = *marks;
    for (uint32_t i = 0; i < rail->qps; i++) {
        out += rail->receives[i];
    }
    return out == 0 || n < 0;
}

/* In ERR a queue pair refuses what comes in, and gives its requests back, the oldest first; until then the adapter may still be reading for one that it had begun. The mark is posted last
 * and so comes last. */
static void flush(struct corral_rdma_rail *rail, const struct corral_verbs *verbs)
{
    uint32_t marks = 0;
    for (uint32_t i = 0; i < rail->qps; i++) {
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
        struct ibv_send_wr *bad,
            mark = {.wr_id = CORRAL_RDMA_MARK | i, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};
        if (verbs->modify_qp(rail->qp[i], &attr, IBV_QP_STATE) != 0) {
            rail->receives[i] = 0; /* then nothing comes back, and destroying is all that is left */
        } else if ((rail->connected >> i & 1) != 0 && ibv_post_send(rail->qp[i], &mark, &bad) == 0) {
            marks |= 1u << i;
        }
    }
    uint64_t deadline = corral_lane_deadline(FLUSH_NS);
    while (!flushed(rail, &marks)) {
        corral_rdma_rail_drain(rail, verbs);
        if (corral_rdma_rail_arm(rail, NULL) != CORRAL_OK || flushed(rail, &marks) ||
            !corral_lane_poll(rail->channel->fd, POLLIN, deadline)) {
            return;
        }
    }
}

void corral_rdma_rail_trim(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                           uint32_t queue_pairs)
{
    while (rail->qps > queue_pairs) {
        verbs->destroy_qp(rail->qp[--rail->qps]);
    }
}

void corral_rdma_rail_close(struct corral_rdma_rail *rail, const struct corral_verbs *verbs)
{
    if (rail->qps > 0) {
        flush(rail, verbs);
    }
    corral_rdma_rail_trim(rail, verbs, 0);
    if (rail->cq != NULL) {
        corral_rdma_rail_drain(rail, verbs); /* a queue with unacknowledged events cannot be destroyed */
        verbs->destroy_cq(rail->cq);
    }
    if (rail->channel != NULL) {
        verbs->destroy_comp_channel(rail->channel);
    }
    if (rail->mr != NULL) {
        verbs->dereg_mr(rail->mr);
    }
    if (rail->pd != NULL) {
        verbs->dealloc_pd(rail->pd);
    }
    corral_rdma_port_close(verbs, &rail->port);
    memset(rail, 0, sizeof(*rail));
}

void corral_rdma_rail_describe(const struct corral_rdma_rail *rail, struct corral_rdma_rail_address *out)
{
    memset(out, 0, sizeof(*out));
    out->ethernet = rail->port.ethernet;
    out->mtu = rail->port.mtu;
    out->gid_type = (uint8_t)rail->port.gid.type;
    out->lid = rail->port.lid;
    memcpy(out->gid, rail->port.gid.raw, sizeof(out->gid));
    out->rkey = rail->mr->rkey;
    out->staging = (uintptr_t)rail->mr->addr;
    for (uint32_t i = 0; i < rail->qps; i++) {
        out->qpn[i] = rail->qp[i]->qp_num;
        out->psn[i] = rail->psn[i];
    }
}

static enum corral_status connect_queue_pair(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                             const struct corral_rdma_rail_address *peer, uint32_t i,
                                             struct corral_error *err)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = (enum ibv_mtu)CORRAL_MIN(rail->port.mtu, peer->mtu),
        .dest_qp_num = peer->qpn[i],
        .rq_psn = peer->psn[i],
        .min_rnr_timer = RNR_TIMER,
        .ah_attr = {.port_num = rail->port.number, .dlid = peer->lid},
    };
    if (rail->port.ethernet) {
        attr.ah_attr.is_global = 1;
        attr.ah_attr.grh.hop_limit = 255;
        attr.ah_attr.grh.sgid_index = (uint8_t)rail->port.gid.index;
        memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, 16);
    }
    int rc = verbs->modify_qp(rail->qp[i], &attr,
                              IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                  IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (rc != 0) {
        return corral_fail_sys(
            err, rc,
            "rdma %s: connecting queue pair 0x%x (to RTR; is the peer's address reachable from this port?)",
            rail->port.name, rail->qp[i]->qp_num);
    }
    attr = (struct ibv_qp_attr){
        .qp_state = IBV_QPS_RTS,
        .sq_psn = rail->psn[i],
        .timeout = ACK_TIMEOUT,
        .retry_cnt = RETRIES,
        .rnr_retry = RNR_RETRIES,
    };
    rc = verbs->modify_qp(rail->qp[i], &attr,
                          IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                              IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC);
    if (rc != 0) {
        return corral_fail_sys(err, rc, "rdma %s: queue pair 0x%x to RTS", rail->port.name,
                               rail->qp[i]->qp_num);
    }
    rail->connected |= 1u << i;
    return CORRAL_OK;
}

enum corral_status corral_rdma_rail_connect(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                            const struct corral_rdma_rail_address *peer,
                                            struct corral_error *err)
{
    if (rail->port.ethernet != peer->ethernet) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "rdma %s is %s, the peer's port is not", rail->port.name,
                           rail->port.ethernet ? "RoCE" : "InfiniBand");
    }
    for (uint32_t i = 0; i < rail->qps; i++) {
        CORRAL_TRY(connect_queue_pair(rail, verbs, peer, i, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_rdma_rail_receive(struct corral_rdma_rail *rail, uint32_t qp, uint32_t count,
                                            struct corral_error *err)
{
    struct ibv_recv_wr wr = {.wr_id = CORRAL_RDMA_RECEIVE | qp}, *bad;
    for (uint32_t i = 0; i < count; i++) {
        int rc = ibv_post_recv(rail->qp[qp], &wr, &bad);
        if (rc != 0) {
            return corral_fail_sys(err, rc, "rdma %s: posting a receive on queue pair 0x%x", rail->port.name,
                                   rail->qp[qp]->qp_num);
        }
        rail->receives[qp]++;
    }
    return CORRAL_OK;
}

void corral_rdma_rail_drain(struct corral_rdma_rail *rail, const struct corral_verbs *verbs)
{
    struct ibv_cq *cq;
    void *context;
    while (verbs->get_cq_event(rail->channel, &cq, &context) == 0) {
        verbs->ack_cq_events(cq, 1);
        rail->armed = false;
    }
}

enum corral_status corral_rdma_rail_arm(struct corral_rdma_rail *rail, struct corral_error *err)
{
    if (rail->armed) {
        return CORRAL_OK;
    }
    int rc = ibv_req_notify_cq(rail->cq, 0);
    if (rc != 0) {
        return corral_fail_sys(err, rc, "rdma %s: asking for completion events", rail->port.name);
    }
    rail->armed = true;
    return CORRAL_OK;
}

/* Events that do not mean that this rail is broken. */
static bool harmless(const struct corral_rdma_rail *rail, const struct ibv_async_event *event)
{
    switch (event->event_type) {
    case IBV_EVENT_PORT_ERR:
        return event->element.port_num != rail->port.number;
    case IBV_EVENT_DEVICE_FATAL:
    case IBV_EVENT_CQ_ERR:
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
        return false;
    default:
        return true; /* a changed GID table, a port that came up, the last request of a queue pair */
    }
}

enum corral_status corral_rdma_rail_events(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                           struct corral_error *err)
{
    struct ibv_async_event event;
    enum corral_status status = CORRAL_OK;
    while (verbs->get_async_event(rail->port.context, &event) == 0) {
        if (!harmless(rail, &event) && status == CORRAL_OK) {
            status = corral_fail(err, CORRAL_IO, "rdma %s: %s", rail->port.name,
                                 verbs->event_type_str(event.event_type));
        }
        verbs->ack_async_event(&event);
    }
    return status;
}
