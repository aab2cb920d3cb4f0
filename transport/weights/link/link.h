/* A link: everything that one source rank sends to one destination rank, as both sides compute it from the reshard plan, cut into buckets.
 *
 * The link's *stream* is the packed bytes of its copies in plan order. Bucket i is bytes [i * bucket_bytes, (i + 1) * bucket_bytes) of the stream (the last may be shorter). Each bucket is moved, digested,
 * acknowledged and sent again as one. A bucket may begin and end inside a run.
 * A *span* is a piece of a bucket that is contiguous on both sides; spans of a bucket come in stream order and are merged where both sides continue.
 * Immutable after creation; any thread.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LINK_LINK_H
#define CORRAL_TRANSPORT_WEIGHTS_LINK_LINK_H

#include "transport/weights/link/shard.h"
#include "transport/weights/reshard/plan.h"
#include <stdbool.h>
#include <sys/uio.h>

#define CORRAL_BUCKET_BYTES_MIN (64u << 10)
#define CORRAL_BUCKET_BYTES_MAX (1u << 30)
#define CORRAL_LINK_BUCKETS_MAX (1u << 23) /* fits the 24 bits of an RDMA immediate */

struct corral_link {
    uint32_t source, destination; /* ranks */
    uint32_t copy_count;
    const struct corral_reshard_copy *copy; /* borrowed from the plan, which must live longer */
    uint64_t *start;                        /* [copy_count + 1] where each copy begins in the stream */
    uint64_t bytes, bucket_bytes;
    uint64_t source_extent, destination_extent; /* end of the furthest byte touched in either shard */
    uint32_t buckets;
    struct corral_digest
        hash; /* of the plan's hash, both ranks and bucket_bytes: both sides must have the same */
};

/* An empty link (the two ranks have nothing to move) has no buckets and is not an error. CORRAL_INVALID: bucket_bytes out of range or not a multiple of 4096, more than CORRAL_LINK_BUCKETS_MAX buckets. */
enum corral_status corral_link_create(struct corral_link **out, const struct corral_reshard_plan *plan,
                                      uint32_t source, uint32_t destination, uint64_t bucket_bytes,
                                      struct corral_error *err);
void corral_link_destroy(struct corral_link *link);
CORRAL_DEFINE_CLEANUP(struct corral_link, corral_link_destroy)

uint64_t corral_link_bucket_size(const struct corral_link *link, uint32_t bucket);

struct corral_span {
    uint64_t source_offset, destination_offset, bytes;
};
struct corral_link_cursor {
    uint32_t copy;
    uint64_t at, end; /* in the stream */
    /* The loops of the copy: where they stand, the run they are at in both shards, and how much of it is done. */
    uint64_t index[CORRAL_TENSOR_RANK_MAX];
    uint64_t source, destination, in_run;
};
struct corral_link_cursor corral_link_seek(const struct corral_link *link, uint32_t bucket);
/* False at the end of the bucket. */
bool corral_link_next(const struct corral_link *link, struct corral_link_cursor *cursor,
                      struct corral_span *span);
/* Up to `room` next spans as an iovec over one side's buffer; returns how many, 0 at the end. For sendmsg and recvmsg. */
uint32_t corral_link_iovec(const struct corral_link *link, struct corral_link_cursor *cursor,
                           enum corral_link_side side, void *base, struct iovec *iov, uint32_t room);

/* Over host buffers that begin at their rank's offset 0. */
void corral_link_pack(const struct corral_link *link, uint32_t bucket, const void *source, void *packed);
void corral_link_unpack(const struct corral_link *link, uint32_t bucket, const void *packed,
                        void *destination);
/* The other way of unpack: out of the destination. */
void corral_link_fetch(const struct corral_link *link, uint32_t bucket, const void *destination,
                       void *packed);
void corral_link_copy(const struct corral_link *link, uint32_t bucket, const void *source, void *destination);
/* One run to where it stays: past the caches when the link is more than they hold (stream.h). unpack and copy do so too. */
void corral_link_place(const struct corral_link *link, void *to, const void *from, uint64_t bytes);
/* XXH3-128 with seed 0 over: link hash (lo, hi u64 little-endian), bucket u64, then the packed bytes. Position-sensitive, and different between links. */
struct corral_digest corral_link_digest(const struct corral_link *link, uint32_t bucket,
                                        enum corral_link_side side, const void *base);
/* The same of bytes that are packed already. */
struct corral_digest corral_link_digest_packed(const struct corral_link *link, uint32_t bucket,
                                               const void *packed);

#endif
