/* A small environment written outside the tree: guess the coin that is shown; ten guesses are an episode. */
#include <corral/env.h>
#include <stdlib.h>

#define GUESSES 10u

struct coin {
    struct corral_env_rng rng;
    uint64_t stream, episode;
    uint32_t guesses;
};

struct corral_env {
    struct corral_env_buffers b;
    struct coin *coin;
};

static enum corral_env_status describe(const char *args, struct corral_env_spec *spec, char *error,
                                       size_t error_bytes)
{
    (void)args, (void)error, (void)error_bytes;
    spec->agents = 1;
    spec->autoreset = CORRAL_ENV_AUTORESET_SAME_STEP;
    spec->obs_dtype = CORRAL_ENV_F32;
    spec->obs_rank = 1;
    spec->obs_shape[0] = 1;
    spec->obs_low = 0;
    spec->obs_high = 1;
    spec->action_kind = CORRAL_ENV_DISCRETE;
    spec->components = 1;
    spec->choices[0] = 2;
    spec->max_episode_steps = GUESSES;
    spec->reward_low = 0;
    spec->reward_high = 1;
    spec->reward_threshold = 9.5;
    return CORRAL_ENV_OK;
}

static void destroy(struct corral_env *env)
{
    if (env) {
        free(env->coin);
    }
    free(env);
}

static enum corral_env_status create(const char *args, const struct corral_env_buffers *buffers,
                                     const struct corral_env_host *host, struct corral_env **out, char *error,
                                     size_t error_bytes)
{
    (void)args, (void)host, (void)error, (void)error_bytes;
    struct corral_env *env = calloc(1, sizeof *env);
    if (env) {
        env->b = *buffers;
        env->coin = calloc(buffers->envs, sizeof *env->coin);
    }
    if (!env || !env->coin) {
        destroy(env);
        return CORRAL_ENV_NOMEM;
    }
    *out = env;
    return CORRAL_ENV_OK;
}

static float *obs_of(void *obs, const struct corral_env *env, uint32_t id)
{
    return (float *)(void *)((char *)obs + id * env->b.obs_stride);
}

static void begin(struct corral_env *env, uint32_t id)
{
    struct coin *c = &env->coin[id];
    c->rng.state = corral_env_episode_seed(c->stream, c->episode);
    c->guesses = 0;
    *obs_of(env->b.obs, env, id) = (float)corral_env_rng_below(&c->rng, 2);
}

static enum corral_env_status reset(struct corral_env *env, const uint32_t *ids, uint32_t count,
                                    const uint64_t *seeds)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids ? ids[i] : i;
        env->coin[id].stream = seeds[i];
        env->coin[id].episode = 0;
        begin(env, id);
        env->b.reward[id] = 0;
        env->b.terminated[id] = env->b.truncated[id] = 0;
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids ? ids[i] : i;
        struct coin *c = &env->coin[id];
        float *obs = obs_of(env->b.obs, env, id);
        int32_t guess =
            *(const int32_t *)(const void *)((const char *)env->b.action + id * env->b.action_stride);
        env->b.reward[id] = guess == (int32_t)*obs ? 1 : 0;
        env->b.terminated[id] = 0;
        env->b.truncated[id] = ++c->guesses == GUESSES;
        *obs = (float)corral_env_rng_below(&c->rng, 2);
        if (env->b.truncated[id]) {
            *obs_of(env->b.final_obs, env, id) = *obs;
            c->episode++;
            begin(env, id);
        }
    }
    return CORRAL_ENV_OK;
}

static const struct corral_env_ops coin_ops = {
    .size = sizeof coin_ops,
    .id = "outside/Coin-v0",
    .summary = "say which side is shown",
    .describe = describe,
    .create = create,
    .destroy = destroy,
    .reset = reset,
    .step = step,
};
static const struct corral_env_ops *const list[] = {&coin_ops};
CORRAL_ENV_PLUGIN(list);
