/* Sleeping and waking: who sleeps says so, and is rung only then (docs/spec/trajectory-ring.md). */
#include "base/clock.h"
#include "transport/trajectory/ring/layout.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOK_NS (50 * CORRAL_NS_PER_MS) /* whether the other side lives */

bool ring_light_register(void)
{
    long known = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    return known > 0 && (known & MEMBARRIER_CMD_GLOBAL_EXPEDITED) != 0 &&
           syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

/* The sleeper's barrier: between its word and its last look. */
static bool heavy_barrier(const struct corral_ring *r)
{
    if (r->flags & RING_FLAG_LIGHT) {
        return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0;
    }
    atomic_thread_fence(memory_order_seq_cst);
    return true;
}

static _Atomic uint64_t *sleep_word(const struct corral_ring *r, enum corral_ring_side side)
{
    return side == CORRAL_RING_CONSUMER ? &r->control->consumer_sleeps : &r->control->producer_sleeps;
}

static int bell_of(const struct corral_ring *r, enum corral_ring_side side)
{
    return r->fd[side == CORRAL_RING_CONSUMER ? 1 : 2];
}

void ring_ring(struct corral_ring *r, enum corral_ring_side sleeper)
{
    /* acq_rel: of two that see the word set, one rings; what was published comes before the sleeper's disarm */
    if (atomic_exchange_explicit(sleep_word(r, sleeper), 0, memory_order_acq_rel) != 0) {
        uint64_t one = 1;
        ssize_t n;
        do {
            n = write(bell_of(r, sleeper), &one, sizeof one);
        } while (n < 0 && errno == EINTR); /* EAGAIN: the bell is readable as it is */
    }
}

int corral_ring_bell(const struct corral_ring *r)
{
    return bell_of(r, r->side);
}

/* Something that next() or reserve() would answer with other than CORRAL_AGAIN, damage included. */
static bool something(struct corral_ring *r, uint64_t room)
{
    if (r->side == CORRAL_RING_CONSUMER) {
        const struct ring_header *h = ring_header_at(r, r->offset);
        return atomic_load_explicit(&h->stamp, memory_order_acquire) != (r->position | RING_OPEN);
    }
    return !ring_producer_refresh(r) || ring_has_room(r, room);
}

bool corral_ring_arm(struct corral_ring *r, uint64_t room)
{
    room = CORRAL_MIN(room, r->capacity / 2);
    if (something(r, room)) {
        return false;
    }
    uint64_t word = 1;
    if (r->side == CORRAL_RING_PRODUCER) {
        /* Not below 0: there is no room, so the sum is more than the tail plus the capacity. */
        word = (r->position + 2 * RING_HEADER_BYTES + ring_round(room) - r->capacity) | 1;
    }
    atomic_store_explicit(sleep_word(r, r->side), word, memory_order_relaxed);
    /* pairs with ring_light_barrier() after a commit or a new tail: one of the two sees the other's store */
    if (!heavy_barrier(r) || something(r, room)) {
        corral_ring_disarm(r);
        return false;
    }
    return true;
}

void corral_ring_disarm(struct corral_ring *r)
{
    /* acquire pairs with the exchange in ring_ring() */
    if (atomic_exchange_explicit(sleep_word(r, r->side), 0, memory_order_acq_rel) == 0) {
        uint64_t rings;
        ssize_t n;
        do {
            n = read(corral_ring_bell(r), &rings, sizeof rings);
        } while (n < 0 && errno == EINTR); /* EAGAIN: it was not armed, or the bell is about to ring */
    }
}

enum corral_status corral_ring_wait(struct corral_ring *r, uint64_t room, uint64_t timeout_ns,
                                    struct corral_error *err)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    uint64_t deadline = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    while (corral_ring_arm(r, room)) {
        uint64_t slice = CORRAL_MIN(LOOK_NS, deadline - now);
        struct timespec t = {.tv_sec = (time_t)(slice / CORRAL_NS_PER_S),
                             .tv_nsec = (long)(slice % CORRAL_NS_PER_S)};
        struct pollfd p = {.fd = corral_ring_bell(r), .events = POLLIN};
        int rung = ppoll(&p, 1, &t, NULL);
        corral_ring_disarm(r);
        if (rung < 0 && errno != EINTR) {
            return corral_fail_sys(err, errno, "wait for a trajectory ring");
        }
        now = corral_now_ns(&corral_clock_monotonic);
        uint64_t holder = atomic_load_explicit(&r->control->holder[!r->side], memory_order_relaxed);
        if (rung == 0 && holder != 0 && !corral_ring_peer_alive(r) && !something(r, room)) {
            return corral_fail(err, CORRAL_PEER, "the %s of a trajectory ring has died",
                               r->side == CORRAL_RING_CONSUMER ? "producer" : "consumer");
        }
        if (now >= deadline && !something(r, room)) {
            return corral_fail(err, CORRAL_TIMEOUT, "the trajectory ring has nothing to do");
        }
    }
    return CORRAL_OK;
}
