/* libcorral-quota.so: what its files share. Loaded with LD_PRELOAD into every process on a GPU device; see README.md for the picture.
 *
 * Rules for every hook:
 *  - charge first, then call the driver, then keep or roll back; on freeing: driver first, then uncharge. A denial is CUDA_ERROR_OUT_OF_MEMORY before the driver is touched.
 *  - nothing but the memory is changed for the application: no signal handler, umask, exit, extra context, environment; errno is preserved.
 *  - pointers and handles the interposer does not know are passed to the driver as they are: it never refuses to free.
 *  - no hook on launches, copies, events, streams: they cost nothing more.
 */
#ifndef CORRAL_QUOTA_CUDA_INTERPOSER_H
#define CORRAL_QUOTA_CUDA_INTERPOSER_H

#include "quota/cuda/driver_types.h"
#include "quota/shared.h"
#include <stdbool.h>

/* ---- symbols: generated from entry_points.tsv (symbols.c) ---- */
/* CORRAL_CUDA_SYMBOL_cuMemAlloc_v2 … one for each exported driver symbol that the table names, hooked or not; CORRAL_CUDA_SYMBOLS is how many. */
#include <corral_cuda_symbols.h> /* build folder: enum corral_cuda_symbol */

/* The driver's own function, found in the real libcuda.so.1 once; NULL when this driver has none. Never one of our hooks. */
void *corral_cuda_real(enum corral_cuda_symbol symbol);
/* As corral_cuda_real(), but never NULL: what this driver lacks is a function that answers CUDA_ERROR_NOT_FOUND (a hook of it is reached by weak references only). */
void *corral_cuda_call(enum corral_cuda_symbol symbol);
/* REAL(cuMemAlloc_v2)(&p, n): needs a typedef cuMemAlloc_v2_fn in scope (driver_types.h). */
#define REAL(name) ((name##_fn)corral_cuda_call(CORRAL_CUDA_SYMBOL_##name))
/* Exported with the driver's own name. */
#define CORRAL_CUDA_HOOK __attribute__((visibility("default")))
#include <corral_cuda_hooks.h> /* build folder: declares each hook with the type of its NAME_fn, so that one that differs does not compile */

/* ---- process state (state.c) ---- */
enum corral_cuda_mode {
    CORRAL_CUDA_FENCED, /* attached to the node's ledger */
    CORRAL_CUDA_CLOSED, /* preloaded, but no ledger to be had (variables missing, agent gone, unknown driver): every allocation is denied */
};
/* Attaches at the first call, once per process (again in a forked child). */
enum corral_cuda_mode corral_cuda_mode(void);
struct corral_quota *corral_cuda_quota(void); /* NULL when closed */
/* This process's holder on the device of that ordinal (by UUID); joins at first use. False: closed, or the device is not in the ledger: deny. */
bool corral_cuda_holder(CUdevice device, uint32_t *holder);
/* Device of the calling thread's current context, or -1. */
CUdevice corral_cuda_current_device(void);
bool corral_cuda_driver_unproven(void); /* runs on a driver with unknown allocation symbols, by permission */

/* ---- charging (charge.c) ---- */
/* Reserve on a device. False: denied, logged; the hook returns CUDA_ERROR_OUT_OF_MEMORY. */
bool corral_cuda_reserve(CUdevice device, uint64_t bytes, enum corral_ledger_kind kind, const char *api,
                         struct corral_quota_charge *charge);
void corral_cuda_rollback(const struct corral_quota_charge *charge);
/* Keep a charge under what names the memory in this process. Spaces keep pointers and handles of different kinds apart. */
enum corral_cuda_space {
    CORRAL_CUDA_POINTER, /* device pointers */
    CORRAL_CUDA_VMM,     /* CUmemGenericAllocationHandle */
    CORRAL_CUDA_ARRAY,   /* CUarray */
    CORRAL_CUDA_MIPMAP,
    CORRAL_CUDA_POOL,
    CORRAL_CUDA_EXTERNAL, /* CUexternalMemory */
    CORRAL_CUDA_CONTEXT,
    CORRAL_CUDA_MODULE,
    CORRAL_CUDA_IPC,     /* pointers opened from others: the value is a share */
    CORRAL_CUDA_PINNED,  /* host pointers: counted, not charged */
    CORRAL_CUDA_SPILLED, /* pointers that went to host memory by opt-in */
    CORRAL_CUDA_SPACES
};
void corral_cuda_keep(enum corral_cuda_space space, uint64_t name, const struct corral_quota_charge *charge);
/* Take it out of the table. False: not ours. The caller uncharges after the driver has freed (corral_cuda_uncharge), or puts it back when the driver refused. */
bool corral_cuda_forget(enum corral_cuda_space space, uint64_t name, struct corral_quota_charge *charge);
bool corral_cuda_lookup(enum corral_cuda_space space, uint64_t name, struct corral_quota_charge *charge);
void corral_cuda_uncharge(const struct corral_quota_charge *charge);

/* One structured line, to CORRAL_QUOTA_LOG or stderr; never blocks the application for long and never fails. */
void corral_cuda_log(const char *event, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
