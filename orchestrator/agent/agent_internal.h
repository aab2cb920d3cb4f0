/* The agent's pieces, shared by its files only. One thread, one loop; the weight receiver has its own thread.
 *
 *   agent.c          set-up, loop, messages      agent_node.c     the shared mappings       agent_workers.c  worker processes
 *   agent_fences.c   groups, environments        agent_tenants.c  tenants                   agent_report.c   messages to the coordinator
 *   agent_weights.c  how weights stand, lanes measured    children.c       what a killed process leaves behind
 */
#ifndef CORRAL_ORCHESTRATOR_AGENT_INTERNAL_H
#define CORRAL_ORCHESTRATOR_AGENT_INTERNAL_H

#include "orchestrator/plan/plan.h"
#include "orchestrator/process.h"
#include "orchestrator/run/run_folder.h"
#include "orchestrator/worker/worker_config.h"
#include "quota/fences/fence.h"
#include "quota/shared.h"
#include "transport/board/board.h"
#include "transport/bus/bus.h"
#include "transport/weights/publisher.h"

#define CORRAL_AGENT_WORKERS_MAX CORRAL_BOARD_SLOTS_MAX

/* A worker of this node. Its life: started → (exits, reported) → started again when the coordinator says spawn. */
struct corral_agent_worker {
    const struct corral_plan_worker *plan;
    struct corral_process process; /* pid 0: not running */
    struct corral_loop_watch *watch;
    struct corral_agent *agent;
    uint32_t epoch, slot;
    uint32_t next_epoch;   /* to be started as, once the life that still runs has ended; 0: none */
    int vault_fd;          /* trainers; -1 */
    char kill_reason[160]; /* why the agent or coordinator killed it, told in place of "killed by SIGKILL" */
};

/* A tenant of this node:
 *   state      event                                         next
 *   down       the node starts                               running
 *   running    ended, to be started again                    waiting
 *   running    ended, restart policy or limit says no        down
 *   waiting    its time has come                             running
 *   waiting    its time has come, and it cannot be started   waiting, or down at the limit
 */
enum corral_tenant_state { CORRAL_TENANT_DOWN, CORRAL_TENANT_RUNNING, CORRAL_TENANT_WAITING };
#define CORRAL_TENANT_HISTORY 32

struct corral_agent_tenant {
    const struct corral_job_partition *partition;
    struct corral_agent *agent;
    struct corral_process process; /* its supervisor (agent/tenant_main.h) */
    struct corral_loop_watch *watch;
    enum corral_tenant_state state;
    const struct corral_plan_tenant *plan;
    uint32_t restarts;
    uint64_t retry_at_ns, restarted_ns[CORRAL_TENANT_HISTORY];
    int64_t exit_code;
    char reason[400]; /* of its last end */
    /* host devices: what the agent charges for it, per device of the partition */
    uint32_t charge_count;
    struct corral_quota_charge charge[CORRAL_LEDGER_DEVICES_MAX];
    uint32_t
        holder[CORRAL_LEDGER_DEVICES_MAX]; /* the agent's own, CORRAL_LEDGER_NONE until the first start */
};

/* What a process of the agent is started with beside its arguments. */
#define CORRAL_AGENT_ENV_MAX 48
struct corral_agent_surroundings {
    uint32_t env_count; /* above CORRAL_AGENT_ENV_MAX: something did not fit */
    const char *env[CORRAL_AGENT_ENV_MAX];
    char text[16384]; /* the strings */
    size_t text_used;
    struct corral_fence_entry fences;
    cpu_set_t cpus;
    bool pinned;
};

struct corral_agent {
    struct corral_job *job;
    struct corral_plan *plan;
    struct corral_launch_file launch;
    struct corral_vec_spec env;
    uint32_t node;
    struct corral_loop *loop;
    void *zmq;
    struct corral_bus_client *bus;
    struct corral_loop_watch *bus_watch;
    struct corral_mpack_writer *out;
    struct corral_quota *quota;
    struct corral_board *board;
    struct corral_weight_store *store;
    struct corral_weight_receiver *receiver; /* only with several nodes */
    char weights_endpoint[256];
    struct corral_agent_probe *probe; /* agent_weights.c: lanes being measured, or NULL */
    int ledger_fd, store_fd, board_fd, collective_fd;
    int gpu_claim[CORRAL_JOB_NODE_DEVICES_MAX]; /* gpu_claim.h; by slot, -1: none */
    struct corral_agent_worker worker[CORRAL_AGENT_WORKERS_MAX];
    uint32_t worker_count;
    struct corral_agent_tenant tenant[CORRAL_JOB_PARTITIONS_MAX];
    uint32_t tenant_count;
    struct corral_inventory *machine;
    struct corral_fences *fences;
    uint32_t fence_group[CORRAL_JOB_PARTITIONS_MAX]
                        [CORRAL_JOB_NODE_DEVICES_MAX]; /* CORRAL_LEDGER_NONE: none */
    struct corral_fence_report fence_report;
    char fences_live[256]; /* for proof records */
    char folder[CORRAL_JOB_TEXT_MAX], interposer[CORRAL_JOB_TEXT_MAX];
    uint64_t heard_ns; /* the coordinator's last message */
    uint64_t beat_ns;  /* when it last beat */
    uint64_t check_ns; /* when it last looked whether workers hang */
    uint64_t back_ns;  /* the first such look after a pause of its own; 0: never */
    bool stopping;
    uint64_t stop_deadline_ns;
    struct corral_agent_observer *observer; /* agent_observe.h */
    struct corral_agent_limits *limits;     /* agent_quota.c: a change of limits under way, or NULL */
    struct corral_error failure;            /* what ended the loop, CORRAL_OK otherwise */
};

/* agent_node.c: the shared mappings. */
enum corral_status corral_agent_make_node(struct corral_agent *a, struct corral_error *err);
void corral_agent_drop_node(struct corral_agent *a);

/* agent.c: end the loop once it is stopping and nobody runs any more. */
void corral_agent_stop_when_done(struct corral_agent *a);

/* agent_fences.c, in three parts, so that nobody waits for the kernel. First the run's groups and a process that tries them: the kernel's first move of a process into a group takes it
 * longer than the agent takes to read its job. Then a group per (partition, device). Last what came of it; fails when a required fence is not live. */
enum corral_status corral_agent_begin_fences(struct corral_agent *a, const char *node,
                                             struct corral_error *err);
enum corral_status corral_agent_make_fences(struct corral_agent *a, struct corral_error *err);
enum corral_status corral_agent_check_fences(struct corral_agent *a, struct corral_error *err);
void corral_agent_close_fences(struct corral_agent *a);
/* UUIDs of the node's GPUs into the ledger; refuses a GPU that has less memory than the job says, or is not there. */
enum corral_status corral_agent_check_gpus(struct corral_agent *a, struct corral_ledger *ledger,
                                           struct corral_error *err);
/* For a process of the partition on these slots of the node; `rank` of a trainer, or -1. `log`: of the process, for denials. */
enum corral_status corral_agent_surround(const struct corral_agent *a, uint32_t partition,
                                         const uint32_t *slots, uint32_t slot_count, int64_t rank,
                                         const char *log, struct corral_agent_surroundings *out,
                                         struct corral_error *err);
void corral_agent_add_env(struct corral_agent_surroundings *s, const char *fmt, ...) CORRAL_PRINTF(2, 3);
void corral_agent_apply_surroundings(const struct corral_agent_surroundings *s,
                                     struct corral_process_spec *spec);

/* agent_tenants.c */
enum corral_status corral_agent_start_tenants(struct corral_agent *a, struct corral_error *err);
void corral_agent_tenants_tick(struct corral_agent *a);
/* Ask them to end; corral_agent_tenants_running() until they have. `now`: without grace. */
void corral_agent_stop_tenants(struct corral_agent *a, bool now);
uint32_t corral_agent_tenants_running(const struct corral_agent *a);
void corral_agent_close_tenants(struct corral_agent *a);
const char *corral_tenant_state_name(enum corral_tenant_state state);

/* agent_workers.c: processes. */
enum corral_status corral_agent_start_worker(struct corral_agent *a, struct corral_agent_worker *w,
                                             uint32_t epoch, struct corral_error *err);
struct corral_agent_worker *corral_agent_find_worker(struct corral_agent *a, const char *name);
void corral_agent_kill_worker(struct corral_agent_worker *w, const char *reason);
/* Kill the ones that hang: in an environment step beyond env.step_timeout, anywhere else without a sign of life for fault.dead_after (ten times as long where a worker cannot
 * give one). */
void corral_agent_check_hangs(struct corral_agent *a);
uint32_t corral_agent_running(const struct corral_agent *a);

/* agent_report.c: messages to the coordinator. */
enum corral_status corral_agent_send_node(struct corral_agent *a, struct corral_error *err);
enum corral_status corral_agent_send_exited(struct corral_agent *a, const struct corral_agent_worker *w,
                                            int code, const char *reason, uint64_t ran_ms,
                                            struct corral_error *err);
enum corral_status corral_agent_send_tenant(struct corral_agent *a, const struct corral_agent_tenant *t,
                                            const char *event, struct corral_error *err);
enum corral_status corral_agent_send_beat(struct corral_agent *a, struct corral_error *err);
enum corral_status corral_agent_send(struct corral_agent *a,
                                     struct corral_error *err); /* what is in a->out */

/* agent_weights.c: `weights_*` of the coordinator; the beat's part about weights. */
void corral_agent_write_weights(struct corral_agent *a);
enum corral_status corral_agent_weights_message(struct corral_agent *a, const char *type,
                                                const struct corral_mpack_node *message,
                                                struct corral_error *err);
void corral_agent_weights_close(struct corral_agent *a);

#endif
