#include "quota/shared_internal.h"

#include "base/log.h"

/* ---- untagged ---- */

enum corral_status corral_quota_reserve(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                        const char *what, struct corral_error *err)
{
    struct quota_request request = {.verb = REQUEST_RESERVE, .holder = holder, .bytes = bytes, .what = what};
    return corral_quota_request(q, &request, err);
}

/* More than the holder has is a bug of the caller, but it is somebody else's program: it is said, and the ledger stays right. */
static uint64_t at_most(uint64_t bytes, uint64_t has, const char *verb)
{
    if (bytes > has) {
        corral_log_error("memory ledger: a process gives back more than it has", LOG_STR("verb", verb),
                         LOG_U64("bytes", bytes), LOG_U64("has", has));
    }
    return CORRAL_MIN(bytes, has);
}

void corral_quota_commit(struct corral_quota *q, uint32_t holder, uint64_t bytes)
{
    if (corral_quota_lock_ours(q, holder)) {
        struct corral_ledger *l = &q->shared->ledger;
        corral_ledger_commit(l, holder, at_most(bytes, l->holder[holder].reserved, "commit"));
        corral_quota_unlock(q);
    }
}

void corral_quota_rollback(struct corral_quota *q, uint32_t holder, uint64_t bytes)
{
    if (corral_quota_lock_ours(q, holder)) {
        struct corral_ledger *l = &q->shared->ledger;
        corral_ledger_rollback(l, holder, at_most(bytes, l->holder[holder].reserved, "rollback"));
        corral_quota_unlock_released(q, l->holder[holder].device);
    }
}

void corral_quota_release(struct corral_quota *q, uint32_t holder, uint64_t bytes)
{
    if (corral_quota_lock_ours(q, holder)) {
        struct corral_ledger *l = &q->shared->ledger;
        corral_ledger_release(l, holder, at_most(bytes, l->holder[holder].committed, "release"));
        corral_quota_unlock_released(q, l->holder[holder].device);
    }
}

/* ---- tagged ---- */

/* An untagged charge has its kind where a tagged one has the slot's generation. */
static enum corral_ledger_kind untagged_kind(const struct corral_quota_charge *charge)
{
    return charge->generation < CORRAL_KINDS ? (enum corral_ledger_kind)charge->generation : CORRAL_KIND_HOST;
}

enum corral_status corral_quota_take(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                     enum corral_ledger_kind kind, const char *what,
                                     struct corral_quota_charge *out, struct corral_error *err)
{
    if ((uint32_t)kind >= CORRAL_KINDS) {
        return corral_fail(err, CORRAL_INVALID, "%s: no kind %d of memory", what, (int)kind);
    }
    struct quota_request request = {
        .verb = REQUEST_TAKE, .kind = kind, .holder = holder, .bytes = bytes, .what = what};
    CORRAL_TRY(corral_quota_request(q, &request, err));
    *out = (struct corral_quota_charge){
        .bytes = bytes, .holder = holder, .allocation = request.allocation, .generation = request.generation};
    return CORRAL_OK;
}

static struct corral_ledger_allocation *slot_of(const struct corral_quota *q,
                                                const struct corral_quota_charge *charge)
{
    if (charge->allocation >= CORRAL_LEDGER_ALLOCATIONS_MAX) {
        return NULL;
    }
    struct corral_ledger_allocation *a = &q->shared->ledger.allocation[charge->allocation];
    return a->generation == charge->generation && a->holder == charge->holder + 1 && !a->orphan ? a : NULL;
}

/* Nobody but the owner of the charge touches its slot while it lives, so marking it needs no lock. */
void corral_quota_keep(struct corral_quota *q, const struct corral_quota_charge *charge)
{
    if (!corral_quota_is_attached(q) || !corral_quota_is_ours(q, charge->holder)) {
        return;
    }
    struct corral_ledger_allocation *a = slot_of(q, charge);
    if (a && __atomic_load_n(&a->committed, __ATOMIC_RELAXED) == CORRAL_LEDGER_RESERVED) {
        __atomic_store_n(&a->committed, CORRAL_LEDGER_MARKED, __ATOMIC_RELAXED);
    }
}

static void drop_untagged(struct corral_ledger *l, const struct corral_quota_charge *charge)
{
    const struct corral_ledger_holder *h = &l->holder[charge->holder];
    enum corral_ledger_kind kind = untagged_kind(charge);
    corral_ledger_give_back_untagged(l, charge->holder, at_most(charge->bytes, h->kind_bytes[kind], "drop"),
                                     kind);
}

void corral_quota_drop(struct corral_quota *q, const struct corral_quota_charge *charge)
{
    if (!corral_quota_lock_ours(q, charge->holder)) {
        return;
    }
    struct corral_ledger *l = &q->shared->ledger;
    uint32_t device = l->holder[charge->holder].device;
    if (charge->allocation == CORRAL_LEDGER_NONE) {
        drop_untagged(l, charge);
    } else if (slot_of(q, charge)) {
        corral_ledger_give_back(l, charge->allocation);
    }
    corral_quota_unlock_released(q, device);
}

static enum corral_status resize_untagged(struct corral_quota *q, struct corral_quota_charge *charge,
                                          uint64_t bytes, const char *what, struct corral_error *err)
{
    if (bytes > charge->bytes) {
        struct quota_request request = {.verb = REQUEST_UNTAGGED,
                                        .kind = untagged_kind(charge),
                                        .holder = charge->holder,
                                        .bytes = bytes - charge->bytes,
                                        .what = what};
        CORRAL_TRY(corral_quota_request(q, &request, err));
    } else {
        struct corral_quota_charge part = *charge;
        part.bytes = charge->bytes - bytes;
        corral_quota_drop(q, &part);
    }
    charge->bytes = bytes;
    return CORRAL_OK;
}

enum corral_status corral_quota_resize(struct corral_quota *q, struct corral_quota_charge *charge,
                                       uint64_t bytes, const char *what, struct corral_error *err)
{
    if (charge->allocation == CORRAL_LEDGER_NONE) {
        return resize_untagged(q, charge, bytes, what, err);
    }
    struct quota_request request = {.verb = REQUEST_RESIZE,
                                    .holder = charge->holder,
                                    .allocation = charge->allocation,
                                    .generation = charge->generation,
                                    .bytes = bytes,
                                    .what = what};
    CORRAL_TRY(corral_quota_request(q, &request, err));
    charge->bytes = bytes;
    return CORRAL_OK;
}

void corral_quota_charge_measured(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                  enum corral_ledger_kind kind, struct corral_quota_charge *out,
                                  uint64_t *short_by)
{
    *out = (struct corral_quota_charge){.holder = holder, .allocation = CORRAL_LEDGER_NONE};
    *short_by = bytes;
    if ((uint32_t)kind >= CORRAL_KINDS || !corral_quota_lock_ours(q, holder)) {
        return;
    }
    struct corral_ledger *l = &q->shared->ledger;
    if (!corral_ledger_fits(l, holder, bytes, NULL)) {
        corral_quota_unlock(q);
        corral_quota_reap(q);
        if (!corral_quota_lock_ours(q, holder)) {
            return;
        }
    }
    out->bytes = corral_ledger_take_measured(l, holder, bytes, kind, &out->allocation);
    out->generation =
        out->allocation != CORRAL_LEDGER_NONE ? l->allocation[out->allocation].generation : kind;
    *short_by = bytes - out->bytes;
    corral_quota_unlock(q);
}

void corral_quota_resize_measured(struct corral_quota *q, struct corral_quota_charge *charge, uint64_t bytes,
                                  uint64_t *short_by)
{
    *short_by = bytes > charge->bytes ? bytes - charge->bytes : 0;
    if (!corral_quota_lock_ours(q, charge->holder)) {
        return;
    }
    struct corral_ledger *l = &q->shared->ledger;
    uint32_t device = l->holder[charge->holder].device;
    uint64_t target = bytes;
    if (*short_by > 0) {
        target = charge->bytes + CORRAL_MIN(*short_by, corral_ledger_available(l, charge->holder));
    }
    bool done = false;
    if (charge->allocation != CORRAL_LEDGER_NONE) {
        done = slot_of(q, charge) && corral_ledger_resize(l, charge->allocation, target, NULL) == CORRAL_OK;
    } else if (target >= charge->bytes) {
        done = corral_ledger_take_untagged(l, charge->holder, target - charge->bytes, untagged_kind(charge),
                                           NULL) == CORRAL_OK;
    } else {
        struct corral_quota_charge part = *charge;
        part.bytes = charge->bytes - target;
        drop_untagged(l, &part);
        done = true;
    }
    if (done) {
        charge->bytes = target;
        *short_by = bytes - target;
    }
    corral_quota_unlock_released(q, device);
}

/* ---- shares ---- */

static enum corral_status lock_checked(struct corral_quota *q, uint32_t holder, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    CORRAL_TRY(corral_quota_lock(q, err));
    if (!corral_quota_is_ours(q, holder)) {
        corral_quota_unlock(q);
        return corral_fail(err, CORRAL_STATE, "memory ledger: slot %u is not this process's any more",
                           holder);
    }
    return CORRAL_OK;
}

static enum corral_status try_export(struct corral_quota *q, const struct corral_quota_charge *charge,
                                     const uint64_t key[2], struct corral_error *err)
{
    CORRAL_TRY(lock_checked(q, charge->holder, err));
    enum corral_status status =
        slot_of(q, charge) ? corral_ledger_export(&q->shared->ledger, charge->allocation, key, err)
                           : corral_fail(err, CORRAL_STATE, "memory ledger: the charge has been given back");
    corral_quota_unlock(q);
    return status;
}

static enum corral_status try_import(struct corral_quota *q, uint32_t holder, const uint64_t key[2],
                                     uint32_t *share, struct corral_error *err)
{
    CORRAL_TRY(lock_checked(q, holder, err));
    enum corral_status status = corral_ledger_import(&q->shared->ledger, holder, key, share, err);
    corral_quota_unlock(q);
    return status;
}

/* With the table full, slots of the dead may be among those in use. */
enum corral_status corral_quota_export(struct corral_quota *q, const struct corral_quota_charge *charge,
                                       const uint64_t key[2], struct corral_error *err)
{
    if (charge->allocation == CORRAL_LEDGER_NONE) {
        return corral_fail(err, CORRAL_UNSUPPORTED,
                           "memory ledger: the allocation table was full; an untagged charge has no name");
    }
    enum corral_status status = try_export(q, charge, key, err);
    return status == CORRAL_NOMEM && corral_quota_reap(q) > 0 ? try_export(q, charge, key, err) : status;
}

enum corral_status corral_quota_import(struct corral_quota *q, uint32_t holder, const uint64_t key[2],
                                       uint32_t *share, struct corral_error *err)
{
    enum corral_status status = try_import(q, holder, key, share, err);
    return status == CORRAL_NOMEM && corral_quota_reap(q) > 0 ? try_import(q, holder, key, share, err)
                                                              : status;
}

void corral_quota_drop_share(struct corral_quota *q, uint32_t share)
{
    if (share >= CORRAL_LEDGER_SHARES_MAX || !corral_quota_is_attached(q) ||
        !corral_quota_lock_patiently(q)) {
        return;
    }
    struct corral_ledger *l = &q->shared->ledger;
    uint32_t holder = l->share[share].holder;
    if (l->share[share].allocation == 0 || holder == 0 || !corral_quota_is_ours(q, holder - 1)) {
        corral_quota_unlock(q);
        return;
    }
    corral_ledger_drop_share(l, share);
    corral_quota_unlock_released(q, l->holder[holder - 1].device);
}

/* ---- steps, tags, counts ---- */

void corral_quota_set_step(struct corral_quota *q, uint32_t holder, uint64_t step)
{
    if (corral_quota_lock_ours(q, holder)) {
        q->shared->ledger.holder[holder].step = step;
        corral_quota_unlock(q);
    }
}

void corral_quota_set_phase(struct corral_quota *q, uint32_t holder, uint64_t step,
                            enum corral_ledger_phase phase)
{
    if (corral_quota_lock_ours(q, holder)) {
        corral_ledger_set_phase(&q->shared->ledger, holder, step, phase);
        corral_quota_unlock(q);
    }
}

uint64_t corral_quota_available(struct corral_quota *q, uint32_t holder)
{
    uint64_t available = 0;
    if (corral_quota_lock_ours(q, holder)) {
        available = corral_ledger_available(&q->shared->ledger, holder);
        corral_quota_unlock(q);
    }
    return available;
}

bool corral_quota_read_holder(struct corral_quota *q, uint32_t holder, struct corral_ledger_holder *out)
{
    bool ours = corral_quota_lock_ours(q, holder);
    if (ours) {
        *out = q->shared->ledger.holder[holder];
        corral_quota_unlock(q);
    }
    return ours;
}

uint64_t corral_quota_room(struct corral_quota *q, uint32_t device, uint32_t role)
{
    uint64_t room = 0;
    if (device < CORRAL_LEDGER_DEVICES_MAX && role < CORRAL_LEDGER_ROLES_MAX && corral_quota_is_attached(q) &&
        corral_quota_lock_patiently(q)) {
        room = corral_ledger_room(&q->shared->ledger, device, role);
        corral_quota_unlock(q);
    }
    return room;
}

void corral_quota_add_flags(struct corral_quota *q, uint32_t holder, uint32_t flags)
{
    if (corral_quota_lock_ours(q, holder)) {
        struct corral_ledger *l = &q->shared->ledger;
        l->device[l->holder[holder].device].unproven_marks += (flags & CORRAL_HOLDER_UNPROVEN) != 0;
        l->holder[holder].flags |= flags;
        corral_quota_unlock(q);
    }
}

void corral_quota_mark_rehearsing(struct corral_quota *q, uint32_t holder, bool rehearsing)
{
    if (corral_quota_lock_ours(q, holder)) {
        struct corral_ledger_holder *h = &q->shared->ledger.holder[holder];
        h->flags =
            rehearsing ? h->flags | CORRAL_HOLDER_REHEARSING : h->flags & ~(uint32_t)CORRAL_HOLDER_REHEARSING;
        corral_quota_unlock(q);
    }
}

enum corral_status corral_quota_open_step(struct corral_quota *q, uint32_t holder, uint64_t step,
                                          uint64_t declared, struct corral_error *err)
{
    struct quota_request request = {
        .verb = REQUEST_STEP, .holder = holder, .bytes = declared, .step = step, .what = "step"};
    return corral_quota_request(q, &request, err);
}

enum corral_status corral_quota_close_step(struct corral_quota *q, uint32_t holder,
                                           struct corral_ledger_window *out, struct corral_error *err)
{
    CORRAL_TRY(lock_checked(q, holder, err));
    struct corral_ledger *l = &q->shared->ledger;
    enum corral_status status = corral_ledger_close_step(l, holder, out, err);
    corral_quota_unlock_released(q, l->holder[holder].device);
    return status;
}

void corral_quota_count_spilled(struct corral_quota *q, uint32_t holder, int64_t bytes)
{
    if (corral_quota_lock_ours(q, holder)) {
        corral_ledger_count_spilled(&q->shared->ledger, holder, bytes);
        corral_quota_unlock(q);
    }
}

void corral_quota_count_pinned(struct corral_quota *q, uint32_t holder, int64_t bytes)
{
    if (corral_quota_lock_ours(q, holder)) {
        corral_ledger_count_pinned(&q->shared->ledger, holder, bytes);
        corral_quota_unlock(q);
    }
}
