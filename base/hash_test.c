#include "base/error.h"
#include "tests/check.h"

#include "base/hash.h"

#include <string.h>

static void formats_a_digest_high_half_first(void **state)
{
    (void)state;
    char text[CORRAL_DIGEST_TEXT];
    corral_digest_format((struct corral_digest){.lo = 0x00000000000000ffu, .hi = 0x0123456789abcdefu}, text);
    assert_string_equal(text, "0123456789abcdef00000000000000ff");
}

/* XXH3-128 with seed 0 of no bytes, from xxHash's own test vectors. */
static void digest_is_xxh3_128(void **state)
{
    (void)state;
    char text[CORRAL_DIGEST_TEXT];
    corral_digest_format(corral_digest_of("", 0), text);
    assert_string_equal(text, "99aa06d3014798d86001c324468d497f");
    assert_false(corral_digest_equal(corral_digest_of("a", 1), corral_digest_of("b", 1)));
    assert_true(corral_digest_equal(corral_digest_of("a", 1), corral_digest_of("a", 1)));
}

/* FIPS 180-2, appendix B.1. */
static void sha256_matches_the_standard(void **state)
{
    (void)state;
    uint8_t sum[32];
    char text[65];
    corral_sha256("abc", 3, sum);
    corral_hex(sum, sizeof sum, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/* RFC 4231, test case 2. */
static void hmac_matches_the_standard(void **state)
{
    (void)state;
    uint8_t sum[32];
    char text[65];
    corral_hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, sum);
    corral_hex(sum, sizeof sum, text);
    assert_string_equal(text, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

static void hmac_takes_an_empty_key(void **state)
{
    (void)state;
    uint8_t sum[32];
    char text[65];
    corral_hmac_sha256(NULL, 0, "", 0, sum);
    corral_hex(sum, sizeof sum, text);
    assert_string_equal(text, "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}

static void compares_bytes(void **state)
{
    (void)state;
    assert_true(corral_bytes_equal("abcd", "abcd", 4));
    assert_false(corral_bytes_equal("abcd", "abce", 4));
    assert_true(corral_bytes_equal("abcd", "abce", 3));
    assert_true(corral_bytes_equal("", "x", 0));
}

static void random_bytes_fill_the_whole_buffer(void **state)
{
    (void)state;
    uint8_t seen[1024] = {0}, bytes[1024];
    for (int round = 0; round < 8; round++) {
        corral_random_bytes(bytes, sizeof bytes);
        for (size_t i = 0; i < sizeof bytes; i++) {
            seen[i] |= bytes[i];
        }
    }
    for (size_t i = 0; i < sizeof seen; i++) {
        assert_int_not_equal(seen[i], 0); /* eight zero bytes in one place: 1 in 2^54 over the buffer */
    }
}

static void a_digest_in_pieces_is_that_of_the_whole(void **state)
{
    (void)state;
    uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)(i * 7 + i / 251);
    }
    for (size_t bytes = 0; bytes <= sizeof data; bytes += bytes < 600 ? 1 : 317) {
        struct corral_digest_state s;
        corral_digest_begin(&s);
        for (size_t at = 0, piece = 1; at < bytes; at += piece, piece = piece * 3 % 701 + 1) {
            piece = CORRAL_MIN(piece, bytes - at);
            corral_digest_add(&s, data + at, piece);
        }
        assert_true(corral_digest_equal(corral_digest_end(&s), corral_digest_of(data, bytes)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_digest_in_pieces_is_that_of_the_whole),
        cmocka_unit_test(formats_a_digest_high_half_first),
        cmocka_unit_test(digest_is_xxh3_128),
        cmocka_unit_test(sha256_matches_the_standard),
        cmocka_unit_test(hmac_matches_the_standard),
        cmocka_unit_test(hmac_takes_an_empty_key),
        cmocka_unit_test(compares_bytes),
        cmocka_unit_test(random_bytes_fill_the_whole_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
