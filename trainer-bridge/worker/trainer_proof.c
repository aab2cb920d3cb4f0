/* The step guard in the trainer: when it is made, how the ranks agree on a step, what the coordinator is told. */
#include "base/file.h"
#include "base/log.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include <stdio.h>
#include <string.h>

#define PAUSE_MS 10 /* before a refused step is tried again; doubles up to PAUSE_MS_MAX */
#define PAUSE_MS_MAX 1000

void corral_trainer_phase(struct corral_trainer *t, enum corral_ledger_phase phase)
{
    corral_quota_set_phase(t->session->quota, t->session->holder, t->state.counters.step + 1, phase);
}

/* Minibatches go forward, backward and through the optimizer in turn: all of it counts as backward. */
static void on_ppo_phase(void *ctx, enum corral_ppo_phase phase)
{
    static const enum corral_ledger_phase as[] = {[CORRAL_PPO_OVER] = CORRAL_PHASE_NONE,
                                                  [CORRAL_PPO_PREPARING] = CORRAL_PHASE_FORWARD,
                                                  [CORRAL_PPO_UPDATING] = CORRAL_PHASE_BACKWARD};
    corral_trainer_phase(ctx, as[phase]);
}

static enum corral_status make_folder(const char *path, struct corral_error *err)
{
    char folder[256];
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path) {
        return CORRAL_OK;
    }
    (void)snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    return corral_mkdirs(folder, 0755, err);
}

enum corral_status corral_trainer_guard_open(struct corral_trainer *t, struct corral_error *err)
{
    const struct corral_trainer_config *c = t->config;
    CORRAL_TRY(make_folder(c->proof, err));
    struct corral_step_guard_config config = {
        .quota = t->session->quota,
        .holder = t->session->holder,
        .rank = t->rank,
        .generation = t->session->launch.epoch,
        .run = t->session->launch.run,
        .step = t->state.counters.step,
        .chain_path = c->proof,
        .fences = c->fences,
        .drift_max = c->drift_max,
        .declared = c->declared,
        .host_device = c->host_device,
    };
    CORRAL_TRY(corral_step_guard_create(&config, &t->guard, err));
    corral_ppo_on_phase(t->ppo, on_ppo_phase, t);
    return CORRAL_OK;
}

/* What this rank says, and after the sum what all say together. */
struct votes {
    double something, refused, finish;
};

static enum corral_status vote(struct corral_trainer *t, bool something, enum corral_status mine,
                               struct votes *v, struct corral_error *err)
{
    double sum[3] = {something, mine != CORRAL_OK, t->session->finish};
    CORRAL_TRY(t->collective->ops->sum_f64(t->collective, sum, CORRAL_COUNT_OF(sum), err));
    *v = (struct votes){.something = sum[0], .refused = sum[1], .finish = sum[2]};
    return CORRAL_OK;
}

static enum corral_status give_up(const struct corral_trainer *t, enum corral_status mine,
                                  const struct corral_error *why, struct corral_error *err)
{
    const char *what = mine != CORRAL_OK ? why->text : "another rank was refused it";
    return corral_fail(err, mine != CORRAL_OK ? mine : CORRAL_DENIED,
                       "gradient step %llu was not possible within %u ms (fault.dead_after): %.300s",
                       (unsigned long long)t->state.counters.step + 1, t->config->refused_ms, what);
}

/* All ranks count the same pauses, so all give up together. */
enum corral_status corral_trainer_guard_begin(struct corral_trainer *t, bool something,
                                              enum corral_trainer_go *go, struct corral_error *err)
{
    uint32_t waited_ms = 0;
    for (uint32_t pause_ms = PAUSE_MS;; pause_ms = CORRAL_MIN(2 * pause_ms, PAUSE_MS_MAX)) {
        struct corral_error why = {0};
        struct votes v;
        enum corral_status mine = corral_step_guard_begin(t->guard, t->state.counters.step + 1, 0, &why);
        enum corral_status told = vote(t, something, mine, &v, err);
        bool taken = told == CORRAL_OK && v.something > 0 && v.refused == 0;
        if (!taken) {
            corral_step_guard_abandon(t->guard);
        }
        CORRAL_TRY(told);
        if (mine != CORRAL_OK && mine != CORRAL_DENIED && mine != CORRAL_IO) {
            return corral_fail(err, mine, "%s", why.text);
        }
        if (v.refused == 0 || v.something == 0) {
            *go = v.something > 0 ? CORRAL_TRAINER_GO : CORRAL_TRAINER_NOTHING;
            return CORRAL_OK;
        }
        if (v.finish > 0) {
            *go = CORRAL_TRAINER_STOP;
            return CORRAL_OK;
        }
        if (waited_ms >= t->config->refused_ms) {
            return give_up(t, mine, &why, err);
        }
        if (waited_ms == 0) {
            corral_log_warn("gradient step refused; it is tried again",
                            LOG_U64("step", t->state.counters.step + 1),
                            LOG_STR("reason", mine != CORRAL_OK ? why.text : "on another rank"));
        }
        CORRAL_TRY(corral_trainer_poll(t, pause_ms, err));
        waited_ms += pause_ms;
    }
}

enum corral_status corral_trainer_guard_end(struct corral_trainer *t, struct corral_trainer_report *report,
                                            struct corral_error *err)
{
    CORRAL_TRY(corral_step_guard_end(t->guard, &report->proof, err));
    bool unproven = report->proof.verdict == CORRAL_PROOF_UNPROVEN;
    if (unproven && !t->unproven_told) {
        corral_log_warn("gradient step unproven; later ones are not logged until one is proven",
                        LOG_U64("step", report->proof.step), LOG_STR("reason", report->proof.why));
    }
    t->unproven_told = unproven;
    return CORRAL_OK;
}

enum corral_status corral_trainer_guard_finish(struct corral_trainer *t, struct corral_error *err)
{
    struct corral_chain_head head;
    CORRAL_TRY(corral_step_guard_finish(t->guard, &head, err));
    corral_mpack_map(t->out, 5);
    corral_mpack_kv_str(t->out, "type", "proof");
    corral_mpack_kv_u64(t->out, "rank", t->rank);
    corral_mpack_kv_u64(t->out, "step", t->state.counters.step);
    corral_mpack_kv_u64(t->out, "proof_count", head.count);
    corral_mpack_kv_str(t->out, "proof_hash", head.hash);
    return corral_session_send(t->session, t->out, err);
}
