/* Arithmetic shared by the token functions; private to this folder. tokens.h has the rules for extremes and NaN. */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_MATH_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_MATH_H

#include "trainer-bridge/algorithms/tokens.h"
#include <stdbool.h>

/* Loops that call corral_exp_f32() go in blocks of this many tokens, on the stack. */
#define TOKEN_BLOCK 256u

/* NaN stays NaN. */
static inline float token_hold(float x, float low, float high)
{
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline float token_hold_log_ratio(float x)
{
    return token_hold(x, -CORRAL_LOG_RATIO_MAX, CORRAL_LOG_RATIO_MAX);
}

/* For sums of log-ratios: opposite infinities do not make a NaN, and any mean of real log-probabilities is untouched. */
static inline double token_summand(float log_ratio)
{
    return (double)token_hold(log_ratio, -1e6f, 1e6f);
}

/* Outside, the held ratio does not move with the log-probability: its slope is 0. */
static inline bool token_is_held(float log_ratio)
{
    return (log_ratio < -CORRAL_LOG_RATIO_MAX) | (log_ratio > CORRAL_LOG_RATIO_MAX);
}

/* exp(x) - x - 1 from x and exp(x). Near 0 the difference would be lost in f32: a series there. */
static inline double token_k3(float x, float exp_x)
{
    double d = (double)x;
    double series =
        d * d *
        (1.0 / 2 + d * (1.0 / 6 + d * (1.0 / 24 + d * (1.0 / 120 + d * (1.0 / 720 + d * (1.0 / 5040))))));
    double plain = (double)exp_x - d - 1.0;
    return d * d < 0.0625 ? series : plain;
}

#endif
