/* Memory pools. The driver takes memory for a pool in large pieces and keeps it after it was freed: what counts is what the pool has reserved, so each pool has one charge that
 * follows CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, raised beforehand by the most that a call may add. */
#include "quota/cuda/pool.h"

static CUresult allocate(struct corral_cuda_pool *pool, const char *api, CUdeviceptr *pointer, size_t bytes,
                         CUstream stream, const struct corral_cuda_pool_calls *calls)
{
    struct corral_cuda_claim claim;
    if (!corral_cuda_pool_claim(pool, bytes, api, &claim)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = calls->from_pool != NULL ? calls->from_pool(pointer, bytes, pool->handle, stream)
                                               : calls->of_device(pointer, bytes, stream);
    bool fits = corral_cuda_pool_settle(pool, &claim, api, result == CUDA_SUCCESS);
    if (result == CUDA_SUCCESS && !fits) {
        /* It grew by more than was to be expected, and there is no room for that. */
        (void)calls->free(*pointer, stream);
        (void)REAL(cuMemPoolTrimTo)(pool->handle, 0);
        corral_cuda_pool_freed(pool);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS) {
        struct corral_quota_charge none = corral_cuda_no_charge();
        none.bytes = bytes;
        corral_cuda_keep_as(CORRAL_CUDA_POINTER, *pointer, pool->device, &none,
                            (uint64_t)(uintptr_t)pool | CORRAL_CUDA_FROM_POOL);
    }
    return result;
}

static CUresult allocate_async(const char *api, CUdeviceptr *pointer, size_t bytes, CUstream stream,
                               const struct corral_cuda_pool_calls *calls)
{
    CUmemoryPool handle = NULL;
    CUdevice device = corral_cuda_stream_device(stream);
    if (device < 0 && corral_cuda_mode() == CORRAL_CUDA_FENCED) {
        return calls->of_device(pointer, bytes, stream);
    }
    if (REAL(cuDeviceGetMemPool)(&handle, device) != CUDA_SUCCESS) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct corral_cuda_pool *pool = corral_cuda_pool_find(handle, device);
    return pool == NULL ? CUDA_ERROR_OUT_OF_MEMORY : allocate(pool, api, pointer, bytes, stream, calls);
}

CORRAL_CUDA_DEFINE(cuMemAllocAsync, CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
    const struct corral_cuda_pool_calls calls = {.of_device = REAL(cuMemAllocAsync),
                                                 .free = REAL(cuMemFreeAsync)};
    return allocate_async("cuMemAllocAsync", pointer, bytes, stream, &calls);
}

CORRAL_CUDA_DEFINE(cuMemAllocAsync_ptsz, CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
    const struct corral_cuda_pool_calls calls = {.of_device = REAL(cuMemAllocAsync_ptsz),
                                                 .free = REAL(cuMemFreeAsync_ptsz)};
    return allocate_async("cuMemAllocAsync_ptsz", pointer, bytes, stream, &calls);
}

static CUresult allocate_from(const char *api, CUdeviceptr *pointer, size_t bytes, CUmemoryPool handle,
                              CUstream stream, const struct corral_cuda_pool_calls *calls)
{
    struct corral_cuda_pool *pool = corral_cuda_pool_find(handle, CORRAL_CUDA_POOL_UNKNOWN);
    return pool == NULL ? CUDA_ERROR_OUT_OF_MEMORY : allocate(pool, api, pointer, bytes, stream, calls);
}

CORRAL_CUDA_DEFINE(cuMemAllocFromPoolAsync, CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
                   CUstream stream)
{
    const struct corral_cuda_pool_calls calls = {.from_pool = REAL(cuMemAllocFromPoolAsync),
                                                 .free = REAL(cuMemFreeAsync)};
    return allocate_from("cuMemAllocFromPoolAsync", pointer, bytes, pool, stream, &calls);
}

CORRAL_CUDA_DEFINE(cuMemAllocFromPoolAsync_ptsz, CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
                   CUstream stream)
{
    const struct corral_cuda_pool_calls calls = {.from_pool = REAL(cuMemAllocFromPoolAsync_ptsz),
                                                 .free = REAL(cuMemFreeAsync_ptsz)};
    return allocate_from("cuMemAllocFromPoolAsync_ptsz", pointer, bytes, pool, stream, &calls);
}

CORRAL_CUDA_DEFINE(cuMemFreeAsync, CUdeviceptr pointer, CUstream stream)
{
    return corral_cuda_free_pointer(pointer, REAL(cuMemFreeAsync), stream);
}

CORRAL_CUDA_DEFINE(cuMemFreeAsync_ptsz, CUdeviceptr pointer, CUstream stream)
{
    return corral_cuda_free_pointer(pointer, REAL(cuMemFreeAsync_ptsz), stream);
}

CORRAL_CUDA_DEFINE(cuMemPoolCreate, CUmemoryPool *pool, const CUmemPoolProps *props)
{
    CUresult result = REAL(cuMemPoolCreate)(pool, props);
    if (result == CUDA_SUCCESS) {
        /* Managed memory is charged wherever its pages are, as cuMemAllocManaged's is. */
        bool managed = props->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED;
        corral_cuda_pool_register(*pool, props->location.type == CU_MEM_LOCATION_TYPE_DEVICE
                                             ? props->location.id
                                         : managed ? corral_cuda_current_device()
                                                   : CORRAL_CUDA_POOL_HOST);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMemPoolDestroy, CUmemoryPool pool)
{
    struct corral_cuda_record record;
    bool ours = corral_cuda_table_take(CORRAL_CUDA_POOL, (uint64_t)(uintptr_t)pool, &record);
    CUresult result = REAL(cuMemPoolDestroy)(pool);
    if (ours && result == CUDA_SUCCESS) {
        corral_cuda_pool_destroyed(corral_cuda_pool_of(&record));
    } else if (ours) {
        corral_cuda_put_back(&record);
    }
    return result;
}

static void refresh(CUmemoryPool handle)
{
    struct corral_cuda_record record;
    if (corral_cuda_table_get(CORRAL_CUDA_POOL, (uint64_t)(uintptr_t)handle, &record)) {
        corral_cuda_pool_refresh(corral_cuda_pool_of(&record));
    }
}

CORRAL_CUDA_DEFINE(cuMemPoolTrimTo, CUmemoryPool pool, size_t keep)
{
    CUresult result = REAL(cuMemPoolTrimTo)(pool, keep);
    refresh(pool);
    return result;
}

CORRAL_CUDA_DEFINE(cuMemPoolSetAttribute, CUmemoryPool pool, CUmemPool_attribute attribute, void *value)
{
    CUresult result = REAL(cuMemPoolSetAttribute)(pool, attribute, value);
    refresh(pool);
    return result;
}

/* A pool is exchanged before anything is in it: what is recognised later is each pointer. */
CORRAL_CUDA_DEFINE(cuMemPoolExportToShareableHandle, void *out, CUmemoryPool pool,
                   CUmemAllocationHandleType type, unsigned long long flags)
{
    return REAL(cuMemPoolExportToShareableHandle)(out, pool, type, flags);
}

CORRAL_CUDA_DEFINE(cuMemPoolImportFromShareableHandle, CUmemoryPool *pool, void *handle,
                   CUmemAllocationHandleType type, unsigned long long flags)
{
    CUresult result = REAL(cuMemPoolImportFromShareableHandle)(pool, handle, type, flags);
    if (result == CUDA_SUCCESS) {
        corral_cuda_pool_register(*pool, CORRAL_CUDA_POOL_FOREIGN);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMemPoolExportPointer, CUmemPoolPtrExportData *data, CUdeviceptr pointer)
{
    struct corral_cuda_record record;
    CUresult result = REAL(cuMemPoolExportPointer)(data, pointer);
    if (result == CUDA_SUCCESS && corral_cuda_table_get(CORRAL_CUDA_POINTER, pointer, &record) &&
        (record.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_POOL) {
        uint64_t key[2];
        corral_cuda_handle_key(data, sizeof(*data), key);
        corral_cuda_pool_export(corral_cuda_pool_of(&record), key);
    }
    return result;
}

/* The exporter's pool is charged for it. When the exporter is not in the ledger, this process is. */
CORRAL_CUDA_DEFINE(cuMemPoolImportPointer, CUdeviceptr *pointer, CUmemoryPool pool,
                   CUmemPoolPtrExportData *data)
{
    CUdevice device = corral_cuda_current_device();
    uint64_t key[2];
    CUresult result = REAL(cuMemPoolImportPointer)(pointer, pool, data);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    corral_cuda_handle_key(data, sizeof(*data), key);
    if (!corral_cuda_adopt(device, CORRAL_CUDA_POINTER, *pointer, key, "cuMemPoolImportPointer")) {
        (void)REAL(cuMemFree_v2)(*pointer);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
}
