/* The receiver of the push protocol (docs/spec/weight-push.md). Internal to push/.
 *
 * One control thread polls all connections and owns everything here but what a comment gives to another. Each logged-in connection whose link has bytes has a *worker*: a thread that owns the receiving
 * end of the lane, and digests what arrives. They talk through the worker's mailbox, under its lock, and wake each other with eventfds.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_RECEIVER_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_RECEIVER_INTERNAL_H

#include "base/clock.h"
#include "transport/weights/encode/onto.h"
#include "transport/weights/push/account.h"
#include "transport/weights/push/frame.h"
#include "transport/weights/push/pull.h"
#include <pthread.h>

#define STRANGERS_MAX 8 /* connections that have not logged in */
#define CONNS_MAX (CORRAL_PUSH_SENDERS_MAX + STRANGERS_MAX)

/* ---- worker.c ---- */

enum worker_event {
    WORKER_OFFERED = 1,
    WORKER_CONNECTED = 2,
    WORKER_PLACED = 4,
    WORKER_COMPLETE = 8,
    WORKER_FAILED = 16, /* `error` says why; only stop follows */
    WORKER_CLOSED = 32, /* the lane is closed and `tainted` known; the thread ends */
};
enum worker_command { WORKER_NOTHING, WORKER_OPEN, WORKER_CONNECT, WORKER_BEGIN };

struct verdict {
    uint32_t bucket;
    bool ok;
};

struct worker {
    /* Set before the thread starts. */
    const struct corral_link *link;
    const struct corral_lane_ops *ops;
    struct corral_lane_options options; /* its strings are borrowed */
    int wake_fd, report_fd;             /* own; the control thread's, borrowed */
    struct push_account *account;       /* the receiver's */
    pthread_t thread;

    pthread_mutex_t lock; /* guards the mailbox: all down to the next blank line */
    enum worker_command command;
    bool stop;
    struct corral_lane_blob blob; /* in: the answer; out: the offer, the place */
    uint64_t push;
    struct corral_shard shadow, base;  /* base.ops NULL: buckets come whole */
    struct corral_delta_version holds; /* what `base` is */
    uint64_t next;
    uint32_t events; /* of enum worker_event, since the control thread looked */
    struct corral_error error;
    int32_t tainted;
    uint32_t *fresh, fresh_from, fresh_count; /* ring: buckets that SENT came for */
    struct verdict *verdict;                  /* ring: to be reported as TAKEN */
    uint32_t verdict_from, verdict_count;
    struct corral_digest *sent;                    /* per bucket: what the sender has */
    bool *announced;                               /* per bucket: SENT has come and it is not to come again */
    uint64_t heard_ns, first_ns, last_ns, hash_ns; /* last arrival; first and last of this push; digesting */
    struct corral_digest digest;                   /* of the link, with WORKER_COMPLETE */

    /* The thread's own. */
    struct corral_lane *lane;
    struct corral_onto onto;
    uint64_t held; /* of the account */
    bool receiving;
    uint8_t *flags, *damaged; /* per bucket: where it stands; how often its digest was wrong */
    uint32_t taken;
};

enum corral_status worker_start(struct worker **out, const struct corral_link *link,
                                const struct corral_lane_ops *ops, const struct corral_lane_options *options,
                                int report_fd, struct push_account *account, struct corral_error *err);
/* Any of these returns at once. */
void worker_connect(struct worker *w, const struct corral_lane_blob *answer);
/* base NULL: buckets come whole; otherwise some come as deltas on it. Both are copied. */
void worker_begin(struct worker *w, uint64_t push, const struct corral_shard *shadow,
                  const struct corral_push_source *base, uint64_t version);
/* False: SENT came for a bucket that is under way or taken already. */
bool worker_sent(struct worker *w, uint32_t bucket, struct corral_digest digest);
void worker_stop(struct worker *w);
/* After WORKER_CLOSED, or to wait for it. Returns who may still write. */
int32_t worker_destroy(struct worker *w);

/* ---- connections ---- */

enum conn_state {
    CONN_HELLO,
    CONN_PROOF,
    CONN_VISIT,   /* logged in as a visitor: it says what it wants, and goes to a thread (visitors.c) */
    CONN_LANE,    /* logged in; LANE is due */
    CONN_OFFER,   /* the worker opens the lane */
    CONN_ANSWER,  /* OFFER was sent */
    CONN_CONNECT, /* the worker connects the lane */
    CONN_READY,   /* the lane is open, or there is nothing to move */
    CONN_CLOSING, /* nothing is read any more; the worker is stopping, the last words are flushed */
};

struct push_conn {
    struct push_io io;
    enum conn_state state;
    char peer[80];
    uint64_t heard_ns; /* until logged in: when it came; closing: when that began */
    uint8_t hello_bytes[PUSH_HELLO_BYTES], nonce[WIRE_NONCE_BYTES];
    struct push_hello hello;
    struct worker *worker; /* of the link, once LANE has come; NULL when it is empty */
    bool told_ready;
    uint64_t passed; /* version it will not take part in; 0: none */
    uint64_t tried;  /* version it has begun last, whatever came of it */
    /* Of the version under way. */
    bool prepared, waiting; /* waiting: until the version before has been given up */
    bool placed;
    struct push_prepare prepare;
    uint64_t version;
};

/* PULL: the target is the puller's (pull.c) until it has ended. */
enum receiving {
    RECEIVING_NONE,
    RECEIVING_GATHER,
    RECEIVING_DATA,
    RECEIVING_STAGED,
    RECEIVING_ABORT,
    RECEIVING_PULL
};

/* The one link of a copy from a receiver to another of the same rank: NULL when nothing is ever written here. */
struct copy {
    struct corral_layout *layout;
    struct corral_reshard_plan *plan;
    struct corral_link *link;
};
struct puller;
struct visitor;

struct corral_push_receiver {
    struct corral_push_receiver_options options;
    char name[CORRAL_PUSH_NAME_MAX], lanes[PUSH_LANES_MAX + 1], lane_host[64], lane_device[256];
    struct corral_link **link; /* per source rank */
    int listen_fd, stop_fd, report_fd;
    char endpoint[80];
    pthread_t thread;
    bool started;
    uint64_t accept_after_ns;
    struct push_conn *conn[CONNS_MAX];
    uint64_t generation; /* the highest seen */

    /* The version under way. GATHER: PREPAREs are collected and nothing has moved; ABORT: workers are being stopped, then the target is told. */
    enum receiving state;
    uint64_t version, base, moved_ns;   /* moved: the last time anything got on */
    uint64_t begun_ns, gather_until_ns; /* the first PREPARE; how long the other ranks are waited for */
    uint64_t skew_ns;                   /* from the first PREPARE to the last, */
    uint32_t slow_rank;                 /* which was this rank's */
    uint32_t whole_for;    /* so many versions are asked for whole: there was no memory for deltas */
    uint64_t late_version; /* given up because a rank was late; 0: none was */
    struct corral_shard shadow;
    struct corral_push_source from; /* open while base is not 0 */
    struct corral_digest digest;
    bool *complete;                      /* per source rank: its link is */
    struct corral_digest *link_digest;   /* per source rank */
    uint64_t first_ns, last_ns, hash_ns; /* over all links */
    int32_t tainted;                     /* collected until the target is told */

    struct push_account account; /* of everything that lanes here hold */
    struct copy copy;
    struct puller *puller;
    struct visitor *visitor[CORRAL_PUSH_VISITORS_MAX];

    pthread_mutex_t status_lock; /* guards what follows, and `lanes` */
    struct corral_push_receiver_status status;
    struct puller *pull_wanted; /* asked for, not begun */
};

static inline uint64_t push_now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}
static inline bool conn_is_member(const struct push_conn *c)
{
    return c->state >= CONN_LANE && c->state < CONN_CLOSING;
}

/* ---- receiver_login.c ---- */
enum corral_status login_hello(struct corral_push_receiver *r, struct push_conn *c, const uint8_t *payload,
                               struct corral_error *err);
enum corral_status login_proof(struct corral_push_receiver *r, struct push_conn *c, const uint8_t *payload,
                               struct corral_error *err);

/* ---- receiver_conn.c ---- */
/* Queues it; a peer that does not read its answers is dropped later, at its deadline. */
void conn_send(struct corral_push_receiver *r, struct push_conn *c, enum push_type type, uint64_t version,
               const void *payload, uint32_t bytes);
/* ABORTED. absent: the rank for want of which; PUSH_NO_RANK: none. */
void conn_send_aborted(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                       enum push_after after, uint32_t absent, const struct corral_error *why);
/* Last words (NULL: none), then CLOSING. What it had begun is aborted. */
void conn_drop(struct corral_push_receiver *r, struct push_conn *c, const struct corral_error *why);
/* Work off what poll() reported. */
void conn_serve(struct corral_push_receiver *r, struct push_conn *c, short revents);
/* What its worker reports. */
void conn_report(struct corral_push_receiver *r, struct push_conn *c);
/* Closes and frees when all is said and the worker has ended; true then. */
bool conn_finish(struct corral_push_receiver *r, struct push_conn *c);
/* By name, of more_lanes or of lanes.c; NULL: none. */
const struct corral_lane_ops *receiver_lane_named(const struct corral_push_receiver *r, const char *name);
void receiver_lanes(struct corral_push_receiver *r, char out[PUSH_LANES_MAX + 1]);
void receiver_note_error(struct corral_push_receiver *r, const struct corral_error *why);

/* ---- pull.c: on the control thread ---- */
/* Begins what was asked for when nothing is under way, and ends what is over. */
void pulling_advance(struct corral_push_receiver *r);
void pulling_cancel(struct corral_push_receiver *r);
void pulling_stop(struct corral_push_receiver *r);

/* ---- visitors.c: on the control thread ---- */
/* The connection is the visitor's thread's from then on. */
enum corral_status visitors_admit(struct corral_push_receiver *r, struct push_conn *c,
                                  const struct push_frame *f, const uint8_t *payload,
                                  struct corral_error *err);
void visitors_advance(struct corral_push_receiver *r);
void visitors_stop(struct corral_push_receiver *r);

/* ---- receiver_gather.c: a version that is about to begin ---- */
enum corral_status receiving_prepare(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                                     const struct push_prepare *prepare, struct corral_error *err);
void receiving_pass(struct corral_push_receiver *r, struct push_conn *c, uint64_t version);

/* ---- receiver_push.c: the version under way ---- */
void receiving_enter(struct corral_push_receiver *r, enum receiving state);
/* The first rank that has bytes for us, or leads, and is not there, or (prepared) has not PREPAREd; UINT32_MAX: all are. No leader at all counts as rank 0. */
uint32_t receiving_missing(const struct corral_push_receiver *r, bool prepared);
/* ABORTED to one, or to all that take part: nothing has moved, and everybody keeps the connection. absent: the rank for want of which; PUSH_NO_RANK: none. */
void receiving_soft(struct corral_push_receiver *r, struct push_conn *c, uint64_t version, uint32_t absent,
                    const struct corral_error *why);
void receiving_give_up(struct corral_push_receiver *r, uint32_t absent, const struct corral_error *why);
/* Every rank has PREPAREd. */
void receiving_begin(struct corral_push_receiver *r);
void receiving_complete(struct corral_push_receiver *r, struct push_conn *c);
enum corral_status receiving_commit(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                                    struct corral_digest digest, struct corral_error *err);
void receiving_taint(struct corral_push_receiver *r, int32_t pid);
/* A pull begins; it, or what was to be aborted, is over: PREPAREs that waited are taken up. */
void receiving_pull_begins(struct corral_push_receiver *r);
void receiving_over(struct corral_push_receiver *r);
/* A member of the version is gone (its state is CLOSING already). */
void receiving_lost(struct corral_push_receiver *r, struct push_conn *c, const struct corral_error *why);
void receiving_abort(struct corral_push_receiver *r, const struct corral_error *why);
/* ABORT: has every worker stopped? Then the target is told. */
void receiving_settle(struct corral_push_receiver *r);
/* Deadlines; returns when to look again. */
uint64_t receiving_tick(struct corral_push_receiver *r, uint64_t now);
/* Tells READY to all when every rank that has something to send is there, and a leader. */
void receiving_announce(struct corral_push_receiver *r);

#endif
