/* MLP actor-critic policies: parameters, forward, sampling, backward. Used by rollout workers (acting) and learners (training) alike,
 * so both compute the same numbers.
 *
 * All weights of a policy are one flat float32 buffer described by a layout: the trainable tensors first (separate policy and value towers,
 * heads, log_std), then the observation statistics ("obs.mean", "obs.var", "obs.count": [D], [D], [1]) which travel with the weights
 * so that every worker that holds version v normalises exactly as the trainer did at v.
 * Observations are normalised inside act and evaluate: clip((x - mean) / sqrt(var + 1e-8), +-10) when the spec says so.
 * Matrix products go through model/gemm.h (OpenBLAS, or own kernels for small shapes). One workspace belongs to one thread.
 * Sources: Huang et al., "The 37 Implementation Details of PPO" (2022): orthogonal init, gain sqrt(2) hidden, 0.01 policy head, 1 value head,
 * zero bias; state-independent log_std.
 */
#ifndef CORRAL_MODEL_POLICY_H
#define CORRAL_MODEL_POLICY_H

#include "base/memory.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "model/action.h"

#define CORRAL_POLICY_LAYERS_MAX 4
#define CORRAL_POLICY_WIDTH_MAX 1024
#define CORRAL_POLICY_TENSORS_MAX 32

enum corral_activation { CORRAL_TANH, CORRAL_RELU };

struct corral_policy_spec {
    uint32_t obs_dim;
    struct corral_action_spec action;
    uint32_t layers; /* hidden layers of each tower */
    uint32_t hidden[CORRAL_POLICY_LAYERS_MAX];
    enum corral_activation activation;
    float log_std_init;
    bool normalise_obs;
};

struct corral_policy_tensor {
    char name
        [64]; /* "policy.0.weight", "policy.0.bias", "policy.head.weight", "value.head.bias", "log_std", "obs.mean" */
    uint32_t rank;
    uint64_t shape[2];      /* weight: [out][in] */
    uint64_t offset, count; /* in floats; every tensor starts at a multiple of 16 floats */
};

struct corral_policy_layout {
    struct corral_policy_spec spec;
    uint32_t tensors;
    struct corral_policy_tensor tensor[CORRAL_POLICY_TENSORS_MAX];
    uint64_t
        trainable_floats; /* [0, trainable_floats): what the optimizer moves (padding between tensors stays zero) */
    uint64_t floats;     /* the whole buffer, statistics included */
    uint64_t parameters; /* trainable scalars without padding, for people */
};

enum corral_status corral_policy_layout_build(const struct corral_policy_spec *spec,
                                              struct corral_policy_layout *out, struct corral_error *err);
/* Fresh weights; statistics mean 0, var 1, count 0. */
void corral_policy_init(const struct corral_policy_layout *layout, float *weights, struct corral_rng *rng);

/* Scratch for up to `rows` rows at once; with gradients when `training`. */
struct corral_policy_workspace;
enum corral_status corral_policy_workspace_create(struct corral_policy_workspace **out,
                                                  const struct corral_policy_layout *layout, uint32_t rows,
                                                  bool training, const struct corral_allocator *memory,
                                                  struct corral_error *err);
void corral_policy_workspace_destroy(struct corral_policy_workspace *ws);

/* Sample (or take the most likely when `greedy`) one action per row. obs [n][D] raw; mask [n][M] bytes or NULL, a row with no legal choice counts as all legal;
 * action [n][A] int32 or float32; log_prob [n]; value [n] or NULL (skips the value tower). n <= rows. Hot path. */
void corral_policy_act(const struct corral_policy_layout *layout, const float *weights,
                       struct corral_policy_workspace *ws, const float *obs, const uint8_t *mask, uint32_t n,
                       bool greedy, struct corral_rng *rng, void *action, float *log_prob, float *value);
/* Value tower only. */
void corral_policy_value(const struct corral_policy_layout *layout, const float *weights,
                         struct corral_policy_workspace *ws, const float *obs, uint32_t n, float *value);
/* log pi(action | obs), entropy and value for given actions; keeps activations in ws for backward. */
void corral_policy_evaluate(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, const float *obs, const uint8_t *mask,
                            const void *action, uint32_t n, float *log_prob, float *entropy, float *value);
/* After evaluate on the same rows: add d loss / d weights to grad [trainable_floats], given d loss / d (log_prob, entropy, value) per row. */
void corral_policy_backward(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, const float *d_log_prob,
                            const float *d_entropy, const float *d_value, float *grad);

/* Views of the weights as named tensors, for checkpoints and manifests (no padding). */
uint32_t corral_policy_tensors(const struct corral_policy_layout *layout, const float *weights,
                               struct corral_tensor *out, uint32_t out_max);

#endif
