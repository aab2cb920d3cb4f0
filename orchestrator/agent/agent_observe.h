/* What the agent sees and changes of its node's quotas while the run is on; shared by agent_observe.c, agent_physical.c, agent_utilisation.c and agent_quota.c. One thread: the agent's
 * loop.
 *
 *   agent_observe.c      the timer; the `observed` message
 *   agent_physical.c     reconciler: what is physically there beside the ledger (RSS, NVML)
 *   agent_utilisation.c  how long each device and role was busy
 *   agent_quota.c        `quota_*` messages: live limits, all or nothing
 */
#ifndef CORRAL_ORCHESTRATOR_AGENT_OBSERVE_H
#define CORRAL_ORCHESTRATOR_AGENT_OBSERVE_H

#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/agent/gpu_reader.h"
#include "orchestrator/observed.h"

#define CORRAL_AGENT_NO_GPU UINT32_MAX

/* A holder's process, as the reconciler knows it. */
struct observed_holder {
    uint32_t generation; /* of the ledger's slot; another one means another process */
    int statm_fd;        /* -1: none */
};

/* A process whose CPU time counts for (device, role). */
struct observed_process {
    pid_t pid;
    uint64_t cpu_ns; /* as of the last look, children included */
};

struct corral_agent_observer {
    struct corral_agent *agent;
    struct corral_loop_watch *timer;
    struct corral_ledger *ledger; /* the newest snapshot; only the agent's */
    uint64_t started_ns, looked_ns, ticks;
    /* physical */
    struct corral_gpu_reader *gpus; /* NULL: no NVML, or no GPU device here */
    uint32_t gpu[CORRAL_LEDGER_DEVICES_MAX];
    bool foreign_told[CORRAL_LEDGER_DEVICES_MAX];
    uint64_t device_used[CORRAL_LEDGER_DEVICES_MAX];                     /* 0: not read */
    int64_t foreign[CORRAL_LEDGER_DEVICES_MAX];                          /* CORRAL_OBSERVED_UNKNOWN */
    uint64_t tenants_looked_ns, tenant_bytes[CORRAL_JOB_PARTITIONS_MAX]; /* of host devices */
    struct observed_holder holder[CORRAL_LEDGER_HOLDERS_MAX];
    /* utilisation, by device and role of the ledger; time of the whole device */
    double cpus[CORRAL_LEDGER_DEVICES_MAX]; /* of a host device; shared CPUs count in part */
    double busy_ns[CORRAL_LEDGER_DEVICES_MAX][CORRAL_LEDGER_ROLES_MAX];
    double device_busy_ns[CORRAL_LEDGER_DEVICES_MAX];
    bool busy_known[CORRAL_LEDGER_DEVICES_MAX], role_busy_known[CORRAL_LEDGER_DEVICES_MAX];
    struct observed_process process[CORRAL_AGENT_WORKERS_MAX];
    struct observed_process tenant[CORRAL_JOB_PARTITIONS_MAX];
};

/* After the node's mappings and the bus are there. */
enum corral_status corral_agent_observe_start(struct corral_agent *a, struct corral_error *err);
void corral_agent_observe_stop(struct corral_agent *a);
/* Look once more and send; also the last word of a run that is shorter than a look. */
enum corral_status corral_agent_send_observed(struct corral_agent *a, struct corral_error *err);
/* A fresh look, for a reply. */
enum corral_status corral_agent_observed(struct corral_agent *a, struct corral_observed *out,
                                         struct corral_error *err);

void corral_agent_physical_open(struct corral_agent_observer *o);
void corral_agent_physical_look(struct corral_agent_observer *o, uint64_t now);
void corral_agent_physical_close(struct corral_agent_observer *o);

void corral_agent_utilisation_open(struct corral_agent_observer *o);
void corral_agent_utilisation_look(struct corral_agent_observer *o, uint64_t now);
void corral_agent_utilisation_fill(const struct corral_agent_observer *o, struct corral_observed *out);

/* `quota_*` messages of the coordinator. */
enum corral_status corral_agent_quota_message(struct corral_agent *a, const char *type,
                                              const struct corral_mpack_node *m, struct corral_error *err);
void corral_agent_quota_close(struct corral_agent *a);

/* Send a->out and reset it. */
enum corral_status corral_agent_send_out(struct corral_agent *a, struct corral_error *err);

#endif
