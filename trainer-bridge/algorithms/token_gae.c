#include "trainer-bridge/algorithms/token_gae.h"

void corral_token_gae(const struct corral_tokens *t, const struct corral_token_critic *critic, double gamma,
                      double lambda, float *advantage, float *returns)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        double next_value = critic->bootstrap ? (double)critic->bootstrap[s] : 0;
        double next_advantage = 0, carried = 0;
        for (uint32_t i = t->offsets[s + 1]; i-- > t->offsets[s];) {
            carried += (double)critic->reward[i];
            if (!t->mask[i]) {
                advantage[i] = returns[i] = 0.0f;
                continue;
            }
            double value = (double)critic->value[i];
            next_advantage = carried + gamma * next_value - value + gamma * lambda * next_advantage;
            next_value = value;
            carried = 0;
            advantage[i] = (float)next_advantage;
            returns[i] = (float)(next_advantage + value);
        }
    }
}
