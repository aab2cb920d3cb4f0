/* A writer process is killed at random points of its pushes, 200 times; whatever is left must be a whole version, and the next writer must
 * be able to go on. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/weights/test_weights.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 8192
#define BYTES (WORDS * sizeof(uint64_t))
#define KILLS 200

static enum corral_status push(struct corral_weight_store *s, uint64_t version, struct corral_error *err)
{
    void *slot = NULL;
    struct corral_digest digest;
    CORRAL_TRY(corral_weight_store_begin(s, version, test_manifest, BYTES, &slot, err));
    test_fill(slot, WORDS, version);
    return corral_weight_store_commit(s, version, &digest, err);
}

static void write_forever(int fd, int started)
{
    struct corral_error err = {0};
    struct corral_weight_store *s = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (corral_weight_store_attach(fd, &s, &err) != CORRAL_OK) {
        _exit(2);
    }
    for (bool first = true;; first = false) {
        if (push(s, corral_weight_store_version(s) + 1, &err) != CORRAL_OK) {
            _exit(3);
        }
        if (first && write(started, "x", 1) != 1) {
            _exit(4);
        }
    }
}

/* Burns a random number of clock reads, so that the kill falls anywhere in the child's cycle; nothing is waited for. */
static void spin(uint64_t ns)
{
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + ns;
    while (corral_now_ns(&corral_clock_monotonic) < until) {
    }
}

static void check_whole(struct corral_weight_store *s, uint64_t at_least)
{
    static uint64_t words[WORDS];
    struct corral_error err = {0};
    struct corral_digest digest;
    uint64_t version = 0;
    check_ok(corral_weight_store_read(s, test_manifest, words, BYTES, &version, &digest, &err));
    assert_true(test_is_version(words, WORDS, version));
    assert_true(version >= at_least);
}

static void a_killed_writer_leaves_a_whole_version_and_a_free_store(void **state)
{
    (void)state;
    int fd = -1, started[2];
    struct corral_error err = {0};
    struct corral_weight_store *s = NULL;
    struct corral_rng rng;
    check_ok(corral_weight_store_create(BYTES, &fd, &err));
    check_ok(corral_weight_store_attach(fd, &s, &err));
    assert_int_equal(pipe(started), 0);
    corral_rng_seed(&rng, 20240611);
    uint64_t highest = 0;
    for (int i = 0; i < KILLS; i++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            write_forever(fd, started[1]);
        }
        char byte;
        int status = 0;
        assert_int_equal(read(started[0], &byte, 1), 1);
        spin(corral_rng_below(&rng, 200000));
        assert_int_equal(kill(pid, SIGKILL), 0);
        bool reap_first = i % 2 == 0;
        if (reap_first) {
            assert_int_equal(waitpid(pid, &status, 0), pid);
            assert_true(WIFSIGNALED(status));
        } else { /* still a zombie when its word is taken over */
            siginfo_t info;
            assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
        }
        check_whole(s, highest + 1);
        highest = corral_weight_store_version(s);
        check_ok(push(s, ++highest, &err));
        check_whole(s, highest);
        if (!reap_first) {
            assert_int_equal(waitpid(pid, &status, 0), pid);
        }
    }
    corral_weight_store_detach(s);
    close(fd);
    close(started[0]);
    close(started[1]);
}

static void a_live_writer_is_not_robbed(void **state)
{
    (void)state;
    int fd = -1, begun[2], finish[2];
    struct corral_error err = {0};
    struct corral_weight_store *s = NULL;
    void *slot = NULL;
    char byte;
    check_ok(corral_weight_store_create(BYTES, &fd, &err));
    check_ok(corral_weight_store_attach(fd, &s, &err));
    assert_int_equal(pipe(begun), 0);
    assert_int_equal(pipe(finish), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct corral_digest digest;
        bool ok = corral_weight_store_begin(s, 5, test_manifest, BYTES, &slot, &err) == CORRAL_OK;
        ok = ok && write(begun[1], "x", 1) == 1 && read(finish[0], &byte, 1) == 1;
        if (ok) {
            test_fill(slot, WORDS, 5);
        }
        _exit(ok && corral_weight_store_commit(s, 5, &digest, &err) == CORRAL_OK ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(read(begun[0], &byte, 1), 1);
    check_status(corral_weight_store_begin(s, 6, test_manifest, BYTES, &slot, &err), CORRAL_EXISTS);
    assert_int_equal(write(finish[1], "x", 1), 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    check_whole(s, 5);
    corral_weight_store_detach(s);
    close(fd);
    for (int i = 0; i < 2; i++) {
        close(begun[i]);
        close(finish[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_writer_leaves_a_whole_version_and_a_free_store),
        cmocka_unit_test(a_live_writer_is_not_robbed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
