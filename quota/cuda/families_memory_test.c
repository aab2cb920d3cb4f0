/* cuMemAlloc and its kin, arrays, host memory, contexts and modules, spill. */
#include "quota/cuda/tests/families.h"
#include <pthread.h>

static void charges_device_memory_to_the_byte(void)
{
    CUdeviceptr p, q;
    family_start(0);
    EXPECT(CU(cuMemAlloc_v2)(&p, 3 * MIB + 17) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 3 * MIB + 17);
    EXPECT(CU(cuMemAlloc_v2)(&q, 1) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 3 * MIB + 18);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 1);
    EXPECT(CU(cuMemFree_v2)(q) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 0);
}

static void denies_before_the_driver_is_touched(void)
{
    CUdeviceptr p = 42;
    family_start(0);
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(p == 42);
    EXPECT_BYTES(family_calls("cuMemAlloc_v2"), 0);
    EXPECT(CU(cuMemAllocManaged)(&p, CEILING, CU_MEM_ATTACH_GLOBAL) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuMemAllocManaged"), 0);
    EXPECT_BYTES(family_denials(), 2);
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING - CONTEXT) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CEILING);
}

static void rolls_back_what_the_driver_refuses(void)
{
    CUdeviceptr p;
    CUarray array;
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUDA_ARRAY_DESCRIPTOR d = {.Width = 64, .Height = 64, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    size_t pitch;
    family_start(0);
    EXPECT((int)CU(cuMemAlloc_v2)(&p, MIB) == 999);
    EXPECT((int)CU(cuMemAllocManaged)(&p, MIB, CU_MEM_ATTACH_GLOBAL) == 999);
    EXPECT((int)CU(cuMemAllocPitch_v2)(&p, &pitch, 100, 100, 4) == 801);
    EXPECT((int)CU(cuMemAllocAsync)(&p, MIB, NULL) == 999);
    EXPECT((int)CU(cuArrayCreate_v2)(&array, &d) == 999);
    EXPECT((int)CU(cuMemCreate)(&handle, 2 * MIB, &prop, 0) == 700);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void keeps_the_charge_when_freeing_fails(void)
{
    CUdeviceptr p;
    family_start(0);
    EXPECT(CU(cuMemAlloc_v2)(&p, MIB) == CUDA_SUCCESS);
    EXPECT((int)CU(cuMemFree_v2)(p) == 999);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), MIB);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 0);
}

static void freeing_twice_is_the_drivers_error_only(void)
{
    CUdeviceptr p, q;
    family_start(0);
    EXPECT(CU(cuMemAlloc_v2)(&p, MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAlloc_v2)(&q, MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT(CU(cuMemFree_v2)(p) != CUDA_SUCCESS);
    EXPECT(CU(cuMemFree_v2)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), MIB);
}

static void charges_the_pitch_that_the_driver_chose(void)
{
    CUdeviceptr p;
    size_t pitch;
    family_start(0);
    EXPECT(CU(cuMemAllocPitch_v2)(&p, &pitch, 1000, 333, 4) == CUDA_SUCCESS);
    EXPECT(pitch > 1000);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), pitch * 333);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    /* What the rows' ends add does not fit, although width times height does. */
    uint64_t physical = family_physical(0);
    size_t rows = (CEILING - CONTEXT) / 1000;
    EXPECT(CU(cuMemAllocPitch_v2)(&p, &pitch, 1000, rows, 4) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT_BYTES(family_physical(0), physical);
}

static void charges_managed_memory_in_full(void)
{
    CUdeviceptr p;
    family_start(1);
    EXPECT(CU(cuMemAllocManaged)(&p, 7 * MIB, CU_MEM_ATTACH_GLOBAL) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_MANAGED), 7 * MIB);
    EXPECT_BYTES(family_used(0), 0);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_MANAGED), 0);
}

#define THREADS 4
#define ROUNDS 2000
static void *race(void *argument)
{
    CUcontext context = argument;
    EXPECT(CU(cuCtxSetCurrent)(context) == CUDA_SUCCESS);
    CUdeviceptr p[8];
    for (int i = 0; i < ROUNDS; i++) {
        for (int k = 0; k < 8; k++) {
            EXPECT(CU(cuMemAlloc_v2)(&p[k], 4096) == CUDA_SUCCESS);
        }
        for (int k = 0; k < 8; k++) {
            EXPECT(CU(cuMemFree_v2)(p[k]) == CUDA_SUCCESS);
        }
    }
    return NULL;
}

static void threads_racing_leave_nothing(void)
{
    pthread_t thread[THREADS];
    CUcontext context;
    family_start(0);
    EXPECT(CU(cuCtxGetCurrent)(&context) == CUDA_SUCCESS);
    for (int i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&thread[i], NULL, race, context) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
    }
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void charges_arrays(void)
{
    CUarray flat, deep;
    CUmipmappedArray mipmap;
    CUDA_ARRAY_DESCRIPTOR d = {.Width = 256, .Height = 128, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4};
    CUDA_ARRAY3D_DESCRIPTOR d3 = {
        .Width = 64, .Height = 64, .Depth = 8, .Format = CU_AD_FORMAT_HALF, .NumChannels = 2};
    family_start(0);
    EXPECT(CU(cuArrayCreate_v2)(&flat, &d) == CUDA_SUCCESS);
    uint64_t one = family_kind(0, CORRAL_KIND_ARRAY);
    EXPECT(one >= 256 * 128 * 16);
    EXPECT(CU(cuArray3DCreate_v2)(&deep, &d3) == CUDA_SUCCESS);
    EXPECT(family_kind(0, CORRAL_KIND_ARRAY) >= one + 64 * 64 * 8 * 4);
    uint64_t two = family_kind(0, CORRAL_KIND_ARRAY);
    d3.Depth = 0;
    EXPECT(CU(cuMipmappedArrayCreate)(&mipmap, &d3, 3) == CUDA_SUCCESS);
    EXPECT(family_kind(0, CORRAL_KIND_ARRAY) >= two + (64 * 64 + 32 * 32 + 16 * 16) * 4);
    EXPECT(CU(cuMipmappedArrayDestroy)(mipmap) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_ARRAY), two);
    EXPECT(CU(cuArrayDestroy)(flat) == CUDA_SUCCESS);
    EXPECT(CU(cuArrayDestroy)(deep) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_ARRAY), 0);
    d.Width = 1 << 16;
    d.Height = 1 << 16;
    uint64_t calls = family_calls("cuArrayCreate_v2");
    EXPECT(CU(cuArrayCreate_v2)(&flat, &d) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuArrayCreate_v2"), calls);
    d3.Flags = CUDA_ARRAY3D_SPARSE;
    if (CU(cuArray3DCreate_v2)(&deep, &d3) == CUDA_SUCCESS) {
        EXPECT_BYTES(family_kind(0, CORRAL_KIND_ARRAY), 0);
    }
}

static void counts_pinned_memory_and_charges_none(void)
{
    void *a, *b;
    static char own[8192] __attribute__((aligned(4096)));
    family_start(0);
    EXPECT(CU(cuMemHostAlloc)(&a, 5 * MIB, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAllocHost_v2)(&b, 3 * MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuMemHostRegister_v2)(own, sizeof(own), 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_pinned(0), 8 * MIB + sizeof(own));
    EXPECT_BYTES(family_used(0), CONTEXT);
    EXPECT(CU(cuMemFreeHost)(a) == CUDA_SUCCESS);
    EXPECT(CU(cuMemHostUnregister)(own) == CUDA_SUCCESS);
    EXPECT_BYTES(family_pinned(0), 3 * MIB);
    EXPECT(CU(cuMemHostUnregister)(own) != CUDA_SUCCESS);
    EXPECT_BYTES(family_pinned(0), 3 * MIB);
}

static void a_context_is_overhead_and_takes_its_memory_along(void)
{
    CUcontext context;
    CUdeviceptr p, q;
    void *host;
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_OVERHEAD), CONTEXT);
    EXPECT(CU(cuMemAlloc_v2)(&p, MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAlloc_v2)(&q, 2 * MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuMemHostAlloc)(&host, MIB, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT + 3 * MIB);
    EXPECT(CU(cuCtxDestroy_v2)(context) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), 0);
    EXPECT_BYTES(family_pinned(0), 0);
    EXPECT_BYTES(family_physical(0), 0);
}

static void a_primary_context_is_overhead_once(void)
{
    CUcontext context;
    CUdeviceptr p;
    family_start(0);
    EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, 0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_OVERHEAD), CONTEXT);
    EXPECT(CU(cuMemAlloc_v2)(&p, MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuDevicePrimaryCtxRelease_v2)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT + MIB);
    EXPECT(CU(cuDevicePrimaryCtxRelease_v2)(0) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), 0);
}

static void a_context_that_does_not_fit_is_denied(void)
{
    CUcontext context;
    CUdeviceptr p;
    family_start(0); /* what a context costs is known from here on */
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING - CONTEXT - MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuCtxCreate_v2"), 0);
    EXPECT_BYTES(family_denials(), 1);
    EXPECT_BYTES(family_used(0), CEILING - MIB);
}

static void spills_to_the_host_by_opt_in(void)
{
    CUdeviceptr p, q, r;
    family_start(0);
    EXPECT(CU(cuMemAlloc_v2)(&p, CEILING - CONTEXT) == CUDA_SUCCESS);
    EXPECT(CU(cuMemAlloc_v2)(&q, 3 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_spilled(0), 3 * MIB);
    EXPECT_BYTES(family_used(0), CEILING);
    EXPECT(CU(cuMemAlloc_v2)(&r, 6 * MIB) == CUDA_ERROR_OUT_OF_MEMORY); /* beyond 8 MiB in all */
    EXPECT(CU(cuMemAlloc_v2)(&r, 5 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_spilled(0), 8 * MIB);
    EXPECT(CU(cuMemFree_v2)(q) == CUDA_SUCCESS);
    EXPECT_BYTES(family_spilled(0), 5 * MIB);
    EXPECT(CU(cuMemFree_v2)(r) == CUDA_SUCCESS);
    EXPECT_BYTES(family_spilled(0), 0);
    EXPECT_BYTES(family_used(0), CEILING);
}

static void denies_everything_without_a_ledger(void)
{
    CUcontext context;
    CUdeviceptr p;
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    EXPECT(CU(cuInit)(0) == CUDA_SUCCESS);
    EXPECT(CU(cuDevicePrimaryCtxRetain)(&context, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuCtxCreate_v2)(&context, 0, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuMemAlloc_v2)(&p, 4096) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(CU(cuMemCreate)(&handle, 2 * MIB, &prop, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuMemAlloc_v2"), 0);
    EXPECT_BYTES(family_physical(0), 0);
}

#define CASE(name)                     \
    {                                  \
#name, NULL, name, false, NULL \
    }
static const struct family_case cases[] = {
    CASE(charges_device_memory_to_the_byte),
    CASE(denies_before_the_driver_is_touched),
    {"rolls_back_what_the_driver_refuses",
     "cuMemAlloc_v2:1:999,cuMemAllocManaged:1:999,cuMemAllocPitch_v2:1:801,cuMemAllocAsync:1:999,"
     "cuArrayCreate_v2:1:999,cuMemCreate:1:700",
     rolls_back_what_the_driver_refuses, false, NULL},
    {"keeps_the_charge_when_freeing_fails", "cuMemFree_v2:1:999", keeps_the_charge_when_freeing_fails, false,
     NULL},
    CASE(freeing_twice_is_the_drivers_error_only),
    CASE(charges_the_pitch_that_the_driver_chose),
    CASE(charges_managed_memory_in_full),
    CASE(threads_racing_leave_nothing),
    CASE(charges_arrays),
    CASE(counts_pinned_memory_and_charges_none),
    CASE(a_context_is_overhead_and_takes_its_memory_along),
    CASE(a_primary_context_is_overhead_once),
    CASE(a_context_that_does_not_fit_is_denied),
    {"spills_to_the_host_by_opt_in", NULL, spills_to_the_host_by_opt_in, false, "8MiB"},
    {"denies_everything_without_a_ledger", NULL, denies_everything_without_a_ledger, true, NULL},
};

int main(int argc, char **argv)
{
    return family_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
