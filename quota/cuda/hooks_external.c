/* Memory of other APIs, by descriptor: charged to the importer until it is destroyed and nothing of it is mapped, in any order. */
#include "quota/cuda/families.h"

CORRAL_CUDA_DEFINE(cuImportExternalMemory, CUexternalMemory *memory,
                   const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *descriptor)
{
    CUdevice device = corral_cuda_current_device();
    struct corral_quota_charge charge = corral_cuda_no_charge();
    uint32_t share = 0;
    if (memory == NULL || descriptor == NULL || descriptor->size == 0 ||
        (device < 0 && corral_cuda_mode() == CORRAL_CUDA_FENCED)) {
        return REAL(cuImportExternalMemory)(memory, descriptor);
    }
    /* One of our own exports, passed on through another API, is charged already. The driver takes the descriptor over: recognise it before. */
    bool by_fd = descriptor->type == CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD ||
                 descriptor->type == CU_EXTERNAL_MEMORY_HANDLE_TYPE_DMABUF_FD;
    bool shared = by_fd && corral_cuda_import_fd(device, descriptor->handle.fd, &share);
    if (!shared && !corral_cuda_reserve(device, descriptor->size, CORRAL_KIND_EXTERNAL,
                                        "cuImportExternalMemory", &charge)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuImportExternalMemory)(memory, descriptor);
    struct corral_cuda_object *object =
        result == CUDA_SUCCESS ? corral_cuda_object_create(device, &charge) : NULL;
    if (object == NULL && result == CUDA_SUCCESS) {
        (void)REAL(cuDestroyExternalMemory)(*memory);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        if (shared) {
            corral_quota_drop_share(corral_cuda_quota(), share);
        }
        corral_cuda_rollback(&charge);
        return result;
    }
    object->shared = shared;
    object->share = share;
    corral_cuda_object_put(CORRAL_CUDA_EXTERNAL, (uint64_t)(uintptr_t)*memory, object,
                           corral_cuda_current_context());
    return CUDA_SUCCESS;
}

static void mapped(CUexternalMemory memory, enum corral_cuda_space space, uint64_t name)
{
    struct corral_cuda_object *object =
        corral_cuda_object_pin(CORRAL_CUDA_EXTERNAL, (uint64_t)(uintptr_t)memory);
    if (object != NULL) {
        corral_cuda_object_add_map(object);
        corral_cuda_object_put(space, name, object, corral_cuda_current_context());
        corral_cuda_object_unpin(object);
    }
}

CORRAL_CUDA_DEFINE(cuExternalMemoryGetMappedBuffer, CUdeviceptr *pointer, CUexternalMemory memory,
                   const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *descriptor)
{
    CUresult result = REAL(cuExternalMemoryGetMappedBuffer)(pointer, memory, descriptor);
    if (result == CUDA_SUCCESS) {
        mapped(memory, CORRAL_CUDA_POINTER, *pointer);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuExternalMemoryGetMappedMipmappedArray, CUmipmappedArray *mipmap, CUexternalMemory memory,
                   const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *descriptor)
{
    CUresult result = REAL(cuExternalMemoryGetMappedMipmappedArray)(mipmap, memory, descriptor);
    if (result == CUDA_SUCCESS) {
        mapped(memory, CORRAL_CUDA_MIPMAP, (uint64_t)(uintptr_t)*mipmap);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuDestroyExternalMemory, CUexternalMemory memory)
{
    struct corral_cuda_closing closing =
        corral_cuda_object_begin_close(CORRAL_CUDA_EXTERNAL, (uint64_t)(uintptr_t)memory);
    CUresult result = REAL(cuDestroyExternalMemory)(memory);
    corral_cuda_object_end_close(&closing, result == CUDA_SUCCESS);
    return result;
}
