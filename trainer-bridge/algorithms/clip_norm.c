#include "trainer-bridge/algorithms/clip_norm.h"
#include <math.h>

/* Partial sums in a fixed pattern: independent additions, yet one order everywhere. */
#define PARTS 16

double corral_norm(const float *x, uint64_t n)
{
    double part[PARTS] = {0};
    uint64_t i = 0;
    for (; i + PARTS <= n; i += PARTS) {
        for (uint32_t j = 0; j < PARTS; j++) {
            part[j] += (double)x[i + j] * (double)x[i + j];
        }
    }
    for (uint32_t j = 0; i + j < n; j++) {
        part[j] += (double)x[i + j] * (double)x[i + j];
    }
    double sum = 0;
    for (uint32_t j = 0; j < PARTS; j++) {
        sum += part[j];
    }
    return sqrt(sum);
}

double corral_clip_scale(double norm, double norm_max)
{
    return norm_max > 0 && norm > norm_max ? norm_max / norm : 1.0;
}
