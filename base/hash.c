#include "base/hash.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

struct corral_digest corral_digest_of(const void *data, size_t bytes)
{
    XXH128_hash_t h = XXH3_128bits(data, bytes);
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
 * carrying on with a wrong hash would forge a proof or a login, so the process stops. */
void corral_sha256(const void *data, size_t bytes, uint8_t out[32])
{
    if (SHA256(data, bytes, out) == NULL) {
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
