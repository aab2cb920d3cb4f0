#include "tests/check.h"

#include "model/policy_batch.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct corral_policy_spec spec_of(enum corral_action_kind kind)
{
    struct corral_policy_spec s = {.obs_dim = 5, .layers = 2, .hidden = {24, 40}, .log_std_init = -0.5f};
    s.action.kind = kind;
    s.action.components = kind == CORRAL_ACTION_DISCRETE ? 1 : 3;
    for (uint32_t c = 0; c < 3; c++) {
        s.action.choices[c] = 2 + c;
        s.action.low[c] = -1;
        s.action.high[c] = 1;
    }
    return s;
}

static void tensors_are_aligned_and_do_not_overlap(void **state)
{
    (void)state;
    struct corral_error err;
    for (int kind = CORRAL_ACTION_DISCRETE; kind <= CORRAL_ACTION_CONTINUOUS; kind++) {
        struct corral_policy_spec s = spec_of((enum corral_action_kind)kind);
        struct corral_policy_layout l;
        check_ok(corral_policy_layout_build(&s, &l, &err));
        uint64_t end = 0;
        for (uint32_t i = 0; i < l.tensors; i++) {
            assert_int_equal(l.tensor[i].offset % 16, 0);
            assert_true(l.tensor[i].offset >= end);
            end = l.tensor[i].offset + l.tensor[i].count;
        }
        assert_true(end <= l.floats && l.floats % 16 == 0);
        uint32_t stats = corral_policy_stats_at(&l);
        assert_string_equal(l.tensor[stats].name, "obs.mean");
        assert_string_equal(l.tensor[stats + 2].name, "obs.count");
        assert_int_equal(l.tensor[stats].offset, l.trainable_floats);
        assert_string_equal(l.tensor[corral_policy_weight_at(&l, CORRAL_TOWER_POLICY, 2)].name,
                            "policy.head.weight");
        assert_string_equal(l.tensor[corral_policy_weight_at(&l, CORRAL_TOWER_VALUE, 1)].name,
                            "value.1.weight");
        if (kind == CORRAL_ACTION_CONTINUOUS) {
            assert_string_equal(l.tensor[corral_policy_log_std_at(&l)].name, "log_std");
        }
    }
}

static void the_cartpole_policy_has_2531_parameters(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_spec s = {.obs_dim = 4, .layers = 2, .hidden = {32, 32}};
    s.action = (struct corral_action_spec){.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}};
    struct corral_policy_layout l;
    check_ok(corral_policy_layout_build(&s, &l, &err));
    assert_int_equal(l.parameters, 2531);
}

static void refuses_specs_out_of_range(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_layout l;
    struct corral_policy_spec s = spec_of(CORRAL_ACTION_DISCRETE);
    s.obs_dim = 0;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_DISCRETE);
    s.action.components = 2;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_MULTI_DISCRETE);
    s.action.choices[1] = CORRAL_ACTION_CHOICES_MAX + 1;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_MULTI_DISCRETE);
    s.action.components = CORRAL_ACTION_COMPONENTS_MAX + 1;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_CONTINUOUS);
    s.action.high[2] = NAN;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_CONTINUOUS);
    s.log_std_init = INFINITY;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_DISCRETE);
    s.hidden[1] = CORRAL_POLICY_WIDTH_MAX + 1;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
    s = spec_of(CORRAL_ACTION_DISCRETE);
    s.layers = 0;
    check_status(corral_policy_layout_build(&s, &l, &err), CORRAL_INVALID);
}

/* Rows (wide) or columns (tall) must be orthonormal up to the gain. */
static void check_orthogonal(const float *w, uint64_t rows, uint64_t cols, double gain)
{
    bool wide = rows <= cols;
    uint64_t vectors = wide ? rows : cols, length = wide ? cols : rows;
    for (uint64_t a = 0; a < vectors; a++) {
        for (uint64_t b = 0; b <= a; b++) {
            double sum = 0;
            for (uint64_t i = 0; i < length; i++) {
                sum += wide ? (double)w[a * cols + i] * w[b * cols + i]
                            : (double)w[i * cols + a] * w[i * cols + b];
            }
            assert_true(fabs(sum / (gain * gain) - (a == b)) < 1e-5);
        }
    }
}

static void fresh_weights_are_orthogonal_with_the_papers_gains(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_spec s = spec_of(CORRAL_ACTION_CONTINUOUS);
    struct corral_policy_layout l;
    check_ok(corral_policy_layout_build(&s, &l, &err));
    float *w = malloc(l.floats * sizeof *w);
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    corral_policy_init(&l, w, &rng);
    for (uint32_t layer = 0; layer < 3; layer++) {
        const struct corral_policy_tensor *p =
            &l.tensor[corral_policy_weight_at(&l, CORRAL_TOWER_POLICY, layer)];
        const struct corral_policy_tensor *v =
            &l.tensor[corral_policy_weight_at(&l, CORRAL_TOWER_VALUE, layer)];
        check_orthogonal(w + p->offset, p->shape[0], p->shape[1], layer == 2 ? 0.01 : sqrt(2.0));
        check_orthogonal(w + v->offset, v->shape[0], v->shape[1], layer == 2 ? 1.0 : sqrt(2.0));
        for (uint64_t i = 0; i < p[1].count; i++) {
            assert_true(w[p[1].offset + i] == 0);
        }
    }
    uint32_t stats = corral_policy_stats_at(&l);
    assert_true(w[l.tensor[corral_policy_log_std_at(&l)].offset + 2] == -0.5f);
    assert_true(w[l.tensor[stats].offset] == 0 && w[l.tensor[stats + 1].offset + 4] == 1 &&
                w[l.tensor[stats + 2].offset] == 0);
    free(w);
}

static void named_views_cover_the_buffer_without_padding(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_spec s = spec_of(CORRAL_ACTION_CONTINUOUS);
    struct corral_policy_layout l;
    check_ok(corral_policy_layout_build(&s, &l, &err));
    float *w = calloc(l.floats, sizeof *w);
    struct corral_tensor views[CORRAL_POLICY_TENSORS_MAX];
    uint32_t count = corral_policy_tensors(&l, w, views, CORRAL_POLICY_TENSORS_MAX);
    assert_int_equal(count, l.tensors);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t elements = views[i].shape[0] * (views[i].rank == 2 ? views[i].shape[1] : 1);
        assert_int_equal(views[i].bytes, elements * 4);
        assert_ptr_equal(views[i].data, w + l.tensor[i].offset);
        assert_string_equal(views[i].name, l.tensor[i].name);
    }
    assert_int_equal(corral_policy_tensors(&l, w, views, 0), l.tensors);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_aligned_and_do_not_overlap),
        cmocka_unit_test(the_cartpole_policy_has_2531_parameters),
        cmocka_unit_test(refuses_specs_out_of_range),
        cmocka_unit_test(fresh_weights_are_orthogonal_with_the_papers_gains),
        cmocka_unit_test(named_views_cover_the_buffer_without_padding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
