/* The pieces of the trainer worker, shared by its files only. */
#ifndef CORRAL_TRAINER_INTERNAL_H
#define CORRAL_TRAINER_INTERNAL_H

#include "trainer-bridge/step_guard/step_guard.h"
#include "trainer-bridge/worker/batch_queue.h"
#include "trainer-bridge/worker/lane_charge.h"
#include "trainer-bridge/worker/trainer_state.h"
#include "trainer-bridge/worker/trainer_worker.h"
#include "transport/trajectory/wal/stream_log.h"
#include "transport/weights/publisher.h"
#include "worker/state_vault.h"

struct corral_trainer {
    struct corral_session *session;
    const struct corral_trainer_config *config;
    uint32_t rank;
    struct corral_collective *collective;
    struct corral_collective_listener *listener; /* rank 0 with ranks on several nodes */
    struct corral_ppo *ppo;
    struct corral_state_vault *vault;
    struct corral_stream_log *log; /* NULL: records live in memory alone */
    struct corral_traj_receiver *receiver;
    struct corral_batch_queue *queue;
    struct corral_manifest *manifest;
    void *published; /* the weights of the last version pushed, for targets that missed it */
    struct corral_weight_publisher *publisher; /* rank 0 */
    struct corral_lane_charge lane_charge;     /* what its lanes hold */
    struct corral_publish_stats pushed;        /* rank 0: of the last version */
    struct corral_mpack_writer *out;
    struct corral_trainer_state state;
    bool
        standing; /* the number that versions count on from is agreed: how stale a record is can be told from here on */
    struct corral_step_guard *guard;     /* from when the state is restored */
    uint64_t refused_told;               /* refusals reported so far */
    bool unproven_told;                  /* the step before was unproven, and the log says so */
    uint32_t checkpoints;                /* begun in this life */
    struct corral_error service_failure; /* what went wrong while a collective waited; CORRAL_OK: nothing */
    /* what "group" told us */
    bool grouped;
    uint32_t generation;
    uint64_t group_step, version_floor, version_limit;
    char collective_endpoint[256];
};

#define CORRAL_EPISODES_REPORTED_MAX 4096 /* of one step and rank; more are counted, not listed */

/* What one gradient step did, for the report. */
struct corral_trainer_report {
    struct corral_ppo_stats ppo;
    struct corral_batch_staleness staleness;
    uint64_t wait_ns, train_ns, publish_ns;
    struct corral_proof_record proof;
    uint32_t episode_count;
    float episode[CORRAL_EPISODES_REPORTED_MAX][2];
};

/* trainer_worker.c: the program; messages from the coordinator. */
enum corral_status corral_trainer_poll(struct corral_trainer *t, uint32_t timeout_ms,
                                       struct corral_error *err);

/* trainer_group.c: coming up, in this order. */
enum corral_status corral_trainer_say_ready(struct corral_trainer *t, struct corral_error *err);
enum corral_status
corral_trainer_join_group(struct corral_trainer *t,
                          struct corral_error *err); /* returns early when told to finish */
enum corral_status corral_trainer_restore_state(struct corral_trainer *t, struct corral_error *err);
enum corral_status corral_trainer_publish_where_we_stand(struct corral_trainer *t, struct corral_error *err);
/* The state as it is now, into the vault. Between steps only. */
void corral_trainer_save_state(struct corral_trainer *t);

/* trainer_log.c: the trajectory log of this rank. */
enum corral_status corral_trainer_log_open(struct corral_trainer *t, struct corral_error *err);
void corral_trainer_log_close(struct corral_trainer *t); /* after the receiver */
/* A checkpoint was restored, or none: does the log have all that is to come again? */
enum corral_status corral_trainer_log_check(struct corral_trainer *t, struct corral_error *err);
/* The weights that were version `from` go out as `to`. */
void corral_trainer_log_rebase(struct corral_trainer *t, uint64_t from, uint64_t to);
/* Nothing that the oldest kept checkpoint has covered is needed any more. A failure is logged: the log is larger than it must be. */
void corral_trainer_log_trim(struct corral_trainer *t);

/* trainer_step.c: steps until the run ends. The second is the collective's progress callback. */
enum corral_status corral_trainer_take_steps(struct corral_trainer *t, struct corral_trainer_report *report,
                                             struct corral_error *err);
void corral_trainer_on_collective_wait(void *ctx);

/* trainer_proof.c: the step guard of this rank. */
enum corral_status corral_trainer_guard_open(struct corral_trainer *t, struct corral_error *err);
/* Every rank opens its step, or none does: tried again, with pauses, for config->refused_ms. */
enum corral_trainer_go { CORRAL_TRAINER_GO, CORRAL_TRAINER_NOTHING, CORRAL_TRAINER_STOP };
enum corral_status corral_trainer_guard_begin(struct corral_trainer *t, bool something,
                                              enum corral_trainer_go *go, struct corral_error *err);
/* After the gradient, before the state is saved. */
enum corral_status corral_trainer_guard_end(struct corral_trainer *t, struct corral_trainer_report *report,
                                            struct corral_error *err);
/* End the chain in order and tell the coordinator where it ends. */
enum corral_status corral_trainer_guard_finish(struct corral_trainer *t, struct corral_error *err);
void corral_trainer_phase(struct corral_trainer *t, enum corral_ledger_phase phase);

/* trainer_publish.c: rank 0 publishes the current weights as state.counters.version; waits for a larger lease when the journalled one is used up. */
enum corral_status corral_trainer_publisher_open(struct corral_trainer *t, struct corral_error *err);
/* *granted is false only when the run ends while a larger lease is waited for: then nothing may be published. */
enum corral_status corral_trainer_next_version(struct corral_trainer *t, bool *granted,
                                               struct corral_error *err);
/* Offer the current version to targets that missed it; cheap when there are none. */
enum corral_status corral_trainer_catch_up(struct corral_trainer *t, struct corral_error *err);
enum corral_status corral_trainer_publish(struct corral_trainer *t, uint64_t *took_ns,
                                          struct corral_error *err);
enum corral_status corral_trainer_set_targets(struct corral_trainer *t,
                                              const struct corral_mpack_node *message,
                                              struct corral_error *err);

/* trainer_checkpoint.c: this rank's part of checkpoints/.step-N.tmp, and the report to the coordinator, which completes it. A failure to write is reported, not fatal. */
enum corral_status corral_trainer_checkpoint(struct corral_trainer *t, struct corral_error *err);
enum corral_status corral_trainer_restore_checkpoint(struct corral_trainer *t, struct corral_error *err);

#endif
