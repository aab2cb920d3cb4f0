#include "orchestrator/agent/agent.h"
#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/agent/agent_observe.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <zmq.h>

#define MESSAGES_PER_CALLBACK_MAX 64

static void give_up(struct corral_agent *a, const struct corral_error *why)
{
    if (a->failure.status == CORRAL_OK) {
        a->failure = *why;
    }
    corral_loop_stop(a->loop);
}

static void stop_workers(struct corral_agent *a, uint64_t grace_ms)
{
    a->stopping = true;
    a->stop_deadline_ns = corral_now_ns(&corral_clock_monotonic) + grace_ms * CORRAL_NS_PER_MS;
    corral_agent_stop_tenants(a, grace_ms == 0);
    corral_agent_stop_when_done(a);
}

void corral_agent_stop_when_done(struct corral_agent *a)
{
    if (a->stopping && corral_agent_running(a) == 0 && corral_agent_tenants_running(a) == 0) {
        corral_loop_stop(a->loop);
    }
}

static enum corral_status on_spawn(struct corral_agent *a, const struct corral_mpack_node *message,
                                   struct corral_error *err)
{
    char name[64];
    uint64_t epoch;
    CORRAL_TRY(corral_mpack_get_str(message, "worker", name, sizeof name, err));
    CORRAL_TRY(corral_mpack_get_u64(message, "epoch", &epoch, err));
    struct corral_agent_worker *w = corral_agent_find_worker(a, name);
    if (!w) {
        return corral_fail(err, CORRAL_PROTOCOL, "node %s has no worker %s", a->job->node[a->node].name,
                           name);
    }
    if (w->process.pid != 0) { /* the coordinator has given up on that life */
        w->next_epoch = (uint32_t)epoch;
        corral_agent_kill_worker(w, "its successor is to start");
        return CORRAL_OK;
    }
    return corral_agent_start_worker(a, w, (uint32_t)epoch, err);
}

static enum corral_status on_kill(struct corral_agent *a, const struct corral_mpack_node *message,
                                  struct corral_error *err)
{
    char name[64], reason[160];
    uint64_t epoch;
    CORRAL_TRY(corral_mpack_get_str(message, "worker", name, sizeof name, err));
    CORRAL_TRY(corral_mpack_get_u64(message, "epoch", &epoch, err));
    CORRAL_TRY(corral_mpack_get_str(message, "reason", reason, sizeof reason, err));
    struct corral_agent_worker *w = corral_agent_find_worker(a, name);
    if (w && w->epoch == epoch && w->process.pid != 0) {
        corral_agent_kill_worker(w, reason);
    }
    return CORRAL_OK;
}

static enum corral_status on_message(struct corral_agent *a, const char *type,
                                     const struct corral_mpack_node *message, struct corral_error *err)
{
    if (strcmp(type, "spawn") == 0) {
        return on_spawn(a, message, err);
    }
    if (strcmp(type, "kill") == 0) {
        return on_kill(a, message, err);
    }
    if (strcmp(type, "stop") == 0) {
        uint64_t grace_ms;
        CORRAL_TRY(corral_mpack_get_u64(message, "grace_ms", &grace_ms, err));
        CORRAL_TRY(corral_agent_send_beat(
            a, err)); /* the last word on peaks and counters, also of a run shorter than a beat */
        CORRAL_TRY(corral_agent_send_observed(a, err));
        stop_workers(a, grace_ms);
        return CORRAL_OK;
    }
    if (strcmp(type, "refused") == 0) {
        return corral_fail(err, CORRAL_PEER, "the coordinator refused this agent");
    }
    if (strncmp(type, "quota_", 6) == 0) {
        return corral_agent_quota_message(a, type, message, err);
    }
    if (strncmp(type, "weights_", 8) == 0) {
        return corral_agent_weights_message(a, type, message, err);
    }
    return CORRAL_OK; /* "heard": only its arrival matters */
}

static void on_bus(void *ctx, void *socket)
{
    (void)socket;
    struct corral_agent *a = ctx;
    for (uint32_t i = 0; i < MESSAGES_PER_CALLBACK_MAX; i++) {
        char type[32];
        struct corral_error err;
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        enum corral_status status = corral_bus_client_receive(a->bus, 0, type, &reader, &err);
        if (status == CORRAL_AGAIN) {
            return;
        }
        a->heard_ns = corral_now_ns(&corral_clock_monotonic);
        if (status == CORRAL_OK) {
            status = on_message(a, type, corral_mpack_root(reader), &err);
        }
        if (status != CORRAL_OK) {
            give_up(a, &err);
            return;
        }
    }
}

static void on_beat(void *ctx)
{
    struct corral_agent *a = ctx;
    struct corral_error err;
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    /* After a pause of its own (a stopped container, a suspended machine) the agent finds everybody silent: they get the time to say something first. */
    bool paused = a->beat_ns != 0 && now - a->beat_ns > a->job->fault.dead_after_ns / 2;
    a->beat_ns = now;
    if (paused) {
        a->heard_ns = now;
    }
    if (now - a->heard_ns > a->job->fault.dead_after_ns) {
        corral_fail(&err, CORRAL_TIMEOUT, "the coordinator has been silent for %.1f s (fault.dead_after)",
                    (double)(now - a->heard_ns) / 1e9);
        give_up(a, &err);
        return;
    }
    if (corral_agent_send_beat(a, &err) != CORRAL_OK) {
        corral_log_warn("beat not sent", LOG_ERR(&err));
    }
    corral_agent_check_hangs(a);
}

/* While stopping: kill what is left after the grace period. */
static void on_tick(void *ctx)
{
    struct corral_agent *a = ctx;
    corral_agent_tenants_tick(a);
    if (a->stopping && corral_now_ns(&corral_clock_monotonic) > a->stop_deadline_ns) {
        for (uint32_t i = 0; i < a->worker_count; i++) {
            corral_process_signal(&a->worker[i].process, SIGKILL);
        }
        corral_agent_stop_tenants(a, true);
    }
}

static void on_signal(void *ctx, int signo)
{
    (void)signo;
    stop_workers(ctx, 0);
}

static enum corral_status log_in(struct corral_agent *a, struct corral_error *err)
{
    a->zmq = zmq_ctx_new();
    a->out = corral_mpack_writer_create();
    if (!a->zmq || !a->out) {
        return corral_fail(err, CORRAL_NOMEM, "agent: no message buffers");
    }
    bool here = strcmp(a->job->node[a->node].address, "local") == 0;
    struct corral_bus_client_config config = {
        .zmq_context = a->zmq,
        .endpoint = here ? a->launch.endpoint : a->launch.endpoint_tcp,
        .token = a->launch.token,
        .run = a->launch.run,
        .server_public_key = here ? NULL : a->launch.server_public_key,
        .hello = {.kind = "agent", .epoch = a->launch.incarnation, .pid = getpid()},
    };
    memcpy(config.hello.name, a->job->node[a->node].name, CORRAL_JOB_NAME_MAX);
    memcpy(config.hello.node, a->job->node[a->node].name, CORRAL_JOB_NAME_MAX);
    CORRAL_TRY(corral_bus_client_create(&a->bus, &config,
                                        (uint32_t)(a->job->fault.start_timeout_ns / CORRAL_NS_PER_MS), err));
    a->heard_ns = corral_now_ns(&corral_clock_monotonic);
    return corral_agent_send_node(a, err);
}

static enum corral_status watch(struct corral_agent *a, struct corral_error *err)
{
    struct corral_loop_watch *ignored;
    uint32_t beat_ms = (uint32_t)(a->job->fault.heartbeat_ns / CORRAL_NS_PER_MS);
    CORRAL_TRY(corral_loop_zmq(a->loop, corral_bus_client_socket(a->bus), on_bus, a, &a->bus_watch, err));
    corral_loop_zmq_kick(a->bus_watch); /* what arrived while logging in */
    CORRAL_TRY(corral_loop_timer(a->loop, beat_ms, beat_ms, on_beat, a, &ignored, err));
    CORRAL_TRY(corral_loop_timer(a->loop, 20, 20, on_tick, a, &ignored, err));
    return corral_loop_signal(a->loop, SIGTERM, on_signal, a, &ignored, err);
}

static enum corral_status load(struct corral_agent *a, const char *node, struct corral_error *err)
{
    CORRAL_TRY(corral_launch_file_read("launch.json", &a->launch, err));
    CORRAL_TRY(corral_agent_begin_fences(a, node, err));
    CORRAL_TRY(corral_job_load("job.toml", NULL, 0, &a->job, err));
    a->node = UINT32_MAX;
    for (uint32_t i = 0; i < a->job->node_count; i++) {
        if (strcmp(a->job->node[i].name, node) == 0) {
            a->node = i;
        }
    }
    if (a->node == UINT32_MAX) {
        return corral_fail(err, CORRAL_NOT_FOUND, "the job has no node %s", node);
    }
    CORRAL_TRY(corral_job_env_spec(a->job, &a->env, err));
    struct corral_plan_env env;
    corral_plan_env_of(&a->env, &env);
    a->machine = calloc(1, sizeof *a->machine);
    if (!a->machine) {
        return corral_fail(err, CORRAL_NOMEM, "agent: no room for the inventory");
    }
    CORRAL_TRY(corral_inventory_read(a->machine, err));
    return corral_plan_build(a->job, a->machine, &env, &a->plan, err);
}

static enum corral_status agent_run(struct corral_agent *a, const char *node, struct corral_error *err)
{
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
        return corral_fail_sys(err, errno, "agent of node %s: adopting what its processes leave behind",
                               node);
    }
    CORRAL_TRY(load(a, node, err));
    corral_log_configure(CORRAL_LOG_INFO, a->job->observe.log == CORRAL_LOG_OPTION_JSON, 2, "agent");
    CORRAL_TRY(corral_loop_create(&a->loop, err));
    CORRAL_TRY(corral_agent_make_node(a, err));
    /* Workers first: they come up while the agent logs in. */
    for (uint32_t i = 0; i < a->worker_count; i++) {
        CORRAL_TRY(corral_agent_start_worker(a, &a->worker[i],
                                             a->launch.incarnation * CORRAL_EPOCHS_PER_INCARNATION, err));
    }
    CORRAL_TRY(corral_agent_start_tenants(a, err));
    CORRAL_TRY(log_in(a, err));
    CORRAL_TRY(corral_agent_observe_start(a, err)); /* first: the watch reads messages that ask it */
    CORRAL_TRY(watch(a, err));
    CORRAL_TRY(corral_loop_run(a->loop, err));
    if (a->failure.status != CORRAL_OK) {
        return corral_fail(err, a->failure.status, "%s", a->failure.text);
    }
    return CORRAL_OK;
}

/* Nothing outlives the agent: what still runs is killed and reaped. */
static void agent_close(struct corral_agent *a)
{
    for (uint32_t i = 0; i < a->worker_count; i++) {
        corral_process_signal(&a->worker[i].process, SIGKILL);
    }
    for (uint32_t i = 0; i < a->worker_count; i++) {
        int code;
        if (a->worker[i].process.pid != 0) {
            (void)corral_process_wait(&a->worker[i].process, 1000, &code, NULL);
        }
    }
    corral_agent_close_tenants(a);
    corral_agent_quota_close(a);
    corral_agent_weights_close(a);
    corral_agent_observe_stop(a);
    corral_loop_destroy(a->loop);
    corral_bus_client_destroy(a->bus);
    if (a->zmq) {
        zmq_ctx_term(a->zmq);
    }
    corral_mpack_writer_destroy(a->out);
    corral_agent_close_fences(a); /* nobody is left in its groups */
    corral_agent_drop_node(a);
    free(a->machine);
    corral_plan_destroy(a->plan);
    corral_job_destroy(a->job);
}

enum corral_status corral_agent_run(const char *node, struct corral_error *err)
{
    struct corral_agent *a = calloc(1, sizeof *a);
    if (!a) {
        return corral_fail(err, CORRAL_NOMEM, "agent of node %s", node);
    }
    a->ledger_fd = a->store_fd = a->board_fd = a->collective_fd = -1;
    memset(a->gpu_claim, 0xff, sizeof a->gpu_claim);
    enum corral_status status = agent_run(a, node, err);
    agent_close(a);
    free(a);
    return status;
}
