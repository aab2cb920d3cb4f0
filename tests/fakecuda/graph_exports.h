/* The exported functions of graph.c. */
#define NODE CUgraphNode *node, CUgraph graph, const CUgraphNode *after
FAKE(cuGraphCreate, cuGraphCreate, 10000, (CUgraph * graph, unsigned flags),
     ((void)flags, create_graph(graph)))
FAKE(cuGraphDestroy, cuGraphDestroy, 10000, (CUgraph graph), destroy_graph(graph))
FAKE(cuGraphDestroyNode, cuGraphDestroyNode, 10000, (CUgraphNode node), destroy_node(node))
FAKE(cuGraphAddEmptyNode, cuGraphAddEmptyNode, 10000, (NODE, size_t count),
     ((void)after, (void)count, add_any(node, graph, &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_EMPTY})))
FAKE(cuGraphAddMemAllocNode, cuGraphAddMemAllocNode, 11040,
     (NODE, size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *params),
     ((void)after, (void)count,
      params != NULL ? add_memory_node(node, graph, params, 0) : CUDA_ERROR_INVALID_VALUE))
FAKE(cuGraphAddMemFreeNode, cuGraphAddMemFreeNode, 11040, (NODE, size_t count, CUdeviceptr pointer),
     ((void)after, (void)count, add_memory_node(node, graph, NULL, pointer)))
FAKE(cuGraphAddNode, cuGraphAddNode, 12020, (NODE, size_t count, CUgraphNodeParams *params),
     ((void)after, (void)count, add_any(node, graph, params)))
FAKE(cuGraphAddNode_v2, cuGraphAddNode, 12030,
     (NODE, const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *params),
     ((void)after, (void)edges, (void)count, add_any(node, graph, params)))
FAKE(cuGraphAddNode_v3, cuGraphAddNode, 13040,
     (NODE, const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *params),
     ((void)after, (void)edges, (void)count, add_any(node, graph, params)))
FAKE(cuGraphMemAllocNodeGetParams, cuGraphMemAllocNodeGetParams, 11040,
     (CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params), alloc_params(node, params))
FAKE(cuGraphInstantiate, cuGraphInstantiate, 10000,
     (CUgraphExec * exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_bytes),
     ((void)error_node, (void)log, (void)log_bytes, instantiate(exec, graph, 0)))
FAKE(cuGraphInstantiate_v2, cuGraphInstantiate, 11000,
     (CUgraphExec * exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_bytes),
     ((void)error_node, (void)log, (void)log_bytes, instantiate(exec, graph, 0)))
FAKE(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040,
     (CUgraphExec * exec, CUgraph graph, unsigned long long flags), instantiate(exec, graph, flags))
FAKE(cuGraphInstantiateWithParams, cuGraphInstantiateWithParams, 12000,
     (CUgraphExec * exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params),
     instantiate_with(exec, graph, params))
FAKE_PER_THREAD(cuGraphInstantiateWithParams_ptsz, cuGraphInstantiateWithParams, 12000,
                (CUgraphExec * exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params),
                instantiate_with(exec, graph, params))
FAKE(cuGraphLaunch, cuGraphLaunch, 10000, (CUgraphExec exec, CUstream stream),
     ((void)stream, launch(exec, true)))
FAKE_PER_THREAD(cuGraphLaunch_ptsz, cuGraphLaunch, 10000, (CUgraphExec exec, CUstream stream),
                ((void)stream, launch(exec, true)))
FAKE(cuGraphUpload, cuGraphUpload, 11010, (CUgraphExec exec, CUstream stream),
     ((void)stream, launch(exec, false)))
FAKE_PER_THREAD(cuGraphUpload_ptsz, cuGraphUpload, 11010, (CUgraphExec exec, CUstream stream),
                ((void)stream, launch(exec, false)))
FAKE(cuGraphExecDestroy, cuGraphExecDestroy, 10000, (CUgraphExec exec), destroy_exec(exec))
FAKE(cuDeviceGraphMemTrim, cuDeviceGraphMemTrim, 11040, (CUdevice device), trim(device))
FAKE(cuDeviceGetGraphMemAttribute, cuDeviceGetGraphMemAttribute, 11040,
     (CUdevice device, CUgraphMem_attribute attribute, void *value), get_attribute(device, attribute, value))
FAKE(cuDeviceSetGraphMemAttribute, cuDeviceSetGraphMemAttribute, 11040,
     (CUdevice device, CUgraphMem_attribute attribute, void *value), set_attribute(device, attribute, value))
FAKE(cuGraphGetNodes, cuGraphGetNodes, 10000, (CUgraph graph, CUgraphNode *nodes, size_t *count),
     list_nodes(graph, nodes, count))
FAKE(cuGraphNodeGetType, cuGraphNodeGetType, 10000, (CUgraphNode node, CUgraphNodeType *type),
     node_type(node, type))
FAKE(cuGraphAddChildGraphNode, cuGraphAddChildGraphNode, 10000, (NODE, size_t count, CUgraph child),
     ((void)after, (void)count, add_child(node, graph, child)))
FAKE(cuGraphChildGraphNodeGetGraph, cuGraphChildGraphNodeGetGraph, 10000, (CUgraphNode node, CUgraph *graph),
     child_of(node, graph))
