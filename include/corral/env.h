/* <corral/env.h>: the plug-in ABI for environments, version 1.
 *
 * An environment is a shared object that exports one symbol, `corral_env_plugin_v1`, and needs this header and nothing else (no library to link). One
 * plug-in may offer many environments. Plain C11; usable from C++.
 *
 *     static enum corral_env_status step(struct corral_env *env, const uint32_t *ids, uint32_t count) { ... }
 *     static const struct corral_env_ops my_ops = {.size = sizeof my_ops, .id = "my/Game-v0", .describe = ..., ...};
 *     static const struct corral_env_ops *const my_list[] = {&my_ops};
 *     CORRAL_ENV_PLUGIN(my_list);
 *
 * BATCHES. create() makes a batch of `envs` independent instances with `agents` rows each: row = env * agents + agent. The runtime owns one
 * buffer per signal (struct corral_env_buffers); the plug-in reads actions from them and writes observations, rewards and flags into them,
 * in place. Nothing is copied. The buffers stay valid and unmoved until destroy().
 *
 * EPISODES. `terminated` (the task is over: bootstrap with zero) and `truncated` (cut off, e.g. by a time limit: bootstrap with the value of the last
 * observation) are separate, per row, always; both may be set. An episode of an environment ends when each of its
 * rows has been flagged once, at the latest in one last step that flags all that are left.
 * What happens then is declared in the spec:
 *   CORRAL_ENV_AUTORESET_SAME_STEP  step() writes the last observation into final_obs and the new episode's first observation into obs.
 *   CORRAL_ENV_AUTORESET_NEXT_STEP  step() leaves the last observation in obs; the next step() ignores the action, resets, reports reward 0.
 *   CORRAL_ENV_AUTORESET_OFF        the runtime calls reset() for that environment.
 *
 * SEEDS. One rule: reset() gives an environment a 64-bit stream seed, which starts its episode 0. Every episode k, also after an autoreset, draws all its
 * randomness from corral_env_episode_seed(stream seed, k). The same seeds and actions then give the same trajectory bit for bit, however many environments
 * share the batch. corral_env_rng below is there for convenience. Never use rand(), the time or addresses.
 *
 * AGENTS. `active` says which rows decide in the next step (turn-based games clear the others). An inactive row's action is ignored; it may still receive a
 * reward. With CORRAL_ENV_MASKS, `mask` has one byte per choice, 1 = legal now; at least one must be legal for an active row.
 *
 * FAILURES. A function returns CORRAL_ENV_OK, or a negative code when the whole batch cannot go on. What concerns one environment goes to
 * status[env]: CORRAL_ENV_INFRA (a sandbox, network or host failed) voids its episode: the runtime never turns it into a reward, and calls reset() for it.
 *
 * THREADS. One batch is used by one thread at a time; different batches may be used by different threads at once. No signal handlers, no exit(), no stdout.
 *
 * GROWTH. Structs start with `size`: the runtime reads only that many bytes and treats missing members as zero. Values are never renumbered. Text
 * and tool environments will be further members of corral_env_ops.
 */
#ifndef CORRAL_ENV_H
#define CORRAL_ENV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CORRAL_ENV_ABI 1u

enum corral_env_status {
    CORRAL_ENV_OK = 0,
    CORRAL_ENV_INVALID = -1,     /* bad arguments or actions */
    CORRAL_ENV_NOMEM = -2,       /* out of memory, or the quota refuses */
    CORRAL_ENV_INFRA = -3,       /* something outside the task failed; the episode is void */
    CORRAL_ENV_TASK = -4,        /* the task itself is bad data */
    CORRAL_ENV_UNSUPPORTED = -5, /* not offered by this environment */
    CORRAL_ENV_TOO_SMALL = -6    /* snapshot(): *bytes now says how much is needed */
};

/* ---- description ---- */

#define CORRAL_ENV_RANK_MAX 4
#define CORRAL_ENV_COMPONENTS_MAX 16

enum corral_env_dtype { CORRAL_ENV_F32 = 1, CORRAL_ENV_U8 = 2, CORRAL_ENV_I32 = 3, CORRAL_ENV_F64 = 4 };
enum corral_env_action_kind {
    CORRAL_ENV_DISCRETE = 1,       /* one int32 in [0, choices[0]) */
    CORRAL_ENV_MULTI_DISCRETE = 2, /* `components` int32, each in [0, choices[i]) */
    CORRAL_ENV_CONTINUOUS = 3      /* `components` float32; the runtime clips them to [low[i], high[i]] */
};
enum corral_env_autoreset {
    CORRAL_ENV_AUTORESET_SAME_STEP = 1,
    CORRAL_ENV_AUTORESET_NEXT_STEP = 2,
    CORRAL_ENV_AUTORESET_OFF = 3
};

/* Flags. */
#define CORRAL_ENV_MASKS (1u << 0)     /* writes `mask` (discrete kinds only) */
#define CORRAL_ENV_TURNS (1u << 1)     /* writes `active`: not every row decides in every step */
#define CORRAL_ENV_SNAPSHOTS (1u << 2) /* has snapshot() and restore() */
#define CORRAL_ENV_NONDETERMINISTIC \
    (1u << 3) /* equal seeds and actions may differ (a live service); skips the determinism checks */

struct corral_env_spec {
    uint32_t size;
    uint32_t flags;
    uint32_t agents; /* rows per environment, at least 1 */
    enum corral_env_autoreset autoreset;
    /* Observation of one row: a dense row-major array. */
    enum corral_env_dtype obs_dtype;
    uint32_t obs_rank;
    uint32_t obs_shape[CORRAL_ENV_RANK_MAX];
    double obs_low, obs_high; /* bounds of every element; -INFINITY and INFINITY when there are none */
    /* Action of one row. */
    enum corral_env_action_kind action_kind;
    uint32_t components;
    uint32_t choices[CORRAL_ENV_COMPONENTS_MAX];
    float low[CORRAL_ENV_COMPONENTS_MAX], high[CORRAL_ENV_COMPONENTS_MAX];
    uint32_t max_episode_steps;     /* the environment truncates itself after so many steps; 0: no limit */
    double reward_low, reward_high; /* of one step and row */
    double reward_threshold;        /* mean return that counts as solved; NaN: none */
};

/* ---- services of the runtime, for create() and later calls on any thread that uses the batch ---- */

struct corral_env_host {
    uint32_t size;
    void *ctx;
    /* level 0 debug, 1 info, 2 warn, 3 error */
    void (*log)(void *ctx, int level, const char *message);
    /* Zeroed memory charged to the job's memory quota; NULL when refused. release() with the same size. */
    void *(*alloc)(void *ctx, size_t bytes);
    void (*release)(void *ctx, void *memory, size_t bytes);
};

/* ---- shared buffers, owned by the runtime ---- */

struct corral_env_buffers {
    uint32_t size;
    uint32_t envs, agents, reserved;
    void *obs; /* [rows] of obs_stride bytes: what each row sees now */
    size_t obs_stride;
    const void *action; /* [rows] of action_stride bytes: int32 or float32 per component */
    size_t action_stride;
    float *reward;       /* [rows] of this step */
    uint8_t *terminated; /* [rows] 0 or 1, written every step */
    uint8_t *truncated;  /* [rows] 0 or 1, written every step */
    uint8_t *active;     /* [rows] starts as all 1; written by CORRAL_ENV_TURNS environments */
    uint8_t *mask;       /* [rows] of mask_stride bytes, sum(choices) used; NULL without CORRAL_ENV_MASKS */
    size_t mask_stride;
    void *
        final_obs; /* [rows] of obs_stride bytes; SAME_STEP: written where a row is terminated or truncated */
    int32_t *status; /* [envs] enum corral_env_status; starts as 0 */
};

/* ---- what one environment offers ---- */

struct corral_env; /* the plug-in's own batch object */

struct corral_env_ops {
    uint32_t size;
    const char *id;      /* "CartPole-v1" or "space/Name-v0"; unique in a plug-in */
    const char *summary; /* one line for `rlctl env list` */
    /* Fill *spec (its size is set) for these arguments: a JSON object as text, "{}" when the job gives none. On failure write one line to `error`. */
    enum corral_env_status (*describe)(const char *args_json, struct corral_env_spec *spec, char *error,
                                       size_t error_bytes);
    /* Make a batch bound to *buffers (copied; the arrays outlive the batch). */
    enum corral_env_status (*create)(const char *args_json, const struct corral_env_buffers *buffers,
                                     const struct corral_env_host *host, struct corral_env **out, char *error,
                                     size_t error_bytes);
    void (*destroy)(struct corral_env *env); /* NULL is fine */
    /* Start episode 0 of a new stream in environments ids[0..count) (ids NULL: all, count = envs), seeds[i] for ids[i]. Writes obs (and mask, active), clears the rows' reward and flags. */
    enum corral_env_status (*reset)(struct corral_env *env, const uint32_t *ids, uint32_t count,
                                    const uint64_t *seeds);
    /* Advance environments ids[0..count) (ids NULL: all) by one step. Hot path: no allocation, no system call. */
    enum corral_env_status (*step)(struct corral_env *env, const uint32_t *ids, uint32_t count);
    /* Optional. The complete state of one environment, its stream seed and episode number included. In: *bytes is the room in buffer; out: bytes used or needed. */
    enum corral_env_status (*snapshot)(struct corral_env *env, uint32_t id, void *buffer, size_t *bytes);
    /* Optional. Bring environment `id` to a snapshotted state and write its obs, mask and active again. */
    enum corral_env_status (*restore)(struct corral_env *env, uint32_t id, const void *buffer, size_t bytes);
};

struct corral_env_plugin {
    uint32_t size;
    uint32_t abi; /* CORRAL_ENV_ABI */
    uint32_t count;
    uint32_t reserved;
    const struct corral_env_ops *const *envs;
};

#if defined(__GNUC__)
#define CORRAL_ENV_EXPORT __attribute__((visibility("default")))
#else
#define CORRAL_ENV_EXPORT
#endif
#ifdef __cplusplus
#define CORRAL_ENV_LINKAGE extern "C"
#else
#define CORRAL_ENV_LINKAGE
#endif

/* Put this once into a plug-in, with an array of pointers to its ops. */
#define CORRAL_ENV_PLUGIN(list)                                                                              \
    CORRAL_ENV_LINKAGE CORRAL_ENV_EXPORT extern const struct corral_env_plugin corral_env_plugin_v1;         \
    const struct corral_env_plugin corral_env_plugin_v1 = {sizeof(struct corral_env_plugin), CORRAL_ENV_ABI, \
                                                           (uint32_t)(sizeof(list) / sizeof((list)[0])), 0,  \
                                                           (list)}

/* ---- randomness: splitmix64 (Steele, Lea & Flood 2014), enough for resets and stochastic dynamics ---- */

struct corral_env_rng {
    uint64_t state;
};
static inline uint64_t corral_env_rng_next(struct corral_env_rng *rng)
{
    uint64_t z = (rng->state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
/* [lo, hi), 53 random bits. */
static inline double corral_env_rng_uniform(struct corral_env_rng *rng, double lo, double hi)
{
    return lo + (hi - lo) * ((double)(corral_env_rng_next(rng) >> 11) * 0x1.0p-53);
}
/* [0, n), n > 0; multiply-shift, bias below 2^-32 for n < 2^32. */
static inline uint32_t corral_env_rng_below(struct corral_env_rng *rng, uint32_t n)
{
    return (uint32_t)(((corral_env_rng_next(rng) >> 32) * n) >> 32);
}
/* The one seeding rule. */
static inline uint64_t corral_env_episode_seed(uint64_t stream_seed, uint64_t episode)
{
    struct corral_env_rng mix = {stream_seed ^ (episode * UINT64_C(0xD1342543DE82EF95))};
    (void)corral_env_rng_next(&mix);
    return corral_env_rng_next(&mix);
}

#ifdef __cplusplus
}
#endif
#endif
