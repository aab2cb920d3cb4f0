/* What a program in a role must meet, on the fake driver or a real GPU. Run by quota-node with the interposer preloaded; uses device 0 as any program would.
 *
 *   conformance canary            the pre-flight passes
 *   conformance families          through each family: what is taken is charged, what is freed is given back, and the ledger is what is physically there (physical_count.h)
 *   conformance agree             cuMemGetInfo, cuDeviceTotalMem and NVML say the same
 *   conformance managed           the allocator of built-in workers
 *   conformance hog SEED          takes until denied, through every family, frees some, for ever
 *   conformance floor SEED TIMES  takes the whole floor, to the byte, at random times: it is always there
 *   conformance ipc | shareable | external     with `conformance owner …` as the other end of descriptor 9: shared memory is charged once, and to the importer when the owner dies
 *   conformance multicast         what is bound to a multicast object stays charged
 *   conformance compare PID [TOLERANCE]        the ledger and the device say the same of a process that is running; `compared` is such a process
 *
 * Exit status 77 with a line "SKIPPED …": something could not be tried here.
 */
#include "tests/quota/conformance.h"

#include "quota/cuda/canary.h"
#include "quota/cuda/managed_alloc.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void fail(const char *what, long long got, long long wanted)
{
    fprintf(stderr, "conformance: %s: %lld, expected %lld\n", what, got, wanted);
    exit(1); // NOLINT: a test program
}

void check(const char *what, long long got, long long wanted)
{
    if (got != wanted) {
        fail(what, got, wanted);
    }
}

void skip(const char *what, const char *why)
{
    printf("SKIPPED %s: %s\n", what, why);
    exit(SKIPPED); // NOLINT: a test program
}

void *driver_function(const char *name)
{
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return lib != NULL ? dlsym(lib, name) : NULL;
}

void *needed_function(const char *name)
{
    void *found = driver_function(name);
    if (found == NULL) {
        skip(name, "the driver has no such function");
    }
    return found;
}

static void open_driver(struct test *t, pid_t pid)
{
    struct corral_error err = {0};
    CUuuid id;
    if (corral_quota_attach_environment(&t->quota, &t->role, &err) != CORRAL_OK ||
        corral_cuda_client_open(CORRAL_CUDA_ROUTE_DLSYM, &t->cuda, &err) != CORRAL_OK) {
        fprintf(stderr, "conformance: %s\n", err.text);
        exit(1); // NOLINT
    }
    check("cuInit", t->cuda.cuInit(0), 0);
    check("uuid", DRIVER(cuDeviceGetUuid)(&id, 0), 0);
    t->ledger = corral_quota_ledger(t->quota);
    t->device = corral_ledger_find_uuid(t->ledger, (const uint8_t *)id.bytes);
    physical_open(&t->physical, (const uint8_t *)id.bytes, pid,
                  dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL));
}

static void open_all(struct test *t)
{
    open_driver(t, getpid());
    check("context", t->cuda.cuDevicePrimaryCtxRetain(&t->context, 0), 0);
    check("current", t->cuda.cuCtxPushCurrent_v2(t->context), 0);
}

const struct corral_ledger_role *role_of(const struct test *t)
{
    return &t->ledger->device[t->device].role[t->role];
}

uint64_t all_used(const struct test *t)
{
    uint64_t sum = 0;
    for (uint32_t r = 0; r < t->ledger->role_count; r++) {
        sum += t->ledger->device[t->device].role[r].used;
    }
    return sum;
}

void compare(struct test *t, enum physical_bound bound, const char *when)
{
    if (!physical_compare(&t->physical, PHYSICAL_OF_PROCESS, bound, role_of(t)->used, when)) {
        exit(1); // NOLINT: a test program
    }
}

void compare_all(struct test *t, enum physical_bound bound, const char *when)
{
    if (!physical_compare(&t->physical, PHYSICAL_OF_DEVICE, bound, all_used(t), when)) {
        exit(1); // NOLINT: a test program
    }
}

void be_denied(struct test *t)
{
    CUdeviceptr p;
    check("above the ceiling", t->cuda.cuMemAlloc_v2(&p, role_of(t)->ceiling + PAGE),
          CUDA_ERROR_OUT_OF_MEMORY);
}

/* ---- families ---- */
struct held {
    int family;
    CUdeviceptr a, b;
};

static bool take(struct test *t, int family, uint64_t bytes, struct held *out)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 1024,
                                     .Height = 1024,
                                     .Depth = (bytes + MIB - 1) / MIB,
                                     .Format = CU_AD_FORMAT_UNSIGNED_INT8,
                                     .NumChannels = 1};
    CUDA_MEM_ALLOC_NODE_PARAMS node = {.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                     .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
                                       .bytesize = bytes};
    CUgraphNode first, last;
    CUgraph graph;
    CUgraphExec exec;
    CUresult r;
    size_t pitch;
    *out = (struct held){.family = family};
    switch (family) {
    case 0:
        r = t->cuda.cuMemAlloc_v2(&out->a, bytes);
        break;
    case 1:
        r = t->cuda.cuMemAllocManaged(&out->a, bytes, CU_MEM_ATTACH_GLOBAL);
        break;
    case 2:
        r = t->cuda.cuMemAllocPitch_v2(&out->a, &pitch, 1000, (bytes + 1023) / 1024, 4);
        break;
    case 3:
        r = t->cuda.cuMemCreate(&out->a, (bytes + PAGE - 1) / PAGE * PAGE, &prop, 0);
        break;
    case 4:
        r = t->cuda.cuMemAllocAsync(&out->a, bytes, NULL);
        break;
    case 5:
        r = t->cuda.cuArray3DCreate_v2((CUarray *)&out->a, &shape);
        break;
    case 6:
        r = t->cuda.cuMipmappedArrayCreate((CUmipmappedArray *)&out->a, &shape, 3);
        break;
    default:
        check("graph", t->cuda.cuGraphCreate(&graph, 0), 0);
        r = t->cuda.cuGraphAddMemAllocNode(&first, graph, NULL, 0, &node);
        r = r == CUDA_SUCCESS ? t->cuda.cuGraphAddMemFreeNode(&last, graph, &first, 1, node.dptr) : r;
        r = r == CUDA_SUCCESS ? t->cuda.cuGraphInstantiateWithFlags(&exec, graph, 0) : r;
        if (r == CUDA_SUCCESS) {
            out->a = (CUdeviceptr)(uintptr_t)exec;
            out->b = (CUdeviceptr)(uintptr_t)graph;
        } else {
            check("graph given up", t->cuda.cuGraphDestroy(graph), 0);
        }
    }
    if (r != CUDA_SUCCESS && r != CUDA_ERROR_OUT_OF_MEMORY) {
        fail("answer of an allocation", r, CUDA_ERROR_OUT_OF_MEMORY);
    }
    return r == CUDA_SUCCESS;
}
#define FAMILIES 8
static const char *const family_name[FAMILIES] = {"device", "managed", "pitch",  "vmm",
                                                  "pool",   "array",   "mipmap", "graph"};

static void give(struct test *t, const struct held *h)
{
    CUmemoryPool pool;
    switch (h->family) {
    case 0:
    case 1:
    case 2:
        check("free", t->cuda.cuMemFree_v2(h->a), 0);
        break;
    case 3:
        check("release", t->cuda.cuMemRelease(h->a), 0);
        break;
    case 4:
        check("free async", t->cuda.cuMemFreeAsync(h->a, NULL), 0);
        check("synchronise", t->cuda.cuStreamSynchronize(NULL), 0);
        check("pool", t->cuda.cuDeviceGetDefaultMemPool(&pool, 0), 0);
        check("trim", t->cuda.cuMemPoolTrimTo(pool, 0), 0);
        break;
    case 5:
        check("array", t->cuda.cuArrayDestroy((CUarray)(uintptr_t)h->a), 0);
        break;
    case 6:
        check("mipmap", t->cuda.cuMipmappedArrayDestroy((CUmipmappedArray)(uintptr_t)h->a), 0);
        break;
    default:
        check("exec", t->cuda.cuGraphExecDestroy((CUgraphExec)(uintptr_t)h->a), 0);
        check("graph", t->cuda.cuGraphDestroy((CUgraph)(uintptr_t)h->b), 0);
        check("graph memory", t->cuda.cuDeviceGraphMemTrim(0), 0);
    }
}

/* Managed memory is charged wherever its pages are, a graph's before it has run. */
static enum physical_bound bound_of(int family)
{
    return family == 1 || family == 7 ? PHYSICAL_AT_MOST : PHYSICAL_EQUAL;
}

static void families(struct test *t)
{
    static const uint64_t sizes[] = {1, 1000, 3 * MIB + 17, 20 * MIB,
                                     160 * MIB}; /* the last: more than any tolerance */
    compare(t, PHYSICAL_EQUAL, "at the start");
    uint64_t before = role_of(t)->used;
    for (int f = 0; f < FAMILIES; f++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            struct held h;
            check(family_name[f], take(t, f, sizes[i], &h), true);
            if (role_of(t)->used < before + sizes[i]) {
                fail(family_name[f], (long long)(role_of(t)->used - before), (long long)sizes[i]);
            }
            compare(t, bound_of(f), family_name[f]);
            give(t, &h);
            check(family_name[f], (long long)role_of(t)->used, (long long)before);
            compare(t, PHYSICAL_EQUAL, family_name[f]);
        }
        struct held over;
        uint64_t denied = role_of(t)->denied;
        check("above the ceiling", take(t, f, role_of(t)->ceiling + PAGE, &over), false);
        check("one denial is counted", (long long)(role_of(t)->denied - denied), 1);
        check("after a denial", (long long)role_of(t)->used, (long long)before);
    }
}

static void agree(struct test *t)
{
    size_t free_bytes, total, device_total;
    struct held h;
    check("info", t->cuda.cuMemGetInfo_v2(&free_bytes, &total), 0);
    check("total", t->cuda.cuDeviceTotalMem_v2(&device_total, 0), 0);
    check("total", (long long)total, (long long)role_of(t)->ceiling);
    check("device total", (long long)device_total, (long long)total);
    check("allocation", take(t, 0, free_bytes, &h), true); /* what it says is free can be had */
    struct held more;
    check("more", take(t, 0, 1, &more), false);
    size_t none;
    check("info", t->cuda.cuMemGetInfo_v2(&none, NULL), 0);
    check("nothing free", (long long)none, 0);
    give(t, &h);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (nvml != NULL) {
        nvmlInit_v2_fn init;
        nvmlDeviceGetHandleByUUID_fn by_uuid;
        nvmlDeviceGetMemoryInfo_fn info;
        *(void **)&init = dlsym(nvml, "nvmlInit_v2");
        *(void **)&by_uuid = dlsym(nvml, "nvmlDeviceGetHandleByUUID");
        *(void **)&info = dlsym(nvml, "nvmlDeviceGetMemoryInfo");
        nvmlDevice_t device;
        nvmlMemory_t m;
        check("nvml", init() == 0 && by_uuid(t->physical.uuid, &device) == 0 && info(device, &m) == 0, true);
        check("nvml total", (long long)m.total, (long long)total);
        check("nvml sum", (long long)(m.used + m.free), (long long)m.total);
    }
}

static void managed(struct test *t)
{
    struct corral_error err = {0};
    struct corral_managed_alloc *a = NULL;
    if (corral_managed_alloc_create(&a, &err) != CORRAL_OK) {
        fprintf(stderr, "conformance: %s\n", err.text);
        exit(1); // NOLINT
    }
    const struct corral_allocator *m = corral_managed_allocator(a);
    uint64_t before = role_of(t)->used;
    void *p[1000];
    size_t bytes[1000];
    for (int i = 0; i < 1000; i++) {
        bytes[i] = (size_t)(i * 37) % 9000;
        check("small", corral_alloc(m, bytes[i], "small", &p[i], &err), CORRAL_OK);
        check("aligned", (long long)((uintptr_t)p[i] % 64), 0);
        for (size_t k = 0; k < bytes[i]; k++) {
            check("zero", ((char *)p[i])[k], 0);
        }
        memset(p[i], i, bytes[i]);
    }
    if (role_of(t)->used <= before || role_of(t)->used - before > 40 * MIB) {
        fail("slabs", (long long)(role_of(t)->used - before), (long long)(20 * MIB));
    }
    void *large = NULL, *over = NULL;
    check("large", corral_alloc(m, 5 * MIB, "large", &large, &err), CORRAL_OK);
    check("denied", corral_alloc(m, role_of(t)->ceiling, "too much", &over, &err), CORRAL_DENIED);
    corral_release(m, large, 5 * MIB);
    for (int i = 0; i < 1000; i++) {
        corral_release(m, p[i], bytes[i]);
    }
    check("used", (long long)corral_managed_alloc_used(a), 0);
    check("given back", (long long)role_of(t)->used, (long long)before);
    corral_managed_alloc_destroy(a);
}

static uint64_t draw(uint64_t *seed, uint64_t below)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (*seed >> 33) % below;
}

static void hog(struct test *t, uint64_t seed)
{
    enum { HELD = 512 };
    static struct held held[HELD];
    int n = 0;
    /* From a KiB to a part of the ceiling, so that it is reached whatever the device has. */
    uint64_t sizes = 1;
    while (((uint64_t)1 << (10 + sizes)) < role_of(t)->ceiling / 16) {
        sizes++;
    }
    for (;;) {
        uint64_t bytes = 1 + draw(&seed, (uint64_t)1 << (10 + draw(&seed, sizes)));
        bool got = n < HELD && take(t, (int)draw(&seed, FAMILIES), bytes, &held[n]);
        n += got;
        /* Denied: give back some, and go on. */
        for (uint64_t k = got ? 0 : 1 + draw(&seed, 20); k > 0 && n > 0; k--) {
            int which = (int)draw(&seed, (uint64_t)n);
            give(t, &held[which]);
            held[which] = held[--n];
        }
    }
}

static void floor_is_there(struct test *t, uint64_t seed, uint64_t times)
{
    for (uint64_t i = 0; i < times; i++) {
        /* A random time: the other role is at some other place of its loop. */
        nanosleep(&(struct timespec){.tv_nsec = (long)draw(&seed, 3000000)}, NULL);
        struct held part[4];
        uint64_t left = role_of(t)->floor - role_of(t)->used;
        int parts = 1 + (int)draw(&seed, 4);
        for (int p = 0; p < parts; p++) {
            uint64_t bytes = p + 1 == parts ? left : 1 + draw(&seed, left - (uint64_t)(parts - p) + 1);
            if (!take(t, (int)draw(&seed, 2), bytes, &part[p])) {
                uint64_t counted = 0;
                physical_count(&t->physical, PHYSICAL_OF_DEVICE, &counted);
                fprintf(stderr,
                        "conformance: %llu bytes of the floor refused in round %llu: ledger %llu, "
                        "device %llu, of role %llu\n",
                        (unsigned long long)bytes, (unsigned long long)i, (unsigned long long)all_used(t),
                        (unsigned long long)counted, (unsigned long long)role_of(t)->used);
                exit(1); // NOLINT
            }
            left -= bytes;
        }
        check("used", (long long)role_of(t)->used, (long long)role_of(t)->floor);
        while (parts > 0) {
            give(t, &part[--parts]);
        }
    }
}

static void canary(void)
{
    struct corral_error err = {0};
    struct corral_cuda_canary_result result;
    if (corral_cuda_canary(&result, &err) != CORRAL_OK) {
        fprintf(stderr, "conformance: %s\n", err.text);
        exit(1); // NOLINT: a test program
    }
    printf("%u: %s\n", result.families, result.text);
}

/* The canary's refusals were nobody's trouble; the next one is. */
static void after_canary(struct test *t)
{
    struct held h;
    check("denied to the canary", (long long)role_of(t)->denied, 0);
    check("above the ceiling", take(t, 0, role_of(t)->ceiling, &h), false);
    check("denied after it", (long long)role_of(t)->denied, 1);
}

static const struct {
    const char *name;
    void (*run)(struct test *t);
    bool shares; /* with an owner at the other end of descriptor 9 */
} cases[] = {
    {"canary", after_canary, false},
    {"families", families, false},
    {"agree", agree, false},
    {"managed", managed, false},
    {"ipc", share_ipc, true},
    {"shareable", share_descriptor, true},
    {"external", share_external, true},
    {"multicast", share_multicast, false},
    {"compared", be_compared, false},
};

/* Those with arguments. False: not one of them. */
static bool run_with_arguments(struct test *t, int argc, char **argv)
{
    uint64_t number = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    if (strcmp(argv[1], "compare") == 0 && argc > 2) {
        open_driver(t, (pid_t)number);
        t->physical.tolerance = argc > 3 ? strtoull(argv[3], NULL, 10) : t->physical.tolerance;
        compare_outside(t, (pid_t)number);
        return true;
    }
    bool hogs = strcmp(argv[1], "hog") == 0, owns = strcmp(argv[1], "owner") == 0 && argc > 2;
    if (!hogs && !owns && strcmp(argv[1], "floor") != 0) {
        return false;
    }
    open_all(t);
    if (hogs) {
        hog(t, number);
    } else if (owns) {
        share_owner(t, argv[2]);
    } else {
        floor_is_there(t, number, argc > 3 ? strtoull(argv[3], NULL, 10) : 100);
    }
    return true;
}

static bool run_case(struct test *t, const char *what)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (strcmp(what, cases[i].name) == 0) {
            if (i == 0) {
                canary();
            }
            if (cases[i].shares) {
                share_await_owner();
            }
            open_all(t);
            cases[i].run(t);
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    static struct test t;
    if (argc > 3 && strcmp(argv[1], "physical") == 0) {
        return physical_reader_main(argv[2], argv[3]);
    }
    if (argc < 2 || (!run_with_arguments(&t, argc, argv) && !run_case(&t, argv[1]))) {
        fprintf(stderr, "usage: conformance canary|families|agree|managed|hog|floor|ipc|shareable|external|"
                        "multicast|owner|compare|compared\n");
        return 2;
    }
    if (t.context != NULL) {
        t.cuda.cuDevicePrimaryCtxRelease_v2(0);
    }
    corral_quota_detach(t.quota);
    bool whole = physical_report(&t.physical, argv[1]);
    printf("%s: %s\n", argv[1], whole ? "ok" : "the rest is ok");
    return whole ? 0 : SKIPPED;
}
