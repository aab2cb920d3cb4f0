/* The memory arithmetic of a model, as pure functions: what one device of a partition must hold. Formulas are in README.md. */
#ifndef CORRAL_ORCHESTRATOR_PLAN_MEMORY_H
#define CORRAL_ORCHESTRATOR_PLAN_MEMORY_H

#include "orchestrator/plan/plan.h"

/* Per process: driver context, library handles, allocator fragmentation. Measured figures vary from 0.4 to 0.8 GB. */
#define CORRAL_PLAN_CONTEXT_BYTES UINT64_C(600000000)
#define CORRAL_PLAN_BLAS_BYTES (UINT64_C(32) << 20)
/* Tokens of one prefill pass of an engine. */
#define CORRAL_PLAN_PREFILL_TOKENS 8192

uint64_t corral_plan_layer_params(const struct corral_job *job);
uint64_t corral_plan_params(const struct corral_job *job);             /* model.params, or from the shape */
uint64_t corral_plan_lora_params(const struct corral_job *job);        /* adapters on q k v o gate up down */
uint64_t corral_plan_kv_bytes_per_token(const struct corral_job *job); /* whole model */
uint64_t corral_plan_activation_bytes(
    const struct corral_job *job); /* one token in one layer, everything backward needs */
uint32_t corral_plan_state_bytes_per_param(
    const struct corral_job *job); /* full training: weights, gradients, master, moments */

/* Fill the items of a trainer or engine of a transformer; `devices` trainers share the state of full training. */
enum corral_status corral_plan_trainer_memory(const struct corral_job *job, enum corral_train_method method,
                                              uint32_t devices, struct corral_plan_memory *out,
                                              struct corral_error *err);
enum corral_status corral_plan_engine_memory(const struct corral_job *job,
                                             const struct corral_job_partition *p, uint32_t tensor_parallel,
                                             struct corral_plan_memory *out, struct corral_error *err);
/* The same for an mlp in an environment that is known. */
enum corral_status corral_plan_mlp_memory(const struct corral_job *job, const struct corral_job_partition *p,
                                          const struct corral_plan_env *env, struct corral_plan_memory *out,
                                          uint64_t *params, struct corral_error *err);

#endif
