/* Trainer side of the trajectory plane: one ZeroMQ ROUTER per trainer rank. Grants byte credits, checks every record's prologue, drops duplicates, hands records out in arrival order and
 * acknowledges them only when told to, after the gradient step that used them is committed; or, with a log, when the log has made them durable. Single thread. A malformed message from a
 * peer is counted, logged once per peer and dropped; it never stops the receiver. What is inside a record beyond its prologue is the caller's to check: what it can't read, it finishes.
 *
 * A record counts for its bytes and CORRAL_TRAJ_ITEM_BYTES, everywhere.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_H

#include "base/memory.h"
#include "transport/trajectory/item.h"
#include "transport/trajectory/log.h"

#define CORRAL_TRAJ_WORKERS_MAX 1024

struct corral_traj_receiver;
struct corral_traj_receiver_config {
    void *zmq_context;
    uint64_t run;
    const char *bind; /* "ipc://sock/traj-0" or "tcp://HOST:*" */
    uint64_t
        buffer_bytes; /* what records held count for; shared out as credits; charged to `memory` as it is used */
    uint32_t
        workers; /* senders expected, with indices below this: each has its own part of the buffer; 0: unknown, they compete for it */
    uint64_t
        record_bytes_max; /* what the largest record a worker may send counts for, which must fit its part; 0: unknown */
    const struct corral_allocator *memory;
    const char *token;
    const char *server_secret_key;        /* Z85, for tcp with CURVE; NULL for ipc */
    enum corral_traj_transport transport; /* AUTO: workers of this node may hand their rings over */
    const struct corral_traj_log *log;    /* outlives the receiver; NULL: records live in memory alone */
};
/* Where each worker's stream stands: everything up to and including `sequence` of `epoch` has been trained or dropped on purpose. Saved with the
 * trainer's state; a restarted trainer passes it back so that nothing is trained twice. */
struct corral_traj_cursor {
    uint32_t worker, epoch;
    uint64_t sequence;
};
/* Records beyond their worker's cursor that are done with all the same: first … last of one epoch. */
struct corral_traj_span {
    uint32_t worker, epoch;
    uint64_t first, last;
};
struct corral_traj_receiver_stats {
    uint64_t received, duplicates, malformed, refused, acked, held_bytes; /* acked: finished */
    uint64_t gaps;     /* records dropped because one before them is missing; asked for again */
    uint32_t rings;    /* of workers on this node, from which records are read */
    uint64_t denied;   /* records for which the quota or the system had no memory; asked for again */
    uint64_t unlogged; /* records that the log did not take; asked for again */
    uint64_t replayed; /* records handed out from the log at start */
    uint64_t
        lost; /* records acknowledged by an earlier trainer whose saved state does not cover them; they can't come again */
};

enum corral_status corral_traj_receiver_create(struct corral_traj_receiver **out,
                                               const struct corral_traj_receiver_config *config,
                                               struct corral_error *err);
void corral_traj_receiver_destroy(struct corral_traj_receiver *r);
const char *
corral_traj_receiver_endpoint(const struct corral_traj_receiver *r); /* the bound address to publish */
/* Next record, borrowed until corral_traj_receiver_finish(). CORRAL_AGAIN when none came within timeout_ms. With a log, what it holds beyond the restored cursors comes first, and
 * no worker is heard before all of that is handed out; it may then take more than the buffer when the caller waits (timeout_ms > 0) for what is not finished otherwise. A log
 * that can't be read is an error, each time. */
enum corral_status corral_traj_receiver_next(struct corral_traj_receiver *r, uint32_t timeout_ms,
                                             const struct corral_traj_item **out, struct corral_error *err);
/* This record is used up (its step is committed) or dropped on purpose: free it, grant credit again, and advance its worker's cursor and acknowledge (without a log) as far as all before it
 * are finished too. In any order; in the order they were handed out, nothing is remembered that a cursor does not say (see corral_traj_receiver_spans()). Acknowledgements of a
 * worker that has more records held are gathered until the next next() or flush(): a caller that goes on to something long after finishing some calls flush() first. */
void corral_traj_receiver_finish(struct corral_traj_receiver *r, const struct corral_traj_item *item);
/* Send the acknowledgements and credit that are due. Does not wait; no system call when nothing is due. */
void corral_traj_receiver_flush(struct corral_traj_receiver *r);
/* The cursors as they will be once every record in `taken` is finished: what a step saves before it finishes them. */
uint32_t corral_traj_receiver_cursors(struct corral_traj_receiver *r,
                                      const struct corral_traj_item *const *taken, uint32_t taken_count,
                                      struct corral_traj_cursor *out, uint32_t out_max);
/* What is, or with `taken` will be, finished beyond those cursors, for callers that finish in another order: saved and restored with them, or those records are handed out again.
 * Returns how many there are; writes at most out_max of them, in order. */
uint32_t corral_traj_receiver_spans(struct corral_traj_receiver *r,
                                    const struct corral_traj_item *const *taken, uint32_t taken_count,
                                    struct corral_traj_span *out, uint32_t out_max);
/* Before the first next(): where the streams stood when the state was saved. */
enum corral_status corral_traj_receiver_restore(struct corral_traj_receiver *r,
                                                const struct corral_traj_cursor *cursors, uint32_t count,
                                                struct corral_error *err);
/* After it, and before the first next(): as corral_traj_receiver_spans() gave them. Those records come again, and are finished without being handed out. */
enum corral_status corral_traj_receiver_restore_spans(struct corral_traj_receiver *r,
                                                      const struct corral_traj_span *spans, uint32_t count,
                                                      struct corral_error *err);
void corral_traj_receiver_stats(const struct corral_traj_receiver *r, struct corral_traj_receiver_stats *out);
/* Why nothing is being acknowledged although records come: what the log said last, or NULL when it works. */
const char *corral_traj_receiver_log_trouble(const struct corral_traj_receiver *r);

#endif
