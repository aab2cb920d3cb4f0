#include "model/activation.h"
#include "model/kernels.h"

void corral_tanh_f32(uint32_t n, const float *x, float *y)
{
    corral_kernels()->tanh_f32(n, x, y);
}

void corral_exp_f32(uint32_t n, const float *x, float *y)
{
    corral_kernels()->exp_f32(n, x, y);
}

void corral_log_f32(uint32_t n, const float *x, float *y)
{
    corral_kernels()->log_f32(n, x, y);
}
