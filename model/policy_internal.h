/* The workspace, shared by the policy_*.c files. */
#ifndef CORRAL_MODEL_POLICY_INTERNAL_H
#define CORRAL_MODEL_POLICY_INTERNAL_H

#include "model/gemm.h"
#include "model/policy_batch.h"

#define CORRAL_OBS_CLIP 10.0f
#define CORRAL_OBS_VAR_EPS 1e-8f
/* The logit of an illegal choice: its probability is exactly 0 and every product with it stays finite. */
#define CORRAL_ILLEGAL_LOGIT (-1e30f)

/* All matrices are feature-major with the stride of the current batch (n rounded up to 16): a small batch stays compact in cache. */
struct corral_policy_workspace {
    struct corral_allocator memory;
    size_t bytes; /* of the one block that holds everything, this struct first */
    const struct corral_kernels *kernels;
    uint32_t rows, n, ld;
    bool training;
    float *scale;                               /* [D] 1 / sqrt(var + eps) */
    float *x;                                   /* [D][ld] */
    float *hidden[2][CORRAL_POLICY_LAYERS_MAX]; /* per tower, [H][ld] */
    float *logits;            /* [M][ld]; log-probabilities after the head; the mean for continuous */
    float *prob;              /* [M][ld] */
    float *component_entropy; /* [A][ld] */
    float *action;            /* [A][ld]; int32 for discrete kinds */
    float *value, *log_prob, *entropy; /* [ld] */
    float *delta[2];                   /* [max(M, H)][ld] */
    float *d_log_prob, *d_entropy;     /* [ld] */
};

static inline const float *corral_policy_at(const struct corral_policy_layout *layout, const float *weights,
                                            uint32_t tensor)
{
    return weights + layout->tensor[tensor].offset;
}

/* One tower from ws->x to `head` [M or 1][ld]. */
void corral_policy_tower_forward(const struct corral_policy_layout *layout, const float *weights,
                                 struct corral_policy_workspace *ws, enum corral_policy_tower tower,
                                 float *head);
void corral_policy_load_obs(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, const struct corral_policy_batch *batch);

/* Heads (policy_heads.c). ws->logits holds the head's output. */
void corral_policy_mask_logits(const struct corral_policy_layout *layout, struct corral_policy_workspace *ws,
                               const struct corral_policy_batch *batch);
void corral_policy_softmax(const struct corral_policy_layout *layout, struct corral_policy_workspace *ws);
/* Sampled or likeliest actions into ws->action; for discrete kinds after corral_policy_softmax(). */
void corral_policy_sample(const struct corral_policy_layout *layout, const float *weights,
                          struct corral_policy_workspace *ws, const uint8_t *mask, bool greedy,
                          struct corral_rng *rng);
/* ws->log_prob of ws->action; ws->entropy. */
void corral_policy_log_prob(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws);
/* d loss / d head output into ws->delta[0]; adds to grad for log_std. */
void corral_policy_head_grad(const struct corral_policy_layout *layout, const float *weights,
                             struct corral_policy_workspace *ws, float *grad);

#endif
