/* rlctl canary: try the GPU fence that this process was started inside; begun by an agent before a tenant's first start, in the tenant's environment. With --limit, a limit that the driver or
 * the kernel holds (quota/fences/canary.c starts it). */
#include "base/log.h"
#include "cli/cli.h"
#include "cli/set_args.h"
#include "quota/cuda/canary.h"
#include "quota/cuda/canary_limit.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int try_limit(const char *within, const char *over)
{
    struct corral_cuda_limit_result result;
    struct corral_error err = {0};
    char text[CORRAL_CUDA_LIMIT_TEXT];
    if (corral_cuda_limit_canary(strtoull(within, NULL, 10), strtoull(over, NULL, 10), &result, &err) !=
        CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    corral_cuda_limit_write(&result, text);
    fputs(text, stdout);
    return cli_flush();
}

int corral_cmd_canary(int argc, char **argv)
{
    struct corral_cuda_canary_result result = {0};
    struct corral_error err = {0};
    if (argc == 4 && strcmp(argv[1], "--limit") == 0) {
        return try_limit(argv[2], argv[3]);
    }
    if (argc != 1) {
        return corral_cli_usage("canary", "no arguments");
    }
    corral_log_configure(CORRAL_LOG_INFO, false, 2, "canary");
    if (corral_cuda_canary(&result, &err) != CORRAL_OK) {
        corral_log_error("the fence does not hold", LOG_ERR(&err));
        return CORRAL_EXIT_FAILED;
    }
    corral_log_info("the fence holds", LOG_STR("families", result.text));
    return CORRAL_EXIT_DONE;
}
