/* A libcuda.so.1 of a few functions for library_test: what matters is how they are found. Memory is a counter. With TINY_DRIVER_NEWER it is one of the years to come. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Atomic int tiny_calls; /* of real allocation functions */
int tiny_legacy, tiny_per_thread, tiny_first, tiny_unexported;

int cuInit(unsigned int flags)
{
    return flags == 0 ? 0 : 1;
}
int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}
int cuCtxGetDevice(int *device)
{
    *device = 0;
    return 0;
}
int cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
    memset(uuid, 0x42 + device, 16);
    return device == 0 ? 0 : 101;
}
static uint64_t next = 1 << 20;
int cuMemAlloc(unsigned int *pointer, unsigned int bytes)
{
    tiny_calls++;
    tiny_first++;
    *pointer = (unsigned int)__atomic_add_fetch(&next, bytes, __ATOMIC_RELAXED);
    return 0;
}
int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes)
{
    tiny_calls++;
    *pointer = __atomic_add_fetch(&next, bytes, __ATOMIC_RELAXED);
    return 0;
}
int cuMemFree_v2(unsigned long long pointer)
{
    return pointer != 0 ? 0 : 1;
}
int cuMemAllocAsync(unsigned long long *pointer, size_t bytes, void *stream)
{
    (void)stream;
    tiny_legacy++;
    return cuMemAlloc_v2(pointer, bytes);
}
int cuMemAllocAsync_ptsz(unsigned long long *pointer, size_t bytes, void *stream)
{
    (void)stream;
    tiny_per_thread++;
    return cuMemAlloc_v2(pointer, bytes);
}
int cuMemAllocManaged(unsigned long long *pointer, size_t bytes, unsigned int flags)
{
    (void)flags;
    return cuMemAlloc_v2(pointer, bytes);
}
/* What cuGetProcAddress gives for cuMemAllocManaged: exported under no name, as drivers may. */
static int unexported_managed(unsigned long long *pointer, size_t bytes, unsigned int flags)
{
    tiny_unexported++;
    return cuMemAllocManaged(pointer, bytes, flags);
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    if (!free_bytes || !total) {
        return 1;
    }
    *free_bytes = (size_t)90 << 20;
    *total = (size_t)100 << 20;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    if (!bytes) {
        return 1;
    }
    *bytes = (size_t)100 << 20;
    return device == 0 ? 0 : 101;
}
int cuLaunchKernel(void)
{
    return 0;
}
int cuGLCtxCreate_v2(void)
{
    return 0;
}
/* Found by cuGetProcAddress alone. */
static int cuMemAllocOfTheFuture(void)
{
    return 0;
}
static int cuQueryOfTheFuture(void)
{
    return 0;
}

int cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags);
int cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status);

static const struct {
    const char *name;
    int version, per_thread;
    void *function;
} functions[] = {
    {"cuInit", 2000, 0, (void *)cuInit},
    {"cuMemAlloc", 2000, 0, (void *)cuMemAlloc},
    {"cuMemAlloc", 3020, 0, (void *)cuMemAlloc_v2},
    {"cuMemFree", 3020, 0, (void *)cuMemFree_v2},
    {"cuMemAllocAsync", 11020, 0, (void *)cuMemAllocAsync},
    {"cuMemAllocAsync", 11020, 1, (void *)cuMemAllocAsync_ptsz},
    {"cuMemAllocManaged", 6000, 0, (void *)unexported_managed},
    {"cuLaunchKernel", 4000, 0, (void *)cuLaunchKernel},
    {"cuGetProcAddress", 11030, 0, (void *)cuGetProcAddress},
    {"cuGetProcAddress", 12000, 0, (void *)cuGetProcAddress_v2},
    {"cuMemAllocOfTheFuture", 12000, 0, (void *)cuMemAllocOfTheFuture},
    {"cuQueryOfTheFuture", 12000, 0, (void *)cuQueryOfTheFuture},
};

int cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status)
{
    int best = -1, too_new = 0;
    for (int i = 0; i < (int)(sizeof functions / sizeof *functions); i++) {
        if (strcmp(functions[i].name, symbol) != 0 || (functions[i].per_thread && !(flags & 2))) {
            continue;
        }
        too_new = functions[i].version > version ? 1 : too_new;
        if (functions[i].version <= version &&
            (best < 0 || functions[i].version >= functions[best].version)) {
            best = i;
        }
    }
    *out = best >= 0 ? functions[best].function : NULL;
    if (status) {
        *status = best >= 0 ? 0 : too_new ? 2 : 1;
    }
    return 0;
}
int cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags)
{
    int status;
    cuGetProcAddress_v2(symbol, out, version, flags, &status);
    return *out ? 0 : 500;
}
int cuGetExportTable(const void **table, const void *id)
{
    (void)id;
    *table = (const void *)functions;
    return 0;
}
#ifdef TINY_DRIVER_NEWER
int cuMemAllocNobodyKnows(void);
int cuMemAllocNobodyKnows(void)
{
    return 0;
}
#endif
