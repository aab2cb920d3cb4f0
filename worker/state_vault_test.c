#include "tests/check.h"

#include "base/rng.h"
#include "worker/state_vault.h"
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define STATE_WORDS 2048
#define STATE_BYTES (STATE_WORDS * sizeof(uint64_t))
#define KILLS 300
#define HEADER_BYTES 4096 /* of the mapping; the slots' data follow */

struct vault {
    int fd;
    struct corral_state_vault *v;
};

static void attach(struct vault *t)
{
    struct corral_error err = {0};
    check_ok(corral_state_vault_attach(t->fd, STATE_BYTES, &t->v, &err));
}

static struct vault vault_new(void)
{
    struct corral_error err = {0};
    struct vault t = {.fd = -1};
    check_ok(corral_state_vault_create(&t.fd, &err));
    attach(&t);
    return t;
}

static void vault_free(struct vault *t)
{
    corral_state_vault_detach(t->v);
    close(t->fd);
}

static void fill(void *state, uint64_t step, uint64_t salt)
{
    uint64_t *word = state;
    for (uint64_t i = 0; i < STATE_WORDS; i++) {
        word[i] = (step * 1000003 + i) ^ salt;
    }
}

static void save(struct vault *t, uint64_t step, uint64_t salt)
{
    fill(corral_state_vault_begin(t->v), step, salt);
    corral_state_vault_commit(t->v, step, STATE_BYTES);
}

static void expect_state(const struct vault *t, uint64_t step, uint64_t salt)
{
    struct corral_error err = {0};
    static uint64_t expected[STATE_WORDS];
    const void *state = NULL;
    uint64_t bytes = 0;
    check_ok(corral_state_vault_find(t->v, step, &state, &bytes, &err));
    assert_int_equal(bytes, STATE_BYTES);
    fill(expected, step, salt);
    assert_memory_equal(state, expected, STATE_BYTES);
}

static void expect_newest(const struct vault *t, uint64_t expected)
{
    struct corral_error err = {0};
    uint64_t step = 0;
    check_ok(corral_state_vault_newest(t->v, &step, &err));
    assert_int_equal(step, expected);
    check_ok(corral_state_vault_peek(t->fd, &step, NULL, 0, &err));
    assert_int_equal(step, expected);
}

static void expect_missing(const struct vault *t, uint64_t step)
{
    const void *state;
    uint64_t bytes;
    check_status(corral_state_vault_find(t->v, step, &state, &bytes, NULL), CORRAL_NOT_FOUND);
}

static void an_empty_vault_has_no_step(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct vault t = {.fd = -1};
    uint64_t step = 7;
    check_ok(corral_state_vault_create(&t.fd, &err));
    check_status(corral_state_vault_peek(t.fd, &step, NULL, 0, &err), CORRAL_NOT_FOUND);
    attach(&t);
    check_status(corral_state_vault_newest(t.v, &step, &err), CORRAL_NOT_FOUND);
    check_status(corral_state_vault_peek(t.fd, &step, NULL, 0, &err), CORRAL_NOT_FOUND);
    expect_missing(&t, 0);
    assert_int_equal(step, 7);
    vault_free(&t);
}

static void has_all_its_memory_from_the_start(void **state)
{
    (void)state;
    struct vault t = vault_new();
    struct stat st;
    assert_int_equal(fstat(t.fd, &st), 0);
    assert_true(st.st_size >= (off_t)(2 * STATE_BYTES));
    assert_true((off_t)st.st_blocks * 512 >=
                st.st_size); /* a page that is missing now may be missing for good later */
    vault_free(&t);
}

static void keeps_the_last_two_states(void **state)
{
    (void)state;
    struct vault t = vault_new();
    for (uint64_t step = 0; step < 6; step++) {
        save(&t, step, 0);
        expect_newest(&t, step);
        expect_state(&t, step, 0);
        if (step > 0) {
            expect_state(&t, step - 1, 0);
        }
    }
    expect_missing(&t, 3);
    corral_state_vault_detach(t.v);
    attach(&t);
    expect_state(&t, 5, 0);
    expect_state(&t, 4, 0);
    vault_free(&t);
}

static void a_state_half_written_does_not_count(void **state)
{
    (void)state;
    struct vault t = vault_new();
    save(&t, 1, 0);
    save(&t, 2, 0);
    memset(corral_state_vault_begin(t.v), 0xee, STATE_BYTES / 2);
    corral_state_vault_detach(t.v);
    attach(&t);
    expect_newest(&t, 2);
    expect_state(&t, 2, 0);
    expect_missing(&t, 1);
    save(&t, 3, 0);
    expect_state(&t, 2, 0);
    expect_state(&t, 3, 0);
    vault_free(&t);
}

static void rewinding_forgets_newer_steps(void **state)
{
    (void)state;
    struct vault t = vault_new();
    save(&t, 4, 0);
    save(&t, 5, 0);
    corral_state_vault_rewind(t.v, 5);
    expect_newest(&t, 5);
    corral_state_vault_rewind(t.v, 4);
    expect_newest(&t, 4);
    expect_missing(&t, 5);
    save(&t, 5, 1);
    expect_state(&t, 5, 1);
    expect_state(&t, 4, 0);
    vault_free(&t);
}

/* A trainer that goes on from a restored step saves that step again, with a newer version number in it. */
static void of_one_step_saved_twice_the_later_counts(void **state)
{
    (void)state;
    struct vault t = vault_new();
    save(&t, 8, 0);
    save(&t, 9, 1);
    save(&t, 9, 2);
    expect_state(&t, 9, 2);
    save(&t, 9, 3);
    expect_state(&t, 9, 3);
    (void)corral_state_vault_begin(t.v); /* and killed here: the later of the two is still there */
    expect_newest(&t, 9);
    expect_state(&t, 9, 3);
    vault_free(&t);
}

static void refuses_another_size(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct vault t = vault_new();
    struct corral_state_vault *other = NULL;
    save(&t, 1, 0);
    check_status(corral_state_vault_attach(t.fd, STATE_BYTES + 8192, &other, &err), CORRAL_INVALID);
    check_status(corral_state_vault_attach(t.fd, STATE_BYTES - 1, &other, &err),
                 CORRAL_INVALID); /* same pages */
    check_status(corral_state_vault_attach(t.fd, 0, &other, &err), CORRAL_INVALID);
    check_status(corral_state_vault_attach(t.fd, UINT64_MAX, &other, &err), CORRAL_INVALID);
    assert_null(other);
    expect_state(&t, 1, 0);
    vault_free(&t);
}

static void flip(const struct vault *t, off_t at)
{
    uint8_t byte;
    assert_int_equal(pread(t->fd, &byte, 1, at), 1);
    byte ^= 0x40;
    assert_int_equal(pwrite(t->fd, &byte, 1, at), 1);
}

static void refuses_a_damaged_state(void **state)
{
    (void)state;
    for (uint32_t slot = 0; slot < 2; slot++) {
        struct vault t = vault_new();
        save(&t, 1, 0); /* in the first slot */
        save(&t, 2, 0); /* in the second */
        flip(&t, HEADER_BYTES + (off_t)(slot * STATE_BYTES) + 777);
        uint64_t good = slot == 0 ? 2 : 1;
        expect_missing(&t, 3 - good);
        expect_newest(&t, good);
        corral_state_vault_detach(t.v);
        attach(&t);
        save(&t, 3, 0); /* over the damaged one, not over the good one */
        expect_state(&t, good, 0);
        expect_state(&t, 3, 0);
        vault_free(&t);
    }
}

static void refuses_a_damaged_header(void **state)
{
    (void)state;
    struct corral_error err = {0};
    for (off_t at = 0; at < 128; at++) {
        struct vault t = vault_new();
        save(&t, 1, 0);
        save(&t, 2, 0);
        corral_state_vault_detach(t.v);
        t.v = NULL;
        flip(&t, at);
        uint64_t step = 0;
        (void)corral_state_vault_peek(t.fd, &step, NULL, 0, &err);
        if (corral_state_vault_attach(t.fd, STATE_BYTES, &t.v, &err) == CORRAL_OK) {
            /* Whatever is found is a state that was committed; its number may be what was damaged. */
            const void *found;
            uint64_t bytes;
            if (corral_state_vault_newest(t.v, &step, &err) == CORRAL_OK) {
                check_ok(corral_state_vault_find(t.v, step, &found, &bytes, &err));
            }
        }
        vault_free(&t);
    }
}

/* ---- kill -9 ---- */

struct progress {
    _Atomic uint64_t begun, committed; /* steps; shared with the child */
};

static void write_for_ever(int fd, struct progress *progress)
{
    struct corral_state_vault *v = NULL;
    uint64_t step = 0;
    if (corral_state_vault_attach(fd, STATE_BYTES, &v, NULL) != CORRAL_OK) {
        _exit(3);
    }
    if (corral_state_vault_newest(v, &step, NULL) != CORRAL_OK) {
        step = 0;
    }
    for (;;) {
        step++;
        atomic_store(&progress->begun, step);
        fill(corral_state_vault_begin(v), step, 0);
        corral_state_vault_commit(v, step, STATE_BYTES);
        atomic_store(&progress->committed, step);
    }
}

static void kill_at_a_random_point(const struct vault *t, struct progress *progress, struct corral_rng *rng)
{
    uint64_t before = atomic_load(&progress->committed);
    uint64_t commits = 1 + corral_rng_below(rng, 3);
    pid_t parent = getpid(), child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent) {
            write_for_ever(t->fd, progress);
        }
        _exit(4);
    }
    while (atomic_load(&progress->committed) < before + commits) {
        int ended;
        assert_int_equal(waitpid(child, &ended, WNOHANG), 0);
        sched_yield();
    }
    for (volatile uint64_t spin = corral_rng_below(rng, 40000); spin > 0; spin--) {
    }
    assert_int_equal(kill(child, SIGKILL), 0);
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFSIGNALED(ended));
}

static void a_writer_killed_anywhere_leaves_its_newest_state_whole(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 20240607);
    struct vault t = vault_new();
    struct progress *progress =
        mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(progress, MAP_FAILED);
    for (uint32_t i = 0; i < KILLS; i++) {
        kill_at_a_random_point(&t, progress, &rng);
        struct corral_error err = {0};
        uint64_t step = 0;
        check_ok(corral_state_vault_newest(t.v, &step, &err));
        assert_true(step >= atomic_load(&progress->committed));
        assert_true(step <= atomic_load(&progress->begun));
        expect_newest(&t, step);
        expect_state(&t, step, 0);
        atomic_store(&progress->committed, step);
    }
    munmap(progress, sizeof *progress);
    vault_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_vault_has_no_step),
        cmocka_unit_test(has_all_its_memory_from_the_start),
        cmocka_unit_test(keeps_the_last_two_states),
        cmocka_unit_test(a_state_half_written_does_not_count),
        cmocka_unit_test(rewinding_forgets_newer_steps),
        cmocka_unit_test(of_one_step_saved_twice_the_later_counts),
        cmocka_unit_test(refuses_another_size),
        cmocka_unit_test(refuses_a_damaged_state),
        cmocka_unit_test(refuses_a_damaged_header),
        cmocka_unit_test(a_writer_killed_anywhere_leaves_its_newest_state_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
