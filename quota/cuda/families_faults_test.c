/* Whatever a call of the driver answers but success, the ledger is as it was: every function of the classes charge, release and count in entry_points.tsv is made to fail once, with
 * arguments that it would accept. A function of these classes that this test does not call fails it. */
#include "quota/cuda/tests/families.h"
#include <string.h>
#include <unistd.h>

#define PAGE (2 * MIB)
#define FAULT 999

/* What the calls work on. All of it is there, charged, when the faults begin. */
static struct {
    CUcontext context, spare_context;
    CUdeviceptr pointer, managed, pooled, range, free_range, opened, buffer;
    CUmemGenericAllocationHandle handle, multicast, out_handle;
    CUmemoryPool pool;
    CUarray array, sparse;
    CUmipmappedArray mipmap;
    CUgraph graph, spare_graph;
    CUgraphNode node, spare_node;
    CUgraphExec exec;
    CUmodule module;
    CUlibrary library;
    CUgreenCtx green;
    CUexternalMemory external;
    CUipcMemHandle ipc;
    CUmemPoolPtrExportData export;
    void *host;
    int fd, foreign;
    CUdeviceptr_v1 narrow;
    CUdeviceptr out;
    void *out_pointer;
    size_t pitch;
    unsigned int narrow_pitch;
} s;
static char own[8192] __attribute__((aligned(4096)));
static const char code[] = "code";

static CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                   .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                   .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
static CUmemPoolProps pool_props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                    .handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
static CUmulticastObjectProp multicast_prop = {.numDevices = 1, .size = PAGE};
static CUDA_ARRAY_DESCRIPTOR_v1 flat_v1 = {64, 64, CU_AD_FORMAT_FLOAT, 1};
static CUDA_ARRAY_DESCRIPTOR flat = {64, 64, CU_AD_FORMAT_FLOAT, 1};
static CUDA_ARRAY3D_DESCRIPTOR_v1 deep_v1 = {64, 64, 4, CU_AD_FORMAT_FLOAT, 1, 0};
static CUDA_ARRAY3D_DESCRIPTOR deep = {64, 64, 4, CU_AD_FORMAT_FLOAT, 1, 0};
static CUDA_MEM_ALLOC_NODE_PARAMS node_params = {
    .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
    .bytesize = MIB};
static CUgraphNodeParams any_node = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
static CUDA_EXTERNAL_MEMORY_HANDLE_DESC external_desc = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
                                                         .size = PAGE};
static CUDA_EXTERNAL_MEMORY_BUFFER_DESC buffer_desc = {.size = PAGE};
static CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC view_desc = {
    .arrayDesc = {64, 64, 0, CU_AD_FORMAT_FLOAT, 1, 0}, .numLevels = 1};
static uint64_t threshold;

/* Symbol and arguments. */
#define CALLS(X)                                                                                           \
    X(cuMemAlloc_v2, &s.out, MIB)                                                                          \
    X(cuMemAlloc, &s.narrow, MIB)                                                                          \
    X(cuMemAllocPitch_v2, &s.out, &s.pitch, 1000, 100, 4)                                                  \
    X(cuMemAllocPitch, &s.narrow, &s.narrow_pitch, 1000, 100, 4)                                           \
    X(cuMemAllocManaged, &s.out, MIB, CU_MEM_ATTACH_GLOBAL)                                                \
    X(cuMemAllocAsync, &s.out, 8 * MIB, NULL)                                                              \
    X(cuMemAllocAsync_ptsz, &s.out, 8 * MIB, NULL)                                                         \
    X(cuMemAllocFromPoolAsync, &s.out, 8 * MIB, s.pool, NULL)                                              \
    X(cuMemAllocFromPoolAsync_ptsz, &s.out, 8 * MIB, s.pool, NULL)                                         \
    X(cuMemPoolCreate, (CUmemoryPool *)&s.out_pointer, &pool_props)                                        \
    X(cuMemPoolSetAttribute, s.pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold)                        \
    X(cuMemPoolExportToShareableHandle, &s.out, s.pool, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0)       \
    X(cuMemPoolImportFromShareableHandle, (CUmemoryPool *)&s.out_pointer, (void *)(intptr_t)s.fd,          \
      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0)                                                         \
    X(cuMemPoolExportPointer, &s.export, s.pooled)                                                         \
    X(cuMemPoolImportPointer, &s.out, s.pool, &s.export)                                                   \
    X(cuMemCreate, &s.out_handle, PAGE, &prop, 0)                                                          \
    X(cuMemMap, s.free_range, PAGE, 0, s.handle, 0)                                                        \
    X(cuMemMapArrayAsync, (CUarrayMapInfo *)own, 1, NULL)                                                  \
    X(cuMemMapArrayAsync_ptsz, (CUarrayMapInfo *)own, 1, NULL)                                             \
    X(cuMemRetainAllocationHandle, &s.out_handle, (void *)(uintptr_t)s.range)                              \
    X(cuMemExportToShareableHandle, &s.out, s.handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0)         \
    X(cuMemImportFromShareableHandle, &s.out_handle, (void *)(intptr_t)s.fd,                               \
      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)                                                            \
    X(cuMulticastCreate, &s.out_handle, &multicast_prop)                                                   \
    X(cuMulticastBindMem, s.multicast, 0, s.handle, 0, PAGE, 0)                                            \
    X(cuMulticastBindMem_v2, s.multicast, 0, 0, s.handle, 0, PAGE, 0)                                      \
    X(cuMulticastBindAddr, s.multicast, 0, s.range, PAGE, 0)                                               \
    X(cuMulticastBindAddr_v2, s.multicast, 0, 0, s.range, PAGE, 0)                                         \
    X(cuArrayCreate, (CUarray *)&s.out_pointer, &flat_v1)                                                  \
    X(cuArrayCreate_v2, (CUarray *)&s.out_pointer, &flat)                                                  \
    X(cuArray3DCreate, (CUarray *)&s.out_pointer, &deep_v1)                                                \
    X(cuArray3DCreate_v2, (CUarray *)&s.out_pointer, &deep)                                                \
    X(cuMipmappedArrayCreate, (CUmipmappedArray *)&s.out_pointer, &deep, 2)                                \
    X(cuGraphAddMemAllocNode, &s.spare_node, s.spare_graph, NULL, 0, &node_params)                         \
    X(cuGraphAddNode, &s.spare_node, s.spare_graph, NULL, 0, &any_node)                                    \
    X(cuGraphAddNode_v2, &s.spare_node, s.spare_graph, NULL, NULL, 0, &any_node)                           \
    X(cuGraphAddNode_v3, &s.spare_node, s.spare_graph, NULL, NULL, 0, &any_node)                           \
    X(cuGraphInstantiate, (CUgraphExec *)&s.out_pointer, s.graph, NULL, NULL, 0)                           \
    X(cuGraphInstantiate_v2, (CUgraphExec *)&s.out_pointer, s.graph, NULL, NULL, 0)                        \
    X(cuGraphInstantiateWithFlags, (CUgraphExec *)&s.out_pointer, s.graph, 0)                              \
    X(cuGraphInstantiateWithParams, (CUgraphExec *)&s.out_pointer, s.graph, (void *)own)                   \
    X(cuGraphInstantiateWithParams_ptsz, (CUgraphExec *)&s.out_pointer, s.graph, (void *)own)              \
    X(cuGraphUpload, s.exec, NULL)                                                                         \
    X(cuGraphUpload_ptsz, s.exec, NULL)                                                                    \
    X(cuIpcGetMemHandle, &s.ipc, s.pointer)                                                                \
    X(cuIpcOpenMemHandle, &s.out, s.ipc, 1)                                                                \
    X(cuIpcOpenMemHandle_v2, &s.out, s.ipc, 1)                                                             \
    X(cuImportExternalMemory, (CUexternalMemory *)&s.out_pointer, &external_desc)                          \
    X(cuExternalMemoryGetMappedBuffer, &s.out, s.external, &buffer_desc)                                   \
    X(cuExternalMemoryGetMappedMipmappedArray, (CUmipmappedArray *)&s.out_pointer, s.external, &view_desc) \
    X(cuMemAllocHost, &s.out_pointer, MIB)                                                                 \
    X(cuMemAllocHost_v2, &s.out_pointer, MIB)                                                              \
    X(cuMemHostAlloc, &s.out_pointer, MIB, 0)                                                              \
    X(cuMemHostRegister, own + 4096, 4096, 0)                                                              \
    X(cuMemHostRegister_v2, own + 4096, 4096, 0)                                                           \
    X(cuCtxCreate, (CUcontext *)&s.out_pointer, 0, 0)                                                      \
    X(cuCtxCreate_v2, (CUcontext *)&s.out_pointer, 0, 0)                                                   \
    X(cuCtxCreate_v3, (CUcontext *)&s.out_pointer, NULL, 0, 0, 0)                                          \
    X(cuCtxCreate_v4, (CUcontext *)&s.out_pointer, NULL, 0, 0)                                             \
    X(cuDevicePrimaryCtxRetain, (CUcontext *)&s.out_pointer, 0)                                            \
    X(cuGreenCtxCreate, (CUgreenCtx *)&s.out_pointer, (CUdevResourceDesc)own, 0, 1)                        \
    X(cuCtxSetLimit, CU_LIMIT_STACK_SIZE, 4096)                                                            \
    X(cuModuleLoad, (CUmodule *)&s.out_pointer, "/proc/self/exe")                                          \
    X(cuModuleLoadData, (CUmodule *)&s.out_pointer, code)                                                  \
    X(cuModuleLoadDataEx, (CUmodule *)&s.out_pointer, code, 0, NULL, NULL)                                 \
    X(cuModuleLoadFatBinary, (CUmodule *)&s.out_pointer, code)                                             \
    X(cuLibraryLoadData, (CUlibrary *)&s.out_pointer, code, NULL, NULL, 0, NULL, NULL, 0)                  \
    X(cuLibraryLoadFromFile, (CUlibrary *)&s.out_pointer, "/proc/self/exe", NULL, NULL, 0, NULL, NULL, 0)  \
    X(cuMulticastUnbind, s.multicast, 0, 0, PAGE)                                                          \
    X(cuMemUnmap, s.range, PAGE)                                                                           \
    X(cuMemRelease, s.handle)                                                                              \
    X(cuMemFree_v2, s.pointer)                                                                             \
    X(cuMemFree, (CUdeviceptr_v1)s.pointer)                                                                \
    X(cuMemFreeAsync, s.pooled, NULL)                                                                      \
    X(cuMemFreeAsync_ptsz, s.pooled, NULL)                                                                 \
    X(cuMemPoolTrimTo, s.pool, 0)                                                                          \
    X(cuMemPoolDestroy, s.pool)                                                                            \
    X(cuArrayDestroy, s.array)                                                                             \
    X(cuMipmappedArrayDestroy, s.mipmap)                                                                   \
    X(cuGraphDestroyNode, s.node)                                                                          \
    X(cuGraphDestroy, s.graph)                                                                             \
    X(cuGraphExecDestroy, s.exec)                                                                          \
    X(cuDeviceGraphMemTrim, 0)                                                                             \
    X(cuIpcCloseMemHandle, s.pointer)                                                                      \
    X(cuDestroyExternalMemory, s.external)                                                                 \
    X(cuMemFreeHost, s.host)                                                                               \
    X(cuMemHostUnregister, own)                                                                            \
    X(cuModuleUnload, s.module)                                                                            \
    X(cuLibraryUnload, s.library)                                                                          \
    X(cuGreenCtxDestroy, s.green)                                                                          \
    X(cuCtxDestroy, s.spare_context)                                                                       \
    X(cuCtxDestroy_v2, s.spare_context)                                                                    \
    X(cuDevicePrimaryCtxRelease, 0)                                                                        \
    X(cuDevicePrimaryCtxRelease_v2, 0)                                                                     \
    X(cuDevicePrimaryCtxReset, 0)                                                                          \
    X(cuDevicePrimaryCtxReset_v2, 0)

#define CALL(name, ...)               \
    static CUresult call_##name(void) \
    {                                 \
        return CU(name)(__VA_ARGS__); \
    }
CALLS(CALL)
#define ROW(name, ...) {#name, call_##name},
static const struct {
    const char *symbol;
    CUresult (*run)(void);
} calls[] = {CALLS(ROW)};

#define OK(name, ...) EXPECT(CU(name)(__VA_ARGS__) == CUDA_SUCCESS)

static void set_up_graphs(void)
{
    OK(cuGraphCreate, &s.graph, 0);
    OK(cuGraphCreate, &s.spare_graph, 0);
    OK(cuGraphAddMemAllocNode, &s.node, s.graph, NULL, 0, &node_params);
    OK(cuGraphAddMemFreeNode, &s.spare_node, s.graph, &s.node, 1, node_params.dptr);
    any_node.alloc = node_params;
    OK(cuGraphInstantiateWithFlags, &s.exec, s.graph, 0);
}

static void set_up(void)
{
    family_start(0);
    OK(cuCtxCreate_v2, &s.spare_context, 0, 0);
    OK(cuCtxPopCurrent_v2, &s.context);
    OK(cuCtxGetCurrent, &s.context);
    OK(cuMemAlloc_v2, &s.pointer, MIB);
    OK(cuMemAllocManaged, &s.managed, MIB, CU_MEM_ATTACH_GLOBAL);
    OK(cuMemPoolCreate, &s.pool, &pool_props);
    OK(cuMemAllocFromPoolAsync, &s.pooled, MIB, s.pool, NULL);
    OK(cuMemCreate, &s.handle, PAGE, &prop, 0);
    OK(cuMemAddressReserve, &s.range, PAGE, 0, 0, 0);
    OK(cuMemAddressReserve, &s.free_range, PAGE, 0, 0, 0);
    OK(cuMemMap, s.range, PAGE, 0, s.handle, 0);
    OK(cuMemExportToShareableHandle, &s.fd, s.handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    OK(cuMulticastCreate, &s.multicast, &multicast_prop);
    OK(cuMulticastAddDevice, s.multicast, 0);
    OK(cuArrayCreate_v2, &s.array, &flat);
    OK(cuMipmappedArrayCreate, &s.mipmap, &deep, 2);
    OK(cuModuleLoadData, &s.module, code);
    OK(cuLibraryLoadData, &s.library, code, NULL, NULL, 0, NULL, NULL, 0);
    s.foreign = ((int (*)(int, uint64_t))family_symbol("fakecuda_foreign"))(0, PAGE);
    EXPECT(s.foreign >= 0);
    external_desc.handle.fd = dup(s.foreign);
    OK(cuImportExternalMemory, &s.external, &external_desc);
    external_desc.handle.fd = s.foreign;
    OK(cuMemHostAlloc, &s.host, MIB, 0);
    OK(cuMemHostRegister_v2, own, 4096, 0);
    OK(cuIpcGetMemHandle, &s.ipc, s.pointer);
    set_up_graphs();
}

static void every_driver_failure_leaves_the_ledger_as_it_was(void)
{
    bool (*fail_next)(const char *, int) = (bool (*)(const char *, int))family_symbol("fakecuda_fail_next");
    set_up();
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        uint64_t used = family_used(0), pinned = family_pinned(0), reached = family_calls(calls[i].symbol);
        EXPECT(fail_next(calls[i].symbol, FAULT));
        CUresult answer = calls[i].run();
        if ((int)answer != FAULT || family_calls(calls[i].symbol) != reached + 1) {
            fprintf(stderr, "%s answers %d\n", calls[i].symbol, (int)answer);
            exit(1);
        }
        if (family_used(0) != used || family_used(1) != 0 || family_pinned(0) != pinned) {
            fprintf(stderr, "%s: %llu bytes charged, %llu before\n", calls[i].symbol,
                    (unsigned long long)family_used(0), (unsigned long long)used);
            exit(1);
        }
    }
    EXPECT_BYTES(family_denials(), 0);
}

/* What the hooks ask the driver beside the call itself. */
static const char *const asked[] = {"cuCtxGetDevice",
                                    "cuCtxGetCurrent",
                                    "cuDeviceGetMemPool",
                                    "cuMemPoolGetAttribute",
                                    "cuArrayGetMemoryRequirements",
                                    "cuMipmappedArrayGetMemoryRequirements",
                                    "cuGraphGetNodes",
                                    "cuGraphNodeGetType",
                                    "cuGraphMemAllocNodeGetParams",
                                    "cuDeviceGetGraphMemAttribute",
                                    "cuDevicePrimaryCtxGetState",
                                    "cuCtxGetLimit",
                                    "cuMemFree_v2",
                                    "cuArrayDestroy",
                                    "cuMemPoolTrimTo"};

static void take_and_give_back(void)
{
    CUdeviceptr p[4];
    CUmemGenericAllocationHandle handle;
    CUarray array;
    CUmipmappedArray mipmap;
    CUresult r[7] = {CU(cuMemAlloc_v2)(&p[0], MIB),
                     CU(cuMemAllocPitch_v2)(&p[1], &s.pitch, 1000, 100, 4),
                     CU(cuMemAllocManaged)(&p[2], MIB, CU_MEM_ATTACH_GLOBAL),
                     CU(cuMemAllocAsync)(&p[3], 3 * MIB, NULL),
                     CU(cuMemCreate)(&handle, PAGE, &prop, 0),
                     CU(cuArrayCreate_v2)(&array, &flat),
                     CU(cuMipmappedArrayCreate)(&mipmap, &deep, 2)};
    for (int i = 0; i < 4; i++) {
        /* Once it may be a call that was made to fail. */
        EXPECT(r[i] != CUDA_SUCCESS || CU(cuMemFree_v2)(p[i]) == CUDA_SUCCESS ||
               CU(cuMemFree_v2)(p[i]) == CUDA_SUCCESS);
    }
    EXPECT(r[4] != CUDA_SUCCESS || CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT(r[5] != CUDA_SUCCESS || CU(cuArrayDestroy)(array) == CUDA_SUCCESS ||
           CU(cuArrayDestroy)(array) == CUDA_SUCCESS);
    EXPECT(r[6] != CUDA_SUCCESS || CU(cuMipmappedArrayDestroy)(mipmap) == CUDA_SUCCESS);
}

static void failing_questions_leave_nothing_charged(void)
{
    bool (*fail_next)(const char *, int) = (bool (*)(const char *, int))family_symbol("fakecuda_fail_next");
    CUmemoryPool pool;
    CUgraphExec exec;
    family_start(0);
    OK(cuDeviceGetDefaultMemPool, &pool, 0);
    OK(cuGraphCreate, &s.graph, 0);
    OK(cuGraphAddMemAllocNode, &s.node, s.graph, NULL, 0, &node_params);
    for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
        EXPECT(fail_next(asked[i], FAULT));
        take_and_give_back();
        if (CU(cuGraphInstantiateWithFlags)(&exec, s.graph, 0) == CUDA_SUCCESS) {
            /* A graph that could not be looked into must not have come out uncharged. */
            EXPECT(family_kind(0, CORRAL_KIND_GRAPH) >= PAGE);
            OK(cuGraphExecDestroy, exec);
        }
        (void)CU(cuDeviceGraphMemTrim)(0);
        (void)CU(cuMemPoolTrimTo)(pool, 0);
        OK(cuMemPoolTrimTo, pool, 0);
        if (family_used(0) != CONTEXT || family_used(1) != 0) {
            fprintf(stderr, "%s failed once: %llu bytes stay charged\n", asked[i],
                    (unsigned long long)(family_used(0) - CONTEXT));
            exit(1);
        }
    }
}

static bool is_called(const char *symbol)
{
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        if (strcmp(calls[i].symbol, symbol) == 0) {
            return true;
        }
    }
    return false;
}

/* The table's rows: symbol, base, version, stream, class. */
static void every_charging_function_is_among_them(void)
{
    char line[1024], symbol[128], class[32];
    unsigned count = 0, missing = 0;
    FILE *f = fopen(ENTRY_POINTS, "r");
    EXPECT(f != NULL);
    while (fgets(line, sizeof(line), f)) {
        if (line[0] == '#' || sscanf(line, "%127s %*s %*s %*s %31s", symbol, class) != 2 ||
            (strcmp(class, "charge") != 0 && strcmp(class, "release") != 0 && strcmp(class, "count") != 0)) {
            continue;
        }
        count++;
        if (!is_called(symbol)) {
            fprintf(stderr, "%s (%s) is never made to fail\n", symbol, class);
            missing++;
        }
    }
    fclose(f);
    EXPECT(count > 80);
    EXPECT(missing == 0);
}

#define CASE(name)                     \
    {                                  \
#name, NULL, name, false, NULL \
    }
static const struct family_case cases[] = {
    CASE(every_charging_function_is_among_them),
    CASE(every_driver_failure_leaves_the_ledger_as_it_was),
    CASE(failing_questions_leave_nothing_charged),
};

int main(int argc, char **argv)
{
    return family_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
