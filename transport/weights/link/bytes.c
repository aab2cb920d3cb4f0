/* The loops over a bucket's bytes: packing, unpacking, copying, digesting. */
#include "transport/weights/link/internal.h"

#include "transport/weights/link/stream.h"
#include <endian.h>
#include <string.h>

/* Shorter runs are packed here before they are hashed: a call per run would cost more than the hash. */
#define GATHER_BYTES 8192u
#define GATHER_RUN_BYTES_MAX 512u
/* Links with this many bytes, and runs of them with that many, are written past the caches. Fewer bytes stay in a core's share of the last cache until their digest is taken (measured: the two are equal between 4 and 8 MiB). */
#define STREAM_LINK_BYTES (8u << 20)
#define STREAM_RUN_BYTES 2048u

/* A constant length makes the compiler move it in registers. */
#define ROWS_OF(n)                             \
    case n:                                    \
        for (uint64_t i = 0; i < count; i++) { \
            memcpy(to, from, n);               \
            to += to_stride;                   \
            from += from_stride;               \
        }                                      \
        return;

static void copy_rows(uint8_t *to, uint64_t to_stride, const uint8_t *from, uint64_t from_stride,
                      uint64_t bytes, uint64_t count)
{
    switch (bytes) {
        ROWS_OF(1)
        ROWS_OF(2)
        ROWS_OF(4)
        ROWS_OF(8)
        ROWS_OF(16)
        ROWS_OF(32)
    default:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(to, from, bytes);
            to += to_stride;
            from += from_stride;
        }
    }
}

void corral_link_place(const struct corral_link *link, void *to, const void *from, uint64_t bytes)
{
    if (link->bytes >= STREAM_LINK_BYTES && bytes >= STREAM_RUN_BYTES) {
        corral_stream_copy(to, from, bytes);
    } else {
        memcpy(to, from, bytes);
    }
}

/* copy_rows() into final memory. */
static void place_rows(const struct corral_link *link, uint8_t *to, uint64_t to_stride, const uint8_t *from,
                       uint64_t from_stride, uint64_t bytes, uint64_t count)
{
    if (bytes < STREAM_RUN_BYTES) {
        copy_rows(to, to_stride, from, from_stride, bytes, count);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        corral_link_place(link, to + i * to_stride, from + i * from_stride, bytes);
    }
}

void corral_link_pack(const struct corral_link *link, uint32_t bucket, const void *source, void *packed)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_link_rows r;
    uint8_t *to = packed;
    while (corral_link_next_rows(link, &cursor, &r)) {
        copy_rows(to, r.bytes, (const uint8_t *)source + r.source, r.source_stride, r.bytes, r.count);
        to += r.bytes * r.count;
    }
}

void corral_link_unpack(const struct corral_link *link, uint32_t bucket, const void *packed,
                        void *destination)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_link_rows r;
    const uint8_t *from = packed;
    while (corral_link_next_rows(link, &cursor, &r)) {
        place_rows(link, (uint8_t *)destination + r.destination, r.destination_stride, from, r.bytes, r.bytes,
                   r.count);
        from += r.bytes * r.count;
    }
}

void corral_link_fetch(const struct corral_link *link, uint32_t bucket, const void *destination, void *packed)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_link_rows r;
    uint8_t *to = packed;
    while (corral_link_next_rows(link, &cursor, &r)) {
        copy_rows(to, r.bytes, (const uint8_t *)destination + r.destination, r.destination_stride, r.bytes,
                  r.count);
        to += r.bytes * r.count;
    }
}

void corral_link_copy(const struct corral_link *link, uint32_t bucket, const void *source, void *destination)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_link_rows r;
    while (corral_link_next_rows(link, &cursor, &r)) {
        place_rows(link, (uint8_t *)destination + r.destination, r.destination_stride,
                   (const uint8_t *)source + r.source, r.source_stride, r.bytes, r.count);
    }
}

/* ---- digests ---- */

static void digest_begin(struct corral_digest_state *state, const struct corral_link *link, uint32_t bucket)
{
    uint64_t head[3] = {htole64(link->hash.lo), htole64(link->hash.hi), htole64(bucket)};
    corral_digest_begin(state);
    corral_digest_add(state, head, sizeof head);
}

static void digest_short_rows(struct corral_digest_state *state, const uint8_t *from, uint64_t stride,
                              uint64_t bytes, uint64_t count)
{
    uint8_t gathered[GATHER_BYTES];
    uint64_t at_once = GATHER_BYTES / bytes;
    while (count > 0) {
        uint64_t n = CORRAL_MIN(count, at_once);
        copy_rows(gathered, bytes, from, stride, bytes, n);
        corral_digest_add(state, gathered, n * bytes);
        from += n * stride;
        count -= n;
    }
}

struct corral_digest corral_link_digest(const struct corral_link *link, uint32_t bucket,
                                        enum corral_link_side side, const void *base)
{
    struct corral_digest_state state;
    digest_begin(&state, link, bucket);
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_link_rows r;
    while (corral_link_next_rows(link, &cursor, &r)) {
        bool source = side == CORRAL_LINK_SOURCE;
        const uint8_t *from = (const uint8_t *)base + (source ? r.source : r.destination);
        uint64_t stride = source ? r.source_stride : r.destination_stride;
        if (r.count > 1 && r.bytes <= GATHER_RUN_BYTES_MAX) {
            digest_short_rows(&state, from, stride, r.bytes, r.count);
            continue;
        }
        for (uint64_t i = 0; i < r.count; i++) {
            corral_digest_add(&state, from + i * stride, r.bytes);
        }
    }
    return corral_digest_end(&state);
}

struct corral_digest corral_link_digest_packed(const struct corral_link *link, uint32_t bucket,
                                               const void *packed)
{
    struct corral_digest_state state;
    digest_begin(&state, link, bucket);
    corral_digest_add(&state, packed, corral_link_bucket_size(link, bucket));
    return corral_digest_end(&state);
}
