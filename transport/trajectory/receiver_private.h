/* The receiver's insides. receiver.c: interface, waiting. receiver_handle.c: what one message does. receiver_hold.c: records in memory, from arrival to the cursor.
 * receiver_log.c: what is durable, and replay. receiver_zmq.c: the carrier, which moves messages. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_PRIVATE_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_PRIVATE_H

#include "transport/bus/idmap.h"
#include "transport/bus/socket.h"
#include "transport/trajectory/block.h"
#include "transport/trajectory/credit.h"
#include "transport/trajectory/local/local.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/wire.h"
#include <zmq.h>

/* A record from when it is taken in until its worker's cursor has passed it. Finished ones that others hold up keep this, not their memory. */
struct corral_traj_held {
    struct corral_traj_item item;    /* comes first: finish() gets its address */
    struct corral_traj_block *block; /* NULL: in a ring */
    struct corral_traj_feed *feed;   /* the ring it lies in, until it is finished */
    uint64_t in_ring;                /* its position there */
    struct corral_traj_held *next;   /* of the same worker, in hand-out order */
    uint64_t position;               /* in the log */
    uint64_t mark;                   /* in the set that was asked about last */
    bool done;
    bool local; /* came through a ring: no credit was taken for it */
};
static_assert(sizeof(struct corral_traj_held) <= CORRAL_TRAJ_ITEM_BYTES, "what a record counts for");

struct corral_traj_stream { /* one worker */
    bool known;             /* it has said hello, or was restored */
    uint32_t index;
    uint32_t epoch;    /* the newest that said hello */
    uint64_t received; /* in `epoch`: taken in up to here */
    uint64_t finished; /* in `epoch`: finished up to here */
    uint64_t durable;  /* in `epoch`: in the log up to here */
    struct corral_traj_cursor
        cursor; /* what would be saved: of an older epoch until the newer one finishes something */
    struct corral_traj_held *head, *tail;
    uint32_t held_count; /* of them not finished */
    uint32_t older;      /* of these, records of epochs before `epoch` */
    bool live;           /* has a session over `route` */
    uint32_t route;
    uint64_t session;
    bool dirty;            /* is in the receiver's list of streams to be told something */
    bool credit_due;       /* cumulative ack or limit changed */
    bool resend_due;       /* ask to go back to received + 1 … */
    uint64_t resend_at_ns; /* … not before this time */
    uint64_t told_limit;   /* in the last welcome or credit */
    bool complained;
    bool ring_broken; /* the ring of `ring_epoch` held what is no record */
    uint32_t ring_epoch;
};

struct corral_traj_pending { /* a message whose records are taken in one by one */
    zmq_msg_t frame;         /* initialised while `left` > 0 */
    const uint8_t *at;
    uint32_t left, worker;
    uint64_t sequence; /* of the record at `at` */
};

struct corral_traj_log_run { /* consecutive records of one stream at consecutive positions */
    uint64_t position, sequence;
    uint32_t worker, epoch, count;
};

struct corral_traj_receiver {
    void *context, *socket;
    uint64_t run;
    char token[CORRAL_BUS_TOKEN_MAX];
    char bound[CORRAL_ZMQ_ENDPOINT_MAX];
    const struct corral_allocator *memory;
    struct corral_traj_pool *pool;
    struct corral_traj_block *chunk; /* where small records go, filled up to chunk_used */
    uint64_t chunk_used, chunk_bytes;
    struct corral_traj_held *spare; /* to be used again */
    struct corral_mpack_writer *writer;
    struct corral_idmap by_route; /* live streams */
    struct corral_idring strangers;
    struct corral_credit credit; /* accounts by worker index */
    uint32_t workers;            /* indices below this are let in */
    uint64_t record_max;         /* records that count for more are not */
    struct corral_traj_stream *streams;
    uint32_t *dirty; /* worker indices */
    uint32_t dirty_count;
    struct corral_traj_pending pending;
    struct corral_traj_span *spans; /* restored: finished before they come */
    uint32_t span_count;
    uint64_t mark;
    /* rings */
    struct corral_local_door *door; /* NULL: workers of this node come over ZeroMQ too */
    int epoll;                      /* the door, every ring's bell and link; -1: none */
    struct corral_traj_feed **feeds;
    uint32_t feed_count, feed_at, feed_row;
    uint32_t taken; /* records handed out since the sockets were looked at */
    /* log */
    const struct corral_traj_log *log;
    bool replaying, replay_waits; /* waits: `replay` is the next one, for which there was no room */
    struct corral_traj_item replay;
    uint64_t replay_position;
    struct corral_traj_log_run *runs; /* a ring: appended and not durable yet */
    uint64_t run_first, run_end;
    uint32_t run_room; /* a power of two, or 0 */
    struct corral_error log_error;
    struct corral_traj_receiver_stats stats;
};

struct corral_traj_incoming {
    zmq_msg_t frame; /* always initialised */
    uint32_t frames; /* behind the routing id; one is right, and `frame` is the first */
    uint32_t route;
};

/* ---- receiver_zmq.c ---- */
/* One whole message, without waiting: false when there is none. `in` is to be closed by the caller in any case. `named`: over a connection whose routing id ZeroMQ made up. */
bool corral_traj_receiver_zmq_receive(struct corral_traj_receiver *r, struct corral_traj_incoming *in,
                                      bool *named);
/* One control message to a peer. */
enum corral_status corral_traj_receiver_tell(struct corral_traj_receiver *r, uint32_t route,
                                             const struct corral_traj_message *m, struct corral_error *err);
/* Until there may be something to do. */
void corral_traj_receiver_zmq_wait(struct corral_traj_receiver *r, uint64_t timeout_ms);

/* ---- receiver_handle.c ---- */
/* What one message does. A message with records becomes r->pending; there must be none. */
void corral_traj_receiver_handle(struct corral_traj_receiver *r, struct corral_traj_incoming *in);
/* Takes in the next record of the pending message that is to be handed out; NULL when there is none left. */
struct corral_traj_held *corral_traj_receiver_take_pending(struct corral_traj_receiver *r);
/* Mark a stream as having something to be told; corral_traj_receiver_flush() tells all that are marked. */
void corral_traj_receiver_mark(struct corral_traj_receiver *r, struct corral_traj_stream *st);
/* Serve and top up every account, and mark the streams that changed. */
void corral_traj_receiver_share(struct corral_traj_receiver *r);
void corral_traj_receiver_malformed(struct corral_traj_receiver *r, uint32_t route, const char *why);

/* The worker of a hello, its epoch and first sequence: what is wrong with them, or NULL. */
const char *corral_traj_receiver_check_stream(const struct corral_traj_receiver *r,
                                              const struct corral_traj_message *m);
/* The stream is of this epoch from now on, and begins with this sequence or has it behind it. Ends the session of an earlier epoch. */
void corral_traj_receiver_adopt(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                const struct corral_traj_message *m);
/* End the session; its peer is to say hello again. */
void corral_traj_receiver_hello_again(struct corral_traj_receiver *r, struct corral_traj_stream *st);
/* Everything up to `sequence` that has not come does not come any more. */
void corral_traj_receiver_pass_over(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                    uint64_t sequence);

/* ---- receiver_ring.c ---- */
/* CORRAL_UNSUPPORTED: the endpoint has no door. On failure door_close() is still to be called. */
enum corral_status corral_traj_receiver_door_open(struct corral_traj_receiver *r, const char *endpoint,
                                                  struct corral_error *err);
void corral_traj_receiver_door_close(struct corral_traj_receiver *r);
/* Callers at the door, ended links, bells that rang. */
void corral_traj_receiver_ring_events(struct corral_traj_receiver *r);
/* The next record of any ring, or NULL. */
struct corral_traj_held *corral_traj_receiver_take_ring(struct corral_traj_receiver *r);
/* Gives its bytes back. */
void corral_traj_receiver_ring_finish(struct corral_traj_receiver *r, struct corral_traj_held *h);
/* Every ring's bell rings for the next record. False: there is one already. *soon: look again before long. */
bool corral_traj_receiver_ring_arm(struct corral_traj_receiver *r, bool *soon);

/* ---- receiver_hold.c ---- */
/* A record that stays where it is. */
enum corral_status corral_traj_receiver_hold_in_place(struct corral_traj_receiver *r, const void *at,
                                                      uint64_t bytes, struct corral_traj_held **out,
                                                      struct corral_error *err);
/* A copy of a record of `bytes` at `from` (need not be aligned) in charged memory, in no list yet. */
enum corral_status corral_traj_receiver_hold(struct corral_traj_receiver *r, const void *from, uint64_t bytes,
                                             struct corral_traj_held **out, struct corral_error *err);
/* It is not wanted after all. */
void corral_traj_receiver_unhold(struct corral_traj_receiver *r, struct corral_traj_held *h);
/* It is its stream's next. */
void corral_traj_receiver_enlist(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                 struct corral_traj_held *h);
/* True when a restored span says that it is finished already. */
bool corral_traj_receiver_spanned(const struct corral_traj_receiver *r, uint32_t worker, uint32_t epoch,
                                  uint64_t sequence);
void corral_traj_receiver_hold_free(struct corral_traj_receiver *r);

/* ---- receiver_log.c ---- */
/* Appends a held record; on failure nothing has happened. */
enum corral_status corral_traj_receiver_append(struct corral_traj_receiver *r, struct corral_traj_held *h,
                                               struct corral_error *err);
/* Acknowledge what has become durable. */
void corral_traj_receiver_settle(struct corral_traj_receiver *r);
/* The next record of the log beyond the cursors. CORRAL_AGAIN: no room for it yet while r->replaying, else the end. */
enum corral_status corral_traj_receiver_replay(struct corral_traj_receiver *r, bool beyond_buffer,
                                               struct corral_traj_held **out, struct corral_error *err);

/* What the worker is told that it may forget. */
static inline uint64_t corral_traj_stream_acked(const struct corral_traj_receiver *r,
                                                const struct corral_traj_stream *st)
{
    return r->log != NULL ? st->durable : st->finished;
}

#endif
