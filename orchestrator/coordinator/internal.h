/* The coordinator's state, shared by its files only.
 *
 *   coordinator.c  set-up, loop, signals, the life of the run        nodes.c        agents: start, login, beats
 *   workers.c      lives of workers, restarts                        trainers.c     the trainer group, leases, weight targets
 *   training.c     steps, evaluations, when to stop                  checkpoints.c  completing and pruning checkpoints
 *   report.c       status.json, metrics.jsonl                        http.c         the Prometheus endpoint
 *   proof.c        what the trainers report of their proof chains, and the check at the end
 *   devices.c      what agents see of their devices                  quota.c        rlctl quota
 *   tenants.c      tenants and fences, as the agents tell of them
 */
#ifndef CORRAL_ORCHESTRATOR_COORDINATOR_INTERNAL_H
#define CORRAL_ORCHESTRATOR_COORDINATOR_INTERNAL_H

#include "base/clock.h"
#include "base/json.h"
#include "orchestrator/coordinator/coordinator.h"
#include "orchestrator/observed.h"
#include "orchestrator/process.h"
#include "orchestrator/worker/worker_config.h"
#include "transport/board/board.h"
#include "transport/bus/bus.h"

#define CORRAL_VERSION_LEASE 4096u
#define CORRAL_EPISODE_WINDOW 100u
#define CORRAL_RESTART_HISTORY 32u

/* The life of the run. Only corral_run_enter() changes it. */
enum run_phase { RUN_STARTING, RUN_RUNNING, RUN_FINISHING, RUN_OVER, RUN_PHASES };

/* The life of a worker:
 *   state      event                 next
 *   starting   ready                 ready
 *   ready      start or group sent   running
 *   any        exited                backoff (running job) or gone (finishing)
 *   backoff    its time has come     starting
 */
enum worker_state {
    WORKER_STARTING,
    WORKER_READY,
    WORKER_RUNNING,
    WORKER_BACKOFF,
    WORKER_GONE,
    WORKER_STATES
};

struct coordinator_worker {
    struct corral_job_worker job;
    enum worker_state state;
    uint32_t epoch;
    struct corral_bus_peer *peer; /* NULL until it has said hello */
    struct corral_bus_peer
        *late; /* after its exit, until its successor's hello: what it sent before may still arrive */
    uint64_t state_since_ns, retry_at_ns;
    uint32_t generation; /* trainers: of the group this life belongs to */
    int64_t exit_code;   /* of its last life */
    bool final_said;     /* trainers: its last checkpoint has been heard of */
    uint32_t restarts;   /* in its life */
    uint64_t restarted_ns[CORRAL_RESTART_HISTORY];
    char failure[400];    /* what it said of itself before it ended */
    char endpoint[256];   /* trainers: where trajectories go */
    char collective[256]; /* trainer rank 0 */
    bool saved;           /* trainers: the vault holds a state */
    uint64_t saved_step, saved_version;
    struct corral_journal_proof_head proof;        /* trainers: head of its chain, as last reported */
    struct corral_journal_proof_head proof_synced; /* and the last that was synced before it was told */
    bool evaluating;                               /* eval workers */
    /* from the agent's beats */
    char activity[32];
    uint64_t activity_ms;
    int64_t pid;
    uint64_t counter[CORRAL_BOARD_COUNTERS];
};

struct coordinator_node {
    struct corral_process process; /* pid 0 for agents that join from elsewhere */
    struct corral_loop_watch *watch;
    struct corral_bus_peer *peer;
    struct corral_coordinator *owner;
    uint32_t index;
    bool joined, stopped;
    uint64_t heard_ns; /* its last message */
    char weights_endpoint[256];
    char fences[512];                                                 /* its fence report, for people */
    struct corral_partition_memory memory[CORRAL_JOB_PARTITIONS_MAX]; /* as of its last beat */
};

#define CORRAL_WORKER_WORDS (CORRAL_JOB_WORKERS_MAX / 64)

struct pending_checkpoint {
    bool active;
    uint32_t
        generation; /* of the trainer group whose state it is: states of two groups are never mixed, whatever their step */
    uint32_t number; /* the group's ranks count their checkpoints together */
    uint64_t step, version, env_steps, deadline_ns;
    char path[64]; /* made from step and number, never taken from a message */
    uint64_t answered[CORRAL_WORKER_WORDS], failed[CORRAL_WORKER_WORDS]; /* trainers, by rank */
    uint64_t asked[CORRAL_WORKER_WORDS]; /* rollout workers that still owe their environments */
    uint32_t snapshots;
    char reason[400];
};

struct corral_coordinator {
    const struct corral_coordinator_config *config;
    const struct corral_job *job;
    struct corral_launch_file launch;
    struct corral_journal *journal;
    struct corral_loop *loop;
    void *zmq;
    struct corral_bus_server *bus;
    struct corral_mpack_writer *out;
    enum run_phase phase;
    uint64_t phase_since_ns;
    struct coordinator_node node[CORRAL_JOB_NODES_MAX];
    struct coordinator_worker *worker;
    uint32_t worker_count, trainers, rollouts, evals;
    /* trainer group */
    uint32_t generation;
    bool grouped;    /* the current generation has been told to run */
    bool regrouping; /* a trainer died: the others are being taken down */
    bool standing;   /* the current group has restored its state: it can be asked for a checkpoint */
    uint64_t version_limit;
    /* training */
    struct corral_run_status status;
    double staleness_sum;
    uint64_t staleness_steps;
    float window[CORRAL_EPISODE_WINDOW][2];
    uint32_t window_next;
    double first_sum;
    uint64_t first_count;
    uint64_t eval_id, eval_last_version;
    uint64_t rate_ns, rate_env_steps;
    struct pending_checkpoint checkpoint;
    uint64_t checkpoint_step; /* the newest written in this incarnation; 0: none */
    bool final_checkpoint_wanted;
    uint64_t
        finish_by_ns; /* not 0: the run ends as soon as the trainers are a group again and can write its checkpoint, or now */
    uint64_t ticked_ns;
    /* reports */
    FILE *metrics;
    uint64_t metrics_dropped;
    struct corral_metrics *registry;
    struct evhttp *http;
    char http_endpoint[128];
    struct coordinator_quota *quota;
    struct coordinator_devices *devices;
    struct coordinator_weights *weights;
    struct corral_error failure;
    uint32_t interrupts;
};

static inline uint64_t corral_coordinator_now(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

/* coordinator.c */
const char *corral_run_phase_name(enum run_phase phase);
void corral_run_enter(struct corral_coordinator *c, enum run_phase next, const char *why);
/* Start finishing with this outcome; the first one counts. */
void corral_run_finish(struct corral_coordinator *c, enum corral_outcome outcome, bool checkpoint,
                       const char *fmt, ...) CORRAL_PRINTF(4, 5);
void corral_coordinator_event(struct corral_coordinator *c, const char *kind, const char *subject,
                              const char *fmt, ...) CORRAL_PRINTF(4, 5);
/* Send c->out and reset it; a peer that is gone is not an error here: its exit is reported by its agent. */
void corral_coordinator_send(struct corral_coordinator *c, struct corral_bus_peer *peer);

/* nodes.c */
enum corral_status corral_nodes_start(struct corral_coordinator *c, struct corral_error *err);
enum corral_status corral_node_message(struct corral_coordinator *c, struct corral_bus_peer *peer,
                                       const char *type, const struct corral_mpack_node *m,
                                       struct corral_error *err);
void corral_nodes_stop(struct corral_coordinator *c, uint64_t grace_ms);
bool corral_nodes_stopped(const struct corral_coordinator *c);
void corral_nodes_kill(struct corral_coordinator *c);
bool corral_nodes_joined(const struct corral_coordinator *c);
void corral_node_joined(struct corral_coordinator *c, struct corral_bus_peer *peer);
/* End the run when a node has been silent for fault.dead_after; `late_ns`: how long the coordinator itself has just been held up. */
void corral_nodes_tick(struct corral_coordinator *c, uint64_t late_ns);

/* workers.c */
enum corral_status corral_workers_open(struct corral_coordinator *c, struct corral_error *err);
struct coordinator_worker *corral_workers_find(struct corral_coordinator *c, const char *name);
void corral_worker_enter(struct corral_coordinator *c, struct coordinator_worker *w, enum worker_state next,
                         const char *why);
void corral_worker_joined(struct corral_coordinator *c, struct corral_bus_peer *peer);
enum corral_status corral_worker_message(struct corral_coordinator *c, struct corral_bus_peer *peer,
                                         const char *type, const struct corral_mpack_node *m,
                                         struct corral_error *err);
enum corral_status corral_worker_exited(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                        struct corral_error *err);
void corral_worker_kill(struct corral_coordinator *c, struct coordinator_worker *w, const char *reason);
void corral_workers_tick(struct corral_coordinator *c);
bool corral_workers_all(const struct corral_coordinator *c, enum corral_role role,
                        enum worker_state at_least);
void corral_workers_tell_all(struct corral_coordinator *c, enum corral_role role, const char *type);
void corral_worker_send_peers(struct corral_coordinator *c, struct coordinator_worker *w, const char *type);
/* Bring the run from starting to running when everything is there. */
void corral_workers_advance(struct corral_coordinator *c);

/* tenants.c */
void corral_tenants_open(struct corral_coordinator *c);
enum corral_status corral_tenant_message(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                         struct corral_error *err);
enum corral_status corral_tenant_beat(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                      struct corral_error *err);
json_t *corral_tenants_json(const struct corral_coordinator *c);
json_t *corral_fences_json(const struct corral_coordinator *c);

/* trainers.c */
enum corral_status corral_trainer_ready(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err);
void corral_trainers_advance(struct corral_coordinator *c);
void corral_trainers_regroup(struct corral_coordinator *c, const struct coordinator_worker *dead);
enum corral_status corral_trainer_lease(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err);

/* training.c */
enum corral_status corral_training_step(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err);
/* Rank 0 has restored its state: where the run stands before the next step. */
enum corral_status corral_training_stands(struct corral_coordinator *c, struct coordinator_worker *w,
                                          const struct corral_mpack_node *m, struct corral_error *err);
enum corral_status corral_training_evaluated(struct corral_coordinator *c, struct coordinator_worker *w,
                                             const struct corral_mpack_node *m, struct corral_error *err);
void corral_training_dispatch_eval(struct corral_coordinator *c);
void corral_training_tick(struct corral_coordinator *c);

/* checkpoints.c */
void corral_checkpoint_clean(void);
enum corral_status corral_checkpoint_written(struct corral_coordinator *c, struct coordinator_worker *w,
                                             const struct corral_mpack_node *m, struct corral_error *err);
enum corral_status corral_checkpoint_snapshotted(struct corral_coordinator *c, struct coordinator_worker *w,
                                                 const struct corral_mpack_node *m, struct corral_error *err);
void corral_checkpoint_tick(struct corral_coordinator *c);
/* A trainer has ended: what it has not written yet will not come, and for environments there is no time left. */
void corral_checkpoint_trainer_lost(struct corral_coordinator *c);

/* proof.c */
enum corral_status corral_proof_stepped(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err);
/* The head in a message that was sent after the chain had been synced: "checkpointed", "proof". */
enum corral_status corral_proof_synced(struct corral_coordinator *c, struct coordinator_worker *w,
                                       const struct corral_mpack_node *m, struct corral_error *err);
enum corral_status corral_proof_note(struct corral_coordinator *c, struct corral_error *err);
json_t *corral_proof_heads_json(const struct corral_coordinator *c); /* for a step's line */
json_t *corral_proof_json(const struct corral_coordinator *c);       /* for status.json */
/* The trainers have ended: verify what is on this machine, note where each chain ends. */
void corral_proof_finish(struct corral_coordinator *c);

/* report.c */
enum corral_status corral_report_open(struct corral_coordinator *c, struct corral_error *err);
void corral_report_line(struct corral_coordinator *c, json_t *line); /* takes the reference */
void corral_report_status(struct corral_coordinator *c);
void corral_report_close(struct corral_coordinator *c);

/* quota.c */
enum corral_status corral_quota_desk_open(struct corral_coordinator *c, struct corral_error *err);
void corral_quota_desk_close(struct corral_coordinator *c);
/* In force now, on each device of the partition. */
uint64_t corral_quota_desk_ceiling(const struct corral_coordinator *c, uint32_t partition);
/* Peers of kind "cli": a question each. */
void corral_quota_client_joined(struct corral_coordinator *c, struct corral_bus_peer *peer);
void corral_quota_client_message(struct corral_coordinator *c, struct corral_bus_peer *peer, const char *type,
                                 const struct corral_mpack_node *m);
/* `quota_*` of an agent. */
enum corral_status corral_quota_node_message(struct corral_coordinator *c, uint32_t node, const char *type,
                                             const struct corral_mpack_node *m, struct corral_error *err);
void corral_quota_tick(struct corral_coordinator *c);

/* weights.c */
enum corral_status corral_weights_open(struct corral_coordinator *c, struct corral_error *err);
void corral_weights_close(struct corral_coordinator *c);
enum corral_status corral_weights_beat(struct corral_coordinator *c, uint32_t node,
                                       const struct corral_mpack_node *beat, struct corral_error *err);
/* In a `step` of the leading trainer. */
enum corral_status corral_weights_pushed(struct corral_coordinator *c, const struct corral_mpack_node *step,
                                         struct corral_error *err);
json_t *corral_weights_json(const struct corral_coordinator *c); /* status.json: weights */
void corral_weights_collect(struct corral_coordinator *c);       /* the Prometheus page */

/* weights_desk.c */
/* True when it is known which lanes weights take between nodes. Otherwise they are being measured, and corral_workers_advance() is called afterwards. */
bool corral_weights_chosen(struct corral_coordinator *c);
/* `weights_probed` of an agent. */
enum corral_status corral_weights_probed(struct corral_coordinator *c, uint32_t node,
                                         const struct corral_mpack_node *m, struct corral_error *err);
/* `weights_probe` of a client, which is the desk's from then on. */
void corral_weights_client(struct corral_coordinator *c, struct corral_bus_peer *peer,
                           const struct corral_mpack_node *m);
void corral_weights_client_replaced(struct corral_coordinator *c, const char *name);
void corral_weights_tick(struct corral_coordinator *c);

/* devices.c */
enum corral_status corral_devices_open(struct corral_coordinator *c, struct corral_error *err);
void corral_devices_close(struct corral_coordinator *c);
/* `observed` of an agent. */
enum corral_status corral_devices_observed(struct corral_coordinator *c, uint32_t node,
                                           const struct corral_mpack_node *m, struct corral_error *err);
json_t *corral_devices_json(const struct corral_coordinator *c);        /* status.json: devices */
json_t *corral_devices_groups_json(const struct corral_coordinator *c); /* status.json: utilisation */
void corral_devices_collect(struct corral_coordinator *c);              /* into the registry */

/* http.c */
enum corral_status corral_http_open(struct corral_coordinator *c, struct corral_error *err);
void corral_http_close(struct corral_coordinator *c);

#endif
