/* A consumer's insides: consumer.c takes records in and consumes them in steps; checkpoint.c makes that last. */
#ifndef CORRAL_TESTS_TRAJECTORY_CONSUMER_H
#define CORRAL_TESTS_TRAJECTORY_CONSUMER_H

#include "base/rng.h"
#include "tests/trajectory/world.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/wal/stream_log.h"
#include <corral/trajectory.h>

#define HELD_MAX 2048u
#define SPANS_MAX (HELD_MAX + 8)

/* What a checkpoint says: up to where the ledger counts, where the streams stood then, and what of the log is not needed for it. */
struct checkpoint {
    uint64_t magic, saved, ledger_bytes, log_low;
    uint32_t cursor_count, span_count;
    struct corral_traj_cursor cursor[PRODUCERS_MAX];
    struct corral_traj_span span[SPANS_MAX];
    uint64_t digest; /* of all before it */
};

struct held {
    const struct corral_traj_item *item;
    uint64_t digest;
};

struct consumer {
    struct world *w;
    struct world_role *role;
    struct world_consumer *me;
    uint32_t rank;
    struct corral_rng rng;
    struct corral_stream_log *log;
    struct corral_traj_receiver *receiver;
    struct corral_traj_view view;
    uint8_t expected[PAYLOAD_MAX];

    struct held held[HELD_MAX];
    uint32_t held_count;
    struct corral_traj_cursor seen[PRODUCERS_MAX]; /* handed out up to here */

    int ledger;
    uint64_t ledger_bytes, saved; /* records consumed, all lives together; what counts is in the checkpoint */
    struct checkpoint now, before, restored;
    bool has_before; /* an older checkpoint is kept */
    bool save_first; /* this life saves every step before it finishes its records */
    uint64_t steps, saved_at_step, trimmed, cut;
    struct corral_traj_receiver_stats told;
};

/* The newest checkpoint that is there; the ledger is cut to what it says. */
void checkpoint_restore(struct consumer *c);
/* Appends to the ledger; ends the process when the disk does not take it. */
void ledger_append(struct consumer *c, const struct ledger_entry *entries, uint32_t count);
/* With what is finished and `taken`; trims the log. Ends the process when the disk does not take it. */
void checkpoint_save(struct consumer *c, const struct corral_traj_item *const *taken, uint32_t count);
_Noreturn void consumer_disk_end(struct consumer *c, const char *what);

#endif
