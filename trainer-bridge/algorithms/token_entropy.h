/* The entropy bonus over tokens, and a coefficient that keeps the entropy from collapsing.
 *   loss -= coef scale H,   d loss / d H = -coef scale
 * The control (He et al. 2025, Skywork-OR1, arXiv 2505.22312): after each step, coef rises by `step` while the mean entropy is under the
 * target and falls by it otherwise, within 0..most; it is applied only while the entropy is at or under the target.
 * Pure; any thread. tokens.h has the rules for batches.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_ENTROPY_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_ENTROPY_H

#include "trainer-bridge/algorithms/tokens.h"

/* Added to. */
struct corral_token_entropy_sums {
    double loss, entropy, tokens; /* entropy: not scaled */
};

/* entropy, d_entropy: per token; 0 in d_entropy on untrained ones. coef below 0 makes a penalty of it. */
void corral_token_entropy(double coef, const struct corral_tokens *t, const double *scale,
                          const float *entropy, float *d_entropy, struct corral_token_entropy_sums *sums);

struct corral_entropy_control {
    double target, step, most;
};

/* The coefficient after a step whose mean entropy per trained token was `entropy`: keep it as part of the trainer's state.
 * An entropy that is no number changes nothing. */
double corral_entropy_control_next(const struct corral_entropy_control *control, double coef, double entropy);
/* What to multiply the bonus with now: coef, or 0 while the entropy is above the target. */
double corral_entropy_control_applied(const struct corral_entropy_control *control, double coef,
                                      double entropy);

#endif
