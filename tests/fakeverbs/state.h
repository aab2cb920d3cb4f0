/* Inside the fake adapter. One lock guards everything; one thread moves packets. */
#ifndef CORRAL_TESTS_FAKEVERBS_STATE_H
#define CORRAL_TESTS_FAKEVERBS_STATE_H

#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_PAYLOAD_MAX 32768u
#define FAKE_SGE_MAX 4
#define FAKE_DEVICES_MAX 8
#define FAKE_GIDS 4
#define FAKE_EXPORT __attribute__((visibility("default")))

enum fake_kind { FAKE_ROCE, FAKE_IB, FAKE_DOWN };

struct fake_device {
    struct ibv_device base;
    enum fake_kind kind;
    unsigned number;
};

struct fake_context {
    struct ibv_context base;
    int async_write;
    struct fake_context *next;
};

struct fake_mr {
    struct ibv_mr base;
    unsigned access;
    struct fake_mr *next;
};

struct fake_cqe {
    struct ibv_wc wc;
    uint64_t at_ns;
};

struct fake_cq {
    struct ibv_cq base;
    struct fake_cqe *ring; /* [base.cqe]; head..visible can be polled, visible..tail are delayed */
    uint64_t head, visible, tail;
    bool armed;
    unsigned unacknowledged;
    struct fake_cq *next;
};

struct fake_channel {
    struct ibv_comp_channel base;
    int write;
};

struct fake_wqe {
    struct ibv_send_wr wr;
    struct ibv_sge sge[FAKE_SGE_MAX];
    uint32_t length, psn, packets; /* psn: of the first packet */
};

struct fake_rqe {
    uint64_t wr_id;
    struct ibv_sge sge[FAKE_SGE_MAX];
    int sges;
};

struct fake_qp {
    struct ibv_qp base;
    struct ibv_qp_init_attr init;
    unsigned access;
    int fd;
    bool connected, blocked;
    union ibv_gid sgid, dgid;
    uint32_t peer;
    /* sending */
    struct fake_wqe *sq;
    uint64_t sq_head, sq_at, sq_tail;      /* oldest unacknowledged, being sent, end */
    uint32_t sq_packet, sq_psn, acked_psn; /* acked_psn: the first that is not acknowledged */
    unsigned retries, retry_cnt, rnr_retries, rnr_retry;
    uint64_t ack_timeout_ns, ack_deadline_ns, hold_until_ns; /* 0: none */
    /* receiving */
    struct fake_rqe *rq;
    uint64_t rq_head, rq_tail;
    uint32_t expected_psn, rq_filled;
    bool answer_due;
    uint8_t answer;
    struct fake_qp *next;
};

enum fake_packet_type { FAKE_DATA = 1, FAKE_ACK, FAKE_RNR, FAKE_ACCESS_ERROR };

struct fake_packet {
    uint32_t magic, destination, source, psn;
    uint8_t type, opcode, first, last;
    uint32_t rkey, offset, bytes, length, immediate;
    uint64_t address; /* of the message's first byte */
    union ibv_gid gid;
};

struct fake_faults {
    uint64_t cqe_error, delay_us, drop, drop_after, hold_odd_us, rnr, corrupt, die_sent, die_received,
        port_err, device_fatal, ack_us;
    /* counters since they were set */
    uint64_t completions, packets, requests, payloads, sent, received;
    bool dead; /* port_err or device_fatal has struck */
};

struct fake_nic {
    pthread_mutex_t lock;
    pthread_t thread;
    bool running, stop;
    int kick;
    struct fake_context *contexts;
    struct fake_mr *mrs;
    struct fake_cq *cqs;
    struct fake_qp *qps;
    int *closing; /* descriptors that the thread may be polling: it closes them */
    unsigned closing_count, closing_room;
    unsigned live, resent;
    struct fake_faults faults;
};
extern struct fake_nic fake_nic;

/* All with the lock held. */
int fake_nic_start(void); /* when the first context is opened */
void fake_nic_wake(void);
void fake_read_socket(struct fake_qp *qp, uint64_t now);
uint64_t fake_transmit(struct fake_qp *qp,
                       uint64_t now);  /* returns when it wants to be called again, 0: on events */
void fake_qp_fail(struct fake_qp *qp); /* to ERR; flushes */
void fake_cq_add(struct ibv_cq *cq, const struct ibv_wc *wc); /* with the faults of completions */
uint64_t fake_cq_advance(struct fake_cq *cq,
                         uint64_t now_ns); /* returns when the next becomes visible, 0: none */
void fake_event(struct fake_context *context, enum ibv_event_type type, void *element);
bool fake_access(const struct ibv_pd *pd, uint32_t key, bool remote, unsigned needed, uint64_t address,
                 uint64_t length);
int fake_qp_address(uint32_t qpn, void *address);

uint64_t fake_now_ns(void);
int fake_pipe(int *read_end, int *write_end); /* the write end does not block */
int fake_faults_set(const char *spec);
void fake_stop_thread(void); /* without the lock */

int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int fake_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int fake_poll_cq(struct ibv_cq *cq, int count, struct ibv_wc *wc);
int fake_req_notify_cq(struct ibv_cq *cq, int solicited_only);
int fake_gid(const struct fake_device *device, int index, union ibv_gid *out);

#endif
