#include "trainer-bridge/algorithms/token_kl.h"
#include "model/activation.h"
#include "trainer-bridge/algorithms/token_math.h"
#include <math.h>

struct block {
    float x
        [TOKEN_BLOCK]; /* held; 0 on untrained tokens, where all three estimators and their slopes are wanted 0 */
    float exp_minus_x[TOKEN_BLOCK];
    float inside[TOKEN_BLOCK]; /* 1: trained and not held */
    double value[TOKEN_BLOCK], slope[TOKEN_BLOCK];
};

enum corral_status corral_token_kl_check(const struct corral_token_kl_config *config,
                                         struct corral_error *err)
{
    if (config->kind < CORRAL_KL_K1 || config->kind > CORRAL_KL_K3) {
        return corral_fail(err, CORRAL_INVALID, "KL: there is no estimator %d", (int)config->kind);
    }
    if (!(config->beta >= 0 && isfinite(config->beta))) {
        return corral_fail(err, CORRAL_INVALID, "KL: the coefficient is %g", (double)config->beta);
    }
    return CORRAL_OK;
}

static void estimate(const struct corral_token_kl_config *config, uint32_t n, const uint8_t *mask,
                     const float *log_prob, const float *ref, struct block *b)
{
    for (uint32_t j = 0; j < n; j++) {
        float moved = log_prob[j] - ref[j], x = mask[j] ? moved : 0.0f;
        float trained = mask[j] ? 1.0f : 0.0f;
        b->inside[j] = token_is_held(x) ? 0.0f : trained;
        b->x[j] = token_hold_log_ratio(x);
        b->exp_minus_x[j] = -b->x[j];
    }
    corral_exp_f32(n, b->exp_minus_x, b->exp_minus_x);
    /* Chosen by factors rather than branches. The slope of k3 is 1 - exp(-x) = x - k3, which keeps its digits near 0. */
    enum corral_kl_kind slope_of = config->k2_slope ? CORRAL_KL_K2 : config->kind;
    double v1 = config->kind == CORRAL_KL_K1, v2 = config->kind == CORRAL_KL_K2 ? 0.5 : 0;
    double v3 = config->kind == CORRAL_KL_K3, s3 = slope_of == CORRAL_KL_K3;
    double s1 = slope_of == CORRAL_KL_K1, s2 = slope_of != CORRAL_KL_K1;
    for (uint32_t j = 0; j < n; j++) {
        double x = (double)b->x[j], k3 = token_k3(-b->x[j], b->exp_minus_x[j]);
        b->value[j] = (v1 + v2 * x) * x + v3 * k3;
        b->slope[j] = (s1 + s2 * x - s3 * k3) * (double)b->inside[j];
    }
}

void corral_token_kl_loss(const struct corral_token_kl_config *config, const struct corral_tokens *t,
                          const double *scale, const float *log_prob, const float *ref_log_prob,
                          float *d_log_prob, struct corral_token_kl_sums *sums)
{
    struct block b;
    for (uint32_t s = 0; s < t->sequences; s++) {
        double factor = (double)config->beta * scale[s], kl = 0, tokens = 0;
        uint32_t n, end = t->offsets[s + 1];
        for (uint32_t i = t->offsets[s]; i < end; i += n) {
            n = CORRAL_MIN(end - i, TOKEN_BLOCK);
            estimate(config, n, t->mask + i, log_prob + i, ref_log_prob + i, &b);
            for (uint32_t j = 0; j < n; j++) {
                d_log_prob[i + j] += (float)(factor * b.slope[j]);
            }
            for (uint32_t j = 0; j < n; j++) {
                kl += b.value[j];
                tokens += t->mask[i + j] ? 1 : 0;
            }
        }
        sums->loss += factor * kl;
        sums->kl += kl;
        sums->tokens += tokens;
    }
}

void corral_token_kl_reward(const struct corral_token_kl_config *config, const struct corral_tokens *t,
                            const float *log_prob, const float *ref_log_prob, float *reward,
                            struct corral_token_kl_sums *sums)
{
    struct block b;
    double sum = 0, tokens = 0;
    uint32_t n, end = t->sequences ? t->offsets[t->sequences] : 0;
    for (uint32_t i = t->sequences ? t->offsets[0] : 0; i < end; i += n) {
        n = CORRAL_MIN(end - i, TOKEN_BLOCK);
        estimate(config, n, t->mask + i, log_prob + i, ref_log_prob + i, &b);
        for (uint32_t j = 0; j < n; j++) {
            double kl = t->mask[i + j] ? b.value[j] : 0;
            reward[i + j] =
                t->mask[i + j] ? (float)((double)reward[i + j] - (double)config->beta * kl) : reward[i + j];
            sum += kl;
            tokens += t->mask[i + j] ? 1 : 0;
        }
    }
    sums->kl += sum;
    sums->tokens += tokens;
}
