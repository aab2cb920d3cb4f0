#include "transport/weights/lanes/nccl/device.h"

#include <inttypes.h>
#include <string.h>

bool corral_lane_device_is(const struct corral_lane_device *d, int ordinal, corral_cuda_context context)
{
    return d->cuda != NULL && d->ordinal == ordinal &&
           (context == NULL ? d->retained : d->context == context);
}

bool corral_lane_device_suits(const struct corral_lane_device *d, const struct corral_shard *shard)
{
    return d->cuda != NULL && (!corral_shard_on_device(shard) ||
                               corral_lane_device_is(d, shard->device, corral_shard_cuda_context(shard)));
}

enum corral_status corral_lane_device_open(struct corral_lane_device *d, int ordinal,
                                           corral_cuda_context context, struct corral_error *err)
{
    if (corral_lane_device_is(d, ordinal, context)) {
        return CORRAL_OK;
    }
    corral_lane_device_close(d);
    struct corral_lane_device made = {.ordinal = ordinal, .context = context, .retained = context == NULL};
    const struct corral_cuda *cuda = NULL;
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    if (context == NULL) {
        CORRAL_TRY(corral_cuda_primary(cuda, ordinal, &made.context, err));
    }
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    int result = CORRAL_CUDA_SUCCESS;
    enum corral_status status = corral_cuda_enter(&scope, cuda, made.context, err);
    if (status == CORRAL_OK) {
        result = cuda->cuStreamCreate(&made.stream, CORRAL_CUDA_STREAM_NON_BLOCKING);
    }
    if (status == CORRAL_OK && result == CORRAL_CUDA_SUCCESS) {
        made.cuda = cuda;
        *d = made;
        return CORRAL_OK;
    }
    if (made.retained) {
        cuda->cuDevicePrimaryCtxRelease(ordinal);
    }
    return status != CORRAL_OK
               ? status
               : corral_cuda_fail(cuda, result, err, "cannot make a stream on CUDA device %d", ordinal);
}

enum corral_status corral_lane_device_of(struct corral_lane_device *d, const struct corral_shard *shard,
                                         struct corral_error *err)
{
    if (corral_lane_device_suits(d, shard)) {
        return CORRAL_OK;
    }
    return corral_shard_on_device(shard)
               ? corral_lane_device_open(d, shard->device, corral_shard_cuda_context(shard), err)
               : corral_lane_device_open(d, 0, NULL, err);
}

void corral_lane_device_close(struct corral_lane_device *d)
{
    if (d->cuda == NULL) {
        return;
    }
    struct corral_cuda_scope scope = {0};
    if (corral_cuda_enter(&scope, d->cuda, d->context, NULL) == CORRAL_OK) {
        d->cuda->cuStreamDestroy(d->stream);
    }
    corral_cuda_leave(&scope);
    if (d->retained) {
        d->cuda->cuDevicePrimaryCtxRelease(d->ordinal);
    }
    *d = (struct corral_lane_device){0};
}

int corral_lane_device_find(const struct corral_cuda *cuda, const struct corral_cuda_uuid *uuid)
{
    int count = 0;
    if (cuda->cuDeviceGetCount(&count) != CORRAL_CUDA_SUCCESS) {
        return -1;
    }
    for (int i = 0; i < count; i++) {
        struct corral_cuda_uuid have;
        if (cuda->cuDeviceGetUuid(&have, i) == CORRAL_CUDA_SUCCESS && memcmp(&have, uuid, sizeof have) == 0) {
            return i;
        }
    }
    return -1;
}

enum corral_status corral_lane_device_pin(const struct corral_lane_device *d, uint64_t bytes, void **out,
                                          struct corral_error *err)
{
    CORRAL_CUDA_TRY(d->cuda, cuMemHostAlloc(out, bytes, CORRAL_CUDA_HOST_PORTABLE), err,
                    "cannot pin %" PRIu64 " bytes of host memory for a lane", bytes);
    return CORRAL_OK;
}
