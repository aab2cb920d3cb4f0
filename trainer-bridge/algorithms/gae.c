#include "trainer-bridge/algorithms/gae.h"

static void one_row(const struct corral_segment *s, uint32_t row, double gamma, double lambda,
                    float *advantage, float *returns)
{
    double next_value = (double)s->last_value[row], next_advantage = 0, carried = 0;
    for (uint32_t step = s->steps; step-- > 0;) {
        size_t at = (size_t)step * s->rows + row;
        if (s->terminated[at] || s->truncated[at]) {
            next_value = (double)corral_segment_end_value(s, at);
            next_advantage = carried = 0;
        }
        carried += (double)s->reward[at];
        if (!corral_segment_is_valid(s, at)) {
            advantage[at] = returns[at] = 0.0f;
            continue;
        }
        double value = (double)s->value[at];
        next_advantage = carried + gamma * next_value - value + gamma * lambda * next_advantage;
        next_value = value;
        carried = 0;
        advantage[at] = (float)next_advantage;
        returns[at] = (float)(next_advantage + value);
    }
}

void corral_gae(const struct corral_segment *s, double gamma, double lambda, float *advantage, float *returns)
{
    for (uint32_t row = 0; row < s->rows; row++) {
        one_row(s, row, gamma, lambda, advantage, returns);
    }
}
