/* A vector of environment instances as the rollout loop sees it: one set of row buffers, and the same rules whatever the plug-in declares.
 * row = env * agents + agent. One thread.
 *
 * EPISODES. The plug-in may declare next-step, same-step or no autoreset; here every environment behaves as same-step: when an episode ends, `obs` already
 * holds the first observation of the next one and `final_obs` the last of the old one. (A next-step plug-in is stepped once more, with the action it
 * ignores; one without autoreset is reset. Neither shows as a step.) An episode ends when every row of the environment has been terminated or truncated. Each row
 * is flagged exactly once per episode: a row that is done before the others turns inactive and its flags stay 0 until the episode is over.
 *
 * VOIDS. status[env] != 0 after a step: that environment's episode in flight is void. Everything recorded of it must be thrown away; it is never a reward. In
 * that step its rows have reward 0 and both flags 0, final_obs is not valid, episode_steps is the length reached, and obs, mask and active are those of a new
 * episode, already started. The causes: the plug-in says so (CORRAL_INFRA, or CORRAL_INVALID for a bad task), it produced a NaN or an infinity (CORRAL_INFRA), its child
 * process crashed or hung (CORRAL_INFRA for all). An environment that cannot even be reset shows active 0 and a status in every step, and is tried again after
 * 1, 2, 4 … 64 steps; when all of them are so for CORRAL_VEC_ALL_DOWN_MAX steps, step() fails.
 *
 * SEEDS. The n-th reset of environment e uses the stream seed corral_seed_derive(seed, worker, e, n); episodes after an autoreset continue the stream.
 *
 * ACTIONS are checked (a choice out of range, one the mask forbids, or a NaN, on an active row: CORRAL_INVALID, nothing was stepped) and continuous ones are clipped into a second
 * buffer for the plug-in: the view's own stay as they were decided. Discrete actions out of range on inactive rows are set to 0.
 *
 * OBSERVATIONS other than float32 are converted, unscaled.
 *
 * ISOLATION. In this process, or in a child (crash-isolated) over shared memory with a deadline per call: a crash or hang voids the episodes in flight, starts a new
 * child and goes on. restarts_max children in a row without CORRAL_BACKEND_FORGIVE_STEPS good steps between them: step() fails. The child never outlives this process.
 */
#ifndef CORRAL_ROLLOUT_VEC_H
#define CORRAL_ROLLOUT_VEC_H

#include "base/memory.h"
#include "model/action.h"

#define CORRAL_VEC_ALL_DOWN_MAX 16
#define CORRAL_VEC_STEP_TIMEOUT_MS 10000u

enum corral_isolation { CORRAL_ISOLATION_IN_PROCESS, CORRAL_ISOLATION_PROCESS };

struct corral_vec_config {
    const char *id;        /* "CartPole-v1" */
    const char *library;   /* path of the .so, or NULL: search the built-in plug-ins and CORRAL_ENV_PATH */
    const char *args_json; /* "{}" or NULL */
    uint32_t envs;
    uint64_t seed;   /* job seed */
    uint32_t worker; /* coordinate for corral_seed_derive(seed, worker, env, episode) */
    enum corral_isolation isolation;
    uint32_t step_timeout_ms; /* process isolation only: deadline of one step or reset; 0: 10 s */
    uint32_t restarts_max;    /* process isolation: children started again before giving up */
    const struct corral_allocator
        *memory; /* buffers and the plug-in's host->alloc are charged here; NULL: the heap. Borrowed. */
};

struct corral_vec_spec {
    char id[64];
    uint32_t obs_dim, agents, mask_bytes; /* mask_bytes: bytes per row of the action mask, 0 = none */
    struct corral_action_spec action;
    uint32_t max_episode_steps;
    double reward_threshold; /* NaN = none */
    bool snapshots;
};

struct corral_vec;

/* What step and reset leave; pointers are fixed for the life of the vector. */
struct corral_vec_view {
    uint32_t envs, agents, rows, obs_dim, action_components, mask_bytes;
    const float *obs;    /* [rows][obs_dim]: what to decide on now */
    void *action;        /* [rows][components] int32 or float32: the caller writes before step */
    const float *reward; /* [rows] of the last step */
    const uint8_t *terminated, *truncated; /* [rows] of the last step */
    const uint8_t *active;                 /* [rows] this row decides in the next step */
    const uint8_t *mask;                   /* [rows][mask_bytes] legal choices now, or NULL */
    const float *final_obs;                /* [rows][obs_dim], valid where terminated or truncated */
    const int32_t *status; /* [envs] 0, or an enum corral_status (CORRAL_INFRA: the episode is void) */
    const uint32_t *episode_steps; /* [envs] length so far, or of the episode that just ended */
};

enum corral_status corral_vec_create(struct corral_vec **out, const struct corral_vec_config *config,
                                     struct corral_error *err);
void corral_vec_destroy(struct corral_vec *v);
const struct corral_vec_spec *corral_vec_spec(const struct corral_vec *v);
const struct corral_vec_view *corral_vec_view(const struct corral_vec *v);
/* Start every environment's next episode, seeded by the one rule. Call it once before the first step. */
enum corral_status corral_vec_reset(struct corral_vec *v, struct corral_error *err);
/* Hot path. Fails only when the vector cannot go on (plug-in error on all, restarts used up); voided episodes are per-env status. */
enum corral_status corral_vec_step(struct corral_vec *v, struct corral_error *err);
/* Whole-vector snapshot (plug-in states + episode counters). CORRAL_UNSUPPORTED without the capability. *bytes: in capacity, out size needed; buf NULL asks for the size. */
enum corral_status corral_vec_snapshot(struct corral_vec *v, void *buf, uint64_t *bytes,
                                       struct corral_error *err);
enum corral_status corral_vec_restore(struct corral_vec *v, const void *buf, uint64_t bytes,
                                      struct corral_error *err);

struct corral_vec_stats {
    uint64_t steps;       /* calls of corral_vec_step that stepped */
    uint64_t episodes;    /* ended as episodes do */
    uint64_t voided;      /* episodes thrown away, whatever the cause */
    uint64_t nonfinite;   /* of these, for a NaN or an infinity */
    uint64_t restarts;    /* children started again */
    uint64_t down;        /* environments that cannot be reset right now */
    char last_fault[256]; /* why the latest episode was voided, for the log; "" when none was */
};
const struct corral_vec_stats *corral_vec_stats(const struct corral_vec *v);

#endif
