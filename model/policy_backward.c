#include "model/policy_internal.h"
#include <assert.h>
#include <string.h>

/* From d loss / d head in `delta` down to the first layer; the other delta buffer takes turns. */
static void tower_backward(const struct corral_policy_layout *layout, const float *weights,
                           struct corral_policy_workspace *ws, enum corral_policy_tower tower, float *delta,
                           float *other, float *grad)
{
    const struct corral_policy_spec *spec = &layout->spec;
    enum corral_dense_act act = spec->activation == CORRAL_TANH ? CORRAL_DENSE_TANH : CORRAL_DENSE_RELU;
    for (uint32_t l = spec->layers + 1; l-- > 0;) {
        const struct corral_policy_tensor *w = &layout->tensor[corral_policy_weight_at(layout, tower, l)];
        uint32_t out = (uint32_t)w->shape[0], in = (uint32_t)w->shape[1];
        const float *below = l ? ws->hidden[tower][l - 1] : ws->x;
        corral_dense_weight_grad(out, in, ws->ld, ws->ld, delta, below, grad + w->offset, grad + w[1].offset);
        if (l > 0) {
            corral_dense_input_grad(out, in, ws->ld, ws->ld, weights + w->offset, delta, below, other, act);
            float *swap = delta;
            delta = other;
            other = swap;
        }
    }
}

static void load_lane(float *to, const float *from, uint32_t n, uint32_t ld)
{
    memcpy(to, from, n * sizeof *to);
    memset(to + n, 0, (ld - n) * sizeof *to); /* the missing rows pull on nothing */
}

void corral_policy_backward(const struct corral_policy_layout *layout, const float *weights,
                            struct corral_policy_workspace *ws, const float *d_log_prob,
                            const float *d_entropy, const float *d_value, float *grad)
{
    assert(ws->training);
    if (ws->n == 0) {
        return;
    }
    load_lane(ws->d_log_prob, d_log_prob, ws->n, ws->ld);
    load_lane(ws->d_entropy, d_entropy, ws->n, ws->ld);
    corral_policy_head_grad(layout, weights, ws, grad);
    tower_backward(layout, weights, ws, CORRAL_TOWER_POLICY, ws->delta[0], ws->delta[1], grad);
    load_lane(ws->delta[0], d_value, ws->n, ws->ld);
    tower_backward(layout, weights, ws, CORRAL_TOWER_VALUE, ws->delta[0], ws->delta[1], grad);
}
