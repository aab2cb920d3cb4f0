/* The reshard plan: which bytes go from which rank of one layout to which rank of another. A pure function of the two layouts: each side computes it and the hashes are compared before the
 * first byte moves.
 *
 *  - Every destination byte is written exactly once. A box nobody has is an error that names the tensor and the box; a destination that would be written twice is refused.
 *  - What several source ranks have (replicas) is dealt out so that they send equally much.
 *  - Copies are as long as the memory on both sides allows: dimensions contiguous on both sides are merged, then neighbouring copies between the same two ranks.
 *  - No gather: a copy goes from the rank that has it to the rank that needs it.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_RESHARD_PLAN_H
#define CORRAL_TRANSPORT_WEIGHTS_RESHARD_PLAN_H

#include "transport/weights/reshard/layout.h"

/* run_bytes contiguous bytes on both sides, repeated over up to dims loops (outermost first). */
struct corral_reshard_copy {
    uint32_t source, destination; /* ranks */
    uint32_t tensor;              /* of the destination layout; UINT32_MAX after merging over tensors */
    uint32_t dims;                /* 0: one run */
    uint64_t source_offset, destination_offset, run_bytes;
    uint64_t count[CORRAL_TENSOR_RANK_MAX];
    uint64_t source_stride[CORRAL_TENSOR_RANK_MAX], destination_stride[CORRAL_TENSOR_RANK_MAX];
};

struct corral_reshard_plan {
    uint32_t copy_count;
    struct corral_reshard_copy *copy; /* by source, destination, destination_offset */
    uint64_t bytes;                   /* moved, all copies */
    uint64_t contiguous_bytes;        /* of them, in copies of one run: no packing needed */
    uint64_t *sent, *received;        /* bytes per source rank and per destination rank */
    uint32_t sources, destinations;
    struct corral_digest hash; /* of both layouts and all copies */
};

/* CORRAL_INVALID: a tensor or a box that the source lacks, shapes or dtypes that differ, a destination written twice. */
enum corral_status corral_reshard_plan_build(const struct corral_layout *source,
                                             const struct corral_layout *destination,
                                             struct corral_reshard_plan **out, struct corral_error *err);
void corral_reshard_plan_destroy(struct corral_reshard_plan *plan);
CORRAL_DEFINE_CLEANUP(struct corral_reshard_plan, corral_reshard_plan_destroy)

/* Bytes of a copy, and doing it between two buffers of this process: what packing and unpacking loop over. */
uint64_t corral_reshard_copy_bytes(const struct corral_reshard_copy *copy);
void corral_reshard_copy_run(const struct corral_reshard_copy *copy, const void *source, void *destination);
/* The copy's bytes in order of its loops, to or from one contiguous buffer. */
void corral_reshard_copy_pack(const struct corral_reshard_copy *copy, const void *source, void *packed);
void corral_reshard_copy_unpack(const struct corral_reshard_copy *copy, const void *packed,
                                void *destination);

#endif
