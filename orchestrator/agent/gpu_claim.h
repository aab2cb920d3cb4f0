/* Two runs must not fence the same GPU: each would guarantee floors that the other's processes may take. The claim is an abstract socket name, which the kernel forgets with
 * the agent, so nothing is left behind; machines in one network namespace see each other's claims (containers with namespaces of their own do not). */
#ifndef CORRAL_ORCHESTRATOR_GPU_CLAIM_H
#define CORRAL_ORCHESTRATOR_GPU_CLAIM_H

#include "base/error.h"

/* `uuid` as NVML writes it. *fd (close-on-exec) holds the claim until it is closed. CORRAL_EXISTS: another run has it. */
enum corral_status corral_gpu_claim(const char *uuid, int *fd, struct corral_error *err);

#endif
