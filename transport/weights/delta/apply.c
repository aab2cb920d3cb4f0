#include "transport/weights/delta/internal.h"

#include <string.h>

#define PROTOCOL(...) corral_fail(err, CORRAL_PROTOCOL, "delta: " __VA_ARGS__)
#define ULL(x) ((unsigned long long)(x))

/* ---- form ---- */

static uint32_t entry_of(const uint8_t *delta, uint64_t block)
{
    uint32_t entry;
    memcpy(&entry, delta + CORRAL_DELTA_HEADER_BYTES + block * sizeof entry, sizeof entry);
    return entry;
}

enum corral_status corral_delta_peek(const void *delta, size_t bytes, struct corral_delta_part *out,
                                     struct corral_error *err)
{
    struct delta_header h;
    if (bytes < sizeof h + CORRAL_DELTA_TRAILER_BYTES) {
        return PROTOCOL("%zu bytes are too short", bytes);
    }
    memcpy(&h, delta, sizeof h);
    if (h.magic != DELTA_MAGIC || h.block_elements != DELTA_BLOCK || h.reserved != 0) {
        return PROTOCOL("it does not begin as one, or is of another kind");
    }
    struct corral_delta_part part = {.element_bytes = h.element_bytes,
                                     .first = h.first,
                                     .elements = h.elements,
                                     .total = h.total,
                                     .base = {h.base_version, {h.base_lo, h.base_hi}},
                                     .next = {h.next_version, {h.next_lo, h.next_hi}}};
    if (!corral_delta_part_possible(&part)) {
        return PROTOCOL("%llu elements of %u bytes at %llu of %llu, version %llu to %llu: not possible",
                        ULL(h.elements), h.element_bytes, ULL(h.first), ULL(h.total), ULL(h.base_version),
                        ULL(h.next_version));
    }
    uint64_t around = sizeof h + delta_blocks(part.elements) * sizeof(uint32_t) + CORRAL_DELTA_TRAILER_BYTES;
    if (around > bytes || h.payload_bytes != bytes - around) {
        return PROTOCOL("%zu bytes where the header says %llu and as many again of payload", bytes,
                        ULL(h.payload_bytes));
    }
    struct corral_digest sum = corral_digest_of(delta, bytes - CORRAL_DELTA_TRAILER_BYTES), said;
    memcpy(&said.lo, (const uint8_t *)delta + bytes - 16, 8);
    memcpy(&said.hi, (const uint8_t *)delta + bytes - 8, 8);
    if (!corral_digest_equal(sum, said)) {
        return PROTOCOL("damaged: the checksum does not match");
    }
    *out = part;
    return CORRAL_OK;
}

/* ---- blocks ---- */

static bool check_index16(const uint8_t *payload, uint32_t count, uint32_t changed)
{
    uint32_t floor = 0; /* the least the next index may be */
    for (uint32_t i = 0; i < changed; i++) {
        uint16_t index;
        memcpy(&index, payload + 2 * (size_t)i, 2);
        if (index < floor || index >= count) {
            return false;
        }
        floor = index + 1u;
    }
    return true;
}

static bool check_index8(const uint8_t *payload, uint32_t count, uint32_t changed)
{
    uint32_t groups = delta_groups(count), sum = 0;
    for (uint32_t g = 0; g < groups; g++) {
        sum += payload[g];
    }
    if (sum != changed) {
        return false;
    }
    const uint8_t *index = payload + groups;
    for (uint32_t g = 0; g < groups; g++) {
        uint32_t end = CORRAL_MIN(count - g * DELTA_GROUP, DELTA_GROUP), floor = 0;
        for (uint32_t i = 0; i < payload[g]; i++, index++) {
            if (*index < floor || *index >= end) {
                return false;
            }
            floor = *index + 1u;
        }
    }
    return true;
}

/* The bitmap as whole words, the bits beyond its end 0. */
static void read_bitmap(const uint8_t *payload, uint32_t count, uint64_t word[DELTA_WORDS])
{
    word[(count - 1) / 64] = 0;
    memcpy(word, payload, (count + 7) / 8);
}

static bool check_bitmap(const uint8_t *payload, uint32_t count, uint32_t changed)
{
    uint64_t word[DELTA_WORDS];
    uint32_t sum = 0, words = (count + 63) / 64;
    read_bitmap(payload, count, word);
    for (uint32_t w = 0; w < words; w++) {
        sum += (uint32_t)__builtin_popcountll(word[w]);
    }
    return sum == changed && (count % 64 == 0 || word[words - 1] >> (count % 64) == 0);
}

static bool check_block(enum corral_delta_kind kind, const uint8_t *payload, uint32_t count, uint32_t changed)
{
    switch (kind) {
    case CORRAL_DELTA_INDEX16:
        return check_index16(payload, count, changed);
    case CORRAL_DELTA_INDEX8:
        return check_index8(payload, count, changed);
    case CORRAL_DELTA_BITMAP:
        return check_bitmap(payload, count, changed);
    default:
        return true;
    }
}

/* Kind and count of an entry belong together: nothing changed in an empty one, all in a dense one. */
static bool check_entry(enum corral_delta_kind kind, uint32_t count, uint32_t changed)
{
    switch (kind) {
    case CORRAL_DELTA_NONE:
        return changed == 0;
    case CORRAL_DELTA_DENSE:
        return changed == count;
    default:
        return kind < CORRAL_DELTA_KINDS && changed > 0 && changed <= count;
    }
}

static enum corral_status check_blocks(const struct corral_delta_part *part, const uint8_t *delta,
                                       size_t bytes, struct corral_error *err)
{
    const uint64_t blocks = delta_blocks(part->elements);
    size_t at = CORRAL_DELTA_HEADER_BYTES + blocks * sizeof(uint32_t);
    const size_t end = bytes - CORRAL_DELTA_TRAILER_BYTES;
    for (uint64_t b = 0; b < blocks; b++) {
        uint32_t entry = entry_of(delta, b), changed = entry & DELTA_ENTRY_COUNT;
        uint32_t count = delta_block_count(part->elements, b);
        enum corral_delta_kind kind = entry >> DELTA_ENTRY_KIND;
        if (!check_entry(kind, count, changed)) {
            return PROTOCOL("block %llu: %u changes of kind %d in %u elements", ULL(b), changed, (int)kind,
                            count);
        }
        uint32_t need = delta_block_bytes(kind, count, changed, part->element_bytes);
        if (need > end - at) {
            return PROTOCOL("block %llu reaches beyond the payload", ULL(b));
        }
        if (!check_block(kind, delta + at, count, changed)) {
            return PROTOCOL("block %llu: indices out of order or range, or not as many as it says", ULL(b));
        }
        at += need;
    }
    return at == end ? CORRAL_OK : PROTOCOL("%llu bytes of payload belong to no block", ULL(end - at));
}

static enum corral_status check_versions(const struct corral_delta_part *holds,
                                         const struct corral_delta_part *d, struct corral_error *err)
{
    if (d->base.version != holds->base.version || !corral_digest_equal(d->base.digest, holds->base.digest)) {
        char wanted[CORRAL_DIGEST_TEXT], here[CORRAL_DIGEST_TEXT];
        corral_digest_format(d->base.digest, wanted);
        corral_digest_format(holds->base.digest, here);
        return corral_fail(
            err, CORRAL_STATE, "delta to version %llu is over version %llu (%s), here is version %llu (%s)",
            ULL(d->next.version), ULL(d->base.version), wanted, ULL(holds->base.version), here);
    }
    if (holds->next.version != 0 && holds->next.version != d->next.version) {
        return corral_fail(err, CORRAL_STATE,
                           "delta from version %llu leads to version %llu, not to version %llu",
                           ULL(d->base.version), ULL(d->next.version), ULL(holds->next.version));
    }
    return CORRAL_OK;
}

enum corral_status corral_delta_check(const struct corral_delta_part *holds, const void *delta, size_t bytes,
                                      struct corral_error *err)
{
    struct corral_delta_part d = {0};
    CORRAL_TRY(corral_delta_peek(delta, bytes, &d, err));
    if (d.element_bytes != holds->element_bytes || d.first != holds->first || d.elements != holds->elements ||
        d.total != holds->total) {
        return PROTOCOL("of %llu × %u bytes at %llu of %llu, for a part of %llu × %u bytes at %llu of %llu",
                        ULL(d.elements), d.element_bytes, ULL(d.first), ULL(d.total), ULL(holds->elements),
                        holds->element_bytes, ULL(holds->first), ULL(holds->total));
    }
    CORRAL_TRY(check_versions(holds, &d, err));
    return check_blocks(&d, delta, bytes, err);
}

/* ---- writing ---- */

static inline __attribute__((always_inline)) void put16(const uint8_t *index, uint32_t changed,
                                                        uint32_t bytes, uint8_t *to)
{
    const uint8_t *value = index + 2 * (size_t)changed;
    for (uint32_t i = 0; i < changed; i++) {
        uint16_t at;
        memcpy(&at, index + 2 * (size_t)i, 2);
        memcpy(to + (size_t)at * bytes, value + (size_t)i * bytes, bytes);
    }
}

static inline __attribute__((always_inline)) void put8(const uint8_t *payload, uint32_t count,
                                                       uint32_t changed, uint32_t bytes, uint8_t *to)
{
    const uint8_t *index = payload + delta_groups(count), *value = index + changed;
    for (uint32_t g = 0; g < delta_groups(count); g++, to += DELTA_GROUP * bytes) {
        for (uint32_t i = 0; i < payload[g]; i++, index++, value += bytes) {
            memcpy(to + (size_t)*index * bytes, value, bytes);
        }
    }
}

#define SIZED(f, bytes, ...)   \
    switch (bytes) {           \
    case 1:                    \
        f(__VA_ARGS__, 1, to); \
        break;                 \
    case 2:                    \
        f(__VA_ARGS__, 2, to); \
        break;                 \
    case 4:                    \
        f(__VA_ARGS__, 4, to); \
        break;                 \
    default:                   \
        f(__VA_ARGS__, 8, to); \
        break;                 \
    }

static void apply_block(const struct corral_delta_kernels *k, enum corral_delta_kind kind,
                        const uint8_t *payload, uint32_t count, uint32_t changed, uint32_t element_bytes,
                        uint8_t *to)
{
    switch (kind) {
    case CORRAL_DELTA_INDEX16:
        SIZED(put16, element_bytes, payload, changed);
        break;
    case CORRAL_DELTA_INDEX8:
        SIZED(put8, element_bytes, payload, count, changed);
        break;
    case CORRAL_DELTA_BITMAP: {
        uint64_t word[DELTA_WORDS];
        read_bitmap(payload, count, word);
        k->expand(word, count, element_bytes, payload + (count + 7) / 8, to);
        break;
    }
    case CORRAL_DELTA_DENSE:
        memcpy(to, payload, (size_t)count * element_bytes);
        break;
    default:
        break;
    }
}

enum corral_status corral_delta_apply_with(const struct corral_delta_kernels *kernels,
                                           const struct corral_delta_part *holds, const void *delta,
                                           size_t bytes, const void *base, void *destination,
                                           struct corral_error *err)
{
    CORRAL_TRY(corral_delta_check(holds, delta, bytes, err));
    const uint64_t blocks = delta_blocks(holds->elements);
    const uint32_t e = holds->element_bytes;
    const uint8_t *from = base, *d = delta;
    const uint8_t *payload = d + CORRAL_DELTA_HEADER_BYTES + blocks * sizeof(uint32_t);
    uint8_t *to = destination;
    for (uint64_t b = 0; b < blocks; b++) {
        uint32_t entry = entry_of(d, b), changed = entry & DELTA_ENTRY_COUNT;
        uint32_t count = delta_block_count(holds->elements, b);
        enum corral_delta_kind kind = entry >> DELTA_ENTRY_KIND;
        uint64_t place = b * DELTA_BLOCK * e;
        if (from != to && kind != CORRAL_DELTA_DENSE) {
            memcpy(to + place, from + place, (size_t)count * e);
        }
        apply_block(kernels, kind, payload, count, changed, e, to + place);
        payload += delta_block_bytes(kind, count, changed, e);
    }
    return CORRAL_OK;
}

enum corral_status corral_delta_apply(const struct corral_delta_part *holds, const void *delta, size_t bytes,
                                      const void *base, void *destination, struct corral_error *err)
{
    return corral_delta_apply_with(corral_delta_kernels(), holds, delta, bytes, base, destination, err);
}
