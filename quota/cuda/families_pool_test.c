/* Memory pools and graphs: what the driver has reserved is what counts. */
#include "quota/cuda/tests/families.h"
#include <pthread.h>

static uint64_t reserved(CUmemoryPool pool)
{
    uint64_t bytes = 0;
    EXPECT(CU(cuMemPoolGetAttribute)(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes) == CUDA_SUCCESS);
    return bytes;
}

static CUmemoryPool default_pool(void)
{
    CUmemoryPool pool;
    uint64_t keep = UINT64_MAX;
    EXPECT(CU(cuDeviceGetDefaultMemPool)(&pool, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemPoolSetAttribute)(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep) == CUDA_SUCCESS);
    return pool;
}

static void charges_what_the_pool_has_reserved(void)
{
    CUdeviceptr p, q;
    family_start(0);
    CUmemoryPool pool = default_pool();
    EXPECT(CU(cuMemAllocAsync)(&p, 3 * MIB, NULL) == CUDA_SUCCESS);
    EXPECT(reserved(pool) >= 3 * MIB);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_POOL), reserved(pool));
    EXPECT(CU(cuMemAllocAsync)(&q, 100, NULL) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_POOL), reserved(pool));
    EXPECT(CU(cuMemFreeAsync)(p, NULL) == CUDA_SUCCESS);
    EXPECT(CU(cuMemFree_v2)(q) == CUDA_SUCCESS);
    EXPECT(reserved(pool) > 0);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_POOL), reserved(pool));
    EXPECT(CU(cuMemPoolTrimTo)(pool, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(reserved(pool), 0);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_POOL), 0);
}

static void a_pools_slack_is_used_without_new_room(void)
{
    CUdeviceptr p, rest;
    family_start(0);
    CUmemoryPool pool = default_pool();
    EXPECT(CU(cuMemAllocAsync)(&p, 16 * MIB, NULL) == CUDA_SUCCESS);
    EXPECT(CU(cuMemFreeAsync)(p, NULL) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAlloc_v2)(&rest, CEILING - CONTEXT - reserved(pool)) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CEILING);
    EXPECT(CU(cuMemAllocAsync)(&p, 8 * MIB, NULL) == CUDA_SUCCESS);
    EXPECT(family_used(0) <= CEILING);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_POOL), reserved(pool));
    EXPECT_BYTES(family_denials(), 0);
}

static void denies_what_a_pool_would_have_to_grow_by(void)
{
    CUdeviceptr p;
    family_start(0);
    default_pool();
    EXPECT(CU(cuMemAllocAsync)(&p, CEILING, NULL) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuMemAllocAsync"), 0);
    EXPECT_BYTES(family_denials(), 1);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void idle_pool_memory_gives_way_to_other_needs(void)
{
    CUdeviceptr p, big;
    family_start(0);
    CUmemoryPool pool = default_pool();
    EXPECT(CU(cuMemAllocAsync)(&p, 64 * MIB, NULL) == CUDA_SUCCESS);
    EXPECT(CU(cuMemFreeAsync)(p, NULL) == CUDA_SUCCESS);
    EXPECT(reserved(pool) >= 64 * MIB);
    EXPECT(CU(cuMemAlloc_v2)(&big, CEILING - CONTEXT) == CUDA_SUCCESS);
    EXPECT_BYTES(family_denials(), 0);
    EXPECT_BYTES(family_used(0), CEILING);
}

static void a_pool_of_its_own_is_charged_until_its_last_pointer_goes(void)
{
    CUmemoryPool pool;
    CUdeviceptr p;
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {CU_MEM_LOCATION_TYPE_DEVICE, 1}};
    family_start(0);
    EXPECT(CU(cuMemPoolCreate)(&pool, &props) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAllocFromPoolAsync)(&p, 5 * MIB, pool, NULL) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_POOL), reserved(pool));
    EXPECT(family_kind(1, CORRAL_KIND_POOL) >= 5 * MIB);
    EXPECT(CU(cuMemPoolDestroy)(pool) == CUDA_SUCCESS);
    EXPECT(family_kind(1, CORRAL_KIND_POOL) >= 5 * MIB);
    EXPECT(CU(cuMemFreeAsync)(p, NULL) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(1), 0);
    EXPECT_BYTES(family_physical(1), 0);
}

#define THREADS 4
static void *race(void *context)
{
    EXPECT(CU(cuCtxSetCurrent)(context) == CUDA_SUCCESS);
    for (int i = 0; i < 1000; i++) {
        CUdeviceptr p[4];
        for (int k = 0; k < 4; k++) {
            EXPECT(CU(cuMemAllocAsync)(&p[k], (size_t)(k + 1) * 300000, NULL) == CUDA_SUCCESS);
        }
        for (int k = 0; k < 4; k++) {
            EXPECT(CU(cuMemFreeAsync)(p[k], NULL) == CUDA_SUCCESS);
        }
    }
    return NULL;
}

static void threads_in_one_pool_settle_to_the_truth(void)
{
    pthread_t thread[THREADS];
    CUcontext context;
    family_start(0);
    CUmemoryPool pool = default_pool();
    EXPECT(CU(cuCtxGetCurrent)(&context) == CUDA_SUCCESS);
    for (int i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&thread[i], NULL, race, context) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
    }
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_POOL), reserved(pool));
}

static CUgraph graph_of(size_t bytes, CUresult expected)
{
    CUgraph graph;
    CUgraphNode node, end;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                       .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
                                         .bytesize = bytes};
    EXPECT(CU(cuGraphCreate)(&graph, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuGraphAddMemAllocNode)(&node, graph, NULL, 0, &params) == expected);
    if (expected == CUDA_SUCCESS) {
        EXPECT(CU(cuGraphAddMemFreeNode)(&end, graph, &node, 1, params.dptr) == CUDA_SUCCESS);
    }
    return graph;
}

static void an_executable_graph_is_charged_what_its_nodes_need(void)
{
    CUgraphExec exec;
    family_start(0);
    CUgraph graph = graph_of(5 * MIB, CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_GRAPH), 0);
    EXPECT(CU(cuGraphInstantiateWithFlags)(&exec, graph, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_GRAPH), 6 * MIB);
    EXPECT(CU(cuGraphLaunch)(exec, NULL) == CUDA_SUCCESS);
    EXPECT(family_physical(0) <= family_used(0));
    EXPECT(CU(cuGraphExecDestroy)(exec) == CUDA_SUCCESS);
    EXPECT(CU(cuGraphDestroy)(graph) == CUDA_SUCCESS);
    EXPECT(family_physical(0) <= family_used(0));
    EXPECT(CU(cuDeviceGraphMemTrim)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_GRAPH), 0);
    EXPECT_BYTES(family_physical(0), CONTEXT);
}

static void a_node_or_a_graph_that_cannot_fit_is_denied(void)
{
    CUgraphExec exec, second;
    family_start(0);
    (void)graph_of(CEILING, CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuGraphAddMemAllocNode"), 0);
    CUgraph a = graph_of(80 * MIB, CUDA_SUCCESS), b = graph_of(80 * MIB, CUDA_SUCCESS);
    EXPECT(CU(cuGraphInstantiateWithFlags)(&exec, a, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuGraphInstantiateWithFlags)(&second, b, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuGraphInstantiateWithFlags"), 1);
    EXPECT_BYTES(family_denials(), 2);
}

/* Each with graphs of its own size: the driver gives one's handle to another as soon as it is free. */
static CUcontext everybodys;
static void *race_graphs(void *argument)
{
    EXPECT(CU(cuCtxSetCurrent)(everybodys) == CUDA_SUCCESS);
    CUgraph graph = graph_of(((uintptr_t)argument + 1) * 2 * MIB, CUDA_SUCCESS);
    for (int i = 0; i < 500; i++) {
        CUgraphExec exec;
        EXPECT(CU(cuGraphInstantiateWithFlags)(&exec, graph, 0) == CUDA_SUCCESS);
        EXPECT(CU(cuGraphExecDestroy)(exec) == CUDA_SUCCESS);
    }
    EXPECT(CU(cuGraphDestroy)(graph) == CUDA_SUCCESS);
    return NULL;
}

static void threads_with_graphs_leave_nothing(void)
{
    pthread_t thread[THREADS];
    family_start(0);
    EXPECT(CU(cuCtxGetCurrent)(&everybodys) == CUDA_SUCCESS);
    for (uintptr_t i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&thread[i], NULL, race_graphs, (void *)i) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
    }
    EXPECT(CU(cuDeviceGraphMemTrim)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_GRAPH), 0);
}

/* What is captured becomes a graph's: it is charged when that is instantiated, and the pool is charged nothing for it. */
static void captured_allocations_are_the_graphs(void)
{
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr p;
    CUmemoryPool pool;
    family_start(0);
    pool = default_pool();
    EXPECT(CU(cuStreamCreate)(&stream, 1) == CUDA_SUCCESS);
    EXPECT(CU(cuStreamBeginCapture_v2)(stream, CU_STREAM_CAPTURE_MODE_RELAXED) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAllocAsync)(&p, 5 * MIB, stream) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT(CU(cuMemFreeAsync)(p, stream) == CUDA_SUCCESS);
    EXPECT(CU(cuStreamEndCapture)(stream, &graph) == CUDA_SUCCESS);
    EXPECT_BYTES(reserved(pool), 0);
    EXPECT(CU(cuGraphInstantiateWithFlags)(&exec, graph, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_GRAPH), 6 * MIB);
    EXPECT(CU(cuGraphLaunch)(exec, stream) == CUDA_SUCCESS);
    EXPECT(family_physical(0) <= family_used(0));
    EXPECT(CU(cuGraphExecDestroy)(exec) == CUDA_SUCCESS);
    EXPECT(CU(cuGraphDestroy)(graph) == CUDA_SUCCESS);
    EXPECT(CU(cuDeviceGraphMemTrim)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

#define CASE(name)                     \
    {                                  \
#name, NULL, name, false, NULL \
    }
static const struct family_case cases[] = {
    CASE(charges_what_the_pool_has_reserved),
    CASE(a_pools_slack_is_used_without_new_room),
    CASE(denies_what_a_pool_would_have_to_grow_by),
    CASE(idle_pool_memory_gives_way_to_other_needs),
    CASE(a_pool_of_its_own_is_charged_until_its_last_pointer_goes),
    CASE(threads_in_one_pool_settle_to_the_truth),
    CASE(an_executable_graph_is_charged_what_its_nodes_need),
    CASE(a_node_or_a_graph_that_cannot_fit_is_denied),
    CASE(threads_with_graphs_leave_nothing),
    CASE(captured_allocations_are_the_graphs),
};

int main(int argc, char **argv)
{
    return family_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
