/* How much memory there is: what the quota lets this process have, never more than the driver says. */
#include "quota/cuda/core.h"

#include <errno.h>

bool corral_cuda_quota_view(uint32_t device, uint32_t holder, uint64_t *total, uint64_t *free_bytes)
{
    struct corral_quota *quota = corral_cuda_quota();
    if (!quota) {
        *free_bytes = 0;
        return false;
    }
    const struct corral_ledger *ledger = corral_quota_ledger(quota);
    uint64_t ceiling = ledger->device[device].role[corral_cuda_role()].ceiling;
    int saved = errno;
    uint64_t available = holder == CORRAL_LEDGER_NONE ? corral_quota_room(quota, device, corral_cuda_role())
                                                      : corral_quota_available(quota, holder);
    errno = saved;
    *total = CORRAL_MIN(*total, ceiling);
    *free_bytes = CORRAL_MIN(CORRAL_MIN(*free_bytes, available), *total);
    return true;
}

/* Of the calling thread's device. Nothing can be had of a device that is not in the ledger. */
static void view_current(uint64_t *total, uint64_t *free_bytes)
{
    CUdevice ordinal = corral_cuda_current_device();
    uint32_t device, holder;
    if (!corral_cuda_ledger_device(ordinal, &device) || !corral_cuda_holder(ordinal, &holder)) {
        *free_bytes = 0;
        return;
    }
    corral_cuda_quota_view(device, holder, total, free_bytes);
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    size_t real_free = 0, real_total = 0;
    CUresult result = REAL(cuMemGetInfo_v2)(free_bytes ? &real_free : NULL, total ? &real_total : NULL);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    uint64_t seen_total = total ? real_total : UINT64_MAX, seen_free = real_free;
    view_current(&seen_total, &seen_free);
    if (free_bytes) {
        *free_bytes = (size_t)seen_free;
    }
    if (total) {
        *total = (size_t)seen_total;
    }
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(unsigned int *free_bytes, unsigned int *total)
{
    unsigned int real_free = 0, real_total = 0;
    CUresult result = REAL(cuMemGetInfo)(free_bytes ? &real_free : NULL, total ? &real_total : NULL);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    uint64_t seen_total = total ? real_total : UINT64_MAX, seen_free = real_free;
    view_current(&seen_total, &seen_free);
    if (free_bytes) {
        *free_bytes = (unsigned int)seen_free;
    }
    if (total) {
        *total = (unsigned int)seen_total;
    }
    return CUDA_SUCCESS;
}

/* The ceiling, where the device is in the ledger. Asking makes no holder: a program that only looks at every device holds nothing on them. */
static uint64_t ceiling_of(CUdevice ordinal)
{
    uint32_t device;
    struct corral_quota *quota = corral_cuda_quota();
    return quota && corral_cuda_ledger_device(ordinal, &device)
               ? corral_quota_ledger(quota)->device[device].role[corral_cuda_role()].ceiling
               : UINT64_MAX;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    CUresult result = REAL(cuDeviceTotalMem_v2)(bytes, device);
    if (result == CUDA_SUCCESS && bytes) {
        *bytes = (size_t)CORRAL_MIN(*bytes, ceiling_of(device));
    }
    return result;
}

CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice device)
{
    CUresult result = REAL(cuDeviceTotalMem)(bytes, device);
    if (result == CUDA_SUCCESS && bytes) {
        *bytes = (unsigned int)CORRAL_MIN(*bytes, ceiling_of(device));
    }
    return result;
}
