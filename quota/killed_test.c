/* What a process leaves that is killed at any instruction: the very next operation of anybody gets the memory back, without a reaper. */
#include "quota/test_node.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <time.h>
#include <unistd.h>

#define STEPS_SAMPLED 32 /* instructions of an operation to be killed at, spread evenly */

static struct corral_error err;
static struct corral_ledger seen;

struct victim {
    struct corral_quota *q;
    uint32_t holder;
    struct corral_quota_charge charge;
};
typedef void (*operation_fn)(struct victim *v);

static void takes(struct victim *v)
{
    struct corral_quota_charge more;
    if (corral_quota_take(v->q, v->holder, 10 * MIB, CORRAL_KIND_DEVICE, "more", &more, NULL) == CORRAL_OK) {
        corral_quota_keep(v->q, &more);
    }
}

static void drops(struct victim *v)
{
    corral_quota_drop(v->q, &v->charge);
}

static void opens_and_closes_a_step(struct victim *v)
{
    (void)corral_quota_open_step(v->q, v->holder, 1, 40 * MIB, NULL);
    (void)corral_quota_close_step(v->q, v->holder, NULL, NULL);
}

static void exports(struct victim *v)
{
    const uint64_t key[2] = {1, 2};
    (void)corral_quota_export(v->q, &v->charge, key, NULL);
}

static void leaves(struct victim *v)
{
    corral_quota_detach(v->q);
}

static void be_victim(int fd, operation_fn operation)
{
    struct victim v = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (corral_quota_attach(fd, &v.q, NULL) != CORRAL_OK ||
        corral_quota_join(v.q, "a:0", "trainer", &v.holder, NULL) != CORRAL_OK ||
        corral_quota_take(v.q, v.holder, 20 * MIB, CORRAL_KIND_DEVICE, "all", &v.charge, NULL) != CORRAL_OK ||
        ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
        _exit(77);
    }
    corral_quota_keep(v.q, &v.charge);
    raise(SIGSTOP);
    operation(&v);
    raise(SIGSTOP);
    _exit(0);
}

/* Starts a victim, lets it run that many instructions of the operation, and kills it. How many it came to; 0: it cannot be traced. */
static uint64_t kill_after(int fd, operation_fn operation, uint64_t instructions)
{
    pid_t child = fork();
    if (child == 0) {
        be_victim(fd, operation);
    }
    uint64_t done = 0;
    int status = test_wait(child);
    if (WIFEXITED(status)) {
        assert_int_equal(WEXITSTATUS(status), 77);
        return 0;
    }
    while (done < instructions) {
        assert_int_equal(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL), 0);
        status = test_wait(child);
        assert_true(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP) {
            break; /* the operation is over */
        }
        done++;
    }
    kill(child, SIGKILL);
    while (!WIFSIGNALED(status)) {
        status = test_wait(child);
    }
    return done;
}

/* All that the role may have: it fits only when nothing of the dead is left. Longest so far, for the message; bench/quota_recovery_bench has a bound. */
static uint64_t longest_ns;

static void take_everything(struct corral_quota *q, uint32_t holder)
{
    struct corral_quota_charge all;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    check_ok(corral_quota_take(q, holder, 50 * MIB, CORRAL_KIND_DEVICE, "the next operation", &all, &err));
    clock_gettime(CLOCK_MONOTONIC, &b);
    longest_ns =
        CORRAL_MAX(longest_ns, (uint64_t)((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec));
    corral_quota_snapshot(q, &seen);
    assert_true(corral_ledger_consistent(&seen));
    assert_true(corral_ledger_tables_consistent(corral_quota_ledger(q)));
    assert_int_equal(seen.device[0].role[TRAINER].used, 50 * MIB);
    assert_int_equal(seen.device[0].role[TRAINER].booked, 0);
    assert_int_equal(seen.device[0].role[TRAINER].denied, 0);
    assert_int_equal(seen.device[0].steps_open, 0);
    corral_quota_drop(q, &all);
}

static void kill_at_each_point_of(operation_fn operation, bool *untraceable)
{
    int fd;
    uint32_t holder;
    struct corral_quota *q = test_node(&fd);
    check_ok(corral_quota_join(q, "a:0", "trainer", &holder, &err));
    uint64_t whole = kill_after(fd, operation, UINT64_MAX);
    *untraceable = whole == 0;
    if (whole > 0) {
        take_everything(q, holder);
        for (uint64_t i = 0; i <= STEPS_SAMPLED; i++) {
            kill_after(fd, operation, whole * i / STEPS_SAMPLED);
            take_everything(q, holder);
        }
        print_message(
            "%llu instructions, %u kills with the lock held; longest next operation so far %llu us\n",
            (unsigned long long)whole, corral_quota_repairs(q), (unsigned long long)(longest_ns / 1000));
    }
    corral_quota_detach(q);
    close(fd);
}

static void the_next_operation_gets_back_what_a_killed_process_had(void **state)
{
    (void)state;
    static const operation_fn operations[] = {takes, drops, opens_and_closes_a_step, exports, leaves};
    bool untraceable = false;
    for (size_t i = 0; i < CORRAL_COUNT_OF(operations) && !untraceable; i++) {
        kill_at_each_point_of(operations[i], &untraceable);
    }
    if (untraceable) {
        skip(); /* no ptrace in this container */
    }
}

/* ---- tables that the dead have filled ---- */

static void child_does(int fd, bool (*what)(struct corral_quota *q))
{
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine;
        _exit(corral_quota_attach(fd, &mine, NULL) == CORRAL_OK && what(mine) ? 0 : 1);
    }
    assert_int_equal(test_wait(child), 0);
}

static bool open_all_steps(struct corral_quota *q)
{
    uint32_t holder;
    bool ok = true;
    for (uint32_t i = 0; ok && i < CORRAL_LEDGER_STEPS_MAX; i++) {
        ok = corral_quota_join(q, "a:0", "trainer", &holder, NULL) == CORRAL_OK &&
             corral_quota_open_step(q, holder, 1, 0, NULL) == CORRAL_OK;
    }
    return ok;
}

static void steps_of_the_dead_do_not_keep_others_from_opening_one(void **state)
{
    (void)state;
    int fd;
    uint32_t holder;
    struct corral_quota *q = test_node(&fd);
    check_ok(corral_quota_join(q, "a:0", "trainer", &holder, &err));
    child_does(fd, open_all_steps);
    check_ok(corral_quota_open_step(q, holder, 1, 0, &err));
    corral_quota_detach(q);
    close(fd);
}

static const uint64_t shared_key[2] = {5, 6}, next_key[2] = {7, 8};

static bool import_until_full(struct corral_quota *q)
{
    uint32_t holder, share;
    if (corral_quota_join(q, "a:0", "rollout", &holder, NULL) != CORRAL_OK) {
        return false;
    }
    while (corral_quota_import(q, holder, shared_key, &share, NULL) == CORRAL_OK) {
    }
    return true;
}

static void shares_of_the_dead_do_not_keep_others_from_sharing(void **state)
{
    (void)state;
    int fd;
    uint32_t holder, share;
    struct corral_quota_charge charge;
    struct corral_quota *q = test_node(&fd);
    check_ok(corral_quota_join(q, "a:0", "trainer", &holder, &err));
    check_ok(corral_quota_take(q, holder, MIB, CORRAL_KIND_DEVICE, "weights", &charge, &err));
    check_ok(corral_quota_export(q, &charge, shared_key, &err));
    child_does(fd, import_until_full);
    check_ok(corral_quota_export(q, &charge, next_key, &err));
    child_does(fd, import_until_full);
    check_ok(corral_quota_import(q, holder, next_key, &share, &err));
    corral_quota_detach(q);
    close(fd);
}

static bool take_the_rollouts_all(struct corral_quota *q)
{
    uint32_t holder;
    return corral_quota_join(q, "a:0", "rollout", &holder, NULL) == CORRAL_OK &&
           corral_quota_reserve(q, holder, 50 * MIB, "all", NULL) == CORRAL_OK;
}

static void memory_of_the_dead_does_not_stand_in_the_way_of_new_limits(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    child_does(fd, take_the_rollouts_all);
    check_ok(corral_quota_change_limits(q, 0, ROLLOUT, 20 * MIB, 30 * MIB, &err));
    corral_quota_detach(q);
    close(fd);
}

int main(void)
{
#if defined(__SANITIZE_THREAD__)
    puts("the thread sanitizer's code is too much to step through one instruction at a time");
    return 77;
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_operation_gets_back_what_a_killed_process_had),
        cmocka_unit_test(steps_of_the_dead_do_not_keep_others_from_opening_one),
        cmocka_unit_test(shares_of_the_dead_do_not_keep_others_from_sharing),
        cmocka_unit_test(memory_of_the_dead_does_not_stand_in_the_way_of_new_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
