/* The node's board: one slot per worker in a shared mapping (memfd made by the agent), so that liveness and progress cost the
 * worker a few stores and no message. The worker writes its own slot; the agent reads all of them and forwards a summary in its beat.
 * Every field is a relaxed atomic; `beat_ns` is stored last with release order and read first with acquire order. Hot path: no system call.
 */
#ifndef CORRAL_TRANSPORT_BOARD_H
#define CORRAL_TRANSPORT_BOARD_H

#include "base/error.h"
#include <stdatomic.h>
#include <stdint.h>

#define CORRAL_BOARD_SLOTS_MAX 256

/* What a worker is doing right now; the agent turns a long stay into a named reason. */
enum corral_activity {
    CORRAL_ACTIVITY_STARTING,
    CORRAL_ACTIVITY_IDLE,
    CORRAL_ACTIVITY_ENV_STEP,
    CORRAL_ACTIVITY_INFERENCE,
    CORRAL_ACTIVITY_WAIT_VERSION,
    CORRAL_ACTIVITY_WAIT_CREDIT,
    CORRAL_ACTIVITY_WAIT_BATCH,
    CORRAL_ACTIVITY_TRAIN,
    CORRAL_ACTIVITY_PUBLISH,
    CORRAL_ACTIVITY_CHECKPOINT,
    CORRAL_ACTIVITY_EVALUATE,
    CORRAL_ACTIVITY_STOPPING,
    CORRAL_ACTIVITY_COUNT
};
const char *corral_activity_name(enum corral_activity a); /* "env step", "waiting for credit", … */

enum corral_board_counter {
    CORRAL_BOARD_ENV_STEPS,
    CORRAL_BOARD_EPISODES,
    CORRAL_BOARD_FRAGMENTS,
    CORRAL_BOARD_ACKED,
    CORRAL_BOARD_RESENT,
    CORRAL_BOARD_VERSION,
    CORRAL_BOARD_TRAIN_STEPS,
    CORRAL_BOARD_TRANSITIONS,
    CORRAL_BOARD_DUPLICATES,
    CORRAL_BOARD_DROPPED_STALE,
    CORRAL_BOARD_VOID_EPISODES,
    CORRAL_BOARD_MEMORY_BYTES,
    CORRAL_BOARD_COUNTERS
};

struct corral_board_slot {
    _Atomic uint64_t beat_ns;     /* CLOCK_MONOTONIC of the last sign of life; 0 = never */
    _Atomic uint64_t activity_ns; /* when `activity` was entered */
    _Atomic uint32_t activity;
    _Atomic int32_t pid;
    _Atomic uint64_t counter[CORRAL_BOARD_COUNTERS];
} __attribute__((aligned(128)));

struct corral_board;
enum corral_status corral_board_create(uint32_t slots, int *fd_out, struct corral_board **out,
                                       struct corral_error *err);
enum corral_status corral_board_attach(int fd, struct corral_board **out, struct corral_error *err);
void corral_board_detach(struct corral_board *b);
struct corral_board_slot *corral_board_slot(struct corral_board *b, uint32_t i); /* NULL past the end */

/* Worker side. */
void corral_board_enter(struct corral_board_slot *s,
                        enum corral_activity a); /* also beats; STARTING writes the caller's pid too */
void corral_board_beat(struct corral_board_slot *s);
static inline void corral_board_add(struct corral_board_slot *s, enum corral_board_counter c, uint64_t n)
{
    /* single writer: a plain add on a relaxed atomic */
    atomic_store_explicit(&s->counter[c], atomic_load_explicit(&s->counter[c], memory_order_relaxed) + n,
                          memory_order_relaxed);
}
static inline void corral_board_set(struct corral_board_slot *s, enum corral_board_counter c, uint64_t v)
{
    atomic_store_explicit(&s->counter[c], v, memory_order_relaxed);
}

#endif
