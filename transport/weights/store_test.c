#include "tests/check.h"

#include "base/clock.h"
#include "transport/weights/test_weights.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 2048
#define BYTES (WORDS * sizeof(uint64_t))

struct fixture {
    int fd;
    struct corral_weight_store *store;
};

static int setup(void **state)
{
    static struct fixture f;
    struct corral_error err = {0};
    check_ok(corral_weight_store_create(BYTES, &f.fd, &err));
    check_ok(corral_weight_store_attach(f.fd, &f.store, &err));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    corral_weight_store_detach(f->store);
    close(f->fd);
    return 0;
}

static void push(struct corral_weight_store *s, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_digest digest;
    void *slot = NULL;
    check_ok(corral_weight_store_begin(s, version, test_manifest, BYTES, &slot, &err));
    test_fill(slot, WORDS, version);
    check_ok(corral_weight_store_commit(s, version, &digest, &err));
}

static void a_version_is_read_as_it_was_written(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    uint64_t words[WORDS], version = 0;
    struct corral_digest digest;
    check_status(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err),
                 CORRAL_AGAIN);
    assert_int_equal(corral_weight_store_version(f->store), 0);
    for (uint64_t v = 3; v < 20; v += 3) {
        push(f->store, v);
        assert_int_equal(corral_weight_store_version(f->store), v);
        check_ok(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err));
        assert_int_equal(version, v);
        assert_true(test_is_version(words, WORDS, v));
        assert_true(corral_digest_equal(digest, corral_digest_of(words, BYTES)));
    }
}

static void refuses_a_version_that_does_not_grow(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    void *slot = NULL;
    push(f->store, 7);
    check_status(corral_weight_store_begin(f->store, 0, test_manifest, BYTES, &slot, &err), CORRAL_INVALID);
    check_status(corral_weight_store_begin(f->store, 6, test_manifest, BYTES, &slot, &err), CORRAL_INVALID);
    check_status(corral_weight_store_begin(f->store, UINT64_MAX, test_manifest, BYTES, &slot, &err),
                 CORRAL_INVALID);
    push(f->store, 8); /* a refusal leaves nothing held */
}

static void the_current_version_may_be_written_again_with_the_same_bytes(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    uint64_t words[WORDS], version = 0;
    struct corral_digest digest;
    void *slot = NULL;
    push(f->store, 7);
    for (int i = 0; i < 5; i++) {
        push(f->store, 7);
        check_ok(corral_weight_store_begin(f->store, 7, test_manifest, BYTES, &slot, &err));
        test_fill(slot, WORDS, 8);
        check_status(corral_weight_store_commit(f->store, 7, &digest, &err), CORRAL_INVALID);
        assert_non_null(strstr(err.text, "other bytes"));
        check_ok(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err));
        assert_int_equal(version, 7);
        assert_true(test_is_version(words, WORDS, 7));
    }
    push(f->store, 8);
}

static void refuses_another_model(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_digest other = {.lo = 11, .hi = 23}, digest;
    uint64_t words[WORDS], version = 0;
    void *slot = NULL;
    push(f->store, 1);
    check_status(corral_weight_store_begin(f->store, 2, other, BYTES, &slot, &err), CORRAL_INVALID);
    check_status(corral_weight_store_begin(f->store, 2, test_manifest, BYTES - 8, &slot, &err),
                 CORRAL_INVALID);
    check_status(corral_weight_store_read(f->store, other, words, BYTES, &version, &digest, &err),
                 CORRAL_INVALID);
    check_status(corral_weight_store_read(f->store, test_manifest, words, BYTES - 8, &version, &digest, &err),
                 CORRAL_INVALID);
}

static void refuses_weights_larger_than_the_store(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    void *slot = NULL;
    check_status(corral_weight_store_begin(f->store, 1, test_manifest, BYTES + 1, &slot, &err),
                 CORRAL_INVALID);
    check_status(corral_weight_store_begin(f->store, 1, test_manifest, 0, &slot, &err), CORRAL_INVALID);
}

static void refuses_a_second_writer(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_store *other = NULL;
    void *slot = NULL;
    check_ok(corral_weight_store_attach(f->fd, &other, &err));
    check_ok(corral_weight_store_begin(f->store, 1, test_manifest, BYTES, &slot, &err));
    check_status(corral_weight_store_begin(other, 2, test_manifest, BYTES, &slot, &err), CORRAL_EXISTS);
    corral_weight_store_abort(f->store);
    push(other, 2);
    check_status(corral_weight_store_begin(f->store, 1, test_manifest, BYTES, &slot, &err), CORRAL_INVALID);
    corral_weight_store_detach(other);
}

static void an_aborted_version_was_never_there(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    uint64_t words[WORDS], version = 0;
    void *slot = NULL;
    struct corral_digest digest;
    push(f->store, 1);
    check_ok(corral_weight_store_begin(f->store, 2, test_manifest, BYTES, &slot, &err));
    memset(slot, 0xee, BYTES);
    corral_weight_store_abort(f->store);
    check_status(corral_weight_store_commit(f->store, 2, &digest, &err), CORRAL_STATE);
    check_ok(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err));
    assert_int_equal(version, 1);
    assert_true(test_is_version(words, WORDS, 1));
    push(f->store, 2); /* the same number may be tried again */
    check_ok(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err));
    assert_true(test_is_version(words, WORDS, 2));
}

static void commit_needs_its_begin(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_digest digest;
    void *slot = NULL;
    check_status(corral_weight_store_commit(f->store, 1, &digest, &err), CORRAL_STATE);
    check_ok(corral_weight_store_begin(f->store, 1, test_manifest, BYTES, &slot, &err));
    check_status(corral_weight_store_commit(f->store, 2, &digest, &err), CORRAL_STATE);
    check_status(corral_weight_store_begin(f->store, 2, test_manifest, BYTES, &slot, &err), CORRAL_STATE);
    corral_weight_store_abort(f->store);
}

static void a_damaged_slot_is_noticed(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    uint64_t words[WORDS], version = 77;
    struct corral_digest digest;
    void *slot = NULL;
    check_ok(corral_weight_store_begin(f->store, 1, test_manifest, BYTES, &slot, &err));
    test_fill(slot, WORDS, 1);
    check_ok(corral_weight_store_commit(f->store, 1, &digest, &err));
    ((uint8_t *)slot)[BYTES / 2] ^= 1;
    check_status(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err),
                 CORRAL_PROTOCOL);
    assert_int_equal(version, 77);
}

static void refuses_a_descriptor_that_is_no_store(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_weight_store *s = NULL;
    int fd = memfd_create("not-a-store", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, 65536), 0);
    check_status(corral_weight_store_attach(fd, &s, &err),
                 CORRAL_PROTOCOL); /* not sealed: it could shrink under us */
    close(fd);
    check_status(corral_weight_store_attach(-1, &s, &err), CORRAL_IO);
    check_status(corral_weight_store_create(0, &fd, &err), CORRAL_INVALID);
    check_status(corral_weight_store_create(UINT64_MAX, &fd, &err), CORRAL_INVALID);
}

static void the_store_cannot_be_resized(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(ftruncate(f->fd, 4096), -1);
    assert_int_equal(ftruncate(f->fd, 1 << 30), -1);
}

/* ---- threads; each has its own mapping, as each process would ---- */

#define VERSIONS 10000

struct reader {
    int fd;
    uint64_t reads, mixes, regressions;
};

static void *read_until_the_last(void *arg)
{
    struct reader *r = arg;
    struct corral_error err = {0};
    struct corral_weight_store *s = NULL;
    uint64_t words[WORDS], last = 0;
    if (corral_weight_store_attach(r->fd, &s, &err) != CORRAL_OK) {
        return NULL;
    }
    while (last < VERSIONS) {
        uint64_t version = 0;
        struct corral_digest digest;
        enum corral_status status =
            corral_weight_store_read(s, test_manifest, words, BYTES, &version, &digest, &err);
        if (status == CORRAL_AGAIN) {
            continue;
        }
        r->reads++;
        r->mixes += status != CORRAL_OK || !test_is_version(words, WORDS, version);
        r->regressions += version < last;
        last = version;
    }
    corral_weight_store_detach(s);
    return NULL;
}

static void readers_never_see_a_mix(void **state)
{
    struct fixture *f = *state;
    struct reader r[3];
    pthread_t thread[3];
    for (int i = 0; i < 3; i++) {
        r[i] = (struct reader){.fd = f->fd};
        assert_int_equal(pthread_create(&thread[i], NULL, read_until_the_last, &r[i]), 0);
    }
    for (uint64_t v = 1; v <= VERSIONS; v++) {
        push(f->store, v);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(thread[i], NULL);
        assert_true(r[i].reads > 0);
        assert_int_equal(r[i].mixes, 0);
        assert_int_equal(r[i].regressions, 0);
    }
}

static void *wait_for_each(void *arg)
{
    struct reader *r = arg;
    struct corral_error err = {0};
    struct corral_weight_store *s = NULL;
    if (corral_weight_store_attach(r->fd, &s, &err) != CORRAL_OK) {
        return NULL;
    }
    uint64_t seen = 0;
    while (seen < 200 && corral_weight_store_wait(s, seen, 20000, &err) == CORRAL_OK) {
        seen = corral_weight_store_version(s);
    }
    r->reads = seen;
    corral_weight_store_detach(s);
    return NULL;
}

static void a_commit_wakes_those_who_wait(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct reader r[2];
    pthread_t thread[2];
    for (int i = 0; i < 2; i++) {
        r[i] = (struct reader){.fd = f->fd};
        assert_int_equal(pthread_create(&thread[i], NULL, wait_for_each, &r[i]), 0);
    }
    for (uint64_t v = 1; v <= 200; v++) {
        push(f->store, v);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(r[i].reads, 200);
    }
    uint64_t before = corral_now_ns(&corral_clock_monotonic);
    check_status(corral_weight_store_wait(f->store, 200, 5, &err), CORRAL_TIMEOUT);
    assert_true(corral_now_ns(&corral_clock_monotonic) - before >= 5 * CORRAL_NS_PER_MS);
    check_ok(corral_weight_store_wait(f->store, 199, 0, &err));
}

static pid_t sleeper(void)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (;;) {
            pause();
        }
    }
    return pid;
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_tainted_slot_is_left_alone_while_its_process_lives(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    void *first = NULL, *second = NULL, *third = NULL;
    push(f->store, 1);
    pid_t a = sleeper(), b = sleeper();
    check_ok(corral_weight_store_begin(f->store, 2, test_manifest, BYTES, &first, &err));
    corral_weight_store_taint(f->store, a);
    corral_weight_store_abort(f->store);
    check_ok(corral_weight_store_begin(f->store, 2, test_manifest, BYTES, &second, &err));
    assert_ptr_not_equal(first, second);
    corral_weight_store_taint(f->store, b);
    corral_weight_store_abort(f->store);
    check_status(corral_weight_store_begin(f->store, 2, test_manifest, BYTES, &third, &err), CORRAL_EXISTS);
    uint64_t words[WORDS], version = 0;
    check_ok(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, NULL, &err));
    assert_int_equal(version, 1);
    end(a);
    check_ok(corral_weight_store_begin(f->store, 2, test_manifest, BYTES, &third, &err));
    assert_ptr_equal(third, first);
    corral_weight_store_abort(f->store);
    end(b);
}

static void a_chain_is_given_to_readers_and_is_no_digest_of_bytes(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_digest chain = {.lo = 5, .hi = 6}, digest = {0};
    uint64_t words[WORDS], version = 0, offset = 0;
    void *slot = NULL;
    int fd = -1;
    check_ok(corral_weight_store_begin(f->store, 4, test_manifest, BYTES, &slot, &err));
    corral_weight_store_place(f->store, slot, &fd, &offset);
    test_fill(words, WORDS, 4);
    assert_int_equal(pwrite(fd, words, BYTES, (off_t)offset),
                     BYTES); /* as a sender with the descriptor would */
    check_ok(corral_weight_store_commit_chain(f->store, 4, chain, &err));
    check_ok(corral_weight_store_read(f->store, test_manifest, words, BYTES, &version, &digest, &err));
    assert_true(corral_digest_equal(digest, chain) && test_is_version(words, WORDS, 4));
    corral_weight_store_current(f->store, &version, &digest);
    assert_true(version == 4 && corral_digest_equal(digest, chain));
    check_ok(corral_weight_store_begin(f->store, 4, test_manifest, BYTES, &slot, &err));
    check_status(corral_weight_store_commit_digest(f->store, 4, chain, &err), CORRAL_INVALID);
    check_ok(corral_weight_store_begin(f->store, 4, test_manifest, BYTES, &slot, &err));
    check_ok(corral_weight_store_commit_chain(f->store, 4, chain, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_version_is_read_as_it_was_written, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_a_version_that_does_not_grow, setup, teardown),
        cmocka_unit_test_setup_teardown(the_current_version_may_be_written_again_with_the_same_bytes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(refuses_another_model, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_weights_larger_than_the_store, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_a_second_writer, setup, teardown),
        cmocka_unit_test_setup_teardown(an_aborted_version_was_never_there, setup, teardown),
        cmocka_unit_test_setup_teardown(commit_needs_its_begin, setup, teardown),
        cmocka_unit_test_setup_teardown(a_damaged_slot_is_noticed, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_a_descriptor_that_is_no_store, setup, teardown),
        cmocka_unit_test_setup_teardown(the_store_cannot_be_resized, setup, teardown),
        cmocka_unit_test_setup_teardown(a_tainted_slot_is_left_alone_while_its_process_lives, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_chain_is_given_to_readers_and_is_no_digest_of_bytes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(readers_never_see_a_mix, setup, teardown),
        cmocka_unit_test_setup_teardown(a_commit_wakes_those_who_wait, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
