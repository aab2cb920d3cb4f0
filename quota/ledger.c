#include "quota/ledger_internal.h"

/* ---- claims and totals ---- */

uint64_t corral_ledger_claims(const struct corral_ledger *l, const struct corral_ledger_device *d,
                              uint32_t except)
{
    uint64_t taken = d->headroom;
    for (uint32_t q = 0; q < role_count(l); q++) {
        if (q != except) {
            taken = add_saturating(taken, role_claim(&d->role[q]));
        }
    }
    return taken;
}

void corral_ledger_note_peaks(struct corral_ledger *l, uint32_t device)
{
    struct corral_ledger_device *d = &l->device[device];
    for (uint32_t r = 0; r < role_count(l); r++) {
        struct corral_ledger_role *role = &d->role[r];
        role->peak = CORRAL_MAX(role->peak, role->used);
        role->window_peak = CORRAL_MAX(role->window_peak, role->used);
    }
    d->window_claim = CORRAL_MAX(d->window_claim, corral_ledger_claims(l, d, CORRAL_LEDGER_NONE));
}

/* The roles' totals are sums over the holders; every sum is stored once, so that a reader without the lock sees no half of it. */
void corral_ledger_recount(struct corral_ledger *l, uint32_t device)
{
    struct corral_ledger_role sum[CORRAL_LEDGER_ROLES_MAX] = {0};
    struct corral_ledger_device *d = &l->device[device];
    uint32_t steps_open = 0;
    for (uint32_t i = 0; i < holder_high(l); i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        if (holder_counts(l, h) && h->device == device) {
            struct corral_ledger_role *s = &sum[h->role];
            s->used = add_saturating(s->used, holder_use(h));
            s->booked = add_saturating(s->booked, booking_left(h));
            s->spilled = add_saturating(s->spilled, h->spilled);
            s->pinned = add_saturating(s->pinned, h->pinned);
            steps_open += h->step_slot != 0;
        }
    }
    for (uint32_t r = 0; r < role_count(l); r++) {
        struct corral_ledger_role *role = &d->role[r];
        role->used = sum[r].used;
        CORRAL_LEDGER_STEP();
        role->booked = sum[r].booked;
        role->spilled = sum[r].spilled;
        role->pinned = sum[r].pinned;
        CORRAL_LEDGER_STEP();
    }
    d->steps_open = steps_open;
    corral_ledger_note_peaks(l, device);
}

/* ---- one charge ---- */

struct charge {
    uint32_t holder, kind;
    uint64_t reserved, committed, kind_bytes;
    uint32_t allocation; /* slot + 1; 0: untagged */
    struct corral_ledger_allocation to;
    uint32_t free_head, high;
};

static void finish_allocation(struct corral_ledger *l)
{
    const uint64_t *f = l->pending_field;
    uint32_t slot = (uint32_t)f[CHARGE_ALLOCATION_OWNER];
    if (slot == 0 || slot > CORRAL_LEDGER_ALLOCATIONS_MAX) {
        return;
    }
    struct corral_ledger_allocation *a = &l->allocation[slot - 1];
    uint32_t owner = (uint32_t)(f[CHARGE_ALLOCATION_OWNER] >> 32);
    if (owner == 0 && a->holder != 0 && a->next != 0) {
        corral_ledger_drop_exports(l, slot - 1);
    }
    a->bytes = f[CHARGE_BYTES];
    a->step = (uint32_t)f[CHARGE_TAG];
    a->kind = (uint8_t)(f[CHARGE_TAG] >> 32);
    a->phase = (uint8_t)(f[CHARGE_TAG] >> 40);
    a->committed = (uint8_t)(f[CHARGE_TAG] >> 48);
    a->orphan = (uint8_t)(f[CHARGE_TAG] >> 56);
    CORRAL_LEDGER_STEP();
    a->generation = (uint32_t)f[CHARGE_GENERATION_NEXT];
    a->next = (uint32_t)(f[CHARGE_GENERATION_NEXT] >> 32);
    a->holder = owner;
    CORRAL_LEDGER_STEP();
    l->allocation_free = (uint32_t)f[CHARGE_FREE_HIGH];
    l->allocation_high = (uint32_t)(f[CHARGE_FREE_HIGH] >> 32);
}

void corral_ledger_finish_charge(struct corral_ledger *l)
{
    const uint64_t *f = l->pending_field;
    uint32_t holder = (uint32_t)f[CHARGE_HOLDER_KIND], kind = (uint32_t)(f[CHARGE_HOLDER_KIND] >> 32);
    if (holder >= CORRAL_LEDGER_HOLDERS_MAX || kind >= CORRAL_KINDS ||
        !holder_counts(l, &l->holder[holder])) {
        return;
    }
    struct corral_ledger_holder *h = &l->holder[holder];
    struct corral_ledger_device *d = &l->device[h->device];
    struct corral_ledger_role *role = &d->role[h->role];
    h->reserved = f[CHARGE_RESERVED];
    CORRAL_LEDGER_STEP();
    h->committed = f[CHARGE_COMMITTED];
    CORRAL_LEDGER_STEP();
    h->kind_bytes[kind] = f[CHARGE_KIND_BYTES];
    CORRAL_LEDGER_STEP();
    finish_allocation(l);
    CORRAL_LEDGER_STEP();
    role->used = f[CHARGE_USED];
    CORRAL_LEDGER_STEP();
    role->booked = f[CHARGE_BOOKED];
    CORRAL_LEDGER_STEP();
    role->peak = CORRAL_MAX(role->peak, role->used);
    role->window_peak = CORRAL_MAX(role->window_peak, role->used);
    if (d->steps_open != 0) {
        d->window_claim = CORRAL_MAX(d->window_claim, corral_ledger_claims(l, d, CORRAL_LEDGER_NONE));
    }
    if (h->step_slot != 0 && h->step_slot <= CORRAL_LEDGER_STEPS_MAX) {
        struct corral_ledger_window *w = &l->step[h->step_slot - 1];
        w->holder_peak = CORRAL_MAX(w->holder_peak, holder_use(h));
    }
}

/* The one place where charges change. */
static void apply(struct corral_ledger *l, const struct charge *c)
{
    const struct corral_ledger_holder *h = &l->holder[c->holder];
    const struct corral_ledger_role *role = &l->device[h->device].role[h->role];
    struct corral_ledger_holder after = {.reserved = c->reserved,
                                         .committed = c->committed,
                                         .step_slot = h->step_slot,
                                         .declared = h->declared};
    uint64_t *f = l->pending_field;
    f[CHARGE_HOLDER_KIND] = pack(c->holder, c->kind);
    f[CHARGE_RESERVED] = c->reserved;
    f[CHARGE_COMMITTED] = c->committed;
    f[CHARGE_KIND_BYTES] = c->kind_bytes;
    f[CHARGE_ALLOCATION_OWNER] = pack(c->allocation, c->to.holder);
    f[CHARGE_BYTES] = c->to.bytes;
    f[CHARGE_TAG] = (uint64_t)c->to.step | (uint64_t)c->to.kind << 32 | (uint64_t)c->to.phase << 40 |
                    (uint64_t)c->to.committed << 48 | (uint64_t)c->to.orphan << 56;
    f[CHARGE_GENERATION_NEXT] = pack(c->to.generation, c->to.next);
    f[CHARGE_FREE_HIGH] = pack(c->free_head, c->high);
    f[CHARGE_USED] = role->used - holder_use(h) + holder_use(&after);
    f[CHARGE_BOOKED] = role->booked - booking_left(h) + booking_left(&after);
    begin_change(l, PENDING_CHARGE);
    corral_ledger_finish_charge(l);
    end_change(l);
}

static struct charge charge_of(const struct corral_ledger *l, uint32_t holder, uint32_t kind)
{
    const struct corral_ledger_holder *h = &l->holder[holder];
    return (struct charge){.holder = holder,
                           .kind = kind,
                           .reserved = h->reserved,
                           .committed = h->committed,
                           .kind_bytes = h->kind_bytes[kind],
                           .free_head = l->allocation_free,
                           .high = l->allocation_high};
}

static struct charge charge_of_allocation(const struct corral_ledger *l, uint32_t allocation)
{
    const struct corral_ledger_allocation *a = &l->allocation[allocation];
    struct charge c = charge_of(l, a->holder - 1, CORRAL_MIN(a->kind, CORRAL_KINDS - 1));
    c.allocation = allocation + 1;
    c.to = *a;
    return c;
}

/* Its bytes out of the holder's: tagged bytes are where the slot says, whatever a keep without the lock has marked since. */
static void take_out(struct charge *c, const struct corral_ledger_allocation *a)
{
    if (a->committed == CORRAL_LEDGER_COMMITTED) {
        c->committed = subtract_floor(c->committed, a->bytes);
    } else {
        c->reserved = subtract_floor(c->reserved, a->bytes);
    }
    c->kind_bytes = subtract_floor(c->kind_bytes, a->bytes);
}

/* ---- may it grow ---- */

struct growth {
    uint64_t booked;                              /* of the holder's own step: granted without question */
    uint64_t under_ceiling, under_floors, thawed; /* beyond that */
};

static struct growth growth_of_role(const struct corral_ledger *l, uint32_t device, uint32_t of_role)
{
    const struct corral_ledger_device *d = &l->device[device];
    const struct corral_ledger_role *role = &d->role[of_role];
    uint64_t base = role_base(role);
    uint64_t room = subtract_floor(d->physical, corral_ledger_claims(l, d, of_role));
    return (struct growth){
        .under_ceiling = subtract_floor(role->ceiling, base),
        .under_floors = subtract_floor(room, base),
        .thawed = d->steps_open != 0 ? subtract_floor(role->floor, base) : UINT64_MAX,
    };
}

static struct growth growth_of(const struct corral_ledger *l, uint32_t holder)
{
    const struct corral_ledger_holder *h = &l->holder[holder];
    struct growth g = growth_of_role(l, h->device, h->role);
    g.booked = booking_left(h);
    return g;
}

static uint64_t most(const struct growth *g)
{
    uint64_t free_growth = CORRAL_MIN(CORRAL_MIN(g->under_ceiling, g->under_floors), g->thawed);
    return add_saturating(g->booked, free_growth);
}

static bool explain(const struct corral_ledger *l, uint32_t holder, uint64_t bytes, const struct growth *g,
                    struct corral_ledger_denial *why)
{
    if (bytes <= most(g)) {
        return true;
    }
    if (why) {
        const struct corral_ledger_holder *h = &l->holder[holder];
        const struct corral_ledger_role *role = &l->device[h->device].role[h->role];
        uint64_t beyond = bytes - g->booked;
        *why = (struct corral_ledger_denial){
            .reason = beyond > g->under_ceiling  ? CORRAL_LEDGER_OVER_CEILING
                      : beyond > g->under_floors ? CORRAL_LEDGER_OVER_FLOORS
                                                 : CORRAL_LEDGER_FROZEN,
            .device = h->device,
            .role = h->role,
            .bytes = bytes,
            .used = role->used,
            .floor = role->floor,
            .ceiling = role->ceiling,
            .available = most(g),
        };
    }
    return false;
}

bool corral_ledger_fits(const struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                        struct corral_ledger_denial *why)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX && holder_counts(l, &l->holder[holder]));
    struct growth g = growth_of(l, holder);
    return explain(l, holder, bytes, &g, why);
}

bool corral_ledger_step_fits(const struct corral_ledger *l, uint32_t holder, uint64_t declared,
                             struct corral_ledger_denial *why)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX && holder_counts(l, &l->holder[holder]));
    struct growth g = growth_of(l, holder);
    g.thawed =
        UINT64_MAX; /* a step books before it borrows: opening one is how a trainer grows while another's is open */
    return explain(l, holder, subtract_floor(declared, holder_use(&l->holder[holder])), &g, why);
}

uint64_t corral_ledger_available(const struct corral_ledger *l, uint32_t holder)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX && holder_counts(l, &l->holder[holder]));
    struct growth g = growth_of(l, holder);
    return most(&g);
}

uint64_t corral_ledger_room(const struct corral_ledger *l, uint32_t device, uint32_t role)
{
    struct growth g = growth_of_role(l, device, role);
    return most(&g);
}

static bool admit(struct corral_ledger *l, uint32_t holder, uint64_t bytes, struct corral_ledger_denial *why)
{
    if (corral_ledger_fits(l, holder, bytes, why)) {
        return true;
    }
    holder_role(l, &l->holder[holder])->denied++;
    return false;
}

/* ---- untagged charges ---- */

enum corral_status corral_ledger_reserve(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                         struct corral_ledger_denial *why)
{
    held(l, holder);
    if (!admit(l, holder, bytes, why)) {
        return CORRAL_DENIED;
    }
    struct charge c = charge_of(l, holder, CORRAL_KIND_HOST);
    c.reserved += bytes;
    c.kind_bytes += bytes;
    apply(l, &c);
    return CORRAL_OK;
}

void corral_ledger_commit(struct corral_ledger *l, uint32_t holder, uint64_t bytes)
{
    const struct corral_ledger_holder *h = held(l, holder);
    assert(bytes <= h->reserved);
    bytes = CORRAL_MIN(bytes, h->reserved);
    struct charge c = charge_of(l, holder, CORRAL_KIND_HOST);
    c.reserved -= bytes;
    c.committed += bytes;
    apply(l, &c);
}

/* Untagged bytes whose kind the caller does not say are host memory; those of a full table may be of another kind. */
static uint32_t kind_with(const struct corral_ledger_holder *h, uint64_t bytes)
{
    uint32_t best = CORRAL_KIND_HOST;
    for (uint32_t k = 0; k < CORRAL_KINDS && h->kind_bytes[best] < bytes; k++) {
        best = h->kind_bytes[k] > h->kind_bytes[best] ? k : best;
    }
    return best;
}

void corral_ledger_rollback(struct corral_ledger *l, uint32_t holder, uint64_t bytes)
{
    const struct corral_ledger_holder *h = held(l, holder);
    assert(bytes <= h->reserved);
    bytes = CORRAL_MIN(bytes, h->reserved);
    struct charge c = charge_of(l, holder, kind_with(h, bytes));
    c.reserved -= bytes;
    c.kind_bytes = subtract_floor(c.kind_bytes, bytes);
    apply(l, &c);
}

void corral_ledger_release(struct corral_ledger *l, uint32_t holder, uint64_t bytes)
{
    const struct corral_ledger_holder *h = held(l, holder);
    assert(bytes <= h->committed);
    bytes = CORRAL_MIN(bytes, h->committed);
    struct charge c = charge_of(l, holder, kind_with(h, bytes));
    c.committed -= bytes;
    c.kind_bytes = subtract_floor(c.kind_bytes, bytes);
    apply(l, &c);
}

enum corral_status corral_ledger_take_untagged(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                               enum corral_ledger_kind kind, struct corral_ledger_denial *why)
{
    held(l, holder);
    assert((uint32_t)kind < CORRAL_KINDS);
    if (!admit(l, holder, bytes, why)) {
        return CORRAL_DENIED;
    }
    struct charge c = charge_of(l, holder, kind);
    c.committed += bytes;
    c.kind_bytes += bytes;
    apply(l, &c);
    return CORRAL_OK;
}

void corral_ledger_give_back_untagged(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                      enum corral_ledger_kind kind)
{
    const struct corral_ledger_holder *h = held(l, holder);
    assert((uint32_t)kind < CORRAL_KINDS && bytes <= h->kind_bytes[kind] && bytes <= holder_use(h));
    struct charge c = charge_of(l, holder, CORRAL_MIN((uint32_t)kind, CORRAL_KINDS - 1));
    bytes = CORRAL_MIN(bytes, c.kind_bytes);
    uint64_t committed = CORRAL_MIN(bytes, h->committed);
    c.committed -= committed;
    c.reserved = subtract_floor(c.reserved, bytes - committed);
    c.kind_bytes -= bytes;
    apply(l, &c);
}

/* ---- tagged charges ---- */

/* A free slot goes into the charge, if there is one. */
static void tag(const struct corral_ledger *l, struct charge *c, uint64_t bytes, enum corral_ledger_kept kept)
{
    const struct corral_ledger_holder *h = &l->holder[c->holder];
    uint32_t slot = 0;
    if (l->allocation_free != 0 && l->allocation_free <= allocation_high(l)) {
        slot = l->allocation_free;
        c->free_head = l->allocation[slot - 1].next;
    } else if (allocation_high(l) < CORRAL_LEDGER_ALLOCATIONS_MAX) {
        slot = allocation_high(l) + 1;
        c->high = slot;
    } else {
        return;
    }
    c->allocation = slot;
    c->to = (struct corral_ledger_allocation){.bytes = bytes,
                                              .holder = c->holder + 1,
                                              .generation = l->allocation[slot - 1].generation + 1,
                                              .step = (uint32_t)h->step,
                                              .kind = (uint8_t)c->kind,
                                              .phase = (uint8_t)h->phase,
                                              .committed = (uint8_t)kept};
}

enum corral_status corral_ledger_take(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                      enum corral_ledger_kind kind, uint32_t *allocation,
                                      struct corral_ledger_denial *why)
{
    held(l, holder);
    assert((uint32_t)kind < CORRAL_KINDS);
    if (!admit(l, holder, bytes, why)) {
        return CORRAL_DENIED;
    }
    struct charge c = charge_of(l, holder, kind);
    c.reserved += bytes;
    c.kind_bytes += bytes;
    tag(l, &c, bytes, CORRAL_LEDGER_RESERVED);
    apply(l, &c);
    *allocation = c.allocation != 0 ? c.allocation - 1 : CORRAL_LEDGER_NONE;
    return CORRAL_OK;
}

uint64_t corral_ledger_take_measured(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                     enum corral_ledger_kind kind, uint32_t *allocation)
{
    held(l, holder);
    assert((uint32_t)kind < CORRAL_KINDS);
    struct growth g = growth_of(l, holder);
    g.thawed = UINT64_MAX;
    uint64_t admitted = CORRAL_MIN(bytes, most(&g));
    struct charge c = charge_of(l, holder, kind);
    c.committed += admitted;
    c.kind_bytes += admitted;
    tag(l, &c, admitted, CORRAL_LEDGER_COMMITTED);
    apply(l, &c);
    *allocation = c.allocation != 0 ? c.allocation - 1 : CORRAL_LEDGER_NONE;
    return admitted;
}

void corral_ledger_keep(struct corral_ledger *l, uint32_t allocation)
{
    const struct corral_ledger_allocation *a = allocated(l, allocation);
    if (a->committed == CORRAL_LEDGER_COMMITTED) {
        return;
    }
    struct charge c = charge_of_allocation(l, allocation);
    take_out(&c, a);
    c.committed += a->bytes;
    c.kind_bytes += a->bytes;
    c.to.committed = CORRAL_LEDGER_COMMITTED;
    apply(l, &c);
}

void corral_ledger_forget_left(struct corral_ledger *l, uint32_t holder)
{
    struct corral_ledger_holder *h = &l->holder[holder];
    if (h->pid == 0 || !h->left || holder_use(h) != 0) {
        return;
    }
    for (uint32_t i = 0; i < allocation_high(l); i++) {
        if (l->allocation[i].holder == holder + 1) {
            return; /* of no bytes, but others have its name */
        }
    }
    h->pid = 0;
    CORRAL_LEDGER_STEP();
    corral_ledger_trim_holders(l);
}

void corral_ledger_free_allocation(struct corral_ledger *l, uint32_t allocation)
{
    const struct corral_ledger_allocation *a = &l->allocation[allocation];
    struct charge c = charge_of_allocation(l, allocation);
    take_out(&c, a);
    c.to.holder = 0;
    c.to.orphan = 0;
    c.to.next = l->allocation_free;
    c.free_head = allocation + 1;
    apply(l, &c);
    corral_ledger_forget_left(l, c.holder);
}

void corral_ledger_give_back(struct corral_ledger *l, uint32_t allocation)
{
    struct corral_ledger_allocation *a = allocated(l, allocation);
    if (!corral_ledger_is_imported(l, allocation)) {
        corral_ledger_free_allocation(l, allocation);
        return;
    }
    a->orphan = 1; /* the last importer frees it */
    CORRAL_LEDGER_STEP();
    corral_ledger_drop_exports(l, allocation);
}

enum corral_status corral_ledger_resize(struct corral_ledger *l, uint32_t allocation, uint64_t bytes,
                                        struct corral_ledger_denial *why)
{
    const struct corral_ledger_allocation *a = allocated(l, allocation);
    if (bytes > a->bytes && !admit(l, a->holder - 1, bytes - a->bytes, why)) {
        return CORRAL_DENIED;
    }
    struct charge c = charge_of_allocation(l, allocation);
    take_out(&c, a);
    c.kind_bytes += bytes;
    if (bytes > a->bytes || a->committed == CORRAL_LEDGER_COMMITTED) {
        c.committed += bytes;
        c.to.committed = CORRAL_LEDGER_COMMITTED;
    } else {
        c.reserved += bytes;
    }
    c.to.bytes = bytes;
    apply(l, &c);
    return CORRAL_OK;
}
