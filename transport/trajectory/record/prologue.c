#include "transport/trajectory/record/prologue.h"
#include <stdbool.h>
#include <string.h>

enum corral_status corral_traj_prologue_check(const void *memory, uint64_t available, uint64_t *bytes,
                                              struct corral_error *err)
{
    const struct corral_traj_prologue *p = memory;
    if ((uintptr_t)memory % CORRAL_TRAJ_ALIGN != 0) {
        return corral_fail(err, CORRAL_INVALID, "record: its memory is not aligned to %u bytes",
                           CORRAL_TRAJ_ALIGN);
    }
    if (available < sizeof *p) {
        return corral_fail(err, CORRAL_PROTOCOL, "record: %llu bytes are less than its prologue",
                           (unsigned long long)available);
    }
    if (p->magic != CORRAL_TRAJ_RECORD_MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "record: begins with 0x%08x, not with a record's magic number", p->magic);
    }
    if (p->format != CORRAL_TRAJ_RECORD_FORMAT) {
        return corral_fail(err, CORRAL_PROTOCOL, "record: format %u, this program reads format %u", p->format,
                           CORRAL_TRAJ_RECORD_FORMAT);
    }
    if (p->bytes % CORRAL_TRAJ_ALIGN != 0 || p->bytes > CORRAL_TRAJ_RECORD_MAX || p->bytes > available) {
        return corral_fail(
            err, CORRAL_PROTOCOL,
            "record: claims %llu bytes, must be a multiple of %u, at most %llu, and there are %llu",
            (unsigned long long)p->bytes, CORRAL_TRAJ_ALIGN, (unsigned long long)CORRAL_TRAJ_RECORD_MAX,
            (unsigned long long)available);
    }
    if (p->header_bytes == 0 || p->header_bytes > CORRAL_TRAJ_HEADER_MAX ||
        sizeof *p + corral_traj_align(p->header_bytes) > p->bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "record: a header of %u bytes, must be 1 to %u within %llu",
                           p->header_bytes, CORRAL_TRAJ_HEADER_MAX, (unsigned long long)p->bytes);
    }
    if ((p->reserved0 | p->reserved1[0] | p->reserved1[1]) != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "record: reserved bytes of its prologue are not zero");
    }
    *bytes = p->bytes;
    return CORRAL_OK;
}

/* Bytes of the multi-byte character at p (p[0] >= 0x80), or 0 when it is none. */
static size_t multi_byte(const uint8_t *p, size_t left)
{
    const uint8_t b = p[0];
    const size_t n = b >= 0xC2 && b <= 0xDF ? 2 : (b & 0xF0) == 0xE0 ? 3 : b >= 0xF0 && b <= 0xF4 ? 4 : 0;
    if (n == 0 || n > left) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    const bool overlong = (b == 0xE0 && p[1] < 0xA0) || (b == 0xF0 && p[1] < 0x90);
    const bool surrogate = b == 0xED && p[1] > 0x9F;
    const bool beyond = b == 0xF4 && p[1] > 0x8F;
    return overlong || surrogate || beyond ? 0 : n;
}

bool corral_traj_text_valid(const void *text, size_t bytes)
{
    const uint8_t *p = text, *end = p + bytes;
    while (p < end) {
        uint64_t eight;
        if (end - p >= 8) {
            memcpy(&eight, p, sizeof eight);
            /* No byte has its top bit set, and none is zero (subtracting 1 would set it). */
            if (((eight | (eight - 0x0101010101010101u)) & 0x8080808080808080u) == 0) {
                p += 8;
                continue;
            }
        }
        if (*p == 0) {
            return false;
        }
        const size_t n = *p < 0x80 ? 1 : multi_byte(p, (size_t)(end - p));
        if (n == 0) {
            return false;
        }
        p += n;
    }
    return true;
}
