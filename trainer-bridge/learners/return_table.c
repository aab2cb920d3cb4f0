#include "trainer-bridge/learners/return_table.h"
#include "base/rng.h"
#include <assert.h>

/* The entry's slot, or the free one where it would go. The table never fills, so the search ends. */
static uint32_t find(const struct corral_return_table *t, uint32_t worker, uint32_t row)
{
    uint64_t state = (uint64_t)worker << 32 | row;
    uint32_t slot = (uint32_t)corral_splitmix64(&state) & (CORRAL_RETURN_SLOTS - 1);
    while (t->slots[slot].used && (t->slots[slot].worker != worker || t->slots[slot].row != row)) {
        slot = (slot + 1) & (CORRAL_RETURN_SLOTS - 1);
    }
    return slot;
}

double corral_return_get(const struct corral_return_table *t, uint32_t worker, uint32_t epoch, uint32_t row)
{
    const struct corral_return_entry *e = &t->slots[find(t, worker, row)];
    return e->used && e->epoch == epoch ? e->value : 0.0;
}

void corral_return_set(struct corral_return_table *t, uint32_t worker, uint32_t epoch, uint32_t row,
                       double value)
{
    uint32_t slot = find(t, worker, row);
    struct corral_return_entry *e = &t->slots[slot];
    if (!e->used && t->used >= CORRAL_RETURN_ROWS_MAX) {
        return;
    }
    assert(t->changes_count < t->changes_max);
    t->changes[t->changes_count++] = (struct corral_return_change){.before = *e, .slot = slot};
    t->used += !e->used;
    *e =
        (struct corral_return_entry){.worker = worker, .row = row, .epoch = epoch, .used = 1, .value = value};
}

void corral_return_commit(struct corral_return_table *t)
{
    t->changes_count = 0;
}

void corral_return_rollback(struct corral_return_table *t)
{
    while (t->changes_count > 0) {
        const struct corral_return_change *c = &t->changes[--t->changes_count];
        t->used -= !c->before.used;
        t->slots[c->slot] = c->before;
    }
}
