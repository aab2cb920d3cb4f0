#include "base/cuda_driver.h"

#include "base/clock.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

_Static_assert(sizeof(struct corral_cuda_copy_2d) == 128, "CUDA_MEMCPY2D_v2");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct corral_cuda functions;
static struct corral_error failed; /* CORRAL_OK when the driver is there */

struct entry {
    const char *symbol;
    size_t offset;
};
#define ENTRY(symbol, field)                          \
    {                                                 \
        (symbol), offsetof(struct corral_cuda, field) \
    }
static const struct entry entries[] = {
    ENTRY("cuInit", cuInit),
    ENTRY("cuGetErrorName", cuGetErrorName),
    ENTRY("cuGetErrorString", cuGetErrorString),
    ENTRY("cuDeviceGet", cuDeviceGet),
    ENTRY("cuDeviceGetCount", cuDeviceGetCount),
    ENTRY("cuDeviceGetUuid_v2", cuDeviceGetUuid),
    ENTRY("cuDeviceCanAccessPeer", cuDeviceCanAccessPeer),
    ENTRY("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain),
    ENTRY("cuDevicePrimaryCtxRelease_v2", cuDevicePrimaryCtxRelease),
    ENTRY("cuCtxPushCurrent_v2", cuCtxPushCurrent),
    ENTRY("cuCtxPopCurrent_v2", cuCtxPopCurrent),
    ENTRY("cuMemAlloc_v2", cuMemAlloc),
    ENTRY("cuMemFree_v2", cuMemFree),
    ENTRY("cuMemHostAlloc", cuMemHostAlloc),
    ENTRY("cuMemFreeHost", cuMemFreeHost),
    ENTRY("cuMemGetAddressRange_v2", cuMemGetAddressRange),
    ENTRY("cuPointerGetAttribute", cuPointerGetAttribute),
    ENTRY("cuMemcpyHtoD_v2", cuMemcpyHtoD),
    ENTRY("cuMemcpyDtoH_v2", cuMemcpyDtoH),
    ENTRY("cuMemcpyAsync", cuMemcpyAsync),
    ENTRY("cuMemcpy2DAsync_v2", cuMemcpy2DAsync),
    ENTRY("cuMemsetD8_v2", cuMemsetD8),
    ENTRY("cuStreamCreate", cuStreamCreate),
    ENTRY("cuStreamDestroy_v2", cuStreamDestroy),
    ENTRY("cuStreamSynchronize", cuStreamSynchronize),
    ENTRY("cuStreamWaitEvent", cuStreamWaitEvent),
    ENTRY("cuEventCreate", cuEventCreate),
    ENTRY("cuEventDestroy_v2", cuEventDestroy),
    ENTRY("cuEventRecord", cuEventRecord),
    ENTRY("cuEventQuery", cuEventQuery),
    ENTRY("cuIpcGetMemHandle", cuIpcGetMemHandle),
    ENTRY("cuIpcOpenMemHandle_v2", cuIpcOpenMemHandle),
    ENTRY("cuIpcCloseMemHandle", cuIpcCloseMemHandle),
};

static enum corral_status open_driver(struct corral_error *err)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        return corral_fail(err, CORRAL_UNSUPPORTED, "no CUDA driver: %s", why != NULL ? why : "libcuda.so.1");
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(entries); i++) {
        void *symbol = dlsym(library, entries[i].symbol);
        if (symbol == NULL) {
            return corral_fail(err, CORRAL_UNSUPPORTED,
                               "the CUDA driver is too old: its libcuda.so.1 has no %s", entries[i].symbol);
        }
        *(void **)(void *)((char *)&functions + entries[i].offset) = symbol;
    }
    int count = 0, result = functions.cuInit(0);
    if (result == CORRAL_CUDA_SUCCESS) {
        result = functions.cuDeviceGetCount(&count);
    }
    if (result != CORRAL_CUDA_SUCCESS) {
        corral_cuda_fail(&functions, result, err, "cannot start the CUDA driver");
        if (err != NULL) {
            err->status = CORRAL_UNSUPPORTED;
        }
        return CORRAL_UNSUPPORTED;
    }
    return count > 0 ? CORRAL_OK
                     : corral_fail(err, CORRAL_UNSUPPORTED, "the CUDA driver shows this process no device");
}

static void open_once(void)
{
    struct corral_error err = {0};
    if (open_driver(&err) != CORRAL_OK) {
        failed = err;
    }
}

enum corral_status corral_cuda_open(const struct corral_cuda **out, struct corral_error *err)
{
    pthread_once(&once, open_once);
    if (failed.status != CORRAL_OK) {
        return corral_fail(err, failed.status, "%s", failed.text);
    }
    *out = &functions;
    return CORRAL_OK;
}

enum corral_status corral_cuda_fail(const struct corral_cuda *cuda, int result, struct corral_error *err,
                                    const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    const char *name = NULL, *text = NULL;
    if (cuda->cuGetErrorName(result, &name) != CORRAL_CUDA_SUCCESS || name == NULL) {
        name = "an error without a name";
    }
    if (cuda->cuGetErrorString(result, &text) != CORRAL_CUDA_SUCCESS || text == NULL) {
        text = "";
    }
    return corral_fail(err, result == CORRAL_CUDA_OUT_OF_MEMORY ? CORRAL_NOMEM : CORRAL_IO,
                       "%s: %s (%d)%s%.100s", what, name, result, text[0] != '\0' ? ": " : "", text);
}

enum corral_status corral_cuda_enter(struct corral_cuda_scope *scope, const struct corral_cuda *cuda,
                                     corral_cuda_context context, struct corral_error *err)
{
    CORRAL_CUDA_TRY(cuda, cuCtxPushCurrent(context), err, "cannot enter a CUDA context");
    scope->cuda = cuda;
    return CORRAL_OK;
}

void corral_cuda_leave(struct corral_cuda_scope *scope)
{
    if (scope->cuda != NULL) {
        corral_cuda_context unused;
        scope->cuda->cuCtxPopCurrent(&unused);
        scope->cuda = NULL;
    }
}

enum corral_status corral_cuda_primary(const struct corral_cuda *cuda, int device, corral_cuda_context *out,
                                       struct corral_error *err)
{
    CORRAL_CUDA_TRY(cuda, cuDevicePrimaryCtxRetain(out, device), err,
                    "cannot use the primary context of CUDA device %d", device);
    return CORRAL_OK;
}

enum corral_status corral_cuda_wait(const struct corral_cuda *cuda, corral_cuda_event event,
                                    uint64_t timeout_ns, struct corral_error *err)
{
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    for (uint32_t turn = 0;; turn++) {
        int result = cuda->cuEventQuery(event);
        if (result == CORRAL_CUDA_SUCCESS) {
            return CORRAL_OK;
        }
        if (result != CORRAL_CUDA_NOT_READY) {
            return corral_cuda_fail(cuda, result, err, "work on a CUDA device failed");
        }
        if (corral_now_ns(&corral_clock_monotonic) - begun >= timeout_ns) {
            return corral_fail(err, CORRAL_TIMEOUT, "work on a CUDA device is not done");
        }
        /* Copies take tens of microseconds; what takes longer is worth no processor. */
        if (turn < 64) {
            sched_yield();
        } else {
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        }
    }
}
