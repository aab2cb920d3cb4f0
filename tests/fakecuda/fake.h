/* The fake libcuda's inside: how its functions are declared, and the objects a process has. One lock for all objects of a process; exported functions take it, the
 * functions here expect it to be held where they say so. */
#ifndef CORRAL_TESTS_FAKECUDA_FAKE_H
#define CORRAL_TESTS_FAKECUDA_FAKE_H

#include "quota/cuda/driver_types.h"
#include "tests/fakecuda/state.h"
#include <pthread.h>
#include <stdatomic.h>

/* ---- exported functions ---- */
struct fake_entry {
    const char *symbol, *base; /* "cuMemAlloc_v2", "cuMemAlloc" */
    int version;               /* of the driver that brought it */
    bool per_thread;           /* for the per-thread default stream */
    void *function;
    _Atomic uint64_t calls;
    _Atomic int prepared;
    int fault_at, fault_times, fault; /* fault_at 0: every call */
    int delay_us;
};
/* Declares symbol NAME (with NAME_fn of driver_types.h), enters it for look-ups and counts, and opens its definition. */
#define FAKE_DEFINE(NAME, BASE, VERSION, PER_THREAD)                                                \
    extern __attribute__((visibility("default"))) __typeof__(*(NAME##_fn)0) NAME;                   \
    static struct fake_entry entry_##NAME = {.symbol = #NAME,                                       \
                                             .base = #BASE,                                         \
                                             .version = (VERSION),                                  \
                                             .per_thread = (PER_THREAD),                            \
                                             .function = (void *)NAME};                             \
    static struct fake_entry *const entry_p_##NAME __attribute__((section("fake_entries"), used)) = \
        &entry_##NAME;                                                                              \
    CUresult NAME
/* A whole function: PARAMS, and the call that does it. */
#define FAKE(NAME, BASE, VERSION, PARAMS, CALL)             \
    FAKE_DEFINE(NAME, BASE, VERSION, false) PARAMS          \
    {                                                       \
        CUresult entered = fake_enter(&entry_##NAME, true); \
        return entered != CUDA_SUCCESS ? entered : (CALL);  \
    }
#define FAKE_PER_THREAD(NAME, BASE, VERSION, PARAMS, CALL)  \
    FAKE_DEFINE(NAME, BASE, VERSION, true) PARAMS           \
    {                                                       \
        CUresult entered = fake_enter(&entry_##NAME, true); \
        return entered != CUDA_SUCCESS ? entered : (CALL);  \
    }
/* Works before cuInit. */
#define FAKE_EARLY(NAME, BASE, VERSION, PARAMS, CALL)        \
    FAKE_DEFINE(NAME, BASE, VERSION, false) PARAMS           \
    {                                                        \
        CUresult entered = fake_enter(&entry_##NAME, false); \
        return entered != CUDA_SUCCESS ? entered : (CALL);   \
    }
CUresult fake_enter(struct fake_entry *entry, bool initialised);

/* ---- objects ---- */
enum fake_kind {
    FAKE_POINTER = 1, /* cuMemAlloc, pitch, IPC, external */
    FAKE_MANAGED,
    FAKE_RANGE, /* reserved addresses */
    FAKE_HANDLE,
    FAKE_MAPPING,
    FAKE_POOL,
    FAKE_POOLED, /* pointer in a pool */
    FAKE_ARRAY,
    FAKE_MIPMAP,
    FAKE_GRAPH,
    FAKE_NODE,
    FAKE_GRAPH_POINTER,
    FAKE_EXEC,
    FAKE_EXTERNAL,
    FAKE_CONTEXT,
    FAKE_GREEN,
    FAKE_MODULE,
    FAKE_LIBRARY,
    FAKE_FUNCTION,
    FAKE_STREAM,
    FAKE_HOST,
    FAKE_REGISTERED,
    FAKE_EVENT,
};

struct fake_object {
    enum fake_kind kind;
    uint64_t key; /* what the application holds: a pointer or handle */
    struct fake_object *next;
    struct fake_object *context; /* whose end takes it along; NULL: none's */
    CUdevice device;             /* as the process numbers them */
    uint64_t bytes;
    uint64_t block; /* in the shared state; 0: none */
    bool shared;    /* the block is another's */
    void *memory;
    size_t mapped; /* at memory */
    int fd;        /* file that holds the bytes, or -1 */
    uint32_t refs, maps, flags;
    struct fake_object *other; /* a mapping's handle, an array's mipmap, a pool pointer's pool, … */
    void *data;                /* of the kind's own file; freed with the object */
};

#define FAKE_LOCKED \
    __attribute__((cleanup(fake_unlock_objects), unused)) int fake_locked = fake_lock_objects()
int fake_lock_objects(void); /* recursive */
void fake_unlock_objects(int *unused);
/* All with the lock held. A key of 0 takes the object's own address. NULL: no memory. */
struct fake_object *fake_add(enum fake_kind kind, uint64_t key);
struct fake_object *fake_find(enum fake_kind kind, uint64_t key);
struct fake_object *fake_find_range(enum fake_kind kind,
                                    uint64_t address); /* memory <= address < memory + mapped */
void fake_remove(struct fake_object *object);
void fake_each(enum fake_kind kind, void (*visit)(struct fake_object *, void *), void *ctx);
/* Give back block and memory, then remove. */
void fake_release(struct fake_object *object);
/* Addresses for `bytes`; backed by zeroes that cost nothing until touched. NULL: none left. */
void *fake_map(uint64_t bytes);

/* ---- devices and contexts ---- */
bool fake_device_valid(CUdevice device);
uint32_t fake_device_physical(CUdevice device); /* number in the state */
/* The calling thread's context, or NULL. */
struct fake_object *fake_current(void);
void fake_end_context(struct fake_object *context);
/* What waits for the stream to be idle: memory pools give back what they need not keep. */
void fake_synchronised(void);
/* Take the device's memory for an object; on shortage this process's pools are trimmed first. */
bool fake_take(struct fake_object *object, uint64_t bytes);

/* ---- streams and graphs (graph.c), pools (pool.c) ---- */
/* The graph that the stream is being captured into, or NULL. */
struct fake_object *fake_capturing(CUstream stream);
CUresult fake_capture_alloc(struct fake_object *graph, CUdeviceptr *pointer, size_t bytes);
CUresult fake_capture_free(struct fake_object *graph, CUdeviceptr pointer);
CUresult fake_graph_pointer_free(struct fake_object *pointer);
void fake_trim_pools(void);
void fake_pool_forget(struct fake_object *pool);

#define FAKE_PAGE ((uint64_t)2 << 20) /* granularity of VMM, pools, graph memory */
static inline uint64_t fake_round(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}
/* Exported for tests. */
#define FAKE_EXPORT __attribute__((visibility("default")))
FAKE_EXPORT uint64_t fakecuda_calls(const char *symbol); /* in this process */
FAKE_EXPORT uint64_t fakecuda_used(int device);          /* all processes, contexts included */
/* The next call of the function in this process answers `result`. False: there is no such function. */
FAKE_EXPORT bool fakecuda_fail_next(const char *symbol, int result);
FAKE_EXPORT void fakecuda_busy(int device, unsigned percent);
/* A file of device memory as another API (Vulkan) would export it: for cuImportExternalMemory. -1: out of memory. */
FAKE_EXPORT int fakecuda_foreign(int device, uint64_t bytes);
/* Work of another library on a stream: events recorded after its begin are ready after its end. */
FAKE_EXPORT void fakecuda_work_begin(void *stream);
FAKE_EXPORT void fakecuda_work_done(void *stream);

#endif
