/* The sender's insides. sender.c: interface and waiting. sender_rank.c: one stream's session: credit, acknowledgement, sending again. sender_gather.c: records into parcels.
 * sender_zmq.c: the carrier, which moves bytes and knows nothing of sessions. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_SENDER_PRIVATE_H
#define CORRAL_TRANSPORT_TRAJECTORY_SENDER_PRIVATE_H

#include "transport/bus/socket.h"
#include "transport/trajectory/block.h"
#include "transport/trajectory/local/local.h"
#include "transport/trajectory/ring/ring.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/wire.h"
#include <stdatomic.h>
#include <zmq.h>

/* One message with records. Lies in a block, in front of what is sent: this, the batch header, the records. */
struct corral_traj_parcel {
    _Alignas(64) struct corral_traj_block
        *block; /* a reference to it is held for as long as the parcel is in a list */
    struct corral_traj_parcel *next;
    uint64_t bytes;       /* of its records */
    uint64_t first;       /* sequence of its first record */
    uint64_t session;     /* the last one it was sent in; 0: never */
    uint64_t acked_bytes; /* of its first records, which are acknowledged */
    uint32_t count;
    _Atomic uint32_t
        lent; /* times the carrier has it; acquire on reading 0 pairs with the release of letting go */
};
static_assert(sizeof(struct corral_traj_parcel) == 64, "records behind it and the header stay aligned");
#define CORRAL_TRAJ_PARCEL_BYTES (sizeof(struct corral_traj_parcel) + sizeof(struct corral_traj_batch))
static_assert(CORRAL_TRAJ_PARCEL_BYTES <= CORRAL_TRAJ_ITEM_BYTES, "what a record counts for covers it");

static inline struct corral_traj_batch *corral_traj_parcel_header(struct corral_traj_parcel *p)
{
    return (struct corral_traj_batch *)(void *)(p + 1);
}

static inline uint8_t *corral_traj_parcel_records(struct corral_traj_parcel *p)
{
    return (uint8_t *)(p + 1) + sizeof(struct corral_traj_batch);
}

static inline bool corral_traj_parcel_free(const struct corral_traj_parcel *p)
{
    return atomic_load_explicit(&p->lent, memory_order_acquire) == 0;
}

enum corral_traj_rank_state {
    CORRAL_TRAJ_RANK_CLOSED,
    CORRAL_TRAJ_RANK_CALLING,  /* at the door of a rank of this node, with the ring; no answer yet */
    CORRAL_TRAJ_RANK_GREETING, /* connected or connecting; hello not sent yet */
    CORRAL_TRAJ_RANK_WAITING,  /* hello sent */
    CORRAL_TRAJ_RANK_LIVE,
    CORRAL_TRAJ_RANK_REFUSED,
};

struct corral_traj_rank;
/* How bytes get to a rank. None of these waits. */
struct corral_traj_carrier {
    /* A control message; false: not now. */
    bool (*send)(struct corral_traj_rank *r, const void *data, size_t bytes);
    /* The header and the records of a parcel, without copying: it stays as it is while it is lent. False: not now. */
    bool (*send_parcel)(struct corral_traj_rank *r, struct corral_traj_parcel *p);
    /* The next control message. False: none. One of another kind or longer than `room` comes as one of 0 bytes. */
    bool (*receive)(struct corral_traj_rank *r, void *buffer, size_t room, size_t *bytes);
    void (*close)(struct corral_traj_rank *r);
};
extern const struct corral_traj_carrier corral_traj_carrier_zmq;

struct corral_traj_rank {
    uint32_t index;
    enum corral_traj_rank_state state;
    const struct corral_traj_carrier *carrier; /* NULL: never connected */
    void *socket;
    char endpoint[CORRAL_ZMQ_ENDPOINT_MAX];
    char reason[160];
    bool reason_told;
    bool reclaim_due; /* the receiver wants idle credit back and has no answer yet */
    /* parcels that are not acknowledged, oldest first, and the first of them to send (again); everything after it too */
    struct corral_traj_parcel *head, *tail, *unsent;
    struct corral_traj_parcel *last; /* sent last; a reference to its block is held */
    /* gathering */
    struct corral_traj_block *chunk; /* where small records go, filled up to chunk_used */
    uint64_t chunk_used;
    struct corral_traj_parcel *open; /* in it, not in the list yet */
    struct corral_traj_block *alone; /* reserved for a large record */
    void *reserved;
    uint64_t reserved_bytes;

    /* through a ring: records are written to where the rank reads them, and parcels are not used; control messages go over ZeroMQ as ever */
    struct corral_ring *ring;         /* NULL: this rank is reached over ZeroMQ alone */
    uint64_t ring_first;              /* sequence of its record number 0 */
    char door[CORRAL_LOCAL_PATH_MAX]; /* "": the endpoint is not on this node */
    int link;                         /* to who is behind the door, or -1 */
    bool answered;                    /* over this link: the rank has the ring */
    uint64_t wanted_bytes;            /* of the record for which the ring had no room */
    uint64_t call_ns, looked_ns;      /* not before this time; when it was seen last that the link is there */

    uint64_t last_sequence, acked_sequence;
    uint64_t finished_sequence, older; /* what the receiver said last */
    bool welcomed;                     /* once, by any receiver of this rank */
    uint64_t session, offset, limit, wanted, buffer;
    uint64_t counted; /* records up to here count in `offset` or were received before this session */
    uint64_t heard_ns, asked_ns, reclaimed_ns;
    uint64_t unacked_bytes, blocked, blocked_ns, blocked_since_ns; /* since: 0 while it is not blocked */
};

struct corral_traj_sender {
    void *context;
    uint64_t run;
    uint64_t window; /* what is left of it for parcels */
    uint64_t ring_bytes, no_ring;
    enum corral_traj_transport transport;
    const struct corral_allocator *memory;
    uint64_t chunk_bytes;
    uint32_t worker, epoch;
    char token[CORRAL_BUS_TOKEN_MAX];
    char server_key[41];
    struct corral_traj_pool *pool;
    struct corral_mpack_writer *writer;
    struct corral_traj_rank *ranks;
    uint32_t rank_count;
    struct corral_traj_sender_stats stats;
};

/* ---- sender_zmq.c ---- */
enum corral_status corral_traj_zmq_connect(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                           const char *endpoint, struct corral_error *err);

/* ---- sender_ring.c ---- */
#define CORRAL_RING_CALL_MS 20 /* between two calls at a door */
/* Takes the ring for a rank at r->endpoint, or not. Fails only when nothing else is allowed. */
enum corral_status corral_traj_ring_choose(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                           struct corral_error *err);
/* Before a hello. False: not yet: the door has not answered. */
bool corral_traj_ring_call(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* While CALLING: hear the answer. */
void corral_traj_ring_hear(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* The rank is served over ZeroMQ and has no door: what is in the ring goes into parcels, and the ring goes. False: not possible now. */
bool corral_traj_ring_leave(struct corral_traj_sender *s, struct corral_traj_rank *r);
/* Acknowledge what has been released. */
void corral_traj_ring_settle(struct corral_traj_sender *s, struct corral_traj_rank *r);
/* Whoever had the ring is gone. Looks every now and then. */
bool corral_traj_ring_lost(struct corral_traj_rank *r, uint64_t now);
enum corral_status corral_traj_ring_reserve(struct corral_traj_rank *r, uint64_t bytes,
                                            struct corral_error *err);
void corral_traj_ring_commit(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t bytes);
/* Bytes in the ring whose memory has not come back. */
uint64_t corral_traj_ring_used(const struct corral_traj_rank *r);
void corral_traj_ring_free(struct corral_traj_sender *s, struct corral_traj_rank *r);

/* ---- sender_rank.c ---- */
/* The rank has told that it may be forgotten. */
void corral_traj_rank_acknowledge(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t acked);
/* Start a session: hello now, or as soon as there is a connection. */
void corral_traj_rank_greet(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* Read everything that has come. True when there was something. */
bool corral_traj_rank_drain(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* Whatever is due: hello, answers, records, a question after a long silence. */
void corral_traj_rank_service(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now);
/* Send what is due, as far as credit goes. */
void corral_traj_rank_pump(struct corral_traj_sender *s, struct corral_traj_rank *r);
/* Ask for credit for one more record that counts for this much. */
void corral_traj_rank_want(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t cost);
/* Let go of all parcels, each with one record. */
void corral_traj_rank_drop(struct corral_traj_sender *s, struct corral_traj_rank *r);
/* Let go of everything. */
void corral_traj_rank_free(struct corral_traj_sender *s, struct corral_traj_rank *r);

/* ---- sender_gather.c ---- */
/* There is no reservation any more. */
void corral_traj_gather_drop(struct corral_traj_rank *r);
/* Memory for a record of `bytes`, which has credit, when nothing is reserved. */
enum corral_status corral_traj_gather_reserve(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                              uint64_t bytes, struct corral_error *err);
/* `bytes` of the reservation are a record with the rank's next sequence. */
void corral_traj_gather_commit(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t bytes);
/* What is gathered becomes a parcel to send, unless a reservation is open in it. */
void corral_traj_gather_seal(struct corral_traj_rank *r);
/* Credit of what is gathered and not sealed. */
uint64_t corral_traj_gather_cost(const struct corral_traj_rank *r);
/* A record that has its sequence already, behind all others, in a parcel of its own. */
enum corral_status corral_traj_gather_copy(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                           const void *record, uint64_t bytes, uint64_t sequence,
                                           struct corral_error *err);
/* Cut a parcel behind its first `count` records; the others are copied into one of their own behind it. */
enum corral_status corral_traj_parcel_split(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                            struct corral_traj_parcel *p, uint32_t count,
                                            struct corral_error *err);

#endif
