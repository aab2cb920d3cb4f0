/* A driver newer than entry_points.tsv may have functions that take memory and that nobody hooks. Its dynamic symbols are compared with the table before it is
 * initialised; unless the job allows it (CORRAL_QUOTA_UNKNOWN=unproven), such a driver is not used at all.
 */
#include "quota/cuda/core.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Atomic(int) verdict; /* enum corral_cuda_verdict */

struct unknown {
    uint32_t count;
    char names[400];
};

static bool add_unknown(void *ctx, const char *name, void *address)
{
    (void)address;
    struct unknown *u = ctx;
    if (strncmp(name, "cu", 2) != 0 || name[2] < 'A' || name[2] > 'Z' ||
        corral_cuda_find(name) != CORRAL_CUDA_SYMBOLS || !corral_cuda_could_allocate(name)) {
        return false;
    }
    size_t used = strlen(u->names);
    snprintf(u->names + used, sizeof u->names - used, "%s%s", used ? " " : "", name);
    u->count++;
    return false;
}

/* As the agent set it: read before the program runs. */
static bool allowed;

__attribute__((constructor)) static void read_policy(void)
{
    const char *policy = getenv(CORRAL_QUOTA_ENV_UNKNOWN);
    allowed = policy && strcmp(policy, "unproven") == 0;
}

bool corral_cuda_unknown_allowed(void)
{
    return allowed;
}

enum corral_cuda_verdict corral_cuda_last_verdict(void)
{
    return (enum corral_cuda_verdict)atomic_load_explicit(&verdict, memory_order_relaxed);
}

enum corral_cuda_verdict corral_cuda_check_driver(void)
{
    int known = atomic_load_explicit(&verdict, memory_order_relaxed);
    struct corral_elf driver;
    if (known != CORRAL_CUDA_UNCHECKED || !corral_cuda_driver(&driver)) {
        return (enum corral_cuda_verdict)known;
    }
    struct unknown u = {0};
    corral_elf_each_function(&driver, add_unknown, &u);
    int found = u.count == 0                    ? CORRAL_CUDA_KNOWN
                : corral_cuda_unknown_allowed() ? CORRAL_CUDA_UNPROVEN
                                                : CORRAL_CUDA_REFUSED;
    /* Threads that raced found the same; one of them says so. */
    if (atomic_compare_exchange_strong_explicit(&verdict, &known, found, memory_order_relaxed,
                                                memory_order_relaxed) &&
        u.count > 0) {
        corral_cuda_log(found == CORRAL_CUDA_REFUSED ? "cuda driver refused" : "cuda driver unproven",
                        "%u functions could allocate and are not known here: %s", u.count, u.names);
    }
    return (enum corral_cuda_verdict)found;
}

bool corral_cuda_driver_unproven(void)
{
    return corral_cuda_last_verdict() == CORRAL_CUDA_UNPROVEN;
}

/* The program's first call of the driver. */
CUresult cuInit(unsigned int flags)
{
    return corral_cuda_check_driver() == CORRAL_CUDA_REFUSED ? CUDA_ERROR_NOT_PERMITTED : REAL(cuInit)(flags);
}
