/* V-trace targets (Espeholt et al. 2018, arXiv 1802.01561), for steps chosen by an older policy mu:
 *   rho_t = min(rho_bar, pi/mu),  c_t = lambda min(c_bar, pi/mu),  delta_t = rho_t (r_t + gamma V_{t+1} - V_t)
 *   vs_t = V_t + delta_t + gamma c_t (vs_{t+1} - V_{t+1}),   advantage_t = min(rho_pg, pi/mu) (r_t + gamma vs_{t+1} - V_t)
 * segment.h has the rules for ends and invalid steps. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_VTRACE_H
#define CORRAL_TRAINER_ALGORITHMS_VTRACE_H

#include "trainer-bridge/algorithms/segment.h"

struct corral_vtrace_config {
    double gamma, lambda;
    double rho_bar, c_bar, rho_pg;
};

/* log_ratio: log pi - log mu, [S][R]. advantage and target (vs): [S][R], 0 on invalid steps;
 * target may be log_ratio. */
void corral_vtrace(const struct corral_segment *s, const float *log_ratio,
                   const struct corral_vtrace_config *config, float *advantage, float *target);

#endif
