/* Arrays and mipmapped arrays. Their layout is the driver's: reserved by the descriptor, which is the least they take, and corrected where the driver tells. Sparse and
 * deferred ones have no memory of their own; what is mapped into them is charged where it was created. */
#include "quota/cuda/families.h"

#define ARRAY_UNIT UINT64_C(65536) /* the driver's smallest piece for arrays */

struct format_size {
    unsigned int format, bits; /* of an element, all channels: formats that have theirs built in */
};

/* Formats whose NumChannels does not multiply: the first planes' size, or the block's share of a texel. */
static const struct format_size packed_formats[] = {
    {0x50, 32}, {0x91, 4},  {0x92, 4},  {0x93, 8},  {0x94, 8},  {0x95, 8},  {0x96, 8},  {0x97, 4},
    {0x98, 4},  {0x99, 8},  {0x9a, 8},  {0x9b, 8},  {0x9c, 8},  {0x9d, 8},  {0x9e, 8},  {0x9f, 24},
    {0xa1, 24}, {0xa2, 16}, {0xa3, 32}, {0xa4, 32}, {0xa5, 16}, {0xa6, 32}, {0xa7, 32}, {0xa8, 32},
    {0xa9, 32}, {0xb0, 12}, {0xb1, 64}, {0xb2, 24}, {0xb3, 48}, {0xb4, 24}, {0xb5, 48}, {0xc0, 8},
    {0xc1, 16}, {0xc2, 32}, {0xc3, 16}, {0xc4, 32}, {0xc5, 64}, {0xc6, 8},  {0xc7, 16}, {0xc8, 32},
    {0xc9, 16}, {0xca, 32}, {0xcb, 64},
};

static uint64_t element_bits(unsigned int format, unsigned int channels)
{
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 8 * (uint64_t)channels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 16 * (uint64_t)channels;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        return 32 * (uint64_t)channels;
    default:
        break;
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(packed_formats); i++) {
        if (packed_formats[i].format == format) {
            return packed_formats[i].bits;
        }
    }
    return 32 * (uint64_t)channels; /* newer than this list: the largest of the plain ones */
}

/* Of one level; 0: no such array, the driver will refuse it. */
static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int level)
{
    bool layers = (d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
    uint64_t sides[3] = {CORRAL_MAX(d->Width >> level, 1), CORRAL_MAX(d->Height >> level, 1),
                         layers ? CORRAL_MAX(d->Depth, 1) : CORRAL_MAX(d->Depth >> level, 1)};
    uint64_t bits = element_bits((unsigned int)d->Format, d->NumChannels);
    for (int i = 0; i < 3; i++) {
        if (__builtin_mul_overflow(bits, sides[i], &bits)) {
            return 0;
        }
    }
    return bits / 8 + (bits % 8 != 0);
}

static uint64_t array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int levels)
{
    uint64_t bytes = 0;
    /* The driver takes 0 for 1. */
    for (unsigned int level = 0; level < CORRAL_MIN(CORRAL_MAX(levels, 1u), 32u); level++) {
        uint64_t one = level_bytes(d, level);
        if (one == 0 || __builtin_add_overflow(bytes, one, &bytes)) {
            return 0;
        }
    }
    /* In whole units: what the driver takes beyond what was reserved could be somebody else's. */
    return __builtin_add_overflow(bytes, ARRAY_UNIT - 1, &bytes) ? 0 : bytes / ARRAY_UNIT * ARRAY_UNIT;
}

static bool has_own_memory(const CUDA_ARRAY3D_DESCRIPTOR *d)
{
    return (d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) == 0;
}

/* 0: the driver does not tell. */
static uint64_t array_required(CUarray array, CUdevice device)
{
    CUDA_ARRAY_MEMORY_REQUIREMENTS r = {0};
    bool told = corral_cuda_real(CORRAL_CUDA_SYMBOL_cuArrayGetMemoryRequirements) != NULL &&
                REAL(cuArrayGetMemoryRequirements)(&r, array, device) == CUDA_SUCCESS;
    return told ? r.size : 0;
}

static uint64_t mipmap_required(CUmipmappedArray mipmap, CUdevice device)
{
    CUDA_ARRAY_MEMORY_REQUIREMENTS r = {0};
    bool told = corral_cuda_real(CORRAL_CUDA_SYMBOL_cuMipmappedArrayGetMemoryRequirements) != NULL &&
                REAL(cuMipmappedArrayGetMemoryRequirements)(&r, mipmap, device) == CUDA_SUCCESS;
    return told ? r.size : 0;
}

/* A description that the driver will refuse is left to it. */
static bool reserve_array(CUdevice device, const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int levels,
                          const char *api, struct corral_quota_charge *charge)
{
    *charge = corral_cuda_no_charge();
    uint64_t bytes = device < 0 || !has_own_memory(d) ? 0 : array_bytes(d, levels);
    if (device < 0 && corral_cuda_mode() != CORRAL_CUDA_FENCED) {
        return false;
    }
    return bytes == 0 || corral_cuda_reserve(device, bytes, CORRAL_KIND_ARRAY, api, charge);
}

static bool correct(CUdevice device, struct corral_quota_charge *charge, uint64_t required, const char *api)
{
    return !corral_cuda_is_charged(charge) || required == 0 || required == charge->bytes ||
           corral_cuda_resize(device, charge, required, api);
}

static CUresult array_created(CUresult result, CUarray *array, CUdevice device,
                              struct corral_quota_charge *charge, const char *api)
{
    if (result == CUDA_SUCCESS && !correct(device, charge, array_required(*array, device), api)) {
        (void)REAL(cuArrayDestroy)(*array);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(charge);
        return result;
    }
    if (corral_cuda_is_charged(charge)) {
        corral_cuda_keep_as(CORRAL_CUDA_ARRAY, (uint64_t)(uintptr_t)*array, device, charge,
                            CORRAL_CUDA_PLAIN);
    }
    return CUDA_SUCCESS;
}

#define ARRAY_HOOK(name, descriptor_type, ...)                                     \
    CORRAL_CUDA_DEFINE(name, CUarray *array, const descriptor_type *d)             \
    {                                                                              \
        CUdevice device = corral_cuda_current_device();                            \
        struct corral_quota_charge charge;                                         \
        if (array == NULL || d == NULL) {                                          \
            return REAL(name)(array, d);                                           \
        }                                                                          \
        CUDA_ARRAY3D_DESCRIPTOR wide = {.Width = d->Width,                         \
                                        .Height = d->Height,                       \
                                        .Format = d->Format,                       \
                                        .NumChannels = d->NumChannels,             \
                                        __VA_ARGS__};                              \
        if (!reserve_array(device, &wide, 1, #name, &charge)) {                    \
            return CUDA_ERROR_OUT_OF_MEMORY;                                       \
        }                                                                          \
        return array_created(REAL(name)(array, d), array, device, &charge, #name); \
    }

ARRAY_HOOK(cuArrayCreate_v2, CUDA_ARRAY_DESCRIPTOR, .Depth = 0)
ARRAY_HOOK(cuArrayCreate, CUDA_ARRAY_DESCRIPTOR_v1, .Depth = 0)
ARRAY_HOOK(cuArray3DCreate_v2, CUDA_ARRAY3D_DESCRIPTOR, .Depth = d->Depth, .Flags = d->Flags)
ARRAY_HOOK(cuArray3DCreate, CUDA_ARRAY3D_DESCRIPTOR_v1, .Depth = d->Depth, .Flags = d->Flags)

CORRAL_CUDA_DEFINE(cuArrayDestroy, CUarray array)
{
    struct corral_cuda_record record;
    uint64_t name = (uint64_t)(uintptr_t)array;
    bool ours = corral_cuda_table_take(CORRAL_CUDA_ARRAY, name, &record);
    CUresult result = REAL(cuArrayDestroy)(array);
    if (result == CUDA_SUCCESS) {
        corral_cuda_bindings_gone(name);
    }
    if (ours && result == CUDA_SUCCESS) {
        corral_cuda_uncharge(&record.charge);
    } else if (ours) {
        corral_cuda_put_back(&record);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMipmappedArrayCreate, CUmipmappedArray *mipmap, const CUDA_ARRAY3D_DESCRIPTOR *d,
                   unsigned int levels)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge;
    if (mipmap == NULL || d == NULL) {
        return REAL(cuMipmappedArrayCreate)(mipmap, d, levels);
    }
    if (!reserve_array(device, d, levels, "cuMipmappedArrayCreate", &charge)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuMipmappedArrayCreate)(mipmap, d, levels);
    if (result == CUDA_SUCCESS &&
        !correct(device, &charge, mipmap_required(*mipmap, device), "cuMipmappedArrayCreate")) {
        (void)REAL(cuMipmappedArrayDestroy)(*mipmap);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
    } else if (corral_cuda_is_charged(&charge)) {
        corral_cuda_keep_as(CORRAL_CUDA_MIPMAP, (uint64_t)(uintptr_t)*mipmap, device, &charge,
                            CORRAL_CUDA_PLAIN);
    }
    return result;
}

/* A mipmapped array may also be a view of imported memory. */
static CUresult destroy_view(CUmipmappedArray mipmap)
{
    struct corral_cuda_closing closing =
        corral_cuda_object_begin_close(CORRAL_CUDA_MIPMAP, (uint64_t)(uintptr_t)mipmap);
    CUresult result = REAL(cuMipmappedArrayDestroy)(mipmap);
    corral_cuda_object_end_close(&closing, result == CUDA_SUCCESS);
    return result;
}

CORRAL_CUDA_DEFINE(cuMipmappedArrayDestroy, CUmipmappedArray mipmap)
{
    struct corral_cuda_record record;
    uint64_t name = (uint64_t)(uintptr_t)mipmap;
    if (corral_cuda_table_get(CORRAL_CUDA_MIPMAP, name, &record) &&
        (record.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_OBJECT) {
        return destroy_view(mipmap);
    }
    bool ours = corral_cuda_table_take(CORRAL_CUDA_MIPMAP, name, &record);
    CUresult result = REAL(cuMipmappedArrayDestroy)(mipmap);
    if (result == CUDA_SUCCESS) {
        corral_cuda_bindings_gone(name);
    }
    if (ours && result == CUDA_SUCCESS) {
        corral_cuda_uncharge(&record.charge);
    } else if (ours) {
        corral_cuda_put_back(&record);
    }
    return result;
}
