/* NVML's answers about memory agree with the driver's: some frameworks ask the one, some the other. Devices that are not in the ledger, and
 * every device when there is no ledger to be had, are told as they are. */
#include "quota/cuda/core.h"
#include "quota/cuda/nvml_types.h"

#include <string.h>

CORRAL_CUDA_HOOK nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory);
CORRAL_CUDA_HOOK nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory);

/* "GPU-" and 32 hex digits with dashes in between. */
static bool parse_uuid(const char *text, uint8_t out[16])
{
    const char *digits = strchr(text, '-');
    uint32_t n = 0;
    for (const char *c = digits ? digits : ""; *c && n < 32; c++) {
        uint8_t value = (uint8_t)(*c >= '0' && *c <= '9'                 ? *c - '0'
                                  : (*c | 32) >= 'a' && (*c | 32) <= 'f' ? (*c | 32) - 'a' + 10
                                                                         : 16);
        if (value == 16) {
            continue;
        }
        out[n / 2] = (uint8_t)(n % 2 ? out[n / 2] | value : value << 4);
        n++;
    }
    return n == 32;
}

static bool view(nvmlDevice_t handle, uint64_t *total, uint64_t *free_bytes)
{
    nvmlDeviceGetUUID_fn get_uuid =
        (nvmlDeviceGetUUID_fn)corral_cuda_real_by_name(CORRAL_CUDA_NVML, "nvmlDeviceGetUUID");
    char text[96] = "";
    uint8_t uuid[16];
    uint32_t device, holder;
    return get_uuid && get_uuid(handle, text, sizeof text) == NVML_SUCCESS && parse_uuid(text, uuid) &&
           corral_cuda_holder_of_uuid(uuid, &device, &holder) &&
           corral_cuda_quota_view(device, holder, total, free_bytes);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo)(device, memory);
    if (result != NVML_SUCCESS || !memory) {
        return result;
    }
    uint64_t total = memory->total, free_bytes = memory->free;
    if (view(device, &total, &free_bytes)) {
        *memory = (nvmlMemory_t){.total = total, .free = free_bytes, .used = total - free_bytes};
    }
    return result;
}

/* What the driver reserves for itself is the node's, not the role's: it is in no quota. */
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo_v2)(device, memory);
    if (result != NVML_SUCCESS || !memory) {
        return result;
    }
    uint64_t total = memory->total, free_bytes = memory->free;
    if (view(device, &total, &free_bytes)) {
        memory->total = total;
        memory->free = free_bytes;
        memory->used = total - free_bytes;
        memory->reserved = 0;
    }
    return result;
}
