#include "model/policy_batch.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define OBS_DIM_MAX 65536u
#define TENSOR_ALIGN 16u /* floats */

static enum corral_status check_action(const struct corral_action_spec *a, struct corral_error *err)
{
    if (a->kind != CORRAL_ACTION_DISCRETE && a->kind != CORRAL_ACTION_MULTI_DISCRETE &&
        a->kind != CORRAL_ACTION_CONTINUOUS) {
        return corral_fail(err, CORRAL_INVALID, "policy: unknown action kind %d", (int)a->kind);
    }
    uint32_t most = a->kind == CORRAL_ACTION_DISCRETE ? 1 : CORRAL_ACTION_COMPONENTS_MAX;
    if (a->components < 1 || a->components > most) {
        return corral_fail(err, CORRAL_INVALID, "policy: %u action components, must be 1 to %u",
                           a->components, most);
    }
    for (uint32_t c = 0; c < a->components; c++) {
        if (a->kind != CORRAL_ACTION_CONTINUOUS &&
            (a->choices[c] < 1 || a->choices[c] > CORRAL_ACTION_CHOICES_MAX)) {
            return corral_fail(err, CORRAL_INVALID,
                               "policy: action component %u has %u choices, must be 1 to %u", c,
                               a->choices[c], CORRAL_ACTION_CHOICES_MAX);
        }
        if (a->kind == CORRAL_ACTION_CONTINUOUS && !(a->low[c] < a->high[c])) {
            return corral_fail(err, CORRAL_INVALID, "policy: action component %u ranges from %g to %g", c,
                               (double)a->low[c], (double)a->high[c]);
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_spec(const struct corral_policy_spec *spec, struct corral_error *err)
{
    if (spec->obs_dim < 1 || spec->obs_dim > OBS_DIM_MAX) {
        return corral_fail(err, CORRAL_INVALID, "policy: %u observation values, must be 1 to %u",
                           spec->obs_dim, OBS_DIM_MAX);
    }
    if (spec->layers < 1 || spec->layers > CORRAL_POLICY_LAYERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "policy: %u hidden layers, must be 1 to %d", spec->layers,
                           CORRAL_POLICY_LAYERS_MAX);
    }
    for (uint32_t l = 0; l < spec->layers; l++) {
        if (spec->hidden[l] < 1 || spec->hidden[l] > CORRAL_POLICY_WIDTH_MAX) {
            return corral_fail(err, CORRAL_INVALID, "policy: hidden layer %u is %u wide, must be 1 to %d", l,
                               spec->hidden[l], CORRAL_POLICY_WIDTH_MAX);
        }
    }
    if (spec->activation != CORRAL_TANH && spec->activation != CORRAL_RELU) {
        return corral_fail(err, CORRAL_INVALID, "policy: unknown activation %d", (int)spec->activation);
    }
    CORRAL_TRY(check_action(&spec->action, err));
    if (spec->action.kind == CORRAL_ACTION_CONTINUOUS &&
        !(spec->log_std_init >= -20.0f && spec->log_std_init <= 5.0f)) {
        return corral_fail(err, CORRAL_INVALID, "policy: log_std_init is %g, must be -20 to 5",
                           (double)spec->log_std_init);
    }
    return CORRAL_OK;
}

static void add(struct corral_policy_layout *layout, const char *name, uint32_t rank, uint64_t rows,
                uint64_t cols)
{
    struct corral_policy_tensor *t = &layout->tensor[layout->tensors++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->rank = rank;
    t->shape[0] = rows;
    t->shape[1] = cols;
    t->offset = layout->floats;
    t->count = rows * (rank == 2 ? cols : 1);
    layout->floats += (t->count + TENSOR_ALIGN - 1) / TENSOR_ALIGN * TENSOR_ALIGN;
}

static void add_layer(struct corral_policy_layout *layout, const char *prefix, uint64_t out, uint64_t in)
{
    char name[64];
    snprintf(name, sizeof name, "%s.weight", prefix);
    add(layout, name, 2, out, in);
    snprintf(name, sizeof name, "%s.bias", prefix);
    add(layout, name, 1, out, 0);
}

static void add_tower(struct corral_policy_layout *layout, const char *tower, uint64_t out)
{
    const struct corral_policy_spec *spec = &layout->spec;
    char prefix[32];
    uint64_t in = spec->obs_dim;
    for (uint32_t l = 0; l < spec->layers; l++) {
        snprintf(prefix, sizeof prefix, "%s.%u", tower, l);
        add_layer(layout, prefix, spec->hidden[l], in);
        in = spec->hidden[l];
    }
    snprintf(prefix, sizeof prefix, "%s.head", tower);
    add_layer(layout, prefix, out, in);
}

enum corral_status corral_policy_layout_build(const struct corral_policy_spec *spec,
                                              struct corral_policy_layout *out, struct corral_error *err)
{
    CORRAL_TRY(check_spec(spec, err));
    struct corral_policy_layout layout;
    memset(&layout, 0, sizeof layout);
    layout.spec = *spec;
    add_tower(&layout, "policy", corral_action_logits(&spec->action));
    add_tower(&layout, "value", 1);
    if (spec->action.kind == CORRAL_ACTION_CONTINUOUS) {
        add(&layout, "log_std", 1, spec->action.components, 0);
    }
    layout.trainable_floats = layout.floats;
    for (uint32_t i = 0; i < layout.tensors; i++) {
        layout.parameters += layout.tensor[i].count;
    }
    add(&layout, "obs.mean", 1, spec->obs_dim, 0);
    add(&layout, "obs.var", 1, spec->obs_dim, 0);
    add(&layout, "obs.count", 1, 1, 0);
    *out = layout;
    return CORRAL_OK;
}

uint32_t corral_policy_tensors(const struct corral_policy_layout *layout, const float *weights,
                               struct corral_tensor *out, uint32_t out_max)
{
    for (uint32_t i = 0; i < layout->tensors && i < out_max; i++) {
        const struct corral_policy_tensor *t = &layout->tensor[i];
        memset(&out[i], 0, sizeof out[i]);
        snprintf(out[i].name, sizeof out[i].name, "%s", t->name);
        out[i].dtype = CORRAL_DTYPE_F32;
        out[i].rank = t->rank;
        out[i].shape[0] = t->shape[0];
        out[i].shape[1] = t->rank == 2 ? t->shape[1] : 0;
        out[i].data = weights + t->offset;
        out[i].bytes = t->count * sizeof(float);
    }
    return layout->tensors;
}
