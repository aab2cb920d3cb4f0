/* What an agent saw of its node's devices: limits and use of each role, the physical readings beside them, and how long the device was busy. The agent fills and
 * sends it, the coordinator keeps the newest of every node, `rlctl quota show` asks for a fresh one. The message is in docs/spec/control.md. Plain data. Sizes are bytes.
 */
#ifndef CORRAL_ORCHESTRATOR_OBSERVED_H
#define CORRAL_ORCHESTRATOR_OBSERVED_H

#include "base/mpack.h"
#include "quota/ledger.h"
#include <jansson.h>

#define CORRAL_OBSERVED_UNKNOWN INT64_C(-1) /* of `foreign` */

struct corral_observed_role {
    char role[CORRAL_LEDGER_NAME_MAX];
    uint64_t floor, ceiling, used, peak, denied, booked, spilled, pinned, wanted;
    uint64_t overhead;  /* of `used`: what the driver takes for itself */
    uint64_t physical;  /* of its processes together, 0: not read */
    uint64_t processes; /* that hold memory there */
    uint64_t busy_ns;   /* time of the whole device that the role has used, since the agent began */
    bool busy_known;
};

struct corral_observed_device {
    char device[CORRAL_LEDGER_NAME_MAX];
    bool gpu;
    uint64_t memory, headroom, overcommit_ppm;
    uint64_t physical_used; /* 0: not read */
    int64_t foreign;        /* of it, by processes that the ledger does not know */
    uint64_t steps_open;
    uint64_t wall_ns, busy_ns; /* since the agent began; busy_ns over all roles, at most wall_ns */
    bool busy_known;
    uint32_t role_count;
    struct corral_observed_role role[CORRAL_LEDGER_ROLES_MAX]; /* those with a ceiling on the device */
};

struct corral_observed {
    uint32_t device_count;
    struct corral_observed_device *device; /* owned */
};

void corral_observed_free(struct corral_observed *o);
/* Everything of the ledger's side; readings of the device itself are left at 0 and unknown. */
enum corral_status corral_observed_from_ledger(const struct corral_ledger *l, struct corral_observed *out,
                                               struct corral_error *err);
struct corral_observed_role *corral_observed_find(struct corral_observed_device *d, const char *role);
/* The array of devices, as a value. */
void corral_observed_write(const struct corral_observed *o, struct corral_mpack_writer *w);
enum corral_status corral_observed_read(const struct corral_mpack_node *devices, struct corral_observed *out,
                                        struct corral_error *err);
/* An array of objects, the form in status.json; NULL when memory is gone. */
json_t *corral_observed_json(const struct corral_observed *o);

/* Devices with the same roles on them, over all nodes, as one line each: what a coarse split wastes. */
#define CORRAL_GROUPS_MAX 16
struct corral_device_group {
    char devices[128]; /* "a:6-7 b:0" */
    char roles[128];   /* "rollout 37 %, eval 2 %"; "" when nothing is known */
    uint32_t device_count;
    double idle; /* share of the time so far in which the devices did nothing; NaN: unknown */
    double idle_s;
    uint32_t role_count;
    char role[CORRAL_LEDGER_ROLES_MAX][CORRAL_LEDGER_NAME_MAX];
    double busy[CORRAL_LEDGER_ROLES_MAX]; /* by role, NaN: unknown */
};
/* Returns how many there are; more than CORRAL_GROUPS_MAX are put into the last. */
uint32_t corral_device_groups(const struct corral_observed *const *nodes, uint32_t node_count,
                              struct corral_device_group out[CORRAL_GROUPS_MAX]);

#endif
