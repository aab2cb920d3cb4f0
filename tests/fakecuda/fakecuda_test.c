/* What the fake driver promises, called as a program calls the driver. One device of 64 MiB; contexts take 1 MiB. */
#include "tests/check.h"
#include "tests/fakecuda/fake.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define CONTEXT MIB

/* clang-format does not settle on such a list. */
// clang-format off
#define EVERY(X)                                                                                          \
    X(cuInit) X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxReset_v2) X(cuCtxSetCurrent)                \
    X(cuMemAlloc_v2) X(cuMemFree_v2) X(cuMemGetInfo_v2) X(cuMemCreate) X(cuMemRelease)                    \
    X(cuMemAddressReserve) X(cuMemAddressFree) X(cuMemMap) X(cuMemUnmap) X(cuMemSetAccess)                \
    X(cuMemAllocAsync) X(cuMemFreeAsync) X(cuStreamSynchronize) X(cuDeviceGetDefaultMemPool)              \
    X(cuMemPoolSetAttribute) X(cuMemPoolGetAttribute) X(cuMemPoolTrimTo) X(cuMipmappedArrayCreate)        \
    X(cuMipmappedArrayDestroy) X(cuMipmappedArrayGetMemoryRequirements) X(cuGraphCreate)                  \
    X(cuGraphAddMemAllocNode) X(cuGraphAddMemFreeNode) X(cuGraphInstantiateWithFlags) X(cuGraphLaunch)    \
    X(cuGraphExecDestroy) X(cuGraphDestroy) X(cuDeviceGraphMemTrim) X(cuIpcGetMemHandle)                  \
    X(cuIpcOpenMemHandle_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyDtoH_v2) X(cuMemsetD8_v2)                       \
    X(cuGetProcAddress_v2) X(cuMemAllocManaged) X(cuImportExternalMemory)                                 \
    X(cuExternalMemoryGetMappedBuffer) X(cuDestroyExternalMemory)
// clang-format on
#define DECLARE(name) extern __typeof__(*(name##_fn)0) name;
EVERY(DECLARE)
extern __typeof__(*(nvmlInit_v2_fn)0) nvmlInit_v2;
extern __typeof__(*(nvmlDeviceGetHandleByIndex_v2_fn)0) nvmlDeviceGetHandleByIndex_v2;
extern __typeof__(*(nvmlDeviceGetMemoryInfo_fn)0) nvmlDeviceGetMemoryInfo;
extern __typeof__(*(nvmlDeviceGetComputeRunningProcesses_v3_fn)0) nvmlDeviceGetComputeRunningProcesses_v3;

static uint64_t taken(void)
{
    size_t free_bytes, total;
    assert_int_equal(cuMemGetInfo_v2(&free_bytes, &total), CUDA_SUCCESS);
    assert_int_equal(total, 64 * MIB);
    assert_int_equal(fakecuda_used(0), total - free_bytes);
    return total - free_bytes - CONTEXT;
}

static void ok(CUresult r)
{
    assert_int_equal(r, CUDA_SUCCESS);
}

static int start(void **state)
{
    (void)state;
    CUcontext context;
    ok(cuInit(0));
    ok(cuDevicePrimaryCtxRetain(&context, 0));
    ok(cuCtxSetCurrent(context));
    return 0;
}

static void runs_out_of_memory_to_the_byte(void **state)
{
    (void)state;
    CUdeviceptr a, b;
    ok(cuMemAlloc_v2(&a, 63 * MIB - 1));
    assert_int_equal(cuMemAlloc_v2(&b, 2), CUDA_ERROR_OUT_OF_MEMORY);
    ok(cuMemAlloc_v2(&b, 1));
    assert_int_equal(taken(), 63 * MIB);
    ok(cuMemFree_v2(a));
    ok(cuMemFree_v2(b));
    assert_int_equal(cuMemFree_v2(b), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(taken(), 0);
}

static void memory_can_be_written_and_copied(void **state)
{
    (void)state;
    CUdeviceptr a;
    char in[] = "a gradient", out[sizeof in];
    ok(cuMemAlloc_v2(&a, MIB));
    ok(cuMemsetD8_v2(a, 7, MIB));
    ok(cuMemcpyHtoD_v2(a + 100, in, sizeof in));
    ok(cuMemcpyDtoH_v2(out, a + 100, sizeof out));
    assert_string_equal(in, out);
    ok(cuMemcpyDtoH_v2(out, a + MIB - 1, 1));
    assert_int_equal(out[0], 7);
    ok(cuMemFree_v2(a));
}

static void a_handle_lives_until_its_last_mapping(void **state)
{
    (void)state;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle h;
    CUdeviceptr p;
    assert_int_equal(cuMemCreate(&h, 2 * MIB + 1, &prop, 0), CUDA_ERROR_INVALID_VALUE);
    ok(cuMemCreate(&h, 4 * MIB, &prop, 0));
    ok(cuMemAddressReserve(&p, 8 * MIB, 0, 0, 0));
    ok(cuMemMap(p, 2 * MIB, 2 * MIB, h, 0));
    ok(cuMemMap(p + 4 * MIB, 2 * MIB, 2 * MIB, h, 0));
    ok(cuMemSetAccess(p, 2 * MIB, &access, 1));
    ok(cuMemSetAccess(p + 4 * MIB, 2 * MIB, &access, 1));
    ok(cuMemsetD8_v2(p, 9, 2 * MIB));
    char c;
    ok(cuMemcpyDtoH_v2(&c, p + 4 * MIB, 1));
    assert_int_equal(c, 9); /* the same memory */
    ok(cuMemRelease(h));
    assert_int_equal(cuMemRelease(h), CUDA_ERROR_INVALID_VALUE);
    ok(cuMemUnmap(p, 2 * MIB));
    assert_int_equal(taken(), 4 * MIB);
    ok(cuMemUnmap(p + 4 * MIB, 2 * MIB));
    assert_int_equal(taken(), 0);
    ok(cuMemAddressFree(p, 8 * MIB));
}

static void a_pool_keeps_what_is_freed(void **state)
{
    (void)state;
    CUmemoryPool pool;
    CUdeviceptr a, b;
    uint64_t threshold = 2 * MIB, reserved;
    ok(cuDeviceGetDefaultMemPool(&pool, 0));
    ok(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
    ok(cuMemAllocAsync(&a, 1000, NULL));
    ok(cuMemAllocAsync(&b, 3 * MIB, NULL));
    assert_int_equal(taken(), 6 * MIB);
    ok(cuMemFreeAsync(a, NULL));
    ok(cuMemFreeAsync(b, NULL));
    ok(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
    assert_int_equal(reserved, 6 * MIB);
    assert_int_equal(taken(), 6 * MIB);
    ok(cuStreamSynchronize(NULL));
    assert_int_equal(taken(), 2 * MIB);
    ok(cuMemPoolTrimTo(pool, 0));
    assert_int_equal(taken(), 0);
}

static void graph_memory_stays_until_it_is_trimmed(void **state)
{
    (void)state;
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode alloc, release;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                       .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
                                         .bytesize = 3 * MIB};
    ok(cuGraphCreate(&graph, 0));
    ok(cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &params));
    ok(cuGraphAddMemFreeNode(&release, graph, &alloc, 1, params.dptr));
    assert_int_equal(taken(), 0);
    ok(cuGraphInstantiateWithFlags(&exec, graph, 0));
    assert_int_equal(taken(), 4 * MIB);
    ok(cuGraphLaunch(exec, NULL));
    ok(cuGraphLaunch(exec, NULL));
    ok(cuGraphExecDestroy(exec));
    ok(cuGraphDestroy(graph));
    assert_int_equal(taken(), 4 * MIB);
    ok(cuDeviceGraphMemTrim(0));
    assert_int_equal(taken(), 0);
}

static void a_mipmap_takes_what_its_requirements_say(void **state)
{
    (void)state;
    CUDA_ARRAY3D_DESCRIPTOR d = {.Width = 1000,
                                 .Height = 500,
                                 .Format = CU_AD_FORMAT_FLOAT,
                                 .NumChannels = 4,
                                 .Flags = CUDA_ARRAY3D_DEFERRED_MAPPING};
    CUDA_ARRAY_MEMORY_REQUIREMENTS need;
    CUmipmappedArray m;
    ok(cuMipmappedArrayCreate(&m, &d, 5));
    ok(cuMipmappedArrayGetMemoryRequirements(&need, m, 0));
    assert_int_equal(taken(), 0);
    ok(cuMipmappedArrayDestroy(m));
    d.Flags = 0;
    ok(cuMipmappedArrayCreate(&m, &d, 5));
    assert_int_equal(taken(), need.size);
    assert_int_equal(cuMipmappedArrayGetMemoryRequirements(&need, m, 0), CUDA_ERROR_INVALID_VALUE);
    ok(cuMipmappedArrayDestroy(m));
    assert_int_equal(taken(), 0);
}

static void the_end_of_a_context_frees_its_memory(void **state)
{
    CUdeviceptr a, b;
    ok(cuMemAlloc_v2(&a, MIB));
    ok(cuMemAllocManaged(&b, MIB, CU_MEM_ATTACH_GLOBAL));
    ok(cuDevicePrimaryCtxReset_v2(0));
    assert_int_equal(fakecuda_used(0), 0);
    assert_int_equal(cuMemAlloc_v2(&a, 1), CUDA_ERROR_INVALID_CONTEXT);
    start(state);
    assert_int_equal(taken(), 0);
}

static void look_ups_respect_version_and_stream(void **state)
{
    (void)state;
    extern __typeof__(*(cuMemAlloc_fn)0) cuMemAlloc;
    extern __typeof__(*(cuMemAllocAsync_ptsz_fn)0) cuMemAllocAsync_ptsz;
    void *f;
    CUdriverProcAddressQueryResult status;
    ok(cuGetProcAddress_v2("cuMemAlloc", &f, 12000, 0, &status));
    assert_ptr_equal(f, (void *)cuMemAlloc_v2);
    ok(cuGetProcAddress_v2("cuMemAlloc", &f, 3010, 0, &status));
    assert_ptr_equal(f, (void *)cuMemAlloc);
    ok(cuGetProcAddress_v2("cuMemAllocAsync", &f, 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &status));
    assert_ptr_equal(f, (void *)cuMemAllocAsync);
    ok(cuGetProcAddress_v2("cuMemAllocAsync", &f, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
                           &status));
    assert_ptr_equal(f, (void *)cuMemAllocAsync_ptsz);
    ok(cuGetProcAddress_v2("cuMemAllocAsync", &f, 11010, 0, &status));
    assert_int_equal(status, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
    assert_null(f);
    ok(cuGetProcAddress_v2("cuMemNever", &f, 12000, 0, &status));
    assert_int_equal(status, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
}

/* A child with the fresh driver that a fork before cuInit has: started by main() below. */
static int importer[2], owner[2];
static pid_t child;

static int child_main(void)
{
    char word;
    CUdeviceptr p;
    CUipcMemHandle h;
    if (read(importer[0], &word, 1) != 1 || start(NULL) != 0 || cuMemAlloc_v2(&p, 5 * MIB) != CUDA_SUCCESS ||
        cuMemsetD8_v2(p, 42, 5 * MIB) != CUDA_SUCCESS || cuIpcGetMemHandle(&h, p) != CUDA_SUCCESS ||
        write(owner[1], &h, sizeof h) != sizeof h) {
        return 1;
    }
    return read(importer[0], &word, 1) == 1 ? 0 : 1;
}

static void imported_memory_outlives_its_owner_and_the_rest_returns(void **state)
{
    (void)state;
    CUipcMemHandle h;
    CUdeviceptr p;
    char c;
    assert_int_equal(write(importer[1], "g", 1), 1);
    assert_int_equal(read(owner[0], &h, sizeof h), sizeof h);
    assert_int_equal(fakecuda_used(0), 2 * CONTEXT + 5 * MIB);
    ok(cuIpcOpenMemHandle_v2(&p, h, 0));

    nvmlDevice_t device;
    nvmlProcessInfo_v2_t infos[8];
    unsigned n = 8;
    assert_int_equal(nvmlInit_v2(), NVML_SUCCESS);
    assert_int_equal(nvmlDeviceGetHandleByIndex_v2(0, &device), NVML_SUCCESS);
    assert_int_equal(nvmlDeviceGetComputeRunningProcesses_v3(device, &n, infos), NVML_SUCCESS);
    assert_int_equal(n, 2);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(infos[i].usedGpuMemory, (pid_t)infos[i].pid == child ? CONTEXT + 5 * MIB : CONTEXT);
    }
    assert_int_equal(write(importer[1], "x", 1), 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    child = 0;
    nvmlMemory_t memory;
    assert_int_equal(nvmlDeviceGetMemoryInfo(device, &memory), NVML_SUCCESS);
    assert_int_equal(memory.used, CONTEXT + 5 * MIB); /* the context went, what is mapped here stayed */
    ok(cuMemcpyDtoH_v2(&c, p + 5 * MIB - 1, 1));
    assert_int_equal(c, 42);
    extern __typeof__(*(cuIpcCloseMemHandle_fn)0) cuIpcCloseMemHandle;
    assert_int_equal(cuMemFree_v2(p), CUDA_ERROR_INVALID_VALUE);
    ok(cuIpcCloseMemHandle(p));
    assert_int_equal(taken(), 0);
}

static void external_memory_lives_until_its_last_buffer(void **state)
{
    (void)state;
    int fd = fakecuda_foreign(0, 4 * MIB);
    assert_true(fd >= 0);
    CUDA_EXTERNAL_MEMORY_HANDLE_DESC d = {
        .type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, .handle.fd = fd, .size = 4 * MIB};
    CUDA_EXTERNAL_MEMORY_BUFFER_DESC buffer = {.size = MIB};
    CUexternalMemory memory;
    CUdeviceptr p;
    ok(cuImportExternalMemory(&memory, &d));
    ok(cuExternalMemoryGetMappedBuffer(&p, memory, &buffer));
    ok(cuDestroyExternalMemory(memory));
    ok(cuMemsetD8_v2(p, 1, MIB));
    ok(cuMemFree_v2(p));
    assert_int_equal(taken(), 4 * MIB); /* the exporter's, which is this process */
}

static void faults_come_when_they_were_asked_for(void **state)
{
    (void)state;
    CUgraph g;
    uint64_t before = fakecuda_calls("cuGraphCreate");
    assert_int_equal(before, 1); /* the graph test; the fault is on the second call */
    assert_int_equal(cuGraphCreate(&g, 0), CUDA_ERROR_UNKNOWN);
    ok(cuGraphCreate(&g, 0));
    assert_int_equal(fakecuda_calls("cuGraphCreate"), before + 2);
}

int main(void)
{
    char folder[] = "/tmp/fakecuda-test-XXXXXX", file[64];
    if (mkdtemp(folder) == NULL) {
        return 1;
    }
    snprintf(file, sizeof file, "%s/state", folder);
    setenv("CORRAL_FAKECUDA_STATE", file, 1);
    setenv("CORRAL_FAKECUDA_MEMORY", "64MiB", 1);
    setenv("CORRAL_FAKECUDA_CONTEXT", "1MiB", 1);
    setenv("CORRAL_FAKECUDA_FAULTS", "cuGraphCreate:2:999", 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
    if (pipe(importer) != 0 || pipe(owner) != 0 || (child = fork()) < 0) {
        return 1;
    }
    if (child == 0) {
        close(importer[1]);
        close(owner[0]);
        _exit(child_main());
    }
    close(owner[1]); /* so that a child that fails is noticed */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_out_of_memory_to_the_byte),
        cmocka_unit_test(memory_can_be_written_and_copied),
        cmocka_unit_test(a_handle_lives_until_its_last_mapping),
        cmocka_unit_test(a_pool_keeps_what_is_freed),
        cmocka_unit_test(graph_memory_stays_until_it_is_trimmed),
        cmocka_unit_test(faults_come_when_they_were_asked_for),
        cmocka_unit_test(a_mipmap_takes_what_its_requirements_say),
        cmocka_unit_test(the_end_of_a_context_frees_its_memory),
        cmocka_unit_test(look_ups_respect_version_and_stream),
        cmocka_unit_test(imported_memory_outlives_its_owner_and_the_rest_returns),
        cmocka_unit_test(external_memory_lives_until_its_last_buffer),
    };
    int failed = cmocka_run_group_tests(tests, start, NULL);
    if (child > 0) { /* a test failed before it was collected */
        close(importer[1]);
        waitpid(child, NULL, 0);
    }
    unlink(file);
    rmdir(folder);
    return failed;
}
