#include "orchestrator/agent/gpu_reader.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NVML_LIBRARY "libnvidia-ml.so.1"
#define DEVICES_MAX 64
#define NVML_NOT_FOUND 6

/* The parts of NVML's stable C ABI that are used here; 0 is success in every version. */
typedef void *nvml_device;
struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_process {
    unsigned int pid;
    unsigned long long used_gpu_memory; /* all ones: not available */
    unsigned int gpu_instance_id, compute_instance_id;
};
struct nvml_process_sample {
    unsigned int pid;
    unsigned long long timestamp_us;
    unsigned int sm, memory, encoder, decoder; /* percent */
};
struct nvml_utilization {
    unsigned int gpu, memory; /* percent */
};
typedef int (*nvml_processes_fn)(nvml_device, unsigned int *, struct nvml_process *);

struct corral_gpu_reader {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_uuid)(const char *, nvml_device *);
    int (*memory)(nvml_device, struct nvml_memory *);
    /* may be missing */
    nvml_processes_fn compute, graphics, mps;
    int (*utilization)(nvml_device, struct nvml_utilization *);
    int (*process_utilization)(nvml_device, struct nvml_process_sample *, unsigned int *, unsigned long long);
    bool ready;
    uint32_t count;
    nvml_device device[DEVICES_MAX];
    unsigned long long seen_us[DEVICES_MAX]; /* newest sample of processes taken in */
};

static bool symbol(const struct corral_gpu_reader *r, const char *name, void *pointer_to_function)
{
    void *found = dlsym(r->library, name);
    memcpy(pointer_to_function, &found, sizeof found);
    return found != NULL;
}

enum corral_status corral_gpu_reader_open(struct corral_gpu_reader **out, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_gpu_reader_closep) struct corral_gpu_reader *r = calloc(1, sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "no room to read GPUs");
    }
    r->library = dlopen(NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!r->library) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "no NVIDIA driver: %s cannot be loaded", NVML_LIBRARY);
    }
    if (!symbol(r, "nvmlInit_v2", &r->init) || !symbol(r, "nvmlShutdown", &r->shutdown) ||
        !symbol(r, "nvmlDeviceGetHandleByUUID", &r->by_uuid) ||
        !symbol(r, "nvmlDeviceGetMemoryInfo", &r->memory)) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "%s lacks functions this program needs", NVML_LIBRARY);
    }
    symbol(r, "nvmlDeviceGetComputeRunningProcesses_v3", &r->compute);
    symbol(r, "nvmlDeviceGetGraphicsRunningProcesses_v3", &r->graphics);
    symbol(r, "nvmlDeviceGetMPSComputeRunningProcesses_v3", &r->mps);
    symbol(r, "nvmlDeviceGetUtilizationRates", &r->utilization);
    symbol(r, "nvmlDeviceGetProcessUtilization", &r->process_utilization);
    int rc = r->init();
    if (rc != 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "NVML does not start (error %d)", rc);
    }
    r->ready = true;
    *out = CORRAL_STEAL(r);
    return CORRAL_OK;
}

void corral_gpu_reader_close(struct corral_gpu_reader *r)
{
    if (!r) {
        return;
    }
    if (r->ready) {
        r->shutdown();
    }
    if (r->library) {
        dlclose(r->library);
    }
    free(r);
}

enum corral_status corral_gpu_reader_find(struct corral_gpu_reader *r, const uint8_t uuid[16],
                                          uint32_t *device, struct corral_error *err)
{
    char text[48] = "GPU-";
    size_t at = 4;
    for (uint32_t i = 0; i < 16; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%02x", dash ? "-" : "", uuid[i]);
    }
    if (r->count == DEVICES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "more than %d GPUs to read", DEVICES_MAX);
    }
    int rc = r->by_uuid(text, &r->device[r->count]);
    if (rc != 0) {
        return corral_fail(err, CORRAL_NOT_FOUND, "NVML does not know %s (error %d)", text, rc);
    }
    *device = r->count++;
    return CORRAL_OK;
}

static void add_process(struct corral_gpu_reading *out, const struct nvml_process *p)
{
    const bool known = p->used_gpu_memory != ~0ULL;
    for (uint32_t i = 0; i < out->process_count; i++) {
        if (out->process[i].pid == (pid_t)p->pid) { /* listed as compute and as graphics: the same bytes */
            if (known) {
                out->process[i].bytes = CORRAL_MAX(out->process[i].bytes, (uint64_t)p->used_gpu_memory);
                out->process[i].bytes_known = true;
            }
            return;
        }
    }
    if (out->process_count < CORRAL_GPU_PROCESSES_MAX) {
        out->process[out->process_count++] = (struct corral_gpu_process){
            .pid = (pid_t)p->pid, .bytes = known ? p->used_gpu_memory : 0, .bytes_known = known};
    }
}

static bool add_processes(struct corral_gpu_reading *out, nvml_processes_fn list, nvml_device device)
{
    struct nvml_process process[CORRAL_GPU_PROCESSES_MAX];
    unsigned int count = CORRAL_GPU_PROCESSES_MAX;
    if (!list || list(device, &count, process) != 0 || count > CORRAL_GPU_PROCESSES_MAX) {
        return false;
    }
    for (unsigned int i = 0; i < count; i++) {
        add_process(out, &process[i]);
    }
    return true;
}

void corral_gpu_reader_memory(struct corral_gpu_reader *r, uint32_t device, struct corral_gpu_reading *out)
{
    *out = (struct corral_gpu_reading){.used = 0};
    struct nvml_memory memory = {0};
    if (r->memory(r->device[device], &memory) == 0) {
        out->used = memory.used;
    }
    out->processes_known = add_processes(out, r->compute, r->device[device]);
    (void)add_processes(out, r->graphics, r->device[device]);
    (void)add_processes(out, r->mps, r->device[device]);
}

/* NVML keeps several samples of each process; the newest counts. */
static void add_sample(struct corral_gpu_busy *out, const struct nvml_process_sample *s)
{
    uint32_t i = 0;
    while (i < out->process_count && out->process[i].pid != (pid_t)s->pid) {
        i++;
    }
    if (i == CORRAL_GPU_PROCESSES_MAX || s->sm > 100) {
        return;
    }
    out->process[i].pid = (pid_t)s->pid;
    out->process[i].busy = s->sm / 100.0;
    out->process_count = CORRAL_MAX(out->process_count, i + 1);
}

/* "Not found" is NVML's word for no samples since then. */
static bool answered(int rc, unsigned int *count)
{
    if (rc == NVML_NOT_FOUND) {
        *count = 0;
    }
    return rc == 0 || rc == NVML_NOT_FOUND;
}

void corral_gpu_reader_busy(struct corral_gpu_reader *r, uint32_t device, struct corral_gpu_busy *out)
{
    *out = (struct corral_gpu_busy){.device = 0};
    struct nvml_utilization rates = {0};
    if (r->utilization && r->utilization(r->device[device], &rates) == 0 && rates.gpu <= 100) {
        out->device = rates.gpu / 100.0;
        out->device_known = true;
    }
    struct nvml_process_sample sample[CORRAL_GPU_PROCESSES_MAX];
    unsigned int count = CORRAL_GPU_PROCESSES_MAX;
    if (!r->process_utilization ||
        !answered(r->process_utilization(r->device[device], sample, &count, r->seen_us[device]), &count) ||
        count > CORRAL_GPU_PROCESSES_MAX) {
        return;
    }
    out->processes_known = true;
    for (unsigned int i = 0; i < count; i++) {
        add_sample(out, &sample[i]);
        r->seen_us[device] = CORRAL_MAX(r->seen_us[device], sample[i].timestamp_us);
    }
}
