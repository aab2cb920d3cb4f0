#include "orchestrator/agent/limits.h"
#include "base/clock.h"
#include "base/text.h"
#include <stdio.h>
#include <string.h>

#define PPM 1000000u
#define HOLD_NS (30 * CORRAL_NS_PER_S) /* the coordinator itself waits 10 s beyond the deadline */

static const struct corral_ledger_role *limits_now(const struct corral_limits *l,
                                                   const struct corral_limits_entry *e)
{
    return &corral_quota_ledger(l->quota)->device[e->device].role[e->role];
}

/* ---- planning ---- */

static uint32_t find_role(const struct corral_ledger *l, const char *name)
{
    for (uint32_t r = 0; r < l->role_count; r++) {
        if (strcmp(l->role_name[r], name) == 0) {
            return r;
        }
    }
    return CORRAL_LEDGER_NONE;
}

static enum corral_status add_entries(const struct corral_ledger *l, const struct corral_limit_change *change,
                                      struct corral_limits *out, struct corral_error *err)
{
    uint32_t role = find_role(l, change->role);
    if (role == CORRAL_LEDGER_NONE) {
        return corral_fail(err, CORRAL_NOT_FOUND, "no role %s in the ledger", change->role);
    }
    for (uint32_t d = 0; d < l->device_count; d++) {
        const struct corral_ledger_role *now = &l->device[d].role[role];
        if (now->ceiling == 0) {
            continue;
        }
        if (out->count == CORRAL_LIMITS_ENTRIES_MAX) {
            return corral_fail(err, CORRAL_INVALID, "a role is named twice");
        }
        struct corral_limits_entry *e = &out->entry[out->count++];
        *e = (struct corral_limits_entry){.device = d,
                                          .role = role,
                                          .floor_before = now->floor,
                                          .ceiling_before = now->ceiling,
                                          .floor = change->set_floor ? change->floor : now->floor,
                                          .ceiling = change->set_ceiling ? change->ceiling : now->ceiling};
        if (e->ceiling == 0 || e->floor > e->ceiling) {
            char low[32], high[32];
            return corral_fail(err, CORRAL_INVALID,
                               "%s on %s: floor %s above ceiling %s; set both, or another one", change->role,
                               l->device[d].name, corral_format_bytes(e->floor, low, sizeof low),
                               corral_format_bytes(e->ceiling, high, sizeof high));
        }
    }
    return CORRAL_OK;
}

/* a + b, or UINT64_MAX: sizes come from a person. */
static uint64_t add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static enum corral_status check_device(const struct corral_ledger *l, uint32_t d,
                                       const struct corral_limits *limits, struct corral_error *err)
{
    const struct corral_ledger_device *device = &l->device[d];
    uint64_t floors = device->headroom, ceilings = 0;
    for (uint32_t r = 0; r < l->role_count; r++) {
        uint64_t low = device->role[r].floor, high = device->role[r].ceiling;
        for (uint32_t i = 0; i < limits->count; i++) {
            if (limits->entry[i].device == d && limits->entry[i].role == r) {
                low = limits->entry[i].floor;
                high = limits->entry[i].ceiling;
            }
        }
        floors = add(floors, low);
        ceilings = add(ceilings, high);
    }
    char sum[32], room[32], headroom[32];
    uint64_t most = (uint64_t)((double)device->physical * (double)device->overcommit_ppm / PPM);
    if (floors > device->physical) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s: floors and headroom (%s) would be %s together, the device has %s",
                           device->name, corral_format_bytes(device->headroom, headroom, sizeof headroom),
                           corral_format_bytes(floors, sum, sizeof sum),
                           corral_format_bytes(device->physical, room, sizeof room));
    }
    if (ceilings > most) {
        return corral_fail(
            err, CORRAL_INVALID,
            "%s: ceilings would be %s together, with overcommit %.2f at most %s may be: lower another "
            "role's ceiling in the same command",
            device->name, corral_format_bytes(ceilings, sum, sizeof sum),
            (double)device->overcommit_ppm / PPM, corral_format_bytes(most, room, sizeof room));
    }
    return CORRAL_OK;
}

enum corral_status corral_limits_plan(struct corral_quota *q, const struct corral_limit_change *changes,
                                      uint32_t count, struct corral_limits *out, struct corral_error *err)
{
    const struct corral_ledger *l = corral_quota_ledger(q);
    out->quota = q;
    out->fence = NULL;
    out->fence_ctx = NULL;
    out->count = 0;
    for (uint32_t i = 0; i < count; i++) {
        CORRAL_TRY(add_entries(l, &changes[i], out, err));
    }
    for (uint32_t i = 0; i < out->count; i++) {
        CORRAL_TRY(check_device(l, out->entry[i].device, out, err));
    }
    return CORRAL_OK;
}

/* ---- doing it ---- */

static enum corral_status change(const struct corral_limits *l, const struct corral_limits_entry *e,
                                 uint64_t low, uint64_t high, struct corral_error *err)
{
    const struct corral_ledger_role *now = limits_now(l, e);
    if (l->fence && high > now->ceiling) {
        CORRAL_TRY(l->fence(l->fence_ctx, e->device, e->role, high, err));
    }
    uint64_t before = now->ceiling;
    CORRAL_TRY(corral_quota_change_limits(l->quota, e->device, e->role, low, high, err));
    if (l->fence && high < before) {
        return l->fence(l->fence_ctx, e->device, e->role, high, err);
    }
    return CORRAL_OK;
}

/* Every failure while waiting is "not yet": the plan has been checked, so only present use can stand in the way. The first text is the one to tell. */
static enum corral_status not_yet(enum corral_status status, const struct corral_error *why, bool *waiting,
                                  struct corral_error *err)
{
    if (status == CORRAL_OK) {
        return CORRAL_OK;
    }
    if (status != CORRAL_STATE && status != CORRAL_DENIED && status != CORRAL_INVALID) {
        return corral_fail(err, status, "%s", why->text);
    }
    if (!*waiting) {
        corral_fail(err, CORRAL_STATE, "%s", why->text);
    }
    *waiting = true;
    return CORRAL_OK;
}

static enum corral_status lower_ceilings(const struct corral_limits *l, bool *waiting,
                                         struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_limits_entry *e = &l->entry[i];
        struct corral_error why;
        if (e->ceiling < e->ceiling_before) {
            uint64_t low = CORRAL_MIN(limits_now(l, e)->floor, e->ceiling);
            CORRAL_TRY(not_yet(change(l, e, low, e->ceiling, &why), &why, waiting, err));
        }
    }
    return CORRAL_OK;
}

/* First the floors that go down, at once the ones that go up: nobody can take the room between, except in these microseconds. What did not work is put back until the next try. */
static enum corral_status move_floors(const struct corral_limits *l, bool *waiting, struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_limits_entry *e = &l->entry[i];
        struct corral_error why;
        const struct corral_ledger_role *now = limits_now(l, e);
        if (e->floor < now->floor) {
            CORRAL_TRY(not_yet(change(l, e, e->floor, now->ceiling, &why), &why, waiting, err));
        }
    }
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_limits_entry *e = &l->entry[i];
        struct corral_error why;
        const struct corral_ledger_role *now = limits_now(l, e);
        if (e->floor > now->floor) {
            CORRAL_TRY(not_yet(change(l, e, e->floor, CORRAL_MAX(now->ceiling, e->floor), &why), &why,
                               waiting, err));
        }
    }
    if (!*waiting) {
        return CORRAL_OK;
    }
    for (int up = 0; up <= 1; up++) {
        for (uint32_t i = 0; i < l->count; i++) {
            const struct corral_limits_entry *e = &l->entry[i];
            const struct corral_ledger_role *now = limits_now(l, e);
            uint64_t low = CORRAL_MIN(e->floor_before, now->ceiling);
            if (up ? low > now->floor : low < now->floor) {
                (void)change(l, e, low, now->ceiling, NULL);
            }
        }
    }
    return CORRAL_OK;
}

/* Where ceilings are to go up: what the second fence refuses is refused before anybody commits. Its limit may be above the ledger's. */
static enum corral_status raise_fences(const struct corral_limits *l, struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_limits_entry *e = &l->entry[i];
        if (l->fence && e->ceiling > limits_now(l, e)->ceiling) {
            CORRAL_TRY(l->fence(l->fence_ctx, e->device, e->role, e->ceiling, err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_limits_prepare(const struct corral_limits *l, struct corral_error *err)
{
    bool waiting = false;
    CORRAL_TRY(lower_ceilings(l, &waiting, err));
    if (!waiting) {
        CORRAL_TRY(move_floors(l, &waiting, err));
    }
    return waiting ? CORRAL_STATE : raise_fences(l, err);
}

uint64_t corral_limits_hold_until(uint64_t now_ns, uint64_t deadline_ns)
{
    return CORRAL_MAX(now_ns, deadline_ns) + HOLD_NS;
}

enum corral_status corral_limits_commit(const struct corral_limits *l, struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        CORRAL_TRY(change(l, &l->entry[i], l->entry[i].floor, l->entry[i].ceiling, err));
    }
    return CORRAL_OK;
}

/* The second fence's limits that prepare had raised without the ledger's. */
static enum corral_status lower_fences(const struct corral_limits *l, struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_limits_entry *e = &l->entry[i];
        if (l->fence && e->ceiling > e->ceiling_before) {
            CORRAL_TRY(l->fence(l->fence_ctx, e->device, e->role, e->ceiling_before, err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_limits_undo(const struct corral_limits *l, struct corral_error *err)
{
    bool waiting = false;
    for (int up = 0; up <= 1; up++) {
        for (uint32_t i = 0; i < l->count; i++) {
            const struct corral_limits_entry *e = &l->entry[i];
            const struct corral_ledger_role *now = limits_now(l, e);
            struct corral_error why;
            uint64_t low = up ? e->floor_before : CORRAL_MIN(now->floor, e->floor_before);
            uint64_t high = up ? e->ceiling_before : CORRAL_MIN(now->ceiling, e->ceiling_before);
            CORRAL_TRY(not_yet(change(l, e, low, high, &why), &why, &waiting, err));
        }
    }
    return waiting ? CORRAL_STATE : lower_fences(l, err);
}
