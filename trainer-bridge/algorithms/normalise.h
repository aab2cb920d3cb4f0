/* Running mean and variance, merged by Chan, Golub & LeVeque (1979), and what is normalised with them. Pure; any thread. */
#ifndef CORRAL_TRAINER_ALGORITHMS_NORMALISE_H
#define CORRAL_TRAINER_ALGORITHMS_NORMALISE_H

#include <stdint.h>

/* Of one quantity. Start from zeroes. */
struct corral_moments {
    double count, mean, m2; /* m2: sum of squared deviations from the mean */
};

/* into := into and other together. Either may be empty. */
void corral_moments_merge(struct corral_moments *into, struct corral_moments other);
/* Variance of the population; 1 while nothing was seen. */
double corral_moments_variance(const struct corral_moments *m);

/* The same for `dim` quantities that share a count. */
void corral_moments_merge_many(uint32_t dim, double *count, double *mean, double *m2, double other_count,
                               const double *other_mean, const double *other_m2);

/* x := (x - mean) / (std + 1e-8), with the sample variance (n - 1); a single value becomes 0. */
struct corral_whiten {
    float mean, inverse;
};
struct corral_whiten corral_whiten_of(double count, double mean, double m2);
static inline float corral_whiten_apply(struct corral_whiten w, float x)
{
    return (x - w.mean) * w.inverse;
}

/* 1 - Var(target - value) / Var(target); 0 when the target does not vary. */
double corral_explained_variance(const struct corral_moments *target, const struct corral_moments *residual);

#endif
