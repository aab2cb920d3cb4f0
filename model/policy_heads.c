/* What the policy tower's output means: categorical, several categoricals, or a diagonal Gaussian. */
#include "model/policy_internal.h"
#include <math.h>
#include <string.h>

#define HALF_LOG_2PI 0.918938533204672741780f

static bool any_legal(const uint8_t *mask, uint32_t choices)
{
    for (uint32_t j = 0; j < choices; j++) {
        if (mask[j]) {
            return true;
        }
    }
    return false;
}

void corral_policy_mask_logits(const struct corral_policy_layout *layout, struct corral_policy_workspace *ws,
                               const struct corral_policy_batch *batch)
{
    if (!batch->mask && !batch->mask_rows) {
        return;
    }
    const struct corral_action_spec *a = &layout->spec.action;
    uint32_t width = corral_action_logits(a);
    for (uint32_t r = 0; r < ws->n; r++) {
        size_t row = batch->index ? batch->index[r] : r;
        const uint8_t *legal = batch->mask_rows ? batch->mask_rows[row] : batch->mask + row * width;
        uint32_t at = 0;
        if (!legal) {
            continue;
        }
        for (uint32_t c = 0; c < a->components; at += a->choices[c], c++) {
            if (!any_legal(legal + at, a->choices[c])) {
                continue;
            }
            for (uint32_t j = at; j < at + a->choices[c]; j++) {
                if (!legal[j]) {
                    ws->logits[(size_t)j * ws->ld + r] = CORRAL_ILLEGAL_LOGIT;
                }
            }
        }
    }
}

void corral_policy_softmax(const struct corral_policy_layout *layout, struct corral_policy_workspace *ws)
{
    const struct corral_action_spec *a = &layout->spec.action;
    size_t at = 0;
    for (uint32_t c = 0; c < a->components; at += a->choices[c], c++) {
        ws->kernels->softmax(a->choices[c], ws->ld, ws->ld, ws->logits + at * ws->ld, ws->prob + at * ws->ld,
                             ws->component_entropy + (size_t)c * ws->ld);
    }
}

/* Inverse of the cumulative distribution. Rounding may leave u above the sum: then the last possible choice. Weights that
 * are not numbers give no possible choice: then the first legal one, so that an environment is never handed an illegal action. */
static int32_t draw(const float *prob, const uint8_t *legal, uint32_t choices, uint32_t ld, float u)
{
    float sum = 0;
    int32_t last = -1;
    for (uint32_t j = 0; j < choices; j++) {
        float p = prob[(size_t)j * ld];
        if (p > 0) {
            sum += p;
            last = (int32_t)j;
            if (u < sum) {
                return last;
            }
        }
    }
    for (uint32_t j = 0; last < 0 && legal && j < choices; j++) {
        if (legal[j]) {
            last = (int32_t)j;
        }
    }
    return last < 0 ? 0 : last;
}

static int32_t likeliest(const float *prob, const uint8_t *legal, uint32_t choices, uint32_t ld)
{
    int32_t best = -1;
    float most = 0;
    for (uint32_t j = 0; j < choices; j++) {
        float p = prob[(size_t)j * ld];
        if (p > most) {
            most = p;
            best = (int32_t)j;
        }
    }
    return best >= 0 ? best : draw(prob, legal, choices, ld, 0.0f);
}

static void sample_discrete(const struct corral_action_spec *a, struct corral_policy_workspace *ws,
                            const uint8_t *mask, bool greedy, struct corral_rng *rng)
{
    int32_t *action = (int32_t *)ws->action;
    uint32_t width = corral_action_logits(a);
    memset(action, 0, (size_t)a->components * ws->ld * sizeof *action);
    for (uint32_t r = 0; r < ws->n; r++) {
        size_t at = 0;
        for (uint32_t c = 0; c < a->components; at += a->choices[c], c++) {
            const float *prob = ws->prob + at * ws->ld + r;
            const uint8_t *legal = mask ? mask + (size_t)r * width + at : NULL;
            action[(size_t)c * ws->ld + r] =
                greedy ? likeliest(prob, legal, a->choices[c], ws->ld)
                       : draw(prob, legal, a->choices[c], ws->ld, corral_rng_uniformf(rng));
        }
    }
}

static void sample_gaussian(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, bool greedy, struct corral_rng *rng)
{
    const float *log_std = corral_policy_at(layout, weights, corral_policy_log_std_at(layout));
    for (uint32_t c = 0; c < layout->spec.action.components; c++) {
        float std = expf(log_std[c]);
        const float *mean = ws->logits + (size_t)c * ws->ld;
        float *action = ws->action + (size_t)c * ws->ld;
        memcpy(action, mean, ws->ld * sizeof *action);
        for (uint32_t r = 0; !greedy && r < ws->n; r++) {
            action[r] = mean[r] + std * (float)corral_rng_normal(rng);
        }
    }
}

void corral_policy_sample(const struct corral_policy_layout *layout, const float *weights,
                          struct corral_policy_workspace *ws, const uint8_t *mask, bool greedy,
                          struct corral_rng *rng)
{
    if (layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS) {
        sample_gaussian(layout, weights, ws, greedy, rng);
    } else {
        sample_discrete(&layout->spec.action, ws, mask, greedy, rng);
    }
}

static void categorical_log_prob(const struct corral_action_spec *a, struct corral_policy_workspace *ws)
{
    const int32_t *action = (const int32_t *)ws->action;
    memset(ws->log_prob, 0, ws->ld * sizeof *ws->log_prob);
    memset(ws->entropy, 0, ws->ld * sizeof *ws->entropy);
    size_t at = 0;
    for (uint32_t c = 0; c < a->components; at += a->choices[c], c++) {
        const float *log_p = ws->logits + at * ws->ld, *entropy = ws->component_entropy + (size_t)c * ws->ld;
        const int32_t *chosen = action + (size_t)c * ws->ld;
        for (uint32_t r = 0; r < ws->ld; r++) {
            ws->log_prob[r] += log_p[(size_t)chosen[r] * ws->ld + r];
            ws->entropy[r] += entropy[r];
        }
    }
}

static void gaussian_log_prob(const struct corral_policy_layout *layout, const float *weights,
                              struct corral_policy_workspace *ws)
{
    const float *log_std = corral_policy_at(layout, weights, corral_policy_log_std_at(layout));
    float entropy = 0;
    memset(ws->log_prob, 0, ws->ld * sizeof *ws->log_prob);
    for (uint32_t c = 0; c < layout->spec.action.components; c++) {
        float inverse = expf(-log_std[c]), constant = log_std[c] + HALF_LOG_2PI;
        const float *mean = ws->logits + (size_t)c * ws->ld, *action = ws->action + (size_t)c * ws->ld;
        for (uint32_t r = 0; r < ws->ld; r++) {
            float z = (action[r] - mean[r]) * inverse;
            ws->log_prob[r] -= 0.5f * z * z + constant;
        }
        entropy += 0.5f + constant;
    }
    for (uint32_t r = 0; r < ws->ld; r++) {
        ws->entropy[r] = entropy;
    }
}

void corral_policy_log_prob(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws)
{
    if (layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS) {
        gaussian_log_prob(layout, weights, ws);
    } else {
        categorical_log_prob(&layout->spec.action, ws);
    }
}

static void categorical_grad(const struct corral_action_spec *a, struct corral_policy_workspace *ws)
{
    size_t at = 0;
    for (uint32_t c = 0; c < a->components; at += a->choices[c], c++) {
        ws->kernels->softmax_grad(a->choices[c], ws->ld, ws->ld,
                                  (const int32_t *)ws->action + (size_t)c * ws->ld, ws->logits + at * ws->ld,
                                  ws->prob + at * ws->ld, ws->component_entropy + (size_t)c * ws->ld,
                                  ws->d_log_prob, ws->d_entropy, ws->delta[0] + at * ws->ld);
    }
}

static void gaussian_grad(const struct corral_policy_layout *layout, const float *weights,
                          struct corral_policy_workspace *ws, float *grad)
{
    const struct corral_policy_tensor *t = &layout->tensor[corral_policy_log_std_at(layout)];
    for (uint32_t c = 0; c < layout->spec.action.components; c++) {
        float inverse = expf(-weights[t->offset + c]);
        const float *mean = ws->logits + (size_t)c * ws->ld, *action = ws->action + (size_t)c * ws->ld;
        float *delta = ws->delta[0] + (size_t)c * ws->ld;
        double sum = 0;
        for (uint32_t r = 0; r < ws->ld; r++) {
            float z = (action[r] - mean[r]) * inverse;
            delta[r] = ws->d_log_prob[r] * z * inverse;
            sum += (double)(ws->d_log_prob[r] * (z * z - 1.0f) + ws->d_entropy[r]);
        }
        grad[t->offset + c] += (float)sum;
    }
}

void corral_policy_head_grad(const struct corral_policy_layout *layout, const float *weights,
                             struct corral_policy_workspace *ws, float *grad)
{
    if (layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS) {
        gaussian_grad(layout, weights, ws, grad);
    } else {
        categorical_grad(&layout->spec.action, ws);
    }
}
