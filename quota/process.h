/* Whether a process that joined the ledger still lives. Errs on the side of life: memory in use is never given back. */
#ifndef CORRAL_QUOTA_PROCESS_H
#define CORRAL_QUOTA_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* True when there is no such process, it is a zombie (its memory has gone), or the pid now belongs to one that started at another
 * time. start_time 0: unknown, not compared. */
bool corral_process_is_gone(pid_t pid, uint64_t start_time);

#endif
