/* Contexts, modules and limits: what they cost is measured (overhead.h). A context takes everything with it that was allocated in it. */
#include "quota/cuda/overhead.h"

/* The primary contexts that were retained, to know what goes with them. Relaxed: a value is only compared with ties. */
static _Atomic(uint64_t) primary[CORRAL_CUDA_DEVICES_MAX];

static void let_go(const struct corral_cuda_record *record)
{
    bool object = (record->aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_OBJECT;
    if (object) {
        corral_cuda_object_drop(corral_cuda_object_of(record), record->space);
    } else if (record->space == CORRAL_CUDA_PINNED) {
        corral_cuda_count_pinned(record->device, -(int64_t)record->charge.bytes);
    } else if (record->space == CORRAL_CUDA_SPILLED) {
        corral_cuda_unspill(record);
    } else {
        corral_cuda_uncharge(&record->charge);
    }
}

/* `epoch` ended before the driver's call: what other threads have put since is a later context's, which may have the same name. */
static void context_gone(uint64_t context, uint64_t epoch)
{
    static const enum corral_cuda_space spaces[] = {
        CORRAL_CUDA_POINTER, CORRAL_CUDA_ARRAY,    CORRAL_CUDA_MIPMAP, CORRAL_CUDA_IPC,
        CORRAL_CUDA_PINNED,  CORRAL_CUDA_EXTERNAL, CORRAL_CUDA_SPILLED};
    struct corral_cuda_record record;
    for (size_t i = 0; context != 0 && i < CORRAL_COUNT_OF(spaces); i++) {
        uint32_t cursor = 0;
        while (corral_cuda_table_take_tied(spaces[i], context, epoch, &cursor, &record)) {
            let_go(&record);
        }
    }
}

static void context_made(CUcontext context, CUdevice device)
{
    struct corral_cuda_record record = {.name = (uint64_t)(uintptr_t)context,
                                        .space = CORRAL_CUDA_CONTEXT,
                                        .device = device,
                                        .charge = corral_cuda_no_charge()};
    corral_cuda_put_back(&record);
}

/* A context is made before it is known what it costs, the first time; one that there is no room for goes again. */
static CUresult undo_context(const struct corral_cuda_overhead *overhead, const CUcontext *context)
{
    struct corral_cuda_record record;
    (void)corral_cuda_table_take(CORRAL_CUDA_CONTEXT, (uint64_t)(uintptr_t)*context, &record);
    (void)REAL(cuCtxDestroy_v2)(*context);
    corral_cuda_overhead_undone(overhead);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* The body of a function that makes a context; `call` is the driver's. */
#define MAKE_CONTEXT(name, device, out, call)                                                  \
    struct corral_cuda_overhead overhead;                                                      \
    if (!corral_cuda_overhead_begin(&overhead, device, CORRAL_CUDA_OVERHEAD_CONTEXT, #name)) { \
        return corral_cuda_refusal(device);                                                    \
    }                                                                                          \
    CUresult result = call;                                                                    \
    if (result == CUDA_SUCCESS) {                                                              \
        context_made(*out, device);                                                            \
    }                                                                                          \
    overhead.can_be_undone = true;                                                             \
    if (!corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS)) {                        \
        return undo_context(&overhead, out);                                                   \
    }                                                                                          \
    return result

CORRAL_CUDA_DEFINE(cuCtxCreate, CUcontext *context, unsigned int flags, CUdevice device)
{
    MAKE_CONTEXT(cuCtxCreate, device, context, REAL(cuCtxCreate)(context, flags, device));
}

CORRAL_CUDA_DEFINE(cuCtxCreate_v2, CUcontext *context, unsigned int flags, CUdevice device)
{
    MAKE_CONTEXT(cuCtxCreate_v2, device, context, REAL(cuCtxCreate_v2)(context, flags, device));
}

CORRAL_CUDA_DEFINE(cuCtxCreate_v3, CUcontext *context, CUexecAffinityParam *affinity, int affinities,
                   unsigned int flags, CUdevice device)
{
    MAKE_CONTEXT(cuCtxCreate_v3, device, context,
                 REAL(cuCtxCreate_v3)(context, affinity, affinities, flags, device));
}

CORRAL_CUDA_DEFINE(cuCtxCreate_v4, CUcontext *context, CUctxCreateParams *params, unsigned int flags,
                   CUdevice device)
{
    MAKE_CONTEXT(cuCtxCreate_v4, device, context, REAL(cuCtxCreate_v4)(context, params, flags, device));
}

/* Giving back is never denied; without a ledger there is nothing to measure against. */
static void begin_release(struct corral_cuda_overhead *overhead, CUdevice device, const char *api)
{
    *overhead = (struct corral_cuda_overhead){.node_lock = -1};
    if (device >= 0 && corral_cuda_mode() == CORRAL_CUDA_FENCED) {
        (void)corral_cuda_overhead_begin(overhead, device, CORRAL_CUDA_OVERHEAD_OTHER, api);
        overhead->ends_context = true;
    }
}

static CUresult destroy_context(CUcontext context, cuCtxDestroy_v2_fn driver, const char *api)
{
    struct corral_cuda_overhead overhead;
    struct corral_cuda_record record = {.device = -1};
    uint64_t name = (uint64_t)(uintptr_t)context;
    bool known = corral_cuda_table_take(CORRAL_CUDA_CONTEXT, name, &record);
    begin_release(&overhead, record.device, api);
    const uint64_t epoch = corral_cuda_table_end_epoch();
    CUresult result = driver(context);
    if (result == CUDA_SUCCESS) {
        context_gone(name, epoch);
    } else if (known) {
        corral_cuda_put_back(&record);
    }
    corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS);
    return result;
}

CORRAL_CUDA_DEFINE(cuCtxDestroy_v2, CUcontext context)
{
    return destroy_context(context, REAL(cuCtxDestroy_v2), "cuCtxDestroy_v2");
}

CORRAL_CUDA_DEFINE(cuCtxDestroy, CUcontext context)
{
    return destroy_context(context, REAL(cuCtxDestroy), "cuCtxDestroy");
}

static bool primary_active(CUdevice device)
{
    unsigned int flags;
    int active = 0;
    return REAL(cuDevicePrimaryCtxGetState)(device, &flags, &active) == CUDA_SUCCESS && active != 0;
}

static void remember_primary(CUcontext context, CUdevice device)
{
    if (device >= 0 && device < CORRAL_CUDA_DEVICES_MAX) {
        primary[device] = (uint64_t)(uintptr_t)context;
    }
}

CORRAL_CUDA_DEFINE(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)
{
    struct corral_cuda_overhead overhead = {.node_lock = -1};
    bool first = !primary_active(device);
    if (first && !corral_cuda_overhead_begin(&overhead, device, CORRAL_CUDA_OVERHEAD_CONTEXT,
                                             "cuDevicePrimaryCtxRetain")) {
        return corral_cuda_refusal(device);
    }
    CUresult result = REAL(cuDevicePrimaryCtxRetain)(context, device);
    if (result == CUDA_SUCCESS) {
        remember_primary(*context, device);
    }
    overhead.can_be_undone = true;
    if (!corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS)) {
        (void)REAL(cuDevicePrimaryCtxRelease_v2)(device);
        corral_cuda_overhead_undone(&overhead);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}

static CUresult release_primary(CUdevice device, cuDevicePrimaryCtxRelease_fn driver, const char *api)
{
    struct corral_cuda_overhead overhead;
    bool was_active = primary_active(device);
    begin_release(&overhead, device, api);
    const uint64_t epoch = corral_cuda_table_end_epoch();
    CUresult result = driver(device);
    bool gone =
        result == CUDA_SUCCESS && was_active && device < CORRAL_CUDA_DEVICES_MAX && !primary_active(device);
    if (gone) {
        context_gone(primary[device], epoch);
        corral_cuda_pools_refresh(device, false);
    }
    corral_cuda_overhead_end(&overhead, gone);
    return result;
}

CORRAL_CUDA_DEFINE(cuDevicePrimaryCtxRelease_v2, CUdevice device)
{
    return release_primary(device, REAL(cuDevicePrimaryCtxRelease_v2), "cuDevicePrimaryCtxRelease_v2");
}

CORRAL_CUDA_DEFINE(cuDevicePrimaryCtxRelease, CUdevice device)
{
    return release_primary(device, REAL(cuDevicePrimaryCtxRelease), "cuDevicePrimaryCtxRelease");
}

/* A reset frees everything in the context although it stays retained. */
static CUresult reset_primary(CUdevice device, cuDevicePrimaryCtxReset_fn driver, const char *api)
{
    struct corral_cuda_overhead overhead;
    begin_release(&overhead, device, api);
    const uint64_t epoch = corral_cuda_table_end_epoch();
    CUresult result = driver(device);
    if (result == CUDA_SUCCESS && device >= 0 && device < CORRAL_CUDA_DEVICES_MAX) {
        context_gone(primary[device], epoch);
        corral_cuda_pools_refresh(device, false);
    }
    corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS);
    return result;
}

CORRAL_CUDA_DEFINE(cuDevicePrimaryCtxReset_v2, CUdevice device)
{
    return reset_primary(device, REAL(cuDevicePrimaryCtxReset_v2), "cuDevicePrimaryCtxReset_v2");
}

CORRAL_CUDA_DEFINE(cuDevicePrimaryCtxReset, CUdevice device)
{
    return reset_primary(device, REAL(cuDevicePrimaryCtxReset), "cuDevicePrimaryCtxReset");
}

/* Retains the device's primary context, and may be the first to. */
CORRAL_CUDA_DEFINE(cuGreenCtxCreate, CUgreenCtx *green, CUdevResourceDesc resources, CUdevice device,
                   unsigned int flags)
{
    struct corral_cuda_overhead overhead;
    enum corral_cuda_overhead_of of =
        primary_active(device) ? CORRAL_CUDA_OVERHEAD_OTHER : CORRAL_CUDA_OVERHEAD_CONTEXT;
    if (!corral_cuda_overhead_begin(&overhead, device, of, "cuGreenCtxCreate")) {
        return corral_cuda_refusal(device);
    }
    CUresult result = REAL(cuGreenCtxCreate)(green, resources, device, flags);
    if (result == CUDA_SUCCESS) {
        struct corral_cuda_record record = {.name = (uint64_t)(uintptr_t)*green,
                                            .space = CORRAL_CUDA_CONTEXT,
                                            .device = device,
                                            .charge = corral_cuda_no_charge()};
        corral_cuda_put_back(&record);
    }
    overhead.can_be_undone = true;
    if (!corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS)) {
        struct corral_cuda_record record;
        (void)corral_cuda_table_take(CORRAL_CUDA_CONTEXT, (uint64_t)(uintptr_t)*green, &record);
        (void)REAL(cuGreenCtxDestroy)(*green);
        corral_cuda_overhead_undone(&overhead);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuGreenCtxDestroy, CUgreenCtx green)
{
    struct corral_cuda_overhead overhead;
    struct corral_cuda_record record = {.device = -1};
    bool known = corral_cuda_table_take(CORRAL_CUDA_CONTEXT, (uint64_t)(uintptr_t)green, &record);
    bool was_active = known && primary_active(record.device);
    begin_release(&overhead, record.device, "cuGreenCtxDestroy");
    const uint64_t epoch = corral_cuda_table_end_epoch();
    CUresult result = REAL(cuGreenCtxDestroy)(green);
    if (known && result != CUDA_SUCCESS) {
        corral_cuda_put_back(&record);
    } else if (was_active && record.device < CORRAL_CUDA_DEVICES_MAX && !primary_active(record.device)) {
        context_gone(primary[record.device], epoch);
    }
    corral_cuda_overhead_end(&overhead, result == CUDA_SUCCESS);
    return result;
}
