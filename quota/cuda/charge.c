#include "quota/cuda/families.h"
#include <errno.h>

static void forget_everything(void)
{
    corral_cuda_table_forget_all();
    corral_cuda_objects_forget_all();
    corral_cuda_imports_forget_all();
    corral_cuda_pools_forget_all();
    corral_cuda_graphs_forget_all();
    corral_cuda_overhead_forget_all();
    corral_cuda_spill_forget_all();
}

/* A forked child holds nothing: its parent's charges are its parent's, and CUDA does not work across fork(). */
__attribute__((constructor)) static void forget_after_fork(void)
{
    pthread_atfork(NULL, NULL, forget_everything);
}

struct corral_quota_charge corral_cuda_no_charge(void)
{
    return (struct corral_quota_charge){.holder = CORRAL_LEDGER_NONE, .allocation = CORRAL_LEDGER_NONE};
}

bool corral_cuda_is_charged(const struct corral_quota_charge *charge)
{
    return charge->holder != CORRAL_LEDGER_NONE;
}

bool corral_cuda_initialised(void)
{
    int count;
    return REAL(cuDeviceGetCount)(&count) != CUDA_ERROR_NOT_INITIALIZED;
}

CUresult corral_cuda_refusal(CUdevice device)
{
    int count = 0;
    CUresult r = REAL(cuDeviceGetCount)(&count);
    return r == CUDA_ERROR_NOT_INITIALIZED                        ? r
           : r == CUDA_SUCCESS && (device < 0 || device >= count) ? CUDA_ERROR_INVALID_DEVICE
                                                                  : CUDA_ERROR_OUT_OF_MEMORY;
}

static void log_closed(const char *api, uint64_t bytes, CUdevice device)
{
    if (!corral_cuda_initialised()) {
        return; /* nothing was asked of the ledger */
    }
    corral_cuda_log("denied", "api=%s size=%llu device=%d reason=\"no ledger\"", api,
                    (unsigned long long)bytes, device);
}

void corral_cuda_relieve(CUdevice device, uint64_t bytes)
{
    int saved = errno;
    uint32_t holder;
    struct corral_quota *q = corral_cuda_quota();
    /* Most programs have neither pools nor graphs of the driver's, and nothing to ask for. */
    if (q != NULL && (corral_cuda_pools_any() || corral_cuda_graphs_any()) &&
        corral_cuda_holder(device, &holder) && corral_quota_available(q, holder) < bytes) {
        corral_cuda_pools_refresh(device, false);
        corral_cuda_graphs_refresh(device);
        if (corral_quota_available(q, holder) < bytes) {
            corral_cuda_pools_refresh(device, true);
        }
    }
    errno = saved;
}

/* The library has logged a denial; anything else it has not. */
static bool granted(enum corral_status status, const struct corral_error *err, const char *api,
                    uint64_t bytes, CUdevice device)
{
    if (status != CORRAL_OK && status != CORRAL_DENIED) {
        corral_cuda_log("denied", "api=%s size=%llu device=%d reason=\"%s\"", api, (unsigned long long)bytes,
                        device, err->text);
    }
    return status == CORRAL_OK;
}

bool corral_cuda_take(CUdevice device, uint64_t bytes, enum corral_ledger_kind kind, const char *api,
                      struct corral_quota_charge *charge)
{
    int saved = errno;
    uint32_t holder;
    bool ok = false;
    if (corral_cuda_mode() != CORRAL_CUDA_FENCED || !corral_cuda_holder(device, &holder)) {
        log_closed(api, bytes, device);
    } else {
        struct corral_error err = {0};
        ok = granted(corral_quota_take(corral_cuda_quota(), holder, bytes, kind, api, charge, &err), &err,
                     api, bytes, device);
    }
    errno = saved;
    return ok;
}

bool corral_cuda_reserve(CUdevice device, uint64_t bytes, enum corral_ledger_kind kind, const char *api,
                         struct corral_quota_charge *charge)
{
    corral_cuda_relieve(device, bytes);
    return corral_cuda_take(device, bytes, kind, api, charge);
}

bool corral_cuda_resize(CUdevice device, struct corral_quota_charge *charge, uint64_t bytes, const char *api)
{
    int saved = errno;
    struct corral_error err = {0};
    struct corral_quota *q = corral_cuda_quota();
    bool ok =
        q != NULL && granted(corral_quota_resize(q, charge, bytes, api, &err), &err, api, bytes, device);
    errno = saved;
    return ok;
}

static uint64_t settle(struct corral_quota *q, CUdevice device, struct corral_quota_charge *charge,
                       uint64_t bytes, enum corral_ledger_kind kind)
{
    uint32_t holder;
    uint64_t short_by = 0;
    if (!corral_cuda_holder(device, &holder)) {
        return bytes;
    }
    if (!corral_cuda_is_charged(charge)) {
        corral_quota_charge_measured(q, holder, bytes, kind, charge, &short_by);
    } else {
        corral_quota_resize_measured(q, charge, bytes, &short_by);
    }
    return short_by;
}

void corral_cuda_log_uncharged(CUdevice device, uint64_t bytes, const char *api)
{
    corral_cuda_log("uncharged",
                    "api=%s device=%d size=%llu reason=\"already in the driver, over the quota\"", api,
                    device, (unsigned long long)bytes);
}

uint64_t corral_cuda_settle_quietly(CUdevice device, struct corral_quota_charge *charge, uint64_t bytes,
                                    enum corral_ledger_kind kind)
{
    int saved = errno;
    uint64_t short_by = 0;
    struct corral_quota *q = corral_cuda_quota();
    if (q != NULL && bytes == 0 && corral_cuda_is_charged(charge)) {
        corral_quota_drop(q, charge);
        *charge = corral_cuda_no_charge();
    } else if (q != NULL && bytes > 0) {
        short_by = settle(q, device, charge, bytes, kind);
    }
    errno = saved;
    return short_by;
}

void corral_cuda_settle(CUdevice device, struct corral_quota_charge *charge, uint64_t bytes,
                        enum corral_ledger_kind kind, const char *api)
{
    uint64_t short_by = corral_cuda_settle_quietly(device, charge, bytes, kind);
    if (short_by > 0) {
        corral_cuda_log_uncharged(device, short_by, api);
    }
}

void corral_cuda_rollback(const struct corral_quota_charge *charge)
{
    int saved = errno;
    struct corral_quota *q = corral_cuda_quota();
    if (q != NULL && corral_cuda_is_charged(charge)) {
        corral_quota_drop(q, charge);
    }
    errno = saved;
}

void corral_cuda_uncharge(const struct corral_quota_charge *charge)
{
    corral_cuda_rollback(charge);
}

void corral_cuda_count_pinned(CUdevice device, int64_t bytes)
{
    int saved = errno;
    uint32_t holder;
    struct corral_quota *q = corral_cuda_quota();
    if (q != NULL && bytes != 0 && corral_cuda_holder(device, &holder)) {
        corral_quota_count_pinned(q, holder, bytes);
    }
    errno = saved;
}

uint64_t corral_cuda_current_context(void)
{
    CUcontext context = NULL;
    if (REAL(cuCtxGetCurrent)(&context) != CUDA_SUCCESS) {
        return 0;
    }
    return (uint64_t)(uintptr_t)context;
}

static void put(const struct corral_cuda_record *record)
{
    int saved = errno;
    struct corral_cuda_record old;
    bool had = false;
    if (!corral_cuda_table_put(record, &old, &had)) {
        /* The memory is there and charged: what cannot be remembered stays charged until the process ends. */
        corral_cuda_log("unremembered", "device=%d size=%llu reason=\"out of memory\"", record->device,
                        (unsigned long long)record->charge.bytes);
    } else if (had) {
        /* The driver gives out the same name again: what it named has gone without our seeing it. */
        corral_cuda_uncharge(&old.charge);
        if ((old.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_POOL && old.space == CORRAL_CUDA_POINTER) {
            corral_cuda_pool_freed(corral_cuda_pool_of(&old));
        }
    }
    errno = saved;
}

void corral_cuda_keep_as(enum corral_cuda_space space, uint64_t name, CUdevice device,
                         const struct corral_quota_charge *charge, uint64_t aux)
{
    bool from_pool = (aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_POOL;
    struct corral_cuda_record record = {.name = name,
                                        .space = space,
                                        .device = device,
                                        .charge = *charge,
                                        .tie = from_pool ? 0 : corral_cuda_current_context(),
                                        .aux = aux};
    struct corral_quota *q = corral_cuda_quota();
    if (q != NULL && corral_cuda_is_charged(charge)) {
        corral_quota_keep(q, charge);
    }
    put(&record);
}

void corral_cuda_keep(enum corral_cuda_space space, uint64_t name, const struct corral_quota_charge *charge)
{
    corral_cuda_keep_as(space, name, corral_cuda_current_device(), charge, CORRAL_CUDA_PLAIN);
}

void corral_cuda_put_back(const struct corral_cuda_record *record)
{
    put(record);
}

bool corral_cuda_forget(enum corral_cuda_space space, uint64_t name, struct corral_quota_charge *charge)
{
    struct corral_cuda_record record;
    if (!corral_cuda_table_take(space, name, &record)) {
        return false;
    }
    *charge = record.charge;
    return true;
}

bool corral_cuda_lookup(enum corral_cuda_space space, uint64_t name, struct corral_quota_charge *charge)
{
    struct corral_cuda_record record;
    if (!corral_cuda_table_get(space, name, &record)) {
        return false;
    }
    *charge = record.charge;
    return true;
}
