#include "rollout/env_host/vec_scan.h"
#include <string.h>

/* Sign and exponent arithmetic on the bits: x + 2^23 carries into the sign bit exactly when the exponent is all ones. */
static inline uint32_t nonfinite_bits(uint32_t bits)
{
    return (bits & 0x7fffffffu) + 0x00800000u;
}

bool corral_scan_nonfinite(const float *x, size_t n)
{
    uint32_t seen = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        seen |= nonfinite_bits(bits);
    }
    return seen >> 31;
}

bool corral_scan_convert(enum corral_env_dtype from, const void *in, float *out, size_t n)
{
    switch (from) {
    case CORRAL_ENV_U8:
        for (size_t i = 0; i < n; i++) {
            out[i] = ((const uint8_t *)in)[i];
        }
        return false;
    case CORRAL_ENV_I32:
        for (size_t i = 0; i < n; i++) {
            out[i] = (float)((const int32_t *)in)[i];
        }
        return false;
    case CORRAL_ENV_F64:
        for (size_t i = 0; i < n; i++) {
            out[i] = (float)((const double *)in)[i];
        }
        return corral_scan_nonfinite(out, n);
    case CORRAL_ENV_F32:
        break;
    }
    memcpy(out, in, n * sizeof *out);
    return corral_scan_nonfinite(out, n);
}

bool corral_scan_any_i32(const int32_t *x, size_t n)
{
    int32_t seen = 0;
    for (size_t i = 0; i < n; i++) {
        seen |= x[i];
    }
    return seen != 0;
}

size_t corral_scan_flagged(const uint8_t *a, const uint8_t *b, size_t n, uint32_t *out)
{
    size_t found = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t wa, wb;
        memcpy(&wa, a + i, sizeof wa);
        memcpy(&wb, b + i, sizeof wb);
        if ((wa | wb) == 0) {
            continue;
        }
        for (size_t k = i; k < i + 8; k++) {
            out[found] = (uint32_t)k;
            found += (a[k] | b[k]) != 0;
        }
    }
    for (; i < n; i++) {
        if (a[i] | b[i]) {
            out[found++] = (uint32_t)i;
        }
    }
    return found;
}

bool corral_scan_out_of_range(const int32_t *action, size_t n, uint32_t choices)
{
    uint32_t seen = 0, last = choices - 1;
    for (size_t i = 0; i < n; i++) {
        uint32_t a = (uint32_t)action[i];
        seen |= a | (last - a); /* one of them has its sign bit set unless 0 <= a <= last */
    }
    return seen >> 31;
}

bool corral_scan_clip(const float *in, float *out, size_t rows, uint32_t components, const float *low,
                      const float *high)
{
    for (size_t row = 0; row < rows; row++) {
        for (uint32_t c = 0; c < components; c++) {
            float x = in[row * components + c];
            x = x < low[c] ? low[c] : x;
            out[row * components + c] = x > high[c] ? high[c] : x;
        }
    }
    return corral_scan_nonfinite(in, rows * components);
}

void corral_scan_increment(uint32_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i]++;
    }
}

void corral_scan_active(const uint8_t *active, const uint8_t *done, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = (uint8_t)((active[i] != 0) & (done[i] == 0));
    }
}
