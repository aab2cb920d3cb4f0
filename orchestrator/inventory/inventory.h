/* What this machine has: GPUs through NVML (loaded at run time), CPUs through hwloc, network interfaces and host memory from /sys and /proc.
 * Finding nothing is not an error: each part says why it is empty. One flat struct, owned by the caller.
 */
#ifndef CORRAL_ORCHESTRATOR_INVENTORY_H
#define CORRAL_ORCHESTRATOR_INVENTORY_H

#include "base/error.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_INVENTORY_GPUS_MAX 64
#define CORRAL_INVENTORY_CPUS_MAX 1024
#define CORRAL_INVENTORY_NUMA_MAX 64
#define CORRAL_INVENTORY_NICS_MAX 64

struct corral_inventory_gpu {
    char name[96];
    char uuid[96];
    char pci[32];
    uint64_t memory_total, memory_used; /* bytes */
    int32_t numa;                       /* -1 = unknown */
};
struct corral_inventory_nic {
    char name[32];
    char state[16];      /* "up", "down", "unknown" */
    int64_t speed_mbits; /* -1 = unknown */
    bool rdma;           /* an InfiniBand or RoCE device */
};
struct corral_inventory_numa {
    uint32_t index; /* as the kernel numbers it */
    uint64_t memory;
    uint32_t cpus;
};

struct corral_inventory {
    char host[64];
    uint32_t gpu_count;
    struct corral_inventory_gpu gpu[CORRAL_INVENTORY_GPUS_MAX];
    char driver[80];    /* NVIDIA driver version, or "" */
    char gpu_note[160]; /* why there are no GPUs, or "" */

    uint32_t packages, cores, numa_count;
    struct corral_inventory_numa numa[CORRAL_INVENTORY_NUMA_MAX];
    /* CPUs this process may use, in topology order (the threads of a core side by side). */
    uint32_t cpu_count;
    uint32_t cpu[CORRAL_INVENTORY_CPUS_MAX];
    char cpu_note[160];

    uint64_t memory_total, memory_available; /* bytes; 0 = unknown */
    uint32_t nic_count;
    struct corral_inventory_nic nic[CORRAL_INVENTORY_NICS_MAX];
};

/* Look at the machine. Only running out of memory fails. */
enum corral_status corral_inventory_read(struct corral_inventory *out, struct corral_error *err);
/* As JSON; the caller owns the reference. NULL when memory is gone. */
json_t *corral_inventory_json(const struct corral_inventory *inventory);

/* One reading of a GPU's memory, the physical truth beside the ledger. CORRAL_UNSUPPORTED without NVML or that device. */
enum corral_status corral_inventory_gpu_memory(uint32_t index, uint64_t *total, uint64_t *used,
                                               struct corral_error *err);

#endif
