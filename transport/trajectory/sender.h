/* Rollout side of the trajectory plane: one connection per trainer rank. Keeps every record until it is acknowledged, counts byte credits, sends again after a reconnect. Delivery is at
 * least once; the receiver deduplicates by (worker, epoch, sequence).
 *
 *     reserve → encode in place → commit            for each record; poll() or flush() now and then
 *
 * A record is written where it is sent from: nothing is copied. Large ones go out at once. Small ones are gathered into messages of up to 256 KiB that go when they are full, at
 * poll() and flush(), and at commit() when the connection has nothing else to do, so gathering costs no latency while there is little to send.
 *
 * Single thread (ZeroMQ's thread only lets go of memory). LIMITS: a record counts for its bytes and CORRAL_TRAJ_ITEM_BYTES, in the window and in the receiver's buffer; `window_bytes`
 * bounds what is kept, over all ranks. Memory is charged in pieces of up to 1 MiB: at most one piece per rank more than the window.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_SENDER_H
#define CORRAL_TRANSPORT_TRAJECTORY_SENDER_H

#include "base/memory.h"
#include "transport/trajectory/item.h"
#include <stdbool.h>

struct corral_fragment;
struct corral_traj_sender;
struct corral_traj_sender_config {
    void *zmq_context;
    uint64_t run;
    uint32_t worker, epoch;
    uint64_t
        window_bytes; /* most bytes kept unacknowledged, over all ranks; charged to `memory` as it is used */
    const struct corral_allocator *memory;
    const char *token;      /* shown to the receiver in the hello */
    const char *server_key; /* Z85 CURVE key of tcp receivers, or NULL for ipc */
    enum corral_traj_transport transport;
    uint64_t
        ring_bytes; /* of the ring to each rank on this node, taken from the window as a whole; 0: all of the window */
    uint64_t
        no_ring; /* bit per rank below 64: never through a ring: it is sent nothing, or next to nothing */
};
struct corral_traj_sender_stats {
    uint64_t sent, acked, resent; /* records handed to the network, resent ones counted again */
    uint64_t batches, bytes;      /* messages with records, and the records' bytes in them */
    uint64_t unacked_bytes, credit_bytes;
    uint64_t blocked;    /* reservations refused for want of credit or window */
    uint64_t blocked_ns; /* time between such a refusal and the next reservation that was granted */
    uint32_t rings;      /* ranks that are reached through a ring */
};
struct corral_traj_sender_rank_stats {
    uint64_t unacked, unacked_bytes; /* records sent or waiting to be, and not acknowledged */
    uint64_t credit_bytes, blocked, blocked_ns;
    bool ring; /* reached through a ring */
};

/* What a ring that is to hold records which count for this much takes of the window. */
uint64_t corral_traj_ring_bytes(uint64_t cost);
enum corral_status corral_traj_sender_create(struct corral_traj_sender **out,
                                             const struct corral_traj_sender_config *config,
                                             struct corral_error *err);
/* Waits at most linger_ms for acknowledgements (0: none), then drops what is left, and waits until ZeroMQ has let go of the memory. */
void corral_traj_sender_destroy(struct corral_traj_sender *s, uint32_t linger_ms);
/* Point rank at an endpoint (first time, or after the trainer was restarted: everything unacknowledged for it is sent again). */
enum corral_status corral_traj_sender_connect(struct corral_traj_sender *s, uint32_t rank,
                                              const char *endpoint, struct corral_error *err);
/* Memory for one encoded record of at most `bytes` (a multiple of 64), aligned to 64, until commit; a second reservation for the rank replaces it. Its contents are undefined.
 * CORRAL_AGAIN: no credit or window full, and the text says who has no room; poll and try again. CORRAL_DENIED: the quota. CORRAL_INVALID: larger than the window or the receiver's
 * buffer, or the receiver refused this sender. Hot path for small records, once there is a session. */
enum corral_status corral_traj_sender_reserve(struct corral_traj_sender *s, uint32_t rank, uint64_t bytes,
                                              void **out, struct corral_error *err);
/* The record in the reserved memory is complete: stamps run, worker, epoch and the rank's next sequence into it and sends or gathers it. CORRAL_STATE: nothing is reserved.
 * CORRAL_PROTOCOL: no whole record is there; it stays reserved. `sequence` may be NULL. */
enum corral_status corral_traj_sender_commit(struct corral_traj_sender *s, uint32_t rank, uint64_t *sequence,
                                             struct corral_error *err);
/* What has been gathered goes out, as far as credit and the connections allow; does not wait. */
enum corral_status corral_traj_sender_flush(struct corral_traj_sender *s, struct corral_error *err);
/* The three for a fragment: its tensors are copied once, into the record. Assigns run, worker, epoch and sequence. */
enum corral_status corral_traj_sender_send_fragment(struct corral_traj_sender *s, uint32_t rank,
                                                    struct corral_fragment *f, struct corral_error *err);
/* Take in credits and acknowledgements, send what is gathered, waiting at most timeout_ms for the first thing to come. CORRAL_OK also when nothing came.
 * A receiver that refuses this sender is reported once (CORRAL_INVALID). */
enum corral_status corral_traj_sender_poll(struct corral_traj_sender *s, uint32_t timeout_ms,
                                           struct corral_error *err);
/* Records of one rank that are sent or waiting to be, and not acknowledged. O(1). */
uint64_t corral_traj_sender_unacked(const struct corral_traj_sender *s, uint32_t rank);
/* Of one rank, with those of this worker's earlier lives that are still before it: neither trained on nor dropped, as far as has been heard. What a lease is counted in: with a log, a record
 * is acknowledged long before it is finished. O(1). */
uint64_t corral_traj_sender_unfinished(const struct corral_traj_sender *s, uint32_t rank);
/* The rank has been heard at least once: before, it is not known what of earlier lives it still has. */
bool corral_traj_sender_welcomed(const struct corral_traj_sender *s, uint32_t rank);
void corral_traj_sender_stats(const struct corral_traj_sender *s, struct corral_traj_sender_stats *out);
void corral_traj_sender_rank_stats(const struct corral_traj_sender *s, uint32_t rank,
                                   struct corral_traj_sender_rank_stats *out);

#endif
