/* Numbers in frames, and the socket calls that both ends of a connection share. Internal to transport/weights. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_WIRE_H
#define CORRAL_TRANSPORT_WEIGHTS_WIRE_H

#include "base/error.h"
#include "base/hash.h"
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define WIRE_NONCE_BYTES 32u
#define WIRE_MAC_BYTES 32u

static inline void wire_put_u64(uint8_t *to, uint64_t value)
{
    value = htole64(value);
    __builtin_memcpy(to, &value, sizeof value);
}

static inline uint64_t wire_get_u64(const uint8_t *from)
{
    uint64_t value;
    __builtin_memcpy(&value, from, sizeof value);
    return le64toh(value);
}

static inline void wire_put_u32(uint8_t *to, uint32_t value)
{
    value = htole32(value);
    __builtin_memcpy(to, &value, sizeof value);
}

static inline uint32_t wire_get_u32(const uint8_t *from)
{
    uint32_t value;
    __builtin_memcpy(&value, from, sizeof value);
    return le32toh(value);
}

static inline void wire_put_digest(uint8_t *to, struct corral_digest d)
{
    wire_put_u64(to, d.lo);
    wire_put_u64(to + 8, d.hi);
}

static inline struct corral_digest wire_get_digest(const uint8_t *from)
{
    return (struct corral_digest){.lo = wire_get_u64(from), .hi = wire_get_u64(from + 8)};
}

/* "HOST:PORT" or "[V6]:PORT" to an address. A name is looked up, which may block. */
enum corral_status wire_resolve(const char *endpoint, struct sockaddr_storage *out, socklen_t *length,
                                struct corral_error *err);
/* "192.0.2.7:4711" or "[::1]:4711". */
void wire_format_address(const struct sockaddr_storage *address, char *out, size_t out_bytes);
/* TCP_NODELAY, and keep-alive that finds a dead host within about 30 s. */
void wire_tune_socket(int fd);

#endif
