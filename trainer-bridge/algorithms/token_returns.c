#include "trainer-bridge/algorithms/token_returns.h"

void corral_token_returns(const struct corral_tokens *t, const float *reward, double gamma, float *returns)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        double next = 0, carried = 0;
        for (uint32_t i = t->offsets[s + 1]; i-- > t->offsets[s];) {
            carried += (double)reward[i];
            if (!t->mask[i]) {
                returns[i] = 0.0f;
                continue;
            }
            next = carried + gamma * next;
            carried = 0;
            returns[i] = (float)next;
        }
    }
}

void corral_token_outcome(const struct corral_tokens *t, const float *outcome, float *reward)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        uint32_t i = t->offsets[s + 1];
        while (i > t->offsets[s] && !t->mask[i - 1]) {
            i--;
        }
        if (i > t->offsets[s]) {
            reward[i - 1] += outcome[s];
        }
    }
}
