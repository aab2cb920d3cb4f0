#include "base/rng.h"
#include "rollout/env_host/vec.h"
#include "tests/check.h"
#include <corral/env.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct corral_error err;

static struct corral_vec *make_with(const char *id, uint32_t envs, const struct corral_allocator *memory)
{
    struct corral_vec_config config = {
        .id = id, .library = WALK_PLUGIN, .envs = envs, .seed = 11, .worker = 3, .memory = memory};
    struct corral_vec *v = NULL;
    check_ok(corral_vec_create(&v, &config, &err));
    return v;
}

static struct corral_vec *make(const char *id, uint32_t envs)
{
    struct corral_vec *v = make_with(id, envs, NULL);
    check_ok(corral_vec_reset(v, &err));
    return v;
}

static void choose(struct corral_vec *v, struct corral_rng *rng)
{
    const struct corral_vec_view *view = corral_vec_view(v);
    int32_t *action = view->action;
    for (uint32_t row = 0; row < view->rows; row++) {
        do {
            action[row] = (int32_t)corral_rng_below(rng, 3);
        } while (view->mask != NULL && !view->mask[row * view->mask_bytes + (uint32_t)action[row]]);
    }
}

static void all_choose(struct corral_vec *v, int32_t choice)
{
    const struct corral_vec_view *view = corral_vec_view(v);
    for (uint32_t row = 0; row < view->rows; row++) {
        ((int32_t *)view->action)[row] = choice;
    }
}

static void next_step_and_same_step_plugins_look_alike(void **state)
{
    (void)state;
    struct corral_vec *a = make("walk/Same-v0", 7), *b = make("walk/Next-v0", 7);
    const struct corral_vec_view *va = corral_vec_view(a), *vb = corral_vec_view(b);
    struct corral_rng ra, rb;
    corral_rng_seed(&ra, 5);
    corral_rng_seed(&rb, 5);
    uint32_t ended = 0;
    for (int t = 0; t < 300; t++) {
        assert_memory_equal(va->obs, vb->obs, sizeof(float) * 7 * 2);
        choose(a, &ra);
        choose(b, &rb);
        check_ok(corral_vec_step(a, &err));
        check_ok(corral_vec_step(b, &err));
        assert_memory_equal(va->reward, vb->reward, sizeof(float) * 7);
        assert_memory_equal(va->terminated, vb->terminated, 7);
        assert_memory_equal(va->truncated, vb->truncated, 7);
        assert_memory_equal(va->episode_steps, vb->episode_steps, sizeof(uint32_t) * 7);
        for (uint32_t e = 0; e < 7; e++) {
            assert_int_equal(vb->active[e], 1);
            if (va->terminated[e] | va->truncated[e]) {
                ended++;
                assert_memory_equal(va->final_obs + e * 2, vb->final_obs + e * 2, sizeof(float) * 2);
                assert_true(va->obs[e * 2 + 1] == 0);
                assert_float_equal(va->final_obs[e * 2 + 1], (double)va->episode_steps[e] / 20, 1e-6);
            }
        }
    }
    assert_true(ended > 50);
    assert_int_equal(corral_vec_stats(a)->episodes, ended);
    corral_vec_destroy(a);
    corral_vec_destroy(b);
}

static void without_autoreset_the_next_episode_has_begun_all_the_same(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Off-v0", 2);
    const struct corral_vec_view *view = corral_vec_view(v);
    float first = view->obs[0];
    all_choose(v, 1);
    for (uint32_t t = 1; t <= 20; t++) {
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(view->truncated[0], t == 20);
        assert_int_equal(view->episode_steps[0], t);
    }
    assert_float_equal(view->reward[0], (double)first,
                       1e-6); /* the reward of the last step, not of the reset */
    assert_true(view->final_obs[0] == first && view->final_obs[1] == 1);
    assert_true(view->obs[1] == 0);
    /* the second reset of environment 0 is the seed rule's n = 1, and the walker's start is the first number drawn from its episode 0 */
    struct corral_env_rng rng = {corral_env_episode_seed(corral_seed_derive(11, 3, 0, 1), 0)};
    assert_float_equal(view->obs[0], ((double)corral_env_rng_below(&rng, 7) - 3) / 10, 1e-6);
    check_ok(corral_vec_step(v, &err));
    assert_int_equal(view->episode_steps[0], 1);
    assert_int_equal(view->truncated[0], 0);
    corral_vec_destroy(v);
}

static void a_row_that_ends_early_is_flagged_once_and_rests(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Team-v0", 3);
    const struct corral_vec_view *view = corral_vec_view(v);
    assert_int_equal(view->rows, 6);
    all_choose(v, 1);
    for (uint32_t t = 1; t <= 40; t++) {
        check_ok(corral_vec_step(v, &err));
        uint32_t at = (t - 1) % 20 + 1;
        for (uint32_t e = 0; e < 3; e++) {
            assert_int_equal(view->episode_steps[e], at);
            assert_int_equal(view->terminated[e * 2], 0);
            assert_int_equal(view->terminated[e * 2 + 1], at == 5);
            assert_int_equal(view->truncated[e * 2], at == 20);
            assert_int_equal(view->truncated[e * 2 + 1], 0);
            assert_int_equal(view->active[e * 2 + 1], at < 5 || at == 20);
            assert_int_equal(view->active[e * 2], 1);
        }
        if (at == 5) {
            assert_float_equal(view->final_obs[3], 0.25, 1e-6);
        }
    }
    assert_int_equal(corral_vec_stats(v)->episodes, 6);
    corral_vec_destroy(v);
}

static void turns_show_in_active_and_masks_are_enforced(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Turns-v0", 2);
    const struct corral_vec_view *view = corral_vec_view(v);
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    assert_int_equal(corral_vec_spec(v)->mask_bytes, 3);
    for (uint32_t t = 0; t < 100; t++) {
        for (uint32_t e = 0; e < 2; e++) {
            uint32_t turn = (uint32_t)lrintf(view->obs[e * 6 + 1] * 20) % 3;
            for (uint32_t a = 0; a < 3; a++) {
                assert_int_equal(view->active[e * 3 + a], a == turn);
            }
        }
        choose(v, &rng);
        check_ok(corral_vec_step(v, &err));
    }
    check_ok(corral_vec_reset(v, &err));
    enum corral_status status = CORRAL_OK;
    for (uint32_t t = 0; t < 20 && status == CORRAL_OK; t++) { /* agent 1 may not go left of -5 */
        all_choose(v, 0);
        status = corral_vec_step(v, &err);
    }
    check_status(status, CORRAL_INVALID);
    assert_non_null(strstr(err.text, "which its mask forbids"));
    corral_vec_destroy(v);
}

static void observations_of_any_type_arrive_as_float(void **state)
{
    (void)state;
    static const struct {
        const char *id;
        float scale, offset;
    } kinds[] = {{"walk/Bytes-v0", 100, 100}, {"walk/Ints-v0", 100, 0}, {"walk/Doubles-v0", 1, 0}};
    for (size_t k = 0; k < 3; k++) {
        struct corral_vec *same = make("walk/Same-v0", 4), *v = make(kinds[k].id, 4);
        struct corral_rng ra, rb;
        corral_rng_seed(&ra, 2);
        corral_rng_seed(&rb, 2);
        /* Doubles has no autoreset: alike until an episode ends */
        for (int t = 0; t < (k == 2 ? 6 : 60); t++) {
            const struct corral_vec_view *a = corral_vec_view(same), *b = corral_vec_view(v);
            for (uint32_t i = 0; i < 8; i++) {
                assert_true(fabsf(b->obs[i] - (a->obs[i] * kinds[k].scale + kinds[k].offset)) <=
                            (k == 2 ? 1e-6f : 1.001f));
            }
            choose(same, &ra);
            choose(v, &rb);
            check_ok(corral_vec_step(same, &err));
            check_ok(corral_vec_step(v, &err));
            for (uint32_t e = 0; e < 4; e++) {
                if (b->truncated[e] | b->terminated[e]) {
                    assert_true(fabsf(b->final_obs[e * 2 + 1] - (a->final_obs[e * 2 + 1] * kinds[k].scale +
                                                                 kinds[k].offset)) <= 1.001f);
                }
            }
        }
        corral_vec_destroy(same);
        corral_vec_destroy(v);
    }
}

static void continuous_actions_are_clipped_for_the_plugin_only(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Smooth-v0", 2);
    const struct corral_vec_view *view = corral_vec_view(v);
    float *action = view->action;
    float given[4] = {0.25f, 0.75f, -40, -3};
    memcpy(action, given, sizeof given);
    float before = view->obs[2];
    check_ok(corral_vec_step(v, &err));
    assert_memory_equal(action, given, sizeof given);
    assert_float_equal(view->reward[0], 0.5, 0); /* the walker pays out the second component as it got it */
    assert_float_equal(view->reward[1], 0, 0);
    assert_float_equal(view->obs[2], (double)before - 0.1, 1e-6);
    action[1] = NAN;
    check_status(corral_vec_step(v, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "environment 0, agent 0, component 1"));
    corral_vec_destroy(v);
}

static void a_choice_out_of_range_steps_nothing(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Same-v0", 5);
    const struct corral_vec_view *view = corral_vec_view(v);
    static const int32_t bad[] = {3, -1, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        all_choose(v, 1);
        ((int32_t *)view->action)[4] = bad[i];
        check_status(corral_vec_step(v, &err), CORRAL_INVALID);
        assert_non_null(strstr(err.text, "environment 4"));
        assert_int_equal(view->episode_steps[0], 0);
        assert_true(view->obs[1] == 0);
    }
    all_choose(v, 1);
    check_ok(corral_vec_step(v, &err));
    corral_vec_destroy(v);
}

static void a_number_that_is_none_voids_the_episode(void **state)
{
    (void)state;
    static const struct {
        const char *id;
        uint32_t step;
    } faults[] = {{"walk/NanObs-v0", 3}, {"walk/InfReward-v0", 3}, {"walk/NanFinal-v0", 20}};
    for (size_t i = 0; i < 3; i++) {
        struct corral_vec *v = make(faults[i].id, 3);
        const struct corral_vec_view *view = corral_vec_view(v);
        for (uint32_t t = 1; t <= faults[i].step; t++) {
            all_choose(v, 1);
            assert_int_equal(view->status[0], 0);
            check_ok(corral_vec_step(v, &err));
        }
        assert_int_equal(view->status[0], CORRAL_INFRA);
        assert_int_equal(view->status[1], 0);
        assert_int_equal(view->episode_steps[0], faults[i].step);
        assert_true(view->reward[0] == 0 && !view->terminated[0] && !view->truncated[0] && view->active[0]);
        assert_true(isfinite(view->obs[0]) && view->obs[1] == 0);
        assert_int_equal(corral_vec_stats(v)->nonfinite, 1);
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(view->status[0], 0);
        assert_int_equal(view->episode_steps[0], 1);
        corral_vec_destroy(v);
    }
}

static void infrastructure_failure_voids_only_its_environment(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Infra-v0", 3);
    const struct corral_vec_view *view = corral_vec_view(v);
    for (uint32_t t = 1; t <= 23; t++) {
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(view->status[1], t % 5 == 0 ? CORRAL_INFRA : 0);
        assert_int_equal(view->status[0], 0);
        assert_int_equal(view->episode_steps[1], (t - 1) % 5 + 1);
        assert_int_equal(view->truncated[0], t == 20);
    }
    assert_int_equal(corral_vec_stats(v)->voided, 4);
    assert_int_equal(corral_vec_stats(v)->episodes, 2);
    assert_non_null(strstr(corral_vec_stats(v)->last_fault, "number 1, step 5: infra"));
    corral_vec_destroy(v);
}

static void an_environment_that_cannot_be_reset_is_tried_again(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Down-v0", 2);
    const struct corral_vec_view *view = corral_vec_view(v);
    /* Fails at step 5, at once in its reset, and again one step later; two steps after that it is back. */
    static const uint8_t status[] = {0, 0, 0, 0, CORRAL_INFRA, CORRAL_INFRA, CORRAL_INFRA, CORRAL_INFRA,
                                     0, 0};
    static const uint8_t active[] = {1, 1, 1, 1, 0, 0, 0, 1, 1, 1};
    for (uint32_t t = 0; t < 10; t++) {
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(view->status[1], status[t]);
        assert_int_equal(view->active[1], active[t]);
        assert_int_equal(view->active[0], 1);
        assert_int_equal(view->episode_steps[0], t + 1);
    }
    assert_int_equal(view->episode_steps[1], 2);
    assert_int_equal(corral_vec_stats(v)->voided, 1);
    corral_vec_destroy(v);
}

static void gives_up_when_no_environment_can_be_reset(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Dead-v0", 2);
    enum corral_status status = CORRAL_OK;
    uint32_t steps = 0;
    for (; steps < 100 && status == CORRAL_OK; steps++) {
        all_choose(v, 1);
        status = corral_vec_step(v, &err);
    }
    check_status(status, CORRAL_INFRA);
    assert_int_equal(steps, 10 + CORRAL_VEC_ALL_DOWN_MAX - 1);
    assert_non_null(strstr(err.text, "none of 2 environments could be reset"));
    corral_vec_destroy(v);
}

static void a_batch_that_fails_is_an_error(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/BatchFails-v0", 2);
    for (int t = 0; t < 6; t++) {
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
    }
    check_status(corral_vec_step(v, &err), CORRAL_INFRA);
    assert_non_null(strstr(err.text, "walk/BatchFails-v0: step failed for the whole batch"));
    check_status(corral_vec_step(v, NULL), CORRAL_OK);
    corral_vec_destroy(v);
}

/* The other side of CORRAL_ISOLATION_PROCESS: without it there is nobody left to report. */
static void in_process_a_crash_is_the_programs_own(void **state)
{
    (void)state;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct corral_vec *v = make("walk/Crash-v0", 2);
        for (int t = 0; t < 7; t++) {
            all_choose(v, 1);
            (void)corral_vec_step(v, &err);
        }
        _exit(0);
    }
    int wstatus = 0;
    assert_int_equal(waitpid(pid, &wstatus, 0), pid);
    assert_true(WIFSIGNALED(wstatus) && WTERMSIG(wstatus) == SIGABRT);
}

static void equal_seeds_give_equal_runs_and_other_workers_differ(void **state)
{
    (void)state;
    float seen[3][400];
    for (int run = 0; run < 3; run++) {
        struct corral_vec_config config = {
            .id = "walk/Same-v0", .library = WALK_PLUGIN, .envs = 4, .seed = 9, .worker = run == 2};
        struct corral_vec *v = NULL;
        check_ok(corral_vec_create(&v, &config, &err));
        check_ok(corral_vec_reset(v, &err));
        struct corral_rng rng;
        corral_rng_seed(&rng, 3);
        for (int t = 0; t < 100; t++) {
            choose(v, &rng);
            check_ok(corral_vec_step(v, &err));
            for (uint32_t e = 0; e < 4; e++) {
                seen[run][t * 4 + (int)e] = corral_vec_view(v)->obs[e * 2];
            }
        }
        corral_vec_destroy(v);
    }
    assert_memory_equal(seen[0], seen[1], sizeof seen[0]);
    assert_memory_not_equal(seen[0], seen[2], sizeof seen[0]);
}

static void a_snapshot_continues_the_same_run(void **state)
{
    (void)state;
    static const char *const ids[] = {"walk/Same-v0", "walk/Next-v0", "walk/Off-v0", "walk/Turns-v0",
                                      "walk/Team-v0"};
    for (size_t k = 0; k < 5; k++) {
        struct corral_vec *a = make(ids[k], 5), *b = make(ids[k], 5);
        struct corral_rng ra, rb;
        corral_rng_seed(&ra, 8);
        for (int t = 0; t < 46; t++) { /* Team: some rows are done by then */
            choose(a, &ra);
            check_ok(corral_vec_step(a, &err));
        }
        uint64_t bytes = 0, room;
        check_ok(corral_vec_snapshot(a, NULL, &bytes, &err));
        char *buf = malloc(bytes);
        assert_non_null(buf);
        room = bytes - 1;
        check_status(corral_vec_snapshot(a, buf, &room, &err), CORRAL_INVALID);
        room = bytes;
        check_ok(corral_vec_snapshot(a, buf, &room, &err));
        assert_int_equal(room, bytes);
        check_ok(corral_vec_restore(b, buf, bytes, &err));
        rb = ra;
        const struct corral_vec_view *va = corral_vec_view(a), *vb = corral_vec_view(b);
        for (int t = 0; t < 100; t++) {
            assert_memory_equal(va->obs, vb->obs, sizeof(float) * va->rows * va->obs_dim);
            assert_memory_equal(va->active, vb->active, va->rows);
            choose(a, &ra);
            choose(b, &rb);
            check_ok(corral_vec_step(a, &err));
            check_ok(corral_vec_step(b, &err));
            assert_memory_equal(va->terminated, vb->terminated, va->rows);
            assert_memory_equal(va->truncated, vb->truncated, va->rows);
            assert_memory_equal(va->reward, vb->reward, sizeof(float) * va->rows);
            assert_memory_equal(va->episode_steps, vb->episode_steps, sizeof(uint32_t) * va->envs);
        }
        free(buf);
        corral_vec_destroy(a);
        corral_vec_destroy(b);
    }
}

static void refuses_a_damaged_snapshot(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Same-v0", 3), *other = make("walk/Same-v0", 4);
    uint64_t bytes = 0;
    check_ok(corral_vec_snapshot(v, NULL, &bytes, &err));
    char *buf = malloc(bytes), *copy = malloc(bytes);
    assert_true(buf != NULL && copy != NULL);
    check_ok(corral_vec_snapshot(v, buf, &bytes, &err));
    for (uint64_t cut = 0; cut < bytes; cut++) {
        assert_int_not_equal(corral_vec_restore(v, buf, cut, &err), CORRAL_OK);
    }
    for (uint64_t at = 0; at < bytes; at++) { /* must not crash, whatever it says */
        memcpy(copy, buf, bytes);
        copy[at] = (char)~copy[at];
        (void)corral_vec_restore(v, copy, bytes, &err);
    }
    check_status(corral_vec_restore(other, buf, bytes, &err), CORRAL_INVALID);
    check_ok(corral_vec_restore(v, buf, bytes, &err));
    check_status(corral_vec_snapshot(v, NULL, &bytes, &err), CORRAL_OK);
    struct corral_vec *without = make("walk/Bytes-v0", 1);
    check_status(corral_vec_snapshot(without, NULL, &bytes, &err), CORRAL_UNSUPPORTED);
    corral_vec_destroy(without);
    corral_vec_destroy(v);
    corral_vec_destroy(other);
    free(buf);
    free(copy);
}

/* An allocator with a limit that knows what it lent. */
struct limited {
    size_t used, limit;
};
static enum corral_status limited_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                        struct corral_error *e)
{
    struct limited *l = ctx;
    if (l->used + bytes > l->limit) {
        return corral_fail(e, CORRAL_DENIED, "quota refuses %zu bytes for %s", bytes, what);
    }
    l->used += bytes;
    return corral_alloc(&corral_allocator_heap, bytes, what, out, e);
}
static void limited_release(void *ctx, void *memory, size_t bytes)
{
    struct limited *l = ctx;
    l->used -= memory ? bytes : 0;
    corral_release(&corral_allocator_heap, memory, bytes);
}

static void buffers_and_the_plugins_memory_are_charged(void **state)
{
    (void)state;
    struct limited limited = {.limit = 1 << 20};
    struct corral_allocator memory = {.alloc = limited_alloc, .release = limited_release, .ctx = &limited};
    struct corral_vec *v = make_with("walk/Allocates-v0", 4, &memory);
    assert_true(limited.used > 100000);
    corral_vec_destroy(v);
    assert_int_equal(limited.used, 0);
    struct corral_vec_config config = {
        .id = "walk/Allocates-v0", .library = WALK_PLUGIN, .envs = 4, .memory = &memory};
    for (limited.limit = 0; limited.limit < 100000;
         limited.limit += 400) { /* the refusal hits a different allocation every few times */
        enum corral_status status = corral_vec_create(&v, &config, &err);
        assert_true(status == CORRAL_DENIED || status == CORRAL_NOMEM);
        assert_int_equal(limited.used, 0);
    }
}

static void refuses_impossible_sizes_and_a_step_before_reset(void **state)
{
    (void)state;
    struct corral_vec *v = NULL;
    struct corral_vec_config config = {.id = "walk/Same-v0", .library = WALK_PLUGIN, .envs = 0};
    check_status(corral_vec_create(&v, &config, &err), CORRAL_INVALID);
    config.envs = UINT32_MAX;
    check_status(corral_vec_create(&v, &config, &err), CORRAL_INVALID);
    config.envs = 1;
    config.args_json = "[]";
    check_status(corral_vec_create(&v, &config, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "must be a JSON object"));
    config.args_json = NULL;
    config.id = "walk/ZeroAgents-v0";
    check_status(corral_vec_create(&v, &config, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "agents is 0"));
    v = make_with("walk/Same-v0", 1, NULL);
    check_status(corral_vec_step(v, &err), CORRAL_STATE);
    corral_vec_destroy(v);
    corral_vec_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(next_step_and_same_step_plugins_look_alike),
        cmocka_unit_test(without_autoreset_the_next_episode_has_begun_all_the_same),
        cmocka_unit_test(a_row_that_ends_early_is_flagged_once_and_rests),
        cmocka_unit_test(turns_show_in_active_and_masks_are_enforced),
        cmocka_unit_test(observations_of_any_type_arrive_as_float),
        cmocka_unit_test(continuous_actions_are_clipped_for_the_plugin_only),
        cmocka_unit_test(a_choice_out_of_range_steps_nothing),
        cmocka_unit_test(a_number_that_is_none_voids_the_episode),
        cmocka_unit_test(infrastructure_failure_voids_only_its_environment),
        cmocka_unit_test(an_environment_that_cannot_be_reset_is_tried_again),
        cmocka_unit_test(gives_up_when_no_environment_can_be_reset),
        cmocka_unit_test(a_batch_that_fails_is_an_error),
        cmocka_unit_test(in_process_a_crash_is_the_programs_own),
        cmocka_unit_test(equal_seeds_give_equal_runs_and_other_workers_differ),
        cmocka_unit_test(a_snapshot_continues_the_same_run),
        cmocka_unit_test(refuses_a_damaged_snapshot),
        cmocka_unit_test(buffers_and_the_plugins_memory_are_charged),
        cmocka_unit_test(refuses_impossible_sizes_and_a_step_before_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
