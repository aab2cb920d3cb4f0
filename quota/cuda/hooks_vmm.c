/* Virtual memory management: an allocation lives until its last handle is released and its last mapping is gone, in any order, so that is how long it is charged, to the device it
 * lives on and not the current one. */
#include "quota/cuda/families.h"

/* The head of an allocation's charge: where it lives. */
static bool is_device(const CUmemAllocationProp *prop)
{
    return prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
}

static void keep_created(CUmemGenericAllocationHandle handle, CUdevice device, uint64_t bytes,
                         const struct corral_quota_charge *charge)
{
    struct corral_cuda_object *object = corral_cuda_object_create(device, charge);
    if (object == NULL) {
        corral_cuda_log("unremembered", "device=%d size=%llu reason=\"out of memory\"", device,
                        (unsigned long long)bytes);
        return;
    }
    if (!corral_cuda_is_charged(charge) && bytes > 0) {
        object->pinned = bytes;
        corral_cuda_count_pinned(device, (int64_t)bytes);
    }
    corral_cuda_object_put(CORRAL_CUDA_VMM, handle, object, 0);
}

CORRAL_CUDA_DEFINE(cuMemCreate, CUmemGenericAllocationHandle *handle, size_t bytes,
                   const CUmemAllocationProp *prop, unsigned long long flags)
{
    struct corral_quota_charge charge = corral_cuda_no_charge();
    if (handle == NULL || prop == NULL || bytes == 0) {
        return REAL(cuMemCreate)(handle, bytes, prop, flags);
    }
    if (is_device(prop) &&
        !corral_cuda_reserve(prop->location.id, bytes, CORRAL_KIND_VMM, "cuMemCreate", &charge)) {
        return corral_cuda_refusal(prop->location.id);
    }
    CUresult result = REAL(cuMemCreate)(handle, bytes, prop, flags);
    if (result != CUDA_SUCCESS) {
        corral_cuda_rollback(&charge);
        return result;
    }
    keep_created(*handle, is_device(prop) ? prop->location.id : corral_cuda_current_device(), bytes, &charge);
    return CUDA_SUCCESS;
}

CORRAL_CUDA_DEFINE(cuMemRelease, CUmemGenericAllocationHandle handle)
{
    struct corral_cuda_closing closing = corral_cuda_object_begin_close(CORRAL_CUDA_VMM, handle);
    CUresult result = REAL(cuMemRelease)(handle);
    corral_cuda_object_end_close(&closing, result == CUDA_SUCCESS);
    return result;
}

CORRAL_CUDA_DEFINE(cuMemRetainAllocationHandle, CUmemGenericAllocationHandle *handle, void *address)
{
    CUresult result = REAL(cuMemRetainAllocationHandle)(handle, address);
    if (result == CUDA_SUCCESS) {
        struct corral_cuda_object *object = corral_cuda_object_pin(CORRAL_CUDA_VMM, *handle);
        if (object != NULL) {
            corral_cuda_object_add_handle(object);
            corral_cuda_object_unpin(object);
        }
    }
    return result;
}

/* Guards the charges of unidentified objects: threads may map parts of one at the same time. */
static pthread_mutex_t unidentified_lock = PTHREAD_MUTEX_INITIALIZER;

static bool charge_up_to(struct corral_cuda_object *object, uint64_t end)
{
    if (end <= object->charge.bytes) {
        return true;
    }
    if (corral_cuda_is_charged(&object->charge)) {
        return corral_cuda_resize(object->device, &object->charge, end, "cuMemMap");
    }
    struct corral_quota_charge charge;
    if (!corral_cuda_take(object->device, end, CORRAL_KIND_EXTERNAL, "cuMemMap", &charge)) {
        return false;
    }
    object->charge = charge;
    corral_quota_keep(corral_cuda_quota(), &object->charge);
    return true;
}

/* The size of imported memory whose owner is unknown shows when it is mapped. */
static bool charge_unidentified(struct corral_cuda_object *object, uint64_t end)
{
    if (!object->unidentified) {
        return true;
    }
    corral_cuda_relieve(object->device, end);
    pthread_mutex_lock(&unidentified_lock);
    bool ok = charge_up_to(object, end);
    pthread_mutex_unlock(&unidentified_lock);
    return ok;
}

void corral_cuda_imports_forget_all(void)
{
    unidentified_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

CORRAL_CUDA_DEFINE(cuMemMap, CUdeviceptr pointer, size_t bytes, size_t offset,
                   CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    struct corral_cuda_object *object = corral_cuda_object_pin(CORRAL_CUDA_VMM, handle);
    if (object == NULL) {
        return REAL(cuMemMap)(pointer, bytes, offset, handle, flags);
    }
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (charge_unidentified(object, (uint64_t)offset + bytes)) {
        result = REAL(cuMemMap)(pointer, bytes, offset, handle, flags);
    }
    if (result == CUDA_SUCCESS) {
        corral_cuda_object_add_map(object);
        corral_cuda_object_put_mapping(pointer, bytes, object);
    }
    corral_cuda_object_unpin(object);
    return result;
}

#define UNMAP_MAX \
    64 /* mappings let go of in one call before the driver is asked; more are let go of after it */

/* One call may unmap several mappings that lie side by side. */
static uint32_t begin_unmap(CUdeviceptr *pointer, CUdeviceptr end,
                            struct corral_cuda_closing closing[UNMAP_MAX])
{
    uint32_t count = 0;
    while (*pointer < end && count < UNMAP_MAX) {
        closing[count] = corral_cuda_object_begin_close(CORRAL_CUDA_MAPPING, *pointer);
        if (closing[count].object == NULL) {
            break;
        }
        *pointer += closing[count].record.charge.bytes; /* the driver maps nothing of no size */
        count++;
    }
    return count;
}

CORRAL_CUDA_DEFINE(cuMemUnmap, CUdeviceptr pointer, size_t bytes)
{
    struct corral_cuda_closing closing[UNMAP_MAX];
    CUdeviceptr at = pointer;
    uint32_t count = begin_unmap(&at, pointer + bytes, closing);
    CUresult result = REAL(cuMemUnmap)(pointer, bytes);
    for (uint32_t i = 0; i < count; i++) {
        corral_cuda_object_end_close(&closing[i], result == CUDA_SUCCESS);
    }
    while (result == CUDA_SUCCESS && count == UNMAP_MAX) {
        count = begin_unmap(&at, pointer + bytes, closing);
        for (uint32_t i = 0; i < count; i++) {
            corral_cuda_object_end_close(&closing[i], true);
        }
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuMemExportToShareableHandle, void *out, CUmemGenericAllocationHandle handle,
                   CUmemAllocationHandleType type, unsigned long long flags)
{
    CUresult result = REAL(cuMemExportToShareableHandle)(out, handle, type, flags);
    struct corral_cuda_object *object =
        result == CUDA_SUCCESS ? corral_cuda_object_pin(CORRAL_CUDA_VMM, handle) : NULL;
    if (object != NULL) {
        if (type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
            corral_cuda_object_export_fd(object, *(const int *)out);
        } else if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
            uint64_t key[2];
            corral_cuda_handle_key(out, sizeof(CUmemFabricHandle), key);
            corral_cuda_export_key(&object->charge, key);
        }
        corral_cuda_object_unpin(object);
    }
    return result;
}

/* Imported memory's device: its properties tell. */
static CUdevice device_of_handle(CUmemGenericAllocationHandle handle)
{
    CUmemAllocationProp prop = {0};
    if (corral_cuda_real(CORRAL_CUDA_SYMBOL_cuMemGetAllocationPropertiesFromHandle) != NULL &&
        REAL(cuMemGetAllocationPropertiesFromHandle)(&prop, handle) == CUDA_SUCCESS && is_device(&prop)) {
        return prop.location.id;
    }
    return corral_cuda_current_device();
}

static bool import_share(CUdevice device, void *os_handle, CUmemAllocationHandleType type, uint32_t *share)
{
    uint64_t key[2];
    if (type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        return corral_cuda_import_fd(device, (int)(intptr_t)os_handle, share);
    }
    if (type != CU_MEM_HANDLE_TYPE_FABRIC) {
        return false;
    }
    corral_cuda_handle_key(os_handle, sizeof(CUmemFabricHandle), key);
    return corral_cuda_import_key(device, key, share);
}

CORRAL_CUDA_DEFINE(cuMemImportFromShareableHandle, CUmemGenericAllocationHandle *handle, void *os_handle,
                   CUmemAllocationHandleType type)
{
    CUresult result = REAL(cuMemImportFromShareableHandle)(handle, os_handle, type);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct corral_cuda_object *known = corral_cuda_object_pin(CORRAL_CUDA_VMM, *handle);
    if (known != NULL) {
        /* Our own export come back, or the same memory again: one more reference of the same handle. */
        corral_cuda_object_add_handle(known);
        corral_cuda_object_unpin(known);
        return CUDA_SUCCESS;
    }
    CUdevice device = device_of_handle(*handle);
    struct corral_quota_charge none = corral_cuda_no_charge();
    struct corral_cuda_object *object = corral_cuda_object_create(device, &none);
    if (object == NULL) {
        (void)REAL(cuMemRelease)(*handle);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    object->shared = import_share(device, os_handle, type, &object->share);
    object->unidentified = !object->shared;
    if (object->unidentified) {
        corral_cuda_log("import",
                        "api=cuMemImportFromShareableHandle device=%d reason=\"owner unknown\" "
                        "effect=\"charged here when it is mapped\"",
                        device);
    }
    corral_cuda_object_put(CORRAL_CUDA_VMM, *handle, object, 0);
    return CUDA_SUCCESS;
}
