#include "tests/check.h"
#include "transport/weights/delta/chain.h"

#include <string.h>

#define ELEMENTS 20000u
#define VERSIONS 6u

static uint16_t version[VERSIONS + 1][ELEMENTS]; /* from 1 */
static uint8_t delta[VERSIONS + 1][ELEMENTS * 3];
static size_t bytes[VERSIONS + 1];

static struct corral_delta_version name_of(uint32_t v)
{
    return (struct corral_delta_version){v, corral_digest_of(version[v], sizeof version[v])};
}

static struct corral_delta_part part_of(uint32_t base, uint32_t next)
{
    return (struct corral_delta_part){.element_bytes = 2,
                                      .elements = ELEMENTS,
                                      .total = ELEMENTS,
                                      .base = name_of(base),
                                      .next = name_of(next)};
}

static int make_versions(void **state)
{
    (void)state;
    struct corral_error err;
    for (uint32_t v = 2; v <= VERSIONS; v++) {
        memcpy(version[v], version[v - 1], sizeof version[v]);
        for (uint32_t i = v; i < ELEMENTS; i += 50 * v) {
            version[v][i]++;
        }
        struct corral_delta_part part = part_of(v - 1, v);
        if (corral_delta_encode(&part, version[v - 1], version[v], delta[v], sizeof delta[v], &bytes[v], NULL,
                                &err) != CORRAL_OK) {
            return -1;
        }
    }
    return 0;
}

static void brings_an_old_copy_to_the_newest_version(void **state)
{
    (void)state;
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_delta_chain_destroyp) struct corral_delta_chain *chain = NULL;
    check_ok(corral_delta_chain_create(&chain, 1u << 20, &err));
    for (uint32_t v = 2; v <= VERSIONS; v++) {
        check_ok(corral_delta_chain_add(chain, delta[v], bytes[v], &err));
    }
    for (uint32_t from = 1; from <= VERSIONS; from++) {
        for (uint32_t to = from; to <= VERSIONS; to++) {
            uint16_t copy[ELEMENTS];
            struct corral_digest digest;
            struct corral_delta_part holds = part_of(from, from);
            memcpy(copy, version[from], sizeof copy);
            check_ok(corral_delta_chain_bring(chain, &holds, to, copy, &digest, &err));
            assert_memory_equal(copy, version[to], sizeof copy);
            assert_true(corral_digest_equal(digest, name_of(to).digest));
        }
    }
}

static void drops_the_oldest_and_says_what_is_missing(void **state)
{
    (void)state;
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_delta_chain_destroyp) struct corral_delta_chain *chain = NULL;
    uint64_t room = bytes[5] + bytes[6] + 10;
    check_ok(corral_delta_chain_create(&chain, room, &err));
    for (uint32_t v = 2; v <= VERSIONS; v++) {
        enum corral_status status = corral_delta_chain_add(chain, delta[v], bytes[v], &err);
        assert_true(status == CORRAL_OK || (status == CORRAL_AGAIN && bytes[v] > room));
        assert_true(corral_delta_chain_bytes(chain) <= room);
    }
    uint16_t copy[ELEMENTS];
    struct corral_digest digest;
    memcpy(copy, version[3], sizeof copy);
    struct corral_delta_part holds = part_of(3, 3);
    check_status(corral_delta_chain_bring(chain, &holds, 6, copy, &digest, &err), CORRAL_NOT_FOUND);
    assert_memory_equal(copy, version[3], sizeof copy);
    memcpy(copy, version[4], sizeof copy);
    holds = part_of(4, 4);
    check_ok(corral_delta_chain_bring(chain, &holds, 6, copy, &digest, &err));
    assert_memory_equal(copy, version[6], sizeof copy);
    corral_delta_chain_clear(chain);
    assert_int_equal(corral_delta_chain_bytes(chain), 0);
    check_status(corral_delta_chain_bring(chain, &holds, 6, copy, &digest, &err), CORRAL_NOT_FOUND);
}

static void a_copy_with_another_digest_is_not_touched(void **state)
{
    (void)state;
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_delta_chain_destroyp) struct corral_delta_chain *chain = NULL;
    check_ok(corral_delta_chain_create(&chain, 1u << 20, &err));
    check_ok(corral_delta_chain_add(chain, delta[2], bytes[2], &err));
    check_ok(corral_delta_chain_add(chain, delta[2], bytes[2], &err));
    assert_int_equal(corral_delta_chain_bytes(chain), bytes[2]);
    struct corral_delta_part holds = part_of(1, 1);
    holds.base.digest.lo ^= 1;
    uint16_t copy[ELEMENTS] = {0};
    struct corral_digest digest;
    check_status(corral_delta_chain_bring(chain, &holds, 2, copy, &digest, &err), CORRAL_NOT_FOUND);
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        assert_int_equal(copy[i], 0);
    }
    check_status(corral_delta_chain_add(chain, delta[2], bytes[2] - 1, &err), CORRAL_PROTOCOL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(brings_an_old_copy_to_the_newest_version),
        cmocka_unit_test(drops_the_oldest_and_says_what_is_missing),
        cmocka_unit_test(a_copy_with_another_digest_is_not_touched),
    };
    return cmocka_run_group_tests(tests, make_versions, NULL);
}
