#include "quota/host_alloc.h"

#include "base/log.h"
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAPPED_BYTES_MIN ((size_t)64 * 1024) /* from here on, pages of its own */
#define PAGE_BYTES ((size_t)4096)
#define LINE_BYTES ((size_t)64)

#define TABLE_SLOTS_MIN 64u

/* What a pointer was charged. A slot with no memory is free. */
struct charged {
    const void *memory;
    struct corral_quota_charge charge;
    bool spilled; /* counted, not charged */
};

struct corral_host_alloc {
    struct corral_quota *quota;
    uint32_t holder;
    /* relaxed: counts for people and tests, they order nothing */
    _Atomic uint64_t used, spilled, spill_max;
    pthread_mutex_t table_lock; /* guards the table: linear probing, at most half full */
    struct charged *table;
    size_t slots, count;
    struct corral_allocator interface;
};

/* ---- pointer → charge ---- */

static size_t home(const struct corral_host_alloc *a, const void *memory)
{
    uint64_t hash = (uint64_t)(uintptr_t)memory / LINE_BYTES * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(hash >> 20) & (a->slots - 1);
}

static void put(struct corral_host_alloc *a, const struct charged *entry)
{
    size_t at = home(a, entry->memory);
    while (a->table[at].memory) {
        at = (at + 1) & (a->slots - 1);
    }
    a->table[at] = *entry;
}

static bool grow(struct corral_host_alloc *a)
{
    struct charged *old = a->table;
    size_t old_slots = a->slots, slots = old_slots ? old_slots * 2 : TABLE_SLOTS_MIN;
    struct charged *table = calloc(slots, sizeof *table);
    if (!table) {
        return false;
    }
    a->table = table;
    a->slots = slots;
    for (size_t i = 0; i < old_slots; i++) {
        if (old[i].memory) {
            put(a, &old[i]);
        }
    }
    free(old);
    return true;
}

static bool remember(struct corral_host_alloc *a, const struct charged *entry)
{
    pthread_mutex_lock(&a->table_lock);
    bool room = a->count * 2 < a->slots || grow(a);
    if (room) {
        put(a, entry);
        a->count++;
    }
    pthread_mutex_unlock(&a->table_lock);
    return room;
}

/* Entries that probed past the freed slot move up, so that no search ends early. */
static void close_gap(struct corral_host_alloc *a, size_t gap)
{
    size_t mask = a->slots - 1;
    for (size_t at = (gap + 1) & mask; a->table[at].memory; at = (at + 1) & mask) {
        if (((at - home(a, a->table[at].memory)) & mask) >= ((at - gap) & mask)) {
            a->table[gap] = a->table[at];
            gap = at;
        }
    }
    a->table[gap] = (struct charged){0};
}

static bool forget(struct corral_host_alloc *a, const void *memory, struct charged *out)
{
    bool found = false;
    pthread_mutex_lock(&a->table_lock);
    for (size_t at = a->slots ? home(a, memory) : 0; a->slots && a->table[at].memory;
         at = (at + 1) & (a->slots - 1)) {
        if (a->table[at].memory == memory) {
            *out = a->table[at];
            close_gap(a, at);
            a->count--;
            found = true;
            break;
        }
    }
    pthread_mutex_unlock(&a->table_lock);
    return found;
}

/* ---- memory ---- */

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

/* Counts it as spilled if that was allowed. */
static bool spill(struct corral_host_alloc *a, uint64_t charge, const char *what)
{
    uint64_t max = atomic_load_explicit(&a->spill_max, memory_order_relaxed);
    uint64_t now = atomic_load_explicit(&a->spilled, memory_order_relaxed);
    do {
        if (charge > max || now > max - charge) {
            return false;
        }
    } while (!atomic_compare_exchange_weak_explicit(&a->spilled, &now, now + charge, memory_order_relaxed,
                                                    memory_order_relaxed));
    corral_quota_count_spilled(a->quota, a->holder, (int64_t)charge);
    corral_log_warn("memory spilled beyond the quota", LOG_STR("what", what), LOG_U64("size", charge),
                    LOG_U64("spilled", now + charge), LOG_U64("spill_max", max));
    return true;
}

static enum corral_status charge(struct corral_host_alloc *a, uint64_t bytes, const char *what,
                                 struct charged *out, struct corral_error *err)
{
    *out = (struct charged){.charge = {.bytes = bytes, .allocation = CORRAL_LEDGER_NONE}};
    enum corral_status status =
        corral_quota_take(a->quota, a->holder, bytes, CORRAL_KIND_HOST, what, &out->charge, err);
    if (status == CORRAL_DENIED && spill(a, bytes, what)) {
        out->spilled = true;
        return CORRAL_OK;
    }
    if (status == CORRAL_OK) {
        atomic_fetch_add_explicit(&a->used, bytes, memory_order_relaxed);
    }
    return status;
}

static void uncharge(struct corral_host_alloc *a, const struct charged *entry)
{
    uint64_t bytes = entry->charge.bytes;
    if (entry->spilled) {
        corral_quota_count_spilled(a->quota, a->holder, -(int64_t)bytes);
        atomic_fetch_sub_explicit(&a->spilled, bytes, memory_order_relaxed);
    } else {
        corral_quota_drop(a->quota, &entry->charge);
        atomic_fetch_sub_explicit(&a->used, bytes, memory_order_relaxed);
    }
}

static enum corral_status host_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                     struct corral_error *err)
{
    struct corral_host_alloc *a = ctx;
    struct charged entry;
    CORRAL_TRY(charge(a, charge_of(bytes), what, &entry, err));
    void *memory = take(bytes, entry.charge.bytes);
    int cause = memory ? ENOMEM : errno;
    entry.memory = memory;
    if (!memory || !remember(a, &entry)) {
        if (memory) {
            give_back(memory, bytes, entry.charge.bytes);
        }
        uncharge(a, &entry);
        return corral_fail(err, CORRAL_NOMEM,
                           "%s: %zu bytes are within the quota, but the system has none: %s", what, bytes,
                           strerror(cause));
    }
    if (!entry.spilled) {
        corral_quota_keep(a->quota, &entry.charge);
    }
    *out = memory;
    return CORRAL_OK;
}

static void host_release(void *ctx, void *memory, size_t bytes)
{
    struct corral_host_alloc *a = ctx;
    struct charged entry;
    if (!memory) {
        return;
    }
    bool known = forget(a, memory, &entry);
    assert(known && entry.charge.bytes == charge_of(bytes));
    if (known) {
        /* Gone first, uncharged second: the ledger never shows room that is not there. */
        give_back(memory, bytes, entry.charge.bytes);
        uncharge(a, &entry);
    }
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
    pthread_mutex_init(&a->table_lock, NULL);
    a->interface = (struct corral_allocator){.alloc = host_alloc, .release = host_release, .ctx = a};
    *out = a;
    return CORRAL_OK;
}

void corral_host_alloc_destroy(struct corral_host_alloc *a)
{
    if (a) {
        assert(corral_host_alloc_used(a) == 0 && corral_host_alloc_spilled(a) == 0);
        pthread_mutex_destroy(&a->table_lock);
        free(a->table);
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

void corral_host_alloc_set_spill(struct corral_host_alloc *a, uint64_t max_bytes)
{
    atomic_store_explicit(&a->spill_max, CORRAL_MIN(max_bytes, (uint64_t)INT64_MAX), memory_order_relaxed);
}

uint64_t corral_host_alloc_spilled(const struct corral_host_alloc *a)
{
    return atomic_load_explicit(&a->spilled, memory_order_relaxed);
}
