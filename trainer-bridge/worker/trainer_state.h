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

struct corral_trainer_state {
    struct corral_trainer_counters counters;
    uint32_t cursor_count;
    struct corral_traj_cursor cursor[CORRAL_TRAJ_WORKERS_MAX];
};

/* Counters of the newest state in a vault that no learner has opened yet; CORRAL_NOT_FOUND when it is empty. */
enum corral_status corral_trainer_state_peek(int vault_fd, struct corral_trainer_counters *out,
                                             struct corral_error *err);
uint64_t corral_trainer_state_bytes(const struct corral_ppo *ppo);
/* `out` has corral_trainer_state_bytes() bytes. */
void corral_trainer_state_pack(const struct corral_trainer_state *s, const struct corral_ppo *ppo, void *out);
enum corral_status corral_trainer_state_unpack(struct corral_trainer_state *s, struct corral_ppo *ppo,
                                               const void *in, uint64_t bytes, struct corral_error *err);

#endif
