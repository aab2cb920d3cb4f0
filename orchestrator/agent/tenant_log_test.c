#include "base/file.h"
#include "orchestrator/agent/tenant_log.h"
#include "tests/check.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64], path[96], old[96];
static struct corral_error err;
static int fd;

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/corral-tenant-log.XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/hog.log", folder);
    snprintf(old, sizeof old, "%s/hog.old.log", folder);
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    return fd >= 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    close(fd);
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static void say(int from, int to)
{
    for (int i = from; i < to; i++) {
        assert_int_equal(dprintf(fd, "line %08d\n", i), 14);
    }
}

static uint64_t bytes_of(const char *name)
{
    struct stat st;
    return stat(name, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static bool has(const char *name, const char *text)
{
    CORRAL_AUTO_FREE char *content = NULL;
    size_t bytes;
    return corral_file_read(name, 1 << 22, &content, &bytes, NULL) == CORRAL_OK && strstr(content, text);
}

static void a_log_within_its_limit_is_left_alone(void **state)
{
    (void)state;
    bool turned = true;
    say(0, 100);
    check_ok(corral_tenant_log_turn(fd, 1400, &turned, &err));
    assert_false(turned);
    assert_int_equal(bytes_of(path), 1400);
    assert_int_equal(access(old, F_OK), -1);
}

static void what_is_old_is_kept_beside_it_and_writing_goes_on(void **state)
{
    (void)state;
    bool turned = false;
    say(0, 10000);
    check_ok(corral_tenant_log_turn(fd, 100000, &turned, &err));
    assert_true(turned);
    assert_int_equal(bytes_of(old), 140000);
    assert_true(bytes_of(path) < 4096);
    say(10000, 10001);
    assert_true(bytes_of(path) < 4096 + 14);
    assert_true(has(path, "line 00010000\n"));
    assert_true(has(old, "line 00000000\n") && has(old, "line 00009999\n"));
}

/* More than the limit may come between two looks. */
static void what_is_kept_is_bounded_however_much_was_written(void **state)
{
    (void)state;
    say(0, 10000);
    check_ok(corral_tenant_log_turn(fd, 20000, NULL, &err));
    assert_int_equal(bytes_of(old), 40000);
    assert_true(bytes_of(path) < 4096);
    assert_true(has(old, "line 00009999\n"));
    assert_false(has(old, "line 00005000\n"));
}

/* A program that writes faster than its log is copied does not keep the copy going. */
static void a_program_that_never_pauses_is_no_endless_copy(void **state)
{
    (void)state;
    say(0, 1000);
    pid_t writer = fork();
    if (writer == 0) {
        const struct rlimit limit = {64 << 20, 64 << 20};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        static char text[1 << 16];
        memset(text, 'x', sizeof text);
        for (;;) {
            (void)!write(fd, text, sizeof text);
        }
    }
    int turns = 0;
    for (int i = 0; i < 3; i++) { /* the writer may not have got its turn in between */
        bool turned = false;
        check_ok(corral_tenant_log_turn(fd, 1000, &turned, &err));
        turns += turned;
        assert_true(bytes_of(old) <= 4 * 4096);
    }
    kill(writer, SIGKILL);
    waitpid(writer, NULL, 0);
    assert_true(turns > 0);
}

static void the_older_of_two_parts_goes(void **state)
{
    (void)state;
    say(0, 1000);
    check_ok(corral_tenant_log_turn(fd, 1000, NULL, &err));
    say(1000, 2000);
    check_ok(corral_tenant_log_turn(fd, 1000, NULL, &err));
    assert_true(has(old, "line 00001500\n"));
    assert_false(has(old, "line 00000500\n"));
    assert_true(bytes_of(old) + bytes_of(path) < 14000 + 2 * 4096);
}

static void what_is_no_log_is_left_alone(void **state)
{
    (void)state;
    bool turned = true;
    int pipe_fd[2];
    assert_int_equal(pipe(pipe_fd), 0);
    check_ok(corral_tenant_log_turn(pipe_fd[1], 0, &turned, &err));
    assert_false(turned);
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    say(0, 1);
    assert_int_equal(unlink(path), 0);
    assert_int_not_equal(corral_tenant_log_turn(fd, 0, &turned, &err), CORRAL_OK);
    assert_false(turned);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_log_within_its_limit_is_left_alone),
        T(what_is_old_is_kept_beside_it_and_writing_goes_on),
        T(what_is_kept_is_bounded_however_much_was_written),
        T(a_program_that_never_pauses_is_no_endless_copy),
        T(the_older_of_two_parts_goes),
        T(what_is_no_log_is_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
