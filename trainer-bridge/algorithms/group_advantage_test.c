#include "trainer-bridge/algorithms/group_advantage.h"
#include "trainer-bridge/algorithms/test_tokens.h"

static void advantages_match_the_golden_group(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 3};
    const struct corral_groups groups = {.groups = 1, .offsets = offsets};
    const float reward[] = {1, 0, .5f};
    const double expected[3][3] = {{.999998000004, -.999998000004, 0}, {.5, -.5, 0}, {.75, -.75, 0}};
    struct corral_error err;
    for (int kind = 0; kind < 3; kind++) {
        float a[3];
        check_ok(corral_group_advantage(&groups, (enum corral_group_kind)kind, reward, a, &err));
        for (int i = 0; i < 3; i++) {
            NEAR_BY(a[i], expected[kind][i], 1e-7);
        }
    }
}

/* RLOO by its definition: each reward minus the mean of the others. Ragged groups, an empty one among them. */
static void ragged_groups_do_not_mix(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 4, 4, 6, 9};
    const float reward[] = {3, -1, .25f, 7, 1, 2, .1f, .2f, -5};
    const struct corral_groups groups = {.groups = 4, .offsets = offsets};
    struct corral_error err;
    float a[9];
    check_ok(corral_group_advantage(&groups, CORRAL_GROUP_RLOO, reward, a, &err));
    for (uint32_t g = 0; g < 4; g++) {
        for (uint32_t i = offsets[g]; i < offsets[g + 1]; i++) {
            double others = 0;
            for (uint32_t k = offsets[g]; k < offsets[g + 1]; k++) {
                others += k == i ? 0 : (double)reward[k];
            }
            NEAR(a[i], (double)reward[i] - others / (offsets[g + 1] - offsets[g] - 1));
        }
    }
}

static void a_group_of_one_has_its_reward_as_advantage(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 1};
    const struct corral_groups groups = {.groups = 1, .offsets = offsets};
    const float reward = 2.5f;
    struct corral_error err;
    for (int kind = 0; kind < 3; kind++) {
        float a;
        check_ok(corral_group_advantage(&groups, (enum corral_group_kind)kind, &reward, &a, &err));
        NEAR(a, kind == CORRAL_GROUP_GRPO ? 2.5 / (1 + 1e-6) : 2.5);
    }
}

static void equal_rewards_have_advantage_exactly_zero(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 7};
    const struct corral_groups groups = {.groups = 1, .offsets = offsets};
    struct corral_error err;
    const float rewards[] = {0.1f, 1.0f / 3, -1e30f, 0, 1e-40f};
    for (size_t k = 0; k < CORRAL_COUNT_OF(rewards); k++) {
        for (int kind = 0; kind < 3; kind++) {
            float reward[7], a[7];
            for (int i = 0; i < 7; i++) {
                reward[i] = rewards[k];
            }
            check_ok(corral_group_advantage(&groups, (enum corral_group_kind)kind, reward, a, &err));
            for (int i = 0; i < 7; i++) {
                assert_true(a[i] == 0);
            }
        }
    }
}

static void a_void_episode_is_no_part_of_its_group(void **state)
{
    (void)state;
    const uint32_t all[] = {0, 4}, three[] = {0, 3};
    const uint8_t valid[] = {1, 1, 0, 1}, none[] = {0, 0, 0, 0};
    const float reward[] = {1, 0, NAN, .5f}, without[] = {1, 0, .5f};
    struct corral_groups groups = {.groups = 1, .offsets = all, .valid = valid};
    const struct corral_groups plain = {.groups = 1, .offsets = three};
    struct corral_error err;
    for (int kind = 0; kind < 3; kind++) {
        float a[4], b[3];
        check_ok(corral_group_advantage(&groups, (enum corral_group_kind)kind, reward, a, &err));
        check_ok(corral_group_advantage(&plain, (enum corral_group_kind)kind, without, b, &err));
        assert_true(a[0] == b[0] && a[1] == b[1] && a[2] == 0 && a[3] == b[2]);
    }
    groups.valid = none;
    float a[4] = {9, 9, 9, 9};
    check_ok(corral_group_advantage(&groups, CORRAL_GROUP_GRPO, reward, a, &err));
    assert_true(a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == 0);
}

static void the_largest_rewards_stay_finite(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 2};
    const struct corral_groups groups = {.groups = 1, .offsets = offsets};
    const float reward[] = {CORRAL_REWARD_MAX, -CORRAL_REWARD_MAX};
    struct corral_error err;
    for (int kind = 0; kind < 3; kind++) {
        float a[2];
        check_ok(corral_group_advantage(&groups, (enum corral_group_kind)kind, reward, a, &err));
        assert_true(isfinite(a[0]) && a[0] > 0 && a[1] == -a[0]);
    }
}

static void refuses_bad_groups_and_leaves_the_output_alone(void **state)
{
    (void)state;
    const uint32_t good[] = {0, 2}, falling[] = {0, 2, 1};
    const float bad[][2] = {{1, NAN}, {INFINITY, 0}, {0, -2e30f}};
    struct corral_groups groups = {.groups = 1, .offsets = good};
    struct corral_error err;
    float a[2] = {9, 9};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        check_status(corral_group_advantage(&groups, CORRAL_GROUP_GRPO, bad[i], a, &err), CORRAL_INVALID);
    }
    check_status(corral_group_advantage(&groups, (enum corral_group_kind)3, bad[0], a, &err), CORRAL_INVALID);
    groups = (struct corral_groups){.groups = 2, .offsets = falling};
    const float fine[] = {0, 1};
    check_status(corral_group_advantage(&groups, CORRAL_GROUP_GRPO, fine, a, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "group 1"));
    assert_true(a[0] == 9 && a[1] == 9);
    groups = (struct corral_groups){0};
    check_ok(corral_group_advantage(&groups, CORRAL_GROUP_GRPO, NULL, NULL, &err));
    assert_int_equal(corral_group_select(&groups, NULL, NULL), 0);
}

static void dynamic_sampling_keeps_the_groups_that_differ(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 3, 6, 7, 7, 10, 13};
    const float outcome[] = {1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, NAN, 1};
    const uint8_t valid[] = {1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1};
    const struct corral_groups groups = {.groups = 6, .offsets = offsets, .valid = valid};
    uint8_t keep[6];
    assert_int_equal(corral_group_select(&groups, outcome, keep), 1);
    /* all right; mixed; one; none; differs only by a void episode; not a number */
    const uint8_t expected[] = {0, 1, 0, 0, 0, 0};
    assert_memory_equal(keep, expected, 6);
}

static void overlong_responses_pay_linearly_up_to_the_factor(void **state)
{
    (void)state;
    struct corral_overlong c = {.max = 100, .buffer = 20, .factor = 2};
    const uint32_t length[] = {0, 80, 81, 90, 100, 101, UINT32_MAX};
    const double expected[] = {1, 1, .9, 0, -1, -1, -1};
    float reward[] = {1, 1, 1, 1, 1, 1, 1};
    struct corral_error err;
    check_ok(corral_overlong_check(&c, &err));
    corral_overlong_shape(&c, 7, length, reward);
    for (int i = 0; i < 7; i++) {
        NEAR(reward[i], expected[i]);
    }
    c.buffer = 0;
    float hard[] = {0, 0};
    corral_overlong_shape(&c, 2, length + 4, hard);
    assert_true(hard[0] == 0 && hard[1] == -2);
    c.buffer = 101;
    check_status(corral_overlong_check(&c, &err), CORRAL_INVALID);
    c = (struct corral_overlong){.max = 10, .buffer = 1, .factor = NAN};
    check_status(corral_overlong_check(&c, &err), CORRAL_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(advantages_match_the_golden_group),
        cmocka_unit_test(ragged_groups_do_not_mix),
        cmocka_unit_test(a_group_of_one_has_its_reward_as_advantage),
        cmocka_unit_test(equal_rewards_have_advantage_exactly_zero),
        cmocka_unit_test(a_void_episode_is_no_part_of_its_group),
        cmocka_unit_test(the_largest_rewards_stay_finite),
        cmocka_unit_test(refuses_bad_groups_and_leaves_the_output_alone),
        cmocka_unit_test(dynamic_sampling_keeps_the_groups_that_differ),
        cmocka_unit_test(overlong_responses_pay_linearly_up_to_the_factor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
