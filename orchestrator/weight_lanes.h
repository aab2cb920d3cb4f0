/* From weights.transport to the lanes that both ends list. */
#ifndef CORRAL_ORCHESTRATOR_WEIGHT_LANES_H
#define CORRAL_ORCHESTRATOR_WEIGHT_LANES_H

#include "orchestrator/job/job.h"

#define CORRAL_WEIGHT_LANES_MAX 64

/* Between nodes, in order of preference: what the job asks for; with `auto` what this machine has of shm (only where all nodes are this machine), rdma and tcp. */
void corral_weight_lanes(const struct corral_job *job, char out[CORRAL_WEIGHT_LANES_MAX]);

#endif
