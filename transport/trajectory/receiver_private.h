/* The receiver's insides, shared by receiver.c (interface, waiting) and receiver_handle.c (what one message does). */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_PRIVATE_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECEIVER_PRIVATE_H

#include "transport/bus/idmap.h"
#include "transport/bus/socket.h"
#include "transport/trajectory/block.h"
#include "transport/trajectory/credit.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/wire.h"
#include <zmq.h>

struct
    corral_traj_held { /* a fragment that was handed out; `fragment` comes first: finish() gets its address */
    struct corral_fragment fragment;
    struct corral_traj_block *block;
    uint64_t bytes;
    uint64_t serial; /* hand-out order */
    struct corral_traj_held *next, **link;
};

struct corral_traj_stream { /* one worker */
    bool known;             /* it has said hello, or was restored */
    uint32_t index;
    uint32_t epoch;    /* the newest that said hello */
    uint64_t received; /* in `epoch`: handed out up to here */
    uint64_t finished; /* in `epoch`: finished up to here */
    struct corral_traj_cursor
        cursor; /* what would be saved: of an older epoch until the newer one finishes something */
    uint32_t held_count;
    uint64_t finished_serial; /* of the fragment finished last */
    bool live;                /* has a session over `route` */
    uint32_t route;
    uint64_t session;
    bool dirty;            /* is in the receiver's list of streams to be told something */
    bool credit_due;       /* cumulative ack or limit changed */
    bool resend_due;       /* ask to go back to received + 1 … */
    uint64_t resend_at_ns; /* … not before this time */
    uint64_t told_limit;   /* in the last welcome or credit */
    bool complained;
};

struct corral_traj_receiver {
    void *context, *socket;
    uint64_t run;
    char token[CORRAL_BUS_TOKEN_MAX];
    char bound[CORRAL_ZMQ_ENDPOINT_MAX];
    struct corral_traj_pool *pool;
    struct corral_mpack_writer *writer;
    struct corral_idmap by_route; /* live streams */
    struct corral_idring strangers;
    struct corral_credit credit; /* accounts by worker index */
    uint32_t workers;            /* indices below this are let in */
    uint64_t fragment_max;       /* larger ones are not */
    struct corral_traj_stream *streams;
    uint32_t *dirty; /* worker indices */
    uint32_t dirty_count;
    struct corral_traj_held *held;
    uint64_t serial;
    struct corral_traj_receiver_stats stats;
};

struct corral_traj_incoming {
    zmq_msg_t frame; /* always initialised */
    uint32_t frames; /* behind the routing id; one is right, and `frame` is the first */
    uint32_t route;
};

/* What one message does. *out is set when it was a fragment that is to be handed out. */
void corral_traj_receiver_handle(struct corral_traj_receiver *r, struct corral_traj_incoming *in,
                                 struct corral_traj_held **out);
/* Mark a stream as having something to be told; corral_traj_receiver_flush() tells all that are marked. */
void corral_traj_receiver_mark(struct corral_traj_receiver *r, struct corral_traj_stream *st);
/* Serve and top up every account, and mark the streams that changed. */
void corral_traj_receiver_share(struct corral_traj_receiver *r);
void corral_traj_receiver_malformed(struct corral_traj_receiver *r, uint32_t route, const char *why);

#endif
