#include "quota/cuda/canary.h"
#include "quota/cuda/client.h"
#include "quota/shared.h"
#include <stdio.h>
#include <string.h>

#define SLICE ((uint64_t)16384) /* largest edge of a 3D array on every device */

struct canary {
    const struct corral_cuda_client *cuda;
    uint64_t page;
};

/* Allocate `bytes` through one family and give it back at once. The driver's answer. */
typedef CUresult (*try_fn)(const struct canary *k, uint64_t bytes);

static CUresult try_device(const struct canary *k, uint64_t bytes)
{
    CUdeviceptr p;
    CUresult r = k->cuda->cuMemAlloc_v2(&p, bytes);
    return r == CUDA_SUCCESS ? k->cuda->cuMemFree_v2(p) : r;
}

static CUresult try_pitch(const struct canary *k, uint64_t bytes)
{
    CUdeviceptr p;
    size_t pitch, row = 1 << 20;
    CUresult r = k->cuda->cuMemAllocPitch_v2(&p, &pitch, row, (bytes + row - 1) / row, 16);
    return r == CUDA_SUCCESS ? k->cuda->cuMemFree_v2(p) : r;
}

static CUresult try_managed(const struct canary *k, uint64_t bytes)
{
    CUdeviceptr p;
    CUresult r = k->cuda->cuMemAllocManaged(&p, bytes, CU_MEM_ATTACH_GLOBAL);
    return r == CUDA_SUCCESS ? k->cuda->cuMemFree_v2(p) : r;
}

static CUresult try_vmm(const struct canary *k, uint64_t bytes)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle h;
    CUresult r = k->cuda->cuMemCreate(&h, (bytes + k->page - 1) / k->page * k->page, &prop, 0);
    return r == CUDA_SUCCESS ? k->cuda->cuMemRelease(h) : r;
}

static CUresult try_pool(const struct canary *k, uint64_t bytes)
{
    CUdeviceptr p;
    CUmemoryPool pool;
    CUresult r = k->cuda->cuMemAllocAsync(&p, bytes, NULL);
    if (r != CUDA_SUCCESS) {
        return r;
    }
    r = k->cuda->cuMemFreeAsync(p, NULL);
    r = r == CUDA_SUCCESS ? k->cuda->cuStreamSynchronize(NULL) : r;
    /* What was there before belongs to the program: only what nobody uses goes. */
    if (r == CUDA_SUCCESS && k->cuda->cuDeviceGetDefaultMemPool(&pool, 0) == CUDA_SUCCESS) {
        (void)k->cuda->cuMemPoolTrimTo(pool, 0);
    }
    return r;
}

static CUDA_ARRAY3D_DESCRIPTOR block_of(uint64_t bytes)
{
    /* Layers of 1 MiB, of 256 MiB for what is larger: no edge above what a device can have. */
    uint64_t edge = bytes <= (uint64_t)1 << 30 ? 1024 : SLICE;
    return (CUDA_ARRAY3D_DESCRIPTOR){.Width = edge,
                                     .Height = edge,
                                     .Depth = (bytes + edge * edge - 1) / (edge * edge),
                                     .Format = CU_AD_FORMAT_UNSIGNED_INT8,
                                     .NumChannels = 1};
}

static CUresult try_array(const struct canary *k, uint64_t bytes)
{
    CUDA_ARRAY3D_DESCRIPTOR d = block_of(bytes);
    CUarray a;
    CUresult r = k->cuda->cuArray3DCreate_v2(&a, &d);
    return r == CUDA_SUCCESS ? k->cuda->cuArrayDestroy(a) : r;
}

static CUresult try_mipmap(const struct canary *k, uint64_t bytes)
{
    CUDA_ARRAY3D_DESCRIPTOR d = block_of(bytes);
    CUmipmappedArray m;
    CUresult r = k->cuda->cuMipmappedArrayCreate(&m, &d, 1);
    return r == CUDA_SUCCESS ? k->cuda->cuMipmappedArrayDestroy(m) : r;
}

static CUresult try_graph(const struct canary *k, uint64_t bytes)
{
    CUDA_MEM_ALLOC_NODE_PARAMS params = {.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                       .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
                                         .bytesize = bytes};
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode alloc, release;
    CUresult r = k->cuda->cuGraphCreate(&graph, 0);
    if (r != CUDA_SUCCESS) {
        return r;
    }
    r = k->cuda->cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &params);
    r = r == CUDA_SUCCESS ? k->cuda->cuGraphAddMemFreeNode(&release, graph, &alloc, 1, params.dptr) : r;
    r = r == CUDA_SUCCESS ? k->cuda->cuGraphInstantiateWithFlags(&exec, graph, 0) : r;
    if (r == CUDA_SUCCESS) {
        r = k->cuda->cuGraphExecDestroy(exec);
    }
    (void)k->cuda->cuGraphDestroy(graph);
    (void)k->cuda->cuDeviceGraphMemTrim(0);
    return r;
}

static const struct {
    const char *name;
    try_fn run;
} families[] = {{"device", try_device}, {"pitch", try_pitch}, {"managed", try_managed}, {"vmm", try_vmm},
                {"pool", try_pool},     {"array", try_array}, {"mipmap", try_mipmap},   {"graph", try_graph}};

/* One family: the little that must be had, and the page above the ceiling that must not. */
static enum corral_status check_family(const struct canary *k, size_t family, enum corral_cuda_route route,
                                       uint64_t ceiling, struct corral_error *err)
{
    char text[32];
    const char *name = families[family].name, *way = corral_cuda_route_name(route);
    CUresult r = families[family].run(k, k->page);
    if (r != CUDA_SUCCESS) {
        return corral_fail(err, CORRAL_DENIED,
                           "pre-flight: %llu bytes of %s memory, within the quota, were refused: %s (by %s)",
                           (unsigned long long)k->page, name, corral_cuda_client_error(k->cuda, r, text),
                           way);
    }
    r = families[family].run(k, ceiling + k->page);
    if (r == CUDA_SUCCESS) {
        return corral_fail(err, CORRAL_INTERNAL,
                           "pre-flight: %llu bytes of %s memory, above the ceiling of %llu, were granted (by "
                           "%s): the fence has a hole",
                           (unsigned long long)(ceiling + k->page), name, (unsigned long long)ceiling, way);
    }
    if (r != CUDA_ERROR_OUT_OF_MEMORY) {
        return corral_fail(err, CORRAL_INTERNAL,
                           "pre-flight: %s memory above the ceiling was refused with %s, not with "
                           "CUDA_ERROR_OUT_OF_MEMORY (by %s)",
                           name, corral_cuda_client_error(k->cuda, r, text), way);
    }
    return CORRAL_OK;
}

static enum corral_status check_route(const struct corral_cuda_client *cuda, enum corral_cuda_route route,
                                      struct corral_error *err)
{
    struct canary k = {.cuda = cuda};
    size_t ceiling = 0, page = 0;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    if (cuda->cuDeviceTotalMem_v2(&ceiling, 0) != CUDA_SUCCESS ||
        cuda->cuMemGetAllocationGranularity(&page, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM) != CUDA_SUCCESS ||
        page == 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "pre-flight: device 0 does not tell its memory (by %s)",
                           corral_cuda_route_name(route));
    }
    k.page = page;
    for (size_t f = 0; f < CORRAL_COUNT_OF(families); f++) {
        CORRAL_TRY(check_family(&k, f, route, ceiling, err));
    }
    return CORRAL_OK;
}

/* What is asked for above the ceiling is refused in earnest, but it is nobody's trouble: this process's holders say so meanwhile. A process that is under no ledger has none; what the
 * fence is worth there shows by itself. */
static struct corral_quota *rehearsal_begin(void)
{
    struct corral_quota *q = NULL;
    uint32_t role, holder;
    if (corral_quota_attach_environment(&q, &role, NULL) != CORRAL_OK) {
        return NULL;
    }
    for (uint32_t d = 0; d < corral_quota_ledger(q)->device_count; d++) {
        if (corral_quota_borrow_holder(q, d, role, &holder, NULL) == CORRAL_OK) {
            corral_quota_mark_rehearsing(q, holder, true);
        }
    }
    return q;
}

static void rehearsal_end(struct corral_quota *q)
{
    for (uint32_t i = 0; q != NULL && i < corral_quota_ledger(q)->holder_high; i++) {
        corral_quota_mark_rehearsing(q, i, false); /* what is not ours is left alone */
    }
    corral_quota_detach(q);
}

static enum corral_status with_context(enum corral_cuda_route route, struct corral_error *err)
{
    struct corral_cuda_client cuda;
    CORRAL_TRY(corral_cuda_client_open(route, &cuda, err));
    char text[32];
    CUcontext context, popped;
    CUresult r = cuda.cuInit(0);
    int count = 0;
    if (r != CUDA_SUCCESS || cuda.cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "pre-flight: no CUDA device: %s",
                           r != CUDA_SUCCESS ? corral_cuda_client_error(&cuda, r, text)
                                             : "the driver counts none");
    }
    r = cuda.cuDevicePrimaryCtxRetain(&context, 0);
    if (r != CUDA_SUCCESS) {
        enum corral_status s = r == CUDA_ERROR_OUT_OF_MEMORY ? CORRAL_DENIED : CORRAL_UNSUPPORTED;
        return corral_fail(err, s, "pre-flight: device 0 gives no context: %s",
                           corral_cuda_client_error(&cuda, r, text));
    }
    enum corral_status s = CORRAL_INTERNAL;
    if (cuda.cuCtxPushCurrent_v2(context) == CUDA_SUCCESS) {
        struct corral_quota *rehearsal = rehearsal_begin();
        s = check_route(&cuda, route, err);
        rehearsal_end(rehearsal);
        (void)cuda.cuCtxPopCurrent_v2(&popped);
    } else {
        corral_fail(err, s, "pre-flight: the context of device 0 cannot be made current");
    }
    (void)cuda.cuDevicePrimaryCtxRelease_v2(0);
    corral_cuda_client_close(&cuda);
    return s;
}

enum corral_status corral_cuda_canary(struct corral_cuda_canary_result *out, struct corral_error *err)
{
    struct corral_cuda_canary_result result = {0};
    size_t at = 0;
    for (size_t f = 0; f < CORRAL_COUNT_OF(families); f++) {
        at += (size_t)snprintf(result.text + at, sizeof result.text - at, "%s%s", f > 0 ? " " : "",
                               families[f].name);
    }
    for (enum corral_cuda_route route = 0; route < CORRAL_CUDA_ROUTES; route++) {
        CORRAL_TRY(with_context(route, err));
        at += (size_t)snprintf(result.text + at, sizeof result.text - at, "%s%s", route == 0 ? "; " : " ",
                               corral_cuda_route_name(route));
        result.families += CORRAL_COUNT_OF(families);
    }
    *out = result;
    return CORRAL_OK;
}
