/* Streams, which run at once, and their capture into graphs. */
#include "tests/fakecuda/fake.h"

struct fake_object *fake_capturing(CUstream stream)
{
    const struct fake_object *s = fake_find(FAKE_STREAM, (uint64_t)(uintptr_t)stream);
    return s != NULL ? s->other : NULL;
}

static CUresult create_stream(CUstream *out)
{
    FAKE_LOCKED;
    if (out == NULL || fake_current() == NULL) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    struct fake_object *s = fake_add(FAKE_STREAM, 0);
    if (s == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    s->context = fake_current();
    s->device = s->context->device;
    *out = (CUstream)(uintptr_t)s->key;
    return CUDA_SUCCESS;
}

static struct fake_object *find_stream(CUstream s)
{
    return fake_find(FAKE_STREAM, (uint64_t)(uintptr_t)s);
}

static CUresult destroy_stream(CUstream stream)
{
    FAKE_LOCKED;
    struct fake_object *s = find_stream(stream);
    if (s == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    fake_synchronised();
    fake_remove(s);
    return CUDA_SUCCESS;
}

static CUresult synchronise(CUstream stream)
{
    FAKE_LOCKED;
    if (fake_capturing(stream) != NULL) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    fake_synchronised();
    return CUDA_SUCCESS;
}

static CUresult begin_capture(CUstream stream)
{
    FAKE_LOCKED;
    struct fake_object *s = find_stream(stream);
    if (s == NULL || s->other != NULL) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    s->other = fake_add(FAKE_GRAPH, 0);
    return s->other != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult end_capture(CUstream stream, CUgraph *out)
{
    FAKE_LOCKED;
    struct fake_object *s = find_stream(stream);
    if (out == NULL || s == NULL || s->other == NULL) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    *out = (CUgraph)(uintptr_t)s->other->key;
    s->other = NULL;
    return CUDA_SUCCESS;
}

static CUresult is_capturing(CUstream stream, CUstreamCaptureStatus *out)
{
    FAKE_LOCKED;
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = fake_capturing(stream) != NULL ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

static CUresult stream_context(CUstream stream, CUcontext *out)
{
    FAKE_LOCKED;
    const struct fake_object *s = find_stream(stream), *c = s != NULL ? s->context : fake_current();
    if (out == NULL || c == NULL) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    *out = (CUcontext)(uintptr_t)c->key;
    return CUDA_SUCCESS;
}

static CUresult stream_device(CUstream stream, CUdevice *out)
{
    FAKE_LOCKED;
    const struct fake_object *s = find_stream(stream), *c = s != NULL ? s->context : fake_current();
    if (out == NULL || c == NULL) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    *out = c->device;
    return CUDA_SUCCESS;
}

FAKE(cuStreamCreate, cuStreamCreate, 2000, (CUstream * stream, unsigned flags),
     ((void)flags, create_stream(stream)))
FAKE(cuStreamDestroy, cuStreamDestroy, 2000, (CUstream stream), destroy_stream(stream))
FAKE(cuStreamDestroy_v2, cuStreamDestroy, 4000, (CUstream stream), destroy_stream(stream))
FAKE(cuStreamSynchronize, cuStreamSynchronize, 2000, (CUstream stream), synchronise(stream))
FAKE_PER_THREAD(cuStreamSynchronize_ptsz, cuStreamSynchronize, 7000, (CUstream stream), synchronise(stream))
FAKE(cuStreamQuery, cuStreamQuery, 2000, (CUstream stream), ((void)stream, CUDA_SUCCESS))
FAKE_PER_THREAD(cuStreamQuery_ptsz, cuStreamQuery, 7000, (CUstream stream), ((void)stream, CUDA_SUCCESS))
FAKE(cuStreamGetCtx, cuStreamGetCtx, 9020, (CUstream stream, CUcontext *context),
     stream_context(stream, context))
FAKE_PER_THREAD(cuStreamGetCtx_ptsz, cuStreamGetCtx, 9020, (CUstream stream, CUcontext *context),
                stream_context(stream, context))
FAKE(cuStreamBeginCapture_v2, cuStreamBeginCapture, 10010, (CUstream stream, CUstreamCaptureMode mode),
     ((void)mode, begin_capture(stream)))
FAKE_PER_THREAD(cuStreamBeginCapture_v2_ptsz, cuStreamBeginCapture, 10010,
                (CUstream stream, CUstreamCaptureMode mode), ((void)mode, begin_capture(stream)))
FAKE(cuStreamEndCapture, cuStreamEndCapture, 10000, (CUstream stream, CUgraph *graph),
     end_capture(stream, graph))
FAKE_PER_THREAD(cuStreamEndCapture_ptsz, cuStreamEndCapture, 10000, (CUstream stream, CUgraph *graph),
                end_capture(stream, graph))
FAKE(cuStreamIsCapturing, cuStreamIsCapturing, 10000, (CUstream stream, CUstreamCaptureStatus *status),
     is_capturing(stream, status))
FAKE_PER_THREAD(cuStreamIsCapturing_ptsz, cuStreamIsCapturing, 10000,
                (CUstream stream, CUstreamCaptureStatus *status), is_capturing(stream, status))
FAKE(cuStreamGetDevice, cuStreamGetDevice, 12080, (CUstream stream, CUdevice *device),
     stream_device(stream, device))
FAKE_PER_THREAD(cuStreamGetDevice_ptsz, cuStreamGetDevice, 12080, (CUstream stream, CUdevice *device),
                stream_device(stream, device))
