/* The sender of the push protocol (docs/spec/weight-push.md): one poll loop over all receivers, in the caller's thread. Internal to push/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_SENDER_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_SENDER_INTERNAL_H

#include "base/clock.h"
#include "transport/weights/encode/base.h"
#include "transport/weights/push/account.h"
#include "transport/weights/push/frame.h"

#define PEER_ENDPOINT_MAX 96

/* What goes to one destination rank: shared by all receivers of that rank (replicas of an engine). */
struct cut {
    struct corral_link *link;
    struct corral_digest *digest; /* per bucket, of the source as it is in this push */
    bool *known;
    uint64_t staged; /* leader: the version whose digest at receivers of this rank is `whole`; 0: none */
    struct corral_digest whole;
    struct corral_base *base; /* NULL: no deltas */
    uint64_t held;            /* of the account, for the base */
    bool denied;              /* no memory for deltas in this push */
};

enum peer_state {
    PEER_OUT,     /* no connection */
    PEER_CONNECT, /* connect() is under way */
    PEER_CHALLENGE,
    PEER_WELCOME,
    PEER_OFFER,   /* LANE was sent */
    PEER_READING, /* everything is sent, READY is awaited */
    PEER_READY,
    PEER_PLACE, /* PREPARE was sent; in a version from here on */
    PEER_SEND,
    PEER_STAGE, /* all buckets taken; the leader awaits STAGED, the others what becomes of it */
    PEER_STAGED,
    PEER_COMMIT, /* leader: COMMIT was sent */
};

enum peer_outcome {
    OUTCOME_NONE, /* takes no part in this push, or has not begun */
    OUTCOME_UNDER_WAY,
    OUTCOME_APPLIED,
    OUTCOME_FAILED,
};

struct push_peer {
    char name[CORRAL_PUSH_NAME_MAX], endpoint[PEER_ENDPOINT_MAX], replica[CORRAL_PUSH_NAME_MAX];
    uint32_t rank;
    struct cut *cut; /* the sender's, of `rank` */
    struct push_io io;
    enum peer_state state;
    uint8_t hello[PUSH_HELLO_BYTES];
    struct corral_lane *lane;
    uint64_t held;        /* of the account, for the lane */
    uint32_t lane_choice; /* of the lanes both allow */
    char lanes_tried[200], their_lanes[PUSH_LANES_MAX + 1];
    uint64_t has;                   /* version it is known to have */
    struct corral_delta_version at; /* what it last said that it has */
    uint32_t since_whole;           /* versions it has got as deltas, one after the other */
    bool whole_next;                /* a delta did not give what it should have */
    uint64_t refused;               /* version it will not have: not offered again */
    uint64_t push;                  /* number of the last one on this connection */
    bool fresh; /* never given up so far, or added again: pushes wait until it is connected */
    bool down;  /* a line about it has been logged */
    uint64_t retry_ns, backoff_ns, spoke_ns;
    uint64_t step_ns; /* the last step of the login: connecting, or a frame of the receiver's */
    /* In this push. */
    enum peer_outcome outcome;
    bool waited; /* the push is not over before it is */
    uint32_t next, taken, again_from, again_count;
    uint32_t *again;        /* ring: buckets to be sent once more */
    uint8_t *attempt;       /* per bucket */
    uint64_t in_lane, left; /* buckets given to the lane and gone from it */
    uint64_t moved_ns;      /* when anything last moved */
    uint64_t begun_ns;      /* PREPARE was sent */
    uint64_t first_ns, taken_ns, staged_ns, commit_ns, applied_ns, gather_ns, pack_ns, pause_ns;
    uint64_t skew_ns;   /* as the receiver says: how long it waited for `slow_rank` */
    uint32_t slow_rank; /* PUSH_NO_RANK: for nobody */
    uint32_t resent;
    uint64_t moved;
    uint64_t offered; /* base that PREPARE named; 0: none */
    bool deltas;      /* and it takes deltas on it */
    struct corral_digest digest;
};

struct corral_push_sender {
    struct corral_push_sender_options options;
    char lanes[PUSH_LANES_MAX + 1], lane_host[64], lane_device[256];
    struct cut *cut[CORRAL_PUSH_RECEIVERS_MAX]; /* by rank, created when needed; at most one per receiver */
    uint32_t cuts;
    struct push_peer *peer[CORRAL_PUSH_RECEIVERS_MAX];
    uint32_t peers;
    uint64_t last;    /* version of the last push */
    uint64_t process; /* random: this sender, and no other */
    struct push_account account;
    /* The push under way. */
    uint64_t version, base, start_ns, deadline_ns;
    bool catching;
    struct corral_shard source;
    struct corral_error error; /* of a peer that failed last */
};

static inline uint64_t push_now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}
static inline bool peer_in_version(const struct push_peer *p)
{
    return p->state >= PEER_PLACE;
}

/* ---- sender_delta.c ---- */
/* The base that this receiver may get deltas on; version 0: it gets whole buckets. While catching up the source is only good for those. */
struct corral_delta_version sender_offer_base(const struct corral_push_sender *s, const struct push_peer *p);
/* A push begins: is there memory for its deltas? */
void sender_ask_for_bases(struct corral_push_sender *s);
/* A push is over. */
void sender_keep_bases(struct corral_push_sender *s);

/* ---- peer_login.c ---- */
void peer_connect(struct corral_push_sender *s, struct push_peer *p);
enum corral_status peer_login_frame(struct corral_push_sender *s, struct push_peer *p,
                                    const struct push_frame *f, const uint8_t *payload,
                                    struct corral_error *err);
enum corral_status peer_connected(struct corral_push_sender *s, struct push_peer *p,
                                  struct corral_error *err);

/* ---- peer.c ---- */
/* What the lane has come to hold, asked for. */
enum corral_status peer_account(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err);
/* When the leader stops waiting for STAGED. */
static inline uint64_t sender_patience_end(const struct corral_push_sender *s)
{
    return s->start_ns + (s->deadline_ns - s->start_ns) / 4 * 3;
}
enum corral_status peer_queue(struct corral_push_sender *s, struct push_peer *p, enum push_type type,
                              uint64_t version, const void *payload, uint32_t bytes,
                              struct corral_error *err);
/* Closes lane and connection; with a version under way it has failed. fault: of the receiver, which is tried again only after a pause. */
void peer_drop(struct corral_push_sender *s, struct push_peer *p, bool fault, const struct corral_error *why);
/* Offers it the version of this push when it is ready. */
void peer_begin(struct corral_push_sender *s, struct push_peer *p);
/* READY has come in the middle of a push. */
enum corral_status peer_ready(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err);
enum corral_status peer_commit(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err);
/* As far as it goes without waiting. True: something moved. */
bool peer_advance(struct corral_push_sender *s, struct push_peer *p, short revents);

#endif
