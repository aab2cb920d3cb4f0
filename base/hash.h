/* XXH3-128 for data that may be damaged, SHA-256 (libcrypto) for data that must resist tampering. Any thread. */
#ifndef CORRAL_BASE_HASH_H
#define CORRAL_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct corral_digest {
    uint64_t lo, hi;
};

struct corral_digest corral_digest_of(const void *data, size_t bytes);
/* The same of bytes that come in pieces: begin, add …, end. No allocation. */
struct corral_digest_state {
    _Alignas(64) uint8_t opaque[640];
};
void corral_digest_begin(struct corral_digest_state *state);
void corral_digest_add(struct corral_digest_state *state, const void *data, size_t bytes);
struct corral_digest corral_digest_end(const struct corral_digest_state *state);
static inline int corral_digest_equal(struct corral_digest a, struct corral_digest b)
{
    return a.lo == b.lo && a.hi == b.hi;
}
#define CORRAL_DIGEST_TEXT 33
void corral_digest_format(struct corral_digest d,
                          char out[CORRAL_DIGEST_TEXT]); /* 32 lower-case hex digits, hi first */

void corral_sha256(const void *data, size_t bytes, uint8_t out[32]);
void corral_hmac_sha256(const void *key, size_t key_bytes, const void *data, size_t bytes, uint8_t out[32]);
/* Constant-time comparison. */
int corral_bytes_equal(const void *a, const void *b, size_t bytes);
/* Fill with random bytes from the kernel; never fails once booted (retries EINTR). */
void corral_random_bytes(void *out, size_t bytes);
void corral_hex(const void *data, size_t bytes, char *out /* 2*bytes+1 */);

#endif
