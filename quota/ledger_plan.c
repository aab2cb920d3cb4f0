#include "quota/ledger_internal.h"

#include "base/text.h"

#define BYTES_TEXT 32

/* ---- set-up ---- */

size_t corral_ledger_bytes(void)
{
    return sizeof(struct corral_ledger);
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

void corral_ledger_set_uuid(struct corral_ledger *l, uint32_t device, const uint8_t uuid[16])
{
    assert(device < device_count(l));
    memcpy(l->device[device].uuid, uuid, sizeof l->device[device].uuid);
}

enum corral_status corral_ledger_check_place(const struct corral_ledger *l, uint32_t device, uint32_t role,
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
    CORRAL_TRY(corral_ledger_check_place(l, device, role, err));
    if (l->holder_high > 0) {
        return corral_fail(err, CORRAL_STATE, "limits of %s on %s: the ledger already has holders",
                           l->role_name[role], l->device[device].name);
    }
    l->device[device].role[role].floor = floor;
    l->device[device].role[role].ceiling = ceiling;
    return CORRAL_OK;
}

/* What the ceilings may add up to. In millionths, so that 1.2 x 100 MiB is 120 MiB and not a byte less. */
static uint64_t ceilings_max(const struct corral_ledger_device *d, uint64_t overcommit_ppm)
{
    unsigned __int128 limit = (unsigned __int128)d->physical * overcommit_ppm / 1000000;
    return limit > UINT64_MAX ? UINT64_MAX : (uint64_t)limit;
}

static enum corral_status check_device_plan(const struct corral_ledger *l,
                                            const struct corral_ledger_device *d, uint64_t overcommit_ppm,
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
    uint64_t fits = ceilings_max(d, overcommit_ppm);
    if (ceilings > fits) {
        return corral_fail(
            err, CORRAL_INVALID,
            "device %s: ceilings add up to %s, which is %s more than overcommit %.2f allows; at most %s do",
            d->name, corral_format_bytes(ceilings, a, sizeof a),
            corral_format_bytes(ceilings - fits, b, sizeof b), (double)overcommit_ppm / 1e6,
            corral_format_bytes(fits, c, sizeof c));
    }
    return CORRAL_OK;
}

enum corral_status corral_ledger_check_plan(struct corral_ledger *l, double overcommit,
                                            struct corral_error *err)
{
    if (!(overcommit >= 1.0 && overcommit <= CORRAL_LEDGER_OVERCOMMIT_MAX)) {
        return corral_fail(err, CORRAL_INVALID, "overcommit %g: must be 1.0 to %.1f", overcommit,
                           CORRAL_LEDGER_OVERCOMMIT_MAX);
    }
    uint64_t overcommit_ppm = (uint64_t)(overcommit * 1e6 + 0.5);
    for (uint32_t d = 0; d < device_count(l); d++) {
        CORRAL_TRY(check_device_plan(l, &l->device[d], overcommit_ppm, err));
    }
    for (uint32_t d = 0; d < device_count(l); d++) {
        l->device[d].overcommit_ppm = overcommit_ppm;
    }
    return CORRAL_OK;
}

/* ---- live changes ---- */

void corral_ledger_finish_limits(struct corral_ledger *l)
{
    const uint64_t *f = l->pending_field;
    if (f[LIMITS_DEVICE] >= device_count(l) || f[LIMITS_ROLE] >= role_count(l)) {
        return;
    }
    struct corral_ledger_role *role = &l->device[f[LIMITS_DEVICE]].role[f[LIMITS_ROLE]];
    role->floor = f[LIMITS_FLOOR];
    CORRAL_LEDGER_STEP();
    role->ceiling = f[LIMITS_CEILING];
    CORRAL_LEDGER_STEP();
    corral_ledger_note_peaks(l, (uint32_t)f[LIMITS_DEVICE]);
}

/* The limits as a plan: what could never hold, whoever gives back what. */
static enum corral_status check_new_limits(const struct corral_ledger *l, uint32_t device, uint32_t role,
                                           uint64_t floor, uint64_t ceiling, struct corral_error *err)
{
    const struct corral_ledger_device *d = &l->device[device];
    char a[BYTES_TEXT], b[BYTES_TEXT];
    if (floor > ceiling) {
        return corral_fail(err, CORRAL_INVALID, "%s on %s: floor %s is above ceiling %s", l->role_name[role],
                           d->name, corral_format_bytes(floor, a, sizeof a),
                           corral_format_bytes(ceiling, b, sizeof b));
    }
    uint64_t floors = d->headroom, ceilings = 0;
    for (uint32_t r = 0; r < role_count(l); r++) {
        if (r != role) {
            floors = add_saturating(floors, d->role[r].floor);
            ceilings = add_saturating(ceilings, d->role[r].ceiling);
        }
    }
    if (add_saturating(floors, floor) > d->physical) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s on %s: floor %s does not fit beside the other floors; at most %s does",
                           l->role_name[role], d->name, corral_format_bytes(floor, a, sizeof a),
                           corral_format_bytes(subtract_floor(d->physical, floors), b, sizeof b));
    }
    uint64_t limit = ceilings_max(d, d->overcommit_ppm != 0 ? d->overcommit_ppm : 1000000);
    if (ceiling > d->role[role].ceiling && add_saturating(ceilings, ceiling) > limit) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s on %s: ceiling %s is more than the overcommit allows; at most %s does",
                           l->role_name[role], d->name, corral_format_bytes(ceiling, a, sizeof a),
                           corral_format_bytes(subtract_floor(limit, ceilings), b, sizeof b));
    }
    return CORRAL_OK;
}

enum corral_status corral_ledger_change_limits(struct corral_ledger *l, uint32_t device, uint32_t role,
                                               uint64_t floor, uint64_t ceiling, struct corral_error *err)
{
    CORRAL_TRY(corral_ledger_check_place(l, device, role, err));
    CORRAL_TRY(check_new_limits(l, device, role, floor, ceiling, err));
    const struct corral_ledger_device *d = &l->device[device];
    char a[BYTES_TEXT], b[BYTES_TEXT];
    uint64_t base = role_base(&d->role[role]);
    if (ceiling < base) {
        return corral_fail(err, CORRAL_STATE, "%s on %s: uses %s; %s have to be given back first",
                           l->role_name[role], d->name, corral_format_bytes(base, a, sizeof a),
                           corral_format_bytes(base - ceiling, b, sizeof b));
    }
    uint64_t others = corral_ledger_claims(l, d, role);
    if (add_saturating(others, CORRAL_MAX(floor, base)) > d->physical) {
        return corral_fail(err, CORRAL_DENIED,
                           "%s on %s: others use memory of the new floor %s; at most %s fits now",
                           l->role_name[role], d->name, corral_format_bytes(floor, a, sizeof a),
                           corral_format_bytes(subtract_floor(d->physical, others), b, sizeof b));
    }
    uint64_t *f = l->pending_field;
    f[LIMITS_DEVICE] = device;
    f[LIMITS_ROLE] = role;
    f[LIMITS_FLOOR] = floor;
    f[LIMITS_CEILING] = ceiling;
    begin_change(l, PENDING_LIMITS);
    corral_ledger_finish_limits(l);
    end_change(l);
    return CORRAL_OK;
}

uint32_t corral_ledger_ask(struct corral_ledger *l, uint32_t device, uint32_t role, uint64_t bytes)
{
    assert(device < device_count(l));
    uint32_t asked = 0;
    for (uint32_t q = 0; q < role_count(l); q++) {
        struct corral_ledger_role *other = &l->device[device].role[q];
        if (q != role) {
            other->wanted = CORRAL_MIN(bytes, subtract_floor(other->used, other->floor));
            asked |= other->wanted > 0 ? UINT32_C(1) << q : 0;
        }
    }
    CORRAL_LEDGER_STEP();
    return asked;
}

/* ---- joining ---- */

enum corral_status corral_ledger_join(struct corral_ledger *l, uint32_t device, uint32_t role, pid_t pid,
                                      uint64_t start_time, uint32_t *holder, struct corral_error *err)
{
    CORRAL_TRY(corral_ledger_check_place(l, device, role, err));
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
    *h = (struct corral_ledger_holder){
        .generation = h->generation + 1, .start_time = start_time, .role = role, .device = device};
    l->holder_high = CORRAL_MAX(holder_high(l), slot + 1);
    CORRAL_LEDGER_STEP();
    h->pid = pid; /* from here on the slot counts */
    CORRAL_LEDGER_STEP();
    *holder = slot;
    return CORRAL_OK;
}
