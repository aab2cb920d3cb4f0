/* The CUDA driver as any program uses it: libcuda.so.1, opened with dlopen, its functions found by one of the ways that programs have. Nothing of this is linked, so the program
 * runs where there is no driver. What stands before the driver (the interposer) stands before this, too. */
#ifndef CORRAL_QUOTA_CUDA_CLIENT_H
#define CORRAL_QUOTA_CUDA_CLIENT_H

#include "base/error.h"
#include "quota/cuda/driver_types.h"
#include <stdbool.h>

/* Every function here exists in every driver since CUDA 12.0. */
#define CORRAL_CUDA_CLIENT_FUNCTIONS(X)                                      \
    X(cuInit, "cuInit", 2000)                                                \
    X(cuGetErrorName, "cuGetErrorName", 6000)                                \
    X(cuDeviceGetCount, "cuDeviceGetCount", 2000)                            \
    X(cuDeviceGetUuid, "cuDeviceGetUuid", 9020)                              \
    X(cuDeviceGetAttribute, "cuDeviceGetAttribute", 2000)                    \
    X(cuDeviceTotalMem_v2, "cuDeviceTotalMem", 3020)                         \
    X(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", 7000)            \
    X(cuDevicePrimaryCtxRelease_v2, "cuDevicePrimaryCtxRelease", 11000)      \
    X(cuCtxPushCurrent_v2, "cuCtxPushCurrent", 4000)                         \
    X(cuCtxPopCurrent_v2, "cuCtxPopCurrent", 4000)                           \
    X(cuStreamSynchronize, "cuStreamSynchronize", 2000)                      \
    X(cuMemGetInfo_v2, "cuMemGetInfo", 3020)                                 \
    X(cuMemAlloc_v2, "cuMemAlloc", 3020)                                     \
    X(cuMemAllocPitch_v2, "cuMemAllocPitch", 3020)                           \
    X(cuMemAllocManaged, "cuMemAllocManaged", 6000)                          \
    X(cuMemFree_v2, "cuMemFree", 3020)                                       \
    X(cuMemCreate, "cuMemCreate", 10020)                                     \
    X(cuMemRelease, "cuMemRelease", 10020)                                   \
    X(cuMemGetAllocationGranularity, "cuMemGetAllocationGranularity", 10020) \
    X(cuDeviceGetDefaultMemPool, "cuDeviceGetDefaultMemPool", 11020)         \
    X(cuMemAllocAsync, "cuMemAllocAsync", 11020)                             \
    X(cuMemFreeAsync, "cuMemFreeAsync", 11020)                               \
    X(cuMemPoolTrimTo, "cuMemPoolTrimTo", 11020)                             \
    X(cuArray3DCreate_v2, "cuArray3DCreate", 3020)                           \
    X(cuArrayDestroy, "cuArrayDestroy", 2000)                                \
    X(cuMipmappedArrayCreate, "cuMipmappedArrayCreate", 5000)                \
    X(cuMipmappedArrayDestroy, "cuMipmappedArrayDestroy", 5000)              \
    X(cuGraphCreate, "cuGraphCreate", 10000)                                 \
    X(cuGraphDestroy, "cuGraphDestroy", 10000)                               \
    X(cuGraphAddMemAllocNode, "cuGraphAddMemAllocNode", 11040)               \
    X(cuGraphAddMemFreeNode, "cuGraphAddMemFreeNode", 11040)                 \
    X(cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags", 11040)     \
    X(cuGraphExecDestroy, "cuGraphExecDestroy", 10000)                       \
    X(cuDeviceGraphMemTrim, "cuDeviceGraphMemTrim", 11040)

enum corral_cuda_route {
    CORRAL_CUDA_ROUTE_PLAIN,  /* what a program linked with libcuda gets */
    CORRAL_CUDA_ROUTE_DLSYM,  /* dlsym on the opened library */
    CORRAL_CUDA_ROUTE_LOOKUP, /* cuGetProcAddress, legacy stream: the CUDA runtime's way */
    CORRAL_CUDA_ROUTE_LOOKUP_PER_THREAD,
    CORRAL_CUDA_ROUTES
};

struct corral_cuda_client {
    void *library;
#define CORRAL_CUDA_CLIENT_MEMBER(name, base, version) name##_fn name;
    CORRAL_CUDA_CLIENT_FUNCTIONS(CORRAL_CUDA_CLIENT_MEMBER)
#undef CORRAL_CUDA_CLIENT_MEMBER
};

const char *corral_cuda_route_name(enum corral_cuda_route route);
/* CORRAL_UNSUPPORTED: no driver here, or it lacks something on this route. */
enum corral_status corral_cuda_client_open(enum corral_cuda_route route, struct corral_cuda_client *out,
                                           struct corral_error *err);
void corral_cuda_client_close(
    struct corral_cuda_client *c); /* the driver stays loaded: it does not like to go */
/* "CUDA_ERROR_OUT_OF_MEMORY", or the number. */
const char *corral_cuda_client_error(const struct corral_cuda_client *c, CUresult result, char text[32]);

#endif
