/* Events, strided copies, and work that takes its time: a library like NCCL, faked beside this one, says when its work on a stream begins and ends; events recorded in between are not ready until then. */
#include "tests/fakecuda/fake.h"
#include <string.h>

typedef CUresult (*cuEventCreate_fn)(CUevent *event, unsigned flags);
typedef CUresult (*cuEventDestroy_v2_fn)(CUevent event);
typedef CUresult (*cuEventRecord_fn)(CUevent event, CUstream stream);
typedef CUresult (*cuEventQuery_fn)(CUevent event);
typedef CUresult (*cuStreamWaitEvent_fn)(CUstream stream, CUevent event, unsigned flags);
typedef CUresult (*cuDeviceCanAccessPeer_fn)(int *can, CUdevice device, CUdevice peer);
/* Of the driver's strided copy, what lies in linear memory; sizes and places are checked by the code that uses it. */
struct strided {
    size_t from_x, from_y;
    unsigned from_type;
    const void *from_host;
    CUdeviceptr from;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_type;
    void *to_host;
    CUdeviceptr to;
    void *to_array;
    size_t to_pitch, width, height;
};
typedef CUresult (*cuMemcpy2DAsync_v2_fn)(const struct strided *copy, CUstream stream);

/* A stream counts what was begun in refs, from 1 on, and what is done in maps. An event keeps its stream's key in bytes and what had been begun there in refs. */
static struct fake_object *stream_of(CUstream s)
{
    return fake_find(FAKE_STREAM, (uint64_t)(uintptr_t)s);
}

static CUresult create(CUevent *out)
{
    FAKE_LOCKED;
    if (out == NULL || fake_current() == NULL) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    struct fake_object *e = fake_add(FAKE_EVENT, 0);
    if (e == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (CUevent)(uintptr_t)e->key;
    return CUDA_SUCCESS;
}

static struct fake_object *event_of(CUevent e)
{
    return fake_find(FAKE_EVENT, (uint64_t)(uintptr_t)e);
}

static CUresult destroy(CUevent event)
{
    FAKE_LOCKED;
    struct fake_object *e = event_of(event);
    if (e == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    fake_remove(e);
    return CUDA_SUCCESS;
}

static CUresult record(CUevent event, CUstream stream)
{
    FAKE_LOCKED;
    struct fake_object *e = event_of(event), *s = stream_of(stream);
    if (e == NULL || (stream != NULL && s == NULL)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    e->bytes = s != NULL ? s->key : 0;
    e->refs = s != NULL ? s->refs - 1 : 0;
    return CUDA_SUCCESS;
}

static CUresult query(CUevent event)
{
    FAKE_LOCKED;
    const struct fake_object *e = event_of(event);
    if (e == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const struct fake_object *s = e->bytes != 0 ? fake_find(FAKE_STREAM, e->bytes) : NULL;
    return s == NULL || s->maps >= e->refs ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

static CUresult wait_event(CUstream stream, CUevent event)
{
    FAKE_LOCKED;
    return (stream != NULL && stream_of(stream) == NULL) || event_of(event) == NULL
               ? CUDA_ERROR_INVALID_HANDLE
               : CUDA_SUCCESS;
}

static CUresult can_access(int *can, CUdevice device, CUdevice peer)
{
    if (can == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!fake_device_valid(device) || !fake_device_valid(peer)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *can = device != peer;
    return CUDA_SUCCESS;
}

static const char *place(unsigned type, const void *host, CUdeviceptr device, size_t x, size_t y,
                         size_t pitch)
{
    const char *base = type == CU_MEMORYTYPE_HOST ? host : (const char *)(uintptr_t)device;
    return type == CU_MEMORYTYPE_ARRAY || base == NULL ? NULL : base + y * pitch + x;
}

static CUresult copy_strided(const struct strided *c)
{
    if (c == NULL || c->from_pitch < c->width || c->to_pitch < c->width) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const char *from = place(c->from_type, c->from_host, c->from, c->from_x, c->from_y, c->from_pitch);
    const char *to = place(c->to_type, c->to_host, c->to, c->to_x, c->to_y, c->to_pitch);
    if (from == NULL || to == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t row = 0; row < c->height; row++) {
        memmove((void *)(uintptr_t)(to + row * c->to_pitch), from + row * c->from_pitch, c->width);
    }
    return CUDA_SUCCESS;
}

FAKE(cuEventCreate, cuEventCreate, 2000, (CUevent * event, unsigned flags), ((void)flags, create(event)))
FAKE(cuEventDestroy_v2, cuEventDestroy, 4000, (CUevent event), destroy(event))
FAKE(cuEventRecord, cuEventRecord, 2000, (CUevent event, CUstream stream), record(event, stream))
FAKE(cuEventQuery, cuEventQuery, 2000, (CUevent event), query(event))
FAKE(cuStreamWaitEvent, cuStreamWaitEvent, 3020, (CUstream stream, CUevent event, unsigned flags),
     ((void)flags, wait_event(stream, event)))
FAKE(cuDeviceCanAccessPeer, cuDeviceCanAccessPeer, 4000, (int *can, CUdevice device, CUdevice peer),
     can_access(can, device, peer))
FAKE(cuMemcpy2DAsync_v2, cuMemcpy2DAsync, 3020, (const struct strided *strided, CUstream stream),
     ((void)stream, copy_strided(strided)))

void fakecuda_work_begin(void *stream)
{
    FAKE_LOCKED;
    struct fake_object *s = stream_of(stream);
    if (s != NULL) {
        s->refs++;
    }
}

void fakecuda_work_done(void *stream)
{
    FAKE_LOCKED;
    struct fake_object *s = stream_of(stream);
    if (s != NULL) {
        s->maps++;
    }
}
