/* What a trainer has used of its workers' streams, in whatever order records are used up. Cursors say "up to here" per worker; groups, packing and drops leave holes. This keeps, per worker, the records that were
 * handed over from the oldest that is not used on, and what is used beyond it: a state that is saved with a step names exactly the records that the step and those before it have used. Nothing is trained on twice after a restart from that state, and nothing is skipped. One thread, no I/O.
 *
 * A record is in one of three places: held (no batch has it), in batch b (numbered from 1, growing), used. The state "as of batch b" counts batches up to b as used. */
#ifndef CORRAL_TRAINER_HANDOFF_H
#define CORRAL_TRAINER_HANDOFF_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_HANDOFF_WORKERS_MAX 1024u
#define CORRAL_HANDOFF_RANGES_MAX (1u << 20)

struct corral_handoff;

struct corral_handoff_cursor { /* all of epochs before `epoch`, and up to `sequence` in it */
    uint32_t worker, epoch;
    uint64_t sequence;
};
struct corral_handoff_range { /* used beyond the cursor */
    uint32_t worker, epoch;
    uint64_t first, last;
};
/* Both sorted: cursors by worker, ranges by worker, epoch, first. */
struct corral_handoff_state {
    struct corral_handoff_cursor *cursor;
    struct corral_handoff_range *range;
    uint32_t cursor_count, range_count;
};

struct corral_handoff_record {
    uint32_t worker, epoch;
    uint64_t sequence;
    uint64_t batch; /* 0: none; set by corral_handoff_batch */
    bool used;
    void *user;
    struct corral_handoff_record *next;
};

/* The record is used up: its memory may go. Told once for each. */
typedef void (*corral_handoff_fn)(void *ctx, void *user);

enum corral_status corral_handoff_create(struct corral_handoff **out, corral_handoff_fn finish, void *ctx,
                                         struct corral_error *err);
/* What is still held is forgotten, not finished. */
void corral_handoff_destroy(struct corral_handoff *h);
/* Before the first add. CORRAL_INVALID: unsorted, out of range, a range that the cursor covers. */
enum corral_status corral_handoff_restore(struct corral_handoff *h, const struct corral_handoff_state *state,
                                          struct corral_error *err);
/* The next record of its worker's stream. *fresh false: a restored state says that it is used; it has been finished and `out` is not written. CORRAL_PROTOCOL: not after the one before it. */
enum corral_status corral_handoff_add(struct corral_handoff *h, uint32_t worker, uint32_t epoch,
                                      uint64_t sequence, void *user, bool *fresh,
                                      struct corral_handoff_record **out, struct corral_error *err);
void corral_handoff_batch(struct corral_handoff_record *record, uint64_t batch);
/* Finishes it; `record` may be gone afterwards. */
void corral_handoff_use(struct corral_handoff *h, struct corral_handoff_record *record);
uint64_t corral_handoff_held(const struct corral_handoff *h); /* not used */
uint64_t corral_handoff_beyond(
    const struct corral_handoff *h); /* used, with an older one of their worker that is not */
/* As of `batch`. The caller frees it. */
enum corral_status corral_handoff_save(const struct corral_handoff *h, uint64_t batch,
                                       struct corral_handoff_state *out, struct corral_error *err);
void corral_handoff_state_free(struct corral_handoff_state *state);
bool corral_handoff_covers(const struct corral_handoff_state *state, uint32_t worker, uint32_t epoch,
                           uint64_t sequence);

CORRAL_DEFINE_CLEANUP(struct corral_handoff, corral_handoff_destroy)

#endif
