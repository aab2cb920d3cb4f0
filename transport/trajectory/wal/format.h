/* The bytes of a log's segments: docs/spec/trajectory-wal.md. Private to wal/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_FORMAT_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define WAL_ALIGN 64u             /* of a frame, and the size of both headers */
#define WAL_FLAG_ZSTD UINT32_C(1) /* the payload is one zstd frame */
#define WAL_FLAG_END UINT32_C(2)  /* closed in order: no payload, no position of its own */

struct wal_head { /* of a segment */
    uint64_t run, first, salt;
    uint64_t synced; /* all positions up to this one were durable when the segment was begun */
    uint64_t created_ns;
};

struct wal_frame {
    uint32_t flags;
    uint64_t position, stored, record; /* bytes as they lie in the file, and of the record */
    uint64_t synced;                   /* all positions up to this one were durable when this was written */
    uint64_t salt, digest;
};

void wal_head_put(uint8_t to[WAL_ALIGN], const struct wal_head *h);
bool wal_head_get(const uint8_t from[WAL_ALIGN], struct wal_head *out);
void wal_frame_put(uint8_t to[WAL_ALIGN], const struct wal_frame *f);
/* False when it is no frame header or its fields are out of range. */
bool wal_frame_get(const uint8_t from[WAL_ALIGN], struct wal_frame *out);
uint64_t wal_digest(const void *data, uint64_t bytes);

static inline uint64_t wal_padded(uint64_t bytes)
{
    return (bytes + WAL_ALIGN - 1) / WAL_ALIGN * WAL_ALIGN;
}

#endif
