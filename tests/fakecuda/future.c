/* A later driver: an allocation function that no table knows. */
#include "tests/fakecuda/fake.h"

typedef CUresult (*cuMemAllocFuture_fn)(CUdeviceptr *pointer, size_t bytes);
extern __typeof__(*(cuGetProcAddress_fn)0) cuGetProcAddress;

/* Goes to the driver's own allocation, past whatever stands before it: that is the hole. */
static CUresult allocate(CUdeviceptr *out, size_t bytes)
{
    void *found = NULL;
    CUresult r = cuGetProcAddress("cuMemAlloc", &found, 3020, 0);
    return r == CUDA_SUCCESS ? ((cuMemAlloc_v2_fn)found)(out, bytes) : r;
}
FAKE(cuMemAllocFuture, cuMemAllocFuture, 13000, (CUdeviceptr * pointer, size_t bytes),
     allocate(pointer, bytes))
