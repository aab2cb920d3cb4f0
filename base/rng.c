#include "base/rng.h"
#include <assert.h>
#include <math.h>

uint64_t corral_splitmix64(uint64_t *state)
{
    *state += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

uint64_t corral_seed_derive(uint64_t seed, uint64_t a, uint64_t b, uint64_t c)
{
    /* One bijective mix per coordinate: two seeds that differ in one coordinate alone never collide. */
    const uint64_t coordinates[3] = {a, b, c};
    uint64_t state = seed;
    uint64_t mixed = corral_splitmix64(&state);
    for (int i = 0; i < 3; i++) {
        state = mixed ^ coordinates[i];
        mixed = corral_splitmix64(&state);
    }
    return mixed;
}

void corral_rng_seed(struct corral_rng *rng, uint64_t seed)
{
    uint64_t state = seed;
    for (int i = 0; i < 4; i++) {
        rng->s[i] = corral_splitmix64(&state);
    }
}

static inline uint64_t rotate_left(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t corral_rng_next(struct corral_rng *rng)
{
    uint64_t *s = rng->s;
    const uint64_t result = rotate_left(s[0] + s[3], 23) + s[0];
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

double corral_rng_uniform(struct corral_rng *rng)
{
    return (double)(corral_rng_next(rng) >> 11) * 0x1p-53;
}

float corral_rng_uniformf(struct corral_rng *rng)
{
    return (float)(corral_rng_next(rng) >> 40) * 0x1p-24f;
}

double corral_rng_range(struct corral_rng *rng, double lo, double hi)
{
    return lo + (hi - lo) * corral_rng_uniform(rng);
}

uint64_t corral_rng_below(struct corral_rng *rng, uint64_t n)
{
    assert(n > 0);
    /* The high half of x*n is uniform once the low halves below 2^64 mod n are rejected (Lemire, 2019). */
    unsigned __int128 product = (unsigned __int128)corral_rng_next(rng) * n;
    if ((uint64_t)product < n) {
        const uint64_t threshold = (0 - n) % n;
        while ((uint64_t)product < threshold) {
            product = (unsigned __int128)corral_rng_next(rng) * n;
        }
    }
    return (uint64_t)(product >> 64);
}

/* The natural logarithm for x in (0, 1), from operations IEEE 754 rounds exactly. libm's differs in the last bit between
 * machines with and without fused multiply-add, and a sequence must not. */
static double log_portable(double x)
{
    int exponent;
    double m = frexp(x, &exponent); /* [0.5, 1) */
    if (m < 0.70710678118654752) {
        m *= 2.0;
        exponent--;
    }
    const double s = (m - 1.0) / (m + 1.0); /* log m = 2 atanh s, |s| < 0.172 */
    const double z = s * s;
    double series = 0.0;
    for (int k = 25; k >= 3; k -= 2) {
        series = (series + 1.0 / k) * z;
    }
    return exponent * 0.69314718055994531 + 2.0 * (s + s * series);
}

double corral_rng_normal(struct corral_rng *rng)
{
    for (;;) {
        const double u = 2.0 * corral_rng_uniform(rng) - 1.0;
        const double v = 2.0 * corral_rng_uniform(rng) - 1.0;
        const double r = u * u + v * v;
        if (r > 0.0 && r < 1.0) {
            return u * sqrt(-2.0 * log_portable(r) / r);
        }
    }
}

void corral_rng_permutation(struct corral_rng *rng, uint32_t *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t j = (uint32_t)corral_rng_below(rng, (uint64_t)i + 1);
        out[i] = out[j];
        out[j] = i;
    }
}
