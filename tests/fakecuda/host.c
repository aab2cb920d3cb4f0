/* Page-locked host memory: takes nothing of a device. */
#include "tests/fakecuda/fake.h"

static CUresult allocate_host(void **out, size_t bytes)
{
    if (out == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    if (fake_current() == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    void *memory = bytes < UINT64_C(1) << 46 ? fake_map(bytes) : NULL;
    struct fake_object *o = memory != NULL ? fake_add(FAKE_HOST, (uint64_t)(uintptr_t)memory) : NULL;
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->memory = memory;
    o->mapped = bytes;
    o->bytes = bytes;
    o->context = fake_current();
    *out = memory;
    return CUDA_SUCCESS;
}

static CUresult free_host(void *memory)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_HOST, (uint64_t)(uintptr_t)memory);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_release(o);
    return CUDA_SUCCESS;
}

static CUresult register_host(void *memory, size_t bytes)
{
    if (memory == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    if (fake_current() == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (fake_find(FAKE_REGISTERED, (uint64_t)(uintptr_t)memory) != NULL) {
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    struct fake_object *o = fake_add(FAKE_REGISTERED, (uint64_t)(uintptr_t)memory);
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->bytes = bytes;
    o->context = fake_current();
    return CUDA_SUCCESS;
}

static CUresult unregister_host(void *memory)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_REGISTERED, (uint64_t)(uintptr_t)memory);
    if (o == NULL) {
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    }
    fake_remove(o);
    return CUDA_SUCCESS;
}

static CUresult device_pointer(CUdeviceptr *out, void *memory)
{
    FAKE_LOCKED;
    if (out == NULL || (fake_find_range(FAKE_HOST, (uint64_t)(uintptr_t)memory) == NULL &&
                        fake_find(FAKE_REGISTERED, (uint64_t)(uintptr_t)memory) == NULL)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = (CUdeviceptr)(uintptr_t)memory;
    return CUDA_SUCCESS;
}

FAKE(cuMemAllocHost, cuMemAllocHost, 2000, (void **memory, unsigned bytes), allocate_host(memory, bytes))
FAKE(cuMemAllocHost_v2, cuMemAllocHost, 3020, (void **memory, size_t bytes), allocate_host(memory, bytes))
FAKE(cuMemHostAlloc, cuMemHostAlloc, 2020, (void **memory, size_t bytes, unsigned flags),
     ((void)flags, allocate_host(memory, bytes)))
FAKE(cuMemFreeHost, cuMemFreeHost, 2000, (void *memory), free_host(memory))
FAKE(cuMemHostRegister, cuMemHostRegister, 4000, (void *memory, size_t bytes, unsigned flags),
     ((void)flags, register_host(memory, bytes)))
FAKE(cuMemHostRegister_v2, cuMemHostRegister, 6050, (void *memory, size_t bytes, unsigned flags),
     ((void)flags, register_host(memory, bytes)))
FAKE(cuMemHostUnregister, cuMemHostUnregister, 4000, (void *memory), unregister_host(memory))
FAKE(cuMemHostGetDevicePointer_v2, cuMemHostGetDevicePointer, 3020,
     (CUdeviceptr * pointer, void *memory, unsigned flags), ((void)flags, device_pointer(pointer, memory)))
