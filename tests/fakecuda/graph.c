/* Graphs with memory nodes, and capture of streams into them. A device's graph memory grows when a graph is instantiated, stays reserved when the executable graph is destroyed, and
 * is given back by cuDeviceGraphMemTrim. */
#include "tests/fakecuda/fake.h"
#include <stdlib.h>
#include <string.h>

#define AUTO_FREE_ON_LAUNCH 1

/* An allocation of a graph, FAKE_GRAPH_POINTER: refs = executable graphs that have it, maps = 1 while it is allocated, flags = 1 when its graph is gone. */
struct node {
    CUgraphNodeType type;
    CUDA_MEM_ALLOC_NODE_PARAMS alloc;
    CUdeviceptr pointer; /* allocated or freed here */
    CUgraph child;
};
struct step {
    CUgraphNodeType type;
    CUdeviceptr pointer;
};
struct exec {
    unsigned long long flags;
    size_t count;
    struct step step[];
};
static struct device_memory {
    uint64_t block, reserved, reserved_high, used_high;
} graph_memory[FAKE_DEVICES_MAX];

static struct fake_object *find_graph(CUgraph g)
{
    return fake_find(FAKE_GRAPH, (uint64_t)(uintptr_t)g);
}

/* ---- memory ---- */
struct sum {
    CUdevice device;
    uint64_t needed, used;
};

static void add_up(struct fake_object *o, void *ctx)
{
    struct sum *s = ctx;
    if (o->device == s->device) {
        s->needed += o->refs > 0 || o->maps > 0 ? fake_round(o->bytes, FAKE_PAGE) : 0;
        s->used += o->maps > 0 ? o->bytes : 0;
    }
}

static struct sum sum_of(CUdevice device)
{
    struct sum s = {.device = device};
    fake_each(FAKE_GRAPH_POINTER, add_up, &s);
    struct device_memory *m = &graph_memory[device];
    m->used_high = s.used > m->used_high ? s.used : m->used_high;
    return s;
}

static bool reserve(CUdevice device, uint64_t bytes)
{
    struct device_memory *m = &graph_memory[device];
    struct fake_object take = {.device = device};
    if (m->block == 0) {
        if (!fake_take(&take, bytes)) {
            return false;
        }
        m->block = take.block;
    } else if (!fake_block_resize(m->block, bytes)) {
        fake_trim_pools();
        if (!fake_block_resize(m->block, bytes)) {
            return false;
        }
    }
    m->reserved = bytes;
    m->reserved_high = bytes > m->reserved_high ? bytes : m->reserved_high;
    return true;
}

static void release_if_done(struct fake_object *p)
{
    if (p->flags != 0 && p->refs == 0 && p->maps == 0) {
        fake_release(p);
    }
}

CUresult fake_graph_pointer_free(struct fake_object *p)
{
    if (p->maps == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    p->maps = 0;
    release_if_done(p);
    return CUDA_SUCCESS;
}

/* ---- nodes ---- */
static CUresult add_node(struct fake_object **out, struct fake_object *graph, CUgraphNodeType type)
{
    if (graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *o = fake_add(FAKE_NODE, 0);
    struct node *n = o != NULL ? calloc(1, sizeof *n) : NULL;
    if (n == NULL) {
        if (o != NULL) {
            fake_remove(o);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    n->type = type;
    o->data = n;
    o->other = graph;
    o->maps = graph->maps++; /* order of adding, which is an order of running */
    *out = o;
    return CUDA_SUCCESS;
}

static CUresult add_alloc(struct fake_object **out, struct fake_object *graph,
                          CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    if (params == NULL || params->bytesize == 0 ||
        params->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        !fake_device_valid(params->poolProps.location.id) || params->bytesize > UINT64_C(1) << 46) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult r = add_node(out, graph, CU_GRAPH_NODE_TYPE_MEM_ALLOC);
    if (r != CUDA_SUCCESS) {
        return r;
    }
    void *memory = fake_map(params->bytesize);
    struct fake_object *p = memory != NULL ? fake_add(FAKE_GRAPH_POINTER, (uint64_t)(uintptr_t)memory) : NULL;
    if (p == NULL) {
        fake_remove(*out);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    p->memory = memory;
    p->mapped = params->bytesize;
    p->bytes = params->bytesize;
    p->device = params->poolProps.location.id;
    p->refs = 0;
    params->dptr = p->key;
    struct node *n = (*out)->data;
    n->alloc = *params;
    n->pointer = p->key;
    return CUDA_SUCCESS;
}

static CUresult add_free(struct fake_object **out, struct fake_object *graph, CUdeviceptr pointer)
{
    if (fake_find(FAKE_GRAPH_POINTER, pointer) == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult r = add_node(out, graph, CU_GRAPH_NODE_TYPE_MEM_FREE);
    if (r == CUDA_SUCCESS) {
        ((struct node *)(*out)->data)->pointer = pointer;
    }
    return r;
}

static CUresult return_node(CUresult r, CUgraphNode *out, const struct fake_object *o)
{
    if (r == CUDA_SUCCESS) {
        *out = (CUgraphNode)(uintptr_t)o->key;
    }
    return r;
}

static CUresult add_any(CUgraphNode *out, CUgraph graph, CUgraphNodeParams *params)
{
    if (out == NULL || params == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *o = NULL, *g = find_graph(graph);
    CUresult r = params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC  ? add_alloc(&o, g, &params->alloc)
                 : params->type == CU_GRAPH_NODE_TYPE_MEM_FREE ? add_free(&o, g, params->free.dptr)
                                                               : add_node(&o, g, params->type);
    return return_node(r, out, o);
}

static CUresult add_memory_node(CUgraphNode *out, CUgraph graph, CUDA_MEM_ALLOC_NODE_PARAMS *params,
                                CUdeviceptr pointer)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *o = NULL, *g = find_graph(graph);
    CUresult r = params != NULL ? add_alloc(&o, g, params) : add_free(&o, g, pointer);
    return return_node(r, out, o);
}

static CUresult alloc_params(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *out)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_find(FAKE_NODE, (uint64_t)(uintptr_t)node);
    const struct node *n = o != NULL ? o->data : NULL;
    if (out == NULL || n == NULL || n->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = n->alloc;
    return CUDA_SUCCESS;
}

static CUresult node_type(CUgraphNode node, CUgraphNodeType *out)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_find(FAKE_NODE, (uint64_t)(uintptr_t)node);
    if (out == NULL || o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = ((const struct node *)o->data)->type;
    return CUDA_SUCCESS;
}

struct listing {
    const struct fake_object *graph;
    CUgraphNode *out;
    size_t room, count;
    bool memory;
};

static void list_node(struct fake_object *o, void *ctx)
{
    struct listing *l = ctx;
    if (o->other == l->graph) {
        const struct node *n = o->data;
        if (l->out != NULL && l->count < l->room) {
            l->out[l->count] = (CUgraphNode)(uintptr_t)o->key;
        }
        l->count++;
        l->memory |= n->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || n->type == CU_GRAPH_NODE_TYPE_MEM_FREE;
    }
}

static CUresult list_nodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    FAKE_LOCKED;
    struct listing l = {.graph = find_graph(graph), .out = nodes, .room = count != NULL ? *count : 0};
    if (count == NULL || l.graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_each(FAKE_NODE, list_node, &l);
    *count = nodes == NULL || l.count < l.room ? l.count : l.room;
    return CUDA_SUCCESS;
}

static CUresult add_child(CUgraphNode *out, CUgraph graph, CUgraph child)
{
    FAKE_LOCKED;
    struct listing l = {.graph = find_graph(child)};
    if (out == NULL || l.graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_each(FAKE_NODE, list_node, &l);
    if (l.memory) {
        return CUDA_ERROR_NOT_SUPPORTED; /* as the driver: memory nodes are not copied */
    }
    struct fake_object *o = NULL;
    CUresult r = add_node(&o, find_graph(graph), CU_GRAPH_NODE_TYPE_GRAPH);
    if (r == CUDA_SUCCESS) {
        ((struct node *)o->data)->child = child;
    }
    return return_node(r, out, o);
}

static CUresult child_of(CUgraphNode node, CUgraph *out)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_find(FAKE_NODE, (uint64_t)(uintptr_t)node);
    const struct node *n = o != NULL ? o->data : NULL;
    if (out == NULL || n == NULL || n->type != CU_GRAPH_NODE_TYPE_GRAPH) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = n->child;
    return CUDA_SUCCESS;
}

static void forget_node(struct fake_object *o, void *graph)
{
    if (o->other != graph) {
        return;
    }
    const struct node *n = o->data;
    struct fake_object *p =
        n->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC ? fake_find(FAKE_GRAPH_POINTER, n->pointer) : NULL;
    if (p != NULL) {
        p->flags = 1;
        release_if_done(p);
    }
    fake_remove(o);
}

static CUresult create_graph(CUgraph *out)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *g = fake_add(FAKE_GRAPH, 0);
    if (g == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (CUgraph)(uintptr_t)g->key;
    return CUDA_SUCCESS;
}

static CUresult destroy_graph(CUgraph graph)
{
    FAKE_LOCKED;
    struct fake_object *g = find_graph(graph);
    if (g == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_each(FAKE_NODE, forget_node, g);
    fake_remove(g);
    return CUDA_SUCCESS;
}

static CUresult destroy_node(CUgraphNode node)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_NODE, (uint64_t)(uintptr_t)node);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct node *n = o->data;
    if (n->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || n->type == CU_GRAPH_NODE_TYPE_MEM_FREE) {
        return CUDA_ERROR_NOT_SUPPORTED; /* as the driver: memory nodes stay with their graph */
    }
    fake_remove(o);
    return CUDA_SUCCESS;
}

/* ---- executing ---- */
struct gather {
    struct fake_object *graph;
    struct exec *exec;
    size_t order;
};

static void count_nodes(struct fake_object *o, void *ctx)
{
    struct gather *g = ctx;
    g->order += o->other == g->graph;
}

static void put_node(struct fake_object *o, void *ctx)
{
    struct gather *g = ctx;
    const struct node *n = o->data;
    if (o->other == g->graph) {
        g->exec->step[o->maps] = (struct step){n->type, n->pointer};
    }
}

static CUresult instantiate(CUgraphExec *out, CUgraph graph, unsigned long long flags)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *g = find_graph(graph);
    if (g == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct gather all = {.graph = g};
    fake_each(FAKE_NODE, count_nodes, &all);
    struct exec *e = calloc(1, sizeof *e + g->maps * sizeof e->step[0]);
    struct fake_object *o = e != NULL ? fake_add(FAKE_EXEC, 0) : NULL;
    if (o == NULL) {
        free(e);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->data = e;
    e->flags = flags;
    e->count = g->maps; /* with holes where nodes were destroyed: type 0, nothing to do */
    all.exec = e;
    fake_each(FAKE_NODE, put_node, &all);
    bool ok = true;
    for (size_t i = 0; i < e->count; i++) {
        struct fake_object *p = e->step[i].type == CU_GRAPH_NODE_TYPE_MEM_ALLOC
                                    ? fake_find(FAKE_GRAPH_POINTER, e->step[i].pointer)
                                    : NULL;
        if (p != NULL) {
            p->refs++;
            uint64_t needed = sum_of(p->device).needed;
            ok = ok && (needed <= graph_memory[p->device].reserved || reserve(p->device, needed));
        }
    }
    if (!ok) {
        for (size_t i = 0; i < e->count; i++) {
            struct fake_object *p = e->step[i].type == CU_GRAPH_NODE_TYPE_MEM_ALLOC
                                        ? fake_find(FAKE_GRAPH_POINTER, e->step[i].pointer)
                                        : NULL;
            if (p != NULL) {
                p->refs--;
            }
        }
        fake_remove(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (CUgraphExec)(uintptr_t)o->key;
    return CUDA_SUCCESS;
}

static CUresult instantiate_with(CUgraphExec *out, CUgraph graph, const CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    uint64_t flags = 0;
    if (params != NULL) {
        memcpy(&flags, params, sizeof flags); /* its first field */
    }
    return instantiate(out, graph, flags);
}

static CUresult launch(CUgraphExec exec, bool run)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_find(FAKE_EXEC, (uint64_t)(uintptr_t)exec);
    const struct exec *e = o != NULL ? o->data : NULL;
    if (e == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; run && i < e->count; i++) {
        struct fake_object *p = fake_find(FAKE_GRAPH_POINTER, e->step[i].pointer);
        if (p == NULL) {
            continue;
        }
        bool alloc = e->step[i].type == CU_GRAPH_NODE_TYPE_MEM_ALLOC;
        if (alloc && p->maps > 0 && (e->flags & AUTO_FREE_ON_LAUNCH) == 0) {
            return CUDA_ERROR_INVALID_VALUE; /* still allocated from the last launch */
        }
        p->maps = alloc;
        sum_of(p->device);
    }
    return CUDA_SUCCESS;
}

static CUresult destroy_exec(CUgraphExec exec)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_EXEC, (uint64_t)(uintptr_t)exec);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct exec *e = o->data;
    for (size_t i = 0; i < e->count; i++) {
        struct fake_object *p = e->step[i].type == CU_GRAPH_NODE_TYPE_MEM_ALLOC
                                    ? fake_find(FAKE_GRAPH_POINTER, e->step[i].pointer)
                                    : NULL;
        if (p != NULL) {
            p->refs--;
            release_if_done(p);
        }
    }
    fake_remove(o);
    return CUDA_SUCCESS;
}

static CUresult trim(CUdevice device)
{
    FAKE_LOCKED;
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    uint64_t needed = sum_of(device).needed;
    if (graph_memory[device].block != 0 && needed < graph_memory[device].reserved) {
        reserve(device, needed);
    }
    return CUDA_SUCCESS;
}

static CUresult get_attribute(CUdevice device, CUgraphMem_attribute attribute, void *value)
{
    FAKE_LOCKED;
    if (!fake_device_valid(device) || value == NULL ||
        (unsigned)attribute > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t used = sum_of(device).used;
    const struct device_memory *m = &graph_memory[device];
    const uint64_t numbers[] = {used, m->used_high, m->reserved, m->reserved_high};
    *(uint64_t *)value = numbers[attribute];
    return CUDA_SUCCESS;
}

static CUresult set_attribute(CUdevice device, CUgraphMem_attribute attribute, const void *value)
{
    FAKE_LOCKED;
    bool high =
        attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    if (!fake_device_valid(device) || value == NULL || !high || *(const uint64_t *)value != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct device_memory *m = &graph_memory[device];
    if (attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH) {
        m->used_high = 0;
        sum_of(device);
    } else {
        m->reserved_high = m->reserved;
    }
    return CUDA_SUCCESS;
}

/* ---- capture ---- */
CUresult fake_capture_alloc(struct fake_object *graph, CUdeviceptr *pointer, size_t bytes)
{
    const struct fake_object *context = fake_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    CUDA_MEM_ALLOC_NODE_PARAMS params = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {CU_MEM_LOCATION_TYPE_DEVICE, context->device}},
        .bytesize = bytes};
    struct fake_object *node;
    CUresult r = add_alloc(&node, graph, &params);
    if (r == CUDA_SUCCESS) {
        *pointer = params.dptr;
    }
    return r;
}

CUresult fake_capture_free(struct fake_object *graph, CUdeviceptr pointer)
{
    struct fake_object *node;
    return add_free(&node, graph, pointer);
}

#include "tests/fakecuda/graph_exports.h"
