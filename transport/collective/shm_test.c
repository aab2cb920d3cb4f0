/* What only the shared-memory implementation promises: generations in one mapping, restarts after kills, foreign descriptors. */
#include "transport/collective/collective.h"

#include "base/rng.h"
#include "tests/check.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONG_MS 60000
#define RANKS 3

static struct corral_error err;

static float part(uint32_t generation, uint32_t round, uint32_t rank, uint32_t i)
{
    return (float)(generation * 1000 + round * 100 + rank * 10 + i % 7);
}

/* 0: every sum that was reported is right; 1: a wrong sum; 2: no failure although a rank died. */
static int sum_until_broken(int fd, uint32_t rank, uint32_t generation, uint32_t die_at)
{
    struct corral_collective *c;
    float data[3000];
    if (corral_collective_shm_create(fd, rank, RANKS, generation, LONG_MS, &c, NULL) != CORRAL_OK) {
        return 3;
    }
    for (uint32_t round = 0; round < 100; round++) {
        if (round == die_at) {
            kill(getpid(), SIGKILL);
        }
        for (uint32_t i = 0; i < CORRAL_COUNT_OF(data); i++) {
            data[i] = part(generation, round, rank, i);
        }
        if (c->ops->sum_f32(c, data, CORRAL_COUNT_OF(data), NULL) != CORRAL_OK) {
            corral_collective_destroy(c);
            return 0;
        }
        for (uint32_t i = 0; i < CORRAL_COUNT_OF(data); i++) {
            float sum =
                part(generation, round, 0, i) + part(generation, round, 1, i) + part(generation, round, 2, i);
            if (data[i] != sum) {
                return 1;
            }
        }
    }
    return 2;
}

static void a_restarted_group_never_sees_the_old_ones_data(void **state)
{
    (void)state;
    int fd;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    check_ok(corral_collective_shm_segment(RANKS, 16384, &fd, &err));
    for (uint32_t generation = 0; generation < 60; generation++) {
        pid_t child[RANKS];
        uint32_t victim = (uint32_t)corral_rng_below(&rng, RANKS),
                 die_at = (uint32_t)corral_rng_below(&rng, 6);
        for (uint32_t r = 0; r < RANKS; r++) {
            child[r] = fork();
            assert_true(child[r] >= 0);
            if (child[r] == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                _exit(sum_until_broken(fd, r, generation, r == victim ? die_at : UINT32_MAX));
            }
        }
        for (uint32_t r = 0; r < RANKS; r++) {
            int status = -1;
            while (waitpid(child[r], &status, 0) < 0 && errno == EINTR) {
            }
            assert_true(r == victim ? WIFSIGNALED(status) : WIFEXITED(status));
            assert_int_equal(r == victim ? 0 : WEXITSTATUS(status), 0);
        }
    }
    close(fd);
}

static void a_generation_is_taken_once(void **state)
{
    (void)state;
    int fd;
    struct corral_collective *c, *d = NULL;
    check_ok(corral_collective_shm_segment(2, 0, &fd, &err));
    check_ok(corral_collective_shm_create(fd, 1, 2, 5, LONG_MS, &c, &err));
    assert_int_equal(corral_collective_shm_create(fd, 1, 2, 5, LONG_MS, &d, &err), CORRAL_EXISTS);
    assert_int_equal(corral_collective_shm_create(fd, 1, 2, 4, LONG_MS, &d, &err), CORRAL_EXISTS);
    assert_int_equal(corral_collective_shm_create(fd, 1, 2, UINT32_MAX, LONG_MS, &d, &err), CORRAL_INVALID);
    assert_null(d);
    check_ok(corral_collective_shm_create(fd, 1, 2, 6, LONG_MS, &d, &err));
    assert_int_equal(c->ops->barrier(c, &err), CORRAL_STATE); /* its slot belongs to a later one now */
    corral_collective_destroy(c);
    corral_collective_destroy(d);
    close(fd);
}

static void *wait_in_barrier(void *arg)
{
    struct corral_collective *c = arg;
    return (void *)(uintptr_t)c->ops->barrier(c, NULL);
}

static void a_rank_left_behind_is_told_so(void **state)
{
    (void)state;
    int fd;
    struct corral_collective *old_0, *old_1, *new_1;
    check_ok(corral_collective_shm_segment(2, 0, &fd, &err));
    check_ok(corral_collective_shm_create(fd, 0, 2, 1, LONG_MS, &old_0, &err));
    check_ok(corral_collective_shm_create(fd, 1, 2, 1, LONG_MS, &old_1, &err));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wait_in_barrier, old_0), 0);
    check_ok(corral_collective_shm_create(fd, 1, 2, 2, LONG_MS, &new_1, &err));
    void *result;
    pthread_join(thread, &result);
    assert_int_equal((uintptr_t)result, CORRAL_STATE);
    corral_collective_destroy(old_0);
    corral_collective_destroy(old_1);
    corral_collective_destroy(new_1);
    close(fd);
}

static void a_new_group_waits_for_peers_of_its_own_generation(void **state)
{
    (void)state;
    int fd;
    struct corral_collective *old_1, *new_0;
    check_ok(corral_collective_shm_segment(2, 0, &fd, &err));
    check_ok(corral_collective_shm_create(fd, 1, 2, 1, LONG_MS, &old_1, &err));
    check_ok(corral_collective_shm_create(fd, 0, 2, 2, 50, &new_0, &err));
    assert_int_equal(new_0->ops->barrier(new_0, &err), CORRAL_TIMEOUT);
    assert_non_null(strstr(err.text, "rank 1"));
    corral_collective_destroy(old_1);
    corral_collective_destroy(new_0);
    close(fd);
}

static void foreign_descriptors_and_wrong_sizes_are_refused(void **state)
{
    (void)state;
    int fd;
    struct corral_collective *c = NULL;
    check_ok(corral_collective_shm_segment(2, 0, &fd, &err));
    assert_int_equal(corral_collective_shm_create(fd, 0, 3, 1, LONG_MS, &c, &err), CORRAL_INVALID);
    assert_int_equal(corral_collective_shm_create(fd, 2, 2, 1, LONG_MS, &c, &err), CORRAL_INVALID);
    assert_int_equal(corral_collective_shm_create(fd, 0, 0, 1, LONG_MS, &c, &err), CORRAL_INVALID);
    assert_int_equal(corral_collective_shm_create(-1, 0, 2, 1, LONG_MS, &c, &err), CORRAL_IO);
    close(fd);
    assert_int_equal(corral_collective_shm_segment(0, 0, &fd, &err), CORRAL_INVALID);
    assert_int_equal(corral_collective_shm_segment(CORRAL_COLLECTIVE_RANKS_MAX + 1, 0, &fd, &err),
                     CORRAL_INVALID);
    assert_int_equal(corral_collective_shm_segment(2, UINT64_MAX, &fd, &err), CORRAL_INVALID);
    int zeros = memfd_create("zeros", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(zeros, 1 << 16), 0);
    assert_int_equal(corral_collective_shm_create(zeros, 0, 2, 1, LONG_MS, &c, &err), CORRAL_INVALID);
    assert_int_equal(fcntl(zeros, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    assert_int_equal(corral_collective_shm_create(zeros, 0, 2, 1, LONG_MS, &c, &err), CORRAL_INVALID);
    close(zeros);
    assert_null(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_restarted_group_never_sees_the_old_ones_data),
        cmocka_unit_test(a_generation_is_taken_once),
        cmocka_unit_test(a_rank_left_behind_is_told_so),
        cmocka_unit_test(a_new_group_waits_for_peers_of_its_own_generation),
        cmocka_unit_test(foreign_descriptors_and_wrong_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
