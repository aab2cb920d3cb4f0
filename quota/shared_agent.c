#include "quota/shared_internal.h"

#include "quota/process.h"
#include <string.h>

/* ---- reaping ---- */

struct seen_holder {
    int32_t pid;
    uint32_t generation, left;
    uint64_t start_time;
};

/* The slots in use, copied under the lock so that /proc is read without it. */
static uint32_t copy_holders(struct corral_quota *q, struct seen_holder *out)
{
    if (!corral_quota_lock_patiently(q)) {
        return 0;
    }
    const struct corral_ledger *l = &q->shared->ledger;
    uint32_t high = CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX);
    for (uint32_t i = 0; i < high; i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        out[i] = (struct seen_holder){
            .pid = h->pid, .generation = h->generation, .left = h->left, .start_time = h->start_time};
    }
    corral_quota_unlock(q);
    return high;
}

/* Let slot i go if it is still the one that was seen. True when the slot is free then. */
static bool leave_if_same(struct corral_quota *q, uint32_t i, const struct seen_holder *seen)
{
    if (!corral_quota_lock_patiently(q)) {
        return false;
    }
    struct corral_ledger *l = &q->shared->ledger;
    const struct corral_ledger_holder *h = &l->holder[i];
    if (h->pid != seen->pid || h->generation != seen->generation) {
        corral_quota_unlock(q);
        return false;
    }
    uint32_t device = h->device;
    corral_ledger_leave(l, i);
    bool freed = h->pid == 0;
    corral_quota_unlock_released(q, device);
    return freed;
}

uint32_t corral_quota_reap(struct corral_quota *q)
{
    struct seen_holder seen[CORRAL_LEDGER_HOLDERS_MAX];
    uint32_t high = copy_holders(q, seen), freed = 0;
    for (uint32_t i = 0; i < high; i++) {
        /* One that has left is visited again: an importer may have room for its charges by now. */
        if (seen[i].pid != 0 && (seen[i].left || corral_process_is_gone(seen[i].pid, seen[i].start_time))) {
            freed += leave_if_same(q, i, &seen[i]);
        }
    }
    return freed;
}

void corral_quota_reap_pid(struct corral_quota *q, pid_t pid)
{
    struct seen_holder seen[CORRAL_LEDGER_HOLDERS_MAX];
    uint32_t high = copy_holders(q, seen);
    for (uint32_t i = 0; i < high; i++) {
        if (seen[i].pid != 0 && seen[i].pid == (int32_t)pid) {
            leave_if_same(q, i, &seen[i]);
        }
    }
}

/* Under the lock, just taken over from a dead owner. It may not be quite dead yet, or somebody else may have died before it
 * could write its name; then the next reaping finds it. */
void corral_quota_reap_owner(struct shared_ledger *s)
{
    int32_t pid = atomic_load_explicit(&s->owner_pid, memory_order_relaxed);
    struct corral_ledger *l = &s->ledger;
    for (uint32_t i = 0; pid > 0 && i < CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX); i++) {
        if (l->holder[i].pid == pid && !l->holder[i].left &&
            corral_process_is_gone(pid, l->holder[i].start_time)) {
            corral_ledger_leave(l, i);
        }
    }
}

/* ---- limits and readings ---- */

/* The role is held where it is, with the floor it has, so that the old limits can be set again. */
static void hold_in_place(struct corral_ledger *l, uint32_t device, uint32_t role, uint64_t ceiling)
{
    struct corral_ledger_role *r = &l->device[device].role[role];
    uint64_t base = r->used + r->booked, here = CORRAL_MAX(base, r->floor);
    if (here < r->ceiling) {
        corral_ledger_change_limits(l, device, role, r->floor, here, NULL);
    }
    r->wanted = base > ceiling ? base - ceiling : 0;
}

enum corral_status corral_quota_change_limits(struct corral_quota *q, uint32_t device, uint32_t role,
                                              uint64_t floor, uint64_t ceiling, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    CORRAL_TRY(corral_quota_lock(q, err));
    struct corral_ledger *l = &q->shared->ledger;
    uint32_t asked = 0;
    enum corral_status status = corral_ledger_change_limits(l, device, role, floor, ceiling, err);
    if (status == CORRAL_STATE || status == CORRAL_DENIED) { /* what is in the way may be of the dead */
        corral_quota_unlock(q);
        corral_quota_reap(q);
        CORRAL_TRY(corral_quota_lock(q, err));
        status = corral_ledger_change_limits(l, device, role, floor, ceiling, err);
    }
    if (status == CORRAL_INVALID) {
        corral_quota_unlock(q);
        return status;
    }
    struct corral_ledger_role *r = &l->device[device].role[role];
    if (status == CORRAL_STATE) {
        hold_in_place(l, device, role, ceiling);
        asked = r->wanted > 0 ? UINT32_C(1) << role : 0;
    } else if (status == CORRAL_DENIED) {
        asked = corral_ledger_ask(l, device, role, floor); /* the others are above theirs */
    } else {
        r->wanted = 0;
        corral_ledger_ask(l, device, role, 0);
    }
    corral_quota_unlock_released(q, device);
    corral_quota_wake_listeners(q, device, asked);
    return status;
}

void corral_quota_set_physical(struct corral_quota *q, uint32_t device, pid_t pid, uint64_t bytes,
                               uint64_t now_ns)
{
    if (!corral_quota_lock_patiently(q)) {
        return;
    }
    struct corral_ledger *l = &q->shared->ledger;
    for (uint32_t i = 0; i < CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX); i++) {
        struct corral_ledger_holder *h = &l->holder[i];
        if (h->pid == (int32_t)pid && h->pid != 0 && h->device == device && !h->left) {
            h->physical = bytes;
            h->physical_ns = now_ns;
        }
    }
    corral_quota_unlock(q);
}

void corral_quota_set_holder_physical(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                      uint64_t now_ns)
{
    if (corral_quota_lock_ours(q, holder)) {
        struct corral_ledger_holder *h = &q->shared->ledger.holder[holder];
        h->physical = bytes;
        h->physical_ns = now_ns;
        corral_quota_unlock(q);
    }
}

void corral_quota_set_device_physical(struct corral_quota *q, uint32_t device, uint64_t used,
                                      uint64_t foreign, uint64_t now_ns)
{
    if (device >= CORRAL_LEDGER_DEVICES_MAX || !corral_quota_lock_patiently(q)) {
        return;
    }
    struct corral_ledger_device *d = &q->shared->ledger.device[device];
    d->physical_used = used;
    d->physical_foreign = foreign;
    d->physical_ns = now_ns;
    corral_quota_unlock(q);
}

/* ---- reading ---- */

static void copy_tables(const struct corral_ledger *l, struct corral_ledger *out)
{
    memcpy(out, l, offsetof(struct corral_ledger, device));
    memcpy(out->device, l->device,
           CORRAL_MIN(l->device_count, CORRAL_LEDGER_DEVICES_MAX) * sizeof *l->device);
    memcpy(out->holder, l->holder, CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX) * sizeof *l->holder);
    memcpy(out->step, l->step, sizeof l->step);
    memset(out->role_token, 0, sizeof out->role_token); /* a secret: not for status pages and records */
}

/* Charges kept without the lock are marked in the table only. Without the lock too: a slot that changes meanwhile is one that
 * was kept or dropped meanwhile. */
static void count_kept(const struct corral_ledger *l, struct corral_ledger *out)
{
    uint32_t high = CORRAL_MIN(out->allocation_high, CORRAL_LEDGER_ALLOCATIONS_MAX);
    for (uint32_t i = 0; i < high; i++) {
        const struct corral_ledger_allocation *a = &l->allocation[i];
        if (__atomic_load_n(&a->committed, __ATOMIC_RELAXED) != CORRAL_LEDGER_MARKED) {
            continue;
        }
        uint32_t holder = __atomic_load_n(&a->holder, __ATOMIC_RELAXED);
        uint64_t bytes = __atomic_load_n(&a->bytes, __ATOMIC_RELAXED);
        if (holder != 0 && holder <= CORRAL_LEDGER_HOLDERS_MAX) {
            struct corral_ledger_holder *h = &out->holder[holder - 1];
            uint64_t kept = CORRAL_MIN(bytes, h->reserved);
            h->reserved -= kept;
            h->committed += kept;
        }
    }
}

void corral_quota_snapshot(struct corral_quota *q, struct corral_ledger *out)
{
    memset(out, 0, offsetof(struct corral_ledger, share));
    if (!corral_quota_lock_patiently(q)) {
        return; /* neither magic nor version: not a consistent ledger, and said to be unusable in the log */
    }
    copy_tables(&q->shared->ledger, out);
    corral_quota_unlock(q);
    count_kept(&q->shared->ledger, out);
}

enum corral_status corral_quota_read_device(struct corral_quota *q, uint32_t device,
                                            struct corral_ledger_device *out, struct corral_error *err)
{
    if (device >= CORRAL_LEDGER_DEVICES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "memory ledger: no device %u", device);
    }
    CORRAL_TRY(corral_quota_lock(q, err));
    memcpy(out, &q->shared->ledger.device[device], sizeof *out);
    corral_quota_unlock(q);
    return CORRAL_OK;
}

bool corral_quota_has_unproven(const struct corral_quota *q, uint32_t device)
{
    const struct corral_ledger *l = &q->shared->ledger;
    for (uint32_t i = 0; i < CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX); i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        if (h->pid != 0 && !h->left && h->device == device && (h->flags & CORRAL_HOLDER_UNPROVEN) != 0) {
            return true;
        }
    }
    return false;
}

uint32_t corral_quota_allocations(struct corral_quota *q, uint32_t holder,
                                  struct corral_ledger_allocation *out, uint32_t max)
{
    if (!corral_quota_lock_patiently(q)) {
        return 0;
    }
    const struct corral_ledger *l = &q->shared->ledger;
    uint32_t found = 0;
    for (uint32_t i = 0; i < CORRAL_MIN(l->allocation_high, CORRAL_LEDGER_ALLOCATIONS_MAX); i++) {
        const struct corral_ledger_allocation *a = &l->allocation[i];
        if (a->holder == 0 || (holder != CORRAL_LEDGER_NONE && a->holder != holder + 1)) {
            continue;
        }
        if (found < max) {
            out[found] = *a;
        }
        found++;
    }
    corral_quota_unlock(q);
    return found;
}
