/* What the ABI promises, for every built-in environment. */
#include "envs/batch_for_tests.h"

/* A running digest of everything a step writes for one environment. */
static uint64_t digest(const struct batch *b, uint32_t id, uint64_t so_far)
{
    for (uint32_t agent = 0; agent < b->spec.agents; agent++) {
        uint32_t row = id * b->spec.agents + agent;
        uint32_t words[64] = {0};
        memcpy(words, batch_obs(b, row), batch_obs_bytes(b));
        memcpy(&words[60], &b->io.reward[row], 4);
        words[61] = (uint32_t)(b->io.terminated[row] | b->io.truncated[row] << 1 | b->io.active[row] << 2);
        for (uint32_t i = 0; i < 64; i++) {
            so_far = corral_env_episode_seed(so_far, words[i] + (uint64_t)i);
        }
        if (b->io.terminated[row] | b->io.truncated[row]) {
            memcpy(words, batch_final_obs(b, row), batch_obs_bytes(b));
            so_far = corral_env_episode_seed(so_far, words[0] ^ (uint64_t)words[1] << 32);
        }
    }
    return so_far;
}

static void act(struct batch *b, uint32_t id, struct corral_env_rng *rng)
{
    for (uint32_t agent = 0; agent < b->spec.agents; agent++) {
        batch_act_randomly(b, id * b->spec.agents + agent, rng);
    }
}

/* Digests of environments 0..envs after `steps` random steps; `order` picks how they are stepped together. */
enum order { ALL_AT_ONCE, ONE_BY_ONE, EVEN_THEN_ODD };

static void run(const char *file, uint32_t envs, uint32_t steps, enum order order, size_t pad,
                uint64_t *digests)
{
    struct batch b;
    struct corral_env_rng rng[256];
    uint32_t ids[256];
    batch_open_padded(&b, file, envs, "{}", pad);
    batch_reset(&b);
    for (uint32_t id = 0; id < envs; id++) {
        rng[id].state = id;
        digests[id] = digest(&b, id, 0);
    }
    for (uint32_t step = 0; step < steps; step++) {
        for (uint32_t id = 0; id < envs; id++) {
            act(&b, id, &rng[id]);
            ids[id] = order != EVEN_THEN_ODD ? id
                      : id < (envs + 1) / 2  ? 2 * id
                                             : 2 * (id - (envs + 1) / 2) + 1;
        }
        uint32_t half = order == EVEN_THEN_ODD ? (envs + 1) / 2 : order == ONE_BY_ONE ? 1 : envs;
        for (uint32_t at = 0; at < envs; at += half) {
            uint32_t count = envs - at < half ? envs - at : half;
            const uint32_t *which = order == ALL_AT_ONCE ? NULL : ids + at;
            assert_int_equal(b.ops->step(b.env, which, count), CORRAL_ENV_OK);
        }
        for (uint32_t id = 0; id < envs; id++) {
            digests[id] = digest(&b, id, digests[id]);
        }
    }
    batch_close(&b);
}

static void trajectories_do_not_depend_on_company(void **state)
{
    (void)state;
    static const struct {
        uint32_t envs;
        enum order order;
        size_t pad;
    } company[] = {{1, ALL_AT_ONCE, 0},  {7, ALL_AT_ONCE, 0},    {8, ONE_BY_ONE, 0},
                   {45, ALL_AT_ONCE, 0}, {45, EVEN_THEN_ODD, 0}, {45, ALL_AT_ONCE, 12}};
    for (size_t p = 0; p < PLUGINS; p++) {
        uint64_t reference[256], digests[256];
        run(plugins[p].file, 45, 600, ALL_AT_ONCE, 0, reference);
        for (size_t c = 0; c < sizeof company / sizeof company[0]; c++) {
            run(plugins[p].file, company[c].envs, 600, company[c].order, company[c].pad, digests);
            assert_memory_equal(digests, reference, company[c].envs * sizeof digests[0]);
        }
        assert_true(reference[0] != reference[1]); /* other seeds, another path */
    }
}

static void describes_itself_truthfully(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        batch_open(&b, plugins[p].file, 16);
        assert_string_equal(b.ops->id, plugins[p].id);
        assert_int_equal(b.spec.autoreset, CORRAL_ENV_AUTORESET_SAME_STEP);
        assert_true(b.spec.flags & CORRAL_ENV_SNAPSHOTS);
        batch_reset(&b);
        struct corral_env_rng rng = {3};
        for (uint32_t step = 0; step < 2000; step++) {
            for (uint32_t id = 0; id < 16; id++) {
                act(&b, id, &rng);
            }
            batch_step(&b);
            for (uint32_t row = 0; row < 16 * b.spec.agents; row++) {
                for (uint32_t k = 0; k < b.spec.obs_shape[0]; k++) {
                    double seen = (double)batch_obs(&b, row)[k];
                    assert_true(isfinite(seen) && seen >= b.spec.obs_low && seen <= b.spec.obs_high);
                }
                double reward = (double)b.io.reward[row];
                assert_true(reward >= b.spec.reward_low - 1e-6 && reward <= b.spec.reward_high + 1e-6);
                assert_true(b.io.terminated[row] <= 1 && b.io.truncated[row] <= 1 && b.io.active[row] <= 1);
            }
            for (uint32_t id = 0; id < 16; id++) {
                assert_int_equal(b.io.status[id], 0);
            }
        }
        batch_close(&b);
    }
}

static void starts_the_next_episode_in_the_same_step(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        batch_open(&b, plugins[p].file, 1);
        batch_reset(&b);
        struct corral_env_rng rng = {11};
        uint32_t ended = 0;
        for (uint32_t step = 0; step < 5000 && ended < 3; step++) {
            unsigned char room[SNAPSHOT_ROOM];
            act(&b, 0, &rng);
            batch_step(&b);
            if (!(b.io.terminated[0] | b.io.truncated[0])) {
                continue;
            }
            ended++;
            batch_snapshot(&b, 0, room);
            struct snapshot_view *head = (struct snapshot_view *)(void *)room;
            assert_int_equal(head->episode, ended);
            assert_int_equal(head->steps, 0);
            assert_true(memcmp(batch_obs(&b, 0), batch_final_obs(&b, 0), batch_obs_bytes(&b)) != 0);
        }
        assert_int_equal(ended, 3);
        batch_close(&b);
    }
}

/* The stream seed that makes episode_seed(seed, 0) the same as episode_seed(stream, episode). */
static uint64_t equivalent_stream(uint64_t stream, uint64_t episode)
{
    return stream ^ (episode * UINT64_C(0xD1342543DE82EF95));
}

static void draws_each_episode_from_its_own_seed(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b, fresh;
        batch_open(&b, plugins[p].file, 1);
        batch_open(&fresh, plugins[p].file, 1);
        batch_reset(&b);
        struct corral_env_rng rng = {5};
        for (uint64_t episode = 1; episode <= 4;) {
            act(&b, 0, &rng);
            batch_step(&b);
            if (b.io.terminated[0] | b.io.truncated[0]) {
                uint64_t seed = equivalent_stream(test_seed(0), episode++);
                assert_int_equal(fresh.ops->reset(fresh.env, NULL, 1, &seed), CORRAL_ENV_OK);
                assert_memory_equal(batch_obs(&b, 0), batch_obs(&fresh, 0), batch_obs_bytes(&b));
            }
        }
        batch_close(&fresh);
        batch_close(&b);
    }
}

static void a_restored_snapshot_replays_the_same_future(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch a, b;
        unsigned char room[SNAPSHOT_ROOM], again[SNAPSHOT_ROOM];
        batch_open(&a, plugins[p].file, 3);
        batch_open(&b, plugins[p].file, 9);
        batch_reset(&a);
        batch_reset(&b);
        struct corral_env_rng rng = {17};
        for (uint32_t step = 0; step < 333; step++) {
            for (uint32_t id = 0; id < 3; id++) {
                act(&a, id, &rng);
            }
            batch_step(&a);
        }
        size_t bytes = batch_snapshot(&a, 1, room);
        assert_int_equal(b.ops->restore(b.env, 7, room, bytes), CORRAL_ENV_OK);
        assert_int_equal(batch_snapshot(&b, 7, again), bytes);
        assert_memory_equal(again, room, bytes);
        struct corral_env_rng one = {23}, other = {23};
        for (uint32_t step = 0; step < 700; step++) { /* past the end of the episode */
            uint32_t agents = a.spec.agents, from = 1, to = 7;
            for (uint32_t agent = 0; agent < agents; agent++) {
                assert_memory_equal(batch_obs(&a, from * agents + agent), batch_obs(&b, to * agents + agent),
                                    batch_obs_bytes(&a));
                assert_int_equal(a.io.active[from * agents + agent], b.io.active[to * agents + agent]);
            }
            act(&a, from, &one);
            act(&b, to, &other);
            assert_int_equal(a.ops->step(a.env, &from, 1), CORRAL_ENV_OK);
            assert_int_equal(b.ops->step(b.env, &to, 1), CORRAL_ENV_OK);
            assert_int_equal(digest(&a, from, 0), digest(&b, to, 0));
        }
        batch_close(&b);
        batch_close(&a);
    }
}

static void refuses_a_snapshot_that_is_not_one(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        unsigned char room[SNAPSHOT_ROOM], bad[SNAPSHOT_ROOM];
        batch_open(&b, plugins[p].file, 2);
        batch_reset(&b);
        size_t bytes = batch_snapshot(&b, 0, room), small = bytes - 1;
        assert_int_equal(b.ops->snapshot(b.env, 0, bad, &small), CORRAL_ENV_TOO_SMALL);
        assert_int_equal(small, bytes);
        small = 0;
        assert_int_equal(b.ops->snapshot(b.env, 0, NULL, &small), CORRAL_ENV_TOO_SMALL);
        assert_int_equal(small, bytes);
        assert_int_equal(b.ops->snapshot(b.env, 2, bad, &small), CORRAL_ENV_INVALID);
        assert_int_equal(b.ops->restore(b.env, 2, room, bytes), CORRAL_ENV_INVALID);
        assert_int_equal(b.ops->restore(b.env, 0, room, bytes - 1), CORRAL_ENV_INVALID);
        assert_int_equal(b.ops->restore(b.env, 0, NULL, bytes), CORRAL_ENV_INVALID);
        static const size_t guarded[] = {0, 4, 27, 28}; /* kind, version, step count, reserved */
        for (size_t i = 0; i < sizeof guarded / sizeof guarded[0]; i++) {
            memcpy(bad, room, bytes);
            bad[guarded[i]] ^= 0x40;
            assert_int_equal(b.ops->restore(b.env, 0, bad, bytes), CORRAL_ENV_INVALID);
        }
        memcpy(bad, room, bytes);
        memset(bad + 32, 0xff, bytes - 32); /* not a number, outside the board */
        assert_int_equal(b.ops->restore(b.env, 0, bad, bytes), CORRAL_ENV_INVALID);
        assert_int_equal(batch_snapshot(&b, 0, bad), bytes);
        assert_memory_equal(bad, room, bytes); /* untouched by all this */
        batch_close(&b);
    }
}

static void a_bad_action_moves_nobody(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        unsigned char before[20][SNAPSHOT_ROOM], after[SNAPSHOT_ROOM];
        batch_open(&b, plugins[p].file, 20);
        batch_reset(&b);
        bool numbers = b.spec.action_kind == CORRAL_ENV_CONTINUOUS;
        const double bad[] = {numbers ? NAN : -1.0, numbers ? INFINITY : (double)b.spec.choices[0],
                              numbers ? -INFINITY : 1e9};
        struct corral_env_rng rng = {1};
        for (uint32_t id = 0; id < 20; id++) {
            act(&b, id, &rng);
            batch_snapshot(&b, id, before[id]);
        }
        for (uint32_t i = 0; i < 3; i++) {
            uint32_t ids[] = {3, 19};
            batch_act(&b, 19 * b.spec.agents, bad[i]); /* in TicTacToe agent 0 moves first */
            assert_int_equal(b.ops->step(b.env, NULL, 20), CORRAL_ENV_INVALID);
            assert_int_equal(b.ops->step(b.env, ids, 2), CORRAL_ENV_INVALID);
            for (uint32_t id = 0; id < 20; id++) {
                size_t bytes = batch_snapshot(&b, id, after);
                assert_memory_equal(after, before[id], bytes);
            }
        }
        uint32_t outside = 20;
        uint64_t seed = 1;
        assert_int_equal(b.ops->step(b.env, &outside, 1), CORRAL_ENV_INVALID);
        assert_int_equal(b.ops->reset(b.env, &outside, 1, &seed), CORRAL_ENV_INVALID);
        batch_close(&b);
    }
}

static void truncates_exactly_at_the_limit(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        batch_open(&b, plugins[p].file, 9);
        batch_reset(&b);
        uint32_t limit = b.spec.max_episode_steps;
        uint32_t length[9] = {0}, late = 0;
        struct corral_env_rng rng = {2};
        for (uint32_t step = 0; limit > 0 && step < 20 * limit; step++) {
            for (uint32_t id = 0; id < 9; id++) {
                act(&b, id, &rng);
            }
            batch_step(&b);
            for (uint32_t id = 0; id < 9; id++) {
                length[id]++;
                assert_int_equal(b.io.truncated[id], length[id] == limit);
                late += b.io.truncated[id];
                length[id] = b.io.terminated[id] | b.io.truncated[id] ? 0 : length[id];
            }
        }
        bool falls_first = p == 0; /* a random policy drops the pole long before */
        assert_true(limit == 0 || falls_first || late > 0);
        batch_close(&b);
    }
}

/* One step from the limit and one push from the end; environment 5 is two steps from the limit. */
static void sets_both_flags_when_the_last_step_also_ends_the_task(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        double state[4], action;
    } last[] = {{"cartpole", {2.399, 3.0, 0.0, 0.0}, 1},
                {"acrobot", {3.0, 0.0, 0.1, 0.0}, 1},
                {"mountain_car", {0.49, 0.06}, 2},
                {"mountain_car_continuous", {0.44, 0.06}, 1.0}};
    for (size_t i = 0; i < sizeof last / sizeof last[0]; i++) {
        struct batch b;
        struct snapshot_view view;
        batch_open(&b, last[i].file, 8);
        batch_reset(&b);
        for (uint32_t id = 0; id < 8; id++) {
            size_t bytes = batch_snapshot(&b, id, &view);
            view.steps = b.spec.max_episode_steps - (id == 5 ? 2 : 1);
            memcpy(view.state, last[i].state, bytes - 32);
            assert_int_equal(b.ops->restore(b.env, id, &view, bytes), CORRAL_ENV_OK);
            batch_act(&b, id, last[i].action);
        }
        batch_step(&b);
        for (uint32_t id = 0; id < 8; id++) {
            assert_int_equal(b.io.terminated[id], 1);
            assert_int_equal(b.io.truncated[id], id != 5);
        }
        batch_close(&b);
    }
}

static void reset_leaves_the_others_alone(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        unsigned char before[SNAPSHOT_ROOM], after[SNAPSHOT_ROOM];
        batch_open(&b, plugins[p].file, 10);
        batch_reset(&b);
        struct corral_env_rng rng = {4};
        for (uint32_t step = 0; step < 3; step++) {
            for (uint32_t id = 0; id < 10; id++) {
                act(&b, id, &rng);
            }
            batch_step(&b);
        }
        size_t bytes = batch_snapshot(&b, 4, before);
        uint32_t ids[] = {5, 3};
        uint64_t seeds[] = {test_seed(0), test_seed(1)};
        assert_int_equal(b.ops->reset(b.env, ids, 2, seeds), CORRAL_ENV_OK);
        batch_snapshot(&b, 4, after);
        assert_memory_equal(after, before, bytes);
        struct batch fresh;
        batch_open(&fresh, plugins[p].file, 2);
        batch_reset(&fresh);
        assert_memory_equal(batch_obs(&b, 5 * b.spec.agents), batch_obs(&fresh, 0), batch_obs_bytes(&b));
        assert_memory_equal(batch_obs(&b, 3 * b.spec.agents), batch_obs(&fresh, b.spec.agents),
                            batch_obs_bytes(&b));
        assert_true(b.io.reward[5 * b.spec.agents] == 0.0f);
        batch_close(&fresh);
        batch_close(&b);
    }
}

static void refuses_arguments_it_does_not_know(void **state)
{
    (void)state;
    static const char *const bad[] = {"[]",  "{",    "{\"x\":1}",   "{\"x\"",    "{} {}",
                                      "{,}", "null", "{\"size\":}", "{\"a\":1,}"};
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        batch_load(&b, plugins[p].file);
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            b.error[0] = '\0';
            assert_int_equal(b.ops->describe(bad[i], &b.spec, b.error, sizeof b.error), CORRAL_ENV_INVALID);
            assert_true(b.error[0] != '\0');
        }
        assert_int_equal(b.ops->describe(" { } ", &b.spec, b.error, sizeof b.error), CORRAL_ENV_OK);
        assert_int_equal(b.ops->describe(NULL, &b.spec, b.error, sizeof b.error), CORRAL_ENV_OK);
        dlclose(b.library);
    }
}

static void writes_only_as_much_of_the_spec_as_the_caller_knows(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        batch_load(&b, plugins[p].file);
        struct corral_env_spec spec;
        memset(&spec, 0x5a, sizeof spec);
        spec.size = offsetof(struct corral_env_spec, obs_dtype);
        assert_int_equal(b.ops->describe("{}", &spec, b.error, sizeof b.error), CORRAL_ENV_OK);
        assert_int_equal(spec.size, offsetof(struct corral_env_spec, obs_dtype));
        assert_true(spec.agents >= 1 && spec.agents <= 2);
        assert_int_equal(((unsigned char *)&spec)[sizeof spec - 1], 0x5a);
        dlclose(b.library);
    }
}

static void *no_memory(void *ctx, size_t bytes)
{
    (void)ctx;
    (void)bytes;
    return NULL;
}

static void reports_refused_memory_and_bad_buffers(void **state)
{
    (void)state;
    for (size_t p = 0; p < PLUGINS; p++) {
        struct batch b;
        batch_open(&b, plugins[p].file, 4);
        struct corral_env *out = NULL;
        struct corral_env_host host = {.size = sizeof host, .alloc = no_memory, .release = batch_release};
        assert_int_equal(b.ops->create("{}", &b.io, &host, &out, b.error, sizeof b.error), CORRAL_ENV_NOMEM);
        struct corral_env_buffers io = b.io;
        io.obs_stride -= 4;
        assert_int_equal(b.ops->create("{}", &io, NULL, &out, b.error, sizeof b.error), CORRAL_ENV_INVALID);
        io = b.io;
        io.reward = NULL;
        assert_int_equal(b.ops->create("{}", &io, NULL, &out, b.error, sizeof b.error), CORRAL_ENV_INVALID);
        io = b.io;
        io.agents++;
        assert_int_equal(b.ops->create("{}", &io, NULL, &out, b.error, sizeof b.error), CORRAL_ENV_INVALID);
        assert_null(out);
        assert_int_equal(b.ops->create("{}", &b.io, NULL, &out, b.error, sizeof b.error), CORRAL_ENV_OK);
        b.ops->destroy(out); /* without a host it has memory of its own */
        b.ops->destroy(NULL);
        batch_close(&b);
    }
}

/* The textbook figure for CartPole, a check on dynamics and resets together. */
static void random_cartpole_lasts_22_steps_on_average(void **state)
{
    (void)state;
    struct batch b;
    batch_open(&b, "cartpole", 256);
    batch_reset(&b);
    struct corral_env_rng rng = {9};
    uint32_t episodes = 0, steps = 8000;
    for (uint32_t step = 0; step < steps; step++) {
        for (uint32_t id = 0; id < 256; id++) {
            batch_act(&b, id, corral_env_rng_below(&rng, 2));
        }
        batch_step(&b);
        for (uint32_t id = 0; id < 256; id++) {
            episodes += b.io.terminated[id];
        }
    }
    double mean = 256.0 * steps / episodes;
    assert_true(fabs(mean - 22.2) <= 0.3);
    batch_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trajectories_do_not_depend_on_company),
        cmocka_unit_test(describes_itself_truthfully),
        cmocka_unit_test(starts_the_next_episode_in_the_same_step),
        cmocka_unit_test(draws_each_episode_from_its_own_seed),
        cmocka_unit_test(a_restored_snapshot_replays_the_same_future),
        cmocka_unit_test(refuses_a_snapshot_that_is_not_one),
        cmocka_unit_test(a_bad_action_moves_nobody),
        cmocka_unit_test(truncates_exactly_at_the_limit),
        cmocka_unit_test(sets_both_flags_when_the_last_step_also_ends_the_task),
        cmocka_unit_test(reset_leaves_the_others_alone),
        cmocka_unit_test(refuses_arguments_it_does_not_know),
        cmocka_unit_test(writes_only_as_much_of_the_spec_as_the_caller_knows),
        cmocka_unit_test(reports_refused_memory_and_bad_buffers),
        cmocka_unit_test(random_cartpole_lasts_22_steps_on_average),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
