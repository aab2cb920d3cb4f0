/* What the hooks of the memory families share, below interposer.h. See docs/spec/charging.md for what each entry point charges. */
#ifndef CORRAL_QUOTA_CUDA_FAMILIES_H
#define CORRAL_QUOTA_CUDA_FAMILIES_H

#include "quota/cuda/interposer.h"
#include "quota/cuda/table.h"
#include <pthread.h>

#define CORRAL_CUDA_DEVICES_MAX CORRAL_LEDGER_DEVICES_MAX

/* Declares and defines: `HOOK(cuMemFree_v2)(CUdeviceptr pointer) {…}` needs a prototype first, as the driver has no header here. */
#define CORRAL_CUDA_DEFINE(name, ...)            \
    CORRAL_CUDA_HOOK CUresult name(__VA_ARGS__); \
    CORRAL_CUDA_HOOK CUresult name(__VA_ARGS__)

/* Spaces of the table that only these files use, after those of interposer.h. */
enum {
    CORRAL_CUDA_MAPPING = CORRAL_CUDA_SPACES, /* address → object, charge.bytes its extent: cuMemMap */
    CORRAL_CUDA_BINDING,    /* multicast or sparse array, and place → object, tied to the former */
    CORRAL_CUDA_GRAPH_EXEC, /* executable graph and device → bytes its nodes may need */
};
/* Record.aux of CORRAL_CUDA_POINTER: what a pointer came from. Anything above is a struct corral_cuda_pool or an object's address with this in the low bits. */
enum {
    CORRAL_CUDA_PLAIN = 0,
    CORRAL_CUDA_FROM_POOL = 1,
    CORRAL_CUDA_FROM_OBJECT = 2,
    CORRAL_CUDA_FROM_MASK = 7
};

/* ---- charge.c ---- */
/* Ties what is kept to the current context, whose end frees it; but pools' pointers outlive contexts. */
void corral_cuda_keep_as(enum corral_cuda_space space, uint64_t name, CUdevice device,
                         const struct corral_quota_charge *charge, uint64_t aux);
uint64_t corral_cuda_current_context(void);
/* Put back what was taken out of the table, after the driver refused to free it. */
void corral_cuda_put_back(const struct corral_cuda_record *record);
/* Change a charge that is kept. Growing may be denied (logged). */
bool corral_cuda_resize(CUdevice device, struct corral_quota_charge *charge, uint64_t bytes, const char *api);
/* Make a charge what the driver really has: never refused; what does not fit under the quota is logged and left to the reconciler. `charge` may be empty (bytes 0). */
void corral_cuda_settle(CUdevice device, struct corral_quota_charge *charge, uint64_t bytes,
                        enum corral_ledger_kind kind, const char *api);
/* The same without a line about what did not fit, which it returns: the caller may undo it. */
uint64_t corral_cuda_settle_quietly(CUdevice device, struct corral_quota_charge *charge, uint64_t bytes,
                                    enum corral_ledger_kind kind);
void corral_cuda_log_uncharged(CUdevice device, uint64_t bytes, const char *api);
struct corral_quota_charge corral_cuda_no_charge(void);
bool corral_cuda_is_charged(const struct corral_quota_charge *charge);
void corral_cuda_count_pinned(CUdevice device, int64_t bytes);
/* corral_cuda_reserve() without asking this process's own pools first, for callers that hold one. */
bool corral_cuda_take(CUdevice device, uint64_t bytes, enum corral_ledger_kind kind, const char *api,
                      struct corral_quota_charge *charge);
/* Room for `bytes` may come from what this process's pools no longer need. */
void corral_cuda_relieve(CUdevice device, uint64_t bytes);
/* What a function that was told a device answers when it may not: CUDA_ERROR_OUT_OF_MEMORY; or what the driver would have said before it thought of memory, of a driver that has not been initialised and of a
 * device that there is not. */
CUresult corral_cuda_refusal(CUdevice device);
bool corral_cuda_initialised(void);

/* ---- object.c: memory with several references: VMM allocations, multicast objects, external memory ---- */
struct corral_cuda_object {
    struct corral_quota_charge charge;
    CUdevice device;
    uint32_t handles, maps;
    uint32_t pins;  /* hooks that are using it */
    uint32_t share; /* of another process's memory */
    int held_fd;    /* keeps an exported descriptor recognisable; -1: none */
    uint32_t space; /* of its handle */
    uint64_t name;
    uint64_t pinned; /* bytes of host memory, counted beside the quota */
    bool shared, unidentified, multicast;
};
/* One handle, no mapping. Keeps the charge (which may be none). NULL: out of memory. */
struct corral_cuda_object *corral_cuda_object_create(CUdevice device,
                                                     const struct corral_quota_charge *charge);
/* Name a handle, or (MAPPING, POINTER, MIPMAP) a mapping that has been added. */
void corral_cuda_object_put(uint32_t space, uint64_t name, struct corral_cuda_object *object, uint64_t tie);
void corral_cuda_object_put_mapping(CUdeviceptr pointer, uint64_t bytes, struct corral_cuda_object *object);
void corral_cuda_object_export_fd(struct corral_cuda_object *object, int fd);
static inline struct corral_cuda_object *corral_cuda_object_of(const struct corral_cuda_record *record)
{
    return (struct corral_cuda_object *)(uintptr_t)(record->aux & ~(uint64_t)CORRAL_CUDA_FROM_MASK);
}
/* Find and keep alive while in use. NULL: not ours. */
struct corral_cuda_object *corral_cuda_object_pin(uint32_t space, uint64_t name);
void corral_cuda_object_unpin(struct corral_cuda_object *object);
void corral_cuda_object_add_handle(struct corral_cuda_object *object);
void corral_cuda_object_add_map(struct corral_cuda_object *object);
/* Letting go is in two steps around the driver's call: memory is charged until the driver has freed it, and a name that the driver uses again is not mistaken. */
struct corral_cuda_closing {
    struct corral_cuda_object *object; /* NULL: not ours */
    struct corral_cuda_record record;
    bool map;
};
struct corral_cuda_closing corral_cuda_object_begin_close(uint32_t space, uint64_t name);
void corral_cuda_object_end_close(struct corral_cuda_closing *closing, bool freed);
/* What its record in the space stood for has gone by itself, and the record is out of the table. */
void corral_cuda_object_drop(struct corral_cuda_object *object, uint32_t space);
void corral_cuda_objects_forget_all(void);
void corral_cuda_imports_forget_all(void); /* hooks_vmm.c */

/* ---- share.c: recognising memory of other processes ---- */
/* 128-bit name of a handle's bytes. */
void corral_cuda_handle_key(const void *handle, size_t bytes, uint64_t key[2]);
/* Name exported memory after its descriptor. *held_fd: a duplicate that must stay open as long as the export is to be recognised, or -1. */
void corral_cuda_export_fd(const struct corral_quota_charge *charge, int fd, int *held_fd);
void corral_cuda_export_key(const struct corral_quota_charge *charge, const uint64_t key[2]);
bool corral_cuda_import_fd(CUdevice device, int fd, uint32_t *share);
bool corral_cuda_import_key(CUdevice device, const uint64_t key[2], uint32_t *share);

/* A pointer that another process exported under the key: a share, or, when nobody in the ledger did, charged here as external. Kept as an object under POINTER or IPC. False: denied. */
bool corral_cuda_adopt(CUdevice device, enum corral_cuda_space space, CUdeviceptr pointer,
                       const uint64_t key[2], const char *api);

/* ---- pool.c ---- */
struct corral_cuda_pool;
static inline struct corral_cuda_pool *corral_cuda_pool_of(const struct corral_cuda_record *record)
{
    return (struct corral_cuda_pool *)(uintptr_t)(record->aux & ~(uint64_t)CORRAL_CUDA_FROM_MASK);
}
/* The pool's charge follows what the driver has reserved for it, after a pointer of it was freed. */
void corral_cuda_pool_freed(struct corral_cuda_pool *pool);
bool corral_cuda_pools_any(void); /* was there one ever? */
bool corral_cuda_graphs_any(void);
/* All pools of a device, cheaply; with `trim` they first give back what they do not use. */
void corral_cuda_pools_refresh(CUdevice device, bool trim);
void corral_cuda_pools_forget_all(void);

/* ---- hooks_graph.c ---- */
void corral_cuda_graphs_refresh(CUdevice device);
void corral_cuda_graphs_forget_all(void);

/* ---- hooks_memory.c ---- */
typedef CUresult (*corral_cuda_free_fn)(CUdeviceptr pointer, CUstream stream);
CUresult corral_cuda_free_pointer(CUdeviceptr pointer, corral_cuda_free_fn driver, CUstream stream);

/* ---- hooks_multicast.c ---- */
void corral_cuda_bindings_gone(uint64_t tie); /* a multicast object or a sparse array is no more */

/* ---- spill.c ---- */
/* A denied cuMemAlloc as managed memory that lives on the host. False: not allowed, or beyond the limit. */
bool corral_cuda_spill(CUdevice device, CUdeviceptr *pointer, uint64_t bytes);
/* The pointer is a spilled one: *record is taken out of the table, counted down by unspill() once freed. */
void corral_cuda_unspill(const struct corral_cuda_record *record);
void corral_cuda_spill_forget_all(void);

/* ---- hooks_context.c, overhead.c ---- */
void corral_cuda_overhead_forget_all(void);
#endif
