/* What the machine itself does with as many bytes: memcpy by all cores ("shm"), or a raw loopback socket per core ("tcp"). Windows of 64 MiB, so that caches don't help. Others: CORRAL_UNSUPPORTED. */
#ifndef CORRAL_BENCH_WEIGHTS_YARDSTICK_H
#define CORRAL_BENCH_WEIGHTS_YARDSTICK_H

#include "base/error.h"
#include <stdint.h>

/* Seconds for `bytes`; of many bytes it measures a part and multiplies. */
enum corral_status bench_yardstick(const char *lane, uint64_t bytes, double *seconds,
                                   struct corral_error *err);

#endif
