/* The inner loops for AVX2, and for AVX-512 with the instructions that compress bytes and words (VBMI2). Compressed vectors are stored whole from a register and the next store begins where the
 * wanted part ends: the instructions that compress into memory are microcoded on some processors. */
#include "transport/weights/delta/internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt,lzcnt")))
#define AVX512                                                                                       \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx2,bmi,bmi2," \
                          "popcnt,lzcnt")))
#define INLINE static inline __attribute__((always_inline))

/* Up to so many changes in a block, a loop over the set bits that looks first is fastest; up to so many, one that takes four at a time (below); then compressing every vector. Measured by delta_bench. */
#define FEW (DELTA_BLOCK / 256)
#define SOME (DELTA_BLOCK / 64)

/* ---- both ---- */

AVX2 static void summarise(struct delta_mask *mask, uint32_t count)
{
    uint32_t changed = 0;
    bool full = false;
    for (uint32_t w = (count + 63) / 64; w < DELTA_WORDS; w++) {
        mask->word[w] = 0;
    }
    for (uint32_t w = 0; w < DELTA_WORDS; w += 4) {
        const uint64_t *m = &mask->word[w];
        full |= (m[0] & m[1] & m[2] & m[3]) == UINT64_MAX;
        changed += (uint32_t)(_mm_popcnt_u64(m[0]) + _mm_popcnt_u64(m[1]) + _mm_popcnt_u64(m[2]) +
                              _mm_popcnt_u64(m[3]));
    }
    mask->changed = changed;
    mask->full_group = full;
}

/* The set bits of a word, one after the other: the first four without looking whether there are so many, since a branch that nobody can predict costs more than four stores. What is written too much is
 * overwritten by what follows. `place` is the bit's number, and some number below 64 where there is no bit. */
#define WALK_FOUR 4u
#define FOR_SET_BITS(bits, to, step, ...)                                          \
    do {                                                                           \
        uint32_t set_ = (uint32_t)_mm_popcnt_u64(bits);                            \
        for (uint32_t i_ = 0; i_ < WALK_FOUR; i_++, (bits) = _blsr_u64(bits)) {    \
            uint32_t place = (uint32_t)_tzcnt_u64(bits) & 63;                      \
            uint8_t *at = (to) + i_ * (step);                                      \
            __VA_ARGS__;                                                           \
        }                                                                          \
        for (uint32_t i_ = WALK_FOUR; i_ < set_; i_++, (bits) = _blsr_u64(bits)) { \
            uint32_t place = (uint32_t)_tzcnt_u64(bits);                           \
            uint8_t *at = (to) + i_ * (step);                                      \
            __VA_ARGS__;                                                           \
        }                                                                          \
        (to) += set_ * (step);                                                     \
    } while (0)

AVX2 static void walk16(const struct delta_mask *mask, void *out)
{
    if (mask->changed <= FEW) {
        corral_delta_kernels_plain.index16(mask, out);
        return;
    }
    uint8_t *to = out;
    for (uint32_t w = 0; w < DELTA_WORDS; w++) {
        uint64_t bits = mask->word[w];
        FOR_SET_BITS(bits, to, 2, {
            uint16_t index = (uint16_t)(64 * w + place);
            memcpy(at, &index, 2);
        });
    }
}

AVX2 static void walk8(const struct delta_mask *mask, uint32_t count, void *out)
{
    uint32_t groups = delta_groups(count);
    uint8_t *counts = out, *to = counts + groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint8_t *begin = to;
        for (uint32_t w = 0; w < 4; w++) {
            uint64_t bits = mask->word[4 * g + w];
            FOR_SET_BITS(bits, to, 1, *at = (uint8_t)(64 * w + place));
        }
        counts[g] = (uint8_t)(to - begin);
    }
}

/* `count` elements; a word that is there only in part is walked without reading beyond. */
AVX2 INLINE void walk_values(const struct delta_mask *mask, const uint8_t *next, uint32_t count,
                             uint32_t bytes, uint8_t *to)
{
    for (uint32_t w = 0; 64 * w < count; w++) {
        const uint8_t *from = next + (size_t)64 * w * bytes;
        uint64_t bits = mask->word[w];
        FOR_SET_BITS(bits, to, bytes, memcpy(at, from + (size_t)place * bytes, bytes));
    }
}

AVX2 static void walk_all_values(const struct delta_mask *mask, const void *next, uint32_t count,
                                 uint32_t element_bytes, void *out)
{
    if (mask->changed <= FEW) {
        corral_delta_kernels_plain.values(mask, next, count, element_bytes, out);
        return;
    }
    switch (element_bytes) {
    case 1:
        walk_values(mask, next, count, 1, out);
        break;
    case 2:
        walk_values(mask, next, count, 2, out);
        break;
    case 4:
        walk_values(mask, next, count, 4, out);
        break;
    default:
        walk_values(mask, next, count, 8, out);
        break;
    }
}

AVX2 INLINE void walk_expand(const uint64_t *word, uint32_t count, uint32_t bytes, const uint8_t *from,
                             uint8_t *to)
{
    for (uint32_t w = 0; w < (count + 63) / 64; w++) {
        for (uint64_t bits = word[w]; bits != 0; bits = _blsr_u64(bits)) {
            memcpy(to + (64 * w + _tzcnt_u64(bits)) * bytes, from, bytes);
            from += bytes;
        }
    }
}

AVX2 static void expand_avx2(const uint64_t *word, uint32_t count, uint32_t element_bytes, const void *from,
                             void *destination)
{
    switch (element_bytes) {
    case 1:
        walk_expand(word, count, 1, from, destination);
        break;
    case 2:
        walk_expand(word, count, 2, from, destination);
        break;
    case 4:
        walk_expand(word, count, 4, from, destination);
        break;
    default:
        walk_expand(word, count, 8, from, destination);
        break;
    }
}

/* ---- AVX2 ---- */

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

AVX2 INLINE __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

/* Bits of the elements that are equal, of as many as fit into 64 bytes (1 and 2 bytes) or 32 (4 and 8). */
AVX2 INLINE uint64_t equal_avx2(const uint8_t *a, const uint8_t *b, uint32_t bytes)
{
    if (bytes == 1) {
        uint32_t low = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(load(a), load(b)));
        uint32_t high = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(load(a + 32), load(b + 32)));
        return low | (uint64_t)high << 32;
    }
    if (bytes == 2) {
        __m256i low = _mm256_cmpeq_epi16(load(a), load(b));
        __m256i high = _mm256_cmpeq_epi16(load(a + 32), load(b + 32));
        /* Packing works within halves of 128 bits. */
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
        return (uint32_t)_mm256_movemask_epi8(both);
    }
    if (bytes == 4) {
        return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(load(a), load(b))));
    }
    return (uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(load(a), load(b))));
}

AVX2 INLINE void compare_avx2_sized(const uint8_t *base, const uint8_t *next, uint32_t count, uint32_t bytes,
                                    uint64_t *word)
{
    const uint32_t each = bytes <= 2 ? 64 / bytes : 32 / bytes;
    uint32_t at = 0;
    for (; at + 64 <= count; at += 64) {
        uint64_t equal = 0;
        for (uint32_t i = 0; i < 64; i += each) {
            equal |= equal_avx2(base + (size_t)(at + i) * bytes, next + (size_t)(at + i) * bytes, bytes) << i;
        }
        word[at / 64] = ~equal;
    }
    if (at < count) {
        uint64_t bits = 0;
        for (uint32_t i = 0; at + i < count; i++) {
            size_t place = (size_t)(at + i) * bytes;
            bits |= (uint64_t)(memcmp(base + place, next + place, bytes) != 0) << i;
        }
        word[at / 64] = bits;
    }
}

AVX2 static void compare_avx2(const void *base, const void *next, uint32_t count, uint32_t element_bytes,
                              struct delta_mask *mask)
{
    switch (element_bytes) {
    case 1:
        compare_avx2_sized(base, next, count, 1, mask->word);
        break;
    case 2:
        compare_avx2_sized(base, next, count, 2, mask->word);
        break;
    case 4:
        compare_avx2_sized(base, next, count, 4, mask->word);
        break;
    default:
        compare_avx2_sized(base, next, count, 8, mask->word);
        break;
    }
    summarise(mask, count);
}

const struct corral_delta_kernels corral_delta_kernels_avx2 = {
    .name = "avx2",
    .supported = has_avx2,
    .compare = compare_avx2,
    .index16 = walk16,
    .index8 = walk8,
    .values = walk_all_values,
    .expand = expand_avx2,
};

/* ---- AVX-512 ---- */

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
}

/* Elements of one vector, as a mask of those that are there. */
INLINE uint64_t first_bits(uint32_t count)
{
    return count >= 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
}

/* A vector of the elements in `keep`, the others zero and not touched. */
AVX512 INLINE __m512i load_some(uint64_t keep, const uint8_t *p, uint32_t bytes)
{
    switch (bytes) {
    case 1:
        return _mm512_maskz_loadu_epi8((__mmask64)keep, p);
    case 2:
        return _mm512_maskz_loadu_epi16((__mmask32)keep, p);
    case 4:
        return _mm512_maskz_loadu_epi32((__mmask16)keep, p);
    default:
        return _mm512_maskz_loadu_epi64((__mmask8)keep, p);
    }
}

AVX512 INLINE uint64_t unequal(__m512i a, __m512i b, uint32_t bytes)
{
    switch (bytes) {
    case 1:
        return _mm512_cmpneq_epi8_mask(a, b);
    case 2:
        return _mm512_cmpneq_epi16_mask(a, b);
    case 4:
        return _mm512_cmpneq_epi32_mask(a, b);
    default:
        return _mm512_cmpneq_epi64_mask(a, b);
    }
}

AVX512 INLINE void compare_avx512_sized(const uint8_t *base, const uint8_t *next, uint32_t count,
                                        uint32_t bytes, uint64_t *word)
{
    const uint32_t each = 64 / bytes;
    uint32_t at = 0;
    for (; at + 64 <= count; at += 64) {
        uint64_t bits = 0;
        for (uint32_t i = 0; i < 64; i += each) {
            size_t place = (size_t)(at + i) * bytes;
            bits |= unequal(_mm512_loadu_si512(base + place), _mm512_loadu_si512(next + place), bytes) << i;
        }
        word[at / 64] = bits;
    }
    if (at < count) {
        uint64_t bits = 0;
        for (uint32_t i = 0; at + i < count; i += each) {
            size_t place = (size_t)(at + i) * bytes;
            uint64_t keep = first_bits(CORRAL_MIN(count - at - i, each));
            bits |= unequal(load_some(keep, base + place, bytes), load_some(keep, next + place, bytes), bytes)
                    << i;
        }
        word[at / 64] = bits;
    }
}

AVX512 static void compare_avx512(const void *base, const void *next, uint32_t count, uint32_t element_bytes,
                                  struct delta_mask *mask)
{
    switch (element_bytes) {
    case 1:
        compare_avx512_sized(base, next, count, 1, mask->word);
        break;
    case 2:
        compare_avx512_sized(base, next, count, 2, mask->word);
        break;
    case 4:
        compare_avx512_sized(base, next, count, 4, mask->word);
        break;
    default:
        compare_avx512_sized(base, next, count, 8, mask->word);
        break;
    }
    summarise(mask, count);
}

/* 0, 1, … 63 */
AVX512 INLINE __m512i iota8(void)
{
    const __m512i step = _mm512_set1_epi64(0x0808080808080808);
    __m512i eight = _mm512_mullo_epi64(step, _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    return _mm512_add_epi8(eight, _mm512_set1_epi64(0x0706050403020100));
}

AVX512 static void index16_avx512(const struct delta_mask *mask, void *out)
{
    if (mask->changed <= SOME) {
        walk16(mask, out);
        return;
    }
    uint8_t *to = out;
    const __m512i ramp = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(iota8()));
    for (uint32_t w = 0; w < DELTA_WORDS; w++) {
        uint32_t low = (uint32_t)mask->word[w], high = (uint32_t)(mask->word[w] >> 32);
        __m512i index = _mm512_add_epi16(ramp, _mm512_set1_epi16((short)(64 * w)));
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(low, index));
        to += 2 * (size_t)_mm_popcnt_u32(low);
        index = _mm512_add_epi16(index, _mm512_set1_epi16(32));
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(high, index));
        to += 2 * (size_t)_mm_popcnt_u32(high);
    }
}

AVX512 static void index8_avx512(const struct delta_mask *mask, uint32_t count, void *out)
{
    if (mask->changed <= SOME) {
        walk8(mask, count, out);
        return;
    }
    uint32_t groups = delta_groups(count);
    uint8_t *counts = out, *to = counts + groups;
    const __m512i ramp = iota8();
    for (uint32_t g = 0; g < groups; g++) {
        const uint8_t *begin = to;
        for (uint32_t w = 0; w < 4; w++) {
            uint64_t bits = mask->word[4 * g + w];
            __m512i index = _mm512_add_epi8(ramp, _mm512_set1_epi8((char)(64 * w)));
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(bits, index));
            to += _mm_popcnt_u64(bits);
        }
        counts[g] = (uint8_t)(to - begin);
    }
}

AVX512 INLINE __m512i compress(uint64_t bits, __m512i v, uint32_t bytes)
{
    switch (bytes) {
    case 1:
        return _mm512_maskz_compress_epi8((__mmask64)bits, v);
    case 2:
        return _mm512_maskz_compress_epi16((__mmask32)bits, v);
    case 4:
        return _mm512_maskz_compress_epi32((__mmask16)bits, v);
    default:
        return _mm512_maskz_compress_epi64((__mmask8)bits, v);
    }
}

AVX512 INLINE void values_avx512_sized(const struct delta_mask *mask, const uint8_t *next, uint32_t count,
                                       uint32_t bytes, uint8_t *to)
{
    const uint32_t each = 64 / bytes;
    for (uint32_t at = 0; at < count; at += each) {
        uint64_t bits = mask->word[at / 64] >> (at % 64) & first_bits(each);
        const uint8_t *from = next + (size_t)at * bytes;
        __m512i v = count - at >= each ? _mm512_loadu_si512(from) : load_some(bits, from, bytes);
        _mm512_storeu_si512(to, compress(bits, v, bytes));
        to += (size_t)_mm_popcnt_u64(bits) * bytes;
    }
}

AVX512 static void values_avx512(const struct delta_mask *mask, const void *next, uint32_t count,
                                 uint32_t element_bytes, void *out)
{
    if (mask->changed <= SOME) {
        walk_all_values(mask, next, count, element_bytes, out);
        return;
    }
    switch (element_bytes) {
    case 1:
        values_avx512_sized(mask, next, count, 1, out);
        break;
    case 2:
        values_avx512_sized(mask, next, count, 2, out);
        break;
    case 4:
        values_avx512_sized(mask, next, count, 4, out);
        break;
    default:
        values_avx512_sized(mask, next, count, 8, out);
        break;
    }
}

AVX512 INLINE void expand_vector(uint64_t bits, uint32_t bytes, const uint8_t *from, uint8_t *to)
{
    uint64_t taken = first_bits((uint32_t)_mm_popcnt_u64(bits));
    __m512i v = load_some(taken, from, bytes);
    switch (bytes) {
    case 1:
        _mm512_mask_storeu_epi8(to, (__mmask64)bits, _mm512_maskz_expand_epi8((__mmask64)bits, v));
        break;
    case 2:
        _mm512_mask_storeu_epi16(to, (__mmask32)bits, _mm512_maskz_expand_epi16((__mmask32)bits, v));
        break;
    case 4:
        _mm512_mask_storeu_epi32(to, (__mmask16)bits, _mm512_maskz_expand_epi32((__mmask16)bits, v));
        break;
    default:
        _mm512_mask_storeu_epi64(to, (__mmask8)bits, _mm512_maskz_expand_epi64((__mmask8)bits, v));
        break;
    }
}

AVX512 INLINE void expand_avx512_sized(const uint64_t *word, uint32_t count, uint32_t bytes,
                                       const uint8_t *from, uint8_t *to)
{
    const uint32_t each = 64 / bytes;
    for (uint32_t at = 0; at < count; at += each) {
        uint64_t bits = word[at / 64] >> (at % 64) & first_bits(each);
        expand_vector(bits, bytes, from, to + (size_t)at * bytes);
        from += (size_t)_mm_popcnt_u64(bits) * bytes;
    }
}

AVX512 static void expand_avx512(const uint64_t *word, uint32_t count, uint32_t element_bytes,
                                 const void *from, void *destination)
{
    switch (element_bytes) {
    case 1:
        expand_avx512_sized(word, count, 1, from, destination);
        break;
    case 2:
        expand_avx512_sized(word, count, 2, from, destination);
        break;
    case 4:
        expand_avx512_sized(word, count, 4, from, destination);
        break;
    default:
        expand_avx512_sized(word, count, 8, from, destination);
        break;
    }
}

const struct corral_delta_kernels corral_delta_kernels_avx512 = {
    .name = "avx512",
    .supported = has_avx512,
    .compare = compare_avx512,
    .index16 = index16_avx512,
    .index8 = index8_avx512,
    .values = values_avx512,
    .expand = expand_avx512,
};

#endif
