/* Sine and cosine in double precision as straight-line code that compilers turn into vector instructions.
 * Taylor polynomials: on these short intervals the first term left out is below half a unit in the last place.
 * The same operations in the same order everywhere, so a lane of a vector and a scalar agree bit for bit.
 */
#ifndef CORRAL_ENVS_SINCOS_H
#define CORRAL_ENVS_SINCOS_H

#include <stdint.h>
#include <string.h>

#define SINCOS_INLINE static inline __attribute__((always_inline))

/* |x| <= SINCOS_SMALL_MAX: sine to x^11, cosine to x^10. */
#define SINCOS_SMALL_MAX 0.21

SINCOS_INLINE void sincos_small(double x, double *sine, double *cosine)
{
    double z = x * x;
    double s = -1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    *sine = x + x * z * s;
    double c = -1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    *cosine = 1.0 - (0.5 * z - z * z * c);
}

/* |x| <= SINCOS_MAX, absolute error below 1e-15: subtract a multiple of pi/2 in three parts (the first two have 33 bits, so their products with the
 * multiple are exact), evaluate on [-pi/4, pi/4], then swap and negate by quadrant. */
#define SINCOS_MAX 1.0e6

SINCOS_INLINE void sincos_wide(double x, double *sine, double *cosine)
{
    const double shift = 0x1.8p52; /* adding it rounds to an integer, which the low bits then hold */
    double shifted = x * 0x1.45f306dc9c883p-1 + shift;
    uint64_t quadrant;
    memcpy(&quadrant, &shifted, sizeof quadrant);
    double multiple = shifted - shift;
    double r = x - multiple * 0x1.921fb544p+0;
    r = r - multiple * 0x1.0b4611a6p-34;
    r = r - multiple * 0x1.3198a2e037073p-69;

    double z = r * r;
    double s = -1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = r + r * z * s;
    double c = 1.0 / 20922789888000.0;
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = 1.0 - (0.5 * z - z * z * c);

    /* Bit selects instead of branches: `odd` is all ones where sine and cosine trade places. */
    uint64_t sine_bits, cosine_bits;
    memcpy(&sine_bits, &s, sizeof sine_bits);
    memcpy(&cosine_bits, &c, sizeof cosine_bits);
    uint64_t odd = 0 - (quadrant & 1);
    uint64_t trade = (sine_bits ^ cosine_bits) & odd;
    sine_bits ^= trade ^ ((quadrant & 2) << 62);
    cosine_bits ^= trade ^ (((quadrant + 1) & 2) << 62);
    memcpy(sine, &sine_bits, sizeof *sine);
    memcpy(cosine, &cosine_bits, sizeof *cosine);
}

#endif
