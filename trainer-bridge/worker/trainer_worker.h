/* The trainer worker program, over an open session: one rank of the job's learner.
 *
 *   wait for this step's fragments → gradient step → save the state to the vault → publish the version → barrier → acknowledge the fragments → report
 *
 * The order is the exactly-once argument. A fragment is acknowledged only when the state that contains it is committed on every rank; a trainer killed earlier
 * finds the state without it in the vault and gets the fragment again; a trainer killed later finds the state with it, and its cursors refuse the second copy.
 */
#ifndef CORRAL_TRAINER_WORKER_H
#define CORRAL_TRAINER_WORKER_H

#include "trainer-bridge/learners/ppo.h"
#include "worker/fragment_share.h"
#include "worker/session.h"

struct corral_trainer_config {
    struct corral_policy_layout layout;
    struct corral_ppo_config ppo;
    uint64_t seed;
    struct corral_fragment_share share;
    uint32_t transitions_max; /* rows x steps of this rank's share of one step */
    uint32_t agents;          /* rows per environment */
    uint32_t max_versions;
    uint64_t buffer_bytes;
    uint64_t
        fragment_bytes; /* at most, as corral_fragment_bytes() counts; buffer_bytes / share.workers is to hold any worker's quota of them */
    char bind[256];     /* "ipc://sock/traj-0" or "tcp://HOST:*" */
    uint32_t weights_every; /* gradient steps per version */
    uint32_t weights_deadline_ms;
    uint64_t schedule_env_steps; /* environment steps over which the schedules run; 0 = constant */
    uint64_t stop_steps,
        stop_env_steps; /* train no further than this, so that a run ends at the same step every time; 0 = no limit */
    uint64_t checkpoint_every; /* gradient steps; 0 = only when told to finish with one */
    char resume[1024];         /* checkpoint folder to start from when the vault is empty, or "" */
    bool collective_tcp;       /* ranks on several nodes */
    uint32_t collective_timeout_ms;
};

/* Run until the coordinator says finish (CORRAL_OK) or something fails. */
enum corral_status corral_trainer_worker_run(struct corral_session *session,
                                             const struct corral_trainer_config *config,
                                             struct corral_error *err);

#endif
