/* Generalised advantage estimation over tokens (Schulman et al. 2015, arXiv 1506.02438), for PPO with a critic per token:
 *   delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1},   return_t = A_t + V_t
 * where t + 1 is the next trained token: value and advantage pass over untrained tokens unchanged, and a reward that stands on one
 * belongs to the trained token before it in the sequence (none: it is lost). A sequence is one episode, or the part of one that is there.
 * The same numbers as gae.h on one row. tokens.h has the rules for batches. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_GAE_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_GAE_H

#include "trainer-bridge/algorithms/tokens.h"

struct corral_token_critic {
    const float *reward; /* per token; those of untrained tokens are read too: numbers, or 0 */
    const float *value;  /* per token, of the prefix before it; read under mask 1 only */
    const float *
        bootstrap; /* per sequence: the value after its last token; 0 where the episode terminated. NULL: all 0 */
};

/* advantage, returns: per token, 0 on untrained ones; none may be an input. */
void corral_token_gae(const struct corral_tokens *t, const struct corral_token_critic *critic, double gamma,
                      double lambda, float *advantage, float *returns);

#endif
