#include "tests/check.h"

#include "trainer-bridge/learners/return_table.h"
#include "trainer-bridge/learners/test_batch.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct corral_ppo *learner_of(const struct corral_policy_layout *layout,
                                     const struct corral_ppo_config *config)
{
    struct corral_error err;
    struct corral_ppo *p = NULL;
    check_ok(corral_ppo_create(&p, layout, config, TEST_CELLS_MAX, NULL, &corral_allocator_heap, &err));
    return p;
}

static void *state_of(const struct corral_ppo *p)
{
    void *state = malloc(corral_ppo_state_bytes(p));
    assert_non_null(state);
    corral_ppo_state_save(p, state);
    return state;
}

static enum corral_status step_on(struct corral_ppo *p, const struct test_batch *b,
                                  struct corral_ppo_stats *stats, struct corral_error *err)
{
    const struct corral_fragment *f = &b->fragment;
    return corral_ppo_step(p, &f, 1, 0.25, stats, err);
}

/* A step on a fresh batch from the learner's own weights. */
static struct corral_ppo_stats own_step(struct corral_ppo *p, const struct corral_policy_layout *layout,
                                        uint64_t seed)
{
    static struct test_batch b;
    struct corral_error err;
    struct corral_ppo_stats stats;
    test_batch_fill(&b, layout, corral_ppo_weights(p),
                    (struct test_shape){.worker = 1, .steps = 32, .rows = 8, .seed = seed});
    check_ok(step_on(p, &b, &stats, &err));
    return stats;
}

static void the_same_input_gives_the_same_bits(void **state)
{
    (void)state;
    for (int kind = CORRAL_ACTION_DISCRETE; kind <= CORRAL_ACTION_CONTINUOUS; kind++) {
        struct corral_policy_layout layout = test_layout((enum corral_action_kind)kind);
        struct corral_ppo_config config = test_config();
        config.normalise_reward = true;
        struct corral_ppo *a = learner_of(&layout, &config), *b = learner_of(&layout, &config);
        for (uint64_t s = 1; s <= 4; s++) {
            own_step(a, &layout, s);
            own_step(b, &layout, s);
        }
        void *x = state_of(a), *y = state_of(b);
        assert_memory_equal(x, y, corral_ppo_state_bytes(a));
        assert_int_equal(corral_ppo_step_count(a), 4);
        free(x);
        free(y);
        corral_ppo_destroy(a);
        corral_ppo_destroy(b);
    }
}

static void a_loaded_state_continues_bit_for_bit(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_MULTI_DISCRETE);
    struct corral_ppo_config config = test_config();
    config.normalise_reward = true;
    struct corral_ppo *a = learner_of(&layout, &config);
    own_step(a, &layout, 1);
    own_step(a, &layout, 2);
    void *saved = state_of(a);
    config.seed = 99; /* overwritten by the state */
    struct corral_ppo *b = NULL;
    check_ok(corral_ppo_create(&b, &layout, &config, 2 * TEST_CELLS_MAX, NULL, &corral_allocator_heap, &err));
    check_ok(corral_ppo_state_load(b, saved, corral_ppo_state_bytes(a), &err));
    for (uint64_t s = 3; s < 6; s++) {
        own_step(a, &layout, s);
        own_step(b, &layout, s);
    }
    void *x = state_of(a), *y = state_of(b);
    assert_memory_equal(x, y, corral_ppo_state_bytes(a));
    free(saved);
    free(x);
    free(y);
    corral_ppo_destroy(a);
    corral_ppo_destroy(b);
}

static void a_damaged_or_foreign_state_is_refused_and_changes_nothing(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE),
                                other = test_layout(CORRAL_ACTION_CONTINUOUS);
    struct corral_ppo_config config = test_config();
    struct corral_ppo *p = learner_of(&layout, &config), *q = learner_of(&other, &config);
    own_step(p, &layout, 1);
    uint64_t bytes = corral_ppo_state_bytes(p);
    uint8_t *good = state_of(p), *bad = malloc(bytes), *foreign = state_of(q);
    for (uint64_t at = 0; at < bytes; at += 97) {
        memcpy(bad, good, bytes);
        bad[at] ^= 0x10;
        check_status(corral_ppo_state_load(p, bad, bytes, &err), CORRAL_INVALID);
    }
    for (uint64_t cut = 0; cut < bytes; cut += 501) {
        check_status(corral_ppo_state_load(p, good, cut, &err), CORRAL_INVALID);
    }
    check_status(corral_ppo_state_load(p, foreign, corral_ppo_state_bytes(q), &err), CORRAL_INVALID);
    corral_ppo_state_save(p, bad);
    assert_memory_equal(good, bad, bytes);
    free(good);
    free(bad);
    free(foreign);
    corral_ppo_destroy(p);
    corral_ppo_destroy(q);
}

static void expect_refusal(struct corral_ppo *p, const struct test_batch *b, const char *because)
{
    struct corral_error err;
    struct corral_ppo_stats stats;
    void *before = state_of(p);
    check_status(step_on(p, b, &stats, &err), CORRAL_INVALID);
    if (!strstr(err.text, because)) {
        fail_msg("expected \"%s\" in: %s", because, err.text);
    }
    void *after = state_of(p);
    assert_memory_equal(before, after, corral_ppo_state_bytes(p));
    free(before);
    free(after);
}

static uint32_t first_valid(const struct test_batch *b)
{
    uint32_t at = 0;
    while (!b->valid[at]) {
        at++;
    }
    return at;
}

static void bad_fragments_are_refused_and_change_nothing(void **state)
{
    (void)state;
    static struct test_batch good, b;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    config.normalise_reward = true;
    struct corral_ppo *p = learner_of(&layout, &config);
    test_batch_fill(&good, &layout, corral_ppo_weights(p),
                    (struct test_shape){.steps = 32, .rows = 8, .seed = 5});
    uint32_t at = first_valid(&good);
#define BREAK(text, change)                                                      \
    do {                                                                         \
        test_batch_fill(&b, &layout, corral_ppo_weights(p),                      \
                        (struct test_shape){.steps = 32, .rows = 8, .seed = 5}); \
        change;                                                                  \
        expect_refusal(p, &b, text);                                             \
    } while (0)
    BREAK("rows", b.fragment.rows = 0);
    BREAK("steps", b.fragment.steps = CORRAL_FRAGMENT_STEPS_MAX + 1);
    BREAK("observation values", b.fragment.obs_dim = 4);
    BREAK("continuous", b.fragment.action_continuous = true);
    BREAK("mask bytes", b.fragment.mask_bytes = 2);
    BREAK("missing", b.fragment.obs = NULL);
    BREAK("final observation", b.fragment.boundary_count--);
    BREAK("final observation", b.boundary_at[1]++);
    BREAK("final observations for", (memset(b.truncated, 0, sizeof b.truncated)));
    BREAK("choices", b.action[at] = 3);
    BREAK("choices", b.action[at] = -1);
    BREAK("illegal",
          (b.mask[at * 3] = b.mask[at * 3 + 1] = b.mask[at * 3 + 2] = 1, b.mask[at * 3 + b.action[at]] = 0));
    BREAK("observation is not finite", b.obs[at * 3 + 1] = NAN);
    BREAK("log-probability is not finite", b.log_prob[at] = -INFINITY);
    BREAK("reward", b.reward[at] = INFINITY);
    BREAK("final observation is not finite", b.last_obs[2] = NAN);
    BREAK("no valid transition", memset(b.valid, 0, sizeof b.valid));
    BREAK("fragment 1 of worker 0", b.action[at] = 77);
#undef BREAK
    corral_ppo_destroy(p);
}

static void more_transitions_than_there_is_room_for_are_refused(void **state)
{
    (void)state;
    static struct test_batch b;
    struct corral_error err;
    struct corral_ppo_stats stats;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct corral_ppo *p = NULL;
    check_ok(corral_ppo_create(&p, &layout, &config, 300, NULL, &corral_allocator_heap, &err));
    test_batch_fill(&b, &layout, corral_ppo_weights(p),
                    (struct test_shape){.steps = 32, .rows = 8, .seed = 5});
    const struct corral_fragment *two[2] = {&b.fragment, &b.fragment};
    check_status(corral_ppo_step(p, two, 2, 0, &stats, &err), CORRAL_INVALID);
    check_ok(corral_ppo_step(p, two, 1, 0, &stats, &err));
    corral_ppo_destroy(p);
}

static void garbage_on_invalid_steps_changes_nothing(void **state)
{
    (void)state;
    static struct test_batch b;
    struct corral_error err;
    struct corral_ppo_stats stats;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct corral_ppo *clean = learner_of(&layout, &config), *dirty = learner_of(&layout, &config);
    struct test_shape shape = {.steps = 32, .rows = 8, .seed = 6};
    test_batch_fill(&b, &layout, corral_ppo_weights(clean), shape);
    check_ok(step_on(clean, &b, &stats, &err));
    for (uint32_t i = 0; i < 256; i++) {
        if (!b.valid[i]) {
            b.action[i] = -123456;
            b.obs[i * TEST_OBS] = NAN;
            b.log_prob[i] = NAN;
        }
    }
    check_ok(step_on(dirty, &b, &stats, &err));
    assert_memory_equal(corral_ppo_weights(clean), corral_ppo_weights(dirty), layout.floats * sizeof(float));
    corral_ppo_destroy(clean);
    corral_ppo_destroy(dirty);
}

static void a_loss_that_is_not_finite_rolls_the_step_back(void **state)
{
    (void)state;
    static struct test_batch b;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct corral_ppo *p = learner_of(&layout, &config);
    own_step(p, &layout, 1);
    struct test_shape shape = {.steps = 32, .rows = 8, .seed = 8};
    test_batch_fill(&b, &layout, corral_ppo_weights(p), shape);
    uint32_t at = first_valid(&b);
    b.reward[at] =
        1e30f; /* finite, but its square is not: met in some minibatch, after others have moved the weights */
    expect_refusal(p, &b, "value loss is not finite");
    b.reward[at] = 3e38f;
    b.reward[at + 8] = 3e38f;
    b.valid[at + 8] = 0;
    b.terminated[at] = b.truncated[at] = b.terminated[at + 8] = b.truncated[at + 8] = 0;
    b.fragment.boundary_count = 0;
    memset(b.truncated, 0, sizeof b.truncated);
    expect_refusal(p, &b, "value target is not finite");
    own_step(p, &layout, 2);
    corral_ppo_destroy(p);
}

/* What makes the ratio trustworthy: the version a worker acts with carries exactly the statistics the next step starts from. */
static void the_first_ratio_is_one_although_statistics_move_every_step(void **state)
{
    (void)state;
    for (int kind = CORRAL_ACTION_DISCRETE; kind <= CORRAL_ACTION_CONTINUOUS; kind++) {
        struct corral_policy_layout layout = test_layout((enum corral_action_kind)kind);
        struct corral_ppo_config config = test_config();
        config.epochs = 1;
        config.minibatch = 4096;
        struct corral_ppo *p = learner_of(&layout, &config);
        for (uint64_t s = 0; s < 5; s++) {
            struct corral_ppo_stats stats = own_step(p, &layout, s);
            assert_true(fabs(stats.ratio_max - 1) < 1e-5 && fabs(stats.approx_kl) < 1e-6 &&
                        stats.clip_fraction == 0);
        }
        corral_ppo_destroy(p);
    }
}

static void statistics_are_those_of_all_valid_observations(void **state)
{
    (void)state;
    static struct test_batch b;
    struct corral_error err;
    struct corral_ppo_stats stats;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct corral_ppo *p = learner_of(&layout, &config);
    double count = 0, sum[TEST_OBS] = {0}, square[TEST_OBS] = {0};
    for (uint64_t s = 0; s < 3; s++) {
        struct test_shape shape = {.steps = 16, .rows = 4 + (uint32_t)s, .seed = s};
        test_batch_fill(&b, &layout, corral_ppo_weights(p), shape);
        for (uint32_t i = 0; i < 16 * shape.rows; i++) {
            count += b.valid[i];
            for (uint32_t d = 0; d < TEST_OBS && b.valid[i]; d++) {
                sum[d] += b.obs[i * TEST_OBS + d];
                square[d] += (double)b.obs[i * TEST_OBS + d] * b.obs[i * TEST_OBS + d];
            }
        }
        check_ok(step_on(p, &b, &stats, &err));
    }
    const float *mean = corral_ppo_weights(p) + layout.trainable_floats;
    const float *var = mean + 16, *seen = var + 16; /* 3 floats each, padded */
    for (uint32_t d = 0; d < TEST_OBS; d++) {
        double m = sum[d] / count;
        assert_true(fabs(mean[d] - m) < 1e-5 && fabs(var[d] - (square[d] / count - m * m)) < 1e-4);
    }
    assert_true(seen[0] == (float)count);
    corral_ppo_destroy(p);
}

static void reward_scale_does_not_matter_when_rewards_are_normalised(void **state)
{
    (void)state;
    static struct test_batch b;
    struct corral_error err;
    struct corral_ppo_stats stats;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    config.normalise_reward = true;
    struct corral_ppo *small = learner_of(&layout, &config), *large = learner_of(&layout, &config);
    for (uint64_t s = 0; s < 4; s++) {
        test_batch_fill(&b, &layout, corral_ppo_weights(small),
                        (struct test_shape){.steps = 32, .rows = 8, .seed = s});
        check_ok(step_on(small, &b, &stats, &err));
        for (uint32_t i = 0; i < 256; i++) {
            b.reward[i] *= 1024; /* exact */
        }
        check_ok(step_on(large, &b, &stats, &err));
    }
    for (uint64_t i = 0; i < layout.trainable_floats; i++) {
        assert_true(fabsf(corral_ppo_weights(small)[i] - corral_ppo_weights(large)[i]) < 1e-4f);
    }
    corral_ppo_destroy(small);
    corral_ppo_destroy(large);
}

/* On-policy and with lambda 1 both estimators are the same sum. */
static void vtrace_on_fresh_data_equals_gae(void **state)
{
    (void)state;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_CONTINUOUS);
    struct corral_ppo_config config = test_config();
    config.lambda = 1;
    struct corral_ppo *gae = learner_of(&layout, &config);
    config.advantage = CORRAL_ADVANTAGE_VTRACE;
    struct corral_ppo *vtrace = learner_of(&layout, &config);
    own_step(gae, &layout, 3);
    own_step(vtrace, &layout, 3);
    for (uint64_t i = 0; i < layout.trainable_floats; i++) {
        assert_true(fabsf(corral_ppo_weights(gae)[i] - corral_ppo_weights(vtrace)[i]) < 2e-5f);
    }
    corral_ppo_destroy(gae);
    corral_ppo_destroy(vtrace);
}

static void epochs_stop_early_at_the_kl_limit(void **state)
{
    (void)state;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    config.epochs = 50;
    config.lr = config.lr_final = 1e-2;
    config.target_kl = 1e-3;
    struct corral_ppo *p = learner_of(&layout, &config);
    struct corral_ppo_stats stats = own_step(p, &layout, 1);
    assert_true(stats.epochs_done < 50 && stats.approx_kl > 1e-3);
    corral_ppo_destroy(p);
}

/* One-step episodes whose reward is known: discrete kinds want the choice named by the sign of obs[0], continuous wants it in the action. */
static double bandit_reward(const struct corral_policy_layout *layout, const struct test_batch *b, uint32_t i)
{
    float x = b->obs[i * TEST_OBS];
    if (layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS) {
        float a[2];
        memcpy(a, &b->action[i * 2], sizeof a);
        double want = x > 0 ? 0.5 : -0.5;
        return -(a[0] - want) * (a[0] - want) - (a[1] + want) * (a[1] + want);
    }
    uint32_t components = layout->spec.action.components;
    double reward = 0;
    for (uint32_t c = 0; c < components; c++) {
        reward += b->action[i * components + c] == (x > 0 ? 0 : 2);
    }
    return reward / components;
}

static void every_kind_of_action_learns_a_bandit(void **state)
{
    (void)state;
    static struct test_batch b;
    struct corral_error err;
    struct corral_ppo_stats stats;
    for (int kind = CORRAL_ACTION_DISCRETE; kind <= CORRAL_ACTION_CONTINUOUS; kind++) {
        struct corral_policy_layout layout = test_layout((enum corral_action_kind)kind);
        struct corral_ppo_config config = test_config();
        config.lr = config.lr_final = 3e-3;
        config.epochs = 6;
        config.entropy_coef = 0;
        struct corral_ppo *p = learner_of(&layout, &config);
        double first = 0, last = 0;
        for (uint64_t s = 0; s < 60; s++) {
            test_batch_fill(&b, &layout, corral_ppo_weights(p),
                            (struct test_shape){.steps = 32, .rows = 8, .seed = s});
            double sum = 0;
            b.fragment.boundary_count = 0;
            memset(b.truncated, 0, sizeof b.truncated);
            memset(b.valid, 1, sizeof b.valid);
            memset(b.terminated, 1, sizeof b.terminated);
            for (uint32_t i = 0; i < 256; i++) {
                b.reward[i] = (float)bandit_reward(&layout, &b, i);
                sum += b.reward[i] / 256;
            }
            first = s == 0 ? sum : first;
            last = sum;
            check_ok(step_on(p, &b, &stats, &err));
        }
        print_message("kind %d: mean reward %.3f at first, %.3f after 60 steps\n", kind, first, last);
        assert_true(kind == CORRAL_ACTION_CONTINUOUS ? last > -0.5 && first < -1.5 : last > first + 0.25);
        corral_ppo_destroy(p);
    }
}

static void settings_out_of_range_are_refused_by_name(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct corral_ppo *p = NULL;
    config.gamma = 1.5;
    check_status(corral_ppo_create(&p, &layout, &config, 8, NULL, &corral_allocator_heap, &err),
                 CORRAL_INVALID);
    assert_non_null(strstr(err.text, "gamma"));
    config = test_config();
    config.minibatch = 0;
    check_status(corral_ppo_create(&p, &layout, &config, 8, NULL, &corral_allocator_heap, &err),
                 CORRAL_INVALID);
    config = test_config();
    config.lr = NAN;
    check_status(corral_ppo_create(&p, &layout, &config, 8, NULL, &corral_allocator_heap, &err),
                 CORRAL_INVALID);
    config = test_config();
    check_status(corral_ppo_create(&p, &layout, &config, 0, NULL, &corral_allocator_heap, &err),
                 CORRAL_INVALID);
    assert_null(p);
}

struct counted {
    int left;
    uint64_t held;
};

static enum corral_status counted_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                        struct corral_error *err)
{
    struct counted *c = ctx;
    if (c->left-- <= 0) {
        return corral_fail(err, CORRAL_DENIED, "%s: denied", what);
    }
    CORRAL_TRY(corral_alloc(&corral_allocator_heap, bytes, what, out, err));
    c->held += bytes;
    return CORRAL_OK;
}

static void counted_release(void *ctx, void *memory, size_t bytes)
{
    struct counted *c = ctx;
    c->held -= memory ? bytes : 0;
    corral_release(&corral_allocator_heap, memory, bytes);
}

static void all_memory_comes_from_the_allocator_and_goes_back(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct counted c = {0};
    const struct corral_allocator memory = {.alloc = counted_alloc, .release = counted_release, .ctx = &c};
    struct corral_ppo *p = NULL;
    int allowed = 0;
    for (;; allowed++) {
        c = (struct counted){.left = allowed};
        if (corral_ppo_create(&p, &layout, &config, TEST_CELLS_MAX, NULL, &memory, &err) == CORRAL_OK) {
            break;
        }
        assert_int_equal(err.status, CORRAL_DENIED);
        assert_int_equal(c.held, 0);
    }
    assert_true(allowed >= 1 && c.held > 0);
    uint64_t held = c.held;
    own_step(p, &layout, 1);
    assert_int_equal(c.held, held);
    corral_ppo_destroy(p);
    assert_int_equal(c.held, 0);
}

static void returns_survive_rollback_restart_and_a_full_table(void **state)
{
    (void)state;
    struct corral_return_table t = {.changes_max = 40000};
    t.slots = calloc(CORRAL_RETURN_SLOTS, sizeof *t.slots);
    t.changes = calloc(t.changes_max, sizeof *t.changes);
    corral_return_set(&t, 1, 1, 5, 2.5);
    corral_return_commit(&t);
    corral_return_set(&t, 1, 1, 5, 7);
    corral_return_set(&t, 1, 1, 6, 8);
    corral_return_set(&t, 1, 1, 5, 9);
    corral_return_rollback(&t);
    assert_true(corral_return_get(&t, 1, 1, 5) == 2.5 && corral_return_get(&t, 1, 1, 6) == 0 && t.used == 1);
    assert_true(corral_return_get(&t, 1, 2, 5) == 0); /* the worker started again */
    for (uint32_t row = 0; row < 30000; row++) {
        corral_return_set(&t, 2, 1, row, row + 1.0);
    }
    assert_int_equal(t.used, CORRAL_RETURN_ROWS_MAX);
    assert_true(corral_return_get(&t, 1, 1, 5) == 2.5 && corral_return_get(&t, 2, 1, 100) == 101);
    assert_true(corral_return_get(&t, 2, 1, 29999) == 0);
    corral_return_rollback(&t);
    assert_int_equal(t.used, 1);
    free(t.slots);
    free(t.changes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_input_gives_the_same_bits),
        cmocka_unit_test(a_loaded_state_continues_bit_for_bit),
        cmocka_unit_test(a_damaged_or_foreign_state_is_refused_and_changes_nothing),
        cmocka_unit_test(bad_fragments_are_refused_and_change_nothing),
        cmocka_unit_test(more_transitions_than_there_is_room_for_are_refused),
        cmocka_unit_test(garbage_on_invalid_steps_changes_nothing),
        cmocka_unit_test(a_loss_that_is_not_finite_rolls_the_step_back),
        cmocka_unit_test(the_first_ratio_is_one_although_statistics_move_every_step),
        cmocka_unit_test(statistics_are_those_of_all_valid_observations),
        cmocka_unit_test(reward_scale_does_not_matter_when_rewards_are_normalised),
        cmocka_unit_test(vtrace_on_fresh_data_equals_gae),
        cmocka_unit_test(epochs_stop_early_at_the_kl_limit),
        cmocka_unit_test(every_kind_of_action_learns_a_bandit),
        cmocka_unit_test(settings_out_of_range_are_refused_by_name),
        cmocka_unit_test(all_memory_comes_from_the_allocator_and_goes_back),
        cmocka_unit_test(returns_survive_rollback_restart_and_a_full_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
