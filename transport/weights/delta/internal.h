/* Shared by encode and apply: the fields' places, the size of a block's payload, and the inner loops in versions for what the processor has. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_DELTA_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_DELTA_INTERNAL_H

#include "transport/weights/delta/delta.h"
#include <stdbool.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "deltas are written as they lie in memory");

#define DELTA_MAGIC 0x31445743u /* "CWD1" */
#define DELTA_BLOCK CORRAL_DELTA_BLOCK_ELEMENTS
#define DELTA_WORDS (DELTA_BLOCK / 64)
#define DELTA_GROUP 256u
/* Kernels may write so many bytes beyond what they are asked to. */
#define DELTA_SLACK 64u

#define DELTA_ENTRY_KIND 28
#define DELTA_ENTRY_COUNT ((1u << DELTA_ENTRY_KIND) - 1)

struct delta_header {
    uint32_t magic, element_bytes;
    uint64_t base_version, base_lo, base_hi;
    uint64_t next_version, next_lo, next_hi;
    uint64_t first, elements, total;
    uint64_t payload_bytes;
    uint32_t block_elements, reserved;
};
_Static_assert(sizeof(struct delta_header) == CORRAL_DELTA_HEADER_BYTES, "the spec's header");

/* Changed elements of one block of `count` elements. */
struct delta_mask {
    uint64_t word[DELTA_WORDS]; /* bit i of word w: element 64 w + i; bits beyond the end are 0 */
    uint32_t changed;
    bool full_group; /* a whole group of 256 changed: its count does not fit into a u8 */
};

struct corral_delta_kernels {
    const char *name;
    bool (*supported)(void);
    void (*compare)(const void *base, const void *next, uint32_t count, uint32_t element_bytes,
                    struct delta_mask *mask);
    /* mask->changed u16 indices; values: that many elements. Both may write DELTA_SLACK bytes more. */
    void (*index16)(const struct delta_mask *mask, void *out);
    /* A count per group of `count` elements, then mask->changed u8 indices. The same. */
    void (*index8)(const struct delta_mask *mask, uint32_t count, void *out);
    void (*values)(const struct delta_mask *mask, const void *next, uint32_t count, uint32_t element_bytes,
                   void *out);
    /* Elements with a set bit take the next value. Reads and writes nothing else. */
    void (*expand)(const uint64_t *word, uint32_t count, uint32_t element_bytes, const void *values,
                   void *destination);
};

extern const struct corral_delta_kernels corral_delta_kernels_plain, corral_delta_kernels_avx2,
    corral_delta_kernels_avx512;
#define DELTA_KERNELS_MAX 3
/* Those that run on this processor, the fastest last; returns how many. */
uint32_t corral_delta_kernels_all(const struct corral_delta_kernels *out[DELTA_KERNELS_MAX]);
const struct corral_delta_kernels *corral_delta_kernels(void);

enum corral_status corral_delta_encode_with(const struct corral_delta_kernels *kernels,
                                            const struct corral_delta_part *part, const void *base,
                                            const void *next, void *out, size_t room, size_t *bytes,
                                            struct corral_delta_stats *stats, struct corral_error *err);
enum corral_status corral_delta_apply_with(const struct corral_delta_kernels *kernels,
                                           const struct corral_delta_part *holds, const void *delta,
                                           size_t bytes, const void *base, void *destination,
                                           struct corral_error *err);

static inline uint32_t delta_groups(uint32_t count)
{
    return (count + DELTA_GROUP - 1) / DELTA_GROUP;
}

static inline uint64_t delta_blocks(uint64_t elements)
{
    return (elements + DELTA_BLOCK - 1) / DELTA_BLOCK;
}

static inline uint32_t delta_block_count(uint64_t elements, uint64_t block)
{
    uint64_t left = elements - block * DELTA_BLOCK;
    return left < DELTA_BLOCK ? (uint32_t)left : DELTA_BLOCK;
}

/* Payload of a block of `count` elements of which `changed` are sent. */
static inline uint32_t delta_block_bytes(enum corral_delta_kind kind, uint32_t count, uint32_t changed,
                                         uint32_t element_bytes)
{
    switch (kind) {
    case CORRAL_DELTA_INDEX16:
        return changed * (2 + element_bytes);
    case CORRAL_DELTA_INDEX8:
        return delta_groups(count) + changed * (1 + element_bytes);
    case CORRAL_DELTA_BITMAP:
        return (count + 7) / 8 + changed * element_bytes;
    case CORRAL_DELTA_DENSE:
        return count * element_bytes;
    default:
        return 0;
    }
}

/* What the caller says of a part makes sense. */
bool corral_delta_part_possible(const struct corral_delta_part *part);

#endif
