/* Fresh weights. Plain scalar double arithmetic in a fixed order: the same seed gives the same bits on every machine. */
#include "model/policy_batch.h"
#include <math.h>
#include <string.h>

static double dot(const float *a, const float *b, uint64_t count, uint64_t stride)
{
    double sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        sum += (double)a[i * stride] * (double)b[i * stride];
    }
    return sum;
}

/* Orthonormal rows (or columns, when there are more rows than columns) times gain: Gram-Schmidt on a Gaussian matrix, in place. Each vector
 * is cleaned twice, which makes it orthogonal to working precision. */
static void orthogonal(float *w, uint64_t rows, uint64_t cols, double gain, struct corral_rng *rng)
{
    for (uint64_t i = 0; i < rows * cols; i++) {
        w[i] = (float)corral_rng_normal(rng);
    }
    bool wide = rows <= cols;
    uint64_t vectors = wide ? rows : cols, length = wide ? cols : rows;
    uint64_t step = wide ? cols : 1, stride = wide ? 1 : cols;
    for (uint64_t v = 0; v < vectors; v++) {
        float *a = w + v * step;
        for (uint64_t pass = 0; pass < 2; pass++) {
            for (uint64_t u = 0; u < v; u++) {
                const float *b = w + u * step;
                double along = dot(a, b, length, stride);
                for (uint64_t i = 0; i < length; i++) {
                    a[i * stride] = (float)((double)a[i * stride] - along * (double)b[i * stride]);
                }
            }
            double norm = sqrt(dot(a, a, length, stride));
            for (uint64_t i = 0; i < length; i++) {
                a[i * stride] = (float)((double)a[i * stride] / norm);
            }
        }
    }
    for (uint64_t i = 0; i < rows * cols; i++) {
        w[i] = (float)(gain * (double)w[i]);
    }
}

void corral_policy_init(const struct corral_policy_layout *layout, float *weights, struct corral_rng *rng)
{
    memset(weights, 0, layout->floats * sizeof *weights);
    for (int tower = CORRAL_TOWER_POLICY; tower <= CORRAL_TOWER_VALUE; tower++) {
        double head_gain = tower == CORRAL_TOWER_POLICY ? 0.01 : 1.0;
        for (uint32_t l = 0; l <= layout->spec.layers; l++) {
            const struct corral_policy_tensor *t =
                &layout->tensor[corral_policy_weight_at(layout, (enum corral_policy_tower)tower, l)];
            orthogonal(weights + t->offset, t->shape[0], t->shape[1],
                       l == layout->spec.layers ? head_gain : sqrt(2.0), rng);
        }
    }
    if (layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS) {
        const struct corral_policy_tensor *t = &layout->tensor[corral_policy_log_std_at(layout)];
        for (uint64_t i = 0; i < t->count; i++) {
            weights[t->offset + i] = layout->spec.log_std_init;
        }
    }
    const struct corral_policy_tensor *var = &layout->tensor[corral_policy_stats_at(layout) + 1];
    for (uint64_t i = 0; i < var->count; i++) {
        weights[var->offset + i] = 1.0f;
    }
}
