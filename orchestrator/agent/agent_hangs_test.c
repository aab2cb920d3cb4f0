/* When an agent takes a worker for hung. */
#include "base/clock.h"
#include "orchestrator/agent/agent_internal.h"
#include "tests/check.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECONDS(n) ((uint64_t)(n)*CORRAL_NS_PER_S)

static struct corral_agent *agent;
static struct corral_agent_worker *worker;
static struct corral_plan_worker plan;
static struct corral_board_slot *slot;
static struct corral_error err;

static int setup(void **state)
{
    (void)state;
    agent = calloc(1, sizeof *agent);
    agent->job = calloc(1, sizeof *agent->job);
    agent->job->fault.dead_after_ns = SECONDS(10);
    agent->job->fault.heartbeat_ns = CORRAL_NS_PER_S / 2;
    check_ok(corral_board_create(1, &agent->board_fd, &agent->board, &err));
    worker = &agent->worker[0];
    agent->worker_count = 1;
    snprintf(plan.worker.name, sizeof plan.worker.name, "trainer-0");
    worker->plan = &plan;
    slot = corral_board_slot(agent->board, 0);
    corral_board_enter(slot, CORRAL_ACTIVITY_WAIT_BATCH);
    worker->process.pid = fork();
    if (worker->process.pid == 0) {
        for (;;) {
            pause();
        }
    }
    worker->process.pidfd = (int)syscall(SYS_pidfd_open, worker->process.pid, 0);
    return worker->process.pidfd >= 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    kill(worker->process.pid, SIGKILL);
    waitpid(worker->process.pid, NULL, 0);
    close(worker->process.pidfd);
    corral_board_detach(agent->board);
    close(agent->board_fd);
    free(agent->job);
    free(agent);
    return 0;
}

/* The agent looked last, and the worker showed life last, so long ago. */
static void look_after(uint64_t agent_ns, uint64_t worker_ns)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    agent->check_ns = now - agent_ns;
    atomic_store(&slot->beat_ns, now - worker_ns);
    atomic_store(&slot->activity_ns, now - worker_ns);
    corral_agent_check_hangs(agent);
}

static void silence_that_the_agent_has_watched_is_a_hang(void **state)
{
    (void)state;
    int status;
    look_after(CORRAL_NS_PER_S / 2, SECONDS(9));
    assert_string_equal(worker->kill_reason, "");
    look_after(CORRAL_NS_PER_S / 2, SECONDS(11));
    assert_non_null(strstr(worker->kill_reason, "no sign of life for 11.0 s while waiting for batch"));
    assert_int_equal(waitpid(worker->process.pid, &status, 0), worker->process.pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* It may have been stopped with a lock that the worker waits for. */
static void silence_while_the_agent_was_stopped_is_not_counted(void **state)
{
    (void)state;
    look_after(SECONDS(4), SECONDS(11));
    assert_string_equal(worker->kill_reason, "");
    look_after(CORRAL_NS_PER_S / 2, SECONDS(12)); /* half a second later */
    assert_string_equal(worker->kill_reason, "");
    agent->back_ns -= SECONDS(11);
    look_after(CORRAL_NS_PER_S / 2, SECONDS(23));
    assert_string_not_equal(worker->kill_reason, "");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(silence_that_the_agent_has_watched_is_a_hang),
        T(silence_while_the_agent_was_stopped_is_not_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
