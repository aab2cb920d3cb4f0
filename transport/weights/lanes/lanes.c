#include "transport/weights/lanes/lane.h"

#include <string.h>

static const struct corral_lane_ops *const lanes[] = {
    &corral_lane_shm_ops,  &corral_lane_tcp_ops,      &corral_lane_rdma_ops,
    &corral_lane_nccl_ops, &corral_lane_cuda_ipc_ops,
};

const struct corral_lane_ops *corral_lane_ops_of(enum corral_lane_kind kind)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        if (lanes[i]->kind == kind) {
            return lanes[i];
        }
    }
    return NULL;
}

const struct corral_lane_ops *corral_lane_named(const char *name)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        if (strcmp(lanes[i]->name, name) == 0) {
            return lanes[i];
        }
    }
    return NULL;
}
