/* Sealed shared mappings (memfd): made by the agent, inherited by its workers as descriptors, never resized, without a name in
 * the file system. Any thread.
 */
#ifndef CORRAL_TRANSPORT_SEGMENT_H
#define CORRAL_TRANSPORT_SEGMENT_H

#include "base/error.h"
#include <stdint.h>

/* A zeroed segment of exactly `bytes`, its pages taken now and its size sealed. *fd_out is close-on-exec. `name` is for errors and
 * /proc/PID/maps. */
enum corral_status corral_segment_create(const char *name, uint64_t bytes, int *fd_out,
                                         struct corral_error *err);
/* Map all of a segment. Not sealed against resizing, or smaller than bytes_min: CORRAL_INVALID. Unmap with munmap(). */
enum corral_status corral_segment_map(const char *name, int fd, uint64_t bytes_min, void **map,
                                      uint64_t *bytes, struct corral_error *err);

#endif
