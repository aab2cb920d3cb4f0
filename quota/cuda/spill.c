/* CORRAL_QUOTA_SPILL: what is denied goes to host memory, when the job asks for it. */
#include "quota/cuda/families.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

static _Atomic uint64_t spilled_bytes; /* relaxed: only a sum */

/* "512MiB" as the job file writes it, or plain bytes. */
static uint64_t limit_bytes(void)
{
    static const struct {
        const char *unit;
        uint64_t factor;
    } units[] = {{"", 1},
                 {"B", 1},
                 {"KiB", UINT64_C(1) << 10},
                 {"MiB", UINT64_C(1) << 20},
                 {"GiB", UINT64_C(1) << 30},
                 {"TiB", UINT64_C(1) << 40}};
    const char *text = getenv(CORRAL_QUOTA_ENV_SPILL);
    char *end = NULL;
    if (text == NULL || text[0] < '0' || text[0] > '9') {
        return 0;
    }
    uint64_t bytes = strtoull(text, &end, 10);
    for (size_t i = 0; i < CORRAL_COUNT_OF(units); i++) {
        if (__builtin_strcmp(end, units[i].unit) == 0 && bytes <= UINT64_MAX / units[i].factor) {
            return bytes * units[i].factor;
        }
    }
    return 0;
}

static bool claim(uint64_t bytes)
{
    uint64_t limit = limit_bytes();
    uint64_t now = atomic_load_explicit(&spilled_bytes, memory_order_relaxed);
    do {
        if (bytes > limit || now > limit - bytes) {
            return false;
        }
    } while (!atomic_compare_exchange_weak_explicit(&spilled_bytes, &now, now + bytes, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static void unclaim(uint64_t bytes)
{
    atomic_fetch_sub_explicit(&spilled_bytes, bytes, memory_order_relaxed);
}

/* The pages live on the host and the device reads them from there: without that, they would take the memory that was just denied. */
static CUresult keep_on_host(CUdeviceptr pointer, uint64_t bytes, CUdevice device)
{
    const CUdevice host = -1;
    CUresult result = REAL(cuMemAdvise)(pointer, bytes, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, host);
    if (result == CUDA_SUCCESS) {
        result = REAL(cuMemAdvise)(pointer, bytes, CU_MEM_ADVISE_SET_ACCESSED_BY, device);
    }
    return result;
}

bool corral_cuda_spill(CUdevice device, CUdeviceptr *pointer, uint64_t bytes)
{
    int saved = errno;
    uint32_t holder = 0;
    bool ok = false;
    if (corral_cuda_mode() == CORRAL_CUDA_FENCED && corral_cuda_holder(device, &holder) &&
        corral_cuda_real(CORRAL_CUDA_SYMBOL_cuMemAdvise) != NULL && claim(bytes)) {
        CUdeviceptr spilled = 0;
        ok = REAL(cuMemAllocManaged)(&spilled, bytes, CU_MEM_ATTACH_GLOBAL) == CUDA_SUCCESS;
        if (ok && keep_on_host(spilled, bytes, device) != CUDA_SUCCESS) {
            (void)REAL(cuMemFree_v2)(spilled);
            ok = false;
        }
        if (ok) {
            struct corral_quota_charge counted = corral_cuda_no_charge();
            counted.bytes = bytes;
            corral_quota_count_spilled(corral_cuda_quota(), holder, (int64_t)bytes);
            corral_cuda_keep_as(CORRAL_CUDA_SPILLED, spilled, device, &counted, CORRAL_CUDA_PLAIN);
            *pointer = spilled;
        } else {
            unclaim(bytes);
        }
    }
    errno = saved;
    return ok;
}

void corral_cuda_unspill(const struct corral_cuda_record *record)
{
    int saved = errno;
    uint32_t holder;
    unclaim(record->charge.bytes);
    if (corral_cuda_quota() != NULL && corral_cuda_holder(record->device, &holder)) {
        corral_quota_count_spilled(corral_cuda_quota(), holder, -(int64_t)record->charge.bytes);
    }
    errno = saved;
}

void corral_cuda_spill_forget_all(void)
{
    atomic_store_explicit(&spilled_bytes, 0, memory_order_relaxed);
}
