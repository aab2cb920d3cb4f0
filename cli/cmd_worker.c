#include "base/log.h"
#include "base/text.h"
#include "cli/cli.h"
#include "orchestrator/worker/worker_main.h"
#include <stdio.h>
#include <stdlib.h>

static bool number(const char *text, int *out)
{
    char *end = NULL;
    long value = strtol(text, &end, 10);
    *out = (int)value;
    return end != text && *end == 0 && value >= -1 && value <= 0x7fffffff;
}

int corral_cmd_worker(int argc, char **argv)
{
    struct corral_worker_arguments a = {0};
    int epoch, slot;
    if (argc != CORRAL_WORKER_ARGC - 1 || !number(argv[2], &epoch) || !number(argv[3], &slot) ||
        !number(argv[4], &a.ledger_fd) || !number(argv[5], &a.store_fd) || !number(argv[6], &a.board_fd) ||
        !number(argv[7], &a.collective_fd) || !number(argv[8], &a.vault_fd)) {
        fprintf(stderr, "rlctl worker: started by agents only\n");
        return CORRAL_EXIT_USAGE;
    }
    snprintf(a.name, sizeof a.name, "%s", argv[1]);
    a.epoch = (uint32_t)epoch;
    a.slot = (uint32_t)slot;
    struct corral_error err = {0};
    if (corral_worker_main(&a, &err) != CORRAL_OK) {
        corral_log_error("gives up", LOG_ERR(&err));
        /* What a second try cannot change is told apart, so that the coordinator does not try for long. */
        bool pointless = err.status == CORRAL_INVALID || err.status == CORRAL_NOT_FOUND ||
                         err.status == CORRAL_UNSUPPORTED || err.status == CORRAL_DENIED;
        return pointless ? CORRAL_EXIT_USAGE : CORRAL_EXIT_FAILED;
    }
    return CORRAL_EXIT_DONE;
}
