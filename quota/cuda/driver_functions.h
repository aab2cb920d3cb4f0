/* Part of driver_types.h: a NAME_fn for each exported symbol. */
#ifndef CORRAL_QUOTA_CUDA_DRIVER_FUNCTIONS_H
#define CORRAL_QUOTA_CUDA_DRIVER_FUNCTIONS_H
#ifndef CORRAL_QUOTA_CUDA_DRIVER_TYPES_H
#error "include quota/cuda/driver_types.h"
#endif

/* Start and look-up. */
typedef CUresult (*cuInit_fn)(unsigned int flags);
typedef CUresult (*cuDriverGetVersion_fn)(int *version);
typedef CUresult (*cuGetErrorString_fn)(CUresult error, const char **text);
typedef cuGetErrorString_fn cuGetErrorName_fn;
typedef CUresult (*cuGetProcAddress_fn)(const char *symbol, void **out, int version, uint64_t flags);
typedef CUresult (*cuGetProcAddress_v2_fn)(const char *symbol, void **out, int version, uint64_t flags,
                                           CUdriverProcAddressQueryResult *status);
typedef CUresult (*cuGetExportTable_fn)(const void **table, const CUuuid *id);

/* Devices. */
typedef CUresult (*cuDeviceGet_fn)(CUdevice *device, int ordinal);
typedef CUresult (*cuDeviceGetCount_fn)(int *count);
typedef CUresult (*cuDeviceGetName_fn)(char *name, int bytes, CUdevice device);
typedef cuDeviceGetName_fn cuDeviceGetPCIBusId_fn;
typedef CUresult (*cuDeviceGetByPCIBusId_fn)(CUdevice *device, const char *bus_id);
typedef CUresult (*cuDeviceGetUuid_fn)(CUuuid *uuid, CUdevice device);
typedef cuDeviceGetUuid_fn cuDeviceGetUuid_v2_fn;
typedef CUresult (*cuDeviceGetAttribute_fn)(int *value, CUdevice_attribute attribute, CUdevice device);
typedef CUresult (*cuDeviceTotalMem_fn)(unsigned int *bytes, CUdevice device);
typedef CUresult (*cuDeviceTotalMem_v2_fn)(size_t *bytes, CUdevice device);

/* Contexts. */
typedef CUresult (*cuDevicePrimaryCtxRetain_fn)(CUcontext *context, CUdevice device);
typedef CUresult (*cuDevicePrimaryCtxRelease_fn)(CUdevice device);
typedef cuDevicePrimaryCtxRelease_fn cuDevicePrimaryCtxRelease_v2_fn, cuDevicePrimaryCtxReset_fn,
    cuDevicePrimaryCtxReset_v2_fn;
typedef CUresult (*cuDevicePrimaryCtxGetState_fn)(CUdevice device, unsigned int *flags, int *active);
typedef CUresult (*cuDevicePrimaryCtxSetFlags_fn)(CUdevice device, unsigned int flags);
typedef cuDevicePrimaryCtxSetFlags_fn cuDevicePrimaryCtxSetFlags_v2_fn;
typedef CUresult (*cuCtxCreate_fn)(CUcontext *context, unsigned int flags, CUdevice device);
typedef cuCtxCreate_fn cuCtxCreate_v2_fn;
typedef CUresult (*cuCtxCreate_v3_fn)(CUcontext *context, CUexecAffinityParam *affinity, int affinities,
                                      unsigned int flags, CUdevice device);
typedef CUresult (*cuCtxCreate_v4_fn)(CUcontext *context, CUctxCreateParams *params, unsigned int flags,
                                      CUdevice device);
typedef CUresult (*cuCtxDestroy_fn)(CUcontext context);
typedef cuCtxDestroy_fn cuCtxDestroy_v2_fn, cuCtxDetach_fn, cuCtxPushCurrent_fn, cuCtxPushCurrent_v2_fn,
    cuCtxSetCurrent_fn;
typedef CUresult (*cuCtxPopCurrent_fn)(CUcontext *context);
typedef cuCtxPopCurrent_fn cuCtxPopCurrent_v2_fn, cuCtxGetCurrent_fn;
typedef CUresult (*cuCtxAttach_fn)(CUcontext *context, unsigned int flags);
typedef CUresult (*cuCtxGetDevice_fn)(CUdevice *device);
typedef CUresult (*cuCtxGetDevice_v2_fn)(CUdevice *device, CUcontext context);
typedef CUresult (*cuCtxSynchronize_fn)(void);
typedef CUresult (*cuCtxSetLimit_fn)(CUlimit limit, size_t value);
typedef CUresult (*cuCtxGetLimit_fn)(size_t *value, CUlimit limit);
typedef CUresult (*cuCtxEnablePeerAccess_fn)(CUcontext peer, unsigned int flags);
typedef CUresult (*cuDeviceGetDevResource_fn)(CUdevice device, CUdevResource *resource, int type);
typedef CUresult (*cuDevResourceGenerateDesc_fn)(CUdevResourceDesc *description, CUdevResource *resources,
                                                 unsigned int count);
typedef CUresult (*cuDevSmResourceSplitByCount_fn)(CUdevResource *result, unsigned int *groups,
                                                   const CUdevResource *input, CUdevResource *remaining,
                                                   unsigned int flags, unsigned int min_count);
typedef CUresult (*cuGreenCtxCreate_fn)(CUgreenCtx *green, CUdevResourceDesc resources, CUdevice device,
                                        unsigned int flags);
typedef CUresult (*cuGreenCtxDestroy_fn)(CUgreenCtx green);
typedef CUresult (*cuCtxFromGreenCtx_fn)(CUcontext *context, CUgreenCtx green);
typedef CUresult (*cuGreenCtxStreamCreate_fn)(CUstream *stream, CUgreenCtx green, unsigned int flags,
                                              int priority);

/* Modules and libraries. */
typedef CUresult (*cuModuleLoad_fn)(CUmodule *module, const char *file);
typedef CUresult (*cuModuleLoadData_fn)(CUmodule *module, const void *image);
typedef cuModuleLoadData_fn cuModuleLoadFatBinary_fn;
typedef CUresult (*cuModuleLoadDataEx_fn)(CUmodule *module, const void *image, unsigned int count,
                                          CUjit_option *options, void **values);
typedef CUresult (*cuModuleUnload_fn)(CUmodule module);
typedef CUresult (*cuModuleGetFunction_fn)(CUfunction *function, CUmodule module, const char *name);
typedef CUresult (*cuModuleGetGlobal_fn)(CUdeviceptr_v1 *pointer, unsigned int *bytes, CUmodule module,
                                         const char *name);
typedef CUresult (*cuModuleGetGlobal_v2_fn)(CUdeviceptr *pointer, size_t *bytes, CUmodule module,
                                            const char *name);
typedef CUresult (*cuFuncLoad_fn)(CUfunction function);
typedef CUresult (*cuLibraryLoadData_fn)(CUlibrary *library, const void *code, CUjit_option *jit,
                                         void **jit_values, unsigned int jit_count, CUlibraryOption *options,
                                         void **values, unsigned int count);
typedef CUresult (*cuLibraryLoadFromFile_fn)(CUlibrary *library, const char *file, CUjit_option *jit,
                                             void **jit_values, unsigned int jit_count,
                                             CUlibraryOption *options, void **values, unsigned int count);
typedef CUresult (*cuLibraryUnload_fn)(CUlibrary library);
typedef CUresult (*cuLibraryGetModule_fn)(CUmodule *module, CUlibrary library);
typedef CUresult (*cuLibraryGetKernel_fn)(CUkernel *kernel, CUlibrary library, const char *name);
typedef CUresult (*cuLibraryGetGlobal_fn)(CUdeviceptr *pointer, size_t *bytes, CUlibrary library,
                                          const char *name);
typedef cuLibraryGetGlobal_fn cuLibraryGetManaged_fn;
typedef CUresult (*cuKernelGetFunction_fn)(CUfunction *function, CUkernel kernel);

/* Memory. */
typedef CUresult (*cuMemGetInfo_fn)(unsigned int *free, unsigned int *total);
typedef CUresult (*cuMemGetInfo_v2_fn)(size_t *free, size_t *total);
typedef CUresult (*cuMemAlloc_fn)(CUdeviceptr_v1 *pointer, unsigned int bytes);
typedef CUresult (*cuMemAlloc_v2_fn)(CUdeviceptr *pointer, size_t bytes);
typedef CUresult (*cuMemAllocPitch_fn)(CUdeviceptr_v1 *pointer, unsigned int *pitch, unsigned int width,
                                       unsigned int height, unsigned int element);
typedef CUresult (*cuMemAllocPitch_v2_fn)(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
                                          unsigned int element);
typedef CUresult (*cuMemAllocManaged_fn)(CUdeviceptr *pointer, size_t bytes, unsigned int flags);
typedef CUresult (*cuMemFree_fn)(CUdeviceptr_v1 pointer);
typedef CUresult (*cuMemFree_v2_fn)(CUdeviceptr pointer);
typedef CUresult (*cuMemGetAddressRange_fn)(CUdeviceptr_v1 *base, unsigned int *bytes,
                                            CUdeviceptr_v1 pointer);
typedef CUresult (*cuMemGetAddressRange_v2_fn)(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer);
typedef CUresult (*cuPointerGetAttribute_fn)(void *data, CUpointer_attribute attribute, CUdeviceptr pointer);
typedef CUresult (*cuMemAdvise_fn)(CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUdevice device);
typedef CUresult (*cuMemAdvise_v2_fn)(CUdeviceptr pointer, size_t bytes, CUmem_advise advice,
                                      CUmemLocation location);
typedef CUresult (*cuMemPrefetchAsync_fn)(CUdeviceptr pointer, size_t bytes, CUdevice device,
                                          CUstream stream);
typedef cuMemPrefetchAsync_fn cuMemPrefetchAsync_ptsz_fn;
typedef CUresult (*cuMemPrefetchAsync_v2_fn)(CUdeviceptr pointer, size_t bytes, CUmemLocation location,
                                             unsigned int flags, CUstream stream);
typedef cuMemPrefetchAsync_v2_fn cuMemPrefetchAsync_v2_ptsz_fn;
typedef CUresult (*cuStreamAttachMemAsync_fn)(CUstream stream, CUdeviceptr pointer, size_t bytes,
                                              unsigned int flags);
typedef cuStreamAttachMemAsync_fn cuStreamAttachMemAsync_ptsz_fn;

/* Host memory. */
typedef CUresult (*cuMemAllocHost_fn)(void **memory, unsigned int bytes);
typedef CUresult (*cuMemAllocHost_v2_fn)(void **memory, size_t bytes);
typedef CUresult (*cuMemHostAlloc_fn)(void **memory, size_t bytes, unsigned int flags);
typedef CUresult (*cuMemFreeHost_fn)(void *memory);
typedef cuMemFreeHost_fn cuMemHostUnregister_fn;
typedef CUresult (*cuMemHostRegister_fn)(void *memory, size_t bytes, unsigned int flags);
typedef cuMemHostRegister_fn cuMemHostRegister_v2_fn;
typedef CUresult (*cuMemHostGetDevicePointer_fn)(CUdeviceptr_v1 *pointer, void *memory, unsigned int flags);
typedef CUresult (*cuMemHostGetDevicePointer_v2_fn)(CUdeviceptr *pointer, void *memory, unsigned int flags);
typedef CUresult (*cuMemHostGetFlags_fn)(unsigned int *flags, void *memory);

/* Virtual memory. */
typedef CUresult (*cuMemAddressReserve_fn)(CUdeviceptr *pointer, size_t bytes, size_t alignment,
                                           CUdeviceptr hint, unsigned long long flags);
typedef CUresult (*cuMemAddressFree_fn)(CUdeviceptr pointer, size_t bytes);
typedef cuMemAddressFree_fn cuMemUnmap_fn;
typedef CUresult (*cuMemCreate_fn)(CUmemGenericAllocationHandle *handle, size_t bytes,
                                   const CUmemAllocationProp *prop, unsigned long long flags);
typedef CUresult (*cuMemRelease_fn)(CUmemGenericAllocationHandle handle);
typedef CUresult (*cuMemMap_fn)(CUdeviceptr pointer, size_t bytes, size_t offset,
                                CUmemGenericAllocationHandle handle, unsigned long long flags);
typedef CUresult (*cuMemMapArrayAsync_fn)(CUarrayMapInfo *list, unsigned int count, CUstream stream);
typedef cuMemMapArrayAsync_fn cuMemMapArrayAsync_ptsz_fn;
typedef CUresult (*cuMemSetAccess_fn)(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc *access,
                                      size_t count);
typedef CUresult (*cuMemGetAccess_fn)(unsigned long long *flags, const CUmemLocation *location,
                                      CUdeviceptr pointer);
typedef CUresult (*cuMemExportToShareableHandle_fn)(void *out, CUmemGenericAllocationHandle handle,
                                                    CUmemAllocationHandleType type, unsigned long long flags);
typedef CUresult (*cuMemImportFromShareableHandle_fn)(CUmemGenericAllocationHandle *handle, void *os_handle,
                                                      CUmemAllocationHandleType type);
typedef CUresult (*cuMemGetAllocationGranularity_fn)(size_t *granularity, const CUmemAllocationProp *prop,
                                                     CUmemAllocationGranularity_flags option);
typedef CUresult (*cuMemGetAllocationPropertiesFromHandle_fn)(CUmemAllocationProp *prop,
                                                              CUmemGenericAllocationHandle handle);
typedef CUresult (*cuMemRetainAllocationHandle_fn)(CUmemGenericAllocationHandle *handle, void *address);
typedef CUresult (*cuMemGetHandleForAddressRange_fn)(void *handle, CUdeviceptr pointer, size_t bytes,
                                                     CUmemRangeHandleType type, unsigned long long flags);
typedef CUresult (*cuMulticastCreate_fn)(CUmemGenericAllocationHandle *handle,
                                         const CUmulticastObjectProp *prop);
typedef CUresult (*cuMulticastAddDevice_fn)(CUmemGenericAllocationHandle handle, CUdevice device);
typedef CUresult (*cuMulticastBindMem_fn)(CUmemGenericAllocationHandle handle, size_t offset,
                                          CUmemGenericAllocationHandle memory, size_t memory_offset,
                                          size_t bytes, unsigned long long flags);
typedef CUresult (*cuMulticastBindAddr_fn)(CUmemGenericAllocationHandle handle, size_t offset,
                                           CUdeviceptr memory, size_t bytes, unsigned long long flags);
typedef CUresult (*cuMulticastBindMem_v2_fn)(CUmemGenericAllocationHandle handle, CUdevice device,
                                             size_t offset, CUmemGenericAllocationHandle memory,
                                             size_t memory_offset, size_t bytes, unsigned long long flags);
typedef CUresult (*cuMulticastBindAddr_v2_fn)(CUmemGenericAllocationHandle handle, CUdevice device,
                                              size_t offset, CUdeviceptr memory, size_t bytes,
                                              unsigned long long flags);
typedef CUresult (*cuMulticastUnbind_fn)(CUmemGenericAllocationHandle handle, CUdevice device, size_t offset,
                                         size_t bytes);
typedef CUresult (*cuMulticastGetGranularity_fn)(size_t *granularity, const CUmulticastObjectProp *prop,
                                                 CUmulticastGranularity_flags option);

/* Pools. */
typedef CUresult (*cuDeviceGetDefaultMemPool_fn)(CUmemoryPool *pool, CUdevice device);
typedef cuDeviceGetDefaultMemPool_fn cuDeviceGetMemPool_fn;
typedef CUresult (*cuDeviceSetMemPool_fn)(CUdevice device, CUmemoryPool pool);
typedef CUresult (*cuMemGetDefaultMemPool_fn)(CUmemoryPool *pool, CUmemLocation *location,
                                              CUmemAllocationType type);
typedef cuMemGetDefaultMemPool_fn cuMemGetMemPool_fn;
typedef CUresult (*cuMemSetMemPool_fn)(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool);
typedef CUresult (*cuMemPoolCreate_fn)(CUmemoryPool *pool, const CUmemPoolProps *props);
typedef CUresult (*cuMemPoolDestroy_fn)(CUmemoryPool pool);
typedef CUresult (*cuMemPoolTrimTo_fn)(CUmemoryPool pool, size_t keep);
typedef CUresult (*cuMemPoolSetAttribute_fn)(CUmemoryPool pool, CUmemPool_attribute attribute, void *value);
typedef cuMemPoolSetAttribute_fn cuMemPoolGetAttribute_fn;
typedef CUresult (*cuMemPoolSetAccess_fn)(CUmemoryPool pool, const CUmemAccessDesc *access, size_t count);
typedef CUresult (*cuMemPoolGetAccess_fn)(CUmemAccess_flags *flags, CUmemoryPool pool,
                                          CUmemLocation *location);
typedef CUresult (*cuMemAllocAsync_fn)(CUdeviceptr *pointer, size_t bytes, CUstream stream);
typedef cuMemAllocAsync_fn cuMemAllocAsync_ptsz_fn;
typedef CUresult (*cuMemAllocFromPoolAsync_fn)(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
                                               CUstream stream);
typedef cuMemAllocFromPoolAsync_fn cuMemAllocFromPoolAsync_ptsz_fn;
typedef CUresult (*cuMemFreeAsync_fn)(CUdeviceptr pointer, CUstream stream);
typedef cuMemFreeAsync_fn cuMemFreeAsync_ptsz_fn;
typedef CUresult (*cuMemPoolExportToShareableHandle_fn)(void *out, CUmemoryPool pool,
                                                        CUmemAllocationHandleType type,
                                                        unsigned long long flags);
typedef CUresult (*cuMemPoolImportFromShareableHandle_fn)(CUmemoryPool *pool, void *os_handle,
                                                          CUmemAllocationHandleType type,
                                                          unsigned long long flags);
typedef CUresult (*cuMemPoolExportPointer_fn)(CUmemPoolPtrExportData *out, CUdeviceptr pointer);
typedef CUresult (*cuMemPoolImportPointer_fn)(CUdeviceptr *pointer, CUmemoryPool pool,
                                              CUmemPoolPtrExportData *data);

/* Arrays. */
typedef CUresult (*cuArrayCreate_fn)(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *descriptor);
typedef CUresult (*cuArrayCreate_v2_fn)(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *descriptor);
typedef CUresult (*cuArray3DCreate_fn)(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *descriptor);
typedef CUresult (*cuArray3DCreate_v2_fn)(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *descriptor);
typedef CUresult (*cuArray3DGetDescriptor_v2_fn)(CUDA_ARRAY3D_DESCRIPTOR *descriptor, CUarray array);
typedef CUresult (*cuArrayDestroy_fn)(CUarray array);
typedef CUresult (*cuArrayGetMemoryRequirements_fn)(CUDA_ARRAY_MEMORY_REQUIREMENTS *requirements,
                                                    CUarray array, CUdevice device);
typedef CUresult (*cuArrayGetPlane_fn)(CUarray *plane, CUarray array, unsigned int index);
typedef CUresult (*cuMipmappedArrayCreate_fn)(CUmipmappedArray *mipmap,
                                              const CUDA_ARRAY3D_DESCRIPTOR *descriptor, unsigned int levels);
typedef CUresult (*cuMipmappedArrayDestroy_fn)(CUmipmappedArray mipmap);
typedef CUresult (*cuMipmappedArrayGetLevel_fn)(CUarray *array, CUmipmappedArray mipmap, unsigned int level);
typedef CUresult (*cuMipmappedArrayGetMemoryRequirements_fn)(CUDA_ARRAY_MEMORY_REQUIREMENTS *requirements,
                                                             CUmipmappedArray mipmap, CUdevice device);

/* Graphs. */
typedef CUresult (*cuGraphCreate_fn)(CUgraph *graph, unsigned int flags);
typedef CUresult (*cuGraphDestroy_fn)(CUgraph graph);
typedef CUresult (*cuGraphGetNodes_fn)(CUgraph graph, CUgraphNode *nodes, size_t *count);
typedef CUresult (*cuGraphNodeGetType_fn)(CUgraphNode node, CUgraphNodeType *type);
typedef CUresult (*cuGraphChildGraphNodeGetGraph_fn)(CUgraphNode node, CUgraph *graph);
typedef CUresult (*cuGraphDestroyNode_fn)(CUgraphNode node);
typedef CUresult (*cuGraphClone_fn)(CUgraph *clone, CUgraph graph);
typedef CUresult (*cuGraphAddMemAllocNode_fn)(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                              size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *params);
typedef CUresult (*cuGraphAddMemFreeNode_fn)(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                             size_t count, CUdeviceptr pointer);
typedef CUresult (*cuGraphMemAllocNodeGetParams_fn)(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params);
typedef CUresult (*cuGraphMemFreeNodeGetParams_fn)(CUgraphNode node, CUdeviceptr *pointer);
typedef CUresult (*cuGraphAddEmptyNode_fn)(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                           size_t count);
typedef CUresult (*cuGraphAddChildGraphNode_fn)(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                                size_t count, CUgraph child);
typedef CUresult (*cuGraphAddNode_fn)(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                      size_t count, CUgraphNodeParams *params);
typedef CUresult (*cuGraphAddNode_v2_fn)(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                         const CUgraphEdgeData *edges, size_t count,
                                         CUgraphNodeParams *params);
typedef cuGraphAddNode_v2_fn cuGraphAddNode_v3_fn;
typedef CUresult (*cuGraphInstantiate_fn)(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node,
                                          char *log, size_t log_bytes);
typedef cuGraphInstantiate_fn cuGraphInstantiate_v2_fn;
typedef CUresult (*cuGraphInstantiateWithFlags_fn)(CUgraphExec *exec, CUgraph graph,
                                                   unsigned long long flags);
typedef CUresult (*cuGraphInstantiateWithParams_fn)(CUgraphExec *exec, CUgraph graph,
                                                    CUDA_GRAPH_INSTANTIATE_PARAMS *params);
typedef cuGraphInstantiateWithParams_fn cuGraphInstantiateWithParams_ptsz_fn;
typedef CUresult (*cuGraphUpload_fn)(CUgraphExec exec, CUstream stream);
typedef cuGraphUpload_fn cuGraphUpload_ptsz_fn, cuGraphLaunch_fn, cuGraphLaunch_ptsz_fn;
typedef CUresult (*cuGraphExecDestroy_fn)(CUgraphExec exec);
typedef CUresult (*cuGraphExecUpdate_fn)(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node,
                                         int *result);
typedef CUresult (*cuGraphExecUpdate_v2_fn)(CUgraphExec exec, CUgraph graph, void *result);
typedef CUresult (*cuDeviceGraphMemTrim_fn)(CUdevice device);
typedef CUresult (*cuDeviceGetGraphMemAttribute_fn)(CUdevice device, CUgraphMem_attribute attribute,
                                                    void *value);
typedef cuDeviceGetGraphMemAttribute_fn cuDeviceSetGraphMemAttribute_fn;
typedef CUresult (*cuStreamBeginCapture_fn)(CUstream stream);
typedef cuStreamBeginCapture_fn cuStreamBeginCapture_ptsz_fn;
typedef CUresult (*cuStreamBeginCapture_v2_fn)(CUstream stream, CUstreamCaptureMode mode);
typedef cuStreamBeginCapture_v2_fn cuStreamBeginCapture_v2_ptsz_fn;
typedef CUresult (*cuStreamEndCapture_fn)(CUstream stream, CUgraph *graph);
typedef cuStreamEndCapture_fn cuStreamEndCapture_ptsz_fn;
typedef CUresult (*cuStreamIsCapturing_fn)(CUstream stream, CUstreamCaptureStatus *status);
typedef cuStreamIsCapturing_fn cuStreamIsCapturing_ptsz_fn;

/* Memory of others. */
typedef CUresult (*cuIpcGetMemHandle_fn)(CUipcMemHandle *handle, CUdeviceptr pointer);
typedef CUresult (*cuIpcOpenMemHandle_fn)(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags);
typedef cuIpcOpenMemHandle_fn cuIpcOpenMemHandle_v2_fn;
typedef CUresult (*cuIpcCloseMemHandle_fn)(CUdeviceptr pointer);
typedef CUresult (*cuImportExternalMemory_fn)(CUexternalMemory *memory,
                                              const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *descriptor);
typedef CUresult (*cuExternalMemoryGetMappedBuffer_fn)(CUdeviceptr *pointer, CUexternalMemory memory,
                                                       const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *descriptor);
typedef CUresult (*cuExternalMemoryGetMappedMipmappedArray_fn)(
    CUmipmappedArray *mipmap, CUexternalMemory memory,
    const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *descriptor);
typedef CUresult (*cuDestroyExternalMemory_fn)(CUexternalMemory memory);

/* Streams, copies, launches: not hooked, but used by tests and benches. */
typedef CUresult (*cuStreamCreate_fn)(CUstream *stream, unsigned int flags);
typedef CUresult (*cuStreamDestroy_fn)(CUstream stream);
typedef cuStreamDestroy_fn cuStreamDestroy_v2_fn, cuStreamSynchronize_fn, cuStreamSynchronize_ptsz_fn,
    cuStreamQuery_fn, cuStreamQuery_ptsz_fn;
typedef CUresult (*cuStreamGetCtx_fn)(CUstream stream, CUcontext *context);
typedef cuStreamGetCtx_fn cuStreamGetCtx_ptsz_fn;
typedef CUresult (*cuStreamGetCtx_v2_fn)(CUstream stream, CUcontext *context, CUgreenCtx *green);
typedef cuStreamGetCtx_v2_fn cuStreamGetCtx_v2_ptsz_fn;
typedef CUresult (*cuStreamGetDevice_fn)(CUstream stream, CUdevice *device);
typedef cuStreamGetDevice_fn cuStreamGetDevice_ptsz_fn;
typedef CUresult (*cuMemcpyHtoD_v2_fn)(CUdeviceptr to, const void *from, size_t bytes);
typedef cuMemcpyHtoD_v2_fn cuMemcpyHtoD_v2_ptds_fn;
typedef CUresult (*cuMemcpyDtoH_v2_fn)(void *to, CUdeviceptr from, size_t bytes);
typedef cuMemcpyDtoH_v2_fn cuMemcpyDtoH_v2_ptds_fn;
typedef CUresult (*cuMemcpyDtoD_v2_fn)(CUdeviceptr to, CUdeviceptr from, size_t bytes);
typedef cuMemcpyDtoD_v2_fn cuMemcpyDtoD_v2_ptds_fn, cuMemcpy_fn, cuMemcpy_ptds_fn;
typedef CUresult (*cuMemcpyHtoDAsync_v2_fn)(CUdeviceptr to, const void *from, size_t bytes, CUstream stream);
typedef cuMemcpyHtoDAsync_v2_fn cuMemcpyHtoDAsync_v2_ptsz_fn;
typedef CUresult (*cuMemcpyDtoHAsync_v2_fn)(void *to, CUdeviceptr from, size_t bytes, CUstream stream);
typedef cuMemcpyDtoHAsync_v2_fn cuMemcpyDtoHAsync_v2_ptsz_fn;
typedef CUresult (*cuMemcpyDtoDAsync_v2_fn)(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
typedef cuMemcpyDtoDAsync_v2_fn cuMemcpyDtoDAsync_v2_ptsz_fn, cuMemcpyAsync_fn, cuMemcpyAsync_ptsz_fn;
typedef CUresult (*cuMemsetD8_v2_fn)(CUdeviceptr to, unsigned char value, size_t count);
typedef cuMemsetD8_v2_fn cuMemsetD8_v2_ptds_fn;
typedef CUresult (*cuMemsetD32_v2_fn)(CUdeviceptr to, unsigned int value, size_t count);
typedef cuMemsetD32_v2_fn cuMemsetD32_v2_ptds_fn;
typedef CUresult (*cuMemsetD8Async_fn)(CUdeviceptr to, unsigned char value, size_t count, CUstream stream);
typedef cuMemsetD8Async_fn cuMemsetD8Async_ptsz_fn;
typedef CUresult (*cuLaunchKernel_fn)(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                      unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                      unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                                      void **params, void **extra);
typedef cuLaunchKernel_fn cuLaunchKernel_ptsz_fn;

#endif
