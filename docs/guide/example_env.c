/* catch/Catch-v0: a ball falls down ten rows, a paddle below moves left, stays or moves right. Catching it gives 1, missing it -1.
 *     gcc -shared -fPIC -O2 -I include docs/guide/example_env.c -o catch.so */
#include <corral/env.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 5, HEIGHT = 10 };

struct game {
    uint64_t seed, episode; /* the stream seed that reset() gave us, and which of its episodes this is */
    int ball, height, paddle;
};

struct corral_env {
    struct corral_env_buffers io; /* the runtime's arrays: we read actions there and write what happens */
    struct game games[];
};

static enum corral_env_status describe(const char *args_json, struct corral_env_spec *spec, char *error, size_t error_bytes)
{
    (void)args_json, (void)error, (void)error_bytes; /* this game has no arguments */
    *spec = (struct corral_env_spec){
        .size = sizeof *spec, .agents = 1, .autoreset = CORRAL_ENV_AUTORESET_SAME_STEP, .flags = CORRAL_ENV_SNAPSHOTS,
        .obs_dtype = CORRAL_ENV_F32, .obs_rank = 1, .obs_shape = {3}, .obs_low = 0, .obs_high = 1,
        .action_kind = CORRAL_ENV_DISCRETE, .components = 1, .choices = {3},
        .max_episode_steps = HEIGHT, .reward_low = -1, .reward_high = 1, .reward_threshold = 0.95,
    };
    return CORRAL_ENV_OK;
}

static void show(struct corral_env *env, uint32_t id, void *rows)
{
    const struct game *g = &env->games[id];
    float obs[3] = {g->ball / (float)(WIDTH - 1), g->height / (float)HEIGHT, g->paddle / (float)(WIDTH - 1)};
    memcpy((char *)rows + id * env->io.obs_stride, obs, sizeof obs);
}

static void start_episode(struct corral_env *env, uint32_t id)
{
    struct game *g = &env->games[id];
    struct corral_env_rng rng = {corral_env_episode_seed(g->seed, g->episode)}; /* all of this episode's chance comes from here */
    g->ball = (int)corral_env_rng_below(&rng, WIDTH);
    g->paddle = (int)corral_env_rng_below(&rng, WIDTH);
    g->height = HEIGHT;
    show(env, id, env->io.obs);
}

static enum corral_env_status reset(struct corral_env *env, const uint32_t *ids, uint32_t count, const uint64_t *seeds)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids ? ids[i] : i;
        env->games[id].seed = seeds[i];
        env->games[id].episode = 0;
        env->io.reward[id] = 0;
        env->io.terminated[id] = env->io.truncated[id] = 0;
        start_episode(env, id);
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids ? ids[i] : i;
        struct game *g = &env->games[id];
        g->paddle += ((const int32_t *)env->io.action)[id] - 1;
        g->paddle = g->paddle < 0 ? 0 : g->paddle >= WIDTH ? WIDTH - 1 : g->paddle;
        int landed = --g->height == 0;
        env->io.reward[id] = !landed ? 0 : g->ball == g->paddle ? 1 : -1;
        env->io.terminated[id] = (uint8_t)landed; /* the game is over; it is never cut off */
        env->io.truncated[id] = 0;
        if (landed) { /* same-step: show the end in final_obs and the next beginning in obs */
            show(env, id, env->io.final_obs);
            g->episode++;
            start_episode(env, id);
        } else {
            show(env, id, env->io.obs);
        }
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status create(const char *args_json, const struct corral_env_buffers *io, const struct corral_env_host *host, struct corral_env **out, char *error,
                                     size_t error_bytes)
{
    (void)args_json, (void)host, (void)error, (void)error_bytes;
    struct corral_env *env = calloc(1, sizeof *env + io->envs * sizeof env->games[0]);
    if (env == NULL) {
        return CORRAL_ENV_NOMEM;
    }
    env->io = *io;
    *out = env;
    return CORRAL_ENV_OK;
}

static void destroy(struct corral_env *env)
{
    free(env);
}

static enum corral_env_status snapshot(struct corral_env *env, uint32_t id, void *buffer, size_t *bytes)
{
    size_t room = *bytes;
    *bytes = sizeof env->games[id];
    if (room < *bytes) {
        return CORRAL_ENV_TOO_SMALL;
    }
    memcpy(buffer, &env->games[id], *bytes);
    return CORRAL_ENV_OK;
}

static enum corral_env_status restore(struct corral_env *env, uint32_t id, const void *buffer, size_t bytes)
{
    if (bytes != sizeof env->games[id]) {
        return CORRAL_ENV_INVALID;
    }
    memcpy(&env->games[id], buffer, bytes);
    show(env, id, env->io.obs);
    return CORRAL_ENV_OK;
}

static const struct corral_env_ops catch_ops = {
    .size = sizeof catch_ops, .id = "catch/Catch-v0", .summary = "move the paddle under the falling ball",
    .describe = describe, .create = create, .destroy = destroy, .reset = reset, .step = step, .snapshot = snapshot, .restore = restore,
};
static const struct corral_env_ops *const list[] = {&catch_ops};
CORRAL_ENV_PLUGIN(list);
