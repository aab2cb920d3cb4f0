#include "trainer-bridge/algorithms/gae.h"
#include "trainer-bridge/algorithms/vtrace.h"
#include "trainer-bridge/learners/ppo_internal.h"
#include <math.h>
#include <string.h>

/* Values of n rows, in pieces the workspace holds. */
static void values_of(struct corral_ppo *p, const float *obs, bool normalised, uint32_t n, float *value)
{
    for (uint32_t at = 0; at < n; at += p->piece) {
        struct corral_policy_batch batch = {.obs = obs + (size_t)at * p->layout.spec.obs_dim,
                                            .obs_normalised = normalised,
                                            .n = CORRAL_MIN(p->piece, n - at)};
        corral_policy_value_batch(&p->layout, p->weights, p->ws, &batch, value + at);
    }
}

static struct corral_segment segment_of(const struct corral_ppo *p, const struct corral_fragment *f,
                                        uint32_t at)
{
    return (struct corral_segment){.steps = f->steps,
                                   .rows = f->rows,
                                   .reward = p->reward + at,
                                   .value = p->value + at,
                                   .terminated = f->terminated,
                                   .truncated = f->truncated,
                                   .valid = f->valid,
                                   .last_value = p->last_value,
                                   .boundary_count = f->boundary_count,
                                   .boundary_at = f->boundary_at,
                                   .boundary_value = p->boundary_value};
}

/* Mean and squared deviations of n numbers over all ranks; two passes, so no cancellation. */
static enum corral_status moments_over_ranks(struct corral_ppo *p, const float *x, const uint32_t *at,
                                             uint32_t n, struct corral_moments *out, struct corral_error *err)
{
    double sum[2] = {n, 0};
    for (uint32_t i = 0; i < n; i++) {
        sum[1] += (double)x[at[i]];
    }
    CORRAL_TRY(corral_ppo_sum_f64(p, sum, 2, err));
    double mean = sum[0] > 0 ? sum[1] / sum[0] : 0, m2 = 0;
    for (uint32_t i = 0; i < n; i++) {
        double d = (double)x[at[i]] - mean;
        m2 += d * d;
    }
    CORRAL_TRY(corral_ppo_sum_f64(p, &m2, 1, err));
    *out = (struct corral_moments){.count = sum[0], .mean = mean, .m2 = m2};
    return CORRAL_OK;
}

/* The discounted return of a row as it stands after each decision, into `out`; the table keeps it for the next fragment. */
static void track_returns(struct corral_ppo *p, const struct corral_fragment *f, const float *reward,
                          float *out)
{
    for (uint32_t row = 0; row < f->rows; row++) {
        double sum = corral_return_get(&p->returns, f->worker, f->epoch, row);
        for (uint32_t step = 0; step < f->steps; step++) {
            size_t at = (size_t)step * f->rows + row;
            if (f->valid[at]) {
                sum = sum * p->config.gamma + (double)reward[at];
            }
            out[at] = (float)sum;
            if (f->terminated[at] || f->truncated[at]) {
                sum = 0;
            }
        }
        corral_return_set(&p->returns, f->worker, f->epoch, row, sum);
    }
}

static enum corral_status scale_rewards(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                        uint32_t count, struct corral_error *err)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        track_returns(p, fragments[i], p->reward + at, p->target + at);
        at += fragments[i]->steps * fragments[i]->rows;
    }
    struct corral_moments step;
    CORRAL_TRY(moments_over_ranks(p, p->target, p->valid_at, p->valid, &step, err));
    corral_moments_merge(&p->now.returns, step);
    double scale = 1 / sqrt(corral_moments_variance(&p->now.returns) + 1e-8), most = p->config.reward_clip;
    for (uint32_t i = 0; i < p->dense; i++) {
        p->reward[i] = (float)fmax(-most, fmin(most, (double)p->reward[i] * scale));
    }
    return CORRAL_OK;
}

static void fold_rewards(struct corral_ppo *p, const struct corral_fragment *const *fragments, uint32_t count)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct corral_segment s = segment_of(p, fragments[i], at);
        s.reward = fragments[i]->reward;
        corral_segment_fold_rewards(&s, p->reward + at);
        at += fragments[i]->steps * fragments[i]->rows;
    }
}

/* log pi of the current weights, into `out` at each valid transition. */
static void current_log_probs(struct corral_ppo *p, float *out)
{
    for (uint32_t at = 0; at < p->valid; at += p->piece) {
        struct corral_policy_batch batch = {.obs = p->obs,
                                            .obs_normalised = true,
                                            .mask_rows = p->any_mask ? p->mask_rows : NULL,
                                            .action = p->action,
                                            .index = p->valid_at + at,
                                            .n = CORRAL_MIN(p->piece, p->valid - at)};
        corral_policy_evaluate_batch(&p->layout, p->weights, p->ws, &batch, p->piece_floats, NULL, NULL);
        for (uint32_t i = 0; i < batch.n; i++) {
            out[p->valid_at[at + i]] = p->piece_floats[i];
        }
    }
}

/* V-trace: the truncated importance weight pi / mu is inside the advantage, so the ratio that PPO clips is taken against pi as the step found it;
 * against mu the weight would enter twice. old_log_prob := log pi, target := log pi - log mu for the estimator. */
static void to_proximal(struct corral_ppo *p)
{
    current_log_probs(p, p->target);
    for (uint32_t i = 0; i < p->valid; i++) {
        uint32_t at = p->valid_at[i];
        float log_pi = p->target[at];
        p->target[at] = log_pi - p->old_log_prob[at];
        p->old_log_prob[at] = log_pi;
    }
}

static void estimate_advantages(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                uint32_t count)
{
    const struct corral_ppo_config *c = &p->config;
    uint32_t at = 0;
    if (c->advantage == CORRAL_ADVANTAGE_VTRACE) {
        to_proximal(p);
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_fragment *f = fragments[i];
        values_of(p, f->last_obs, false, f->rows, p->last_value);
        values_of(p, f->boundary_obs, false, f->boundary_count, p->boundary_value);
        struct corral_segment s = segment_of(p, f, at);
        if (c->advantage == CORRAL_ADVANTAGE_VTRACE) {
            struct corral_vtrace_config v = {.gamma = c->gamma,
                                             .lambda = c->lambda,
                                             .rho_bar = c->vtrace_rho,
                                             .c_bar = c->vtrace_c,
                                             .rho_pg = c->vtrace_rho};
            corral_vtrace(&s, p->target + at, &v, p->advantage + at, p->target + at);
        } else {
            corral_gae(&s, c->gamma, c->lambda, p->advantage + at, p->target + at);
        }
        at += f->steps * f->rows;
    }
}

static enum corral_status explain(struct corral_ppo *p, struct corral_ppo_stats *stats,
                                  struct corral_error *err)
{
    struct corral_moments target, residual;
    CORRAL_TRY(moments_over_ranks(p, p->target, p->valid_at, p->valid, &target, err));
    for (uint32_t i = 0; i < p->valid; i++) {
        uint32_t at = p->valid_at[i];
        p->last_value[i] = p->target[at] - p->value[at];
        p->order[i] = i;
    }
    CORRAL_TRY(moments_over_ranks(p, p->last_value, p->order, p->valid, &residual, err));
    stats->explained_variance = corral_explained_variance(&target, &residual);
    if (!isfinite(target.mean) || !isfinite(residual.mean)) {
        return corral_fail(err, CORRAL_INVALID, "ppo: the %s is not finite: step refused",
                           isfinite(target.mean) ? "value" : "value target");
    }
    return CORRAL_OK;
}

enum corral_status corral_ppo_prepare(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                      uint32_t count, struct corral_ppo_stats *stats,
                                      struct corral_error *err)
{
    values_of(p, p->obs, true, p->dense, p->value);
    fold_rewards(p, fragments, count);
    if (p->config.normalise_reward) {
        CORRAL_TRY(scale_rewards(p, fragments, count, err));
    }
    estimate_advantages(p, fragments, count);
    return explain(p, stats, err);
}

static void write_statistics(struct corral_ppo *p)
{
    uint32_t at = corral_policy_stats_at(&p->layout), dim = p->layout.spec.obs_dim;
    float *mean = p->weights + p->layout.tensor[at].offset,
          *var = p->weights + p->layout.tensor[at + 1].offset;
    for (uint32_t d = 0; d < dim; d++) {
        mean[d] = (float)p->obs_mean[d];
        var[d] = (float)(p->obs_m2[d] / p->now.obs_count);
    }
    p->weights[p->layout.tensor[at + 2].offset] = (float)p->now.obs_count;
}

/* Sum over valid observations of (x - about) or its square. */
static void add_observations(const struct corral_fragment *f, const double *about, double *sum)
{
    size_t cells = (size_t)f->steps * f->rows, dim = f->obs_dim;
    for (size_t at = 0; at < cells; at++) {
        for (size_t d = 0; f->valid[at] && d < dim; d++) {
            double x = (double)f->obs[at * dim + d];
            sum[d] += about ? (x - about[d]) * (x - about[d]) : x;
        }
    }
}

/* Only now: the whole step, and the behaviour policy before it, used the statistics that came with the weights. */
enum corral_status corral_ppo_settle(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                     uint32_t count, struct corral_error *err)
{
    uint32_t dim = p->layout.spec.obs_dim;
    if (!p->layout.spec.normalise_obs) {
        return CORRAL_OK;
    }
    double *mean = p->batch_mean + 1, *m2 = p->batch_m2;
    memset(p->batch_mean, 0, (1 + dim) * sizeof *p->batch_mean);
    memset(m2, 0, dim * sizeof *m2);
    p->batch_mean[0] = p->valid;
    for (uint32_t i = 0; i < count; i++) {
        add_observations(fragments[i], NULL, mean);
    }
    CORRAL_TRY(corral_ppo_sum_f64(p, p->batch_mean, 1 + dim, err));
    for (uint32_t d = 0; d < dim; d++) {
        mean[d] /= p->batch_mean[0];
    }
    for (uint32_t i = 0; i < count; i++) {
        add_observations(fragments[i], mean, m2);
    }
    CORRAL_TRY(corral_ppo_sum_f64(p, m2, dim, err));
    corral_moments_merge_many(dim, &p->now.obs_count, p->obs_mean, p->obs_m2, p->batch_mean[0], mean, m2);
    write_statistics(p);
    return CORRAL_OK;
}
