/* The plan: a job laid out on its nodes, with the arithmetic that shows it fits, before anything starts.
 * Pure: reads the job and the inventory, does no I/O. A plan that cannot work is CORRAL_INVALID and the text says what would fit.
 * The plan borrows the job, which must outlive it.
 */
#ifndef CORRAL_ORCHESTRATOR_PLAN_H
#define CORRAL_ORCHESTRATOR_PLAN_H

#include "orchestrator/inventory/inventory.h"
#include "orchestrator/job/job.h"
#include "quota/ledger.h"

#define CORRAL_PLAN_CPUS_MAX 1024
#define CORRAL_PLAN_ITEMS_MAX 12

struct corral_plan_worker {
    struct corral_job_worker worker;
    char device[CORRAL_LEDGER_NAME_MAX]; /* "a:3", as in the node's ledger */
    uint32_t
        cpu_count; /* 0: not pinned (a node that is not this machine, or a machine whose CPUs are unknown) */
    uint32_t cpu_first; /* into plan->cpu */
};

/* A tenant, and where its devices' CPUs are: those of the devices together. */
struct corral_plan_tenant {
    uint32_t partition, node;
    uint32_t cpu_count[CORRAL_JOB_NODE_DEVICES_MAX],
        cpu_first[CORRAL_JOB_NODE_DEVICES_MAX]; /* by device of the partition */
};

/* One line of the memory arithmetic of a partition, per device. */
struct corral_plan_item {
    char what[64];
    uint64_t bytes;
};
struct corral_plan_memory {
    uint32_t partition;
    uint32_t item_count;
    struct corral_plan_item item[CORRAL_PLAN_ITEMS_MAX];
    uint64_t log_step;     /* trainers with a trajectory log: bytes on disk per gradient step, each trainer */
    uint64_t log_kept;     /* at most, when it is trimmed at checkpoints; 0: it grows as long as the run */
    uint64_t need;         /* sum of the items: what each device of the partition must hold */
    uint64_t kv_bytes;     /* engines: left for the KV cache, per device (0 = none) */
    uint64_t kv_per_token; /* bytes per token on one device */
    uint64_t kv_tokens;    /* tokens that fit in one engine (tensor_parallel devices) */
    uint64_t kv_sequences; /* full-context sequences of those */
    bool known; /* false: nothing to compute (tenants, an mlp whose environment has not been looked at) */
};

struct corral_plan {
    const struct corral_job *job;
    uint32_t worker_count;
    struct corral_plan_worker *worker;
    uint32_t tenant_count;
    struct corral_plan_tenant tenant[CORRAL_JOB_PARTITIONS_MAX];
    uint32_t cpu_total;
    uint32_t *cpu; /* CPU numbers, cut up by the workers */
    struct corral_plan_memory memory[CORRAL_JOB_PARTITIONS_MAX];
    bool cpus_shared;     /* fewer CPUs than devices: the sets overlap */
    int32_t machine_gpus; /* GPUs of this machine; -1 = not looked at */
    uint64_t params;      /* of the model; 0 = not known before the environment is opened */
};

/* What the environment says of itself, for the exact arithmetic of an mlp; obs_dim 0 = not known. */
struct corral_plan_env {
    uint32_t obs_dim, agents;
    struct corral_action_spec action;
};

/* `machine` is this machine; NULL = pin nothing. `env` may be NULL. */
enum corral_status corral_plan_build(const struct corral_job *job, const struct corral_inventory *machine,
                                     const struct corral_plan_env *env, struct corral_plan **out,
                                     struct corral_error *err);
void corral_plan_destroy(struct corral_plan *plan);
/* The least ceiling on a device with which the partition's workers can start: what they need there, less what trainers may spill to host memory; what is declared before a step;
 * what pre-flight takes. 0: not known. */
uint64_t corral_plan_ceiling_min(const struct corral_plan *plan, uint32_t partition);
CORRAL_DEFINE_CLEANUP(struct corral_plan, corral_plan_destroy)

/* The ledger of one node, as the agent makes it: every device of the node in slot order, every partition and tenant as a role in job order, checked (corral_ledger_check_plan).
 * *out has corral_ledger_bytes(); after a failure it is not a ledger. */
enum corral_status corral_plan_ledger(const struct corral_plan *plan, uint32_t node,
                                      struct corral_ledger *out, struct corral_error *err);

/* The table people read, and the same as JSON (the caller owns the reference; NULL when memory is gone). */
enum corral_status corral_plan_print(const struct corral_plan *plan, FILE *to, struct corral_error *err);
json_t *corral_plan_json(const struct corral_plan *plan);

#endif
