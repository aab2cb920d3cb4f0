#define LANES 16
#define TABLE corral_kernels_avx512
#define NAME "avx512"
#define BLAS_MIN (UINT64_C(1) << 28)
#define SUPPORTED                                                                \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&  \
     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && \
     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "model/kernels_body.inc.h"
