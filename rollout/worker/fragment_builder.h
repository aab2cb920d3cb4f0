/* Collects steps of an environment vector into one fragment. All buffers are made once, at their full size, from the given allocator.
 *
 * before_step() records what the policy saw and chose, after_step() what came of it. When an environment voids its episode, every step of that episode in this fragment, of
 * all its rows, is made invalid with no reward: it is never trained on, and agents that were done early do not count as finished episodes. What earlier fragments hold of the
 * episode is already sent and stays: it ends there like a fragment does, with the value of its last observation.
 */
#ifndef CORRAL_ROLLOUT_FRAGMENT_BUILDER_H
#define CORRAL_ROLLOUT_FRAGMENT_BUILDER_H

#include "base/memory.h"
#include "rollout/env_host/vec.h"
#include "transport/trajectory/fragment.h"

struct corral_fragment_builder {
    struct corral_fragment fragment; /* its pointers are the arrays below; complete when full() */
    uint32_t steps_max, step, envs;
    const struct corral_allocator *memory;
    void *block;
    uint64_t block_bytes;
    float *obs, *log_prob, *reward, *last_obs, *boundary_obs, *episode;
    uint8_t *action, *terminated, *truncated, *valid, *mask;
    uint64_t *version;
    uint32_t *boundary_at;
    double *episode_return;  /* [rows] across fragments */
    uint32_t *rows_done;     /* [envs] of the running episode, across fragments */
    uint32_t *episode_start; /* [envs] first step of the running episode in this fragment */
    uint32_t *episode_first; /* [envs] entries of `episode` from here on may be of the running episode */
    uint32_t *episode_env;   /* whose each entry of `episode` is */
    uint64_t void_episodes;  /* so far */
};

enum corral_status corral_fragment_builder_open(struct corral_fragment_builder *b,
                                                const struct corral_vec_view *view, bool continuous,
                                                uint32_t steps, const struct corral_allocator *memory,
                                                struct corral_error *err);
void corral_fragment_builder_close(struct corral_fragment_builder *b);
/* Where act() writes this step's log-probabilities. */
float *corral_fragment_builder_log_prob(struct corral_fragment_builder *b);
/* Hot path. */
void corral_fragment_builder_before_step(struct corral_fragment_builder *b,
                                         const struct corral_vec_view *view, uint64_t version);
void corral_fragment_builder_after_step(struct corral_fragment_builder *b,
                                        const struct corral_vec_view *view);
static inline bool corral_fragment_builder_full(const struct corral_fragment_builder *b)
{
    return b->step == b->steps_max;
}
/* Start the next fragment; running episodes go on. */
void corral_fragment_builder_next(struct corral_fragment_builder *b);

#endif
