/* Run by library_test with libcorral-quota.so preloaded: `probe CASE` looks for the driver's functions in one of the ways that programs do. Exit 0: as it should be. */
#include "quota/cuda/driver_types.h"
#include "quota/cuda/nvml_types.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

/* Whether a pool should be asked for its truth first is guessed from the ledger without its lock: a wrong guess costs a question. */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:corral_cuda_relieve\n";
}

static bool is_in(const void *address, const char *library)
{
    Dl_info info;
    return address && dladdr(address, &info) != 0 && info.dli_fname && strstr(info.dli_fname, library);
}
static bool is_hook(const void *address)
{
    return is_in(address, "libcorral-quota.so");
}

static void *driver(void)
{
    void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    CHECK(handle);
    return handle;
}

static int *counter(const char *name)
{
    int *found = dlsym(driver(), name);
    CHECK(found);
    return found;
}

static void dlsym_gives_the_hook(void)
{
    void *handle = driver();
    void *alloc = dlsym(handle, "cuMemAlloc_v2");
    CHECK(is_hook(alloc));
    CHECK(dlsym(RTLD_DEFAULT, "cuMemAlloc_v2") == alloc);
    CHECK(dlsym(RTLD_NEXT, "cuMemAlloc_v2") == alloc);
    CHECK(dlsym(dlopen(NULL, RTLD_NOW), "cuMemAlloc_v2") == alloc);
    CHECK(is_in(dlsym(handle, "cuLaunchKernel"), "libcuda.so.1"));
    CHECK(!dlsym(handle, "cuMemCreate")); /* this driver has none */
    CHECK(strstr(dlerror(), "cuMemCreate"));
    CHECK(!dlsym(RTLD_DEFAULT, "cuMemCreate"));
    CHECK(strstr(dlerror(), "cuMemCreate"));
    CHECK(!dlsym(handle, "no_such_function") && dlerror());
}

static void dlvsym_gives_the_hook(void)
{
    CHECK(dlvsym(driver(), "cuMemAlloc_v2", "TINY_1") == dlsym(driver(), "cuMemAlloc_v2"));
    CHECK(is_hook(dlvsym(driver(), "cuMemAlloc_v2", "TINY_1")));
    CHECK(!dlvsym(driver(), "cuMemAlloc_v2", "TINY_2") && dlerror());
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    CHECK(is_in(dlvsym(libc, "getpid", "GLIBC_2.2.5"), "libc.so.6"));
    CHECK(!dlvsym(libc, "getpid", "GLIBC_9.9") && dlerror());
}

/* A program that fetches dlsym itself must not get past us. */
static void dlsym_of_dlsym_is_ours(void)
{
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    void *(*fetched)(void *, const char *) = (void *(*)(void *, const char *))dlsym(libc, "dlsym");
    CHECK(is_hook((void *)fetched));
    CHECK(is_hook(fetched(driver(), "cuMemAlloc_v2")));
    CHECK(is_hook(dlvsym(libc, "dlsym", "GLIBC_2.2.5")) == is_hook((void *)fetched));
    CHECK(is_hook(dlsym(libc, "dlvsym")));
}

static void no_driver_no_symbol(void)
{
    CHECK(!dlsym(RTLD_DEFAULT, "cuInit"));
    CHECK(dlerror());
    CHECK(!dlsym(dlopen(NULL, RTLD_NOW), "cuMemAlloc_v2"));
    CHECK(!dlsym(RTLD_DEFAULT, "nvmlDeviceGetMemoryInfo"));
    CHECK(dlsym(RTLD_DEFAULT, "getpid") == (void *)getpid ||
          is_in(dlsym(RTLD_DEFAULT, "getpid"), "libc.so.6"));
}

static void another_library_keeps_its_own(void)
{
    void *handle = driver();
    void *between = dlopen(getenv("PROBE_BETWEEN"), RTLD_NOW | RTLD_GLOBAL);
    CHECK(between);
    void *(*next)(const char *) = (void *(*)(const char *))dlsym(between, "between_next");
    CHECK(is_in(dlsym(between, "cuMemFree_v2"), "between"));
    CHECK(is_hook(dlsym(handle, "cuMemFree_v2")));
    /* libc sees who asks: after this library there is no other with that function, and after the program there would be this one. */
    CHECK(!next("between_next"));
    CHECK(is_in(dlsym(RTLD_NEXT, "between_next"), "between"));
    CHECK(next("getpid") == NULL || is_in(next("getpid"), "libc.so.6"));
}

/* With the driver after the library: what RTLD_NEXT gives it is the driver's, so it gets the hook. */
static void next_of_another_library_is_hooked(void)
{
    void *between = dlopen(getenv("PROBE_BETWEEN"), RTLD_NOW | RTLD_GLOBAL);
    CHECK(between);
    driver();
    void *(*next)(const char *) = (void *(*)(const char *))dlsym(between, "between_next");
    void *(*in_default)(const char *) = (void *(*)(const char *))dlsym(between, "between_default");
    CHECK(is_hook(next("cuMemFree_v2")));
    CHECK(is_hook(in_default("cuMemAlloc_v2")));
}

static void proc_address_respects_version_and_flags(void)
{
    void *handle = driver();
    cuGetProcAddress_v2_fn get = (cuGetProcAddress_v2_fn)dlsym(handle, "cuGetProcAddress_v2");
    cuGetProcAddress_fn get_v1 = (cuGetProcAddress_fn)dlsym(handle, "cuGetProcAddress");
    CHECK(is_hook((void *)get) && is_hook((void *)get_v1));
    void *found = NULL, *first = NULL;
    CUdriverProcAddressQueryResult status;
    CHECK(get("cuMemAlloc", &found, 12000, 0, &status) == 0 && status == 0);
    CHECK(is_hook(found) && found == dlsym(handle, "cuMemAlloc_v2"));
    CHECK(get_v1("cuMemAlloc", &first, 3000, 0) == 0);
    CHECK(first == dlsym(handle, "cuMemAlloc") && first != found);
    CHECK(get("cuMemAllocAsync", &found, 12000, 1, &status) == 0);
    CHECK(found == dlsym(handle, "cuMemAllocAsync"));
    CHECK(get("cuMemAllocAsync", &found, 12000, 2, &status) == 0);
    CHECK(found == dlsym(handle, "cuMemAllocAsync_ptsz") && is_hook(found));
    CHECK(get("cuGetProcAddress", &found, 12000, 0, &status) == 0 && found == (void *)get);
    CHECK(get("cuGetProcAddress", &found, 11040, 0, NULL) == 0 && found == (void *)get_v1);
    CHECK(get("cuLaunchKernel", &found, 12000, 0, &status) == 0 && is_in(found, "libcuda.so.1"));
    CHECK(get("cuMemAllocAsync", &found, 11010, 0, &status) == 0 && !found &&
          status == CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
    CHECK(get("cuNothing", &found, 12000, 0, &status) == 0 && !found &&
          status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    CHECK(get_v1("cuNothing", &found, 12000, 0) == CUDA_ERROR_NOT_FOUND);
    /* The driver answers with an address that it exports under no name. */
    CHECK(get("cuMemAllocManaged", &found, 12000, 0, &status) == 0 &&
          found == dlsym(handle, "cuMemAllocManaged"));
}

static void unknown_function_is_withheld(void)
{
    cuGetProcAddress_v2_fn get = (cuGetProcAddress_v2_fn)dlsym(driver(), "cuGetProcAddress_v2");
    void *found = NULL;
    CUdriverProcAddressQueryResult status = 0;
    bool allowed = getenv("PROBE_ALLOWED") != NULL;
    CHECK(get("cuMemAllocOfTheFuture", &found, 12000, 0, &status) == 0);
    CHECK(allowed ? found && status == 0 : !found && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    CHECK(get("cuMemAllocOfTheFuture", &found, 12000, 0, NULL) ==
          (allowed ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND));
    CHECK(get("cuQueryOfTheFuture", &found, 12000, 0, &status) == 0 && found);
}

static void closed_denies(void)
{
    void *handle = driver();
    CUdeviceptr pointer = 0;
    CHECK(((cuInit_fn)dlsym(handle, "cuInit"))(0) == 0);
    CHECK(((cuMemAlloc_v2_fn)dlsym(handle, "cuMemAlloc_v2"))(&pointer, 4096) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(((cuMemAlloc_v2_fn)dlsym(handle, "cuMemAlloc_v2"))(&pointer, 4096) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(*counter("tiny_calls") == 0);
    size_t free_bytes = 1, total = 1;
    CHECK(((cuMemGetInfo_v2_fn)dlsym(handle, "cuMemGetInfo_v2"))(&free_bytes, &total) == 0);
    CHECK(free_bytes == 0 && total == (size_t)100 << 20);
}

static void unknown_driver_is_refused(void)
{
    void *handle = driver();
    CUdeviceptr pointer = 0;
    CHECK(((cuInit_fn)dlsym(handle, "cuInit"))(0) == CUDA_ERROR_NOT_PERMITTED);
    CHECK(((cuMemAlloc_v2_fn)dlsym(handle, "cuMemAlloc_v2"))(&pointer, 4096) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(*counter("tiny_calls") == 0);
}

static void allocate_and_free(uint64_t bytes)
{
    CUdeviceptr pointer = 0;
    CHECK(((cuMemAlloc_v2_fn)dlsym(driver(), "cuMemAlloc_v2"))(&pointer, bytes) == CUDA_SUCCESS);
    CHECK(((cuMemFree_v2_fn)dlsym(driver(), "cuMemFree_v2"))(pointer) == CUDA_SUCCESS);
}

static void unknown_driver_goes_on(void)
{
    CHECK(((cuInit_fn)dlsym(driver(), "cuInit"))(0) == CUDA_SUCCESS);
    CUdeviceptr pointer = 0;
    CHECK(((cuMemAlloc_v2_fn)dlsym(driver(), "cuMemAlloc_v2"))(&pointer, 4096) == CUDA_SUCCESS);
    puts("holding"); /* library_test looks at the ledger now, and closes our input */
    fflush(stdout);
    CHECK(getchar() == EOF);
}

/* Ceiling 30 MiB of 100, nothing used. */
static void queries_follow_the_quota(void)
{
    cuMemGetInfo_v2_fn get_info = (cuMemGetInfo_v2_fn)dlsym(driver(), "cuMemGetInfo_v2");
    cuDeviceTotalMem_v2_fn get_total = (cuDeviceTotalMem_v2_fn)dlsym(driver(), "cuDeviceTotalMem_v2");
    cuMemAlloc_v2_fn alloc = (cuMemAlloc_v2_fn)dlsym(driver(), "cuMemAlloc_v2");
    size_t free_bytes = 0, total = 0;
    CHECK(get_info(&free_bytes, &total) == 0);
    CHECK(total == (size_t)30 << 20 && free_bytes == (size_t)30 << 20);
    CHECK(get_total(&total, 0) == 0 && total == (size_t)30 << 20);
    CHECK(get_info(NULL, &total) == CUDA_ERROR_INVALID_VALUE);
    CHECK(get_total(NULL, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(get_total(&total, 5) == CUDA_ERROR_INVALID_DEVICE);
    CUdeviceptr pointer;
    CHECK(alloc(&pointer, ((size_t)30 << 20) - 4096) == 0);
    CHECK(get_info(&free_bytes, &total) == 0 && free_bytes == 4096 && total == (size_t)30 << 20);
    CHECK(alloc(&pointer, 4097) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(alloc(&pointer, 4096) == 0);
    CHECK(get_info(&free_bytes, &total) == 0 && free_bytes == 0);
}

/* The child is a holder of its own. */
static void forks(void)
{
    CUdeviceptr pointer = 0;
    cuMemAlloc_v2_fn alloc = (cuMemAlloc_v2_fn)dlsym(driver(), "cuMemAlloc_v2");
    CHECK(alloc(&pointer, (size_t)20 << 20) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CUdeviceptr more;
        CHECK(alloc(&more, (size_t)20 << 20) == CUDA_ERROR_OUT_OF_MEMORY);
        CHECK(alloc(&more, (size_t)10 << 20) == 0);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    allocate_and_free((size_t)10 << 20); /* the child's went with it */
}

static void denied_functions_answer_so(void)
{
    CUresult (*create)(void) = (CUresult(*)(void))dlsym(driver(), "cuGLCtxCreate_v2");
    CHECK(is_hook((void *)create) && create() == CUDA_ERROR_NOT_SUPPORTED);
}

/* Ceiling 30 MiB of 100; 20 MiB taken through the driver. */
static void nvml_agrees(void)
{
    CUdeviceptr pointer;
    CHECK(((cuMemAlloc_v2_fn)dlsym(driver(), "cuMemAlloc_v2"))(&pointer, (size_t)20 << 20) == 0);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    CHECK(nvml);
    nvmlDeviceGetMemoryInfo_fn get = (nvmlDeviceGetMemoryInfo_fn)dlsym(nvml, "nvmlDeviceGetMemoryInfo");
    nvmlDeviceGetMemoryInfo_v2_fn get_v2 =
        (nvmlDeviceGetMemoryInfo_v2_fn)dlsym(nvml, "nvmlDeviceGetMemoryInfo_v2");
    CHECK(is_hook((void *)get) && is_hook((void *)get_v2) &&
          is_in(dlsym(nvml, "nvmlInit_v2"), "libnvidia-ml"));
    nvmlMemory_t memory;
    nvmlMemory_v2_t memory_v2 = {.version = NVML_MEMORY_V2};
    nvmlDevice_t known = (nvmlDevice_t)1, foreign = (nvmlDevice_t)2;
    CHECK(get(known, &memory) == 0 && memory.total == 30ULL << 20 && memory.free == 10ULL << 20 &&
          memory.used == 20ULL << 20);
    CHECK(get_v2(known, &memory_v2) == 0 && memory_v2.version == NVML_MEMORY_V2);
    CHECK(memory_v2.total == 30ULL << 20 && memory_v2.free == 10ULL << 20 && memory_v2.used == 20ULL << 20 &&
          memory_v2.reserved == 0);
    CHECK(get(foreign, &memory) == 0 && memory.total == 100ULL << 20 && memory.free == 90ULL << 20);
    CHECK(get(NULL, &memory) == NVML_ERROR_INVALID_ARGUMENT);
}

enum { RACERS = 8, ROUNDS = 200 };
static pthread_barrier_t all_here;

/* The first calls of a process, from many threads: they find the same functions, and there is one holder. */
static void *race(void *out)
{
    pthread_barrier_wait(&all_here);
    void *handle = dlopen("libcuda.so.1", RTLD_NOW);
    cuMemAlloc_v2_fn alloc = (cuMemAlloc_v2_fn)dlsym(handle, "cuMemAlloc_v2");
    cuMemFree_v2_fn free_memory = (cuMemFree_v2_fn)dlsym(handle, "cuMemFree_v2");
    for (int i = 0; i < ROUNDS; i++) {
        CUdeviceptr pointer;
        CHECK(alloc(&pointer, 4096) == CUDA_SUCCESS);
        CHECK(free_memory(pointer) == CUDA_SUCCESS);
    }
    *(void **)out = (void *)alloc;
    return NULL;
}

static void threads_race_for_the_first_call(void)
{
    pthread_t threads[RACERS];
    void *found[RACERS] = {NULL};
    CHECK(pthread_barrier_init(&all_here, NULL, RACERS) == 0);
    for (int i = 0; i < RACERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, race, &found[i]) == 0);
    }
    for (int i = 0; i < RACERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0 && is_hook(found[i]) && found[i] == found[0]);
    }
    allocate_and_free((size_t)30 << 20); /* everything came back */
}

static void export_table_is_the_drivers(void)
{
    const void *table = NULL;
    CUuuid id = {{0}};
    CHECK(((cuGetExportTable_fn)dlsym(driver(), "cuGetExportTable"))(&table, &id) == 0 &&
          is_in(table, "libcuda.so.1"));
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
#define CASE(name) {#name, name}
        CASE(dlsym_gives_the_hook),
        CASE(dlvsym_gives_the_hook),
        CASE(dlsym_of_dlsym_is_ours),
        CASE(no_driver_no_symbol),
        CASE(another_library_keeps_its_own),
        CASE(next_of_another_library_is_hooked),
        CASE(proc_address_respects_version_and_flags),
        CASE(unknown_function_is_withheld),
        CASE(closed_denies),
        CASE(unknown_driver_is_refused),
        CASE(unknown_driver_goes_on),
        CASE(queries_follow_the_quota),
        CASE(forks),
        CASE(denied_functions_answer_so),
        CASE(export_table_is_the_drivers),
        CASE(nvml_agrees),
        CASE(threads_race_for_the_first_call),
    };
    for (size_t i = 0; argc == 2 && i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    fprintf(stderr, "usage: probe CASE\n");
    return 2;
}
