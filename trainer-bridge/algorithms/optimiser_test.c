#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/algorithms/adam.h"
#include "trainer-bridge/algorithms/clip_norm.h"
#include "trainer-bridge/algorithms/normalise.h"
#include "trainer-bridge/algorithms/schedule.h"
#include <math.h>

#define N 77u

static void adam_follows_the_paper_in_double(void **state)
{
    (void)state;
    struct corral_adam_config c = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-5};
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    float w[N], m[N] = {0}, v[N] = {0}, g[N];
    double rw[N], rm[N] = {0}, rv[N] = {0};
    for (uint32_t i = 0; i < N; i++) {
        w[i] = (float)corral_rng_normal(&rng);
        rw[i] = w[i];
    }
    for (uint64_t t = 1; t <= 50; t++) {
        for (uint32_t i = 0; i < N; i++) {
            g[i] = (float)corral_rng_normal(&rng);
            double d = 0.5 * (double)g[i];
            rm[i] = 0.9 * rm[i] + 0.1 * d;
            rv[i] = 0.999 * rv[i] + 0.001 * d * d;
            double first = rm[i] / (1 - pow(0.9, (double)t)), second = rv[i] / (1 - pow(0.999, (double)t));
            rw[i] -= 0.01 * first / (sqrt(second) + 1e-5);
        }
        corral_adam(&c, 0.01, t, N, g, 0.5, m, v, w);
    }
    for (uint32_t i = 0; i < N; i++) {
        assert_true(fabs((double)w[i] - rw[i]) < 2e-6 * (1 + fabs(rw[i])));
    }
}

static void adam_leaves_padding_alone(void **state)
{
    (void)state;
    struct corral_adam_config c = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    float w[16] = {0}, m[16] = {0}, v[16] = {0}, g[16] = {1};
    corral_adam(&c, 0.1, 1, 16, g, 1, m, v, w);
    assert_true(w[0] < 0);
    for (uint32_t i = 1; i < 16; i++) {
        assert_true(w[i] == 0);
    }
}

static void the_norm_is_right_and_the_scale_brings_it_down(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    float x[N];
    double sum = 0;
    for (uint32_t i = 0; i < N; i++) {
        x[i] = (float)corral_rng_normal(&rng);
        sum += (double)x[i] * (double)x[i];
    }
    double norm = corral_norm(x, N);
    assert_true(fabs(norm - sqrt(sum)) < 1e-12);
    assert_true(fabs(norm * corral_clip_scale(norm, 0.5) - 0.5) < 1e-12);
    assert_true(corral_clip_scale(norm, 100) == 1 && corral_clip_scale(norm, 0) == 1);
    x[40] = INFINITY;
    assert_false(isfinite(corral_norm(x, N)));
    x[40] = NAN;
    assert_false(isfinite(corral_norm(x, N)));
}

static void merged_moments_equal_those_of_all_numbers(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    double x[300], sum = 0, m2 = 0;
    for (uint32_t i = 0; i < 300; i++) {
        x[i] = 1e6 + corral_rng_normal(&rng);
        sum += x[i];
    }
    for (uint32_t i = 0; i < 300; i++) {
        m2 += (x[i] - sum / 300) * (x[i] - sum / 300);
    }
    struct corral_moments all = {0};
    assert_true(corral_moments_variance(&all) == 1);
    const uint32_t cuts[] = {0, 1, 1, 50, 52, 300};
    for (uint32_t c = 0; c + 1 < 6; c++) {
        struct corral_moments part = {.count = cuts[c + 1] - cuts[c]};
        for (uint32_t i = cuts[c]; i < cuts[c + 1]; i++) {
            part.mean += x[i] / part.count;
        }
        for (uint32_t i = cuts[c]; i < cuts[c + 1]; i++) {
            part.m2 += (x[i] - part.mean) * (x[i] - part.mean);
        }
        corral_moments_merge(&all, part);
    }
    assert_true(all.count == 300 && fabs(all.mean - sum / 300) < 1e-9 && fabs(all.m2 / m2 - 1) < 1e-8);
}

static void whitening_uses_the_sample_deviation(void **state)
{
    (void)state;
    struct corral_whiten w = corral_whiten_of(3, 2, 2); /* 1, 2, 3 */
    assert_true(fabsf(corral_whiten_apply(w, 3) - 1) < 1e-6f && fabsf(corral_whiten_apply(w, 1) + 1) < 1e-6f);
    struct corral_whiten one = corral_whiten_of(1, 5, 0);
    assert_true(corral_whiten_apply(one, 5) == 0);
}

static void explained_variance_is_one_for_a_perfect_value_and_zero_for_a_constant(void **state)
{
    (void)state;
    struct corral_moments target = {.count = 4, .m2 = 8}, none = {.count = 4}, same = target;
    assert_true(corral_explained_variance(&target, &none) == 1);
    assert_true(corral_explained_variance(&target, &same) == 0);
    assert_true(corral_explained_variance(&none, &none) == 0);
}

static void schedules_are_straight_and_held_at_the_ends(void **state)
{
    (void)state;
    assert_true(corral_schedule_linear(1, 3, 0) == 1 && corral_schedule_linear(1, 3, 1) == 3);
    assert_true(corral_schedule_linear(1, 3, 0.5) == 2);
    assert_true(corral_schedule_linear(1, 3, -5) == 1 && corral_schedule_linear(1, 3, 5) == 3);
    assert_true(corral_schedule_linear(1, 3, NAN) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adam_follows_the_paper_in_double),
        cmocka_unit_test(adam_leaves_padding_alone),
        cmocka_unit_test(the_norm_is_right_and_the_scale_brings_it_down),
        cmocka_unit_test(merged_moments_equal_those_of_all_numbers),
        cmocka_unit_test(whitening_uses_the_sample_deviation),
        cmocka_unit_test(explained_variance_is_one_for_a_perfect_value_and_zero_for_a_constant),
        cmocka_unit_test(schedules_are_straight_and_held_at_the_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
