#include "orchestrator/weight_lanes.h"
#include "orchestrator/worker/worker_config.h"
#include "transport/weights/lanes/lane.h"
#include <stdio.h>
#include <string.h>

/* nccl and cuda_ipc are refused with the job. */
static const char *const named[] = {
    [CORRAL_WEIGHTS_SHM] = "shm", [CORRAL_WEIGHTS_TCP] = "tcp", [CORRAL_WEIGHTS_RDMA] = "rdma"};

enum corral_status corral_weight_lanes_check(const struct corral_job *job, struct corral_error *err)
{
    const struct corral_lane_options here = {.local_host = NULL};
    struct corral_error why = {0};
    bool local = false;
    for (uint32_t i = 0; i < job->node_count; i++) {
        local |= strcmp(job->node[i].address, "local") == 0;
    }
    if (!local || job->node_count == 1 || job->weights.transport == CORRAL_WEIGHTS_AUTO) {
        return CORRAL_OK;
    }
    const char *name = named[job->weights.transport];
    if (corral_lane_named(name)->available(&here, &why) == CORRAL_OK) {
        return CORRAL_OK;
    }
    return corral_fail(err, CORRAL_UNSUPPORTED,
                       "`weights.transport` = \"%s\" cannot be used here: %s; write \"auto\" or \"tcp\"",
                       name, why.text);
}

void corral_weight_lanes(const struct corral_job *job, char out[CORRAL_WEIGHT_LANES_MAX])
{
    const struct corral_lane_options options = {.local_host = NULL};
    if (job->weights.transport != CORRAL_WEIGHTS_AUTO) {
        snprintf(out, CORRAL_WEIGHT_LANES_MAX, "%s", named[job->weights.transport]);
        return;
    }
    bool rdma = corral_lane_rdma_ops.available(&options, NULL) == CORRAL_OK;
    snprintf(out, CORRAL_WEIGHT_LANES_MAX, "%s%stcp", corral_job_is_remote(job) ? "" : "shm,",
             rdma ? "rdma," : "");
}
