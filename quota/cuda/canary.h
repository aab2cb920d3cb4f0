/* Pre-flight of a GPU process: through each API family of the driver (and each way of finding its functions), one allocation that must succeed and one over the quota that must be
 * denied with CUDA_ERROR_OUT_OF_MEMORY. It uses libcuda.so.1 as any program would, so what it proves is what the program will meet: it has to run in a process started with
 * the same environment. Leaves no context and no allocation behind.
 */
#ifndef CORRAL_QUOTA_CUDA_CANARY_H
#define CORRAL_QUOTA_CUDA_CANARY_H

#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

struct corral_cuda_canary_result {
    uint32_t families; /* passed */
    char text[400];    /* "device managed vmm pool array graph; plain dlsym dlvsym cuGetProcAddress" */
};
/* On device ordinal 0 of this process. CORRAL_UNSUPPORTED: no driver or device here. CORRAL_DENIED: one that must succeed was refused. CORRAL_INTERNAL: one that must be denied succeeded,
 * or the denial was not CUDA_ERROR_OUT_OF_MEMORY. The text names family and route. */
enum corral_status corral_cuda_canary(struct corral_cuda_canary_result *out, struct corral_error *err);

#endif
