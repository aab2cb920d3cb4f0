/* The built-in learner for step-based training: PPO (Schulman et al. 2017) with GAE, or V-trace targets (Espeholt et al. 2018) for off-policy fragments.
 * It is fed fragments, updates the policy, and owns params, Adam moments, observation statistics and reward scaling; all memory comes
 * from the allocator given, so it is charged to the trainer's quota. One thread. Data-parallel when given a collective with several ranks: every rank passes its own
 * fragments, and the result equals one worker given all of them in rank order, to rounding: minibatches are drawn from the global index set with one
 * shared permutation, sums are divided by global counts.
 */
#ifndef CORRAL_TRAINER_LEARNERS_PPO_H
#define CORRAL_TRAINER_LEARNERS_PPO_H

#include "model/policy.h"
#include "transport/collective/collective.h"
#include "transport/trajectory/fragment.h"

enum corral_advantage_kind { CORRAL_ADVANTAGE_GAE, CORRAL_ADVANTAGE_VTRACE };

struct corral_ppo_config {
    enum corral_advantage_kind advantage;
    double gamma, lambda;
    double clip;       /* policy ratio clip */
    double value_clip; /* 0 = none */
    double vtrace_rho, vtrace_c;
    uint32_t epochs;
    uint32_t minibatch;  /* transitions, over all ranks */
    double lr, lr_final; /* linear from lr to lr_final over progress 0..1 */
    double clip_final;   /* linear like lr; equal to clip for constant */
    double adam_beta1, adam_beta2, adam_eps;
    double entropy_coef, value_coef, max_grad_norm;
    double target_kl;         /* stop the epochs early when approx KL exceeds it; 0 = never */
    bool normalise_advantage; /* per minibatch, over all ranks */
    bool
        normalise_reward; /* divide by the running standard deviation of the discounted return, clip to +-reward_clip */
    double reward_clip;
    uint64_t seed;
};

struct corral_ppo_stats {
    uint64_t step;        /* gradient steps so far (one per corral_ppo_step) */
    uint64_t transitions; /* valid ones in this step, all ranks */
    double policy_loss, value_loss, entropy, approx_kl, clip_fraction, explained_variance, grad_norm, lr;
    double ratio_max;
    uint32_t epochs_done;
    uint64_t prepare_ns, update_ns, reduce_ns;
};

struct corral_ppo;
/* rows_max, steps_max bound one rank's share of one step: rows summed over fragments x steps. */
enum corral_status corral_ppo_create(struct corral_ppo **out, const struct corral_policy_layout *layout,
                                     const struct corral_ppo_config *config, uint32_t transitions_max,
                                     struct corral_collective *collective /* borrowed; NULL = alone */,
                                     const struct corral_allocator *memory, struct corral_error *err);
void corral_ppo_destroy(struct corral_ppo *p);
/* One gradient step on this rank's fragments. progress in [0, 1] drives the schedules. On failure the learner is unchanged (the step is rolled back). */
enum corral_status corral_ppo_step(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                   uint32_t count, double progress, struct corral_ppo_stats *stats,
                                   struct corral_error *err);
/* Told when a step goes from one part to the next, a few times per step: preparing (values, advantages), updating (all minibatches), and 0 when it is over. */
enum corral_ppo_phase { CORRAL_PPO_OVER, CORRAL_PPO_PREPARING, CORRAL_PPO_UPDATING };
typedef void (*corral_ppo_phase_fn)(void *ctx, enum corral_ppo_phase phase);
void corral_ppo_on_phase(struct corral_ppo *p, corral_ppo_phase_fn fn, void *ctx);
/* The current weights, layout->floats long; valid until the next step. */
const float *corral_ppo_weights(const struct corral_ppo *p);
uint64_t corral_ppo_step_count(const struct corral_ppo *p);

/* Everything needed to go on bit for bit: weights, moments, counters, statistics, RNG, per-row return accumulators. Flat, versioned, self-checking (a digest). */
uint64_t corral_ppo_state_bytes(const struct corral_ppo *p); /* constant for a given learner */
void corral_ppo_state_save(const struct corral_ppo *p, void *out);
enum corral_status corral_ppo_state_load(struct corral_ppo *p, const void *state, uint64_t bytes,
                                         struct corral_error *err);

#endif
