/* The coordinator: one per run, in the `rlctl launch` or `rlctl resume` process. It starts the agents, brings every worker up (all or nothing), forms the trainers into a group, hands out
 * addresses, version leases and evaluations, restarts what dies, decides when the run is over, and keeps journal, checkpoints, status and metrics. One thread,
 * one loop. The current directory must be the run folder.
 */
#ifndef CORRAL_ORCHESTRATOR_COORDINATOR_H
#define CORRAL_ORCHESTRATOR_COORDINATOR_H

#include "orchestrator/journal/journal.h"
#include "orchestrator/observed.h"
#include "orchestrator/plan/plan.h"
#include "orchestrator/run/run_folder.h"
#include "rollout/env_host/vec.h"

enum corral_outcome {
    CORRAL_OUTCOME_NONE,
    CORRAL_OUTCOME_LEARNED,
    CORRAL_OUTCOME_DONE,
    CORRAL_OUTCOME_STOPPED,
    CORRAL_OUTCOME_FAILED
};
const char *corral_outcome_name(enum corral_outcome o); /* "learned", "done", … */

struct corral_evaluation {
    uint64_t version;
    uint32_t episodes;
    double mean, std, min, max, length_mean;
    uint64_t at_ns; /* since the run started */
};

/* Where one partition's memory stands, over all its devices. */
struct corral_partition_memory {
    uint64_t used_max, peak_max, floor, ceiling; /* bytes per device; used and peak of the fullest device */
    uint64_t slack_min; /* smallest part of an unused floor that was still physically there */
    uint64_t denied;
};

/* One tenant, as its agent last told. */
struct corral_tenant_status {
    uint32_t partition;
    char state[16];    /* "starting", "running", "waiting", "down" */
    int64_t pid, code; /* exit code of its last life, or -signal */
    uint64_t restarts;
    char reason[400]; /* of its last end */
};

/* The trainers' proof chains: counted from their reports while the run goes on, from the chains themselves at its end. */
struct corral_run_proof {
    uint64_t steps, unproven,
        refused;     /* steps: of the run, each on every rank; unproven: records; refused: refusals */
    uint64_t proven; /* records reported so far */
    uint64_t own_peak, own_ceiling,
        slack_min;   /* bytes, of the trainers' role on one device; slack_min UINT64_MAX: no step */
    char doubt[256]; /* why the first unproven step is */
    bool verified;   /* the chains were read to their ends */
    char chain[400]; /* verified: "ok", or what is wrong; else why they were not read */
};

/* The run as it stands: what progress lines, status.json and the summary show. */
struct corral_run_status {
    const char *phase; /* "starting", "running", "finishing", "over" */
    enum corral_outcome outcome;
    char reason[400];
    uint64_t elapsed_ns, first_step_ns, last_step_ns,
        learned_ns; /* since the coordinator started; 0 = not yet */
    uint64_t
        first_env_steps; /* trained on when first_step_ns was taken (a resumed run does not start at zero) */
    uint64_t step, version, env_steps, transitions, episodes, versions_pushed;
    double steps_per_s; /* environment steps, over the last second or so */
    uint32_t window_count;
    double window_return, window_length; /* of the last 100 training episodes */
    double first_return;                 /* mean of the first 100 training episodes */
    double entropy, kl, lr, wait_ms, train_ms, publish_ms;
    double staleness_mean; /* over all steps */
    uint64_t staleness_max, dropped_stale;
    uint32_t evaluations;
    struct corral_evaluation first_eval, last_eval, best_eval;
    uint32_t restarts;
    char last_fault[480]; /* "rollout-0: killed by SIGKILL" */
    uint64_t void_episodes, duplicates, resent;
    uint64_t violations; /* times a node's ledger was found inconsistent with invariant 1 */
    uint64_t checkpoints;
    struct corral_run_proof proof;
    struct corral_partition_memory memory[CORRAL_JOB_PARTITIONS_MAX]; /* in job order */
    uint32_t group_count;
    struct corral_device_group group[CORRAL_GROUPS_MAX]; /* how busy the devices are */
    uint32_t tenant_count;
    struct corral_tenant_status tenant[CORRAL_JOB_PARTITIONS_MAX];
    char fences[512];  /* "ledger ok · affinity ok"; where the nodes differ, one part for each */
    char weights[512]; /* which lanes weights take between nodes, and why; "": one node */
    double progress;   /* 0..1 towards the nearest limit, NaN when there is none */
    uint64_t eta_ns;   /* UINT64_MAX: unknown */
};

struct corral_coordinator_config {
    const struct corral_job *job;
    const struct corral_plan *plan;
    const struct corral_vec_spec *env;
    struct corral_launch_file launch; /* endpoint and keys are filled in by the coordinator */
    struct corral_journal
        *journal; /* of a run that goes on; NULL: a new one, journal.db, is made while the agents come up */
    uint64_t base_step;     /* gradient steps of the checkpoint the run goes on from; 0: it begins */
    uint64_t version_floor; /* no version up to this may be published again */
    uint64_t started_ns;    /* monotonic, when the command was typed */
    /* Called a few times a second and at the end; may be NULL. */
    void (*progress)(void *ctx, const struct corral_run_status *status);
    /* Called once when every worker is up. */
    void (*started)(void *ctx, const struct corral_run_status *status);
    void *ctx;
};

/* Run to the end. CORRAL_OK when the run ended by its own rules or was stopped; else what failed. *status holds the last state either way. */
enum corral_status corral_coordinator_run(const struct corral_coordinator_config *config,
                                          struct corral_run_status *status, struct corral_error *err);

#endif
