/* The rollout and eval worker programs, over an open session.
 *
 * A rollout worker steps its environments with the newest weights, taken in at step boundaries, and streams fragments to the trainers. It starts a fragment only while it
 * holds a lease: for the trainer rank that will get it, fewer than quota * (1 + max_versions) of its fragments are neither trained on nor dropped, where quota is how many that rank
 * takes of this worker in every gradient step. No step is then trained more than max_versions versions after it was chosen.
 *
 * An eval worker plays episodes on request with one pinned version and reports them; they never enter training.
 */
#ifndef CORRAL_ROLLOUT_WORKER_H
#define CORRAL_ROLLOUT_WORKER_H

#include "model/policy.h"
#include "rollout/env_host/vec.h"
#include "transport/trajectory/item.h"
#include "transport/weights/form.h"
#include "worker/fragment_share.h"
#include "worker/session.h"

struct corral_rollout_config {
    struct corral_vec_config env; /* memory and worker index are filled in by the worker */
    struct corral_policy_layout layout;
    enum corral_weight_cast cast; /* of the weights in the node's store */
    uint64_t seed;
    uint32_t fragment_steps;
    struct corral_fragment_share share;
    uint32_t max_versions;
    bool
        logged; /* trainers keep a trajectory log: no fragment is begun before they have said what is left in it */
    uint64_t window_bytes, ring_bytes; /* the ring to one trainer of this node, which is part of the window */
    enum corral_traj_transport transport;
    char snapshot[1024]; /* environment snapshot to start from, or "" */
};

/* Run until the coordinator says finish (CORRAL_OK) or something fails. */
enum corral_status corral_rollout_worker_run(struct corral_session *session,
                                             const struct corral_rollout_config *config,
                                             struct corral_error *err);
enum corral_status corral_eval_worker_run(struct corral_session *session,
                                          const struct corral_rollout_config *config,
                                          struct corral_error *err);

#endif
