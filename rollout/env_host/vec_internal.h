/* State of a vector, shared by its files. */
#ifndef CORRAL_ROLLOUT_VEC_INTERNAL_H
#define CORRAL_ROLLOUT_VEC_INTERNAL_H

#include "rollout/env_host/backend.h"

struct corral_vec {
    struct corral_vec_view view;
    struct corral_vec_spec spec;
    struct corral_vec_stats stats;
    const struct corral_allocator *memory;
    uint64_t seed;
    uint32_t worker;
    struct corral_env_backend *backend;
    bool convert;    /* observations are not float32 */
    bool continuous; /* actions are clipped into the plug-in's buffer */
    bool per_row;    /* rows of an environment may end or rest apart from each other: agents > 1 or turns */
    bool ready;      /* reset() has been called */
    void *own;       /* one block for everything below */
    uint64_t own_bytes;
    float *obs, *final_obs;  /* [rows][obs_dim], with convert */
    uint8_t *active;         /* [rows] what the view shows */
    uint8_t *done;           /* [rows] ended earlier in this episode */
    uint32_t *done_rows;     /* [envs] how many */
    int32_t *status;         /* [envs] what the view shows */
    uint32_t *episode_steps; /* [envs] */
    uint64_t *stream;        /* [envs] resets so far: the n of the seed rule */
    uint8_t *down;           /* [envs] 0, or 1 + failed attempts to reset, at most 1 + DOWN_SHIFT_MAX */
    uint32_t *down_wait;     /* [envs] steps until the next attempt */
    float *kept_reward;      /* [rows] of ended episodes, while the plug-in starts the next */
    uint8_t *kept_terminated, *kept_truncated; /* [rows] */
    uint32_t *flagged;                         /* [rows] scratch */
    uint32_t *voided, *ended, *retried,
        *fresh; /* [envs] lists: of this step, and those whose length starts over in the next */
    uint32_t voided_count, ended_count, fresh_count;
    uint32_t down_count, all_down_steps;
    bool status_shown; /* some status is not 0 */
};

/* The child died under these environments: every episode in flight is void, all are reset. */
enum corral_status corral_vec_lose_all(struct corral_vec *v, const struct corral_error *why,
                                       struct corral_error *err);
/* Reset every environment, however many children it takes. */
enum corral_status corral_vec_recover(struct corral_vec *v, struct corral_error *err);
/* Take environment e's observation in again; false when it is not finite. */
bool corral_vec_take_obs(struct corral_vec *v, uint32_t e);
void corral_vec_show_active(struct corral_vec *v);
/* Check the view's actions and give them to the plug-in. CORRAL_INVALID: an active row's is impossible. */
enum corral_status corral_vec_hand_over_actions(struct corral_vec *v, struct corral_error *err);

#endif
