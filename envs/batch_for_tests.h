/* Loads a built plug-in and owns a batch's buffers, as the runtime does; for the tests of this folder. */
#ifndef CORRAL_ENVS_BATCH_FOR_TESTS_H
#define CORRAL_ENVS_BATCH_FOR_TESTS_H

#include "tests/check.h"
#include <corral/env.h>
#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SNAPSHOT_ROOM 256

struct batch {
    const struct corral_env_ops *ops;
    struct corral_env_spec spec;
    struct corral_env_buffers io;
    struct corral_env *env;
    void *library;
    size_t lent; /* bytes the plug-in holds from the host */
    char error[200];
};

struct plugin_name {
    const char *file, *id;
};

static const struct plugin_name plugins[] = {
    {"cartpole", "CartPole-v1"},        {"acrobot", "Acrobot-v1"},
    {"mountain_car", "MountainCar-v0"}, {"mountain_car_continuous", "MountainCarContinuous-v0"},
    {"pendulum", "Pendulum-v1"},        {"gridworld", "GridWorld-v0"},
    {"tictactoe", "TicTacToe-v0"},
};
#define PLUGINS (sizeof plugins / sizeof plugins[0])

static inline void *batch_alloc(void *ctx, size_t bytes)
{
    ((struct batch *)ctx)->lent += bytes;
    return calloc(1, bytes);
}

static inline void batch_release(void *ctx, void *memory, size_t bytes)
{
    ((struct batch *)ctx)->lent -= bytes;
    free(memory);
}

static inline void batch_load(struct batch *b, const char *file)
{
    char path[1024];
    memset(b, 0, sizeof *b);
    snprintf(path, sizeof path, "%s/%s.so", CORRAL_ENV_PLUGIN_DIR, file);
    b->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (b->library == NULL) {
        fail_msg("%s", dlerror());
    }
    const struct corral_env_plugin *plugin = dlsym(b->library, "corral_env_plugin_v1");
    assert_non_null(plugin);
    assert_int_equal(plugin->abi, CORRAL_ENV_ABI);
    assert_int_equal(plugin->count, 1);
    b->ops = plugin->envs[0];
    b->spec.size = sizeof b->spec;
}

/* pad: unused bytes after each row. */
static inline void batch_open_padded(struct batch *b, const char *file, uint32_t envs, const char *args,
                                     size_t pad)
{
    batch_load(b, file);
    if (b->ops->describe(args, &b->spec, b->error, sizeof b->error) != CORRAL_ENV_OK) {
        fail_msg("%s: %s", file, b->error);
    }
    size_t rows = (size_t)envs * b->spec.agents;
    b->io.size = sizeof b->io;
    b->io.envs = envs;
    b->io.agents = b->spec.agents;
    b->io.obs_stride = sizeof(float) * b->spec.obs_shape[0] + pad;
    b->io.action_stride = sizeof(int32_t) * b->spec.components + pad;
    b->io.obs = calloc(rows, b->io.obs_stride);
    b->io.final_obs = calloc(rows, b->io.obs_stride);
    b->io.action = calloc(rows, b->io.action_stride);
    b->io.reward = calloc(rows, sizeof(float));
    b->io.terminated = calloc(rows, 1);
    b->io.truncated = calloc(rows, 1);
    b->io.active = malloc(rows);
    memset(b->io.active, 1, rows);
    b->io.status = calloc(envs, sizeof(int32_t));
    if (b->spec.flags & CORRAL_ENV_MASKS) {
        b->io.mask_stride = b->spec.choices[0] + pad;
        b->io.mask = calloc(rows, b->io.mask_stride);
    }
    struct corral_env_host host = {
        .size = sizeof host, .ctx = b, .alloc = batch_alloc, .release = batch_release};
    if (b->ops->create(args, &b->io, &host, &b->env, b->error, sizeof b->error) != CORRAL_ENV_OK) {
        fail_msg("%s: %s", file, b->error);
    }
}

static inline void batch_open(struct batch *b, const char *file, uint32_t envs)
{
    batch_open_padded(b, file, envs, "{}", 0);
}

static inline void batch_close(struct batch *b)
{
    b->ops->destroy(b->env);
    assert_int_equal(b->lent, 0);
    free(b->io.obs);
    free(b->io.final_obs);
    free((void *)(uintptr_t)b->io.action);
    free(b->io.reward);
    free(b->io.terminated);
    free(b->io.truncated);
    free(b->io.active);
    free(b->io.status);
    free(b->io.mask);
    dlclose(b->library);
}

static inline const float *batch_obs(const struct batch *b, uint32_t row)
{
    return (const float *)((const char *)b->io.obs + row * b->io.obs_stride);
}

static inline const float *batch_final_obs(const struct batch *b, uint32_t row)
{
    return (const float *)((const char *)b->io.final_obs + row * b->io.obs_stride);
}

static inline size_t batch_obs_bytes(const struct batch *b)
{
    return sizeof(float) * b->spec.obs_shape[0];
}

static inline void batch_act(struct batch *b, uint32_t row, double action)
{
    char *at = (char *)(uintptr_t)b->io.action + row * b->io.action_stride;
    if (b->spec.action_kind == CORRAL_ENV_CONTINUOUS) {
        float number = (float)action;
        memcpy(at, &number, sizeof number);
    } else {
        int32_t choice = (int32_t)action;
        memcpy(at, &choice, sizeof choice);
    }
}

/* A random legal action; the same one for the same rng, whatever the batch. */
static inline void batch_act_randomly(struct batch *b, uint32_t row, struct corral_env_rng *rng)
{
    if (b->spec.action_kind == CORRAL_ENV_CONTINUOUS) {
        batch_act(b, row, corral_env_rng_uniform(rng, (double)b->spec.low[0], (double)b->spec.high[0]));
        return;
    }
    uint32_t choice = corral_env_rng_below(rng, b->spec.choices[0]);
    while (b->io.mask != NULL && !b->io.mask[row * b->io.mask_stride + choice]) {
        choice = (choice + 1) % b->spec.choices[0];
    }
    batch_act(b, row, choice);
}

static inline uint64_t test_seed(uint32_t env)
{
    return UINT64_C(0x5eed0000) + env * UINT64_C(7919);
}

/* Starts each environment from test_seed(its id). */
static inline void batch_reset(struct batch *b)
{
    for (uint32_t id = 0; id < b->io.envs; id++) {
        uint64_t seed = test_seed(id);
        assert_int_equal(b->ops->reset(b->env, &id, 1, &seed), CORRAL_ENV_OK);
    }
}

static inline void batch_step(struct batch *b)
{
    assert_int_equal(b->ops->step(b->env, NULL, b->io.envs), CORRAL_ENV_OK);
}

static inline size_t batch_snapshot(struct batch *b, uint32_t id, void *room)
{
    size_t bytes = SNAPSHOT_ROOM;
    assert_int_equal(b->ops->snapshot(b->env, id, room, &bytes), CORRAL_ENV_OK);
    return bytes;
}

/* The documented layout: a head of 32 bytes, then the state. */
struct snapshot_view {
    uint32_t kind, version;
    uint64_t stream_seed, episode;
    uint32_t steps, reserved;
    double state[4];
};

#endif
