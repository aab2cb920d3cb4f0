/* What the driver itself says of the GPUs while a run is on: memory in use, by which process, and how busy each is. NVML, loaded at run time with our own
 * declarations. One thread. A machine without NVML is CORRAL_UNSUPPORTED at opening; a reading that NVML refuses is told as not known, never as 0.
 */
#ifndef CORRAL_ORCHESTRATOR_AGENT_GPU_READER_H
#define CORRAL_ORCHESTRATOR_AGENT_GPU_READER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CORRAL_GPU_PROCESSES_MAX 256

struct corral_gpu_process {
    pid_t pid;
    uint64_t bytes;
    bool bytes_known;
};

struct corral_gpu_reading {
    uint64_t used; /* 0: not known */
    bool processes_known;
    uint32_t process_count;
    struct corral_gpu_process process[CORRAL_GPU_PROCESSES_MAX];
};

struct corral_gpu_busy {
    bool device_known, processes_known;
    double device; /* 0..1, over the driver's last sampling period */
    uint32_t process_count;
    struct {
        pid_t pid;
        double busy;
    } process[CORRAL_GPU_PROCESSES_MAX];
};

struct corral_gpu_reader;
enum corral_status corral_gpu_reader_open(struct corral_gpu_reader **out, struct corral_error *err);
void corral_gpu_reader_close(struct corral_gpu_reader *r);
/* By UUID ("GPU-…" as 16 bytes). Returns the device's number for the calls below. */
enum corral_status corral_gpu_reader_find(struct corral_gpu_reader *r, const uint8_t uuid[16],
                                          uint32_t *device, struct corral_error *err);
void corral_gpu_reader_memory(struct corral_gpu_reader *r, uint32_t device, struct corral_gpu_reading *out);
void corral_gpu_reader_busy(struct corral_gpu_reader *r, uint32_t device, struct corral_gpu_busy *out);

CORRAL_DEFINE_CLEANUP(struct corral_gpu_reader, corral_gpu_reader_close)

#endif
