/* NVML, loaded at run time with our own declarations, so one binary runs with and without a driver. */
#ifndef CORRAL_ORCHESTRATOR_INVENTORY_NVML_H
#define CORRAL_ORCHESTRATOR_INVENTORY_NVML_H

#include "orchestrator/inventory/inventory.h"

/* Fill gpu_count, gpu[], driver or gpu_note. `library` is what dlopen gets. */
void nvml_read(const char *library, struct corral_inventory *out);

#define NVML_LIBRARY "libnvidia-ml.so.1"

#endif
