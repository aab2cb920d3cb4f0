/* The CUDA driver, opened at run time: building needs no CUDA Toolkit, and a machine without a GPU gets CORRAL_UNSUPPORTED with the reason. Only what moving weights needs.
 *
 * libcuda.so.1 is opened once per process and never closed. Under the quota's interposer the functions are the interposed ones, so what is allocated here is charged like anybody's.
 * Types are the driver's by size: addresses are 64 bits, objects are pointers. Any thread; the driver's rules about contexts apply (corral_cuda_enter).
 * A child of fork() cannot use a driver that its parent has opened.
 */
#ifndef CORRAL_BASE_CUDA_DRIVER_H
#define CORRAL_BASE_CUDA_DRIVER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct CUctx_st *corral_cuda_context;
typedef struct CUstream_st *corral_cuda_stream;
typedef struct CUevent_st *corral_cuda_event;

enum corral_cuda_result {
    CORRAL_CUDA_SUCCESS = 0,
    CORRAL_CUDA_OUT_OF_MEMORY = 2,
    CORRAL_CUDA_NOT_READY = 600,
};
enum {
    CORRAL_CUDA_EVENT_NO_TIMING = 2,      /* cuEventCreate */
    CORRAL_CUDA_STREAM_NON_BLOCKING = 1,  /* cuStreamCreate: does not wait for the default stream */
    CORRAL_CUDA_HOST_PORTABLE = 1,        /* cuMemHostAlloc: pinned for all contexts */
    CORRAL_CUDA_IPC_LAZY_PEER_ACCESS = 1, /* cuIpcOpenMemHandle */
    CORRAL_CUDA_MEMORY_DEVICE = 2,        /* CU_MEMORYTYPE_DEVICE */
    CORRAL_CUDA_MEMORY_UNIFIED = 4,       /* CU_MEMORYTYPE_UNIFIED: the driver finds out */
    CORRAL_CUDA_POINTER_MEMORY_TYPE = 2,  /* cuPointerGetAttribute: unsigned */
    CORRAL_CUDA_POINTER_MANAGED = 8,      /* unsigned */
    CORRAL_CUDA_POINTER_ORDINAL = 9,      /* int */
};
#define CORRAL_CUDA_PITCH_MAX ((uint64_t)INT32_MAX) /* what every device takes */

struct corral_cuda_ipc_handle {
    uint8_t bytes[64];
};
struct corral_cuda_uuid {
    uint8_t bytes[16];
};
struct corral_cuda_copy_2d { /* CUDA_MEMCPY2D_v2 */
    uint64_t source_x, source_y;
    uint32_t source_type;
    const void *source_host;
    uint64_t source_device;
    void *source_array;
    uint64_t source_pitch;
    uint64_t to_x, to_y;
    uint32_t to_type;
    void *to_host;
    uint64_t to_device;
    void *to_array;
    uint64_t to_pitch, width, height;
};

/* The driver's functions under its own names; symbols are those of CUDA 12 and later. All return a CUresult. */
struct corral_cuda {
    int (*cuInit)(unsigned flags);
    int (*cuGetErrorName)(int result, const char **name);
    int (*cuGetErrorString)(int result, const char **text);
    int (*cuDeviceGet)(int *device, int ordinal);
    int (*cuDeviceGetCount)(int *count);
    int (*cuDeviceGetUuid)(struct corral_cuda_uuid *uuid, int device);
    int (*cuDeviceCanAccessPeer)(int *can, int device, int peer);
    int (*cuDevicePrimaryCtxRetain)(corral_cuda_context *context, int device);
    int (*cuDevicePrimaryCtxRelease)(int device);
    int (*cuCtxPushCurrent)(corral_cuda_context context);
    int (*cuCtxPopCurrent)(corral_cuda_context *context);
    int (*cuMemAlloc)(uint64_t *address, size_t bytes);
    int (*cuMemFree)(uint64_t address);
    int (*cuMemHostAlloc)(void **memory, size_t bytes, unsigned flags);
    int (*cuMemFreeHost)(void *memory);
    int (*cuMemGetAddressRange)(uint64_t *base, size_t *bytes, uint64_t address);
    int (*cuPointerGetAttribute)(void *data, int attribute, uint64_t address);
    int (*cuMemcpyHtoD)(uint64_t to, const void *from, size_t bytes);
    int (*cuMemcpyDtoH)(void *to, uint64_t from, size_t bytes);
    int (*cuMemcpyAsync)(uint64_t to, uint64_t from, size_t bytes, corral_cuda_stream stream);
    int (*cuMemcpy2DAsync)(const struct corral_cuda_copy_2d *copy, corral_cuda_stream stream);
    int (*cuMemsetD8)(uint64_t to, unsigned char value, size_t bytes);
    int (*cuStreamCreate)(corral_cuda_stream *stream, unsigned flags);
    int (*cuStreamDestroy)(corral_cuda_stream stream);
    int (*cuStreamSynchronize)(corral_cuda_stream stream);
    int (*cuStreamWaitEvent)(corral_cuda_stream stream, corral_cuda_event event, unsigned flags);
    int (*cuEventCreate)(corral_cuda_event *event, unsigned flags);
    int (*cuEventDestroy)(corral_cuda_event event);
    int (*cuEventRecord)(corral_cuda_event event, corral_cuda_stream stream);
    int (*cuEventQuery)(corral_cuda_event event);
    int (*cuIpcGetMemHandle)(struct corral_cuda_ipc_handle *handle, uint64_t address);
    int (*cuIpcOpenMemHandle)(uint64_t *address, struct corral_cuda_ipc_handle handle, unsigned flags);
    int (*cuIpcCloseMemHandle)(uint64_t address);
};

/* The one of this process, opened and initialised by the first call. CORRAL_UNSUPPORTED, and the same each time: no libcuda.so.1, one that is too old, or no device. */
enum corral_status corral_cuda_open(const struct corral_cuda **out, struct corral_error *err);

/* "cannot WHAT: NAME: text". CORRAL_NOMEM when the device is out of memory, CORRAL_IO otherwise. */
enum corral_status corral_cuda_fail(const struct corral_cuda *cuda, int result, struct corral_error *err,
                                    const char *fmt, ...) CORRAL_PRINTF(4, 5);
#define CORRAL_CUDA_TRY(cuda, call, err, ...)                                     \
    do {                                                                          \
        int corral_cuda_result_ = (cuda)->call;                                   \
        if (corral_cuda_result_ != CORRAL_CUDA_SUCCESS) {                         \
            return corral_cuda_fail(cuda, corral_cuda_result_, err, __VA_ARGS__); \
        }                                                                         \
    } while (0)

/* Make a context the thread's, for a scope: `CORRAL_CUDA_SCOPE struct corral_cuda_scope s = {0}; CORRAL_TRY(corral_cuda_enter(&s, cuda, context, err));`. The thread's own is back at the end of the scope. */
struct corral_cuda_scope {
    const struct corral_cuda *cuda; /* NULL: not entered */
};
enum corral_status corral_cuda_enter(struct corral_cuda_scope *scope, const struct corral_cuda *cuda,
                                     corral_cuda_context context, struct corral_error *err);
void corral_cuda_leave(struct corral_cuda_scope *scope);
#define CORRAL_CUDA_SCOPE CORRAL_CLEANUP(corral_cuda_leave)

/* The primary context of a device, shared with whoever else uses it in this process; release with cuDevicePrimaryCtxRelease(device). */
enum corral_status corral_cuda_primary(const struct corral_cuda *cuda, int device, corral_cuda_context *out,
                                       struct corral_error *err);
/* Wait for the event without ever blocking in the driver. CORRAL_TIMEOUT: it has not happened by then. timeout 0: ask once. */
enum corral_status corral_cuda_wait(const struct corral_cuda *cuda, corral_cuda_event event,
                                    uint64_t timeout_ns, struct corral_error *err);

#endif
