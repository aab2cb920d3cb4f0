#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/worker/worker_main.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define BUSY_FACTOR 10 /* of fault.dead_after, where a worker is busy without a loop that could beat */

static void log_path_of(const struct corral_agent_worker *w, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "logs/%s.log", w->plan->worker.name);
}

static void start_successor(struct corral_agent_worker *w)
{
    struct corral_error err;
    uint32_t epoch = w->next_epoch;
    w->next_epoch = 0;
    if (epoch != 0 && !w->agent->stopping &&
        corral_agent_start_worker(w->agent, w, epoch, &err) != CORRAL_OK) {
        corral_log_warn("worker not started; the coordinator will ask again",
                        LOG_STR("worker", w->plan->worker.name), LOG_ERR(&err));
    }
}

/* The process has ended: give back its memory charges before anything else, then report. */
static void on_worker_exit(void *ctx, int fd, bool readable, bool writable)
{
    (void)fd, (void)readable, (void)writable;
    struct corral_agent_worker *w = ctx;
    struct corral_agent *a = w->agent;
    pid_t pid = w->process.pid;
    uint64_t ran_ms = (corral_now_ns(&corral_clock_monotonic) - w->process.started_ns) / CORRAL_NS_PER_MS;
    int code = 0;
    if (corral_process_wait(&w->process, 0, &code, NULL) != CORRAL_OK) {
        return;
    }
    corral_loop_remove(w->watch);
    w->watch = NULL;
    corral_quota_reap_pid(a->quota, pid);
    char log[128], reason[400];
    log_path_of(w, log, sizeof log);
    corral_process_reason(code, log, reason, sizeof reason);
    const char *told = w->kill_reason[0] && code == -SIGKILL ? w->kill_reason : reason;
    if (code != 0 && !a->stopping) {
        corral_log_warn("worker ended", LOG_STR("worker", w->plan->worker.name), LOG_I64("pid", pid),
                        LOG_I64("code", code), LOG_STR("reason", told));
    }
    struct corral_error err;
    if (corral_agent_send_exited(a, w, code, told, ran_ms, &err) != CORRAL_OK) {
        corral_log_warn("exit not reported", LOG_ERR(&err));
    }
    start_successor(w);
    corral_agent_stop_when_done(a);
}

enum corral_status corral_agent_start_worker(struct corral_agent *a, struct corral_agent_worker *w,
                                             uint32_t epoch, struct corral_error *err)
{
    if (w->process.pid != 0) {
        return corral_fail(err, CORRAL_STATE, "worker %s is still running", w->plan->worker.name);
    }
    char number[7][16], log[128];
    const int fds[5] = {a->ledger_fd, a->store_fd, a->board_fd,
                        w->plan->worker.role == CORRAL_ROLE_TRAIN ? a->collective_fd : -1, w->vault_fd};
    snprintf(number[0], sizeof number[0], "%u", epoch);
    snprintf(number[1], sizeof number[1], "%u", w->slot);
    for (uint32_t i = 0; i < 5; i++) {
        snprintf(number[2 + i], sizeof number[2 + i], "%d", fds[i]);
    }
    const char *argv[CORRAL_WORKER_ARGC + 1] = {"rlctl",   "worker",  w->plan->worker.name,
                                                number[0], number[1], number[2],
                                                number[3], number[4], number[5],
                                                number[6], NULL};
    struct corral_process_spec spec = {.argv = argv, .log_path = log};
    for (uint32_t i = 0; i < 5; i++) {
        if (fds[i] >= 0) {
            spec.fds[spec.fd_count++] = fds[i];
        }
    }
    log_path_of(w, log, sizeof log);
    const struct corral_job_worker *job = &w->plan->worker;
    struct corral_agent_surroundings surroundings;
    CORRAL_TRY(corral_agent_surround(a, job->partition, &job->device.slot, 1,
                                     job->role == CORRAL_ROLE_TRAIN ? (int64_t)job->role_index : -1, log,
                                     &surroundings, err));
    corral_agent_apply_surroundings(&surroundings, &spec);
    struct corral_board_slot *slot = corral_board_slot(a->board, w->slot);
    corral_board_enter(slot, CORRAL_ACTIVITY_STARTING);
    w->kill_reason[0] = 0;
    w->epoch = epoch;
    CORRAL_TRY(corral_process_start(&spec, &w->process, err));
    atomic_store_explicit(&slot->pid, w->process.pid, memory_order_relaxed);
    return corral_loop_watch_fd(a->loop, w->process.pidfd, true, false, on_worker_exit, w, &w->watch, err);
}

struct corral_agent_worker *corral_agent_find_worker(struct corral_agent *a, const char *name)
{
    for (uint32_t i = 0; i < a->worker_count; i++) {
        if (strcmp(a->worker[i].plan->worker.name, name) == 0) {
            return &a->worker[i];
        }
    }
    return NULL;
}

void corral_agent_kill_worker(struct corral_agent_worker *w, const char *reason)
{
    snprintf(w->kill_reason, sizeof w->kill_reason, "%s", reason);
    corral_process_signal(&w->process, SIGKILL);
}

/* How long a worker may go without a sign of life where it is. */
static uint64_t silence_limit(const struct corral_job *job, enum corral_activity activity)
{
    switch (activity) {
    case CORRAL_ACTIVITY_ENV_STEP:
    case CORRAL_ACTIVITY_EVALUATE: /* a crash-isolated environment has its own deadline per step, inside the worker */
        return job->env.step_timeout_ns * (job->env.isolation == CORRAL_ISOLATION_PROCESS ? 4 : 1);
    case CORRAL_ACTIVITY_STARTING: /* the coordinator's to judge, by fault.start_timeout */
        return CORRAL_MAX(BUSY_FACTOR * job->fault.dead_after_ns, 2 * job->fault.start_timeout_ns);
    case CORRAL_ACTIVITY_TRAIN:
    case CORRAL_ACTIVITY_CHECKPOINT:
    case CORRAL_ACTIVITY_PUBLISH:
        return BUSY_FACTOR * job->fault.dead_after_ns;
    default:
        return job->fault.dead_after_ns;
    }
}

static void check_worker(struct corral_agent *a, struct corral_agent_worker *w, uint64_t now)
{
    const struct corral_board_slot *slot = corral_board_slot(a->board, w->slot);
    uint64_t beat = atomic_load_explicit(&slot->beat_ns, memory_order_acquire);
    uint64_t since = atomic_load_explicit(&slot->activity_ns, memory_order_relaxed);
    enum corral_activity activity =
        (enum corral_activity)atomic_load_explicit(&slot->activity, memory_order_relaxed);
    /* Nobody is silent for longer than the agent has looked. */
    uint64_t last = CORRAL_MAX(CORRAL_MAX(beat, since), a->back_ns);
    if (w->process.pid == 0 || w->kill_reason[0] != 0 || now <= last ||
        now - last <= silence_limit(a->job, activity)) {
        return;
    }
    char reason[160];
    double silent_s = (double)(now - last) / 1e9;
    if (activity == CORRAL_ACTIVITY_ENV_STEP || activity == CORRAL_ACTIVITY_EVALUATE) {
        snprintf(reason, sizeof reason,
                 "an environment step of %s has not returned for %.1f s (env.step_timeout)", a->job->env.id,
                 silent_s);
    } else {
        snprintf(reason, sizeof reason, "no sign of life for %.1f s while %s (fault.dead_after)", silent_s,
                 corral_activity_name(activity));
    }
    corral_log_warn("worker hangs and is killed", LOG_STR("worker", w->plan->worker.name),
                    LOG_STR("reason", reason));
    corral_agent_kill_worker(w, reason);
}

void corral_agent_check_hangs(struct corral_agent *a)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic), dead_after = a->job->fault.dead_after_ns;
    uint64_t late = CORRAL_MIN(dead_after / 2, CORRAL_MAX(2 * a->job->fault.heartbeat_ns, dead_after / 4));
    /* An agent that was stopped with the ledger's lock in its hands has itself kept them from beating. */
    if (a->check_ns != 0 && now - a->check_ns > late) {
        a->back_ns = now;
    }
    a->check_ns = now;
    for (uint32_t i = 0; i < a->worker_count; i++) {
        check_worker(a, &a->worker[i], now);
    }
}

uint32_t corral_agent_running(const struct corral_agent *a)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < a->worker_count; i++) {
        running += a->worker[i].process.pid != 0;
    }
    return running;
}
