/* The version that a sender pushed last, as one link sends it, and what became of its buckets since: the encodings of the push under way (delta/delta.h).
 *
 * The base is kept in packed order, `link->bytes` of it; or the caller keeps it (options.memory) and nothing is copied here. A bucket is encoded when it is asked for the first time in a push, and the same
 * bytes go to every receiver and are what brings the base up to date afterwards. A bucket whose encoding is not shorter than 3/4 of it, or comes when `encoded_max` bytes are there already, goes in full.
 * One thread. Between corral_base_begin() and corral_base_end() or corral_base_keep() the encodings stay where they are.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_ENCODE_BASE_H
#define CORRAL_TRANSPORT_WEIGHTS_ENCODE_BASE_H

#include "transport/weights/delta/delta.h"
#include "transport/weights/link/link.h"

struct corral_base;

struct corral_base_options {
    uint32_t element_bytes; /* that are compared and sent as one: 1, 2, 4 or 8; 0: 2 */
    uint64_t encoded_max;   /* 0: a quarter of the link */
    struct corral_shard *
        memory; /* NULL: a copy is kept here. Otherwise gathered from: at every push it has the version that was kept last */
};

enum corral_status corral_base_create(struct corral_base **out, const struct corral_link *link,
                                      const struct corral_base_options *options, struct corral_error *err);
void corral_base_destroy(struct corral_base *b);
CORRAL_DEFINE_CLEANUP(struct corral_base, corral_base_destroy)

/* What it holds: version 0, nothing. */
struct corral_delta_version corral_base_version(const struct corral_base *b);
/* For the ledger: the copy, scratch memory and the encodings there are now. */
uint64_t corral_base_memory(const struct corral_base *b);
/* The most that it can be. */
uint64_t corral_base_memory_max(const struct corral_base *b);
/* Spent so far on reading the source, of all that corral_base_encode() took. */
uint64_t corral_base_gather_ns(const struct corral_base *b);

/* A push of `version`, which is above the base's. */
void corral_base_begin(struct corral_base *b, uint64_t version);
/* *encoded NULL: in full. *digest, in both cases when this is the first call for the bucket, is that of the source's packed bytes; otherwise it is as it was. */
enum corral_status corral_base_encode(struct corral_base *b, struct corral_shard *source, uint32_t bucket,
                                      const void **encoded, uint64_t *bytes, struct corral_digest *digest,
                                      bool *digested, struct corral_error *err);
/* The push is over and the base is what it was. */
void corral_base_end(struct corral_base *b);
/* The push is over and its version, still in `source`, is the base from now on; `digest` is what receivers of this rank call it. After an error there is no base. */
enum corral_status corral_base_keep(struct corral_base *b, struct corral_shard *source, uint64_t version,
                                    struct corral_digest digest, struct corral_error *err);

#endif
