#include "trainer-bridge/algorithms/gae.h"
#include "trainer-bridge/algorithms/group_advantage.h"
#include "trainer-bridge/algorithms/test_tokens.h"
#include "trainer-bridge/algorithms/token_gae.h"
#include "trainer-bridge/algorithms/token_returns.h"
#include "trainer-bridge/algorithms/token_vtrace.h"

static const double golden_whitened[3] = {1.186611, -0.847579, 0.169516};

static void reinforce_pp_gives_the_golden_numbers(void **state)
{
    (void)state;
    struct golden g = golden_batch();
    float reward[6] = {0}, a[6];
    corral_token_outcome(&g.t, g.reward, reward);
    assert_true(reward[1] == 1 && reward[4] == 0 && reward[5] == .5f && reward[0] == 0);
    corral_token_returns(&g.t, reward, 1.0, a);
    struct corral_moments m = corral_tokens_moments(&g.t, a);
    corral_tokens_whiten(&g.t, &m, a, a);
    for (uint32_t s = 0; s < 3; s++) {
        for (uint32_t i = g.t.offsets[s]; i < g.t.offsets[s + 1]; i++) {
            NEAR(a[i], golden_whitened[s]);
        }
    }
}

static void reinforce_pp_with_a_group_baseline_gives_the_golden_numbers(void **state)
{
    (void)state;
    struct golden g = golden_batch();
    const uint32_t offsets[] = {0, 3};
    const struct corral_groups groups = {.groups = 1, .offsets = offsets};
    struct corral_error err;
    float per_sequence[3], a[6];
    check_ok(corral_group_advantage(&groups, CORRAL_GROUP_DR_GRPO, g.reward, per_sequence, &err));
    corral_tokens_broadcast(&g.t, per_sequence, a);
    struct corral_moments m = corral_tokens_moments(&g.t, a);
    corral_tokens_whiten(&g.t, &m, a, a);
    for (uint32_t s = 0; s < 3; s++) {
        for (uint32_t i = g.t.offsets[s]; i < g.t.offsets[s + 1]; i++) {
            NEAR(a[i], golden_whitened[s]);
        }
    }
}

/* The definition, forward: the sum over later decisions of gamma^k times the reward between that decision and the next. */
static void returns_match_the_sum_over_decisions(void **state)
{
    (void)state;
    static struct ragged g;
    static float returns[RAGGED_TOKENS_MAX];
    const double gamma = 0.93;
    for (uint64_t seed = 1; seed < 6; seed++) {
        ragged_fill(&g, seed);
        corral_token_returns(&g.t, g.reward, gamma, returns);
        for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
            for (uint32_t i = g.offsets[s]; i < g.offsets[s + 1]; i++) {
                double sum = 0, weight = 1;
                for (uint32_t k = i; g.mask[i] && k < g.offsets[s + 1]; k++) {
                    weight *= k > i && g.mask[k] ? gamma : 1;
                    sum += weight * (double)g.reward[k];
                }
                NEAR(returns[i], sum);
            }
        }
    }
}

static void whitening_by_merged_moments_is_that_of_the_whole_batch(void **state)
{
    (void)state;
    static struct ragged g;
    static float whole[RAGGED_TOKENS_MAX], pieces[RAGGED_TOKENS_MAX];
    ragged_fill(&g, 3);
    struct corral_moments all = corral_tokens_moments(&g.t, g.advantage), merged = {0};
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s += 8) {
        struct corral_tokens view = ragged_view(&g, s, 8);
        corral_moments_merge(&merged, corral_tokens_moments(&view, g.advantage));
    }
    assert_true(merged.count == all.count);
    NEAR_BY(merged.mean, all.mean, 1e-14);
    NEAR_BY(merged.m2, all.m2, 1e-12);
    corral_tokens_whiten(&g.t, &all, g.advantage, whole);
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s += 8) {
        struct corral_tokens view = ragged_view(&g, s, 8);
        corral_tokens_whiten(&view, &merged, g.advantage, pieces);
    }
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < g.n; i++) {
        NEAR(pieces[i], whole[i]);
        assert_true(g.mask[i] || whole[i] == 0);
        sum += (double)whole[i];
        squares += (double)whole[i] * (double)whole[i];
    }
    NEAR_BY(sum / all.count, 0, 1e-6);
    NEAR_BY(squares / (all.count - 1), 1, 1e-5);
}

static void whitening_one_token_equal_tokens_or_none_is_defined(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 3};
    const uint8_t one[] = {0, 1, 0}, all[] = {1, 1, 1}, none[] = {0, 0, 0};
    const uint8_t *const masks[] = {one, all, none};
    for (int k = 0; k < 3; k++) {
        struct corral_tokens t = {.sequences = 1, .offsets = offsets, .mask = masks[k]};
        float x[] = {.1f, .1f, .1f};
        struct corral_moments m = corral_tokens_moments(&t, x);
        corral_tokens_whiten(&t, &m, x, x);
        assert_true(x[0] == 0 && x[1] == 0 && x[2] == 0);
    }
    struct corral_tokens empty = {0};
    struct corral_moments m = corral_tokens_moments(&empty, NULL);
    assert_true(m.count == 0);
    corral_tokens_whiten(&empty, &m, NULL, NULL);
}

/* The golden row of four steps is two sequences: an episode that ended, and one that is cut. */
static void gae_gives_the_golden_numbers(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 2, 4};
    const uint8_t mask[] = {1, 1, 1, 1};
    const struct corral_tokens t = {.sequences = 2, .offsets = offsets, .mask = mask};
    const float reward[] = {1, 1, 1, 1}, value[] = {.5f, .4f, .3f, .2f}, bootstrap[] = {0, .1f};
    const struct corral_token_critic critic = {.reward = reward, .value = value, .bootstrap = bootstrap};
    const double advantage[] = {1.4603, .6, 1.74351, .899}, returns[] = {1.9603, 1, 2.043509, 1.099};
    float a[4], r[4];
    corral_token_gae(&t, &critic, .99, .95, a, r);
    for (int i = 0; i < 4; i++) {
        NEAR(a[i], advantage[i]);
        NEAR(r[i], returns[i]);
    }
}

static void vtrace_gives_the_golden_numbers(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 5};
    const uint8_t mask[] = {1, 1, 1, 1, 1};
    const struct corral_tokens t = {.sequences = 1, .offsets = offsets, .mask = mask};
    const float number[] = {0, 1, 2, 3, 4}, bootstrap[] = {1};
    const struct corral_token_critic critic = {.reward = number, .value = number, .bootstrap = bootstrap};
    const struct corral_vtrace_config c = {
        .gamma = .9, .lambda = 1, .rho_bar = 3.7, .c_bar = 1, .rho_pg = 2.2};
    const double target[] = {.200182, 2.709682, 8.513628, 11.932397, 7.33};
    const double advantage[] = {.200182, 1.709682, 6.513628, 10.876614, 1.98};
    float l[5], behave[5], a[5], vs[5];
    for (int i = 0; i < 5; i++) {
        behave[i] = -4;
        l[i] = -4 + 5 * ((float)i / 5 - .5f);
    }
    corral_token_vtrace(&t, &critic, l, behave, &c, a, vs);
    for (int i = 0; i < 5; i++) {
        NEAR(vs[i], target[i]);
        NEAR(a[i], advantage[i]);
    }
}

/* Token functions on one sequence, gae.h and vtrace.h on one row with the same valid steps: the same numbers. */
static void tokens_and_environment_steps_agree(void **state)
{
    (void)state;
    static struct ragged g;
    static float a[RAGGED_TOKENS_MAX], r[RAGGED_TOKENS_MAX], b[RAGGED_TOKENS_MAX], q[RAGGED_TOKENS_MAX];
    static float log_ratio[RAGGED_TOKENS_MAX];
    static uint8_t never[RAGGED_TOKENS_MAX];
    const struct corral_vtrace_config c = {
        .gamma = .95, .lambda = .8, .rho_bar = 1.1, .c_bar = .9, .rho_pg = 1.3};
    ragged_fill(&g, 11);
    const struct corral_token_critic critic = {
        .reward = g.reward, .value = g.value, .bootstrap = g.per_sequence};
    for (uint32_t i = 0; i < g.n; i++) {
        log_ratio[i] = g.l[i] - g.old[i];
    }
    for (int vtrace = 0; vtrace < 2; vtrace++) {
        if (vtrace) {
            corral_token_vtrace(&g.t, &critic, g.l, g.old, &c, a, r);
        } else {
            corral_token_gae(&g.t, &critic, .97, .9, a, r);
        }
        for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
            uint32_t first = g.offsets[s];
            struct corral_segment row = {.steps = g.offsets[s + 1] - first, .rows = 1};
            row.reward = g.reward + first;
            row.value = g.value + first;
            row.terminated = row.truncated = never;
            row.valid = g.mask + first;
            row.last_value = &g.per_sequence[s];
            if (vtrace) {
                corral_vtrace(&row, log_ratio + first, &c, b + first, q + first);
            } else {
                corral_gae(&row, .97, .9, b + first, q + first);
            }
        }
        for (uint32_t i = 0; i < g.n; i++) {
            NEAR_BY(a[i], b[i], 1e-6);
            NEAR_BY(r[i], q[i], 1e-6);
            assert_true(g.mask[i] || (a[i] == 0 && r[i] == 0));
        }
    }
}

static void an_extreme_log_ratio_keeps_vtrace_finite_and_nan_shows(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 3};
    const uint8_t mask[] = {1, 1, 1};
    const struct corral_tokens t = {.sequences = 1, .offsets = offsets, .mask = mask};
    const float number[] = {1, 1, 1}, behave[] = {-INFINITY, 0, -1e30f};
    float l[] = {0, -INFINITY, 0};
    const struct corral_token_critic critic = {.reward = number, .value = number};
    const struct corral_vtrace_config c = {
        .gamma = 1, .lambda = 1, .rho_bar = INFINITY, .c_bar = 1, .rho_pg = INFINITY};
    float a[3], vs[3];
    corral_token_vtrace(&t, &critic, l, behave, &c, a, vs);
    for (int i = 0; i < 3; i++) {
        assert_true(isfinite(a[i]) && isfinite(vs[i]));
    }
    l[2] = NAN;
    corral_token_vtrace(&t, &critic, l, behave, &c, a, vs);
    assert_true(isnan(a[2]) && isnan(vs[0]));
}

static void refuses_offsets_that_fall_or_leave_the_arrays(void **state)
{
    (void)state;
    const uint32_t falling[] = {0, 3, 2}, fine[] = {0, 0, 5};
    struct corral_tokens t = {.sequences = 2, .offsets = falling};
    struct corral_error err;
    check_status(corral_tokens_check(&t, 10, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "sequence 1"));
    t.offsets = fine;
    check_status(corral_tokens_check(&t, 4, &err), CORRAL_INVALID);
    check_ok(corral_tokens_check(&t, 5, &err));
    t = (struct corral_tokens){0};
    check_ok(corral_tokens_check(&t, 0, &err));
}

static void an_empty_or_wholly_masked_sequence_keeps_no_reward(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 2, 2, 3};
    const uint8_t mask[] = {0, 0, 1};
    const struct corral_tokens t = {.sequences = 3, .offsets = offsets, .mask = mask};
    const float outcome[] = {5, 5, 5}, value[] = {NAN, NAN, 1};
    float reward[] = {0, 0, 0}, a[3], r[3];
    corral_token_outcome(&t, outcome, reward);
    assert_true(reward[0] == 0 && reward[1] == 0 && reward[2] == 5);
    const struct corral_token_critic critic = {.reward = reward, .value = value};
    corral_token_gae(&t, &critic, 1, 1, a, r);
    assert_true(a[0] == 0 && a[1] == 0 && r[0] == 0 && r[1] == 0 && a[2] == 4 && r[2] == 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reinforce_pp_gives_the_golden_numbers),
        cmocka_unit_test(reinforce_pp_with_a_group_baseline_gives_the_golden_numbers),
        cmocka_unit_test(returns_match_the_sum_over_decisions),
        cmocka_unit_test(whitening_by_merged_moments_is_that_of_the_whole_batch),
        cmocka_unit_test(whitening_one_token_equal_tokens_or_none_is_defined),
        cmocka_unit_test(gae_gives_the_golden_numbers),
        cmocka_unit_test(vtrace_gives_the_golden_numbers),
        cmocka_unit_test(tokens_and_environment_steps_agree),
        cmocka_unit_test(an_extreme_log_ratio_keeps_vtrace_finite_and_nan_shows),
        cmocka_unit_test(refuses_offsets_that_fall_or_leave_the_arrays),
        cmocka_unit_test(an_empty_or_wholly_masked_sequence_keeps_no_reward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
