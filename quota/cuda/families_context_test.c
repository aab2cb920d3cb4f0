/* What the driver takes for itself (contexts, green ones, modules, limits), multicast objects, memory of unknown owners, and how a fenced process looks from outside and inside: devices,
 * queries, forks, side effects. */
#include "quota/cuda/tests/families.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (2 * MIB)
#define MODULE MIB /* of the fake driver */

static CUdeviceptr take(uint64_t bytes)
{
    CUdeviceptr p = 0;
    EXPECT(CU(cuMemAlloc_v2)(&p, bytes) == CUDA_SUCCESS);
    return p;
}

/* ---- modules, libraries, limits ---- */
static void modules_and_libraries_are_overhead(void)
{
    CUmodule module;
    CUlibrary library;
    family_start(0);
    EXPECT(CU(cuModuleLoadData)(&module, "code") == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_OVERHEAD), CONTEXT + MODULE);
    EXPECT(CU(cuLibraryLoadData)(&library, "code", NULL, NULL, 0, NULL, NULL, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_OVERHEAD), CONTEXT + 2 * MODULE);
    EXPECT(CU(cuModuleUnload)(module) == CUDA_SUCCESS);
    EXPECT(CU(cuLibraryUnload)(library) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_OVERHEAD), CONTEXT);
}

/* Code may have any amount of memory in it. */
static void a_module_that_does_not_fit_is_denied(void)
{
    CUmodule module = NULL;
    CUlibrary library = NULL;
    family_start(0);
    take(CEILING - CONTEXT - MODULE / 2);
    uint64_t used = family_used(0), physical = family_physical(0);
    EXPECT(CU(cuModuleLoadData)(&module, "code") == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuModuleLoad)(&module, "/proc/self/exe") == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuLibraryLoadData)(&library, "code", NULL, NULL, 0, NULL, NULL, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_physical(0), physical);
    EXPECT_BYTES(family_used(0), used);
    EXPECT_BYTES(family_denials(), 3);
}

static void a_heap_for_kernels_is_charged_before_it_is_taken(void)
{
    family_start(0);
    EXPECT(CU(cuCtxSetLimit)(CU_LIMIT_MALLOC_HEAP_SIZE, 40 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), family_physical(0));
    EXPECT(family_kind(0, CORRAL_KIND_OVERHEAD) > CONTEXT + 16 * MIB);
    uint64_t used = family_used(0), calls = family_calls("cuCtxSetLimit");
    EXPECT(CU(cuCtxSetLimit)(CU_LIMIT_MALLOC_HEAP_SIZE, 2 * CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuCtxSetLimit"), calls);
    EXPECT_BYTES(family_denials(), 1);
    EXPECT_BYTES(family_used(0), used);
    EXPECT_BYTES(family_physical(0), used);
    EXPECT(CU(cuCtxSetLimit)(CU_LIMIT_STACK_SIZE, 2048) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), used);
    EXPECT(CU(cuDevicePrimaryCtxReset_v2)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), 0);
}

/* The first context's cost is not known before. */
static void the_first_context_does_not_cross_the_ceiling(void)
{
    CUcontext context;
    CUgreenCtx green;
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle handle;
    EXPECT(CU(cuMemCreate)(&handle, CEILING - PAGE, &prop, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuGreenCtxCreate)(&green, (CUdevResourceDesc)&context, 0, 1) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_physical(0), CEILING - PAGE);
    EXPECT_BYTES(family_used(0), CEILING - PAGE);
    EXPECT_BYTES(family_denials(), 3);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void a_green_context_is_overhead(void)
{
    CUgreenCtx green;
    CUcontext context;
    family_start(0);
    EXPECT(CU(cuGreenCtxCreate)(&green, (CUdevResourceDesc)&context, 0, 1) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), family_physical(0));
    EXPECT(CU(cuCtxFromGreenCtx)(&context, green) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxPushCurrent_v2)(context) == CUDA_SUCCESS);
    CUdeviceptr p = take(MIB);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), MIB);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxPopCurrent_v2)(&context) == CUDA_SUCCESS);
    EXPECT(CU(cuGreenCtxDestroy)(green) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT_BYTES(family_physical(0), CONTEXT);
}

/* ---- multicast ---- */
static void what_is_bound_to_a_multicast_object_stays_charged(void)
{
    CUmulticastObjectProp shape = {.numDevices = 1, .size = PAGE};
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle multicast, memory;
    family_start(0);
    for (int unbind = 0; unbind < 2; unbind++) {
        EXPECT(CU(cuMulticastCreate)(&multicast, &shape) == CUDA_SUCCESS);
        EXPECT_BYTES(family_used(0), CONTEXT);
        EXPECT(CU(cuMulticastAddDevice)(multicast, 0) == CUDA_SUCCESS);
        EXPECT(CU(cuMemCreate)(&memory, PAGE, &prop, 0) == CUDA_SUCCESS);
        EXPECT(CU(cuMulticastBindMem)(multicast, 0, memory, 0, PAGE, 0) == CUDA_SUCCESS);
        EXPECT(CU(cuMemRelease)(memory) == CUDA_SUCCESS);
        EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), PAGE);
        if (unbind) {
            EXPECT(CU(cuMulticastUnbind)(multicast, 0, 0, PAGE) == CUDA_SUCCESS);
            EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
        }
        EXPECT(CU(cuMemRelease)(multicast) == CUDA_SUCCESS);
        EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
    }
}

static void memory_bound_by_address_stays_charged(void)
{
    CUmulticastObjectProp shape = {.numDevices = 1, .size = PAGE};
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle multicast, memory;
    CUdeviceptr p;
    family_start(0);
    EXPECT(CU(cuMulticastCreate)(&multicast, &shape) == CUDA_SUCCESS);
    EXPECT(CU(cuMulticastAddDevice)(multicast, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemCreate)(&memory, PAGE, &prop, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAddressReserve)(&p, PAGE, 0, 0, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemMap)(p, PAGE, 0, memory, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMulticastBindAddr)(multicast, 0, p, PAGE, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemRelease)(memory) == CUDA_SUCCESS);
    EXPECT(CU(cuMemUnmap)(p, PAGE) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), PAGE);
    EXPECT(CU(cuMulticastUnbind)(multicast, 0, 0, PAGE) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
    EXPECT_BYTES(family_physical(0), CONTEXT);
}

/* ---- arrays, streams, pools ---- */
static void a_mipmap_of_no_levels_has_one(void)
{
    CUmipmappedArray mipmap;
    CUDA_ARRAY3D_DESCRIPTOR d = {
        .Width = 1024, .Height = 1024, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4};
    family_start(0);
    EXPECT(CU(cuMipmappedArrayCreate)(&mipmap, &d, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_ARRAY), 16 * MIB);
    EXPECT(CU(cuMipmappedArrayDestroy)(mipmap) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void per_thread_names_are_charged(void)
{
    CUdeviceptr p = 0, q = 0;
    CUmemoryPool pool;
    family_start(0);
    EXPECT(CU(cuMemAllocAsync_ptsz)(&p, 3 * MIB, NULL) == CUDA_SUCCESS);
    EXPECT(family_kind(0, CORRAL_KIND_POOL) >= 3 * MIB);
    EXPECT(CU(cuDeviceGetDefaultMemPool)(&pool, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAllocFromPoolAsync_ptsz)(&q, 5 * MIB, pool, NULL) == CUDA_SUCCESS);
    EXPECT(family_kind(0, CORRAL_KIND_POOL) >= 8 * MIB);
    EXPECT_BYTES(family_used(0), family_physical(0));
    EXPECT(CU(cuMemAllocAsync_ptsz)(&p, CEILING, NULL) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuMemAllocAsync_ptsz"), 1);
    EXPECT(CU(cuMemFreeAsync_ptsz)(p, NULL) == CUDA_SUCCESS);
    EXPECT(CU(cuMemFreeAsync_ptsz)(q, NULL) == CUDA_SUCCESS);
    EXPECT(CU(cuMemPoolTrimTo)(pool, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

/* Everything an application may free that the quota has never heard of. */
static void unknown_names_are_the_drivers_to_refuse(void)
{
    family_start(0);
    static const char *const pointers[] = {"cuMemFree_v2", "cuIpcCloseMemHandle", "cuMemRelease"};
    for (size_t i = 0; i < sizeof(pointers) / sizeof(pointers[0]); i++) {
        CUresult r = ((CUresult(*)(uint64_t))family_symbol(pointers[i]))(0x123456789000);
        EXPECT(r == CUDA_ERROR_INVALID_VALUE || r == CUDA_ERROR_INVALID_HANDLE ||
               r == CUDA_ERROR_INVALID_CONTEXT);
        EXPECT_BYTES(family_calls(pointers[i]), 1);
    }
    EXPECT(CU(cuMemFreeAsync)(0x123456789000, NULL) != CUDA_SUCCESS);
    EXPECT_BYTES(family_calls("cuMemFreeAsync"), 1);
    EXPECT(CU(cuArrayDestroy)((CUarray)(uintptr_t)0x123000) != CUDA_SUCCESS);
    EXPECT(CU(cuMemUnmap)(0x123456800000, PAGE) != CUDA_SUCCESS);
    EXPECT(CU(cuMemPoolDestroy)((CUmemoryPool)(uintptr_t)0x123000) != CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

/* ---- memory of an owner that the ledger does not know ---- */
static void imported_memory_of_an_unknown_owner_is_charged_when_mapped(void)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr p;
    family_start(0);
    int fd = ((int (*)(int, uint64_t))family_symbol("fakecuda_foreign"))(0, 2 * PAGE);
    EXPECT(fd >= 0);
    uint64_t physical = family_physical(0);
    if (CU(cuMemImportFromShareableHandle)(&handle, (void *)(intptr_t)fd,
                                           CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != CUDA_SUCCESS) {
        return; /* a driver may refuse another API's memory */
    }
    EXPECT(CU(cuMemAddressReserve)(&p, 2 * PAGE, 0, 0, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemMap)(p, 2 * PAGE, 0, handle, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_EXTERNAL), 2 * PAGE);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT(CU(cuMemUnmap)(p, 2 * PAGE) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT(family_physical(0) <= physical);
}

/* ---- devices ---- */
static void second_device_only(void)
{
    CUdeviceptr p;
    size_t free_bytes, total;
    int count = 0;
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(CU(cuDeviceGetCount)(&count) == CUDA_SUCCESS && count == 1);
    family_start(0);
    p = take(5 * MIB);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_DEVICE), 5 * MIB);
    EXPECT_BYTES(family_used(0), 0);
    EXPECT(CU(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_SUCCESS);
    EXPECT_BYTES(total, CEILING);
    EXPECT_BYTES(free_bytes, CEILING - CONTEXT - 5 * MIB);
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
}

/* The driver's ordinal 0 is then the ledger's second device. */
static void visible_devices_do_not_move_charges(void)
{
    setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    EXPECT_BYTES((uint64_t)family_wait(family_spawn("second_device_only", NULL)), 0);
    setenv("CUDA_VISIBLE_DEVICES", "1,0", 1);
    EXPECT_BYTES((uint64_t)family_wait(family_spawn("devices_in_another_order", NULL)), 0);
}

static void devices_in_another_order(void)
{
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 1}};
    family_start(0);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_OVERHEAD), CONTEXT);
    EXPECT(CU(cuMemCreate)(&handle, PAGE, &prop, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), PAGE);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_VMM), 0);
}

/* No context, a wrong device: the driver's errors, nothing charged, nothing broken. */
static void calls_without_a_device_are_the_drivers_errors(void)
{
    CUdeviceptr p;
    CUcontext context;
    CUmemGenericAllocationHandle handle;
    size_t free_bytes, total, pitch;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 7}};
    unsigned before = family_denials();
    EXPECT(CU(cuMemAlloc_v2)(&p, MIB) == CUDA_ERROR_NOT_INITIALIZED);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 0) == CUDA_ERROR_NOT_INITIALIZED);
    EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, 0) == CUDA_ERROR_NOT_INITIALIZED);
    EXPECT(CU(cuMemCreate)(&handle, PAGE, &prop, 0) == CUDA_ERROR_NOT_INITIALIZED);
    EXPECT(family_denials() == before); /* nobody was denied anything */
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAlloc_v2)(&p, MIB) == CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(CU(cuMemAllocPitch_v2)(&p, &pitch, 64, 64, 4) == CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(CU(cuMemAllocManaged)(&p, MIB, CU_MEM_ATTACH_GLOBAL) == CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(CU(cuMemAllocAsync)(&p, MIB, NULL) == CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(CU(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 7) == CUDA_ERROR_INVALID_DEVICE);
    EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, -1) == CUDA_ERROR_INVALID_DEVICE);
    /* Whatever number a device has, it is the ledger's that is looked up, or none. */
    static const int wrong[] = {7, 63, 64, 100000, -1, -2147483647};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        prop.location.id = wrong[i];
        EXPECT(CU(cuMemCreate)(&handle, PAGE, &prop, 0) != CUDA_SUCCESS);
        EXPECT(CU(cuCtxCreate_v2)(&context, 0, wrong[i]) != CUDA_SUCCESS);
        EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, wrong[i]) != CUDA_SUCCESS);
        EXPECT(CU(cuDevicePrimaryCtxRelease_v2)(wrong[i]) != CUDA_SUCCESS);
        EXPECT(CU(cuDeviceGraphMemTrim)(wrong[i]) != CUDA_SUCCESS);
    }
    EXPECT_BYTES(family_used(0), 0);
    EXPECT_BYTES(family_used(1), 0);
}

/* ---- queries ---- */
static void sees_the_others_use(void)
{
    size_t free_bytes, total;
    family_start(0);
    EXPECT(CU(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_SUCCESS);
    EXPECT_BYTES(total, CEILING);
    EXPECT_BYTES(free_bytes, CEILING - 2 * CONTEXT - 20 * MIB);
}

static void a_second_process_sees_what_the_first_has(void)
{
    family_start(0);
    take(20 * MIB);
    EXPECT_BYTES((uint64_t)family_wait(family_spawn("sees_the_others_use", NULL)), 0);
}

static void information_tolerates_null(void)
{
    size_t free_bytes = 1, total = 1;
    family_start(0);
    CUresult r = CU(cuMemGetInfo_v2)(NULL, &total);
    EXPECT(r == CUDA_ERROR_INVALID_VALUE || total == CEILING);
    r = CU(cuMemGetInfo_v2)(&free_bytes, NULL);
    EXPECT(r == CUDA_ERROR_INVALID_VALUE || free_bytes == CEILING - CONTEXT);
    (void)CU(cuMemGetInfo_v2)(NULL, NULL);
    (void)CU(cuDeviceTotalMem_v2)(NULL, 0);
    EXPECT(CU(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_SUCCESS && total == CEILING);
}

/* At the ceiling, with memory that the driver was asked for behind the quota's back: nothing wraps. */
static void information_never_wraps(void)
{
    size_t free_bytes, total;
    family_start(0);
    take(CEILING - CONTEXT);
    EXPECT(CU(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_SUCCESS);
    EXPECT_BYTES(free_bytes, 0);
    EXPECT_BYTES(total, CEILING);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    EXPECT(nvml != NULL);
    nvmlDevice_t device;
    nvmlMemory_t m;
    EXPECT(((nvmlInit_v2_fn)dlsym(nvml, "nvmlInit_v2"))() == NVML_SUCCESS);
    EXPECT(((nvmlDeviceGetHandleByIndex_v2_fn)dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2"))(0, &device) ==
           NVML_SUCCESS);
    EXPECT(((nvmlDeviceGetMemoryInfo_fn)dlsym(nvml, "nvmlDeviceGetMemoryInfo"))(device, &m) == NVML_SUCCESS);
    EXPECT_BYTES(m.free, 0);
    EXPECT_BYTES(m.used, CEILING);
    EXPECT_BYTES(m.total, CEILING);
}

/* Programs that look at every GPU of the node take none of the ledger's places for it. */
static void looking_makes_no_holder(void)
{
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    EXPECT(nvml != NULL);
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(((nvmlInit_v2_fn)dlsym(nvml, "nvmlInit_v2"))() == NVML_SUCCESS);
    for (unsigned i = 0; i < 2; i++) {
        nvmlDevice_t device;
        nvmlMemory_t m;
        size_t total;
        EXPECT(((nvmlDeviceGetHandleByIndex_v2_fn)dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2"))(i, &device) ==
               NVML_SUCCESS);
        EXPECT(((nvmlDeviceGetMemoryInfo_fn)dlsym(nvml, "nvmlDeviceGetMemoryInfo"))(device, &m) ==
               NVML_SUCCESS);
        EXPECT(CU(cuDeviceTotalMem_v2)(&total, (CUdevice)i) == CUDA_SUCCESS);
        EXPECT_BYTES(m.total, CEILING);
        EXPECT_BYTES(m.free, CEILING);
        EXPECT_BYTES(total, CEILING);
    }
    EXPECT_BYTES(family_holders(), 0);
    family_start(1);
    EXPECT_BYTES(family_holders(), 1);
}

/* ---- what a process notices ---- */
static void nothing_else_of_the_process_changes(void)
{
    struct sigaction before[65], after;
    mode_t mask = umask(0027);
    umask(0027);
    for (int s = 1; s < 65; s++) {
        memset(&before[s], 0, sizeof(before[s]));
        sigaction(s, NULL, &before[s]);
    }
    CUdeviceptr p;
    errno = 77;
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    family_start(0);
    errno = 78;
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(errno == 78);
    p = take(MIB);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT(errno == 78);
    EXPECT(umask(mask) == 0027);
    for (int s = 1; s < 65; s++) {
        memset(&after, 0, sizeof(after));
        sigaction(s, NULL, &after);
        EXPECT(memcmp(&after.sa_handler, &before[s].sa_handler, sizeof(after.sa_handler)) == 0);
        EXPECT(after.sa_flags == before[s].sa_flags);
    }
}

/* The library is loaded and a call was looked up before the fork; the driver is started in the child only. */
static void a_fork_before_the_driver_starts_is_fenced(void)
{
    cuInit_fn init = CU(cuInit);
    cuMemAlloc_v2_fn alloc = CU(cuMemAlloc_v2);
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        CUdeviceptr p;
        EXPECT(init(0) == CUDA_SUCCESS);
        family_start(0);
        EXPECT(alloc(&p, 3 * MIB) == CUDA_SUCCESS);
        EXPECT_BYTES(family_used(0), CONTEXT + 3 * MIB);
        EXPECT(alloc(&p, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
        _exit(0);
    }
    EXPECT_BYTES((uint64_t)family_wait(pid), 0);
    family_start(0); /* and so is the parent */
    CUdeviceptr p;
    EXPECT(alloc(&p, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(alloc(&p, CEILING - CONTEXT) == CUDA_SUCCESS);
}

/* A driver does not work across fork; what the child does wrong must not cost the parent its charges. */
static void a_forked_child_gives_nothing_of_its_parents_back(void)
{
    family_start(0);
    CUdeviceptr p = take(10 * MIB);
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        (void)CU(cuMemFree_v2)(p);
        (void)CU(cuDevicePrimaryCtxRelease_v2)(0);
        _exit(0);
    }
    EXPECT_BYTES((uint64_t)family_wait(pid), 0);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 10 * MIB);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

#define MANY 40
static void takes_a_little(void)
{
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemCreate)(&handle, PAGE, &prop, 0) == CUDA_SUCCESS);
}

static void many_processes_start_at_once(void)
{
    pid_t pid[MANY];
    for (int i = 0; i < MANY; i++) {
        pid[i] = family_spawn("takes_a_little", NULL);
    }
    for (int i = 0; i < MANY; i++) {
        EXPECT_BYTES((uint64_t)family_wait(pid[i]), 0);
    }
    family_start(0);
    CUdeviceptr p;
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING - CONTEXT) == CUDA_SUCCESS); /* nothing of theirs is left */
}

/* ---- threads ---- */
#define THREADS 6
static CUcontext everybodys;
static void *all_families(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    EXPECT(CU(cuCtxSetCurrent)(everybodys) == CUDA_SUCCESS);
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUDA_ARRAY_DESCRIPTOR flat = {64, 64, CU_AD_FORMAT_FLOAT, 1};
    for (int i = 0; i < 300; i++) {
        CUdeviceptr p;
        CUmemGenericAllocationHandle handle;
        CUarray array;
        CUmodule module;
        size_t free_bytes, total;
        void *host;
        switch ((seed + (unsigned)i) % 6) {
        case 0:
            EXPECT(CU(cuMemAlloc_v2)(&p, 65536) == CUDA_SUCCESS && CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
            break;
        case 1:
            EXPECT(CU(cuMemCreate)(&handle, PAGE, &prop, 0) == CUDA_SUCCESS);
            EXPECT(CU(cuMemAddressReserve)(&p, PAGE, 0, 0, 0) == CUDA_SUCCESS);
            EXPECT(CU(cuMemMap)(p, PAGE, 0, handle, 0) == CUDA_SUCCESS);
            EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
            EXPECT(CU(cuMemUnmap)(p, PAGE) == CUDA_SUCCESS);
            EXPECT(CU(cuMemAddressFree)(p, PAGE) == CUDA_SUCCESS);
            break;
        case 2:
            EXPECT(CU(cuArrayCreate_v2)(&array, &flat) == CUDA_SUCCESS);
            EXPECT(CU(cuArrayDestroy)(array) == CUDA_SUCCESS);
            break;
        case 3:
            EXPECT(CU(cuModuleLoadData)(&module, "code") == CUDA_SUCCESS);
            EXPECT(CU(cuModuleUnload)(module) == CUDA_SUCCESS);
            break;
        case 4:
            EXPECT(CU(cuMemHostAlloc)(&host, 4096, 0) == CUDA_SUCCESS);
            EXPECT(CU(cuMemGetInfo_v2)(&free_bytes, &total) == CUDA_SUCCESS && total == CEILING);
            EXPECT(CU(cuMemFreeHost)(host) == CUDA_SUCCESS);
            break;
        default:
            EXPECT(CU(cuMemAllocAsync)(&p, 300000, NULL) == CUDA_SUCCESS);
            EXPECT(CU(cuMemFreeAsync)(p, NULL) == CUDA_SUCCESS);
        }
    }
    return NULL;
}

static void threads_in_every_family_settle_to_the_truth(void)
{
    pthread_t thread[THREADS];
    CUmemoryPool pool;
    CUmodule module;
    family_start(0);
    EXPECT(CU(cuCtxGetCurrent)(&everybodys) == CUDA_SUCCESS);
    for (uintptr_t i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&thread[i], NULL, all_families, (void *)i) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
    }
    EXPECT(CU(cuDeviceGetDefaultMemPool)(&pool, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemPoolTrimTo)(pool, 0) == CUDA_SUCCESS);
    /* Overhead that was measured amid the others' calls is right after the next measured one. */
    EXPECT(CU(cuModuleLoadData)(&module, "code") == CUDA_SUCCESS);
    EXPECT(CU(cuModuleUnload)(module) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT_BYTES(family_pinned(0), 0);
    EXPECT_BYTES(family_physical(0), CONTEXT);
    EXPECT_BYTES(family_denials(), 0);
}

#define CASE(name)                     \
    {                                  \
#name, NULL, name, false, NULL \
    }
static const struct family_case cases[] = {
    CASE(modules_and_libraries_are_overhead),
    CASE(a_module_that_does_not_fit_is_denied),
    CASE(a_heap_for_kernels_is_charged_before_it_is_taken),
    CASE(the_first_context_does_not_cross_the_ceiling),
    CASE(a_green_context_is_overhead),
    CASE(what_is_bound_to_a_multicast_object_stays_charged),
    CASE(memory_bound_by_address_stays_charged),
    CASE(a_mipmap_of_no_levels_has_one),
    CASE(per_thread_names_are_charged),
    CASE(unknown_names_are_the_drivers_to_refuse),
    CASE(imported_memory_of_an_unknown_owner_is_charged_when_mapped),
    CASE(visible_devices_do_not_move_charges),
    CASE(calls_without_a_device_are_the_drivers_errors),
    CASE(a_second_process_sees_what_the_first_has),
    CASE(information_tolerates_null),
    CASE(information_never_wraps),
    CASE(looking_makes_no_holder),
    CASE(nothing_else_of_the_process_changes),
    CASE(a_fork_before_the_driver_starts_is_fenced),
    CASE(a_forked_child_gives_nothing_of_its_parents_back),
    CASE(many_processes_start_at_once),
    CASE(threads_in_every_family_settle_to_the_truth),
    CASE(second_device_only), /* parts of others */
    CASE(devices_in_another_order),
    CASE(sees_the_others_use),
    CASE(takes_a_little),
};

int main(int argc, char **argv)
{
    return family_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]) - (argc > 1 ? 0 : 4));
}
