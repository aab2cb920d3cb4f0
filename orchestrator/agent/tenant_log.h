/* A tenant writes its log itself, through a descriptor that it was started with, for as long as it lives; so what is old is moved away from under it. One thread. */
#ifndef CORRAL_ORCHESTRATOR_TENANT_LOG_H
#define CORRAL_ORCHESTRATOR_TENANT_LOG_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_TENANT_LOG_BYTES_MAX (UINT64_C(64) << 20)

/* When the log behind `fd` (a regular file, open for appending; anything else is left alone) has more than `bytes_max`, what it has (the last 2 × bytes_max of it) goes to NAME.old.log, in the place of what was there, and NAME.log begins
 * anew. On ext4 and XFS nothing is lost and up to a block is in both; elsewhere lines written at that very moment are lost. *turned may be NULL. */
enum corral_status corral_tenant_log_turn(int fd, uint64_t bytes_max, bool *turned, struct corral_error *err);

#endif
