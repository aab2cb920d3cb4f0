/* Bit-exact deltas between two versions of a part of the weights: a shard, or a bucket's packed bytes (link/link.h). Of what changed, the new values are sent, never differences: applying twice
 * gives the same, nothing drifts, and NaN and minus zero survive. Elements are compared as bits; their dtype does not matter, only their size. The format is docs/spec/weight-delta.md.
 *
 * A delta leads from one base to one next version, each named by number and digest. Who applies it says what it holds; anything else is CORRAL_STATE with both versions named, and the sender
 * answers with an anchor: the part in full. The digests are the caller's (corral_link_digest, or corral_digest_of the part): this code compares them and does not compute them, so that bytes are
 * not read once more than needed. After an apply, the caller compares the digest of the destination with `next`, before anybody may see it.
 *
 * Memory: a large shard is sent as a sequence of parts; encode and apply allocate nothing and need the buffers they are given. Any thread; the buffers must not change during a call, so a delta
 * in memory that a peer can write has to be copied out first. Hot path apart from the errors: no system call, allocation, lock, log. Byte order of the machine: little-endian.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_DELTA_DELTA_H
#define CORRAL_TRANSPORT_WEIGHTS_DELTA_DELTA_H

#include "base/error.h"
#include "base/hash.h"
#include <stdint.h>

#define CORRAL_DELTA_BLOCK_ELEMENTS 8192u
#define CORRAL_DELTA_HEADER_BYTES 96u
#define CORRAL_DELTA_TRAILER_BYTES 16u
#define CORRAL_DELTA_ELEMENTS_MAX (UINT64_C(1) << 40)

struct corral_delta_version {
    uint64_t version; /* a base is 1 or above, next is above its base */
    struct corral_digest digest;
};

struct corral_delta_part {
    uint32_t element_bytes;          /* 1, 2, 4 or 8 */
    uint64_t first, elements, total; /* the part is elements [first, first + elements) of total; not empty */
    struct corral_delta_version base, next;
};

enum corral_delta_kind {
    CORRAL_DELTA_NONE,
    CORRAL_DELTA_INDEX16, /* u16 indices in the block */
    CORRAL_DELTA_INDEX8,  /* per group of 256 elements a count, then u8 indices in the group */
    CORRAL_DELTA_BITMAP,
    CORRAL_DELTA_DENSE,
    CORRAL_DELTA_KINDS
};

struct corral_delta_stats {
    uint64_t changed; /* elements whose bits differ */
    uint64_t blocks[CORRAL_DELTA_KINDS];
};

/* Bytes that are always enough for the part's delta: a little more than the part itself. */
uint64_t corral_delta_room(const struct corral_delta_part *part);

/* Writes the delta from `base` to `next` to out[0, *bytes). CORRAL_AGAIN: it does not fit into `room` (out is then undefined): send the part in full. `stats` may be NULL. */
enum corral_status corral_delta_encode(const struct corral_delta_part *part, const void *base,
                                       const void *next, void *out, size_t room, size_t *bytes,
                                       struct corral_delta_stats *stats, struct corral_error *err);

/* What a delta says of itself, its form and checksum verified, its blocks not. */
enum corral_status corral_delta_peek(const void *delta, size_t bytes, struct corral_delta_part *out,
                                     struct corral_error *err);

/* Whether the delta may be applied to the part as `holds` describes it: element_bytes, first, elements, total and base are compared; next.version too unless it is 0, and next.digest is not looked at.
 * CORRAL_PROTOCOL: malformed, damaged, or for another part. CORRAL_STATE: for another base or next version. */
enum corral_status corral_delta_check(const struct corral_delta_part *holds, const void *delta, size_t bytes,
                                      struct corral_error *err);

/* Checks it wholly and then writes: after an error the destination is as it was. `destination` is the part's memory; `base` is the same pointer, or other memory, not overlapping, with the base's bytes, in which case
 * every byte of the destination is written. */
enum corral_status corral_delta_apply(const struct corral_delta_part *holds, const void *delta, size_t bytes,
                                      const void *base, void *destination, struct corral_error *err);

#endif
