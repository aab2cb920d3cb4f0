/* The first 64 bytes of an encoded record (docs/spec/trajectory.md): who wrote it and how long it is, readable without touching its map.
 * Rings, streams and logs look at nothing else.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_PROLOGUE_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_PROLOGUE_H

#include "base/error.h"
#include <assert.h>
#include <corral/trajectory.h>
#include <stdint.h>

#define CORRAL_TRAJ_RECORD_MAGIC 0x31525443u /* "CTR1" */
#define CORRAL_TRAJ_RECORD_FORMAT 1u

struct corral_traj_prologue {
    uint32_t magic, format;
    uint32_t header_bytes; /* of the msgpack map behind it, not padded */
    uint32_t reserved0;
    uint64_t bytes; /* of the whole record, a multiple of 64 */
    uint64_t run;
    uint32_t worker, epoch;
    uint64_t sequence;
    uint64_t reserved1[2];
};
static_assert(sizeof(struct corral_traj_prologue) == CORRAL_TRAJ_PROLOGUE_BYTES, "docs/spec/trajectory.md");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little-endian and used in place");

/* A record begins at `memory`, aligned to 64 bytes, and ends within `available`: magic, format, sizes, zeros. *bytes: of the record. Hot path.
 * CORRAL_PROTOCOL otherwise, CORRAL_INVALID for unaligned memory. */
enum corral_status corral_traj_prologue_check(const void *memory, uint64_t available, uint64_t *bytes,
                                              struct corral_error *err);

/* The next multiple of 64. */
static inline uint64_t corral_traj_align(uint64_t bytes)
{
    return (bytes + CORRAL_TRAJ_ALIGN - 1) & ~(uint64_t)(CORRAL_TRAJ_ALIGN - 1);
}

/* Text that is shown to people and put into file names' place: whole UTF-8 (no surrogates, no overlong forms) without NUL. */
_Bool corral_traj_text_valid(const void *text, size_t bytes);

#endif
