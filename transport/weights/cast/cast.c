#include "transport/weights/cast/internal.h"

#include <math.h>

static bool is_f8(enum corral_dtype dtype)
{
    return dtype == CORRAL_DTYPE_F8_E4M3 || dtype == CORRAL_DTYPE_F8_E5M2;
}

static bool is_wide(enum corral_dtype dtype)
{
    return dtype == CORRAL_DTYPE_F32 || dtype == CORRAL_DTYPE_F16 || dtype == CORRAL_DTYPE_BF16;
}

uint32_t corral_cast_kernels_all(const struct corral_cast_kernels *out[CAST_KERNELS_MAX])
{
    uint32_t count = 0;
    out[count++] = &corral_cast_kernels_plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (corral_cast_kernels_avx2.supported()) {
        out[count++] = &corral_cast_kernels_avx2;
    }
#endif
    return count;
}

static const struct corral_cast_kernels *fastest(void)
{
    const struct corral_cast_kernels *all[CAST_KERNELS_MAX];
    return all[corral_cast_kernels_all(all) - 1];
}

enum corral_status corral_cast_check(const struct corral_cast *c, struct corral_error *err)
{
    if (!is_wide(c->from) || !(is_wide(c->to) || is_f8(c->to))) {
        return corral_fail(err, CORRAL_INVALID, "cast from %s to %s: not possible",
                           corral_dtype_name(c->from), corral_dtype_name(c->to));
    }
    if ((uint32_t)c->scaling > CORRAL_CAST_TILES || (c->scaling != CORRAL_CAST_NONE && !is_f8(c->to))) {
        return corral_fail(err, CORRAL_INVALID, "cast to %s with scaling %d: scales are for fp8",
                           corral_dtype_name(c->to), (int)c->scaling);
    }
    uint64_t elements;
    if (__builtin_mul_overflow(c->rows, c->columns, &elements) || elements > INT64_MAX / 8) {
        return corral_fail(err, CORRAL_INVALID, "cast of %llu × %llu elements: too many",
                           (unsigned long long)c->rows, (unsigned long long)c->columns);
    }
    return CORRAL_OK;
}

static uint64_t blocks_of(uint64_t n)
{
    return n / CORRAL_CAST_BLOCK + (n % CORRAL_CAST_BLOCK != 0);
}

uint64_t corral_cast_scale_count(const struct corral_cast *c)
{
    switch (c->scaling) {
    case CORRAL_CAST_GIVEN:
    case CORRAL_CAST_TENSOR:
        return 1;
    case CORRAL_CAST_BLOCKS:
        return c->rows * blocks_of(c->columns);
    case CORRAL_CAST_TILES:
        return blocks_of(c->rows) * blocks_of(c->columns);
    default:
        return 0;
    }
}

float corral_cast_amax(enum corral_dtype from, const void *data, uint64_t count)
{
    return cast_float(fastest()->amax(from, data, count, 0));
}

float corral_cast_scale_of(enum corral_dtype to, float amax)
{
    if (amax == 0) {
        return 1;
    }
    float scale = amax / cast_float(to == CORRAL_DTYPE_F8_E4M3 ? CAST_E4M3_MAX : CAST_E5M2_MAX);
    /* The least normal number: a scale below it would not divide alike on every machine. */
    return scale < 0x1p-126f ? 0x1p-126f : scale;
}

/* Rows [first, end), whose blocks share their scales: first the magnitudes, collected as bits where the scales go, then the elements. Both row by row: tiles one by one
 * would step through memory in strides that fall into the same few cache lines. */
static void cast_band(const struct corral_cast_kernels *k, const struct corral_cast *c, const uint8_t *from,
                      uint8_t *to, uint64_t first, uint64_t end, float *scales)
{
    const uint32_t in = corral_dtype_bytes(c->from), out = corral_dtype_bytes(c->to);
    const uint64_t blocks = blocks_of(c->columns);
    memset(scales, 0, blocks * sizeof *scales);
    for (uint64_t r = first; r < end; r++) {
        for (uint64_t b = 0; b < blocks; b++) {
            uint64_t column = b * CORRAL_CAST_BLOCK, n = CORRAL_MIN(c->columns - column, CORRAL_CAST_BLOCK);
            const uint8_t *row = from + (r * c->columns + column) * in;
            scales[b] = cast_float(k->amax(c->from, row, n, cast_bits(scales[b])));
        }
    }
    for (uint64_t b = 0; b < blocks; b++) {
        scales[b] = corral_cast_scale_of(c->to, scales[b]);
    }
    for (uint64_t r = first; r < end; r++) {
        for (uint64_t b = 0; b < blocks; b++) {
            uint64_t column = b * CORRAL_CAST_BLOCK, n = CORRAL_MIN(c->columns - column, CORRAL_CAST_BLOCK);
            uint64_t at = r * c->columns + column;
            k->row(c->from, c->to, from + at * in, to + at * out, n, scales[b]);
        }
    }
}

enum corral_status corral_cast_run_with(const struct corral_cast_kernels *k, const struct corral_cast *c,
                                        const void *from, void *to, float *scales, struct corral_error *err)
{
    CORRAL_TRY(corral_cast_check(c, err));
    const uint64_t elements = c->rows * c->columns, across = blocks_of(c->columns);
    switch (c->scaling) {
    case CORRAL_CAST_NONE:
        k->row(c->from, c->to, from, to, elements, 1);
        return CORRAL_OK;
    case CORRAL_CAST_GIVEN:
        if (!isfinite(scales[0]) || scales[0] < 0x1p-126f) {
            return corral_fail(err, CORRAL_INVALID,
                               "cast with a scale of %g: it has to be a normal number above 0",
                               (double)scales[0]);
        }
        k->row(c->from, c->to, from, to, elements, scales[0]);
        return CORRAL_OK;
    case CORRAL_CAST_TENSOR:
        scales[0] = corral_cast_scale_of(c->to, cast_float(k->amax(c->from, from, elements, 0)));
        k->row(c->from, c->to, from, to, elements, scales[0]);
        return CORRAL_OK;
    default:
        break;
    }
    const uint64_t band = c->scaling == CORRAL_CAST_TILES ? CORRAL_CAST_BLOCK : 1;
    for (uint64_t r = 0; r < c->rows; r += band) {
        cast_band(k, c, from, to, r, CORRAL_MIN(c->rows, r + band), scales + r / band * across);
    }
    return CORRAL_OK;
}

enum corral_status corral_cast_run(const struct corral_cast *c, const void *from, void *to, float *scales,
                                   struct corral_error *err)
{
    return corral_cast_run_with(fastest(), c, from, to, scales, err);
}

static float scale_at(const struct corral_cast *c, const float *scales, uint64_t row, uint64_t column)
{
    switch (c->scaling) {
    case CORRAL_CAST_NONE:
        return 1;
    case CORRAL_CAST_BLOCKS:
        return scales[row * blocks_of(c->columns) + column / CORRAL_CAST_BLOCK];
    case CORRAL_CAST_TILES:
        return scales[row / CORRAL_CAST_BLOCK * blocks_of(c->columns) + column / CORRAL_CAST_BLOCK];
    default:
        return scales[0];
    }
}

enum corral_status corral_cast_back(const struct corral_cast *c, const void *to, const float *scales,
                                    float *out, struct corral_error *err)
{
    CORRAL_TRY(corral_cast_check(c, err));
    for (uint64_t r = 0; r < c->rows; r++) {
        for (uint64_t i = 0; i < c->columns; i++) {
            uint64_t at = r * c->columns + i;
            out[at] = corral_cast_read(c->to, to, at) * scale_at(c, scales, r, i);
        }
    }
    return CORRAL_OK;
}

struct corral_digest corral_cast_digest(const struct corral_cast *c, const void *to, const float *scales)
{
    struct corral_digest both[2] = {
        corral_digest_of(to, c->rows * c->columns * corral_dtype_bytes(c->to)),
        corral_digest_of(scales, corral_cast_scale_count(c) * sizeof *scales),
    };
    return corral_digest_of(both, sizeof both);
}
