#include "orchestrator/agent/gpu_claim.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum corral_status corral_gpu_claim(const char *uuid, int *fd, struct corral_error *err)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX}; /* sun_path[0] stays 0: an abstract name */
    int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "corral-gpu-%.64s", uuid);
    CORRAL_AUTO_CLOSE int claim = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (claim < 0) {
        return corral_fail_sys(err, errno, "claiming GPU %s", uuid);
    }
    socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
    if (bind(claim, (const struct sockaddr *)&name, bytes) != 0) {
        return errno == EADDRINUSE
                   ? corral_fail(
                         err, CORRAL_EXISTS,
                         "%s is fenced by another run on this machine: stop that one, or give the runs "
                         "different GPUs (`rlctl list`)",
                         uuid)
                   : corral_fail_sys(err, errno, "claiming GPU %s", uuid);
    }
    *fd = claim;
    claim = -1;
    return CORRAL_OK;
}
