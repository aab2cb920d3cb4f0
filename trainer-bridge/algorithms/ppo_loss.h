/* The PPO objective on a batch of transitions (Schulman et al. 2017, arXiv 1707.06347), minimised:
 *   L = mean of  max(-A r, -A clip(r, 1 - clip, 1 + clip))  +  value_coef * value loss  -  entropy_coef * H
 *   r = exp(log_prob - old_log_prob), value loss = 1/2 (V - return)^2, or with value_clip the larger of that and
 *   1/2 (V_old + clip(V - V_old, +-value_clip) - return)^2.
 * The log-ratio is held to +-20, so that r is always a finite number. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_PPO_LOSS_H
#define CORRAL_TRAINER_ALGORITHMS_PPO_LOSS_H

#include <stdint.h>

struct corral_ppo_loss_config {
    float clip, value_clip; /* value_clip 0: none */
    float value_coef, entropy_coef;
    float scale; /* 1 / transitions of the whole minibatch: the mean is over all ranks and pieces */
};

struct corral_ppo_loss_batch {
    uint32_t n;
    const float *log_prob, *entropy, *value; /* of the current policy */
    const float *old_log_prob, *advantage, *returns,
        *old_value; /* advantage as it enters the loss, normalised or not */
};

/* Sums over the batch, not scaled; added to. */
struct corral_ppo_loss_sums {
    double policy_loss, value_loss, entropy;
    double kl;      /* (r - 1) - log r: the unbiased low-variance estimator "k3" */
    double clipped; /* transitions with |r - 1| > clip */
    double ratio_max;
};

/* d L / d log_prob, entropy, value per row, all [n]. `scratch` [n] is overwritten. */
void corral_ppo_loss(const struct corral_ppo_loss_config *config, const struct corral_ppo_loss_batch *batch,
                     float *d_log_prob, float *d_entropy, float *d_value, float *scratch,
                     struct corral_ppo_loss_sums *sums);

#endif
