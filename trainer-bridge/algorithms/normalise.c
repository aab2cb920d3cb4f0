#include "trainer-bridge/algorithms/normalise.h"
#include <math.h>

void corral_moments_merge_many(uint32_t dim, double *count, double *mean, double *m2, double other_count,
                               const double *other_mean, const double *other_m2)
{
    if (!(other_count > 0)) {
        return;
    }
    double total = *count + other_count, share = other_count / total;
    for (uint32_t d = 0; d < dim; d++) {
        double delta = other_mean[d] - mean[d];
        mean[d] += delta * share;
        m2[d] += other_m2[d] + delta * delta * *count * share;
    }
    *count = total;
}

void corral_moments_merge(struct corral_moments *into, struct corral_moments other)
{
    corral_moments_merge_many(1, &into->count, &into->mean, &into->m2, other.count, &other.mean, &other.m2);
}

double corral_moments_variance(const struct corral_moments *m)
{
    return m->count > 0 ? m->m2 / m->count : 1.0;
}

struct corral_whiten corral_whiten_of(double count, double mean, double m2)
{
    double std = count > 1 ? sqrt(m2 / (count - 1)) : 0;
    return (struct corral_whiten){.mean = (float)mean, .inverse = (float)(1.0 / (std + 1e-8))};
}

double corral_explained_variance(const struct corral_moments *target, const struct corral_moments *residual)
{
    return target->m2 > 0 ? 1.0 - residual->m2 / target->m2 : 0.0;
}
