#include "orchestrator/coordinator/coordinator.h"
#include "base/hash.h"
#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include "orchestrator/worker/worker_config.h"
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define TICK_MS 10
#define HELD_UP_NS (500 * CORRAL_NS_PER_MS) /* between two ticks: the coordinator itself was held up */
#define REPORT_EVERY_NS (250 * CORRAL_NS_PER_MS)
#define FINISH_DEADLINE_NS (20 * CORRAL_NS_PER_S)
#define REGROUP_DEADLINE_NS (5 * CORRAL_NS_PER_S)
#define LAST_WORDS_NS (2 * CORRAL_NS_PER_S)
#define STOP_GRACE_MS 2000
#define STOP_DEADLINE_NS (5 * CORRAL_NS_PER_S)

static const char *const phase_names[RUN_PHASES] = {"starting", "running", "finishing", "over"};

/* Which phase may follow which. */
static const bool phase_next[RUN_PHASES][RUN_PHASES] = {
    [RUN_STARTING] = {[RUN_RUNNING] = true, [RUN_FINISHING] = true},
    [RUN_RUNNING] = {[RUN_FINISHING] = true},
    [RUN_FINISHING] = {[RUN_OVER] = true},
};

const char *corral_run_phase_name(enum run_phase phase)
{
    return phase_names[phase];
}

const char *corral_outcome_name(enum corral_outcome o)
{
    static const char *const names[] = {"", "learned", "done", "stopped", "failed"};
    return names[o];
}

void corral_run_enter(struct corral_coordinator *c, enum run_phase next, const char *why)
{
    if (!phase_next[c->phase][next]) {
        corral_log_error("impossible phase change is ignored", LOG_STR("from", phase_names[c->phase]),
                         LOG_STR("to", phase_names[next]));
        return;
    }
    corral_log_info("run changes phase", LOG_STR("from", phase_names[c->phase]),
                    LOG_STR("to", phase_names[next]), LOG_STR("event", why));
    c->phase = next;
    c->phase_since_ns = corral_coordinator_now();
    corral_coordinator_event(c, "phase", phase_names[next], "%s", why);
}

void corral_coordinator_event(struct corral_coordinator *c, const char *kind, const char *subject,
                              const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    struct corral_error err;
    if (c->journal && corral_journal_event(c->journal, kind, subject, text, &err) != CORRAL_OK) {
        corral_log_warn("event not journalled", LOG_ERR(&err));
    }
}

void corral_coordinator_send(struct corral_coordinator *c, struct corral_bus_peer *peer)
{
    struct corral_error err;
    if (peer && corral_bus_server_send(c->bus, peer, c->out, &err) != CORRAL_OK) {
        corral_log_debug("message not sent", LOG_ERR(&err));
    }
    corral_mpack_writer_reset(c->out);
}

static void begin_finish(struct corral_coordinator *c, bool checkpoint)
{
    c->final_checkpoint_wanted = checkpoint;
    corral_run_enter(c, RUN_FINISHING, c->status.reason);
    if (checkpoint) {
        corral_workers_tell_all(c, CORRAL_ROLE_TRAIN,
                                "finish"); /* the rest stay until their environments are in the checkpoint */
    }
}

/* The end was called while the trainers were down: it waits until they can write the last checkpoint, for a while. */
static void advance_waiting_finish(struct corral_coordinator *c)
{
    if (c->phase != RUN_RUNNING || c->finish_by_ns == 0) {
        return;
    }
    bool late = corral_coordinator_now() >= c->finish_by_ns;
    if (late && !c->standing) {
        corral_log_warn("the trainers are not back in time; the run ends without a last checkpoint");
    }
    if (late || c->standing) {
        begin_finish(c, c->standing);
    }
}

void corral_run_finish(struct corral_coordinator *c, enum corral_outcome outcome, bool checkpoint,
                       const char *fmt, ...)
{
    if (c->phase >= RUN_FINISHING) {
        return;
    }
    if (c->finish_by_ns == 0) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(c->status.reason, sizeof c->status.reason, fmt, args);
        va_end(args);
        c->status.outcome = outcome;
    }
    bool worthwhile = checkpoint && c->phase == RUN_RUNNING && c->status.step > 0;
    if (!worthwhile || c->standing) {
        begin_finish(c, worthwhile);
    } else if (c->finish_by_ns == 0) {
        corral_log_info("the run ends as soon as its trainers are a group again",
                        LOG_STR("reason", c->status.reason));
        c->finish_by_ns = corral_coordinator_now() + REGROUP_DEADLINE_NS;
    }
}

/* ---- what arrives ---- */

static void on_joined(void *ctx, struct corral_bus_peer *peer)
{
    const struct corral_bus_hello *hello = corral_bus_peer_hello(peer);
    if (strcmp(hello->kind, "agent") == 0) {
        corral_node_joined(ctx, peer);
    } else if (strcmp(hello->kind, "worker") == 0) {
        corral_worker_joined(ctx, peer);
    } else if (strcmp(hello->kind, "cli") == 0) {
        corral_quota_client_joined(ctx, peer);
    }
}

static void on_message(void *ctx, struct corral_bus_peer *peer, const char *type,
                       const struct corral_mpack_node *m)
{
    struct corral_coordinator *c = ctx;
    const char *kind = corral_bus_peer_hello(peer)->kind;
    struct corral_error err = {0};
    enum corral_status status = CORRAL_OK;
    if (strcmp(kind, "cli") == 0) { /* its last word may send the peer away */
        corral_quota_client_message(c, peer, type, m);
        return;
    }
    if (strcmp(kind, "agent") == 0) {
        status = corral_node_message(c, peer, type, m, &err);
    } else if (strcmp(kind, "worker") == 0) {
        status = corral_worker_message(c, peer, type, m, &err);
    }
    if (status != CORRAL_OK) {
        corral_log_warn("bad message is dropped", LOG_STR("peer", corral_bus_peer_hello(peer)->name),
                        LOG_STR("type", type), LOG_ERR(&err));
    }
    if (status == CORRAL_INTERNAL) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, false, "%s", err.text);
    }
}

/* The first Ctrl-C ends the run in order, with a checkpoint; the second at once. */
static void on_signal(void *ctx, int signo)
{
    struct corral_coordinator *c = ctx;
    c->interrupts++;
    if (c->interrupts == 1) {
        corral_run_finish(c, CORRAL_OUTCOME_STOPPED, true, "%s",
                          signo == SIGINT   ? "interrupted (Ctrl-C)"
                          : signo == SIGHUP ? "the terminal hung up"
                                            : "stopped by `rlctl stop` (SIGTERM)");
    } else {
        corral_nodes_kill(c);
        corral_loop_stop(c->loop);
    }
}

/* Every trainer has ended, and the ones that ended well have been heard: their exit may be known before their last message has come. */
static bool trainers_done(const struct corral_coordinator *c)
{
    uint64_t now = corral_coordinator_now();
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const struct coordinator_worker *w = &c->worker[i];
        bool owes_word = w->state == WORKER_GONE && w->exit_code == 0 && !w->final_said &&
                         now - w->state_since_ns < LAST_WORDS_NS;
        if (w->job.role == CORRAL_ROLE_TRAIN && (w->state < WORKER_BACKOFF || owes_word)) {
            return false;
        }
    }
    return true;
}

static void advance_finish(struct corral_coordinator *c)
{
    uint64_t waited = corral_coordinator_now() - c->phase_since_ns;
    if (c->phase == RUN_FINISHING) {
        /* In order: the trainers' last checkpoint with the environments, then everybody stops. */
        bool done = !c->final_checkpoint_wanted || (trainers_done(c) && !c->checkpoint.active);
        if (!done && waited < FINISH_DEADLINE_NS) {
            return;
        }
        corral_workers_tell_all(c, CORRAL_ROLE_TRAIN, "finish");
        corral_workers_tell_all(c, CORRAL_ROLE_ROLLOUT, "finish");
        corral_workers_tell_all(c, CORRAL_ROLE_EVAL, "finish");
        corral_nodes_stop(c, STOP_GRACE_MS);
        corral_run_enter(c, RUN_OVER, "everyone has been told to stop");
        return;
    }
    if (corral_nodes_stopped(c) || waited > STOP_DEADLINE_NS) {
        corral_nodes_kill(c);
        corral_loop_stop(c->loop);
    }
}

static void on_tick(void *ctx)
{
    struct corral_coordinator *c = ctx;
    uint64_t now = corral_coordinator_now(), since = c->ticked_ns ? now - c->ticked_ns : 0;
    c->ticked_ns = now;
    corral_nodes_tick(c, since > HELD_UP_NS ? since : 0);
    corral_workers_tick(c);
    corral_checkpoint_tick(c);
    corral_quota_tick(c);
    corral_weights_tick(c);
    if (c->phase == RUN_STARTING) {
        corral_workers_advance(c);
        if (!corral_nodes_joined(c) &&
            corral_coordinator_now() - c->phase_since_ns > c->job->fault.start_timeout_ns) {
            corral_run_finish(c, CORRAL_OUTCOME_FAILED, false,
                              "not every node's agent joined within %.0f s (fault.start_timeout)",
                              (double)c->job->fault.start_timeout_ns / 1e9);
        }
    }
    corral_training_tick(c);
    advance_waiting_finish(c);
    if (c->phase >= RUN_FINISHING) {
        advance_finish(c);
    }
}

static void on_report(void *ctx)
{
    struct corral_coordinator *c = ctx;
    corral_report_status(c);
    if (c->config->progress) {
        c->config->progress(c->config->ctx, &c->status);
    }
}

/* ---- set-up ---- */

static enum corral_status make_launch_file(struct corral_coordinator *c, struct corral_error *err)
{
    struct corral_launch_file *f = &c->launch;
    uint8_t token[32];
    corral_random_bytes(token, sizeof token);
    corral_hex(token, sizeof token, f->token);
    corral_random_bytes(f->secret, sizeof f->secret);
    if (corral_job_is_remote(c->job)) {
        CORRAL_TRY(corral_bus_keypair(f->server_public_key, f->server_secret_key, err));
    }
    snprintf(f->endpoint, sizeof f->endpoint, "ipc://sock/control");
    return CORRAL_OK;
}

static enum corral_status open_bus(struct corral_coordinator *c, struct corral_error *err)
{
    CORRAL_TRY(make_launch_file(c, err));
    c->zmq = zmq_ctx_new();
    c->out = corral_mpack_writer_create();
    if (!c->zmq || !c->out) {
        return corral_fail(err, CORRAL_NOMEM, "coordinator: no message buffers");
    }
    bool remote = corral_job_is_remote(c->job);
    (void)unlink("sock/control");
    struct corral_bus_server_config config = {
        .loop = c->loop,
        .zmq_context = c->zmq,
        .bind = {c->launch.endpoint, remote ? "tcp://*:*" : NULL, NULL, NULL},
        .token = c->launch.token,
        .run = c->launch.run,
        .server_secret_key = remote ? c->launch.server_secret_key : NULL,
        .joined = on_joined,
        .message = on_message,
        .ctx = c,
    };
    CORRAL_TRY(corral_bus_server_create(&c->bus, &config, err));
    if (remote) {
        const char *bound = corral_bus_server_endpoint(c->bus, 1);
        const char *port = bound ? strrchr(bound, ':') : NULL;
        uint32_t here = 0;
        while (here + 1 < c->job->node_count && strcmp(c->job->node[here].address, "local") != 0) {
            here++;
        }
        snprintf(c->launch.endpoint_tcp, sizeof c->launch.endpoint_tcp, "tcp://%.200s%s",
                 corral_job_node_host(c->job, here), port ? port : "");
    }
    return corral_launch_file_write("launch.json", &c->launch, err);
}

static enum corral_status watch(struct corral_coordinator *c, struct corral_error *err)
{
    struct corral_loop_watch *ignored;
    CORRAL_TRY(corral_loop_timer(c->loop, TICK_MS, TICK_MS, on_tick, c, &ignored, err));
    CORRAL_TRY(corral_loop_timer(c->loop, (uint32_t)(REPORT_EVERY_NS / CORRAL_NS_PER_MS),
                                 (uint32_t)(REPORT_EVERY_NS / CORRAL_NS_PER_MS), on_report, c, &ignored,
                                 err));
    CORRAL_TRY(corral_loop_signal(c->loop, SIGINT, on_signal, c, &ignored, err));
    CORRAL_TRY(corral_loop_signal(c->loop, SIGTERM, on_signal, c, &ignored, err));
    return corral_loop_signal(c->loop, SIGHUP, on_signal, c, &ignored, err);
}

static enum corral_status coordinator_open(struct corral_coordinator *c, struct corral_error *err)
{
    c->phase_since_ns = corral_coordinator_now();
    CORRAL_TRY(corral_workers_open(c, err));
    CORRAL_TRY(corral_devices_open(c, err));
    CORRAL_TRY(corral_quota_desk_open(c, err));
    CORRAL_TRY(corral_weights_open(c, err));
    corral_tenants_open(c);
    CORRAL_TRY(corral_loop_create(&c->loop, err));
    CORRAL_TRY(open_bus(c, err));
    corral_checkpoint_clean();
    CORRAL_TRY(corral_nodes_start(c, err)); /* before the rest, which happens while they come up */
    if (!c->journal) {
        CORRAL_TRY(corral_journal_create("journal.db", c->launch.run, c->job->name, &c->journal, err));
    }
    CORRAL_TRY(watch(c, err));
    CORRAL_TRY(corral_report_open(c, err));
    return corral_http_open(c, err);
}

static void coordinator_close(struct corral_coordinator *c)
{
    corral_nodes_kill(c);
    corral_checkpoint_clean(); /* what a killed trainer was writing */
    corral_http_close(c);
    corral_report_close(c);
    corral_bus_server_destroy(c->bus);
    corral_loop_destroy(c->loop);
    if (c->zmq) {
        zmq_ctx_term(c->zmq);
    }
    corral_mpack_writer_destroy(c->out);
    if (c->journal != c->config->journal) {
        corral_journal_close(c->journal);
    }
    corral_quota_desk_close(c);
    corral_weights_close(c);
    corral_devices_close(c);
    free(c->worker);
}

static void record_end(struct corral_coordinator *c)
{
    struct corral_journal_end end = {0};
    snprintf(end.outcome, sizeof end.outcome, "%s", corral_outcome_name(c->status.outcome));
    snprintf(end.reason, sizeof end.reason, "%s", c->status.reason);
    struct corral_error err;
    if (c->journal && corral_journal_end_run(c->journal, &end, &err) != CORRAL_OK) {
        corral_log_warn("the run's end is not journalled", LOG_ERR(&err));
    }
}

enum corral_status corral_coordinator_run(const struct corral_coordinator_config *config,
                                          struct corral_run_status *status, struct corral_error *err)
{
    struct corral_coordinator *c = calloc(1, sizeof *c);
    if (!c) {
        return corral_fail(err, CORRAL_NOMEM, "coordinator");
    }
    c->config = config;
    c->job = config->job;
    c->launch = config->launch;
    c->journal = config->journal;
    c->version_limit = config->version_floor;
    c->status.proof.slack_min = UINT64_MAX;
    c->status.window_return = c->status.window_length = NAN;
    c->status.phase = phase_names[RUN_STARTING];
    enum corral_status result = coordinator_open(c, err);
    if (result == CORRAL_OK) {
        result = corral_loop_run(c->loop, err);
    }
    if (result != CORRAL_OK) { /* it could not even begin: an end like any other, not a crash */
        c->status.outcome = CORRAL_OUTCOME_FAILED;
        snprintf(c->status.reason, sizeof c->status.reason, "%.399s", err ? err->text : "");
        record_end(c);
    } else {
        corral_training_tick(c);
        corral_proof_finish(c);
        record_end(c);
        corral_report_status(c);
        if (c->status.outcome == CORRAL_OUTCOME_FAILED) {
            result = corral_fail(err, CORRAL_STATE, "%s", c->status.reason);
        }
    }
    *status = c->status;
    coordinator_close(c);
    free(c);
    return result;
}
