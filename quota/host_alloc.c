#include "quota/host_alloc.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAPPED_BYTES_MIN ((size_t)64 * 1024) /* from here on, pages of its own */
#define PAGE_BYTES ((size_t)4096)
#define LINE_BYTES ((size_t)64)

struct corral_host_alloc {
    struct corral_quota *quota;
    uint32_t holder;
    _Atomic uint64_t used; /* relaxed: a count for people and tests, it orders nothing */
    struct corral_allocator interface;
};

/* What a request costs; UINT64_MAX when rounding overflows, which no ceiling admits. */
static uint64_t charge_of(size_t bytes)
{
    size_t unit = bytes >= MAPPED_BYTES_MIN ? PAGE_BYTES : LINE_BYTES;
    if (bytes > SIZE_MAX - unit) {
        return UINT64_MAX;
    }
    return bytes == 0 ? LINE_BYTES : (bytes + unit - 1) / unit * unit;
}

static void *take(size_t bytes, uint64_t charge)
{
    if (bytes >= MAPPED_BYTES_MIN) {
        void *map = mmap(NULL, charge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return map == MAP_FAILED ? NULL : map;
    }
    void *memory = aligned_alloc(LINE_BYTES, charge);
    return memory ? memset(memory, 0, charge) : NULL;
}

static void give_back(void *memory, size_t bytes, uint64_t charge)
{
    if (bytes >= MAPPED_BYTES_MIN) {
        munmap(memory, charge);
    } else {
        free(memory);
    }
}

static enum corral_status host_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                     struct corral_error *err)
{
    struct corral_host_alloc *a = ctx;
    uint64_t charge = charge_of(bytes);
    CORRAL_TRY(corral_quota_reserve(a->quota, a->holder, charge, what, err));
    void *memory = take(bytes, charge);
    if (!memory) {
        int cause = errno;
        corral_quota_rollback(a->quota, a->holder, charge);
        return corral_fail(err, CORRAL_NOMEM,
                           "%s: %zu bytes are within the quota, but the system has none: %s", what, bytes,
                           strerror(cause));
    }
    corral_quota_commit(a->quota, a->holder, charge);
    atomic_fetch_add_explicit(&a->used, charge, memory_order_relaxed);
    *out = memory;
    return CORRAL_OK;
}

static void host_release(void *ctx, void *memory, size_t bytes)
{
    struct corral_host_alloc *a = ctx;
    if (!memory) {
        return;
    }
    /* Gone first, uncharged second: the ledger never shows room that is not there. */
    uint64_t charge = charge_of(bytes);
    give_back(memory, bytes, charge);
    corral_quota_release(a->quota, a->holder, charge);
    atomic_fetch_sub_explicit(&a->used, charge, memory_order_relaxed);
}

enum corral_status corral_host_alloc_create(struct corral_quota *q, uint32_t holder,
                                            struct corral_host_alloc **out, struct corral_error *err)
{
    struct corral_host_alloc *a = calloc(1, sizeof *a);
    if (!a) {
        return corral_fail(err, CORRAL_NOMEM, "host allocator: no memory");
    }
    a->quota = q;
    a->holder = holder;
    a->interface = (struct corral_allocator){.alloc = host_alloc, .release = host_release, .ctx = a};
    *out = a;
    return CORRAL_OK;
}

void corral_host_alloc_destroy(struct corral_host_alloc *a)
{
    if (a) {
        assert(corral_host_alloc_used(a) == 0);
    }
    free(a);
}

const struct corral_allocator *corral_host_allocator(const struct corral_host_alloc *a)
{
    return &a->interface;
}

uint64_t corral_host_alloc_used(const struct corral_host_alloc *a)
{
    return atomic_load_explicit(&a->used, memory_order_relaxed);
}
