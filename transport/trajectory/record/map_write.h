/* The few msgpack forms that a record's map is written with, without allocation. No bounds are checked here: encode.c shows that the largest map fits.
 * Each function returns the end of what it wrote. Private to record/.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_MAP_WRITE_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_MAP_WRITE_H

#include "transport/trajectory/record/short_text.h"

static inline uint8_t *put_big_endian(uint8_t *p, uint8_t type, uint64_t v, unsigned bytes)
{
    *p++ = type;
    v = __builtin_bswap64(v) >> (64 - 8 * bytes);
    memcpy(p, &v, sizeof v); /* always 8: the memory has room, and a constant size is one store */
    return p + bytes;
}

static inline uint8_t *put_u64(uint8_t *p, uint64_t v)
{
    if (v < 0x80) {
        *p = (uint8_t)v;
        return p + 1;
    }
    if (v <= UINT8_MAX) {
        return put_big_endian(p, 0xCC, v, 1);
    }
    if (v <= UINT16_MAX) {
        return put_big_endian(p, 0xCD, v, 2);
    }
    return v <= UINT32_MAX ? put_big_endian(p, 0xCE, v, 4) : put_big_endian(p, 0xCF, v, 8);
}

static inline uint8_t *put_f64(uint8_t *p, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return put_big_endian(p, 0xCB, bits, 8);
}

static inline uint8_t *put_array(uint8_t *p, uint32_t count)
{
    if (count < 16) {
        *p = (uint8_t)(0x90 | count);
        return p + 1;
    }
    return put_big_endian(p, 0xDC, count, 2);
}

static inline uint8_t *put_map(uint8_t *p, uint32_t count)
{
    if (count < 16) {
        *p = (uint8_t)(0x80 | count);
        return p + 1;
    }
    return put_big_endian(p, 0xDE, count, 2);
}

static inline uint8_t *put_str(uint8_t *p, const void *text, size_t bytes)
{
    if (bytes < 32) {
        *p++ = (uint8_t)(0xA0 | bytes);
    } else {
        p = bytes <= UINT8_MAX ? put_big_endian(p, 0xD9, bytes, 1) : put_big_endian(p, 0xDA, bytes, 2);
    }
    copy_short(p, text, bytes);
    return p + bytes;
}

#endif
