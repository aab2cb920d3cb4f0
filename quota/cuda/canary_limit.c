#include "quota/cuda/canary_limit.h"
#include "quota/cuda/client.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static enum corral_status try_size(const struct corral_cuda_client *cuda, uint64_t bytes,
                                   enum corral_cuda_limit_outcome *out, struct corral_error *err)
{
    CUdeviceptr p;
    char text[32];
    if (bytes == 0) {
        return CORRAL_OK;
    }
    CUresult r = cuda->cuMemAlloc_v2(&p, bytes);
    if (r == CUDA_SUCCESS) {
        (void)cuda->cuMemFree_v2(p);
    } else if (r != CUDA_ERROR_OUT_OF_MEMORY) {
        return corral_fail(err, CORRAL_INTERNAL, "an allocation of %" PRIu64 " bytes ended with %s", bytes,
                           corral_cuda_client_error(cuda, r, text));
    }
    *out = r == CUDA_SUCCESS ? CORRAL_LIMIT_GRANTED : CORRAL_LIMIT_DENIED;
    return CORRAL_OK;
}

static enum corral_status describe(const struct corral_cuda_client *cuda,
                                   struct corral_cuda_limit_result *out, struct corral_error *err)
{
    CUuuid uuid;
    int processors = 0;
    size_t available = 0, total = 0;
    if (cuda->cuDeviceGetUuid(&uuid, 0) != CUDA_SUCCESS ||
        cuda->cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0) !=
            CUDA_SUCCESS ||
        cuda->cuMemGetInfo_v2(&available, &total) != CUDA_SUCCESS || processors <= 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "device 0 does not describe itself");
    }
    uint8_t u[16];
    memcpy(u, uuid.bytes, sizeof u);
    snprintf(out->uuid, sizeof out->uuid,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    out->processors = (uint32_t)processors;
    out->free_bytes = available;
    return CORRAL_OK;
}

enum corral_status corral_cuda_limit_canary(uint64_t within, uint64_t over,
                                            struct corral_cuda_limit_result *out, struct corral_error *err)
{
    struct corral_cuda_client cuda;
    struct corral_cuda_limit_result result = {0};
    CUcontext context, popped;
    char text[32];
    int count = 0;
    CORRAL_TRY(corral_cuda_client_open(CORRAL_CUDA_ROUTE_DLSYM, &cuda, err));
    CUresult r = cuda.cuInit(0);
    if (r != CUDA_SUCCESS || cuda.cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "no CUDA device: %s",
                           r != CUDA_SUCCESS ? corral_cuda_client_error(&cuda, r, text)
                                             : "the driver counts none");
    }
    r = cuda.cuDevicePrimaryCtxRetain(&context, 0);
    if (r != CUDA_SUCCESS) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "device 0 gives no context: %s",
                           corral_cuda_client_error(&cuda, r, text));
    }
    enum corral_status s;
    if (cuda.cuCtxPushCurrent_v2(context) == CUDA_SUCCESS) {
        s = describe(&cuda, &result, err);
        s = s == CORRAL_OK ? try_size(&cuda, within, &result.within, err) : s;
        s = s == CORRAL_OK ? try_size(&cuda, over, &result.over, err) : s;
        (void)cuda.cuCtxPopCurrent_v2(&popped);
    } else {
        s = corral_fail(err, CORRAL_INTERNAL, "the context of device 0 cannot be made current");
    }
    (void)cuda.cuDevicePrimaryCtxRelease_v2(0);
    corral_cuda_client_close(&cuda);
    if (s == CORRAL_OK) {
        *out = result;
    }
    return s;
}

void corral_cuda_limit_write(const struct corral_cuda_limit_result *r, char out[CORRAL_CUDA_LIMIT_TEXT])
{
    snprintf(out, CORRAL_CUDA_LIMIT_TEXT,
             "limit-canary %.60s processors %" PRIu32 " free %" PRIu64 " within %u over %u\n", r->uuid,
             r->processors, r->free_bytes, (unsigned)r->within, (unsigned)r->over);
}

enum corral_status corral_cuda_limit_parse(const char *text, struct corral_cuda_limit_result *out,
                                           struct corral_error *err)
{
    struct corral_cuda_limit_result r = {0};
    unsigned within, over;
    int end = 0;
    if (sscanf(text, "limit-canary %63s processors %" SCNu32 " free %" SCNu64 " within %1u over %1u%n",
               r.uuid, &r.processors, &r.free_bytes, &within, &over, &end) != 5 ||
        strcmp(text + end, "\n") != 0 || within > CORRAL_LIMIT_DENIED || over > CORRAL_LIMIT_DENIED) {
        return corral_fail(err, CORRAL_PROTOCOL, "not what a canary says");
    }
    r.within = (enum corral_cuda_limit_outcome)within;
    r.over = (enum corral_cuda_limit_outcome)over;
    *out = r;
    return CORRAL_OK;
}
