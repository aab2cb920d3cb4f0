/* A trainer's last two committed states in shared memory owned by the node's agent: a trainer killed at any instruction is restarted from the
 * step it had committed, without a disk write per step. Two slots are written in turn; a slot counts only when its digest matches, so a writer killed
 * half-way leaves the other one. The mapping (memfd) is inherited; the first trainer sizes it. One writer, one thread. It does not survive the
 * node: checkpoints on disk do.
 */
#ifndef CORRAL_WORKER_STATE_VAULT_H
#define CORRAL_WORKER_STATE_VAULT_H

#include "base/error.h"
#include <stdint.h>

struct corral_state_vault;

/* Agent: an empty vault. */
enum corral_status corral_state_vault_create(int *fd_out, struct corral_error *err);
/* The newest committed step of a vault not yet attached and the first `head_bytes` of its state, or CORRAL_NOT_FOUND when it is empty. head may be NULL. */
enum corral_status corral_state_vault_peek(int fd, uint64_t *step, void *head, uint64_t head_bytes,
                                           struct corral_error *err);
/* Trainer: attach; sizes an empty vault for states of at most state_bytes. A vault of another size is CORRAL_INVALID; a damaged slot is forgotten. */
enum corral_status corral_state_vault_attach(int fd, uint64_t state_bytes, struct corral_state_vault **out,
                                             struct corral_error *err);
void corral_state_vault_detach(struct corral_state_vault *v);

/* Room for the next state, state_bytes long; then commit it as `step`, which never goes back (a regrouped trainer saves the step it restored once more). Hot path: no system call. */
void *corral_state_vault_begin(struct corral_state_vault *v);
void corral_state_vault_commit(struct corral_state_vault *v, uint64_t step, uint64_t bytes);
/* The newest committed step, or CORRAL_NOT_FOUND. */
enum corral_status corral_state_vault_newest(const struct corral_state_vault *v, uint64_t *step,
                                             struct corral_error *err);
/* The committed state of exactly `step`; valid until the second commit after it. */
enum corral_status corral_state_vault_find(const struct corral_state_vault *v, uint64_t step,
                                           const void **state, uint64_t *bytes, struct corral_error *err);
/* Forget states newer than `step`: the group of trainers goes back to it. */
void corral_state_vault_rewind(struct corral_state_vault *v, uint64_t step);

#endif
