#include "trainer-bridge/algorithms/adam.h"
#include <math.h>

struct step {
    float beta1, beta2, rest1, rest2, grad_scale, rate, root, eps;
};

#define INLINE static inline __attribute__((always_inline))

/* m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), with the corrections folded into rate and root. */
INLINE void update(const struct step *s, uint64_t n, const float *restrict grad, float *restrict m,
                   float *restrict v, float *restrict weights)
{
    for (uint64_t i = 0; i < n; i++) {
        float g = grad[i] * s->grad_scale;
        float first = s->beta1 * m[i] + s->rest1 * g;
        float second = s->beta2 * v[i] + s->rest2 * (g * g);
        m[i] = first;
        v[i] = second;
        weights[i] -= s->rate * first / (sqrtf(second) * s->root + s->eps);
    }
}

/* Clones differ only in vector width. None may use fused multiply-add, which avx2 alone does not bring; avx512 does bring it,
 * and is kept from it by -ffp-contract=off. */
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vl"))) static void
update_avx512(const struct step *s, uint64_t n, const float *grad, float *m, float *v, float *weights)
{
    update(s, n, grad, m, v, weights);
}
__attribute__((target("avx2"))) static void update_avx2(const struct step *s, uint64_t n, const float *grad,
                                                        float *m, float *v, float *weights)
{
    update(s, n, grad, m, v, weights);
}
#endif

void corral_adam(const struct corral_adam_config *config, double lr, uint64_t t, uint64_t n,
                 const float *grad, double grad_scale, float *m, float *v, float *weights)
{
    struct step s = {
        .beta1 = (float)config->beta1,
        .beta2 = (float)config->beta2,
        .rest1 = (float)(1 - config->beta1),
        .rest2 = (float)(1 - config->beta2),
        .grad_scale = (float)grad_scale,
        .rate = (float)(lr / (1 - pow(config->beta1, (double)t))),
        .root = (float)(1 / sqrt(1 - pow(config->beta2, (double)t))),
        .eps = (float)config->eps,
    };
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
        update_avx512(&s, n, grad, m, v, weights);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        update_avx2(&s, n, grad, m, v, weights);
        return;
    }
#endif
    update(&s, n, grad, m, v, weights);
}
