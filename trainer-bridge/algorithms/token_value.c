#include "trainer-bridge/algorithms/token_value.h"
#include "trainer-bridge/algorithms/token_math.h"

void corral_token_value_loss(const struct corral_token_value_config *config, const struct corral_tokens *t,
                             const double *scale, const float *value, const float *old_value,
                             const float *returns, float *d_value, struct corral_token_value_sums *sums)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        double factor = (double)config->coef * scale[s], loss = 0;
        uint32_t tokens = 0, clipped = 0;
        for (uint32_t i = t->offsets[s]; i < t->offsets[s + 1]; i++) {
            if (!t->mask[i]) {
                d_value[i] = 0.0f;
                continue;
            }
            float error = value[i] - returns[i], slope = error;
            if (config->clip > 0) {
                float moved = value[i] - old_value[i], held = token_hold(moved, -config->clip, config->clip);
                float other = old_value[i] + held - returns[i];
                bool larger = held != moved && other * other > error * error;
                slope = larger ? 0.0f : slope;
                error = larger ? other : error;
                clipped += larger;
            }
            tokens++;
            loss += 0.5 * (double)error * (double)error;
            d_value[i] = (float)(factor * (double)slope);
        }
        sums->loss += factor * loss;
        sums->tokens += tokens;
        sums->clipped += clipped;
    }
}
