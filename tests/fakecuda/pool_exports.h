/* The exported functions of pool.c. */
FAKE(cuMemAllocAsync, cuMemAllocAsync, 11020, (CUdeviceptr * pointer, size_t bytes, CUstream stream),
     allocate_async(pointer, bytes, stream))
FAKE_PER_THREAD(cuMemAllocAsync_ptsz, cuMemAllocAsync, 11020,
                (CUdeviceptr * pointer, size_t bytes, CUstream stream),
                allocate_async(pointer, bytes, stream))
FAKE(cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync, 11020,
     (CUdeviceptr * pointer, size_t bytes, CUmemoryPool pool, CUstream stream),
     allocate_from(pointer, bytes, pool, stream))
FAKE_PER_THREAD(cuMemAllocFromPoolAsync_ptsz, cuMemAllocFromPoolAsync, 11020,
                (CUdeviceptr * pointer, size_t bytes, CUmemoryPool pool, CUstream stream),
                allocate_from(pointer, bytes, pool, stream))
FAKE(cuMemFreeAsync, cuMemFreeAsync, 11020, (CUdeviceptr pointer, CUstream stream),
     free_async(pointer, stream))
FAKE_PER_THREAD(cuMemFreeAsync_ptsz, cuMemFreeAsync, 11020, (CUdeviceptr pointer, CUstream stream),
                free_async(pointer, stream))
FAKE(cuMemPoolCreate, cuMemPoolCreate, 11020, (CUmemoryPool * pool, const CUmemPoolProps *props),
     create(pool, props))
FAKE(cuMemPoolDestroy, cuMemPoolDestroy, 11020, (CUmemoryPool pool), destroy(pool))
FAKE(cuMemPoolTrimTo, cuMemPoolTrimTo, 11020, (CUmemoryPool pool, size_t keep), trim_to(pool, keep))
FAKE(cuMemPoolSetAttribute, cuMemPoolSetAttribute, 11020,
     (CUmemoryPool pool, CUmemPool_attribute attribute, void *value), set_attribute(pool, attribute, value))
FAKE(cuMemPoolGetAttribute, cuMemPoolGetAttribute, 11020,
     (CUmemoryPool pool, CUmemPool_attribute attribute, void *value), get_attribute(pool, attribute, value))
FAKE(cuMemPoolSetAccess, cuMemPoolSetAccess, 11020,
     (CUmemoryPool pool, const CUmemAccessDesc *access, size_t count),
     ((void)pool, (void)access, (void)count, CUDA_SUCCESS))
FAKE(cuDeviceSetMemPool, cuDeviceSetMemPool, 11020, (CUdevice device, CUmemoryPool pool),
     set_for_device(device, pool))
FAKE(cuDeviceGetMemPool, cuDeviceGetMemPool, 11020, (CUmemoryPool * pool, CUdevice device),
     get_for_device(pool, device, false))
FAKE(cuDeviceGetDefaultMemPool, cuDeviceGetDefaultMemPool, 11020, (CUmemoryPool * pool, CUdevice device),
     get_for_device(pool, device, true))
FAKE(cuMemGetMemPool, cuMemGetMemPool, 13000,
     (CUmemoryPool * pool, CUmemLocation *location, CUmemAllocationType type),
     ((void)type, get_for_place(pool, location, false)))
FAKE(cuMemGetDefaultMemPool, cuMemGetDefaultMemPool, 13000,
     (CUmemoryPool * pool, CUmemLocation *location, CUmemAllocationType type),
     ((void)type, get_for_place(pool, location, true)))
FAKE(cuMemSetMemPool, cuMemSetMemPool, 13000,
     (CUmemLocation * location, CUmemAllocationType type, CUmemoryPool pool),
     ((void)type, location != NULL && location->type == CU_MEM_LOCATION_TYPE_DEVICE
                      ? set_for_device(location->id, pool)
                      : CUDA_ERROR_INVALID_VALUE))
FAKE(cuMemPoolExportToShareableHandle, cuMemPoolExportToShareableHandle, 11020,
     (void *out, CUmemoryPool pool, CUmemAllocationHandleType type, unsigned long long flags),
     ((void)flags, export_pool(out, pool, type)))
FAKE(cuMemPoolImportFromShareableHandle, cuMemPoolImportFromShareableHandle, 11020,
     (CUmemoryPool * pool, void *os_handle, CUmemAllocationHandleType type, unsigned long long flags),
     ((void)flags, import_pool(pool, os_handle, type)))
FAKE(cuMemPoolExportPointer, cuMemPoolExportPointer, 11020,
     (CUmemPoolPtrExportData * out, CUdeviceptr pointer), export_pointer(out, pointer))
FAKE(cuMemPoolImportPointer, cuMemPoolImportPointer, 11020,
     (CUdeviceptr * pointer, CUmemoryPool pool, CUmemPoolPtrExportData *data),
     import_pointer(pointer, pool, data))
