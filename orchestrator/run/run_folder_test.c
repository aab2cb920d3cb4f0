#include "tests/check.h"

#include "base/file.h"
#include "base/json.h"
#include "orchestrator/run/run_folder.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[64], dir[96];

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/corral-runs-XXXXXX");
    if (!mkdtemp(root)) {
        return -1;
    }
    snprintf(dir, sizeof dir, "%s/runs", root);
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    return corral_remove_tree(root, NULL) == CORRAL_OK ? 0 : -1;
}

static void mode_of(const char *path, const char *name, mode_t expected)
{
    char file[CORRAL_RUN_PATH_MAX + 64];
    struct stat st;
    snprintf(file, sizeof file, "%s/%s", path, name);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 07777, expected);
}

/* A folder as launch leaves it, with a job file of this age. */
static void make_run(const char *name, time_t age_s)
{
    struct corral_error err = {0};
    char path[CORRAL_RUN_PATH_MAX], file[CORRAL_RUN_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    check_ok(corral_mkdirs(path, 0755, &err));
    snprintf(file, sizeof file, "%s/job.toml", path);
    check_ok(corral_file_write_atomic(file, "", 0, 0644, false, &err));
    const struct timespec times[2] = {{.tv_sec = 1000000 - age_s}, {.tv_sec = 1000000 - age_s}};
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
}

static void expect_found(const char *which, const char *name)
{
    struct corral_error err = {0};
    char path[CORRAL_RUN_PATH_MAX], expected[CORRAL_RUN_PATH_MAX];
    check_ok(corral_run_folder_find(dir, which, path, &err));
    snprintf(expected, sizeof expected, "%s/%s", dir, name);
    assert_string_equal(path, expected);
}

static void expect_not_found(const char *which, enum corral_status expected)
{
    struct corral_error err = {0};
    char path[CORRAL_RUN_PATH_MAX];
    check_status(corral_run_folder_find(dir, which, path, &err), expected);
    assert_true(err.text[0] != 0);
}

static void a_new_run_has_a_folder_of_its_own(void **state)
{
    (void)state;
    struct corral_error err = {0};
    uint64_t run[3];
    char path[3][CORRAL_RUN_PATH_MAX], id[16];
    for (int i = 0; i < 3; i++) {
        check_ok(corral_run_folder_create(dir, "cart-pole", &run[i], path[i], &err));
        assert_int_equal(path[i][0], '/');
        mode_of(path[i], "logs", 0755);
        mode_of(path[i], "checkpoints", 0755);
        mode_of(path[i], "sock", 0700);
        snprintf(id, sizeof id, "-%08x", (unsigned)(run[i] >> 31));
        assert_string_equal(path[i] + strlen(path[i]) - 9, id);
        assert_true(run[i] <= INT64_MAX); /* SQLite's integers are signed */
    }
    assert_string_not_equal(path[0], path[1]);
    assert_string_not_equal(path[1], path[2]);
}

static void a_folder_that_cannot_be_made_is_an_error(void **state)
{
    (void)state;
    struct corral_error err = {0};
    uint64_t run;
    char path[CORRAL_RUN_PATH_MAX], file[128], name[2000];
    snprintf(file, sizeof file, "%s/a-file", root);
    check_ok(corral_file_write_atomic(file, "x", 1, 0644, false, &err));
    assert_int_not_equal(corral_run_folder_create(file, "job", &run, path, &err), CORRAL_OK);
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    check_status(corral_run_folder_create(dir, name, &run, path, &err), CORRAL_INVALID);
}

static void finds_a_run_by_what_it_is_called(void **state)
{
    (void)state;
    make_run("cartpole-7f3a12bc", 30);
    make_run("cartpole-7f3b0000", 20);
    make_run("two-part-name-00ab54ff", 10);
    make_run("no_dash", 40);
    expect_found("cartpole-7f3a12bc", "cartpole-7f3a12bc");
    expect_found("7f3a12bc", "cartpole-7f3a12bc");
    expect_found("7f3a", "cartpole-7f3a12bc");
    expect_found("00", "two-part-name-00ab54ff");
    expect_found("no_dash", "no_dash");
    expect_found(NULL, "two-part-name-00ab54ff");
    expect_found("last", "two-part-name-00ab54ff");
    char path[CORRAL_RUN_PATH_MAX];
    snprintf(path, sizeof path, "%s/cartpole-7f3a12bc/../cartpole-7f3b0000/", dir);
    expect_found(path, "cartpole-7f3b0000");
}

static void an_ambiguous_or_unknown_name_is_an_error(void **state)
{
    (void)state;
    make_run("cartpole-7f3a12bc", 30);
    make_run("acrobot-7f3b0000", 20);
    expect_not_found("7f3", CORRAL_INVALID);
    expect_not_found("7f3c", CORRAL_NOT_FOUND);
    expect_not_found("cartpole", CORRAL_NOT_FOUND);
    expect_not_found("part-name", CORRAL_NOT_FOUND);
    expect_not_found("", CORRAL_NOT_FOUND);
    expect_not_found("/nonexistent", CORRAL_NOT_FOUND);
    expect_not_found("7f3a12bc0", CORRAL_NOT_FOUND);
}

static void no_runs_yet_is_an_error_that_says_so(void **state)
{
    (void)state;
    struct corral_error err = {0};
    char path[CORRAL_RUN_PATH_MAX];
    check_status(corral_run_folder_find(dir, NULL, path, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "rlctl launch"));
}

struct listing {
    char names[8][64];
    uint32_t count, stop_at;
};

static enum corral_status take_name(void *ctx, const char *path, struct corral_error *err)
{
    struct listing *l = ctx;
    snprintf(l->names[l->count++], sizeof l->names[0], "%s", strrchr(path, '/') + 1);
    return l->count == l->stop_at ? corral_fail(err, CORRAL_STATE, "enough") : CORRAL_OK;
}

static void lists_runs_from_the_oldest(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct listing l = {.count = 0};
    make_run("b-00000002", 10);
    make_run("a-00000003", 20);
    make_run("d-00000001", 20);
    make_run("c-00000000", 30);
    char other[128];
    snprintf(other, sizeof other, "%s/not-a-run", dir);
    check_ok(corral_mkdirs(other, 0755, &err));
    check_ok(corral_run_folder_each(dir, take_name, &l, &err));
    assert_int_equal(l.count, 4);
    static const char *const expected[] = {"c-00000000", "a-00000003", "d-00000001", "b-00000002"};
    for (uint32_t i = 0; i < 4; i++) {
        assert_string_equal(l.names[i], expected[i]);
    }
    l = (struct listing){.stop_at = 2};
    check_status(corral_run_folder_each(dir, take_name, &l, &err), CORRAL_STATE);
    assert_int_equal(l.count, 2);
    check_ok(corral_run_folder_each("/nonexistent/runs", take_name, &l, &err));
}

static void knows_who_holds_the_lock(void **state)
{
    (void)state;
    struct corral_error err = {0};
    char path[CORRAL_RUN_PATH_MAX], lock[CORRAL_RUN_PATH_MAX + 16];
    uint64_t run;
    int fd = -1;
    check_ok(corral_run_folder_create(dir, "job", &run, path, &err));
    assert_int_equal(corral_run_folder_coordinator(path), 0);
    snprintf(lock, sizeof lock, "%s/lock", path);
    check_ok(corral_lock_file(lock, &fd, &err));
    assert_int_equal(corral_run_folder_coordinator(path), getpid());
    close(fd);
    assert_int_equal(corral_run_folder_coordinator(path), 0);
}

/* ---- launch.json ---- */

static struct corral_launch_file example(void)
{
    struct corral_launch_file f = {.run = UINT64_C(0x0123456789abcdef),
                                   .incarnation = 3,
                                   .token = "a token",
                                   .endpoint = "ipc://sock/control",
                                   .endpoint_tcp = "tcp://[::1]:1234",
                                   .resume = "checkpoints/step-000000100"};
    memset(f.server_public_key, 'p', 40);
    memset(f.server_secret_key, 's', 40);
    for (int i = 0; i < 32; i++) {
        f.secret[i] = (uint8_t)(i * 8 + 3);
    }
    return f;
}

static void write_example(char path[128])
{
    struct corral_error err = {0};
    struct corral_launch_file f = example();
    snprintf(path, 128, "%s/launch.json", root);
    check_ok(corral_launch_file_write(path, &f, &err));
}

static void a_launch_file_comes_back_and_is_nobody_elses(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_launch_file f = example(), back;
    char path[128];
    memset(&back, 0xcc, sizeof back);
    write_example(path);
    mode_of(root, "launch.json", 0600);
    check_ok(corral_launch_file_read(path, &back, &err));
    assert_int_equal(back.run, f.run);
    assert_int_equal(back.incarnation, f.incarnation);
    assert_memory_equal(back.secret, f.secret, sizeof f.secret);
    assert_string_equal(back.token, f.token);
    assert_string_equal(back.endpoint, f.endpoint);
    assert_string_equal(back.endpoint_tcp, f.endpoint_tcp);
    assert_string_equal(back.server_public_key, f.server_public_key);
    assert_string_equal(back.server_secret_key, f.server_secret_key);
    assert_string_equal(back.resume, f.resume);
    assert_int_equal(chmod(path, 0644), 0); /* a copy made with another mode is made private again */
    check_ok(corral_launch_file_write(path, &f, &err));
    mode_of(root, "launch.json", 0600);
}

static void a_launch_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_launch_file back;
    char path[128], *text = NULL;
    size_t bytes;
    write_example(path);
    check_ok(corral_file_read(path, 1u << 16, &text, &bytes, &err));
    for (size_t n = 0; n < bytes; n++) {
        check_ok(corral_file_write_atomic(path, text, n, 0600, false, &err));
        assert_int_not_equal(corral_launch_file_read(path, &back, &err), CORRAL_OK);
    }
    assert_int_equal(unlink(path), 0);
    assert_int_not_equal(corral_launch_file_read(path, &back, &err), CORRAL_OK);
    free(text);
}

static void a_launch_file_with_a_wrong_value_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value; /* value: JSON; NULL takes the key out */
    } cases[] = {
        {"format", "2"},
        {"format", "\"1\""},
        {"run", "\"0123456789abcde\""},
        {"run", "\"0123456789ABCDEF\""},
        {"run", "\"0x23456789abcdef\""},
        {"run", "5"},
        {"incarnation", "0"},
        {"incarnation", "-1"},
        {"incarnation", "4294967296"},
        {"token", "\"\""},
        {"token", NULL},
        {"secret", "\"00\""},
        {"secret", NULL},
        {"endpoint", "null"},
        {"endpoint_tcp", "[]"},
        {"server_public_key", "1"},
        {"resume", NULL},
        {"endpoint", "\"a\\u0000b\""},
        {"server_secret_key", "\"12345678901234567890123456789012345678901\""}, /* 41 characters */
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        struct corral_error err = {0};
        struct corral_launch_file back, untouched;
        char path[128];
        json_t *file = NULL;
        write_example(path);
        check_ok(corral_json_read_file(&file, path, &err));
        if (cases[i].value) {
            json_object_set_new(file, cases[i].key,
                                json_loads(cases[i].value, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL));
        } else {
            json_object_del(file, cases[i].key);
        }
        assert_int_equal(json_dump_file(file, path, 0), 0);
        json_decref(file);
        memset(&back, 0x5a, sizeof back);
        memset(&untouched, 0x5a, sizeof untouched);
        enum corral_status status = corral_launch_file_read(path, &back, &err);
        if (status == CORRAL_OK) {
            fail_msg("accepted %s = %s", cases[i].key, cases[i].value ? cases[i].value : "(absent)");
        }
        assert_memory_equal(&back, &untouched, sizeof back);
    }
}

#define test(fn) cmocka_unit_test_setup_teardown(fn, make_root, remove_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(a_new_run_has_a_folder_of_its_own),
        test(a_folder_that_cannot_be_made_is_an_error),
        test(finds_a_run_by_what_it_is_called),
        test(an_ambiguous_or_unknown_name_is_an_error),
        test(no_runs_yet_is_an_error_that_says_so),
        test(lists_runs_from_the_oldest),
        test(knows_who_holds_the_lock),
        test(a_launch_file_comes_back_and_is_nobody_elses),
        test(a_launch_file_cut_anywhere_is_refused),
        test(a_launch_file_with_a_wrong_value_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
