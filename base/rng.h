/* Random numbers, passed in. xoshiro256++ seeded through splitmix64 (Blackman & Vigna, https://prng.di.unimi.it).
 * Same seed, same sequence, on every machine. A generator belongs to one thread. Its state is plain data: copy it into
 * a checkpoint to resume the same sequence.
 */
#ifndef CORRAL_BASE_RNG_H
#define CORRAL_BASE_RNG_H

#include <stdint.h>

struct corral_rng {
    uint64_t s[4];
};

/* One step of splitmix64: advances *state and returns the next value. */
uint64_t corral_splitmix64(uint64_t *state);
/* The project's one seeding rule: a well-mixed seed from a job seed and up to three coordinates
 * (for an environment: worker, row, episode). */
uint64_t corral_seed_derive(uint64_t seed, uint64_t a, uint64_t b, uint64_t c);

void corral_rng_seed(struct corral_rng *rng, uint64_t seed);
uint64_t corral_rng_next(struct corral_rng *rng);
double corral_rng_uniform(struct corral_rng *rng); /* [0, 1), 53 bits */
float corral_rng_uniformf(struct corral_rng *rng); /* [0, 1), 24 bits */
double corral_rng_range(struct corral_rng *rng, double lo, double hi);
uint64_t corral_rng_below(struct corral_rng *rng, uint64_t n); /* [0, n), unbiased; n > 0 */
double corral_rng_normal(struct corral_rng *rng); /* mean 0, sd 1; polar method, no cached spare */
void corral_rng_permutation(struct corral_rng *rng, uint32_t *out, uint32_t n); /* Fisher-Yates of 0..n-1 */

#endif
