/* An engine rank that is killed and started again, as processes are: the new one takes the current version from the other engine while the trainer goes on publishing, and then the trainer's own. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/log.h"
#include "tests/weights/world.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LONG_NS (60 * CORRAL_NS_PER_S)
#define VICTIM 0u

static struct world *w;
static pid_t sender[SENDERS], receiver[RECEIVERS];
static uint64_t version;

static void nap(void)
{
    const struct timespec t = {.tv_nsec = 300000};
    (void)nanosleep(&t, NULL);
}

static pid_t fork_child(void)
{
    pid_t parent = getpid(), pid = fork();
    if (pid == 0 && (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)) {
        _exit(3);
    }
    assert_true(pid >= 0);
    return pid;
}

static void start_receiver(uint32_t i)
{
    receiver[i] = fork_child();
    if (receiver[i] == 0) {
        world_receive(w, i, "shm,tcp");
    }
}

/* One version, by every rank. */
static void publish(void)
{
    uint64_t end = corral_now_ns(&corral_clock_monotonic) + LONG_NS;
    atomic_store_explicit(&w->go, ++version, memory_order_release);
    for (uint32_t i = 0; i < SENDERS; i++) {
        while (atomic_load_explicit(&w->sender[i].done, memory_order_acquire) < version) {
            assert_true(corral_now_ns(&corral_clock_monotonic) < end);
            nap();
        }
    }
}

static bool has(uint32_t i, uint64_t wanted)
{
    return atomic_load_explicit(&w->receiver[i].version, memory_order_acquire) >= wanted;
}

/* Publishes until `done` says so. */
static void publish_until(bool (*done)(uint64_t), uint64_t argument)
{
    uint64_t end = corral_now_ns(&corral_clock_monotonic) + LONG_NS;
    while (!done(argument)) {
        assert_true(corral_now_ns(&corral_clock_monotonic) < end);
        publish();
        nap();
    }
}

static bool all_are_near(uint64_t behind)
{
    bool all = true;
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        all = all && version > 3 && has(i, version - behind);
    }
    return all;
}

static bool has_pulled(uint64_t at_least)
{
    return atomic_load_explicit(&w->receiver[VICTIM].pulls, memory_order_acquire) > 0 &&
           has(VICTIM, at_least);
}

static void a_killed_engine_process_pulls_the_current_version_while_the_trainer_goes_on(void **state)
{
    w->delta = *(bool *)*state;
    for (uint32_t i = 0; i < SENDERS; i++) {
        sender[i] = fork_child();
        if (sender[i] == 0) {
            world_send(w, i, 1, "shm,tcp", false);
        }
    }
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        start_receiver(i);
    }
    publish_until(all_are_near, 1);

    uint64_t before = version;
    atomic_store(&w->receiver[VICTIM].hidden, true); /* the trainer does not hear of the new process yet */
    kill(receiver[VICTIM], SIGKILL);
    assert_int_equal(waitpid(receiver[VICTIM], NULL, 0), receiver[VICTIM]);
    atomic_store(&w->receiver[VICTIM].version, 0);
    atomic_store(&w->pulls, true);
    start_receiver(VICTIM);
    publish_until(has_pulled, before);
    assert_true(version > before);
    assert_true(has(VICTIM + TP, before)); /* from whom it is */

    atomic_store(&w->receiver[VICTIM].hidden, false);
    publish_until(all_are_near, 1);
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        const struct world_receiver *r = &w->receiver[i];
        assert_true(r->reads > 0);
        assert_int_equal(r->torn + r->regressed + r->wrong, 0);
    }
}

static int setup(void **state)
{
    (void)state;
    version = 0;
    w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return w == MAP_FAILED;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < SENDERS + RECEIVERS; i++) {
        pid_t *pid = i < SENDERS ? &sender[i] : &receiver[i - SENDERS];
        if (*pid > 0) {
            kill(*pid, SIGKILL);
            (void)waitpid(*pid, NULL, 0);
        }
        *pid = 0;
    }
    return munmap(w, sizeof *w);
}

int main(void)
{
    static bool delta[2] = {false, true};
    const struct CMUnitTest tests[] = {
        {"a_killed_engine_process_pulls_the_current_version_while_the_trainer_goes_on",
         a_killed_engine_process_pulls_the_current_version_while_the_trainer_goes_on, setup, teardown,
         &delta[0]},
        {"and_with_deltas", a_killed_engine_process_pulls_the_current_version_while_the_trainer_goes_on,
         setup, teardown, &delta[1]},
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, -1, "restart_test"); /* who is dropped is the purpose */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
