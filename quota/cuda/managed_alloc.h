/* The allocator of built-in workers on a GPU device: managed memory, so that their arithmetic, which is the CPU's, works on memory that lives under the GPU's quota. The process must run
 * with libcorral-quota.so preloaded: the interposer charges it, this file does not. Small requests share slabs of 2 MiB. Any thread. A denial is CORRAL_DENIED.
 */
#ifndef CORRAL_QUOTA_CUDA_MANAGED_ALLOC_H
#define CORRAL_QUOTA_CUDA_MANAGED_ALLOC_H

#include "base/memory.h"
#include <stdint.h>

struct corral_managed_alloc;
/* On device ordinal 0 of this process. CORRAL_UNSUPPORTED without a driver, or when the interposer is not in the way. */
enum corral_status corral_managed_alloc_create(struct corral_managed_alloc **out, struct corral_error *err);
void corral_managed_alloc_destroy(struct corral_managed_alloc *a); /* everything must have been released */
const struct corral_allocator *corral_managed_allocator(const struct corral_managed_alloc *a);
uint64_t corral_managed_alloc_used(const struct corral_managed_alloc *a);

#endif
