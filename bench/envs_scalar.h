/* The built-in environments' dynamics once more, as one would write them first: a struct per instance, one instance after the other, the library's sine and
 * cosine. The yardstick of envs_bench: same observations, rewards, flags and resets. */
#ifndef CORRAL_BENCH_ENVS_SCALAR_H
#define CORRAL_BENCH_ENVS_SCALAR_H

#include <corral/env.h>

struct scalar_env {
    double s[4];
    struct corral_env_rng rng;
    uint32_t steps, cell, goal, stones[2];
};

struct scalar_rows {
    float *obs, *final_obs, *reward;
    uint8_t *terminated, *truncated, *mask;
    const int32_t *choice; /* or */
    const float *number;
};

struct scalar_kind {
    const char *id;
    void (*reset)(struct scalar_env *env, struct scalar_rows rows, uint32_t i);
    void (*step_all)(struct scalar_env *envs, struct scalar_rows rows, uint32_t count);
};

const struct scalar_kind *scalar_find(const char *id);

#endif
