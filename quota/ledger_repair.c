#include "quota/ledger_internal.h"

static void finish_pending(struct corral_ledger *l)
{
    switch (l->pending) {
    case PENDING_CHARGE:
        corral_ledger_finish_charge(l);
        break;
    case PENDING_LEAVE:
        corral_ledger_finish_leave(l);
        break;
    case PENDING_OPEN:
        corral_ledger_finish_open(l);
        break;
    case PENDING_CLOSE:
        corral_ledger_finish_close(l);
        break;
    case PENDING_LIMITS:
        corral_ledger_finish_limits(l);
        break;
    case PENDING_HAND_OVER:
        corral_ledger_finish_hand_over(l);
        break;
    default:
        break;
    }
    CORRAL_LEDGER_STEP();
    l->pending = PENDING_NONE;
    CORRAL_LEDGER_STEP();
}

/* Slots say whether they are in use; the chains through them are made anew. */
static void rebuild_allocations(struct corral_ledger *l)
{
    uint32_t high = allocation_high(l);
    while (high > 0 && l->allocation[high - 1].holder == 0) {
        high--;
    }
    uint32_t head = 0;
    for (uint32_t i = high; i > 0; i--) {
        struct corral_ledger_allocation *a = &l->allocation[i - 1];
        a->next = a->holder == 0 ? head : 0;
        head = a->holder == 0 ? i : head;
    }
    CORRAL_LEDGER_STEP();
    l->allocation_high = high;
    l->allocation_free = head;
    CORRAL_LEDGER_STEP();
}

static bool share_counts(const struct corral_ledger *l, const struct corral_ledger_share *s)
{
    if (s->allocation == 0 || s->allocation > CORRAL_LEDGER_ALLOCATIONS_MAX) {
        return false;
    }
    const struct corral_ledger_allocation *a = &l->allocation[s->allocation - 1];
    if (a->holder == 0) {
        return false;
    }
    if (s->holder == 0) {
        return !a->orphan;
    }
    if (s->holder > CORRAL_LEDGER_HOLDERS_MAX) {
        return false;
    }
    const struct corral_ledger_holder *h = &l->holder[s->holder - 1];
    return holder_counts(l, h) && !h->left && h->generation == s->holder_generation;
}

static void rebuild_shares(struct corral_ledger *l)
{
    uint32_t high = share_high(l), head = 0;
    while (high > 0 && !share_counts(l, &l->share[high - 1])) {
        l->share[--high].allocation = 0;
        CORRAL_LEDGER_STEP();
    }
    for (uint32_t i = high; i > 0; i--) {
        struct corral_ledger_share *s = &l->share[i - 1];
        if (share_counts(l, s)) {
            struct corral_ledger_allocation *a = &l->allocation[s->allocation - 1];
            s->next = a->next;
            a->next = i;
        } else {
            s->allocation = 0;
            s->next = head;
            head = i;
        }
        CORRAL_LEDGER_STEP();
    }
    l->share_high = high;
    l->share_free = head;
    CORRAL_LEDGER_STEP();
}

/* A window and its holder name each other, or neither does. */
static void match_windows(struct corral_ledger *l)
{
    for (uint32_t i = 0; i < CORRAL_LEDGER_STEPS_MAX; i++) {
        struct corral_ledger_window *w = &l->step[i];
        if (w->holder != 0 &&
            (w->holder > CORRAL_LEDGER_HOLDERS_MAX || !holder_counts(l, &l->holder[w->holder - 1]) ||
             l->holder[w->holder - 1].step_slot != i + 1)) {
            w->holder = 0;
            CORRAL_LEDGER_STEP();
        }
    }
    for (uint32_t i = 0; i < holder_high(l); i++) {
        struct corral_ledger_holder *h = &l->holder[i];
        if (h->step_slot != 0 &&
            (h->step_slot > CORRAL_LEDGER_STEPS_MAX || l->step[h->step_slot - 1].holder != i + 1)) {
            h->step_slot = 0;
            h->declared = 0;
            CORRAL_LEDGER_STEP();
        }
    }
}

void corral_ledger_repair(struct corral_ledger *l)
{
    /* A leave walks the chains that it changes, so they are made whole before it is repeated, and again after. */
    rebuild_allocations(l);
    rebuild_shares(l);
    finish_pending(l);
    rebuild_allocations(l);
    rebuild_shares(l);
    match_windows(l);
    for (uint32_t d = 0; d < device_count(l); d++) {
        corral_ledger_recount(l, d);
        CORRAL_LEDGER_STEP();
    }
    corral_ledger_settle_orphans(l);
    for (uint32_t i = 0; i < holder_high(l); i++) {
        corral_ledger_forget_left(l, i);
    }
    corral_ledger_trim_holders(l);
}

/* ---- checks ---- */

static bool device_consistent(const struct corral_ledger *l, uint32_t device)
{
    const struct corral_ledger_device *d = &l->device[device];
    uint64_t used[CORRAL_LEDGER_ROLES_MAX] = {0}, booked[CORRAL_LEDGER_ROLES_MAX] = {0};
    uint32_t steps_open = 0;
    for (uint32_t i = 0; i < holder_high(l); i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        if (holder_counts(l, h) && h->device == device) {
            used[h->role] = add_saturating(used[h->role], holder_use(h));
            booked[h->role] = add_saturating(booked[h->role], booking_left(h));
            steps_open += h->step_slot != 0;
        }
    }
    for (uint32_t r = 0; r < role_count(l); r++) {
        const struct corral_ledger_role *role = &d->role[r];
        if (role->used != used[r] || role->booked != booked[r] || role_base(role) > role->ceiling ||
            role->floor > role->ceiling || role->peak < role->used) {
            return false;
        }
    }
    return d->steps_open == steps_open && corral_ledger_claims(l, d, CORRAL_LEDGER_NONE) <= d->physical;
}

static bool holder_consistent(const struct corral_ledger *l, uint32_t holder)
{
    const struct corral_ledger_holder *h = &l->holder[holder];
    if (h->pid == 0) {
        return true;
    }
    uint64_t kinds = 0;
    for (uint32_t k = 0; k < CORRAL_KINDS; k++) {
        kinds = add_saturating(kinds, h->kind_bytes[k]);
    }
    return holder_counts(l, h) && kinds == holder_use(h) &&
           (h->step_slot == 0 ||
            (h->step_slot <= CORRAL_LEDGER_STEPS_MAX && l->step[h->step_slot - 1].holder == holder + 1));
}

bool corral_ledger_consistent(const struct corral_ledger *l)
{
    if (l->magic != CORRAL_LEDGER_MAGIC || l->version != CORRAL_LEDGER_VERSION ||
        l->pending != PENDING_NONE || l->device_count > CORRAL_LEDGER_DEVICES_MAX ||
        l->role_count > CORRAL_LEDGER_ROLES_MAX || l->holder_high > CORRAL_LEDGER_HOLDERS_MAX) {
        return false;
    }
    for (uint32_t i = 0; i < l->holder_high; i++) {
        if (!holder_consistent(l, i)) {
            return false;
        }
    }
    for (uint32_t d = 0; d < l->device_count; d++) {
        if (!device_consistent(l, d)) {
            return false;
        }
    }
    return true;
}

/* A holder's tagged bytes are part of its charges, kind by kind and on the side their slot says. */
static bool holder_has_its_allocations(const struct corral_ledger *l, uint32_t holder)
{
    const struct corral_ledger_holder *h = &l->holder[holder];
    uint64_t reserved = 0, committed = 0, kinds[CORRAL_KINDS] = {0};
    for (uint32_t i = 0; i < allocation_high(l); i++) {
        const struct corral_ledger_allocation *a = &l->allocation[i];
        if (a->holder == holder + 1) {
            *(a->committed == CORRAL_LEDGER_COMMITTED ? &committed : &reserved) += a->bytes;
            kinds[CORRAL_MIN(a->kind, CORRAL_KINDS - 1)] += a->bytes;
        }
    }
    for (uint32_t k = 0; k < CORRAL_KINDS; k++) {
        if (kinds[k] > h->kind_bytes[k]) {
            return false;
        }
    }
    return reserved <= h->reserved && committed <= h->committed;
}

static bool allocations_consistent(const struct corral_ledger *l)
{
    uint32_t free_slots = 0, listed = 0;
    for (uint32_t i = 0; i < allocation_high(l); i++) {
        const struct corral_ledger_allocation *a = &l->allocation[i];
        if (a->holder == 0) {
            free_slots++;
            continue;
        }
        if (a->holder > CORRAL_LEDGER_HOLDERS_MAX || l->holder[a->holder - 1].pid == 0 ||
            (a->orphan && !corral_ledger_is_imported(l, i)) ||
            (l->holder[a->holder - 1].left && !a->orphan)) {
            return false;
        }
    }
    for (uint32_t at = l->allocation_free; at != 0; at = l->allocation[at - 1].next, listed++) {
        if (at > allocation_high(l) || l->allocation[at - 1].holder != 0 || listed > free_slots) {
            return false;
        }
    }
    return listed == free_slots;
}

static bool shares_consistent(const struct corral_ledger *l)
{
    uint32_t in_use = 0, free_slots = 0, listed = 0;
    for (uint32_t i = 0; i < share_high(l); i++) {
        const struct corral_ledger_share *s = &l->share[i];
        if (s->allocation == 0) {
            free_slots++;
        } else if (!share_counts(l, s)) {
            return false;
        } else {
            in_use++;
        }
    }
    for (uint32_t at = l->share_free; at != 0; at = l->share[at - 1].next, listed++) {
        if (at > share_high(l) || l->share[at - 1].allocation != 0 || listed > free_slots) {
            return false;
        }
    }
    uint32_t chained = 0;
    for (uint32_t i = 0; i < allocation_high(l); i++) {
        const struct corral_ledger_allocation *a = &l->allocation[i];
        for (uint32_t at = a->holder != 0 ? a->next : 0; at != 0; at = l->share[at - 1].next) {
            if (at > share_high(l) || l->share[at - 1].allocation != i + 1 || ++chained > in_use) {
                return false;
            }
        }
    }
    return listed == free_slots && chained == in_use;
}

bool corral_ledger_tables_consistent(const struct corral_ledger *l)
{
    if (!allocations_consistent(l) || !shares_consistent(l)) {
        return false;
    }
    for (uint32_t i = 0; i < holder_high(l); i++) {
        if (l->holder[i].pid != 0 && !holder_has_its_allocations(l, i)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_STEPS_MAX; i++) {
        uint32_t holder = l->step[i].holder;
        if (holder != 0 && (holder > holder_high(l) || l->holder[holder - 1].step_slot != i + 1)) {
            return false;
        }
    }
    return true;
}
