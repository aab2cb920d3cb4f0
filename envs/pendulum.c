/* Pendulum-v1: Gymnasium's dynamics.
 * Observation: cos theta, sin theta, theta' (theta 0 is upright). Action: one torque, clipped to [-2, 2]. Reward -(wrapped theta^2 + 0.1 theta'^2 +
 * 0.001 u^2), of the state before the step. Never terminates; truncated after 200 steps. Reset: theta uniform in [-pi, pi), theta' in [-1, 1).
 * Like the original, products of the torque alone are rounded to single precision.
 * Snapshot: struct snapshot_head {"PEN1"}, then double theta (not wrapped), theta', each within +-1e5.
 */
#include "classic.h"
#include "sincos.h"

#define PI 3.141592653589793
#define TAU 0.05
#define TORQUE_MAX 2.0f
#define SPEED_MAX 8.0
#define STEPS_MAX 200
#define ACCEPTED_MAX 1.0e5

SINCOS_INLINE void advance_block(struct corral_env *env, uint32_t at, const uint32_t width, bool packed)
{
    double next[2][BLOCK_ROWS], sines[BLOCK_ROWS], cosines[BLOCK_ROWS];
    float reward[BLOCK_ROWS];
    const double *thetas = env->state[0] + at, *speeds = env->state[1] + at;
    const size_t action_words = packed ? 1 : env->action_words;
    const float *action = (const float *)env->io.action + at * action_words;
    for (uint32_t i = 0; i < width; i++) {
        float torque = action[i * action_words];
        torque = torque > TORQUE_MAX ? TORQUE_MAX : torque;
        torque = torque < -TORQUE_MAX ? -TORQUE_MAX : torque;
        double theta = thetas[i], speed = speeds[i], sine, cosine;
        double turned = theta + PI;
        double wrapped = turned - floor(turned / (2 * PI)) * (2 * PI) - PI;
        double effort = (double)(0.001f * (torque * torque));
        reward[i] = (float)-(wrapped * wrapped + 0.1 * (speed * speed) + effort);
        sincos_wide(theta, &sine, &cosine);
        speed = speed + (15.0 * sine + (double)(3.0f * torque)) * TAU;
        speed = speed > SPEED_MAX ? SPEED_MAX : speed;
        speed = speed < -SPEED_MAX ? -SPEED_MAX : speed;
        next[0][i] = theta + speed * TAU;
        next[1][i] = speed;
        sincos_wide(next[0][i], &sines[i], &cosines[i]);
    }
    const size_t obs_words = packed ? 3 : env->obs_words;
    float *obs = (float *)env->io.obs + at * obs_words;
    for (uint32_t i = 0; i < width; i++) {
        obs[i * obs_words] = (float)cosines[i];
        obs[i * obs_words + 1] = (float)sines[i];
        obs[i * obs_words + 2] = (float)next[1][i];
    }
    memcpy(env->io.reward + at, reward, width * sizeof reward[0]);
    memset(env->io.terminated + at, 0, width);
    classic_put_state(env, at, width, 2, next);
    classic_count_steps(env, at, width, STEPS_MAX);
}

INLINE_KERNEL pendulum(struct corral_env *env, uint32_t lo,
                       uint32_t hi){RUN_BLOCKS(advance_block, env, lo, hi)} KERNEL_VARIANTS(pendulum)

    static bool acceptable(const double *state)
{
    return classic_within(state, 2, ACCEPTED_MAX);
}

static void draw(struct corral_env_rng *rng, double *state)
{
    state[0] = corral_env_rng_uniform(rng, -PI, PI);
    state[1] = corral_env_rng_uniform(rng, -1.0, 1.0);
}

static void observe(const double *state, float *obs)
{
    double sine, cosine;
    sincos_wide(state[0], &sine, &cosine);
    obs[0] = (float)cosine;
    obs[1] = (float)sine;
    obs[2] = (float)state[1];
}

static const struct classic pendulum_kind = {
    .snapshot_kind = SNAPSHOT_KIND('P', 'E', 'N', '1'),
    .state_count = 2,
    .spec = {CLASSIC_SPEC, .obs_shape = {3}, .action_kind = CORRAL_ENV_CONTINUOUS, .low = {-TORQUE_MAX},
             .high = {TORQUE_MAX}, .max_episode_steps = STEPS_MAX,
             .reward_low = -(PI * PI + 0.1 * SPEED_MAX * SPEED_MAX + 0.001 * 4), .reward_high = 0.0,
             .reward_threshold = NAN},
    .pick = pendulum_pick,
    .acceptable = acceptable,
    .draw = draw,
    .observe = observe,
};
CLASSIC_PLUGIN(pendulum_kind, "Pendulum-v1", "swing a pendulum up and keep it there (Gymnasium dynamics)");
