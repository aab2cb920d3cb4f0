/* Queue pairs: their states and what is posted to them. */
#include "state.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static uint32_t random24(void)
{
    uint32_t v = 0;
    if (getrandom(&v, sizeof(v), 0) != (ssize_t)sizeof(v)) {
        abort();
    }
    return v & 0xffffff;
}

/* A number that nobody on this machine has. */
static int bind_socket(struct fake_qp *qp)
{
    qp->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    for (int i = 0; qp->fd >= 0 && i < 100; i++) {
        struct sockaddr_un un;
        qp->base.qp_num = random24() | 2;
        int bytes = fake_qp_address(qp->base.qp_num, &un);
        if (bind(qp->fd, (struct sockaddr *)&un, (socklen_t)bytes) == 0) {
            return 0;
        }
    }
    return -1;
}

FAKE_EXPORT struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *init)
{
    struct fake_qp *qp = calloc(1, sizeof(*qp));
    if (qp == NULL || init->qp_type != IBV_QPT_RC || init->srq != NULL || init->cap.max_send_wr < 1 ||
        init->cap.max_recv_wr < 1 || init->cap.max_send_wr > 16384 || init->cap.max_recv_wr > 16384 ||
        init->cap.max_send_sge > FAKE_SGE_MAX || init->cap.max_recv_sge > FAKE_SGE_MAX ||
        init->cap.max_inline_data > 0) {
        free(qp);
        errno = EINVAL;
        return NULL;
    }
    qp->sq = calloc(init->cap.max_send_wr, sizeof(*qp->sq));
    qp->rq = calloc(init->cap.max_recv_wr, sizeof(*qp->rq));
    if (qp->sq == NULL || qp->rq == NULL || bind_socket(qp) != 0) {
        abort();
    }
    qp->init = *init;
    qp->base.context = pd->context;
    qp->base.pd = pd;
    qp->base.send_cq = init->send_cq;
    qp->base.recv_cq = init->recv_cq;
    qp->base.state = IBV_QPS_RESET;
    qp->base.qp_type = IBV_QPT_RC;
    pthread_mutex_lock(&fake_nic.lock);
    qp->next = fake_nic.qps;
    fake_nic.qps = qp;
    fake_nic.live++;
    fake_nic_wake();
    pthread_mutex_unlock(&fake_nic.lock);
    return &qp->base;
}

/* Of one queue pair, that nobody has polled. */
static bool completions_left(const struct fake_cq *cq, uint32_t qpn)
{
    bool left = false;
    for (uint64_t i = cq->head; i < cq->tail; i++) {
        left |= cq->ring[i % (uint64_t)cq->base.cqe].wc.qp_num == qpn;
    }
    return left;
}

/* Hardware destroys a queue pair under requests, too; whether it is done with their memory by then is another matter. */
FAKE_EXPORT int ibv_destroy_qp(struct ibv_qp *base)
{
    struct fake_qp *qp = (struct fake_qp *)base, **at = &fake_nic.qps;
    pthread_mutex_lock(&fake_nic.lock);
    if (qp->sq_head < qp->sq_tail || qp->rq_head < qp->rq_tail ||
        completions_left((struct fake_cq *)base->send_cq, base->qp_num) ||
        completions_left((struct fake_cq *)base->recv_cq, base->qp_num)) {
        pthread_mutex_unlock(&fake_nic.lock);
        return EBUSY;
    }
    while (*at != qp) {
        at = &(*at)->next;
    }
    *at = qp->next;
    fake_nic.live--;
    if (fake_nic.closing_count == fake_nic.closing_room) {
        fake_nic.closing_room += 64;
        fake_nic.closing = realloc(fake_nic.closing, fake_nic.closing_room * sizeof(int));
        if (fake_nic.closing == NULL) {
            abort();
        }
    }
    fake_nic.closing[fake_nic.closing_count++] = qp->fd;
    fake_nic_wake();
    pthread_mutex_unlock(&fake_nic.lock);
    free(qp->sq);
    free(qp->rq);
    free(qp);
    return 0;
}

static int to_rtr(struct fake_qp *qp, const struct ibv_qp_attr *attr)
{
    const struct fake_device *d = (const struct fake_device *)qp->base.context->device;
    union ibv_gid none;
    memset(&none, 0, sizeof(none));
    if (attr->ah_attr.port_num != 1 || attr->path_mtu < IBV_MTU_256 || attr->path_mtu > IBV_MTU_4096 ||
        attr->rq_psn >> 24 != 0) {
        return EINVAL;
    }
    if (d->kind == FAKE_IB) {
        /* By LID; it takes the place of the GID in packets. */
        memset(&qp->sgid, 0, sizeof(qp->sgid));
        memset(&qp->dgid, 0, sizeof(qp->dgid));
        qp->sgid.raw[0] = (uint8_t)(d->number + 1);
        qp->dgid.raw[0] = (uint8_t)attr->ah_attr.dlid;
    } else {
        if (!attr->ah_attr.is_global || attr->ah_attr.grh.hop_limit < 2 ||
            fake_gid(d, attr->ah_attr.grh.sgid_index, &qp->sgid) != 0 ||
            memcmp(&qp->sgid, &none, sizeof(none)) == 0) {
            return EINVAL;
        }
        qp->dgid = attr->ah_attr.grh.dgid;
    }
    qp->peer = attr->dest_qp_num;
    qp->expected_psn = attr->rq_psn;
    return 0;
}

static int to_rts(struct fake_qp *qp, const struct ibv_qp_attr *attr)
{
    if (attr->sq_psn >> 24 != 0 || attr->timeout > 31 || attr->retry_cnt > 7 || attr->rnr_retry > 7) {
        return EINVAL;
    }
    qp->sq_psn = qp->acked_psn = attr->sq_psn;
    qp->retries = qp->retry_cnt = attr->retry_cnt;
    qp->rnr_retries = qp->rnr_retry = attr->rnr_retry;
    qp->ack_timeout_ns = fake_nic.faults.ack_us != 0 ? fake_nic.faults.ack_us * 1000
                                                     : (uint64_t)(4096.0 * (double)(1u << attr->timeout));
    return 0;
}

static int change_state(struct fake_qp *qp, const struct ibv_qp_attr *attr, int mask)
{
    enum ibv_qp_state from = qp->base.state, to = attr->qp_state;
    if (to == IBV_QPS_ERR && from != IBV_QPS_RESET) {
        fake_qp_fail(qp);
        return 0;
    }
    if (from == IBV_QPS_RESET && to == IBV_QPS_INIT &&
        mask == (IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) &&
        attr->port_num == 1) {
        qp->access = attr->qp_access_flags;
    } else if (from == IBV_QPS_INIT && to == IBV_QPS_RTR &&
               mask == (IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                        IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)) {
        if (to_rtr(qp, attr) != 0) {
            return EINVAL;
        }
    } else if (from == IBV_QPS_RTR && to == IBV_QPS_RTS &&
               mask == (IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                        IBV_QP_MAX_QP_RD_ATOMIC)) {
        if (to_rts(qp, attr) != 0) {
            return EINVAL;
        }
    } else {
        return EINVAL;
    }
    qp->base.state = to;
    return 0;
}

FAKE_EXPORT int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *attr, int mask)
{
    pthread_mutex_lock(&fake_nic.lock);
    int rc = (mask & IBV_QP_STATE) != 0 ? change_state((struct fake_qp *)base, attr, mask) : EINVAL;
    fake_nic_wake();
    pthread_mutex_unlock(&fake_nic.lock);
    return rc;
}

static int post_one(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
    bool known = wr->opcode == IBV_WR_SEND || wr->opcode == IBV_WR_SEND_WITH_IMM ||
                 wr->opcode == IBV_WR_RDMA_WRITE || wr->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    bool inlined = (wr->send_flags & IBV_SEND_INLINE) != 0;
    if (!known || inlined || wr->num_sge < 0 || (uint32_t)wr->num_sge > qp->init.cap.max_send_sge ||
        (qp->base.state != IBV_QPS_RTS && qp->base.state != IBV_QPS_ERR)) {
        return EINVAL;
    }
    if (qp->sq_tail - qp->sq_head == qp->init.cap.max_send_wr) {
        return ENOMEM;
    }
    struct fake_wqe *w = &qp->sq[qp->sq_tail++ % qp->init.cap.max_send_wr];
    w->wr = *wr;
    w->length = 0;
    for (int i = 0; i < wr->num_sge; i++) {
        w->sge[i] = wr->sg_list[i];
        w->length += wr->sg_list[i].length;
    }
    w->packets = w->length == 0 ? 1 : (w->length + FAKE_PAYLOAD_MAX - 1) / FAKE_PAYLOAD_MAX;
    w->psn = qp->sq_psn;
    qp->sq_psn = (qp->sq_psn + w->packets) & 0xffffff;
    return 0;
}

int fake_post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct fake_qp *qp = (struct fake_qp *)base;
    int rc = 0;
    pthread_mutex_lock(&fake_nic.lock);
    bool idle = qp->sq_head == qp->sq_tail;
    for (; wr != NULL && (rc = post_one(qp, wr)) == 0; wr = wr->next) {
    }
    *bad = wr;
    if (idle && fake_nic.faults.hold_odd_us != 0 && (base->qp_num & 1) != 0) {
        qp->hold_until_ns = fake_now_ns() + fake_nic.faults.hold_odd_us * 1000;
    }
    if (qp->base.state == IBV_QPS_ERR) {
        fake_qp_fail(qp);
    }
    fake_nic_wake();
    pthread_mutex_unlock(&fake_nic.lock);
    return rc;
}

int fake_post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    struct fake_qp *qp = (struct fake_qp *)base;
    int rc = 0;
    pthread_mutex_lock(&fake_nic.lock);
    for (; wr != NULL && rc == 0; wr = wr->next) {
        *bad = wr;
        if (qp->base.state == IBV_QPS_RESET || wr->num_sge < 0 || wr->num_sge > FAKE_SGE_MAX) {
            rc = EINVAL;
        } else if (qp->rq_tail - qp->rq_head == qp->init.cap.max_recv_wr) {
            rc = ENOMEM;
        } else {
            struct fake_rqe *r = &qp->rq[qp->rq_tail++ % qp->init.cap.max_recv_wr];
            r->wr_id = wr->wr_id;
            r->sges = wr->num_sge;
            for (int i = 0; i < wr->num_sge; i++) {
                r->sge[i] = wr->sg_list[i];
            }
        }
    }
    if (qp->base.state == IBV_QPS_ERR) {
        fake_qp_fail(qp);
    }
    pthread_mutex_unlock(&fake_nic.lock);
    return rc;
}
