/* A source that is cast on the way: for the plan, the digests and the lanes it is a rank of a layout of the destination's dtypes, whose bytes are made from the trainer's while a bucket is gathered. Scales are tensors of
 * their own, named NAME_scale_inv, f32: [rows, columns / 128] for blocks, [rows / 128, columns / 128] for tiles of the last two dimensions, rounded up. Nothing is kept but the scales of this rank.
 *
 * A rank that has a part of a scaled tensor must have whole blocks of it: borders at multiples of 128 or at the tensor's end. One scale for a tensor is not offered here: all ranks would have to agree on it first.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_CAST_SOURCE_H
#define CORRAL_TRANSPORT_WEIGHTS_CAST_SOURCE_H

#include "transport/weights/cast/cast.h"
#include "transport/weights/link/link.h"
#include "transport/weights/reshard/layout.h"

#define CORRAL_CAST_SCALE_SUFFIX "_scale_inv"
#define CORRAL_CAST_RULES_MAX 64u

/* The first rule that a tensor's name matches counts. */
struct corral_cast_rule {
    const char *
        pattern; /* as a shell's, `*` also for dots; NULL: linear weights, which are matrices other than embeddings and output layers */
    enum corral_dtype to;
    enum corral_cast_scaling scaling; /* NONE, BLOCKS or TILES */
};

struct corral_cast_source;

/* The layout as receivers see it: works for either side's. Pieces lie one after the other. CORRAL_UNSUPPORTED: a rank has a part of a block; CORRAL_INVALID: a rule that cannot be followed. */
enum corral_status corral_cast_layout(const struct corral_layout *layout,
                                      const struct corral_cast_rule *rules, uint32_t count,
                                      struct corral_layout **out, struct corral_error *err);

/* `bytes` of the rank's range from `offset` on. Any thread. */
typedef enum corral_status (*corral_cast_read_fn)(void *ctx, uint64_t offset, uint64_t bytes, void *out,
                                                  struct corral_error *err);
struct corral_cast_memory {
    const void *host; /* the rank's range; or NULL, and */
    corral_cast_read_fn read;
    void *ctx;
};
enum corral_status corral_cast_source_create(struct corral_cast_source **out,
                                             const struct corral_layout *layout,
                                             const struct corral_cast_rule *rules, uint32_t count,
                                             uint32_t rank, const struct corral_cast_memory *memory,
                                             struct corral_error *err);
void corral_cast_source_destroy(struct corral_cast_source *s);
CORRAL_DEFINE_CLEANUP(struct corral_cast_source, corral_cast_source_destroy)
/* Before each version: one pass over what is scaled, for its scales. */
enum corral_status corral_cast_source_prepare(struct corral_cast_source *s, struct corral_error *err);
/* Borrows s. Gather and digest only. */
struct corral_shard corral_cast_source_shard(struct corral_cast_source *s);
uint64_t corral_cast_source_memory(const struct corral_cast_source *s);

#endif
