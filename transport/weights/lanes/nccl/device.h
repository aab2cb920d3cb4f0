/* A lane's use of one CUDA device: the context of the shard, or the device's primary one, and a stream of the lane's own. Internal to the nccl and cuda_ipc lanes. One thread. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_DEVICE_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_DEVICE_H

#include "transport/weights/link/shard_cuda.h"

struct corral_lane_device {
    const struct corral_cuda *cuda; /* NULL: not open */
    int ordinal;
    bool retained;
    corral_cuda_context context;
    corral_cuda_stream stream;
};

/* context NULL: the primary one. Nothing happens when it is open with the same ones already. */
enum corral_status corral_lane_device_open(struct corral_lane_device *d, int ordinal,
                                           corral_cuda_context context, struct corral_error *err);
/* Whether that would change nothing. What was made in the old context must be dropped before it changes. */
bool corral_lane_device_is(const struct corral_lane_device *d, int ordinal, corral_cuda_context context);
bool corral_lane_device_suits(const struct corral_lane_device *d, const struct corral_shard *shard);
/* Where a lane should work for this shard: its device and context; for host memory where it works already, or device 0. */
enum corral_status corral_lane_device_of(struct corral_lane_device *d, const struct corral_shard *shard,
                                         struct corral_error *err);
void corral_lane_device_close(struct corral_lane_device *d);
/* The device of this process with that UUID; -1: none is visible. */
int corral_lane_device_find(const struct corral_cuda *cuda, const struct corral_cuda_uuid *uuid);
/* For shards that are not on a device: pinned memory in the current context. */
enum corral_status corral_lane_device_pin(const struct corral_lane_device *d, uint64_t bytes, void **out,
                                          struct corral_error *err);

#endif
