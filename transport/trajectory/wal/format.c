#include "transport/trajectory/wal/format.h"
#include "base/hash.h"
#include <corral/trajectory.h>
#include <string.h>

#define HEAD_MAGIC UINT64_C(0x314c41574c525243) /* "CRRLWAL1" */
#define FRAME_MAGIC UINT32_C(0x31465743)        /* "CWF1" */
#define CHECKED (WAL_ALIGN - 8)                 /* the last 8 bytes check what is before them */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "segments are little-endian");

uint64_t wal_digest(const void *data, uint64_t bytes)
{
    return corral_digest_of(data, (size_t)bytes).lo;
}

static void put(uint8_t *to, uint64_t v)
{
    memcpy(to, &v, 8);
}

static uint64_t get(const uint8_t *from)
{
    uint64_t v;
    memcpy(&v, from, 8);
    return v;
}

void wal_head_put(uint8_t to[WAL_ALIGN], const struct wal_head *h)
{
    put(to, HEAD_MAGIC);
    put(to + 8, h->run);
    put(to + 16, h->first);
    put(to + 24, h->salt);
    put(to + 32, h->synced);
    put(to + 40, h->created_ns);
    put(to + 48, 0);
    put(to + CHECKED, wal_digest(to, CHECKED));
}

bool wal_head_get(const uint8_t from[WAL_ALIGN], struct wal_head *out)
{
    struct wal_head h = {.run = get(from + 8),
                         .first = get(from + 16),
                         .salt = get(from + 24),
                         .synced = get(from + 32),
                         .created_ns = get(from + 40)};
    if (get(from) != HEAD_MAGIC || get(from + CHECKED) != wal_digest(from, CHECKED) || h.first == 0 ||
        h.synced >= h.first) {
        return false;
    }
    *out = h;
    return true;
}

void wal_frame_put(uint8_t to[WAL_ALIGN], const struct wal_frame *f)
{
    put(to, FRAME_MAGIC | (uint64_t)f->flags << 32);
    put(to + 8, f->position);
    put(to + 16, f->stored);
    put(to + 24, f->record);
    put(to + 32, f->synced);
    put(to + 40, f->salt);
    put(to + 48, f->digest);
    put(to + CHECKED, wal_digest(to, CHECKED));
}

static bool sizes_are_possible(const struct wal_frame *f)
{
    if (f->flags & WAL_FLAG_END) {
        return f->flags == WAL_FLAG_END && f->stored == 0 && f->record == 0;
    }
    bool packed = (f->flags & WAL_FLAG_ZSTD) != 0;
    return f->flags <= WAL_FLAG_ZSTD && f->record > 0 && f->record <= CORRAL_TRAJ_RECORD_MAX &&
           (packed ? f->stored > 0 && f->stored < f->record : f->stored == f->record);
}

bool wal_frame_get(const uint8_t from[WAL_ALIGN], struct wal_frame *out)
{
    uint64_t word = get(from);
    if ((uint32_t)word != FRAME_MAGIC || get(from + CHECKED) != wal_digest(from, CHECKED)) {
        return false;
    }
    struct wal_frame f = {.flags = (uint32_t)(word >> 32),
                          .position = get(from + 8),
                          .stored = get(from + 16),
                          .record = get(from + 24),
                          .synced = get(from + 32),
                          .salt = get(from + 40),
                          .digest = get(from + 48)};
    if (f.position == 0 || f.position == UINT64_MAX || f.synced >= f.position || !sizes_are_possible(&f)) {
        return false;
    }
    *out = f;
    return true;
}
