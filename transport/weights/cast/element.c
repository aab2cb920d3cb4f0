/* Elements one by one: the definition, and the version for any processor. */
#include "transport/weights/cast/internal.h"

/* ---- reading ---- */

static float read_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7FFF;
    if (magnitude > 0x7C00) { /* a NaN keeps its upper bits and is made quiet */
        return cast_float(sign | 0x7FC00000u | magnitude << 13);
    }
    if (magnitude == 0x7C00) {
        return cast_float(sign | CAST_INF);
    }
    if (magnitude < 0x0400) { /* subnormal: a multiple of 2^-24 */
        float x = (float)magnitude * 0x1p-24f;
        return cast_float(sign | cast_bits(x));
    }
    return cast_float(sign | ((magnitude << 13) + (112u << 23)));
}

static float read_f8(uint8_t q, uint32_t mantissa, uint32_t bias)
{
    uint32_t sign = (uint32_t)(q & 0x80) << 24, magnitude = q & 0x7F, ones = (1u << mantissa) - 1;
    bool e4m3 = mantissa == 3;
    if (e4m3 ? magnitude == 0x7F : magnitude > 0x7C) {
        return cast_float(sign | 0x7FC00000u);
    }
    if (!e4m3 && magnitude == 0x7C) {
        return cast_float(sign | CAST_INF);
    }
    if (magnitude <= ones) { /* subnormal: a multiple of 2^(1 - bias - mantissa) */
        float unit = cast_float((127 + 1 - bias - mantissa) << 23);
        return cast_float(sign | cast_bits((float)magnitude * unit));
    }
    return cast_float(sign | ((magnitude << (23 - mantissa)) + ((127 - bias) << 23)));
}

float corral_cast_read(enum corral_dtype from, const void *data, uint64_t i)
{
    uint16_t half;
    uint32_t word;
    switch (from) {
    case CORRAL_DTYPE_F32:
        memcpy(&word, (const uint8_t *)data + 4 * i, 4);
        return cast_float(word);
    case CORRAL_DTYPE_BF16:
        memcpy(&half, (const uint8_t *)data + 2 * i, 2);
        return cast_float((uint32_t)half << 16);
    case CORRAL_DTYPE_F16:
        memcpy(&half, (const uint8_t *)data + 2 * i, 2);
        return read_f16(half);
    case CORRAL_DTYPE_F8_E4M3:
        return read_f8(((const uint8_t *)data)[i], 3, 7);
    default:
        return read_f8(((const uint8_t *)data)[i], 2, 15);
    }
}

/* ---- writing ---- */

/* Drop `drop` bits of u, to nearest, ties to even. */
static uint32_t round_off(uint32_t u, uint32_t drop)
{
    return (u + (1u << (drop - 1)) - 1 + (u >> drop & 1)) >> drop;
}

static uint16_t write_bf16(float x)
{
    uint32_t u = cast_bits(x);
    return (u & 0x7FFFFFFF) > CAST_INF ? (uint16_t)(u >> 16 | 0x40) : (uint16_t)round_off(u, 16);
}

static uint16_t write_f16(float x)
{
    uint32_t u = cast_bits(x), sign = u >> 16 & 0x8000;
    u &= 0x7FFFFFFF;
    if (u > CAST_INF) {
        return (uint16_t)(sign | 0x7E00 | (u >> 13 & 0x3FF));
    }
    if (u <
        0x38800000u) { /* below 2^-14: a multiple of 2^-24; adding 0.5 leaves it, rounded, in the low bits */
        return (uint16_t)(sign | (cast_bits(cast_float(u) + 0.5f) - cast_bits(0.5f)));
    }
    uint32_t rounded = round_off(u, 13) - (112u << 10);
    return (uint16_t)(sign | CORRAL_MIN(rounded, 0x7C00u));
}

/* Saturating: what is above the largest number, infinity included, becomes the largest. */
static uint8_t write_f8(float x, uint32_t mantissa, uint32_t bias, uint32_t largest)
{
    uint32_t u = cast_bits(x), sign = u >> 24 & 0x80;
    u &= 0x7FFFFFFF;
    if (u > CAST_INF) {
        return (uint8_t)(sign | 0x7F);
    }
    u = CORRAL_MIN(u, largest);
    if (u < (128 - bias) << 23) { /* below the least normal number: the same trick */
        uint32_t magic = (127 + 23 + 1 - bias - mantissa) << 23;
        return (uint8_t)(sign | (cast_bits(cast_float(u) + cast_float(magic)) - magic));
    }
    return (uint8_t)(sign | (round_off(u, 23 - mantissa) - ((127 - bias) << mantissa)));
}

void corral_cast_write(enum corral_dtype to, void *data, uint64_t i, float value)
{
    uint16_t half;
    uint32_t word;
    switch (to) {
    case CORRAL_DTYPE_F32:
        word = cast_bits(value);
        memcpy((uint8_t *)data + 4 * i, &word, 4);
        break;
    case CORRAL_DTYPE_BF16:
        half = write_bf16(value);
        memcpy((uint8_t *)data + 2 * i, &half, 2);
        break;
    case CORRAL_DTYPE_F16:
        half = write_f16(value);
        memcpy((uint8_t *)data + 2 * i, &half, 2);
        break;
    case CORRAL_DTYPE_F8_E4M3:
        ((uint8_t *)data)[i] = write_f8(value, 3, 7, CAST_E4M3_MAX);
        break;
    default:
        ((uint8_t *)data)[i] = write_f8(value, 2, 15, CAST_E5M2_MAX);
        break;
    }
}

/* ---- rows ---- */

static bool always(void)
{
    return true;
}

static uint32_t amax(enum corral_dtype from, const void *row, uint64_t count, uint32_t least)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t u = cast_bits(corral_cast_read(from, row, i)) & 0x7FFFFFFF;
        if (u < CAST_INF && u > least) {
            least = u;
        }
    }
    return least;
}

static void convert_row(enum corral_dtype from, enum corral_dtype to, const void *in, void *out,
                        uint64_t count, float scale)
{
    for (uint64_t i = 0; i < count; i++) {
        float x = corral_cast_read(from, in, i);
        corral_cast_write(to, out, i, scale == 1.0f ? x : x / scale);
    }
}

const struct corral_cast_kernels corral_cast_kernels_plain = {
    .name = "plain",
    .supported = always,
    .amax = amax,
    .row = convert_row,
};
