/* Reference-counted blocks of charged memory, kept for reuse. The owner thread gets blocks; references may be dropped by any thread
 * (ZeroMQ lets go of zero-copy frames in its own), which only hands the block back: memory is allocated and released by the owner alone.
 * Private to trajectory/.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_BLOCK_H
#define CORRAL_TRANSPORT_TRAJECTORY_BLOCK_H

#include "base/memory.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct corral_traj_pool;
/* How much larger than what is asked for a block that is used again may be: no more than what a record counts for beside its bytes, so that blocks in use never charge more than their
 * records count for. */
#define CORRAL_TRAJ_BLOCK_SLACK 128u
struct corral_traj_block {
    void *memory; /* 64-byte aligned */
    uint64_t capacity;
    struct corral_traj_pool *pool;
    struct corral_traj_block *next;
    _Atomic uint32_t references;
};

/* At most budget_bytes are charged, unused blocks included, as long as the blocks in use fit in it. */
enum corral_status corral_traj_pool_create(struct corral_traj_pool **out,
                                           const struct corral_allocator *memory, uint64_t budget_bytes,
                                           struct corral_error *err);
/* Waits until every block has come back, at most wait_ms; what has not come back by then is left allocated for good. */
void corral_traj_pool_destroy(struct corral_traj_pool *p, uint32_t wait_ms);
/* A block with one reference; its contents are undefined. Passes on the allocator's denial. */
enum corral_status corral_traj_block_get(struct corral_traj_pool *p, uint64_t bytes,
                                         struct corral_traj_block **out, struct corral_error *err);
void corral_traj_block_ref(struct corral_traj_block *b);
bool corral_traj_block_exclusive(
    const struct corral_traj_block *b); /* the caller's is the only reference: it may write */
void corral_traj_block_unref(struct corral_traj_block *b); /* any thread */

#endif
