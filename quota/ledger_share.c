#include "quota/ledger_internal.h"

/* ---- shares: which of them count is said by their `allocation` field; the lists are derived ---- */

static bool importer_lives(const struct corral_ledger *l, const struct corral_ledger_share *s)
{
    if (s->holder == 0 || s->holder > CORRAL_LEDGER_HOLDERS_MAX) {
        return false;
    }
    const struct corral_ledger_holder *h = &l->holder[s->holder - 1];
    return holder_counts(l, h) && !h->left && h->generation == s->holder_generation;
}

/* The next share of a list, or NULL at its end; a damaged list ends early. */
static struct corral_ledger_share *share_at(struct corral_ledger *l, uint32_t next)
{
    return next != 0 && next <= CORRAL_LEDGER_SHARES_MAX ? &l->share[next - 1] : NULL;
}

static const struct corral_ledger_share *const_share_at(const struct corral_ledger *l, uint32_t next)
{
    return next != 0 && next <= CORRAL_LEDGER_SHARES_MAX ? &l->share[next - 1] : NULL;
}

bool corral_ledger_is_imported(const struct corral_ledger *l, uint32_t allocation)
{
    uint32_t left = CORRAL_LEDGER_SHARES_MAX;
    const struct corral_ledger_share *s = const_share_at(l, l->allocation[allocation].next);
    for (; s && left > 0; s = const_share_at(l, s->next), left--) {
        if (s->holder != 0) {
            return true;
        }
    }
    return false;
}

static void free_share(struct corral_ledger *l, uint32_t share)
{
    struct corral_ledger_share *s = &l->share[share];
    uint32_t allocation = s->allocation;
    s->allocation = 0; /* from here on it does not count */
    CORRAL_LEDGER_STEP();
    if (allocation != 0 && allocation <= CORRAL_LEDGER_ALLOCATIONS_MAX) {
        uint32_t *link = &l->allocation[allocation - 1].next;
        uint32_t left = CORRAL_LEDGER_SHARES_MAX;
        while (*link != 0 && *link <= CORRAL_LEDGER_SHARES_MAX && *link != share + 1 && left-- > 0) {
            link = &l->share[*link - 1].next;
        }
        if (*link == share + 1) {
            *link = s->next;
        }
    }
    CORRAL_LEDGER_STEP();
    s->next = l->share_free;
    CORRAL_LEDGER_STEP();
    l->share_free = share + 1;
    CORRAL_LEDGER_STEP();
}

void corral_ledger_drop_exports(struct corral_ledger *l, uint32_t allocation)
{
    uint32_t at = l->allocation[allocation].next;
    uint32_t left = CORRAL_LEDGER_SHARES_MAX;
    while (share_at(l, at) && left-- > 0) {
        uint32_t next = l->share[at - 1].next;
        if (l->share[at - 1].holder == 0) {
            free_share(l, at - 1);
        }
        at = next;
    }
}

static enum corral_status add_share(struct corral_ledger *l, const struct corral_ledger_share *share,
                                    uint32_t *out, struct corral_error *err)
{
    uint32_t slot = share_high(l);
    if (share_at(l, l->share_free)) {
        slot = l->share_free - 1;
        l->share_free = l->share[slot].next;
    } else if (slot < CORRAL_LEDGER_SHARES_MAX) {
        l->share_high = slot + 1;
    } else {
        return corral_fail(err, CORRAL_NOMEM, "all %d shares of the ledger are in use",
                           CORRAL_LEDGER_SHARES_MAX);
    }
    CORRAL_LEDGER_STEP();
    struct corral_ledger_allocation *a = &l->allocation[share->allocation - 1];
    struct corral_ledger_share *s = &l->share[slot];
    s->holder = share->holder;
    s->holder_generation = share->holder_generation;
    s->key[0] = share->key[0];
    s->key[1] = share->key[1];
    s->next = a->next;
    CORRAL_LEDGER_STEP();
    s->allocation = share->allocation; /* from here on it counts */
    CORRAL_LEDGER_STEP();
    a->next = slot + 1;
    CORRAL_LEDGER_STEP();
    *out = slot;
    return CORRAL_OK;
}

static const struct corral_ledger_share *find_export(const struct corral_ledger *l, const uint64_t key[2])
{
    for (uint32_t i = 0; i < share_high(l); i++) {
        const struct corral_ledger_share *s = &l->share[i];
        if (s->allocation != 0 && s->allocation <= CORRAL_LEDGER_ALLOCATIONS_MAX && s->holder == 0 &&
            s->key[0] == key[0] && s->key[1] == key[1]) {
            return s;
        }
    }
    return NULL;
}

enum corral_status corral_ledger_export(struct corral_ledger *l, uint32_t allocation, const uint64_t key[2],
                                        struct corral_error *err)
{
    const struct corral_ledger_allocation *a = allocated(l, allocation);
    if (a->orphan) {
        return corral_fail(err, CORRAL_STATE, "allocation %u has been given back", allocation);
    }
    const struct corral_ledger_share *known = find_export(l, key);
    if (known && known->allocation == allocation + 1) {
        return CORRAL_OK;
    }
    if (known) {
        return corral_fail(err, CORRAL_EXISTS,
                           "allocation %u: allocation %u is already exported by that name", allocation,
                           known->allocation - 1);
    }
    uint32_t slot;
    struct corral_ledger_share share = {.allocation = allocation + 1, .key = {key[0], key[1]}};
    return add_share(l, &share, &slot, err);
}

enum corral_status corral_ledger_import(struct corral_ledger *l, uint32_t holder, const uint64_t key[2],
                                        uint32_t *share, struct corral_error *err)
{
    const struct corral_ledger_holder *h = held(l, holder);
    const struct corral_ledger_share *named = find_export(l, key);
    const struct corral_ledger_allocation *a = named ? &l->allocation[named->allocation - 1] : NULL;
    if (!a || a->holder == 0 || a->holder > CORRAL_LEDGER_HOLDERS_MAX) {
        return corral_fail(err, CORRAL_NOT_FOUND, "nobody on this node has exported that memory");
    }
    const struct corral_ledger_holder *owner = &l->holder[a->holder - 1];
    if (owner->device != h->device) {
        return corral_fail(err, CORRAL_INVALID, "memory exported on %s cannot be shared by a holder on %s",
                           owner->device < device_count(l) ? l->device[owner->device].name : "?",
                           l->device[h->device].name);
    }
    struct corral_ledger_share add = {.allocation = named->allocation,
                                      .holder = holder + 1,
                                      .holder_generation = h->generation,
                                      .key = {key[0], key[1]}};
    return add_share(l, &add, share, err);
}

void corral_ledger_drop_share(struct corral_ledger *l, uint32_t share)
{
    assert(share < CORRAL_LEDGER_SHARES_MAX);
    uint32_t allocation = l->share[share].allocation;
    if (allocation == 0 || allocation > CORRAL_LEDGER_ALLOCATIONS_MAX) {
        return;
    }
    free_share(l, share);
    const struct corral_ledger_allocation *a = &l->allocation[allocation - 1];
    if (a->holder != 0 && a->orphan && !corral_ledger_is_imported(l, allocation - 1)) {
        corral_ledger_free_allocation(l, allocation - 1);
    }
}

/* ---- leaving ---- */

void corral_ledger_trim_holders(struct corral_ledger *l)
{
    uint32_t high = holder_high(l);
    while (high > 0 && l->holder[high - 1].pid == 0) {
        high--;
    }
    l->holder_high = high;
    CORRAL_LEDGER_STEP();
}

static void drop_holders_shares(struct corral_ledger *l, uint32_t holder)
{
    for (uint32_t i = 0; i < share_high(l); i++) {
        const struct corral_ledger_share *s = &l->share[i];
        if (s->allocation != 0 && s->holder == holder + 1) {
            free_share(l, i);
        }
    }
}

/* What nobody else maps goes at once; the rest is marked. Returns how many stay. */
static uint32_t drop_holders_allocations(struct corral_ledger *l, uint32_t holder,
                                         uint64_t kind_bytes[CORRAL_KINDS])
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < allocation_high(l); i++) {
        struct corral_ledger_allocation *a = &l->allocation[i];
        if (a->holder != holder + 1) {
            continue;
        }
        corral_ledger_drop_exports(l, i);
        if (corral_ledger_is_imported(l, i)) {
            a->orphan = 1;
            a->committed = CORRAL_LEDGER_COMMITTED;
            kind_bytes[CORRAL_MIN(a->kind, CORRAL_KINDS - 1)] += a->bytes;
            kept++;
        } else {
            a->holder = 0;
            CORRAL_LEDGER_STEP();
            a->next = l->allocation_free;
            CORRAL_LEDGER_STEP();
            l->allocation_free = i + 1;
        }
        CORRAL_LEDGER_STEP();
    }
    return kept;
}

/* Not for the hot path: looks through both tables. A repetition finds what the first run left. A free list that a kill tore is
 * rebuilt before this runs again. */
void corral_ledger_finish_leave(struct corral_ledger *l)
{
    uint64_t holder = l->pending_field[LEAVE_HOLDER];
    if (holder >= CORRAL_LEDGER_HOLDERS_MAX || !holder_counts(l, &l->holder[holder])) {
        return;
    }
    struct corral_ledger_holder *h = &l->holder[holder];
    uint64_t kind_bytes[CORRAL_KINDS] = {0};
    uint64_t total = 0;
    if (h->step_slot != 0 && h->step_slot <= CORRAL_LEDGER_STEPS_MAX) {
        l->step[h->step_slot - 1].holder = 0;
        CORRAL_LEDGER_STEP();
    }
    h->step_slot = 0;
    h->declared = 0;
    CORRAL_LEDGER_STEP();
    drop_holders_shares(l, (uint32_t)holder);
    uint32_t kept = drop_holders_allocations(l, (uint32_t)holder, kind_bytes);
    for (uint32_t k = 0; k < CORRAL_KINDS; k++) {
        h->kind_bytes[k] = kind_bytes[k];
        total += kind_bytes[k];
    }
    CORRAL_LEDGER_STEP();
    h->reserved = 0;
    CORRAL_LEDGER_STEP();
    h->committed = total;
    CORRAL_LEDGER_STEP();
    h->spilled = h->pinned = 0;
    h->physical = h->physical_ns = 0;
    h->left = 1;
    CORRAL_LEDGER_STEP();
    uint32_t device = h->device;
    if (kept == 0) {
        h->pid = 0;
        CORRAL_LEDGER_STEP();
    }
    corral_ledger_recount(l, device);
}

void corral_ledger_leave(struct corral_ledger *l, uint32_t holder)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX);
    struct corral_ledger_holder *h = &l->holder[holder];
    if (h->pid == 0) {
        return;
    }
    if (holder_counts(l, h)) {
        uint32_t device = h->device;
        corral_ledger_fold_windows(l, device);
        l->pending_field[LEAVE_HOLDER] = holder;
        begin_change(l, PENDING_LEAVE);
        corral_ledger_finish_leave(l);
        end_change(l);
        for (uint32_t r = 0; r < role_count(l); r++) {
            l->device[device].role[r].wanted =
                0; /* who asked may be the one that is gone; the others ask again */
        }
        corral_ledger_settle_orphans(l);
    } else {
        h->pid = 0;
        CORRAL_LEDGER_STEP();
    }
    corral_ledger_trim_holders(l);
}

/* ---- hand-over ---- */

void corral_ledger_finish_hand_over(struct corral_ledger *l)
{
    const uint64_t *f = l->pending_field;
    if (f[HAND_ALLOCATION] >= CORRAL_LEDGER_ALLOCATIONS_MAX || f[HAND_FROM] >= CORRAL_LEDGER_HOLDERS_MAX ||
        f[HAND_TO] >= CORRAL_LEDGER_HOLDERS_MAX || f[HAND_KIND] >= CORRAL_KINDS) {
        return;
    }
    struct corral_ledger_holder *from = &l->holder[f[HAND_FROM]], *to = &l->holder[f[HAND_TO]];
    if (!holder_counts(l, from) || !holder_counts(l, to)) {
        return;
    }
    from->committed = f[HAND_FROM_COMMITTED];
    from->kind_bytes[f[HAND_KIND]] = f[HAND_FROM_KIND];
    CORRAL_LEDGER_STEP();
    to->committed = f[HAND_TO_COMMITTED];
    to->kind_bytes[f[HAND_KIND]] = f[HAND_TO_KIND];
    CORRAL_LEDGER_STEP();
    l->allocation[f[HAND_ALLOCATION]].holder = (uint32_t)f[HAND_TO] + 1;
    CORRAL_LEDGER_STEP();
    corral_ledger_recount(l, to->device);
}

/* Whether `to` may have the charge of `from` on its account: the rule after the move. An importer with an open step is left
 * alone: the charge would eat what it has booked. */
static bool may_hand_over(const struct corral_ledger *l, const struct corral_ledger_holder *from,
                          const struct corral_ledger_holder *to, uint64_t bytes)
{
    if (to->device != from->device || to->step_slot != 0) {
        return false;
    }
    if (to->role == from->role) {
        return true;
    }
    const struct corral_ledger_device *d = &l->device[from->device];
    struct corral_ledger_role giver = d->role[from->role], taker = d->role[to->role];
    uint64_t others = subtract_floor(corral_ledger_claims(l, d, to->role), role_claim(&giver));
    giver.used = subtract_floor(giver.used, bytes);
    taker.used = add_saturating(taker.used, bytes);
    uint64_t claims = add_saturating(add_saturating(others, role_claim(&giver)), role_claim(&taker));
    return role_base(&taker) <= (d->steps_open != 0 ? taker.floor : taker.ceiling) &&
           role_base(&taker) <= taker.ceiling && claims <= d->physical;
}

/* The lowest share that can have it: the order of the chain does not survive a repair, and the choice must. */
static const struct corral_ledger_share *pick_importer(struct corral_ledger *l, uint32_t allocation,
                                                       const struct corral_ledger_holder *from)
{
    const struct corral_ledger_allocation *a = &l->allocation[allocation];
    const struct corral_ledger_share *best = NULL, *s = share_at(l, a->next);
    for (uint32_t left = CORRAL_LEDGER_SHARES_MAX; s && left > 0; s = share_at(l, s->next), left--) {
        if ((!best || s < best) && importer_lives(l, s) &&
            may_hand_over(l, from, &l->holder[s->holder - 1], a->bytes)) {
            best = s;
        }
    }
    return best;
}

static void hand_over(struct corral_ledger *l, uint32_t allocation)
{
    const struct corral_ledger_allocation *a = &l->allocation[allocation];
    uint32_t owner = a->holder - 1;
    const struct corral_ledger_holder *from = &l->holder[owner];
    const struct corral_ledger_share *s = pick_importer(l, allocation, from);
    if (!s) {
        return;
    }
    const struct corral_ledger_holder *to = &l->holder[s->holder - 1];
    uint32_t kind = CORRAL_MIN(a->kind, CORRAL_KINDS - 1);
    uint64_t *f = l->pending_field;
    f[HAND_ALLOCATION] = allocation;
    f[HAND_FROM] = owner;
    f[HAND_FROM_COMMITTED] = subtract_floor(from->committed, a->bytes);
    f[HAND_FROM_KIND] = subtract_floor(from->kind_bytes[kind], a->bytes);
    f[HAND_TO] = s->holder - 1;
    f[HAND_TO_COMMITTED] = add_saturating(to->committed, a->bytes);
    f[HAND_TO_KIND] = add_saturating(to->kind_bytes[kind], a->bytes);
    f[HAND_KIND] = kind;
    begin_change(l, PENDING_HAND_OVER);
    corral_ledger_finish_hand_over(l);
    end_change(l);
    corral_ledger_forget_left(l, owner);
}

void corral_ledger_settle_orphans(struct corral_ledger *l)
{
    for (uint32_t i = 0; i < allocation_high(l); i++) {
        const struct corral_ledger_allocation *a = &l->allocation[i];
        if (a->holder == 0 || !a->orphan || a->holder > CORRAL_LEDGER_HOLDERS_MAX ||
            !holder_counts(l, &l->holder[a->holder - 1])) {
            continue;
        }
        if (!corral_ledger_is_imported(l, i)) {
            corral_ledger_free_allocation(l, i);
        } else if (l->holder[a->holder - 1].left) {
            hand_over(l, i);
        }
    }
}
