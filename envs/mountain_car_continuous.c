/* MountainCarContinuous-v0: Gymnasium's dynamics, with a force of one's choice.
 * Observation: position, velocity. Action: one force, clipped to [-1, 1]. Reward -0.1 a^2 of the unclipped action, plus 100 on the terminating step.
 * Terminated when position >= 0.45 and velocity >= 0. Truncated after 999 steps. Reset: position uniform in [-0.6, -0.4), velocity 0.
 * Like the original, the state a step leaves is rounded to single precision (the one a reset leaves is not), and the goal is tested on the rounded one.
 * Snapshot: struct snapshot_head {"MCC0"}, then double position, velocity, each within +-1e5.
 */
#include "classic.h"
#include "sincos.h"

#define POWER 0.0015
#define GRAVITY 0.0025
#define POSITION_MIN (-1.2)
#define POSITION_MAX 0.6
#define SPEED_MAX 0.07
#define GOAL 0.45f
#define STEPS_MAX 999
#define ACCEPTED_MAX 1.0e5

SINCOS_INLINE void advance_block(struct corral_env *env, uint32_t at, const uint32_t width, bool packed)
{
    double next[2][BLOCK_ROWS];
    double effort[BLOCK_ROWS];
    uint8_t over[BLOCK_ROWS];
    const double *positions = env->state[0] + at, *velocities = env->state[1] + at;
    const size_t action_words = packed ? 1 : env->action_words;
    const float *action = (const float *)env->io.action + at * action_words;
    for (uint32_t i = 0; i < width; i++) {
        double force = (double)action[i * action_words];
        effort[i] = force * force * 0.1;
        force = force > 1.0 ? 1.0 : force;
        force = force < -1.0 ? -1.0 : force;
        double sine, cosine;
        sincos_wide(3 * positions[i], &sine, &cosine);
        double velocity = velocities[i] + (force * POWER - GRAVITY * cosine);
        velocity = velocity > SPEED_MAX ? SPEED_MAX : velocity;
        velocity = velocity < -SPEED_MAX ? -SPEED_MAX : velocity;
        double position = positions[i] + velocity;
        position = position > POSITION_MAX ? POSITION_MAX : position;
        position = position < POSITION_MIN ? POSITION_MIN : position;
        double stopped = velocity < 0 ? 0 : velocity; /* by the wall on the left */
        next[0][i] = (double)(float)position;
        next[1][i] = (double)(float)(position == POSITION_MIN ? stopped : velocity);
    }
    for (uint32_t i = 0; i < width; i++) {
        over[i] = (next[0][i] >= (double)GOAL) & (next[1][i] >= 0);
    }
    memcpy(env->io.terminated + at, over, width);
    const size_t obs_words = packed ? 2 : env->obs_words;
    float *obs = (float *)env->io.obs + at * obs_words;
    for (uint32_t i = 0; i < width; i++) {
        obs[i * obs_words] = (float)next[0][i];
        obs[i * obs_words + 1] = (float)next[1][i];
    }
    for (uint32_t i = 0; i < width; i++) {
        env->io.reward[at + i] = (float)(100.0 * over[i] - effort[i]);
    }
    classic_put_state(env, at, width, 2, next);
    classic_count_steps(env, at, width, STEPS_MAX);
}

INLINE_KERNEL mountain_car_continuous(struct corral_env *env, uint32_t lo, uint32_t hi){
    RUN_BLOCKS(advance_block, env, lo, hi)} KERNEL_VARIANTS(mountain_car_continuous)

    static bool acceptable(const double *state)
{
    return classic_within(state, 2, ACCEPTED_MAX);
}

static void draw(struct corral_env_rng *rng, double *state)
{
    state[0] = corral_env_rng_uniform(rng, -0.6, -0.4);
    state[1] = 0.0;
}

static void observe(const double *state, float *obs)
{
    obs[0] = (float)state[0];
    obs[1] = (float)state[1];
}

static const struct classic mountain_car_continuous_kind = {
    .snapshot_kind = SNAPSHOT_KIND('M', 'C', 'C', '0'),
    .state_count = 2,
    .spec = {CLASSIC_SPEC, .obs_shape = {2}, .action_kind = CORRAL_ENV_CONTINUOUS, .low = {-1.0f},
             .high = {1.0f}, .max_episode_steps = STEPS_MAX, .reward_low = -0.1, .reward_high = 100.0,
             .reward_threshold = 90.0},
    .pick = mountain_car_continuous_pick,
    .acceptable = acceptable,
    .draw = draw,
    .observe = observe,
};
CLASSIC_PLUGIN(mountain_car_continuous_kind, "MountainCarContinuous-v0",
               "drive up a hill with a continuous force (Gymnasium dynamics)");
