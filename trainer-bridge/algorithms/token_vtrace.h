/* V-trace over tokens (Espeholt et al. 2018, arXiv 1802.01561), for sequences written by an older policy:
 *   rho_t = min(rho_bar, pi/mu),  c_t = lambda min(c_bar, pi/mu),  delta_t = rho_t (r_t + gamma V_{t+1} - V_t)
 *   vs_t = V_t + delta_t + gamma c_t (vs_{t+1} - V_{t+1}),   advantage_t = min(rho_pg, pi/mu) (r_t + gamma vs_{t+1} - V_t)
 * with token_gae.h's rules for untrained tokens, rewards and ends. The same numbers as vtrace.h on one row. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_VTRACE_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_VTRACE_H

#include "trainer-bridge/algorithms/token_gae.h"
#include "trainer-bridge/algorithms/vtrace.h"

/* log_prob of the current policy pi, behave_log_prob of mu, which wrote the token. advantage and target (vs): per token, 0 on untrained
 * ones; none may be an input. */
void corral_token_vtrace(const struct corral_tokens *t, const struct corral_token_critic *critic,
                         const float *log_prob, const float *behave_log_prob,
                         const struct corral_vtrace_config *config, float *advantage, float *target);

#endif
