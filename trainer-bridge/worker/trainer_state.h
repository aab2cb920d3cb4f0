/* All that a trainer rank needs to go on: counters, the published version, stream cursors, and the learner's own state, as one flat block. It goes into the vault after
 * every step and into checkpoints. Layout: docs/spec/checkpoint.md. */
#ifndef CORRAL_TRAINER_STATE_H
#define CORRAL_TRAINER_STATE_H

#include "trainer-bridge/learners/ppo.h"
#include "transport/trajectory/receiver.h"

struct corral_trainer_counters {
    uint64_t step;      /* gradient steps */
    uint64_t version;   /* last weight version published, or about to be, with this state */
    uint64_t pushes;    /* versions published */
    uint64_t env_steps; /* environment steps trained on, all ranks */
    uint64_t episodes;  /* that ended in fragments trained on, this rank */
};

/* Weights of version `from` were published again as `to`, above every number that had been seen. Staleness of what older versions made is counted as if they had been numbered on from there. */
struct corral_version_rebase {
    uint64_t from, to;
};
#define CORRAL_REBASES_MAX 8 /* the newest ones */

struct corral_trainer_state {
    struct corral_trainer_counters counters;
    uint64_t log_low; /* with a trajectory log: everything in it up to here is covered by the cursors */
    uint64_t reserved0;
    struct corral_version_rebase rebase[CORRAL_REBASES_MAX]; /* oldest first */
    uint32_t rebase_count;
    uint32_t cursor_count;
    struct corral_traj_cursor cursor[CORRAL_TRAJ_WORKERS_MAX];
};

/* Counters of the newest state in a vault that no learner has opened yet; CORRAL_NOT_FOUND when it is empty. */
enum corral_status corral_trainer_state_peek(int vault_fd, struct corral_trainer_counters *out,
                                             struct corral_error *err);
/* log_low of a state in a file. */
enum corral_status corral_trainer_state_log_low(const char *path, uint64_t *out, struct corral_error *err);
void corral_trainer_state_add_rebase(struct corral_trainer_state *s, uint64_t from, uint64_t to);
uint64_t corral_trainer_state_bytes(const struct corral_ppo *ppo);
/* `out` has corral_trainer_state_bytes() bytes. */
void corral_trainer_state_pack(const struct corral_trainer_state *s, const struct corral_ppo *ppo, void *out);
enum corral_status corral_trainer_state_unpack(struct corral_trainer_state *s, struct corral_ppo *ppo,
                                               const void *in, uint64_t bytes, struct corral_error *err);

#endif
