/* One advantage per response, from the rewards of the responses to the same prompt (a group of G):
 *   GRPO     (R - mean) / (std + 1e-6), std with n - 1     Shao et al. 2024, DeepSeekMath, arXiv 2402.03300
 *   Dr.GRPO  R - mean                                      Liu et al. 2025, arXiv 2503.20783
 *   RLOO     G / (G - 1) (R - mean): R minus the mean of the others    Ahmadian et al. 2024, arXiv 2402.14740
 * A group of one has mean 0 and std 1: its advantage is its reward. A group whose rewards are equal has advantage 0.
 * REINFORCE++ with a group baseline is Dr.GRPO's, broadcast to tokens and whitened over the batch (tokens.h); without one see token_returns.h.
 * Then what DAPO (Yu et al. 2025, arXiv 2503.14476) does with groups: drop those that teach nothing, and shape overlong rewards.
 * Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_GROUP_ADVANTAGE_H
#define CORRAL_TRAINER_ALGORITHMS_GROUP_ADVANTAGE_H

#include "base/error.h"
#include <stdint.h>

#define CORRAL_REWARD_MAX 1e30f /* of either sign: larger ones would overflow an advantage */

enum corral_group_kind { CORRAL_GROUP_GRPO, CORRAL_GROUP_DR_GRPO, CORRAL_GROUP_RLOO };

struct corral_groups {
    uint32_t groups;
    const uint32_t
        *offsets; /* [groups + 1]: group g is the responses offsets[g] .. offsets[g + 1] - 1; never falling */
    const uint8_t *valid; /* per response; 0: a void episode, no part of its group, advantage 0. NULL: all */
};

/* CORRAL_INVALID: offsets that fall, a kind that does not exist, or a valid response whose reward is not a number within
 * +-CORRAL_REWARD_MAX. advantage may be reward. */
enum corral_status corral_group_advantage(const struct corral_groups *groups, enum corral_group_kind kind,
                                          const float *reward, float *advantage, struct corral_error *err);

/* Dynamic sampling: keep[g] = 1 where two valid responses of the group differ in `outcome` (accuracy, or the reward), else 0:
 * the caller samples others in their place. An outcome that is NaN drops its group. Returns the number kept. */
uint32_t corral_group_select(const struct corral_groups *groups, const float *outcome, uint8_t *keep);

/* Soft overlong punishment: the last `buffer` of `max` tokens cost up to `factor`, linearly; longer ones cost `factor`.
 *   penalty = -factor clip((length - (max - buffer)) / buffer, 0, 1);   buffer 0: factor beyond max */
struct corral_overlong {
    uint32_t max, buffer;
    float factor;
};
/* CORRAL_INVALID: buffer over max, or a factor that is no number from 0 up. */
enum corral_status corral_overlong_check(const struct corral_overlong *config, struct corral_error *err);
/* reward[i] += penalty of length[i]. */
void corral_overlong_shape(const struct corral_overlong *config, uint32_t responses, const uint32_t *length,
                           float *reward);

#endif
