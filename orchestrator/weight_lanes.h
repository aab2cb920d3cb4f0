/* From weights.transport to the lanes that both ends list. */
#ifndef CORRAL_ORCHESTRATOR_WEIGHT_LANES_H
#define CORRAL_ORCHESTRATOR_WEIGHT_LANES_H

#include "orchestrator/job/job.h"

#define CORRAL_WEIGHT_LANES_MAX 64

/* Between nodes, in order of preference: what the job asks for; with `auto` what this machine has of shm (only where all nodes are this machine), rdma and tcp. */
void corral_weight_lanes(const struct corral_job *job, char out[CORRAL_WEIGHT_LANES_MAX]);

/* Before anything starts. CORRAL_UNSUPPORTED: the job asks for a lane that this machine cannot do, and a node of the job is here; the text says what is missing. */
enum corral_status corral_weight_lanes_check(const struct corral_job *job, struct corral_error *err);

#endif
