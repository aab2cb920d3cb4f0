/* Batches from records, behind <corral/trainer.h>: what the reader does, without sockets and without a clock. Records go in as they come; batches come out by the mode that the options name; what a batch and those before it have used can
 * be saved at any time. A record is finished (told to `finish`) when the batch it is in, or the batch it was settled with, is done.
 *
 * Private to trainer_api.c and its tests. One thread. */
#ifndef CORRAL_TRAINER_ASSEMBLY_H
#define CORRAL_TRAINER_ASSEMBLY_H

#include "base/error.h"
#include "trainer-bridge/batching/handoff.h"
#include <corral/trainer.h>
#include <stdbool.h>

#define CORRAL_ASSEMBLY_BATCH_MAX (1u << 18) /* records of a batch */

struct corral_assembly;
typedef void (*corral_assembly_finish_fn)(void *ctx, const void *item);

enum corral_assembly_verdict {
    CORRAL_ASSEMBLY_USABLE,
    CORRAL_ASSEMBLY_FAILED,   /* a completion that failed outside its task: never trained on */
    CORRAL_ASSEMBLY_MALFORMED /* `why` says how */
};

/* `options` with nothing left at 0 that has a default. CORRAL_INVALID names the member. */
enum corral_status corral_assembly_check(struct corral_trainer_options *options, struct corral_error *err);
/* Checked options; pointers in them are not kept. */
enum corral_status corral_assembly_create(struct corral_assembly **out,
                                          const struct corral_trainer_options *options,
                                          corral_assembly_finish_fn finish, void *ctx,
                                          struct corral_error *err);
/* What is held is not finished. */
void corral_assembly_destroy(struct corral_assembly *a);

/* A record that came. Of `facts`, identity, data, bytes, tokens, version_min, group and score are read. `why` may be NULL. */
enum corral_status corral_assembly_add(struct corral_assembly *a, const struct corral_trainer_record *facts,
                                       enum corral_assembly_verdict verdict, const char *why,
                                       const void *item, uint64_t now_ns, struct corral_error *err);
/* False: nothing more should be taken in now (the limiter). */
bool corral_assembly_wants(const struct corral_assembly *a);
/* CORRAL_AGAIN: not enough is here; the text says what is missing. */
enum corral_status corral_assembly_next(struct corral_assembly *a, uint64_t now_ns,
                                        const struct corral_trainer_batch **out, struct corral_error *err);
/* A batch of nothing but what waits to be settled. CORRAL_AGAIN: nothing does. */
enum corral_status corral_assembly_settle(struct corral_assembly *a, const struct corral_trainer_batch **out,
                                          struct corral_error *err);
uint32_t corral_assembly_unsettled(const struct corral_assembly *a); /* records that do */
void corral_assembly_done(struct corral_assembly *a, const struct corral_trainer_batch *batch,
                          uint64_t version);
enum corral_status corral_assembly_priorities(struct corral_assembly *a,
                                              const struct corral_trainer_batch *batch,
                                              const double *priority, struct corral_error *err);
bool corral_assembly_replacement(struct corral_assembly *a, uint64_t *group, uint32_t *index);
/* When next() may give something without anything coming; UINT64_MAX: never. */
uint64_t corral_assembly_deadline(const struct corral_assembly *a);

/* docs/spec/trainer-cursors.md */
enum corral_status corral_assembly_save(const struct corral_assembly *a,
                                        const struct corral_trainer_batch *batch, uint64_t run, void *out,
                                        uint64_t *bytes, struct corral_error *err);
/* Before the first add. The streams' cursors are written to `cursors`, which has room for CORRAL_HANDOFF_WORKERS_MAX. */
enum corral_status corral_assembly_restore(struct corral_assembly *a, uint64_t run, const void *data,
                                           uint64_t bytes, struct corral_handoff_cursor *cursors,
                                           uint32_t *count, struct corral_error *err);
/* All but what the stream counts. */
void corral_assembly_stats(const struct corral_assembly *a, struct corral_trainer_stats *out);

CORRAL_DEFINE_CLEANUP(struct corral_assembly, corral_assembly_destroy)

#endif
