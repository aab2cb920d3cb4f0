#include "tests/check.h"

#include "model/policy.h"
#include "trainer-bridge/algorithms/ppo_loss.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The six tokens of the golden batch: log-probabilities, GRPO advantages, clip 0.2; and the bypass form against the behaviour's. */
static void clipped_terms_match_the_golden_batch(void **state)
{
    (void)state;
    const float l[6] = {-.5f, -1.2f, -.7f, -.3f, -2, -1}, old[6] = {-.6f, -1, -.7f, -.9f, -1.6f, -1.3f};
    const float a[6] = {.999998f, .999998f, -.999998f, -.999998f, -.999998f, 0}, zero[6] = {0};
    const double ratio[6] = {1.105171, .818731, 1, 1.822119, .67032, 1.349859};
    /* token-mean gradient; the upper clip (.28 there, .2 here) touches no token with a positive advantage */
    const double slope[6] = {-.184195, -.136455, .166666, .303686, 0, 0};
    float dl[6], de[6], dv[6], scratch[6];
    struct corral_ppo_loss_config c = {.clip = 0.2f, .value_coef = 1, .scale = 1.0f / 6};
    struct corral_ppo_loss_batch b = {.n = 6, .log_prob = l, .old_log_prob = old, .advantage = a};
    b.entropy = b.value = b.returns = b.old_value = zero;
    struct corral_ppo_loss_sums sums = {0};
    corral_ppo_loss(&c, &b, dl, de, dv, scratch, &sums);
    assert_true(fabs(sums.policy_loss / 6 - .283036) < 2e-6);
    double kl = 0;
    for (uint32_t i = 0; i < 6; i++) {
        assert_true(fabs((double)dl[i] - slope[i]) < 2e-6);
        kl += ratio[i] - 1 - log(ratio[i]);
    }
    assert_true(fabs(sums.kl - kl) < 1e-5);
    assert_true(sums.clipped == 3 && fabs(sums.ratio_max - 1.822119) < 2e-6);
}

static double reference_row(const struct corral_ppo_loss_config *c, double l, double h, double v, double old,
                            double a, double ret, double old_v)
{
    double r = exp(l - old), pg = fmax(-a * r, -a * fmin(fmax(r, 1 - (double)c->clip), 1 + (double)c->clip));
    double value = (v - ret) * (v - ret);
    if (c->value_clip > 0) {
        double held = old_v + fmin(fmax(v - old_v, -(double)c->value_clip), (double)c->value_clip);
        value = fmax(value, (held - ret) * (held - ret));
    }
    return pg + (double)c->value_coef * 0.5 * value - (double)c->entropy_coef * h;
}

static void slopes_match_finite_differences_with_and_without_value_clip(void **state)
{
    (void)state;
    enum { N = 500 };
    static float l[N], h[N], v[N], old[N], a[N], ret[N], old_v[N], dl[N], de[N], dv[N], scratch[N];
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (uint32_t i = 0; i < N; i++) {
        float *const all[] = {&l[i], &h[i], &v[i], &old[i], &a[i], &ret[i], &old_v[i]};
        for (size_t k = 0; k < 7; k++) {
            *all[k] = 0.4f * (float)corral_rng_normal(&rng);
        }
    }
    for (int clip = 0; clip < 2; clip++) {
        struct corral_ppo_loss_config c = {
            .clip = 0.2f, .value_coef = 0.7f, .entropy_coef = 0.03f, .scale = 1};
        c.value_clip = clip ? 0.2f : 0;
        struct corral_ppo_loss_batch b = {
            .n = N, .log_prob = l, .entropy = h, .value = v, .old_log_prob = old};
        b.advantage = a;
        b.returns = ret;
        b.old_value = old_v;
        struct corral_ppo_loss_sums sums = {0};
        corral_ppo_loss(&c, &b, dl, de, dv, scratch, &sums);
        double total = 0;
        for (uint32_t i = 0; i < N; i++) {
            const double e = 1e-6;
            double x[7] = {(double)l[i], (double)h[i],   (double)v[i],    (double)old[i],
                           (double)a[i], (double)ret[i], (double)old_v[i]};
            total += reference_row(&c, x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
            double sl = (reference_row(&c, x[0] + e, x[1], x[2], x[3], x[4], x[5], x[6]) -
                         reference_row(&c, x[0] - e, x[1], x[2], x[3], x[4], x[5], x[6])) /
                        (2 * e);
            double sv = (reference_row(&c, x[0], x[1], x[2] + e, x[3], x[4], x[5], x[6]) -
                         reference_row(&c, x[0], x[1], x[2] - e, x[3], x[4], x[5], x[6])) /
                        (2 * e);
            assert_true(fabs((double)dl[i] - sl) < 1e-5 && fabs((double)dv[i] - sv) < 1e-5);
            assert_true(fabs((double)de[i] + 0.03) < 1e-8);
        }
        double mine = sums.policy_loss + 0.7 * sums.value_loss - 0.03 * sums.entropy;
        assert_true(fabs(mine - total) < 1e-3);
    }
}

static void an_enormous_ratio_stays_finite_and_nan_is_not_hidden(void **state)
{
    (void)state;
    const float l[2] = {0, NAN}, old[2] = {-500, 0}, a[2] = {-1, 1}, zero[2] = {0};
    float dl[2], de[2], dv[2], scratch[2];
    struct corral_ppo_loss_config c = {.clip = 0.2f, .scale = 1};
    struct corral_ppo_loss_batch b = {.n = 1, .log_prob = l, .old_log_prob = old, .advantage = a};
    b.entropy = b.value = b.returns = b.old_value = zero;
    struct corral_ppo_loss_sums sums = {0};
    corral_ppo_loss(&c, &b, dl, de, dv, scratch, &sums);
    assert_true(isfinite(sums.policy_loss) && isfinite(dl[0]) && sums.policy_loss > 1e8);
    b.n = 2;
    corral_ppo_loss(&c, &b, dl, de, dv, scratch, &sums);
    assert_true(isnan(sums.policy_loss));
}

/* The whole chain, observation to loss, against differences of the loss in the weights. */
#define ROWS 24u
struct chain {
    struct corral_policy_layout layout;
    struct corral_policy_workspace *ws;
    float obs[ROWS * 3], old[ROWS], adv[ROWS], ret[ROWS], old_v[ROWS];
    uint8_t mask[ROWS * 7];
    int32_t action[ROWS * 3];
    struct corral_ppo_loss_config config;
};

static double chain_loss(struct chain *k, const float *weights, float *grad)
{
    const uint8_t *mask = k->layout.spec.action.kind == CORRAL_ACTION_CONTINUOUS ? NULL : k->mask;
    float lp[ROWS], en[ROWS], va[ROWS], dl[ROWS], de[ROWS], dv[ROWS], scratch[ROWS];
    corral_policy_evaluate(&k->layout, weights, k->ws, k->obs, mask, k->action, ROWS, lp, en, va);
    struct corral_ppo_loss_batch b = {
        .n = ROWS, .log_prob = lp, .entropy = en, .value = va, .old_log_prob = k->old};
    b.advantage = k->adv;
    b.returns = k->ret;
    b.old_value = k->old_v;
    struct corral_ppo_loss_sums sums = {0};
    corral_ppo_loss(&k->config, &b, dl, de, dv, scratch, &sums);
    if (grad) {
        corral_policy_backward(&k->layout, weights, k->ws, dl, de, dv, grad);
    }
    return (sums.policy_loss + (double)k->config.value_coef * sums.value_loss -
            (double)k->config.entropy_coef * sums.entropy) *
           (double)k->config.scale;
}

static void check_chain(enum corral_action_kind kind)
{
    static struct chain k;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 9);
    memset(&k, 0, sizeof k);
    struct corral_policy_spec s = {.obs_dim = 3, .layers = 2, .hidden = {8, 8}};
    s.action = (struct corral_action_spec){
        .kind = kind, .components = 2, .choices = {3, 4}, .low = {-1, -1}, .high = {1, 1}};
    s.action.components = kind == CORRAL_ACTION_DISCRETE ? 1 : 2;
    check_ok(corral_policy_layout_build(&s, &k.layout, &err));
    check_ok(corral_policy_workspace_create(&k.ws, &k.layout, ROWS, true, &corral_allocator_heap, &err));
    float *w = malloc(k.layout.floats * sizeof *w), *grad = calloc(k.layout.trainable_floats, sizeof *grad);
    corral_policy_init(&k.layout, w, &rng);
    for (uint64_t i = 0; i < k.layout.trainable_floats; i++) {
        w[i] += 0.3f * (float)corral_rng_normal(&rng);
    }
    for (uint32_t i = 0; i < ROWS * 7; i++) {
        k.mask[i] = corral_rng_below(&rng, 4) > 0;
    }
    for (uint32_t i = 0; i < ROWS * 3; i++) {
        k.obs[i] = (float)corral_rng_normal(&rng);
    }
    const uint8_t *mask = kind == CORRAL_ACTION_CONTINUOUS ? NULL : k.mask;
    corral_policy_act(&k.layout, w, k.ws, k.obs, mask, ROWS, false, &rng, k.action, k.old, k.old_v);
    for (uint32_t r = 0; r < ROWS; r++) {
        k.old[r] += 0.3f * (float)corral_rng_normal(&rng);
        k.old_v[r] += 0.1f * (float)corral_rng_normal(&rng);
        k.adv[r] = (float)corral_rng_normal(&rng);
        k.ret[r] = (float)corral_rng_normal(&rng);
    }
    k.config = (struct corral_ppo_loss_config){
        .clip = 0.2f, .value_coef = 0.5f, .entropy_coef = 0.1f, .scale = 1.0f / ROWS};
    chain_loss(&k, w, grad);
    /* Float losses make coarse differences: compare along random directions, where the noise is small beside the slope. */
    for (uint32_t trial = 0; trial < 20; trial++) {
        float *moved = malloc(k.layout.floats * sizeof *moved);
        double slope = 0, h = 2e-3, values[2];
        uint64_t seed = trial + 100;
        for (int side = 0; side < 2; side++) {
            corral_rng_seed(&rng, seed);
            memcpy(moved, w, k.layout.floats * sizeof *moved);
            slope = 0;
            for (uint64_t i = 0; i < k.layout.trainable_floats; i++) {
                double direction = corral_rng_normal(&rng) / sqrt((double)k.layout.parameters);
                slope += direction * (double)grad[i];
                moved[i] = (float)((double)w[i] + (side ? h : -h) * direction);
            }
            values[side] = chain_loss(&k, moved, NULL);
        }
        double seen = (values[1] - values[0]) / (2 * h);
        if (fabs(seen - slope) > 2e-3) {
            fail_msg("kind %d trial %u: slope %g, by differences %g", (int)kind, trial, slope, seen);
        }
        free(moved);
    }
    free(w);
    free(grad);
    corral_policy_workspace_destroy(k.ws);
}

static void the_whole_gradient_matches_differences_of_the_loss(void **state)
{
    (void)state;
    check_chain(CORRAL_ACTION_DISCRETE);
    check_chain(CORRAL_ACTION_MULTI_DISCRETE);
    check_chain(CORRAL_ACTION_CONTINUOUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clipped_terms_match_the_golden_batch),
        cmocka_unit_test(slopes_match_finite_differences_with_and_without_value_clip),
        cmocka_unit_test(an_enormous_ratio_stays_finite_and_nan_is_not_hidden),
        cmocka_unit_test(the_whole_gradient_matches_differences_of_the_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
