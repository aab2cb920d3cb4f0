/* cuIpc*: memory of another process, mapped whole by a handle of 64 bytes. */
#include "quota/cuda/families.h"

/* The application may ask for a handle of any address inside its allocation. */
static bool charge_of(CUdeviceptr pointer, struct corral_quota_charge *charge)
{
    CUdeviceptr base = 0;
    size_t bytes = 0;
    return corral_cuda_lookup(CORRAL_CUDA_POINTER, pointer, charge) ||
           (REAL(cuMemGetAddressRange_v2)(&base, &bytes, pointer) == CUDA_SUCCESS &&
            corral_cuda_lookup(CORRAL_CUDA_POINTER, base, charge));
}

CORRAL_CUDA_DEFINE(cuIpcGetMemHandle, CUipcMemHandle *handle, CUdeviceptr pointer)
{
    struct corral_quota_charge charge;
    uint64_t key[2];
    CUresult result = REAL(cuIpcGetMemHandle)(handle, pointer);
    if (result == CUDA_SUCCESS && charge_of(pointer, &charge)) {
        corral_cuda_handle_key(handle, sizeof(*handle), key);
        corral_cuda_export_key(&charge, key);
    }
    return result;
}

/* Opening the same handle again gives the same address and counts. */
static bool opened_again(CUdeviceptr pointer)
{
    struct corral_cuda_object *object = corral_cuda_object_pin(CORRAL_CUDA_IPC, pointer);
    if (object == NULL) {
        return false;
    }
    corral_cuda_object_add_handle(object);
    corral_cuda_object_unpin(object);
    return true;
}

static CUresult opened(CUdeviceptr pointer, const CUipcMemHandle *handle, const char *api)
{
    CUdevice device = corral_cuda_current_device();
    uint64_t key[2];
    if (opened_again(pointer)) {
        return CUDA_SUCCESS;
    }
    corral_cuda_handle_key(handle, sizeof(*handle), key);
    if (!corral_cuda_adopt(device, CORRAL_CUDA_IPC, pointer, key, api)) {
        (void)REAL(cuIpcCloseMemHandle)(pointer);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
}

CORRAL_CUDA_DEFINE(cuIpcOpenMemHandle_v2, CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
    CUresult result = REAL(cuIpcOpenMemHandle_v2)(pointer, handle, flags);
    return result == CUDA_SUCCESS ? opened(*pointer, &handle, "cuIpcOpenMemHandle_v2") : result;
}

CORRAL_CUDA_DEFINE(cuIpcOpenMemHandle, CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
    CUresult result = REAL(cuIpcOpenMemHandle)(pointer, handle, flags);
    return result == CUDA_SUCCESS ? opened(*pointer, &handle, "cuIpcOpenMemHandle") : result;
}

CORRAL_CUDA_DEFINE(cuIpcCloseMemHandle, CUdeviceptr pointer)
{
    struct corral_cuda_closing closing = corral_cuda_object_begin_close(CORRAL_CUDA_IPC, pointer);
    CUresult result = REAL(cuIpcCloseMemHandle)(pointer);
    corral_cuda_object_end_close(&closing, result == CUDA_SUCCESS);
    return result;
}
