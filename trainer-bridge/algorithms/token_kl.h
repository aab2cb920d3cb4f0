/* KL of the policy to a reference over sampled tokens, three estimators (Schulman 2020, "Approximating KL divergence"), x = l - l_ref:
 *   k1 = x,   k2 = x^2 / 2,   k3 = exp(-x) - 1 + x           slopes in l: 1, x, 1 - exp(-x)
 * As a reward (PPO, REINFORCE++): r -= beta k of the policy that wrote the tokens; no slope. As a loss (GRPO: k3, Shao et al. 2024, arXiv
 * 2402.03300): + beta k, weighed like the policy loss. The slope of the k1 loss is a constant with mean 0, and that of k3 is biased;
 * k2's is the KL's on policy, and `k2_slope` uses it under any value. x is held to +-CORRAL_LOG_RATIO_MAX; beyond, the slope is 0.
 * tokens.h has the rules for batches. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_KL_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_KL_H

#include "trainer-bridge/algorithms/tokens.h"
#include <stdbool.h>

enum corral_kl_kind { CORRAL_KL_K1, CORRAL_KL_K2, CORRAL_KL_K3 };

struct corral_token_kl_config {
    enum corral_kl_kind kind;
    bool k2_slope; /* as a loss: the slope of k2, whatever the value */
    float beta;
};

/* CORRAL_INVALID: no such estimator, or beta no number from 0 up. */
enum corral_status corral_token_kl_check(const struct corral_token_kl_config *config,
                                         struct corral_error *err);

/* Added to. */
struct corral_token_kl_sums {
    double loss; /* beta scale k; as a reward 0 */
    double kl;   /* k, not scaled */
    double tokens;
};

/* d_log_prob += d loss / d log_prob on trained tokens. scale: per sequence, loss_scale.h. */
void corral_token_kl_loss(const struct corral_token_kl_config *config, const struct corral_tokens *t,
                          const double *scale, const float *log_prob, const float *ref_log_prob,
                          float *d_log_prob, struct corral_token_kl_sums *sums);

/* reward -= beta k on trained tokens. */
void corral_token_kl_reward(const struct corral_token_kl_config *config, const struct corral_tokens *t,
                            const float *log_prob, const float *ref_log_prob, float *reward,
                            struct corral_token_kl_sums *sums);

#endif
