/* Entry points that would keep memory where the ledger cannot follow it: refused, each time with a line that says why. Their arguments do not matter. */
#include "quota/cuda/core.h"

static CUresult deny(const char *name)
{
    corral_cuda_log("driver function denied", "%s cannot be accounted for under a quota", name);
    return CUDA_ERROR_NOT_SUPPORTED;
}

#define DENIED(name)                      \
    CORRAL_CUDA_HOOK CUresult name(void); \
    CUresult name(void)                   \
    {                                     \
        return deny(#name);               \
    }

/* A binding holds on to memory after its handle is gone. */
DENIED(cuLogicalEndpointBindAddr)
DENIED(cuLogicalEndpointBindMem)
/* Contexts of graphics programs. */
DENIED(cuGLCtxCreate)
DENIED(cuGLCtxCreate_v2)
DENIED(cuVDPAUCtxCreate)
DENIED(cuVDPAUCtxCreate_v2)
