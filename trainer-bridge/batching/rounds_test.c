#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/rounds.h"

#define WORKERS 5
#define PER 3
#define RECORDS 300

static void *item_of(uint32_t worker, uint32_t number)
{
    return (void *)(uintptr_t)(worker * 10000 + number); /* NOLINT */
}

static void batches_do_not_depend_on_who_was_faster(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    for (int round = 0; round < 20; round++) {
        struct corral_rounds *r;
        check_ok(corral_rounds_create(&r, WORKERS, PER, &err));
        uint32_t next[WORKERS] = {0}, batches = 0, missing;
        for (uint32_t left = WORKERS * RECORDS; left > 0;) {
            uint32_t w = (uint32_t)corral_rng_below(&rng, WORKERS);
            if (next[w] == RECORDS) {
                continue;
            }
            left--;
            check_ok(corral_rounds_add(r, w, item_of(w, next[w]++), &err));
            void *batch[WORKERS * PER];
            while (corral_rounds_take(r, batch) > 0) {
                for (uint32_t i = 0; i < WORKERS * PER; i++) {
                    assert_ptr_equal(batch[i], item_of(i / PER, batches * PER + i % PER));
                }
                batches++;
            }
            uint32_t worst = corral_rounds_waiting_for(r, &missing);
            assert_true(worst < WORKERS && missing == (batches + 1) * PER - next[worst]);
        }
        assert_int_equal(batches, RECORDS / PER);
        corral_rounds_destroy(r);
    }
}

static bool odd(void *ctx, void *item)
{
    (*(uint32_t *)ctx)++;
    return (uintptr_t)item % 2 == 1;
}

static void what_is_dropped_is_in_no_batch_and_is_missing_again(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rounds *r;
    void *batch[2];
    uint32_t seen = 0, missing;
    check_ok(corral_rounds_create(&r, 2, 1, &err));
    check_ok(corral_rounds_add(r, 0, item_of(0, 2), &err));
    check_ok(corral_rounds_add(r, 1, item_of(1, 1), &err));
    assert_true(corral_rounds_ready(r));
    assert_int_equal(corral_rounds_drop(r, odd, &seen), 1);
    assert_int_equal(seen, 2);
    assert_int_equal(corral_rounds_take(r, batch), 0);
    assert_int_equal(corral_rounds_waiting_for(r, &missing), 1);
    assert_int_equal(missing, 1);
    check_ok(corral_rounds_add(r, 1, item_of(1, 4), &err));
    assert_int_equal(corral_rounds_take(r, batch), 2);
    assert_ptr_equal(batch[1], item_of(1, 4));
    check_status(corral_rounds_add(r, 2, NULL, &err), CORRAL_PROTOCOL);
    corral_rounds_destroy(r);
    check_status(corral_rounds_create(&r, 0, 1, &err), CORRAL_INVALID);
    check_status(corral_rounds_create(&r, 1, 0, &err), CORRAL_INVALID);
    corral_rounds_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_do_not_depend_on_who_was_faster),
        cmocka_unit_test(what_is_dropped_is_in_no_batch_and_is_missing_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
