/* The allocator of `host` devices: page-backed memory charged to a holder before it exists and given back when it goes.
 * Denial is CORRAL_DENIED with one log line; nothing else changes. Any thread.
 */
#ifndef CORRAL_QUOTA_HOST_ALLOC_H
#define CORRAL_QUOTA_HOST_ALLOC_H

#include "base/memory.h"
#include "quota/shared.h"

struct corral_host_alloc; /* borrows the quota */
enum corral_status corral_host_alloc_create(struct corral_quota *q, uint32_t holder,
                                            struct corral_host_alloc **out, struct corral_error *err);
void corral_host_alloc_destroy(struct corral_host_alloc *a); /* everything must have been released */
/* Sizes are charged rounded up to 4 KiB pages from 64 KiB on, to 64 bytes below. */
const struct corral_allocator *corral_host_allocator(const struct corral_host_alloc *a);
uint64_t corral_host_alloc_used(const struct corral_host_alloc *a); /* charged bytes */
/* Opt in: what the quota denies is taken all the same while this process has spilled less than `max_bytes`. It is counted as spilled in the
 * ledger, never charged, and logged, a line each. 0 (the start): nothing is spilled. */
void corral_host_alloc_set_spill(struct corral_host_alloc *a, uint64_t max_bytes);
uint64_t corral_host_alloc_spilled(const struct corral_host_alloc *a);

#endif
