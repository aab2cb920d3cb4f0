/* A shard: one rank's buffer of weights, which a link's bytes come from (a trainer rank's) or go to (the shadow of a node's copy, an engine's staging, a bench's synthesised bytes).
 * Offsets in it are those of the rank's layout (reshard/layout.h).
 *
 * Lanes that can, read and write `host` in place. Everything else goes bucket by bucket through ops with packed bytes (link.h), which is how memory of a device, or bytes
 * that are made on the fly, take part.
 * A shard is used by one thread at a time per link; several links may write disjoint parts of one shard at the same time.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LINK_SHARD_H
#define CORRAL_TRANSPORT_WEIGHTS_LINK_SHARD_H

#include "base/error.h"
#include "base/hash.h"
#include <stdint.h>

struct corral_link;
struct corral_shard;

enum corral_link_side { CORRAL_LINK_SOURCE, CORRAL_LINK_DESTINATION };

struct corral_shard_ops {
    const char *name; /* "host", "cuda", … */
    /* The bucket's packed bytes out of the shard (this side is the source). */
    enum corral_status (*gather)(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err);
    /* The bucket's packed bytes into the shard (this side is the destination). */
    enum corral_status (*scatter)(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                  const void *packed, struct corral_error *err);
    /* Digest of the bucket's bytes as they are in the shard now, in packed order (corral_link_digest's definition): of what arrived in final memory, not of what was received. */
    enum corral_status (*digest)(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err);
    /* May be NULL. The bucket's packed bytes as they are in the shard now, this side being the destination: of the version that a delta starts from. */
    enum corral_status (*fetch)(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                void *packed, struct corral_error *err);
    /* May be NULL; as scatter, from an encoding of `bytes` bytes, which another process may change meanwhile. One that makes no sense changes nothing and is no error: the bucket's digest tells. */
    enum corral_status (*decode)(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 const void *encoded, uint64_t bytes, struct corral_error *err);
};

struct corral_shard {
    const struct corral_shard_ops *ops;
    uint64_t bytes;
    void *host; /* the buffer, when it is host memory; NULL otherwise */
    /* Destination: host memory that lies in a shared mapping, which a sender on the same machine may map and write: its descriptor and the buffer's offset in it; fd -1 otherwise. */
    int fd;
    uint64_t fd_offset;
    /* Device memory: address and ordinal; 0 and -1 otherwise. */
    uint64_t device_address;
    int device;
    void *ctx; /* of ops */
};

/* ops over `host`, for both sides. */
extern const struct corral_shard_ops corral_shard_host_ops;
struct corral_shard corral_shard_host(void *buffer, uint64_t bytes); /* fd -1 */

#endif
