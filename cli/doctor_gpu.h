/* The interposer against a canary process, for rlctl doctor. */
#ifndef CORRAL_CLI_DOCTOR_GPU_H
#define CORRAL_CLI_DOCTOR_GPU_H

#include "orchestrator/inventory/inventory.h"
#include "quota/fences/fence.h"

/* Starts `rlctl canary` on the first GPU, under a quota of its own and with the interposer loaded, and adds the row "interposer" to the report. */
void corral_doctor_try_interposer(const struct corral_inventory *machine, struct corral_fence_report *report);

#endif
