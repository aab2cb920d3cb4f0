/* The newest deltas of a receiver, kept to bring an older copy up to date: a shadow that still holds version v - 2 takes the deltas to v - 1 and to v, which touch what changed, in place of a copy of the whole base.
 *
 * Deltas are kept by part and version, oldest dropped first when their bytes would go above the limit. One thread. The chain owns its copies. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_DELTA_CHAIN_H
#define CORRAL_TRANSPORT_WEIGHTS_DELTA_CHAIN_H

#include "transport/weights/delta/delta.h"

#define CORRAL_DELTA_CHAIN_ENTRIES_MAX 65536u

struct corral_delta_chain;
enum corral_status corral_delta_chain_create(struct corral_delta_chain **out, uint64_t bytes_max,
                                             struct corral_error *err);
void corral_delta_chain_destroy(struct corral_delta_chain *chain);
CORRAL_DEFINE_CLEANUP(struct corral_delta_chain, corral_delta_chain_destroy)

/* Keeps a copy of a delta that has been applied. One for the same part and base takes the place of the earlier. CORRAL_AGAIN: larger than the chain may be; not kept. */
enum corral_status corral_delta_chain_add(struct corral_delta_chain *chain, const void *delta, size_t bytes,
                                          struct corral_error *err);
/* Nothing of it is valid any more: a full push came in between. */
void corral_delta_chain_clear(struct corral_delta_chain *chain);
uint64_t corral_delta_chain_bytes(const struct corral_delta_chain *chain);

/* From what `holds` says is in `memory` to version `wanted`: all deltas on the way are found first, then applied one after the other. CORRAL_NOT_FOUND: one is missing; memory is as it was. On success
 * *digest is that of `wanted`. Any other error: a delta of the chain did not fit to what `holds` claims, and memory has one of the versions in between. */
enum corral_status corral_delta_chain_bring(const struct corral_delta_chain *chain,
                                            const struct corral_delta_part *holds, uint64_t wanted,
                                            void *memory, struct corral_digest *digest,
                                            struct corral_error *err);

#endif
