/* Memory that graphs allocate for themselves. The driver takes it when a graph is first launched, which is not hooked: so from its instantiation on, an executable graph is charged the
 * most that its nodes can need, and the device at least what it has reserved for graphs. */
#include "quota/cuda/families.h"
#include <stdatomic.h>
#include <stdlib.h>

#define GRANULE (UINT64_C(2) << 20)
#define CHILD_DEPTH_MAX 16
#define GRAPH_NODES_MAX (1u << 22)

typedef CUresult (*cuGraphGetNodes_fn)(CUgraph graph, CUgraphNode *nodes, size_t *count);
typedef CUresult (*cuGraphNodeGetType_fn)(CUgraphNode node, CUgraphNodeType *type);
typedef CUresult (*cuGraphChildGraphNodeGetGraph_fn)(CUgraphNode node, CUgraph *graph);

struct account {
    pthread_mutex_t lock;              /* guards the rest */
    struct corral_quota_charge charge; /* of kind graph, on this device */
    uint64_t needed;                   /* by the nodes of executable graphs */
};
static struct account accounts[CORRAL_CUDA_DEVICES_MAX] = {
    [0 ... CORRAL_CUDA_DEVICES_MAX -
     1] = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .charge = {.holder = CORRAL_LEDGER_NONE, .allocation = CORRAL_LEDGER_NONE}},
};

/* Relaxed: once there was a graph with memory of its own, there may be some to get back. */
static _Atomic(bool) any_graph;

bool corral_cuda_graphs_any(void)
{
    return atomic_load_explicit(&any_graph, memory_order_relaxed);
}

static uint64_t reserved_now(CUdevice device)
{
    uint64_t bytes = 0;
    bool told = corral_cuda_real(CORRAL_CUDA_SYMBOL_cuDeviceGetGraphMemAttribute) != NULL &&
                REAL(cuDeviceGetGraphMemAttribute)(device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &bytes) ==
                    CUDA_SUCCESS;
    return told ? bytes : 0;
}

/* With the lock held. */
static void follow(struct account *a, CUdevice device)
{
    uint64_t target = CORRAL_MAX(a->needed, reserved_now(device));
    if (target != a->charge.bytes) {
        corral_cuda_settle(device, &a->charge, target, CORRAL_KIND_GRAPH, "graph");
    }
}

void corral_cuda_graphs_refresh(CUdevice device)
{
    if (device < 0 || device >= CORRAL_CUDA_DEVICES_MAX) {
        return;
    }
    struct account *a = &accounts[device];
    pthread_mutex_lock(&a->lock);
    /* Without graphs of ours there is nothing to ask the driver for. */
    if (corral_cuda_is_charged(&a->charge)) {
        follow(a, device);
    }
    pthread_mutex_unlock(&a->lock);
}

static uint64_t round_up(uint64_t bytes)
{
    return bytes > UINT64_MAX - GRANULE ? UINT64_MAX : (bytes + GRANULE - 1) / GRANULE * GRANULE;
}

/* Bytes per device that the nodes of a graph need. */
struct need {
    uint64_t bytes[CORRAL_CUDA_DEVICES_MAX];
};

static void add_need(struct need *need, const CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    CUdevice device = params->poolProps.location.id;
    if (params->poolProps.location.type == CU_MEM_LOCATION_TYPE_DEVICE && device >= 0 &&
        device < CORRAL_CUDA_DEVICES_MAX) {
        uint64_t bytes = round_up(params->bytesize);
        need->bytes[device] =
            need->bytes[device] > UINT64_MAX - bytes ? UINT64_MAX : need->bytes[device] + bytes;
    }
}

static CUresult add_graph(struct need *need, CUgraph graph, uint32_t depth);

static CUresult add_node(struct need *need, CUgraphNode node, uint32_t depth)
{
    CUgraphNodeType type;
    CUDA_MEM_ALLOC_NODE_PARAMS params = {0};
    CUgraph child;
    CUresult result = REAL(cuGraphNodeGetType)(node, &type);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        result = REAL(cuGraphMemAllocNodeGetParams)(node, &params);
        if (result == CUDA_SUCCESS) {
            add_need(need, &params);
        }
    } else if (type == CU_GRAPH_NODE_TYPE_GRAPH) {
        result = REAL(cuGraphChildGraphNodeGetGraph)(node, &child);
        result = result == CUDA_SUCCESS ? add_graph(need, child, depth + 1) : result;
    }
    return result;
}

/* The sum over all nodes: whether the driver lets one use again what another has freed depends on the order it chooses, so that isn't counted on. A graph that cannot be looked
 * into is not made executable: what it takes would be charged to nobody. */
static CUresult add_graph(struct need *need, CUgraph graph, uint32_t depth)
{
    size_t count = 0;
    CUresult result = REAL(cuGraphGetNodes)(graph, NULL, &count);
    if (result != CUDA_SUCCESS || count == 0) {
        return result;
    }
    CORRAL_AUTO_FREE CUgraphNode *nodes =
        depth < CHILD_DEPTH_MAX && count <= GRAPH_NODES_MAX ? calloc(count, sizeof(CUgraphNode)) : NULL;
    if (nodes == NULL) {
        corral_cuda_log("denied", "size=%zu nodes depth=%u reason=\"a graph too large to be accounted for\"",
                        count, depth);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    result = REAL(cuGraphGetNodes)(graph, nodes, &count);
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++) {
        result = add_node(need, nodes[i], depth);
    }
    return result;
}

/* Reserve what the nodes on one device need beside what is charged already. */
static bool reserve_on(CUdevice device, uint64_t bytes, const char *api)
{
    struct account *a = &accounts[device];
    corral_cuda_relieve(device, bytes);
    atomic_store_explicit(&any_graph, true, memory_order_relaxed);
    pthread_mutex_lock(&a->lock);
    uint64_t target = CORRAL_MAX(a->needed + bytes, reserved_now(device));
    bool ok = true;
    if (target > a->charge.bytes && corral_cuda_is_charged(&a->charge)) {
        ok = corral_cuda_resize(device, &a->charge, target, api);
    } else if (target > a->charge.bytes) {
        ok = corral_cuda_take(device, target, CORRAL_KIND_GRAPH, api, &a->charge);
        if (ok) {
            corral_quota_keep(corral_cuda_quota(), &a->charge);
        } else {
            a->charge = corral_cuda_no_charge();
        }
    }
    if (ok) {
        a->needed += bytes;
    }
    pthread_mutex_unlock(&a->lock);
    return ok;
}

static void give_back_on(CUdevice device, uint64_t bytes)
{
    struct account *a = &accounts[device];
    pthread_mutex_lock(&a->lock);
    a->needed -= CORRAL_MIN(bytes, a->needed);
    follow(a, device);
    pthread_mutex_unlock(&a->lock);
}

static bool reserve_need(const struct need *need, const char *api)
{
    for (CUdevice d = 0; d < CORRAL_CUDA_DEVICES_MAX; d++) {
        if (need->bytes[d] > 0 && !reserve_on(d, need->bytes[d], api)) {
            while (--d >= 0) {
                if (need->bytes[d] > 0) {
                    give_back_on(d, need->bytes[d]);
                }
            }
            return false;
        }
    }
    return true;
}

static void give_back_need(const struct need *need)
{
    for (CUdevice d = 0; d < CORRAL_CUDA_DEVICES_MAX; d++) {
        if (need->bytes[d] > 0) {
            give_back_on(d, need->bytes[d]);
        }
    }
}

/* An executable graph has a record for each device that its nodes allocate on. */
static uint64_t exec_name(CUgraphExec exec, CUdevice device)
{
    return (uint64_t)(uintptr_t)exec | (uint64_t)device << 57;
}

static void keep_exec(CUgraphExec exec, const struct need *need)
{
    for (CUdevice d = 0; d < CORRAL_CUDA_DEVICES_MAX; d++) {
        if (need->bytes[d] > 0) {
            struct corral_cuda_record record = {.name = exec_name(exec, d),
                                                .space = CORRAL_CUDA_GRAPH_EXEC,
                                                .device = d,
                                                .charge = corral_cuda_no_charge()};
            record.charge.bytes = need->bytes[d];
            corral_cuda_put_back(&record);
            corral_cuda_graphs_refresh(d);
        }
    }
}

#define INSTANTIATE(name, call)                   \
    struct need need = {0};                       \
    CUresult result = add_graph(&need, graph, 0); \
    if (result != CUDA_SUCCESS) {                 \
        return result;                            \
    }                                             \
    if (!reserve_need(&need, #name)) {            \
        return CUDA_ERROR_OUT_OF_MEMORY;          \
    }                                             \
    result = call;                                \
    if (result == CUDA_SUCCESS) {                 \
        keep_exec(*exec, &need);                  \
    } else {                                      \
        give_back_need(&need);                    \
    }                                             \
    return result

CORRAL_CUDA_DEFINE(cuGraphInstantiate, CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                   size_t log_bytes)
{
    INSTANTIATE(cuGraphInstantiate, REAL(cuGraphInstantiate)(exec, graph, error_node, log, log_bytes));
}

CORRAL_CUDA_DEFINE(cuGraphInstantiate_v2, CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node,
                   char *log, size_t log_bytes)
{
    INSTANTIATE(cuGraphInstantiate_v2, REAL(cuGraphInstantiate_v2)(exec, graph, error_node, log, log_bytes));
}

CORRAL_CUDA_DEFINE(cuGraphInstantiateWithFlags, CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    INSTANTIATE(cuGraphInstantiateWithFlags, REAL(cuGraphInstantiateWithFlags)(exec, graph, flags));
}

CORRAL_CUDA_DEFINE(cuGraphInstantiateWithParams, CUgraphExec *exec, CUgraph graph,
                   CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    INSTANTIATE(cuGraphInstantiateWithParams, REAL(cuGraphInstantiateWithParams)(exec, graph, params));
}

CORRAL_CUDA_DEFINE(cuGraphInstantiateWithParams_ptsz, CUgraphExec *exec, CUgraph graph,
                   CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    INSTANTIATE(cuGraphInstantiateWithParams_ptsz,
                REAL(cuGraphInstantiateWithParams_ptsz)(exec, graph, params));
}

/* Its names go before the driver is asked, which may give the same to another at once. */
CORRAL_CUDA_DEFINE(cuGraphExecDestroy, CUgraphExec exec)
{
    struct need need = {0};
    struct corral_cuda_record record;
    for (CUdevice d = 0; d < CORRAL_CUDA_DEVICES_MAX; d++) {
        if (corral_cuda_table_take(CORRAL_CUDA_GRAPH_EXEC, exec_name(exec, d), &record)) {
            need.bytes[d] = record.charge.bytes;
        }
    }
    CUresult result = REAL(cuGraphExecDestroy)(exec);
    if (result == CUDA_SUCCESS) {
        give_back_need(&need);
    } else {
        keep_exec(exec, &need);
    }
    return result;
}

CORRAL_CUDA_DEFINE(cuGraphUpload, CUgraphExec exec, CUstream stream)
{
    CUresult result = REAL(cuGraphUpload)(exec, stream);
    corral_cuda_graphs_refresh(corral_cuda_current_device());
    return result;
}

CORRAL_CUDA_DEFINE(cuGraphUpload_ptsz, CUgraphExec exec, CUstream stream)
{
    CUresult result = REAL(cuGraphUpload_ptsz)(exec, stream);
    corral_cuda_graphs_refresh(corral_cuda_current_device());
    return result;
}

CORRAL_CUDA_DEFINE(cuDeviceGraphMemTrim, CUdevice device)
{
    CUresult result = REAL(cuDeviceGraphMemTrim)(device);
    corral_cuda_graphs_refresh(device);
    return result;
}

/* ---- nodes: a node that cannot fit is denied when it is added, not only when its graph is instantiated ---- */
static bool node_could_fit(const CUDA_MEM_ALLOC_NODE_PARAMS *params, const char *api)
{
    struct need need = {0};
    add_need(&need, params);
    for (CUdevice d = 0; d < CORRAL_CUDA_DEVICES_MAX; d++) {
        struct corral_quota_charge charge;
        if (need.bytes[d] == 0) {
            continue;
        }
        if (!corral_cuda_reserve(d, need.bytes[d], CORRAL_KIND_GRAPH, api, &charge)) {
            return false;
        }
        corral_cuda_rollback(&charge);
    }
    return true;
}

CORRAL_CUDA_DEFINE(cuGraphAddMemAllocNode, CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                   size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    if (params != NULL && !node_could_fit(params, "cuGraphAddMemAllocNode")) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return REAL(cuGraphAddMemAllocNode)(node, graph, after, count, params);
}

static bool could_fit(const CUgraphNodeParams *params, const char *api)
{
    return params == NULL || params->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC ||
           node_could_fit(&params->alloc, api);
}

CORRAL_CUDA_DEFINE(cuGraphAddNode, CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t count,
                   CUgraphNodeParams *params)
{
    return could_fit(params, "cuGraphAddNode") ? REAL(cuGraphAddNode)(node, graph, after, count, params)
                                               : CUDA_ERROR_OUT_OF_MEMORY;
}

CORRAL_CUDA_DEFINE(cuGraphAddNode_v2, CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                   const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *params)
{
    return could_fit(params, "cuGraphAddNode_v2")
               ? REAL(cuGraphAddNode_v2)(node, graph, after, edges, count, params)
               : CUDA_ERROR_OUT_OF_MEMORY;
}

CORRAL_CUDA_DEFINE(cuGraphAddNode_v3, CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                   const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *params)
{
    return could_fit(params, "cuGraphAddNode_v3")
               ? REAL(cuGraphAddNode_v3)(node, graph, after, edges, count, params)
               : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Graphs that are not executable have no memory; what they were made of may have given some back. */
CORRAL_CUDA_DEFINE(cuGraphDestroy, CUgraph graph)
{
    CUresult result = REAL(cuGraphDestroy)(graph);
    corral_cuda_graphs_refresh(corral_cuda_current_device());
    return result;
}

CORRAL_CUDA_DEFINE(cuGraphDestroyNode, CUgraphNode node)
{
    CUresult result = REAL(cuGraphDestroyNode)(node);
    corral_cuda_graphs_refresh(corral_cuda_current_device());
    return result;
}

void corral_cuda_graphs_forget_all(void)
{
    for (uint32_t i = 0; i < CORRAL_CUDA_DEVICES_MAX; i++) {
        accounts[i] = (struct account){.lock = PTHREAD_MUTEX_INITIALIZER, .charge = corral_cuda_no_charge()};
    }
}
