/* GridWorld against a walk worked out here, from observations and the documented snapshot alone. */
#include "envs/batch_for_tests.h"

struct grid_snapshot {
    uint32_t kind, version;
    uint64_t stream_seed, episode;
    uint32_t steps, reserved, cell, goal;
    uint64_t fingerprint;
};

static struct grid_snapshot where(struct batch *b, uint32_t id)
{
    struct grid_snapshot s;
    assert_int_equal(batch_snapshot(b, id, &s), sizeof s);
    return s;
}

static bool fails(const char *args)
{
    struct batch b;
    batch_load(&b, "gridworld");
    enum corral_env_status status = b.ops->describe(args, &b.spec, b.error, sizeof b.error);
    bool told = b.error[0] != '\0';
    dlclose(b.library);
    return status == CORRAL_ENV_INVALID && told;
}

static void put(struct batch *b, uint32_t cell, uint32_t goal, uint32_t steps)
{
    struct grid_snapshot s = where(b, 0);
    s.cell = cell;
    s.goal = goal;
    s.steps = steps;
    assert_int_equal(b->ops->restore(b->env, 0, &s, sizeof s), CORRAL_ENV_OK);
}

static void near_to(double got, double want)
{
    assert_true(fabs(got - want) < 1e-6);
}

/* 3 x 3 with a wall in the middle:  0 1 2 / 3 # 5 / 6 7 8 */
static void walks_bumps_and_arrives(void **state)
{
    (void)state;
    static const struct {
        uint32_t action, cell;
        double reward;
    } walk[] = {{0, 0, -0.05}, {3, 0, -0.05}, {1, 1, 0.0}, {2, 1, -0.05}, {3, 0, -0.1},
                {2, 3, 0.0},   {1, 3, -0.05}, {2, 6, 0.0}, {1, 7, 0.0}};
    struct batch b;
    batch_open_padded(&b, "gridworld", 1, "{\"size\": 3, \"walls\": [4]}", 0);
    batch_reset(&b);
    put(&b, 0, 8, 0);
    for (size_t i = 0; i < sizeof walk / sizeof walk[0]; i++) {
        batch_act(&b, 0, walk[i].action);
        batch_step(&b);
        assert_int_equal(where(&b, 0).cell, walk[i].cell);
        near_to((double)b.io.reward[0], walk[i].reward);
        assert_int_equal(b.io.terminated[0] | b.io.truncated[0], 0);
    }
    batch_act(&b, 0, 1);
    batch_step(&b);
    near_to((double)b.io.reward[0], 1.0);
    assert_int_equal(b.io.terminated[0], 1);
    assert_int_equal(b.io.truncated[0], 0);
    near_to((double)batch_final_obs(&b, 0)[0], 0.0);
    near_to((double)batch_final_obs(&b, 0)[2], 1.0);
    batch_close(&b);
}

static void shows_goal_position_and_walls_around(void **state)
{
    (void)state;
    struct batch b;
    batch_open_padded(&b, "gridworld", 1, "{\"size\":3,\"walls\":[4]}", 0);
    batch_reset(&b);
    put(&b, 3, 2, 0); /* row 1, column 0; the goal at row 0, column 2 */
    const float *obs = batch_obs(&b, 0);
    static const char around[] = "1111111000110101100011111";
    near_to((double)obs[0], -0.5);
    near_to((double)obs[1], 1.0);
    near_to((double)obs[2], 0.0);
    near_to((double)obs[3], -1.0);
    for (uint32_t i = 0; i < 25; i++) {
        near_to((double)obs[4 + i], around[i] - '0');
    }
    batch_close(&b);
}

static void the_last_allowed_step_may_also_arrive(void **state)
{
    (void)state;
    struct batch b;
    batch_open_padded(&b, "gridworld", 1, "{\"size\":3,\"walls\":0,\"limit\":5,\"shaping\":0}", 0);
    assert_int_equal(b.spec.max_episode_steps, 5);
    batch_reset(&b);
    put(&b, 7, 8, 4);
    batch_act(&b, 0, 1);
    batch_step(&b);
    assert_int_equal(b.io.terminated[0], 1);
    assert_int_equal(b.io.truncated[0], 1);
    near_to((double)b.io.reward[0], 1.0);
    put(&b, 0, 8, 4);
    batch_step(&b);
    assert_int_equal(b.io.terminated[0], 0);
    assert_int_equal(b.io.truncated[0], 1);
    near_to((double)b.io.reward[0], 0.0);
    batch_close(&b);
}

/* A shortest walk returns exactly 1 from anywhere: found here by trying all four moves on a copy and keeping one that pays 0. */
static void every_shortest_walk_returns_one(void **state)
{
    (void)state;
    static const char *const args[] = {"{}", "{\"size\":12,\"walls\":40,\"map\":3}", "{\"size\":2}",
                                       "{\"size\":32,\"map\":9}"};
    for (size_t a = 0; a < sizeof args / sizeof args[0]; a++) {
        struct batch b;
        batch_open_padded(&b, "gridworld", 1, args[a], 0);
        batch_reset(&b);
        for (uint32_t episode = 0; episode < 30; episode++) {
            double sum = 0;
            bool over = false;
            while (!over) {
                struct grid_snapshot before = where(&b, 0);
                uint32_t move = 0;
                for (; move < 4; move++) {
                    assert_int_equal(b.ops->restore(b.env, 0, &before, sizeof before), CORRAL_ENV_OK);
                    batch_act(&b, 0, move);
                    batch_step(&b);
                    if ((double)b.io.reward[0] > -1e-6) {
                        break;
                    }
                }
                assert_true(move < 4);
                sum += (double)b.io.reward[0];
                over = b.io.terminated[0];
                assert_true(over || !b.io.truncated[0]);
            }
            near_to(sum, 1.0);
        }
        batch_close(&b);
    }
}

static void starts_and_goals_vary_and_never_coincide(void **state)
{
    (void)state;
    struct batch b;
    bool seen[64] = {false};
    uint32_t distinct = 0;
    batch_open(&b, "gridworld", 1);
    for (uint32_t i = 0; i < 2000; i++) {
        uint64_t seed = test_seed(i);
        assert_int_equal(b.ops->reset(b.env, NULL, 1, &seed), CORRAL_ENV_OK);
        struct grid_snapshot s = where(&b, 0);
        assert_true(s.cell != s.goal);
        distinct += !seen[s.goal];
        seen[s.goal] = true;
    }
    assert_int_equal(distinct, 64 - 64 / 5); /* every free cell */
    batch_close(&b);
}

static void the_map_comes_from_its_own_seed(void **state)
{
    (void)state;
    struct batch one, same, other;
    batch_open_padded(&one, "gridworld", 1, "{\"map\":5}", 0);
    batch_open_padded(&same, "gridworld", 2, "{\"map\":5,\"limit\":9}", 0);
    batch_open_padded(&other, "gridworld", 1, "{\"map\":6}", 0);
    struct grid_snapshot s = where(&one, 0);
    assert_true(s.fingerprint == where(&same, 1).fingerprint);
    assert_true(s.fingerprint != where(&other, 0).fingerprint);
    assert_int_equal(other.ops->restore(other.env, 0, &s, sizeof s), CORRAL_ENV_INVALID);
    batch_close(&other);
    batch_close(&same);
    batch_close(&one);
}

static void refuses_impossible_grids(void **state)
{
    (void)state;
    static const char *const bad[] = {"{\"size\":1}",
                                      "{\"size\":33}",
                                      "{\"size\":\"8\"}",
                                      "{\"size\":8.5}",
                                      "{\"size\":-3}",
                                      "{\"size\":[8]}",
                                      "{\"size\":8,\"size\":8}",
                                      "{\"walls\":64}",
                                      "{\"walls\":[64]}",
                                      "{\"walls\":[1,]}",
                                      "{\"walls\":[1 2]}",
                                      "{\"walls\":[1",
                                      "{\"limit\":0}",
                                      "{\"shaping\":2}",
                                      "{\"size\":2,\"walls\":3}",
                                      "{\"size\":3,\"walls\":[3,4,5]}",
                                      "{\"size\":99999999999999999999999999}",
                                      "{\"size\":2,\"walls\":[0,1,2]}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (!fails(bad[i])) {
            fail_msg("accepted %s", bad[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walks_bumps_and_arrives),
        cmocka_unit_test(shows_goal_position_and_walls_around),
        cmocka_unit_test(the_last_allowed_step_may_also_arrive),
        cmocka_unit_test(every_shortest_walk_returns_one),
        cmocka_unit_test(starts_and_goals_vary_and_never_coincide),
        cmocka_unit_test(the_map_comes_from_its_own_seed),
        cmocka_unit_test(refuses_impossible_grids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
