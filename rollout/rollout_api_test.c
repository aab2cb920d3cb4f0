/* Linked with libcorral.so and nothing else of the project, as an outside program is. */
#include "tests/check.h"
#include <corral/rollout.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct corral_error err;

static struct corral_envs *make(const char *id, uint32_t isolation)
{
    struct corral_make_options options = {
        .size = sizeof options, .library = WALK_PLUGIN, .seed = 5, .isolation = isolation, .restarts_max = 3};
    struct corral_envs *envs = NULL;
    check_ok(corral_make(&envs, id, 6, &options, &err));
    check_ok(corral_envs_reset(envs, &err));
    return envs;
}

static void act(const struct corral_envs_buffers *b, int t)
{
    for (uint32_t row = 0; row < b->rows; row++) {
        ((int32_t *)b->action)[row] = (int32_t)((row + (uint32_t)t / 5) % 3);
    }
}

static void steps_alike_in_process_and_in_a_child(void **state)
{
    (void)state;
    struct corral_envs *a = make("walk/Same-v0", CORRAL_ENVS_IN_PROCESS),
                       *b = make("walk/Same-v0", CORRAL_ENVS_CHILD);
    const struct corral_envs_buffers *va = corral_envs_buffers(a), *vb = corral_envs_buffers(b);
    assert_string_equal(corral_envs_id(a), "walk/Same-v0");
    assert_int_equal(va->rows, 6);
    assert_int_equal(va->obs_dim, 2);
    assert_int_equal(va->action_kind, CORRAL_ENVS_DISCRETE);
    assert_int_equal(va->choices[0], 3);
    assert_int_equal(va->max_episode_steps, 20);
    assert_true(isnan(va->reward_threshold));
    uint64_t bytes = 0;
    for (int t = 0; t < 100; t++) {
        assert_memory_equal(va->obs, vb->obs, sizeof(float) * 12);
        act(va, t);
        act(vb, t);
        check_ok(corral_envs_step(a, &err));
        check_ok(corral_envs_step(b, &err));
        assert_memory_equal(va->reward, vb->reward, sizeof(float) * 6);
    }
    struct corral_envs_stats stats = {.size = sizeof stats};
    check_ok(corral_envs_stats(a, &stats, &err));
    assert_int_equal(stats.steps, 100);
    assert_true(stats.episodes >= 30 && stats.voided == 0);
    check_ok(corral_envs_snapshot(a, NULL, &bytes, &err));
    char *snapshot = malloc(bytes);
    assert_non_null(snapshot);
    check_ok(corral_envs_snapshot(a, snapshot, &bytes, &err));
    act(vb, 1);
    check_ok(corral_envs_step(b, &err));
    check_ok(corral_envs_restore(b, snapshot, bytes, &err));
    assert_memory_equal(va->obs, vb->obs, sizeof(float) * 12);
    free(snapshot);
    corral_envs_close(a);
    corral_envs_close(b);
    corral_envs_close(NULL);
}

static void a_crash_is_a_void_step(void **state)
{
    (void)state;
    struct corral_envs *envs = make("walk/Crash-v0", CORRAL_ENVS_CHILD);
    const struct corral_envs_buffers *b = corral_envs_buffers(envs);
    for (int t = 1; t <= 14; t++) {
        act(b, 0);
        check_ok(corral_envs_step(envs, &err));
        assert_int_equal(b->status[3], t % 7 == 0 ? CORRAL_INFRA : CORRAL_OK);
    }
    struct corral_envs_stats stats = {.size = sizeof stats};
    check_ok(corral_envs_stats(envs, &stats, &err));
    assert_int_equal(stats.restarts, 2);
    assert_non_null(strstr(stats.last_fault, "died of signal 6"));
    corral_envs_close(envs);
}

static void tells_what_is_wrong_with_a_call(void **state)
{
    (void)state;
    struct corral_envs *envs = NULL;
    struct corral_make_options options = {.size = 0};
    check_status(corral_make(&envs, "x", 1, &options, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "options->size is 0"));
    options.size = sizeof options;
    options.isolation = 7;
    check_status(corral_make(&envs, "x", 1, &options, &err), CORRAL_INVALID);
    check_status(corral_make(&envs, "Kartpole-v1", 1, NULL, &err), CORRAL_NOT_FOUND);
    check_status(corral_make(&envs, NULL, 1, NULL, &err), CORRAL_INVALID);
    envs = make("walk/Same-v0", CORRAL_ENVS_IN_PROCESS);
    const struct corral_envs_buffers *b = corral_envs_buffers(envs);
    act(b, 0);
    ((int32_t *)b->action)[5] = 3;
    check_status(corral_envs_step(envs, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "environment 5"));
    struct corral_envs_stats stats = {.size = 0};
    check_status(corral_envs_stats(envs, &stats, &err), CORRAL_INVALID);
    corral_envs_close(envs);
}

/* An option struct of an older program lacks the last members, one of a newer program has more. */
static void accepts_options_of_another_release(void **state)
{
    (void)state;
    struct {
        struct corral_make_options known;
        char later[64];
    } options = {.known = {.size = sizeof options, .library = WALK_PLUGIN}};
    struct corral_envs *envs = NULL;
    check_ok(corral_make(&envs, "walk/Same-v0", 1, &options.known, &err));
    corral_envs_close(envs);
    options.known.size = offsetof(struct corral_make_options, isolation);
    options.known.isolation = 7; /* beyond the size: not read */
    check_ok(corral_make(&envs, "walk/Same-v0", 1, &options.known, &err));
    corral_envs_close(envs);
}

/* Run from elsewhere as "PROGRAM find": the built-in environments and the helper are then found from the library's place alone. */
static int find_from_elsewhere(void)
{
    struct corral_make_options options = {.size = sizeof options, .isolation = CORRAL_ENVS_CHILD};
    struct corral_envs *envs = NULL;
    enum corral_status status = corral_make(&envs, "CartPole-v1", 2, &options, &err);
    if (status != CORRAL_OK) {
        fprintf(stderr, "%s\n", err.text);
    }
    corral_envs_close(envs);
    return status == CORRAL_OK ? 0 : 1;
}

static void finds_built_in_environments_from_the_librarys_place(void **state)
{
    (void)state;
    char folder[] = "/tmp/corral-rollout-XXXXXX", program[64], command[256];
    assert_non_null(mkdtemp(folder));
    snprintf(program, sizeof program, "%s/program", folder);
    snprintf(command, sizeof command, "cp /proc/%d/exe %s && %s find", (int)getpid(), program, program);
    int code = system(command); /* NOLINT(cert-env33-c): a fixed command */
    unlink(program);
    rmdir(folder);
    assert_int_equal(code, 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "find") == 0) {
        return find_from_elsewhere();
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_alike_in_process_and_in_a_child),
        cmocka_unit_test(a_crash_is_a_void_step),
        cmocka_unit_test(tells_what_is_wrong_with_a_call),
        cmocka_unit_test(accepts_options_of_another_release),
        cmocka_unit_test(finds_built_in_environments_from_the_librarys_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
