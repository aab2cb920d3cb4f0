/* Policy losses over tokens and their slopes in the log-probabilities. r = exp(l - l_old), A and w constants:
 *   CLIP           w max(-A r, -A clip(r, 1 - low, 1 + high)); with dual_clip c, where A < 0: at most -w A c
 *                  PPO (Schulman et al. 2017, arXiv 1707.06347); clip-higher, low < high: DAPO (Yu et al. 2025, arXiv 2503.14476);
 *                  dual clip: Ye et al. 2019, arXiv 1912.09729
 *   SEQUENCE_CLIP  the same with s = exp(mean over the sequence's trained tokens of l - l_old) for r: GSPO (Zheng et al. 2025, arXiv
 *                  2507.18071). d s / d l_t is taken as s for its own token (the paper's GSPO-token): with one A and one w per sequence and
 *                  seq-mean-token-mean, for which it is made, this is the exact slope. Do not sum it over tokens.
 *   CISPO          -w clip(r, 1 - low, 1 + high) A l, the clipped ratio a constant (MiniMax 2025, arXiv 2506.13585): every token keeps a
 *                  slope. low 1 is "upper bound only".
 *   REINFORCE      -w A l (Williams 1992)
 * l_old is the proximal policy's. Decoupled PPO (Hilton et al. 2021, arXiv 2110.00641) and truncated importance sampling give, by w, the
 * ratio of the proximal policy to the one that wrote the token (token_weight.h); without w, l_old may be that one's (bypass).
 * A token with w = 0 is rejected: it adds nothing, whatever its other numbers are. tokens.h has the rules for batches, extremes and NaN:
 * where a log-ratio is held, its slope is 0. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKEN_LOSS_H
#define CORRAL_TRAINER_ALGORITHMS_TOKEN_LOSS_H

#include "trainer-bridge/algorithms/tokens.h"

enum corral_token_objective {
    CORRAL_TOKEN_CLIP,
    CORRAL_TOKEN_SEQUENCE_CLIP,
    CORRAL_TOKEN_CISPO,
    CORRAL_TOKEN_REINFORCE,
};

struct corral_token_loss_config {
    enum corral_token_objective objective;
    float clip_low, clip_high;
    float dual_clip; /* 0: none; otherwise over 1, CLIP only */
};

/* Per token, but for scale. */
struct corral_token_loss_batch {
    struct corral_tokens tokens;
    const double *scale; /* per sequence: loss_scale.h */
    const float *log_prob, *advantage;
    const float *old_log_prob; /* REINFORCE: only for the metrics; NULL: log_prob */
    const float *weight;       /* w; NULL: 1 */
};

/* Added to (the maximum: kept). Sums over micro-batches and ranks are the whole batch's; only loss is scaled. */
struct corral_token_loss_sums {
    double loss;
    double tokens;    /* trained and not rejected: what the others are sums over */
    double ratio, kl; /* r (or s); r - 1 - log r: KL of old to current by k3 */
    double clipped_low, clipped_high,
        dual_clip; /* tokens whose slope a bound took (CISPO: whose ratio it changed) */
    double ratio_max;
};

/* CORRAL_INVALID: no such objective, low outside 0..1, high below 0 or no number, dual_clip in (0, 1] or with another objective than CLIP. */
enum corral_status corral_token_loss_check(const struct corral_token_loss_config *config,
                                           struct corral_error *err);

/* d_log_prob: d loss / d log_prob per token, 0 on untrained and rejected ones; none of the inputs. */
void corral_token_loss(const struct corral_token_loss_config *config,
                       const struct corral_token_loss_batch *batch, float *d_log_prob,
                       struct corral_token_loss_sums *sums);

void corral_token_loss_sums_merge(struct corral_token_loss_sums *into,
                                  const struct corral_token_loss_sums *other);

#endif
