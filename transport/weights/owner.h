/* Who holds something in shared memory, in one word that can be compared and swapped: pid and kernel start time, so that a
 * reused pid is not taken for the dead holder. Internal to transport/weights. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_OWNER_H
#define CORRAL_TRANSPORT_WEIGHTS_OWNER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* pid << 42 | start time mod 2^42: Linux pids are below 2^22. */
enum corral_status corral_owner_word(pid_t pid, uint64_t *out, struct corral_error *err);
pid_t corral_owner_pid(uint64_t word);
/* False only when the process is certainly gone. */
bool corral_owner_alive(uint64_t word);

#endif
