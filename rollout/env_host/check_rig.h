/* A batch of the plug-in under check, with the buffers where a stray access shows. Lives in the check's own process; a failure ends that process (check_fail). */
#ifndef CORRAL_ROLLOUT_CHECK_RIG_H
#define CORRAL_ROLLOUT_CHECK_RIG_H

#include "rollout/env_host/check.h"
#include "rollout/env_host/layout.h"
#include <stdnoreturn.h>

/* Shared with the parent. */
struct check_report {
    enum corral_check_result result;
    char text[400];
    char doing[160]; /* for the report of a crash or a hang */
};

struct check {
    const struct corral_check_config *config;
    struct check_report *report;
    struct corral_env_def *def;
    struct corral_env_spec spec;
    uint32_t aspect; /* the table row's argument */
    int captured_stdout;
};

CORRAL_PRINTF(2, 3) void check_doing(const struct check *c, const char *fmt, ...);
CORRAL_PRINTF(2, 3) void check_pass(const struct check *c, const char *fmt, ...);
CORRAL_PRINTF(2, 3) noreturn void check_fail(const struct check *c, const char *fmt, ...);
CORRAL_PRINTF(2, 3) noreturn void check_skip(const struct check *c, const char *fmt, ...);

enum rig_placement {
    RIG_LOOSE,    /* room on both sides */
    RIG_AT_START, /* an inaccessible page directly before each buffer */
    RIG_AT_END    /* an inaccessible page directly after each buffer's last 64-byte line */
};

enum { RIG_BUFFERS = 9, RIG_ENVS_MAX = 16 };

struct rig_memory {
    const char *name;
    char *map, *data;
    size_t map_bytes, bytes;
    bool read_only; /* while the plug-in runs */
};

struct rig {
    const struct check *c;
    struct corral_env *env;
    struct corral_env_buffers io;
    struct rig_memory memory[RIG_BUFFERS];
    struct corral_env_host host;
    uint32_t envs, agents, rows;
    bool poison; /* fill what step must write with nonsense first */
    /* per environment */
    uint64_t key[RIG_ENVS_MAX];    /* its seeds and actions follow from this */
    uint64_t stream[RIG_ENVS_MAX]; /* stream seed of the last reset */
    uint64_t resets[RIG_ENVS_MAX];
    uint64_t episode[RIG_ENVS_MAX]; /* since the last reset */
    uint64_t t[RIG_ENVS_MAX];       /* calls of step */
    uint32_t length[RIG_ENVS_MAX];  /* of the running episode */
    bool ended[RIG_ENVS_MAX];       /* by the last step */
    uint8_t *done;                  /* [rows] */
    /* memory lent through host->alloc */
    size_t lent, lent_ever, lent_wrongly;
    bool refuse;
};

/* Fails the check when the batch cannot be made. */
void rig_open(struct rig *r, const struct check *c, uint32_t envs, enum rig_placement placement);
/* As above, and returns the plug-in's status instead. */
enum corral_env_status rig_try_open(struct rig *r, const struct check *c, uint32_t envs,
                                    enum rig_placement placement, bool refuse_memory);
void rig_close(struct rig *r);
/* Reset environments (ids NULL: all): key k's n-th reset always has the same seed. */
void rig_reset(struct rig *r, const uint32_t *ids, uint32_t count);
void rig_reset_seed(struct rig *r, uint32_t e, uint64_t seed);
/* Actions, step, episode bookkeeping. Ended environments without autoreset are left as they are. */
void rig_step(struct rig *r, const uint32_t *ids, uint32_t count);
/* rig_step on all, and resets where there is no autoreset. */
void rig_advance(struct rig *r);
/* A fingerprint of what environment e shows. */
uint64_t rig_print(const struct rig *r, uint32_t e);
/* The same without reward and flags. */
uint64_t rig_print_view(const struct rig *r, uint32_t e);
/* Fails when something beside a buffer has been written. */
void rig_check_edges(const struct rig *r);
double rig_obs(const struct rig *r, const void *rows, uint32_t row, uint32_t element);

#endif
