#include "base/log.h"
#include "base/rng.h"
#include "base/text.h"
#include "orchestrator/coordinator/internal.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

static uint64_t elapsed(const struct corral_coordinator *c)
{
    return corral_coordinator_now() - c->config->started_ns;
}

static void window_add(struct corral_coordinator *c, const float *episode)
{
    memcpy(c->window[c->window_next], episode, 2 * sizeof(float));
    c->window_next = (c->window_next + 1) % CORRAL_EPISODE_WINDOW;
    c->status.window_count += c->status.window_count < CORRAL_EPISODE_WINDOW;
    c->status.episodes++;
    if (c->first_count < CORRAL_EPISODE_WINDOW) {
        c->first_sum += episode[0];
        c->first_count++;
        c->status.first_return = c->first_sum / (double)c->first_count;
    }
}

static void window_mean(struct corral_coordinator *c)
{
    double value = 0, length = 0;
    for (uint32_t i = 0; i < c->status.window_count; i++) {
        value += c->window[i][0];
        length += c->window[i][1];
    }
    c->status.window_return = c->status.window_count ? value / c->status.window_count : NAN;
    c->status.window_length = c->status.window_count ? length / c->status.window_count : NAN;
}

static enum corral_status take_episodes(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                        struct corral_error *err)
{
    const void *data;
    size_t bytes;
    CORRAL_TRY(corral_mpack_get_bin(m, "episodes", &data, &bytes, err));
    for (size_t at = 0; at + 2 * sizeof(float) <= bytes; at += 2 * sizeof(float)) {
        float episode[2];
        memcpy(episode, (const char *)data + at, sizeof episode);
        window_add(c, episode);
    }
    window_mean(c);
    return CORRAL_OK;
}

static void rate(struct corral_coordinator *c)
{
    uint64_t now = corral_coordinator_now();
    if (c->rate_ns == 0) {
        c->rate_ns = now;
        c->rate_env_steps = c->status.env_steps;
        return;
    }
    uint64_t span = now - c->rate_ns;
    if (span < CORRAL_NS_PER_S / 4) {
        return;
    }
    c->rate_env_steps =
        CORRAL_MIN(c->rate_env_steps, c->status.env_steps); /* a group may begin a step further back */
    c->status.steps_per_s = (double)(c->status.env_steps - c->rate_env_steps) * 1e9 / (double)span;
    c->rate_ns = now;
    c->rate_env_steps = c->status.env_steps;
}

static void learned(struct corral_coordinator *c, const char *what, double value, double target)
{
    if (c->phase != RUN_RUNNING || c->finish_by_ns != 0) {
        return;
    }
    c->status.learned_ns = elapsed(c);
    char reached[32], wanted[32];
    corral_run_finish(c, CORRAL_OUTCOME_LEARNED, true, "%s %s reached %s", what,
                      corral_format_return(value, reached, sizeof reached),
                      corral_format_return(target, wanted, sizeof wanted));
}

static void check_limits(struct corral_coordinator *c)
{
    const struct corral_job *job = c->job;
    const struct corral_run_status *s = &c->status;
    if (c->phase != RUN_RUNNING) {
        return;
    }
    if (!isnan(job->stop.train_return) && s->window_count == CORRAL_EPISODE_WINDOW &&
        s->window_return >= job->stop.train_return) {
        learned(c, "the mean return of the last 100 training episodes", s->window_return,
                job->stop.train_return);
    } else if (job->stop.env_steps && s->env_steps >= job->stop.env_steps) {
        corral_run_finish(c, CORRAL_OUTCOME_DONE, true, "%" PRIu64 " environment steps (stop.env_steps)",
                          s->env_steps);
    } else if (job->stop.train_steps && s->step >= job->stop.train_steps) {
        corral_run_finish(c, CORRAL_OUTCOME_DONE, true, "%" PRIu64 " gradient steps (stop.train_steps)",
                          s->step);
    } else if (job->stop.wall_ns && elapsed(c) >= job->stop.wall_ns) {
        corral_run_finish(c, CORRAL_OUTCOME_DONE, true, "%.0f s (stop.wall)",
                          (double)job->stop.wall_ns / 1e9);
    }
}

static json_t *step_line(const struct corral_coordinator *c, const struct corral_mpack_node *m)
{
    static const char *const reals[] = {
        "policy_loss", "value_loss", "entropy",        "kl",      "clip_fraction", "explained_variance",
        "grad_norm",   "lr",         "staleness_mean", "wait_ms", "train_ms",      "publish_ms"};
    json_t *line = json_object();
    json_object_set_new(line, "event", json_string("step"));
    json_object_set_new(line, "t", corral_json_real((double)elapsed(c) / 1e9));
    json_object_set_new(line, "step", json_integer((json_int_t)c->status.step));
    json_object_set_new(line, "version", json_integer((json_int_t)c->status.version));
    json_object_set_new(line, "env_steps", json_integer((json_int_t)c->status.env_steps));
    json_object_set_new(line, "episodes", json_integer((json_int_t)c->status.episodes));
    json_object_set_new(line, "return_mean", corral_json_real(c->status.window_return));
    json_object_set_new(line, "length_mean", corral_json_real(c->status.window_length));
    for (size_t i = 0; i < CORRAL_COUNT_OF(reals); i++) {
        double value;
        if (corral_mpack_get_f64(m, reals[i], &value, NULL) == CORRAL_OK) {
            json_object_set_new(line, reals[i], corral_json_real(value));
        }
    }
    uint64_t staleness_max = 0;
    (void)corral_mpack_get_u64(m, "staleness_max", &staleness_max, NULL);
    json_object_set_new(line, "staleness_max", json_integer((json_int_t)staleness_max));
    json_object_set_new(line, "proof", corral_proof_heads_json(c));
    return line;
}

static enum corral_status lead_step(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                    struct corral_error *err)
{
    struct corral_run_status *s = &c->status;
    uint64_t version, transitions, staleness_max;
    double staleness;
    CORRAL_TRY(corral_mpack_get_u64(m, "step", &s->step, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "version", &version, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "transitions", &transitions, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "env_steps", &s->env_steps, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "entropy", &s->entropy, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "kl", &s->kl, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "lr", &s->lr, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "wait_ms", &s->wait_ms, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "train_ms", &s->train_ms, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "publish_ms", &s->publish_ms, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "staleness_mean", &staleness, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "staleness_max", &staleness_max, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "dropped_stale", &s->dropped_stale, err));
    if (version < s->version) {
        return corral_fail(err, CORRAL_INTERNAL, "the trainer went back from version %" PRIu64 " to %" PRIu64,
                           s->version, version);
    }
    CORRAL_TRY(corral_mpack_get_u64(m, "pushes", &s->versions_pushed, err));
    CORRAL_TRY(corral_weights_pushed(c, m, err));
    s->version = version;
    s->transitions += transitions;
    s->staleness_max = CORRAL_MAX(s->staleness_max, staleness_max);
    c->staleness_sum += staleness;
    s->staleness_mean = c->staleness_sum / (double)++c->staleness_steps;
    s->last_step_ns = elapsed(c);
    if (s->first_step_ns == 0) {
        s->first_step_ns = s->last_step_ns;
        s->first_env_steps = s->env_steps;
    }
    rate(c);
    if (c->job->observe.metrics) {
        corral_report_line(c, step_line(c, m));
    }
    return CORRAL_OK;
}

enum corral_status corral_training_stands(struct corral_coordinator *c, struct coordinator_worker *w,
                                          const struct corral_mpack_node *m, struct corral_error *err)
{
    uint64_t step, version, env_steps, pushes;
    CORRAL_TRY(corral_mpack_get_u64(m, "step", &step, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "version", &version, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "env_steps", &env_steps, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "pushes", &pushes, err));
    if (w->job.role != CORRAL_ROLE_TRAIN || w->job.role_index != 0) {
        return CORRAL_OK;
    }
    struct corral_run_status *s = &c->status;
    s->step = step;
    s->version = CORRAL_MAX(s->version, version);
    s->env_steps = env_steps;
    s->versions_pushed = pushes;
    c->rate_ns = 0;
    rate(c);
    c->standing = true;
    check_limits(c);
    return CORRAL_OK;
}

enum corral_status corral_training_step(struct corral_coordinator *c, struct coordinator_worker *w,
                                        const struct corral_mpack_node *m, struct corral_error *err)
{
    CORRAL_TRY(take_episodes(c, m, err));
    CORRAL_TRY(corral_proof_stepped(c, w, m, err));
    if (w->job.role_index == 0) {
        CORRAL_TRY(lead_step(c, m, err));
    }
    check_limits(c);
    corral_training_dispatch_eval(c);
    return CORRAL_OK;
}

void corral_training_dispatch_eval(struct corral_coordinator *c)
{
    uint64_t newest = CORRAL_MAX(c->status.version, 1u);
    for (uint32_t i = 0; i < c->worker_count && c->phase == RUN_RUNNING; i++) {
        struct coordinator_worker *w = &c->worker[i];
        bool due = c->eval_id == 0 || newest >= c->eval_last_version + c->job->eval.every;
        if (w->job.role != CORRAL_ROLE_EVAL || w->state != WORKER_RUNNING || w->evaluating || !due) {
            continue;
        }
        c->eval_id++;
        c->eval_last_version = newest;
        w->evaluating = true;
        corral_mpack_map(c->out, 6);
        corral_mpack_kv_str(c->out, "type", "eval");
        corral_mpack_kv_u64(c->out, "id", c->eval_id);
        corral_mpack_kv_u64(c->out, "version_min", c->status.version);
        corral_mpack_kv_u64(c->out, "episodes", c->job->eval.episodes);
        corral_mpack_kv_bool(c->out, "greedy", c->job->eval.greedy);
        corral_mpack_kv_u64(c->out, "seed",
                            corral_seed_derive(c->job->seed, 0x6576616c, c->eval_id, c->launch.incarnation));
        corral_coordinator_send(c, w->peer);
    }
}

static void report_evaluation(struct corral_coordinator *c, const struct corral_evaluation *e,
                              const char *worker)
{
    json_t *line = json_object();
    json_object_set_new(line, "event", json_string("eval"));
    json_object_set_new(line, "t", corral_json_real((double)e->at_ns / 1e9));
    json_object_set_new(line, "worker", json_string(worker));
    json_object_set_new(line, "version", json_integer((json_int_t)e->version));
    json_object_set_new(line, "episodes", json_integer(e->episodes));
    json_object_set_new(line, "mean", corral_json_real(e->mean));
    json_object_set_new(line, "std", corral_json_real(e->std));
    json_object_set_new(line, "min", corral_json_real(e->min));
    json_object_set_new(line, "max", corral_json_real(e->max));
    json_object_set_new(line, "length_mean", corral_json_real(e->length_mean));
    json_object_set_new(line, "env_steps", json_integer((json_int_t)c->status.env_steps));
    corral_report_line(c, line);
}

enum corral_status corral_training_evaluated(struct corral_coordinator *c, struct coordinator_worker *w,
                                             const struct corral_mpack_node *m, struct corral_error *err)
{
    struct corral_evaluation e = {.at_ns = elapsed(c)};
    uint64_t episodes;
    w->evaluating = false; /* whatever it says: it waits for the next request */
    CORRAL_TRY(corral_mpack_get_u64(m, "version", &e.version, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "episodes", &episodes, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "mean", &e.mean, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "std", &e.std, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "min", &e.min, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "max", &e.max, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "length_mean", &e.length_mean, err));
    e.episodes = (uint32_t)episodes;
    struct corral_run_status *s = &c->status;
    if (s->evaluations++ == 0) {
        s->first_eval = s->best_eval = e;
    }
    if (e.mean > s->best_eval.mean) {
        s->best_eval = e;
    }
    s->last_eval = e;
    report_evaluation(c, &e, w->job.name);
    if (!isnan(c->job->stop.eval_return) && e.mean >= c->job->stop.eval_return) {
        learned(c, "the mean evaluation return", e.mean, c->job->stop.eval_return);
    }
    corral_training_dispatch_eval(c);
    return CORRAL_OK;
}

static double fraction(double done, double all)
{
    return all > 0 ? CORRAL_MIN(1.0, done / all) : 0;
}

/* Towards the limit that will be met first. */
static void estimate(struct corral_coordinator *c)
{
    struct corral_run_status *s = &c->status;
    const struct corral_job *job = c->job;
    double p = 0;
    p = CORRAL_MAX(p, fraction((double)s->env_steps, (double)job->stop.env_steps));
    p = CORRAL_MAX(p, fraction((double)s->step, (double)job->stop.train_steps));
    p = CORRAL_MAX(p, fraction((double)elapsed(c), (double)job->stop.wall_ns));
    s->progress = job->stop.env_steps || job->stop.train_steps || job->stop.wall_ns ? p : NAN;
    double trained_ns = s->first_step_ns ? (double)(elapsed(c) - s->first_step_ns) : 0;
    s->eta_ns = p > 0.005 && trained_ns > 0 ? (uint64_t)(trained_ns * (1 - p) / p) : UINT64_MAX;
}

void corral_training_tick(struct corral_coordinator *c)
{
    struct corral_run_status *s = &c->status;
    s->elapsed_ns = elapsed(c);
    s->phase = corral_run_phase_name(c->phase);
    s->void_episodes = s->duplicates = s->resent = 0;
    for (uint32_t i = 0; i < c->worker_count; i++) {
        const uint64_t *counter = c->worker[i].counter;
        s->void_episodes += counter[CORRAL_BOARD_VOID_EPISODES];
        s->duplicates += counter[CORRAL_BOARD_DUPLICATES];
        s->resent += counter[CORRAL_BOARD_RESENT];
    }
    estimate(c);
    check_limits(c);
}
