#include "base/file.h"
#include "cli/run_view.h"
#include "tests/check.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    char dir[64];
    char run[96];
};

static int set_up(void **state)
{
    static struct fixture f;
    struct corral_error err;
    snprintf(f.dir, sizeof f.dir, "/tmp/corral-view-XXXXXX");
    assert_non_null(mkdtemp(f.dir));
    snprintf(f.run, sizeof f.run, "%s/two-words-7f3a12bc", f.dir);
    assert_int_equal(mkdir(f.run, 0755), 0);
    char file[128];
    snprintf(file, sizeof file, "%s/job.toml", f.run);
    check_ok(corral_file_write_atomic(file, "", 0, 0644, false, &err));
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    return corral_remove_tree(f->dir, NULL) == CORRAL_OK ? 0 : -1;
}

static void write_file(const struct fixture *f, const char *name, const char *text)
{
    struct corral_error err;
    char file[160];
    snprintf(file, sizeof file, "%s/%s", f->run, name);
    check_ok(corral_file_write_atomic(file, text, strlen(text), 0644, false, &err));
}

static struct corral_journal *journal(const struct fixture *f)
{
    struct corral_error err;
    struct corral_journal *j = NULL;
    char file[160];
    snprintf(file, sizeof file, "%s/journal.db", f->run);
    check_ok(corral_journal_create(file, 7, "two-words", &j, &err));
    return j;
}

/* A child that holds the run's lock until `release` is closed. */
static pid_t hold_lock(const struct fixture *f, int *release)
{
    int go[2], ready[2];
    char file[160], byte;
    snprintf(file, sizeof file, "%s/lock", f->run);
    assert_int_equal(pipe(go), 0);
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int fd;
        close(go[1]);
        bool locked = corral_lock_file(file, &fd, NULL) == CORRAL_OK;
        (void)!write(ready[1], "1", 1);
        (void)!read(go[0], &byte, 1);
        _exit(locked ? 0 : 1);
    }
    close(go[0]);
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    *release = go[1];
    return pid;
}

static void let_go(pid_t pid, int release)
{
    int code;
    close(release);
    assert_int_equal(waitpid(pid, &code, 0), pid);
    assert_int_equal(code, 0);
}

static const char good_status[] = "{\"format\": 1, \"job\": \"two-words\", \"incarnation\": 1, \"phase\": "
                                  "\"running\", \"reason\": \"\", \"step\": 12}";

static void names_come_from_the_folder(void **state)
{
    const struct fixture *f = *state;
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
    corral_run_view_read(&v, f->run);
    assert_string_equal(v.id, "7f3a12bc");
    assert_string_equal(v.job, "two-words");
    assert_int_not_equal(v.started_wall_ns, 0);
    assert_string_equal(corral_run_view_state(&v), "crashed");
    assert_non_null(strstr(v.note, "journal"));
}

static void a_run_without_lock_and_end_has_crashed(void **state)
{
    const struct fixture *f = *state;
    corral_journal_close(journal(f));
    write_file(f, "status.json", good_status);
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
    corral_run_view_read(&v, f->run);
    assert_string_equal(v.note, "");
    assert_string_equal(corral_run_view_state(&v), "crashed");
    assert_int_equal(corral_view_count(v.status, "step"), 12);
}

static void an_end_in_the_journal_is_the_state(void **state)
{
    const struct fixture *f = *state;
    struct corral_error err;
    struct corral_journal *j = journal(f);
    check_ok(corral_journal_checkpoint(j, 40, 41, 4000, "checkpoints/step-000000040", &err));
    check_ok(corral_journal_end_run(j, &(struct corral_journal_end){.outcome = "learned", .reason = "good"},
                                    &err));
    corral_journal_close(j);
    write_file(f, "status.json", good_status);
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
    corral_run_view_read(&v, f->run);
    assert_string_equal(corral_run_view_state(&v), "learned");
    assert_string_equal(corral_run_view_reason(&v), "good");
    assert_int_equal(v.checkpoint_step, 40);
}

static void a_held_lock_means_running(void **state)
{
    const struct fixture *f = *state;
    corral_journal_close(journal(f));
    write_file(f, "status.json", good_status);
    int release, pidfd = -1;
    pid_t pid = hold_lock(f, &release), seen = 0;
    struct corral_error err;
    {
        CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
        corral_run_view_read(&v, f->run);
        assert_int_equal(v.pid, pid);
        assert_string_equal(corral_run_view_state(&v), "running");
    }
    check_ok(corral_run_view_coordinator(f->run, &pidfd, &seen, &err));
    assert_int_equal(seen, pid);
    assert_true(pidfd >= 0);
    close(pidfd);
    let_go(pid, release);
    check_ok(corral_run_view_coordinator(f->run, &pidfd, &seen, &err));
    assert_int_equal(seen, 0);
    assert_int_equal(pidfd, -1);
}

static void a_status_of_an_earlier_start_is_not_shown_as_this_one(void **state)
{
    const struct fixture *f = *state;
    struct corral_error err;
    uint32_t incarnation;
    struct corral_journal *j = journal(f);
    check_ok(corral_journal_end_run(j, &(struct corral_journal_end){.outcome = "stopped", .reason = "early"},
                                    &err));
    check_ok(corral_journal_next_incarnation(j, &incarnation, &err));
    corral_journal_close(j);
    write_file(f, "status.json", good_status);
    int release;
    pid_t pid = hold_lock(f, &release);
    {
        CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
        corral_run_view_read(&v, f->run);
        assert_string_equal(corral_run_view_state(&v), "starting");
        assert_string_equal(corral_run_view_reason(&v), "");
    }
    let_go(pid, release);
}

static void damage_is_a_note_and_never_fatal(void **state)
{
    const struct fixture *f = *state;
    static const char *const broken[] = {
        "",
        "{",
        "[]",
        "7",
        "{\"format\": 2}",
        "{\"format\": \"1\"}",
        "{\"format\": 1, \"job\": 7, \"step\": -1, \"eval_best\": [], \"phase\": {}, \"workers\": 3}",
        "{\"format\": 1, \"job\": \"\\u001b[2Jx\"}"};
    corral_journal_close(journal(f));
    for (size_t i = 0; i < CORRAL_COUNT_OF(broken); i++) {
        write_file(f, "status.json", broken[i]);
        CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
        corral_run_view_read(&v, f->run);
        assert_string_equal(corral_run_view_state(&v), "crashed");
        assert_true((v.status == NULL) == (v.note[0] != '\0'));
        assert_null(strchr(v.job, '\033'));
        assert_null(strchr(v.note, '\n'));
        assert_int_equal(corral_view_count(v.status, "step"), 0);
    }
    write_file(f, "journal.db",
               "this is no database, whatever it is called; it is long enough to be looked at, and wrong "
               "throughout");
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view v;
    corral_run_view_read(&v, f->run);
    assert_non_null(strstr(v.note, "journal"));
}

static void missing_numbers_are_nan_and_text_is_made_plain(void **state)
{
    (void)state;
    char out[16];
    assert_true(isnan(corral_view_number(NULL, "x")));
    assert_int_equal(corral_view_count(NULL, "x"), 0);
    assert_string_equal(corral_view_text(NULL, "x"), "");
    assert_string_equal(corral_view_plain("a\tb\033[1m\x7f", out, sizeof out), "a?b?[1m?");
    assert_string_equal(corral_view_plain("≤ 475", out, sizeof out), "≤ 475");
    assert_string_equal(corral_view_plain("1234567890123≤", out, sizeof out),
                        "1234567890123"); /* never half a character */
    assert_string_equal(corral_view_plain("123456789012≤x", out, sizeof out), "123456789012≤");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names_come_from_the_folder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_run_without_lock_and_end_has_crashed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_end_in_the_journal_is_the_state, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_held_lock_means_running, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_status_of_an_earlier_start_is_not_shown_as_this_one, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(damage_is_a_note_and_never_fatal, set_up, tear_down),
        cmocka_unit_test(missing_numbers_are_nan_and_text_is_made_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
