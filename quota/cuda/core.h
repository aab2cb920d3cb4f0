/* The core's own parts of libcorral-quota.so: the table of entry points, the real functions, the driver's check. What hooks of memory families use is in interposer.h. */
#ifndef CORRAL_QUOTA_CUDA_CORE_H
#define CORRAL_QUOTA_CUDA_CORE_H

#include "quota/cuda/elf.h"
#include "quota/cuda/interposer.h"

/* ---- symbols.c: the table ---- */
enum corral_cuda_stream { CORRAL_CUDA_LEGACY, CORRAL_CUDA_PTDS, CORRAL_CUDA_PTSZ };
enum corral_cuda_class {
    CORRAL_CUDA_CHARGE,
    CORRAL_CUDA_RELEASE,
    CORRAL_CUDA_QUERY,
    CORRAL_CUDA_LOOKUP,
    CORRAL_CUDA_COUNT,
    CORRAL_CUDA_DENY,
    CORRAL_CUDA_PASS,
    CORRAL_CUDA_ALIAS,
};
struct corral_cuda_row {
    const char *name;
    void *hook;       /* NULL: not hooked */
    uint32_t version; /* CUDA version that brought this variant; 0: not known */
    uint16_t base;    /* first row of the same base name */
    uint8_t stream, class;
};
extern const struct corral_cuda_row corral_cuda_rows[CORRAL_CUDA_SYMBOLS];
/* CORRAL_CUDA_SYMBOLS when the table lacks it. */
enum corral_cuda_symbol corral_cuda_find(const char *name);
/* Any row whose base name that is (the argument of cuGetProcAddress), or CORRAL_CUDA_SYMBOLS. */
enum corral_cuda_symbol corral_cuda_find_base(const char *base);
/* By its name alone: could this unknown function take device memory? The generator asks the same. */
bool corral_cuda_could_allocate(const char *name);

/* ---- real.c ---- */
#define CORRAL_CUDA_DRIVER "libcuda.so.1"
#define CORRAL_CUDA_NVML "libnvidia-ml.so.1"
/* False: no driver is loaded. Finds it when it is, and pins it. */
bool corral_cuda_driver(struct corral_elf *out);
/* As corral_cuda_real() for functions that the table does not have, of either library. Searches: not for hot paths. */
void *corral_cuda_real_by_name(const char *library, const char *name);
/* libc's own dlsym and dlvsym. */
typedef void *(*corral_dlsym_fn)(void *handle, const char *name);
typedef void *(*corral_dlvsym_fn)(void *handle, const char *name, const char *version);
corral_dlsym_fn corral_cuda_libc_dlsym(void);
corral_dlvsym_fn corral_cuda_libc_dlvsym(void);

/* ---- driver_check.c ---- */
enum corral_cuda_verdict {
    CORRAL_CUDA_UNCHECKED, /* no driver is loaded yet */
    CORRAL_CUDA_KNOWN,
    CORRAL_CUDA_UNPROVEN, /* has functions that could allocate and that nobody knows; allowed by CORRAL_QUOTA_UNKNOWN */
    CORRAL_CUDA_REFUSED,
};
/* Compares the driver's dynamic symbols with the table, once. Thread-safe. */
enum corral_cuda_verdict corral_cuda_check_driver(void);
bool corral_cuda_unknown_allowed(void); /* the job's choice */
/* Only what is known now: for hot paths. */
enum corral_cuda_verdict corral_cuda_last_verdict(void);

/* ---- state.c ---- */
/* The holder on a device of the ledger, by UUID; CORRAL_LEDGER_NONE when this process is none there: looking makes none. False: closed, or not in the ledger. *device is its index there. */
bool corral_cuda_holder_of_uuid(const uint8_t uuid[16], uint32_t *device, uint32_t *holder);
uint32_t corral_cuda_role(void); /* the ledger's, once attached */
/* Index in the ledger of a driver's ordinal. */
bool corral_cuda_ledger_device(CUdevice device, uint32_t *index);

/* ---- log.c ---- */
void corral_cuda_log_after_fork(void); /* in the child: another thread may have been writing */

/* ---- hooks_query.c ---- */
/* What the quota makes of a device's total and free bytes, for this process (or, with CORRAL_LEDGER_NONE, for one of its role that holds nothing there). False: not in the ledger, or closed: *total as it is, *free 0. */
bool corral_cuda_quota_view(uint32_t device, uint32_t holder, uint64_t *total, uint64_t *free_bytes);

#endif
