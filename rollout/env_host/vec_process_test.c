#include "base/rng.h"
#include "rollout/env_host/vec.h"
#include "tests/check.h"
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct corral_error err;

static enum corral_status try_make(struct corral_vec **out, const char *id, enum corral_isolation isolation,
                                   uint32_t timeout_ms, uint32_t restarts)
{
    struct corral_vec_config config = {.id = id,
                                       .library = WALK_PLUGIN,
                                       .envs = 3,
                                       .seed = 4,
                                       .isolation = isolation,
                                       .step_timeout_ms = timeout_ms,
                                       .restarts_max = restarts};
    return corral_vec_create(out, &config, &err);
}

static struct corral_vec *make(const char *id, enum corral_isolation isolation, uint32_t timeout_ms,
                               uint32_t restarts)
{
    struct corral_vec *v = NULL;
    check_ok(try_make(&v, id, isolation, timeout_ms, restarts));
    check_ok(corral_vec_reset(v, &err));
    return v;
}

static void all_choose(struct corral_vec *v, int32_t choice)
{
    const struct corral_vec_view *view = corral_vec_view(v);
    for (uint32_t row = 0; row < view->rows; row++) {
        ((int32_t *)view->action)[row] = choice;
    }
}

/* The environment process of this one; 0 when there is none. */
static pid_t child_of_this(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)syscall(SYS_gettid));
    FILE *f = fopen(path, "re");
    int pid = 0;
    if (f != NULL) {
        if (fscanf(f, "%d", &pid) != 1) {
            pid = 0;
        }
        fclose(f);
    }
    return pid;
}

static int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static void a_child_gives_the_same_run_bit_for_bit(void **state)
{
    (void)state;
    static const char *const ids[] = {"walk/Same-v0", "walk/Next-v0",  "walk/Off-v0",
                                      "walk/Team-v0", "walk/Bytes-v0", "walk/Infra-v0"};
    for (size_t k = 0; k < 6; k++) {
        struct corral_vec *a = make(ids[k], CORRAL_ISOLATION_IN_PROCESS, 0, 0),
                          *b = make(ids[k], CORRAL_ISOLATION_PROCESS, 0, 0);
        const struct corral_vec_view *va = corral_vec_view(a), *vb = corral_vec_view(b);
        for (int t = 0; t < 100; t++) {
            all_choose(a, t / 7 % 3);
            all_choose(b, t / 7 % 3);
            check_ok(corral_vec_step(a, &err));
            check_ok(corral_vec_step(b, &err));
            assert_memory_equal(va->obs, vb->obs, sizeof(float) * va->rows * va->obs_dim);
            assert_memory_equal(va->reward, vb->reward, sizeof(float) * va->rows);
            assert_memory_equal(va->terminated, vb->terminated, va->rows);
            assert_memory_equal(va->truncated, vb->truncated, va->rows);
            assert_memory_equal(va->status, vb->status, sizeof(int32_t) * va->envs);
        }
        corral_vec_destroy(a);
        corral_vec_destroy(b);
        assert_int_equal(child_of_this(), 0);
    }
}

static void a_crash_voids_the_episodes_and_the_run_goes_on(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Crash-v0", CORRAL_ISOLATION_PROCESS, 0, 2);
    const struct corral_vec_view *view = corral_vec_view(v);
    for (uint32_t t = 1; t <= 20; t++) {
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        for (uint32_t e = 0; e < 3; e++) {
            assert_int_equal(view->status[e], t % 7 == 0 ? CORRAL_INFRA : 0);
            assert_int_equal(view->active[e], 1);
            assert_true(view->obs[e * 2 + 1] == (float)(t % 7) / 20);
            assert_int_equal(view->truncated[e] | view->terminated[e], 0);
        }
    }
    assert_int_equal(corral_vec_stats(v)->restarts, 2);
    assert_int_equal(corral_vec_stats(v)->voided, 6);
    assert_non_null(strstr(corral_vec_stats(v)->last_fault, "died of signal 6 (Aborted) in step"));
    check_status(corral_vec_step(v, &err), CORRAL_INFRA);
    assert_non_null(strstr(err.text, "died of signal 6"));
    assert_non_null(strstr(err.text, "gave up after 2 restarts"));
    check_status(corral_vec_step(v, &err), CORRAL_INFRA);
    corral_vec_destroy(v);
    assert_int_equal(child_of_this(), 0);
}

static void a_hang_is_ended_at_its_deadline(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Hang-v0", CORRAL_ISOLATION_PROCESS, 500, 1);
    for (uint32_t t = 1; t <= 13; t++) {
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(corral_vec_view(v)->status[2], t == 7 ? CORRAL_INFRA : 0);
    }
    assert_non_null(strstr(corral_vec_stats(v)->last_fault, "hung in step for 500 ms and was killed"));
    check_status(corral_vec_step(v, &err), CORRAL_INFRA);
    assert_non_null(strstr(err.text, "hung in step"));
    assert_int_equal(child_of_this(), 0);
    corral_vec_destroy(v);
}

static void a_child_killed_from_outside_is_replaced(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/Same-v0", CORRAL_ISOLATION_PROCESS, 0, 5);
    for (uint32_t t = 1; t <= 3; t++) {
        pid_t child = child_of_this();
        assert_true(child > 0);
        assert_int_equal(kill(child, SIGKILL), 0);
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(corral_vec_view(v)->status[0], CORRAL_INFRA);
        assert_non_null(strstr(corral_vec_stats(v)->last_fault, "signal 9"));
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(corral_vec_view(v)->status[0], 0);
    }
    corral_vec_destroy(v);
}

static void a_batch_that_fails_is_made_anew(void **state)
{
    (void)state;
    struct corral_vec *v = make("walk/BatchFails-v0", CORRAL_ISOLATION_PROCESS, 0, 1);
    for (uint32_t t = 1; t <= 13; t++) {
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        assert_int_equal(corral_vec_view(v)->status[0], t == 7 ? CORRAL_INFRA : 0);
    }
    check_status(corral_vec_step(v, &err), CORRAL_INFRA);
    corral_vec_destroy(v);
}

static void says_why_it_cannot_start(void **state)
{
    (void)state;
    struct corral_vec *v = NULL;
    check_status(try_make(&v, "walk/CrashInCreate-v0", CORRAL_ISOLATION_PROCESS, 0, 0), CORRAL_INFRA);
    assert_non_null(strstr(err.text, "died of signal 6 (Aborted) in create"));
    check_status(try_make(&v, "walk/Sama-v0", CORRAL_ISOLATION_PROCESS, 0, 0), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "does not offer the environment walk/Sama-v0"));
    check_status(try_make(&v, "walk/ZeroAgents-v0", CORRAL_ISOLATION_PROCESS, 0, 0), CORRAL_INVALID);
    assert_int_equal(setenv("CORRAL_ENV_HOST", "/nonexistent/host", 1), 0);
    check_status(try_make(&v, "walk/Same-v0", CORRAL_ISOLATION_PROCESS, 0, 0), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nonexistent/host"));
    assert_int_equal(setenv("CORRAL_ENV_HOST", "/bin/false", 1), 0); /* a program that is not the helper */
    check_status(try_make(&v, "walk/Same-v0", CORRAL_ISOLATION_PROCESS, 0, 0), CORRAL_INFRA);
    assert_int_equal(unsetenv("CORRAL_ENV_HOST"), 0);
    assert_int_equal(child_of_this(), 0);
}

static void a_plugins_output_never_reaches_stdout(void **state)
{
    (void)state;
    char path[] = "/tmp/corral-vec-XXXXXX";
    int fd = mkstemp(path), saved = dup(STDOUT_FILENO), saved_err = dup(STDERR_FILENO);
    assert_true(fd >= 0 && saved >= 0 && saved_err >= 0);
    fflush(stdout);
    dup2(fd, STDOUT_FILENO);
    int null = dup(fd); /* stderr elsewhere, to keep the test's own output clean */
    FILE *sink = tmpfile();
    dup2(fileno(sink), STDERR_FILENO);
    struct corral_vec *v = NULL;
    enum corral_status status = try_make(&v, "walk/Speaks-v0", CORRAL_ISOLATION_PROCESS, 0, 0);
    if (status == CORRAL_OK) {
        status = corral_vec_reset(v, &err);
        all_choose(v, 1);
        (void)corral_vec_step(v, &err);
    }
    corral_vec_destroy(v);
    dup2(saved, STDOUT_FILENO);
    dup2(saved_err, STDERR_FILENO);
    check_status(status, CORRAL_OK);
    assert_int_equal(lseek(fd, 0, SEEK_END), 0);
    assert_true(lseek(fileno(sink), 0, SEEK_END) > 0);
    fclose(sink);
    close(null);
    close(fd);
    close(saved);
    close(saved_err);
    unlink(path);
}

static void a_snapshot_crosses_between_both_modes(void **state)
{
    (void)state;
    struct corral_vec *a = make("walk/Same-v0", CORRAL_ISOLATION_PROCESS, 0, 0),
                      *b = make("walk/Same-v0", CORRAL_ISOLATION_IN_PROCESS, 0, 0);
    for (int t = 0; t < 33; t++) {
        all_choose(a, 2 - t % 3);
        check_ok(corral_vec_step(a, &err));
    }
    uint64_t bytes = 0;
    check_ok(corral_vec_snapshot(a, NULL, &bytes, &err));
    char *buf = malloc(bytes);
    assert_non_null(buf);
    check_ok(corral_vec_snapshot(a, buf, &bytes, &err));
    check_ok(corral_vec_restore(b, buf, bytes, &err));
    for (int t = 0; t < 40; t++) {
        assert_memory_equal(corral_vec_view(a)->obs, corral_vec_view(b)->obs, sizeof(float) * 6);
        all_choose(a, t % 3);
        all_choose(b, t % 3);
        check_ok(corral_vec_step(a, &err));
        check_ok(corral_vec_step(b, &err));
        if (t == 20) { /* and back, from the middle */
            check_ok(corral_vec_snapshot(b, buf, &bytes, &err));
            check_ok(corral_vec_restore(a, buf, bytes, &err));
        }
    }
    free(buf);
    corral_vec_destroy(a);
    corral_vec_destroy(b);
}

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

static void the_childs_memory_is_charged_here_and_given_back(void **state)
{
    (void)state;
    struct limited limited = {.limit = 1 << 20};
    struct corral_allocator memory = {.alloc = limited_alloc, .release = limited_release, .ctx = &limited};
    struct corral_vec_config config = {.id = "walk/Allocates-v0",
                                       .library = WALK_PLUGIN,
                                       .envs = 3,
                                       .isolation = CORRAL_ISOLATION_PROCESS,
                                       .memory = &memory,
                                       .restarts_max = 1};
    struct corral_vec *v = NULL;
    check_ok(corral_vec_create(&v, &config, &err));
    check_ok(corral_vec_reset(v, &err));
    size_t full = limited.used;
    assert_true(full > 100000);
    assert_int_equal(kill(child_of_this(), SIGKILL), 0);
    check_ok(corral_vec_step(v, &err)); /* the dead child's share was given back, the new child's charged */
    assert_int_equal(limited.used, full);
    corral_vec_destroy(v);
    assert_int_equal(limited.used, 0);
    limited.limit = 50000;
    check_status(corral_vec_create(&v, &config, &err), CORRAL_NOMEM);
    assert_int_equal(limited.used, 0);
    config.id = "walk/Leaks-v0";
    limited.limit = 1 << 20;
    check_ok(corral_vec_create(&v, &config, &err));
    corral_vec_destroy(v);
    assert_int_equal(limited.used, 0); /* what the plug-in forgot went with its process */
}

static void leaves_no_descriptor_behind(void **state)
{
    (void)state;
    int before = open_descriptors();
    for (int i = 0; i < 3; i++) {
        struct corral_vec *v = make("walk/Same-v0", CORRAL_ISOLATION_PROCESS, 0, 1);
        assert_int_equal(kill(child_of_this(), SIGKILL), 0);
        all_choose(v, 1);
        check_ok(corral_vec_step(v, &err));
        corral_vec_destroy(v);
    }
    assert_int_equal(open_descriptors(), before);
}

/* The parent is killed while its child hangs in step(): the child must go as well. */
static void a_child_never_outlives_its_parent(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t parent = fork();
    assert_true(parent >= 0);
    if (parent == 0) {
        struct corral_vec *v = make("walk/Hang-v0", CORRAL_ISOLATION_PROCESS, 600000, 0);
        for (int t = 0; t < 6; t++) {
            all_choose(v, 1);
            check_ok(corral_vec_step(v, &err));
        }
        pid_t child = child_of_this();
        if (write(fds[1], &child, sizeof child) == (ssize_t)sizeof child) {
            (void)corral_vec_step(v, &err);
        }
        _exit(1);
    }
    pid_t child = 0;
    assert_int_equal(read(fds[0], &child, sizeof child), sizeof child);
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    assert_true(child > 0 && pidfd >= 0);
    assert_int_equal(kill(parent, SIGKILL), 0);
    assert_int_equal(waitpid(parent, NULL, 0), parent);
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 20000), 1);
    close(pidfd);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_gives_the_same_run_bit_for_bit),
        cmocka_unit_test(a_crash_voids_the_episodes_and_the_run_goes_on),
        cmocka_unit_test(a_hang_is_ended_at_its_deadline),
        cmocka_unit_test(a_child_killed_from_outside_is_replaced),
        cmocka_unit_test(a_batch_that_fails_is_made_anew),
        cmocka_unit_test(says_why_it_cannot_start),
        cmocka_unit_test(a_plugins_output_never_reaches_stdout),
        cmocka_unit_test(a_snapshot_crosses_between_both_modes),
        cmocka_unit_test(the_childs_memory_is_charged_here_and_given_back),
        cmocka_unit_test(leaves_no_descriptor_behind),
        cmocka_unit_test(a_child_never_outlives_its_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
