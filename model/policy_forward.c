#include "model/policy_internal.h"
#include <assert.h>
#include <math.h>
#include <string.h>

static void fill_scale(const struct corral_policy_layout *layout, const float *weights, float *scale)
{
    const float *var = corral_policy_at(layout, weights, corral_policy_stats_at(layout) + 1);
    for (uint32_t d = 0; d < layout->spec.obs_dim; d++) {
        scale[d] = 1.0f / sqrtf(var[d] + CORRAL_OBS_VAR_EPS);
    }
}

/* NaN stays NaN. */
static inline float clip_obs(float x)
{
    x = x < -CORRAL_OBS_CLIP ? -CORRAL_OBS_CLIP : x;
    return x > CORRAL_OBS_CLIP ? CORRAL_OBS_CLIP : x;
}

void corral_policy_normalise(const struct corral_policy_layout *layout, const float *weights,
                             const float *obs, uint64_t n, float *out)
{
    uint32_t dim = layout->spec.obs_dim;
    if (!layout->spec.normalise_obs) {
        memmove(out, obs, n * dim * sizeof *out);
        return;
    }
    const float *mean = corral_policy_at(layout, weights, corral_policy_stats_at(layout));
    const float *var = corral_policy_at(layout, weights, corral_policy_stats_at(layout) + 1);
    for (uint32_t d = 0; d < dim; d++) {
        float scale = 1.0f / sqrtf(var[d] + CORRAL_OBS_VAR_EPS);
        for (uint64_t i = 0; i < n; i++) {
            out[i * dim + d] = clip_obs((obs[i * dim + d] - mean[d]) * scale);
        }
    }
}

/* Transposes in blocks of 16 rows, so that the rows' cache lines are each fetched once. The missing rows of the last block repeat the
 * last row: finite when the data is, and never read out. */
void corral_policy_load_obs(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, const struct corral_policy_batch *batch)
{
    uint32_t dim = layout->spec.obs_dim, n = batch->n;
    assert(n >= 1 && n <= ws->rows);
    ws->n = n;
    ws->ld = (n + CORRAL_BATCH_ALIGN - 1) / CORRAL_BATCH_ALIGN * CORRAL_BATCH_ALIGN;
    bool normalise = layout->spec.normalise_obs && !batch->obs_normalised;
    const float *mean = corral_policy_at(layout, weights, corral_policy_stats_at(layout));
    if (normalise) {
        fill_scale(layout, weights, ws->scale);
    }
    for (uint32_t r0 = 0; r0 < ws->ld; r0 += CORRAL_BATCH_ALIGN) {
        const float *row[CORRAL_BATCH_ALIGN];
        for (uint32_t j = 0; j < CORRAL_BATCH_ALIGN; j++) {
            uint32_t r = r0 + j < n ? r0 + j : n - 1;
            row[j] = batch->obs + (size_t)(batch->index ? batch->index[r] : r) * dim;
        }
        for (uint32_t d = 0; d < dim; d++) {
            float *to = ws->x + (size_t)d * ws->ld + r0;
            for (uint32_t j = 0; j < CORRAL_BATCH_ALIGN; j++) {
                to[j] = row[j][d];
            }
            if (normalise) {
                for (uint32_t j = 0; j < CORRAL_BATCH_ALIGN; j++) {
                    to[j] = clip_obs((to[j] - mean[d]) * ws->scale[d]);
                }
            }
        }
    }
}

void corral_policy_tower_forward(const struct corral_policy_layout *layout, const float *weights,
                                 struct corral_policy_workspace *ws, enum corral_policy_tower tower,
                                 float *head)
{
    const struct corral_policy_spec *spec = &layout->spec;
    enum corral_dense_act act = spec->activation == CORRAL_TANH ? CORRAL_DENSE_TANH : CORRAL_DENSE_RELU;
    const float *x = ws->x;
    uint32_t in = spec->obs_dim;
    for (uint32_t l = 0; l <= spec->layers; l++) {
        bool last = l == spec->layers;
        uint32_t at = corral_policy_weight_at(layout, tower, l), out = (uint32_t)layout->tensor[at].shape[0];
        float *y = last ? head : ws->hidden[tower][l];
        corral_dense_forward(out, in, ws->ld, ws->ld, corral_policy_at(layout, weights, at),
                             corral_policy_at(layout, weights, at + 1), x, y,
                             last ? CORRAL_DENSE_LINEAR : act);
        x = y;
        in = out;
    }
}

static void load_actions(const struct corral_policy_layout *layout, struct corral_policy_workspace *ws,
                         const struct corral_policy_batch *batch)
{
    uint32_t components = layout->spec.action.components;
    const float *from = batch->action; /* bits are copied, int32 or float32 alike */
    for (uint32_t c = 0; c < components; c++) {
        float *to = ws->action + (size_t)c * ws->ld;
        for (uint32_t r = 0; r < ws->n; r++) {
            memcpy(to + r, from + (size_t)(batch->index ? batch->index[r] : r) * components + c, sizeof *to);
        }
        memset(to + ws->n, 0, (ws->ld - ws->n) * sizeof *to);
    }
}

void corral_policy_evaluate_batch(const struct corral_policy_layout *layout, const float *weights,
                                  struct corral_policy_workspace *ws, const struct corral_policy_batch *batch,
                                  float *log_prob, float *entropy, float *value)
{
    if (batch->n == 0) {
        ws->n = 0;
        return;
    }
    corral_policy_load_obs(layout, weights, ws, batch);
    load_actions(layout, ws, batch);
    corral_policy_tower_forward(layout, weights, ws, CORRAL_TOWER_POLICY, ws->logits);
    if (layout->spec.action.kind != CORRAL_ACTION_CONTINUOUS) {
        corral_policy_mask_logits(layout, ws, batch);
        corral_policy_softmax(layout, ws);
    }
    corral_policy_log_prob(layout, weights, ws);
    memcpy(log_prob, ws->log_prob, ws->n * sizeof *log_prob);
    if (entropy) {
        memcpy(entropy, ws->entropy, ws->n * sizeof *entropy);
    }
    if (value) {
        corral_policy_tower_forward(layout, weights, ws, CORRAL_TOWER_VALUE, ws->value);
        memcpy(value, ws->value, ws->n * sizeof *value);
    }
}

void corral_policy_evaluate(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, const float *obs, const uint8_t *mask,
                            const void *action, uint32_t n, float *log_prob, float *entropy, float *value)
{
    struct corral_policy_batch batch = {.obs = obs, .mask = mask, .action = action, .n = n};
    corral_policy_evaluate_batch(layout, weights, ws, &batch, log_prob, entropy, value);
}

void corral_policy_value_batch(const struct corral_policy_layout *layout, const float *weights,
                               struct corral_policy_workspace *ws, const struct corral_policy_batch *batch,
                               float *value)
{
    if (batch->n == 0) {
        return;
    }
    corral_policy_load_obs(layout, weights, ws, batch);
    corral_policy_tower_forward(layout, weights, ws, CORRAL_TOWER_VALUE, ws->value);
    memcpy(value, ws->value, ws->n * sizeof *value);
}

void corral_policy_value(const struct corral_policy_layout *layout, const float *weights,
                         struct corral_policy_workspace *ws, const float *obs, uint32_t n, float *value)
{
    struct corral_policy_batch batch = {.obs = obs, .n = n};
    corral_policy_value_batch(layout, weights, ws, &batch, value);
}

static void store_actions(const struct corral_policy_layout *layout, const struct corral_policy_workspace *ws,
                          void *action)
{
    uint32_t components = layout->spec.action.components;
    float *to = action;
    for (uint32_t c = 0; c < components; c++) {
        for (uint32_t r = 0; r < ws->n; r++) {
            memcpy(to + (size_t)r * components + c, ws->action + (size_t)c * ws->ld + r, sizeof *to);
        }
    }
}

void corral_policy_act(const struct corral_policy_layout *layout, const float *weights,
                       struct corral_policy_workspace *ws, const float *obs, const uint8_t *mask, uint32_t n,
                       bool greedy, struct corral_rng *rng, void *action, float *log_prob, float *value)
{
    if (n == 0) {
        return;
    }
    struct corral_policy_batch batch = {.obs = obs, .mask = mask, .n = n};
    corral_policy_load_obs(layout, weights, ws, &batch);
    corral_policy_tower_forward(layout, weights, ws, CORRAL_TOWER_POLICY, ws->logits);
    if (layout->spec.action.kind != CORRAL_ACTION_CONTINUOUS) {
        corral_policy_mask_logits(layout, ws, &batch);
        corral_policy_softmax(layout, ws);
    }
    corral_policy_sample(layout, weights, ws, mask, greedy, rng);
    corral_policy_log_prob(layout, weights, ws);
    store_actions(layout, ws, action);
    memcpy(log_prob, ws->log_prob, n * sizeof *log_prob);
    if (value) {
        corral_policy_tower_forward(layout, weights, ws, CORRAL_TOWER_VALUE, ws->value);
        memcpy(value, ws->value, n * sizeof *value);
    }
}
