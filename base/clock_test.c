#include "base/clock.h"
#include "tests/check.h"

static void the_monotonic_clock_never_goes_back(void **state)
{
    (void)state;
    uint64_t last = corral_now_ns(&corral_clock_monotonic);
    assert_true(last > 0);
    for (int i = 0; i < 10000; i++) {
        const uint64_t now = corral_now_ns(&corral_clock_monotonic);
        assert_true(now >= last);
        last = now;
    }
}

static void a_virtual_clock_moves_only_when_told(void **state)
{
    (void)state;
    struct corral_virtual_clock v = {.now_ns = 5};
    const struct corral_clock clock = corral_virtual_clock_use(&v);
    assert_int_equal(corral_now_ns(&clock), 5);
    assert_int_equal(corral_now_ns(&clock), 5);
    v.now_ns += 2 * CORRAL_NS_PER_S;
    assert_int_equal(corral_now_ns(&clock), 2 * CORRAL_NS_PER_S + 5);
}

static void wall_time_is_of_this_century(void **state)
{
    (void)state;
    assert_true(corral_wall_ns() > UINT64_C(1600000000) * CORRAL_NS_PER_S);
    assert_true(corral_wall_ns() < UINT64_C(4102444800) * CORRAL_NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_monotonic_clock_never_goes_back),
        cmocka_unit_test(a_virtual_clock_moves_only_when_told),
        cmocka_unit_test(wall_time_is_of_this_century),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
