/* The thread that makes all NCCL calls of one end of one link, so that none of them can hang its owner. Internal to the nccl lane.
 *
 * It owns the communicator, its stream, the staging (`window` slots on the device, and as many pinned ones when the shard is in host memory) and the events. The owner posts transfers, which run in
 * that order, and reads how many are done. When the owner stops it, the thread aborts the communicator and frees everything; a thread that does not come back in time is abandoned with all it owns,
 * and frees it if it ever returns.
 * The owner's side is one thread.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_WORKER_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_WORKER_H

#include "transport/weights/lanes/nccl/library.h"
#include "transport/weights/lanes/support.h"

/* Threads that did not come back, in this process. At the limit the lane is not available any more. */
#define NCCL_ABANDONED_MAX 4
uint32_t nccl_abandoned(void);

struct nccl_worker;
struct nccl_worker_options {
    int rank; /* 0 receives and makes the id, 1 sends */
    uint32_t window;
    uint64_t slot_bytes;
    uint64_t open_timeout_ns, stop_timeout_ns;
};
struct nccl_transfer {
    uint32_t slot;
    uint64_t address, bytes;
    corral_cuda_event after; /* wait for it first; NULL: nothing */
};
/* What the owner may use once the communicator is there. */
struct nccl_memory {
    uint64_t staging; /* slot i at i * slot_bytes */
    uint8_t *pinned;  /* the same on the host; NULL: not asked for */
    uint64_t bytes;
};

enum corral_status nccl_worker_start(struct nccl_worker **out, const struct nccl_worker_options *options,
                                     struct corral_error *err);
/* Rank 0: the id of the communicator to be. Waits up to the open timeout. */
enum corral_status nccl_worker_id(struct nccl_worker *w, struct nccl_id *id, struct corral_error *err);
/* Begin to make the communicator on this device and context. Does not wait. */
void nccl_worker_join(struct nccl_worker *w, const struct nccl_id *id, int device,
                      corral_cuda_context context, bool pin);
/* CORRAL_AGAIN: the communicator is in the making. CORRAL_OK, and *memory: it is there. Otherwise why it failed, now and for ever. */
enum corral_status nccl_worker_ready(struct nccl_worker *w, struct nccl_memory *memory,
                                     struct corral_error *err);
/* At most `window` may be posted and not done. */
void nccl_worker_post(struct nccl_worker *w, const struct nccl_transfer *transfer);
/* How many have been done since the start. */
enum corral_status nccl_worker_done(struct nccl_worker *w, uint64_t *done, struct corral_error *err);
int nccl_worker_fd(const struct nccl_worker *w); /* readable when something has changed; an eventfd */
/* NULL is fine. True: it was abandoned, and NCCL may still write to memory that was posted. */
bool nccl_worker_stop(struct nccl_worker *w);

#endif
