#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include <inttypes.h>
#include <string.h>

enum corral_status corral_trainer_ready(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err)
{
    (void)c;
    CORRAL_TRY(corral_mpack_get_str(m, "endpoint", w->endpoint, sizeof w->endpoint, err));
    CORRAL_TRY(corral_mpack_get_str(m, "collective", w->collective, sizeof w->collective, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "step", &w->saved_step, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "version", &w->saved_version, err));
    return corral_mpack_get_bool(m, "saved", &w->saved, err);
}

/* More version numbers, journalled before anyone may use them. */
static enum corral_status extend_lease(struct corral_coordinator *c, uint64_t version,
                                       struct corral_error *err)
{
    uint64_t limit = version + CORRAL_VERSION_LEASE;
    if (limit <= c->version_limit) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_journal_lease_versions(c->journal, limit, err));
    c->version_limit = limit;
    return CORRAL_OK;
}

enum corral_status corral_trainer_lease(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err)
{
    uint64_t version;
    CORRAL_TRY(corral_mpack_get_u64(m, "version", &version, err));
    struct corral_error failure;
    if (extend_lease(c, version, &failure) != CORRAL_OK) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, true, "no further weight versions: %s", failure.text);
        return CORRAL_OK;
    }
    corral_mpack_map(c->out, 2);
    corral_mpack_kv_str(c->out, "type", "leased");
    corral_mpack_kv_u64(c->out, "version_limit", c->version_limit);
    corral_coordinator_send(c, w->peer);
    return CORRAL_OK;
}

static void send_targets(struct corral_coordinator *c, struct coordinator_worker *w)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        count += c->node[i].weights_endpoint[0] != 0;
    }
    corral_mpack_map(c->out, 2);
    corral_mpack_kv_str(c->out, "type", "weights");
    corral_mpack_str(c->out, "targets");
    corral_mpack_array(c->out, count);
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        if (c->node[i].weights_endpoint[0]) {
            corral_mpack_map(c->out, 2);
            corral_mpack_kv_str(c->out, "node", c->job->node[i].name);
            corral_mpack_kv_str(c->out, "endpoint", c->node[i].weights_endpoint);
        }
    }
    corral_coordinator_send(c, w->peer);
}

/* Where every rank can go on from: the oldest of what they have. A rank with nothing in its vault starts from the checkpoint or afresh, where all of them began. */
static uint64_t common_step(const struct corral_coordinator *c, uint64_t *version)
{
    uint64_t step = UINT64_MAX;
    *version = c->config->version_floor;
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const struct coordinator_worker *w = &c->worker[i];
        if (w->job.role != CORRAL_ROLE_TRAIN) {
            continue;
        }
        uint64_t own = w->saved ? w->saved_step : c->config->base_step;
        step = CORRAL_MIN(step, own);
        *version = CORRAL_MAX(*version, w->saved_version);
    }
    return step == UINT64_MAX ? 0 : step;
}

static const char *collective_endpoint(const struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (c->worker[i].job.role == CORRAL_ROLE_TRAIN && c->worker[i].job.role_index == 0) {
            return c->worker[i].collective;
        }
    }
    return "";
}

static void form_group(struct corral_coordinator *c)
{
    uint64_t version, step = common_step(c, &version);
    for (uint32_t i = 0; i < c->worker_count; i++) {
        struct coordinator_worker *w = &c->worker[i];
        if (w->job.role != CORRAL_ROLE_TRAIN) {
            continue;
        }
        send_targets(c, w);
        corral_mpack_map(c->out, 6);
        corral_mpack_kv_str(c->out, "type", "group");
        corral_mpack_kv_u64(c->out, "generation", c->generation);
        corral_mpack_kv_u64(c->out, "step", step);
        corral_mpack_kv_u64(c->out, "version", version);
        corral_mpack_kv_u64(c->out, "version_limit", c->version_limit);
        corral_mpack_kv_str(c->out, "collective", collective_endpoint(c));
        corral_coordinator_send(c, w->peer);
        corral_worker_enter(c, w, WORKER_RUNNING, "group sent");
    }
    c->grouped = true;
    c->regrouping = false;
    if (c->generation > 1) {
        corral_coordinator_event(c, "regrouped", "trainers",
                                 "generation %u goes on from step %" PRIu64 ", versions above %" PRIu64,
                                 c->generation, step, version);
    }
}

/* Exactly ready: one that still runs in the old group is about to be killed, and what it said of its state is old. */
static bool all_ready(const struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (c->worker[i].job.role == CORRAL_ROLE_TRAIN && c->worker[i].state != WORKER_READY) {
            return false;
        }
    }
    return true;
}

void corral_trainers_advance(struct corral_coordinator *c)
{
    if (c->grouped || !all_ready(c)) {
        return;
    }
    struct corral_error failure;
    c->generation++;
    uint64_t floor = c->config->version_floor;
    if (extend_lease(c, CORRAL_MAX(floor, c->status.version), &failure) != CORRAL_OK) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, false, "no weight versions: %s", failure.text);
        return;
    }
    bool again = c->generation > 1;
    form_group(c);
    for (uint32_t i = 0; again && i < c->worker_count; i++) {
        struct coordinator_worker *w = &c->worker[i];
        if (w->job.role == CORRAL_ROLE_ROLLOUT && w->state == WORKER_RUNNING) {
            corral_worker_send_peers(c, w, "peers");
        }
    }
}

/* One trainer has ended: its group is broken. The others are taken down and all come back as the next generation. */
void corral_trainers_regroup(struct corral_coordinator *c, const struct coordinator_worker *dead)
{
    c->grouped = false;
    if (c->regrouping) {
        return;
    }
    c->regrouping = true;
    corral_checkpoint_trainer_lost(c);
    for (uint32_t i = 0; i < c->worker_count; i++) {
        struct coordinator_worker *w = &c->worker[i];
        if (w != dead && w->job.role == CORRAL_ROLE_TRAIN && w->state < WORKER_BACKOFF) {
            corral_worker_kill(c, w, "its trainer group is started again");
            corral_worker_enter(
                c, w, WORKER_STARTING,
                "its group is broken"); /* until it has died it must not pass for ready, with an old state */
        }
    }
}
