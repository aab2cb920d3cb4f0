#include "transport/trajectory/block.h"
#include "base/clock.h"
#include <stdlib.h>
#include <time.h>

#define CACHED_MAX 64

struct corral_traj_pool {
    const struct corral_allocator *memory;
    uint64_t budget, used, cached; /* bytes in use and kept for reuse */
    uint32_t blocks_used, blocks_cached;
    struct corral_traj_block *cache;
    _Atomic(struct corral_traj_block *) returned; /* a stack: any thread pushes, the owner takes all of it */
};

enum corral_status corral_traj_pool_create(struct corral_traj_pool **out,
                                           const struct corral_allocator *memory, uint64_t budget_bytes,
                                           struct corral_error *err)
{
    struct corral_traj_pool *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create a record pool");
    }
    p->memory = memory;
    p->budget = budget_bytes;
    *out = p;
    return CORRAL_OK;
}

static void collect(struct corral_traj_pool *p)
{
    /* acquire pairs with the release of the push: the contents are no longer read by the thread that let go */
    struct corral_traj_block *b = atomic_exchange_explicit(&p->returned, NULL, memory_order_acquire);
    while (b != NULL) {
        struct corral_traj_block *next = b->next;
        p->used -= b->capacity;
        p->blocks_used--;
        p->cached += b->capacity;
        p->blocks_cached++;
        b->next = p->cache;
        p->cache = b;
        b = next;
    }
}

static void release_one(struct corral_traj_pool *p, struct corral_traj_block **link)
{
    struct corral_traj_block *b = *link;
    *link = b->next;
    p->cached -= b->capacity;
    p->blocks_cached--;
    corral_release(p->memory, b->memory, b->capacity);
    free(b);
}

static void release_all(struct corral_traj_pool *p)
{
    while (p->cache != NULL) {
        release_one(p, &p->cache);
    }
}

/* A kept block of nearly the right size, or NULL. */
static struct corral_traj_block *reuse(struct corral_traj_pool *p, uint64_t bytes)
{
    for (struct corral_traj_block **link = &p->cache; *link != NULL; link = &(*link)->next) {
        struct corral_traj_block *b = *link;
        if (b->capacity >= bytes && b->capacity - bytes <= CORRAL_TRAJ_BLOCK_SLACK &&
            p->used + b->capacity <= p->budget) {
            *link = b->next;
            p->cached -= b->capacity;
            p->blocks_cached--;
            return b;
        }
    }
    return NULL;
}

static enum corral_status make(struct corral_traj_pool *p, uint64_t bytes, struct corral_traj_block **out,
                               struct corral_error *err)
{
    while (p->cache != NULL && (p->used + p->cached + bytes > p->budget || p->blocks_cached > CACHED_MAX)) {
        release_one(p, &p->cache);
    }
    struct corral_traj_block *b = calloc(1, sizeof *b);
    if (b == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "keep a trajectory record");
    }
    enum corral_status status = corral_alloc(p->memory, bytes, "trajectory records", &b->memory, err);
    if (status != CORRAL_OK && p->cache != NULL) {
        release_all(p);
        status = corral_alloc(p->memory, bytes, "trajectory records", &b->memory, err);
    }
    if (status != CORRAL_OK) {
        free(b);
        return status;
    }
    b->capacity = bytes;
    b->pool = p;
    *out = b;
    return CORRAL_OK;
}

enum corral_status corral_traj_block_get(struct corral_traj_pool *p, uint64_t bytes,
                                         struct corral_traj_block **out, struct corral_error *err)
{
    collect(p);
    struct corral_traj_block *b = reuse(p, bytes);
    if (b == NULL) {
        CORRAL_TRY(make(p, bytes, &b, err));
    }
    p->used += b->capacity;
    p->blocks_used++;
    atomic_store_explicit(&b->references, 1, memory_order_relaxed);
    *out = b;
    return CORRAL_OK;
}

void corral_traj_block_ref(struct corral_traj_block *b)
{
    /* release: what the owner wrote comes before the drop in another thread, whose acq_rel pairs with this */
    atomic_fetch_add_explicit(&b->references, 1, memory_order_release);
}

bool corral_traj_block_exclusive(const struct corral_traj_block *b)
{
    /* acquire pairs with the acq_rel of the drop in another thread: it reads no more */
    return atomic_load_explicit(&b->references, memory_order_acquire) == 1;
}

void corral_traj_block_unref(struct corral_traj_block *b)
{
    if (atomic_fetch_sub_explicit(&b->references, 1, memory_order_acq_rel) != 1) {
        return;
    }
    struct corral_traj_pool *p = b->pool;
    struct corral_traj_block *head = atomic_load_explicit(&p->returned, memory_order_relaxed);
    do {
        b->next = head;
        /* release pairs with the acquire in collect() */
    } while (!atomic_compare_exchange_weak_explicit(&p->returned, &head, b, memory_order_release,
                                                    memory_order_relaxed));
}

void corral_traj_pool_destroy(struct corral_traj_pool *p, uint32_t wait_ms)
{
    if (p == NULL) {
        return;
    }
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + (uint64_t)wait_ms * CORRAL_NS_PER_MS;
    for (collect(p); p->blocks_used > 0; collect(p)) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (now >= deadline) {
            break;
        }
        /* Napped rather than signalled: a wake-up would touch a pool that may be freed by then. */
        nanosleep(&(struct timespec){.tv_nsec = 200 * 1000}, NULL);
    }
    release_all(p);
    if (p->blocks_used == 0) {
        free(p);
    }
}
