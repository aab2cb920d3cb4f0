#define LANES 8
#define TABLE corral_kernels_avx2
#define NAME "avx2"
#define BLAS_MIN (UINT64_C(1) << 24)
#define SUPPORTED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "model/kernels_body.inc.h"
