#include "tests/check.h"

#include "base/rng.h"
#include "rollout/worker/fragment_builder.h"
#include <stdlib.h>
#include <string.h>

#define ENVS 3
#define AGENTS 2
#define ROWS (ENVS * AGENTS)
#define OBS 2
#define STEPS 8

/* A vector whose every step the test writes by hand. */
struct stage {
    float obs[ROWS * OBS], reward[ROWS], final_obs[ROWS * OBS];
    int32_t action[ROWS];
    uint8_t terminated[ROWS], truncated[ROWS], active[ROWS];
    int32_t status[ENVS];
    uint32_t episode_steps[ENVS];
    struct corral_vec_view view;
    struct corral_fragment_builder b;
    uint32_t now; /* steps so far, which marks observations, actions and log-probabilities */
};

static struct stage *stage_new(uint32_t agents, uint32_t steps)
{
    struct corral_error err = {0};
    struct stage *s = calloc(1, sizeof *s);
    assert_non_null(s);
    memset(s->active, 1, sizeof s->active);
    s->view = (struct corral_vec_view){.envs = ROWS / agents,
                                       .agents = agents,
                                       .rows = ROWS,
                                       .obs_dim = OBS,
                                       .action_components = 1,
                                       .obs = s->obs,
                                       .action = s->action,
                                       .reward = s->reward,
                                       .terminated = s->terminated,
                                       .truncated = s->truncated,
                                       .active = s->active,
                                       .final_obs = s->final_obs,
                                       .status = s->status,
                                       .episode_steps = s->episode_steps};
    if (agents == 1) {
        s->view.envs = ENVS;
        s->view.rows = ENVS;
    }
    check_ok(corral_fragment_builder_open(&s->b, &s->view, false, steps, &corral_allocator_heap, &err));
    return s;
}

static void stage_free(struct stage *s)
{
    corral_fragment_builder_close(&s->b);
    free(s);
}

/* Record one step with what the test has put on the stage; reward 1 for everyone unless it says otherwise. */
static void step(struct stage *s)
{
    for (uint32_t row = 0; row < s->view.rows; row++) {
        s->obs[row * OBS] = (float)s->now;
        s->obs[row * OBS + 1] = (float)row;
        s->action[row] = (int32_t)(s->now * 100 + row);
        corral_fragment_builder_log_prob(&s->b)[row] = -(float)s->now;
    }
    corral_fragment_builder_before_step(&s->b, &s->view, 1000 + s->now);
    s->now++;
    for (uint32_t row = 0; row < s->view.rows; row++) {
        s->obs[row * OBS] = (float)s->now;
        s->final_obs[row * OBS] = -(float)s->now;
    }
    corral_fragment_builder_after_step(&s->b, &s->view);
    memset(s->terminated, 0, sizeof s->terminated);
    memset(s->truncated, 0, sizeof s->truncated);
    memset(s->status, 0, sizeof s->status);
    memset(s->active, 1, sizeof s->active);
    for (uint32_t row = 0; row < ROWS; row++) {
        s->reward[row] = 1;
    }
}

static uint64_t at(const struct stage *s, uint32_t t, uint32_t row)
{
    return (uint64_t)t * s->view.rows + row;
}

static void records_what_was_seen_and_done(void **state)
{
    (void)state;
    struct stage *s = stage_new(1, 4);
    s->reward[1] = 7;
    for (uint32_t t = 0; t < 4; t++) {
        assert_false(corral_fragment_builder_full(&s->b));
        step(s);
    }
    assert_true(corral_fragment_builder_full(&s->b));
    const struct corral_fragment *f = &s->b.fragment;
    assert_int_equal(f->steps, 4);
    assert_int_equal(f->rows, ENVS);
    for (uint32_t t = 0; t < 4; t++) {
        assert_int_equal(f->version[t], 1000 + t);
        for (uint32_t row = 0; row < ENVS; row++) {
            assert_true(f->obs[at(s, t, row) * OBS] == (float)t &&
                        f->obs[at(s, t, row) * OBS + 1] == (float)row);
            assert_int_equal(((const int32_t *)f->action)[at(s, t, row)], t * 100 + row);
            assert_true(f->log_prob[at(s, t, row)] == -(float)t);
            assert_true(f->reward[at(s, t, row)] == (t == 0 && row == 1 ? 7 : t == 0 ? 0 : 1));
            assert_int_equal(f->valid[at(s, t, row)], 1);
        }
    }
    assert_true(f->last_obs[0] == 4);
    assert_int_equal(f->boundary_count, 0);
    assert_int_equal(f->episode_count, 0);
    stage_free(s);
}

static void a_truncation_keeps_its_last_observation(void **state)
{
    (void)state;
    struct stage *s = stage_new(1, 4);
    step(s);
    s->truncated[2] = 1;
    s->episode_steps[2] = 2;
    step(s);
    s->truncated[0] = s->terminated[0] = 1; /* both: the end counts */
    step(s);
    s->terminated[1] = 1;
    step(s);
    const struct corral_fragment *f = &s->b.fragment;
    assert_int_equal(f->boundary_count, 1);
    assert_int_equal(f->boundary_at[0], at(s, 1, 2));
    assert_true(f->boundary_obs[0] == -2);
    assert_int_equal(f->truncated[at(s, 1, 2)], 1);
    assert_int_equal(f->terminated[at(s, 3, 1)], 1);
    assert_int_equal(f->episode_count, 3);
    assert_true(f->episode[0] == 1 && f->episode[1] == 2); /* first step's reward was 0 */
    stage_free(s);
}

static void a_return_spans_fragments(void **state)
{
    (void)state;
    struct stage *s = stage_new(1, 4);
    for (uint32_t t = 0; t < 4; t++) {
        step(s);
    }
    corral_fragment_builder_next(&s->b);
    assert_int_equal(s->b.fragment.episode_count, 0);
    step(s);
    s->terminated[0] = 1;
    s->episode_steps[0] = 6;
    step(s);
    s->terminated[0] = 1;
    s->episode_steps[0] = 1;
    step(s);
    const struct corral_fragment *f = &s->b.fragment;
    assert_int_equal(f->episode_count, 2);
    assert_true(f->episode[0] == 5 && f->episode[1] == 6);
    assert_true(f->episode[2] == 1 && f->episode[3] == 1);
    stage_free(s);
}

static void expect_void(const struct stage *s, uint32_t row, uint32_t from, uint32_t to)
{
    const struct corral_fragment *f = &s->b.fragment;
    for (uint32_t t = from; t <= to; t++) {
        assert_int_equal(f->valid[at(s, t, row)], 0);
        assert_true(f->reward[at(s, t, row)] == 0);
    }
    assert_int_equal(f->terminated[at(s, to, row)], 1);
    assert_int_equal(f->truncated[at(s, to, row)], 0);
}

static void a_void_episode_is_never_trained_on(void **state)
{
    (void)state;
    struct stage *s = stage_new(1, STEPS);
    step(s);
    s->terminated[1] = 1; /* step 1 ends the first episode of row 1 */
    step(s);
    step(s);
    s->status[1] = CORRAL_INFRA; /* step 3 voids the second, which began with step 2 */
    s->reward[1] = 1e9f;
    step(s);
    step(s);
    expect_void(s, 1, 2, 3);
    const struct corral_fragment *f = &s->b.fragment;
    for (uint32_t t = 0; t < 5; t++) {
        assert_int_equal(f->valid[at(s, t, 1)], t < 2 || t == 4);
        assert_int_equal(f->valid[at(s, t, 0)], 1);
        assert_int_equal(f->terminated[at(s, t, 0)], 0);
    }
    assert_int_equal(f->episode_count, 1);
    assert_int_equal(s->b.void_episodes, 1);
    s->terminated[1] = 1;
    s->episode_steps[1] = 2;
    step(s);
    assert_int_equal(f->episode_count, 2);
    assert_true(f->episode[2] == 2); /* nothing of the void one in the return */
    stage_free(s);
}

static void a_void_reaches_back_to_the_start_of_its_fragment(void **state)
{
    (void)state;
    struct stage *s = stage_new(1, 4);
    for (uint32_t t = 0; t < 4; t++) {
        step(s);
    }
    corral_fragment_builder_next(&s->b);
    step(s);
    s->status[0] = CORRAL_INFRA;
    step(s);
    expect_void(s, 0, 0, 1);
    assert_int_equal(s->b.void_episodes, 1);
    s->terminated[0] = 1;
    step(s);
    assert_true(s->b.fragment.episode[0] == 1);
    stage_free(s);
}

/* An agent that is done before the others has played in an episode that turns out void: what it did is thrown away with it. */
static void a_void_takes_agents_that_were_done_early_with_it(void **state)
{
    (void)state;
    struct stage *s = stage_new(AGENTS, STEPS);
    step(s);
    s->terminated[2] = 1; /* environment 1, agent 0; its episode goes on */
    s->episode_steps[1] = 2;
    step(s);
    s->terminated[0] = s->terminated[1] = 1; /* environment 0 ends in order */
    s->episode_steps[0] = 3;
    s->active[2] = 0;
    step(s);
    s->status[1] = CORRAL_INFRA;
    s->active[2] = 0;
    step(s);
    expect_void(s, 2, 0, 3);
    expect_void(s, 3, 0, 3);
    const struct corral_fragment *f = &s->b.fragment;
    assert_int_equal(f->episode_count, 2);
    assert_true(f->episode[1] == 3 && f->episode[3] == 3); /* environment 0's, both agents */
    assert_int_equal(s->b.void_episodes, 1);
    for (uint32_t t = 0; t < 4; t++) {
        assert_int_equal(f->valid[at(s, t, 0)], 1);
        assert_int_equal(f->valid[at(s, t, 4)], 1);
    }
    step(s);
    assert_int_equal(f->valid[at(s, 4, 2)], 1);
    s->status[1] = CORRAL_INFRA;
    step(s);
    expect_void(s, 2, 4, 5);
    assert_int_equal(f->episode_count, 2); /* an earlier episode's entries stay */
    stage_free(s);
}

static void an_environment_that_is_down_voids_one_episode_only(void **state)
{
    (void)state;
    struct stage *s = stage_new(1, STEPS);
    step(s);
    for (uint32_t t = 0; t < 4; t++) {
        s->status[2] = CORRAL_INFRA;
        s->active[2] = t == 0;
        step(s);
    }
    assert_int_equal(s->b.void_episodes, 1);
    expect_void(s, 2, 0, 1);
    expect_void(s, 2, 2, 4);
    stage_free(s);
}

static void rows_that_do_not_decide_are_not_valid(void **state)
{
    (void)state;
    struct stage *s = stage_new(AGENTS, 4);
    for (uint32_t t = 0; t < 4; t++) {
        for (uint32_t row = 0; row < ROWS; row++) {
            s->active[row] = row % AGENTS == t % AGENTS;
        }
        step(s);
    }
    for (uint32_t t = 0; t < 4; t++) {
        for (uint32_t row = 0; row < ROWS; row++) {
            assert_int_equal(s->b.fragment.valid[at(s, t, row)], row % AGENTS == t % AGENTS);
        }
    }
    stage_free(s);
}

/* Random ends and voids against the plain rule: a step is valid unless its environment's episode was voided later in the same fragment. */
static void random_ends_and_voids_follow_the_rule(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 9);
    for (int round = 0; round < 200; round++) {
        struct stage *s = stage_new(AGENTS, STEPS);
        uint8_t done[ROWS] = {0}, valid[STEPS][ROWS], over[ENVS];
        uint32_t began[ENVS] = {0}, entries[ENVS] = {0}, running[ENVS] = {0};
        for (uint32_t t = 0; t < STEPS; t++) {
            memcpy(s->active, done, sizeof done);
            for (uint32_t row = 0; row < ROWS; row++) {
                s->active[row] = !done[row];
                valid[t][row] = !done[row];
            }
            for (uint32_t env = 0; env < ENVS; env++) {
                s->status[env] = corral_rng_below(&rng, 12) == 0 ? CORRAL_INFRA : 0;
                over[env] = s->status[env] != 0;
                for (uint32_t row = env * AGENTS; row < (env + 1) * AGENTS && !over[env]; row++) {
                    if (!done[row] && corral_rng_below(&rng, 4) == 0) {
                        s->terminated[row] = corral_rng_below(&rng, 2) == 0;
                        s->truncated[row] = !s->terminated[row];
                        done[row] = 1;
                        running[env]++;
                    }
                }
                bool all = done[env * AGENTS] && done[env * AGENTS + 1];
                for (uint32_t past = began[env]; over[env] && past <= t; past++) {
                    valid[past][env * AGENTS] = valid[past][env * AGENTS + 1] = 0;
                }
                if (over[env] || all) {
                    entries[env] += all ? running[env] : 0;
                    running[env] = 0;
                    done[env * AGENTS] = done[env * AGENTS + 1] = 0;
                    began[env] = t + 1;
                }
            }
            step(s);
        }
        for (uint32_t t = 0; t < STEPS; t++) {
            assert_memory_equal(s->b.fragment.valid + t * ROWS, valid[t], ROWS);
        }
        uint32_t expected = 0;
        for (uint32_t env = 0; env < ENVS; env++) {
            expected += entries[env] + running[env];
        }
        assert_int_equal(s->b.fragment.episode_count, expected);
        for (uint32_t i = 1; i < s->b.fragment.boundary_count; i++) {
            assert_true(s->b.fragment.boundary_at[i - 1] < s->b.fragment.boundary_at[i]);
        }
        stage_free(s);
    }
}

static enum corral_status deny(void *ctx, size_t bytes, const char *what, void **out,
                               struct corral_error *err)
{
    (void)ctx, (void)bytes, (void)out;
    return corral_fail(err, CORRAL_DENIED, "%s: denied", what);
}

static void a_denied_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct stage *s = stage_new(1, 2);
    struct corral_fragment_builder b;
    const struct corral_allocator none = {.alloc = deny};
    check_status(corral_fragment_builder_open(&b, &s->view, false, 4, &none, &err), CORRAL_DENIED);
    corral_fragment_builder_close(&b);
    stage_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_what_was_seen_and_done),
        cmocka_unit_test(a_truncation_keeps_its_last_observation),
        cmocka_unit_test(a_return_spans_fragments),
        cmocka_unit_test(a_void_episode_is_never_trained_on),
        cmocka_unit_test(a_void_reaches_back_to_the_start_of_its_fragment),
        cmocka_unit_test(a_void_takes_agents_that_were_done_early_with_it),
        cmocka_unit_test(an_environment_that_is_down_voids_one_episode_only),
        cmocka_unit_test(rows_that_do_not_decide_are_not_valid),
        cmocka_unit_test(random_ends_and_voids_follow_the_rule),
        cmocka_unit_test(a_denied_allocation_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
