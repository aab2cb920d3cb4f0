/* A live change of limits on one node, as one transaction over its devices and roles: prepared, then committed or undone.
 *
 * Prepare does what can be refused and what takes room away: ceilings go down (a role that uses more is held where it is and asked to shrink), then floors move. Until it is
 * CORRAL_OK the caller calls it again, as long as it is willing to wait. Commit only lets ceilings go up, which nobody can refuse. Undo puts everything back; should somebody have
 * grown into the room meanwhile, it too has to be called again. In between every limit in force keeps invariant 1: nothing is ever promised twice.
 */
#ifndef CORRAL_ORCHESTRATOR_AGENT_LIMITS_H
#define CORRAL_ORCHESTRATOR_AGENT_LIMITS_H

#include "quota/shared.h"

#define CORRAL_LIMITS_ROLES_MAX CORRAL_LEDGER_ROLES_MAX
#define CORRAL_LIMITS_ENTRIES_MAX (CORRAL_LEDGER_DEVICES_MAX * CORRAL_LEDGER_ROLES_MAX)

/* What is asked for a role, on every device where it is. */
struct corral_limit_change {
    char role[CORRAL_LEDGER_NAME_MAX];
    bool set_floor, set_ceiling;
    uint64_t floor, ceiling;
};

struct corral_limits_entry {
    uint32_t device, role;
    uint64_t floor, ceiling;
    uint64_t floor_before, ceiling_before;
};

/* Told before a ceiling goes up and after one went down: the second fence follows. An error refuses the change. */
typedef enum corral_status (*corral_limits_fence_fn)(void *ctx, uint32_t device, uint32_t role,
                                                     uint64_t ceiling, struct corral_error *err);

struct corral_limits {
    struct corral_quota *quota;
    corral_limits_fence_fn fence; /* NULL: none */
    void *fence_ctx;
    uint32_t count;
    struct corral_limits_entry entry[CORRAL_LIMITS_ENTRIES_MAX];
};

/* Checks the limits as they would be against the plan's rules: floor <= ceiling, sum of floors + headroom <= physical, sum of ceilings <= overcommit x physical, on every device. The
 * text of CORRAL_INVALID says what would fit. Changes nothing. Roles that are not on this node are passed over; CORRAL_NOT_FOUND: the ledger does not know one. */
enum corral_status corral_limits_plan(struct corral_quota *q, const struct corral_limit_change *changes,
                                      uint32_t count, struct corral_limits *out, struct corral_error *err);
/* CORRAL_STATE: not yet, and who has to give back how much. The second fence's limits have room for the new ceilings when it is CORRAL_OK. */
enum corral_status corral_limits_prepare(const struct corral_limits *l, struct corral_error *err);
enum corral_status corral_limits_commit(const struct corral_limits *l, struct corral_error *err);
enum corral_status corral_limits_undo(const struct corral_limits *l, struct corral_error *err);
/* Until when a prepared node waits for the word: other nodes may still be preparing until `deadline_ns`, the asker's, and one that went ahead without this node would leave half a change. */
uint64_t corral_limits_hold_until(uint64_t now_ns, uint64_t deadline_ns);

#endif
