/* Linear, managed and host memory. Every byte asked for counts, and no more, so that the count can be compared with a ledger. */
#include "tests/fakecuda/fake.h"
#include <string.h>
#include <sys/mman.h>

#define PITCH 512

static CUdeviceptr pointer_of(const void *p)
{
    return (CUdeviceptr)(uintptr_t)p;
}

static CUresult allocate(CUdeviceptr *out, size_t bytes, enum fake_kind kind)
{
    if (out == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *context = fake_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (bytes > UINT64_C(1) << 46) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    void *memory = fake_map(bytes);
    struct fake_object *o = memory != NULL ? fake_add(kind, pointer_of(memory)) : NULL;
    if (o == NULL) {
        if (memory != NULL) {
            munmap(memory, bytes);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->memory = memory;
    o->mapped = bytes;
    o->context = context;
    o->device = context->device;
    /* What of managed memory does not fit is on the host. */
    bool ok = kind == FAKE_MANAGED ? fake_block_take_some(fake_device_physical(o->device), bytes, &o->block)
                                   : fake_take(o, bytes);
    if (!ok) {
        fake_release(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->bytes = bytes;
    *out = o->key;
    return CUDA_SUCCESS;
}

static CUresult allocate_pitch(CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    if (pitch == NULL || width == 0 || height == 0 || (element != 4 && element != 8 && element != 16)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t row = fake_round(width, PITCH), bytes;
    if (__builtin_mul_overflow(row, height, &bytes)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult r = allocate(out, bytes, FAKE_POINTER);
    if (r == CUDA_SUCCESS) {
        *pitch = row;
    }
    return r;
}

/* The 32-bit originals, still exported: addresses below 4 GiB. */
static CUresult allocate_old(CUdeviceptr_v1 *out, size_t bytes)
{
    if (out == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *context = fake_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
    struct fake_object *o = memory != MAP_FAILED ? fake_add(FAKE_POINTER, pointer_of(memory)) : NULL;
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->memory = memory;
    o->mapped = bytes;
    o->context = context;
    o->device = context->device;
    if (!fake_take(o, bytes)) {
        fake_release(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (CUdeviceptr_v1)o->key;
    return CUDA_SUCCESS;
}

static CUresult allocate_pitch_old(CUdeviceptr_v1 *out, unsigned *pitch, unsigned width, unsigned height)
{
    if (pitch == NULL || width == 0 || height == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t row = fake_round(width, PITCH);
    CUresult r = allocate_old(out, row * height);
    if (r == CUDA_SUCCESS) {
        *pitch = (unsigned)row;
    }
    return r;
}

static CUresult free_pointer(CUdeviceptr pointer)
{
    if (pointer == 0) {
        return CUDA_SUCCESS;
    }
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_POINTER, pointer);
    o = o != NULL ? o : fake_find(FAKE_MANAGED, pointer);
    if (o != NULL && o->other == NULL) {
        fake_release(o);
        return CUDA_SUCCESS;
    }
    struct fake_object *graph = fake_find(FAKE_GRAPH_POINTER, pointer);
    if (graph != NULL) {
        return fake_graph_pointer_free(graph);
    }
    struct fake_object *pooled = fake_find(FAKE_POOLED, pointer);
    if (pooled != NULL) {
        fake_pool_forget(pooled);
        fake_synchronised();
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult info(size_t *free_bytes, size_t *total)
{
    FAKE_LOCKED;
    const struct fake_object *context = fake_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (free_bytes != NULL) {
        *free_bytes = fake_state_memory() - fake_state_used(fake_device_physical(context->device));
    }
    if (total != NULL) {
        *total = fake_state_memory();
    }
    return CUDA_SUCCESS;
}

static CUresult info_old(unsigned *free_bytes, unsigned *total)
{
    size_t f = 0, t = 0;
    CUresult r = info(&f, &t);
    if (r == CUDA_SUCCESS && free_bytes != NULL) {
        *free_bytes = f > UINT32_MAX ? UINT32_MAX : (unsigned)f;
    }
    if (r == CUDA_SUCCESS && total != NULL) {
        *total = t > UINT32_MAX ? UINT32_MAX : (unsigned)t;
    }
    return r;
}

static struct fake_object *anything_at(CUdeviceptr pointer)
{
    static const enum fake_kind kinds[] = {FAKE_POINTER, FAKE_MANAGED,       FAKE_POOLED,
                                           FAKE_MAPPING, FAKE_GRAPH_POINTER, FAKE_HOST};
    struct fake_object *o = NULL;
    for (size_t i = 0; o == NULL && i < sizeof kinds / sizeof kinds[0]; i++) {
        o = fake_find_range(kinds[i], pointer);
    }
    return o;
}

static CUresult range(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer)
{
    FAKE_LOCKED;
    const struct fake_object *o = anything_at(pointer);
    if (o == NULL) {
        return CUDA_ERROR_NOT_FOUND;
    }
    if (base != NULL) {
        *base = pointer_of(o->memory);
    }
    if (bytes != NULL) {
        *bytes = o->bytes;
    }
    return CUDA_SUCCESS;
}

static CUresult attribute_of(void *data, CUpointer_attribute attribute, CUdeviceptr pointer)
{
    FAKE_LOCKED;
    const struct fake_object *o = anything_at(pointer);
    if (data == NULL || o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    switch ((int)attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = o->context != NULL ? (CUcontext)(uintptr_t)o->context->key : NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = o->kind == FAKE_HOST ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = pointer;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned *)data = o->kind == FAKE_MANAGED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = o->device;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = pointer_of(o->memory);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = o->bytes;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *(CUmemoryPool *)data = o->kind == FAKE_POOLED ? (CUmemoryPool)(uintptr_t)o->other->key : NULL;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

/* Managed memory moves: to the host it leaves the device, to the device it takes what there is. */
static CUresult move(CUdeviceptr pointer, bool to_host)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find_range(FAKE_MANAGED, pointer);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (to_host) {
        fake_block_resize(o->block, 0);
    } else {
        fake_block_resize(o->block, o->bytes);
    }
    return CUDA_SUCCESS;
}

static CUresult advise(CUdeviceptr pointer, CUmem_advise advice, bool host)
{
    return advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION ? move(pointer, host) : CUDA_SUCCESS;
}

static bool host_place(CUmemLocation l)
{
    return l.type != CU_MEM_LOCATION_TYPE_DEVICE;
}

FAKE(cuMemGetInfo, cuMemGetInfo, 2000, (unsigned *free, unsigned *total), info_old(free, total))
FAKE(cuMemGetInfo_v2, cuMemGetInfo, 3020, (size_t * free, size_t *total), info(free, total))
FAKE(cuMemAlloc, cuMemAlloc, 2000, (CUdeviceptr_v1 * pointer, unsigned bytes), allocate_old(pointer, bytes))
FAKE(cuMemAlloc_v2, cuMemAlloc, 3020, (CUdeviceptr * pointer, size_t bytes),
     allocate(pointer, bytes, FAKE_POINTER))
FAKE(cuMemAllocPitch, cuMemAllocPitch, 2000,
     (CUdeviceptr_v1 * pointer, unsigned *pitch, unsigned width, unsigned height, unsigned element),
     ((void)element, allocate_pitch_old(pointer, pitch, width, height)))
FAKE(cuMemAllocPitch_v2, cuMemAllocPitch, 3020,
     (CUdeviceptr * pointer, size_t *pitch, size_t width, size_t height, unsigned element),
     allocate_pitch(pointer, pitch, width, height, element))
FAKE(cuMemAllocManaged, cuMemAllocManaged, 6000, (CUdeviceptr * pointer, size_t bytes, unsigned flags),
     flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST ? allocate(pointer, bytes, FAKE_MANAGED)
                                                                  : CUDA_ERROR_INVALID_VALUE)
FAKE(cuMemFree, cuMemFree, 2000, (CUdeviceptr_v1 pointer), free_pointer(pointer))
FAKE(cuMemFree_v2, cuMemFree, 3020, (CUdeviceptr pointer), free_pointer(pointer))
FAKE(cuMemGetAddressRange_v2, cuMemGetAddressRange, 3020,
     (CUdeviceptr * base, size_t *bytes, CUdeviceptr pointer), range(base, bytes, pointer))
FAKE(cuPointerGetAttribute, cuPointerGetAttribute, 4000,
     (void *data, CUpointer_attribute attribute, CUdeviceptr pointer), attribute_of(data, attribute, pointer))
FAKE(cuMemAdvise, cuMemAdvise, 8000,
     (CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUdevice device),
     ((void)bytes, advise(pointer, advice, device < 0)))
FAKE(cuMemAdvise_v2, cuMemAdvise, 12020,
     (CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUmemLocation location),
     ((void)bytes, advise(pointer, advice, host_place(location))))
FAKE(cuMemPrefetchAsync, cuMemPrefetchAsync, 8000,
     (CUdeviceptr pointer, size_t bytes, CUdevice device, CUstream stream),
     ((void)bytes, (void)stream, move(pointer, device < 0)))
FAKE_PER_THREAD(cuMemPrefetchAsync_ptsz, cuMemPrefetchAsync, 8000,
                (CUdeviceptr pointer, size_t bytes, CUdevice device, CUstream stream),
                ((void)bytes, (void)stream, move(pointer, device < 0)))
FAKE(cuMemPrefetchAsync_v2, cuMemPrefetchAsync, 12020,
     (CUdeviceptr pointer, size_t bytes, CUmemLocation location, unsigned flags, CUstream stream),
     ((void)bytes, (void)flags, (void)stream, move(pointer, host_place(location))))
FAKE_PER_THREAD(cuMemPrefetchAsync_v2_ptsz, cuMemPrefetchAsync, 12020,
                (CUdeviceptr pointer, size_t bytes, CUmemLocation location, unsigned flags, CUstream stream),
                ((void)bytes, (void)flags, (void)stream, move(pointer, host_place(location))))
