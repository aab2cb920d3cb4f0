/* Host memory that the driver has pinned: counted beside the quota, never denied. */
#include "quota/cuda/families.h"

static CUresult pinned(CUresult result, void *const *memory, uint64_t bytes)
{
    if (result == CUDA_SUCCESS) {
        CUdevice device = corral_cuda_current_device();
        struct corral_quota_charge counted = corral_cuda_no_charge();
        counted.bytes = bytes;
        corral_cuda_count_pinned(device, (int64_t)bytes);
        corral_cuda_keep_as(CORRAL_CUDA_PINNED, (uint64_t)(uintptr_t)*memory, device, &counted,
                            CORRAL_CUDA_PLAIN);
    }
    return result;
}

static CUresult unpin(void *memory, CUresult (*driver)(void *))
{
    struct corral_cuda_record record;
    bool ours = corral_cuda_table_take(CORRAL_CUDA_PINNED, (uint64_t)(uintptr_t)memory, &record);
    CUresult result = driver(memory);
    if (ours && result == CUDA_SUCCESS) {
        corral_cuda_count_pinned(record.device, -(int64_t)record.charge.bytes);
    } else if (ours) {
        corral_cuda_put_back(&record);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMemAllocHost_v2, void **memory, size_t bytes)
{
    return pinned(REAL(cuMemAllocHost_v2)(memory, bytes), memory, bytes);
}

CORRAL_CUDA_DEFINE(cuMemAllocHost, void **memory, unsigned int bytes)
{
    return pinned(REAL(cuMemAllocHost)(memory, bytes), memory, bytes);
}

CORRAL_CUDA_DEFINE(cuMemHostAlloc, void **memory, size_t bytes, unsigned int flags)
{
    return pinned(REAL(cuMemHostAlloc)(memory, bytes, flags), memory, bytes);
}

CORRAL_CUDA_DEFINE(cuMemFreeHost, void *memory)
{
    return unpin(memory, REAL(cuMemFreeHost));
}

CORRAL_CUDA_DEFINE(cuMemHostRegister_v2, void *memory, size_t bytes, unsigned int flags)
{
    return pinned(REAL(cuMemHostRegister_v2)(memory, bytes, flags), &memory, bytes);
}

CORRAL_CUDA_DEFINE(cuMemHostRegister, void *memory, size_t bytes, unsigned int flags)
{
    return pinned(REAL(cuMemHostRegister)(memory, bytes, flags), &memory, bytes);
}

CORRAL_CUDA_DEFINE(cuMemHostUnregister, void *memory)
{
    return unpin(memory, REAL(cuMemHostUnregister));
}
