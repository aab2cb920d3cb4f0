/* MountainCar-v0: Gymnasium's dynamics (Moore 1990).
 * Observation: position, velocity. Action: 0 pushes left, 1 does nothing, 2 pushes right. Reward -1 on every step. Terminated when position >= 0.5 and
 * velocity >= 0. Truncated after 200 steps. Reset: position uniform in [-0.6, -0.4), velocity 0.
 * Snapshot: struct snapshot_head {"MCR0"}, then double position, velocity, each within +-1e5.
 */
#include "classic.h"
#include "sincos.h"

#define FORCE 0.001
#define GRAVITY 0.0025
#define POSITION_MIN (-1.2)
#define POSITION_MAX 0.6
#define SPEED_MAX 0.07
#define GOAL 0.5
#define STEPS_MAX 200
#define ACCEPTED_MAX 1.0e5

SINCOS_INLINE void advance_block(struct corral_env *env, uint32_t at, const uint32_t width, bool packed)
{
    double next[2][BLOCK_ROWS];
    uint8_t over[BLOCK_ROWS];
    const double *positions = env->state[0] + at, *velocities = env->state[1] + at;
    const size_t action_words = packed ? 1 : env->action_words;
    const int32_t *action = (const int32_t *)env->io.action + at * action_words;
    for (uint32_t i = 0; i < width; i++) {
        double sine, cosine;
        sincos_wide(3 * positions[i], &sine, &cosine);
        double velocity = velocities[i] + ((action[i * action_words] - 1) * FORCE + cosine * -GRAVITY);
        velocity = velocity > SPEED_MAX ? SPEED_MAX : velocity;
        velocity = velocity < -SPEED_MAX ? -SPEED_MAX : velocity;
        double position = positions[i] + velocity;
        position = position > POSITION_MAX ? POSITION_MAX : position;
        position = position < POSITION_MIN ? POSITION_MIN : position;
        double stopped = velocity < 0 ? 0 : velocity; /* by the wall on the left */
        next[0][i] = position;
        next[1][i] = position == POSITION_MIN ? stopped : velocity;
    }
    for (uint32_t i = 0; i < width; i++) {
        over[i] = (next[0][i] >= GOAL) & (next[1][i] >= 0);
    }
    memcpy(env->io.terminated + at, over, width);
    const size_t obs_words = packed ? 2 : env->obs_words;
    float *obs = (float *)env->io.obs + at * obs_words;
    for (uint32_t i = 0; i < width; i++) {
        obs[i * obs_words] = (float)next[0][i];
        obs[i * obs_words + 1] = (float)next[1][i];
    }
    classic_put_state(env, at, width, 2, next);
    classic_count_steps(env, at, width, STEPS_MAX);
    for (uint32_t i = 0; i < width; i++) {
        env->io.reward[at + i] = -1.0f;
    }
}

INLINE_KERNEL mountain_car(struct corral_env *env, uint32_t lo,
                           uint32_t hi){RUN_BLOCKS(advance_block, env, lo, hi)} KERNEL_VARIANTS(mountain_car)

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

static const struct classic mountain_car_kind = {
    .snapshot_kind = SNAPSHOT_KIND('M', 'C', 'R', '0'),
    .state_count = 2,
    .spec = {CLASSIC_SPEC, .obs_shape = {2}, .action_kind = CORRAL_ENV_DISCRETE, .choices = {3},
             .max_episode_steps = STEPS_MAX, .reward_low = -1.0, .reward_high = -1.0,
             .reward_threshold = -110.0},
    .pick = mountain_car_pick,
    .acceptable = acceptable,
    .draw = draw,
    .observe = observe,
};
CLASSIC_PLUGIN(mountain_car_kind, "MountainCar-v0",
               "drive an underpowered car up a hill (Gymnasium dynamics)");
