/* Is a limit of device memory that this process was started under, by MPS or by a cgroup, real? One allocation that must succeed and one over the limit that must be denied, through the
 * driver, on device 0. It is run in a process of its own, without the interposer: what denies is the limit, or nothing. Leaves nothing behind.
 */
#ifndef CORRAL_QUOTA_CUDA_CANARY_LIMIT_H
#define CORRAL_QUOTA_CUDA_CANARY_LIMIT_H

#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

enum corral_cuda_limit_outcome { CORRAL_LIMIT_NOT_TRIED, CORRAL_LIMIT_GRANTED, CORRAL_LIMIT_DENIED };
struct corral_cuda_limit_result {
    char uuid[64];       /* "GPU-…" of device 0 */
    uint32_t processors; /* as the driver says to this process */
    uint64_t free_bytes; /* the same */
    enum corral_cuda_limit_outcome within, over;
};
/* Sizes of 0 are not tried. CORRAL_UNSUPPORTED: no driver or device, or no context. CORRAL_INTERNAL: an answer that is neither a grant nor CUDA_ERROR_OUT_OF_MEMORY. */
enum corral_status corral_cuda_limit_canary(uint64_t within, uint64_t over,
                                            struct corral_cuda_limit_result *out, struct corral_error *err);
/* From one process to another: one line, with its newline. Parsing refuses anything else. */
#define CORRAL_CUDA_LIMIT_TEXT 192
void corral_cuda_limit_write(const struct corral_cuda_limit_result *result, char out[CORRAL_CUDA_LIMIT_TEXT]);
enum corral_status corral_cuda_limit_parse(const char *text, struct corral_cuda_limit_result *out,
                                           struct corral_error *err);

#endif
