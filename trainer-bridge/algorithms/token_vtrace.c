#include "trainer-bridge/algorithms/token_vtrace.h"
#include "trainer-bridge/algorithms/token_math.h"
#include <math.h>

/* As fmin(), but NaN stays NaN. */
static inline double at_most(double most, double x)
{
    return x > most ? most : x;
}

static void one_sequence(const struct corral_tokens *t, uint32_t s, const struct corral_token_critic *critic,
                         const float *log_prob, const float *behave,
                         const struct corral_vtrace_config *config, float *advantage, float *target)
{
    double next_value = critic->bootstrap ? (double)critic->bootstrap[s] : 0;
    double next_target = next_value, carried = 0;
    for (uint32_t i = t->offsets[s + 1]; i-- > t->offsets[s];) {
        carried += (double)critic->reward[i];
        if (!t->mask[i]) {
            advantage[i] = target[i] = 0.0f;
            continue;
        }
        double value = (double)critic->value[i];
        double ratio = exp((double)token_hold_log_ratio(log_prob[i] - behave[i]));
        double delta = at_most(config->rho_bar, ratio) * (carried + config->gamma * next_value - value);
        double c = config->lambda * at_most(config->c_bar, ratio);
        advantage[i] =
            (float)(at_most(config->rho_pg, ratio) * (carried + config->gamma * next_target - value));
        next_target = value + delta + config->gamma * c * (next_target - next_value);
        next_value = value;
        carried = 0;
        target[i] = (float)next_target;
    }
}

void corral_token_vtrace(const struct corral_tokens *t, const struct corral_token_critic *critic,
                         const float *log_prob, const float *behave_log_prob,
                         const struct corral_vtrace_config *config, float *advantage, float *target)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        one_sequence(t, s, critic, log_prob, behave_log_prob, config, advantage, target);
    }
}
