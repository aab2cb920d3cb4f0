/* The critic's loss over tokens, weighed like the policy loss: coef scale times
 *   1/2 (V - return)^2, or with clip the larger of that and 1/2 (V_old + clip(V - V_old, +-clip) - return)^2
 * (PPO's reference implementation; Huang et al. 2022, "The 37 implementation details"). Pure; any thread. tokens.h has the rules for batches.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_VALUE_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_VALUE_H

#include "trainer-bridge/algorithms/tokens.h"

struct corral_token_value_config {
    float coef, clip; /* clip 0: none */
};

struct corral_token_value_sums {
    double loss; /* coef scale times the loss; added to */
    double tokens, clipped;
};

/* old_value may be NULL without clip. d_value: per token, 0 on untrained ones. */
void corral_token_value_loss(const struct corral_token_value_config *config, const struct corral_tokens *t,
                             const double *scale, const float *value, const float *old_value,
                             const float *returns, float *d_value, struct corral_token_value_sums *sums);

#endif
