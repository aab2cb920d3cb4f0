/* Memory for pushing a model that does not fit: sources whose whole range is many views of one small window, and destinations that keep one window per link.
 *
 * A source is an ordinary host shard: the window is mapped again and again over the rank's range, so every run of the plan is read where the layout says, and the machine's memory is read at its speed.
 * A destination scatters each bucket to the places that the layout says, modulo the link's window, which is larger than the reach of any bucket; it digests the bytes there at once, because a later
 * bucket may overwrite them, and answers with that digest when it is asked.
 */
#ifndef CORRAL_BENCH_WEIGHTS_MEMORY_H
#define CORRAL_BENCH_WEIGHTS_MEMORY_H

#include "transport/weights/link/link.h"

/* Filled from the seed. Nothing frees it: a benchmark has one. */
enum corral_status bench_source(struct corral_shard *out, uint64_t bytes, uint64_t seed,
                                struct corral_error *err);
/* Fill it anew. The bytes of two seeds differ everywhere. */
void bench_source_change(const struct corral_shard *source, uint64_t seed);

/* Changes about `fraction` of the 2-byte elements of `source`, and lets `before`, another shard of bench_source() with the same size, have what it had. */
void bench_source_step(struct corral_shard *source, struct corral_shard *before, double fraction,
                       uint64_t seed);
/* What an engine had of the version before, for deltas: fetched out of the trainers' memory of that version, by source rank. Borrows `before`. */
struct corral_shard bench_base_shard(struct corral_shard *before, uint64_t bytes);

struct bench_destination;
/* `links`: one per source rank, borrowed. */
enum corral_status bench_destination_create(struct bench_destination **out, struct corral_link *const *links,
                                            uint32_t count, struct corral_error *err);
struct corral_shard bench_destination_shard(struct bench_destination *d, uint64_t bytes);
/* The digests of what has come so far. */
void bench_destination_forget(struct bench_destination *d);
uint64_t bench_destination_memory(const struct bench_destination *d);
/* What arrived last as that bucket of the link from `source`. */
struct corral_digest bench_destination_digest(const struct bench_destination *d, uint32_t source,
                                              uint32_t bucket);

#endif
