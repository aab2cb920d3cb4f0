/* Frames of the TCP lane (docs/spec/weights.md) and the socket calls both ends share. Internal to transport/weights. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_WIRE_H
#define CORRAL_TRANSPORT_WEIGHTS_WIRE_H

#include "base/error.h"
#include "base/hash.h"
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define WIRE_MAGIC 0x314c5743u /* "CWL1" */
#define WIRE_HEADER_BYTES 24u
#define WIRE_NONCE_BYTES 32u
#define WIRE_MAC_BYTES 32u
#define WIRE_ERROR_TEXT_MAX 200u
/* The largest payload other than DATA. */
#define WIRE_PAYLOAD_MAX (4u + WIRE_ERROR_TEXT_MAX)
#define WIRE_FRAME_MAX (WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX)

enum wire_type {
    WIRE_HELLO = 1,
    WIRE_CHALLENGE,
    WIRE_PROOF,
    WIRE_WELCOME,
    WIRE_PREPARE,
    WIRE_DATA,
    WIRE_STAGED,
    WIRE_COMMIT,
    WIRE_APPLIED,
    WIRE_ERROR,
};

struct wire_frame {
    uint32_t type;
    uint64_t version, bytes;
};

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

/* Writes WIRE_HEADER_BYTES. */
static inline void wire_put_header(uint8_t *to, enum wire_type type, uint64_t version, uint64_t bytes)
{
    wire_put_u32(to, WIRE_MAGIC);
    wire_put_u32(to + 4, type);
    wire_put_u64(to + 8, version);
    wire_put_u64(to + 16, bytes);
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

/* Checks magic, type, and that the payload has the length of its type (any for DATA, 4 to the maximum for ERROR). */
enum corral_status wire_read_header(const uint8_t *from, struct wire_frame *out, struct corral_error *err);

/* What each end proves. `label` is WIRE_LABEL_*. */
#define WIRE_LABEL_RECEIVER "corral weights receiver"
#define WIRE_LABEL_PUBLISHER "corral weights publisher"
void wire_mac(const uint8_t secret[32], const char *label, uint64_t run, const uint8_t *nonce_p,
              const uint8_t *nonce_r, uint8_t out[WIRE_MAC_BYTES]);

/* "HOST:PORT" or "[V6]:PORT" to an address. A name is looked up, which may block. */
enum corral_status wire_resolve(const char *endpoint, struct sockaddr_storage *out, socklen_t *length,
                                struct corral_error *err);
/* "192.0.2.7:4711" or "[::1]:4711". */
void wire_format_address(const struct sockaddr_storage *address, char *out, size_t out_bytes);
/* TCP_NODELAY, and keep-alive that finds a dead host within about 30 s. */
void wire_tune_socket(int fd);

#endif
