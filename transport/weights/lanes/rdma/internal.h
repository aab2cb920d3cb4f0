/* What both ends of an RDMA lane have in common: rails, staging slots, completions, waiting. rx.c and tx.c are the ends.
 *
 * Staging is `window` slots of one bucket each, the same slots on both sides. A bucket is gathered into a free slot of the sender's, written into the same slot of the receiver's in slices dealt out over all
 * queue pairs of all rails, and followed on every queue pair by one immediate; when the immediates of all of them are there, so is the bucket. When the receiver has scattered it into final memory, the same
 * immediate goes back and the slot is free. So nothing that a queue holds can overflow: everything is bounded by the window.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_INTERNAL_H

#include "base/clock.h"
#include "transport/weights/lanes/rdma/rail.h"

#define CORRAL_RDMA_STREAMS_DEFAULT 2
#define CORRAL_RDMA_WINDOW_DEFAULT 3
#define CORRAL_RDMA_SLICE_MIN (256u << 10)
#define CORRAL_RDMA_SLICE_MAX (1u << 20)
#define CORRAL_RDMA_SLICES_MAX \
    64 /* of a bucket on one queue pair; buckets so large that there would be more have larger slices */
#define CORRAL_RDMA_POLL_MAX 32
#define CORRAL_RDMA_HEADER 64 /* of a slot, before the bucket: how many bytes follow, u64, little-endian */
/* A connection on which nothing is under way does not notice that the other end has gone. A receiver in a push, and a sender that waits for slots to come back, ask this often: a write of no bytes. */
#define CORRAL_RDMA_PROBE_NS (250 * CORRAL_NS_PER_MS)
#define CORRAL_RDMA_PROBE CORRAL_RDMA_WINDOW_MAX /* in a request's id, where others have their slot */

/* bucket: 24 bits, slot: 4, low bits of the push's serial number: 4. */
struct corral_rdma_immediate {
    uint32_t bucket, slot, push;
};
static inline uint32_t corral_rdma_immediate_pack(struct corral_rdma_immediate i)
{
    return (i.bucket & 0xffffff) | (i.slot & 15) << 24 | (i.push & 15) << 28;
}
static inline struct corral_rdma_immediate corral_rdma_immediate_unpack(uint32_t v)
{
    return (struct corral_rdma_immediate){v & 0xffffff, v >> 24 & 15, v >> 28};
}

enum corral_rdma_slot_state {
    CORRAL_RDMA_FREE,
    CORRAL_RDMA_FILLING, /* receiver: some immediates are there. Sender: written, not given back */
    CORRAL_RDMA_ARRIVED, /* receiver: whole */
    CORRAL_RDMA_CREDIT,  /* receiver: in final memory, to be given back as soon as the send queue has room */
};

struct corral_rdma_slot {
    enum corral_rdma_slot_state state;
    uint32_t bucket;
    uint64_t
        seen; /* bit per queue pair: receiver: its immediate came; sender: its immediate is acknowledged */
    uint64_t order;  /* receiver: of arrival; sender: how many were sent before in this push */
    uint64_t serial; /* of the push it is of */
    bool given_back; /* sender */
};

struct corral_rdma_lane {
    struct corral_lane base;
    const struct corral_verbs *verbs;
    bool sender;
    uint32_t rails, streams, queue_pairs, window;
    struct corral_rdma_rail rail[CORRAL_RDMA_RAILS_MAX];
    struct corral_rdma_rail_address peer[CORRAL_RDMA_RAILS_MAX];
    uint8_t *staging;
    uint64_t slot_bytes, slice_bytes, staging_bytes;
    uint64_t generation;
    int kick; /* eventfd in base.fd: something is left to be reported */
    bool kicked, connected, in_push, changed;
    struct corral_error failed; /* the first error; every later call returns it */

    struct corral_rdma_slot slot[CORRAL_RDMA_WINDOW_MAX];
    struct corral_shard *shard;
    uint64_t serial, order; /* serial: of the pushes of this lane, on both sides */
    uint64_t moved_ns;      /* when something came last, or a probe was sent; 0: not known */
    uint32_t probing;       /* bit per rail: its probe is not acknowledged */
    /* receiver */
    uint32_t sends[CORRAL_RDMA_RAILS_MAX * CORRAL_RDMA_STREAMS_MAX]; /* in each send queue */
    /* sender */
    uint64_t left, left_ahead; /* left_ahead: bit i: bucket number left + i has left too */
    struct ibv_send_wr *wr;    /* [SLICES_MAX + 1], and their memory */
    struct ibv_sge *sge;
};

/* Everything but the rails. The lane is freed by corral_rdma_lane_close() in every state. */
enum corral_status corral_rdma_lane_create(struct corral_rdma_lane **out, const struct corral_link *link,
                                           const struct corral_verbs *verbs, bool sender,
                                           struct corral_error *err);
void corral_rdma_lane_close(struct corral_rdma_lane *lane);
static inline void corral_rdma_lane_closep(struct corral_rdma_lane **lane)
{
    corral_rdma_lane_close(*lane);
}
uint64_t corral_rdma_slot_bytes(const struct corral_link *link);
/* Staging of `window` slots that is not copied into children. */
enum corral_status corral_rdma_staging_map(struct corral_rdma_lane *lane, uint32_t window,
                                           struct corral_error *err);
/* Opens lane->rail[lane->rails] on the port, which it takes, and watches its events. */
enum corral_status corral_rdma_lane_add_rail(struct corral_rdma_lane *lane, struct corral_rdma_port *port,
                                             uint32_t streams, uint32_t send_depth, struct corral_error *err);
/* Posts receives and connects all rails to lane->peer. */
enum corral_status corral_rdma_lane_connect(struct corral_rdma_lane *lane, struct corral_error *err);
void corral_rdma_lane_describe(const struct corral_rdma_lane *lane, struct corral_rdma_address *out);

/* Remembers the first error. */
enum corral_status corral_rdma_fail(struct corral_rdma_lane *lane, struct corral_error *err);
/* The remembered error, or CORRAL_STATE when the lane is not connected. */
enum corral_status corral_rdma_check(const struct corral_rdma_lane *lane, struct corral_error *err);

/* Handles all completions there are. Hot: no system call. */
enum corral_status corral_rdma_poll(struct corral_rdma_lane *lane, struct corral_error *err);
/* Polls until ready(lane), the timeout or an error; leaves the queues armed, so that base.fd is good for poll(). */
enum corral_status corral_rdma_wait(struct corral_rdma_lane *lane, uint64_t timeout_ns,
                                    bool (*ready)(const struct corral_rdma_lane *lane),
                                    struct corral_error *err);
/* When the other end is waited for, and nothing has `changed` for CORRAL_RDMA_PROBE_NS: asks whether it is there. The answer is a completion. */
enum corral_status corral_rdma_probe(struct corral_rdma_lane *lane, bool waiting, struct corral_error *err);
/* base.fd stays readable while `on`. */
void corral_rdma_kick(struct corral_rdma_lane *lane, bool on);

/* One good completion; rx.c and tx.c. `qp`: over all rails. */
enum corral_status corral_rdma_rx_completed(struct corral_rdma_lane *lane, uint32_t qp,
                                            const struct ibv_wc *wc, struct corral_error *err);
enum corral_status corral_rdma_tx_completed(struct corral_rdma_lane *lane, uint32_t qp,
                                            const struct ibv_wc *wc, struct corral_error *err);

enum corral_status corral_rdma_rx_open(struct corral_lane **out, const struct corral_link *link,
                                       const struct corral_lane_options *options,
                                       struct corral_lane_blob *offer, struct corral_error *err);
enum corral_status corral_rdma_rx_connect(struct corral_lane *rx, const struct corral_lane_blob *answer,
                                          struct corral_error *err);
enum corral_status corral_rdma_rx_begin(struct corral_lane *rx, uint64_t push,
                                        struct corral_shard *destination, struct corral_lane_blob *place,
                                        struct corral_error *err);
enum corral_status corral_rdma_rx_progress(struct corral_lane *rx, uint64_t timeout_ns, uint32_t *bucket,
                                           uint32_t room, uint32_t *count, struct corral_error *err);
enum corral_status corral_rdma_rx_taken(struct corral_lane *rx, uint32_t bucket, struct corral_error *err);
enum corral_status corral_rdma_rx_end(struct corral_lane *rx, bool ok, struct corral_error *err);
enum corral_status corral_rdma_tx_open(struct corral_lane **out, const struct corral_link *link,
                                       const struct corral_lane_options *options,
                                       const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                       struct corral_error *err);
enum corral_status corral_rdma_tx_begin(struct corral_lane *tx, uint64_t push, struct corral_shard *source,
                                        const struct corral_lane_blob *place, struct corral_error *err);
enum corral_status corral_rdma_tx_send(struct corral_lane *tx, uint32_t bucket, struct corral_error *err);
enum corral_status corral_rdma_tx_send_encoded(struct corral_lane *tx, uint32_t bucket, const void *encoded,
                                               uint64_t bytes, struct corral_error *err);
enum corral_status corral_rdma_tx_progress(struct corral_lane *tx, uint64_t timeout_ns, uint64_t *left,
                                           struct corral_error *err);
enum corral_status corral_rdma_tx_end(struct corral_lane *tx, bool ok, struct corral_error *err);

#endif
