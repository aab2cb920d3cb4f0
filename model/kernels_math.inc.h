/* Vector types and elementary functions for one instruction set; included by kernels_body.inc.h, which says how. */
typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef float vf_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

INLINE vf load(const float *p)
{
    return *(const vf_any *)p;
}
INLINE void store(float *p, vf v)
{
    *(vf_any *)p = v;
}
INLINE vf splat(float x)
{
    return x - (vf){0};
}
INLINE vi splat_i(int32_t x)
{
    return x - (vi){0};
}
/* Where m is all ones take a, else b. */
INLINE vf choose(vi m, vf a, vf b)
{
    return (vf)((m & (vi)a) | (~m & (vi)b));
}
#if LANES == 16 && defined(__AVX512F__)
INLINE vf vmin(vf a, vf b)
{
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
}
INLINE vf vmax(vf a, vf b)
{
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}
#elif LANES == 8 && defined(__AVX2__)
INLINE vf vmin(vf a, vf b)
{
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
}
INLINE vf vmax(vf a, vf b)
{
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}
#else
INLINE vf vmin(vf a, vf b)
{
    return choose(a < b, a, b);
}
INLINE vf vmax(vf a, vf b)
{
    return choose(a > b, a, b);
}
#endif

/* tanh(x) = x P(x^2) / Q(x^2), minimax in relative error (2.1e-8) on |x| <= 9.02, beyond which tanh rounds to 1.
 * A NaN comes out as a NaN: min and max give their second operand when they cannot compare. */
INLINE vf v_tanh(vf x)
{
    vf c = vmax(splat(-9.01f), vmin(splat(9.01f), x));
    vf u = c * c;
    vf p = splat(1.331986858e-8f) * u + splat(2.058419934e-5f);
    vf q = splat(7.762387116e-7f) * u + splat(3.283170289e-4f);
    p = p * u + splat(3.494084826e-3f);
    q = q * u + splat(2.587127165e-2f);
    p = p * u + splat(1.337976261e-1f);
    q = q * u + splat(4.671307795e-1f);
    p = p * u + splat(9.999999791e-1f);
    q = q * u + splat(1.0f);
    /* Rounding may carry the quotient past 1. */
    return vmax(splat(-1.0f), vmin(splat(1.0f), c * p / q));
}

/* exp(x) = 2^k exp(r), |r| <= ln 2 / 2. Below the smallest normal result it is 0, above the largest finite one infinity. */
INLINE vf v_exp(vf x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, left in the low bits */
    vf c = vmax(splat(-87.5f), vmin(splat(88.73f), x));
    vf t = c * splat(1.44269504f) + splat(magic);
    vf k = t - splat(magic);
    vf r = c - k * splat(0.693359375f);
    r = r + k * splat(2.12194440e-4f);
    vf p = splat(1.381445825e-3f) * r + splat(8.368781244e-3f);
    p = p * r + splat(4.16683944e-2f);
    p = p * r + splat(1.66665201e-1f);
    p = p * r + splat(4.999999341e-1f);
    p = p * (r * r) + r + splat(1.0f);
    /* In two factors, for k = 128 has no float of its own. */
    vi e = (vi)t - splat_i(0x4b400000);
    vi half = e >> 1;
    vf y = p * (vf)((half + splat_i(127)) << 23) * (vf)((e - half + splat_i(127)) << 23);
    y = choose(x < splat(-87.33654f), splat(0.0f), y);
    y = choose(x > splat(88.72283f), splat(__builtin_inff()), y);
    return choose(x != x, x, y);
}

/* log of a positive normal float: 2 atanh(s) with s = (m - 1) / (m + 1), m in [sqrt 1/2, sqrt 2). */
INLINE vf v_log(vf x)
{
    vi bits = (vi)x - splat_i(0x3f3504f3);
    vi e = bits >> 23;
    vf m = (vf)((bits & splat_i(0x007fffff)) + splat_i(0x3f3504f3));
    vf f = m - splat(1.0f);
    vf s = f / (f + splat(2.0f));
    vf u = s * s;
    vf p = splat(0.22222222f) * u + splat(0.28571429f);
    p = p * u + splat(0.4f);
    p = p * u + splat(0.66666667f);
    vf k = __builtin_convertvector(e, vf);
    /* log(1+f) = f - s (f - u p): keeps the low bits when f is small. */
    return k * splat(0.693359375f) + (f - (s * (f - u * p) + k * splat(2.12194440e-4f)));
}
