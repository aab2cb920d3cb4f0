#include "transport/weights/delta/internal.h"

#include <string.h>

bool corral_delta_part_possible(const struct corral_delta_part *part)
{
    uint32_t e = part->element_bytes;
    return (e == 1 || e == 2 || e == 4 || e == 8) && part->elements > 0 &&
           part->total <= CORRAL_DELTA_ELEMENTS_MAX && part->first < part->total &&
           part->elements <= part->total - part->first && part->base.version > 0 &&
           part->next.version > part->base.version;
}

uint64_t corral_delta_room(const struct corral_delta_part *part)
{
    return CORRAL_DELTA_HEADER_BYTES + delta_blocks(part->elements) * sizeof(uint32_t) +
           part->elements * part->element_bytes + CORRAL_DELTA_TRAILER_BYTES;
}

/* The smallest; of equal ones the first in the order of the kinds. */
static enum corral_delta_kind choose(const struct delta_mask *mask, uint32_t count, uint32_t element_bytes)
{
    if (mask->changed == 0) {
        return CORRAL_DELTA_NONE;
    }
    enum corral_delta_kind best = CORRAL_DELTA_INDEX16;
    uint32_t least = delta_block_bytes(best, count, mask->changed, element_bytes);
    for (enum corral_delta_kind kind = CORRAL_DELTA_INDEX8; kind <= CORRAL_DELTA_DENSE; kind++) {
        uint32_t bytes = delta_block_bytes(kind, count, mask->changed, element_bytes);
        if (bytes < least && !(kind == CORRAL_DELTA_INDEX8 && mask->full_group)) {
            best = kind;
            least = bytes;
        }
    }
    return best;
}

static void write_block(const struct corral_delta_kernels *k, enum corral_delta_kind kind,
                        const struct delta_mask *mask, const uint8_t *next, uint32_t count,
                        uint32_t element_bytes, uint8_t *out)
{
    uint32_t index_bytes = 0;
    switch (kind) {
    case CORRAL_DELTA_INDEX16:
        k->index16(mask, out);
        index_bytes = 2 * mask->changed;
        break;
    case CORRAL_DELTA_INDEX8:
        k->index8(mask, count, out);
        index_bytes = delta_groups(count) + mask->changed;
        break;
    case CORRAL_DELTA_BITMAP:
        index_bytes = (count + 7) / 8;
        memcpy(out, mask->word, index_bytes);
        break;
    case CORRAL_DELTA_DENSE:
        memcpy(out, next, (size_t)count * element_bytes);
        return;
    default:
        return;
    }
    k->values(mask, next, count, element_bytes, out + index_bytes);
}

static struct delta_header header_of(const struct corral_delta_part *part, uint64_t payload_bytes)
{
    return (struct delta_header){.magic = DELTA_MAGIC,
                                 .element_bytes = part->element_bytes,
                                 .base_version = part->base.version,
                                 .base_lo = part->base.digest.lo,
                                 .base_hi = part->base.digest.hi,
                                 .next_version = part->next.version,
                                 .next_lo = part->next.digest.lo,
                                 .next_hi = part->next.digest.hi,
                                 .first = part->first,
                                 .elements = part->elements,
                                 .total = part->total,
                                 .payload_bytes = payload_bytes,
                                 .block_elements = DELTA_BLOCK};
}

static enum corral_status too_large(const struct corral_delta_part *part, size_t room,
                                    struct corral_error *err)
{
    return corral_fail(err, CORRAL_AGAIN,
                       "the delta from version %llu to %llu is larger than %zu bytes: send it in full",
                       (unsigned long long)part->base.version, (unsigned long long)part->next.version, room);
}

enum corral_status corral_delta_encode_with(const struct corral_delta_kernels *kernels,
                                            const struct corral_delta_part *part, const void *base,
                                            const void *next, void *out, size_t room, size_t *bytes,
                                            struct corral_delta_stats *stats, struct corral_error *err)
{
    if (!corral_delta_part_possible(part)) {
        return corral_fail(
            err, CORRAL_INVALID,
            "delta of %llu elements of %u bytes at %llu of %llu, version %llu to %llu: not possible",
            (unsigned long long)part->elements, part->element_bytes, (unsigned long long)part->first,
            (unsigned long long)part->total, (unsigned long long)part->base.version,
            (unsigned long long)part->next.version);
    }
    const uint64_t blocks = delta_blocks(part->elements);
    const uint64_t start = CORRAL_DELTA_HEADER_BYTES + blocks * sizeof(uint32_t);
    if (start + CORRAL_DELTA_TRAILER_BYTES > room) {
        return too_large(part, room, err);
    }
    const uint32_t e = part->element_bytes;
    const uint8_t *from = base, *to = next;
    uint8_t *delta = out;
    size_t at = start, end = room - CORRAL_DELTA_TRAILER_BYTES;
    struct corral_delta_stats counted = {0};
    for (uint64_t b = 0; b < blocks; b++) {
        struct delta_mask mask;
        uint32_t count = delta_block_count(part->elements, b);
        uint64_t place = b * DELTA_BLOCK * e;
        kernels->compare(from + place, to + place, count, e, &mask);
        enum corral_delta_kind kind = choose(&mask, count, e);
        uint32_t sent = kind == CORRAL_DELTA_DENSE ? count : mask.changed;
        uint32_t need = delta_block_bytes(kind, count, sent, e);
        if (need > end - at) {
            return too_large(part, room, err);
        }
        bool slack = room - at >= (size_t)need + DELTA_SLACK;
        write_block(slack ? kernels : &corral_delta_kernels_plain, kind, &mask, to + place, count, e,
                    delta + at);
        uint32_t entry = (uint32_t)kind << DELTA_ENTRY_KIND | sent;
        memcpy(delta + CORRAL_DELTA_HEADER_BYTES + b * sizeof entry, &entry, sizeof entry);
        counted.changed += mask.changed;
        counted.blocks[kind]++;
        at += need;
    }
    struct delta_header header = header_of(part, at - start);
    memcpy(delta, &header, sizeof header);
    struct corral_digest sum = corral_digest_of(delta, at);
    memcpy(delta + at, &sum.lo, 8);
    memcpy(delta + at + 8, &sum.hi, 8);
    *bytes = at + CORRAL_DELTA_TRAILER_BYTES;
    if (stats) {
        *stats = counted;
    }
    return CORRAL_OK;
}

enum corral_status corral_delta_encode(const struct corral_delta_part *part, const void *base,
                                       const void *next, void *out, size_t room, size_t *bytes,
                                       struct corral_delta_stats *stats, struct corral_error *err)
{
    return corral_delta_encode_with(corral_delta_kernels(), part, base, next, out, room, bytes, stats, err);
}
