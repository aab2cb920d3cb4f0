/* The batch behind the classic-control environments: one agent, no masks, up to four numbers of state, a time limit, same-step autoreset.
 * State is a structure of arrays. step() runs one branch-free kernel over all environments and then visits the few whose episode ended; with ids it runs
 * the same kernel on one environment at a time, so the results cannot differ.
 *
 * Snapshot: struct snapshot_head (common.h, 32 bytes), then the state as doubles in the order the environment's own file documents. restore() takes any
 * state its `acceptable` takes, which makes it the way to put an environment into a state of one's choice.
 */
#ifndef CORRAL_ENVS_CLASSIC_H
#define CORRAL_ENVS_CLASSIC_H

#include "common.h"
#include <float.h>

#define CLASSIC_STATE_MAX 4

struct classic {
    uint32_t snapshot_kind;
    uint32_t state_count;
    struct corral_env_spec spec;
    kernel_fn (*pick)(void);
    /* Advances environments [lo, hi) where one of them is outside the kernel's range; NULL: the kernel takes every acceptable state. */
    kernel_fn careful;
    bool (*ordinary)(const double *state);
    bool (*acceptable)(const double *state);
    void (*draw)(struct corral_env_rng *rng, double *state);
    void (*observe)(const double *state, float *obs);
};

struct corral_env {
    const struct classic *kind;
    kernel_fn advance;
    struct corral_env_buffers io;
    uint32_t obs_words, action_words; /* from one row to the next */
    bool packed;                      /* rows follow each other without gaps */
    bool extraordinary;               /* restore() left a state that only `careful` handles */
    uint64_t *stream_seed, *episode;
    int32_t *steps;
    double *state[CLASSIC_STATE_MAX];
    struct memory memory;
    void *block;
    size_t block_bytes;
};

static inline void classic_load(const struct corral_env *env, uint32_t id, double *state)
{
    for (uint32_t k = 0; k < env->kind->state_count; k++) {
        state[k] = env->state[k][id];
    }
}

static inline void classic_store(struct corral_env *env, uint32_t id, const double *state)
{
    for (uint32_t k = 0; k < env->kind->state_count; k++) {
        env->state[k][id] = state[k];
    }
    env->kind->observe(state, (float *)env->io.obs + (size_t)id * env->obs_words);
}

static inline void classic_begin_episode(struct corral_env *env, uint32_t id)
{
    struct corral_env_rng rng = {corral_env_episode_seed(env->stream_seed[id], env->episode[id])};
    double state[CLASSIC_STATE_MAX];
    env->steps[id] = 0;
    env->kind->draw(&rng, state);
    classic_store(env, id, state);
}

static inline void classic_end_episode(struct corral_env *env, uint32_t id)
{
    size_t at = (size_t)id * env->io.obs_stride;
    memcpy((char *)env->io.final_obs + at, (const char *)env->io.obs + at,
           sizeof(float) * env->kind->spec.obs_shape[0]);
    env->episode[id]++;
    classic_begin_episode(env, id);
}

/* One more step for `width` rows from `at`, and the flag where that was the last one allowed. */
static inline __attribute__((always_inline)) void classic_count_steps(struct corral_env *env, uint32_t at,
                                                                      const uint32_t width, int32_t limit)
{
    int32_t steps[BLOCK_ROWS];
    uint8_t last[BLOCK_ROWS];
    for (uint32_t i = 0; i < width; i++) {
        steps[i] = env->steps[at + i] + 1;
        last[i] = steps[i] >= limit;
    }
    memcpy(env->steps + at, steps, width * sizeof steps[0]);
    memcpy(env->io.truncated + at, last, width);
}

static inline __attribute__((always_inline)) void classic_put_state(struct corral_env *env, uint32_t at,
                                                                    const uint32_t width,
                                                                    const uint32_t count,
                                                                    double (*next)[BLOCK_ROWS])
{
    for (uint32_t k = 0; k < count; k++) {
        memcpy(env->state[k] + at, next[k], width * sizeof(double));
    }
}

static inline bool classic_over(const struct corral_env *env, uint32_t id)
{
    return (env->io.terminated[id] | env->io.truncated[id]) != 0;
}

/* Eight flags at a time: ends are rare. */
static inline void classic_end_episodes(struct corral_env *env)
{
    uint32_t id = 0;
    for (; id + 8 <= env->io.envs; id += 8) {
        uint64_t terminated, truncated;
        memcpy(&terminated, env->io.terminated + id, 8);
        memcpy(&truncated, env->io.truncated + id, 8);
        if ((terminated | truncated) == 0) {
            continue;
        }
        for (uint32_t i = id; i < id + 8; i++) {
            if (classic_over(env, i)) {
                classic_end_episode(env, i);
            }
        }
    }
    for (; id < env->io.envs; id++) {
        if (classic_over(env, id)) {
            classic_end_episode(env, id);
        }
    }
}

/* Nothing moves when any action is bad: no action outside the choices, no number that is not finite. */
static inline bool classic_action_good(const struct corral_env *env, uint32_t id)
{
    const char *at = (const char *)env->io.action + (size_t)id * env->io.action_stride;
    if (env->kind->spec.action_kind == CORRAL_ENV_DISCRETE) {
        uint32_t choice;
        memcpy(&choice, at, sizeof choice);
        return choice < env->kind->spec.choices[0];
    }
    float number;
    memcpy(&number, at, sizeof number);
    return fabsf(number) <= FLT_MAX;
}

static inline bool classic_actions_good(const struct corral_env *env)
{
    uint32_t envs = env->io.envs, bad = 0;
    if (env->action_words != 1) {
        for (uint32_t id = 0; id < envs; id++) {
            bad |= !classic_action_good(env, id);
        }
    } else if (env->kind->spec.action_kind == CORRAL_ENV_DISCRETE) {
        const uint32_t *choice = env->io.action;
        uint32_t choices = env->kind->spec.choices[0];
        for (uint32_t id = 0; id < envs; id++) {
            bad |= choice[id] >= choices;
        }
    } else {
        const float *number = env->io.action;
        for (uint32_t id = 0; id < envs; id++) {
            bad |= !(fabsf(number[id]) <= FLT_MAX);
        }
    }
    return bad == 0;
}

static inline enum corral_env_status classic_step_some(struct corral_env *env, const uint32_t *ids,
                                                       uint32_t count)
{
    if (!ids_valid(ids, count, env->io.envs)) {
        return CORRAL_ENV_INVALID;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!classic_action_good(env, ids[i])) {
            return CORRAL_ENV_INVALID;
        }
    }
    kernel_fn advance = env->extraordinary ? env->kind->careful : env->advance;
    for (uint32_t i = 0; i < count; i++) {
        advance(env, ids[i], ids[i] + 1);
        if (classic_over(env, ids[i])) {
            classic_end_episode(env, ids[i]);
        }
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status classic_step(struct corral_env *env, const uint32_t *ids, uint32_t count)
{
    if (ids != NULL) {
        return classic_step_some(env, ids, count);
    }
    if (!classic_actions_good(env)) {
        return CORRAL_ENV_INVALID;
    }
    kernel_fn advance = env->extraordinary ? env->kind->careful : env->advance;
    advance(env, 0, env->io.envs);
    classic_end_episodes(env);
    return CORRAL_ENV_OK;
}

static enum corral_env_status classic_reset(struct corral_env *env, const uint32_t *ids, uint32_t count,
                                            const uint64_t *seeds)
{
    if (seeds == NULL || !ids_valid(ids, count, env->io.envs) || (ids == NULL && count != env->io.envs)) {
        return CORRAL_ENV_INVALID;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = ids == NULL ? i : ids[i];
        env->stream_seed[id] = seeds[i];
        env->episode[id] = 0;
        env->io.reward[id] = 0.0f;
        env->io.terminated[id] = 0;
        env->io.truncated[id] = 0;
        classic_begin_episode(env, id);
    }
    return CORRAL_ENV_OK;
}

static enum corral_env_status classic_snapshot(struct corral_env *env, uint32_t id, void *buffer,
                                               size_t *bytes)
{
    if (id >= env->io.envs || bytes == NULL) {
        return CORRAL_ENV_INVALID;
    }
    size_t state_bytes = sizeof(double) * env->kind->state_count;
    enum corral_env_status status = snapshot_room(buffer, bytes, sizeof(struct snapshot_head) + state_bytes);
    if (status != CORRAL_ENV_OK) {
        return status;
    }
    struct snapshot_head head = {
        .kind = env->kind->snapshot_kind,
        .version = SNAPSHOT_VERSION,
        .stream_seed = env->stream_seed[id],
        .episode = env->episode[id],
        .steps = (uint32_t)env->steps[id],
    };
    double state[CLASSIC_STATE_MAX];
    classic_load(env, id, state);
    memcpy(buffer, &head, sizeof head);
    memcpy((char *)buffer + sizeof head, state, state_bytes);
    return CORRAL_ENV_OK;
}

static enum corral_env_status classic_restore(struct corral_env *env, uint32_t id, const void *buffer,
                                              size_t bytes)
{
    struct snapshot_head head;
    double state[CLASSIC_STATE_MAX];
    size_t state_bytes = sizeof(double) * env->kind->state_count;
    if (id >= env->io.envs ||
        !snapshot_head_read(&head, buffer, bytes, sizeof head + state_bytes, env->kind->snapshot_kind,
                            env->kind->spec.max_episode_steps)) {
        return CORRAL_ENV_INVALID;
    }
    memcpy(state, (const char *)buffer + sizeof head, state_bytes);
    if (!env->kind->acceptable(state)) {
        return CORRAL_ENV_INVALID;
    }
    env->stream_seed[id] = head.stream_seed;
    env->episode[id] = head.episode;
    env->steps[id] = (int32_t)head.steps;
    env->extraordinary |= env->kind->careful != NULL && !env->kind->ordinary(state);
    classic_store(env, id, state);
    return CORRAL_ENV_OK;
}

static void classic_destroy(struct corral_env *env)
{
    if (env != NULL) {
        struct memory memory = env->memory;
        memory_put(&memory, env->block, env->block_bytes);
    }
}

/* Lays the batch out in one block; with a NULL block it only counts. */
static inline struct corral_env *classic_lay_out(struct carver *carver, const struct classic *kind,
                                                 uint32_t envs)
{
    struct corral_env *env = carve(carver, 1, sizeof *env);
    struct corral_env counted, *to = env == NULL ? &counted : env;
    to->stream_seed = carve(carver, envs, sizeof *to->stream_seed);
    to->episode = carve(carver, envs, sizeof *to->episode);
    to->steps = carve(carver, envs, sizeof *to->steps);
    for (uint32_t k = 0; k < kind->state_count; k++) {
        to->state[k] = carve(carver, envs, sizeof *to->state[k]);
    }
    return env;
}

static inline enum corral_env_status classic_create(const struct classic *kind, const char *args_json,
                                                    const struct corral_env_buffers *buffers,
                                                    const struct corral_env_host *host,
                                                    struct corral_env **out, char *error, size_t error_bytes)
{
    struct corral_env_buffers io;
    sized_copy(&io, sizeof io, buffers, buffers->size);
    size_t obs_bytes = sizeof(float) * kind->spec.obs_shape[0];
    if (!args_parse(args_json, NULL, 0, error, error_bytes) ||
        !buffers_fit(&io, 1, obs_bytes, sizeof(float), error, error_bytes)) {
        return CORRAL_ENV_INVALID;
    }
    struct carver carver = {0};
    (void)classic_lay_out(&carver, kind, io.envs);
    struct memory memory;
    memory_open(&memory, host);
    size_t bytes = carver.used + 64;
    void *block = memory_get(&memory, bytes);
    if (block == NULL) {
        snprintf(error, error_bytes, "no memory for %u environments", io.envs);
        return CORRAL_ENV_NOMEM;
    }
    carver = (struct carver){.block = cache_aligned(block)};
    struct corral_env *env = classic_lay_out(&carver, kind, io.envs);
    env->kind = kind;
    env->advance = kind->pick();
    env->io = io;
    env->obs_words = (uint32_t)(io.obs_stride / 4);
    env->action_words = (uint32_t)(io.action_stride / 4);
    env->packed = io.obs_stride == obs_bytes && env->action_words == 1;
    env->memory = memory;
    env->block = block;
    env->block_bytes = bytes;
    *out = env;
    return CORRAL_ENV_OK;
}

static inline enum corral_env_status classic_describe(const struct classic *kind, const char *args_json,
                                                      struct corral_env_spec *spec, char *error,
                                                      size_t error_bytes)
{
    if (!args_parse(args_json, NULL, 0, error, error_bytes)) {
        return CORRAL_ENV_INVALID;
    }
    return spec_write(spec, &kind->spec);
}

static inline bool classic_within(const double *state, uint32_t count, double bound)
{
    bool good = true;
    for (uint32_t k = 0; k < count; k++) {
        good = good && fabs(state[k]) <= bound;
    }
    return good;
}

/* The members of a spec that are the same for all of them. */
#define CLASSIC_SPEC                                                                         \
    .size = sizeof(struct corral_env_spec), .flags = CORRAL_ENV_SNAPSHOTS, .agents = 1,      \
    .autoreset = CORRAL_ENV_AUTORESET_SAME_STEP, .obs_dtype = CORRAL_ENV_F32, .obs_rank = 1, \
    .obs_low = -INFINITY, .obs_high = INFINITY, .components = 1

/* Exports `kind` as the only environment of the plug-in. */
#define CLASSIC_PLUGIN(kind, env_id, text)                                                                   \
    static enum corral_env_status describe(const char *args_json, struct corral_env_spec *spec, char *error, \
                                           size_t error_bytes)                                               \
    {                                                                                                        \
        return classic_describe(&(kind), args_json, spec, error, error_bytes);                               \
    }                                                                                                        \
    static enum corral_env_status create(const char *args_json, const struct corral_env_buffers *buffers,    \
                                         const struct corral_env_host *host, struct corral_env **out,        \
                                         char *error, size_t error_bytes)                                    \
    {                                                                                                        \
        return classic_create(&(kind), args_json, buffers, host, out, error, error_bytes);                   \
    }                                                                                                        \
    static const struct corral_env_ops ops = {                                                               \
        .size = sizeof ops,                                                                                  \
        .id = (env_id),                                                                                      \
        .summary = (text),                                                                                   \
        .describe = describe,                                                                                \
        .create = create,                                                                                    \
        .destroy = classic_destroy,                                                                          \
        .reset = classic_reset,                                                                              \
        .step = classic_step,                                                                                \
        .snapshot = classic_snapshot,                                                                        \
        .restore = classic_restore,                                                                          \
    };                                                                                                       \
    static const struct corral_env_ops *const list[] = {&ops};                                               \
    CORRAL_ENV_PLUGIN(list)

#endif
