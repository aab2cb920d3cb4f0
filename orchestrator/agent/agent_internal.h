/* The agent's pieces, shared by its files only. One thread, one loop; the weight receiver has its own thread. */
#ifndef CORRAL_ORCHESTRATOR_AGENT_INTERNAL_H
#define CORRAL_ORCHESTRATOR_AGENT_INTERNAL_H

#include "orchestrator/plan/plan.h"
#include "orchestrator/process.h"
#include "orchestrator/run/run_folder.h"
#include "orchestrator/worker/worker_config.h"
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
    int ledger_fd, store_fd, board_fd, collective_fd;
    struct corral_agent_worker worker[CORRAL_AGENT_WORKERS_MAX];
    uint32_t worker_count;
    uint64_t heard_ns; /* the coordinator's last message */
    uint64_t beat_ns;  /* when it last beat and looked after its workers */
    bool stopping;
    uint64_t stop_deadline_ns;
    struct corral_error failure; /* what ended the loop, CORRAL_OK otherwise */
};

/* agent_node.c: the shared mappings. */
enum corral_status corral_agent_make_node(struct corral_agent *a, struct corral_error *err);
void corral_agent_drop_node(struct corral_agent *a);

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
enum corral_status corral_agent_send_beat(struct corral_agent *a, struct corral_error *err);

#endif
