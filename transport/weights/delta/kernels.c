#include "transport/weights/delta/internal.h"

#include <string.h>

/* ---- for any processor ---- */

static bool always(void)
{
    return true;
}

/* Bits of the elements that differ in up to 64 of them. The size is a constant where it is called. */
static inline __attribute__((always_inline)) uint64_t differ(const uint8_t *a, const uint8_t *b,
                                                             uint32_t count, uint32_t bytes)
{
    uint64_t bits = 0;
    if (memcmp(a, b, (size_t)count * bytes) == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        bits |= (uint64_t)(memcmp(a + i * bytes, b + i * bytes, bytes) != 0) << i;
    }
    return bits;
}

static inline __attribute__((always_inline)) void
compare_sized(const uint8_t *base, const uint8_t *next, uint32_t count, uint32_t bytes, uint64_t *word)
{
    for (uint32_t at = 0; at < count; at += 64) {
        uint32_t n = CORRAL_MIN(count - at, 64u);
        word[at / 64] = differ(base + at * bytes, next + at * bytes, n, bytes);
    }
}

static void summarise(struct delta_mask *mask, uint32_t count)
{
    uint32_t words = (count + 63) / 64;
    mask->changed = 0;
    mask->full_group = false;
    for (uint32_t w = words; w < DELTA_WORDS; w++) {
        mask->word[w] = 0;
    }
    for (uint32_t w = 0; w < DELTA_WORDS; w += 4) {
        uint64_t all = mask->word[w] & mask->word[w + 1] & mask->word[w + 2] & mask->word[w + 3];
        mask->full_group |= all == UINT64_MAX;
        for (uint32_t i = 0; i < 4; i++) {
            mask->changed += (uint32_t)__builtin_popcountll(mask->word[w + i]);
        }
    }
}

static void compare(const void *base, const void *next, uint32_t count, uint32_t element_bytes,
                    struct delta_mask *mask)
{
    switch (element_bytes) {
    case 1:
        compare_sized(base, next, count, 1, mask->word);
        break;
    case 2:
        compare_sized(base, next, count, 2, mask->word);
        break;
    case 4:
        compare_sized(base, next, count, 4, mask->word);
        break;
    default:
        compare_sized(base, next, count, 8, mask->word);
        break;
    }
    summarise(mask, count);
}

static void index16(const struct delta_mask *mask, void *out)
{
    uint8_t *to = out;
    for (uint32_t w = 0; w < DELTA_WORDS; w++) {
        for (uint64_t bits = mask->word[w]; bits != 0; bits &= bits - 1) {
            uint16_t index = (uint16_t)(64 * w + (uint32_t)__builtin_ctzll(bits));
            memcpy(to, &index, 2);
            to += 2;
        }
    }
}

static void index8(const struct delta_mask *mask, uint32_t count, void *out)
{
    uint32_t groups = delta_groups(count);
    uint8_t *counts = out, *to = counts + groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint8_t *begin = to;
        for (uint32_t w = 0; w < 4; w++) {
            for (uint64_t bits = mask->word[4 * g + w]; bits != 0; bits &= bits - 1) {
                *to++ = (uint8_t)(64 * w + (uint32_t)__builtin_ctzll(bits));
            }
        }
        counts[g] = (uint8_t)(to - begin);
    }
}

static inline __attribute__((always_inline)) void
values_sized(const struct delta_mask *mask, const uint8_t *next, uint32_t bytes, uint8_t *to)
{
    for (uint32_t w = 0; w < DELTA_WORDS; w++) {
        for (uint64_t bits = mask->word[w]; bits != 0; bits &= bits - 1) {
            memcpy(to, next + (64 * w + (uint32_t)__builtin_ctzll(bits)) * bytes, bytes);
            to += bytes;
        }
    }
}

static void values(const struct delta_mask *mask, const void *next, uint32_t count, uint32_t element_bytes,
                   void *out)
{
    (void)count;
    switch (element_bytes) {
    case 1:
        values_sized(mask, next, 1, out);
        break;
    case 2:
        values_sized(mask, next, 2, out);
        break;
    case 4:
        values_sized(mask, next, 4, out);
        break;
    default:
        values_sized(mask, next, 8, out);
        break;
    }
}

static inline __attribute__((always_inline)) void
expand_sized(const uint64_t *word, uint32_t count, uint32_t bytes, const uint8_t *from, uint8_t *to)
{
    for (uint32_t w = 0; w < (count + 63) / 64; w++) {
        for (uint64_t bits = word[w]; bits != 0; bits &= bits - 1) {
            memcpy(to + (64 * w + (uint32_t)__builtin_ctzll(bits)) * bytes, from, bytes);
            from += bytes;
        }
    }
}

static void expand(const uint64_t *word, uint32_t count, uint32_t element_bytes, const void *from,
                   void *destination)
{
    switch (element_bytes) {
    case 1:
        expand_sized(word, count, 1, from, destination);
        break;
    case 2:
        expand_sized(word, count, 2, from, destination);
        break;
    case 4:
        expand_sized(word, count, 4, from, destination);
        break;
    default:
        expand_sized(word, count, 8, from, destination);
        break;
    }
}

const struct corral_delta_kernels corral_delta_kernels_plain = {
    .name = "plain",
    .supported = always,
    .compare = compare,
    .index16 = index16,
    .index8 = index8,
    .values = values,
    .expand = expand,
};

/* ---- choice ---- */

uint32_t corral_delta_kernels_all(const struct corral_delta_kernels *out[DELTA_KERNELS_MAX])
{
    uint32_t count = 0;
    out[count++] = &corral_delta_kernels_plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (corral_delta_kernels_avx2.supported()) {
        out[count++] = &corral_delta_kernels_avx2;
    }
    if (corral_delta_kernels_avx512.supported()) {
        out[count++] = &corral_delta_kernels_avx512;
    }
#endif
    return count;
}

const struct corral_delta_kernels *corral_delta_kernels(void)
{
    const struct corral_delta_kernels *all[DELTA_KERNELS_MAX];
    return all[corral_delta_kernels_all(all) - 1];
}
