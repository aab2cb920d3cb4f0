/* Importance weights of tokens that another policy wrote than the proximal one of the loss: an older version, or an engine with other
 * numerics. x = log_prob of the proximal policy - log_prob of the behaviour policy. Constants of token_loss.h's w.
 *   weight   by token: exp(x); by sequence: exp(sum of x); by geometric mean: exp(mean of x); over the trained tokens
 *     CLAMP  held to low..high; low 0: min(w, high), truncated importance sampling (Ionides 2008; Espeholt et al. 2018, arXiv 1802.01561)
 *     ZERO   0 outside low..high
 *   rejection, on top: a token, or a sequence by its mean over trained tokens, whose measure is outside reject_low..reject_high gets
 *     weight 0. Measures: exp(x) (a sequence: the geometric mean), k1 = -x, k2 = x^2 / 2, k3 = exp(x) - 1 - x.
 * Decoupled PPO (Hilton et al. 2021, arXiv 2110.00641; AReaL, Fu et al. 2025, arXiv 2505.24298) is CLIP with the proximal policy's
 * log_prob as old_log_prob and these weights. The denominators of loss_scale.h stay those of all trained tokens.
 * A token whose x is NaN is broken: its weight is 0, and by sequence or geometric mean, or rejecting by sequence, that of its sequence.
 * tokens.h has the rules for batches and extremes. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_WEIGHT_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_WEIGHT_H

#include "trainer-bridge/algorithms/tokens.h"

enum corral_weight_level {
    CORRAL_WEIGHT_NONE, /* weight 1; reject: nothing */
    CORRAL_WEIGHT_TOKEN,
    CORRAL_WEIGHT_SEQUENCE, /* reject: by the mean */
    CORRAL_WEIGHT_GEOMETRIC,
};
enum corral_weight_outside { CORRAL_WEIGHT_CLAMP, CORRAL_WEIGHT_ZERO };
enum corral_weight_measure {
    CORRAL_MEASURE_RATIO,
    CORRAL_MEASURE_K1,
    CORRAL_MEASURE_K2,
    CORRAL_MEASURE_K3,
};

struct corral_token_weight_config {
    enum corral_weight_level level;
    enum corral_weight_outside outside;
    float low, high;
    enum corral_weight_level reject; /* NONE, TOKEN or SEQUENCE */
    enum corral_weight_measure measure;
    float reject_low, reject_high;
};

/* Added to (the maximum: kept), over trained tokens. The effective sample size is weight^2 / weight_squares. */
struct corral_token_weight_sums {
    double tokens;
    double weight, weight_squares; /* as they enter the loss */
    double weight_max;             /* before bounds and rejection, of tokens that are not broken */
    double bounded;                /* outside low..high */
    double rejected, broken;
};

/* CORRAL_INVALID: no such level, rule or measure; bounds that are no numbers or the wrong way round; low below 0. */
enum corral_status corral_token_weight_check(const struct corral_token_weight_config *config,
                                             struct corral_error *err);

/* weight: per token, 0 on untrained ones. */
void corral_token_weight(const struct corral_token_weight_config *config, const struct corral_tokens *t,
                         const float *proximal_log_prob, const float *behave_log_prob, float *weight,
                         struct corral_token_weight_sums *sums);

/* The proximal policy's log-probabilities without a forward pass of it, between the two that are known (AReaL's "loglinear"):
 *   l_behave + a (l - l_behave),   a = (proximal - behave version) / (current - behave version), held to 0..1
 * Equal versions: a = 0. out may be log_prob. Untrained tokens: 0. */
void corral_token_proximal(const struct corral_tokens *t, const float *log_prob, const float *behave_log_prob,
                           const uint64_t *behave_version, uint64_t proximal_version,
                           uint64_t current_version, float *out);

#endif
