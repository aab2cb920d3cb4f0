#include "trainer-bridge/algorithms/vtrace.h"
#include <math.h>

static void one_row(const struct corral_segment *s, uint32_t row, const float *log_ratio,
                    const struct corral_vtrace_config *config, float *advantage, float *target)
{
    double next_value = (double)s->last_value[row], next_target = next_value, carried = 0;
    for (uint32_t step = s->steps; step-- > 0;) {
        size_t at = (size_t)step * s->rows + row;
        if (s->terminated[at] || s->truncated[at]) {
            next_value = next_target = (double)corral_segment_end_value(s, at);
            carried = 0;
        }
        carried += (double)s->reward[at];
        if (!corral_segment_is_valid(s, at)) {
            advantage[at] = target[at] = 0.0f;
            continue;
        }
        double value = (double)s->value[at], ratio = exp((double)log_ratio[at]);
        double delta = fmin(config->rho_bar, ratio) * (carried + config->gamma * next_value - value);
        double c = config->lambda * fmin(config->c_bar, ratio);
        advantage[at] =
            (float)(fmin(config->rho_pg, ratio) * (carried + config->gamma * next_target - value));
        next_target = value + delta + config->gamma * c * (next_target - next_value);
        next_value = value;
        carried = 0;
        target[at] = (float)next_target;
    }
}

void corral_vtrace(const struct corral_segment *s, const float *log_ratio,
                   const struct corral_vtrace_config *config, float *advantage, float *target)
{
    for (uint32_t row = 0; row < s->rows; row++) {
        one_row(s, row, log_ratio, config, advantage, target);
    }
}
