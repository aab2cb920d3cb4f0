#include "quota/ledger.h"

#include "base/text.h"
#include <assert.h>
#include <stdatomic.h>
#include <string.h>

/* Between two stores whose order matters when the process is killed between them. A killed process's stores up to that
 * point are seen by others in program order, so keeping the compiler from moving them is enough. The explorer test
 * defines it to stop at every one of these points. */
#ifndef CORRAL_LEDGER_STEP
#define CORRAL_LEDGER_STEP() atomic_signal_fence(memory_order_seq_cst)
#endif

#define BYTES_TEXT 32

static uint64_t add_saturating(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static uint64_t subtract_floor(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* Counts may come from a mapping that another process damaged; never index past the tables. */
static uint32_t device_count(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->device_count, CORRAL_LEDGER_DEVICES_MAX);
}

static uint32_t role_count(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->role_count, CORRAL_LEDGER_ROLES_MAX);
}

static uint32_t holder_high(const struct corral_ledger *l)
{
    return CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX);
}

static bool holder_counts(const struct corral_ledger *l, const struct corral_ledger_holder *h)
{
    return h->pid != 0 && h->device < device_count(l) && h->role < role_count(l);
}

static struct corral_ledger_role *holder_role(struct corral_ledger *l, const struct corral_ledger_holder *h)
{
    return &l->device[h->device].role[h->role];
}

void corral_ledger_init(struct corral_ledger *l)
{
    memset(l, 0, sizeof *l);
    l->magic = CORRAL_LEDGER_MAGIC;
    l->version = CORRAL_LEDGER_VERSION;
}

static enum corral_status check_name(const struct corral_ledger *l, const char *kind, const char *name,
                                     struct corral_error *err)
{
    size_t length = strnlen(name, CORRAL_LEDGER_NAME_MAX);
    if (length == 0 || length == CORRAL_LEDGER_NAME_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s name \"%.*s\": must have 1 to %d bytes", kind,
                           CORRAL_LEDGER_NAME_MAX, name, CORRAL_LEDGER_NAME_MAX - 1);
    }
    if (l->holder_high > 0) {
        return corral_fail(err, CORRAL_STATE, "%s %s: the ledger already has holders", kind, name);
    }
    return CORRAL_OK;
}

enum corral_status corral_ledger_add_role(struct corral_ledger *l, const char *name, uint32_t *out,
                                          struct corral_error *err)
{
    CORRAL_TRY(check_name(l, "role", name, err));
    if (corral_ledger_find_role(l, name) != UINT32_MAX) {
        return corral_fail(err, CORRAL_EXISTS, "role %s is already in the ledger", name);
    }
    if (l->role_count >= CORRAL_LEDGER_ROLES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "role %s: the ledger has room for %d roles", name,
                           CORRAL_LEDGER_ROLES_MAX);
    }
    strcpy(l->role_name[l->role_count], name);
    *out = l->role_count++;
    return CORRAL_OK;
}

enum corral_status corral_ledger_add_device(struct corral_ledger *l, const char *name, uint64_t physical,
                                            uint64_t headroom, uint32_t *out, struct corral_error *err)
{
    CORRAL_TRY(check_name(l, "device", name, err));
    if (corral_ledger_find_device(l, name) != UINT32_MAX) {
        return corral_fail(err, CORRAL_EXISTS, "device %s is already in the ledger", name);
    }
    if (l->device_count >= CORRAL_LEDGER_DEVICES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "device %s: the ledger has room for %d devices", name,
                           CORRAL_LEDGER_DEVICES_MAX);
    }
    if (headroom > physical) {
        char a[BYTES_TEXT], b[BYTES_TEXT];
        return corral_fail(err, CORRAL_INVALID, "device %s: headroom %s is more than its memory %s", name,
                           corral_format_bytes(headroom, a, sizeof a),
                           corral_format_bytes(physical, b, sizeof b));
    }
    struct corral_ledger_device *d = &l->device[l->device_count];
    strcpy(d->name, name);
    d->physical = physical;
    d->headroom = headroom;
    *out = l->device_count++;
    return CORRAL_OK;
}

static enum corral_status check_place(const struct corral_ledger *l, uint32_t device, uint32_t role,
                                      struct corral_error *err)
{
    if (device >= device_count(l) || role >= role_count(l)) {
        return corral_fail(err, CORRAL_INVALID, "device %u, role %u: the ledger has %u devices and %u roles",
                           device, role, l->device_count, l->role_count);
    }
    return CORRAL_OK;
}

enum corral_status corral_ledger_set_limits(struct corral_ledger *l, uint32_t device, uint32_t role,
                                            uint64_t floor, uint64_t ceiling, struct corral_error *err)
{
    CORRAL_TRY(check_place(l, device, role, err));
    if (l->holder_high > 0) {
        return corral_fail(err, CORRAL_STATE, "limits of %s on %s: the ledger already has holders",
                           l->role_name[role], l->device[device].name);
    }
    l->device[device].role[role].floor = floor;
    l->device[device].role[role].ceiling = ceiling;
    return CORRAL_OK;
}

static enum corral_status check_device_plan(const struct corral_ledger *l,
                                            const struct corral_ledger_device *d, double overcommit,
                                            struct corral_error *err)
{
    char a[BYTES_TEXT], b[BYTES_TEXT], c[BYTES_TEXT];
    uint64_t floors = 0, ceilings = 0;
    for (uint32_t r = 0; r < role_count(l); r++) {
        const struct corral_ledger_role *role = &d->role[r];
        if (role->floor > role->ceiling) {
            return corral_fail(err, CORRAL_INVALID, "device %s: %s has floor %s above its ceiling %s",
                               d->name, l->role_name[r], corral_format_bytes(role->floor, a, sizeof a),
                               corral_format_bytes(role->ceiling, b, sizeof b));
        }
        floors = add_saturating(floors, role->floor);
        ceilings = add_saturating(ceilings, role->ceiling);
    }
    uint64_t room = subtract_floor(d->physical, d->headroom);
    if (d->headroom > d->physical || floors > room) {
        return corral_fail(
            err, CORRAL_INVALID, "device %s: floors add up to %s, which is %s more than fits; at most %s do",
            d->name, corral_format_bytes(floors, a, sizeof a),
            corral_format_bytes(floors - room, b, sizeof b), corral_format_bytes(room, c, sizeof c));
    }
    /* In millionths, so that 1.2 x 100 MiB is 120 MiB and not a byte less. */
    unsigned __int128 limit = (unsigned __int128)d->physical * (uint64_t)(overcommit * 1e6 + 0.5) / 1000000;
    uint64_t fits = limit > UINT64_MAX ? UINT64_MAX : (uint64_t)limit;
    if (ceilings > fits) {
        return corral_fail(
            err, CORRAL_INVALID,
            "device %s: ceilings add up to %s, which is %s more than overcommit %.2f allows; at most %s do",
            d->name, corral_format_bytes(ceilings, a, sizeof a),
            corral_format_bytes(ceilings - fits, b, sizeof b), overcommit,
            corral_format_bytes(fits, c, sizeof c));
    }
    return CORRAL_OK;
}

enum corral_status corral_ledger_check_plan(const struct corral_ledger *l, double overcommit,
                                            struct corral_error *err)
{
    if (!(overcommit >= 1.0 && overcommit <= CORRAL_LEDGER_OVERCOMMIT_MAX)) {
        return corral_fail(err, CORRAL_INVALID, "overcommit %g: must be 1.0 to %.1f", overcommit,
                           CORRAL_LEDGER_OVERCOMMIT_MAX);
    }
    for (uint32_t d = 0; d < device_count(l); d++) {
        CORRAL_TRY(check_device_plan(l, &l->device[d], overcommit, err));
    }
    return CORRAL_OK;
}

/* The one place where charges change. The redo record is complete before it is named, and cleared last. */
static void apply(struct corral_ledger *l, uint32_t holder, uint64_t reserved, uint64_t committed)
{
    struct corral_ledger_holder *h = &l->holder[holder];
    struct corral_ledger_role *role = holder_role(l, h);
    uint64_t used = role->used - (h->reserved + h->committed) + reserved + committed;
    l->pending_reserved = reserved;
    l->pending_committed = committed;
    CORRAL_LEDGER_STEP();
    l->pending_holder = holder + 1;
    CORRAL_LEDGER_STEP();
    h->reserved = reserved;
    CORRAL_LEDGER_STEP();
    h->committed = committed;
    CORRAL_LEDGER_STEP();
    role->used = used;
    CORRAL_LEDGER_STEP();
    role->peak = CORRAL_MAX(role->peak, used);
    CORRAL_LEDGER_STEP();
    l->pending_holder = 0;
    CORRAL_LEDGER_STEP();
}

enum corral_status corral_ledger_join(struct corral_ledger *l, uint32_t device, uint32_t role, pid_t pid,
                                      uint64_t start_time, uint32_t *holder, struct corral_error *err)
{
    CORRAL_TRY(check_place(l, device, role, err));
    if (pid <= 0) {
        return corral_fail(err, CORRAL_INVALID, "process %d cannot hold memory", (int)pid);
    }
    if (l->device[device].role[role].ceiling == 0) {
        return corral_fail(err, CORRAL_NOT_FOUND, "role %s has no memory on device %s", l->role_name[role],
                           l->device[device].name);
    }
    uint32_t slot = 0;
    while (slot < holder_high(l) && l->holder[slot].pid != 0) {
        slot++;
    }
    if (slot == CORRAL_LEDGER_HOLDERS_MAX) {
        return corral_fail(err, CORRAL_NOMEM, "all %d holder slots of the ledger are in use",
                           CORRAL_LEDGER_HOLDERS_MAX);
    }
    struct corral_ledger_holder *h = &l->holder[slot];
    h->generation++;
    h->start_time = start_time;
    h->role = role;
    h->device = device;
    h->reserved = h->committed = 0;
    h->step = 0;
    l->holder_high = CORRAL_MAX(holder_high(l), slot + 1);
    CORRAL_LEDGER_STEP();
    h->pid = pid; /* from here on the slot counts */
    CORRAL_LEDGER_STEP();
    *holder = slot;
    return CORRAL_OK;
}

static struct corral_ledger_holder *held(struct corral_ledger *l, uint32_t holder)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX && holder_counts(l, &l->holder[holder]));
    return &l->holder[holder];
}

void corral_ledger_leave(struct corral_ledger *l, uint32_t holder)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX);
    struct corral_ledger_holder *h = &l->holder[holder];
    if (holder_counts(l, h)) {
        apply(l, holder, 0, 0);
    }
    h->pid = 0;
    CORRAL_LEDGER_STEP();
    uint32_t high = holder_high(l);
    while (high > 0 && l->holder[high - 1].pid == 0) {
        high--;
    }
    l->holder_high = high;
}

/* physical minus headroom minus what the other roles have or are guaranteed: the most this role may use. */
static uint64_t room_for(const struct corral_ledger *l, uint32_t device, uint32_t role)
{
    const struct corral_ledger_device *d = &l->device[device];
    uint64_t taken = d->headroom;
    for (uint32_t q = 0; q < role_count(l); q++) {
        if (q != role) {
            taken = add_saturating(taken, CORRAL_MAX(d->role[q].floor, d->role[q].used));
        }
    }
    return subtract_floor(d->physical, taken);
}

enum corral_status corral_ledger_reserve(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                         struct corral_ledger_denial *why)
{
    struct corral_ledger_holder *h = held(l, holder);
    struct corral_ledger_role *role = holder_role(l, h);
    uint64_t under_ceiling = subtract_floor(role->ceiling, role->used);
    uint64_t under_floors = subtract_floor(room_for(l, h->device, h->role), role->used);
    if (bytes <= under_ceiling && bytes <= under_floors) {
        apply(l, holder, h->reserved + bytes, h->committed);
        return CORRAL_OK;
    }
    role->denied++;
    if (why) {
        *why = (struct corral_ledger_denial){
            .reason = bytes > under_ceiling ? CORRAL_LEDGER_OVER_CEILING : CORRAL_LEDGER_OVER_FLOORS,
            .device = h->device,
            .role = h->role,
            .bytes = bytes,
            .used = role->used,
            .floor = role->floor,
            .ceiling = role->ceiling,
            .available = CORRAL_MIN(under_ceiling, under_floors),
        };
    }
    return CORRAL_DENIED;
}

void corral_ledger_commit(struct corral_ledger *l, uint32_t holder, uint64_t bytes)
{
    struct corral_ledger_holder *h = held(l, holder);
    assert(bytes <= h->reserved);
    apply(l, holder, h->reserved - bytes, h->committed + bytes);
}

void corral_ledger_rollback(struct corral_ledger *l, uint32_t holder, uint64_t bytes)
{
    struct corral_ledger_holder *h = held(l, holder);
    assert(bytes <= h->reserved);
    apply(l, holder, h->reserved - bytes, h->committed);
}

void corral_ledger_release(struct corral_ledger *l, uint32_t holder, uint64_t bytes)
{
    struct corral_ledger_holder *h = held(l, holder);
    assert(bytes <= h->committed);
    apply(l, holder, h->reserved, h->committed - bytes);
}

uint64_t corral_ledger_available(const struct corral_ledger *l, uint32_t holder)
{
    assert(holder < CORRAL_LEDGER_HOLDERS_MAX && holder_counts(l, &l->holder[holder]));
    const struct corral_ledger_holder *h = &l->holder[holder];
    const struct corral_ledger_role *role = &l->device[h->device].role[h->role];
    return subtract_floor(CORRAL_MIN(role->ceiling, room_for(l, h->device, h->role)), role->used);
}

void corral_ledger_repair(struct corral_ledger *l)
{
    if (l->pending_holder != 0 && l->pending_holder <= CORRAL_LEDGER_HOLDERS_MAX) {
        struct corral_ledger_holder *h = &l->holder[l->pending_holder - 1];
        h->reserved = l->pending_reserved;
        CORRAL_LEDGER_STEP();
        h->committed = l->pending_committed;
        CORRAL_LEDGER_STEP();
    }
    l->pending_holder = 0;
    CORRAL_LEDGER_STEP();
    for (uint32_t d = 0; d < device_count(l); d++) {
        uint64_t used[CORRAL_LEDGER_ROLES_MAX] = {0};
        for (uint32_t i = 0; i < holder_high(l); i++) {
            const struct corral_ledger_holder *h = &l->holder[i];
            if (holder_counts(l, h) && h->device == d) {
                used[h->role] = add_saturating(used[h->role], add_saturating(h->reserved, h->committed));
            }
        }
        for (uint32_t r = 0; r < role_count(l); r++) {
            struct corral_ledger_role *role = &l->device[d].role[r];
            role->used = used[r];
            CORRAL_LEDGER_STEP();
            role->peak = CORRAL_MAX(role->peak, used[r]);
            CORRAL_LEDGER_STEP();
        }
    }
}

static bool device_consistent(const struct corral_ledger *l, uint32_t device)
{
    const struct corral_ledger_device *d = &l->device[device];
    uint64_t held_by[CORRAL_LEDGER_ROLES_MAX] = {0};
    for (uint32_t i = 0; i < holder_high(l); i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        if (holder_counts(l, h) && h->device == device) {
            held_by[h->role] = add_saturating(held_by[h->role], add_saturating(h->reserved, h->committed));
        }
    }
    uint64_t taken = d->headroom;
    for (uint32_t r = 0; r < role_count(l); r++) {
        const struct corral_ledger_role *role = &d->role[r];
        if (role->used != held_by[r] || role->used > role->ceiling || role->peak < role->used) {
            return false;
        }
        taken = add_saturating(taken, CORRAL_MAX(role->floor, role->used));
    }
    return taken <= d->physical;
}

bool corral_ledger_consistent(const struct corral_ledger *l)
{
    if (l->magic != CORRAL_LEDGER_MAGIC || l->version != CORRAL_LEDGER_VERSION || l->pending_holder != 0 ||
        l->device_count > CORRAL_LEDGER_DEVICES_MAX || l->role_count > CORRAL_LEDGER_ROLES_MAX ||
        l->holder_high > CORRAL_LEDGER_HOLDERS_MAX) {
        return false;
    }
    for (uint32_t i = 0; i < l->holder_high; i++) {
        if (l->holder[i].pid != 0 && !holder_counts(l, &l->holder[i])) {
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

void corral_ledger_reset_peaks(struct corral_ledger *l)
{
    for (uint32_t d = 0; d < device_count(l); d++) {
        for (uint32_t r = 0; r < role_count(l); r++) {
            l->device[d].role[r].peak = l->device[d].role[r].used;
        }
    }
}

uint64_t corral_ledger_slack(const struct corral_ledger *l, uint32_t device, uint32_t role)
{
    assert(device < device_count(l) && role < role_count(l));
    (void)role;
    const struct corral_ledger_device *d = &l->device[device];
    uint64_t taken = d->headroom;
    for (uint32_t q = 0; q < role_count(l); q++) {
        taken = add_saturating(taken, d->role[q].used);
    }
    return subtract_floor(d->physical, taken);
}

const char *corral_ledger_reason_name(enum corral_ledger_reason reason)
{
    static const char *const name[] = {
        [CORRAL_LEDGER_FITS] = "fits",
        [CORRAL_LEDGER_OVER_CEILING] = "over ceiling",
        [CORRAL_LEDGER_OVER_FLOORS] = "over floors",
    };
    return (size_t)reason < CORRAL_COUNT_OF(name) ? name[reason] : "unknown";
}

uint32_t corral_ledger_find_device(const struct corral_ledger *l, const char *name)
{
    for (uint32_t d = 0; d < device_count(l); d++) {
        if (strncmp(l->device[d].name, name, CORRAL_LEDGER_NAME_MAX) == 0) {
            return d;
        }
    }
    return UINT32_MAX;
}

uint32_t corral_ledger_find_role(const struct corral_ledger *l, const char *name)
{
    for (uint32_t r = 0; r < role_count(l); r++) {
        if (strncmp(l->role_name[r], name, CORRAL_LEDGER_NAME_MAX) == 0) {
            return r;
        }
    }
    return UINT32_MAX;
}
