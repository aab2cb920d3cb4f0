/* The PPO learner's parts, shared by the ppo_*.c files. A step runs through them in this order:
 *   ingest   check the fragments, lay them out as one dense batch
 *   prepare  values, reward scaling, advantages, statistics of the step
 *   update   epochs of minibatches
 *   settle   observation statistics for the next version
 */
#ifndef CORRAL_TRAINER_LEARNERS_PPO_INTERNAL_H
#define CORRAL_TRAINER_LEARNERS_PPO_INTERNAL_H

#include "model/policy_batch.h"
#include "trainer-bridge/algorithms/normalise.h"
#include "trainer-bridge/algorithms/ppo_loss.h"
#include "trainer-bridge/learners/ppo.h"
#include "trainer-bridge/learners/return_table.h"

#define CORRAL_PPO_PIECE_MAX \
    512u                    /* rows evaluated at once: their activations stay in the second-level cache */
#define CORRAL_PPO_SUMS 16u /* floats after the gradient in the reduced buffer: the loss sums, padded */

/* Small state that a failed step puts back whole. */
struct corral_ppo_counters {
    uint64_t step;
    uint64_t updates; /* Adam's t */
    struct corral_rng rng;
    double obs_count;
    struct corral_moments returns; /* of the discounted returns, for reward scaling */
};

struct corral_ppo {
    struct corral_allocator memory;
    uint64_t bytes;
    struct corral_ppo_config config;
    struct corral_policy_layout layout;
    struct corral_collective *collective; /* NULL when alone */
    corral_ppo_phase_fn on_phase;
    void *phase_ctx;
    uint32_t rank, ranks;
    uint32_t transitions_max, piece;
    struct corral_policy_workspace *ws;
    struct corral_ppo_counters now, before;

    float *weights;                     /* [floats] */
    float *adam_m, *adam_v;             /* [trainable] */
    float *grad;                        /* [trainable + CORRAL_PPO_SUMS] */
    float *backup;                      /* weights, adam_m, adam_v as the step found them */
    double *obs_mean, *obs_m2;          /* [D]; the weights carry float copies */
    double *batch_mean, *batch_m2;      /* [1 + D] of this step: sums while reducing, count first */
    struct corral_return_table returns; /* slots NULL unless rewards are normalised */

    /* The dense batch: every step of every fragment, valid or not, in order. */
    uint32_t dense, valid;
    float *obs;                /* [T][D] normalised */
    float *action;             /* [T][A], int32 or float32 */
    const uint8_t **mask_rows; /* [T]; continuous: NULL */
    bool any_mask;
    float *old_log_prob, *reward, *value, *advantage, *target; /* [T] */
    float *last_value, *boundary_value;                        /* [T] of one fragment at a time */
    uint32_t *valid_at;                                        /* [T] dense index of each valid transition */

    /* Minibatches. */
    uint32_t offset, total; /* this rank's first valid transition among all ranks' total */
    uint32_t *order;        /* [T * ranks] */
    double *whiten_sums;    /* [2 * minibatches_max] sums, then sums of squared deviations */
    uint32_t minibatches_max;
    uint32_t *member;    /* [piece] dense indices */
    float *piece_floats; /* [11][piece] */
    double ratio_max;
    uint64_t reduce_ns;
};

/* Collectives that cost nothing when alone, timed into reduce_ns. */
enum corral_status corral_ppo_sum_f64(struct corral_ppo *p, double *data, uint32_t count,
                                      struct corral_error *err);
enum corral_status corral_ppo_sum_f32(struct corral_ppo *p, float *data, uint64_t count,
                                      struct corral_error *err);
enum corral_status corral_ppo_gather(struct corral_ppo *p, const void *mine, uint32_t bytes, void *out,
                                     struct corral_error *err);

/* ppo_ingest.c */
enum corral_status corral_ppo_ingest(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                     uint32_t count, struct corral_error *err);
/* ppo_prepare.c */
enum corral_status corral_ppo_prepare(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                      uint32_t count, struct corral_ppo_stats *stats,
                                      struct corral_error *err);
enum corral_status corral_ppo_settle(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                     uint32_t count, struct corral_error *err);
/* ppo_update.c */
enum corral_status corral_ppo_update(struct corral_ppo *p, double progress, struct corral_ppo_stats *stats,
                                     struct corral_error *err);

#endif
