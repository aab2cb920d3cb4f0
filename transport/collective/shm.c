/* Ranks on one node, over a sealed mapping.
 *
 * Each rank has a slot (one writer: itself) and two staging buffers. Piece k of the group's life uses buffer k & 1: a rank copies
 * its part there, describes the call, posts k, waits until every rank has posted k, and reads all parts in rank order. One wait
 * per piece is enough: a rank that posts k + 1 has read everything of k, and nobody writes buffer k & 1 again before all have
 * posted k + 1. So a rank sees its peers at k or k + 1, never further.
 */
#include "transport/collective/shm.h"
#include "base/clock.h"
#include "base/sync.h"
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Pauses before sleeping, some 10 to 40 ns each. A long spin pays while every rank has a core and costs dearly when the awaited rank
 * needs this one, so one spin in vain ends long spinning until a trial shows that it works again. */
#define SPINS_LONG 2000
#define SPINS_SHORT 20
#define SPIN_TRIAL_EVERY 64                    /* waits */
#define LOOK_AROUND_NS (50 * CORRAL_NS_PER_MS) /* between looks at whether anyone has died, while asleep */
#define SUM_BLOCK_BYTES 16384 /* of the result, so that it stays in the first cache while ranks are added */

/* The sanitizer does not know fences; without them it sees the same accesses, ordered by the release and acquire ones. */
#if defined(__SANITIZE_THREAD__)
#define FENCE(order) ((void)0)
#else
#define FENCE(order) atomic_thread_fence(order)
#endif

struct shm_group {
    struct corral_collective base;
    struct shm_map *map;
    uint64_t map_bytes;
    char *staging;
    uint64_t staging_bytes;
    uint64_t generation; /* in the upper half, as in the slots */
    uint32_t piece;
    uint32_t timeout_ms;
    uint32_t culprit;                 /* the rank the failure is about */
    uint32_t spins, spins_max, waits; /* see SPINS_LONG */
    bool broken;
};

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static struct shm_group *group_of(struct corral_collective *c)
{
    return (struct shm_group *)c; /* base is the first member */
}

static char *staging_of(const struct shm_group *g, uint32_t rank, uint32_t piece)
{
    return g->staging + ((uint64_t)rank * 2 + (piece & 1)) * g->staging_bytes;
}

static bool same_generation(uint64_t word, uint64_t generation)
{
    return word >> 32 == generation >> 32;
}

/* Pieces wrap; a peer is never more than one ahead or behind. */
static bool has_posted(uint64_t posted, uint64_t generation, uint32_t piece)
{
    return same_generation(posted, generation) && (int32_t)((uint32_t)posted - piece) >= 0;
}

static void announce(struct shm_slot *slot)
{
    /* Pairs with the sleeper's store of `sleepers` and its check of `event` in the kernel, all sequentially consistent: either the
     * sleeper sees the event move, or we see that it sleeps. */
    atomic_fetch_add_explicit(&slot->event, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&slot->sleepers, memory_order_seq_cst) != 0) {
        /* Whoever set the flag just before it is cleared here read an event that the next line makes stale, so it sets the flag
         * again instead of sleeping. */
        atomic_store_explicit(&slot->sleepers, 0, memory_order_seq_cst);
        atomic_fetch_add_explicit(&slot->event, 1, memory_order_seq_cst);
        corral_futex_wake_all(&slot->event);
    }
}

static void depart(struct shm_group *g, enum corral_status status, uint32_t culprit)
{
    struct shm_slot *slot = &g->map->slot[g->base.rank];
    if (same_generation(atomic_load_explicit(&slot->posted, memory_order_relaxed), g->generation)) {
        /* Pairs with the acquire load in look_around(). */
        atomic_store_explicit(&slot->departed, g->generation | DEPARTURE(status, culprit),
                              memory_order_release);
        announce(slot);
    }
}

/* The others learn why at once, instead of waiting for this rank until their own deadline. */
static enum corral_status break_group(struct shm_group *g, enum corral_status status)
{
    g->broken = true;
    depart(g, status, g->culprit);
    return status;
}

/* True when the process has ended, a zombie included. Unsure means alive. */
static bool process_has_ended(int32_t pid)
{
    CORRAL_AUTO_CLOSE int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0) {
        return errno == ESRCH;
    }
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* Rank `rank` is no longer in the group; what it said about why is passed on, culprit included. */
static enum corral_status fail_departed(struct shm_group *g, const char *name, uint32_t rank,
                                        uint64_t departed, struct corral_error *err)
{
    enum corral_status status = DEPARTURE_STATUS(departed);
    if (status == CORRAL_OK) {
        g->culprit = rank;
        return corral_fail(err, CORRAL_PEER, "collective %s: rank %u has left the group", name, rank);
    }
    g->culprit = DEPARTURE_CULPRIT(departed);
    return corral_fail(err, status, "collective %s: rank %u has broken the group off: %s of rank %u", name,
                       rank, corral_status_name(status), g->culprit);
}

static bool slot_has_posted(const struct shm_group *g, uint32_t rank, uint32_t piece)
{
    /* Pairs with the release store in exchange(): the rank's part and description are visible. */
    return has_posted(atomic_load_explicit(&g->map->slot[rank].posted, memory_order_acquire), g->generation,
                      piece);
}

static enum corral_status check_call(struct shm_group *g, uint32_t peer, const struct corral_call *call,
                                     uint32_t piece, struct corral_error *err)
{
    const struct corral_call theirs = g->map->slot[peer].call[piece & 1];
    if (corral_call_equal(&theirs, call)) {
        return CORRAL_OK;
    }
    g->culprit = peer;
    return corral_call_mismatch(peer, &theirs, g->base.rank, call, err);
}

/* Whether the wait for rank `peer` has become pointless. */
static enum corral_status look_around(struct shm_group *g, uint32_t peer, const struct corral_call *call,
                                      uint32_t piece, struct corral_error *err)
{
    const char *name = corral_call_name(call->op);
    for (uint32_t r = 0; r < g->base.ranks; r++) {
        uint64_t departed = atomic_load_explicit(&g->map->slot[r].departed, memory_order_acquire);
        if (r == g->base.rank || !same_generation(departed, g->generation) ||
            slot_has_posted(g, peer, piece)) {
            continue;
        }
        /* Two ranks out of step accuse each other: what can be seen from here comes first. */
        for (uint32_t q = 0; q < g->base.ranks; q++) {
            if (slot_has_posted(g, q, piece)) {
                CORRAL_TRY(check_call(g, q, call, piece, err));
            }
        }
        return fail_departed(g, name, r, departed, err);
    }
    g->culprit = peer;
    const struct shm_slot *slot = &g->map->slot[peer];
    uint64_t posted = atomic_load_explicit(&slot->posted, memory_order_acquire);
    if (posted >> 32 > g->generation >> 32) {
        return corral_fail(err, CORRAL_STATE, "collective %s: rank %u has gone on to generation %u", name,
                           peer, (uint32_t)(posted >> 32) - 1);
    }
    int32_t pid = atomic_load_explicit(&slot->pid, memory_order_relaxed);
    if (same_generation(posted, g->generation) && process_has_ended(pid) &&
        !slot_has_posted(g, peer, piece)) {
        return corral_fail(err, CORRAL_PEER, "collective %s: rank %u (process %d) has died", name, peer,
                           (int)pid);
    }
    return CORRAL_OK;
}

static enum corral_status sleep_until_posted(struct shm_group *g, uint32_t peer,
                                             const struct corral_call *call, uint32_t piece,
                                             struct corral_error *err)
{
    struct shm_slot *slot = &g->map->slot[peer];
    uint64_t now = corral_now_ns(&corral_clock_monotonic), deadline = now + g->timeout_ms * CORRAL_NS_PER_MS;
    for (;;) {
        uint32_t event = atomic_load_explicit(&slot->event, memory_order_seq_cst);
        atomic_store_explicit(&slot->sleepers, 1, memory_order_seq_cst); /* pairs with announce() */
        if (has_posted(atomic_load_explicit(&slot->posted, memory_order_seq_cst), g->generation, piece)) {
            return CORRAL_OK;
        }
        CORRAL_TRY(look_around(g, peer, call, piece, err));
        now = corral_now_ns(&corral_clock_monotonic);
        if (now >= deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "collective %s: rank %u did not come within %u ms",
                               corral_call_name(call->op), peer, g->timeout_ms);
        }
        uint64_t until = CORRAL_MIN(deadline, now + LOOK_AROUND_NS);
        uint64_t due = corral_call_progress(&g->base, now); /* if it took long, `event` has moved meanwhile */
        corral_futex_wait(&slot->event, event, CORRAL_MIN(until, due));
    }
}

static enum corral_status wait_for(struct shm_group *g, uint32_t peer, const struct corral_call *call,
                                   uint32_t piece, struct corral_error *err)
{
    uint32_t spins = ++g->waits % SPIN_TRIAL_EVERY == 0 ? g->spins_max : g->spins;
    for (uint32_t spin = 0; spin < spins; spin++) {
        if (slot_has_posted(g, peer, piece)) {
            g->spins = spin >= SPINS_SHORT ? g->spins_max : g->spins;
            return CORRAL_OK;
        }
        pause_briefly();
    }
    g->spins = SPINS_SHORT;
    return sleep_until_posted(g, peer, call, piece, err);
}

/* Wait until every rank has posted the piece, and for the same call. */
static enum corral_status await_all(struct shm_group *g, const struct corral_call *call, uint32_t piece,
                                    struct corral_error *err)
{
    for (uint32_t r = 0; r < g->base.ranks; r++) {
        if (r != g->base.rank) {
            CORRAL_TRY(wait_for(g, r, call, piece, err));
            CORRAL_TRY(check_call(g, r, call, piece, err));
        }
    }
    /* A rank may have posted and then given up on this very piece, on us perhaps: it has not got this sum, so neither do we. */
    for (uint32_t r = 0; r < g->base.ranks; r++) {
        const struct shm_slot *slot = &g->map->slot[r];
        uint64_t departed = atomic_load_explicit(&slot->departed, memory_order_acquire);
        if (r != g->base.rank && same_generation(departed, g->generation) &&
            DEPARTURE_STATUS(departed) != CORRAL_OK &&
            (uint32_t)atomic_load_explicit(&slot->posted, memory_order_relaxed) == piece) {
            return fail_departed(g, corral_call_name(call->op), r, departed, err);
        }
    }
    return CORRAL_OK;
}

/* Post this rank's part (NULL: none) and wait for everyone's; then staging_of(g, r, g->piece) holds rank r's part until the next
 * exchange but one. */
static enum corral_status exchange(struct shm_group *g, const struct corral_call *call, const void *mine,
                                   struct corral_error *err)
{
    struct shm_slot *slot = &g->map->slot[g->base.rank];
    CORRAL_TRY(corral_call_begin(&g->base, call, err));
    if (g->broken) {
        return corral_fail(err, CORRAL_STATE, "collective %s: the group is broken by an earlier failure",
                           corral_call_name(call->op));
    }
    if (!same_generation(atomic_load_explicit(&slot->posted, memory_order_relaxed), g->generation)) {
        g->broken = true;
        return corral_fail(err, CORRAL_STATE, "collective %s: rank %u has been taken by a later generation",
                           corral_call_name(call->op), g->base.rank);
    }
    uint32_t piece = ++g->piece;
    if (mine && call->bytes > 0) {
        memcpy(staging_of(g, g->base.rank, piece), mine, call->bytes);
    }
    slot->call[piece & 1] = *call;
    atomic_store_explicit(&slot->posted, g->generation | piece,
                          memory_order_release); /* pairs with wait_for() */
    announce(slot);
    enum corral_status status = await_all(g, call, piece, err);
    return status == CORRAL_OK ? CORRAL_OK : break_group(g, status);
}

/* After the parts have been read: nobody has started a later generation over them meanwhile. */
static enum corral_status check_unchanged(struct shm_group *g, struct corral_error *err)
{
    FENCE(memory_order_acquire); /* pairs with the release fence in claim_slot() */
    for (uint32_t r = 0; r < g->base.ranks; r++) {
        uint64_t posted = atomic_load_explicit(&g->map->slot[r].posted, memory_order_relaxed);
        if (!same_generation(posted, g->generation)) {
            corral_fail(err, CORRAL_STATE, "collective: rank %u has gone on to generation %u", r,
                        (uint32_t)(posted >> 32) - 1);
            g->culprit = r;
            return break_group(g, CORRAL_STATE);
        }
    }
    return CORRAL_OK;
}

typedef void (*add_fn)(void *out, const void *a, const void *b, size_t bytes);

static void sum_parts(const struct shm_group *g, add_fn add, char *out, uint32_t bytes)
{
    if (g->base.ranks == 1) {
        return;
    }
    for (uint32_t at = 0; at < bytes; at += SUM_BLOCK_BYTES) {
        uint32_t block = CORRAL_MIN(SUM_BLOCK_BYTES, bytes - at);
        add(out + at, staging_of(g, 0, g->piece) + at, staging_of(g, 1, g->piece) + at, block);
        for (uint32_t r = 2; r < g->base.ranks; r++) {
            add(out + at, out + at, staging_of(g, r, g->piece) + at, block);
        }
    }
}

/* The next piece of a call; bytes is 0 when the call is over. */
static struct corral_call piece_at(const struct shm_group *g, enum corral_call_op op, uint64_t total,
                                   uint64_t offset)
{
    uint64_t bytes = CORRAL_MIN(g->staging_bytes, total - offset);
    return (struct corral_call){.op = op, .bytes = (uint32_t)bytes, .total = total, .offset = offset};
}

static enum corral_status sum(struct corral_collective *c, enum corral_call_op op, add_fn add, void *data,
                              uint64_t total, struct corral_error *err)
{
    struct shm_group *g = group_of(c);
    uint64_t offset = 0;
    do {
        struct corral_call call = piece_at(g, op, total, offset);
        char *at = (char *)data + offset;
        CORRAL_TRY(exchange(g, &call, at, err));
        sum_parts(g, add, at, call.bytes);
        CORRAL_TRY(check_unchanged(g, err));
        offset += call.bytes;
    } while (offset < total);
    return CORRAL_OK;
}

static enum corral_status shm_sum_f32(struct corral_collective *c, float *data, uint32_t count,
                                      struct corral_error *err)
{
    return sum(c, CORRAL_CALL_SUM_F32, corral_add_f32, data, (uint64_t)count * sizeof *data, err);
}

static enum corral_status shm_sum_f64(struct corral_collective *c, double *data, uint32_t count,
                                      struct corral_error *err)
{
    return sum(c, CORRAL_CALL_SUM_F64, corral_add_f64, data, (uint64_t)count * sizeof *data, err);
}

static enum corral_status shm_gather(struct corral_collective *c, const void *mine, uint32_t bytes, void *out,
                                     struct corral_error *err)
{
    struct shm_group *g = group_of(c);
    uint64_t offset = 0;
    do {
        struct corral_call call = piece_at(g, CORRAL_CALL_GATHER, bytes, offset);
        CORRAL_TRY(exchange(g, &call, (const char *)mine + offset, err));
        for (uint32_t r = 0; r < c->ranks && call.bytes > 0; r++) {
            memcpy((char *)out + (uint64_t)r * bytes + offset, staging_of(g, r, g->piece), call.bytes);
        }
        CORRAL_TRY(check_unchanged(g, err));
        offset += call.bytes;
    } while (offset < bytes);
    return CORRAL_OK;
}

static enum corral_status shm_broadcast(struct corral_collective *c, void *data, uint64_t bytes,
                                        struct corral_error *err)
{
    struct shm_group *g = group_of(c);
    uint64_t offset = 0;
    do {
        struct corral_call call = piece_at(g, CORRAL_CALL_BROADCAST, bytes, offset);
        char *at = (char *)data + offset;
        CORRAL_TRY(exchange(g, &call, c->rank == 0 ? at : NULL, err));
        if (c->rank != 0 && call.bytes > 0) {
            memcpy(at, staging_of(g, 0, g->piece), call.bytes);
        }
        CORRAL_TRY(check_unchanged(g, err));
        offset += call.bytes;
    } while (offset < bytes);
    return CORRAL_OK;
}

static enum corral_status shm_barrier(struct corral_collective *c, struct corral_error *err)
{
    const struct corral_call call = {.op = CORRAL_CALL_BARRIER};
    return exchange(group_of(c), &call, NULL, err);
}

static void group_free(struct shm_group *g)
{
    if (g && g->map) {
        munmap(g->map, g->map_bytes);
    }
    free(g);
}
CORRAL_DEFINE_CLEANUP(struct shm_group, group_free)

static void shm_destroy(struct corral_collective *c)
{
    struct shm_group *g = group_of(c);
    if (!g->broken) {
        depart(g, CORRAL_OK, g->base.rank);
    }
    group_free(g);
}

static const struct corral_collective_ops shm_ops = {
    .name = "shm",
    .sum_f32 = shm_sum_f32,
    .sum_f64 = shm_sum_f64,
    .gather = shm_gather,
    .broadcast = shm_broadcast,
    .barrier = shm_barrier,
    .destroy = shm_destroy,
};

static enum corral_status claim_slot(struct shm_group *g, struct corral_error *err)
{
    struct shm_slot *slot = &g->map->slot[g->base.rank];
    uint64_t posted = atomic_load_explicit(&slot->posted, memory_order_relaxed);
    do {
        if (posted >> 32 >= g->generation >> 32) {
            return corral_fail(
                err, CORRAL_EXISTS,
                "shm collective: rank %u of generation %u is taken; a new group needs a larger one",
                g->base.rank, (uint32_t)(posted >> 32) - 1);
        }
        atomic_store_explicit(&slot->pid, (int32_t)getpid(),
                              memory_order_relaxed); /* seen with the generation */
    } while (!atomic_compare_exchange_weak_explicit(&slot->posted, &posted, g->generation,
                                                    memory_order_acq_rel, memory_order_relaxed));
    /* Whoever still reads the old generation's parts and sees ours also sees that the generation has changed. */
    FENCE(memory_order_release);
    announce(slot);
    return CORRAL_OK;
}

enum corral_status corral_collective_shm_create(int fd, uint32_t rank, uint32_t ranks, uint32_t generation,
                                                uint32_t timeout_ms, struct corral_collective **out,
                                                struct corral_error *err)
{
    CORRAL_TRY(corral_call_check_ranks("shm", rank, ranks, err));
    if (generation == UINT32_MAX) {
        return corral_fail(err, CORRAL_INVALID, "shm collective: generation %u is the end of the range",
                           generation);
    }
    CORRAL_CLEANUP(group_freep) struct shm_group *g = calloc(1, sizeof *g);
    if (!g) {
        return corral_fail(err, CORRAL_NOMEM, "shm collective: no memory");
    }
    g->base = (struct corral_collective){.ops = &shm_ops, .rank = rank, .ranks = ranks};
    g->generation = (uint64_t)(generation + 1) << 32;
    g->timeout_ms = timeout_ms;
    g->spins_max = g->spins = sysconf(_SC_NPROCESSORS_ONLN) >= (long)ranks ? SPINS_LONG : SPINS_SHORT;
    CORRAL_TRY(corral_shm_map(fd, ranks, &g->map, &g->map_bytes, err));
    g->staging_bytes = g->map->header.staging_bytes;
    g->staging = (char *)&g->map->slot[ranks];
    CORRAL_TRY(claim_slot(g, err));
    struct shm_group *done = CORRAL_STEAL(g);
    *out = &done->base;
    return CORRAL_OK;
}
