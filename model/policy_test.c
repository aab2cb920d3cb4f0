#include "tests/check.h"

#include "model/policy_batch.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 21u
#define DIM 5u

struct fixture {
    struct corral_policy_layout layout;
    struct corral_policy_workspace *ws;
    float *weights;
    struct corral_rng rng;
    float obs[ROWS * DIM];
    uint8_t mask[ROWS * 16];
    int32_t action[ROWS * 4];
};

static void build(struct fixture *f, enum corral_action_kind kind, enum corral_activation act, bool normalise)
{
    struct corral_error err;
    struct corral_policy_spec s = {.obs_dim = DIM, .layers = 2, .hidden = {19, 14}, .activation = act};
    s.normalise_obs = normalise;
    s.log_std_init = -0.3f;
    s.action.kind = kind;
    s.action.components = kind == CORRAL_ACTION_DISCRETE ? 1 : 3;
    for (uint32_t c = 0; c < 3; c++) {
        s.action.choices[c] = 2 + c;
        s.action.low[c] = -1;
        s.action.high[c] = 1;
    }
    memset(f, 0, sizeof *f);
    check_ok(corral_policy_layout_build(&s, &f->layout, &err));
    check_ok(corral_policy_workspace_create(&f->ws, &f->layout, ROWS, true, &corral_allocator_heap, &err));
    f->weights = malloc(f->layout.floats * sizeof *f->weights);
    corral_rng_seed(&f->rng, 11);
    corral_policy_init(&f->layout, f->weights, &f->rng);
    for (uint64_t i = 0; i < f->layout.trainable_floats; i++) {
        f->weights[i] += 0.3f * (float)corral_rng_normal(&f->rng);
    }
    uint32_t stats = corral_policy_stats_at(&f->layout);
    for (uint32_t d = 0; d < DIM; d++) {
        f->weights[f->layout.tensor[stats].offset + d] = 0.1f * (float)d;
        f->weights[f->layout.tensor[stats + 1].offset + d] = 0.5f + (float)d;
    }
    for (uint32_t i = 0; i < ROWS * DIM; i++) {
        f->obs[i] = (float)corral_rng_normal(&f->rng);
    }
    f->obs[3] = 1e6f; /* clipped when normalised */
    uint32_t width = corral_action_logits(&f->layout.spec.action);
    for (uint32_t i = 0; i < ROWS * width; i++) {
        f->mask[i] = corral_rng_below(&f->rng, 3) > 0;
    }
    memset(f->mask, 0, width); /* row 0: nothing legal counts as all legal */
}

static void drop(struct fixture *f)
{
    corral_policy_workspace_destroy(f->ws);
    free(f->weights);
}

static const uint8_t *mask_of(const struct fixture *f)
{
    return f->layout.spec.action.kind == CORRAL_ACTION_CONTINUOUS ? NULL : f->mask;
}

/* The same policy, one row at a time, in double and with libm. */
static void reference_tower(const struct fixture *f, const double *weights, enum corral_policy_tower tower,
                            uint32_t row, double *out)
{
    const struct corral_policy_layout *l = &f->layout;
    double a[64], b[64];
    uint32_t stats = corral_policy_stats_at(l);
    for (uint32_t d = 0; d < DIM; d++) {
        double x = f->obs[row * DIM + d];
        if (l->spec.normalise_obs) {
            x = (x - weights[l->tensor[stats].offset + d]) /
                sqrt(weights[l->tensor[stats + 1].offset + d] + 1e-8);
            x = fmin(10, fmax(-10, x));
        }
        a[d] = x;
    }
    for (uint32_t layer = 0; layer <= l->spec.layers; layer++) {
        const struct corral_policy_tensor *w = &l->tensor[corral_policy_weight_at(l, tower, layer)];
        for (uint64_t o = 0; o < w->shape[0]; o++) {
            double sum = weights[w[1].offset + o];
            for (uint64_t i = 0; i < w->shape[1]; i++) {
                sum += weights[w->offset + o * w->shape[1] + i] * a[i];
            }
            bool last = layer == l->spec.layers;
            b[o] = last ? sum : l->spec.activation == CORRAL_TANH ? tanh(sum) : fmax(0, sum);
        }
        memcpy(a, b, sizeof a);
    }
    memcpy(out, a, sizeof(double) * l->tensor[corral_policy_weight_at(l, tower, l->spec.layers)].shape[0]);
}

static void reference_categorical(const struct fixture *f, const double *z, uint32_t row, double *log_prob,
                                  double *entropy)
{
    const struct corral_action_spec *a = &f->layout.spec.action;
    const uint8_t *legal = f->mask + row * corral_action_logits(a);
    for (uint32_t c = 0; c < a->components; z += a->choices[c], legal += a->choices[c], c++) {
        bool any = false;
        for (uint32_t j = 0; j < a->choices[c]; j++) {
            any = any || legal[j];
        }
        double sum = 0;
        for (uint32_t j = 0; j < a->choices[c]; j++) {
            sum += !any || legal[j] ? exp(z[j]) : 0;
        }
        for (uint32_t j = 0; j < a->choices[c]; j++) {
            if (!any || legal[j]) {
                *entropy -= exp(z[j]) / sum * (z[j] - log(sum));
            }
        }
        *log_prob += z[f->action[row * a->components + c]] - log(sum);
    }
}

static void reference_row(const struct fixture *f, const double *weights, uint32_t row, double *log_prob,
                          double *entropy, double *value)
{
    const struct corral_action_spec *a = &f->layout.spec.action;
    double z[64];
    reference_tower(f, weights, CORRAL_TOWER_VALUE, row, z);
    *value = z[0];
    *log_prob = *entropy = 0;
    reference_tower(f, weights, CORRAL_TOWER_POLICY, row, z);
    if (a->kind != CORRAL_ACTION_CONTINUOUS) {
        reference_categorical(f, z, row, log_prob, entropy);
        return;
    }
    for (uint32_t c = 0; c < a->components; c++) {
        double ls = weights[f->layout.tensor[corral_policy_log_std_at(&f->layout)].offset + c];
        float action;
        memcpy(&action, &f->action[row * a->components + c], sizeof action);
        double d = ((double)action - z[c]) / exp(ls);
        *log_prob += -0.5 * d * d - ls - 0.5 * log(2 * M_PI);
        *entropy += ls + 0.5 * log(2 * M_PI * M_E);
    }
}

static void check_evaluate(enum corral_action_kind kind, enum corral_activation act, bool normalise)
{
    struct fixture f;
    build(&f, kind, act, normalise);
    float acted[ROWS], acted_value[ROWS], log_prob[ROWS], entropy[ROWS], value[ROWS], only_value[ROWS];
    corral_policy_act(&f.layout, f.weights, f.ws, f.obs, mask_of(&f), ROWS, false, &f.rng, f.action, acted,
                      acted_value);
    corral_policy_evaluate(&f.layout, f.weights, f.ws, f.obs, mask_of(&f), f.action, ROWS, log_prob, entropy,
                           value);
    corral_policy_value(&f.layout, f.weights, f.ws, f.obs, ROWS, only_value);
    assert_memory_equal(acted, log_prob, sizeof acted);
    assert_memory_equal(acted_value, value, sizeof value);
    assert_memory_equal(only_value, value, sizeof value);
    double *weights = malloc(f.layout.floats * sizeof *weights);
    for (uint64_t i = 0; i < f.layout.floats; i++) {
        weights[i] = f.weights[i];
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        double lp, en, va;
        reference_row(&f, weights, r, &lp, &en, &va);
        assert_true(fabs(log_prob[r] - lp) < 2e-5 * (1 + fabs(lp)));
        assert_true(fabs(entropy[r] - en) < 2e-5);
        assert_true(fabs(value[r] - va) < 2e-5 * (1 + fabs(va)));
    }
    free(weights);
    drop(&f);
}

static void evaluate_matches_a_scalar_reference_and_act(void **state)
{
    (void)state;
    for (int kind = CORRAL_ACTION_DISCRETE; kind <= CORRAL_ACTION_CONTINUOUS; kind++) {
        check_evaluate((enum corral_action_kind)kind, CORRAL_TANH, false);
        check_evaluate((enum corral_action_kind)kind, CORRAL_TANH, true);
        check_evaluate((enum corral_action_kind)kind, CORRAL_RELU, true);
    }
}

/* sum over rows of cl log_prob + ce entropy + cv value, in double. */
static double objective(const struct fixture *f, const double *w, const float *cl, const float *ce,
                        const float *cv)
{
    double sum = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        double lp, en, va;
        reference_row(f, w, r, &lp, &en, &va);
        sum += (double)cl[r] * lp + (double)ce[r] * en + (double)cv[r] * va;
    }
    return sum;
}

static void check_backward(enum corral_action_kind kind, enum corral_activation act)
{
    struct fixture f;
    build(&f, kind, act, true);
    float log_prob[ROWS], entropy[ROWS], value[ROWS], cl[ROWS], ce[ROWS], cv[ROWS];
    corral_policy_act(&f.layout, f.weights, f.ws, f.obs, mask_of(&f), ROWS, false, &f.rng, f.action, log_prob,
                      NULL);
    for (uint32_t r = 0; r < ROWS; r++) {
        cl[r] = (float)corral_rng_normal(&f.rng);
        ce[r] = (float)corral_rng_normal(&f.rng);
        cv[r] = (float)corral_rng_normal(&f.rng);
    }
    float *grad = calloc(f.layout.trainable_floats, sizeof *grad);
    corral_policy_evaluate(&f.layout, f.weights, f.ws, f.obs, mask_of(&f), f.action, ROWS, log_prob, entropy,
                           value);
    corral_policy_backward(&f.layout, f.weights, f.ws, cl, ce, cv, grad);
    double *w = malloc(f.layout.floats * sizeof *w);
    for (uint64_t i = 0; i < f.layout.floats; i++) {
        w[i] = f.weights[i];
    }
    for (uint32_t t = 0; t < corral_policy_stats_at(&f.layout); t++) {
        for (uint64_t i = 0; i < f.layout.tensor[t].count; i++) {
            uint64_t at = f.layout.tensor[t].offset + i;
            double keep = w[at], h = 1e-5;
            w[at] = keep + h;
            double up = objective(&f, w, cl, ce, cv);
            w[at] = keep - h;
            double slope = (up - objective(&f, w, cl, ce, cv)) / (2 * h);
            w[at] = keep;
            if (fabs(grad[at] - slope) > 1e-3 * (1 + fabs(slope))) {
                fail_msg("%s[%lu]: %g, by differences %g", f.layout.tensor[t].name, (unsigned long)i,
                         (double)grad[at], slope);
            }
        }
    }
    free(w);
    free(grad);
    drop(&f);
}

static void backward_matches_finite_differences(void **state)
{
    (void)state;
    for (int kind = CORRAL_ACTION_DISCRETE; kind <= CORRAL_ACTION_CONTINUOUS; kind++) {
        check_backward((enum corral_action_kind)kind, CORRAL_TANH);
        check_backward((enum corral_action_kind)kind, CORRAL_RELU);
    }
}

static void indexed_normalised_rows_give_the_same_bits(void **state)
{
    (void)state;
    struct fixture f;
    build(&f, CORRAL_ACTION_MULTI_DISCRETE, CORRAL_TANH, true);
    float normalised[ROWS * DIM], a[ROWS], b[ROWS], e[ROWS], v[ROWS], w[ROWS], x[ROWS];
    corral_policy_act(&f.layout, f.weights, f.ws, f.obs, f.mask, ROWS, false, &f.rng, f.action, a, v);
    corral_policy_normalise(&f.layout, f.weights, f.obs, ROWS, normalised);
    uint32_t index[ROWS];
    corral_rng_permutation(&f.rng, index, ROWS);
    struct corral_policy_batch batch = {.obs = normalised,
                                        .obs_normalised = true,
                                        .mask = f.mask,
                                        .action = f.action,
                                        .index = index,
                                        .n = ROWS - 4};
    corral_policy_evaluate_batch(&f.layout, f.weights, f.ws, &batch, b, e, w);
    corral_policy_value_batch(&f.layout, f.weights, f.ws, &batch, x);
    for (uint32_t i = 0; i < ROWS - 4; i++) {
        assert_memory_equal(&a[index[i]], &b[i], sizeof a[0]);
        assert_memory_equal(&v[index[i]], &w[i], sizeof v[0]);
        assert_memory_equal(&v[index[i]], &x[i], sizeof v[0]);
    }
    drop(&f);
}

static void samples_follow_the_probabilities_and_the_mask(void **state)
{
    (void)state;
    struct fixture f;
    build(&f, CORRAL_ACTION_MULTI_DISCRETE, CORRAL_TANH, true);
    enum { DRAWS = 20000 };
    static uint32_t hits[ROWS][9];
    memset(hits, 0, sizeof hits);
    float lp[ROWS], entropy[ROWS], value[ROWS];
    for (uint32_t k = 0; k < DRAWS; k++) {
        corral_policy_act(&f.layout, f.weights, f.ws, f.obs, f.mask, ROWS, false, &f.rng, f.action, lp, NULL);
        for (uint32_t r = 0; r < ROWS; r++) {
            hits[r][f.action[r * 3]]++;
            hits[r][2 + f.action[r * 3 + 1]]++;
            hits[r][5 + f.action[r * 3 + 2]]++;
        }
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        const uint8_t *legal = f.mask + r * 9;
        bool any = legal[5] || legal[6] || legal[7] || legal[8];
        double total = 0;
        for (int32_t j = 0; j < 4; j++) {
            /* Probability of choice j of the last component: the others' log-probabilities cancel. */
            for (uint32_t q = 0; q < ROWS; q++) {
                f.action[q * 3 + 2] = j;
            }
            corral_policy_evaluate(&f.layout, f.weights, f.ws, f.obs, f.mask, f.action, ROWS, lp, entropy,
                                   value);
            if (any && !legal[5 + j]) {
                assert_int_equal(hits[r][5 + j], 0);
                assert_true(lp[r] < -1e20f);
                continue;
            }
            total += exp((double)lp[r]);
        }
        for (int32_t j = 0; j < 4; j++) {
            for (uint32_t q = 0; q < ROWS; q++) {
                f.action[q * 3 + 2] = j;
            }
            corral_policy_evaluate(&f.layout, f.weights, f.ws, f.obs, f.mask, f.action, ROWS, lp, entropy,
                                   value);
            double p = exp((double)lp[r]) / total, seen = hits[r][5 + j] / (double)DRAWS;
            assert_true(fabs(seen - p) < 5 * sqrt(p * (1 - p) / DRAWS) + 1e-9);
        }
    }
    drop(&f);
}

static void greedy_takes_the_likeliest_legal_choice(void **state)
{
    (void)state;
    struct fixture f;
    build(&f, CORRAL_ACTION_DISCRETE, CORRAL_TANH, true);
    float best[ROWS], lp[ROWS], entropy[ROWS], value[ROWS];
    corral_policy_act(&f.layout, f.weights, f.ws, f.obs, f.mask, ROWS, true, NULL, f.action, best, NULL);
    for (int32_t j = 0; j < 2; j++) {
        for (uint32_t r = 0; r < ROWS; r++) {
            f.action[r] = j;
        }
        corral_policy_evaluate(&f.layout, f.weights, f.ws, f.obs, f.mask, f.action, ROWS, lp, entropy, value);
        for (uint32_t r = 0; r < ROWS; r++) {
            assert_true(lp[r] <= best[r]);
        }
    }
    drop(&f);
}

static void broken_weights_never_give_an_illegal_action(void **state)
{
    (void)state;
    struct fixture f;
    build(&f, CORRAL_ACTION_MULTI_DISCRETE, CORRAL_TANH, true);
    f.weights[f.layout.tensor[corral_policy_weight_at(&f.layout, CORRAL_TOWER_POLICY, 2)].offset] = NAN;
    for (uint32_t r = 0; r < ROWS; r++) {
        const uint8_t only[9] = {0, 1, 0, 0, 1, 0, 1, 0, 0};
        memcpy(f.mask + r * 9, only, sizeof only);
    }
    for (int greedy = 0; greedy < 2; greedy++) {
        float lp[ROWS];
        corral_policy_act(&f.layout, f.weights, f.ws, f.obs, f.mask, ROWS, greedy, &f.rng, f.action, lp,
                          NULL);
        for (uint32_t r = 0; r < ROWS; r++) {
            assert_true(f.action[r * 3] == 1 && f.action[r * 3 + 1] == 2 && f.action[r * 3 + 2] == 1);
        }
    }
    drop(&f);
}

static enum corral_status refuse(void *ctx, size_t bytes, const char *what, void **out,
                                 struct corral_error *err)
{
    (void)ctx;
    (void)out;
    return corral_fail(err, CORRAL_DENIED, "%s: %zu bytes denied", what, bytes);
}

static void a_denied_workspace_leaves_nothing(void **state)
{
    (void)state;
    struct corral_error err;
    struct fixture f;
    build(&f, CORRAL_ACTION_DISCRETE, CORRAL_TANH, true);
    const struct corral_allocator never = {.alloc = refuse};
    struct corral_policy_workspace *ws = NULL;
    check_status(corral_policy_workspace_create(&ws, &f.layout, 8, true, &never, &err), CORRAL_DENIED);
    assert_null(ws);
    check_status(corral_policy_workspace_create(&ws, &f.layout, 0, true, &corral_allocator_heap, &err),
                 CORRAL_INVALID);
    drop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evaluate_matches_a_scalar_reference_and_act),
        cmocka_unit_test(backward_matches_finite_differences),
        cmocka_unit_test(indexed_normalised_rows_give_the_same_bits),
        cmocka_unit_test(samples_follow_the_probabilities_and_the_mask),
        cmocka_unit_test(greedy_takes_the_likeliest_legal_choice),
        cmocka_unit_test(broken_weights_never_give_an_illegal_action),
        cmocka_unit_test(a_denied_workspace_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
