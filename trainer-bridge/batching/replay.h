/* A replay buffer of records that somebody else's memory holds: who stays, who goes, who is sampled. FIFO, uniform, or by priority; bounded in items and bytes; deterministic for one order of calls and one generator. One
 * thread; nothing is allocated after create.
 *
 * An item goes when room is needed (the oldest first), when it has been sampled max_times, or when it is removed. One that is in a sample which has not been given back is not sampled any more then, and its
 * memory stays until it is: `released` is called for each item once, when nobody reads it any more.
 *
 * Priorities: P(i) = p_i^alpha / sum; the importance weight of a sample is (N * P(i))^-beta, divided by the largest there could be, so it is at most 1. Sums are kept in a tree whose inner nodes are always the sum of
 * their two children: they do not drift. */
#ifndef CORRAL_TRAINER_REPLAY_H
#define CORRAL_TRAINER_REPLAY_H

#include "base/error.h"
#include "base/rng.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_REPLAY_ITEMS_MAX (1u << 24)
#define CORRAL_REPLAY_NEWEST (-1.0) /* as a priority: the largest that any item has been given */

enum corral_replay_order {
    CORRAL_REPLAY_FIFO, /* the oldest, until it has been sampled max_times: a queue with max_times 1 */
    CORRAL_REPLAY_UNIFORM,
    CORRAL_REPLAY_PRIORITISED
};
enum corral_replay_reason {
    CORRAL_REPLAY_EVICTED,
    CORRAL_REPLAY_SAMPLED_OUT,
    CORRAL_REPLAY_REMOVED,
    CORRAL_REPLAY_CLOSED
};

struct corral_replay;
struct corral_replay_config {
    enum corral_replay_order order;
    uint32_t items_max;
    uint64_t bytes_max;
    uint32_t max_times; /* 0: no limit (not with FIFO) */
    double alpha;       /* prioritised: 0 is uniform */
    void (*released)(void *ctx, void *user, enum corral_replay_reason reason); /* must not call back */
    void *ctx;
};
struct corral_replay_sample {
    uint64_t key;
    void *user;
    uint32_t times; /* it has been sampled, this time included */
    double probability, weight;
};
struct corral_replay_stats {
    uint64_t items, bytes; /* those that wait to be given back included */
    uint64_t lent;         /* samples that have not been given back */
    uint64_t inserted, sampled, evicted, sampled_out, removed;
};

enum corral_status corral_replay_create(struct corral_replay **out, const struct corral_replay_config *config,
                                        struct corral_error *err);
/* Every item is released. */
void corral_replay_destroy(struct corral_replay *r);
/* Takes `user` on success. CORRAL_AGAIN: samples that have not been given back take the room. CORRAL_INVALID: larger than the buffer, or a priority that is none. */
enum corral_status corral_replay_insert(struct corral_replay *r, uint64_t bytes, double priority, void *user,
                                        uint64_t *key, struct corral_error *err);
/* One item, with replacement. CORRAL_AGAIN: there is none (whose priority is above 0). */
enum corral_status corral_replay_take(struct corral_replay *r, struct corral_rng *rng, double beta,
                                      struct corral_replay_sample *out, struct corral_error *err);
void corral_replay_give_back(struct corral_replay *r, uint64_t key);
/* False: the item is gone. `priority` is finite and not negative. */
bool corral_replay_set_priority(struct corral_replay *r, uint64_t key, double priority);
bool corral_replay_remove(struct corral_replay *r, uint64_t key);
uint32_t corral_replay_size(const struct corral_replay *r); /* items that can be sampled */
void corral_replay_stats(const struct corral_replay *r, struct corral_replay_stats *out);

CORRAL_DEFINE_CLEANUP(struct corral_replay, corral_replay_destroy)

#endif
