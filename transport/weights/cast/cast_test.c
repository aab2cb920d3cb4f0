#include "tests/check.h"
#include "transport/weights/cast/internal.h"

#include "base/rng.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define GUARD 0xA5

static const enum corral_dtype wide[] = {CORRAL_DTYPE_F32, CORRAL_DTYPE_F16, CORRAL_DTYPE_BF16};
static const enum corral_dtype all_to[] = {CORRAL_DTYPE_F32, CORRAL_DTYPE_F16, CORRAL_DTYPE_BF16,
                                           CORRAL_DTYPE_F8_E4M3, CORRAL_DTYPE_F8_E5M2};

/* ---- the definition once more, by table and search ---- */

struct format {
    enum corral_dtype dtype;
    int exponent_bits, mantissa_bits, bias;
    uint32_t largest; /* code of the largest finite number */
    bool saturates;
    uint32_t codes; /* of one sign */
    double *value;
};

static struct format formats[] = {
    {CORRAL_DTYPE_F8_E4M3, 4, 3, 7, 0x7E, true, 0x80, NULL},
    {CORRAL_DTYPE_F8_E5M2, 5, 2, 15, 0x7B, true, 0x80, NULL},
    {CORRAL_DTYPE_F16, 5, 10, 15, 0x7BFF, false, 0x8000, NULL},
    {CORRAL_DTYPE_BF16, 8, 7, 127, 0x7F7F, false, 0x8000, NULL},
};

static int make_tables(void **state)
{
    (void)state;
    for (uint32_t f = 0; f < CORRAL_COUNT_OF(formats); f++) {
        struct format *t = &formats[f];
        t->value = malloc(t->codes * sizeof *t->value);
        if (!t->value) {
            return -1;
        }
        for (uint32_t code = 0; code < t->codes; code++) {
            uint32_t fraction = code & ((1u << t->mantissa_bits) - 1);
            int exponent = (int)(code >> t->mantissa_bits);
            double whole = exponent ? (double)(fraction + (1u << t->mantissa_bits)) : (double)fraction;
            t->value[code] = ldexp(whole, (exponent ? exponent : 1) - t->bias - t->mantissa_bits);
        }
    }
    return 0;
}

static int drop_tables(void **state)
{
    (void)state;
    for (uint32_t f = 0; f < CORRAL_COUNT_OF(formats); f++) {
        free(formats[f].value);
    }
    return 0;
}

static const struct format *format_of(enum corral_dtype dtype)
{
    for (uint32_t f = 0; f < CORRAL_COUNT_OF(formats); f++) {
        if (formats[f].dtype == dtype) {
            return &formats[f];
        }
    }
    return NULL;
}

/* Code of the number nearest to x (not NaN); of two equally near ones the even code. */
static uint32_t nearest(const struct format *t, double x)
{
    uint32_t sign = signbit(x) ? t->codes : 0, low = 0, high = t->largest;
    x = fabs(x);
    double step = t->value[t->largest] - t->value[t->largest - 1];
    if (t->saturates ? x >= t->value[t->largest] : x >= t->value[t->largest] + step / 2) {
        return sign | (t->largest + (t->saturates ? 0 : 1));
    }
    if (x >= t->value[t->largest]) {
        return sign | t->largest;
    }
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        *(t->value[middle] <= x ? &low : &high) = middle;
    }
    double down = x - t->value[low], up = t->value[high] - x;
    return sign | (down < up || (down == up && low % 2 == 0) ? low : high);
}

static uint32_t code_at(enum corral_dtype dtype, const uint8_t *data, uint64_t i)
{
    uint32_t code = 0;
    memcpy(&code, data + i * corral_dtype_bytes(dtype), corral_dtype_bytes(dtype));
    return code;
}

static void check_f32(const float *x, uint32_t count)
{
    const struct corral_cast_kernels *all[CAST_KERNELS_MAX];
    uint32_t kernels = corral_cast_kernels_all(all);
    for (uint32_t k = 0; k < kernels; k++) {
        for (uint32_t f = 0; f < CORRAL_COUNT_OF(formats); f++) {
            uint8_t out[4096 * 2];
            assert_true(count <= 4096);
            all[k]->row(CORRAL_DTYPE_F32, formats[f].dtype, x, out, count, 1);
            for (uint32_t i = 0; i < count; i++) {
                uint32_t code = code_at(formats[f].dtype, out, i);
                if (!isnan(x[i]) && code != nearest(&formats[f], (double)x[i])) {
                    fail_msg("%s: %a to %s: %#x instead of %#x", all[k]->name, (double)x[i],
                             corral_dtype_name(formats[f].dtype), code, nearest(&formats[f], (double)x[i]));
                }
            }
        }
    }
}

/* ---- tests ---- */

static void f32_becomes_the_nearest_number(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    static float x[4096];
    for (uint32_t round = 0; round < 60; round++) {
        for (uint32_t i = 0; i < 4096; i++) {
            x[i] = cast_float((uint32_t)corral_rng_next(&rng));
            if (round % 2) { /* around what the formats can say */
                x[i] = ldexpf((float)corral_rng_normal(&rng), (int)corral_rng_below(&rng, 50) - 30);
            }
        }
        check_f32(x, 4096);
    }
}

/* Every number, every middle between two, and the numbers next to them. */
static void borders_between_numbers_are_exact(void **state)
{
    (void)state;
    for (uint32_t f = 0; f < CORRAL_COUNT_OF(formats); f++) {
        const struct format *t = &formats[f];
        for (uint32_t code = 0; code<t->largest; code += t->codes> 0x80 ? 13 : 1) {
            float x[8], middle = (float)((t->value[code] + t->value[code + 1]) / 2);
            x[0] = (float)t->value[code];
            x[1] = nextafterf(x[0], INFINITY);
            x[2] = middle;
            x[3] = nextafterf(middle, 0);
            x[4] = nextafterf(middle, INFINITY);
            for (uint32_t i = 5; i < 8; i++) {
                x[i] = -x[i - 4];
            }
            check_f32(x, 8);
        }
    }
    check_f32((const float[]){448, 449, 464, 465, 1e6f, INFINITY, -INFINITY, -0.0f, 57344, 61440, 65504,
                              65519, 65520, 65536, 3.4e38f, 3.399e38f},
              16);
}

static void every_half_word_is_read_exactly(void **state)
{
    (void)state;
    const struct corral_cast_kernels *all[CAST_KERNELS_MAX];
    uint32_t kernels = corral_cast_kernels_all(all);
    static uint16_t in[65536];
    static float out[65536];
    for (uint32_t i = 0; i < 65536; i++) {
        in[i] = (uint16_t)i;
    }
    for (uint32_t k = 0; k < kernels; k++) {
        for (uint32_t f = 2; f < 4; f++) {
            const struct format *t = &formats[f];
            all[k]->row(t->dtype, CORRAL_DTYPE_F32, in, out, 65536, 1);
            for (uint32_t i = 0; i < 65536; i++) {
                uint32_t code = i & 0x7FFF;
                double sign = i & 0x8000 ? -1 : 1;
                if (code > t->largest + 1) {
                    assert_true(isnan(out[i]) && !signbit(out[i]) == !(i & 0x8000));
                } else if (code == t->largest + 1) {
                    assert_true(isinf(out[i]));
                } else {
                    double value = sign * t->value[code];
                    assert_true((double)out[i] == value && !signbit(out[i]) == !(i & 0x8000));
                }
            }
        }
    }
}

static void every_fp8_is_read_back_as_itself(void **state)
{
    (void)state;
    for (uint32_t f = 0; f < 2; f++) {
        const struct format *t = &formats[f];
        for (uint32_t i = 0; i < 256; i++) {
            uint8_t q = (uint8_t)i, again;
            float x = corral_cast_read(t->dtype, &q, 0);
            if ((i & 0x7F) <= t->largest) {
                assert_true((double)x == (i & 0x80 ? -1 : 1) * t->value[i & 0x7F]);
                corral_cast_write(t->dtype, &again, 0, x);
                assert_int_equal(again, i);
            } else {
                assert_true(t->dtype == CORRAL_DTYPE_F8_E5M2 && (i & 0x7F) == 0x7C ? isinf(x) : isnan(x));
            }
        }
    }
}

static void nan_stays_nan_with_its_sign(void **state)
{
    (void)state;
    const struct corral_cast_kernels *all[CAST_KERNELS_MAX];
    uint32_t kernels = corral_cast_kernels_all(all);
    float in[8];
    for (uint32_t i = 0; i < 8; i++) {
        in[i] = cast_float((i % 2 ? 0xFFC00000u : 0x7FC00000u) | i << 12);
    }
    static const uint32_t quiet[] = {0x7F, 0x7F, 0x7E00, 0x7FC0};
    for (uint32_t k = 0; k < kernels; k++) {
        for (uint32_t f = 0; f < CORRAL_COUNT_OF(formats); f++) {
            uint8_t out[16];
            all[k]->row(CORRAL_DTYPE_F32, formats[f].dtype, in, out, 8, 3);
            for (uint32_t i = 0; i < 8; i++) {
                uint32_t code = code_at(formats[f].dtype, out, i);
                assert_int_equal(code & quiet[f], quiet[f]);
                assert_int_equal(code / formats[f].codes, i % 2);
            }
        }
    }
}

struct load {
    struct corral_cast cast;
    uint8_t *from, *to, *other;
    float *scales, *other_scales, *back;
    uint64_t elements;
};

static struct load make(struct corral_cast cast, struct corral_rng *rng)
{
    struct load l = {.cast = cast, .elements = cast.rows * cast.columns};
    uint64_t in = l.elements * corral_dtype_bytes(cast.from), out = l.elements * corral_dtype_bytes(cast.to);
    uint64_t scales = corral_cast_scale_count(&cast) * sizeof(float);
    l.from = malloc(in + 1);
    l.to = calloc(1, out + 1);
    l.other = calloc(1, out + 1);
    l.scales = calloc(1, scales + 4);
    l.other_scales = calloc(1, scales + 4);
    l.back = malloc(l.elements * sizeof *l.back + 4);
    assert_true(l.from && l.to && l.other && l.scales && l.other_scales && l.back);
    int exponent = (int)corral_rng_below(rng, 40) - 20;
    for (uint64_t i = 0; i < l.elements; i++) {
        float x = ldexpf((float)corral_rng_normal(rng), exponent);
        if (corral_rng_below(rng, 200) == 0) {
            x = cast_float((uint32_t)corral_rng_next(rng));
        }
        if (isnan(x) || corral_rng_below(rng, 30) == 0) {
            x = corral_rng_below(rng, 2) ? 0.0f : -0.0f;
        }
        corral_cast_write(cast.from, l.from, i, x);
    }
    return l;
}

static void drop(struct load *l)
{
    free(l->from);
    free(l->to);
    free(l->other);
    free(l->scales);
    free(l->other_scales);
    free(l->back);
}

static struct corral_cast some_cast(struct corral_rng *rng)
{
    struct corral_cast c = {.from = wide[corral_rng_below(rng, 3)],
                            .to = all_to[corral_rng_below(rng, 5)],
                            .rows = 1 + corral_rng_below(rng, 300),
                            .columns = 1 + corral_rng_below(rng, 300)};
    if (c.to == CORRAL_DTYPE_F8_E4M3 || c.to == CORRAL_DTYPE_F8_E5M2) {
        static const enum corral_cast_scaling ways[] = {CORRAL_CAST_NONE, CORRAL_CAST_TENSOR,
                                                        CORRAL_CAST_BLOCKS, CORRAL_CAST_TILES};
        c.scaling = ways[corral_rng_below(rng, 4)];
    }
    return c;
}

static void vectors_and_scalars_make_the_same_bytes(void **state)
{
    (void)state;
    struct corral_error err = {0};
    const struct corral_cast_kernels *all[CAST_KERNELS_MAX];
    uint32_t kernels = corral_cast_kernels_all(all);
    for (uint64_t seed = 0; seed < 150; seed++) {
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        struct load l = make(some_cast(&rng), &rng);
        uint64_t bytes = l.elements * corral_dtype_bytes(l.cast.to);
        check_ok(corral_cast_run_with(all[0], &l.cast, l.from, l.to, l.scales, &err));
        for (uint32_t k = 1; k < kernels; k++) {
            l.other[bytes] = GUARD;
            check_ok(corral_cast_run_with(all[k], &l.cast, l.from, l.other, l.other_scales, &err));
            assert_memory_equal(l.to, l.other, bytes);
            assert_memory_equal(l.scales, l.other_scales, corral_cast_scale_count(&l.cast) * sizeof(float));
            assert_int_equal(l.other[bytes], GUARD);
            assert_true(corral_digest_equal(corral_cast_digest(&l.cast, l.to, l.scales),
                                            corral_cast_digest(&l.cast, l.other, l.other_scales)));
        }
        drop(&l);
    }
}

/* Block sizes by formula, over the plain elements. */
static float naive_scale(const struct load *l, uint64_t row, uint64_t column)
{
    uint64_t r0 = 0, r1 = l->cast.rows, c0 = 0, c1 = l->cast.columns;
    if (l->cast.scaling != CORRAL_CAST_TENSOR) {
        c0 = column / 128 * 128;
        c1 = CORRAL_MIN(c1, c0 + 128);
        r0 = l->cast.scaling == CORRAL_CAST_TILES ? row / 128 * 128 : row;
        r1 = l->cast.scaling == CORRAL_CAST_TILES ? CORRAL_MIN(r1, r0 + 128) : row + 1;
    }
    float most = 0;
    for (uint64_t r = r0; r < r1; r++) {
        for (uint64_t c = c0; c < c1; c++) {
            float x = fabsf(corral_cast_read(l->cast.from, l->from, r * l->cast.columns + c));
            most = isfinite(x) && x > most ? x : most;
        }
    }
    float largest = l->cast.to == CORRAL_DTYPE_F8_E4M3 ? 448.0f : 57344.0f;
    return most == 0 ? 1 : fmaxf(most / largest, 0x1p-126f);
}

static void scales_cover_their_blocks_and_errors_stay_within_half_a_step(void **state)
{
    (void)state;
    struct corral_error err = {0};
    for (uint64_t seed = 500; seed < 540; seed++) {
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        struct corral_cast c = some_cast(&rng);
        c.to = seed % 2 ? CORRAL_DTYPE_F8_E4M3 : CORRAL_DTYPE_F8_E5M2;
        c.scaling = (enum corral_cast_scaling)(CORRAL_CAST_TENSOR + seed % 3);
        struct load l = make(c, &rng);
        check_ok(corral_cast_run(&c, l.from, l.to, l.scales, &err));
        check_ok(corral_cast_back(&c, l.to, l.scales, l.back, &err));
        for (uint64_t i = 0; i < l.elements; i += 1 + l.elements / 300) {
            float scale = naive_scale(&l, i / c.columns, i % c.columns);
            float x = corral_cast_read(c.from, l.from, i);
            uint32_t expected = nearest(format_of(c.to), (double)(x / scale));
            assert_int_equal(code_at(c.to, l.to, i), expected);
            if (isfinite(x)) {
                double step = fmax(fabs((double)x) * (seed % 2 ? 0x1p-4 : 0x1p-3),
                                   (double)scale * (seed % 2 ? 0x1p-10 : 0x1p-17));
                assert_true(fabs((double)l.back[i] - (double)x) <= step * 1.0001);
            }
        }
        drop(&l);
    }
}

static void a_block_of_zeros_has_scale_one(void **state)
{
    (void)state;
    struct corral_error err = {0};
    uint16_t in[256] = {0};
    uint8_t out[256];
    float scales[2];
    in[130] = 0x8000;
    in[5] = 0x3F80; /* 1 */
    struct corral_cast c = {CORRAL_DTYPE_BF16, CORRAL_DTYPE_F8_E4M3, CORRAL_CAST_BLOCKS, 1, 256};
    check_ok(corral_cast_run(&c, in, out, scales, &err));
    assert_true(scales[0] == 1.0f / 448.0f && scales[1] == 1.0f);
    assert_int_equal(out[5], 0x7E);
    assert_int_equal(out[130], 0x80);
}

static void parts_with_the_agreed_scale_make_the_whole(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_rng rng;
    corral_rng_seed(&rng, 77);
    struct corral_cast c = {CORRAL_DTYPE_BF16, CORRAL_DTYPE_F8_E4M3, CORRAL_CAST_TENSOR, 10, 100};
    struct load l = make(c, &rng);
    check_ok(corral_cast_run(&c, l.from, l.to, l.scales, &err));
    float a = corral_cast_amax(c.from, l.from, 333), b = corral_cast_amax(c.from, l.from + 666, 667);
    float scale = corral_cast_scale_of(c.to, fmaxf(a, b));
    struct corral_cast part = {c.from, c.to, CORRAL_CAST_GIVEN, 1, 333};
    check_ok(corral_cast_run(&part, l.from, l.other, &scale, &err));
    part.columns = 667;
    check_ok(corral_cast_run(&part, l.from + 666, l.other + 333, &scale, &err));
    assert_memory_equal(l.to, l.other, 1000);
    drop(&l);
}

static void refuses_what_cannot_be_cast(void **state)
{
    (void)state;
    struct corral_error err = {0};
    uint8_t buffer[64] = {0};
    float bad = NAN;
    const struct corral_cast casts[] = {
        {CORRAL_DTYPE_U8, CORRAL_DTYPE_F32, CORRAL_CAST_NONE, 1, 1},
        {CORRAL_DTYPE_F8_E4M3, CORRAL_DTYPE_F32, CORRAL_CAST_NONE, 1, 1},
        {CORRAL_DTYPE_F32, CORRAL_DTYPE_I64, CORRAL_CAST_NONE, 1, 1},
        {CORRAL_DTYPE_F32, CORRAL_DTYPE_BF16, CORRAL_CAST_TENSOR, 1, 1},
        {CORRAL_DTYPE_F32, CORRAL_DTYPE_F8_E4M3, (enum corral_cast_scaling)9, 1, 1},
        {CORRAL_DTYPE_F32, CORRAL_DTYPE_F8_E4M3, CORRAL_CAST_NONE, UINT64_MAX, 2},
        {CORRAL_DTYPE_F32, CORRAL_DTYPE_F8_E4M3, CORRAL_CAST_GIVEN, 1, 1},
    };
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(casts); i++) {
        check_status(corral_cast_run(&casts[i], buffer, buffer + 32, &bad, &err), CORRAL_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_becomes_the_nearest_number),
        cmocka_unit_test(borders_between_numbers_are_exact),
        cmocka_unit_test(every_half_word_is_read_exactly),
        cmocka_unit_test(every_fp8_is_read_back_as_itself),
        cmocka_unit_test(nan_stays_nan_with_its_sign),
        cmocka_unit_test(vectors_and_scalars_make_the_same_bytes),
        cmocka_unit_test(scales_cover_their_blocks_and_errors_stay_within_half_a_step),
        cmocka_unit_test(a_block_of_zeros_has_scale_one),
        cmocka_unit_test(parts_with_the_agreed_scale_make_the_whole),
        cmocka_unit_test(refuses_what_cannot_be_cast),
    };
    return cmocka_run_group_tests(tests, make_tables, drop_tables);
}
