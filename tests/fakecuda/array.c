/* Arrays and mipmapped arrays: the size that the driver would lay them out in, in 64 KiB. Deferred and sparse ones have requirements and take nothing. */
#include "tests/fakecuda/fake.h"
#include <stdlib.h>

#define ARRAY_ALIGN ((uint64_t)64 << 10)

static unsigned format_bytes(CUarray_format f)
{
    switch ((int)f) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        return 4;
    default:
        return 0;
    }
}

static bool level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned level, uint64_t *out)
{
    uint64_t n = format_bytes(d->Format) * (uint64_t)d->NumChannels;
    bool layers = (d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
    size_t dims[3] = {d->Width >> level, d->Height >> level, layers ? d->Depth : d->Depth >> level};
    for (int i = 0; i < 3; i++) {
        if (__builtin_mul_overflow(n, dims[i] > 0 ? dims[i] : 1, &n) || n > UINT64_C(1) << 46) {
            return false;
        }
    }
    *out = n;
    return true;
}

/* As many as asked for, but at least one, and none after the one of a single element. */
static unsigned fake_levels(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels)
{
    unsigned most = 1;
    for (size_t edge = d->Width | d->Height | d->Depth; edge > 1; edge >>= 1) {
        most++;
    }
    return levels < 1 ? 1 : levels < most ? levels : most;
}

static CUresult check(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels, uint64_t *out)
{
    bool channels = d->NumChannels == 1 || d->NumChannels == 2 || d->NumChannels == 4;
    if (d->Width == 0 || format_bytes(d->Format) == 0 || !channels) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t sum = 0, n;
    for (unsigned l = 0; l < fake_levels(d, levels); l++) {
        if (!level_bytes(d, l, &n)) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        sum += n;
    }
    *out = fake_round(sum, ARRAY_ALIGN);
    return CUDA_SUCCESS;
}

static CUresult create(uint64_t *out, const CUDA_ARRAY3D_DESCRIPTOR *d, enum fake_kind kind, unsigned levels)
{
    uint64_t bytes = 0;
    CUresult r = check(d, levels, &bytes);
    if (r != CUDA_SUCCESS) {
        return r;
    }
    FAKE_LOCKED;
    struct fake_object *context = fake_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    struct fake_object *o = fake_add(kind, 0);
    CUDA_ARRAY3D_DESCRIPTOR *copy = o != NULL ? malloc(sizeof *copy) : NULL;
    if (copy == NULL) {
        if (o != NULL) {
            fake_remove(o);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *copy = *d;
    o->data = copy;
    o->context = context;
    o->device = context->device;
    o->maps = fake_levels(d, levels);
    if ((d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) == 0 && !fake_take(o, bytes)) {
        fake_release(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->bytes = bytes;
    *out = o->key;
    return CUDA_SUCCESS;
}

static CUresult create_array(CUarray *out, CUDA_ARRAY3D_DESCRIPTOR d)
{
    uint64_t key;
    CUresult r = out != NULL ? create(&key, &d, FAKE_ARRAY, 1) : CUDA_ERROR_INVALID_VALUE;
    if (r == CUDA_SUCCESS) {
        *out = (CUarray)(uintptr_t)key;
    }
    return r;
}

#define FLAT(d) ((CUDA_ARRAY3D_DESCRIPTOR){(d)->Width, (d)->Height, 0, (d)->Format, (d)->NumChannels, 0})
#define DEEP(d)                                                                                    \
    ((CUDA_ARRAY3D_DESCRIPTOR){(d)->Width, (d)->Height, (d)->Depth, (d)->Format, (d)->NumChannels, \
                               (d)->Flags})

static CUresult destroy_array(CUarray a)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_ARRAY, (uint64_t)(uintptr_t)a);
    if (o == NULL || o->other != NULL) { /* a level goes with its mipmap */
        return CUDA_ERROR_INVALID_HANDLE;
    }
    fake_release(o);
    return CUDA_SUCCESS;
}

static CUresult describe(CUDA_ARRAY3D_DESCRIPTOR *out, CUarray a)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_find(FAKE_ARRAY, (uint64_t)(uintptr_t)a);
    if (out == NULL || o == NULL) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
    }
    *out = *(const CUDA_ARRAY3D_DESCRIPTOR *)o->data;
    return CUDA_SUCCESS;
}

static CUresult requirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, enum fake_kind kind, uint64_t key)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_find(kind, key);
    if (out == NULL || o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const CUDA_ARRAY3D_DESCRIPTOR *d = o->data;
    if ((d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = o->bytes, .alignment = ARRAY_ALIGN};
    return CUDA_SUCCESS;
}

static CUresult create_mipmap(CUmipmappedArray *out, const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels)
{
    uint64_t key;
    CUresult r = out != NULL && d != NULL ? create(&key, d, FAKE_MIPMAP, levels) : CUDA_ERROR_INVALID_VALUE;
    if (r == CUDA_SUCCESS) {
        *out = (CUmipmappedArray)(uintptr_t)key;
    }
    return r;
}

static void release_level(struct fake_object *o, void *mipmap)
{
    if (o->other == mipmap) {
        fake_release(o);
    }
}

static CUresult destroy_mipmap(CUmipmappedArray m)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_MIPMAP, (uint64_t)(uintptr_t)m);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    fake_each(FAKE_ARRAY, release_level, o);
    fake_release(o);
    return CUDA_SUCCESS;
}

static CUresult get_level(CUarray *out, CUmipmappedArray m, unsigned level)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_MIPMAP, (uint64_t)(uintptr_t)m);
    if (out == NULL || o == NULL || level >= o->maps) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *a = fake_add(FAKE_ARRAY, 0);
    CUDA_ARRAY3D_DESCRIPTOR *copy = a != NULL ? malloc(sizeof *copy) : NULL;
    if (copy == NULL) {
        if (a != NULL) {
            fake_remove(a);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *copy = *(const CUDA_ARRAY3D_DESCRIPTOR *)o->data;
    copy->Width >>= level;
    copy->Height >>= level;
    a->data = copy;
    a->other = o;
    *out = (CUarray)(uintptr_t)a->key;
    return CUDA_SUCCESS;
}

FAKE(cuArrayCreate, cuArrayCreate, 2000, (CUarray * array, const CUDA_ARRAY_DESCRIPTOR_v1 *descriptor),
     descriptor != NULL ? create_array(array, FLAT(descriptor)) : CUDA_ERROR_INVALID_VALUE)
FAKE(cuArrayCreate_v2, cuArrayCreate, 3020, (CUarray * array, const CUDA_ARRAY_DESCRIPTOR *descriptor),
     descriptor != NULL ? create_array(array, FLAT(descriptor)) : CUDA_ERROR_INVALID_VALUE)
FAKE(cuArray3DCreate, cuArray3DCreate, 2000, (CUarray * array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *descriptor),
     descriptor != NULL ? create_array(array, DEEP(descriptor)) : CUDA_ERROR_INVALID_VALUE)
FAKE(cuArray3DCreate_v2, cuArray3DCreate, 3020, (CUarray * array, const CUDA_ARRAY3D_DESCRIPTOR *descriptor),
     descriptor != NULL ? create_array(array, DEEP(descriptor)) : CUDA_ERROR_INVALID_VALUE)
FAKE(cuArrayDestroy, cuArrayDestroy, 2000, (CUarray array), destroy_array(array))
FAKE(cuArray3DGetDescriptor_v2, cuArray3DGetDescriptor, 3020,
     (CUDA_ARRAY3D_DESCRIPTOR * descriptor, CUarray array), describe(descriptor, array))
FAKE(cuArrayGetMemoryRequirements, cuArrayGetMemoryRequirements, 11060,
     (CUDA_ARRAY_MEMORY_REQUIREMENTS * out, CUarray array, CUdevice device),
     ((void)device, requirements(out, FAKE_ARRAY, (uint64_t)(uintptr_t)array)))
FAKE(cuMipmappedArrayCreate, cuMipmappedArrayCreate, 5000,
     (CUmipmappedArray * mipmap, const CUDA_ARRAY3D_DESCRIPTOR *descriptor, unsigned levels),
     create_mipmap(mipmap, descriptor, levels))
FAKE(cuMipmappedArrayDestroy, cuMipmappedArrayDestroy, 5000, (CUmipmappedArray mipmap),
     destroy_mipmap(mipmap))
FAKE(cuMipmappedArrayGetLevel, cuMipmappedArrayGetLevel, 5000,
     (CUarray * array, CUmipmappedArray mipmap, unsigned level), get_level(array, mipmap, level))
FAKE(cuMipmappedArrayGetMemoryRequirements, cuMipmappedArrayGetMemoryRequirements, 11060,
     (CUDA_ARRAY_MEMORY_REQUIREMENTS * out, CUmipmappedArray mipmap, CUdevice device),
     ((void)device, requirements(out, FAKE_MIPMAP, (uint64_t)(uintptr_t)mipmap)))
