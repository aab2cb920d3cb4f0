#include "rollout/env_host/bench.h"
#include "tests/check.h"
#include <string.h>

static struct corral_error err;

static void assert_measured(const struct corral_bench_rate *r)
{
    assert_true(r->low > 0 && r->low <= r->median && r->median <= r->high);
}

static void measures_every_layer(void **state)
{
    (void)state;
    static const char *const ids[] = {"walk/Same-v0", "walk/Off-v0", "walk/Turns-v0", "walk/Smooth-v0"};
    for (size_t i = 0; i < 4; i++) {
        struct corral_bench_config config = {.id = ids[i], .library = WALK_PLUGIN, .envs = 8, .seconds = 0.2};
        struct corral_bench_result r;
        check_ok(corral_env_bench(&config, &r, &err));
        assert_string_equal(r.id, ids[i]);
        assert_int_equal(r.envs, 8);
        assert_int_equal(r.masked, i == 2);
        assert_measured(&r.alone);
        assert_measured(&r.vector);
        assert_measured(&r.isolated);
        assert_measured(&r.policy);
        assert_measured(&r.copy);
        assert_true(r.alone_to_copy > 0);
    }
}

static void says_why_it_cannot_measure(void **state)
{
    (void)state;
    struct corral_bench_config config = {
        .id = "walk/BatchFails-v0", .library = WALK_PLUGIN, .envs = 8, .seconds = 0.1};
    struct corral_bench_result r;
    check_status(corral_env_bench(&config, &r, &err), CORRAL_INFRA);
    assert_non_null(strstr(err.text, "step failed for the whole batch"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measures_every_layer),
        cmocka_unit_test(says_why_it_cannot_measure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
