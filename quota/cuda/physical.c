#include "quota/cuda/core.h"
#include "quota/cuda/overhead.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PROCESSES_MAX 256
#define LOCK_OFFSET (INT64_C(1) << 40) /* beyond the ledger's bytes: these are not anybody else's locks */

/* NVML's functions as the library has them, not as the quota shows them. */
static struct {
    pthread_once_t once;
    bool ready;
    _Atomic(bool) knows_us; /* by our pid; relaxed: once true, always */
    nvmlDeviceGetHandleByUUID_fn by_uuid;
    nvmlDeviceGetComputeRunningProcesses_v3_fn processes;
    nvmlDeviceGetMemoryInfo_fn memory;
} nvml = {.once = PTHREAD_ONCE_INIT};

static void load_nvml(void)
{
    if (dlopen(CORRAL_CUDA_NVML, RTLD_NOW | RTLD_LOCAL) == NULL) {
        return;
    }
    nvmlInit_v2_fn init = (nvmlInit_v2_fn)corral_cuda_real_by_name(CORRAL_CUDA_NVML, "nvmlInit_v2");
    nvml.by_uuid =
        (nvmlDeviceGetHandleByUUID_fn)corral_cuda_real_by_name(CORRAL_CUDA_NVML, "nvmlDeviceGetHandleByUUID");
    nvml.processes = (nvmlDeviceGetComputeRunningProcesses_v3_fn)corral_cuda_real_by_name(
        CORRAL_CUDA_NVML, "nvmlDeviceGetComputeRunningProcesses_v3");
    nvml.memory =
        (nvmlDeviceGetMemoryInfo_fn)corral_cuda_real_by_name(CORRAL_CUDA_NVML, "nvmlDeviceGetMemoryInfo");
    nvml.ready = init != NULL && nvml.by_uuid != NULL && init() == NVML_SUCCESS;
}

static bool nvml_device(CUdevice device, nvmlDevice_t *out)
{
    CUuuid uuid;
    char text[48];
    pthread_once(&nvml.once, load_nvml);
    if (!nvml.ready || REAL(cuDeviceGetUuid)(&uuid, device) != CUDA_SUCCESS) {
        return false;
    }
    const uint8_t *b = (const uint8_t *)uuid.bytes;
    snprintf(text, sizeof(text), "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return nvml.by_uuid(text, out) == NVML_SUCCESS;
}

bool corral_cuda_physical_process(CUdevice device, uint64_t *used)
{
    nvmlDevice_t handle;
    nvmlProcessInfo_v2_t process[PROCESSES_MAX];
    unsigned int count = PROCESSES_MAX;
    if (!nvml_device(device, &handle) || nvml.processes == NULL ||
        nvml.processes(handle, &count, process) != NVML_SUCCESS) {
        return false;
    }
    unsigned int self = (unsigned int)getpid();
    for (unsigned int i = 0; i < CORRAL_MIN(count, (unsigned int)PROCESSES_MAX); i++) {
        if (process[i].pid == self && process[i].usedGpuMemory != NVML_VALUE_UNKNOWN) {
            *used = process[i].usedGpuMemory;
            atomic_store_explicit(&nvml.knows_us, true, memory_order_relaxed);
            return true;
        }
    }
    /* Processes without a context aren't listed; nor is anybody by a pid that we know, in another process namespace. */
    *used = 0;
    return atomic_load_explicit(&nvml.knows_us, memory_order_relaxed);
}

bool corral_cuda_physical_device(CUdevice device, uint64_t *used)
{
    nvmlDevice_t handle;
    nvmlMemory_t memory;
    size_t free_bytes, total;
    if (nvml_device(device, &handle) && nvml.memory != NULL && nvml.memory(handle, &memory) == NVML_SUCCESS) {
        *used = memory.used;
        return true;
    }
    if (corral_cuda_current_device() == device &&
        REAL(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_SUCCESS) {
        *used = total - free_bytes;
        return true;
    }
    return false;
}

int corral_cuda_node_trylock(CUdevice device)
{
    const char *path = getenv(CORRAL_QUOTA_ENV_LEDGER);
    uint32_t index;
    int fd = path != NULL && corral_cuda_ledger_device(device, &index) ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) {
        return -1;
    }
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_OFFSET + index, .l_len = 1};
    if (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

void corral_cuda_node_unlock(int lock)
{
    if (lock >= 0) {
        close(lock);
    }
}
