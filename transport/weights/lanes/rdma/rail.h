/* A rail: one port of an adapter with its protection domain, its registration of the lane's staging memory, its completion queue and its queue pairs. Each lane has rails of its own, so that a lane can
 * be torn down without asking others. Opening and closing may take milliseconds; the rest is hot: no system call.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_RAIL_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_RAIL_H

#include "transport/weights/lanes/rdma/blob.h"

struct corral_rdma_rail {
    struct corral_rdma_port port;
    struct ibv_pd *pd;
    struct ibv_mr *mr;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_qp *qp[CORRAL_RDMA_STREAMS_MAX];
    uint32_t psn[CORRAL_RDMA_STREAMS_MAX];
    uint32_t qps;
    uint32_t receives[CORRAL_RDMA_STREAMS_MAX]; /* posted, not come back; whoever polls counts them down */
    uint32_t connected;                         /* bit per queue pair: in RTS */
    bool armed;                                 /* the next completion makes channel->fd readable */
};

/* Bits of a request's id; the lowest three are the queue pair's number within the rail. */
#define CORRAL_RDMA_RECEIVE (UINT64_C(1) << 63)
#define CORRAL_RDMA_MARK (UINT64_C(1) << 62) /* the rail's own, last of a queue pair that is closed */

struct corral_rdma_rail_needs {
    void *staging;
    uint64_t staging_bytes;
    bool remote_write; /* the peer writes into staging */
    uint32_t queue_pairs, send_depth, receive_depth;
};

/* Takes the port over, also when it fails. Queue pairs are in INIT. */
enum corral_status corral_rdma_rail_open(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                         struct corral_rdma_port *port,
                                         const struct corral_rdma_rail_needs *needs,
                                         struct corral_error *err);
/* When it returns, no adapter writes into or reads from staging any more, and its keys are invalid. Requests under way are broken off and waited for, 250 ms at most: an adapter that is
 * broken flushes nothing. Accepts what was opened in part. */
void corral_rdma_rail_close(struct corral_rdma_rail *rail, const struct corral_verbs *verbs);

/* Fewer queue pairs, before they are connected: those that the peer does not use. */
void corral_rdma_rail_trim(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                           uint32_t queue_pairs);
void corral_rdma_rail_describe(const struct corral_rdma_rail *rail, struct corral_rdma_rail_address *out);
/* INIT to RTR to RTS, towards the same number of queue pairs there. Receives must have been posted. */
enum corral_status corral_rdma_rail_connect(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                            const struct corral_rdma_rail_address *peer,
                                            struct corral_error *err);
/* Room for a peer's immediates: `count` receives without memory. */
enum corral_status corral_rdma_rail_receive(struct corral_rdma_rail *rail, uint32_t qp, uint32_t count,
                                            struct corral_error *err);
/* Takes what made the channel readable, without blocking. */
void corral_rdma_rail_drain(struct corral_rdma_rail *rail, const struct corral_verbs *verbs);
enum corral_status corral_rdma_rail_arm(struct corral_rdma_rail *rail, struct corral_error *err);
/* What happened to the port or the adapter, without blocking. An error names it. */
enum corral_status corral_rdma_rail_events(struct corral_rdma_rail *rail, const struct corral_verbs *verbs,
                                           struct corral_error *err);

#endif
