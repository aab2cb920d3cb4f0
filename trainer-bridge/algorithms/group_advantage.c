#include "trainer-bridge/algorithms/group_advantage.h"
#include <math.h>
#include <stdbool.h>

static inline bool is_valid(const struct corral_groups *groups, uint32_t i)
{
    return !groups->valid || groups->valid[i];
}

static enum corral_status check(const struct corral_groups *groups, enum corral_group_kind kind,
                                const float *reward, struct corral_error *err)
{
    if (kind != CORRAL_GROUP_GRPO && kind != CORRAL_GROUP_DR_GRPO && kind != CORRAL_GROUP_RLOO) {
        return corral_fail(err, CORRAL_INVALID, "group advantage: there is no kind %d", (int)kind);
    }
    for (uint32_t g = 0; g < groups->groups; g++) {
        if (groups->offsets[g + 1] < groups->offsets[g]) {
            return corral_fail(err, CORRAL_INVALID, "group advantage: group %u ends before it starts", g);
        }
        for (uint32_t i = groups->offsets[g]; i < groups->offsets[g + 1]; i++) {
            if (is_valid(groups, i) && !(fabsf(reward[i]) <= CORRAL_REWARD_MAX)) {
                return corral_fail(err, CORRAL_INVALID,
                                   "group advantage: response %u of group %u has the reward %g",
                                   i - groups->offsets[g], g, (double)reward[i]);
            }
        }
    }
    return CORRAL_OK;
}

/* advantage = (R - mean) * scale. The mean of equal f32 numbers is exact in f64: their advantage is exactly 0. */
struct group_line {
    double mean, scale;
};

static struct group_line line_of(const struct corral_groups *groups, uint32_t g, enum corral_group_kind kind,
                                 const float *reward)
{
    double sum = 0, count = 0, squares = 0;
    for (uint32_t i = groups->offsets[g]; i < groups->offsets[g + 1]; i++) {
        sum += is_valid(groups, i) ? (double)reward[i] : 0;
        count += is_valid(groups, i) ? 1 : 0;
    }
    if (count < 2) {
        return (struct group_line){.mean = 0, .scale = kind == CORRAL_GROUP_GRPO ? 1.0 / (1.0 + 1e-6) : 1.0};
    }
    struct group_line line = {.mean = sum / count, .scale = 1.0};
    if (kind == CORRAL_GROUP_RLOO) {
        line.scale = count / (count - 1);
    } else if (kind == CORRAL_GROUP_GRPO) {
        for (uint32_t i = groups->offsets[g]; i < groups->offsets[g + 1]; i++) {
            double off = is_valid(groups, i) ? (double)reward[i] - line.mean : 0;
            squares += off * off;
        }
        line.scale = 1.0 / (sqrt(squares / (count - 1)) + 1e-6);
    }
    return line;
}

enum corral_status corral_group_advantage(const struct corral_groups *groups, enum corral_group_kind kind,
                                          const float *reward, float *advantage, struct corral_error *err)
{
    CORRAL_TRY(check(groups, kind, reward, err));
    for (uint32_t g = 0; g < groups->groups; g++) {
        struct group_line line = line_of(groups, g, kind, reward);
        for (uint32_t i = groups->offsets[g]; i < groups->offsets[g + 1]; i++) {
            double a = ((double)reward[i] - line.mean) * line.scale;
            advantage[i] = is_valid(groups, i) ? (float)a : 0.0f;
        }
    }
    return CORRAL_OK;
}

static bool varies(const struct corral_groups *groups, uint32_t g, const float *x)
{
    float low = INFINITY, high = -INFINITY;
    for (uint32_t i = groups->offsets[g]; i < groups->offsets[g + 1]; i++) {
        if (!is_valid(groups, i)) {
            continue;
        }
        if (isnan(x[i])) {
            return false;
        }
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    return high > low;
}

uint32_t corral_group_select(const struct corral_groups *groups, const float *outcome, uint8_t *keep)
{
    uint32_t kept = 0;
    for (uint32_t g = 0; g < groups->groups; g++) {
        keep[g] = varies(groups, g, outcome);
        kept += keep[g];
    }
    return kept;
}

enum corral_status corral_overlong_check(const struct corral_overlong *config, struct corral_error *err)
{
    if (config->buffer > config->max) {
        return corral_fail(err, CORRAL_INVALID,
                           "overlong shaping: the buffer of %u tokens is over the %u allowed", config->buffer,
                           config->max);
    }
    if (!(config->factor >= 0 && config->factor <= CORRAL_REWARD_MAX)) {
        return corral_fail(err, CORRAL_INVALID, "overlong shaping: the factor is %g", (double)config->factor);
    }
    return CORRAL_OK;
}

void corral_overlong_shape(const struct corral_overlong *config, uint32_t responses, const uint32_t *length,
                           float *reward)
{
    uint32_t free_of_charge = config->max - config->buffer;
    for (uint32_t i = 0; i < responses; i++) {
        double over = length[i] > free_of_charge ? (double)(length[i] - free_of_charge) : 0;
        double share = length[i] > config->max ? 1.0 : config->buffer ? over / config->buffer : 0;
        reward[i] = (float)((double)reward[i] - (double)config->factor * share);
    }
}
