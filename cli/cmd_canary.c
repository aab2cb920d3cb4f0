/* rlctl canary: try the GPU fence that this process was started inside; begun by an agent before a tenant's first start, in the tenant's environment. */
#include "base/log.h"
#include "cli/cli.h"
#include "quota/cuda/canary.h"

int corral_cmd_canary(int argc, char **argv)
{
    (void)argv;
    struct corral_cuda_canary_result result = {0};
    struct corral_error err = {0};
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
