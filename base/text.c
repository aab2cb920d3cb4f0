#include "base/text.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct unit {
    const char *name;
    uint64_t scale;
};

/* Largest first: the exact formatters take the first unit that divides. */
static const struct unit byte_units[] = {
    {"TiB", UINT64_C(1) << 40},
    {"TB", UINT64_C(1000000000000)},
    {"GiB", UINT64_C(1) << 30},
    {"GB", 1000000000},
    {"MiB", UINT64_C(1) << 20},
    {"MB", 1000000},
    {"KiB", UINT64_C(1) << 10},
    {"KB", 1000},
    {"B", 1},
};
static const struct unit time_units[] = {
    {"h", UINT64_C(3600000000000)},
    {"m", UINT64_C(60000000000)},
    {"s", 1000000000},
    {"ms", 1000000},
    {"us", 1000},
    {"ns", 1},
};

struct quantity {
    const char *kind; /* "size" */
    const char *example;
    const char *units_text;
    const struct unit *units;
    size_t unit_count;
};

static const struct quantity quantity_bytes = {"size", "64MiB", "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB",
                                               byte_units, CORRAL_COUNT_OF(byte_units)};
static const struct quantity quantity_time = {"duration", "30s", "ns, us, ms, s, m, h", time_units,
                                              CORRAL_COUNT_OF(time_units)};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Beyond nine fractional digits nothing a person writes is lost, and the products below stay inside 128 bits. */
#define FRACTION_DIGITS_MAX 9

static enum corral_status parse_quantity(const struct quantity *q, const char *text, uint64_t *out,
                                         struct corral_error *err)
{
    const char *p = text;
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t fraction_scale = 1;
    if (!is_digit(*p)) {
        return corral_fail(err, CORRAL_INVALID, "`%s` is not a %s; write it like \"%s\"", text, q->kind,
                           q->example);
    }
    for (; is_digit(*p); p++) {
        const uint64_t digit = (uint64_t)(*p - '0');
        if (whole > (UINT64_MAX - digit) / 10) {
            return corral_fail(err, CORRAL_INVALID, "%s `%s` is too large", q->kind, text);
        }
        whole = whole * 10 + digit;
    }
    if (*p == '.') {
        const char *first = ++p;
        for (; is_digit(*p); p++) {
            if (p - first == FRACTION_DIGITS_MAX) {
                return corral_fail(err, CORRAL_INVALID, "%s `%s` has more than %d digits after the point",
                                   q->kind, text, FRACTION_DIGITS_MAX);
            }
            fraction = fraction * 10 + (uint64_t)(*p - '0');
            fraction_scale *= 10;
        }
        if (p == first) {
            return corral_fail(err, CORRAL_INVALID, "`%s` has no digits after the point", text);
        }
    }
    if (*p == ' ') {
        p++;
    }
    if (*p == '\0') {
        return corral_fail(err, CORRAL_INVALID, "%s `%s` has no unit; write it like \"%s\" (units: %s)",
                           q->kind, text, q->example, q->units_text);
    }
    for (size_t i = 0; i < q->unit_count; i++) {
        if (strcmp(p, q->units[i].name) == 0) {
            const uint64_t scale = q->units[i].scale;
            unsigned __int128 value = (unsigned __int128)whole * scale;
            value += ((unsigned __int128)fraction * scale + fraction_scale / 2) / fraction_scale;
            if (value > UINT64_MAX) {
                return corral_fail(err, CORRAL_INVALID, "%s `%s` is too large", q->kind, text);
            }
            *out = (uint64_t)value;
            return CORRAL_OK;
        }
    }
    return corral_fail(err, CORRAL_INVALID, "unknown unit `%s` in `%s`; the units are %s", p, text,
                       q->units_text);
}

enum corral_status corral_parse_bytes(const char *text, uint64_t *out, struct corral_error *err)
{
    return parse_quantity(&quantity_bytes, text, out, err);
}

enum corral_status corral_parse_duration(const char *text, uint64_t *out_ns, struct corral_error *err)
{
    return parse_quantity(&quantity_time, text, out_ns, err);
}

static const char *format_exact(const struct quantity *q, uint64_t value, char *out, size_t out_bytes)
{
    const struct unit *unit = &q->units[q->unit_count - 1];
    for (size_t i = 0; value != 0 && i < q->unit_count; i++) {
        if (value % q->units[i].scale == 0) {
            unit = &q->units[i];
            break;
        }
    }
    snprintf(out, out_bytes, "%" PRIu64 "%s", value / unit->scale, unit->name);
    return out;
}

const char *corral_format_bytes_exact(uint64_t bytes, char *out, size_t out_bytes)
{
    return format_exact(&quantity_bytes, bytes, out, out_bytes);
}

const char *corral_format_duration_exact(uint64_t ns, char *out, size_t out_bytes)
{
    return ns == 0 ? (snprintf(out, out_bytes, "0s"), out) : format_exact(&quantity_time, ns, out, out_bytes);
}

const char *corral_format_bytes(uint64_t bytes, char *out, size_t out_bytes)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t i = 0;
    uint64_t scale = 1;
    while (i + 1 < CORRAL_COUNT_OF(names) && bytes / scale >= 1024) {
        scale <<= 10;
        i++;
    }
    if (bytes % scale == 0) {
        snprintf(out, out_bytes, "%" PRIu64 " %s", bytes / scale, names[i]);
        return out;
    }
    double value = (double)bytes / (double)scale;
    if (value >= 1023.95 && i + 1 < CORRAL_COUNT_OF(names)) { /* would print as 1024.0 */
        value /= 1024.0;
        i++;
    }
    snprintf(out, out_bytes, "%.1f %s", value, names[i]);
    return out;
}

const char *corral_format_duration(uint64_t ns, char *out, size_t out_bytes)
{
    const double value = (double)ns;
    if (ns < 1000) {
        snprintf(out, out_bytes, "%" PRIu64 " ns", ns);
    } else if (value < 999.95e3) {
        snprintf(out, out_bytes, "%.1f us", value / 1e3);
    } else if (value < 999.95e6) {
        snprintf(out, out_bytes, "%.1f ms", value / 1e6);
    } else if (value < 9.995e9) {
        snprintf(out, out_bytes, "%.2f s", value / 1e9);
    } else if (value < 59.95e9) {
        snprintf(out, out_bytes, "%.1f s", value / 1e9);
    } else {
        const uint64_t s = ns / 1000000000 + (ns % 1000000000 >= 500000000);
        if (s < 3600) {
            snprintf(out, out_bytes, "%" PRIu64 "m%02us", s / 60, (unsigned)(s % 60));
        } else {
            snprintf(out, out_bytes, "%" PRIu64 "h%02um", s / 3600, (unsigned)(s % 3600 / 60));
        }
    }
    return out;
}

const char *corral_format_count(double value, char *out, size_t out_bytes)
{
    static const char *const suffixes[] = {"", "k", "M", "G", "T"};
    if (!isfinite(value)) {
        snprintf(out, out_bytes, isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        return out;
    }
    size_t i = 0;
    double v = value;
    while (fabs(v) >= 999.5 && i + 1 < CORRAL_COUNT_OF(suffixes)) {
        v /= 1000.0;
        i++;
    }
    const double tenths = round(v * 10.0) / 10.0;
    const bool fraction = fabs(tenths) < 10.0 && tenths != floor(tenths);
    /* Adding zero turns the -0 that rounding makes into 0. */
    snprintf(out, out_bytes, "%.*f%s", fraction ? 1 : 0, (fraction ? tenths : round(v)) + 0.0, suffixes[i]);
    return out;
}

const char *corral_format_return(double value, char *out, size_t out_bytes)
{
    if (isnan(value)) {
        snprintf(out, out_bytes, "-");
    } else {
        /* No "-0.00". */
        snprintf(out, out_bytes, "%.*f", fabs(value) < 9.995 ? 2 : 1, fabs(value) < 0.005 ? 0.0 : value);
    }
    return out;
}

#define EDIT_LENGTH_MAX 64

uint32_t corral_edit_distance(const char *a, const char *b)
{
    const size_t an = strnlen(a, EDIT_LENGTH_MAX + 1);
    const size_t bn = strnlen(b, EDIT_LENGTH_MAX + 1);
    if (an > EDIT_LENGTH_MAX || bn > EDIT_LENGTH_MAX) {
        return UINT32_MAX;
    }
    /* Rows i-2, i-1 and i of the table of distances between prefixes. */
    uint32_t rows[3][EDIT_LENGTH_MAX + 1];
    for (uint32_t j = 0; j <= bn; j++) {
        rows[0][j] = j;
    }
    for (uint32_t i = 1; i <= an; i++) {
        uint32_t *row = rows[i % 3];
        const uint32_t *above = rows[(i + 2) % 3];
        const uint32_t *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (uint32_t j = 1; j <= bn; j++) {
            uint32_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            best = CORRAL_MIN(best, above[j] + 1);
            best = CORRAL_MIN(best, row[j - 1] + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                best = CORRAL_MIN(best, two_above[j - 2] + 1);
            }
            row[j] = best;
        }
    }
    return rows[an % 3][bn];
}

const char *corral_nearest(const char *word, const char *const *candidates, size_t count)
{
    const size_t length = strlen(word);
    const char *best = NULL;
    /* A word that has to be replaced whole is no typo, so the distance also stays below the length. */
    uint32_t limit = length == 0 ? 0 : (uint32_t)CORRAL_MIN(1 + length / 4, length - 1);
    for (size_t i = 0; i < count; i++) {
        const uint32_t d = corral_edit_distance(word, candidates[i]);
        if (d <= limit && (best == NULL || d < limit)) {
            best = candidates[i];
            limit = d;
        }
    }
    return best;
}

bool corral_parse_u64(const char *text, uint64_t *out)
{
    uint64_t value = 0;
    const char *p = text;
    for (; is_digit(*p); p++) {
        const uint64_t digit = (uint64_t)(*p - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    if (p == text || *p != '\0') {
        return false;
    }
    *out = value;
    return true;
}
