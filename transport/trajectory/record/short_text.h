/* Names and keys are a handful of bytes each: copied, compared and checked here without a call. Nothing is read or written outside the text. Private to record/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_SHORT_TEXT_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_SHORT_TEXT_H

#include <corral/trajectory.h>
#include <stdbool.h>
#include <string.h>

static inline uint64_t load8(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t load4(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t load2(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Up to 8 bytes as a number, zeros behind them. From 2 on, two loads that may overlap. */
static inline uint64_t load_short(const void *text, size_t bytes)
{
    const uint8_t *p = text;
    if (bytes >= 8) {
        return load8(p);
    }
    if (bytes >= 4) {
        return load4(p) | load4(p + bytes - 4) << (bytes - 4) * 8;
    }
    if (bytes >= 2) {
        return load2(p) | load2(p + bytes - 2) << (bytes - 2) * 8;
    }
    return bytes == 1 ? *p : 0;
}

static inline void copy_short(void *to, const void *from, size_t bytes)
{
    uint8_t *out = to;
    const uint8_t *p = from;
    if (bytes >= 8) {
        size_t at = 0;
        for (; at + 8 <= bytes; at += 8) {
            memcpy(out + at, p + at, 8);
        }
        memcpy(out + bytes - 8, p + bytes - 8, 8);
    } else if (bytes >= 4) {
        memcpy(out, p, 4);
        memcpy(out + bytes - 4, p + bytes - 4, 4);
    } else if (bytes >= 2) {
        memcpy(out, p, 2);
        memcpy(out + bytes - 2, p + bytes - 2, 2);
    } else if (bytes == 1) {
        *out = *p;
    }
}

#define EACH_BYTE UINT64_C(0x0101010101010101)
/* The top bit of a byte is set when it is none of 0x21 to 0x7E. A borrow reaches the next byte only from one that is marked itself. */
static inline uint64_t marked_invisible(uint64_t v)
{
    return (v | (v - 0x21 * EACH_BYTE) | (v + EACH_BYTE)) & 0x80 * EACH_BYTE;
}

/* Names of tensors and scores: 1 to CORRAL_TRAJ_TEXT_MAX visible ASCII characters, no spaces. */
static inline bool name_valid(const void *name, size_t bytes)
{
    const uint8_t *p = name;
    uint64_t bad = 0;
    size_t at = 0;
    if (bytes - 1 >= CORRAL_TRAJ_TEXT_MAX) { /* 0 wraps */
        return false;
    }
    for (; at + 8 <= bytes; at += 8) {
        bad |= marked_invisible(load8(p + at));
    }
    const uint64_t rest = load_short(p + at, bytes - at);
    const uint64_t behind = bytes == at ? ~UINT64_C(0) : ~UINT64_C(0) << (bytes - at) * 8;
    return (bad | marked_invisible(rest | (behind & 'x' * EACH_BYTE))) == 0;
}

/* Names met so far: one bit for each, and the names themselves are only compared when bits meet. */
struct name_set {
    uint64_t bits;
    uint32_t count;
    uint8_t bytes[CORRAL_TRAJ_TENSORS_MAX];
    const char *name[CORRAL_TRAJ_TENSORS_MAX];
};
_Static_assert(CORRAL_TRAJ_SCORES_MAX <= CORRAL_TRAJ_TENSORS_MAX, "one set serves both");

static inline void name_set_clear(struct name_set *s)
{
    s->bits = 0;
    s->count = 0;
}

/* False when it is there already. At most CORRAL_TRAJ_TENSORS_MAX valid names, which stay where they are. */
static inline bool name_set_add(struct name_set *s, const char *name, size_t bytes)
{
    const uint64_t mix = (load_short(name, bytes) + bytes) * UINT64_C(0x9E3779B97F4A7C15);
    const uint64_t bit = UINT64_C(1) << (mix >> 58);
    if ((s->bits & bit) != 0) {
        for (uint32_t i = 0; i < s->count; i++) {
            if (s->bytes[i] == bytes && memcmp(s->name[i], name, bytes) == 0) {
                return false;
            }
        }
    }
    s->bits |= bit;
    s->name[s->count] = name;
    s->bytes[s->count++] = (uint8_t)bytes;
    return true;
}

#endif
