/* A rank's range of bytes that is many pieces of real memory: a shard over regions (<corral/weights.h>). One region of host memory from offset 0 becomes a plain host shard, which lanes
 * read and write in place; everything else goes bucket by bucket through gather and scatter. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_API_MEMORY_H
#define CORRAL_TRANSPORT_WEIGHTS_API_MEMORY_H

#include "transport/weights/link/link.h"
#include <corral/weights.h>

struct corral_memory;

/* CORRAL_INVALID: regions overlap, or a piece of the rank is not covered. CORRAL_UNSUPPORTED: a device that this process cannot use. */
enum corral_status corral_memory_create(struct corral_memory **out, const struct corral_layout *layout,
                                        uint32_t rank, const struct corral_weights_region *regions,
                                        uint32_t count, struct corral_error *err);
void corral_memory_destroy(struct corral_memory *m);
CORRAL_DEFINE_CLEANUP(struct corral_memory, corral_memory_destroy)
/* Staging for memory of a device: what there is now, and the most that gathering takes. 0 for host memory. */
uint64_t corral_memory_staging(struct corral_memory *m);
uint64_t corral_memory_staging_max(const struct corral_memory *m);
/* Borrows m. */
struct corral_shard corral_memory_shard(struct corral_memory *m);
/* Bytes of the rank's range. Any thread. */
enum corral_status corral_memory_read(const struct corral_memory *m, uint64_t offset, uint64_t bytes,
                                      void *out, struct corral_error *err);
/* All that the regions cover, out of a buffer that holds the rank's whole range. */
enum corral_status corral_memory_fill(struct corral_memory *m, const void *range, struct corral_error *err);

#endif
