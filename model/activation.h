/* Elementary functions over float arrays, with the fastest instructions the processor has. Any length, any alignment; y may be x.
 * The largest errors, are tested against libm: tanh 6 ulp, exp 2 ulp, log 2 ulp.
 * exp gives 0 below the smallest normal result and infinity above the largest finite one; NaN in, NaN out (log: positive
 * normal numbers only). Any thread. Hot path.
 */
#ifndef CORRAL_MODEL_ACTIVATION_H
#define CORRAL_MODEL_ACTIVATION_H

#include <stdint.h>

void corral_tanh_f32(uint32_t n, const float *x, float *y);
void corral_exp_f32(uint32_t n, const float *x, float *y);
void corral_log_f32(uint32_t n, const float *x, float *y);

#endif
