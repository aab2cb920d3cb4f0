/* Plain vectors of four floats: every 64-bit processor has them. */
#define LANES 4
#define TABLE corral_kernels_base
#define NAME "base"
#define BLAS_MIN (UINT64_C(1) << 18)
#define SUPPORTED true
#include "model/kernels_body.inc.h"
