/* One gradient step after the other: wait for the batch, train, commit, report. trainer_worker.h says why in this order. */
#include "base/clock.h"
#include "base/log.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include <string.h>

#define WAIT_MS 50
#define SERVE_NS \
    (5 * CORRAL_NS_PER_MS) /* how long fragments that keep coming may keep the trainer from everything else */
#define ARRIVALS_MAX 256   /* taken in one go while others are waited for */

static bool limit_reached(const struct corral_trainer *t)
{
    const struct corral_trainer_config *c = t->config;
    return (c->stop_steps && t->state.counters.step >= c->stop_steps) ||
           (c->stop_env_steps && t->state.counters.env_steps >= c->stop_env_steps);
}

/* What has come from the rollout workers, without waiting. Fragments that are too stale may come faster than they are dropped. */
static enum corral_status take_arrivals(struct corral_trainer *t, struct corral_error *err)
{
    const struct corral_traj_item *item;
    enum corral_status status = CORRAL_OK;
    for (uint32_t i = 0;
         i < ARRIVALS_MAX && (status = corral_traj_receiver_next(t->receiver, 0, &item, err)) == CORRAL_OK;
         i++) {
        CORRAL_TRY(corral_batch_queue_add(t->queue, item, t->state.counters.version, err));
    }
    return status == CORRAL_AGAIN ? CORRAL_OK : status;
}

/* A rank that waits for others in a collective still hears its rollout workers and the coordinator: a restarted worker may have to be heard here before it can serve the rank waited for. And the rollout workers of
 * that rank may be waiting for these weights. */
void corral_trainer_on_collective_wait(void *ctx)
{
    struct corral_trainer *t = ctx;
    struct corral_error err;
    if (t->service_failure.status != CORRAL_OK) {
        return;
    }
    enum corral_status status = t->standing ? take_arrivals(t, &err) : CORRAL_OK;
    if (status == CORRAL_OK) {
        status = corral_trainer_poll(t, 0, &err);
    }
    if (status == CORRAL_OK) {
        status = corral_trainer_catch_up(t, &err);
    }
    if (status != CORRAL_OK) {
        t->service_failure = err;
    }
}

/* The cursors behind the batch, as the saved state is to have them. */
static void advance_cursors(struct corral_trainer *t)
{
    const struct corral_traj_item *const *items;
    uint32_t count = corral_batch_queue_items(t->queue, &items);
    t->state.cursor_count =
        corral_traj_receiver_cursors(t->receiver, items, count, t->state.cursor, CORRAL_TRAJ_WORKERS_MAX);
}

/* Acknowledge what was dropped, once the saved cursors are behind it. Between steps only: the saved state must be a whole one. */
static void settle_drops(struct corral_trainer *t)
{
    const struct corral_traj_item *const *drops;
    uint32_t count = corral_batch_queue_drops(t->queue, &drops);
    if (count > 0) {
        t->state.cursor_count =
            corral_traj_receiver_cursors(t->receiver, drops, count, t->state.cursor, CORRAL_TRAJ_WORKERS_MAX);
        corral_trainer_save_state(t);
        corral_batch_queue_finish_drops(t->queue, t->receiver);
    }
}

/* The coordinator is heard, the agent sees that this rank lives, and a node that missed the weights gets them: the workers waited for may be waiting for these. */
static enum corral_status serve(struct corral_trainer *t, struct corral_error *err)
{
    CORRAL_TRY(corral_trainer_poll(t, 0, err));
    corral_board_beat(t->session->slot);
    return corral_trainer_catch_up(t, err);
}

static enum corral_status wait_for_batch(struct corral_trainer *t, struct corral_error *err)
{
    while (limit_reached(t) && !t->session->finish) {
        corral_board_enter(t->session->slot, CORRAL_ACTIVITY_IDLE);
        CORRAL_TRY(corral_trainer_poll(t, WAIT_MS, err));
    }
    corral_board_enter(t->session->slot, CORRAL_ACTIVITY_WAIT_BATCH);
    CORRAL_TRY(serve(t, err));
    uint64_t served_ns = corral_now_ns(&corral_clock_monotonic);
    while (!corral_batch_queue_ready(t->queue) && !t->session->finish) {
        const struct corral_traj_item *item;
        settle_drops(t);
        enum corral_status status = corral_traj_receiver_next(t->receiver, WAIT_MS, &item, err);
        if (status == CORRAL_OK) {
            status = corral_batch_queue_add(t->queue, item, t->state.counters.version, err);
        }
        if (status != CORRAL_OK && status != CORRAL_AGAIN) {
            return status;
        }
        /* Not only when nothing comes: workers whose node missed the weights send what is too stale without end. */
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (status == CORRAL_AGAIN || now - served_ns >= SERVE_NS) {
            CORRAL_TRY(serve(t, err));
            served_ns = now;
        }
    }
    settle_drops(t);
    return CORRAL_OK;
}

/* All ranks stop after the same step: the first to be told tells the others. */
static enum corral_status agree_to_stop(struct corral_trainer *t, bool *stop, struct corral_error *err)
{
    double flags = t->session->finish ? 1 : 0;
    CORRAL_TRY(t->collective->ops->sum_f64(t->collective, &flags, 1, err));
    *stop = flags > 0;
    return CORRAL_OK;
}

static void count_batch(struct corral_trainer *t, const struct corral_fragment *const *batch, uint32_t count,
                        struct corral_trainer_report *report, double *env_steps)
{
    *env_steps = 0;
    report->episode_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_fragment *f = batch[i];
        *env_steps += (double)f->steps * f->rows / t->config->agents;
        t->state.counters.episodes += f->episode_count;
        for (uint32_t e = 0; e < f->episode_count && report->episode_count < CORRAL_EPISODES_REPORTED_MAX;
             e++) {
            memcpy(report->episode[report->episode_count++], f->episode + 2 * (size_t)e, 2 * sizeof(float));
        }
    }
}

static enum corral_status train_on_batch(struct corral_trainer *t, const struct corral_fragment *const *batch,
                                         uint32_t count, struct corral_trainer_report *report,
                                         struct corral_error *err)
{
    corral_board_enter(t->session->slot, CORRAL_ACTIVITY_TRAIN);
    uint64_t begun_ns = corral_now_ns(&corral_clock_monotonic);
    double progress =
        t->config->schedule_env_steps
            ? CORRAL_MIN(1.0, (double)t->state.counters.env_steps / (double)t->config->schedule_env_steps)
            : 0;
    CORRAL_TRY(corral_ppo_step(t->ppo, batch, count, progress, &report->ppo, err));
    double env_steps;
    count_batch(t, batch, count, report, &env_steps);
    CORRAL_TRY(t->collective->ops->sum_f64(t->collective, &env_steps, 1, err));
    t->state.counters.env_steps += (uint64_t)(env_steps + 0.5);
    CORRAL_TRY(corral_trainer_guard_end(t, report, err));
    t->state.counters.step++;
    report->train_ns = corral_now_ns(&corral_clock_monotonic) - begun_ns;
    return CORRAL_OK;
}

/* As the ledger has it, whichever allocator charges it. */
static uint64_t memory_used(const struct corral_trainer *t)
{
    const struct corral_ledger_holder *h =
        &corral_quota_ledger(t->session->quota)->holder[t->session->holder];
    return h->committed + h->reserved;
}

/* What the last version cost, stage by stage; zeros at ranks that do not publish. */
static void write_push(struct corral_mpack_writer *w, const struct corral_publish_stats *s)
{
    corral_mpack_str(w, "push");
    corral_mpack_map(w, 16);
    corral_mpack_kv_u64(w, "version", s->version);
    corral_mpack_kv_u64(w, "bytes", s->bytes);
    corral_mpack_kv_u64(w, "copy_ns", s->copy_ns);
    corral_mpack_kv_u64(w, "gather_ns", s->gather_ns);
    corral_mpack_kv_u64(w, "pack_ns", s->pack_ns);
    corral_mpack_kv_u64(w, "wire_ns", s->wire_ns);
    corral_mpack_kv_u64(w, "stage_ns", s->stage_ns);
    corral_mpack_kv_u64(w, "apply_ns", s->apply_ns);
    corral_mpack_kv_u64(w, "pause_ns", s->pause_ns);
    corral_mpack_kv_u64(w, "targets", s->targets);
    corral_mpack_kv_u64(w, "dropped", s->dropped);
    corral_mpack_kv_u64(w, "resent", s->resent_buckets);
    corral_mpack_kv_u64(w, "whole_bytes", s->whole_bytes);
    corral_mpack_kv_u64(w, "moved_bytes", s->moved_bytes);
    corral_mpack_kv_u64(w, "deltas", s->deltas);
    corral_mpack_kv_u64(w, "memory", s->memory);
}

static enum corral_status report_step(struct corral_trainer *t, const struct corral_trainer_report *r,
                                      struct corral_error *err)
{
    const struct corral_ppo_stats *p = &r->ppo;
    struct corral_mpack_writer *w = t->out;
    struct corral_chain_head head;
    struct corral_step_guard_counts counts;
    corral_step_guard_head(t->guard, &head);
    corral_step_guard_counts(t->guard, &counts);
    corral_mpack_map(w, 32);
    corral_mpack_kv_str(w, "type", "step");
    corral_mpack_kv_u64(w, "rank", t->rank);
    corral_mpack_kv_u64(w, "step", t->state.counters.step);
    corral_mpack_kv_u64(w, "version", t->state.counters.version);
    corral_mpack_kv_u64(w, "pushes", t->state.counters.pushes);
    corral_mpack_kv_u64(w, "transitions", p->transitions);
    corral_mpack_kv_u64(w, "env_steps", t->state.counters.env_steps);
    corral_mpack_kv_bin(w, "episodes", r->episode, r->episode_count * sizeof r->episode[0]);
    corral_mpack_kv_f64(w, "policy_loss", p->policy_loss);
    corral_mpack_kv_f64(w, "value_loss", p->value_loss);
    corral_mpack_kv_f64(w, "entropy", p->entropy);
    corral_mpack_kv_f64(w, "kl", p->approx_kl);
    corral_mpack_kv_f64(w, "clip_fraction", p->clip_fraction);
    corral_mpack_kv_f64(w, "explained_variance", p->explained_variance);
    corral_mpack_kv_f64(w, "grad_norm", p->grad_norm);
    corral_mpack_kv_f64(w, "lr", p->lr);
    corral_mpack_kv_u64(w, "epochs_done", p->epochs_done);
    corral_mpack_kv_f64(w, "staleness_mean", r->staleness.mean);
    corral_mpack_kv_u64(w, "staleness_max", r->staleness.max);
    corral_mpack_kv_f64(w, "wait_ms", (double)r->wait_ns / 1e6);
    corral_mpack_kv_f64(w, "train_ms", (double)r->train_ns / 1e6);
    corral_mpack_kv_f64(w, "publish_ms", (double)r->publish_ns / 1e6);
    corral_mpack_kv_u64(w, "dropped_stale", corral_batch_queue_dropped(t->queue));
    corral_mpack_kv_u64(w, "memory", memory_used(t));
    corral_mpack_kv_u64(w, "proof_count", head.count);
    corral_mpack_kv_str(w, "proof_hash", head.hash);
    corral_mpack_kv_bool(w, "proven", r->proof.verdict == CORRAL_PROOF_PROVEN);
    corral_mpack_kv_str(w, "proof_why", r->proof.why);
    corral_mpack_kv_u64(w, "refused", counts.refused - t->refused_told);
    corral_mpack_kv_u64(w, "own_peak", r->proof.own_peak);
    corral_mpack_kv_u64(w, "slack", r->proof.slack_min);
    t->refused_told = counts.refused;
    write_push(w, &t->pushed);
    return corral_session_send(t->session, w, err);
}

static void publish_counters(struct corral_trainer *t, const struct corral_trainer_report *report)
{
    struct corral_board_slot *slot = t->session->slot;
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(t->receiver, &stats);
    corral_board_set(slot, CORRAL_BOARD_TRAIN_STEPS, t->state.counters.step);
    corral_board_set(slot, CORRAL_BOARD_ENV_STEPS, t->state.counters.env_steps);
    corral_board_set(slot, CORRAL_BOARD_FRAGMENTS, stats.received);
    corral_board_set(slot, CORRAL_BOARD_ACKED, stats.acked);
    corral_board_set(slot, CORRAL_BOARD_DUPLICATES, stats.duplicates);
    corral_board_set(slot, CORRAL_BOARD_DROPPED_STALE, corral_batch_queue_dropped(t->queue));
    corral_board_add(slot, CORRAL_BOARD_TRANSITIONS, report->ppo.transitions);
    corral_board_set(slot, CORRAL_BOARD_MEMORY_BYTES, memory_used(t));
}

/* The step is done in memory; make it so for good. See trainer_worker.h for why in this order. */
static enum corral_status commit_step(struct corral_trainer *t, struct corral_trainer_report *report,
                                      struct corral_error *err)
{
    bool publish = t->state.counters.step % t->config->weights_every == 0;
    if (publish) {
        CORRAL_TRY(corral_trainer_next_version(t, &publish, err));
    }
    advance_cursors(t);
    corral_trainer_save_state(t);
    if (publish) {
        corral_trainer_phase(t, CORRAL_PHASE_SYNC);
        CORRAL_TRY(corral_trainer_publish(t, &report->publish_ns, err));
        corral_trainer_phase(t, CORRAL_PHASE_NONE);
    }
    CORRAL_TRY(t->collective->ops->barrier(t->collective, err));
    corral_batch_queue_finish(t->queue, t->receiver);
    publish_counters(t, report);
    CORRAL_TRY(report_step(t, report, err));
    if (t->config->checkpoint_every && t->state.counters.step % t->config->checkpoint_every == 0) {
        CORRAL_TRY(corral_trainer_checkpoint(t, err));
    }
    return CORRAL_OK;
}

/* A batch in which every episode was voided, on all ranks, has nothing to learn from: its fragments are done with, and no step is taken. */
static bool something_to_train_on(const struct corral_fragment *const *batch, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (memchr(batch[i]->valid, 1, (size_t)batch[i]->steps * batch[i]->rows)) {
            return true;
        }
    }
    return false;
}

/* Every fragment that is acknowledged must be behind the saved cursors first: a trainer restarted from older cursors would wait for it for ever. */
static enum corral_status pass_over(struct corral_trainer *t, uint32_t count, struct corral_error *err)
{
    corral_log_warn("a batch without any valid step is passed over", LOG_U64("fragments", count),
                    LOG_U64("step", t->state.counters.step));
    advance_cursors(t);
    corral_trainer_save_state(t);
    CORRAL_TRY(t->collective->ops->barrier(t->collective, err));
    corral_batch_queue_finish(t->queue, t->receiver);
    return CORRAL_OK;
}

enum corral_status corral_trainer_take_steps(struct corral_trainer *t, struct corral_trainer_report *report,
                                             struct corral_error *err)
{
    for (;;) {
        uint64_t begun_ns = corral_now_ns(&corral_clock_monotonic);
        CORRAL_TRY(wait_for_batch(t, err));
        report->wait_ns = corral_now_ns(&corral_clock_monotonic) - begun_ns;
        const struct corral_fragment *const *batch = NULL;
        uint32_t count = 0;
        if (!t->session->finish) {
            count = corral_batch_queue_take(t->queue, t->state.counters.version, &batch, &report->staleness);
            settle_drops(t);
            if (count == 0) {
                continue; /* what had come was too stale */
            }
        }
        bool stop;
        CORRAL_TRY(agree_to_stop(t, &stop, err));
        if (t->service_failure.status != CORRAL_OK) {
            return corral_fail(err, t->service_failure.status, "%s", t->service_failure.text);
        }
        if (stop) {
            return CORRAL_OK;
        }
        enum corral_trainer_go go;
        CORRAL_TRY(corral_trainer_guard_begin(t, something_to_train_on(batch, count), &go, err));
        if (go == CORRAL_TRAINER_STOP) {
            return CORRAL_OK;
        }
        if (go == CORRAL_TRAINER_NOTHING) {
            CORRAL_TRY(pass_over(t, count, err));
            continue;
        }
        CORRAL_TRY(train_on_batch(t, batch, count, report, err));
        CORRAL_TRY(commit_step(t, report, err));
    }
}
