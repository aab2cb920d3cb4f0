/* A ring of variable-size records in shared memory: one producer, one consumer, each a process (or thread) of its own. Memory format: docs/spec/trajectory-ring.md.
 *
 *     producer: reserve → write in place → commit                consumer: next → read in place → release, in any order
 *
 * A record is visible when it is complete, and its bytes stay where they are until it is released. Neither side makes a system call while the other keeps up: a side that has nothing to do
 * says so in the ring and sleeps on its eventfd; the other rings it then, and only then.
 *
 * DEATH. Everything that must outlive a process is in the mapping. A producer that is killed leaves its unfinished reservation, which its successor (attach) takes back; what it had committed is read as
 * ever. A consumer that is killed leaves what it had not released: its successor reads that again, from the oldest, and knows by the record's own identity what it has used already. Which process holds a
 * side is stored as pid + start time: attaching to a side whose holder lives is CORRAL_EXISTS.
 *
 * TRUST. Both sides check what the other wrote before they follow it: a damaged ring is CORRAL_PROTOCOL, never an access outside. The mapping is a sealed memfd, so it cannot shrink.
 * THREADS. Each side: one thread. LIMITS: a record has at most half the ring.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RING_H
#define CORRAL_TRANSPORT_TRAJECTORY_RING_H

#include "base/error.h"
#include "base/memory.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_RING_BYTES_MIN (64u << 10)
#define CORRAL_RING_BYTES_MAX (UINT64_C(64) << 30)
#define CORRAL_RING_ALIGN 64u /* of every record */

struct corral_ring;
enum corral_ring_side { CORRAL_RING_PRODUCER, CORRAL_RING_CONSUMER };

struct corral_ring_item {
    const void *data;  /* aligned to CORRAL_RING_ALIGN; in the ring until released */
    uint64_t bytes;    /* as reserved (or as committed, when that was less) */
    uint64_t position; /* what release() is told */
    uint64_t number;   /* of the record in the ring: 0, 1, 2, … */
};

/* A new ring of at least `bytes`, as its producer. Charged to whom `charge` says (may be NULL), for as long as this side holds it. */
enum corral_status corral_ring_create(struct corral_ring **out, uint64_t bytes, bool huge_pages,
                                      const struct corral_allocator *charge, struct corral_error *err);
/* The descriptors that the other side needs: the mapping, the consumer's bell, the producer's bell. Borrowed. */
void corral_ring_descriptors(const struct corral_ring *r, int fd[3]);
/* A side of a ring that exists. The descriptors are duplicated. */
enum corral_status corral_ring_attach(struct corral_ring **out, enum corral_ring_side side, const int fd[3],
                                      struct corral_error *err);
uint64_t corral_ring_capacity(const struct corral_ring *r);
/* What its memory lies in, for people: "huge" when huge_pages were to be had, otherwise "base…". */
const char *corral_ring_pages(const struct corral_ring *r);
/* Leaves the ring as it is for a successor of this side. NULL is fine. */
void corral_ring_close(struct corral_ring *r);

/* ---- producer ---- */
/* CORRAL_AGAIN: no room until something is released. CORRAL_INVALID: more than half the ring. Reserving again before commit replaces the reservation. */
enum corral_status corral_ring_reserve(struct corral_ring *r, uint64_t bytes, void **out,
                                       struct corral_error *err);
void corral_ring_commit(struct corral_ring *r, uint64_t bytes); /* at most what was reserved */
/* memcpy into reserved memory; large ones past the caches, which is several times as fast when the consumer still has the old bytes in its own. Plain stores do as well. */
void corral_ring_copy(void *to, const void *from, uint64_t bytes);
bool corral_ring_full(struct corral_ring *r, uint64_t bytes); /* reserve() would say CORRAL_AGAIN */
uint64_t corral_ring_unreleased(const struct corral_ring *r); /* records committed and not released */
uint64_t corral_ring_released(const struct corral_ring *r);   /* all in all: grows */
/* The number of the oldest record whose memory has not come back (of the next one when all has), and how many bytes are from there on. Everything before it is released. CORRAL_PROTOCOL: the
 * consumer's word is damaged. No system call. */
enum corral_status corral_ring_oldest(struct corral_ring *r, uint64_t *number, uint64_t *bytes,
                                      struct corral_error *err);
/* The record at *position (UINT64_MAX: the oldest), whose memory has not come back; *position moves on. CORRAL_AGAIN: that was the last one. */
enum corral_status corral_ring_kept(struct corral_ring *r, uint64_t *position, struct corral_ring_item *out,
                                    struct corral_error *err);

/* ---- consumer ---- */
/* The next record that has not been handed out by this holder; CORRAL_AGAIN: none. */
enum corral_status corral_ring_next(struct corral_ring *r, struct corral_ring_item *out,
                                    struct corral_error *err);
/* Every record below this number has been handed out to this holder, or was released before it. */
uint64_t corral_ring_reached(const struct corral_ring *r);
/* In any order; memory comes back to the producer in order. */
enum corral_status corral_ring_release(struct corral_ring *r, uint64_t position, struct corral_error *err);

/* ---- both ---- */
/* A descriptor that becomes readable when there may be something to do, after arm(); for poll and epoll with many rings. arm() returns false when there is something already: do not sleep. */
int corral_ring_bell(const struct corral_ring *r);
bool corral_ring_arm(struct corral_ring *r, uint64_t room); /* room: producer: bytes it waits for */
void corral_ring_disarm(struct corral_ring *r);
/* arm, sleep, disarm: CORRAL_TIMEOUT, or CORRAL_PEER when the other side's holder is dead and nothing is left to do. */
enum corral_status corral_ring_wait(struct corral_ring *r, uint64_t room, uint64_t timeout_ns,
                                    struct corral_error *err);
bool corral_ring_peer_alive(const struct corral_ring *r);

#endif
