/* catch/Catch-v0: a ball falls ten rows, a paddle below moves left, stays or moves right. Catching gives 1, missing -1. */
#include <corral/env.h>
#include <stdlib.h>

enum { WIDTH = 5, HEIGHT = 10 };
struct corral_env {
    struct corral_env_buffers io; /* the runtime's arrays: actions to read, everything else to write */
    struct game { uint64_t seed, episode; int ball, height, paddle; } game[];
};

static enum corral_env_status describe(const char *args, struct corral_env_spec *spec, char *error, size_t error_bytes)
{
    (void)args, (void)error, (void)error_bytes; /* no arguments, so nothing to complain about */
    *spec = (struct corral_env_spec){
        .size = sizeof *spec, .agents = 1, .autoreset = CORRAL_ENV_AUTORESET_SAME_STEP, .obs_dtype = CORRAL_ENV_F32, .obs_rank = 1, .obs_shape = {3}, .obs_low = 0, .obs_high = 1,
        .action_kind = CORRAL_ENV_DISCRETE, .components = 1, .choices = {3}, .max_episode_steps = HEIGHT, .reward_low = -1, .reward_high = 1, .reward_threshold = 0.95};
    return CORRAL_ENV_OK;
}
static enum corral_env_status create(const char *args, const struct corral_env_buffers *io, const struct corral_env_host *host, struct corral_env **out, char *error, size_t error_bytes)
{
    (void)args, (void)host, (void)error, (void)error_bytes;
    if (!(*out = calloc(1, sizeof **out + io->envs * sizeof(struct game)))) return CORRAL_ENV_NOMEM;
    (*out)->io = *io;
    return CORRAL_ENV_OK;
}
static void destroy(struct corral_env *env) { free(env); }

static void show(struct corral_env *env, uint32_t id, void *rows)
{
    float *obs = (float *)((char *)rows + id * env->io.obs_stride);
    obs[0] = env->game[id].ball / (float)(WIDTH - 1);
    obs[1] = env->game[id].height / (float)HEIGHT;
    obs[2] = env->game[id].paddle / (float)(WIDTH - 1);
}
static void begin(struct corral_env *env, uint32_t id)
{
    struct game *g = &env->game[id];
    struct corral_env_rng rng = {corral_env_episode_seed(g->seed, g->episode)}; /* all chance of this episode */
    g->ball = (int)corral_env_rng_below(&rng, WIDTH);
    g->paddle = (int)corral_env_rng_below(&rng, WIDTH);
    g->height = HEIGHT;
    show(env, id, env->io.obs);
}
static enum corral_env_status reset(struct corral_env *env, const uint32_t *ids, uint32_t count, const uint64_t *seeds)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids ? ids[i] : i;
        env->game[id] = (struct game){.seed = seeds[i]};
        env->io.reward[id] = env->io.terminated[id] = env->io.truncated[id] = 0;
        begin(env, id);
    }
    return CORRAL_ENV_OK;
}
static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids ? ids[i] : i;
        struct game *g = &env->game[id];
        int to = g->paddle + ((const int32_t *)env->io.action)[id] - 1;
        g->paddle = to < 0 ? 0 : to >= WIDTH ? WIDTH - 1 : to;
        int landed = --g->height == 0;
        env->io.reward[id] = (float)(landed ? (g->ball == g->paddle ? 1 : -1) : 0);
        env->io.terminated[id] = (uint8_t)landed;
        env->io.truncated[id] = 0; /* the game is over when the ball is down; it is never cut off */
        show(env, id, landed ? env->io.final_obs : env->io.obs);
        if (landed) {
            g->episode++;
            begin(env, id); /* same-step: obs already shows the next episode */
        }
    }
    return CORRAL_ENV_OK;
}
static const struct corral_env_ops ops = {sizeof ops, "catch/Catch-v0", "move the paddle under the falling ball", describe, create, destroy, reset, step, NULL, NULL};
static const struct corral_env_ops *const list[] = {&ops};
CORRAL_ENV_PLUGIN(list);
