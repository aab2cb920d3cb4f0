/* Rollout side of the trajectory plane: one ZeroMQ DEALER per trainer rank. Keeps every fragment until it is acknowledged, counts byte
 * credits, resends after a reconnect. Single thread (ZeroMQ's thread only drops references). Delivery is at least once; the receiver deduplicates by (worker, epoch, sequence).
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_SENDER_H
#define CORRAL_TRANSPORT_TRAJECTORY_SENDER_H

#include "base/memory.h"
#include "transport/trajectory/fragment.h"

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
};
struct corral_traj_sender_stats {
    uint64_t sent, acked, resent, unacked_bytes, credit_bytes,
        blocked; /* blocked: sends refused for want of credit or window */
};

enum corral_status corral_traj_sender_create(struct corral_traj_sender **out,
                                             const struct corral_traj_sender_config *config,
                                             struct corral_error *err);
/* Waits at most linger_ms for acknowledgements (0: none), then drops what is left, and waits until ZeroMQ has let go of the memory. */
void corral_traj_sender_destroy(struct corral_traj_sender *s, uint32_t linger_ms);
/* Point rank at an endpoint (first time, or after the trainer was restarted: everything unacknowledged for it is sent again). */
enum corral_status corral_traj_sender_connect(struct corral_traj_sender *s, uint32_t rank,
                                              const char *endpoint, struct corral_error *err);
/* Copy and send. Assigns f->sequence per rank. CORRAL_AGAIN: no credit or window full; poll and try again.
 * CORRAL_DENIED: the quota. CORRAL_INVALID: malformed, larger than the window or the receiver's buffer, or the receiver refused this sender. */
enum corral_status corral_traj_sender_send(struct corral_traj_sender *s, uint32_t rank,
                                           struct corral_fragment *f, struct corral_error *err);
/* Take in credits and acknowledgements, waiting at most timeout_ms for the first. CORRAL_OK also when nothing came.
 * A receiver that refuses this sender is reported once (CORRAL_INVALID). */
enum corral_status corral_traj_sender_poll(struct corral_traj_sender *s, uint32_t timeout_ms,
                                           struct corral_error *err);
/* Fragments of one rank that are sent or waiting to be, and not acknowledged: what a lease is counted in. O(1). */
uint64_t corral_traj_sender_unacked(const struct corral_traj_sender *s, uint32_t rank);
void corral_traj_sender_stats(const struct corral_traj_sender *s, struct corral_traj_sender_stats *out);

#endif
