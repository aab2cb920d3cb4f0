#include "transport/trajectory/record/map_read.h"
#include "base/mpack.h"
#include <string.h>

static size_t left(const struct map_reader *r)
{
    return (size_t)(r->end - r->at);
}

/* Big-endian, 1, 2, 4 or 8 bytes. */
static bool take(struct map_reader *r, size_t bytes, uint64_t *out)
{
    uint64_t v = 0;
    if (left(r) < bytes) {
        return false;
    }
    memcpy(&v, r->at, bytes);
    *out = __builtin_bswap64(v) >> (64 - 8 * bytes);
    r->at += bytes;
    return true;
}

bool map_read_u64(struct map_reader *r, uint64_t *out)
{
    if (r->at == r->end) {
        return false;
    }
    const uint8_t b = *r->at++;
    if (b < 0x80) {
        *out = b;
        return true;
    }
    switch (b) {
    case 0xCC:
        return take(r, 1, out);
    case 0xCD:
        return take(r, 2, out);
    case 0xCE:
        return take(r, 4, out);
    case 0xCF:
        return take(r, 8, out);
    case 0xD0: /* signed forms of what is not negative */
        return take(r, 1, out) && *out <= INT8_MAX;
    case 0xD1:
        return take(r, 2, out) && *out <= INT16_MAX;
    case 0xD2:
        return take(r, 4, out) && *out <= INT32_MAX;
    case 0xD3:
        return take(r, 8, out) && *out <= INT64_MAX;
    default:
        return false;
    }
}

static bool read_negative(struct map_reader *r, double *out)
{
    uint64_t v;
    const uint8_t b = *r->at++;
    if (b >= 0xE0) {
        *out = (int8_t)b;
        return true;
    }
    if (b < 0xD0 || b > 0xD3 || !take(r, (size_t)1 << (b - 0xD0), &v)) {
        return false;
    }
    *out = b == 0xD0   ? (double)(int8_t)v
           : b == 0xD1 ? (double)(int16_t)v
           : b == 0xD2 ? (double)(int32_t)v
                       : (double)(int64_t)v;
    return true;
}

bool map_read_f64(struct map_reader *r, double *out)
{
    uint64_t bits;
    if (r->at == r->end) {
        return false;
    }
    if (*r->at == 0xCB) {
        r->at++;
        if (!take(r, 8, &bits)) {
            return false;
        }
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    if (*r->at == 0xCA) {
        r->at++;
        if (!take(r, 4, &bits)) {
            return false;
        }
        const uint32_t word = (uint32_t)bits;
        float single;
        memcpy(&single, &word, sizeof single);
        *out = single;
        return true;
    }
    if (*r->at >= 0xD0) {
        return read_negative(r, out);
    }
    const bool whole = map_read_u64(r, &bits);
    *out = whole ? (double)bits : 0;
    return whole;
}

bool map_read_str(struct map_reader *r, const char **text, size_t *bytes)
{
    uint64_t n;
    if (r->at == r->end) {
        return false;
    }
    const uint8_t b = *r->at++;
    if ((b & 0xE0) == 0xA0) {
        n = b & 0x1F;
    } else if (b < 0xD9 || b > 0xDB || !take(r, (size_t)1 << (b - 0xD9), &n)) {
        return false;
    }
    if (n > left(r)) {
        return false;
    }
    *text = (const char *)r->at;
    *bytes = n;
    r->at += n;
    return true;
}

/* Maps and arrays have a short form and two with a count behind them. */
static bool read_count(struct map_reader *r, uint8_t short_form, uint8_t long_form, uint32_t *count)
{
    uint64_t n;
    if (r->at == r->end) {
        return false;
    }
    const uint8_t b = *r->at++;
    if ((b & 0xF0) == short_form) {
        n = b & 0x0F;
    } else if ((b != long_form && b != long_form + 1) || !take(r, (size_t)2 << (b - long_form), &n)) {
        return false;
    }
    *count = (uint32_t)n;
    return n <= left(r); /* every element takes a byte at least */
}

bool map_read_array(struct map_reader *r, uint32_t *count)
{
    return read_count(r, 0x90, 0xDC, count);
}

bool map_read_map(struct map_reader *r, uint32_t *pairs)
{
    return read_count(r, 0x80, 0xDE, pairs) && *pairs <= left(r) / 2;
}

/* Body of a value that is neither map nor array, its first byte taken already. */
static bool skip_scalar(struct map_reader *r, uint8_t b)
{
    uint64_t n = 0;
    if (b < 0x80 || b >= 0xE0 || b == 0xC0 || b == 0xC2 || b == 0xC3) {
        return true;
    }
    if ((b & 0xE0) == 0xA0) {
        n = b & 0x1F;
    } else if (b >= 0xC4 && b <= 0xC6) { /* bin */
        if (!take(r, (size_t)1 << (b - 0xC4), &n)) {
            return false;
        }
    } else if (b >= 0xD9 && b <= 0xDB) { /* str */
        if (!take(r, (size_t)1 << (b - 0xD9), &n)) {
            return false;
        }
    } else if (b == 0xCA || b == 0xCB) {
        n = (uint64_t)4 << (b - 0xCA);
    } else if (b >= 0xCC && b <= 0xD3) {
        n = (uint64_t)1 << ((b - 0xCC) & 3);
    } else { /* extensions, and 0xC1, which is never used */
        return false;
    }
    if (n > left(r)) {
        return false;
    }
    r->at += n;
    return true;
}

struct level {
    uint32_t left; /* elements, or keys and values */
    bool map;
};

bool map_read_skip(struct map_reader *r, uint32_t depth)
{
    struct level levels[CORRAL_MPACK_DEPTH_MAX];
    uint32_t open = 0;
    bool key = false;
    do {
        const char *text;
        size_t bytes;
        uint32_t count;
        if (r->at == r->end) {
            return false;
        }
        const uint8_t b = *r->at;
        const bool map = (b & 0xF0) == 0x80 || b == 0xDE || b == 0xDF;
        const bool array = (b & 0xF0) == 0x90 || b == 0xDC || b == 0xDD;
        if (key) {
            if (!map_read_str(r, &text, &bytes)) {
                return false;
            }
        } else if (map || array) {
            if (depth + open >= CORRAL_MPACK_DEPTH_MAX ||
                !(map ? map_read_map(r, &count) : map_read_array(r, &count))) {
                return false;
            }
            levels[open++] = (struct level){.left = map ? count * 2 : count, .map = map};
        } else {
            r->at++;
            if (!skip_scalar(r, b)) {
                return false;
            }
        }
        while (open > 0 && levels[open - 1].left == 0) {
            open--;
        }
        if (open > 0) {
            struct level *l = &levels[open - 1];
            key = l->map && l->left % 2 == 0;
            l->left--;
        }
    } while (open > 0);
    return true;
}
