#include "trainer-bridge/algorithms/token_entropy.h"
#include <math.h>

void corral_token_entropy(double coef, const struct corral_tokens *t, const double *scale,
                          const float *entropy, float *d_entropy, struct corral_token_entropy_sums *sums)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        double factor = -coef * scale[s], sum = 0, tokens = 0;
        for (uint32_t i = t->offsets[s]; i < t->offsets[s + 1]; i++) {
            sum += t->mask[i] ? (double)entropy[i] : 0;
            tokens += t->mask[i] ? 1 : 0;
            d_entropy[i] = t->mask[i] ? (float)factor : 0.0f;
        }
        sums->loss += factor * sum;
        sums->entropy += sum;
        sums->tokens += tokens;
    }
}

double corral_entropy_control_next(const struct corral_entropy_control *control, double coef, double entropy)
{
    if (isnan(entropy)) {
        return coef;
    }
    double next = entropy < control->target ? coef + control->step : coef - control->step;
    return CORRAL_MAX(0.0, CORRAL_MIN(next, control->most));
}

double corral_entropy_control_applied(const struct corral_entropy_control *control, double coef,
                                      double entropy)
{
    return entropy <= control->target ? coef : 0;
}
