/* The allocator interface. Whatever may be charged to a quota takes one of these instead of calling malloc:
 * learners, policies, trajectory buffers. quota/host_alloc.h has the charging one; this header has the plain one.
 * Set-up path only: nothing on a hot path allocates.
 */
#ifndef CORRAL_BASE_MEMORY_H
#define CORRAL_BASE_MEMORY_H

#include "base/error.h"

struct corral_allocator {
    /* Zeroed memory, aligned to 64 bytes. `what` names the use in errors and logs ("adam moments"); it must be a
     * string literal. Fails with CORRAL_DENIED (quota) or CORRAL_NOMEM. bytes may be 0 (gives a unique pointer). */
    enum corral_status (*alloc)(void *ctx, size_t bytes, const char *what, void **out,
                                struct corral_error *err);
    /* `bytes` is what was asked for. NULL is fine. */
    void (*release)(void *ctx, void *memory, size_t bytes);
    void *ctx;
};

extern const struct corral_allocator corral_allocator_heap;

static inline enum corral_status corral_alloc(const struct corral_allocator *a, size_t bytes,
                                              const char *what, void **out, struct corral_error *err)
{
    return a->alloc(a->ctx, bytes, what, out, err);
}
static inline void corral_release(const struct corral_allocator *a, void *memory, size_t bytes)
{
    a->release(a->ctx, memory, bytes);
}

#endif
