/* Step-based batches: so many records of every worker, each worker's in the order they came, workers in index order. The same records give the same batch whatever order they arrived in between workers. What is beyond the batch waits for
 * the next one. One thread. */
#ifndef CORRAL_TRAINER_ROUNDS_H
#define CORRAL_TRAINER_ROUNDS_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_ROUNDS_WORKERS_MAX 1024u
#define CORRAL_ROUNDS_PER_WORKER_MAX 65536u
#define CORRAL_ROUNDS_QUEUE_MAX (1u << 20) /* of one worker */

struct corral_rounds;
enum corral_status corral_rounds_create(struct corral_rounds **out, uint32_t workers, uint32_t per_worker,
                                        struct corral_error *err);
void corral_rounds_destroy(struct corral_rounds *r);
/* Room for one more of the worker's: the next add cannot fail. Errors as of corral_rounds_add(). */
enum corral_status corral_rounds_reserve(struct corral_rounds *r, uint32_t worker, struct corral_error *err);
/* CORRAL_PROTOCOL: no such worker, or too far ahead of the others. */
enum corral_status corral_rounds_add(struct corral_rounds *r, uint32_t worker, void *item,
                                     struct corral_error *err);
/* Takes out whatever `drop` says yes to; how many. */
uint32_t corral_rounds_drop(struct corral_rounds *r, bool (*drop)(void *ctx, void *item), void *ctx);
bool corral_rounds_ready(const struct corral_rounds *r);
/* A batch: workers * per_worker items. 0: not ready. */
uint32_t corral_rounds_take(struct corral_rounds *r, void **out);
/* The worker of which most is missing, and how many are; UINT32_MAX when ready. */
uint32_t corral_rounds_waiting_for(const struct corral_rounds *r, uint32_t *missing);

CORRAL_DEFINE_CLEANUP(struct corral_rounds, corral_rounds_destroy)

#endif
