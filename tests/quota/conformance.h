/* What the conformance program's files share. */
#ifndef CORRAL_TESTS_QUOTA_CONFORMANCE_H
#define CORRAL_TESTS_QUOTA_CONFORMANCE_H

#include "quota/cuda/client.h"
#include "quota/shared.h"
#include "tests/quota/physical_count.h"

#define MIB ((uint64_t)1 << 20)
#define PAGE (2 * MIB)
#define SKIPPED 77

struct test {
    struct corral_cuda_client cuda;
    CUcontext context;
    struct corral_quota *quota;
    const struct corral_ledger *ledger;
    uint32_t role, device;
    struct physical physical;
};

/* Ends the program with status 1. */
void fail(const char *what, long long got, long long wanted);
void check(const char *what, long long got, long long wanted);
/* Says "SKIPPED what: why" and ends the program with status 77. */
void skip(const char *what, const char *why);
/* The driver's function as any program finds it, or NULL. */
void *driver_function(const char *name);
/* DRIVER(cuMemMap)(…); the program fails where the driver has none. */
#define DRIVER(name) ((name##_fn)needed_function(#name))
void *needed_function(const char *name);

const struct corral_ledger_role *role_of(const struct test *t);
uint64_t all_used(const struct test *t); /* on the device, by all roles */
/* The role's charge is what is physically there (only this role is on the device). */
void compare(struct test *t, enum physical_bound bound, const char *when);
/* All roles' charges are what is physically there. */
void compare_all(struct test *t, enum physical_bound bound, const char *when);
/* Ask for more than the role may have: refused, after whoever has died was found out. */
void be_denied(struct test *t);

/* conformance_outside.c */
void compare_outside(struct test *t, pid_t pid);
void be_compared(struct test *t);

/* conformance_share.c */
void share_owner(struct test *t, const char *what); /* the other end of descriptor 9 */
void share_await_owner(void);
void share_ipc(struct test *t);
void share_descriptor(struct test *t);
void share_external(struct test *t);
void share_multicast(struct test *t);

#endif
