/* Tenants: programs that know nothing of the run, under a quota on its devices. On a GPU the interposer charges what they take; on a host device the agent charges
 * the whole ceiling for as long as they run, and the kernel's limits hold them to it. */
#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/agent/children.h"
#include "orchestrator/agent/tenant_main.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define CLOSE_WAIT_MS 2000
#define ORPHANS_WAIT_MS 500 /* for what a killed supervisor left to end, before its memory counts as free */
#define ORPHANS_ROUND_MS 2

const char *corral_tenant_state_name(enum corral_tenant_state state)
{
    static const char *const names[] = {"down", "running", "waiting"};
    return names[state];
}

static bool on_host(const struct corral_agent *a)
{
    return a->job->node[a->node].kind == CORRAL_DEVICE_HOST;
}

static void log_path_of(const struct corral_agent_tenant *t, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "logs/%s.log", t->partition->name);
}

static void tell(struct corral_agent_tenant *t, const char *event)
{
    struct corral_error err;
    if (t->agent->bus && corral_agent_send_tenant(t->agent, t, event, &err) != CORRAL_OK) {
        corral_log_warn("tenant's state not reported", LOG_ERR(&err));
    }
}

static void enter(struct corral_agent_tenant *t, enum corral_tenant_state next, const char *event)
{
    corral_log_info("tenant changes state", LOG_STR("tenant", t->partition->name),
                    LOG_STR("from", corral_tenant_state_name(t->state)),
                    LOG_STR("to", corral_tenant_state_name(next)), LOG_STR("event", event),
                    LOG_STR("reason", t->reason));
    t->state = next;
    tell(t, event);
}

/* ---- memory ---- */

static void give_back(struct corral_agent_tenant *t)
{
    for (uint32_t i = 0; i < t->charge_count; i++) {
        corral_quota_drop(t->agent->quota, &t->charge[i]);
    }
    t->charge_count = 0;
}

/* A supervisor that is killed (by the kernel for want of memory, say) cannot take along what its program has started: that comes to the agent, and ends here. */
static bool is_known(void *ctx, pid_t pid)
{
    const struct corral_agent *a = ctx;
    bool known = false;
    for (uint32_t i = 0; i < a->worker_count && !known; i++) {
        known = a->worker[i].process.pid == pid;
    }
    for (uint32_t i = 0; i < a->tenant_count && !known; i++) {
        known = a->tenant[i].process.pid == pid;
    }
    return known;
}

static void kill_orphans(struct corral_agent *a)
{
    const uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + ORPHANS_WAIT_MS * CORRAL_NS_PER_MS;
    while (corral_children_kill(is_known, a) > 0 && corral_now_ns(&corral_clock_monotonic) < deadline) {
        (void)poll(NULL, 0, ORPHANS_ROUND_MS);
        corral_children_reap(is_known, a);
    }
}

static enum corral_status charge(struct corral_agent_tenant *t, struct corral_error *err)
{
    struct corral_agent *a = t->agent;
    const struct corral_job_partition *p = t->partition;
    for (uint32_t i = 0; i < p->device_count && on_host(a); i++) {
        if (t->holder[i] == CORRAL_LEDGER_NONE) {
            CORRAL_TRY(
                corral_quota_join_index(a->quota, p->device[i].slot, t->plan->partition, &t->holder[i], err));
        }
        enum corral_status status = corral_quota_take(a->quota, t->holder[i], p->ceiling, CORRAL_KIND_MAPPING,
                                                      "tenant", &t->charge[t->charge_count], err);
        if (status != CORRAL_OK) {
            give_back(t);
            return status;
        }
        corral_quota_keep(a->quota, &t->charge[t->charge_count++]);
    }
    return CORRAL_OK;
}

/* ---- a life ---- */

static void on_tenant_exit(void *ctx, int fd, bool readable, bool writable);

static uint32_t slots_of(const struct corral_agent_tenant *t, uint32_t slots[CORRAL_JOB_NODE_DEVICES_MAX])
{
    for (uint32_t i = 0; i < t->partition->device_count; i++) {
        slots[i] = t->partition->device[i].slot;
    }
    return t->partition->device_count;
}

static enum corral_status surround(const struct corral_agent_tenant *t, const char *log,
                                   struct corral_agent_surroundings *out, struct corral_error *err)
{
    uint32_t slots[CORRAL_JOB_NODE_DEVICES_MAX], count = slots_of(t, slots);
    const char *env[CORRAL_JOB_ARGV_MAX + 1];
    CORRAL_TRY(corral_agent_surround(t->agent, t->plan->partition, slots, count, -1, log, out, err));
    for (uint32_t i = 0; i < corral_job_environment(t->partition, env); i++) {
        corral_agent_add_env(out, "%s", env[i]);
    }
    return out->env_count <= CORRAL_AGENT_ENV_MAX
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "the environment does not fit");
}

static enum corral_status start(struct corral_agent_tenant *t, struct corral_error *err)
{
    struct corral_agent *a = t->agent;
    char log[128], limit[32];
    const char *argv[CORRAL_JOB_ARGV_MAX + 5] = {"rlctl", "tenant", limit, t->partition->folder};
    struct corral_agent_surroundings surroundings;
    log_path_of(t, log, sizeof log);
    CORRAL_TRY(surround(t, log, &surroundings, err));
    (void)corral_job_command(t->partition, argv + 4);
    snprintf(limit, sizeof limit, "%llu", (unsigned long long)surroundings.fences.rlimit_data);
    const struct corral_process_spec program = {
        .argv = argv + 4, .program = argv[4], .folder = t->partition->folder};
    struct corral_process_spec spec = {.argv = argv, .log_path = log};
    corral_agent_apply_surroundings(&surroundings, &spec);
    CORRAL_TRY(corral_process_check(&program, err));
    CORRAL_TRY(charge(t, err));
    enum corral_status status = corral_process_start(&spec, &t->process, err);
    if (status == CORRAL_OK) {
        status =
            corral_loop_watch_fd(a->loop, t->process.pidfd, true, false, on_tenant_exit, t, &t->watch, err);
    }
    if (status != CORRAL_OK) {
        int code;
        corral_process_signal(&t->process, SIGHUP); /* it runs and cannot be watched */
        if (t->process.pid != 0) {
            (void)corral_process_wait(&t->process, CLOSE_WAIT_MS, &code, NULL);
        }
        give_back(t);
    }
    return status;
}

/* How often it was started again within fault.window, this time included; also records this time. */
static uint32_t recent_restarts(struct corral_agent_tenant *t, uint64_t now)
{
    uint32_t recent = 1;
    for (uint32_t i = 0; i < CORRAL_TENANT_HISTORY; i++) {
        recent += t->restarted_ns[i] != 0 && now - t->restarted_ns[i] < t->agent->job->fault.window_ns;
    }
    t->restarted_ns[t->restarts % CORRAL_TENANT_HISTORY] = now;
    return recent;
}

static bool wants_restart(const struct corral_agent_tenant *t)
{
    return t->partition->restart == CORRAL_RESTART_ALWAYS ||
           (t->partition->restart == CORRAL_RESTART_ON_FAILURE && t->exit_code != 0);
}

/* After an end, or a start that failed. */
static void plan_restart(struct corral_agent_tenant *t)
{
    const struct corral_job *job = t->agent->job;
    if (t->agent->stopping || !wants_restart(t)) {
        enter(t, CORRAL_TENANT_DOWN, t->agent->stopping ? "stopped" : "ended");
        return;
    }
    uint64_t now = corral_now_ns(&corral_clock_monotonic), backoff = job->fault.backoff_ns;
    uint32_t recent = recent_restarts(t, now);
    if (recent > job->fault.restarts_max || recent > CORRAL_TENANT_HISTORY) {
        char last[sizeof t->reason];
        memcpy(last, t->reason, sizeof last);
        snprintf(t->reason, sizeof t->reason, "%u restarts within %.0f s (fault.restarts_max), last: %.300s",
                 recent - 1, (double)job->fault.window_ns / 1e9, last);
        enter(t, CORRAL_TENANT_DOWN, "given up");
        return;
    }
    for (uint32_t i = 1; i < recent && backoff < job->fault.backoff_max_ns; i++) {
        backoff *= 2;
    }
    t->retry_at_ns = now + CORRAL_MIN(backoff, job->fault.backoff_max_ns);
    t->restarts++;
    enter(t, CORRAL_TENANT_WAITING, "ended");
}

static void on_tenant_exit(void *ctx, int fd, bool readable, bool writable)
{
    (void)fd, (void)readable, (void)writable;
    struct corral_agent_tenant *t = ctx;
    char log[128];
    int code = 0;
    if (corral_process_wait(&t->process, 0, &code, NULL) != CORRAL_OK) {
        return;
    }
    corral_loop_remove(t->watch);
    t->watch = NULL;
    kill_orphans(t->agent);
    (void)corral_quota_reap(t->agent->quota); /* whatever of it held GPU memory has ended with it */
    give_back(t);
    log_path_of(t, log, sizeof log);
    t->exit_code = code;
    corral_process_reason(code, log, t->reason, sizeof t->reason);
    plan_restart(t);
    corral_agent_stop_when_done(t->agent);
}

/* ---- first start ---- */

/* The canary in the surroundings of the tenant: one allocation that must succeed and one over its quota that must not, through each family. */
static enum corral_status check_fence(struct corral_agent_tenant *t, struct corral_error *err)
{
    const char *argv[] = {"rlctl", "canary", NULL};
    char log[128], reason[400];
    struct corral_agent_surroundings surroundings;
    struct corral_process_spec spec = {.argv = argv, .log_path = log};
    struct corral_process canary;
    int code = 0;
    log_path_of(t, log, sizeof log);
    CORRAL_TRY(surround(t, log, &surroundings, err));
    corral_agent_apply_surroundings(&surroundings, &spec);
    CORRAL_TRY(corral_process_start(&spec, &canary, err));
    uint32_t wait_ms = (uint32_t)(t->agent->job->fault.start_timeout_ns / CORRAL_NS_PER_MS);
    enum corral_status status = corral_process_wait(&canary, wait_ms, &code, err);
    if (status == CORRAL_AGAIN) {
        corral_process_signal(&canary, SIGKILL);
        (void)corral_process_wait(&canary, CLOSE_WAIT_MS, &code, NULL);
        return corral_fail(err, CORRAL_TIMEOUT, "its fence was not checked within fault.start_timeout");
    }
    CORRAL_TRY(status);
    (void)corral_quota_reap(t->agent->quota);
    return code == 0 ? CORRAL_OK
                     : corral_fail(err, CORRAL_DENIED, "its fence does not hold: %s",
                                   corral_process_reason(code, log, reason, sizeof reason));
}

static enum corral_status first_start(struct corral_agent *a, const struct corral_plan_tenant *plan,
                                      struct corral_error *err)
{
    struct corral_agent_tenant *t = &a->tenant[a->tenant_count++];
    *t = (struct corral_agent_tenant){
        .partition = &a->job->partition[plan->partition], .plan = plan, .agent = a, .process = {.pidfd = -1}};
    memset(t->holder, 0xff, sizeof t->holder);
    enum corral_status status = on_host(a) ? CORRAL_OK : check_fence(t, err);
    if (status == CORRAL_OK) {
        status = start(t, err);
    }
    if (status != CORRAL_OK) {
        return corral_error_prefix(err, status, "tenant %s cannot start", t->partition->name);
    }
    enter(t, CORRAL_TENANT_RUNNING, "started");
    return CORRAL_OK;
}

enum corral_status corral_agent_start_tenants(struct corral_agent *a, struct corral_error *err)
{
    for (uint32_t i = 0; i < a->plan->tenant_count; i++) {
        if (a->plan->tenant[i].node == a->node) {
            CORRAL_TRY(first_start(a, &a->plan->tenant[i], err));
        }
    }
    return CORRAL_OK;
}

void corral_agent_tenants_tick(struct corral_agent *a)
{
    corral_children_reap(is_known, a);
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    for (uint32_t i = 0; i < a->tenant_count && !a->stopping; i++) {
        struct corral_agent_tenant *t = &a->tenant[i];
        struct corral_error err;
        if (t->state != CORRAL_TENANT_WAITING || now < t->retry_at_ns) {
            continue;
        }
        if (start(t, &err) == CORRAL_OK) {
            enter(t, CORRAL_TENANT_RUNNING, "started");
            continue;
        }
        t->exit_code = -1;
        snprintf(t->reason, sizeof t->reason, "%.399s", err.text);
        plan_restart(t);
    }
}

/* ---- the end ---- */

void corral_agent_stop_tenants(struct corral_agent *a, bool now)
{
    for (uint32_t i = 0; i < a->tenant_count; i++) {
        struct corral_agent_tenant *t = &a->tenant[i];
        corral_process_signal(&t->process, now ? SIGHUP : SIGTERM);
        if (t->state == CORRAL_TENANT_WAITING) {
            enter(t, CORRAL_TENANT_DOWN, "stopped");
        }
    }
}

uint32_t corral_agent_tenants_running(const struct corral_agent *a)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < a->tenant_count; i++) {
        running += a->tenant[i].process.pid != 0;
    }
    return running;
}

void corral_agent_close_tenants(struct corral_agent *a)
{
    corral_agent_stop_tenants(a, true);
    for (uint32_t i = 0; i < a->tenant_count; i++) {
        struct corral_agent_tenant *t = &a->tenant[i];
        int code;
        if (t->process.pid != 0 &&
            corral_process_wait(&t->process, CLOSE_WAIT_MS, &code, NULL) == CORRAL_AGAIN) {
            corral_process_signal(&t->process, SIGKILL);
            (void)corral_process_wait(&t->process, CLOSE_WAIT_MS, &code, NULL);
        }
        give_back(t);
    }
    kill_orphans(a);
}
