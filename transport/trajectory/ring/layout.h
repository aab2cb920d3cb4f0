/* What lies in a ring's memory (docs/spec/trajectory-ring.md), and the side that looks at it. Private to ring/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RING_LAYOUT_H
#define CORRAL_TRANSPORT_TRAJECTORY_RING_LAYOUT_H

#include "transport/trajectory/ring/ring.h"
#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>

#define RING_MAGIC UINT32_C(0x474e5243) /* "CRNG" */
#define RING_VERSION 1u
#define RING_FLAG_LIGHT UINT64_C(1)
#define RING_FLAG_HUGE UINT64_C(2)
#define RING_CONTROL_BYTES 4096u
#define RING_HEADER_BYTES 64u
/* Low six bits of a stamp. Any two differ in three bits. */
#define RING_OPEN UINT64_C(0x07)
#define RING_COMMITTED UINT64_C(0x38)
#define RING_RELEASED UINT64_C(0x2d)
#define RING_LOW UINT64_C(63)

struct ring_header {
    _Atomic uint64_t stamp, number, mark, bytes, seal;
    uint64_t unused[3];
};
static_assert(sizeof(struct ring_header) == RING_HEADER_BYTES, "one cache line");

/* Each group on a pair of cache lines of its own: processors fetch pairs. */
struct ring_control {
    uint32_t magic, version;
    uint64_t key, capacity, flags, check;
    _Alignas(128) _Atomic uint64_t holder[2]; /* by enum corral_ring_side */
    _Alignas(128) _Atomic uint64_t tail;
    _Atomic uint64_t released;
    _Alignas(128) _Atomic uint64_t consumer_sleeps;
    _Alignas(128) _Atomic uint64_t producer_sleeps;
};
static_assert(offsetof(struct ring_control, holder) == 128 && offsetof(struct ring_control, tail) == 256 &&
                  offsetof(struct ring_control, consumer_sleeps) == 384 &&
                  offsetof(struct ring_control, producer_sleeps) == 512 &&
                  sizeof(struct ring_control) <= RING_CONTROL_BYTES,
              "the layout of the spec");

struct corral_ring {
    uint8_t *data; /* capacity bytes, and the same again behind them */
    struct ring_control *control;
    uint64_t capacity, key, flags;
    uint64_t own; /* holder word of this process */
    uint64_t position,
        offset; /* producer: of the open header; consumer: of the next record; offset = position mod capacity */
    uint64_t number; /* of that record */
    uint64_t tail;   /* producer: as last seen; consumer: its own */
    /* producer */
    uint64_t room; /* bytes reserved; NONE: nothing is */
    /* consumer */
    uint64_t tail_offset;
    uint64_t released; /* in all */
    uint64_t marked;   /* released ones above the tail */
    /* */
    enum corral_ring_side side;
    int fd[3]; /* memory, consumer's bell, producer's bell */
    uint64_t map_bytes;
    void *charged; /* what stands for the ring's bytes in the quota */
    uint64_t charged_bytes;
    const struct corral_allocator *charge;
    bool advised; /* the kernel was asked for huge pages */
    const char *pages;
};
#define RING_NONE UINT64_MAX

static inline uint64_t ring_round(uint64_t bytes)
{
    return (bytes + RING_LOW) & ~RING_LOW;
}

static inline uint64_t ring_mix(uint64_t x)
{
    x *= UINT64_C(0x9E3779B97F4A7C15);
    return x ^ x >> 32;
}

static inline uint64_t ring_check(uint64_t key, uint64_t position, uint64_t number, uint64_t bytes)
{
    return ring_mix(ring_mix(ring_mix(key ^ position) ^ number) ^ bytes);
}

static inline uint64_t ring_fold(uint64_t position)
{
    uint64_t x = position >> 6; /* 58 bits: nine groups and four bits */
    x ^= x >> 30;
    return (x ^ x >> 6 ^ x >> 12 ^ x >> 18 ^ x >> 24) & RING_LOW;
}

static inline struct ring_header *ring_header_at(const struct corral_ring *r, uint64_t offset)
{
    return (struct ring_header *)(r->data + offset);
}

static inline uint64_t ring_step(const struct corral_ring *r, uint64_t offset, uint64_t bytes)
{
    offset += bytes;
    return offset >= r->capacity ? offset - r->capacity : offset;
}

/* memory.c */
/* On failure the caller frees. */
enum corral_status ring_memory_create(struct corral_ring *r, uint64_t bytes, bool huge_pages,
                                      const struct corral_allocator *charge, struct corral_error *err);
enum corral_status ring_memory_map(struct corral_ring *r, struct corral_error *err);
void ring_memory_free(struct corral_ring *r);
/* membarrier(2): the caller's process takes part; false where there is none. */
bool ring_light_register(void);

/* ring.c */
/* A committed or released header at `position`: its record's bytes. Checks everything. */
enum corral_status ring_header_check(const struct corral_ring *r, uint64_t position, uint64_t offset,
                                     uint64_t number, uint64_t *bytes, struct corral_error *err);
enum corral_status ring_damaged(struct corral_error *err, const char *what, uint64_t position);
/* The shared tail is taken over if it is possible. */
bool ring_producer_refresh(struct corral_ring *r);
static inline bool ring_has_room(const struct corral_ring *r, uint64_t bytes)
{
    return r->position + 2 * RING_HEADER_BYTES + ring_round(bytes) - r->tail <= r->capacity;
}

/* copy.c */
/* Gives lines that this side has read and the other one writes next back to memory, where that is quick. */
void ring_forget(const void *at, uint64_t bytes);

/* wake.c */
void ring_ring(struct corral_ring *r, enum corral_ring_side sleeper);

/* What orders a commit or a new tail before the look at the sleeper's word; pairs with the barrier in corral_ring_arm(). */
static inline void ring_light_barrier(const struct corral_ring *r)
{
    if (r->flags & RING_FLAG_LIGHT) {
        atomic_signal_fence(memory_order_seq_cst);
    } else {
        atomic_thread_fence(memory_order_seq_cst);
    }
}

#endif
