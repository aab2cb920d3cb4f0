/* From a job to what one worker program needs: the only place that knows both. */
#ifndef CORRAL_ORCHESTRATOR_WORKER_CONFIG_H
#define CORRAL_ORCHESTRATOR_WORKER_CONFIG_H

#include "orchestrator/job/job.h"
#include "orchestrator/plan/plan.h"
#include "orchestrator/run/run_folder.h"
#include "rollout/worker/rollout_worker.h"
#include "trainer-bridge/worker/trainer_worker.h"

/* Worker epochs: incarnation * this + how often the worker was started again in it. */
#define CORRAL_EPOCHS_PER_INCARNATION 65536u

/* Open the job's environment for a moment and read what it says of itself. A plug-in of the user's is opened in a process of its own, whatever env.isolation says: one that
 * crashes there is an error here. */
enum corral_status corral_job_env_spec(const struct corral_job *job, struct corral_vec_spec *out,
                                       struct corral_error *err);
void corral_plan_env_of(const struct corral_vec_spec *spec, struct corral_plan_env *out);

/* The policy's layout for the job's model and environment. */
enum corral_status corral_job_policy_layout(const struct corral_job *job, const struct corral_vec_spec *env,
                                            struct corral_policy_layout *out, struct corral_error *err);
/* How fragments are dealt out. */
void corral_job_fragment_share(const struct corral_job *job, uint32_t agents,
                               struct corral_fragment_share *out);

/* `epoch`: only the first life of an incarnation starts from the checkpoint's environments; a later one would play the same episodes again. */
enum corral_status corral_job_rollout_config(const struct corral_job *job,
                                             const struct corral_job_worker *worker, uint32_t epoch,
                                             const struct corral_launch_file *launch,
                                             const struct corral_vec_spec *env,
                                             struct corral_rollout_config *out, struct corral_error *err);
enum corral_status corral_job_trainer_config(const struct corral_job *job,
                                             const struct corral_job_worker *worker,
                                             const struct corral_launch_file *launch,
                                             const struct corral_vec_spec *env,
                                             struct corral_trainer_config *out, struct corral_error *err);

/* Set by the agent: the fences that are live around the process, for its proof records. */
#define CORRAL_WORKER_ENV_FENCES "CORRAL_FENCES"
/* "proof/trainer-0.chain", in the run folder. */
void corral_job_proof_path(uint32_t rank, char *out, size_t out_bytes);

/* True when some node of the job is not this machine, so that endpoints must be tcp://. */
bool corral_job_is_remote(const struct corral_job *job);
/* The address other nodes reach a node at; "127.0.0.1" when all are here. */
const char *corral_job_node_host(const struct corral_job *job, uint32_t node);

#endif
