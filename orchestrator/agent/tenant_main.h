/* The `rlctl tenant` process: stands between an agent and a tenant's program, so that whatever the program starts ends with it. The agent starts it inside the tenant's fences and
 * with the tenant's environment; it starts the program, adopts what the program leaves behind (PR_SET_CHILD_SUBREAPER), and ends the way the program ends:
 *
 *   the program ends     everything it has started is killed; the same exit code, or the same signal
 *   SIGTERM              the program is told to end, and killed after CORRAL_TENANT_GRACE_MS
 *   SIGHUP               everything is killed at once; also what happens when the agent dies (PDEATHSIG)
 *
 * One thread. Nothing but the program's end is reported. */
#ifndef CORRAL_ORCHESTRATOR_TENANT_MAIN_H
#define CORRAL_ORCHESTRATOR_TENANT_MAIN_H

#include "base/error.h"
#include <stdint.h>

#define CORRAL_TENANT_GRACE_MS 1000

struct corral_tenant_arguments {
    uint64_t rlimit_data;    /* of the program; 0: none */
    const char *folder;      /* its current directory */
    const char *const *argv; /* argv[0]: the program */
};

/* Returns the program's exit code, or -signal, in *code. */
enum corral_status corral_tenant_main(const struct corral_tenant_arguments *arguments, int *code,
                                      struct corral_error *err);

#endif
