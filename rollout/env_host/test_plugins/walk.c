/* Environments for the tests of the environment host: a walk on a line, in every mode the ABI has, and one broken in each way a plug-in can be.
 * The walker starts near 0; choices 0, 1, 2 move it by -1, 0, +1. At -10 or 10 the episode terminates, after 20 steps it is truncated. reward = the new position / 10.
 * Observation: position / 10 and the share of steps taken.
 */
#include <corral/env.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum fault {
    NONE,
    CRASH, /* every seventh step() of the batch */
    HANG,  /* likewise */
    CRASH_IN_CREATE,
    CRASH_IN_DESCRIBE_OF_BAD_ARGS,
    NAN_OBS, /* environment 0, third step of an episode */
    INF_REWARD,
    NAN_FINAL,
    OVERRUN,  /* writes past the end of obs */
    UNDERRUN, /* writes before the beginning of reward */
    NONDETERMINISTIC,
    OBS_LIE, /* leaves the declared bounds */
    REWARD_LIE,
    NO_LEGAL_CHOICE,
    NO_ACTIVE_ROW,
    FLAG_OF_TWO,
    FORGETFUL_SNAPSHOT,
    OVERLONG,      /* declares 15 steps and takes 20 */
    NO_AUTORESET,  /* declares same-step and goes on after the end */
    STALE_FINAL,   /* does not write final_obs */
    OWN_SEED_RULE, /* later episodes do not follow corral_env_episode_seed */
    SHARED_STATE,  /* between batches */
    STEPS_ALL,     /* whatever ids says */
    ALLOCATES,     /* through host->alloc */
    LEAKS,
    CRASH_WHEN_REFUSED,
    INFRA,           /* environment 1, fifth step of an episode */
    DOWN,            /* likewise, and its next two resets fail */
    DEAD,            /* from the tenth step() on every environment is lost and no reset helps */
    BATCH_FAILS,     /* step() returns CORRAL_ENV_INFRA on every seventh call */
    FLAGS_UNWRITTEN, /* `terminated` is never cleared by step */
    BATCH_COUPLED,   /* the trajectory depends on how many environments there are */
    SPEAKS,          /* writes to stdout */
};

enum { STEPS_MAX = 20, EDGE = 10 };

struct walker {
    uint64_t stream, episode;
    int32_t position, steps, failing_resets, ended;
    struct corral_env_rng rng; /* of OWN_SEED_RULE */
};

struct corral_env {
    struct corral_env_buffers io;
    struct corral_env_host host;
    struct walker *walkers;
    struct corral_env_spec spec;
    enum fault fault;
    uint32_t calls;
    void *extra;
};

static uint32_t shared_counter;

static void write_number(const struct corral_env *env, void *rows, uint32_t row, uint32_t index, double value)
{
    char *at = (char *)rows + row * env->io.obs_stride;
    switch (env->spec.obs_dtype) {
    case CORRAL_ENV_F32:
        ((float *)(void *)at)[index] = (float)value;
        break;
    case CORRAL_ENV_F64:
        ((double *)(void *)at)[index] = value;
        break;
    case CORRAL_ENV_I32:
        ((int32_t *)(void *)at)[index] = (int32_t)(value * 100);
        break;
    case CORRAL_ENV_U8:
        ((uint8_t *)at)[index] = (uint8_t)(value * 100 + 100);
        break;
    }
}

static void observe(const struct corral_env *env, uint32_t e, void *rows)
{
    const struct walker *w = &env->walkers[e];
    for (uint32_t a = 0; a < env->io.agents; a++) {
        write_number(env, rows, e * env->io.agents + a, 0,
                     env->fault == OBS_LIE && w->steps == 4 ? 7.5 : w->position / (double)EDGE);
        write_number(env, rows, e * env->io.agents + a, 1, w->steps / (double)STEPS_MAX);
    }
}

/* With turns: agent steps % agents moves. With a mask: no step to the left of -5, except by agent 0. */
static void show(struct corral_env *env, uint32_t e)
{
    const struct walker *w = &env->walkers[e];
    observe(env, e, env->io.obs);
    for (uint32_t a = 0; a < env->io.agents; a++) {
        uint32_t row = e * env->io.agents + a;
        if (env->spec.flags & CORRAL_ENV_TURNS) {
            env->io.active[row] = (uint32_t)w->steps % env->io.agents == a && env->fault != NO_ACTIVE_ROW;
        }
        if (env->io.mask != NULL) {
            uint8_t *mask = env->io.mask + row * env->io.mask_stride;
            mask[0] = w->position > -5 || a == 0;
            mask[1] = mask[2] = 1;
            if (env->fault == NO_LEGAL_CHOICE && w->steps == 3) {
                memset(mask, 0, 3);
            }
        }
    }
}

static void begin(struct corral_env *env, uint32_t e)
{
    struct walker *w = &env->walkers[e];
    struct corral_env_rng rng = {corral_env_episode_seed(w->stream, w->episode)};
    if (env->fault == OWN_SEED_RULE && w->episode > 0) {
        rng = w->rng;
    }
    w->position = (int32_t)corral_env_rng_below(&rng, 7) - 3;
    w->steps = w->ended = 0;
    (void)corral_env_rng_next(&rng);
    w->rng = rng;
    if (env->fault == NONDETERMINISTIC) {
        struct corral_env_rng other = {++shared_counter};
        w->position = (int32_t)corral_env_rng_below(&other, 7) - 3;
    } else if (env->fault == BATCH_COUPLED) {
        w->position = (w->position + (int32_t)env->io.envs) % 4;
    }
    show(env, e);
}

static int32_t movement(const struct corral_env *env, uint32_t e)
{
    const struct walker *w = &env->walkers[e];
    uint32_t agent = env->spec.flags & CORRAL_ENV_TURNS ? (uint32_t)w->steps % env->io.agents : 0;
    const void *action = (const char *)env->io.action + (e * env->io.agents + agent) * env->io.action_stride;
    if (env->spec.action_kind == CORRAL_ENV_CONTINUOUS) {
        return (int32_t)lrintf(((const float *)action)[0]);
    }
    return ((const int32_t *)action)[0] - 1;
}

static void walk(struct corral_env *env, uint32_t e)
{
    struct walker *w = &env->walkers[e];
    uint32_t agents = env->io.agents, first = e * agents;
    if (w->ended && env->spec.autoreset == CORRAL_ENV_AUTORESET_NEXT_STEP) {
        memset(env->io.reward + first, 0, agents * sizeof(float));
        memset(env->io.terminated + first, 0, agents);
        memset(env->io.truncated + first, 0, agents);
        w->episode++;
        begin(env, e);
        return;
    }
    w->position += movement(env, e);
    w->position = w->position > EDGE ? EDGE : w->position < -EDGE ? -EDGE : w->position;
    if (env->fault == SHARED_STATE) {
        w->position = (int32_t)(++shared_counter % 5);
    }
    w->steps++;
    bool over = abs(w->position) == EDGE, late = w->steps >= STEPS_MAX;
    bool second_dies = agents == 2 && !(env->spec.flags & CORRAL_ENV_TURNS) && w->steps >= 5;
    for (uint32_t a = 0; a < agents; a++) {
        float reward = (float)w->position / EDGE;
        if (env->spec.action_kind == CORRAL_ENV_CONTINUOUS) {
            reward = ((const float *)env->io.action)[e * env->spec.components + 1];
        }
        env->io.reward[first + a] = env->fault == REWARD_LIE && w->steps == 4 ? 9.0f : reward;
        if (over || env->fault != FLAGS_UNWRITTEN) {
            env->io.terminated[first + a] = over || (a == 1 && second_dies);
        }
        env->io.truncated[first + a] = late ? (env->fault == FLAG_OF_TWO ? 2 : 1) : 0;
        if (second_dies && !over && !late && w->steps == 5 &&
            env->spec.autoreset == CORRAL_ENV_AUTORESET_SAME_STEP) {
            observe(env, e, env->io.final_obs);
        }
    }
    if ((env->fault == INFRA || env->fault == DOWN) && e == 1 && w->steps == 5) {
        env->io.status[e] = CORRAL_ENV_INFRA;
        w->failing_resets = env->fault == DOWN ? 2 : 0;
    }
    show(env, e);
    if (env->fault == NAN_OBS && e == 0 && w->steps == 3) {
        write_number(env, env->io.obs, first, 1, NAN);
    }
    if (env->fault == INF_REWARD && e == 0 && w->steps == 3) {
        env->io.reward[first] = INFINITY;
    }
    if (!over && !late) {
        return;
    }
    w->ended = 1;
    if (env->spec.autoreset == CORRAL_ENV_AUTORESET_SAME_STEP && env->fault != NO_AUTORESET) {
        if (env->fault != STALE_FINAL) {
            observe(env, e, env->io.final_obs);
        }
        if (env->fault == NAN_FINAL && e == 0) {
            write_number(env, env->io.final_obs, first, 0, NAN);
        }
        w->episode++;
        begin(env, e);
    }
}

static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    bool seventh = ++env->calls % 7 == 0;
    if (env->fault == CRASH && seventh) {
        abort();
    }
    while (env->fault == HANG && seventh) {
        usleep(1000);
    }
    if (env->fault == BATCH_FAILS && seventh) {
        return CORRAL_ENV_INFRA;
    }
    if (env->fault == SPEAKS) {
        printf("a plug-in should not say this\n");
        fflush(stdout);
    }
    if (env->fault == STEPS_ALL) {
        ids = NULL;
        count = env->io.envs;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = ids ? ids[i] : i;
        if (env->fault == DEAD && env->calls >= 10) {
            env->io.status[e] = CORRAL_ENV_INFRA;
        }
        walk(env, e);
    }
    if (env->fault == OVERRUN) {
        ((float *)env->io.obs)[env->io.envs * env->io.agents * 2] = 1;
    } else if (env->fault == UNDERRUN) {
        env->io.reward[-1] = 1;
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status reset(struct corral_env *env, const uint32_t *ids, uint32_t count,
                                    const uint64_t *seeds)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = ids ? ids[i] : i, first = e * env->io.agents;
        struct walker *w = &env->walkers[e];
        w->stream = seeds[i];
        w->episode = 0;
        memset(env->io.reward + first, 0, env->io.agents * sizeof(float));
        memset(env->io.terminated + first, 0, env->io.agents);
        memset(env->io.truncated + first, 0, env->io.agents);
        begin(env, e);
        if (w->failing_resets > 0 || (env->fault == DEAD && env->calls >= 10)) {
            w->failing_resets--;
            env->io.status[e] = CORRAL_ENV_INFRA;
        }
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status snapshot(struct corral_env *env, uint32_t id, void *buffer, size_t *bytes)
{
    size_t room = *bytes;
    *bytes = sizeof(struct walker);
    if (room < sizeof(struct walker)) {
        return CORRAL_ENV_TOO_SMALL;
    }
    memcpy(buffer, &env->walkers[id], sizeof(struct walker));
    return CORRAL_ENV_OK;
}

static enum corral_env_status restore(struct corral_env *env, uint32_t id, const void *buffer, size_t bytes)
{
    struct walker w;
    if (bytes != sizeof w) {
        return CORRAL_ENV_INVALID;
    }
    memcpy(&w, buffer, sizeof w);
    if (env->fault == FORGETFUL_SNAPSHOT) {
        w.steps = 0;
    }
    env->walkers[id] = w;
    show(env, id);
    return CORRAL_ENV_OK;
}

static enum corral_env_status describe_common(const struct corral_env_spec *base, enum fault fault,
                                              const char *args, struct corral_env_spec *spec, char *error,
                                              size_t room)
{
    if (fault == CRASH_IN_DESCRIBE_OF_BAD_ARGS && args[0] != '{') {
        abort();
    }
    if (args[0] != '{') {
        snprintf(error, room, "the arguments must be a JSON object");
        return CORRAL_ENV_INVALID;
    }
    uint32_t size = spec->size;
    *spec = *base;
    spec->size = size;
    return CORRAL_ENV_OK;
}

static enum corral_env_status create_common(const struct corral_env_spec *base, enum fault fault,
                                            const struct corral_env_buffers *io,
                                            const struct corral_env_host *host, struct corral_env **out)
{
    if (fault == CRASH_IN_CREATE) {
        abort();
    }
    struct corral_env *env = calloc(1, sizeof *env);
    struct walker *walkers = calloc(io->envs, sizeof *walkers);
    if (env == NULL || walkers == NULL) {
        free(env);
        free(walkers);
        return CORRAL_ENV_NOMEM;
    }
    env->io = *io;
    env->host = *host;
    env->walkers = walkers;
    env->spec = *base;
    env->fault = fault;
    if (fault == ALLOCATES || fault == LEAKS || fault == CRASH_WHEN_REFUSED) {
        env->extra = host->alloc(host->ctx, 100000);
        if (env->extra == NULL && fault != CRASH_WHEN_REFUSED) {
            free(walkers);
            free(env);
            return CORRAL_ENV_NOMEM;
        }
        *(volatile char *)env->extra = 1;
    }
    *out = env;
    return CORRAL_ENV_OK;
}

static void destroy(struct corral_env *env)
{
    if (env != NULL) {
        if (env->extra != NULL && env->fault != LEAKS) {
            env->host.release(env->host.ctx, env->extra, 100000);
        }
        free(env->walkers);
        free(env);
    }
}

#define BASE                                                                                              \
    .agents = 1, .autoreset = CORRAL_ENV_AUTORESET_SAME_STEP, .obs_dtype = CORRAL_ENV_F32, .obs_rank = 1, \
    .obs_shape = {2}, .obs_low = -1, .obs_high = 1, .action_kind = CORRAL_ENV_DISCRETE, .components = 1,  \
    .choices = {3}, .max_episode_steps = STEPS_MAX, .reward_low = -1, .reward_high = 1,                   \
    .reward_threshold = NAN

#define ENVIRONMENT(name, shown_id, its_fault, ...)                                                          \
    static const struct corral_env_spec name##_spec = {BASE, __VA_ARGS__};                                   \
    static enum corral_env_status name##_describe(const char *args, struct corral_env_spec *spec,            \
                                                  char *error, size_t room)                                  \
    {                                                                                                        \
        return describe_common(&name##_spec, its_fault, args, spec, error, room);                            \
    }                                                                                                        \
    static enum corral_env_status name##_create(const char *args, const struct corral_env_buffers *io,       \
                                                const struct corral_env_host *host, struct corral_env **out, \
                                                char *error, size_t room)                                    \
    {                                                                                                        \
        (void)args, (void)error, (void)room;                                                                 \
        return create_common(&name##_spec, its_fault, io, host, out);                                        \
    }                                                                                                        \
    static const struct corral_env_ops name##_ops = {                                                        \
        .size = sizeof name##_ops,                                                                           \
        .id = "walk/" shown_id,                                                                              \
        .summary = "a walk on a line, for tests",                                                            \
        .describe = name##_describe,                                                                         \
        .create = name##_create,                                                                             \
        .destroy = destroy,                                                                                  \
        .reset = reset,                                                                                      \
        .step = step,                                                                                        \
        .snapshot = snapshot,                                                                                \
        .restore = restore,                                                                                  \
    };

#pragma GCC diagnostic ignored "-Woverride-init"
#if defined(__clang__)
#pragma clang diagnostic ignored "-Winitializer-overrides"
#endif
#define FLAWED(name, shown_id, its_fault) ENVIRONMENT(name, shown_id, its_fault, .flags = 0)

ENVIRONMENT(same, "Same-v0", NONE, .flags = CORRAL_ENV_SNAPSHOTS)
ENVIRONMENT(next, "Next-v0", NONE, .flags = CORRAL_ENV_SNAPSHOTS, .autoreset = CORRAL_ENV_AUTORESET_NEXT_STEP)
ENVIRONMENT(off, "Off-v0", NONE, .flags = CORRAL_ENV_SNAPSHOTS, .autoreset = CORRAL_ENV_AUTORESET_OFF)
ENVIRONMENT(turns, "Turns-v0", NONE, .flags = CORRAL_ENV_SNAPSHOTS | CORRAL_ENV_TURNS | CORRAL_ENV_MASKS,
            .agents = 3)
ENVIRONMENT(team, "Team-v0", NONE, .flags = CORRAL_ENV_SNAPSHOTS, .agents = 2)
ENVIRONMENT(bytes, "Bytes-v0", NONE, .obs_dtype = CORRAL_ENV_U8, .obs_low = 0, .obs_high = 200)
ENVIRONMENT(ints, "Ints-v0", NONE, .obs_dtype = CORRAL_ENV_I32, .obs_low = -100, .obs_high = 100)
ENVIRONMENT(doubles, "Doubles-v0", NONE, .obs_dtype = CORRAL_ENV_F64, .autoreset = CORRAL_ENV_AUTORESET_OFF)
ENVIRONMENT(smooth, "Smooth-v0", NONE, .action_kind = CORRAL_ENV_CONTINUOUS, .components = 2, .low = {-1, 0},
            .high = {1, 0.5f})
ENVIRONMENT(nan_obs, "NanObs-v0", NAN_OBS, .obs_dtype = CORRAL_ENV_F64)
ENVIRONMENT(no_legal, "NoLegalChoice-v0", NO_LEGAL_CHOICE, .flags = CORRAL_ENV_MASKS)
ENVIRONMENT(no_active, "NoActiveRow-v0", NO_ACTIVE_ROW, .flags = CORRAL_ENV_TURNS, .agents = 2)
ENVIRONMENT(forgetful, "ForgetfulSnapshot-v0", FORGETFUL_SNAPSHOT, .flags = CORRAL_ENV_SNAPSHOTS)
ENVIRONMENT(overlong, "Overlong-v0", OVERLONG, .max_episode_steps = 15)
ENVIRONMENT(declared, "Declared-v0", NONDETERMINISTIC, .flags = CORRAL_ENV_NONDETERMINISTIC)
ENVIRONMENT(zero_agents, "ZeroAgents-v0", NONE, .agents = 0)
FLAWED(crash, "Crash-v0", CRASH)
FLAWED(hang, "Hang-v0", HANG)
FLAWED(crash_create, "CrashInCreate-v0", CRASH_IN_CREATE)
FLAWED(crash_args, "CrashOnBadArguments-v0", CRASH_IN_DESCRIBE_OF_BAD_ARGS)
FLAWED(inf_reward, "InfReward-v0", INF_REWARD)
FLAWED(nan_final, "NanFinal-v0", NAN_FINAL)
FLAWED(overrun, "Overrun-v0", OVERRUN)
FLAWED(underrun, "Underrun-v0", UNDERRUN)
FLAWED(nondeterministic, "Nondeterministic-v0", NONDETERMINISTIC)
FLAWED(obs_lie, "ObsLie-v0", OBS_LIE)
FLAWED(reward_lie, "RewardLie-v0", REWARD_LIE)
FLAWED(flag_of_two, "FlagOfTwo-v0", FLAG_OF_TWO)
FLAWED(no_autoreset, "NoAutoreset-v0", NO_AUTORESET)
FLAWED(stale_final, "StaleFinal-v0", STALE_FINAL)
FLAWED(own_seed_rule, "OwnSeedRule-v0", OWN_SEED_RULE)
FLAWED(shared_state, "SharedState-v0", SHARED_STATE)
FLAWED(steps_all, "StepsAll-v0", STEPS_ALL)
FLAWED(allocates, "Allocates-v0", ALLOCATES)
FLAWED(leaks, "Leaks-v0", LEAKS)
FLAWED(crash_refused, "CrashWhenRefused-v0", CRASH_WHEN_REFUSED)
FLAWED(infra, "Infra-v0", INFRA)
FLAWED(down, "Down-v0", DOWN)
FLAWED(dead, "Dead-v0", DEAD)
FLAWED(batch_fails, "BatchFails-v0", BATCH_FAILS)
FLAWED(flags_unwritten, "FlagsUnwritten-v0", FLAGS_UNWRITTEN)
FLAWED(batch_coupled, "BatchCoupled-v0", BATCH_COUPLED)
FLAWED(speaks, "Speaks-v0", SPEAKS)

static const struct corral_env_ops *const list[] = {
    &same_ops,
    &next_ops,
    &off_ops,
    &turns_ops,
    &team_ops,
    &bytes_ops,
    &ints_ops,
    &doubles_ops,
    &smooth_ops,
    &nan_obs_ops,
    &no_legal_ops,
    &no_active_ops,
    &forgetful_ops,
    &overlong_ops,
    &declared_ops,
    &zero_agents_ops,
    &crash_ops,
    &hang_ops,
    &crash_create_ops,
    &crash_args_ops,
    &inf_reward_ops,
    &nan_final_ops,
    &overrun_ops,
    &underrun_ops,
    &nondeterministic_ops,
    &obs_lie_ops,
    &reward_lie_ops,
    &flag_of_two_ops,
    &no_autoreset_ops,
    &stale_final_ops,
    &own_seed_rule_ops,
    &shared_state_ops,
    &steps_all_ops,
    &allocates_ops,
    &leaks_ops,
    &crash_refused_ops,
    &infra_ops,
    &down_ops,
    &dead_ops,
    &batch_fails_ops,
    &flags_unwritten_ops,
    &batch_coupled_ops,
    &speaks_ops,
};
CORRAL_ENV_PLUGIN(list);
