#include "trainer-bridge/algorithms/ppo_loss.h"
#include "model/activation.h"
#include <math.h>

#define LOG_RATIO_MAX 20.0f

/* NaN stays NaN in all of these: a broken number must reach the caller's check. */
static inline float hold(float x, float low, float high)
{
    x = x < low ? low : x;
    return x > high ? high : x;
}

static void policy_part(const struct corral_ppo_loss_config *c, const struct corral_ppo_loss_batch *b,
                        const float *ratio, float *d_log_prob, struct corral_ppo_loss_sums *sums)
{
    double loss = 0, kl = 0, clipped = 0, most = sums->ratio_max;
    float low = 1.0f - c->clip, high = 1.0f + c->clip;
    for (uint32_t i = 0; i < b->n; i++) {
        float r = ratio[i], a = b->advantage[i];
        float plain = -a * r, held = -a * hold(r, low, high);
        /* Inside the clip both are equal; outside only the plain one has a slope. */
        d_log_prob[i] = held > plain ? 0.0f : c->scale * plain;
        float log_r = hold(b->log_prob[i] - b->old_log_prob[i], -LOG_RATIO_MAX, LOG_RATIO_MAX);
        loss += (double)(held > plain ? held : plain);
        kl += (double)(r - 1.0f) - (double)log_r;
        clipped += r < low || r > high ? 1 : 0;
        most = (double)r > most ? (double)r : most;
    }
    sums->policy_loss += loss;
    sums->kl += kl;
    sums->clipped += clipped;
    sums->ratio_max = most;
}

static void value_part(const struct corral_ppo_loss_config *c, const struct corral_ppo_loss_batch *b,
                       float *d_value, struct corral_ppo_loss_sums *sums)
{
    double loss = 0;
    float factor = c->scale * c->value_coef;
    for (uint32_t i = 0; i < b->n; i++) {
        float error = b->value[i] - b->returns[i], slope = error, square = error * error;
        if (c->value_clip > 0) {
            float moved = b->value[i] - b->old_value[i], held = hold(moved, -c->value_clip, c->value_clip);
            float other = b->old_value[i] + held - b->returns[i];
            if (other * other > square) {
                square = other * other;
                slope = held == moved ? other : 0.0f;
            }
        }
        d_value[i] = factor * slope;
        loss += 0.5 * (double)square;
    }
    sums->value_loss += loss;
}

void corral_ppo_loss(const struct corral_ppo_loss_config *config, const struct corral_ppo_loss_batch *batch,
                     float *d_log_prob, float *d_entropy, float *d_value, float *scratch,
                     struct corral_ppo_loss_sums *sums)
{
    for (uint32_t i = 0; i < batch->n; i++) {
        scratch[i] = hold(batch->log_prob[i] - batch->old_log_prob[i], -LOG_RATIO_MAX, LOG_RATIO_MAX);
    }
    corral_exp_f32(batch->n, scratch, scratch);
    policy_part(config, batch, scratch, d_log_prob, sums);
    value_part(config, batch, d_value, sums);
    double entropy = 0;
    for (uint32_t i = 0; i < batch->n; i++) {
        d_entropy[i] = -config->scale * config->entropy_coef;
        entropy += (double)batch->entropy[i];
    }
    sums->entropy += entropy;
}
