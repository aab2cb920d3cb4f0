/* The accounts of memory pools, for hooks_pool.c. Any thread; the driver's allocation calls are made without a lock held. */
#ifndef CORRAL_QUOTA_CUDA_POOL_H
#define CORRAL_QUOTA_CUDA_POOL_H

#include "quota/cuda/families.h"

#define CORRAL_CUDA_POOL_HOST (-1)    /* of host memory: counted as pinned */
#define CORRAL_CUDA_POOL_FOREIGN (-2) /* another process's: charged there */
#define CORRAL_CUDA_POOL_UNKNOWN (-3)

struct corral_cuda_pool {
    CUmemoryPool handle;
    CUdevice device; /* or POOL_HOST, POOL_FOREIGN */
    struct corral_cuda_pool *next;
    pthread_mutex_t lock;              /* guards the rest */
    struct corral_quota_charge charge; /* what the driver has reserved + inflight */
    uint64_t inflight;                 /* growth that calls under way may cause */
    uint64_t granule;                  /* the pieces in which it grows, as far as seen */
    uint64_t live;                     /* pointers of it */
    uint64_t pinned;                   /* host pools */
    bool destroyed;                    /* its handle is not valid any more; pointers of it may be */
};

/* The driver's functions of one stream flavour; from_pool or of_device. */
struct corral_cuda_pool_calls {
    cuMemAllocFromPoolAsync_fn from_pool;
    cuMemAllocAsync_fn of_device;
    cuMemFreeAsync_fn free;
};

struct corral_cuda_claim {
    uint64_t growth;
};

/* Of the stream, or of the current context; -1: none. */
CUdevice corral_cuda_stream_device(CUstream stream);
void corral_cuda_pool_register(CUmemoryPool handle, CUdevice device);
/* Registers pools that were not created through the hooks: the devices' own. `device` may be UNKNOWN. NULL: out of memory. */
struct corral_cuda_pool *corral_cuda_pool_find(CUmemoryPool handle, CUdevice device);
/* Before an allocation: room for the most it may add. False: denied. */
bool corral_cuda_pool_claim(struct corral_cuda_pool *pool, uint64_t bytes, const char *api,
                            struct corral_cuda_claim *claim);
/* After it: what was really added. False: more than claimed, and it does not fit. */
bool corral_cuda_pool_settle(struct corral_cuda_pool *pool, const struct corral_cuda_claim *claim,
                             const char *api, bool allocated);
void corral_cuda_pool_refresh(struct corral_cuda_pool *pool);
void corral_cuda_pool_destroyed(struct corral_cuda_pool *pool);
void corral_cuda_pool_export(struct corral_cuda_pool *pool, const uint64_t key[2]);

#endif
