/* Tests of the memory families: each case is a process of its own, started with libcorral-quota.so preloaded on the fake driver, with the ledger of a node that its parent made.
 * Device 0 and 1 of 256 MiB, headroom 16 MiB; trainer (the cases' role) floor 32 MiB, ceiling 128 MiB; rollout floor 64 MiB. A context costs 4 MiB.
 */
#ifndef CORRAL_QUOTA_CUDA_TESTS_FAMILIES_H
#define CORRAL_QUOTA_CUDA_TESTS_FAMILIES_H

#include "quota/cuda/driver_types.h"
#include "quota/shared.h"
#include "tests/check.h"
#include <stdio.h>
#include <stdlib.h>

#define MIB (UINT64_C(1) << 20)
#define CEILING (128 * MIB)
#define CONTEXT (4 * MIB)

struct family_case {
    const char *name, *faults; /* faults: CORRAL_FAKECUDA_FAULTS, or NULL */
    void (*run)(void);
    bool no_ledger; /* the process's ledger is gone */
    const char *spill;
};
/* The program: without argument all cases as cmocka tests, with the name of a case that case. */
int family_main(int argc, char **argv, const struct family_case *cases, size_t count);

/* In a case. */
#define EXPECT(expr)                                                   \
    do {                                                               \
        if (!(expr)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #expr); \
            exit(1);                                                   \
        }                                                              \
    } while (0)
#define EXPECT_BYTES(expr, expected)                                                    \
    do {                                                                                \
        uint64_t expect_a_ = (expr), expect_b_ = (expected);                            \
        if (expect_a_ != expect_b_) {                                                   \
            fprintf(stderr, "%s:%d: %s is %llu, not %llu\n", __FILE__, __LINE__, #expr, \
                    (unsigned long long)expect_a_, (unsigned long long)expect_b_);      \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)
/* The driver's function as any program finds it. */
#define CU(name) ((name##_fn)family_symbol(#name))
void *family_symbol(const char *name);
uint64_t family_calls(const char *symbol); /* that reached the driver in this process */
uint64_t family_kind(CUdevice device, enum corral_ledger_kind kind);
uint64_t family_used(CUdevice device); /* everything charged to the role */
uint64_t family_pinned(CUdevice device);
uint64_t family_spilled(CUdevice device);
uint64_t family_physical(CUdevice device); /* in the driver, of everybody */
unsigned family_denials(void);             /* lines of the log */
uint32_t family_holders(void);             /* that this process is */
/* A context on the device, current. */
void family_start(CUdevice device);
/* Start a case as a process beside this one, on the same node; and its end. */
pid_t family_spawn(const char *name, const char *argument);
int family_wait(pid_t pid);
#endif
