/* Where the elements of a model's tensors lie on one side of a weight push: the trainer's ranks, or the ranks of the inference engines.
 *
 * Everything is one idea: a *piece* is a box of a global tensor (first index and length per dimension) that lies in one rank's buffer at a byte offset, with a byte stride per
 * dimension. Whatever a framework does is a set of pieces: a replica is one piece per rank; tensor parallelism cuts a box along a dimension; an FSDP flat range is up to
 * 2·dims-1 boxes; a fused qkv or gate_up weight is pieces of several global tensors at row offsets of one buffer; vocabulary padding is a
 * stride or rows that no piece covers; tied weights are two names of one tensor (alias).
 *
 * From the layouts of both sides the plan follows (plan.h): the same on every machine.
 * One thread. Elements are counted in the tensor's dtype, offsets and strides in bytes.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_RESHARD_LAYOUT_H
#define CORRAL_TRANSPORT_WEIGHTS_RESHARD_LAYOUT_H

#include "base/hash.h"
#include "base/safetensors.h"

#define CORRAL_LAYOUT_RANKS_MAX 4096
#define CORRAL_LAYOUT_TENSORS_MAX 65536
#define CORRAL_LAYOUT_PIECES_MAX (1u << 22)

struct corral_box {
    uint64_t first[CORRAL_TENSOR_RANK_MAX];
    uint64_t count[CORRAL_TENSOR_RANK_MAX]; /* all above 0 */
};

struct corral_piece {
    uint32_t tensor, rank;
    struct corral_box box;
    uint64_t offset;                         /* of the box's first element in the rank's buffer */
    uint64_t stride[CORRAL_TENSOR_RANK_MAX]; /* bytes from one index to the next, per dimension */
};

struct corral_layout_tensor {
    char name[CORRAL_TENSOR_NAME_MAX];
    enum corral_dtype dtype;
    uint32_t dims;
    uint64_t shape[CORRAL_TENSOR_RANK_MAX];
    uint32_t alias_of; /* index of the tensor it is tied to; itself otherwise */
};

struct corral_layout {
    uint32_t ranks, tensor_count, piece_count;
    struct corral_layout_tensor *tensor;
    struct corral_piece *piece; /* in the order added */
    uint64_t *rank_bytes;       /* end of the furthest piece: the buffer each rank needs */
    uint32_t tensor_room, piece_room;
    struct corral_layout_names *names;
};

enum corral_status corral_layout_create(struct corral_layout **out, uint32_t ranks, struct corral_error *err);
void corral_layout_destroy(struct corral_layout *l);
CORRAL_DEFINE_CLEANUP(struct corral_layout, corral_layout_destroy)

/* A tensor of the model, whole. dims 0 is a scalar. Twice the same name, a zero length or an overflow: CORRAL_INVALID. */
enum corral_status corral_layout_add_tensor(struct corral_layout *l, const char *name,
                                            enum corral_dtype dtype, uint32_t dims, const uint64_t *shape,
                                            uint32_t *out, struct corral_error *err);
/* `name` is another name of `tensor` (tied weights): both are moved once. */
enum corral_status corral_layout_add_alias(struct corral_layout *l, const char *name, uint32_t tensor,
                                           struct corral_error *err);
uint32_t corral_layout_find(const struct corral_layout *l, const char *name); /* UINT32_MAX: none */

/* A box of the tensor, densely row-major at `offset` when stride is NULL. */
enum corral_status corral_layout_add_box(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                         const struct corral_box *box, uint64_t offset,
                                         const uint64_t *stride, struct corral_error *err);
/* The whole tensor. */
enum corral_status corral_layout_add_whole(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                           uint64_t offset, struct corral_error *err);
/* Indices [first, first + count) of one dimension, the others whole: tensor parallelism. */
enum corral_status corral_layout_add_slice(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                           uint32_t dim, uint64_t first, uint64_t count, uint64_t offset,
                                           struct corral_error *err);
/* Elements [first, first + count) of the row-major flattened tensor, contiguous at `offset`: FSDP. */
enum corral_status corral_layout_add_flat(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                          uint64_t first, uint64_t count, uint64_t offset,
                                          struct corral_error *err);

uint64_t corral_box_elements(const struct corral_box *box, uint32_t dims);
/* False when they have nothing in common. */
bool corral_box_intersect(const struct corral_box *a, const struct corral_box *b, uint32_t dims,
                          struct corral_box *out);
/* Over everything above: equal layouts have equal digests. */
struct corral_digest corral_layout_hash(const struct corral_layout *l);

#endif
