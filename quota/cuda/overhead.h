/* What the driver takes for itself: contexts, modules, limits. It does not say how much, so it is measured around the call, and charged per device as kind "overhead". */
#ifndef CORRAL_QUOTA_CUDA_OVERHEAD_H
#define CORRAL_QUOTA_CUDA_OVERHEAD_H

#include "quota/cuda/families.h"

enum corral_cuda_overhead_of {
    CORRAL_CUDA_OVERHEAD_CONTEXT, /* expected to cost what the last one did: reserved before the driver is asked */
    CORRAL_CUDA_OVERHEAD_OTHER,
};
enum corral_cuda_reading_source {
    CORRAL_CUDA_UNREAD,
    CORRAL_CUDA_READ_PROCESS, /* NVML, of this process */
    CORRAL_CUDA_READ_DEVICE, /* NVML or the driver, of everybody: only while no other process of the node measures */
};
struct corral_cuda_reading {
    enum corral_cuda_reading_source source;
    uint64_t used, accounted;
    bool managed; /* some of what is accounted for is managed memory */
};
struct corral_cuda_overhead {
    CUdevice device;
    enum corral_cuda_overhead_of of;
    const char *api;
    struct corral_cuda_reading before;
    uint64_t charged; /* before the estimate */
    uint64_t
        expected; /* OTHER: what it will take, reserved before the driver is asked and kept charged although the driver may take it later only */
    uint64_t taken; /* by the call, as far as it did not fit */
    int node_lock;
    bool measuring;
    bool ends_context;  /* and with it what was expected of its limits */
    bool can_be_undone; /* what did not fit is not only told: the caller undoes it */
};
/* False: denied. Always ended when it was begun with true. Calls of one process on one device wait for each other; OTHER ones go unmeasured instead. */
bool corral_cuda_overhead_begin(struct corral_cuda_overhead *o, CUdevice device,
                                enum corral_cuda_overhead_of of, const char *api);
/* With `expected` bytes: for calls that say how much they will take. */
bool corral_cuda_overhead_begin_expecting(struct corral_cuda_overhead *o, CUdevice device, uint64_t expected,
                                          const char *api);
/* False, when it can be undone: the call took more than there is room for. The caller undoes it, calls corral_cuda_overhead_undone() and answers CUDA_ERROR_OUT_OF_MEMORY. */
bool corral_cuda_overhead_end(struct corral_cuda_overhead *o, bool changed);
void corral_cuda_overhead_undone(const struct corral_cuda_overhead *o);

/* ---- physical.c: readings ---- */
/* Bytes that the process uses on the device, or (false) it cannot be told: no NVML, or another process namespace. */
bool corral_cuda_physical_process(CUdevice device, uint64_t *used);
bool corral_cuda_physical_device(CUdevice device, uint64_t *used);
/* A lock of the node, per device, that its owner's death releases; -1: somebody has it, or there is none. */
int corral_cuda_node_trylock(CUdevice device);
void corral_cuda_node_unlock(int lock);

#endif
