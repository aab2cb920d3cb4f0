#include "model/kernels.h"

uint32_t corral_kernels_all(const struct corral_kernels *out[4])
{
    uint32_t count = 0;
    out[count++] = &corral_kernels_base;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (corral_kernels_avx2.supported()) {
        out[count++] = &corral_kernels_avx2;
    }
    if (corral_kernels_avx512.supported()) {
        out[count++] = &corral_kernels_avx512;
    }
#endif
    return count;
}

const struct corral_kernels *corral_kernels(void)
{
    const struct corral_kernels *all[4];
    return all[corral_kernels_all(all) - 1];
}
