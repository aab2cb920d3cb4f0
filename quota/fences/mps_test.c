/* MPS with a stand-in for NVIDIA's control program, which is found through PATH like the real one. */
#include "base/file.h"
#include "quota/fences/internal.h"
#include "tests/check.h"

#include "quota/fences/test_canary.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define UUID "GPU-01234567-89ab-cdef-0123-456789abcdef"

static char folder[] = "/tmp/corral-mps-XXXXXX";
static char *path_before;

static int make_folder(void **state)
{
    (void)state;
    char path[2048];
    path_before = getenv("PATH") ? strdup(getenv("PATH")) : NULL;
    if (!mkdtemp(folder)) {
        return -1;
    }
    fence_text(path, sizeof path, "%s:%s", folder, path_before ? path_before : "/bin:/usr/bin");
    return setenv("PATH", path, 1);
}

static int remove_folder(void **state)
{
    (void)state;
    free(path_before);
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

/* A control program that does what `script` says. */
static void control(const char *script)
{
    char path[256], text[1024];
    struct corral_error err;
    fence_text(path, sizeof path, "%s/nvidia-cuda-mps-control", folder);
    fence_text(text, sizeof text, "#!/bin/sh\n%s\n", script);
    check_ok(corral_file_write_atomic(path, text, strlen(text), 0755, false, &err));
}

static void detect(const char *pipe, struct fence_mps *m)
{
    assert_int_equal(setenv("CUDA_MPS_PIPE_DIRECTORY", pipe, 1), 0);
    fence_mps_detect(m);
    unsetenv("CUDA_MPS_PIPE_DIRECTORY");
}

static void a_daemon_that_answers_is_found(void **state)
{
    (void)state;
    struct fence_mps m;
    char want[256];
    /* It is asked, in the folder that workers will get. */
    fence_text(want, sizeof want,
               "read q; [ \"$q\" = get_server_list ] && [ \"$CUDA_MPS_PIPE_DIRECTORY\" = %s ]", folder);
    control(want);
    detect(folder, &m);
    assert_true(m.answers);
    assert_false(m.live); /* nothing has been tried */
    assert_string_equal(m.pipe, folder);
}

static void a_daemon_that_is_not_there_is_absent_with_the_reason(void **state)
{
    (void)state;
    struct fence_mps m;
    control("echo 'Cannot find MPS control daemon process'; exit 0");
    detect(folder, &m);
    assert_false(m.answers);
    assert_non_null(strstr(m.why, "no MPS control daemon"));
    control("echo broken >&2; exit 1");
    detect(folder, &m);
    assert_false(m.answers || m.live);
    assert_non_null(strstr(m.why, "broken"));
    detect("/nonexistent/mps", &m);
    assert_false(m.answers || m.live);
    assert_non_null(strstr(m.why, "/nonexistent/mps"));
}

static void a_daemon_that_hangs_is_given_up(void **state)
{
    (void)state;
    struct fence_mps m;
    control("exec sleep 600");
    detect(folder, &m);
    assert_false(m.answers || m.live);
    assert_non_null(strstr(m.why, "does not answer"));
}

static void a_limit_is_whole_mebibytes_and_never_below(void **state)
{
    (void)state;
    char text[128], uuid[64];
    uint64_t bytes;
    assert_true(fence_mps_limit(UUID, 1234 * FENCE_MIB, text, sizeof text));
    assert_string_equal(text, UUID "=1234M");
    assert_true(fence_mps_limit(UUID, 1234 * FENCE_MIB + 1, text, sizeof text));
    assert_true(fence_mps_parse_limit(text, uuid, &bytes));
    assert_string_equal(uuid, UUID);
    assert_true(bytes == 1235 * FENCE_MIB);
}

static void entries_that_would_drop_every_limit_are_refused(void **state)
{
    (void)state;
    static const char *const bad_uuids[] = {"",
                                            "0",
                                            "GPU-",
                                            "GPU-0123",
                                            UUID "0",
                                            UUID ",0",
                                            "gpu-01234567-89ab-cdef-0123-456789abcdef",
                                            "GPU-01234567-89ab-cdef-0123-456789abcdeg",
                                            "MIG-01234567-89ab-cdef-0123-456789abcdef"};
    static const char *const bad_limits[] = {UUID,        UUID "=",       UUID "=M",
                                             UUID "=-1M", UUID "=1",      UUID "=1MM",
                                             UUID "=1G",  UUID "=0M",     UUID "=99999999999999999999M",
                                             "0=1M",      UUID "=1M,0=1M"};
    char text[128], uuid[64];
    uint64_t bytes;
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad_uuids); i++) {
        assert_false(fence_mps_limit(bad_uuids[i], FENCE_MIB, text, sizeof text));
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad_limits); i++) {
        assert_false(fence_mps_parse_limit(bad_limits[i], uuid, &bytes));
    }
    assert_false(fence_mps_limit(UUID, 0, text, sizeof text));
    assert_false(fence_mps_limit(UUID, FENCE_MIB, text, 20));
}

/* ---- limits, on the fake driver, by this very program as the canary ---- */

/* A control program that answers, with the file of its daemon, unless `daemon` is false. */
static void try_with(const char *fake_mode, bool daemon, struct fence_mps *m)
{
    char path[256];
    struct corral_error err;
    fence_text(path, sizeof path, "%s/control", folder);
    (void)unlink(path);
    if (daemon) {
        check_ok(corral_file_write_atomic(path, "", 0, 0644, false, &err));
    }
    control("read q");
    setenv("LD_LIBRARY_PATH", FAKE_DRIVER, 1);
    setenv("CORRAL_FAKECUDA_MPS", fake_mode, 1);
    setenv("CUDA_MPS_PIPE_DIRECTORY", folder, 1);
    corral_fence_canary_is("/proc/self/exe");
    fence_mps_try("", m);
    corral_fence_canary_is(NULL);
    unsetenv("CUDA_MPS_PIPE_DIRECTORY");
    unsetenv("CORRAL_FAKECUDA_MPS");
    unsetenv("LD_LIBRARY_PATH");
}

static void limits_that_are_enforced_are_live(void **state)
{
    (void)state;
    struct fence_mps m;
    setenv("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=1M", 1); /* whoever runs it may have limits of their own */
    try_with("", true, &m);
    unsetenv("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT");
    assert_string_equal(strstr(m.why, "denied more") ? "" : m.why, "");
    assert_true(m.live && m.shares);
    assert_non_null(strstr(m.why, "66 of 132"));
}

static void a_driver_that_ignores_its_limits_is_not_live(void **state)
{
    (void)state;
    struct fence_mps m;
    try_with("ignore", true, &m);
    assert_true(m.answers);
    assert_false(m.live || m.shares);
    assert_string_equal(strstr(m.why, "limit is not enforced") ? "" : m.why, "");
    try_with("", false, &m); /* somebody answers, and the driver's clients find no daemon there */
    assert_false(m.live);
    assert_string_equal(strstr(m.why, "limit is not enforced") ? "" : m.why, "");
}

static void shares_that_are_ignored_are_said_to_be(void **state)
{
    (void)state;
    struct fence_mps m;
    try_with("no-share", true, &m);
    assert_true(m.live);
    assert_false(m.shares);
    assert_non_null(strstr(m.why, "shares are NOT enforced"));
}

static void a_canary_that_fails_is_no_proof(void **state)
{
    (void)state;
    struct fence_mps m;
    setenv("CORRAL_FAKECUDA_FAULTS", "cuMemAlloc_v2:1:999", 1);
    try_with("", true, &m);
    assert_false(m.live);
    assert_string_equal(strstr(m.why, "canary process failed") ? "" : m.why, "");
    setenv("CORRAL_FAKECUDA_FAULTS", "cuMemAlloc_v2:1:2", 1);
    try_with("", true, &m);
    assert_false(m.live);
    assert_string_equal(strstr(m.why, "denied even 1 MiB") ? "" : m.why, "");
    unsetenv("CORRAL_FAKECUDA_FAULTS");
    setenv("CORRAL_FAKECUDA_MEMORY", "100MiB", 1); /* with too little free, nobody could tell who denied */
    try_with("", true, &m);
    unsetenv("CORRAL_FAKECUDA_MEMORY");
    assert_false(m.live);
    assert_string_equal(strstr(m.why, "not tried") ? "" : m.why, "");
    setenv("CUDA_MPS_PIPE_DIRECTORY", folder, 1);
    fence_mps_try("", &m); /* no canary to start */
    unsetenv("CUDA_MPS_PIPE_DIRECTORY");
    assert_true(m.answers);
    assert_false(m.live);
}

/* As under a server that accepts and never answers; with its output closed it has said all, and has not ended. */
static void a_canary_that_hangs_is_killed_and_no_proof(void **state)
{
    (void)state;
    static const char *const hang[] = {"#!/bin/sh\nexec sleep 600\n",
                                       "#!/bin/sh\nexec sleep 600 >/dev/null 2>&1\n"};
    struct fence_mps m;
    struct corral_error err;
    char program[256];
    fence_text(program, sizeof program, "%s/canary", folder);
    control("read q");
    for (size_t i = 0; i < CORRAL_COUNT_OF(hang); i++) {
        check_ok(corral_file_write_atomic(program, hang[i], strlen(hang[i]), 0755, false, &err));
        corral_fence_canary_is(program);
        corral_fence_canary_wait(200);
        setenv("CUDA_MPS_PIPE_DIRECTORY", folder, 1);
        fence_mps_try("", &m);
        unsetenv("CUDA_MPS_PIPE_DIRECTORY");
        corral_fence_canary_wait(30000);
        corral_fence_canary_is(NULL);
        assert_true(m.answers);
        assert_false(m.tried || m.live || m.shares);
        assert_string_equal(strstr(m.why, "canary process hung") ? "" : m.why, "");
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing is left of it */
    }
}

static void what_a_canary_says_is_data(void **state)
{
    (void)state;
    struct corral_cuda_limit_result r = {.uuid = UUID,
                                         .processors = 7,
                                         .free_bytes = 99,
                                         .within = CORRAL_LIMIT_GRANTED,
                                         .over = CORRAL_LIMIT_DENIED};
    char text[CORRAL_CUDA_LIMIT_TEXT];
    struct corral_cuda_limit_result back;
    corral_cuda_limit_write(&r, text);
    struct corral_error err;
    check_ok(corral_cuda_limit_parse(text, &back, &err));
    assert_string_equal(back.uuid, UUID);
    assert_true(back.processors == 7 && back.free_bytes == 99 && back.over == CORRAL_LIMIT_DENIED);
    static const char *const bad[] = {"",
                                      "limit-canary",
                                      "warning: x\nlimit-canary " UUID
                                      " processors 1 free 1 within 1 over 2\n",
                                      "limit-canary " UUID " processors 1 free 1 within 1 over 3\n",
                                      "limit-canary " UUID " processors 1 free 1 within 1 over 2",
                                      "limit-canary " UUID " processors 1 free 1 within 1 over 2\nmore"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        assert_int_equal(corral_cuda_limit_parse(bad[i], &back, NULL), CORRAL_PROTOCOL);
    }
}

int main(int argc, char **argv)
{
    int code;
    if (test_canary(argc, argv, &code)) {
        return code;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemon_that_answers_is_found),
        cmocka_unit_test(a_daemon_that_is_not_there_is_absent_with_the_reason),
        cmocka_unit_test(a_daemon_that_hangs_is_given_up),
        cmocka_unit_test(limits_that_are_enforced_are_live),
        cmocka_unit_test(a_driver_that_ignores_its_limits_is_not_live),
        cmocka_unit_test(shares_that_are_ignored_are_said_to_be),
        cmocka_unit_test(a_canary_that_fails_is_no_proof),
        cmocka_unit_test(a_canary_that_hangs_is_killed_and_no_proof),
        cmocka_unit_test(what_a_canary_says_is_data),
        cmocka_unit_test(a_limit_is_whole_mebibytes_and_never_below),
        cmocka_unit_test(entries_that_would_drop_every_limit_are_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
