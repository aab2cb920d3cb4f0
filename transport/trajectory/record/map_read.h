/* Reads msgpack from memory that is not trusted, without allocation or recursion. Everything that this accepts, base/mpack.h accepts (record_test.c,
 * fuzz_record.c): string keys, no extension types, at most CORRAL_MPACK_DEPTH_MAX levels. A function that returns false leaves `at` anywhere. Private to record/.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_MAP_READ_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_MAP_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct map_reader {
    const uint8_t *at, *end;
};

bool map_read_u64(struct map_reader *r, uint64_t *out);                    /* any non-negative integer */
bool map_read_f64(struct map_reader *r, double *out);                      /* any number */
bool map_read_str(struct map_reader *r, const char **text, size_t *bytes); /* not checked to be UTF-8 */
bool map_read_array(struct map_reader *r, uint32_t *count);
bool map_read_map(struct map_reader *r, uint32_t *pairs);
/* One whole value that lies inside `depth` maps and arrays. */
bool map_read_skip(struct map_reader *r, uint32_t depth);

#endif
