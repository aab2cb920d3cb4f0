/* The sender's insides, shared by sender.c (interface, waiting) and sender_rank.c (one connection and its session). */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_SENDER_PRIVATE_H
#define CORRAL_TRANSPORT_TRAJECTORY_SENDER_PRIVATE_H

#include "transport/bus/socket.h"
#include "transport/trajectory/block.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/wire.h"
#include <zmq.h>

struct corral_traj_entry { /* one fragment that is not acknowledged */
    struct corral_fragment fragment;
    struct corral_traj_block *block;
    uint64_t bytes; /* what it counts for */
    uint64_t frame_bytes;
    uint64_t session; /* the last one it was sent in, and whether it ever was */
    bool sent;
    struct corral_traj_entry *next;
};

enum corral_traj_rank_state {
    CORRAL_TRAJ_RANK_CLOSED,
    CORRAL_TRAJ_RANK_GREETING, /* connected or connecting; hello not sent yet */
    CORRAL_TRAJ_RANK_WAITING,  /* hello sent */
    CORRAL_TRAJ_RANK_LIVE,
    CORRAL_TRAJ_RANK_REFUSED,
};

struct corral_traj_rank {
    enum corral_traj_rank_state state;
    void *socket;
    char endpoint[CORRAL_ZMQ_ENDPOINT_MAX];
    char reason[160];
    bool reason_told;
    bool reclaim_due; /* the receiver wants idle credit back and has no answer yet */
    struct corral_traj_entry *head, *tail;
    struct corral_traj_entry *unsent; /* first entry to send (again); everything after it too */
    uint64_t last_sequence;
    uint64_t session, offset, limit, wanted, buffer;
    uint64_t heard_ns, asked_ns, reclaimed_ns;
};

struct corral_traj_sender {
    void *context;
    uint64_t run, window;
    uint32_t worker, epoch;
    char token[CORRAL_BUS_TOKEN_MAX];
    char server_key[41];
    struct corral_traj_pool *pool;
    struct corral_mpack_writer *writer;
    struct corral_traj_rank *ranks;
    uint32_t rank_count;
    struct corral_traj_sender_stats stats;
};

/* Start a session: hello now, or as soon as there is a connection. */
void corral_traj_rank_greet(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* Read everything that has come. True when there was something. */
bool corral_traj_rank_drain(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* Whatever is due: hello, answers, fragments, a question after a long silence. */
void corral_traj_rank_service(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* Send what is due, as far as credit goes. */
void corral_traj_rank_pump(struct corral_traj_sender *s, struct corral_traj_rank *r);
/* Ask for credit for a fragment of this size. */
void corral_traj_rank_want(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t bytes);
/* Let go of the oldest entry. */
void corral_traj_rank_drop_head(struct corral_traj_sender *s, struct corral_traj_rank *r);

#endif
