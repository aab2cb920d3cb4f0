/* Trainer side of the trajectory plane: one ZeroMQ ROUTER per trainer rank. Grants byte credits, decodes and checks every fragment,
 * drops duplicates, hands fragments out in arrival order and acknowledges them only when told to: after the gradient step that used them is
 * committed. Single thread. A malformed message from a peer is counted, logged once per peer and dropped; it never stops the receiver.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_H

#include "base/memory.h"
#include "transport/trajectory/fragment.h"

#define CORRAL_TRAJ_WORKERS_MAX 1024

struct corral_traj_receiver;
struct corral_traj_receiver_config {
    void *zmq_context;
    uint64_t run;
    const char *bind; /* "ipc://sock/traj-0" or "tcp://HOST:*" */
    uint64_t
        buffer_bytes; /* fragments held, in bytes; shared out as credits; charged to `memory` as it is used */
    uint32_t
        workers; /* senders expected, with indices below this: each has its own part of the buffer; 0: unknown, they compete for it */
    uint64_t
        fragment_bytes_max; /* corral_fragment_bytes() of the largest fragment a worker may send, which must fit its part; 0: unknown */
    const struct corral_allocator *memory;
    const char *token;
    const char *server_secret_key; /* Z85, for tcp with CURVE; NULL for ipc */
};
/* Where each worker's stream stands: everything up to and including `sequence` of `epoch` has been trained or dropped on purpose. Saved with the
 * trainer's state; a restarted trainer passes it back so that nothing is trained twice. */
struct corral_traj_cursor {
    uint32_t worker, epoch;
    uint64_t sequence;
};
struct corral_traj_receiver_stats {
    uint64_t received, duplicates, malformed, refused, acked, held_bytes;
    uint64_t gaps;   /* fragments dropped because one before them is missing; asked for again */
    uint64_t denied; /* fragments for which the quota or the system had no memory; asked for again */
    uint64_t
        lost; /* fragments acknowledged by an earlier trainer whose saved state does not cover them; they can't come again */
};

enum corral_status corral_traj_receiver_create(struct corral_traj_receiver **out,
                                               const struct corral_traj_receiver_config *config,
                                               struct corral_error *err);
void corral_traj_receiver_destroy(struct corral_traj_receiver *r);
const char *
corral_traj_receiver_endpoint(const struct corral_traj_receiver *r); /* the bound address to publish */
/* Next fragment, borrowed until corral_traj_receiver_finish(); tensors aligned to 64 bytes. CORRAL_AGAIN when none came within timeout_ms. */
enum corral_status corral_traj_receiver_next(struct corral_traj_receiver *r, uint32_t timeout_ms,
                                             const struct corral_fragment **out, struct corral_error *err);
/* This fragment is used up (its step is committed) or dropped on purpose: advance its worker's cursor, acknowledge, free, grant credit again.
 * Fragments of one worker must be finished in the order they were handed out. Acknowledgements of a worker that has more fragments held
 * are gathered until the next next() or flush(): a caller that goes on to something long after finishing some calls flush() first. */
void corral_traj_receiver_finish(struct corral_traj_receiver *r, const struct corral_fragment *f);
/* Send the acknowledgements and credit that are due. Does not wait; no system call when nothing is due. */
void corral_traj_receiver_flush(struct corral_traj_receiver *r);
/* The cursors as they will be once every fragment in `taken` is finished: what a step saves before it finishes them. */
uint32_t corral_traj_receiver_cursors(const struct corral_traj_receiver *r,
                                      const struct corral_fragment *const *taken, uint32_t taken_count,
                                      struct corral_traj_cursor *out, uint32_t out_max);
/* Before the first next(): where the streams stood when the state was saved. */
enum corral_status corral_traj_receiver_restore(struct corral_traj_receiver *r,
                                                const struct corral_traj_cursor *cursors, uint32_t count,
                                                struct corral_error *err);
void corral_traj_receiver_stats(const struct corral_traj_receiver *r, struct corral_traj_receiver_stats *out);

#endif
