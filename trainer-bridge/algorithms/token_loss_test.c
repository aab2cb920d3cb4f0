#include "trainer-bridge/algorithms/group_advantage.h"
#include "trainer-bridge/algorithms/loss_scale.h"
#include "trainer-bridge/algorithms/test_tokens.h"
#include "trainer-bridge/algorithms/token_loss.h"
#include "trainer-bridge/algorithms/token_value.h"
#include "trainer-bridge/algorithms/token_weight.h"

static const enum corral_loss_mean means[] = {CORRAL_LOSS_TOKEN_MEAN, CORRAL_LOSS_SEQ_MEAN_TOKEN_MEAN,
                                              CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM,
                                              CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM_NORM};

/* The golden batch with GRPO's advantages, ready for a loss. */
struct golden_loss {
    struct golden g;
    float advantage[6], d[6];
    double scale[3];
    struct corral_token_loss_batch batch;
};

static void golden_prepare(struct golden_loss *x, enum corral_loss_mean mean)
{
    x->g = golden_batch();
    const uint32_t offsets[] = {0, 3};
    const struct corral_groups groups = {.groups = 1, .offsets = offsets};
    struct corral_loss_counts counts = {0};
    struct corral_error err;
    float per_sequence[3];
    check_ok(corral_group_advantage(&groups, CORRAL_GROUP_GRPO, x->g.reward, per_sequence, &err));
    corral_tokens_broadcast(&x->g.t, per_sequence, x->advantage);
    corral_loss_count(&x->g.t, &counts);
    assert_true(counts.tokens == 6 && counts.sequences == 3);
    check_ok(corral_loss_scale(mean, &counts, 4, &x->g.t, x->scale, &err));
    x->batch = (struct corral_token_loss_batch){.tokens = x->g.t,
                                                .scale = x->scale,
                                                .log_prob = x->g.l,
                                                .advantage = x->advantage,
                                                .old_log_prob = x->g.proximal};
}

static double golden_loss_of(struct golden_loss *x, struct corral_token_loss_config c)
{
    struct corral_token_loss_sums sums = {0};
    struct corral_error err;
    check_ok(corral_token_loss_check(&c, &err));
    corral_token_loss(&c, &x->batch, x->d, &sums);
    return sums.loss;
}

static void clip_higher_gives_the_golden_numbers_in_four_aggregations(void **state)
{
    (void)state;
    const double loss[] = {.283036, .081807, .566071, .141518};
    const double slope[6] = {-.184195, -.136455, .166666, .303686, 0, 0};
    const struct corral_token_loss_config c = {.clip_low = .2f, .clip_high = .28f};
    struct golden_loss x;
    for (int k = 0; k < 4; k++) {
        golden_prepare(&x, means[k]);
        NEAR(golden_loss_of(&x, c), loss[k]);
    }
    golden_prepare(&x, CORRAL_LOSS_TOKEN_MEAN);
    golden_loss_of(&x, c);
    for (int i = 0; i < 6; i++) {
        NEAR(x.d[i], slope[i]);
    }
}

static void each_token_has_its_golden_loss(void **state)
{
    (void)state;
    const double clip[6] = {-1.105169, -.818729, .999998, 1.822115, .799998, 0};
    const double cispo[6] = {.552584, .982475, -.699999, -.383999, -1.599997, 0};
    struct golden_loss x;
    golden_prepare(&x, CORRAL_LOSS_TOKEN_MEAN);
    for (uint32_t i = 0; i < 6; i++) {
        const uint32_t offsets[] = {i, i + 1};
        const double one = 1;
        x.batch.tokens = (struct corral_tokens){.sequences = 1, .offsets = offsets, .mask = x.g.t.mask};
        x.batch.scale = &one;
        struct corral_token_loss_config c = {.clip_low = .2f, .clip_high = .28f};
        NEAR(golden_loss_of(&x, c), clip[i]);
        c.objective = CORRAL_TOKEN_CISPO;
        NEAR(golden_loss_of(&x, c), cispo[i]);
    }
}

static void other_objectives_give_their_golden_numbers(void **state)
{
    (void)state;
    struct golden_loss x;
    struct corral_token_loss_config c = {.clip_low = .2f, .clip_high = .28f};
    golden_prepare(&x, CORRAL_LOSS_TOKEN_MEAN);
    c.objective = CORRAL_TOKEN_CISPO;
    NEAR(golden_loss_of(&x, c), -.191489);

    golden_prepare(&x, CORRAL_LOSS_SEQ_MEAN_TOKEN_MEAN);
    c.objective = CORRAL_TOKEN_SEQUENCE_CLIP;
    NEAR(golden_loss_of(&x, c), .039236);
    c.clip_low = 3e-4f;
    c.clip_high = 4e-4f;
    NEAR(golden_loss_of(&x, c), .039236);
    const double s[] = {.951229, 1.068939, 1.349859};
    struct corral_token_loss_sums sums = {0};
    corral_token_loss(&c, &x.batch, x.d, &sums);
    NEAR(sums.ratio, 2 * s[0] + 3 * s[1] + s[2]);
    NEAR(sums.ratio_max, s[2]);
}

static void stale_data_give_the_golden_numbers(void **state)
{
    (void)state;
    struct golden_loss x;
    float w[6];
    const struct corral_token_loss_config c = {.clip_low = .2f, .clip_high = .28f};
    const struct corral_token_weight_config tis = {.level = CORRAL_WEIGHT_TOKEN, .high = 2};
    struct corral_token_weight_sums sums = {0};
    golden_prepare(&x, CORRAL_LOSS_TOKEN_MEAN);
    corral_token_weight(&tis, &x.g.t, x.g.proximal, x.g.behave, w, &sums);
    x.batch.weight = w;
    NEAR(golden_loss_of(&x, c), .341844);
    x.batch.weight = NULL;
    x.batch.old_log_prob = x.g.behave;
    NEAR(golden_loss_of(&x, c), .312669);
}

static void dual_clip_bounds_the_loss_of_bad_tokens(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 1};
    const uint8_t mask[] = {1};
    const float l = 0, old = -logf(4), a = -1;
    const double one = 1;
    float d;
    struct corral_token_loss_batch batch = {.tokens = {.sequences = 1, .offsets = offsets, .mask = mask},
                                            .scale = &one,
                                            .log_prob = &l,
                                            .advantage = &a,
                                            .old_log_prob = &old};
    struct corral_token_loss_config c = {.clip_low = .2f, .clip_high = .2f, .dual_clip = 3};
    struct corral_token_loss_sums sums = {0};
    corral_token_loss(&c, &batch, &d, &sums);
    NEAR(sums.loss, 3);
    assert_true(d == 0 && sums.dual_clip == 1);
    c.dual_clip = 0;
    sums = (struct corral_token_loss_sums){0};
    corral_token_loss(&c, &batch, &d, &sums);
    NEAR(sums.loss, 4);
    NEAR(d, 4);
}

/* One token's loss in f64: x is moved, base is where it stands; what the paper treats as a constant comes from base. */
static double reference_token(const struct corral_token_loss_config *c, double x, double base, double ratio,
                              double base_ratio, double a)
{
    double low = 1 - (double)c->clip_low, high = 1 + (double)c->clip_high;
    if (c->objective == CORRAL_TOKEN_REINFORCE) {
        return -a * x;
    }
    if (c->objective == CORRAL_TOKEN_CISPO) {
        return -fmin(fmax(base_ratio, low), high) * a * x;
    }
    if (c->objective == CORRAL_TOKEN_SEQUENCE_CLIP) {
        ratio = base_ratio * exp(x - base);
    }
    double loss = fmax(-a * ratio, -a * fmin(fmax(ratio, low), high));
    return c->dual_clip > 0 && a < 0 ? fmin(loss, -a * (double)c->dual_clip) : loss;
}

static double reference_held(double x)
{
    return fmin(fmax(x, -(double)CORRAL_LOG_RATIO_MAX), (double)CORRAL_LOG_RATIO_MAX);
}

static double mean_log_ratio(const struct ragged *g, uint32_t s, const float *weight)
{
    double sum = 0, count = 0;
    for (uint32_t i = g->offsets[s]; i < g->offsets[s + 1]; i++) {
        if (g->mask[i] && (!weight || weight[i] != 0)) {
            sum += (double)g->l[i] - (double)g->old[i];
            count++;
        }
    }
    return count > 0 ? sum / count : 0;
}

static void compare_with_differences(const struct ragged *g, const struct corral_token_loss_config *c,
                                     const float *weight)
{
    static float d[RAGGED_TOKENS_MAX];
    struct corral_token_loss_batch batch = {.tokens = g->t,
                                            .scale = g->scale,
                                            .log_prob = g->l,
                                            .advantage = g->advantage,
                                            .old_log_prob = g->old,
                                            .weight = weight};
    struct corral_token_loss_sums sums = {0};
    corral_token_loss(c, &batch, d, &sums);
    double loss = 0, tokens = 0;
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
        double mean = mean_log_ratio(g, s, weight);
        for (uint32_t i = g->offsets[s]; i < g->offsets[s + 1]; i++) {
            double w = weight ? (double)weight[i] : 1, terms[3], e = 1e-6;
            if (!g->mask[i] || w == 0) {
                assert_true(d[i] == 0);
                continue;
            }
            double l = (double)g->l[i], old = (double)g->old[i], a = (double)g->advantage[i];
            double base = exp(reference_held(c->objective == CORRAL_TOKEN_SEQUENCE_CLIP ? mean : l - old));
            for (int k = -1; k < 2; k++) {
                double x = l + k * e;
                terms[k + 1] = w * reference_token(c, x, l, exp(reference_held(x - old)), base, a);
            }
            loss += g->scale[s] * terms[1];
            tokens++;
            NEAR_BY(d[i], g->scale[s] * (terms[2] - terms[0]) / (2 * e), 2e-5);
        }
    }
    assert_true(sums.tokens == tokens && tokens > 300);
    NEAR_BY(sums.loss, loss, 1e-5);
}

static void slopes_match_finite_differences(void **state)
{
    (void)state;
    static struct ragged g;
    const struct corral_token_loss_config configs[] = {
        {.objective = CORRAL_TOKEN_CLIP, .clip_low = .2f, .clip_high = .28f},
        {.objective = CORRAL_TOKEN_CLIP, .clip_low = .2f, .clip_high = .2f, .dual_clip = 1.5f},
        {.objective = CORRAL_TOKEN_SEQUENCE_CLIP, .clip_low = .02f, .clip_high = .04f},
        {.objective = CORRAL_TOKEN_CISPO, .clip_low = 1, .clip_high = .28f},
        {.objective = CORRAL_TOKEN_CISPO, .clip_low = .2f, .clip_high = .28f},
        {.objective = CORRAL_TOKEN_REINFORCE},
    };
    for (uint64_t seed = 1; seed < 4; seed++) {
        ragged_fill(&g, seed);
        for (size_t k = 0; k < CORRAL_COUNT_OF(configs); k++) {
            compare_with_differences(&g, &configs[k], NULL);
            compare_with_differences(&g, &configs[k], g.weight);
        }
    }
}

/* GSPO as the paper defines it, differentiated through the sequence's mean. */
static double gspo(const struct ragged *g, const double *l, uint32_t s, double low, double high)
{
    double sum = 0, count = 0;
    for (uint32_t i = g->offsets[s]; i < g->offsets[s + 1]; i++) {
        sum += g->mask[i] ? l[i] - (double)g->old[i] : 0;
        count += g->mask[i] ? 1 : 0;
    }
    double a = (double)g->per_sequence[s], r = count > 0 ? exp(sum / count) : 0;
    return fmax(-a * r, -a * fmin(fmax(r, 1 - low), 1 + high));
}

static void gspo_slopes_are_exact_with_one_advantage_per_sequence(void **state)
{
    (void)state;
    static struct ragged g;
    static double l[RAGGED_TOKENS_MAX], scale[RAGGED_SEQUENCES];
    static float d[RAGGED_TOKENS_MAX];
    struct corral_error err;
    ragged_fill(&g, 21);
    corral_tokens_broadcast(&g.t, g.per_sequence, g.advantage);
    struct corral_loss_counts counts = {0};
    corral_loss_count(&g.t, &counts);
    check_ok(corral_loss_scale(CORRAL_LOSS_SEQ_MEAN_TOKEN_MEAN, &counts, 0, &g.t, scale, &err));
    const struct corral_token_loss_config c = {
        .objective = CORRAL_TOKEN_SEQUENCE_CLIP, .clip_low = .03f, .clip_high = .04f};
    struct corral_token_loss_batch batch = {
        .tokens = g.t, .scale = scale, .log_prob = g.l, .advantage = g.advantage, .old_log_prob = g.old};
    struct corral_token_loss_sums sums = {0};
    corral_token_loss(&c, &batch, d, &sums);
    double loss = 0, n = (double)counts.sequences;
    uint32_t moving = 0;
    for (uint32_t i = 0; i < g.n; i++) {
        l[i] = (double)g.l[i];
    }
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
        double low = (double)c.clip_low, high = (double)c.clip_high;
        loss += corral_tokens_trained(&g.t, s) ? gspo(&g, l, s, low, high) / n : 0;
        for (uint32_t i = g.offsets[s]; i < g.offsets[s + 1]; i++) {
            if (!g.mask[i]) {
                continue;
            }
            double up, down, e = 1e-5, was = l[i];
            l[i] = was + e;
            up = gspo(&g, l, s, low, high);
            l[i] = was - e;
            down = gspo(&g, l, s, low, high);
            l[i] = was;
            NEAR_BY((double)d[i] * n, (up - down) / (2 * e), 2e-5);
            moving += d[i] != 0;
        }
    }
    NEAR_BY(sums.loss, loss, 1e-5);
    assert_true(moving > 50 && sums.clipped_low + sums.clipped_high > 50);
}

/* Gradients to the bit, sums to rounding, however the batch is cut. */
static void micro_batches_add_up_to_the_whole_batch(void **state)
{
    (void)state;
    static struct ragged g;
    static float whole[RAGGED_TOKENS_MAX], pieces[RAGGED_TOKENS_MAX];
    const struct corral_token_loss_config objectives[] = {
        {.objective = CORRAL_TOKEN_CLIP, .clip_low = .2f, .clip_high = .28f},
        {.objective = CORRAL_TOKEN_SEQUENCE_CLIP, .clip_low = .2f, .clip_high = .28f},
    };
    struct corral_error err;
    ragged_fill(&g, 31);
    for (int k = 0; k < 8; k++) {
        const struct corral_token_loss_config *c = &objectives[k / 4];
        struct corral_loss_counts counts = {0};
        double scale[RAGGED_SEQUENCES];
        const uint32_t cuts[] = {0, 1, 8, 9, 30, RAGGED_SEQUENCES};
        for (size_t p = 0; p + 1 < CORRAL_COUNT_OF(cuts); p++) {
            struct corral_tokens view = ragged_view(&g, cuts[p], cuts[p + 1] - cuts[p]);
            corral_loss_count(&view, &counts);
        }
        check_ok(corral_loss_scale(means[k % 4], &counts, 64, &g.t, scale, &err));
        struct corral_token_loss_batch batch = {
            .tokens = g.t, .scale = scale, .log_prob = g.l, .advantage = g.advantage, .old_log_prob = g.old};
        batch.weight = g.weight;
        struct corral_token_loss_sums all = {0}, merged = {0};
        corral_token_loss(c, &batch, whole, &all);
        for (size_t p = 0; p + 1 < CORRAL_COUNT_OF(cuts); p++) {
            struct corral_token_loss_sums part = {0};
            batch.tokens = ragged_view(&g, cuts[p], cuts[p + 1] - cuts[p]);
            check_ok(corral_loss_scale(means[k % 4], &counts, 64, &batch.tokens, scale, &err));
            corral_token_loss(c, &batch, pieces, &part);
            corral_token_loss_sums_merge(&merged, &part);
        }
        assert_memory_equal(pieces, whole, g.n * sizeof(float));
        NEAR_BY(merged.loss, all.loss, 1e-13);
        NEAR_BY(merged.kl, all.kl, 1e-13);
        assert_true(merged.tokens == all.tokens && merged.ratio_max == all.ratio_max);
        assert_true(merged.clipped_low == all.clipped_low && merged.clipped_high == all.clipped_high);
    }
}

static void an_empty_or_wholly_masked_batch_has_no_loss_and_no_slope(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 2, 2};
    const uint8_t mask[] = {0, 0};
    const float broken[] = {NAN, INFINITY};
    struct corral_tokens t = {.sequences = 2, .offsets = offsets, .mask = mask};
    struct corral_loss_counts counts = {0};
    struct corral_error err;
    corral_loss_count(&t, &counts);
    assert_true(counts.tokens == 0 && counts.sequences == 0);
    for (int k = 0; k < 16; k++) {
        double scale[2] = {9, 9};
        float d[2] = {9, 9};
        check_ok(corral_loss_scale(means[k % 4], &counts, 4, &t, scale, &err));
        assert_true(scale[0] == 0 && scale[1] == 0);
        struct corral_token_loss_config c = {.objective = (enum corral_token_objective)(k / 4)};
        struct corral_token_loss_batch batch = {
            .tokens = t, .scale = scale, .log_prob = broken, .advantage = broken, .old_log_prob = broken};
        struct corral_token_loss_sums sums = {0};
        corral_token_loss(&c, &batch, d, &sums);
        assert_true(d[0] == 0 && d[1] == 0 && sums.loss == 0 && sums.tokens == 0 && sums.kl == 0);
        batch.tokens = (struct corral_tokens){0};
        corral_token_loss(&c, &batch, d, &sums);
        assert_true(sums.loss == 0);
    }
}

/* -inf and +inf in one sequence; and finite numbers far beyond what exp can take. */
static void extreme_log_ratios_stay_finite_and_have_no_slope(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 4};
    const uint8_t mask[] = {1, 1, 1, 1};
    const double one = 1;
    const float l[] = {-1, -500, -1e30f, -2}, old[] = {-INFINITY, -1, INFINITY, -400};
    for (int sign = -1; sign < 2; sign += 2) {
        for (int k = 0; k < 3; k++) {
            const float f = (float)sign, a[] = {f, f, f, f};
            struct corral_token_loss_config c = {.objective = (enum corral_token_objective)k};
            c.clip_low = .2f;
            c.clip_high = .28f;
            struct corral_token_loss_batch batch = {
                .tokens = {.sequences = 1, .offsets = offsets, .mask = mask},
                .scale = &one,
                .log_prob = l,
                .advantage = a,
                .old_log_prob = old};
            struct corral_token_loss_sums sums = {0};
            float d[4];
            corral_token_loss(&c, &batch, d, &sums);
            assert_true(isfinite(sums.loss) && isfinite(sums.kl) && isfinite(sums.ratio_max));
            for (int i = 0; i < 4; i++) {
                assert_true(isfinite(d[i]) && (c.objective == CORRAL_TOKEN_CISPO || d[i] == 0));
            }
        }
    }
}

static void nan_shows_unless_its_token_is_rejected(void **state)
{
    (void)state;
    const uint32_t offsets[] = {0, 2};
    const uint8_t mask[] = {1, 1};
    const double one = 1;
    const float l[] = {NAN, -1}, old[] = {-1, -1}, a[] = {1, 1}, w[] = {0, 1};
    for (int k = 0; k < 4; k++) {
        struct corral_token_loss_config c = {.objective = (enum corral_token_objective)k};
        struct corral_token_loss_batch batch = {.tokens = {.sequences = 1, .offsets = offsets, .mask = mask},
                                                .scale = &one,
                                                .log_prob = l,
                                                .advantage = a,
                                                .old_log_prob = old};
        struct corral_token_loss_sums sums = {0};
        float d[2];
        corral_token_loss(&c, &batch, d, &sums);
        assert_true(isnan(sums.loss));
        batch.weight = w;
        sums = (struct corral_token_loss_sums){0};
        corral_token_loss(&c, &batch, d, &sums);
        assert_true(isfinite(sums.loss) && d[0] == 0 && d[1] == -1 && sums.tokens == 1);
    }
}

static void refuses_bad_settings(void **state)
{
    (void)state;
    const struct corral_token_loss_config bad[] = {
        {.objective = (enum corral_token_objective)4},
        {.clip_low = -.1f},
        {.clip_low = 1.1f},
        {.clip_low = NAN},
        {.clip_high = -1},
        {.clip_high = INFINITY},
        {.dual_clip = 1},
        {.dual_clip = NAN},
        {.objective = CORRAL_TOKEN_CISPO, .dual_clip = 3},
    };
    struct corral_error err;
    for (size_t k = 0; k < CORRAL_COUNT_OF(bad); k++) {
        check_status(corral_token_loss_check(&bad[k], &err), CORRAL_INVALID);
    }
}

static void refuses_counts_that_are_not_the_whole_batch(void **state)
{
    (void)state;
    struct golden g = golden_batch();
    double scale[3] = {9, 9, 9};
    struct corral_error err;
    const struct corral_loss_counts few = {.tokens = 5, .sequences = 3}, all = {.tokens = 6, .sequences = 3};
    check_status(corral_loss_scale(CORRAL_LOSS_TOKEN_MEAN, &few, 4, &g.t, scale, &err), CORRAL_INVALID);
    check_status(corral_loss_scale(CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM_NORM, &all, 0, &g.t, scale, &err),
                 CORRAL_INVALID);
    check_status(corral_loss_scale((enum corral_loss_mean)4, &all, 4, &g.t, scale, &err), CORRAL_INVALID);
    assert_true(scale[0] == 9);
}

static double reference_value(double v, double old, double ret, double clip)
{
    double held = old + fmin(fmax(v - old, -clip), clip);
    return 0.5 *
           (clip > 0 ? fmax((v - ret) * (v - ret), (held - ret) * (held - ret)) : (v - ret) * (v - ret));
}

static void value_slopes_match_finite_differences(void **state)
{
    (void)state;
    static struct ragged g;
    static float d[RAGGED_TOKENS_MAX], before[RAGGED_TOKENS_MAX];
    ragged_fill(&g, 41);
    for (uint32_t i = 0; i < g.n; i++) {
        before[i] = g.value[i] + .4f * (g.l[i] + 1.5f);
    }
    for (int clip = 0; clip < 2; clip++) {
        struct corral_token_value_config c = {.coef = .7f, .clip = clip ? .2f : 0};
        struct corral_token_value_sums sums = {0};
        corral_token_value_loss(&c, &g.t, g.scale, g.value, clip ? before : NULL, g.advantage, d, &sums);
        double loss = 0, tokens = 0;
        for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
            for (uint32_t i = g.offsets[s]; i < g.offsets[s + 1]; i++) {
                if (!g.mask[i]) {
                    assert_true(d[i] == 0);
                    continue;
                }
                double e = 1e-6, v = (double)g.value[i], old = (double)before[i],
                       ret = (double)g.advantage[i];
                double most = (double)c.clip, factor = (double)c.coef * g.scale[s];
                double up = reference_value(v + e, old, ret, most),
                       down = reference_value(v - e, old, ret, most);
                NEAR_BY(d[i], factor * (up - down) / (2 * e), 2e-5);
                loss += factor * reference_value(v, old, ret, most);
                tokens++;
            }
        }
        NEAR_BY(sums.loss, loss, 1e-5);
        assert_true(sums.tokens == tokens && (clip ? sums.clipped > 20 : sums.clipped == 0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clip_higher_gives_the_golden_numbers_in_four_aggregations),
        cmocka_unit_test(each_token_has_its_golden_loss),
        cmocka_unit_test(other_objectives_give_their_golden_numbers),
        cmocka_unit_test(stale_data_give_the_golden_numbers),
        cmocka_unit_test(dual_clip_bounds_the_loss_of_bad_tokens),
        cmocka_unit_test(slopes_match_finite_differences),
        cmocka_unit_test(gspo_slopes_are_exact_with_one_advantage_per_sequence),
        cmocka_unit_test(micro_batches_add_up_to_the_whole_batch),
        cmocka_unit_test(an_empty_or_wholly_masked_batch_has_no_loss_and_no_slope),
        cmocka_unit_test(extreme_log_ratios_stay_finite_and_have_no_slope),
        cmocka_unit_test(nan_shows_unless_its_token_is_rejected),
        cmocka_unit_test(refuses_bad_settings),
        cmocka_unit_test(refuses_counts_that_are_not_the_whole_batch),
        cmocka_unit_test(value_slopes_match_finite_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
