/* Each test starts a program with libcorral-quota.so preloaded, as the agent does, on a driver of a few functions (tests/tiny_driver.c). */
#include "quota/cuda/interposer_path.h"
#include "quota/shared.h"
#include "tests/check.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

struct node {
    int fd;
    struct corral_quota *quota;
    char ledger[64], token[33], log[64];
};

static int start_node(void **state)
{
    struct corral_error err;
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    struct node *n = calloc(1, sizeof *n);
    uint32_t out;
    uint8_t uuid[16];
    assert_non_null(plan);
    assert_non_null(n);
    memset(uuid, 0x42, sizeof uuid);
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &out, &err));
    check_ok(corral_ledger_add_device(plan, "a:0", 100 * MIB, 10 * MIB, &out, &err));
    corral_ledger_set_uuid(plan, 0, uuid);
    check_ok(corral_ledger_set_limits(plan, 0, 0, 10 * MIB, 30 * MIB, &err));
    check_ok(corral_ledger_check_plan(plan, 1.0, &err));
    check_ok(corral_quota_create(plan, NULL, &n->fd, &n->quota, &err));
    free(plan);
    snprintf(n->ledger, sizeof n->ledger, "/proc/%d/fd/%d", (int)getpid(), n->fd);
    corral_quota_token(n->quota, 0, n->token);
    strcpy(n->log, "/tmp/corral-library-test-XXXXXX");
    int fd = mkstemp(n->log);
    assert_true(fd >= 0);
    close(fd);
    *state = n;
    return 0;
}

static int stop_node(void **state)
{
    struct node *n = *state;
    unlink(n->log);
    corral_quota_detach(n->quota);
    close(n->fd);
    free(n);
    return 0;
}

enum driver { NONE, TINY, NEWER, VERSIONED };

/* Environment of the program: with the node's ledger or without. */
static void set_environment(const struct node *n, enum driver driver, bool fenced)
{
    static const char *const folders[] = {"", "tiny", "newer", "versioned"};
    char folder[PATH_MAX], between[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/%s", TINY_DRIVERS, folders[driver]);
    snprintf(between, sizeof between, "%s/libtiny-between.so", TINY_DRIVERS);
    if (driver != NONE) {
        setenv("LD_LIBRARY_PATH", folder, 1);
    }
    if (fenced) {
        setenv(CORRAL_QUOTA_ENV_LEDGER, n->ledger, 1);
        setenv(CORRAL_QUOTA_ENV_TOKEN, n->token, 1);
    }
    setenv(CORRAL_QUOTA_ENV_LOG, n->log, 1);
    setenv("PROBE_BETWEEN", between, 1);
    setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
    setenv("LD_PRELOAD", INTERPOSER, 1);
}

static pid_t start(const struct node *n, enum driver driver, bool fenced, const char *allow_unknown,
                   const char *program, const char *argument, const int descriptors[2])
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        set_environment(n, driver, fenced);
        if (allow_unknown) {
            setenv(CORRAL_QUOTA_ENV_UNKNOWN, allow_unknown, 1);
            setenv("PROBE_ALLOWED", "1", 1);
        }
        if (descriptors) {
            dup2(descriptors[0], STDIN_FILENO);
            dup2(descriptors[1], STDOUT_FILENO);
        }
        execl(program, program, argument, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static int finish(pid_t pid)
{
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static int probe(const struct node *n, enum driver driver, bool fenced, const char *name)
{
    return finish(start(n, driver, fenced, NULL, PROBE, name, NULL));
}

/* Lines of the log that contain the text. */
static int logged(const struct node *n, const char *text)
{
    FILE *f = fopen(n->log, "r");
    char line[4096];
    int count = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        count += strstr(line, text) != NULL;
    }
    fclose(f);
    return count;
}

#define ROUTE(name, driver)                                        \
    static void name(void **state)                                 \
    {                                                              \
        assert_int_equal(probe(*state, (driver), true, #name), 0); \
    }
ROUTE(dlsym_gives_the_hook, TINY)
ROUTE(dlvsym_gives_the_hook, VERSIONED)
ROUTE(dlsym_of_dlsym_is_ours, TINY)
ROUTE(no_driver_no_symbol, NONE)
ROUTE(another_library_keeps_its_own, TINY)
ROUTE(next_of_another_library_is_hooked, TINY)
ROUTE(proc_address_respects_version_and_flags, TINY)
ROUTE(queries_follow_the_quota, TINY)
ROUTE(forks, TINY)
ROUTE(export_table_is_the_drivers, TINY)
ROUTE(nvml_agrees, TINY)

static void threads_race_for_the_first_call(void **state)
{
    struct node *n = *state;
    assert_int_equal(probe(n, TINY, true, "threads_race_for_the_first_call"), 0);
    assert_int_equal(corral_quota_ledger(n->quota)->holder_high, 1);
    assert_int_equal(logged(n, ""), 0);
}

static void linked_programs_reach_the_hook(void **state)
{
    assert_int_equal(finish(start(*state, TINY, false, NULL, LINKED, NULL, NULL)), 0);
}

static void closed_denies(void **state)
{
    assert_int_equal(probe(*state, TINY, false, "closed_denies"), 0);
    assert_int_equal(logged(*state, "gpu memory closed"), 1);
    assert_int_equal(logged(*state, "no ledger"), 2); /* one for each denial */
}

/* The agent is gone, or it never was one: not the same as no quota. */
static void a_dead_ledger_is_closed(void **state)
{
    struct node *n = *state;
    struct node dead = *n;
    snprintf(dead.ledger, sizeof dead.ledger, "/proc/%d/fd/999", (int)getpid());
    assert_int_equal(probe(&dead, TINY, true, "closed_denies"), 0);
    dead = *n;
    memset(dead.token, '0', 32);
    assert_int_equal(probe(&dead, TINY, true, "closed_denies"), 0);
    assert_int_equal(logged(n, "gpu memory closed"), 2);
}

static void unknown_function_is_withheld(void **state)
{
    assert_int_equal(probe(*state, TINY, true, "unknown_function_is_withheld"), 0);
    assert_int_equal(logged(*state, "driver function withheld"), 2);
    assert_int_equal(
        finish(start(*state, TINY, true, "unproven", PROBE, "unknown_function_is_withheld", NULL)), 0);
    assert_int_equal(logged(*state, "driver function withheld"), 2);
}

static void an_unknown_driver_is_refused(void **state)
{
    assert_int_equal(probe(*state, NEWER, true, "unknown_driver_is_refused"), 0);
    assert_int_equal(logged(*state, "cuda driver refused"), 1);
    assert_int_equal(logged(*state, "cuMemAllocNobodyKnows"), 1);
    assert_int_equal(finish(start(*state, NEWER, true, "sure", PROBE, "unknown_driver_is_refused", NULL)), 0);
}

/* By permission it runs, and its holder says so to everybody. */
static void an_unknown_driver_is_unproven(void **state)
{
    struct node *n = *state;
    int in[2], out[2];
    char line[32] = "";
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    pid_t pid =
        start(n, NEWER, true, "unproven", PROBE, "unknown_driver_goes_on", (const int[]){in[0], out[1]});
    close(in[0]);
    close(out[1]);
    assert_true(read(out[0], line, sizeof line - 1) > 0);
    const struct corral_ledger *ledger = corral_quota_ledger(n->quota);
    uint32_t marked = 0;
    for (uint32_t i = 0; i < ledger->holder_high; i++) {
        marked += ledger->holder[i].pid == pid && (ledger->holder[i].flags & CORRAL_HOLDER_UNPROVEN) != 0;
    }
    close(in[1]);
    close(out[0]);
    assert_int_equal(finish(pid), 0);
    assert_int_equal(marked, 1);
    assert_int_equal(logged(n, "cuda driver unproven"), 1);
}

static void denied_functions_answer_so(void **state)
{
    assert_int_equal(probe(*state, TINY, true, "denied_functions_answer_so"), 0);
    assert_int_equal(logged(*state, "cuGLCtxCreate_v2"), 1);
}

/* No line, no holder. */
static void other_programs_are_left_alone(void **state)
{
    struct node *n = *state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* a program that was not built with the sanitizer cannot load it */
#endif
    assert_int_equal(finish(start(n, TINY, true, NULL, "/bin/true", NULL, NULL)), 0);
    assert_int_equal(finish(start(n, TINY, false, NULL, "/bin/true", NULL, NULL)), 0);
    assert_int_equal(logged(n, ""), 0);
    assert_int_equal(corral_quota_ledger(n->quota)->holder_high, 0);
}

static void is_found_beside_the_program(void **state)
{
    (void)state;
    struct corral_error err;
    char path[PATH_MAX], real[PATH_MAX];
    unsetenv(CORRAL_QUOTA_ENV_INTERPOSER);
    assert_non_null(realpath(INTERPOSER, real));
    check_ok(corral_cuda_interposer_path(path, sizeof path, &err));
    assert_string_equal(path, real);
    assert_int_equal(corral_cuda_interposer_path(path, 8, &err), CORRAL_NOT_FOUND);
    setenv(CORRAL_QUOTA_ENV_INTERPOSER, "/nowhere/libcorral-quota.so", 1);
    assert_int_equal(corral_cuda_interposer_path(path, sizeof path, &err), CORRAL_NOT_FOUND);
    unsetenv(CORRAL_QUOTA_ENV_INTERPOSER);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, start_node, stop_node)
    const struct CMUnitTest tests[] = {
        T(dlsym_gives_the_hook),
        T(dlvsym_gives_the_hook),
        T(dlsym_of_dlsym_is_ours),
        T(no_driver_no_symbol),
        T(another_library_keeps_its_own),
        T(next_of_another_library_is_hooked),
        T(proc_address_respects_version_and_flags),
        T(linked_programs_reach_the_hook),
        T(unknown_function_is_withheld),
        T(closed_denies),
        T(a_dead_ledger_is_closed),
        T(an_unknown_driver_is_refused),
        T(an_unknown_driver_is_unproven),
        T(queries_follow_the_quota),
        T(forks),
        T(denied_functions_answer_so),
        T(export_table_is_the_drivers),
        T(nvml_agrees),
        T(threads_race_for_the_first_call),
        T(other_programs_are_left_alone),
        T(is_found_beside_the_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
