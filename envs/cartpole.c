/* CartPole-v1: Gymnasium's dynamics (Barto, Sutton & Anderson 1983; explicit Euler, 0.02 s).
 * Observation: x, x', theta, theta'. Action: 0 pushes left, 1 right. Reward 1 on every step. Terminated when |x| > 2.4 or |theta| > 12 degrees.
 * Truncated after 500 steps. Reset: all four uniform in [-0.05, 0.05).
 * Snapshot: struct snapshot_head {"CPL1"}, then double x, x', theta, theta', each within +-1e5.
 */
#include "classic.h"
#include "sincos.h"

#define FORCE 10.0
#define GRAVITY 9.8
#define MASS_TOTAL 1.1
#define MASS_POLE 0.1
#define LENGTH 0.5 /* half the pole */
#define MASS_LENGTH 0.05
#define TAU 0.02
#define X_MAX 2.4
#define THETA_MAX (12 * 2 * 3.141592653589793 / 360)
#define STEPS_MAX 500
#define ACCEPTED_MAX 1.0e5

/* An episode goes on only while |theta| is within THETA_MAX < SINCOS_SMALL_MAX, so the short polynomials cover all but injected states. */

struct body {
    double x, dx, theta, dtheta;
};

SINCOS_INLINE struct body euler(struct body now, double force, double sine, double cosine)
{
    double temp = (force + MASS_LENGTH * (now.dtheta * now.dtheta) * sine) / MASS_TOTAL;
    double ddtheta = (GRAVITY * sine - cosine * temp) /
                     (LENGTH * (4.0 / 3.0 - MASS_POLE * (cosine * cosine) / MASS_TOTAL));
    double ddx = temp - MASS_LENGTH * ddtheta * cosine / MASS_TOTAL;
    return (struct body){now.x + TAU * now.dx, now.dx + TAU * ddx, now.theta + TAU * now.dtheta,
                         now.dtheta + TAU * ddtheta};
}

/* `width` rows from `at`. Results go to local arrays first: those alias nothing, so every loop below becomes vector instructions. */
SINCOS_INLINE void advance_block(struct corral_env *env, uint32_t at, const uint32_t width, bool packed)
{
    double next[4][BLOCK_ROWS];
    const double *x = env->state[0] + at, *dx = env->state[1] + at;
    const double *theta = env->state[2] + at, *dtheta = env->state[3] + at;
    const int32_t *action = (const int32_t *)env->io.action + (size_t)at * (packed ? 1 : env->action_words);
    const size_t action_words = packed ? 1 : env->action_words;
    for (uint32_t i = 0; i < width; i++) {
        double sine, cosine;
        sincos_small(theta[i], &sine, &cosine);
        double force = FORCE * (2 * action[i * action_words] - 1);
        struct body body = euler((struct body){x[i], dx[i], theta[i], dtheta[i]}, force, sine, cosine);
        next[0][i] = body.x;
        next[1][i] = body.dx;
        next[2][i] = body.theta;
        next[3][i] = body.dtheta;
    }
    uint8_t over[BLOCK_ROWS];
    for (uint32_t i = 0; i < width; i++) {
        over[i] = (fabs(next[0][i]) > X_MAX) | (fabs(next[2][i]) > THETA_MAX);
    }
    memcpy(env->io.terminated + at, over, width);
    const size_t obs_words = packed ? 4 : env->obs_words;
    float *obs = (float *)env->io.obs + at * obs_words;
    for (uint32_t i = 0; i < width; i++) {
        obs[i * obs_words] = (float)next[0][i];
        obs[i * obs_words + 1] = (float)next[1][i];
        obs[i * obs_words + 2] = (float)next[2][i];
        obs[i * obs_words + 3] = (float)next[3][i];
    }
    classic_put_state(env, at, width, 4, next);
    classic_count_steps(env, at, width, STEPS_MAX);
    for (uint32_t i = 0; i < width; i++) {
        env->io.reward[at + i] = 1.0f;
    }
}

INLINE_KERNEL cartpole(struct corral_env *env, uint32_t lo,
                       uint32_t hi){RUN_BLOCKS(advance_block, env, lo, hi)} KERNEL_VARIANTS(cartpole)

    /* With the library's sine and cosine where an injected pole leans further than the polynomials reach. */
    static void cartpole_careful(struct corral_env *env, uint32_t lo, uint32_t hi)
{
    for (uint32_t i = lo; i < hi; i++) {
        struct body now = {env->state[0][i], env->state[1][i], env->state[2][i], env->state[3][i]};
        if (fabs(now.theta) <= SINCOS_SMALL_MAX) {
            cartpole_plain(env, i, i + 1);
            continue;
        }
        double force = FORCE * (2 * ((const int32_t *)env->io.action)[(size_t)i * env->action_words] - 1);
        struct body next = euler(now, force, sin(now.theta), cos(now.theta));
        classic_store(env, i, (double[]){next.x, next.dx, next.theta, next.dtheta});
        env->io.reward[i] = 1.0f;
        env->io.terminated[i] = (fabs(next.x) > X_MAX) | (fabs(next.theta) > THETA_MAX);
        classic_count_steps(env, i, 1, STEPS_MAX);
    }
    /* Each has now come back into range or ended its episode. */
    env->extraordinary &= hi - lo < env->io.envs;
}

static bool ordinary(const double *state)
{
    return fabs(state[2]) <= SINCOS_SMALL_MAX;
}

static bool acceptable(const double *state)
{
    return classic_within(state, 4, ACCEPTED_MAX);
}

static void draw(struct corral_env_rng *rng, double *state)
{
    for (int k = 0; k < 4; k++) {
        state[k] = corral_env_rng_uniform(rng, -0.05, 0.05);
    }
}

static void observe(const double *state, float *obs)
{
    for (int k = 0; k < 4; k++) {
        obs[k] = (float)state[k];
    }
}

static const struct classic cartpole_kind = {
    .snapshot_kind = SNAPSHOT_KIND('C', 'P', 'L', '1'),
    .state_count = 4,
    .spec = {CLASSIC_SPEC, .obs_shape = {4}, .action_kind = CORRAL_ENV_DISCRETE, .choices = {2},
             .max_episode_steps = STEPS_MAX, .reward_low = 1.0, .reward_high = 1.0,
             .reward_threshold = 475.0},
    .pick = cartpole_pick,
    .careful = cartpole_careful,
    .ordinary = ordinary,
    .acceptable = acceptable,
    .draw = draw,
    .observe = observe,
};
CLASSIC_PLUGIN(cartpole_kind, "CartPole-v1", "balance a pole on a cart (Gymnasium dynamics)");
