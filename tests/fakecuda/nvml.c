/* libnvidia-ml.so.1 over the same state: what nvidia-smi would read. CUDA_VISIBLE_DEVICES does not concern it. */
#include "quota/cuda/nvml_types.h"
#include "tests/fakecuda/state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT(NAME)                                                              \
    extern __attribute__((visibility("default"))) __typeof__(*(NAME##_fn)0) NAME; \
    nvmlReturn_t NAME
#define DRIVER_RESERVED ((unsigned long long)0)

/* CORRAL_FAKECUDA_NVML: an NVML that does not list processes, does not know their bytes, or counts wrong. */
static bool is_told_to(const char *what)
{
    const char *text = getenv("CORRAL_FAKECUDA_NVML");
    return text != NULL && strcmp(text, what) == 0;
}

static uint64_t as_told(uint64_t bytes)
{
    const char *text = getenv("CORRAL_FAKECUDA_NVML");
    return text != NULL && strchr(text, '%') != NULL ? bytes / 100 * strtoull(text, NULL, 10) : bytes;
}

static bool started;

static nvmlReturn_t text(char *out, unsigned length, const char *value)
{
    if (out == NULL || length <= strlen(value)) {
        return out == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_INSUFFICIENT_SIZE;
    }
    memcpy(out, value, strlen(value) + 1);
    return NVML_SUCCESS;
}

/* Handles are numbers from 1 on. */
static nvmlReturn_t index_of(nvmlDevice_t device, uint32_t *out)
{
    uintptr_t n = (uintptr_t)device;
    if (!started) {
        return NVML_ERROR_UNINITIALIZED;
    }
    if (n == 0 || n > fake_state_devices()) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *out = (uint32_t)n - 1;
    return NVML_SUCCESS;
}

static void uuid_text(uint32_t device, char out[48])
{
    uint8_t u[16];
    fake_state_uuid(device, u);
    snprintf(out, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

EXPORT(nvmlInit_v2)(void)
{
    started = fake_state_open();
    return started ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

EXPORT(nvmlShutdown)(void)
{
    return started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

extern __attribute__((visibility("default"))) __typeof__(*(nvmlErrorString_fn)0) nvmlErrorString;
const char *nvmlErrorString(nvmlReturn_t result)
{
    return result == NVML_SUCCESS                  ? "Success"
           : result == NVML_ERROR_UNINITIALIZED    ? "Uninitialized"
           : result == NVML_ERROR_INVALID_ARGUMENT ? "Invalid Argument"
           : result == NVML_ERROR_NOT_FOUND        ? "Not Found"
                                                   : "Unknown Error";
}

EXPORT(nvmlSystemGetDriverVersion)(char *version, unsigned length)
{
    return started ? text(version, length, "580.00.00") : NVML_ERROR_UNINITIALIZED;
}

EXPORT(nvmlDeviceGetCount_v2)(unsigned *count)
{
    if (!started || count == NULL) {
        return started ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_UNINITIALIZED;
    }
    *count = fake_state_devices();
    return NVML_SUCCESS;
}

EXPORT(nvmlDeviceGetHandleByIndex_v2)(unsigned index, nvmlDevice_t *device)
{
    if (!started || device == NULL || index >= fake_state_devices()) {
        return started ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_UNINITIALIZED;
    }
    *device = (nvmlDevice_t)(uintptr_t)(index + 1);
    return NVML_SUCCESS;
}

EXPORT(nvmlDeviceGetHandleByUUID)(const char *uuid, nvmlDevice_t *device)
{
    char name[48];
    for (uint32_t d = 0; started && uuid != NULL && device != NULL && d < fake_state_devices(); d++) {
        uuid_text(d, name);
        if (strcmp(name, uuid) == 0) {
            *device = (nvmlDevice_t)(uintptr_t)(d + 1);
            return NVML_SUCCESS;
        }
    }
    return started ? NVML_ERROR_NOT_FOUND : NVML_ERROR_UNINITIALIZED;
}

EXPORT(nvmlDeviceGetIndex)(nvmlDevice_t device, unsigned *index)
{
    uint32_t d = 0;
    nvmlReturn_t r = index != NULL ? index_of(device, &d) : NVML_ERROR_INVALID_ARGUMENT;
    if (r == NVML_SUCCESS) {
        *index = d;
    }
    return r;
}

EXPORT(nvmlDeviceGetName)(nvmlDevice_t device, char *name, unsigned length)
{
    uint32_t d;
    nvmlReturn_t r = index_of(device, &d);
    return r == NVML_SUCCESS ? text(name, length, "Corral Fake GPU") : r;
}

EXPORT(nvmlDeviceGetUUID)(nvmlDevice_t device, char *uuid, unsigned length)
{
    uint32_t d;
    nvmlReturn_t r = index_of(device, &d);
    if (r != NVML_SUCCESS) {
        return r;
    }
    char name[48];
    uuid_text(d, name);
    return text(uuid, length, name);
}

EXPORT(nvmlDeviceGetPciInfo_v3)(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    uint32_t d = 0;
    nvmlReturn_t r = pci != NULL ? index_of(device, &d) : NVML_ERROR_INVALID_ARGUMENT;
    if (r == NVML_SUCCESS) {
        memset(pci, 0, sizeof *pci);
        pci->bus = d + 1;
        snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", (d + 1) & 0xff);
        snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", (d + 1) & 0xff);
    }
    return r;
}

EXPORT(nvmlDeviceGetMemoryInfo)(nvmlDevice_t device, nvmlMemory_t *memory)
{
    uint32_t d = 0;
    nvmlReturn_t r = memory != NULL ? index_of(device, &d) : NVML_ERROR_INVALID_ARGUMENT;
    if (r == NVML_SUCCESS) {
        memory->total = fake_state_memory();
        memory->used = as_told(fake_state_used(d));
        memory->free = memory->total - memory->used;
    }
    return r;
}

EXPORT(nvmlDeviceGetMemoryInfo_v2)(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    nvmlMemory_t v1;
    if (memory == NULL) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (memory->version != NVML_MEMORY_V2) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    uint32_t d = 0;
    nvmlReturn_t r = index_of(device, &d);
    if (r == NVML_SUCCESS) {
        v1.total = fake_state_memory();
        v1.used = as_told(fake_state_used(d));
        *memory = (nvmlMemory_v2_t){NVML_MEMORY_V2, v1.total, DRIVER_RESERVED, v1.total - v1.used, v1.used};
    }
    return r;
}

static nvmlReturn_t processes(nvmlDevice_t device, unsigned *count, struct fake_usage *out, uint32_t *found)
{
    uint32_t d = 0;
    nvmlReturn_t r = count != NULL ? index_of(device, &d) : NVML_ERROR_INVALID_ARGUMENT;
    if (r != NVML_SUCCESS) {
        return r;
    }
    *found = is_told_to("no-process") ? 0 : fake_state_usage(d, out, FAKE_PROCESSES_MAX);
    for (uint32_t i = 0; i < *found; i++) {
        out[i].bytes = is_told_to("no-value") ? NVML_VALUE_UNKNOWN : as_told(out[i].bytes);
    }
    unsigned room = *count;
    *count = *found;
    return *found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static nvmlReturn_t running_v1(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v1_t *infos)
{
    static _Thread_local struct fake_usage usage[FAKE_PROCESSES_MAX];
    uint32_t n = 0;
    nvmlReturn_t r = processes(device, count, usage, &n);
    for (uint32_t i = 0; r == NVML_SUCCESS && infos != NULL && i < n; i++) {
        infos[i] = (nvmlProcessInfo_v1_t){(unsigned)usage[i].pid, usage[i].bytes};
    }
    return r;
}

static nvmlReturn_t running_v2(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v2_t *infos)
{
    static _Thread_local struct fake_usage usage[FAKE_PROCESSES_MAX];
    uint32_t n = 0;
    nvmlReturn_t r = processes(device, count, usage, &n);
    for (uint32_t i = 0; r == NVML_SUCCESS && infos != NULL && i < n; i++) {
        infos[i] = (nvmlProcessInfo_v2_t){(unsigned)usage[i].pid, usage[i].bytes, UINT32_MAX, UINT32_MAX};
    }
    return r;
}

EXPORT(nvmlDeviceGetComputeRunningProcesses)
(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v1_t *infos)
{
    return running_v1(device, count, infos);
}

EXPORT(nvmlDeviceGetComputeRunningProcesses_v2)
(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v2_t *infos)
{
    return running_v2(device, count, infos);
}

EXPORT(nvmlDeviceGetComputeRunningProcesses_v3)
(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v2_t *infos)
{
    return running_v2(device, count, infos);
}

EXPORT(nvmlDeviceGetUtilizationRates)(nvmlDevice_t device, nvmlUtilization_t *out)
{
    static _Thread_local struct fake_usage usage[FAKE_PROCESSES_MAX];
    uint32_t d = 0;
    nvmlReturn_t r = out != NULL ? index_of(device, &d) : NVML_ERROR_INVALID_ARGUMENT;
    if (r != NVML_SUCCESS) {
        return r;
    }
    uint32_t n = fake_state_usage(d, usage, FAKE_PROCESSES_MAX), sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += usage[i].busy;
    }
    *out = (nvmlUtilization_t){.gpu = sum > 100 ? 100 : sum,
                               .memory = (unsigned)(fake_state_used(d) * 100 / (fake_state_memory() + 1))};
    return NVML_SUCCESS;
}

EXPORT(nvmlDeviceGetProcessUtilization)
(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples, unsigned *count, unsigned long long last_seen)
{
    static _Thread_local struct fake_usage usage[FAKE_PROCESSES_MAX];
    uint32_t n = 0;
    (void)last_seen; /* always a new sample: now */
    nvmlReturn_t r = processes(device, count, usage, &n);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (uint32_t i = 0; r == NVML_SUCCESS && samples != NULL && i < n; i++) {
        samples[i] = (nvmlProcessUtilizationSample_t){.pid = (unsigned)usage[i].pid,
                                                      .timeStamp = (unsigned long long)now.tv_sec * 1000000 +
                                                                   (unsigned long long)now.tv_nsec / 1000,
                                                      .smUtil = usage[i].busy};
    }
    return r;
}
