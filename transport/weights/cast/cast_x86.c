/* Eight elements at a time with AVX2 and F16C. The same arithmetic as element.c, step by step. */
#include "transport/weights/cast/internal.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c")))
#define INLINE static inline __attribute__((always_inline))

static bool has_avx2(void)
{
    /* Not every compiler knows the name of F16C. The operating system's part is that of AVX2. */
    uint32_t a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

AVX2 INLINE __m256 read8(enum corral_dtype from, const uint8_t *p)
{
    if (from == CORRAL_DTYPE_F32) {
        return _mm256_loadu_ps((const float *)(const void *)p);
    }
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (from == CORRAL_DTYPE_F16) {
        return _mm256_cvtph_ps(half);
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

AVX2 INLINE __m256i magnitude_of(__m256i u)
{
    return _mm256_and_si256(u, _mm256_set1_epi32(0x7FFFFFFF));
}

/* As round_off. */
AVX2 INLINE __m256i round_off(__m256i u, int drop)
{
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, drop), _mm256_set1_epi32(1));
    __m256i half = _mm256_set1_epi32((1 << (drop - 1)) - 1);
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, half), odd), drop);
}

/* Lanes of 32 bits with values of 16 into 128 bits. */
AVX2 INLINE __m128i narrow16(__m256i v)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

AVX2 INLINE __m256i to_f8(__m256 x, int mantissa, int bias, uint32_t largest)
{
    __m256i all = _mm256_castps_si256(x), u = magnitude_of(all);
    __m256i sign = _mm256_and_si256(_mm256_srli_epi32(all, 24), _mm256_set1_epi32(0x80));
    __m256i nan = _mm256_cmpgt_epi32(u, _mm256_set1_epi32((int)CAST_INF));
    u = _mm256_min_epi32(u, _mm256_set1_epi32((int)largest));
    __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32((128 - bias) << 23), u);
    __m256i magic = _mm256_set1_epi32((127 + 23 + 1 - bias - mantissa) << 23);
    __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(u), _mm256_castsi256_ps(magic));
    __m256i subnormal = _mm256_sub_epi32(_mm256_castps_si256(sum), magic);
    __m256i normal =
        _mm256_sub_epi32(round_off(u, 23 - mantissa), _mm256_set1_epi32((127 - bias) << mantissa));
    __m256i q = _mm256_blendv_epi8(normal, subnormal, small);
    q = _mm256_blendv_epi8(q, _mm256_set1_epi32(0x7F), nan);
    return _mm256_or_si256(q, sign);
}

AVX2 INLINE __m128i to_bf16(__m256 x)
{
    __m256i u = _mm256_castps_si256(x);
    __m256i nan = _mm256_cmpgt_epi32(magnitude_of(u), _mm256_set1_epi32((int)CAST_INF));
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    return narrow16(_mm256_blendv_epi8(round_off(u, 16), quiet, nan));
}

AVX2 INLINE void write8(enum corral_dtype to, uint8_t *p, __m256 x)
{
    if (to == CORRAL_DTYPE_F32) {
        _mm256_storeu_ps((float *)(void *)p, x);
    } else if (to == CORRAL_DTYPE_F16) {
        _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    } else if (to == CORRAL_DTYPE_BF16) {
        _mm_storeu_si128((__m128i *)(void *)p, to_bf16(x));
    } else {
        __m256i q =
            to == CORRAL_DTYPE_F8_E4M3 ? to_f8(x, 3, 7, CAST_E4M3_MAX) : to_f8(x, 2, 15, CAST_E5M2_MAX);
        __m128i half = narrow16(q);
        _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(half, half));
    }
}

AVX2 INLINE uint64_t convert(enum corral_dtype from, enum corral_dtype to, const uint8_t *in, uint8_t *out,
                             uint64_t count, float scale)
{
    const uint32_t in_bytes = from == CORRAL_DTYPE_F32 ? 4 : 2;
    const uint32_t out_bytes = to == CORRAL_DTYPE_F32                              ? 4
                               : to == CORRAL_DTYPE_F16 || to == CORRAL_DTYPE_BF16 ? 2
                                                                                   : 1;
    const __m256 divisor = _mm256_set1_ps(scale);
    const bool divide = scale != 1.0f;
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 x = read8(from, in + i * in_bytes);
        write8(to, out + i * out_bytes, divide ? _mm256_div_ps(x, divisor) : x);
    }
    return i;
}

/* The pair of types as constants, so that the loop has no branches; returns how many elements were done. */
AVX2 INLINE uint64_t convert_from(enum corral_dtype from, enum corral_dtype to, const uint8_t *in,
                                  uint8_t *out, uint64_t count, float scale)
{
    switch (to) {
    case CORRAL_DTYPE_F32:
        return convert(from, CORRAL_DTYPE_F32, in, out, count, scale);
    case CORRAL_DTYPE_F16:
        return convert(from, CORRAL_DTYPE_F16, in, out, count, scale);
    case CORRAL_DTYPE_BF16:
        return convert(from, CORRAL_DTYPE_BF16, in, out, count, scale);
    case CORRAL_DTYPE_F8_E4M3:
        return convert(from, CORRAL_DTYPE_F8_E4M3, in, out, count, scale);
    default:
        return convert(from, CORRAL_DTYPE_F8_E5M2, in, out, count, scale);
    }
}

AVX2 static void convert_row(enum corral_dtype from, enum corral_dtype to, const void *in, void *out,
                             uint64_t count, float scale)
{
    uint64_t done;
    switch (from) {
    case CORRAL_DTYPE_F32:
        done = convert_from(CORRAL_DTYPE_F32, to, in, out, count, scale);
        break;
    case CORRAL_DTYPE_F16:
        done = convert_from(CORRAL_DTYPE_F16, to, in, out, count, scale);
        break;
    default:
        done = convert_from(CORRAL_DTYPE_BF16, to, in, out, count, scale);
        break;
    }
    if (done < count) {
        corral_cast_kernels_plain.row(from, to, (const uint8_t *)in + done * corral_dtype_bytes(from),
                                      (uint8_t *)out + done * corral_dtype_bytes(to), count - done, scale);
    }
}

AVX2 INLINE uint32_t amax_of(enum corral_dtype from, const uint8_t *row, uint64_t vectors, uint32_t least)
{
    const uint32_t bytes = from == CORRAL_DTYPE_F32 ? 4 : 2;
    const __m256i inf = _mm256_set1_epi32((int)CAST_INF);
    __m256i most = _mm256_setzero_si256();
    for (uint64_t i = 0; i < vectors; i++) {
        __m256i u = magnitude_of(_mm256_castps_si256(read8(from, row + 8 * i * bytes)));
        most = _mm256_max_epi32(most, _mm256_and_si256(u, _mm256_cmpgt_epi32(inf, u)));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, 0xB1));
    return CORRAL_MAX(least, (uint32_t)_mm_cvtsi128_si32(one));
}

AVX2 static uint32_t amax(enum corral_dtype from, const void *row, uint64_t count, uint32_t least)
{
    uint64_t done = count / 8 * 8;
    switch (from) {
    case CORRAL_DTYPE_F32:
        least = amax_of(CORRAL_DTYPE_F32, row, count / 8, least);
        break;
    case CORRAL_DTYPE_F16:
        least = amax_of(CORRAL_DTYPE_F16, row, count / 8, least);
        break;
    default:
        least = amax_of(CORRAL_DTYPE_BF16, row, count / 8, least);
        break;
    }
    return done == count
               ? least
               : corral_cast_kernels_plain.amax(from, (const uint8_t *)row + done * corral_dtype_bytes(from),
                                                count - done, least);
}

const struct corral_cast_kernels corral_cast_kernels_avx2 = {
    .name = "avx2",
    .supported = has_avx2,
    .amax = amax,
    .row = convert_row,
};

#endif
