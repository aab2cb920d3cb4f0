#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const state_names[WORKER_STATES] = {"starting", "ready", "running", "backoff", "gone"};

enum corral_status corral_workers_open(struct corral_coordinator *c, struct corral_error *err)
{
    c->worker_count = corral_job_workers(c->job, NULL, 0);
    c->worker = calloc(CORRAL_MAX(c->worker_count, 1u), sizeof *c->worker);
    CORRAL_AUTO_FREE struct corral_job_worker *list = calloc(CORRAL_MAX(c->worker_count, 1u), sizeof *list);
    if (!c->worker || !list) {
        return corral_fail(err, CORRAL_NOMEM, "tables for %u workers", c->worker_count);
    }
    corral_job_workers(c->job, list, c->worker_count);
    for (uint32_t i = 0; i < c->worker_count; i++) {
        struct coordinator_worker *w = &c->worker[i];
        w->job = list[i];
        w->epoch = c->launch.incarnation * CORRAL_EPOCHS_PER_INCARNATION;
        w->state_since_ns = corral_coordinator_now();
        c->trainers += list[i].role == CORRAL_ROLE_TRAIN;
        c->rollouts += list[i].role == CORRAL_ROLE_ROLLOUT;
        c->evals += list[i].role == CORRAL_ROLE_EVAL;
    }
    return CORRAL_OK;
}

struct coordinator_worker *corral_workers_find(struct corral_coordinator *c, const char *name)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (strcmp(c->worker[i].job.name, name) == 0) {
            return &c->worker[i];
        }
    }
    return NULL;
}

void corral_worker_enter(struct corral_coordinator *c, struct coordinator_worker *w, enum worker_state next,
                         const char *why)
{
    corral_log_debug("worker changes state", LOG_STR("worker", w->job.name),
                     LOG_STR("from", state_names[w->state]), LOG_STR("to", state_names[next]),
                     LOG_STR("event", why));
    w->state = next;
    if (next == WORKER_RUNNING && w->job.role == CORRAL_ROLE_TRAIN) {
        w->generation = c->generation;
    }
    w->state_since_ns = corral_coordinator_now();
}

void corral_worker_joined(struct corral_coordinator *c, struct corral_bus_peer *peer)
{
    const struct corral_bus_hello *hello = corral_bus_peer_hello(peer);
    struct coordinator_worker *w = corral_workers_find(c, hello->name);
    if (w) {
        w->peer = w->late = NULL; /* whoever had this name is replaced */
    }
    if (!w || hello->epoch != w->epoch) {
        corral_log_warn("unexpected worker is refused", LOG_STR("worker", hello->name),
                        LOG_U64("epoch", hello->epoch));
        corral_bus_server_drop(c->bus, peer);
        return;
    }
    w->peer = peer;
    w->pid = hello->pid;
}

bool corral_workers_all(const struct corral_coordinator *c, enum corral_role role, enum worker_state at_least)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const struct coordinator_worker *w = &c->worker[i];
        if (w->job.role == role && (w->state < at_least || w->state > WORKER_RUNNING)) {
            return false;
        }
    }
    return true;
}

void corral_workers_tell_all(struct corral_coordinator *c, enum corral_role role, const char *type)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (c->worker[i].job.role == role && c->worker[i].peer) {
            corral_mpack_map(c->out, 2);
            corral_mpack_kv_str(c->out, "type", type);
            corral_mpack_kv_bool(c->out, "checkpoint", c->final_checkpoint_wanted);
            corral_coordinator_send(c, c->worker[i].peer);
        }
    }
}

void corral_worker_send_peers(struct corral_coordinator *c, struct coordinator_worker *w, const char *type)
{
    corral_mpack_map(c->out, 2);
    corral_mpack_kv_str(c->out, "type", type);
    corral_mpack_str(c->out, "peers");
    corral_mpack_array(c->out, c->trainers);
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const struct coordinator_worker *t = &c->worker[i];
        if (t->job.role == CORRAL_ROLE_TRAIN) {
            corral_mpack_map(c->out, 2);
            corral_mpack_kv_u64(c->out, "rank", t->job.role_index);
            corral_mpack_kv_str(c->out, "endpoint", t->endpoint);
        }
    }
    corral_coordinator_send(c, w->peer);
}

/* Rollout and eval workers run as soon as the trainers are a group: not before, so that a run is started whole. */
static void start_waiting(struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        struct coordinator_worker *w = &c->worker[i];
        if (w->state == WORKER_READY && w->job.role != CORRAL_ROLE_TRAIN) {
            if (w->job.role == CORRAL_ROLE_ROLLOUT) {
                corral_worker_send_peers(c, w, "start");
            }
            corral_worker_enter(c, w, WORKER_RUNNING, "start sent");
        }
    }
}

void corral_workers_advance(struct corral_coordinator *c)
{
    if (c->phase == RUN_STARTING) {
        bool all = corral_nodes_joined(c) && corral_workers_all(c, CORRAL_ROLE_TRAIN, WORKER_READY) &&
                   corral_workers_all(c, CORRAL_ROLE_ROLLOUT, WORKER_READY) &&
                   corral_workers_all(c, CORRAL_ROLE_EVAL, WORKER_READY);
        if (!all || !corral_weights_chosen(c)) {
            return;
        }
        corral_run_enter(c, RUN_RUNNING, "every worker is up");
        if (c->config->started) {
            c->config->started(c->config->ctx, &c->status);
        }
    }
    if (c->phase != RUN_RUNNING) {
        return;
    }
    corral_trainers_advance(c);
    if (c->grouped) {
        start_waiting(c);
        corral_training_dispatch_eval(c);
    }
}

static enum corral_status on_ready(struct corral_coordinator *c, struct coordinator_worker *w,
                                   const struct corral_mpack_node *m, struct corral_error *err)
{
    if (w->job.role == CORRAL_ROLE_TRAIN) {
        CORRAL_TRY(corral_trainer_ready(c, w, m, err));
    }
    w->evaluating = false;
    corral_worker_enter(c, w, WORKER_READY, "ready");
    corral_workers_advance(c);
    return CORRAL_OK;
}

/* The news of a worker's end comes from its agent and may overtake what it had sent before: its reports, why it failed, and the run's last checkpoint. */
static bool may_be_late(const struct corral_coordinator *c, const char *type)
{
    return strcmp(type, "step") == 0 || strcmp(type, "proof") == 0 || strcmp(type, "failed") == 0 ||
           (strcmp(type, "checkpointed") == 0 && c->phase >= RUN_FINISHING);
}

static enum corral_status on_failed(struct corral_coordinator *c, struct coordinator_worker *w, bool late,
                                    const struct corral_mpack_node *m, struct corral_error *err)
{
    char reason[400];
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    if (!late) {
        memcpy(w->failure, reason, sizeof w->failure);
        return CORRAL_OK;
    }
    corral_log_warn("a worker that has ended had said why", LOG_STR("worker", w->job.name),
                    LOG_STR("reason", reason));
    corral_coordinator_event(c, "failed", w->job.name, "%s", reason);
    if (c->phase == RUN_RUNNING) {
        snprintf(c->status.last_fault, sizeof c->status.last_fault, "%s: %s", w->job.name, reason);
    }
    return CORRAL_OK;
}

enum corral_status corral_worker_message(struct corral_coordinator *c, struct corral_bus_peer *peer,
                                         const char *type, const struct corral_mpack_node *m,
                                         struct corral_error *err)
{
    static const struct {
        const char *type;
        enum corral_status (*fn)(struct corral_coordinator *c, struct coordinator_worker *w,
                                 const struct corral_mpack_node *m, struct corral_error *err);
    } handlers[] = {
        {"ready", on_ready},
        {"stands", corral_training_stands},
        {"step", corral_training_step},
        {"proof", corral_proof_synced},
        {"evaluated", corral_training_evaluated},
        {"lease", corral_trainer_lease},
        {"checkpointed", corral_checkpoint_written},
        {"snapshotted", corral_checkpoint_snapshotted},
    };
    struct coordinator_worker *w = corral_workers_find(c, corral_bus_peer_hello(peer)->name);
    if (!w || (w->peer != peer && !(w->late == peer && may_be_late(c, type)))) {
        return CORRAL_OK; /* the last words of an earlier life */
    }
    if (strcmp(type, "failed") == 0) {
        return on_failed(c, w, w->peer != peer, m, err);
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(handlers); i++) {
        if (strcmp(handlers[i].type, type) == 0) {
            return handlers[i].fn(c, w, m, err);
        }
    }
    corral_log_warn("unknown message is ignored", LOG_STR("worker", w->job.name), LOG_STR("type", type));
    return CORRAL_OK;
}

/* How often within fault.window; also records this one. */
static uint32_t recent_restarts(struct corral_coordinator *c, struct coordinator_worker *w)
{
    uint64_t now = corral_coordinator_now();
    uint32_t recent = 1;
    for (uint32_t i = 0; i < CORRAL_RESTART_HISTORY; i++) {
        recent += w->restarted_ns[i] != 0 && now - w->restarted_ns[i] < c->job->fault.window_ns;
    }
    w->restarted_ns[w->restarts % CORRAL_RESTART_HISTORY] = now;
    return recent;
}

/* Exit code 2: wrong settings or no room. One more try, in case another role's burst was in the way. */
#define HOPELESS_CODE 2
#define HOPELESS_TRIES 1

static void plan_restart(struct corral_coordinator *c, struct coordinator_worker *w, int64_t code,
                         const char *reason)
{
    uint32_t recent = recent_restarts(c, w);
    if (code == HOPELESS_CODE && recent > HOPELESS_TRIES) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, w->job.role != CORRAL_ROLE_TRAIN, "%s cannot run: %s",
                          w->job.name, reason);
        return;
    }
    if (recent > c->job->fault.restarts_max) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, w->job.role != CORRAL_ROLE_TRAIN,
                          "%s ended %u times within %.0f s (fault.restarts_max %u), last: %s", w->job.name,
                          recent, (double)c->job->fault.window_ns / 1e9, c->job->fault.restarts_max, reason);
        return;
    }
    uint64_t backoff = c->job->fault.backoff_ns;
    for (uint32_t i = 1; i < recent && backoff < c->job->fault.backoff_max_ns; i++) {
        backoff *= 2;
    }
    w->retry_at_ns = corral_coordinator_now() + CORRAL_MIN(backoff, c->job->fault.backoff_max_ns);
    w->restarts++;
    c->status.restarts++;
    corral_worker_enter(c, w, WORKER_BACKOFF, "exited");
}

enum corral_status corral_worker_exited(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                        struct corral_error *err)
{
    char name[64], reason[400];
    uint64_t epoch, ran_ms;
    int64_t code;
    CORRAL_TRY(corral_mpack_get_str(m, "worker", name, sizeof name, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "epoch", &epoch, err));
    CORRAL_TRY(corral_mpack_get_i64(m, "code", &code, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "ran_ms", &ran_ms, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    struct coordinator_worker *w = corral_workers_find(c, name);
    if (!w || w->epoch != epoch) {
        return CORRAL_OK;
    }
    w->late = w->peer ? w->peer : w->late;
    w->peer = NULL;
    w->exit_code = code;
    const char *told = w->failure[0] ? w->failure : reason;
    if (c->phase >= RUN_FINISHING) {
        corral_worker_enter(c, w, WORKER_GONE, "exited");
        return CORRAL_OK;
    }
    corral_coordinator_event(c, "exited", name, "after %" PRIu64 " ms: %s", ran_ms, told);
    if (c->phase == RUN_STARTING) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, false, "%s could not start: %s", name, told);
        corral_worker_enter(c, w, WORKER_GONE, "exited");
        return CORRAL_OK;
    }
    corral_log_warn("worker ended and will be restarted", LOG_STR("worker", name), LOG_STR("reason", told),
                    LOG_U64("restarts", w->restarts + 1));
    snprintf(c->status.last_fault, sizeof c->status.last_fault, "%s: %s", name, told);
    plan_restart(c, w, code, told);
    w->failure[0] = 0;
    if (w->job.role == CORRAL_ROLE_TRAIN && c->phase == RUN_RUNNING) {
        c->standing = false;
        corral_trainers_regroup(c, w);
    }
    return CORRAL_OK;
}

void corral_worker_kill(struct corral_coordinator *c, struct coordinator_worker *w, const char *reason)
{
    struct coordinator_node *n = &c->node[w->job.device.node];
    if (!n->peer) {
        return;
    }
    corral_mpack_map(c->out, 4);
    corral_mpack_kv_str(c->out, "type", "kill");
    corral_mpack_kv_str(c->out, "worker", w->job.name);
    corral_mpack_kv_u64(c->out, "epoch", w->epoch);
    corral_mpack_kv_str(c->out, "reason", reason);
    corral_coordinator_send(c, n->peer);
}

static void spawn(struct corral_coordinator *c, struct coordinator_worker *w)
{
    w->epoch++;
    corral_mpack_map(c->out, 3);
    corral_mpack_kv_str(c->out, "type", "spawn");
    corral_mpack_kv_str(c->out, "worker", w->job.name);
    corral_mpack_kv_u64(c->out, "epoch", w->epoch);
    corral_coordinator_send(c, c->node[w->job.device.node].peer);
    corral_worker_enter(c, w, WORKER_STARTING, "spawned");
}

/* It hangs, or the order to start it was lost. Whatever still runs of it is killed, and what that says no longer counts: its successor has a newer epoch. */
static void give_up_start(struct corral_coordinator *c, struct coordinator_worker *w)
{
    static const char why[] = "it was not ready within fault.start_timeout";
    corral_worker_kill(c, w, why);
    w->epoch++;
    w->peer = w->late = NULL;
    corral_coordinator_event(c, "exited", w->job.name, "%s", why);
    corral_log_warn("worker is started again", LOG_STR("worker", w->job.name), LOG_STR("reason", why));
    snprintf(c->status.last_fault, sizeof c->status.last_fault, "%s: %s", w->job.name, why);
    plan_restart(c, w, 0, why);
}

void corral_workers_tick(struct corral_coordinator *c)
{
    uint64_t now = corral_coordinator_now();
    for (uint32_t i = 0; i < c->worker_count && c->phase < RUN_FINISHING; i++) {
        struct coordinator_worker *w = &c->worker[i];
        if (w->state == WORKER_BACKOFF && now >= w->retry_at_ns && c->phase == RUN_RUNNING) {
            spawn(c, w);
        }
        if (w->state != WORKER_STARTING || now < w->state_since_ns + c->job->fault.start_timeout_ns) {
            continue;
        }
        if (c->phase == RUN_STARTING) {
            corral_run_finish(c, CORRAL_OUTCOME_FAILED, false,
                              "%s was not ready within %.0f s (fault.start_timeout); see logs/%s.log",
                              w->job.name, (double)c->job->fault.start_timeout_ns / 1e9, w->job.name);
        } else {
            give_up_start(c, w);
        }
    }
}
