/* Costs of driver calls, in one process: interposer_bench CALLS alloc|launch|copy|start. Run by interposer.sh with and without the interposer, in turns, on the same driver.
 * Prints nanoseconds per call (for alloc: of an allocation and its free): median and 99th percentile. */
#include "quota/cuda/client.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALLS_MAX 10000000

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void *function(const struct corral_cuda_client *cuda, const char *name)
{
    void *f = dlsym(cuda->library, name);
    if (f == NULL) {
        fprintf(stderr, "interposer_bench: the driver has no %s\n", name);
        exit(1); // NOLINT: a program
    }
    return f;
}

struct calls {
    const struct corral_cuda_client *cuda;
    cuLaunchKernel_fn launch;
    cuMemcpyHtoD_v2_fn copy;
    CUfunction kernel;
    CUdeviceptr memory;
    char host[4096];
};

static CUresult run_alloc(struct calls *c)
{
    CUdeviceptr p;
    CUresult r = c->cuda->cuMemAlloc_v2(&p, 65536);
    return r == CUDA_SUCCESS ? c->cuda->cuMemFree_v2(p) : r;
}

static CUresult run_launch(struct calls *c)
{
    return c->launch(c->kernel, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
}

static CUresult run_copy(struct calls *c)
{
    return c->copy(c->memory, c->host, sizeof c->host);
}

static int measure(struct calls *c, CUresult (*run)(struct calls *), size_t n)
{
    uint32_t *ns = malloc(n * sizeof *ns);
    if (ns == NULL) {
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t start = now_ns();
        if (run(c) != CUDA_SUCCESS) {
            fprintf(stderr, "interposer_bench: a call failed\n");
            free(ns);
            return 1;
        }
        ns[i] = (uint32_t)(now_ns() - start);
    }
    qsort(ns, n, sizeof *ns, compare);
    printf("%u %u\n", ns[n / 2], ns[n * 99 / 100]);
    free(ns);
    return 0;
}

int main(int argc, char **argv)
{
    static struct corral_cuda_client cuda;
    static struct calls c = {.cuda = &cuda};
    struct corral_error err = {0};
    CUcontext context;
    size_t n = argc > 2 ? strtoull(argv[1], NULL, 10) : 0;
    if (n == 0 || n > CALLS_MAX) {
        fprintf(stderr, "usage: interposer_bench CALLS alloc|launch|copy|start\n");
        return 2;
    }
    if (corral_cuda_client_open(CORRAL_CUDA_ROUTE_DLSYM, &cuda, &err) != CORRAL_OK) {
        fprintf(stderr, "interposer_bench: %s\n", err.text);
        return 77;
    }
    if (cuda.cuInit(0) != CUDA_SUCCESS || cuda.cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
        cuda.cuCtxPushCurrent_v2(context) != CUDA_SUCCESS ||
        cuda.cuMemAlloc_v2(&c.memory, sizeof c.host) != CUDA_SUCCESS) {
        fprintf(stderr, "interposer_bench: the device cannot be used\n");
        return 1;
    }
    if (strcmp(argv[2], "start") == 0) {
        return 0;
    }
    *(void **)&c.copy = function(&cuda, "cuMemcpyHtoD_v2");
    *(void **)&c.launch = function(&cuda, "cuLaunchKernel");
    if (strcmp(argv[2], "launch") == 0) {
        /* The fake driver runs any image; a real one needs code, which this bench does not carry. */
        cuModuleLoadData_fn load;
        cuModuleGetFunction_fn get;
        CUmodule module;
        *(void **)&load = function(&cuda, "cuModuleLoadData");
        *(void **)&get = function(&cuda, "cuModuleGetFunction");
        if (load(&module, "nothing") != CUDA_SUCCESS || get(&c.kernel, module, "nothing") != CUDA_SUCCESS) {
            fprintf(stderr, "interposer_bench: launches are measured on the fake driver only\n");
            return 77;
        }
    }
    return measure(&c,
                   strcmp(argv[2], "alloc") == 0    ? run_alloc
                   : strcmp(argv[2], "launch") == 0 ? run_launch
                                                    : run_copy,
                   n);
}
