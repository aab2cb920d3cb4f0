#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/limiter.h"
#include <math.h>
#include <string.h>

static void lets_nobody_sample_below_the_least_size(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_limiter l;
    check_ok(corral_limiter_init(&l, 2, 4, 3, &err));
    for (int i = 0; i < 4; i++) {
        assert_false(corral_limiter_may_sample(&l, 1));
        assert_int_equal(corral_limiter_waits(&l), CORRAL_LIMITER_SAMPLES_WAIT_FOR_SIZE);
        assert_true(corral_limiter_may_insert(&l, 1));
        corral_limiter_inserted(&l, 1);
    }
    assert_true(corral_limiter_may_sample(&l, 1));
    /* diff is 8 of [5, 11]: three samples, or one insert. */
    assert_true(corral_limiter_may_sample(&l, 3));
    assert_false(corral_limiter_may_sample(&l, 4));
    assert_true(corral_limiter_may_insert(&l, 1));
    assert_false(corral_limiter_may_insert(&l, 2));
    corral_limiter_inserted(&l, 1);
    assert_int_equal(corral_limiter_waits(&l), CORRAL_LIMITER_INSERTS_WAIT_FOR_SAMPLES);
    corral_limiter_sampled(&l, 5);
    assert_int_equal(corral_limiter_waits(&l), CORRAL_LIMITER_SAMPLES_WAIT_FOR_INSERTS);
    corral_limiter_deleted(&l, 2);
    assert_int_equal(corral_limiter_waits(&l), CORRAL_LIMITER_SAMPLES_WAIT_FOR_SIZE);
    assert_non_null(
        strstr(corral_limiter_wait_name(CORRAL_LIMITER_INSERTS_WAIT_FOR_SAMPLES), "rollouts wait"));
}

static void refuses_bounds_that_could_block_both_sides(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_limiter l;
    check_status(corral_limiter_init(&l, 0, 1, 1, &err), CORRAL_INVALID);
    check_status(corral_limiter_init(&l, NAN, 1, 1, &err), CORRAL_INVALID);
    check_status(corral_limiter_init(&l, 1, 0, 1, &err), CORRAL_INVALID);
    check_status(corral_limiter_init(&l, 1, 1, 0.9, &err), CORRAL_INVALID);
    check_status(corral_limiter_init(&l, 4, 1, 3, &err), CORRAL_INVALID);
    check_status(corral_limiter_init(&l, 4, 1, NAN, &err), CORRAL_INVALID);
    check_status(corral_limiter_init_bounds(&l, 2, 1, 0, 2.9, &err), CORRAL_INVALID);
    check_status(corral_limiter_init_bounds(&l, 2, 100, 0, 50, &err), CORRAL_INVALID);
    check_ok(corral_limiter_init_bounds(&l, 2, 1, 0, 3, &err));
    check_ok(corral_limiter_init_bounds(&l, 2, 1, -INFINITY, INFINITY, &err));
}

/* Whoever may go on goes on, in random order; one side always may, and the ratio stays inside its bounds from the moment samples begin. */
static void never_blocks_both_sides_and_keeps_the_ratio(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (int round = 0; round < 300; round++) {
        struct corral_limiter l;
        double ratio = exp(corral_rng_range(&rng, -3, 3));
        uint64_t min_size = 1 + corral_rng_below(&rng, 20);
        double buffer = fmax(1, ratio) * corral_rng_range(&rng, 1, 4);
        check_ok(corral_limiter_init(&l, ratio, min_size, buffer, &err));
        uint64_t size = 0;
        for (int i = 0; i < 2000; i++) {
            bool insert = corral_limiter_may_insert(&l, 1), sample = corral_limiter_may_sample(&l, 1);
            assert_true(insert || sample);
            assert_true(size >= min_size || !sample);
            if (insert && (!sample || corral_rng_below(&rng, 2))) {
                corral_limiter_inserted(&l, 1);
                size++;
            } else {
                corral_limiter_sampled(&l, 1);
            }
            if (size > min_size && corral_rng_below(&rng, 4) == 0) {
                corral_limiter_deleted(&l,
                                       1); /* an item that is evicted changes the size and not the ratio */
                size--;
            }
            double diff = (double)l.inserts * ratio - (double)l.samples;
            assert_true(l.inserts <= min_size || diff <= l.max_diff);
            assert_true(l.samples == 0 || diff >= l.min_diff);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lets_nobody_sample_below_the_least_size),
        cmocka_unit_test(refuses_bounds_that_could_block_both_sides),
        cmocka_unit_test(never_blocks_both_sides_and_keeps_the_ratio),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
