#include "orchestrator/weight_lanes.h"
#include "orchestrator/worker/worker_config.h"
#include "transport/weights/lanes/lane.h"
#include <stdio.h>

void corral_weight_lanes(const struct corral_job *job, char out[CORRAL_WEIGHT_LANES_MAX])
{
    static const char *const named[] = {
        [CORRAL_WEIGHTS_SHM] = "shm", [CORRAL_WEIGHTS_TCP] = "tcp", [CORRAL_WEIGHTS_RDMA] = "rdma"};
    const struct corral_lane_options options = {.local_host = NULL};
    if (job->weights.transport != CORRAL_WEIGHTS_AUTO) {
        snprintf(out, CORRAL_WEIGHT_LANES_MAX, "%s", named[job->weights.transport]);
        return;
    }
    bool rdma = corral_lane_rdma_ops.available(&options, NULL) == CORRAL_OK;
    snprintf(out, CORRAL_WEIGHT_LANES_MAX, "%s%stcp", corral_job_is_remote(job) ? "" : "shm,",
             rdma ? "rdma," : "");
}
