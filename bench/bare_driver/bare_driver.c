/* libcuda.so.1 for bench/interposer.sh: a driver that does next to nothing, so that what stands before it shows. An allocation is an addition to a counter, a launch and a copy return at once;
 * nothing is kept, checked or shared. It has one device and just the functions that interposer_bench, quota-node and the interposer call. For tests there is tests/fakecuda. */
#include "quota/cuda/driver_types.h"
#include <stdatomic.h>
#include <string.h>

#define MEMORY (UINT64_C(64) << 30)

#define BARE(NAME, ...)                                                           \
    extern __attribute__((visibility("default"))) __typeof__(*(NAME##_fn)0) NAME; \
    CUresult NAME(__VA_ARGS__)

/* No address is given out twice. */
static _Atomic uint64_t next_address = UINT64_C(1) << 40;
static _Atomic uint64_t freed;
static _Thread_local CUcontext current;

BARE(cuInit, unsigned flags)
{
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

BARE(cuDriverGetVersion, int *version)
{
    *version = 13000;
    return CUDA_SUCCESS;
}

BARE(cuGetErrorName, CUresult result, const char **name)
{
    *name = result == CUDA_SUCCESS ? "CUDA_SUCCESS" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}

BARE(cuDeviceGetCount, int *count)
{
    *count = 1;
    return CUDA_SUCCESS;
}

BARE(cuDeviceGet, CUdevice *device, int ordinal)
{
    *device = 0;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

BARE(cuDeviceGetUuid, CUuuid *uuid, CUdevice device)
{
    memset(uuid, 0xbe, sizeof *uuid);
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

BARE(cuDeviceGetUuid_v2, CUuuid *uuid, CUdevice device)
{
    return cuDeviceGetUuid(uuid, device);
}

BARE(cuDeviceTotalMem_v2, size_t *bytes, CUdevice device)
{
    *bytes = MEMORY;
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

BARE(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)
{
    static char primary;
    *context = (CUcontext)(void *)&primary;
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

BARE(cuDevicePrimaryCtxRelease_v2, CUdevice device)
{
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

BARE(cuCtxPushCurrent_v2, CUcontext context)
{
    current = context;
    return CUDA_SUCCESS;
}

BARE(cuCtxSetCurrent, CUcontext context)
{
    current = context;
    return CUDA_SUCCESS;
}

BARE(cuCtxGetCurrent, CUcontext *context)
{
    *context = current;
    return CUDA_SUCCESS;
}

BARE(cuCtxGetDevice, CUdevice *device)
{
    *device = 0;
    return current != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

BARE(cuMemGetInfo_v2, size_t *free_bytes, size_t *total)
{
    *free_bytes = *total = MEMORY;
    return CUDA_SUCCESS;
}

BARE(cuMemAlloc_v2, CUdeviceptr *pointer, size_t bytes)
{
    *pointer = atomic_fetch_add_explicit(&next_address, (bytes + 511) / 512 * 512, memory_order_relaxed);
    return CUDA_SUCCESS;
}

BARE(cuMemFree_v2, CUdeviceptr pointer)
{
    atomic_fetch_add_explicit(&freed, pointer != 0, memory_order_relaxed);
    return CUDA_SUCCESS;
}

BARE(cuMemcpyHtoD_v2, CUdeviceptr to, const void *from, size_t bytes)
{
    return to != 0 && from != NULL && bytes > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

BARE(cuModuleLoadData, CUmodule *module, const void *image)
{
    static char loaded;
    *module = (CUmodule)(void *)&loaded;
    return image != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

BARE(cuModuleGetFunction, CUfunction *function, CUmodule module, const char *name)
{
    static char kernel;
    *function = (CUfunction)(void *)&kernel;
    return module != NULL && name != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

BARE(cuLaunchKernel, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
     unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **params, void **extra)
{
    (void)grid_y, (void)grid_z, (void)block_y, (void)block_z, (void)shared_bytes, (void)stream, (void)params;
    (void)extra;
    return function != NULL && grid_x > 0 && block_x > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
