/* Modules, libraries and a context's limits: what the driver takes for them is measured. */
#include "quota/cuda/overhead.h"

/* Libraries are loaded without a current context, and then into every one there is: their memory shows when the next call on a device is measured. */
static bool begin(struct corral_cuda_overhead *overhead, const char *api)
{
    CUdevice device = corral_cuda_current_device();
    *overhead = (struct corral_cuda_overhead){.node_lock = -1};
    return (device < 0 && corral_cuda_mode() == CORRAL_CUDA_FENCED) ||
           corral_cuda_overhead_begin(overhead, device, CORRAL_CUDA_OVERHEAD_OTHER, api);
}

/* What is loaded may have any amount of memory in it. How much shows afterwards; what there is no room for is unloaded again. */
#define MEASURED(name, call, undo)                                      \
    struct corral_cuda_overhead overhead;                               \
    if (!begin(&overhead, #name)) {                                     \
        return CUDA_ERROR_OUT_OF_MEMORY;                                \
    }                                                                   \
    CUresult result = call;                                             \
    overhead.can_be_undone = true;                                      \
    if (!corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS)) { \
        (void)(undo);                                                   \
        corral_cuda_overhead_undone(&overhead);                         \
        return CUDA_ERROR_OUT_OF_MEMORY;                                \
    }                                                                   \
    return result

/* As MEASURED, for what gives back: it is not stopped by a missing ledger. */
#define MEASURED_RELEASE(name, call)                                            \
    struct corral_cuda_overhead overhead = {.node_lock = -1};                   \
    if (corral_cuda_mode() == CORRAL_CUDA_FENCED && !begin(&overhead, #name)) { \
        overhead = (struct corral_cuda_overhead){.node_lock = -1};              \
    }                                                                           \
    CUresult result = call;                                                     \
    corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS);                \
    return result

CORRAL_CUDA_DEFINE(cuModuleLoad, CUmodule *module, const char *file)
{
    MEASURED(cuModuleLoad, REAL(cuModuleLoad)(module, file), REAL(cuModuleUnload)(*module));
}

CORRAL_CUDA_DEFINE(cuModuleLoadData, CUmodule *module, const void *image)
{
    MEASURED(cuModuleLoadData, REAL(cuModuleLoadData)(module, image), REAL(cuModuleUnload)(*module));
}

CORRAL_CUDA_DEFINE(cuModuleLoadDataEx, CUmodule *module, const void *image, unsigned int count,
                   CUjit_option *options, void **values)
{
    MEASURED(cuModuleLoadDataEx, REAL(cuModuleLoadDataEx)(module, image, count, options, values),
             REAL(cuModuleUnload)(*module));
}

CORRAL_CUDA_DEFINE(cuModuleLoadFatBinary, CUmodule *module, const void *image)
{
    MEASURED(cuModuleLoadFatBinary, REAL(cuModuleLoadFatBinary)(module, image),
             REAL(cuModuleUnload)(*module));
}

CORRAL_CUDA_DEFINE(cuModuleUnload, CUmodule module)
{
    MEASURED_RELEASE(cuModuleUnload, REAL(cuModuleUnload)(module));
}

CORRAL_CUDA_DEFINE(cuLibraryLoadData, CUlibrary *library, const void *code, CUjit_option *jit,
                   void **jit_values, unsigned int jit_count, CUlibraryOption *options, void **values,
                   unsigned int count)
{
    MEASURED(cuLibraryLoadData,
             REAL(cuLibraryLoadData)(library, code, jit, jit_values, jit_count, options, values, count),
             REAL(cuLibraryUnload)(*library));
}

CORRAL_CUDA_DEFINE(cuLibraryLoadFromFile, CUlibrary *library, const char *file, CUjit_option *jit,
                   void **jit_values, unsigned int jit_count, CUlibraryOption *options, void **values,
                   unsigned int count)
{
    MEASURED(cuLibraryLoadFromFile,
             REAL(cuLibraryLoadFromFile)(library, file, jit, jit_values, jit_count, options, values, count),
             REAL(cuLibraryUnload)(*library));
}

CORRAL_CUDA_DEFINE(cuLibraryUnload, CUlibrary library)
{
    MEASURED_RELEASE(cuLibraryUnload, REAL(cuLibraryUnload)(library));
}

/* A larger heap or queue is reserved before the driver is asked: it may take the memory at a launch. */
static uint64_t growth_of_limit(CUlimit limit, size_t before, size_t value)
{
    bool is_bytes = limit == CU_LIMIT_MALLOC_HEAP_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE;
    return is_bytes && value > before ? value - before : 0;
}

CORRAL_CUDA_DEFINE(cuCtxSetLimit, CUlimit limit, size_t value)
{
    size_t before = 0;
    CUdevice device = corral_cuda_current_device();
    if ((device < 0 && corral_cuda_mode() == CORRAL_CUDA_FENCED) ||
        REAL(cuCtxGetLimit)(&before, limit) != CUDA_SUCCESS) {
        return REAL(cuCtxSetLimit)(limit, value);
    }
    struct corral_cuda_overhead overhead;
    if (!corral_cuda_overhead_begin_expecting(&overhead, device, growth_of_limit(limit, before, value),
                                              "cuCtxSetLimit")) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = REAL(cuCtxSetLimit)(limit, value);
    overhead.can_be_undone = true;
    if (!corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS)) {
        (void)REAL(cuCtxSetLimit)(limit, before);
        corral_cuda_overhead_undone(&overhead);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}
