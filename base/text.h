/* Small text helpers: quantities with units, nearest name, sizes people read. No allocation. */
#ifndef CORRAL_BASE_TEXT_H
#define CORRAL_BASE_TEXT_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

/* "18GiB", "64 MiB", "512KB", "1024B" → bytes. Binary (KiB MiB GiB TiB) and decimal (KB MB GB TB) units; a fraction is allowed
 * ("1.5GiB"); a bare number is CORRAL_INVALID: the unit is part of the value. Overflow is CORRAL_INVALID. */
enum corral_status corral_parse_bytes(const char *text, uint64_t *out, struct corral_error *err);
/* "30s", "250ms", "5m", "2h", "100us" → nanoseconds. */
enum corral_status corral_parse_duration(const char *text, uint64_t *out_ns, struct corral_error *err);
/* "64 MiB", "1.5 GiB", "812 B". Exact multiples print without a fraction. */
const char *corral_format_bytes(uint64_t bytes, char *out, size_t out_bytes);
/* "64MiB": like the above, without the space and always exact, so that it parses back to the same number. */
const char *corral_format_bytes_exact(uint64_t bytes, char *out, size_t out_bytes);
const char *corral_format_duration(uint64_t ns, char *out,
                                   size_t out_bytes); /* "1.24 s", "3.1 ms", "2m05s" */
const char *corral_format_duration_exact(uint64_t ns, char *out,
                                         size_t out_bytes);                 /* "250ms", "30s" : parses back */
const char *corral_format_count(double value, char *out, size_t out_bytes); /* "118k", "1.2M", "57" */
/* A return: "475.0", "-97.3", and "0.95" below ten, where a tenth says little. "-" for NaN. */
const char *corral_format_return(double value, char *out, size_t out_bytes);

/* Edit distance (insert, delete, substitute, transpose adjacent), at most 64 characters each; longer compare as far apart. */
uint32_t corral_edit_distance(const char *a, const char *b);
/* The candidate nearest to `word`, or NULL when none is near enough to be a likely typo (distance <= 1 + length/4). */
const char *corral_nearest(const char *word, const char *const *candidates, size_t count);

/* Whole decimal number, no sign, no spaces. */
bool corral_parse_u64(const char *text, uint64_t *out);

#endif
