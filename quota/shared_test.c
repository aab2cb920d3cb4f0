#include "quota/test_node.h"

#include "base/log.h"
#include "base/rng.h"
#include "quota/process.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static struct corral_error err;
static struct corral_ledger seen;

static uint64_t used(struct corral_quota *q, uint32_t role)
{
    corral_quota_snapshot(q, &seen);
    assert_true(corral_ledger_consistent(&seen));
    return seen.device[0].role[role].used;
}

static void another_process_sees_the_charge(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine = NULL;
        uint32_t holder = 0;
        bool ok = corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
                  corral_quota_join(mine, "a:0", "rollout", &holder, NULL) == CORRAL_OK &&
                  corral_quota_reserve(mine, holder, 5 * MIB, "test", NULL) == CORRAL_OK;
        corral_quota_commit(mine, holder, 3 * MIB);
        corral_quota_rollback(mine, holder, 2 * MIB);
        _exit(ok ? 0 : 1); /* without detaching */
    }
    assert_int_equal(test_wait(child), 0);
    assert_int_equal(used(q, ROLLOUT), 3 * MIB);
    assert_int_equal(corral_quota_reap(q), 1);
    assert_int_equal(used(q, ROLLOUT), 0);
    corral_quota_detach(q);
    close(fd);
}

static void detaching_gives_everything_back(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd), *mine;
    uint32_t holder;
    check_ok(corral_quota_attach(fd, &mine, &err));
    check_ok(corral_quota_join(mine, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(mine, holder, MIB, "test", &err));
    corral_quota_set_step(mine, holder, 12);
    assert_int_equal(used(q, ROLLOUT), MIB);
    assert_int_equal(seen.holder[holder].step, 12);
    assert_int_equal(seen.holder[holder].start_time, corral_process_start_time(getpid()));
    assert_int_equal(corral_quota_reap(q), 0);
    corral_quota_detach(mine);
    assert_int_equal(used(q, ROLLOUT), 0);
    corral_quota_detach(q);
    close(fd);
}

static void only_a_sealed_ledger_can_be_attached(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd), *mine = NULL;
    assert_int_not_equal(ftruncate(fd, 10), 0);
    assert_int_not_equal(ftruncate(fd, 10 << 20), 0);
    int plain = memfd_create("plain", MFD_CLOEXEC);
    assert_int_equal(corral_quota_attach(plain, &mine, &err), CORRAL_INVALID);
    close(plain);
    int empty = memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(ftruncate(empty, st.st_size), 0);
    assert_int_equal(fcntl(empty, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    assert_int_equal(corral_quota_attach(empty, &mine, &err), CORRAL_INVALID);
    close(empty);
    assert_int_equal(corral_quota_attach(-1, &mine, &err), CORRAL_IO);
    assert_null(mine);
    corral_quota_detach(q);
    close(fd);
}

static void unknown_names_are_named(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder = 77;
    assert_int_equal(corral_quota_join(q, "z:9", "rollout", &holder, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "z:9"));
    assert_int_equal(corral_quota_join(q, "a:0", "tenant", &holder, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "tenant"));
    assert_int_equal(holder, 77);
    corral_quota_detach(q);
    close(fd);
}

static void a_denial_is_one_structured_line(void **state)
{
    (void)state;
    int fd, pipe_fds[2];
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    char line[2048] = {0};
    assert_int_equal(pipe(pipe_fds), 0);
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    corral_quota_set_step(q, holder, 31);
    corral_log_configure(CORRAL_LOG_DEBUG, false, pipe_fds[1], NULL);
    assert_int_equal(corral_quota_reserve(q, holder, 51 * MIB, "adam moments", &err), CORRAL_DENIED);
    corral_log_configure(CORRAL_LOG_INFO, false, 2, NULL);
    close(pipe_fds[1]);
    assert_true(read(pipe_fds[0], line, sizeof line - 1) > 0);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    static const char *const parts[] = {"memory denied", "rollout",      "a:0",
                                        "step 31",       "adam moments", "53477376",
                                        "41943040",      "52428800",     "over ceiling"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(parts); i++) {
        if (!strstr(line, parts[i])) {
            fail_msg("\"%s\" is not in: %s", parts[i], line);
        }
    }
    assert_non_null(strstr(err.text, "50 MiB would fit"));
    close(pipe_fds[0]);
    corral_quota_detach(q);
    close(fd);
}

static void a_forked_copy_can_neither_take_nor_give_back(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(q, holder, MIB, "test", &err));
    corral_quota_commit(q, holder, MIB);
    pid_t child = fork();
    if (child == 0) {
        bool ok = corral_quota_reserve(q, holder, 1, "test", NULL) == CORRAL_STATE &&
                  corral_quota_join(q, "a:0", "rollout", &holder, NULL) == CORRAL_STATE;
        corral_quota_release(q, holder, MIB);
        corral_quota_detach(q);
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(test_wait(child), 0);
    assert_int_equal(used(q, ROLLOUT), MIB);
    corral_quota_detach(q);
    close(fd);
}

static void a_reaped_slot_is_not_the_old_owners(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder, again;
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(q, holder, MIB, "test", &err));
    corral_quota_reap_pid(q, getpid());
    assert_int_equal(used(q, ROLLOUT), 0);
    assert_int_equal(corral_quota_reserve(q, holder, MIB, "test", &err), CORRAL_STATE);
    check_ok(corral_quota_join(q, "a:0", "trainer", &again, &err));
    assert_int_equal(again, holder);
    corral_quota_detach(q);
    close(fd);
}

static void a_reused_pid_is_not_mistaken_for_life(void **state)
{
    (void)state;
    uint64_t start_time = corral_process_start_time(getpid());
    assert_true(start_time != 0);
    assert_false(corral_process_is_gone(getpid(), start_time));
    assert_false(corral_process_is_gone(getpid(), 0));
    assert_true(corral_process_is_gone(getpid(), start_time + 1));
    assert_int_equal(corral_process_start_time(0x7ffffff0), 0);
    assert_true(corral_process_is_gone(0x7ffffff0, 1));
}

static void a_zombie_is_reaped_before_its_parent_waits(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine;
        uint32_t holder;
        bool ok = corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
                  corral_quota_join(mine, "a:0", "trainer", &holder, NULL) == CORRAL_OK;
        _exit(ok ? 0 : 1);
    }
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(info.si_status, 0);
    assert_int_equal(corral_quota_reap(q), 1);
    assert_int_equal(test_wait(child), 0);
    corral_quota_detach(q);
    close(fd);
}

struct hammer {
    struct corral_quota *q;
    uint32_t holder;
    uint64_t seed;
};

static void *hammer_thread(void *arg)
{
    struct hammer *h = arg;
    struct corral_rng rng;
    corral_rng_seed(&rng, h->seed);
    for (int i = 0; i < 2000; i++) {
        uint64_t bytes = 1 + corral_rng_below(&rng, 10 * MIB);
        if (corral_quota_reserve(h->q, h->holder, bytes, "test", NULL) == CORRAL_OK) {
            corral_quota_commit(h->q, h->holder, bytes);
            corral_quota_release(h->q, h->holder, bytes);
        }
    }
    return NULL;
}

static void threads_share_one_attachment(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    pthread_t thread[4];
    struct hammer hammer[4];
    check_ok(corral_quota_join(q, "a:0", "trainer", &holder, &err));
    for (uint64_t i = 0; i < 4; i++) {
        hammer[i] = (struct hammer){.q = q, .holder = holder, .seed = i};
        assert_int_equal(pthread_create(&thread[i], NULL, hammer_thread, &hammer[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
    }
    assert_int_equal(used(q, TRAINER), 0);
    corral_quota_detach(q);
    close(fd);
}

#define VICTIMS_MAX 3

/* Reserve, commit, roll back and release at random until killed, counting operations where the parent can see. */
static void victim(int fd, uint64_t seed, _Atomic uint32_t *operations)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct corral_rng rng;
    struct corral_quota *q;
    uint32_t holder;
    corral_rng_seed(&rng, seed);
    if (corral_quota_attach(fd, &q, NULL) != CORRAL_OK ||
        corral_quota_join(q, "a:0", seed % 2 != 0 ? "trainer" : "rollout", &holder, NULL) != CORRAL_OK) {
        _exit(1);
    }
    uint64_t committed = 0;
    for (;;) {
        uint64_t bytes = 1 + corral_rng_below(&rng, MIB);
        if (committed > 4 * MIB) {
            corral_quota_release(q, holder, committed);
            committed = 0;
        } else if (corral_quota_reserve(q, holder, bytes, "test", NULL) == CORRAL_OK) {
            if (bytes % 4 == 0) {
                corral_quota_rollback(q, holder, bytes);
            } else {
                corral_quota_commit(q, holder, bytes);
                committed += bytes;
            }
        }
        atomic_fetch_add_explicit(operations, 1, memory_order_relaxed);
    }
}

static pid_t start_victim(int fd, uint64_t seed, _Atomic uint32_t *operations)
{
    atomic_store(operations, 0);
    pid_t child = fork();
    if (child == 0) {
        victim(fd, seed, operations);
    }
    assert_true(child > 0);
    return child;
}

static void kill_at_random(uint32_t victims, uint32_t kills, uint64_t seed)
{
    int fd;
    struct corral_quota *q = test_node(&fd);
    _Atomic uint32_t *operations =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(operations, MAP_FAILED);
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    pid_t child[VICTIMS_MAX];
    uint32_t holder, reaped = 0;
    for (uint32_t i = 0; i < victims; i++) {
        child[i] = start_victim(fd, i, &operations[i]);
    }
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    for (uint32_t k = 0; k < kills; k++) {
        uint32_t v = k % victims, target = 1 + (uint32_t)corral_rng_below(&rng, 200);
        while (atomic_load_explicit(&operations[v], memory_order_relaxed) < target) {
            sched_yield();
        }
        for (uint64_t spin = corral_rng_below(&rng, 3000); spin > 0; spin--) {
            atomic_load_explicit(&operations[v],
                                 memory_order_relaxed); /* away from the end of an operation */
        }
        assert_int_equal(kill(child[v], SIGKILL), 0);
        assert_true(WIFSIGNALED(test_wait(child[v])));
        check_ok(corral_quota_reserve(q, holder, 1, "test", &err)); /* the next operation */
        corral_quota_snapshot(q, &seen);
        assert_true(corral_ledger_consistent(&seen));
        corral_quota_rollback(q, holder, 1);
        reaped += corral_quota_reap(q);
        child[v] = start_victim(fd, (uint64_t)k + victims, &operations[v]);
    }
    for (uint32_t i = 0; i < victims; i++) {
        kill(child[i], SIGKILL);
        test_wait(child[i]);
    }
    reaped += corral_quota_reap(q);
    assert_in_range(reaped, kills, kills + victims);
    print_message("%u kills, %u with the lock held\n", kills, corral_quota_repairs(q));
    assert_int_equal(used(q, TRAINER), 0);
    assert_int_equal(used(q, ROLLOUT), 0);
    munmap(operations, 4096);
    corral_quota_detach(q);
    close(fd);
}

static void a_kill_at_any_point_leaves_a_consistent_ledger(void **state)
{
    (void)state;
    kill_at_random(1, 300, 42);
}

static void a_kill_under_contention_leaves_a_consistent_ledger(void **state)
{
    (void)state;
    kill_at_random(VICTIMS_MAX, 150, 43);
}

static int quiet(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL);
    return 0;
}

#define CASE(test) cmocka_unit_test_setup(test, quiet)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(another_process_sees_the_charge),
        CASE(detaching_gives_everything_back),
        CASE(only_a_sealed_ledger_can_be_attached),
        CASE(unknown_names_are_named),
        CASE(a_denial_is_one_structured_line),
        CASE(a_forked_copy_can_neither_take_nor_give_back),
        CASE(a_reaped_slot_is_not_the_old_owners),
        CASE(a_reused_pid_is_not_mistaken_for_life),
        CASE(a_zombie_is_reaped_before_its_parent_waits),
        CASE(threads_share_one_attachment),
        CASE(a_kill_at_any_point_leaves_a_consistent_ledger),
        CASE(a_kill_under_contention_leaves_a_consistent_ledger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
