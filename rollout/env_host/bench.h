/* `rlctl env bench`: how fast an environment steps, on one core, and what the layers above it cost. */
#ifndef CORRAL_ROLLOUT_BENCH_H
#define CORRAL_ROLLOUT_BENCH_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_BENCH_RUNS 7
#define CORRAL_BENCH_ENVS 1024u

struct corral_bench_config {
    const char *id, *library, *args_json; /* as for a vector */
    uint32_t envs;                        /* 0: CORRAL_BENCH_ENVS */
    double seconds;                       /* for everything together; 0: 7 */
    uint64_t seed;
};

/* Environment steps per second (environments times steps, not rows) in CORRAL_BENCH_RUNS runs. */
struct corral_bench_rate {
    double median, low, high; /* 0 when not measured */
};

struct corral_bench_result {
    char id[64];
    uint32_t envs, agents, obs_bytes;  /* of one environment */
    struct corral_bench_rate alone;    /* the plug-in's own step(), actions written in advance */
    struct corral_bench_rate vector;   /* through corral_vec in this process */
    struct corral_bench_rate isolated; /* through corral_vec with a child process */
    struct corral_bench_rate policy;   /* the vector with a policy deciding: MLP 32 x 32, sampled */
    struct corral_bench_rate
        copy; /* copying the observations of as many environments: the floor for anything that touches them */
    double alone_to_copy; /* time of a step alone / time of that copy, medians */
    bool masked; /* the plug-in has masks: a legal action is picked after each step, and that time counts */
};

/* Runs on one core: the calling thread is pinned meanwhile (unless the system refuses) and put back. */
enum corral_status corral_env_bench(const struct corral_bench_config *config, struct corral_bench_result *out,
                                    struct corral_error *err);

#endif
