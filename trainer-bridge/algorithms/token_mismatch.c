#include "trainer-bridge/algorithms/token_mismatch.h"
#include "model/activation.h"
#include "trainer-bridge/algorithms/token_math.h"
#include <math.h>

void corral_token_mismatch_add(const struct corral_tokens *t, const float *log_prob,
                               const float *rollout_log_prob, struct corral_token_mismatch_sums *sums)
{
    struct corral_token_mismatch_sums m = *sums;
    float x[TOKEN_BLOCK], ratio[TOKEN_BLOCK];
    uint8_t counts[TOKEN_BLOCK];
    uint32_t n, end = t->sequences ? t->offsets[t->sequences] : 0;
    for (uint32_t i = t->sequences ? t->offsets[0] : 0; i < end; i += n) {
        n = CORRAL_MIN(end - i, TOKEN_BLOCK);
        for (uint32_t j = 0; j < n; j++) {
            float moved = log_prob[i + j] - rollout_log_prob[i + j];
            counts[j] = t->mask[i + j] && isfinite(moved);
            x[j] = counts[j] ? moved : 0.0f;
            ratio[j] = token_hold_log_ratio(x[j]);
        }
        corral_exp_f32(n, ratio, ratio);
        for (uint32_t j = 0; j < n; j++) {
            double d = (double)x[j], r = counts[j] ? (double)ratio[j] : 0;
            m.tokens += counts[j];
            m.broken += t->mask[i + j] && !counts[j];
            m.distance += fabs(d);
            m.distance_max = CORRAL_MAX(m.distance_max, fabs(d));
            m.k1 -= d;
            m.k3 += token_k3(token_hold_log_ratio(x[j]), ratio[j]);
            m.ratio += r;
            m.ratio_squares += r * r;
        }
    }
    *sums = m;
}

void corral_token_mismatch_merge(struct corral_token_mismatch_sums *into,
                                 const struct corral_token_mismatch_sums *other)
{
    into->tokens += other->tokens;
    into->broken += other->broken;
    into->distance += other->distance;
    into->k1 += other->k1;
    into->k3 += other->k3;
    into->ratio += other->ratio;
    into->ratio_squares += other->ratio_squares;
    into->distance_max = CORRAL_MAX(into->distance_max, other->distance_max);
}

struct corral_token_mismatch corral_token_mismatch_of(const struct corral_token_mismatch_sums *sums)
{
    if (sums->tokens == 0) {
        return (struct corral_token_mismatch){.effective = 1.0};
    }
    double n = (double)sums->tokens;
    return (struct corral_token_mismatch){
        .mean = sums->distance / n,
        .max = sums->distance_max,
        .k1 = sums->k1 / n,
        .k3 = sums->k3 / n,
        .effective = sums->ratio * sums->ratio / (n * sums->ratio_squares),
    };
}
