/* The trainer worker program, over an open session: one rank of the job's learner.
 *
 *   wait for this step's fragments → open the step in the ledger → gradient step → record it in the proof chain → save the state to the vault → publish the version → barrier →
 *   acknowledge the fragments → report
 *
 * The order is the exactly-once argument. A fragment is acknowledged only when the state that contains it is committed on every rank; a trainer killed earlier
 * finds the state without it in the vault and gets the fragment again; a trainer killed later finds the state with it, and its cursors refuse the second copy.
 *
 * The record comes before the state is saved, so a step that can be resumed from has its record; one whose record is all there is of it is taken again, and the chain's
 * "restart" record says from where. A step that is refused on one rank is taken on none: all try again, with growing pauses, for refused_ms; then every rank fails and the
 * coordinator's fault.* limits decide. The same when the disk has no room for its record.
 */
#ifndef CORRAL_TRAINER_WORKER_H
#define CORRAL_TRAINER_WORKER_H

#include "trainer-bridge/learners/ppo.h"
#include "transport/trajectory/wal/wal.h"
#include "transport/weights/form.h"
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
    struct {
        char folder[256]; /* "traj/rank-0"; "": records live in memory alone */
        uint64_t segment_bytes, bytes_max;
        enum corral_wal_sync sync;
        int zstd_level;
        bool keep_all; /* also what no checkpoint needs */
    } log;
    char bind[256];         /* "ipc://sock/traj-0" or "tcp://HOST:*" */
    uint32_t weights_every; /* gradient steps per version */
    uint32_t weights_deadline_ms;
    char weights_lanes[64]; /* between nodes, in order of preference: "rdma,tcp" */
    bool weights_delta;     /* between nodes: what has changed */
    uint32_t weights_anchor_every;
    enum corral_weight_cast weights_cast;
    uint64_t schedule_env_steps; /* environment steps over which the schedules run; 0 = constant */
    uint64_t stop_steps,
        stop_env_steps; /* train no further than this, so that a run ends at the same step every time; 0 = no limit */
    uint64_t checkpoint_every; /* gradient steps; 0 = only when told to finish with one */
    char resume[1024];         /* checkpoint folder to start from when the vault is empty, or "" */
    bool collective_tcp;       /* ranks on several nodes */
    uint32_t collective_timeout_ms;
    /* What the step guard is made with (trainer-bridge/step_guard/step_guard.h). */
    char proof[256];     /* this rank's chain file, "proof/trainer-0.chain" */
    char fences[256];    /* those that are live around this process, separated by spaces */
    uint64_t drift_max;  /* memory.drift */
    uint64_t declared;   /* declared peak of a gradient step of this process */
    uint32_t refused_ms; /* how long a refused step is tried again before the worker gives up */
    bool host_device;
};

/* Run until the coordinator says finish (CORRAL_OK) or something fails. */
enum corral_status corral_trainer_worker_run(struct corral_session *session,
                                             const struct corral_trainer_config *config,
                                             struct corral_error *err);

#endif
