/* The routing-id map against a plain array, and the ring of known strangers. */
#include "tests/check.h"

#include "base/rng.h"
#include "transport/bus/idmap.h"
#include <string.h>

#define KEYS 300

static void agrees_with_a_plain_array(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct corral_rng rng;
        struct corral_idmap m;
        int values[KEYS];
        bool present[KEYS] = {false};
        uint32_t count = 0, count_max = 100;
        corral_rng_seed(&rng, seed);
        assert_true(corral_idmap_init(&m, count_max));
        for (int step = 0; step < 5000; step++) {
            uint32_t k = (uint32_t)corral_rng_below(&rng, KEYS), key = k * 0x01000193u;
            if (corral_rng_below(&rng, 2) == 0) {
                bool fits = present[k] || count < count_max;
                assert_int_equal(corral_idmap_put(&m, key, &values[k]), fits);
                count += fits && !present[k];
                present[k] = fits;
            } else {
                corral_idmap_remove(&m, key);
                count -= present[k];
                present[k] = false;
            }
            assert_int_equal(m.count, count);
        }
        for (uint32_t k = 0; k < KEYS; k++) {
            assert_ptr_equal(corral_idmap_get(&m, k * 0x01000193u), present[k] ? &values[k] : NULL);
        }
        corral_idmap_free(&m);
    }
}

static void a_stranger_is_new_once(void **state)
{
    (void)state;
    struct corral_idring ring = {.used = 0};
    assert_false(corral_idring_seen(&ring, 1));
    assert_true(corral_idring_seen(&ring, 1));
    for (uint32_t id = 2; id < 2 + CORRAL_IDRING_MAX; id++) {
        assert_false(corral_idring_seen(&ring, id));
    }
    assert_false(corral_idring_seen(&ring, 1)); /* pushed out by the others */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_a_plain_array),
        cmocka_unit_test(a_stranger_is_new_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
