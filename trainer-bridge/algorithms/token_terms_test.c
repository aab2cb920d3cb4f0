#include "trainer-bridge/algorithms/test_tokens.h"
#include "trainer-bridge/algorithms/token_entropy.h"
#include "trainer-bridge/algorithms/token_kl.h"
#include "trainer-bridge/algorithms/token_mismatch.h"
#include "trainer-bridge/algorithms/token_weight.h"

static const uint32_t one_offset[] = {0, 1};
static const uint8_t one_mask[] = {1};
static const struct corral_tokens one_token = {.sequences = 1, .offsets = one_offset, .mask = one_mask};

static void kl_gives_the_golden_numbers(void **state)
{
    (void)state;
    const double expected[] = {.3, .045, .0408182207};
    const float l = -1, ref = -1.3f;
    for (int k = 0; k < 3; k++) {
        const struct corral_token_kl_config c = {.kind = (enum corral_kl_kind)k, .beta = 2};
        struct corral_token_kl_sums loss = {0}, paid = {0};
        float d = 1, reward = 1;
        const double scale = .5;
        corral_token_kl_loss(&c, &one_token, &scale, &l, &ref, &d, &loss);
        corral_token_kl_reward(&c, &one_token, &l, &ref, &reward, &paid);
        NEAR_BY(loss.kl, expected[k], 2e-7);
        NEAR_BY(loss.loss, expected[k], 2e-7);
        NEAR_BY(paid.kl, expected[k], 2e-7);
        NEAR_BY(reward, 1 - 2 * expected[k], 2e-7);
        assert_true(loss.tokens == 1 && paid.tokens == 1 && paid.loss == 0);
    }
}

static double reference_kl(enum corral_kl_kind kind, double x)
{
    x = fmin(fmax(x, -(double)CORRAL_LOG_RATIO_MAX), (double)CORRAL_LOG_RATIO_MAX);
    return kind == CORRAL_KL_K1 ? x : kind == CORRAL_KL_K2 ? x * x / 2 : expm1(-x) + x;
}

static void kl_slopes_match_finite_differences_and_are_added(void **state)
{
    (void)state;
    static struct ragged g;
    static float d[RAGGED_TOKENS_MAX];
    ragged_fill(&g, 5);
    for (int k = 0; k < 6; k++) {
        const struct corral_token_kl_config c = {
            .kind = (enum corral_kl_kind)(k % 3), .k2_slope = k > 2, .beta = .3f};
        struct corral_token_kl_sums sums = {0};
        for (uint32_t i = 0; i < g.n; i++) {
            d[i] = .25f;
        }
        corral_token_kl_loss(&c, &g.t, g.scale, g.l, g.other, d, &sums);
        double loss = 0;
        for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
            for (uint32_t i = g.offsets[s]; i < g.offsets[s + 1]; i++) {
                if (!g.mask[i]) {
                    assert_true(d[i] == .25f);
                    continue;
                }
                enum corral_kl_kind slope = c.k2_slope ? CORRAL_KL_K2 : c.kind;
                double e = 1e-5, x = (double)g.l[i] - (double)g.other[i], f = (double)c.beta * g.scale[s];
                double up = reference_kl(slope, x + e), down = reference_kl(slope, x - e);
                NEAR_BY((double)d[i] - .25, f * (up - down) / (2 * e), 2e-6);
                loss += f * reference_kl(c.kind, x);
            }
        }
        NEAR_BY(sums.loss, loss, 1e-6);
    }
}

/* Plain f32 subtraction would have no digit left, and could be below 0. */
static void k3_of_tiny_differences_keeps_its_digits(void **state)
{
    (void)state;
    const float ref = 0;
    const double scale = 1;
    const struct corral_token_kl_config c = {.kind = CORRAL_KL_K3, .beta = 1};
    for (float x = 1e-5f; x < 2; x *= 1.07f) {
        for (int sign = -1; sign < 2; sign += 2) {
            float l = (float)sign * x, d = 0;
            struct corral_token_kl_sums sums = {0};
            corral_token_kl_loss(&c, &one_token, &scale, &l, &ref, &d, &sums);
            double expected = reference_kl(CORRAL_KL_K3, (double)l);
            assert_true(fabs(sums.kl / expected - 1) < 2e-5);
            assert_true(fabs((double)d / -expm1(-(double)l) - 1) < 2e-6);
        }
    }
}

static void kl_of_extremes_is_finite_without_slope_and_nan_shows(void **state)
{
    (void)state;
    const float ls[] = {-INFINITY, -1e30f, 0, -500}, refs[] = {-1, 0, -INFINITY, -1};
    const double scale = 1;
    for (int k = 0; k < 3; k++) {
        const struct corral_token_kl_config c = {.kind = (enum corral_kl_kind)k, .beta = 1};
        for (int i = 0; i < 4; i++) {
            struct corral_token_kl_sums sums = {0};
            float d = 0, reward = 0;
            corral_token_kl_loss(&c, &one_token, &scale, &ls[i], &refs[i], &d, &sums);
            corral_token_kl_reward(&c, &one_token, &ls[i], &refs[i], &reward, &sums);
            assert_true(isfinite(sums.kl) && isfinite(reward) && d == 0);
        }
        const float broken = NAN;
        struct corral_token_kl_sums sums = {0};
        float d = 0;
        corral_token_kl_loss(&c, &one_token, &scale, &broken, &refs[0], &d, &sums);
        assert_true(isnan(sums.loss));
    }
    struct corral_error err;
    struct corral_token_kl_config bad = {.kind = (enum corral_kl_kind)3};
    check_status(corral_token_kl_check(&bad, &err), CORRAL_INVALID);
    bad = (struct corral_token_kl_config){.beta = -1};
    check_status(corral_token_kl_check(&bad, &err), CORRAL_INVALID);
}

static void kl_as_reward_touches_trained_tokens_only(void **state)
{
    (void)state;
    static struct ragged g;
    static float reward[RAGGED_TOKENS_MAX];
    ragged_fill(&g, 6);
    memcpy(reward, g.reward, sizeof reward);
    const struct corral_token_kl_config c = {.kind = CORRAL_KL_K1, .beta = .1f};
    struct corral_token_kl_sums sums = {0};
    corral_token_kl_reward(&c, &g.t, g.l, g.other, reward, &sums);
    for (uint32_t i = 0; i < g.n; i++) {
        double kl = g.mask[i] ? (double)g.l[i] - (double)g.other[i] : 0;
        NEAR(reward[i], (double)g.reward[i] - (double)c.beta * kl);
    }
}

static void truncated_weights_give_the_golden_numbers(void **state)
{
    (void)state;
    struct golden g = golden_batch();
    const double expected[] = {.951229, 1.105171, 1.105171, 1, 1.349859, 1.051271};
    struct corral_token_weight_config c = {.level = CORRAL_WEIGHT_TOKEN, .high = 2};
    struct corral_token_weight_sums sums = {0};
    float w[6];
    corral_token_weight(&c, &g.t, g.proximal, g.behave, w, &sums);
    for (int i = 0; i < 6; i++) {
        NEAR(w[i], expected[i]);
    }
    assert_true(sums.tokens == 6 && sums.bounded == 0 && sums.rejected == 0);
    NEAR(sums.weight_max, 1.349859);
    c.high = 1.1f;
    sums = (struct corral_token_weight_sums){0};
    corral_token_weight(&c, &g.t, g.proximal, g.behave, w, &sums);
    NEAR(w[1], 1.1);
    NEAR(w[0], .951229);
    assert_true(sums.bounded == 3);
    c.outside = CORRAL_WEIGHT_ZERO;
    corral_token_weight(&c, &g.t, g.proximal, g.behave, w, &sums);
    assert_true(w[1] == 0 && w[2] == 0 && w[4] == 0);
    NEAR(w[5], 1.051271);
}

static double reference_measure(enum corral_weight_measure measure, double x)
{
    switch (measure) {
    case CORRAL_MEASURE_RATIO:
        return exp(x);
    case CORRAL_MEASURE_K1:
        return -x;
    case CORRAL_MEASURE_K2:
        return x * x / 2;
    case CORRAL_MEASURE_K3:
        return expm1(x) - x;
    }
    return 0;
}

/* Of one sequence: the sums that its weights need. */
struct survey {
    double n, sum, measure;
};

static struct survey survey_of(const struct ragged *g, uint32_t s, enum corral_weight_measure measure)
{
    struct survey v = {0};
    for (uint32_t i = g->offsets[s]; i < g->offsets[s + 1]; i++) {
        double x = g->mask[i] ? (double)g->l[i] - (double)g->old[i] : 0;
        v.n += g->mask[i];
        v.sum += x;
        v.measure += g->mask[i] ? reference_measure(measure, x) : 0;
    }
    v.measure = measure == CORRAL_MEASURE_RATIO ? exp(v.sum / v.n) : v.measure / v.n;
    return v;
}

static void compare_weights(const struct ragged *g, const struct corral_token_weight_config *c,
                            double *rejected)
{
    static float w[RAGGED_TOKENS_MAX];
    struct corral_token_weight_sums sums = {0};
    double total = 0, squares = 0;
    corral_token_weight(c, &g->t, g->l, g->old, w, &sums);
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
        struct survey v = survey_of(g, s, c->measure);
        for (uint32_t i = g->offsets[s]; i < g->offsets[s + 1]; i++) {
            if (!g->mask[i]) {
                assert_true(w[i] == 0);
                continue;
            }
            double x = (double)g->l[i] - (double)g->old[i];
            const double by[] = {1, exp(x), exp(fmin(fmax(v.sum, -20), 20)), exp(v.sum / v.n)};
            const double low = (double)c->low, high = (double)c->high;
            double raw = by[c->level], measure = reference_measure(c->measure, x);
            bool outside = c->level != CORRAL_WEIGHT_NONE && (raw < low || raw > high);
            double expected = !outside                           ? raw
                              : c->outside == CORRAL_WEIGHT_ZERO ? 0
                                                                 : fmin(fmax(raw, low), high);
            measure = c->reject == CORRAL_WEIGHT_SEQUENCE ? v.measure : measure;
            if (c->reject != CORRAL_WEIGHT_NONE &&
                (measure < (double)c->reject_low || measure > (double)c->reject_high)) {
                expected = 0;
                *rejected += 1;
            }
            NEAR_BY(w[i], expected, 5e-6);
            total += expected;
            squares += expected * expected;
        }
    }
    NEAR_BY(sums.weight, total, 1e-5);
    NEAR_BY(sums.weight_squares, squares, 1e-5);
    assert_true(sums.broken == 0);
}

static void weights_match_their_definitions_at_every_level(void **state)
{
    (void)state;
    static struct ragged g;
    const float low[] = {.7f, -.3f, -1, 0}, high[] = {1.4f, .3f, .2f, .2f};
    ragged_fill(&g, 51);
    for (int level = 0; level < 4; level++) {
        for (int outside = 0; outside < 2; outside++) {
            for (int reject = 0; reject < 3; reject++) {
                for (int measure = 0; measure < 4; measure++) {
                    struct corral_token_weight_config c = {.low = .5f, .high = 1.8f};
                    c.level = (enum corral_weight_level)level;
                    c.outside = (enum corral_weight_outside)outside;
                    c.reject = (enum corral_weight_level)reject;
                    c.measure = (enum corral_weight_measure)measure;
                    c.reject_low = low[measure];
                    c.reject_high = high[measure];
                    double rejected = 0;
                    struct corral_error err;
                    check_ok(corral_token_weight_check(&c, &err));
                    compare_weights(&g, &c, &rejected);
                    assert_true((rejected > 5) == (reject > 0));
                }
            }
        }
    }
}

static void broken_and_extreme_log_probs_have_defined_weights(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 3, 5, 7};
    const uint8_t mask[] = {1, 1, 1, 1, 1, 1, 1};
    const struct corral_tokens t = {.sequences = 3, .offsets = offsets, .mask = mask};
    const float proximal[] = {-1, -INFINITY, -1, -1, -1, -1, -INFINITY};
    const float behave[] = {-INFINITY, -INFINITY, -1, -INFINITY, -1e30f, -INFINITY, -1};
    for (int level = 0; level < 4; level++) {
        struct corral_token_weight_config c = {.level = (enum corral_weight_level)level, .high = 2};
        struct corral_token_weight_sums sums = {0};
        float w[7];
        corral_token_weight(&c, &t, proximal, behave, w, &sums);
        bool whole = level > CORRAL_WEIGHT_TOKEN;
        assert_true(w[1] == 0 && sums.broken == (whole ? 3 : 1));
        assert_true(whole ? w[0] == 0 && w[2] == 0 : w[2] == 1);
        assert_true(w[3] == (level ? 2 : 1) && w[4] == w[3]);
        /* opposite infinities */
        assert_true(whole ? w[5] == 1 && w[6] == 1 : w[5] == w[3] && w[6] <= 1);
        assert_true(isfinite(sums.weight) && isfinite(sums.weight_max));
    }
    struct corral_token_weight_sums sums = {0};
    const struct corral_token_weight_config c = {.level = CORRAL_WEIGHT_SEQUENCE, .high = 2};
    corral_token_weight(&c, &(struct corral_tokens){0}, NULL, NULL, NULL, &sums);
    assert_true(sums.tokens == 0);
}

static void refuses_bad_weight_settings(void **state)
{
    (void)state;
    const struct corral_token_weight_config bad[] = {
        {.level = (enum corral_weight_level)4},
        {.reject = CORRAL_WEIGHT_GEOMETRIC, .reject_high = 1},
        {.level = CORRAL_WEIGHT_TOKEN, .low = -1, .high = 1},
        {.level = CORRAL_WEIGHT_TOKEN, .low = 2, .high = 1},
        {.level = CORRAL_WEIGHT_TOKEN, .high = INFINITY},
        {.level = CORRAL_WEIGHT_TOKEN, .low = NAN, .high = 1},
        {.level = CORRAL_WEIGHT_TOKEN, .high = 1, .outside = (enum corral_weight_outside)2},
        {.reject = CORRAL_WEIGHT_TOKEN, .measure = (enum corral_weight_measure)4, .reject_high = 1},
        {.reject = CORRAL_WEIGHT_TOKEN, .reject_low = 1, .reject_high = 0},
        {.reject = CORRAL_WEIGHT_TOKEN, .reject_high = NAN},
    };
    struct corral_error err;
    for (size_t k = 0; k < CORRAL_COUNT_OF(bad); k++) {
        check_status(corral_token_weight_check(&bad[k], &err), CORRAL_INVALID);
    }
}

static void the_proximal_policy_lies_between_by_its_version(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 5};
    const uint8_t mask[] = {1, 1, 1, 1, 0};
    const struct corral_tokens t = {.sequences = 1, .offsets = offsets, .mask = mask};
    const float l[] = {-1, -1, -1, -1, NAN}, behave[] = {-2, -2, -2, -2, NAN};
    const uint64_t version[] = {6, 9, 10, 12, 0};
    float out[5];
    corral_token_proximal(&t, l, behave, version, 9, 10, out);
    NEAR(out[0], -1.25);
    assert_true(out[1] == -2 && out[2] == -2 && out[3] == -2 && out[4] == 0);
    corral_token_proximal(&t, l, behave, version, 10, 10, out);
    assert_true(out[0] == -1 && out[1] == -1 && out[2] == -2);
    corral_token_proximal(&t, l, behave, version, 11, 10, out);
    assert_true(out[0] == -1);
}

static void entropy_is_a_bonus_with_a_constant_slope(void **state)
{
    (void)state;
    static struct ragged g;
    static float d[RAGGED_TOKENS_MAX];
    ragged_fill(&g, 61);
    struct corral_token_entropy_sums sums = {0};
    corral_token_entropy(.01, &g.t, g.scale, g.value, d, &sums);
    double loss = 0, entropy = 0, tokens = 0;
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
        for (uint32_t i = g.offsets[s]; i < g.offsets[s + 1]; i++) {
            NEAR_BY(d[i], g.mask[i] ? -.01 * g.scale[s] : 0, 1e-9);
            loss -= g.mask[i] ? .01 * g.scale[s] * (double)g.value[i] : 0;
            entropy += g.mask[i] ? (double)g.value[i] : 0;
            tokens += g.mask[i];
        }
    }
    NEAR_BY(sums.loss, loss, 1e-12);
    NEAR_BY(sums.entropy, entropy, 1e-12);
    assert_true(sums.tokens == tokens);
}

static void entropy_control_moves_towards_its_target(void **state)
{
    (void)state;
    const struct corral_entropy_control c = {.target = .5, .step = .01, .most = .025};
    NEAR_BY(corral_entropy_control_next(&c, 0, .4), .01, 1e-12);
    NEAR_BY(corral_entropy_control_next(&c, .02, .4), .025, 1e-12);
    NEAR_BY(corral_entropy_control_next(&c, .02, .6), .01, 1e-12);
    assert_true(corral_entropy_control_next(&c, .005, .6) == 0);
    assert_true(corral_entropy_control_next(&c, .02, NAN) == .02);
    assert_true(corral_entropy_control_applied(&c, .02, .5) == .02);
    assert_true(corral_entropy_control_applied(&c, .02, .51) == 0);
}

static void mismatch_matches_its_definition_and_merges(void **state)
{
    (void)state;
    static struct ragged g;
    ragged_fill(&g, 71);
    struct corral_token_mismatch_sums all = {0}, merged = {0};
    corral_token_mismatch_add(&g.t, g.l, g.old, &all);
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s += 10) {
        struct corral_tokens view = ragged_view(&g, s, 10);
        struct corral_token_mismatch_sums part = {0};
        corral_token_mismatch_add(&view, g.l, g.old, &part);
        corral_token_mismatch_merge(&merged, &part);
    }
    double n = 0, distance = 0, most = 0, k1 = 0, k3 = 0, w = 0, w2 = 0;
    for (uint32_t i = 0; i < g.n; i++) {
        if (g.mask[i]) {
            double x = (double)g.l[i] - (double)g.old[i];
            n++;
            distance += fabs(x);
            most = fmax(most, fabs(x));
            k1 -= x;
            k3 += expm1(x) - x;
            w += exp(x);
            w2 += exp(2 * x);
        }
    }
    struct corral_token_mismatch m = corral_token_mismatch_of(&all), p = corral_token_mismatch_of(&merged);
    NEAR(m.mean, distance / n);
    NEAR(m.max, most);
    NEAR(m.k1, k1 / n);
    NEAR(m.k3, k3 / n);
    NEAR(m.effective, w * w / (n * w2));
    assert_true(merged.tokens == all.tokens && (double)all.tokens == n && p.max == m.max);
    NEAR_BY(p.k3, m.k3, 1e-13);
    NEAR_BY(p.mean, m.mean, 1e-13);
}

static void mismatch_counts_broken_numbers_and_needs_no_tokens(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 5};
    const uint8_t mask[] = {1, 1, 1, 0, 1};
    const struct corral_tokens t = {.sequences = 1, .offsets = offsets, .mask = mask};
    const float l[] = {-1, NAN, -1, NAN, -600}, rollout[] = {-1.5f, -1, -INFINITY, -1, -1};
    struct corral_token_mismatch_sums sums = {0};
    struct corral_token_mismatch none = corral_token_mismatch_of(&sums);
    assert_true(none.mean == 0 && none.k3 == 0 && none.effective == 1);
    corral_token_mismatch_add(&t, l, rollout, &sums);
    struct corral_token_mismatch m = corral_token_mismatch_of(&sums);
    assert_true(sums.tokens == 2 && sums.broken == 2 && m.max == 599);
    assert_true(isfinite(m.k3) && m.effective > 0 && m.effective <= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kl_gives_the_golden_numbers),
        cmocka_unit_test(kl_slopes_match_finite_differences_and_are_added),
        cmocka_unit_test(k3_of_tiny_differences_keeps_its_digits),
        cmocka_unit_test(kl_of_extremes_is_finite_without_slope_and_nan_shows),
        cmocka_unit_test(kl_as_reward_touches_trained_tokens_only),
        cmocka_unit_test(truncated_weights_give_the_golden_numbers),
        cmocka_unit_test(weights_match_their_definitions_at_every_level),
        cmocka_unit_test(broken_and_extreme_log_probs_have_defined_weights),
        cmocka_unit_test(refuses_bad_weight_settings),
        cmocka_unit_test(the_proximal_policy_lies_between_by_its_version),
        cmocka_unit_test(entropy_is_a_bonus_with_a_constant_slope),
        cmocka_unit_test(entropy_control_moves_towards_its_target),
        cmocka_unit_test(mismatch_matches_its_definition_and_merges),
        cmocka_unit_test(mismatch_counts_broken_numbers_and_needs_no_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
