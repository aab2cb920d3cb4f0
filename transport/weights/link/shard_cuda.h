/* A shard in device memory, over the CUDA driver (base/cuda_driver.h), and the copies of buckets that lanes queue on streams of their own.
 *
 * gather and scatter go through pinned host memory in two halves, so that the device copies one while the processor empties or fills the other. Rows of equal length and distance are one strided copy.
 * No context is made: the caller's is used, or the device's primary one is retained until close.
 * Several links may use one shard from several threads; each call takes one of CORRAL_SHARD_CUDA_SLOTS streams with staging, and waits for one when all are taken. Nothing waits for the device longer
 * than CORRAL_SHARD_CUDA_TIMEOUT_NS: then the call fails with CORRAL_TIMEOUT and its slot is never used or freed again, because the device may still write into it.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LINK_SHARD_CUDA_H
#define CORRAL_TRANSPORT_WEIGHTS_LINK_SHARD_CUDA_H

#include "base/cuda_driver.h"
#include "transport/weights/link/link.h"

#define CORRAL_SHARD_CUDA_SLOTS 4
#define CORRAL_SHARD_CUDA_HALF_BYTES (4u << 20) /* of a slot's staging; two halves */
#define CORRAL_SHARD_CUDA_TIMEOUT_NS UINT64_C(30000000000)

/* `bytes` of device memory at `address`, which the caller keeps for as long as the shard. device -1: the one the driver says. context NULL: the primary one of the device.
 * CORRAL_INVALID: not device memory, or another device's; CORRAL_UNSUPPORTED: no driver. */
enum corral_status corral_shard_cuda_open(struct corral_shard *out, uint64_t address, uint64_t bytes,
                                          int device, corral_cuda_context context, struct corral_error *err);
/* No call on the shard may be under way. Does nothing for a shard that was never opened (all zero). */
void corral_shard_cuda_close(struct corral_shard *shard);
/* Everything read from the shard from now on waits for this event, which the producer of the weights has recorded; NULL: for nothing. Between pushes only. */
void corral_shard_cuda_after(struct corral_shard *shard, corral_cuda_event event);
/* Pinned host and scratch memory it holds now, for the ledger. */
uint64_t corral_shard_cuda_memory(struct corral_shard *shard);

extern const struct corral_shard_ops corral_shard_cuda_ops;

/* ---- for lanes ---- */

static inline bool corral_shard_on_device(const struct corral_shard *shard)
{
    return shard->ops == &corral_shard_cuda_ops && shard->device_address != 0;
}
corral_cuda_context corral_shard_cuda_context(const struct corral_shard *shard);
/* `stream` waits for the producer's event, when there is one. */
enum corral_status corral_shard_cuda_order(const struct corral_shard *shard, corral_cuda_stream stream,
                                           struct corral_error *err);

/* How one end of a copy lies in memory: as the link's source or destination rank lays it out, from that rank's offset 0 on, or packed from the cursor's place on. */
enum corral_cuda_view { CORRAL_CUDA_PACKED, CORRAL_CUDA_SOURCE, CORRAL_CUDA_DESTINATION };
struct corral_cuda_end {
    uint64_t address; /* device memory or pinned host memory */
    enum corral_cuda_view view;
};
/* Queue copies of the next `bytes` of the cursor's bucket on a stream of the current context, and move the cursor on; from packed to packed it must be the rest of the bucket. */
enum corral_status corral_cuda_copy_spans(const struct corral_cuda *cuda, const struct corral_link *link,
                                          struct corral_link_cursor *cursor, uint64_t bytes,
                                          struct corral_cuda_end from, struct corral_cuda_end to,
                                          corral_cuda_stream stream, struct corral_error *err);

#endif
