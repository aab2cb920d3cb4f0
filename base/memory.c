#include "base/memory.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { HEAP_ALIGNMENT = 64 };

static enum corral_status heap_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                     struct corral_error *err)
{
    (void)ctx;
    void *p = NULL;
    if (bytes <= PTRDIFF_MAX - HEAP_ALIGNMENT) {
        size_t rounded =
            (CORRAL_MAX(bytes, (size_t)1) + HEAP_ALIGNMENT - 1) / HEAP_ALIGNMENT * HEAP_ALIGNMENT;
        p = aligned_alloc(HEAP_ALIGNMENT, rounded);
        if (p != NULL) {
            /* Touches every page here, so that first use on a hot path does not fault. */
            memset(p, 0, rounded);
        }
    }
    if (p == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot allocate %zu bytes for %s: out of memory", bytes, what);
    }
    *out = p;
    return CORRAL_OK;
}

static void heap_release(void *ctx, void *memory, size_t bytes)
{
    (void)ctx;
    (void)bytes;
    free(memory);
}

const struct corral_allocator corral_allocator_heap = {.alloc = heap_alloc, .release = heap_release};
