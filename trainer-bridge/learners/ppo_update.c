#include "base/clock.h"
#include "trainer-bridge/algorithms/adam.h"
#include "trainer-bridge/algorithms/clip_norm.h"
#include "trainer-bridge/algorithms/schedule.h"
#include "trainer-bridge/learners/ppo_internal.h"
#include <math.h>
#include <string.h>

/* One epoch's plan: equal shares of the permutation, so that no minibatch is tiny. */
struct plan {
    uint32_t minibatches;
    double lr;
    struct corral_ppo_loss_config loss;
};

static uint32_t share_start(const struct corral_ppo *p, const struct plan *plan, uint32_t minibatch)
{
    return (uint32_t)((uint64_t)p->total * minibatch / plan->minibatches);
}

/* Where a global index lies in this rank's dense batch, or -1. */
static inline int64_t mine(const struct corral_ppo *p, uint32_t global)
{
    uint32_t local = global - p->offset; /* wraps for earlier ranks' */
    return local < p->valid ? (int64_t)p->valid_at[local] : -1;
}

/* Mean and deviations of each minibatch's advantages over all ranks, in two reductions per epoch. whiten_sums becomes [2][minibatches]: means, then m2. */
static enum corral_status whiten_epoch(struct corral_ppo *p, const struct plan *plan,
                                       struct corral_error *err)
{
    double *mean = p->whiten_sums, *m2 = p->whiten_sums + plan->minibatches;
    for (uint32_t m = 0; m < plan->minibatches; m++) {
        mean[m] = 0;
        for (uint32_t i = share_start(p, plan, m); i < share_start(p, plan, m + 1); i++) {
            int64_t at = mine(p, p->order[i]);
            mean[m] += at < 0 ? 0.0 : (double)p->advantage[at];
        }
    }
    CORRAL_TRY(corral_ppo_sum_f64(p, mean, plan->minibatches, err));
    for (uint32_t m = 0; m < plan->minibatches; m++) {
        mean[m] /= share_start(p, plan, m + 1) - share_start(p, plan, m);
        m2[m] = 0;
        for (uint32_t i = share_start(p, plan, m); i < share_start(p, plan, m + 1); i++) {
            int64_t at = mine(p, p->order[i]);
            double d = at < 0 ? 0.0 : (double)p->advantage[at] - mean[m];
            m2[m] += d * d;
        }
    }
    return corral_ppo_sum_f64(p, m2, plan->minibatches, err);
}

/* Gradient of n members (p->member) added to p->grad. */
static void run_piece(struct corral_ppo *p, const struct plan *plan, struct corral_whiten whiten, uint32_t n,
                      struct corral_ppo_loss_sums *sums)
{
    float *f = p->piece_floats;
    const uint32_t w = p->piece;
    float *log_prob = f, *entropy = f + w, *value = f + 2 * w, *old_log_prob = f + 3 * w,
          *advantage = f + 4 * w;
    float *target = f + 5 * w, *old_value = f + 6 * w, *d_log_prob = f + 7 * w, *d_entropy = f + 8 * w,
          *d_value = f + 9 * w;
    struct corral_policy_batch batch = {.obs = p->obs,
                                        .obs_normalised = true,
                                        .mask_rows = p->any_mask ? p->mask_rows : NULL,
                                        .action = p->action,
                                        .index = p->member,
                                        .n = n};
    corral_policy_evaluate_batch(&p->layout, p->weights, p->ws, &batch, log_prob, entropy, value);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = p->member[i];
        old_log_prob[i] = p->old_log_prob[at];
        advantage[i] = corral_whiten_apply(whiten, p->advantage[at]);
        target[i] = p->target[at];
        old_value[i] = p->value[at];
    }
    struct corral_ppo_loss_batch loss = {.n = n,
                                         .log_prob = log_prob,
                                         .entropy = entropy,
                                         .value = value,
                                         .old_log_prob = old_log_prob,
                                         .advantage = advantage,
                                         .returns = target,
                                         .old_value = old_value};
    corral_ppo_loss(&plan->loss, &loss, d_log_prob, d_entropy, d_value, f + 10 * w, sums);
    corral_policy_backward(&p->layout, p->weights, p->ws, d_log_prob, d_entropy, d_value, p->grad);
}

/* This rank's part of minibatch m: gradient and loss sums, in p->grad. */
static void run_members(struct corral_ppo *p, const struct plan *plan, uint32_t m)
{
    uint32_t end = share_start(p, plan, m + 1), at = share_start(p, plan, m);
    struct corral_whiten whiten = {.mean = 0, .inverse = 1};
    if (p->config.normalise_advantage) {
        whiten = corral_whiten_of(end - at, p->whiten_sums[m], p->whiten_sums[plan->minibatches + m]);
    }
    struct corral_ppo_loss_sums sums = {.ratio_max = p->ratio_max};
    memset(p->grad, 0, (p->layout.trainable_floats + CORRAL_PPO_SUMS) * sizeof *p->grad);
    while (at < end) {
        uint32_t n = 0;
        for (; at < end && n < p->piece; at++) {
            int64_t dense = mine(p, p->order[at]);
            if (dense >= 0) {
                p->member[n++] = (uint32_t)dense;
            }
        }
        if (n > 0) {
            run_piece(p, plan, whiten, n, &sums);
        }
    }
    float *out = p->grad + p->layout.trainable_floats;
    out[0] = (float)sums.policy_loss;
    out[1] = (float)sums.value_loss;
    out[2] = (float)sums.entropy;
    out[3] = (float)sums.kl;
    out[4] = (float)sums.clipped;
    p->ratio_max = sums.ratio_max;
}

static enum corral_status name_the_broken(const struct corral_ppo *p, struct corral_error *err)
{
    static const char *const loss[] = {"policy loss", "value loss", "entropy"};
    const float *sums = p->grad + p->layout.trainable_floats;
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(loss); i++) {
        if (!isfinite(sums[i])) {
            return corral_fail(err, CORRAL_INVALID, "ppo: the %s is not finite: step refused", loss[i]);
        }
    }
    for (uint32_t t = 0; t < p->layout.tensors; t++) {
        const struct corral_policy_tensor *tensor = &p->layout.tensor[t];
        for (uint64_t i = 0; i < tensor->count && tensor->offset < p->layout.trainable_floats; i++) {
            if (!isfinite(p->grad[tensor->offset + i])) {
                return corral_fail(err, CORRAL_INVALID, "ppo: the gradient of %s is not finite: step refused",
                                   tensor->name);
            }
        }
    }
    return corral_fail(err, CORRAL_INVALID, "ppo: the gradient norm is not finite: step refused");
}

static enum corral_status run_minibatch(struct corral_ppo *p, const struct plan *plan, uint32_t m,
                                        double totals[5], double *norm_sum, struct corral_error *err)
{
    const struct corral_ppo_config *c = &p->config;
    uint64_t trainable = p->layout.trainable_floats;
    run_members(p, plan, m);
    CORRAL_TRY(corral_ppo_sum_f32(p, p->grad, trainable + CORRAL_PPO_SUMS, err));
    const float *sums = p->grad + trainable;
    double norm = corral_norm(p->grad, trainable);
    if (!isfinite(norm) || !isfinite(sums[0] + sums[1] + sums[2])) {
        return name_the_broken(p, err);
    }
    struct corral_adam_config adam = {.beta1 = c->adam_beta1, .beta2 = c->adam_beta2, .eps = c->adam_eps};
    p->now.updates++;
    corral_adam(&adam, plan->lr, p->now.updates, trainable, p->grad,
                corral_clip_scale(norm, c->max_grad_norm), p->adam_m, p->adam_v, p->weights);
    for (uint32_t i = 0; i < 5; i++) {
        totals[i] += (double)sums[i];
    }
    *norm_sum += norm;
    return CORRAL_OK;
}

static enum corral_status run_epoch(struct corral_ppo *p, struct plan *plan, double totals[5],
                                    double *norm_sum, struct corral_error *err)
{
    corral_rng_permutation(&p->now.rng, p->order, p->total);
    if (p->config.normalise_advantage) {
        CORRAL_TRY(whiten_epoch(p, plan, err));
    }
    for (uint32_t m = 0; m < plan->minibatches; m++) {
        uint32_t size = share_start(p, plan, m + 1) - share_start(p, plan, m);
        plan->loss.scale = 1.0f / (float)size;
        CORRAL_TRY(run_minibatch(p, plan, m, totals, norm_sum, err));
    }
    return CORRAL_OK;
}

static enum corral_status largest_ratio(struct corral_ppo *p, double *out, struct corral_error *err)
{
    double each[CORRAL_COLLECTIVE_RANKS_MAX];
    CORRAL_TRY(corral_ppo_gather(p, &p->ratio_max, sizeof p->ratio_max, each, err));
    *out = 0;
    for (uint32_t r = 0; r < p->ranks; r++) {
        *out = fmax(*out, each[r]);
    }
    return CORRAL_OK;
}

enum corral_status corral_ppo_update(struct corral_ppo *p, double progress, struct corral_ppo_stats *stats,
                                     struct corral_error *err)
{
    const struct corral_ppo_config *c = &p->config;
    struct plan plan = {.minibatches = (uint32_t)(((uint64_t)p->total + c->minibatch - 1) / c->minibatch),
                        .lr = corral_schedule_linear(c->lr, c->lr_final, progress),
                        .loss = {.clip = (float)corral_schedule_linear(c->clip, c->clip_final, progress),
                                 .value_clip = (float)c->value_clip,
                                 .value_coef = (float)c->value_coef,
                                 .entropy_coef = (float)c->entropy_coef}};
    double all[3] = {0}, norm_sum = 0;
    p->ratio_max = 0;
    stats->lr = plan.lr;
    for (uint32_t epoch = 0; epoch < c->epochs; epoch++) {
        double totals[5] = {0};
        CORRAL_TRY(run_epoch(p, &plan, totals, &norm_sum, err));
        for (uint32_t i = 0; i < 3; i++) {
            all[i] += totals[i];
        }
        stats->approx_kl = totals[3] / p->total;
        stats->clip_fraction = totals[4] / p->total;
        stats->epochs_done = epoch + 1;
        if (c->target_kl > 0 && stats->approx_kl > c->target_kl) {
            break;
        }
    }
    double count = (double)p->total * stats->epochs_done;
    stats->policy_loss = all[0] / count;
    stats->value_loss = all[1] / count;
    stats->entropy = all[2] / count;
    stats->grad_norm = norm_sum / ((double)plan.minibatches * stats->epochs_done);
    return largest_ratio(p, &stats->ratio_max, err);
}
