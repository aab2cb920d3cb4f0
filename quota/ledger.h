/* The memory ledger of one node: who may take how much of each device, and who has taken it.
 *
 * Plain C over one flat struct: no I/O, no clock, no lock, no pointer. The caller serialises access (quota/shared.h does it
 * across processes with a robust lock), so the same functions run in tests, models and every worker.
 *
 * Invariant 1 of the architecture, checked by every reservation on device d, with used_r = committed + reserved of role r:
 *     used_r + n <= ceiling_r    and    (used_r + n) + sum over q != r of max(floor_q, used_q) + headroom <= physical
 * so a floor that is not used is never lent. Check and charge are one call. All sizes are bytes.
 */
#ifndef CORRAL_QUOTA_LEDGER_H
#define CORRAL_QUOTA_LEDGER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CORRAL_LEDGER_DEVICES_MAX 64
#define CORRAL_LEDGER_ROLES_MAX 16
#define CORRAL_LEDGER_HOLDERS_MAX 512
#define CORRAL_LEDGER_NAME_MAX 32
#define CORRAL_LEDGER_MAGIC UINT32_C(0x4c435143) /* "CQCL" */
#define CORRAL_LEDGER_VERSION 1
#define CORRAL_LEDGER_OVERCOMMIT_MAX 1.3

struct corral_ledger_role {
    uint64_t floor, ceiling;
    uint64_t used;   /* committed + reserved */
    uint64_t peak;   /* highest used since corral_ledger_reset_peaks() */
    uint64_t denied; /* reservations refused */
};

struct corral_ledger_device {
    char name[CORRAL_LEDGER_NAME_MAX]; /* "a:3" */
    uint64_t physical, headroom;
    struct corral_ledger_role role
        [CORRAL_LEDGER_ROLES_MAX]; /* same order as ledger.role_name; floor = ceiling = 0: not on this device */
};

/* One process that holds memory on one device. A slot is never moved; a free slot has pid 0. */
struct corral_ledger_holder {
    int32_t pid;
    uint32_t generation; /* grows each time the slot is taken */
    uint64_t start_time; /* of the process, from /proc/PID/stat: pid reuse is not mistaken for life */
    uint32_t role, device;
    uint64_t reserved, committed;
    uint64_t step; /* the holder's current gradient step, for records */
};

struct corral_ledger {
    uint32_t magic, version;
    uint32_t device_count, role_count, holder_high; /* holders in [0, holder_high) may be in use */
    /* Redo record of the charge being changed: slot + 1, or 0 when no operation is under way. It is what makes an
     * operation whole or absent when its process dies inside it; corral_ledger_repair() finishes it. */
    uint32_t pending_holder;
    uint64_t pending_reserved, pending_committed;
    char role_name[CORRAL_LEDGER_ROLES_MAX][CORRAL_LEDGER_NAME_MAX];
    struct corral_ledger_device device[CORRAL_LEDGER_DEVICES_MAX];
    struct corral_ledger_holder holder[CORRAL_LEDGER_HOLDERS_MAX];
};

_Static_assert(sizeof(struct corral_ledger_role) == 40, "shared layout");
_Static_assert(sizeof(struct corral_ledger_device) == 48 + 40 * CORRAL_LEDGER_ROLES_MAX, "shared layout");
_Static_assert(sizeof(struct corral_ledger_holder) == 48, "shared layout");

enum corral_ledger_reason { CORRAL_LEDGER_FITS, CORRAL_LEDGER_OVER_CEILING, CORRAL_LEDGER_OVER_FLOORS };

/* Why a reservation was refused, for the one structured log line. */
struct corral_ledger_denial {
    enum corral_ledger_reason reason;
    uint32_t device, role;
    uint64_t bytes, used, floor, ceiling, available; /* available: the most that would have fitted */
};

void corral_ledger_init(struct corral_ledger *l);
/* Set-up, before any holder. Names too long or tables full: CORRAL_INVALID. */
enum corral_status corral_ledger_add_role(struct corral_ledger *l, const char *name, uint32_t *out,
                                          struct corral_error *err);
enum corral_status corral_ledger_add_device(struct corral_ledger *l, const char *name, uint64_t physical,
                                            uint64_t headroom, uint32_t *out, struct corral_error *err);
enum corral_status corral_ledger_set_limits(struct corral_ledger *l, uint32_t device, uint32_t role,
                                            uint64_t floor, uint64_t ceiling, struct corral_error *err);
/* floor <= ceiling everywhere, 1 <= overcommit <= CORRAL_LEDGER_OVERCOMMIT_MAX, sum of floors + headroom <= physical, sum of ceilings <= overcommit * physical; the error says which
 * device, by how much, and what would fit. */
enum corral_status corral_ledger_check_plan(const struct corral_ledger *l, double overcommit,
                                            struct corral_error *err);

/* Take and give back a slot for a process. Leaving returns every charge it still has. */
enum corral_status corral_ledger_join(struct corral_ledger *l, uint32_t device, uint32_t role, pid_t pid,
                                      uint64_t start_time, uint32_t *holder, struct corral_error *err);
void corral_ledger_leave(struct corral_ledger *l, uint32_t holder);

const char *
corral_ledger_reason_name(enum corral_ledger_reason reason); /* "fits", "over ceiling", "over floors" */
/* Index of a name, or UINT32_MAX. */
uint32_t corral_ledger_find_device(const struct corral_ledger *l, const char *name);
uint32_t corral_ledger_find_role(const struct corral_ledger *l, const char *name);

/* reserve → commit | rollback → release. CORRAL_DENIED fills *why (may be NULL). Bytes committed or released may be parts;
 * more than the holder has is a bug of the caller. */
enum corral_status corral_ledger_reserve(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                         struct corral_ledger_denial *why);
void corral_ledger_commit(struct corral_ledger *l, uint32_t holder, uint64_t bytes);
void corral_ledger_rollback(struct corral_ledger *l, uint32_t holder, uint64_t bytes);
void corral_ledger_release(struct corral_ledger *l, uint32_t holder, uint64_t bytes);
/* The most the holder could reserve right now. */
uint64_t corral_ledger_available(const struct corral_ledger *l, uint32_t holder);
/* Finish the pending change and recompute role totals from the holders: what the next owner does when a process died inside
 * an operation. Doing it twice, or dying inside it, does no harm. */
void corral_ledger_repair(struct corral_ledger *l);
/* True when no change is pending, totals equal the holders' sums and invariant 1 holds on every device. */
bool corral_ledger_consistent(const struct corral_ledger *l);
void corral_ledger_reset_peaks(struct corral_ledger *l);
/* What is physically left for the role: physical - headroom - sum of every role's use, at least 0. While invariant 1 holds it is at
 * least the unused part of the role's floor, floor - used_r: that is what a step's record proves. */
uint64_t corral_ledger_slack(const struct corral_ledger *l, uint32_t device, uint32_t role);

#endif
