/* The fragments of the coming gradient step, in records as the receiver hands them out, sorted by worker. Each step takes a fixed number from every rollout worker, in sequence order, workers in index
 * order: the same fragments give the same batch whatever order they arrived in. Fragments beyond the quota wait for later steps. A fragment staler than the bound is dropped
 * here and counted; it is acknowledged by corral_batch_queue_finish_drops(), once the caller has saved the cursors that pass over it. A record that holds no
 * fragment that can be trained on is dropped in the same way. One thread. */
#ifndef CORRAL_TRAINER_BATCH_QUEUE_H
#define CORRAL_TRAINER_BATCH_QUEUE_H

#include "transport/trajectory/fragment.h"
#include "transport/trajectory/receiver.h"
#include "worker/fragment_share.h"

struct corral_batch_queue;

struct corral_batch_staleness {
    double mean;
    uint64_t max;
};

enum corral_status corral_batch_queue_create(struct corral_batch_queue **out,
                                             const struct corral_fragment_share *share, uint32_t rank,
                                             uint32_t max_versions, struct corral_error *err);
void corral_batch_queue_destroy(struct corral_batch_queue *q);
/* Weights of version `from` are out again as `to`. Versions before `to` keep their distance from it: also those behind `from`, of steps that are gone and will be taken again with the
 * fragments that these versions made. Oldest change first. */
#define CORRAL_BATCH_REBASES_MAX 8
void corral_batch_queue_rebase(struct corral_batch_queue *q, uint64_t from, uint64_t to);
/* Take in one record whose fragment would be trained on while `version` is the newest. Dropped at once when it is too stale or malformed. */
enum corral_status corral_batch_queue_add(struct corral_batch_queue *q, const struct corral_traj_item *item,
                                          uint64_t version, struct corral_error *err);
bool corral_batch_queue_ready(const struct corral_batch_queue *q);
/* The batch of the coming step, borrowed until corral_batch_queue_finish(). Only when ready. Too stale ones are dropped first: returns 0 and is no longer ready then. */
uint32_t corral_batch_queue_take(struct corral_batch_queue *q, uint64_t version,
                                 const struct corral_fragment *const **out,
                                 struct corral_batch_staleness *staleness);
/* The records of that batch, in the same order. */
uint32_t corral_batch_queue_items(const struct corral_batch_queue *q,
                                  const struct corral_traj_item *const **out);
/* The step that used the batch is committed: acknowledge its fragments. */
void corral_batch_queue_finish(struct corral_batch_queue *q, struct corral_traj_receiver *receiver);
/* Records dropped and not yet acknowledged. A trainer that acknowledged one before its cursors are saved would, started again, wait for it for ever. */
uint32_t corral_batch_queue_drops(const struct corral_batch_queue *q,
                                  const struct corral_traj_item *const **out);
void corral_batch_queue_finish_drops(struct corral_batch_queue *q, struct corral_traj_receiver *receiver);
uint64_t corral_batch_queue_dropped(const struct corral_batch_queue *q);   /* as too stale */
uint64_t corral_batch_queue_malformed(const struct corral_batch_queue *q); /* dropped for what is in them */
/* The worker whose fragment is missing most, for "waiting for rollout-3". UINT32_MAX when ready. */
uint32_t corral_batch_queue_waiting_for(const struct corral_batch_queue *q);

#endif
