#include "quota/cuda/pool.h"
#include <stdatomic.h>
#include <stdlib.h>

#define GRANULE_MIN (UINT64_C(2) << 20) /* the driver's smallest piece of physical memory */
#define GRANULE_MAX (UINT64_C(64) << 20)

/* Pools that were ever seen. Only added to, at the head: readers need no lock. A destroyed pool's account is used again for a new one. */
static _Atomic(struct corral_cuda_pool *) all_pools;         /* release when added, acquire when walked */
static pthread_mutex_t add_lock = PTHREAD_MUTEX_INITIALIZER; /* guards adding and reusing */

CUdevice corral_cuda_stream_device(CUstream stream)
{
    CUdevice device = -1;
    bool is_default = stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
    if (!is_default && corral_cuda_real(CORRAL_CUDA_SYMBOL_cuStreamGetDevice) != NULL &&
        REAL(cuStreamGetDevice)(stream, &device) == CUDA_SUCCESS) {
        return device;
    }
    return corral_cuda_current_device();
}

static bool attribute(const struct corral_cuda_pool *p, CUmemPool_attribute which, uint64_t *value)
{
    *value = 0;
    return !p->destroyed && REAL(cuMemPoolGetAttribute)(p->handle, which, value) == CUDA_SUCCESS;
}

static void reset(struct corral_cuda_pool *p, CUmemoryPool handle, CUdevice device)
{
    p->handle = handle;
    p->device = device;
    p->charge = corral_cuda_no_charge();
    p->inflight = p->live = p->pinned = 0;
    p->granule = GRANULE_MIN;
    p->destroyed = false;
}

static struct corral_cuda_pool *reuse(CUmemoryPool handle, CUdevice device)
{
    struct corral_cuda_pool *p = atomic_load_explicit(&all_pools, memory_order_acquire);
    for (; p != NULL; p = p->next) {
        pthread_mutex_lock(&p->lock);
        bool idle = p->destroyed && p->live == 0 && p->inflight == 0;
        if (idle) {
            reset(p, handle, device);
        }
        pthread_mutex_unlock(&p->lock);
        if (idle) {
            return p;
        }
    }
    return NULL;
}

static struct corral_cuda_pool *add(CUmemoryPool handle, CUdevice device)
{
    struct corral_cuda_record record;
    struct corral_cuda_pool *p = NULL;
    pthread_mutex_lock(&add_lock);
    if (corral_cuda_table_get(CORRAL_CUDA_POOL, (uint64_t)(uintptr_t)handle, &record)) {
        p = corral_cuda_pool_of(&record); /* another thread was first */
    } else if ((p = reuse(handle, device)) == NULL && (p = calloc(1, sizeof(*p))) != NULL) {
        reset(p, handle, device);
        pthread_mutex_init(&p->lock, NULL);
        p->next = atomic_load_explicit(&all_pools, memory_order_relaxed);
        atomic_store_explicit(&all_pools, p, memory_order_release);
    }
    if (p != NULL) {
        record = (struct corral_cuda_record){.name = (uint64_t)(uintptr_t)handle,
                                             .space = CORRAL_CUDA_POOL,
                                             .device = device,
                                             .charge = corral_cuda_no_charge(),
                                             .aux = (uint64_t)(uintptr_t)p | CORRAL_CUDA_FROM_POOL};
        corral_cuda_put_back(&record);
    }
    pthread_mutex_unlock(&add_lock);
    return p;
}

void corral_cuda_pool_register(CUmemoryPool handle, CUdevice device)
{
    (void)add(handle, device);
}

/* Only a device's own pools are not created by the application. */
static CUdevice device_of_pool(CUmemoryPool handle)
{
    int count = 0;
    if (REAL(cuDeviceGetCount)(&count) == CUDA_SUCCESS) {
        for (CUdevice device = 0; device < count; device++) {
            CUmemoryPool own = NULL;
            if (REAL(cuDeviceGetDefaultMemPool)(&own, device) == CUDA_SUCCESS && own == handle) {
                return device;
            }
        }
    }
    CUmemLocation host = {.type = CU_MEM_LOCATION_TYPE_HOST};
    CUmemoryPool own = NULL;
    if (corral_cuda_real(CORRAL_CUDA_SYMBOL_cuMemGetDefaultMemPool) != NULL &&
        REAL(cuMemGetDefaultMemPool)(&own, &host, CU_MEM_ALLOCATION_TYPE_PINNED) == CUDA_SUCCESS &&
        own == handle) {
        return CORRAL_CUDA_POOL_HOST;
    }
    return corral_cuda_current_device();
}

struct corral_cuda_pool *corral_cuda_pool_find(CUmemoryPool handle, CUdevice device)
{
    struct corral_cuda_record record;
    if (corral_cuda_table_get(CORRAL_CUDA_POOL, (uint64_t)(uintptr_t)handle, &record)) {
        return corral_cuda_pool_of(&record);
    }
    return add(handle, device == CORRAL_CUDA_POOL_UNKNOWN ? device_of_pool(handle) : device);
}

/* With the lock held. A destroyed pool keeps what it had until its last pointer is freed. */
static uint64_t reserved_now(const struct corral_cuda_pool *p)
{
    uint64_t reserved;
    if (attribute(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved)) {
        return reserved;
    }
    if (p->destroyed && p->live == 0) {
        return 0;
    }
    return p->charge.bytes > p->inflight ? p->charge.bytes - p->inflight : 0;
}

static void follow_pinned(struct corral_cuda_pool *p)
{
    uint64_t reserved = p->destroyed && p->live == 0 ? 0 : p->pinned;
    if (!p->destroyed) {
        (void)attribute(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved);
    }
    corral_cuda_count_pinned(corral_cuda_current_device(), (int64_t)(reserved - p->pinned));
    p->pinned = reserved;
}

/* With the lock held: the charge becomes what is reserved and what calls under way may add. */
static void follow(struct corral_cuda_pool *p, const char *api)
{
    if (p->device >= 0) {
        uint64_t target = reserved_now(p) + p->inflight;
        if (target != p->charge.bytes) {
            corral_cuda_settle(p->device, &p->charge, target, CORRAL_KIND_POOL, api);
        }
    } else if (p->device == CORRAL_CUDA_POOL_HOST) {
        follow_pinned(p);
    }
}

static bool raise_charge(struct corral_cuda_pool *p, uint64_t bytes, const char *api)
{
    if (corral_cuda_is_charged(&p->charge)) {
        return corral_cuda_resize(p->device, &p->charge, p->charge.bytes + bytes, api);
    }
    struct corral_quota *q = corral_cuda_quota();
    bool ok = corral_cuda_take(p->device, bytes, CORRAL_KIND_POOL, api, &p->charge);
    if (ok) {
        corral_quota_keep(q, &p->charge);
    }
    return ok;
}

/* A call may add its size in whole pieces. */
static uint64_t growth_of(const struct corral_cuda_pool *p, uint64_t bytes)
{
    uint64_t rounded;
    if (__builtin_add_overflow(bytes, p->granule - 1, &rounded)) {
        return UINT64_MAX;
    }
    return rounded / p->granule * p->granule;
}

static uint64_t slack_of(const struct corral_cuda_pool *p)
{
    uint64_t reserved, used;
    if (!attribute(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved) ||
        !attribute(p, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used) || reserved < used) {
        return 0;
    }
    return reserved - used;
}

/* What the pool has free may lie in pieces that do not fit, or wait for another stream: the driver may take new memory all the same, and must not before it is charged. So room for
 * all of it is reserved, and where there is none, the pool first gives back that much of what it has free. */
static void make_room(struct corral_cuda_pool *p, uint64_t growth)
{
    uint32_t holder;
    uint64_t reserved;
    struct corral_quota *q = corral_cuda_quota();
    if (q == NULL || !corral_cuda_holder(p->device, &holder) || corral_quota_available(q, holder) >= growth) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    if (slack_of(p) > 0 && attribute(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved)) {
        (void)REAL(cuMemPoolTrimTo)(p->handle, reserved > growth ? reserved - growth : 0);
        follow(p, "pool");
    }
    pthread_mutex_unlock(&p->lock);
    corral_cuda_relieve(p->device, growth);
}

bool corral_cuda_pool_claim(struct corral_cuda_pool *pool, uint64_t bytes, const char *api,
                            struct corral_cuda_claim *claim)
{
    *claim = (struct corral_cuda_claim){0};
    if (pool->device < 0) {
        return true;
    }
    pthread_mutex_lock(&pool->lock);
    uint64_t growth = growth_of(pool, bytes);
    pthread_mutex_unlock(&pool->lock);
    make_room(pool, growth);
    pthread_mutex_lock(&pool->lock);
    bool ok = growth == 0 || raise_charge(pool, growth, api);
    if (ok) {
        claim->growth = growth;
        pool->inflight += growth;
    }
    pthread_mutex_unlock(&pool->lock);
    return ok;
}

static void learn_granule(struct corral_cuda_pool *p, uint64_t expected, uint64_t grown)
{
    while (p->granule < GRANULE_MAX && growth_of(p, expected) < grown) {
        p->granule *= 2;
    }
}

bool corral_cuda_pool_settle(struct corral_cuda_pool *pool, const struct corral_cuda_claim *claim,
                             const char *api, bool allocated)
{
    bool fits = true;
    pthread_mutex_lock(&pool->lock);
    pool->inflight -= claim->growth;
    pool->live += allocated;
    uint64_t before = pool->charge.bytes - pool->inflight - claim->growth;
    uint64_t reserved = pool->device >= 0 ? reserved_now(pool) : 0;
    uint64_t target = reserved + pool->inflight;
    if (pool->device >= 0 && target > pool->charge.bytes) {
        fits = raise_charge(pool, target - pool->charge.bytes, api);
        /* From now on expect pieces of the size it took, when no other call can have had a part in it. */
        if (pool->inflight == 0 && reserved > before) {
            learn_granule(pool, claim->growth, reserved - before);
        }
    } else {
        follow(pool, api);
    }
    pthread_mutex_unlock(&pool->lock);
    return fits;
}

void corral_cuda_pool_refresh(struct corral_cuda_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    follow(pool, "pool");
    pthread_mutex_unlock(&pool->lock);
}

void corral_cuda_pool_freed(struct corral_cuda_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->live -= pool->live > 0;
    follow(pool, "pool");
    pthread_mutex_unlock(&pool->lock);
}

void corral_cuda_pool_destroyed(struct corral_cuda_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->destroyed = true;
    follow(pool, "pool");
    pthread_mutex_unlock(&pool->lock);
}

void corral_cuda_pool_export(struct corral_cuda_pool *pool, const uint64_t key[2])
{
    pthread_mutex_lock(&pool->lock);
    corral_cuda_export_key(&pool->charge, key);
    pthread_mutex_unlock(&pool->lock);
}

void corral_cuda_pools_refresh(CUdevice device, bool trim)
{
    struct corral_cuda_pool *p = atomic_load_explicit(&all_pools, memory_order_acquire);
    for (; p != NULL; p = p->next) {
        pthread_mutex_lock(&p->lock);
        bool here = p->device == device && !p->destroyed;
        if (here && trim && slack_of(p) > 0) {
            (void)REAL(cuMemPoolTrimTo)(p->handle, 0);
        }
        if (here) {
            follow(p, "pool");
        }
        pthread_mutex_unlock(&p->lock);
    }
}

bool corral_cuda_pools_any(void)
{
    return atomic_load_explicit(&all_pools, memory_order_relaxed) != NULL;
}

void corral_cuda_pools_forget_all(void)
{
    /* The accounts are the parent's memory, copied: left alone, as its locks may be held. */
    atomic_store_explicit(&all_pools, NULL, memory_order_relaxed);
    add_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}
