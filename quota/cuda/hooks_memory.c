/* cuMemAlloc, cuMemAllocPitch, cuMemAllocManaged, cuMemFree. */
#include "quota/cuda/families.h"

/* Without a current context the driver refuses by itself, with the error that the application expects. */
static bool no_context(CUdevice device)
{
    return device < 0 && corral_cuda_mode() == CORRAL_CUDA_FENCED;
}

static CUresult free_v2(CUdeviceptr pointer, CUstream stream)
{
    (void)stream;
    return REAL(cuMemFree_v2)(pointer);
}

static CUresult free_v1(CUdeviceptr pointer, CUstream stream)
{
    (void)stream;
    return REAL(cuMemFree)((CUdeviceptr_v1)pointer);
}

CORRAL_CUDA_DEFINE(cuMemAlloc_v2, CUdeviceptr *pointer, size_t bytes)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge;
    if (no_context(device) || bytes == 0) {
        return REAL(cuMemAlloc_v2)(pointer, bytes);
    }
    if (!corral_cuda_reserve(device, bytes, CORRAL_KIND_DEVICE, "cuMemAlloc_v2", &charge)) {
        return corral_cuda_spill(device, pointer, bytes) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuMemAlloc_v2)(pointer, bytes);
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
        return result;
    }
    corral_cuda_keep_as(CORRAL_CUDA_POINTER, *pointer, device, &charge, CORRAL_CUDA_PLAIN);
    return CUDA_SUCCESS;
}

CORRAL_CUDA_DEFINE(cuMemAlloc, CUdeviceptr_v1 *pointer, unsigned int bytes)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge;
    if (no_context(device) || bytes == 0) {
        return REAL(cuMemAlloc)(pointer, bytes);
    }
    if (!corral_cuda_reserve(device, bytes, CORRAL_KIND_DEVICE, "cuMemAlloc", &charge)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuMemAlloc)(pointer, bytes);
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
        return result;
    }
    corral_cuda_keep_as(CORRAL_CUDA_POINTER, *pointer, device, &charge, CORRAL_CUDA_PLAIN);
    return CUDA_SUCCESS;
}

#define PITCH_UNIT UINT64_C(512) /* rows of every driver so far are multiples of it, at most */

/* What a pitched allocation will take, as far as can be told before. 0: none that the driver would make. */
static uint64_t pitch_bytes(uint64_t width, uint64_t height)
{
    uint64_t row, bytes;
    if (__builtin_add_overflow(width, PITCH_UNIT - 1, &row) ||
        __builtin_mul_overflow(row / PITCH_UNIT * PITCH_UNIT, height, &bytes)) {
        return 0;
    }
    return width == 0 ? 0 : bytes;
}

/* The pitch is the driver's choice: reserve what it should take, then what it took. False: that does not fit. */
static bool settle_pitch(CUdevice device, struct corral_quota_charge *charge, uint64_t pitch, uint64_t height,
                         const char *api)
{
    uint64_t bytes;
    if (__builtin_mul_overflow(pitch, height, &bytes)) {
        return false;
    }
    return bytes == charge->bytes || corral_cuda_resize(device, charge, bytes, api);
}

CORRAL_CUDA_DEFINE(cuMemAllocPitch_v2, CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
                   unsigned int element)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge;
    uint64_t expected = pitch_bytes(width, height);
    if (no_context(device) || expected == 0) {
        return REAL(cuMemAllocPitch_v2)(pointer, pitch, width, height, element);
    }
    if (!corral_cuda_reserve(device, expected, CORRAL_KIND_DEVICE, "cuMemAllocPitch_v2", &charge)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuMemAllocPitch_v2)(pointer, pitch, width, height, element);
    if (result == CUDA_SUCCESS && !settle_pitch(device, &charge, *pitch, height, "cuMemAllocPitch_v2")) {
        (void)REAL(cuMemFree_v2)(*pointer);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
        return result;
    }
    corral_cuda_keep_as(CORRAL_CUDA_POINTER, *pointer, device, &charge, CORRAL_CUDA_PLAIN);
    return CUDA_SUCCESS;
}

CORRAL_CUDA_DEFINE(cuMemAllocPitch, CUdeviceptr_v1 *pointer, unsigned int *pitch, unsigned int width,
                   unsigned int height, unsigned int element)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge;
    uint64_t expected = pitch_bytes(width, height);
    if (no_context(device) || expected == 0) {
        return REAL(cuMemAllocPitch)(pointer, pitch, width, height, element);
    }
    if (!corral_cuda_reserve(device, expected, CORRAL_KIND_DEVICE, "cuMemAllocPitch", &charge)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuMemAllocPitch)(pointer, pitch, width, height, element);
    if (result == CUDA_SUCCESS && !settle_pitch(device, &charge, *pitch, height, "cuMemAllocPitch")) {
        (void)REAL(cuMemFree)(*pointer);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
        return result;
    }
    corral_cuda_keep_as(CORRAL_CUDA_POINTER, *pointer, device, &charge, CORRAL_CUDA_PLAIN);
    return CUDA_SUCCESS;
}

CORRAL_CUDA_DEFINE(cuMemAllocManaged, CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge;
    if (no_context(device) || bytes == 0) {
        return REAL(cuMemAllocManaged)(pointer, bytes, flags);
    }
    if (!corral_cuda_reserve(device, bytes, CORRAL_KIND_MANAGED, "cuMemAllocManaged", &charge)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuMemAllocManaged)(pointer, bytes, flags);
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
        return result;
    }
    corral_cuda_keep_as(CORRAL_CUDA_POINTER, *pointer, device, &charge, CORRAL_CUDA_PLAIN);
    return CUDA_SUCCESS;
}

/* Pointers that map an imported object. */
static CUresult free_of_object(CUdeviceptr pointer, corral_cuda_free_fn driver, CUstream stream)
{
    struct corral_cuda_closing closing = corral_cuda_object_begin_close(CORRAL_CUDA_POINTER, pointer);
    CUresult result = driver(pointer, stream);
    corral_cuda_object_end_close(&closing, result == CUDA_SUCCESS);
    return result;
}

CUresult corral_cuda_free_pointer(CUdeviceptr pointer, corral_cuda_free_fn driver, CUstream stream)
{
    struct corral_cuda_record record;
    if (pointer == 0) {
        return driver(pointer, stream);
    }
    if (corral_cuda_table_get(CORRAL_CUDA_POINTER, pointer, &record) &&
        (record.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_OBJECT) {
        return free_of_object(pointer, driver, stream);
    }
    bool ours = corral_cuda_table_take(CORRAL_CUDA_POINTER, pointer, &record) ||
                corral_cuda_table_take(CORRAL_CUDA_SPILLED, pointer, &record);
    CUresult result = driver(pointer, stream);
    if (!ours) {
        /* Perhaps a graph's. */
        corral_cuda_graphs_refresh(corral_cuda_current_device());
        return result;
    }
    if (result != CUDA_SUCCESS) {
        corral_cuda_put_back(&record);
    } else if (record.space == CORRAL_CUDA_SPILLED) {
        corral_cuda_unspill(&record);
    } else if ((record.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_POOL) {
        corral_cuda_uncharge(&record.charge);
        corral_cuda_pool_freed(corral_cuda_pool_of(&record));
    } else {
        corral_cuda_uncharge(&record.charge);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMemFree_v2, CUdeviceptr pointer)
{
    return corral_cuda_free_pointer(pointer, free_v2, NULL);
}

CORRAL_CUDA_DEFINE(cuMemFree, CUdeviceptr_v1 pointer)
{
    return corral_cuda_free_pointer(pointer, free_v1, NULL);
}
