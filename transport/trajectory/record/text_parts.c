#include "transport/trajectory/record/text_parts.h"
#include <math.h>
#include <string.h>

const char *corral_traj_dtype_name(uint32_t dtype)
{
    static const char *const names[] = {"u8",  "i32", "i64",     "f16",     "bf16", "f32",
                                        "f64", "u64", "f8_e4m3", "f8_e5m2", "u32"};
    return dtype < sizeof names / sizeof *names ? names[dtype] : "?";
}

/* A float of `mantissa` bits below `exponent` bits and a sign. `finite`: no infinities, and only all ones is NaN (e4m3). */
static double small_float(uint32_t bits, int exponent_bits, int mantissa_bits, bool finite)
{
    const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    const int exponent = (int)(bits >> mantissa_bits) & top;
    const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    const double sign = (bits >> (exponent_bits + mantissa_bits) & 1) != 0 ? -1 : 1;
    if (exponent == top && !finite) {
        return mantissa == 0 ? sign * HUGE_VAL : NAN;
    }
    if (exponent == top && mantissa == (1u << mantissa_bits) - 1) {
        return NAN;
    }
    const double fraction = (double)mantissa / (double)(1u << mantissa_bits);
    return exponent == 0 ? sign * ldexp(fraction, 1 - bias) : sign * ldexp(1 + fraction, exponent - bias);
}

double corral_traj_tensor_value(const struct corral_traj_tensor *t, uint64_t i)
{
    const uint64_t size = corral_traj_dtype_bytes(t->dtype);
    uint64_t bits = 0;
    float single;
    double twice;
    memcpy(&bits, (const uint8_t *)t->data + i * size, size);
    switch (t->dtype) {
    case CORRAL_TRAJ_I32:
        return (int32_t)bits;
    case CORRAL_TRAJ_I64:
        return (double)(int64_t)bits;
    case CORRAL_TRAJ_F16:
        return small_float((uint32_t)bits, 5, 10, false);
    case CORRAL_TRAJ_BF16:
        return small_float((uint32_t)bits, 8, 7, false);
    case CORRAL_TRAJ_F32:
        memcpy(&single, &bits, sizeof single);
        return single;
    case CORRAL_TRAJ_F64:
        memcpy(&twice, &bits, sizeof twice);
        return twice;
    case CORRAL_TRAJ_F8_E4M3:
        return small_float((uint32_t)bits, 4, 3, true);
    case CORRAL_TRAJ_F8_E5M2:
        return small_float((uint32_t)bits, 5, 2, false);
    default: /* unsigned */
        return (double)bits;
    }
}

uint64_t text_elements(const struct corral_traj_tensor *t)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < t->dims; d++) {
        n *= t->shape[d];
    }
    return n;
}

struct text_column text_column_of(const struct corral_traj_record *r, const char *name, const uint64_t *leads,
                                  uint32_t lead_count)
{
    const struct corral_traj_tensor *t = corral_traj_record_find(r, name);
    uint64_t rows = 1;
    if (t != NULL && t->dims == 1 && t->shape[0] == 1) {
        return (struct text_column){.t = t, .per = 1, .constant = true};
    }
    if (t == NULL || t->dims < lead_count) {
        return (struct text_column){0};
    }
    for (uint32_t d = 0; d < lead_count; d++) {
        if (t->shape[d] != leads[d]) {
            return (struct text_column){0};
        }
        rows *= leads[d];
    }
    return (struct text_column){.t = t, .per = text_elements(t) / rows};
}

double text_column_value(const struct text_column *c, uint64_t row)
{
    return corral_traj_tensor_value(c->t, c->constant ? 0 : row * c->per);
}

/* ---- text of others ---- */

/* Bytes of the character at p; what is no UTF-8 is a character of one byte (`text` tensors are not checked when a record is decoded). */
static size_t character(const uint8_t *p, size_t left, uint32_t *code)
{
    const size_t n = *p >= 0xF0 && *p <= 0xF4  ? 4
                     : *p >= 0xE0 && *p < 0xF0 ? 3
                     : *p >= 0xC2 && *p < 0xE0 ? 2
                                               : 1;
    *code = n == 1 ? *p : *p & (0xFFu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if (i >= left || (p[i] & 0xC0) != 0x80) {
            *code = 0xFFFD;
            return 1;
        }
        *code = *code << 6 | (p[i] & 0x3F);
    }
    if ((n == 1 && *p >= 0x80) || (n == 3 && *code < 0x800) ||
        (n == 4 && (*code < 0x10000 || *code > 0x10FFFF)) || (*code >= 0xD800 && *code <= 0xDFFF)) {
        *code = 0xFFFD;
        return 1;
    }
    return n;
}

/* A terminal would act on it, or it hides or turns what stands around it. */
static bool harmful(uint32_t code)
{
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0x200B && code <= 0x200F) ||
           (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF ||
           code == 0xFFFD || code == 0x61C || (code >= 0xE0000 && code <= 0xE0FFF);
}

/* Columns it takes; ideographs and pictures take two. */
static uint32_t width(uint32_t code)
{
    if (harmful(code)) {
        return 1;
    }
    if ((code >= 0x300 && code <= 0x36F) || (code >= 0xFE00 && code <= 0xFE0F)) {
        return 0;
    }
    return (code >= 0x1100 && code <= 0x115F) || (code >= 0x2E80 && code <= 0xA4CF) ||
                   (code >= 0xAC00 && code <= 0xD7A3) || (code >= 0xF900 && code <= 0xFAFF) ||
                   (code >= 0xFE30 && code <= 0xFE6F) || (code >= 0xFF00 && code <= 0xFF60) ||
                   (code >= 0x1F300 && code <= 0x1FAFF) || (code >= 0x20000 && code <= 0x3FFFD)
               ? 2
               : 1;
}

static void put_character(FILE *out, const uint8_t *p, size_t n, uint32_t code)
{
    if (!harmful(code)) {
        fwrite(p, 1, n, out);
    } else if (code == '\n') {
        fputs("⏎", out);
    } else if (code == '\t') {
        fputc(' ', out);
    } else if (code < 0x20) { /* control pictures */
        const uint8_t picture[] = {0xE2, 0x90, (uint8_t)(0x80 + code)};
        fwrite(picture, 1, sizeof picture, out);
    } else {
        fputs("�", out);
    }
}

/* Bytes that fit; *used: their columns. */
static size_t fitting(const char *text, size_t bytes, uint32_t columns, uint32_t *used)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t at = 0;
    *used = 0;
    while (at < bytes) {
        uint32_t code;
        const size_t n = character(p + at, bytes - at, &code);
        if (width(code) > columns - *used) {
            break;
        }
        *used += width(code);
        at += n;
    }
    return at;
}

static void put_all(FILE *out, const char *text, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t at = 0; at < bytes;) {
        uint32_t code;
        const size_t n = character(p + at, bytes - at, &code);
        put_character(out, p + at, n, code);
        at += n;
    }
}

uint32_t text_put(FILE *out, const char *text, size_t bytes, uint32_t columns)
{
    uint32_t used;
    const size_t whole = fitting(text, bytes, columns, &used);
    if (whole == bytes || columns == 0) {
        put_all(out, text, whole);
        return used;
    }
    put_all(out, text, fitting(text, bytes, columns - 1, &used));
    fputs("…", out);
    return used + 1;
}

size_t text_line(const char *text, size_t bytes, uint32_t columns)
{
    uint32_t used;
    const char *feed = memchr(text, '\n', bytes);
    const size_t line = feed == NULL ? bytes : (size_t)(feed - text);
    const size_t fits = fitting(text, line, columns, &used);
    return fits == 0 && line > 0 ? 1 : fits;
}

void text_put_values(FILE *out, const struct text_column *c, uint64_t row, uint32_t count_max)
{
    const uint64_t n = c->per < count_max ? c->per : count_max;
    for (uint64_t i = 0; i < n; i++) {
        fprintf(out, "%s%.3g", i == 0 ? "" : " ",
                corral_traj_tensor_value(c->t, (c->constant ? 0 : row) * c->per + i));
    }
    if (n < c->per) {
        fputs(" …", out);
    }
}
