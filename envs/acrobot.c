/* Acrobot-v1: Gymnasium's dynamics (Sutton & Barto's book; one Runge-Kutta step of 0.2 s).
 * Observation: cos theta1, sin theta1, cos theta2, sin theta2, theta1', theta2'. Action: torque on the joint, 0: -1, 1: 0, 2: +1. Terminated when the tip is
 * above one link's height: -cos theta1 - cos(theta1 + theta2) > 1. Reward -1 per step, 0 on the terminating one. Truncated after 500 steps.
 * Reset: all four uniform in [-0.1, 0.1), rounded to single precision. Angles stay in [-pi, pi], speeds in +-4 pi and +-9 pi.
 * Snapshot: struct snapshot_head {"ACR1"}, then double theta1, theta2 (within +-1000), theta1', theta2' (within their bounds).
 */
#include "classic.h"
#include "sincos.h"

#define PI 3.141592653589793
#define GRAVITY 9.8
#define TAU 0.2
#define SPEED1_MAX (4 * PI)
#define SPEED2_MAX (9 * PI)
#define STEPS_MAX 500
#define ANGLE_ACCEPTED_MAX 1.0e3

/* Also used for the state's rate of change. */
struct links {
    double theta1, theta2, dtheta1, dtheta2;
};

/* The book's equations with masses and lengths 1, centres of mass 1/2, moments of inertia 1. The original's cos(a - pi/2) is sin(a). */
SINCOS_INLINE struct links rate(struct links s, double torque)
{
    double sin1, cos1, sin2, cos2;
    sincos_wide(s.theta1, &sin1, &cos1);
    sincos_wide(s.theta2, &sin2, &cos2);
    double d1 = 3.5 + cos2;
    double d2 = 1.25 + 0.5 * cos2;
    double phi2 = 0.5 * GRAVITY * (sin1 * cos2 + cos1 * sin2);
    double phi1 =
        -0.5 * (s.dtheta2 * s.dtheta2) * sin2 - s.dtheta2 * s.dtheta1 * sin2 + 1.5 * GRAVITY * sin1 + phi2;
    double ratio = d2 / d1;
    double ddtheta2 =
        (torque + ratio * phi1 - 0.5 * (s.dtheta1 * s.dtheta1) * sin2 - phi2) / (1.25 - d2 * ratio);
    double ddtheta1 = -(d2 * ddtheta2 + phi1) / d1;
    return (struct links){s.dtheta1, s.dtheta2, ddtheta1, ddtheta2};
}

SINCOS_INLINE struct links along(struct links s, double time, struct links rate)
{
    return (struct links){s.theta1 + time * rate.theta1, s.theta2 + time * rate.theta2,
                          s.dtheta1 + time * rate.dtheta1, s.dtheta2 + time * rate.dtheta2};
}

SINCOS_INLINE double blend(double a, double b, double c, double d)
{
    return a + 2 * b + 2 * c + d;
}

SINCOS_INLINE struct links runge_kutta(struct links s, double torque)
{
    struct links k1 = rate(s, torque);
    struct links k2 = rate(along(s, TAU / 2, k1), torque);
    struct links k3 = rate(along(s, TAU / 2, k2), torque);
    struct links k4 = rate(along(s, TAU, k3), torque);
    struct links sum = {blend(k1.theta1, k2.theta1, k3.theta1, k4.theta1),
                        blend(k1.theta2, k2.theta2, k3.theta2, k4.theta2),
                        blend(k1.dtheta1, k2.dtheta1, k3.dtheta1, k4.dtheta1),
                        blend(k1.dtheta2, k2.dtheta2, k3.dtheta2, k4.dtheta2)};
    return along(s, TAU / 6, sum);
}

/* Into [-pi, pi], both ends included. */
SINCOS_INLINE double wrap(double x)
{
    double above = x > PI ? ceil((x - PI) / (2 * PI)) : 0.0;
    double below = x < -PI ? ceil((-PI - x) / (2 * PI)) : 0.0;
    return x + (below - above) * (2 * PI);
}

SINCOS_INLINE double clip(double x, double bound)
{
    x = x > bound ? bound : x;
    return x < -bound ? -bound : x;
}

SINCOS_INLINE void advance_block(struct corral_env *env, uint32_t at, const uint32_t width, bool packed)
{
    double next[4][BLOCK_ROWS], wave[4][BLOCK_ROWS];
    uint8_t over[BLOCK_ROWS];
    const double *theta1 = env->state[0] + at, *theta2 = env->state[1] + at;
    const double *dtheta1 = env->state[2] + at, *dtheta2 = env->state[3] + at;
    const size_t action_words = packed ? 1 : env->action_words;
    const int32_t *action = (const int32_t *)env->io.action + at * action_words;
    for (uint32_t i = 0; i < width; i++) {
        struct links links = runge_kutta((struct links){theta1[i], theta2[i], dtheta1[i], dtheta2[i]},
                                         action[i * action_words] - 1);
        next[0][i] = wrap(links.theta1);
        next[1][i] = wrap(links.theta2);
        next[2][i] = clip(links.dtheta1, SPEED1_MAX);
        next[3][i] = clip(links.dtheta2, SPEED2_MAX);
        sincos_wide(next[0][i], &wave[1][i], &wave[0][i]);
        sincos_wide(next[1][i], &wave[3][i], &wave[2][i]);
    }
    for (uint32_t i = 0; i < width; i++) {
        double both = wave[0][i] * wave[2][i] - wave[1][i] * wave[3][i];
        over[i] = -wave[0][i] - both > 1.0;
    }
    memcpy(env->io.terminated + at, over, width);
    for (uint32_t i = 0; i < width; i++) {
        env->io.reward[at + i] = over[i] ? 0.0f : -1.0f;
    }
    const size_t obs_words = packed ? 6 : env->obs_words;
    float *obs = (float *)env->io.obs + at * obs_words;
    for (uint32_t i = 0; i < width; i++) {
        for (uint32_t k = 0; k < 4; k++) {
            obs[i * obs_words + k] = (float)wave[k][i];
        }
        obs[i * obs_words + 4] = (float)next[2][i];
        obs[i * obs_words + 5] = (float)next[3][i];
    }
    classic_put_state(env, at, width, 4, next);
    classic_count_steps(env, at, width, STEPS_MAX);
}

INLINE_KERNEL acrobot(struct corral_env *env, uint32_t lo,
                      uint32_t hi){RUN_BLOCKS(advance_block, env, lo, hi)} KERNEL_VARIANTS(acrobot)

    static bool acceptable(const double *state)
{
    return classic_within(state, 2, ANGLE_ACCEPTED_MAX) && fabs(state[2]) <= SPEED1_MAX &&
           fabs(state[3]) <= SPEED2_MAX;
}

static void draw(struct corral_env_rng *rng, double *state)
{
    for (int k = 0; k < 4; k++) {
        state[k] = (double)(float)corral_env_rng_uniform(rng, -0.1, 0.1);
    }
}

static void observe(const double *state, float *obs)
{
    for (int k = 0; k < 2; k++) {
        double sine, cosine;
        sincos_wide(state[k], &sine, &cosine);
        obs[2 * k] = (float)cosine;
        obs[2 * k + 1] = (float)sine;
    }
    obs[4] = (float)state[2];
    obs[5] = (float)state[3];
}

static const struct classic acrobot_kind = {
    .snapshot_kind = SNAPSHOT_KIND('A', 'C', 'R', '1'),
    .state_count = 4,
    .spec = {CLASSIC_SPEC, .obs_shape = {6}, .action_kind = CORRAL_ENV_DISCRETE, .choices = {3},
             .max_episode_steps = STEPS_MAX, .reward_low = -1.0, .reward_high = 0.0,
             .reward_threshold = -100.0},
    .pick = acrobot_pick,
    .acceptable = acceptable,
    .draw = draw,
    .observe = observe,
};
CLASSIC_PLUGIN(acrobot_kind, "Acrobot-v1", "swing a two-link arm above a line (Gymnasium dynamics)");
