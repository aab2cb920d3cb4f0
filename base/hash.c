#include "base/hash.h"

#include <errno.h>
#define OPENSSL_SUPPRESS_DEPRECATED /* corral_sha256() says why */
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#define XXH_STATIC_LINKING_ONLY /* for the size of the streaming state */
#include <xxhash.h>
/* Chooses AVX2 or AVX-512 when it runs; about twice as fast as the SSE2 that the package is built for. Same digests. */
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#endif

struct corral_digest corral_digest_of(const void *data, size_t bytes)
{
    XXH128_hash_t h = XXH3_128bits(data, bytes);
    return (struct corral_digest){.lo = h.low64, .hi = h.high64};
}

_Static_assert(sizeof(XXH3_state_t) <= sizeof(struct corral_digest_state), "hash.h");
_Static_assert(_Alignof(XXH3_state_t) <= _Alignof(struct corral_digest_state), "hash.h");

/* None of the three can fail with a state that is there. */
void corral_digest_begin(struct corral_digest_state *state)
{
    XXH3_INITSTATE((XXH3_state_t *)state->opaque);
    (void)XXH3_128bits_reset((XXH3_state_t *)state->opaque);
}

void corral_digest_add(struct corral_digest_state *state, const void *data, size_t bytes)
{
    (void)XXH3_128bits_update((XXH3_state_t *)state->opaque, data, bytes);
}

struct corral_digest corral_digest_end(const struct corral_digest_state *state)
{
    XXH128_hash_t h = XXH3_128bits_digest((const XXH3_state_t *)state->opaque);
    return (struct corral_digest){.lo = h.low64, .hi = h.high64};
}

static void format_u64(uint64_t value, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        out[i] = digits[(value >> (60 - 4 * i)) & 15u];
    }
}

void corral_digest_format(struct corral_digest d, char out[CORRAL_DIGEST_TEXT])
{
    format_u64(d.hi, out);
    format_u64(d.lo, out + 16);
    out[32] = '\0';
}

/* libcrypto fails here only when it cannot load its own SHA-256 or has no memory. There is no way to report it and
 * carrying on with a wrong hash would forge a proof or a login, so the process stops.
 * Its plain functions, where it still has them: the way to the same code through its providers takes ten times as long as the hash of a step's record when nothing of it is in the caches. */
void corral_sha256(const void *data, size_t bytes, uint8_t out[32])
{
#ifndef OPENSSL_NO_DEPRECATED_3_0
    SHA256_CTX context;
    int ok = SHA256_Init(&context) == 1 && SHA256_Update(&context, data, bytes) == 1 &&
             SHA256_Final(out, &context) == 1;
#else
    int ok = SHA256(data, bytes, out) != NULL;
#endif
    if (!ok) {
        abort();
    }
}

void corral_hmac_sha256(const void *key, size_t key_bytes, const void *data, size_t bytes, uint8_t out[32])
{
    unsigned int length = 32;
    /* libcrypto takes a NULL key as "the previous one". */
    if (HMAC(EVP_sha256(), key_bytes == 0 ? "" : key, (int)key_bytes, data, bytes, out, &length) == NULL) {
        abort();
    }
}

int corral_bytes_equal(const void *a, const void *b, size_t bytes)
{
    return CRYPTO_memcmp(a, b, bytes) == 0;
}

void corral_random_bytes(void *out, size_t bytes)
{
    uint8_t *to = out;
    while (bytes > 0) {
        ssize_t n = getrandom(to, bytes, 0);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            abort(); /* a kernel without getrandom: no secret made from here would be one */
        }
        to += n;
        bytes -= (size_t)n;
    }
}

void corral_hex(const void *data, size_t bytes, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *from = data;
    for (size_t i = 0; i < bytes; i++) {
        out[2 * i] = digits[from[i] >> 4];
        out[2 * i + 1] = digits[from[i] & 15];
    }
    out[2 * bytes] = '\0';
}
