/* Checks the shape of a msgpack value from its raw bytes alone: no recursion, no allocation, each byte seen once.
 * Private to base/mpack.c.
 */
#ifndef CORRAL_BASE_MPACK_SCAN_H
#define CORRAL_BASE_MPACK_SCAN_H

#include "base/error.h"
#include <stdint.h>

/* Exactly one whole value of at most `objects_max` objects (keys count) and CORRAL_MPACK_DEPTH_MAX levels of maps and
 * arrays, with string keys and without extension types. Otherwise CORRAL_PROTOCOL and the byte offset. */
enum corral_status corral_mpack_scan(const void *data, size_t bytes, uint32_t objects_max,
                                     struct corral_error *err);

#endif
