/* The adapter: work requests become packets, and packets become memory and completions. */
#include "state.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x52564b46u
#define RNR_WAIT_NS 500000u

struct fake_nic fake_nic = {.lock = PTHREAD_MUTEX_INITIALIZER, .kick = -1};

uint64_t fake_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void fake_nic_wake(void)
{
    uint64_t one = 1;
    if (fake_nic.kick >= 0 && write(fake_nic.kick, &one, sizeof(one)) < 0) {
        return; /* full: it is awake */
    }
}

/* The number of a queue pair is the name of its socket, unique in the network namespace. */
int fake_qp_address(uint32_t qpn, void *address)
{
    struct sockaddr_un *un = address;
    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    int n = snprintf(un->sun_path + 1, sizeof(un->sun_path) - 1, "fakeverbs-%06x", qpn);
    return (int)sizeof(un->sun_family) + 1 + n;
}

static bool fault_strikes(struct fake_faults *f, bool request)
{
    f->packets++;
    f->requests += request;
    enum ibv_event_type type = IBV_EVENT_PORT_ERR;
    bool strike = f->port_err != 0 && f->packets > f->port_err;
    if (f->device_fatal != 0 && f->packets > f->device_fatal) {
        strike = true;
        type = IBV_EVENT_DEVICE_FATAL;
    }
    if (strike && !f->dead) {
        f->dead = true;
        int port = 1;
        for (struct fake_context *c = fake_nic.contexts; c != NULL; c = c->next) {
            fake_event(c, type, &port);
        }
    }
    return f->dead || (request && f->requests == f->drop) ||
           (f->drop_after != 0 && f->packets > f->drop_after);
}

static void connect_peer(struct fake_qp *qp)
{
    struct sockaddr_un un;
    int bytes = fake_qp_address(qp->peer, &un);
    qp->connected = connect(qp->fd, (struct sockaddr *)&un, (socklen_t)bytes) == 0;
}

/* False: not now. A packet that cannot be delivered counts as sent: the network does not tell. */
static bool send_packet(struct fake_qp *qp, const struct fake_packet *p, const struct iovec *payload,
                        int parts)
{
    struct iovec iov[1 + FAKE_SGE_MAX] = {{.iov_len = sizeof(*p)}};
    memcpy(&iov[0].iov_base, &p, sizeof(p));
    for (int i = 0; i < parts; i++) {
        iov[1 + i] = payload[i];
    }
    if (!qp->connected) {
        connect_peer(qp);
    }
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)(1 + parts)};
    if (qp->connected && !fake_nic.faults.dead) {
        /* Whether it fits is asked before the packet is counted. */
        struct pollfd fd = {.fd = qp->fd, .events = POLLOUT};
        if (poll(&fd, 1, 0) <= 0 || (fd.revents & POLLOUT) == 0) {
            qp->blocked = true;
            return false;
        }
    }
    if (fault_strikes(&fake_nic.faults, p->type == FAKE_DATA) || !qp->connected) {
        return true;
    }
    if (sendmsg(qp->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno == EAGAIN || errno == ENOBUFS) {
            qp->blocked = true;
            return false;
        }
        qp->connected = false;
    }
    return true;
}

static void complete_send(struct fake_qp *qp, const struct fake_wqe *w, enum ibv_wc_status status)
{
    bool signalled = (w->wr.send_flags & IBV_SEND_SIGNALED) != 0 || qp->init.sq_sig_all;
    if (status == IBV_WC_SUCCESS && !signalled) {
        return;
    }
    bool write = w->wr.opcode == IBV_WR_RDMA_WRITE || w->wr.opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    struct ibv_wc wc = {.wr_id = w->wr.wr_id,
                        .status = status,
                        .opcode = write ? IBV_WC_RDMA_WRITE : IBV_WC_SEND,
                        .byte_len = w->length,
                        .qp_num = qp->base.qp_num};
    fake_cq_add(qp->base.send_cq, &wc);
}

/* The oldest request ends in an error, and with it the queue pair. */
static void fail_oldest(struct fake_qp *qp, enum ibv_wc_status status)
{
    if (qp->sq_head < qp->sq_tail) {
        struct fake_wqe *w = &qp->sq[qp->sq_head++ % qp->init.cap.max_send_wr];
        complete_send(qp, w, status);
    }
    fake_qp_fail(qp);
}

void fake_qp_fail(struct fake_qp *qp)
{
    if (qp->base.state == IBV_QPS_RESET) {
        return;
    }
    qp->base.state = IBV_QPS_ERR;
    qp->ack_deadline_ns = 0;
    while (qp->sq_head < qp->sq_tail) {
        complete_send(qp, &qp->sq[qp->sq_head++ % qp->init.cap.max_send_wr], IBV_WC_WR_FLUSH_ERR);
    }
    qp->sq_at = qp->sq_head;
    while (qp->rq_head < qp->rq_tail) {
        struct fake_rqe *r = &qp->rq[qp->rq_head++ % qp->init.cap.max_recv_wr];
        struct ibv_wc wc = {.wr_id = r->wr_id,
                            .status = IBV_WC_WR_FLUSH_ERR,
                            .opcode = IBV_WC_RECV,
                            .qp_num = qp->base.qp_num};
        fake_cq_add(qp->base.recv_cq, &wc);
    }
}

/* Where bytes [offset, offset + bytes) of a request lie. */
static int gather_parts(const struct fake_wqe *w, uint32_t offset, uint32_t bytes, struct iovec *out)
{
    int n = 0;
    for (int i = 0; i < w->wr.num_sge && bytes > 0; i++) {
        if (offset >= w->sge[i].length) {
            offset -= w->sge[i].length;
            continue;
        }
        uint32_t part = w->sge[i].length - offset < bytes ? w->sge[i].length - offset : bytes;
        uintptr_t address = (uintptr_t)w->sge[i].addr + offset;
        out[n++] = (struct iovec){(void *)address, part};
        bytes -= part;
        offset = 0;
    }
    return n;
}

static bool local_access(const struct fake_qp *qp, const struct fake_wqe *w)
{
    for (int i = 0; i < w->wr.num_sge; i++) {
        if (!fake_access(qp->base.pd, w->sge[i].lkey, false, 0, w->sge[i].addr, w->sge[i].length)) {
            return false;
        }
    }
    return true;
}

static bool send_next(struct fake_qp *qp, uint64_t now)
{
    struct fake_wqe *w = &qp->sq[qp->sq_at % qp->init.cap.max_send_wr];
    if (qp->sq_packet == 0 && !local_access(qp, w)) {
        while (qp->sq_head < qp->sq_at) { /* before it, and still under way */
            complete_send(qp, &qp->sq[qp->sq_head++ % qp->init.cap.max_send_wr], IBV_WC_WR_FLUSH_ERR);
        }
        fail_oldest(qp, IBV_WC_LOC_PROT_ERR);
        return false;
    }
    uint32_t offset = qp->sq_packet * FAKE_PAYLOAD_MAX;
    uint32_t bytes = w->length - offset < FAKE_PAYLOAD_MAX ? w->length - offset : FAKE_PAYLOAD_MAX;
    struct fake_packet p = {
        .magic = MAGIC,
        .destination = qp->peer,
        .source = qp->base.qp_num,
        .psn = (w->psn + qp->sq_packet) & 0xffffff,
        .type = FAKE_DATA,
        .opcode = (uint8_t)w->wr.opcode,
        .first = qp->sq_packet == 0,
        .last = qp->sq_packet + 1 == w->packets,
        .rkey = w->wr.wr.rdma.rkey,
        .offset = offset,
        .bytes = bytes,
        .length = w->length,
        .immediate = w->wr.imm_data,
        .address = w->wr.wr.rdma.remote_addr,
        .gid = qp->dgid,
    };
    struct iovec parts[FAKE_SGE_MAX];
    if (!send_packet(qp, &p, parts, gather_parts(w, offset, bytes, parts))) {
        return false;
    }
    fake_nic.faults.sent += bytes;
    if (fake_nic.faults.die_sent != 0 && fake_nic.faults.sent >= fake_nic.faults.die_sent) {
        raise(SIGKILL);
    }
    if (qp->ack_deadline_ns == 0) {
        qp->ack_deadline_ns = now + qp->ack_timeout_ns;
    }
    if (++qp->sq_packet == w->packets) {
        qp->sq_packet = 0;
        qp->sq_at++;
    }
    return true;
}

static void send_answer(struct fake_qp *qp)
{
    struct fake_packet p = {
        .magic = MAGIC,
        .destination = qp->peer,
        .source = qp->base.qp_num,
        .psn = (qp->expected_psn - (qp->answer == FAKE_ACK ? 1u : 0u)) & 0xffffff,
        .type = qp->answer,
        .gid = qp->dgid,
    };
    if (send_packet(qp, &p, NULL, 0)) {
        qp->answer_due = false;
    }
}

static void rewind_to_head(struct fake_qp *qp)
{
    fake_nic.resent += (unsigned)(qp->sq_at - qp->sq_head) + (qp->sq_packet > 0);
    qp->sq_at = qp->sq_head;
    qp->sq_packet = 0;
    qp->ack_deadline_ns = 0;
}

/* Returns when it wants to be called again, 0: on events. */
uint64_t fake_transmit(struct fake_qp *qp, uint64_t now)
{
    qp->blocked = false;
    if (qp->answer_due && qp->base.state != IBV_QPS_RESET) {
        send_answer(qp);
    }
    if (qp->base.state != IBV_QPS_RTS) {
        return 0;
    }
    if (qp->ack_deadline_ns != 0 && now >= qp->ack_deadline_ns) {
        if (qp->retries == 0) {
            fail_oldest(qp, IBV_WC_RETRY_EXC_ERR);
            return 0;
        }
        qp->retries -= qp->retries != 7; /* soft-RoCE takes 7 for "for ever" */
        rewind_to_head(qp);
    }
    if (now < qp->hold_until_ns) {
        return qp->hold_until_ns;
    }
    while (qp->base.state == IBV_QPS_RTS && !qp->blocked && qp->sq_at < qp->sq_tail && send_next(qp, now)) {
    }
    return qp->ack_deadline_ns;
}

/* ---- what comes in ---- */

static bool before(uint32_t psn, uint32_t limit) /* in the circle of 24 bits */
{
    return ((psn - limit) & 0xffffff) >= 0x800000;
}

static void acknowledged(struct fake_qp *qp, uint32_t next, uint64_t now)
{
    bool progress = before(qp->acked_psn, next);
    qp->acked_psn = progress ? next : qp->acked_psn;
    while (qp->sq_head < qp->sq_tail) {
        struct fake_wqe *w = &qp->sq[qp->sq_head % qp->init.cap.max_send_wr];
        bool sent = qp->sq_head < qp->sq_at;
        if (!sent || before(next, (w->psn + w->packets) & 0xffffff)) {
            break;
        }
        qp->sq_head++;
        complete_send(qp, w, IBV_WC_SUCCESS);
        if (qp->base.state == IBV_QPS_ERR) {
            return; /* a fault of the completion */
        }
    }
    bool waiting = qp->sq_head < qp->sq_at || qp->sq_packet > 0;
    if (progress) {
        qp->retries = qp->retry_cnt;
        qp->rnr_retries = qp->rnr_retry;
    }
    if (progress || !waiting) {
        qp->ack_deadline_ns = waiting ? now + qp->ack_timeout_ns : 0;
    }
}

static void not_ready(struct fake_qp *qp, uint64_t now)
{
    if (qp->rnr_retry != 7) {
        if (qp->rnr_retries == 0) {
            fail_oldest(qp, IBV_WC_RNR_RETRY_EXC_ERR);
            return;
        }
        qp->rnr_retries--;
    }
    rewind_to_head(qp);
    qp->hold_until_ns = now + RNR_WAIT_NS;
}

static void answer(struct fake_qp *qp, enum fake_packet_type type)
{
    qp->answer = (uint8_t)type;
    qp->answer_due = true;
}

static void refuse(struct fake_qp *qp)
{
    answer(qp, FAKE_ACCESS_ERROR);
    send_answer(qp);
    fake_event((struct fake_context *)qp->base.context, IBV_EVENT_QP_ACCESS_ERR, qp);
    fake_qp_fail(qp);
}

static void store(const struct fake_packet *p, uint64_t address, const uint8_t *payload)
{
    uint8_t *to = (uint8_t *)(uintptr_t)address;
    memcpy(to, payload, p->bytes);
    struct fake_faults *f = &fake_nic.faults;
    if (p->bytes > 0 && ++f->payloads == f->corrupt) {
        to[p->bytes / 2] ^= 0x10;
    }
    f->received += p->bytes;
    if (f->die_received != 0 && f->received >= f->die_received) {
        raise(SIGKILL);
    }
}

/* A message into the memory of the receive that it consumes. */
static bool store_send(struct fake_qp *qp, const struct fake_packet *p, const uint8_t *payload)
{
    struct fake_rqe *r = &qp->rq[qp->rq_head % qp->init.cap.max_recv_wr];
    uint32_t skip = p->offset, left = p->bytes;
    for (int i = 0; i < r->sges && left > 0; i++) {
        if (skip >= r->sge[i].length) {
            skip -= r->sge[i].length;
            continue;
        }
        uint32_t n = r->sge[i].length - skip < left ? r->sge[i].length - skip : left;
        if (!fake_access(qp->base.pd, r->sge[i].lkey, false, IBV_ACCESS_LOCAL_WRITE, r->sge[i].addr + skip,
                         n)) {
            return false;
        }
        memcpy((void *)(uintptr_t)(r->sge[i].addr + skip), payload, n);
        payload += n;
        left -= n;
        skip = 0;
    }
    return left == 0;
}

static void execute(struct fake_qp *qp, const struct fake_packet *p, const uint8_t *payload)
{
    bool write = p->opcode == IBV_WR_RDMA_WRITE || p->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    bool with_immediate = p->opcode == IBV_WR_RDMA_WRITE_WITH_IMM || p->opcode == IBV_WR_SEND_WITH_IMM;
    bool consumes = !write || (with_immediate && p->last);
    if (consumes && p->last && fake_nic.faults.rnr > 0) {
        fake_nic.faults.rnr--;
        answer(qp, FAKE_RNR);
        return;
    }
    if (consumes && qp->rq_head == qp->rq_tail) {
        answer(qp, FAKE_RNR);
        return;
    }
    if (write && (qp->access & IBV_ACCESS_REMOTE_WRITE) == 0) {
        refuse(qp);
        return;
    }
    if (write && p->length > 0) {
        if (!fake_access(qp->base.pd, p->rkey, true, IBV_ACCESS_REMOTE_WRITE, p->address, p->length)) {
            refuse(qp);
            return;
        }
        store(p, p->address + p->offset, payload);
    }
    if (!write && !store_send(qp, p, payload)) {
        refuse(qp);
        return;
    }
    qp->expected_psn = (qp->expected_psn + 1) & 0xffffff;
    answer(qp, FAKE_ACK); /* one for all packets of a round */
    if (consumes && p->last) {
        struct fake_rqe *r = &qp->rq[qp->rq_head++ % qp->init.cap.max_recv_wr];
        struct ibv_wc wc = {.wr_id = r->wr_id,
                            .status = IBV_WC_SUCCESS,
                            .opcode = write ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV,
                            .byte_len = p->length,
                            .imm_data = p->immediate,
                            .wc_flags = with_immediate ? IBV_WC_WITH_IMM : 0,
                            .qp_num = qp->base.qp_num};
        fake_cq_add(qp->base.recv_cq, &wc);
    }
}

static void receive(struct fake_qp *qp, const struct fake_packet *p, const uint8_t *payload, uint64_t now)
{
    bool hears = qp->base.state == IBV_QPS_RTR || qp->base.state == IBV_QPS_RTS;
    if (!hears || fake_nic.faults.dead || p->destination != qp->base.qp_num || p->source != qp->peer ||
        memcmp(&p->gid, &qp->sgid, sizeof(p->gid)) != 0) {
        return; /* another queue pair's, of earlier or elsewhere */
    }
    switch (p->type) {
    case FAKE_DATA:
        if (p->psn == qp->expected_psn) {
            execute(qp, p, payload);
        } else if (before(p->psn, qp->expected_psn)) {
            answer(qp, FAKE_ACK); /* a repetition: its acknowledgement was lost */
        }
        return;
    case FAKE_ACK:
        acknowledged(qp, (p->psn + 1) & 0xffffff, now);
        return;
    case FAKE_RNR:
        acknowledged(qp, p->psn, now);
        if (qp->base.state == IBV_QPS_RTS) {
            not_ready(qp, now);
        }
        return;
    case FAKE_ACCESS_ERROR:
        acknowledged(qp, p->psn, now);
        fail_oldest(qp, IBV_WC_REM_ACCESS_ERR);
        return;
    default:
        return;
    }
}

void fake_read_socket(struct fake_qp *qp, uint64_t now)
{
    static uint8_t payload[FAKE_PAYLOAD_MAX]; /* the thread's */
    struct fake_packet p;
    struct iovec iov[2] = {{&p, sizeof(p)}, {payload, sizeof(payload)}};
    for (int i = 0; i < 64; i++) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
        ssize_t n = recvmsg(qp->fd, &message, MSG_DONTWAIT);
        if (n < 0) {
            return;
        }
        if ((size_t)n >= sizeof(p) && p.magic == MAGIC && p.bytes == (size_t)n - sizeof(p)) {
            receive(qp, &p, payload, now);
        }
    }
}
