#include "quota/ledger_internal.h"

/* ---- names and readings ---- */

static const char *name_of(const char *const *names, size_t count, uint32_t at)
{
    return at < count && names[at] ? names[at] : "unknown";
}

const char *corral_ledger_reason_name(enum corral_ledger_reason reason)
{
    static const char *const name[] = {
        [CORRAL_LEDGER_FITS] = "fits",
        [CORRAL_LEDGER_OVER_CEILING] = "over ceiling",
        [CORRAL_LEDGER_OVER_FLOORS] = "over floors",
        [CORRAL_LEDGER_FROZEN] = "borrowing frozen",
    };
    return name_of(name, CORRAL_COUNT_OF(name), (uint32_t)reason);
}

const char *corral_ledger_kind_name(enum corral_ledger_kind kind)
{
    static const char *const name[CORRAL_KINDS] = {
        [CORRAL_KIND_HOST] = "host",         [CORRAL_KIND_DEVICE] = "device",
        [CORRAL_KIND_MANAGED] = "managed",   [CORRAL_KIND_VMM] = "vmm",
        [CORRAL_KIND_POOL] = "pool",         [CORRAL_KIND_ARRAY] = "array",
        [CORRAL_KIND_GRAPH] = "graph",       [CORRAL_KIND_EXTERNAL] = "external",
        [CORRAL_KIND_OVERHEAD] = "overhead", [CORRAL_KIND_MAPPING] = "mapping",
    };
    return name_of(name, CORRAL_COUNT_OF(name), (uint32_t)kind);
}

const char *corral_ledger_phase_name(enum corral_ledger_phase phase)
{
    static const char *const name[CORRAL_PHASES] = {
        [CORRAL_PHASE_NONE] = "none",           [CORRAL_PHASE_START] = "start",
        [CORRAL_PHASE_FORWARD] = "forward",     [CORRAL_PHASE_BACKWARD] = "backward",
        [CORRAL_PHASE_OPTIMIZER] = "optimizer", [CORRAL_PHASE_SYNC] = "sync",
        [CORRAL_PHASE_ROLLOUT] = "rollout",     [CORRAL_PHASE_EVAL] = "eval",
    };
    return name_of(name, CORRAL_COUNT_OF(name), (uint32_t)phase);
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

uint32_t corral_ledger_find_uuid(const struct corral_ledger *l, const uint8_t uuid[16])
{
    static const uint8_t none[16];
    for (uint32_t d = 0; d < device_count(l); d++) {
        if (memcmp(l->device[d].uuid, uuid, sizeof none) == 0 && memcmp(uuid, none, sizeof none) != 0) {
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
