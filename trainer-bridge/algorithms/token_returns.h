/* Advantages of REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): discounted rewards-to-go of each trained token, with the KL penalty in
 * the reward, whitened over all trained tokens of the batch:
 *   token_kl.h's corral_kl_reward(), corral_token_returns(), corral_tokens_moments() merged over the ranks, corral_tokens_whiten().
 * tokens.h has the rules for batches. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_RETURNS_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_RETURNS_H

#include "trainer-bridge/algorithms/tokens.h"

/* returns_t = r_t + gamma returns_{next trained token}. The return passes over untrained tokens unchanged; a reward that stands on one
 * belongs to the trained token before it in the sequence (none: it is lost). returns may be reward. Here the rewards of untrained
 * tokens are read: they are numbers, or 0. */
void corral_token_returns(const struct corral_tokens *t, const float *reward, double gamma, float *returns);

/* reward[last trained token] += outcome, for outcome rewards. A sequence without a trained token keeps none. */
void corral_token_outcome(const struct corral_tokens *t, const float *outcome, float *reward);

#endif
