/* rlctl tenant: a tenant's program and whatever it starts; begun by an agent. */
#include "base/log.h"
#include "base/text.h"
#include "cli/cli.h"
#include "orchestrator/agent/tenant_main.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* rlctl tenant RLIMIT_DATA FOLDER PROGRAM [ARGUMENT]... */
int corral_cmd_tenant(int argc, char **argv)
{
    struct corral_tenant_arguments a = {0};
    if (argc < 4 || !corral_parse_u64(argv[1], &a.rlimit_data)) {
        fprintf(stderr, "rlctl tenant: started by agents only\n");
        return CORRAL_EXIT_USAGE;
    }
    struct corral_error err = {0};
    int code = 0;
    a.folder = argv[2][0] != '\0' ? argv[2] : NULL;
    a.argv = (const char *const *)(argv + 3);
    corral_log_configure(CORRAL_LOG_INFO, false, 2, "tenant");
    if (corral_tenant_main(&a, &code, &err) != CORRAL_OK) {
        corral_log_error("tenant does not start", LOG_ERR(&err));
        return CORRAL_EXIT_USAGE;
    }
    if (code < 0) { /* its signal is ours, without a core file of this process */
        const struct rlimit none = {0};
        sigset_t all;
        sigfillset(&all);
        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(-code, SIG_DFL);
        (void)sigprocmask(SIG_UNBLOCK, &all, NULL);
        (void)raise(-code);
        return 128 - code;
    }
    return code;
}
