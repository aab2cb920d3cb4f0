/* The kernels for one instruction set. Included once by each kernels_<set>.c, compiled with that set's flags, after defining
 *   LANES           floats in a vector: 16, 8 or 4
 *   TABLE, NAME     the table to define and its name
 *   BLAS_MIN        see struct corral_kernels
 *   SUPPORTED       an expression: does this processor have the set?
 */
#include "model/kernels.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "model/kernels_math.inc.h"

#include "model/kernels_dense.inc.h"

#include "model/kernels_head.inc.h"

static bool supported(void)
{
    return SUPPORTED;
}

const struct corral_kernels TABLE = {
    .name = NAME,
    .supported = supported,
    .blas_min = BLAS_MIN,
    .forward = forward,
    .input_grad = input_grad,
    .weight_grad = weight_grad,
    .bias_act = bias_act,
    .act_grad = act_grad,
    .row_sums = row_sums,
    .tanh_f32 = tanh_f32,
    .exp_f32 = exp_f32,
    .log_f32 = log_f32,
    .softmax = softmax,
    .softmax_grad = softmax_grad,
};
