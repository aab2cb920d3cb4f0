/* One fragment: `steps` consecutive steps of `rows` environment rows, as a rollout worker recorded them. It travels as a record of kind
 * CORRAL_TRAJ_FRAGMENT (docs/spec/trajectory.md), whose tensors have the names and the order of the members below.
 * All tensors are row-major; [S] = steps, [R] = rows, [D] = obs_dim, [A] = action components, [M] = action mask bytes per row.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_FRAGMENT_H
#define CORRAL_TRANSPORT_TRAJECTORY_FRAGMENT_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_FRAGMENT_FORMAT 1u
#define CORRAL_FRAGMENT_STEPS_MAX 65536u
#define CORRAL_FRAGMENT_ROWS_MAX 65536u
#define CORRAL_FRAGMENT_BYTES_MAX (256u << 20)
#define CORRAL_FRAGMENT_FRAMES 13 /* tensors */
#define CORRAL_FRAGMENT_HEADER_BYTES \
    1792u /* what prologue, header and alignment of its record take at most, and CORRAL_TRAJ_ITEM_BYTES */

struct corral_fragment {
    uint64_t run;
    uint32_t worker;   /* index among the job's rollout workers */
    uint32_t epoch;    /* grows each time the worker starts; (worker, epoch, sequence) is unique in a run */
    uint64_t sequence; /* from 1, without gaps per (worker, epoch, trainer rank) */
    uint32_t steps, rows, obs_dim, action_components, mask_bytes;
    bool action_continuous; /* actions are float32, else int32 */
    uint32_t boundary_count, episode_count;

    const float *obs;          /* [S][R][D] what the policy saw, before normalisation */
    const void *action;        /* [S][R][A] int32 or float32, as sampled (not clipped) */
    const float *log_prob;     /* [S][R] of the sampled action under the behaviour policy, natural log */
    const float *reward;       /* [S][R] */
    const uint8_t *terminated; /* [S][R] the step ended the row's episode for good */
    const uint8_t
        *truncated; /* [S][R] the step cut it off; both may be set, terminated wins for bootstrapping */
    const uint8_t *
        valid; /* [S][R] 0: no decision here (not this agent's turn, reset step, void episode); never trained on */
    const uint64_t *version; /* [S] weight version that chose the actions of that step */
    const uint8_t *mask;     /* [S][R][M] legal actions, 1 byte per choice; NULL when mask_bytes is 0 */
    const float *last_obs;   /* [R][D] observation after the last step */
    const uint32_t
        *boundary_at; /* [boundary_count] step * rows + row where truncated without termination, ascending */
    const float *boundary_obs; /* [boundary_count][D] the final observation there */
    const float *
        episode; /* [episode_count][2] return and length of every episode that ended in this fragment, in order */
};

/* The sizes the tensors must have, from the header fields. CORRAL_INVALID when a field is out of range or a product overflows. */
enum corral_status corral_fragment_sizes(const struct corral_fragment *f,
                                         uint64_t bytes[CORRAL_FRAGMENT_FRAMES], struct corral_error *err);
/* Header allowance + all tensors: its record is never longer, whatever the environment is called. 0 when a field is out of range. */
uint64_t corral_fragment_bytes(const struct corral_fragment *f);

struct corral_traj_record;
struct corral_traj_tensor;
/* Describe a fragment as a record: `tensors` (CORRAL_FRAGMENT_FRAMES of them) and `r` are filled and point to each other, to constants and to the fragment's tensors; r->env is the caller's to set. Tensors
 * that the fragment has none of (no mask, no boundary, no episode) are left out. CORRAL_INVALID as corral_fragment_sizes(), or when a tensor is NULL or boundaries do not ascend. */
enum corral_status corral_fragment_record(const struct corral_fragment *f, struct corral_traj_record *r,
                                          struct corral_traj_tensor *tensors, struct corral_error *err);
/* The fragment that a decoded record holds; its tensors stay where they are. Everything that a learner relies on is checked: kind, dtypes, shapes that agree with each other, ranges,
 * ascending boundaries, versions. CORRAL_PROTOCOL names what is wrong. */
enum corral_status corral_fragment_of(const struct corral_traj_record *r, struct corral_fragment *out,
                                      struct corral_error *err);

#endif
