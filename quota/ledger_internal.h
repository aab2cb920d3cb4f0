/* What the ledger's files share. An operation that changes more than one field writes down what it is about to do, names it in `pending`, does it through a
 * finish function that may be repeated, and clears `pending`; repair repeats the finish function. */
#ifndef CORRAL_QUOTA_LEDGER_INTERNAL_H
#define CORRAL_QUOTA_LEDGER_INTERNAL_H

#include "quota/ledger.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

/* Between two stores whose order matters when the process is killed between them. A killed process's stores up to that
 * point are seen by others in program order, so keeping the compiler from moving them is enough. The explorer test
 * defines it to stop at every one of these points. */
#ifndef CORRAL_LEDGER_STEP
#define CORRAL_LEDGER_STEP() atomic_signal_fence(memory_order_seq_cst)
#endif

enum pending_change {
    PENDING_NONE,
    PENDING_CHARGE,
    PENDING_LEAVE,
    PENDING_OPEN,
    PENDING_CLOSE,
    PENDING_LIMITS,
    PENDING_HAND_OVER,
};

/* Fields of the redo record, by change. Two 32-bit values share one field where the names say so. */
enum charge_field {
    CHARGE_HOLDER_KIND,
    CHARGE_RESERVED,
    CHARGE_COMMITTED,
    CHARGE_KIND_BYTES,
    CHARGE_ALLOCATION_OWNER, /* slot + 1 or 0; holder + 1, or 0 to free the slot */
    CHARGE_BYTES,
    CHARGE_TAG,
    CHARGE_GENERATION_NEXT,
    CHARGE_FREE_HIGH,
    CHARGE_USED,
    CHARGE_BOOKED,
};
enum leave_field { LEAVE_HOLDER };
enum step_field { STEP_HOLDER, STEP_SLOT, STEP_NUMBER, STEP_DECLARED };
enum limits_field { LIMITS_DEVICE, LIMITS_ROLE, LIMITS_FLOOR, LIMITS_CEILING };
enum hand_over_field {
    HAND_ALLOCATION,
    HAND_FROM,
    HAND_FROM_COMMITTED,
    HAND_FROM_KIND,
    HAND_TO,
    HAND_TO_COMMITTED,
    HAND_TO_KIND,
    HAND_KIND,
};

/* The record is complete before it is named. */
static inline void begin_change(struct corral_ledger *l, enum pending_change change)
{
    CORRAL_LEDGER_STEP();
    l->pending = change;
    CORRAL_LEDGER_STEP();
}

static inline void end_change(struct corral_ledger *l)
{
    CORRAL_LEDGER_STEP();
    l->pending = PENDING_NONE;
    CORRAL_LEDGER_STEP();
}

static inline uint64_t pack(uint32_t low, uint32_t high)
{
    return (uint64_t)high << 32 | low;
}

static inline uint64_t add_saturating(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static inline uint64_t subtract_floor(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* Counts may come from a mapping that another process damaged; never index past the tables. */
static inline uint32_t device_count(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->device_count, CORRAL_LEDGER_DEVICES_MAX);
}

static inline uint32_t role_count(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->role_count, CORRAL_LEDGER_ROLES_MAX);
}

static inline uint32_t holder_high(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX);
}

static inline uint32_t allocation_high(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->allocation_high, CORRAL_LEDGER_ALLOCATIONS_MAX);
}

static inline uint32_t share_high(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->share_high, CORRAL_LEDGER_SHARES_MAX);
}

static inline bool holder_counts(const struct corral_ledger *l, const struct corral_ledger_holder *h)
{
    return h->pid != 0 && h->device < device_count(l) && h->role < role_count(l);
}

static inline struct corral_ledger_role *holder_role(struct corral_ledger *l,
                                                     const struct corral_ledger_holder *h)
{
    return &l->device[h->device].role[h->role];
}

static inline uint64_t holder_use(const struct corral_ledger_holder *h)
{
    return add_saturating(h->reserved, h->committed);
}

/* What the holder's open step has booked and not yet taken. */
static inline uint64_t booking_left(const struct corral_ledger_holder *h)
{
    return h->step_slot != 0 ? subtract_floor(h->declared, holder_use(h)) : 0;
}

static inline uint64_t role_base(const struct corral_ledger_role *role)
{
    return add_saturating(role->used, role->booked);
}

static inline uint64_t role_claim(const struct corral_ledger_role *role)
{
    return CORRAL_MAX(role->floor, role_base(role));
}

static inline struct corral_ledger_holder *held(struct corral_ledger *l, uint32_t holder)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX && holder_counts(l, &l->holder[holder]));
    return &l->holder[holder];
}

static inline struct corral_ledger_allocation *allocated(struct corral_ledger *l, uint32_t allocation)
{
    assert(allocation < CORRAL_LEDGER_ALLOCATIONS_MAX && l->allocation[allocation].holder != 0);
    return &l->allocation[allocation];
}

/* ---- ledger.c ---- */
/* headroom + what the roles other than `role` have, have booked or are guaranteed. CORRAL_LEDGER_NONE: all roles. */
uint64_t corral_ledger_claims(const struct corral_ledger *l, const struct corral_ledger_device *d,
                              uint32_t except);
void corral_ledger_note_peaks(struct corral_ledger *l, uint32_t device);
void corral_ledger_recount(struct corral_ledger *l, uint32_t device);
void corral_ledger_finish_charge(struct corral_ledger *l);
void corral_ledger_free_allocation(struct corral_ledger *l, uint32_t allocation);
/* Frees the slot of a holder that has left and has no charge any more. */
void corral_ledger_forget_left(struct corral_ledger *l, uint32_t holder);

/* ---- ledger_step.c ---- */
void corral_ledger_fold_windows(struct corral_ledger *l, uint32_t device);
void corral_ledger_finish_open(struct corral_ledger *l);
void corral_ledger_finish_close(struct corral_ledger *l);

/* ---- ledger_share.c ---- */
bool corral_ledger_is_imported(const struct corral_ledger *l, uint32_t allocation);
void corral_ledger_drop_exports(struct corral_ledger *l, uint32_t allocation);
void corral_ledger_finish_leave(struct corral_ledger *l);
void corral_ledger_finish_hand_over(struct corral_ledger *l);
/* Orphans nobody maps go; orphans of owners that have left move to an importer with room. */
void corral_ledger_settle_orphans(struct corral_ledger *l);
void corral_ledger_trim_holders(struct corral_ledger *l);

/* ---- ledger_plan.c ---- */
void corral_ledger_finish_limits(struct corral_ledger *l);
enum corral_status corral_ledger_check_place(const struct corral_ledger *l, uint32_t device, uint32_t role,
                                             struct corral_error *err);

#endif
