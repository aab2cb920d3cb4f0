/* A destination that takes deltas: a shard around the shadow of the next version, and the version that the deltas start from. A bucket that comes encoded is made from the base's and goes into the shadow as a
 * whole, so the shadow needs no copy of the base beforehand, and all of it is written, as by a full push. Base and shadow may be the same memory.
 * It has no host address: lanes bring everything through staging. One thread at a time, as for every shard and link. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_ENCODE_ONTO_H
#define CORRAL_TRANSPORT_WEIGHTS_ENCODE_ONTO_H

#include "transport/weights/delta/delta.h"
#include "transport/weights/link/link.h"

struct corral_onto {
    struct corral_shard shard; /* give this to the lane */
    struct corral_shard *shadow, *base;
    struct corral_delta_version holds;
    uint64_t next, refused; /* refused: encodings that made no sense, since begin */
    uint8_t *packed, *encoded;
    uint64_t bucket_bytes;
};

/* Shadow and base are borrowed; the base's ops have fetch. Buffers are kept from one push to the next: of an `onto` that was zero, for one link. */
enum corral_status corral_onto_begin(struct corral_onto *onto, const struct corral_link *link,
                                     struct corral_shard *shadow, struct corral_shard *base,
                                     struct corral_delta_version holds, uint64_t next,
                                     struct corral_error *err);
void corral_onto_clear(struct corral_onto *onto);
/* Of its buffers. */
uint64_t corral_onto_memory(const struct corral_onto *onto);

#endif
