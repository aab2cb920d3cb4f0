/* How far the log-probabilities that a rollout engine reported are from those that the trainer computes for the same tokens and weights:
 * x = trainer's - rollout's. Both KLs are of the rollout's policy to the trainer's, from its own samples:
 *   k1 = mean of -x,   k3 = mean of exp(x) - 1 - x (Schulman 2020, "Approximating KL divergence"; never below 0)
 * An engine whose numbers are not finite is counted, not averaged. Sums of all micro-batches and ranks merge exactly in their integers.
 * Pure; any thread. tokens.h has the rules for batches and extremes.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_MISMATCH_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_MISMATCH_H

#include "trainer-bridge/algorithms/tokens.h"

struct corral_token_mismatch_sums {
    uint64_t tokens, broken; /* trained tokens with a finite x, and the others */
    double distance, k1, k3; /* |x|, -x, exp(x) - 1 - x with x held */
    double ratio, ratio_squares;
    double distance_max;
};

struct corral_token_mismatch {
    double mean, max; /* |x| */
    double k1, k3;
    double
        effective; /* effective sample size of weights exp(x), as a share of the tokens: 1 is no mismatch */
};

/* Adds to *sums. */
void corral_token_mismatch_add(const struct corral_tokens *t, const float *log_prob,
                               const float *rollout_log_prob, struct corral_token_mismatch_sums *sums);
void corral_token_mismatch_merge(struct corral_token_mismatch_sums *into,
                                 const struct corral_token_mismatch_sums *other);
/* No tokens: no mismatch. */
struct corral_token_mismatch corral_token_mismatch_of(const struct corral_token_mismatch_sums *sums);

#endif
