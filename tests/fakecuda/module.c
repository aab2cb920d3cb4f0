/* Modules and libraries, copies, and launches that do nothing. */
#include "tests/fakecuda/fake.h"
#include <string.h>
#include <unistd.h>

#define MODULE_BYTES ((uint64_t)1 << 20) /* code of any module on the device */

static CUresult load(uint64_t *out, const void *image, enum fake_kind kind)
{
    FAKE_LOCKED;
    struct fake_object *context = fake_current();
    if (image == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    struct fake_object *o = fake_add(kind, 0);
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->device = context->device;
    o->context = kind == FAKE_MODULE ? context : NULL; /* libraries outlive contexts */
    if (!fake_take(o, MODULE_BYTES)) {
        fake_remove(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = o->key;
    return CUDA_SUCCESS;
}

static CUresult load_module(CUmodule *out, const void *image)
{
    uint64_t key;
    CUresult r = out != NULL ? load(&key, image, FAKE_MODULE) : CUDA_ERROR_INVALID_VALUE;
    if (r == CUDA_SUCCESS) {
        *out = (CUmodule)(uintptr_t)key;
    }
    return r;
}

static CUresult load_library(CUlibrary *out, const void *image)
{
    uint64_t key;
    CUresult r = out != NULL ? load(&key, image, FAKE_LIBRARY) : CUDA_ERROR_INVALID_VALUE;
    if (r == CUDA_SUCCESS) {
        *out = (CUlibrary)(uintptr_t)key;
    }
    return r;
}

static bool readable(const char *file)
{
    return file != NULL && access(file, R_OK) == 0;
}

static CUresult unload(uint64_t key, enum fake_kind kind)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(kind, key);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    fake_release(o);
    return CUDA_SUCCESS;
}

/* Any name is a function of any module: there is nothing to run. */
static CUresult get_function(CUfunction *out, CUmodule module, const char *name)
{
    FAKE_LOCKED;
    struct fake_object *m = fake_find(FAKE_MODULE, (uint64_t)(uintptr_t)module);
    if (out == NULL || name == NULL || m == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = (CUfunction)module;
    return CUDA_SUCCESS;
}

static CUresult library_module(CUmodule *out, CUlibrary library)
{
    FAKE_LOCKED;
    if (out == NULL || fake_find(FAKE_LIBRARY, (uint64_t)(uintptr_t)library) == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = (CUmodule)library;
    return CUDA_SUCCESS;
}

FAKE(cuModuleLoad, cuModuleLoad, 2000, (CUmodule * module, const char *file),
     readable(file) ? load_module(module, file) : CUDA_ERROR_FILE_NOT_FOUND)
FAKE(cuModuleLoadData, cuModuleLoadData, 2000, (CUmodule * module, const void *image),
     load_module(module, image))
FAKE(cuModuleLoadDataEx, cuModuleLoadDataEx, 2010,
     (CUmodule * module, const void *image, unsigned count, CUjit_option *options, void **values),
     ((void)count, (void)options, (void)values, load_module(module, image)))
FAKE(cuModuleLoadFatBinary, cuModuleLoadFatBinary, 2000, (CUmodule * module, const void *image),
     load_module(module, image))
FAKE(cuModuleUnload, cuModuleUnload, 2000, (CUmodule module),
     unload((uint64_t)(uintptr_t)module, FAKE_MODULE))
FAKE(cuModuleGetFunction, cuModuleGetFunction, 2000,
     (CUfunction * function, CUmodule module, const char *name), get_function(function, module, name))
FAKE(cuModuleGetGlobal_v2, cuModuleGetGlobal, 3020,
     (CUdeviceptr * pointer, size_t *bytes, CUmodule module, const char *name),
     ((void)pointer, (void)bytes, (void)module, (void)name, CUDA_ERROR_NOT_FOUND))
#define JIT                                                                                            \
    CUjit_option *jit, void **jit_values, unsigned jit_count, CUlibraryOption *options, void **values, \
        unsigned count
#define UNUSED_JIT (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count
FAKE(cuLibraryLoadData, cuLibraryLoadData, 12000, (CUlibrary * library, const void *code, JIT),
     (UNUSED_JIT, load_library(library, code)))
FAKE(cuLibraryLoadFromFile, cuLibraryLoadFromFile, 12000, (CUlibrary * library, const char *file, JIT),
     (UNUSED_JIT, readable(file) ? load_library(library, file) : CUDA_ERROR_FILE_NOT_FOUND))
FAKE(cuLibraryUnload, cuLibraryUnload, 12000, (CUlibrary library),
     unload((uint64_t)(uintptr_t)library, FAKE_LIBRARY))
FAKE(cuLibraryGetModule, cuLibraryGetModule, 12000, (CUmodule * module, CUlibrary library),
     library_module(module, library))

/* ---- copies: device memory is memory of this process ---- */
static CUresult copy(uint64_t to, uint64_t from, size_t bytes)
{
    if (bytes > 0 && (to == 0 || from == 0)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
    return CUDA_SUCCESS;
}

static CUresult set8(CUdeviceptr to, unsigned char value, size_t count)
{
    if (to == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memset((void *)(uintptr_t)to, value, count);
    return CUDA_SUCCESS;
}

static CUresult set32(CUdeviceptr to, unsigned value, size_t count)
{
    if (to == 0 || to % 4 != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        ((unsigned *)(uintptr_t)to)[i] = value;
    }
    return CUDA_SUCCESS;
}
#define ADDRESS(p) ((uint64_t)(uintptr_t)(p))
#define D2D CUdeviceptr to, CUdeviceptr from, size_t bytes
#define H2D CUdeviceptr to, const void *from, size_t bytes
#define D2H void *to, CUdeviceptr from, size_t bytes
FAKE(cuMemcpy, cuMemcpy, 4000, (D2D), copy(to, from, bytes))
FAKE_PER_THREAD(cuMemcpy_ptds, cuMemcpy, 7000, (D2D), copy(to, from, bytes))
FAKE(cuMemcpyDtoD_v2, cuMemcpyDtoD, 3020, (D2D), copy(to, from, bytes))
FAKE_PER_THREAD(cuMemcpyDtoD_v2_ptds, cuMemcpyDtoD, 7000, (D2D), copy(to, from, bytes))
FAKE(cuMemcpyHtoD_v2, cuMemcpyHtoD, 3020, (H2D), copy(to, ADDRESS(from), bytes))
FAKE_PER_THREAD(cuMemcpyHtoD_v2_ptds, cuMemcpyHtoD, 7000, (H2D), copy(to, ADDRESS(from), bytes))
FAKE(cuMemcpyDtoH_v2, cuMemcpyDtoH, 3020, (D2H), copy(ADDRESS(to), from, bytes))
FAKE_PER_THREAD(cuMemcpyDtoH_v2_ptds, cuMemcpyDtoH, 7000, (D2H), copy(ADDRESS(to), from, bytes))
FAKE(cuMemcpyAsync, cuMemcpyAsync, 4000, (D2D, CUstream stream), ((void)stream, copy(to, from, bytes)))
FAKE_PER_THREAD(cuMemcpyAsync_ptsz, cuMemcpyAsync, 7000, (D2D, CUstream stream),
                ((void)stream, copy(to, from, bytes)))
FAKE(cuMemcpyHtoDAsync_v2, cuMemcpyHtoDAsync, 3020, (H2D, CUstream stream),
     ((void)stream, copy(to, ADDRESS(from), bytes)))
FAKE_PER_THREAD(cuMemcpyHtoDAsync_v2_ptsz, cuMemcpyHtoDAsync, 7000, (H2D, CUstream stream),
                ((void)stream, copy(to, ADDRESS(from), bytes)))
FAKE(cuMemcpyDtoHAsync_v2, cuMemcpyDtoHAsync, 3020, (D2H, CUstream stream),
     ((void)stream, copy(ADDRESS(to), from, bytes)))
FAKE_PER_THREAD(cuMemcpyDtoHAsync_v2_ptsz, cuMemcpyDtoHAsync, 7000, (D2H, CUstream stream),
                ((void)stream, copy(ADDRESS(to), from, bytes)))
FAKE(cuMemcpyDtoDAsync_v2, cuMemcpyDtoDAsync, 3020, (D2D, CUstream stream),
     ((void)stream, copy(to, from, bytes)))
FAKE(cuMemsetD8_v2, cuMemsetD8, 3020, (CUdeviceptr to, unsigned char value, size_t count),
     set8(to, value, count))
FAKE_PER_THREAD(cuMemsetD8_v2_ptds, cuMemsetD8, 7000, (CUdeviceptr to, unsigned char value, size_t count),
                set8(to, value, count))
FAKE(cuMemsetD32_v2, cuMemsetD32, 3020, (CUdeviceptr to, unsigned value, size_t count),
     set32(to, value, count))
FAKE(cuMemsetD8Async, cuMemsetD8Async, 3020,
     (CUdeviceptr to, unsigned char value, size_t count, CUstream stream),
     ((void)stream, set8(to, value, count)))

#define LAUNCH                                                                                     \
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,      \
        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **params, \
        void **extra
#define UNUSED_LAUNCH                                                                      \
    (void)grid_x, (void)grid_y, (void)grid_z, (void)block_x, (void)block_y, (void)block_z, \
        (void)shared_bytes, (void)stream, (void)params, (void)extra
FAKE(cuLaunchKernel, cuLaunchKernel, 4000, (LAUNCH),
     (UNUSED_LAUNCH, function != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE))
FAKE_PER_THREAD(cuLaunchKernel_ptsz, cuLaunchKernel, 7000, (LAUNCH),
                (UNUSED_LAUNCH, function != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE))
