/* A program linked with the driver, as old ones are. Exit 0 when its call and its pointer are the hook's. */
#include "quota/cuda/driver_types.h"
#include <dlfcn.h>
#include <string.h>

extern CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes);
extern CUresult cuInit(unsigned int flags);

int main(void)
{
    CUdeviceptr pointer;
    Dl_info info;
    if (cuInit(0) != CUDA_SUCCESS || cuMemAlloc_v2(&pointer, 4096) != CUDA_ERROR_OUT_OF_MEMORY) {
        return 1;
    }
    void *found = dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
    return dladdr(found, &info) && strstr(info.dli_fname, "libcorral-quota.so") ? 0 : 2;
}
