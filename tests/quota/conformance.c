/* What a program in a role must meet, on the fake driver or a real GPU. Run by quota-node with the interposer preloaded; uses device 0 as any program would.
 *
 *   conformance canary            the pre-flight passes
 *   conformance families          through each family: what is taken is charged, what is freed is given back, to the byte where the driver says how much it took
 *   conformance agree             cuMemGetInfo, cuDeviceTotalMem and NVML say the same
 *   conformance managed           the allocator of built-in workers
 *   conformance hog SEED          takes until denied, through every family, frees some, for ever
 *   conformance floor SEED TIMES  takes the whole floor, to the byte, at random times: it is always there
 */
#include "base/error.h"
#include "quota/cuda/canary.h"
#include "quota/cuda/client.h"
#include "quota/cuda/managed_alloc.h"
#include "quota/shared.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define PAGE (2 * MIB)

struct test {
    struct corral_cuda_client cuda;
    CUcontext context;
    struct corral_quota *quota;
    const struct corral_ledger *ledger;
    uint32_t role, device;
};

static void fail(const char *what, long long got, long long wanted)
{
    fprintf(stderr, "conformance: %s: %lld, expected %lld\n", what, got, wanted);
    exit(1); // NOLINT: a test program
}

static void check(const char *what, long long got, long long wanted)
{
    if (got != wanted) {
        fail(what, got, wanted);
    }
}

static void *driver_function(const char *name)
{
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return lib != NULL ? dlsym(lib, name) : NULL;
}

static void open_all(struct test *t)
{
    struct corral_error err = {0};
    cuDeviceGetUuid_fn get_uuid;
    *(void **)&get_uuid = driver_function("cuDeviceGetUuid");
    CUuuid id;
    if (corral_quota_attach_environment(&t->quota, &t->role, &err) != CORRAL_OK ||
        corral_cuda_client_open(CORRAL_CUDA_ROUTE_DLSYM, &t->cuda, &err) != CORRAL_OK) {
        fprintf(stderr, "conformance: %s\n", err.text);
        exit(1); // NOLINT
    }
    check("cuInit", t->cuda.cuInit(0), 0);
    check("uuid", get_uuid(&id, 0), 0);
    t->ledger = corral_quota_ledger(t->quota);
    t->device = corral_ledger_find_uuid(t->ledger, (const uint8_t *)id.bytes);
    check("context", t->cuda.cuDevicePrimaryCtxRetain(&t->context, 0), 0);
    check("current", t->cuda.cuCtxPushCurrent_v2(t->context), 0);
}

static const struct corral_ledger_role *role_of(const struct test *t)
{
    return &t->ledger->device[t->device].role[t->role];
}

static uint64_t all_used(const struct test *t)
{
    uint64_t sum = 0;
    for (uint32_t r = 0; r < t->ledger->role_count; r++) {
        sum += t->ledger->device[t->device].role[r].used;
    }
    return sum;
}

/* What the driver counts on the device, of everybody; the fake one tells exactly. */
static bool driver_count(uint64_t *out)
{
    uint64_t (*used)(int);
    *(void **)&used = driver_function("fakecuda_used");
    if (used != NULL) {
        *out = used(0);
    }
    return used != NULL;
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

/* The ledger's charge of the role is the driver's count (only this role is on the device). */
static void compare(const struct test *t, const char *when)
{
    uint64_t counted;
    if (driver_count(&counted) && counted != role_of(t)->used) {
        fprintf(stderr, "%s: ", when);
        fail("ledger against driver", (long long)role_of(t)->used, (long long)counted);
    }
}

static void families(struct test *t)
{
    static const uint64_t sizes[] = {1, 1000, 3 * MIB + 17, 20 * MIB};
    compare(t, "at the start");
    uint64_t before = role_of(t)->used;
    for (int f = 0; f < FAMILIES; f++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            struct held h;
            check(family_name[f], take(t, f, sizes[i], &h), true);
            if (role_of(t)->used < before + sizes[i]) {
                fail(family_name[f], (long long)(role_of(t)->used - before), (long long)sizes[i]);
            }
            compare(t, family_name[f]);
            give(t, &h);
            check(family_name[f], (long long)role_of(t)->used, (long long)before);
            compare(t, family_name[f]);
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
        nvmlDeviceGetHandleByIndex_v2_fn by_index;
        nvmlDeviceGetMemoryInfo_fn info;
        *(void **)&init = dlsym(nvml, "nvmlInit_v2");
        *(void **)&by_index = dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2");
        *(void **)&info = dlsym(nvml, "nvmlDeviceGetMemoryInfo");
        nvmlDevice_t device;
        nvmlMemory_t m;
        check("nvml", init() == 0 && by_index(0, &device) == 0 && info(device, &m) == 0, true);
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
    for (;;) {
        uint64_t bytes = 1 + draw(&seed, (uint64_t)1 << (10 + draw(&seed, 16)));
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
                driver_count(&counted);
                fprintf(stderr,
                        "conformance: %llu bytes of the floor refused in round %llu: ledger %llu, driver "
                        "%llu, of role %llu\n",
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

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static struct test t;
    if (strcmp(what, "canary") == 0) {
        canary();
    }
    open_all(&t);
    if (strcmp(what, "canary") == 0) {
        after_canary(&t);
    }
    if (strcmp(what, "families") == 0) {
        families(&t);
    } else if (strcmp(what, "agree") == 0) {
        agree(&t);
    } else if (strcmp(what, "managed") == 0) {
        managed(&t);
    } else if (strcmp(what, "hog") == 0) {
        hog(&t, seed);
    } else if (strcmp(what, "floor") == 0) {
        floor_is_there(&t, seed, argc > 3 ? strtoull(argv[3], NULL, 10) : 100);
    } else if (strcmp(what, "canary") != 0) {
        fprintf(stderr, "usage: conformance canary|families|agree|managed|hog|floor\n");
        return 2;
    }
    t.cuda.cuDevicePrimaryCtxRelease_v2(0);
    corral_quota_detach(t.quota);
    printf("%s: ok\n", what);
    return 0;
}
