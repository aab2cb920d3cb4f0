/* What keeps VMM allocations alive beside cuMemMap: multicast objects and sparse arrays. A multicast object has no memory of its own. */
#include "quota/cuda/families.h"

CORRAL_CUDA_DEFINE(cuMulticastCreate, CUmemGenericAllocationHandle *handle, const CUmulticastObjectProp *prop)
{
    CUresult result = REAL(cuMulticastCreate)(handle, prop);
    if (result == CUDA_SUCCESS) {
        struct corral_quota_charge none = corral_cuda_no_charge();
        struct corral_cuda_object *object = corral_cuda_object_create(-1, &none);
        if (object != NULL) {
            object->multicast = true;
            corral_cuda_object_put(CORRAL_CUDA_VMM, *handle, object, 0);
        }
    }
    return result;
}

/* Bindings are kept for the life of the multicast object; the same place bound again replaces what was there. */
static uint64_t binding_name(CUmemGenericAllocationHandle handle, uint64_t device, uint64_t offset)
{
    uint64_t key[2];
    const uint64_t parts[3] = {handle, device, offset};
    corral_cuda_handle_key(parts, sizeof(parts), key);
    return key[0];
}

/* Relaxed: once there was a binding, whatever could have some is searched. */
static _Atomic(bool) any_binding;

static void put_binding(uint64_t name, struct corral_cuda_object *object, uint64_t tie)
{
    any_binding = true;
    corral_cuda_object_put(CORRAL_CUDA_BINDING, name, object, tie);
}

/* The driver finds a binding's device by its memory; Unbind names it. */
static void bind(CUmemGenericAllocationHandle handle, size_t offset, CUmemGenericAllocationHandle memory)
{
    struct corral_cuda_object *object = corral_cuda_object_pin(CORRAL_CUDA_VMM, memory);
    if (object != NULL) {
        corral_cuda_object_add_map(object);
        put_binding(binding_name(handle, (uint64_t)object->device, offset), object, handle);
        corral_cuda_object_unpin(object);
    }
}

static void bind_address(CUmemGenericAllocationHandle handle, size_t offset, CUdeviceptr address)
{
    CUmemGenericAllocationHandle memory;
    if (REAL(cuMemRetainAllocationHandle)(&memory, (void *)(uintptr_t)address) == CUDA_SUCCESS) {
        bind(handle, offset, memory);
        (void)REAL(cuMemRelease)(memory);
    }
}

CORRAL_CUDA_DEFINE(cuMulticastBindMem, CUmemGenericAllocationHandle handle, size_t offset,
                   CUmemGenericAllocationHandle memory, size_t memory_offset, size_t bytes,
                   unsigned long long flags)
{
    CUresult result = REAL(cuMulticastBindMem)(handle, offset, memory, memory_offset, bytes, flags);
    if (result == CUDA_SUCCESS) {
        bind(handle, offset, memory);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMulticastBindMem_v2, CUmemGenericAllocationHandle handle, CUdevice device, size_t offset,
                   CUmemGenericAllocationHandle memory, size_t memory_offset, size_t bytes,
                   unsigned long long flags)
{
    CUresult result =
        REAL(cuMulticastBindMem_v2)(handle, device, offset, memory, memory_offset, bytes, flags);
    if (result == CUDA_SUCCESS) {
        bind(handle, offset, memory);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMulticastBindAddr, CUmemGenericAllocationHandle handle, size_t offset,
                   CUdeviceptr memory, size_t bytes, unsigned long long flags)
{
    CUresult result = REAL(cuMulticastBindAddr)(handle, offset, memory, bytes, flags);
    if (result == CUDA_SUCCESS) {
        bind_address(handle, offset, memory);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMulticastBindAddr_v2, CUmemGenericAllocationHandle handle, CUdevice device,
                   size_t offset, CUdeviceptr memory, size_t bytes, unsigned long long flags)
{
    CUresult result = REAL(cuMulticastBindAddr_v2)(handle, device, offset, memory, bytes, flags);
    if (result == CUDA_SUCCESS) {
        bind_address(handle, offset, memory);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMulticastUnbind, CUmemGenericAllocationHandle handle, CUdevice device, size_t offset,
                   size_t bytes)
{
    CUresult result = REAL(cuMulticastUnbind)(handle, device, offset, bytes);
    if (result == CUDA_SUCCESS) {
        struct corral_cuda_closing closing = corral_cuda_object_begin_close(
            CORRAL_CUDA_BINDING, binding_name(handle, (uint64_t)device, offset));
        corral_cuda_object_end_close(&closing, true);
    }
    return result;
}

void corral_cuda_bindings_gone(uint64_t tie)
{
    struct corral_cuda_record record;
    uint32_t cursor = 0;
    while (any_binding &&
           corral_cuda_table_take_tied(CORRAL_CUDA_BINDING, tie, UINT64_MAX, &cursor, &record)) {
        corral_cuda_object_drop(corral_cuda_object_of(&record), CORRAL_CUDA_BINDING);
    }
}

/* ---- sparse arrays ---- */
/* The driver's layout. */
struct CUarrayMapInfo_st {
    int resource_type; /* 0: array, 1: mipmapped array */
    uint64_t resource;
    int subresource_type;
    union {
        unsigned int level[8];
        struct {
            unsigned int layer;
            unsigned long long offset, size;
        } tail;
    } subresource;
    int operation; /* 1: map, 2: unmap */
    int memory_type;
    CUmemGenericAllocationHandle memory;
    unsigned long long offset;
    unsigned int device_mask, flags, reserved[2];
};
_Static_assert(sizeof(struct CUarrayMapInfo_st) == 96, "the driver's layout");

/* The stream unmaps later, and the driver does not tell when: memory that a sparse array has had counts as mapped until the array is destroyed. */
static void array_mapped(const struct CUarrayMapInfo_st *info)
{
    struct corral_cuda_object *object =
        info->operation == 1 ? corral_cuda_object_pin(CORRAL_CUDA_VMM, info->memory) : NULL;
    if (object == NULL) {
        return;
    }
    uint64_t name = binding_name(info->resource, UINT64_MAX, info->memory);
    struct corral_cuda_object *before = corral_cuda_object_pin(CORRAL_CUDA_BINDING, name);
    if (before == NULL) {
        corral_cuda_object_add_map(object);
        put_binding(name, object, info->resource);
    } else {
        corral_cuda_object_unpin(before);
    }
    corral_cuda_object_unpin(object);
}

static CUresult arrays_mapped(CUresult result, const CUarrayMapInfo *list, unsigned int count)
{
    for (unsigned int i = 0; result == CUDA_SUCCESS && i < count; i++) {
        array_mapped(&list[i]);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMemMapArrayAsync, CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
    return arrays_mapped(REAL(cuMemMapArrayAsync)(list, count, stream), list, count);
}

CORRAL_CUDA_DEFINE(cuMemMapArrayAsync_ptsz, CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
    return arrays_mapped(REAL(cuMemMapArrayAsync_ptsz)(list, count, stream), list, count);
}
