#include "tests/check.h"

#include "base/file.h"
#include "orchestrator/process.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 30000

/* ---- the other side: this program again, as `process_test child WHAT…` ---- */

static int list_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        int fd = atoi(e->d_name);
        if (e->d_name[0] != '.' && fd > 2 && fd != dirfd(d)) {
            printf("fd %d\n", fd);
        }
    }
    return d && closedir(d) == 0 ? 0 : 1;
}

static int describe(void)
{
    cpu_set_t cpus;
    char byte;
    printf("group %d\n", getpgid(0) == getpid());
    printf("cpus %d\n", sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : -1);
    printf("stdin %d\n", (int)read(0, &byte, 1));
    return 0;
}

/* Start a child of its own, tell its pid, and wait to be killed. */
static int be_a_parent(void)
{
    struct corral_process grandchild;
    struct corral_error err = {0};
    const char *argv[] = {"grandchild", "child", "wait", NULL};
    const struct corral_process_spec spec = {.argv = argv};
    if (corral_process_start(&spec, &grandchild, &err) != CORRAL_OK) {
        return 1;
    }
    printf("%d\n", (int)grandchild.pid);
    fflush(stdout);
    for (;;) {
        pause();
    }
}

static int be_a_child(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[2] : "";
    if (strcmp(what, "exit") == 0) {
        return atoi(argv[3]);
    }
    if (strcmp(what, "raise") == 0) {
        raise(atoi(argv[3]));
    }
    if (strcmp(what, "wait") == 0) {
        for (;;) {
            pause();
        }
    }
    if (strcmp(what, "fds") == 0) {
        return list_descriptors();
    }
    if (strcmp(what, "describe") == 0) {
        return describe();
    }
    return strcmp(what, "parent") == 0 ? be_a_parent() : 99;
}

/* ---- helpers ---- */

static char folder[64], log_file[96];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/corral-process-XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(log_file, sizeof log_file, "%s/log", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static struct corral_process start_with(struct corral_process_spec spec, const char *what,
                                        const char *argument)
{
    struct corral_error err = {0};
    struct corral_process p = {0};
    const char *argv[] = {"process_test", "child", what, argument, NULL};
    spec.argv = argv;
    check_ok(corral_process_start(&spec, &p, &err));
    assert_true(p.pid > 0 && p.pidfd >= 0);
    return p;
}

static struct corral_process start(const char *what, const char *argument)
{
    return start_with((struct corral_process_spec){0}, what, argument);
}

static int wait_for(struct corral_process *p)
{
    struct corral_error err = {0};
    int code = 12345, pidfd = p->pidfd;
    check_ok(corral_process_wait(p, PATIENCE_MS, &code, &err));
    assert_int_equal(p->pid, 0);
    assert_int_equal(fcntl(pidfd, F_GETFD), -1);
    return code;
}

static char *log_text(void)
{
    struct corral_error err = {0};
    char *text = NULL;
    size_t bytes;
    check_ok(corral_file_read(log_file, 1u << 20, &text, &bytes, &err));
    assert_int_equal(unlink(log_file), 0);
    return text;
}

/* ---- tests ---- */

static void tells_exit_codes_and_signals_apart(void **state)
{
    (void)state;
    static const struct {
        const char *what, *argument;
        int code;
    } cases[] = {{"exit", "0", 0},
                 {"exit", "3", 3},
                 {"exit", "255", 255},
                 {"raise", "15", -SIGTERM},
                 {"raise", "9", -SIGKILL}};
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        struct corral_process p = start(cases[i].what, cases[i].argument);
        assert_int_equal(wait_for(&p), cases[i].code);
    }
}

static void waits_no_longer_than_told(void **state)
{
    (void)state;
    int code = 77;
    struct corral_process p = start("wait", NULL);
    check_status(corral_process_wait(&p, 0, &code, NULL), CORRAL_AGAIN);
    check_status(corral_process_wait(&p, 5, &code, NULL), CORRAL_AGAIN);
    assert_int_equal(code, 77);
    assert_true(p.pid > 0);
    corral_process_signal(&p, SIGKILL);
    assert_int_equal(wait_for(&p), -SIGKILL);
    corral_process_signal(&p, SIGKILL); /* gone: harmless */
    check_status(corral_process_wait(&p, 0, &code, NULL), CORRAL_AGAIN);
}

static void a_signal_to_a_process_not_yet_reaped_is_harmless(void **state)
{
    (void)state;
    struct corral_process p = start("exit", "4");
    struct pollfd ended = {.fd = p.pidfd, .events = POLLIN};
    assert_int_equal(poll(&ended, 1, PATIENCE_MS), 1);
    corral_process_signal(&p, SIGTERM);
    assert_int_equal(wait_for(&p), 4);
}

static void a_blocked_signal_of_the_parent_reaches_the_child(void **state)
{
    (void)state;
    sigset_t term, before;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, &before);
    struct corral_process p = start("wait", NULL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    corral_process_signal(&p, SIGTERM);
    assert_int_equal(wait_for(&p), -SIGTERM);
}

static void inherits_only_the_descriptors_named(void **state)
{
    (void)state;
    int careless[2], named[2];
    char expected[64];
    assert_int_equal(pipe(careless), 0);
    assert_int_equal(pipe2(named, O_CLOEXEC), 0);
    struct corral_process p = start_with(
        (struct corral_process_spec){.log_path = log_file, .fds = {named[1]}, .fd_count = 1}, "fds", NULL);
    assert_int_equal(wait_for(&p), 0);
    CORRAL_AUTO_FREE char *text = log_text();
    snprintf(expected, sizeof expected, "fd %d\n", named[1]);
    assert_string_equal(text, expected);
    assert_int_equal(fcntl(named[1], F_GETFD), FD_CLOEXEC); /* of the parent: as it was */
    for (int i = 0; i < 2; i++) {
        close(careless[i]);
        close(named[i]);
    }
}

static void a_descriptor_that_is_not_open_starts_nothing(void **state)
{
    (void)state;
    struct corral_process p =
        start_with((struct corral_process_spec){.fds = {987}, .fd_count = 1}, "exit", "0");
    assert_int_equal(wait_for(&p), 125);
}

static void has_its_own_group_cpus_and_an_empty_stdin(void **state)
{
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &all)) {
            CPU_SET(cpu, &one);
        }
    }
    struct corral_process p =
        start_with((struct corral_process_spec){.log_path = log_file, .cpus = &one, .new_group = true},
                   "describe", NULL);
    assert_int_equal(wait_for(&p), 0);
    CORRAL_AUTO_FREE char *alone = log_text();
    assert_string_equal(alone, "group 1\ncpus 1\nstdin 0\n");
    p = start_with((struct corral_process_spec){.log_path = log_file}, "describe", NULL);
    assert_int_equal(wait_for(&p), 0);
    CORRAL_AUTO_FREE char *with_us = log_text();
    char expected[64];
    snprintf(expected, sizeof expected, "group 0\ncpus %d\nstdin 0\n", CPU_COUNT(&all));
    assert_string_equal(with_us, expected);
}

static void a_log_is_appended_to(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct corral_process p =
            start_with((struct corral_process_spec){.log_path = log_file}, "describe", NULL);
        assert_int_equal(wait_for(&p), 0);
    }
    CORRAL_AUTO_FREE char *text = log_text();
    assert_ptr_not_equal(strstr(text, "stdin"), strrchr(text, 's'));
    assert_non_null(strstr(strstr(text, "stdin") + 1, "stdin"));
}

static void a_program_that_cannot_be_executed_says_so(void **state)
{
    (void)state;
    const size_t bytes = 1u << 20; /* longer than any argument may be */
    char *argument = malloc(bytes), reason[64];
    assert_non_null(argument);
    memset(argument, 'x', bytes - 1);
    argument[bytes - 1] = 0;
    struct corral_process p = start("exit", argument);
    int code = wait_for(&p);
    assert_int_equal(code, 127);
    assert_string_equal(corral_process_reason(code, NULL, reason, sizeof reason),
                        "its program could not be executed");
    free(argument);
}

static void a_log_that_cannot_be_opened_starts_nothing(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_process p = {.pid = 0};
    const char *argv[] = {"process_test", "child", "wait", NULL};
    const struct corral_process_spec spec = {.argv = argv, .log_path = "/nonexistent/folder/log"};
    check_status(corral_process_start(&spec, &p, &err), CORRAL_IO);
    assert_int_equal(p.pid, 0);
    assert_non_null(strstr(err.text, "/nonexistent/folder/log"));
}

static void dies_with_its_parent(void **state)
{
    (void)state;
    struct corral_process parent =
        start_with((struct corral_process_spec){.log_path = log_file}, "parent", NULL);
    pid_t grandchild = 0;
    while (grandchild == 0) {
        FILE *log = fopen(log_file, "re");
        int said;
        assert_non_null(log);
        if (fscanf(log, "%d\n", &said) == 1 && said > 0) {
            grandchild = said;
        }
        fclose(log);
        int code;
        check_status(corral_process_wait(&parent, 1, &code, NULL), CORRAL_AGAIN);
    }
    int watch = (int)syscall(SYS_pidfd_open, grandchild, 0);
    assert_true(watch >= 0);
    corral_process_signal(&parent, SIGKILL);
    assert_int_equal(wait_for(&parent), -SIGKILL);
    struct pollfd ended = {.fd = watch, .events = POLLIN};
    assert_int_equal(poll(&ended, 1, PATIENCE_MS), 1);
    close(watch);
    assert_int_equal(unlink(log_file), 0);
}

static void expect_reason(int code, const char *log, size_t log_bytes, const char *expected)
{
    struct corral_error err = {0};
    char reason[120];
    check_ok(corral_file_write_atomic(log_file, log, log_bytes, 0644, false, &err));
    assert_string_equal(corral_process_reason(code, log_file, reason, sizeof reason), expected);
}

static void the_reason_is_what_the_process_said_last(void **state)
{
    (void)state;
    static const struct {
        int code;
        const char *log, *reason;
    } cases[] = {
        {1, "", "exit code 1"},
        {1, "\n\n  \n", "exit code 1"},
        {1, "10:00:00.000 info  all is well\n", "exit code 1"},
        {1, "10:00:00.000 error w: first\n10:00:00.001 info  later\n", "exit code 1"},
        {1, "10:00:00.000 info  so far\n10:00:00.001 error rollout-0: gives up reason \"no room\"\n\n",
         "rollout-0: gives up: no room"},
        {1, "10:00:00.001 error a: gives up reason \"no \\\"b\\\" \\\\\"\n", "a: gives up: no \"b\" \\"},
        {1, "10:00:00.001 error a: gives up reason \"cut \\", "a: gives up reason \"cut \\"},
        {1, "10:00:00.001 info  there was an error before\n", "exit code 1"},
        {0, "10:00:00.001 error w: said and done\n", "exit code 0"},
        {-SIGKILL, "10:00:00.001 error w: said\n", "killed by SIGKILL"},
        {-SIGSEGV, "", "killed by SIGSEGV"},
        {127, "10:00:00.001 error w: said\n", "its program could not be executed"},
        {2,
         "{\"level\":\"info\",\"event\":\"x\"}\n{\"time\":\"t\",\"level\":\"error\",\"event\":\"worker gives "
         "up\",\"reason\":\"no room\"}\n",
         "worker gives up: no room"},
        {2, "{\"level\":\"error\",\"event\":\"alone\"}", "alone"},
        {2, "{\"level\":\"warn\",\"event\":\"error \"}\n", "exit code 2"},
        {2, "{\"level\":\"error\",\"event\":\n", "exit code 2"},
        {1, "10:00:00.001 error w: \x1b[31mred\ttab\r\n", "w:  [31mred tab"},
        {1, "10:00:00.001 error w: caf\xc3\xa9 \xff\xfe \xc3\n", "w: caf\xc3\xa9 ?? ?"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        expect_reason(cases[i].code, cases[i].log, strlen(cases[i].log), cases[i].reason);
    }
    expect_reason(1, "10:00:00.001 error w: a\0b\n", 26, "w: a b");
    char reason[64];
    assert_int_equal(unlink(log_file), 0);
    assert_string_equal(corral_process_reason(1, log_file, reason, sizeof reason), "exit code 1");
    assert_string_equal(corral_process_reason(1, NULL, reason, sizeof reason), "exit code 1");
}

static void a_long_last_line_is_cut_between_characters(void **state)
{
    (void)state;
    static char log[100000];
    struct corral_error err = {0};
    char reason[121];
    int n = snprintf(log, sizeof log, "10:00:00.000 info  x\n10:00:00.001 error ");
    for (size_t i = (size_t)n; i + 2 < 900; i += 2) {
        memcpy(log + i, "\xc3\xa9", 2);
    }
    check_ok(corral_file_write_atomic(log_file, log, strlen(log), 0644, false, &err));
    corral_process_reason(1, log_file, reason, sizeof reason);
    assert_int_equal(strlen(reason), sizeof reason - 1);
    memset(log, 'y', sizeof log); /* one line longer than is looked at */
    check_ok(corral_file_write_atomic(log_file, log, sizeof log, 0644, false, &err));
    assert_string_equal(corral_process_reason(1, log_file, reason, sizeof reason), "exit code 1");
}

/* ---- programs, environments, limits ---- */

static int run_shell(struct corral_process_spec spec, const char *script)
{
    struct corral_error err = {0};
    struct corral_process p = {0};
    const char *argv[] = {"sh", "-c", script, NULL};
    spec.argv = argv;
    spec.log_path = log_file;
    check_ok(corral_process_start(&spec, &p, &err));
    return wait_for(&p);
}

static void finds_a_program_in_path_and_runs_it_in_its_folder(void **state)
{
    (void)state;
    char expected[128];
    struct corral_process_spec spec = {.program = "sh", .folder = folder};
    assert_int_equal(run_shell(spec, "pwd -P; trap"), 0);
    CORRAL_AUTO_FREE char *text = log_text();
    CORRAL_AUTO_FREE char *real = realpath(folder, NULL);
    snprintf(expected, sizeof expected, "%s\n", real);
    assert_string_equal(text, expected);
}

static void an_environment_is_added_to_replaced_and_taken_from(void **state)
{
    (void)state;
    static const char *const env[] = {"CORRAL_TEST_A=1", "CORRAL_TEST_B=x=y",  "CORRAL_TEST_A=2",
                                      "CORRAL_TEST_C",   "CORRAL_TEST_D=gone", "CORRAL_TEST_D"};
    setenv("CORRAL_TEST_B", "old", 1);
    setenv("CORRAL_TEST_C", "old", 1);
    setenv("CORRAL_TEST_AB", "kept", 1);
    struct corral_process_spec spec = {.program = "/bin/sh", .env = env, .env_count = CORRAL_COUNT_OF(env)};
    assert_int_equal(run_shell(spec, "env | grep ^CORRAL_TEST_ | sort"), 0);
    CORRAL_AUTO_FREE char *text = log_text();
    assert_string_equal(text, "CORRAL_TEST_A=2\nCORRAL_TEST_AB=kept\nCORRAL_TEST_B=x=y\n");
    unsetenv("CORRAL_TEST_B");
    unsetenv("CORRAL_TEST_C");
    unsetenv("CORRAL_TEST_AB");
}

static void a_program_or_folder_that_is_not_there_starts_nothing(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_process p = {0};
    const char *argv[] = {"x", NULL};
    static const struct {
        const char *program, *folder, *error;
    } cases[] = {
        {"corral-no-such-program", NULL, "there is no program corral-no-such-program in PATH"},
        {"/etc/passwd", NULL, "/etc/passwd is no program that can be executed"},
        {"/tmp", NULL, "/tmp is no program that can be executed"},
        {"./nothing", "/tmp", "./nothing is no program that can be executed"},
        {"sh", "/corral-no-such-folder", "there is no folder /corral-no-such-folder"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        const struct corral_process_spec spec = {
            .argv = argv, .program = cases[i].program, .folder = cases[i].folder};
        check_status(corral_process_start(&spec, &p, &err), CORRAL_NOT_FOUND);
        assert_string_equal(err.text, cases[i].error);
        check_status(corral_process_check(&spec, &err), CORRAL_NOT_FOUND);
        assert_int_equal(p.pid, 0);
    }
}

static void a_data_limit_holds_the_program_and_nobody_else(void **state)
{
    (void)state;
    struct corral_process_spec spec = {.program = "sh", .rlimit_data = 64u << 20};
    assert_int_equal(run_shell(spec, "ulimit -d"), 0);
    CORRAL_AUTO_FREE char *text = log_text();
    assert_string_equal(text, "65536\n");
    spec.rlimit_data = 0;
    assert_int_equal(run_shell(spec, "ulimit -d"), 0);
    CORRAL_AUTO_FREE char *after = log_text();
    assert_string_not_equal(after, "65536\n");
}

static void a_child_writes_itself_into_its_groups_before_it_executes(void **state)
{
    (void)state;
    char path[128], reason[200];
    snprintf(path, sizeof path, "%s/cgroup.procs", folder);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    struct corral_process_spec spec = {.program = "sh", .cgroup_fds = {fd}, .cgroup_fd_count = 1};
    assert_int_equal(run_shell(spec, "true"), 0);
    char written[8] = {0};
    assert_int_equal(pread(fd, written, sizeof written, 0), 1);
    assert_string_equal(written, "0");
    CORRAL_AUTO_CLOSE int closed_for_writing = open(path, O_RDONLY | O_CLOEXEC);
    spec.cgroup_fds[0] = closed_for_writing; /* a group that does not take it */
    int code = run_shell(spec, "true");
    assert_int_equal(code, 125);
    assert_string_equal(corral_process_reason(code, log_file, reason, sizeof reason),
                        "it could not enter its control group");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(unlink(log_file), 0);
}

static void a_program_does_not_inherit_an_ignored_sigpipe(void **state)
{
    (void)state;
    void (*before)(int) = signal(SIGPIPE, SIG_IGN);
    struct corral_process_spec spec = {.program = "sh"};
    int code = run_shell(spec, "kill -PIPE $$; exit 3");
    (void)signal(SIGPIPE, before);
    assert_int_equal(code, -SIGPIPE);
    (void)unlink(log_file);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        return be_a_child(argc, argv);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tells_exit_codes_and_signals_apart),
        cmocka_unit_test(waits_no_longer_than_told),
        cmocka_unit_test(a_signal_to_a_process_not_yet_reaped_is_harmless),
        cmocka_unit_test(a_blocked_signal_of_the_parent_reaches_the_child),
        cmocka_unit_test(inherits_only_the_descriptors_named),
        cmocka_unit_test(a_descriptor_that_is_not_open_starts_nothing),
        cmocka_unit_test(has_its_own_group_cpus_and_an_empty_stdin),
        cmocka_unit_test(a_log_is_appended_to),
        cmocka_unit_test(a_program_that_cannot_be_executed_says_so),
        cmocka_unit_test(a_log_that_cannot_be_opened_starts_nothing),
        cmocka_unit_test(dies_with_its_parent),
        cmocka_unit_test(finds_a_program_in_path_and_runs_it_in_its_folder),
        cmocka_unit_test(an_environment_is_added_to_replaced_and_taken_from),
        cmocka_unit_test(a_program_or_folder_that_is_not_there_starts_nothing),
        cmocka_unit_test(a_data_limit_holds_the_program_and_nobody_else),
        cmocka_unit_test(a_child_writes_itself_into_its_groups_before_it_executes),
        cmocka_unit_test(a_program_does_not_inherit_an_ignored_sigpipe),
        cmocka_unit_test(the_reason_is_what_the_process_said_last),
        cmocka_unit_test(a_long_last_line_is_cut_between_characters),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
