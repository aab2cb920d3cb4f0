/* The `rlctl worker` process: started by an agent, never by hand. Its command line names the worker and the inherited descriptors; the current directory is the run folder. */
#ifndef CORRAL_ORCHESTRATOR_WORKER_MAIN_H
#define CORRAL_ORCHESTRATOR_WORKER_MAIN_H

#include "base/error.h"
#include <stdint.h>

/* What the agent passes on the command line, in this order, as plain numbers after the name. */
struct corral_worker_arguments {
    char name[64];
    uint32_t epoch, slot;
    int ledger_fd, store_fd, board_fd, collective_fd, vault_fd;
};
#define CORRAL_WORKER_ARGC 10 /* "rlctl" "worker" NAME EPOCH SLOT LEDGER STORE BOARD COLLECTIVE VAULT */

enum corral_status corral_worker_main(const struct corral_worker_arguments *arguments,
                                      struct corral_error *err);

#endif
