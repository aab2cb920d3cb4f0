/* Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438):
 *   delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1},   return_t = A_t + V_t
 * over the row's valid steps, cut at episode ends. segment.h has the rules for ends and invalid steps. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_GAE_H
#define CORRAL_TRAINER_ALGORITHMS_GAE_H

#include "trainer-bridge/algorithms/segment.h"

/* advantage, returns: [S][R], 0 on invalid steps. */
void corral_gae(const struct corral_segment *s, double gamma, double lambda, float *advantage,
                float *returns);

#endif
