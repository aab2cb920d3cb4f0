/* The table of the driver's entry points, generated from entry_points.tsv (symbols.awk). */
#include "quota/cuda/core.h"

#include <string.h>

/* Addresses only: their types do not matter here. The link fails when one of them is not there. */
#define HOOKED(name, base, version, stream, class) extern void hook_##name(void) __asm__(#name);
#define PLAIN(name, base, version, stream, class)
#define WORD(text)
#include <corral_cuda_rows.inc>
#undef HOOKED
#undef PLAIN

#define ROW(row_name, row_hook, row_base, row_version, row_stream, row_class) \
    {.name = #row_name,                                                       \
     .hook = (row_hook),                                                      \
     .version = (row_version),                                                \
     .base = (row_base),                                                      \
     .stream = CORRAL_CUDA_##row_stream,                                      \
     .class = CORRAL_CUDA_##row_class},
#define HOOKED(name, base, version, stream, class) \
    ROW(name, (void *)hook_##name, base, version, stream, class)
#define PLAIN(name, base, version, stream, class) ROW(name, NULL, base, version, stream, class)
const struct corral_cuda_row corral_cuda_rows[CORRAL_CUDA_SYMBOLS] = {
#include <corral_cuda_rows.inc>
};
#undef HOOKED
#undef PLAIN
#undef WORD

#define HOOKED(name, base, version, stream, class)
#define PLAIN(name, base, version, stream, class)
#define WORD(text) text,
static const char *const words[] = {
#include <corral_cuda_rows.inc>
};

enum corral_cuda_symbol corral_cuda_find(const char *name)
{
    uint32_t low = 0, high = CORRAL_CUDA_SYMBOLS;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(corral_cuda_rows[middle].name, name);
        if (order == 0) {
            return (enum corral_cuda_symbol)middle;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return CORRAL_CUDA_SYMBOLS;
}

/* Length of the base name within a row's: without _vN, _ptds, _ptsz. */
static size_t base_length(const char *name)
{
    size_t n = strlen(name);
    if (n > 5 && (strcmp(name + n - 5, "_ptds") == 0 || strcmp(name + n - 5, "_ptsz") == 0)) {
        n -= 5;
    }
    size_t digits = n;
    while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') {
        digits--;
    }
    return digits < n && digits >= 2 && memcmp(name + digits - 2, "_v", 2) == 0 ? digits - 2 : n;
}

enum corral_cuda_symbol corral_cuda_find_base(const char *base)
{
    enum corral_cuda_symbol exact = corral_cuda_find(base);
    if (exact != CORRAL_CUDA_SYMBOLS) {
        return exact;
    }
    size_t n = strlen(base);
    for (uint32_t i = 0; i < CORRAL_CUDA_SYMBOLS; i++) {
        const char *name = corral_cuda_rows[i].name;
        if (base_length(name) == n && memcmp(name, base, n) == 0) {
            return (enum corral_cuda_symbol)i;
        }
    }
    return CORRAL_CUDA_SYMBOLS;
}

bool corral_cuda_could_allocate(const char *name)
{
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strstr(name, words[i])) {
            return true;
        }
    }
    return false;
}
