/* Adam (Kingma & Ba 2014, arXiv 1412.6980) on flat arrays. Pure; any thread. The same bits whatever the processor: no
 * fused multiply-add, one operation order. So ranks that hold equal moments and the same reduced gradient stay equal.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_ADAM_H
#define CORRAL_TRAINER_ALGORITHMS_ADAM_H

#include <stdint.h>

struct corral_adam_config {
    double beta1, beta2, eps;
};

/* The update number `t` (from 1): m, v and weights move by the gradient times grad_scale. */
void corral_adam(const struct corral_adam_config *config, double lr, uint64_t t, uint64_t n,
                 const float *grad, double grad_scale, float *m, float *v, float *weights);

#endif
