#include "orchestrator/agent/tenant_main.h"
#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/agent/children.h"
#include "orchestrator/agent/tenant_log.h"
#include "orchestrator/process.h"
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KILL_ROUND_MS 20 /* between two looks at who is still there */
#define KILL_DEADLINE_MS \
    2000 /* a process that cannot be killed (stuck in the kernel) is left to the agent's groups */

#define LOG_LOOK_NS CORRAL_NS_PER_S

static bool reap_one(pid_t program, int *code, bool *ended)
{
    int status;
    pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) {
        return false;
    }
    if (pid == program) {
        *code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        *ended = true;
    }
    return true;
}

static bool has_children(void)
{
    siginfo_t info = {0};
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

static void kill_everybody(pid_t program, int *code, const sigset_t *signals)
{
    const struct timespec pause = {.tv_nsec = KILL_ROUND_MS * (long)CORRAL_NS_PER_MS};
    const uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + KILL_DEADLINE_MS * CORRAL_NS_PER_MS;
    bool ended = false;
    while (has_children() && corral_now_ns(&corral_clock_monotonic) < deadline) {
        (void)corral_children_kill(
            NULL, NULL); /* orphans become our children, so this reaches everybody in the end */
        (void)sigtimedwait(signals, NULL, &pause); /* SIGCHLD cuts it short */
        while (reap_one(program, code, &ended)) {
        }
    }
}

/* Until the program has ended, or has to. */
static void watch(pid_t program, int *code, const sigset_t *signals)
{
    uint64_t kill_at_ns = 0;
    bool ended = false, turns = true;
    while (!ended) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (kill_at_ns != 0 && now >= kill_at_ns) {
            return;
        }
        struct corral_error err;
        /* One that cannot be moved away is told of once: the line is in it. */
        if (turns &&
            corral_tenant_log_turn(STDOUT_FILENO, CORRAL_TENANT_LOG_BYTES_MAX, NULL, &err) != CORRAL_OK) {
            corral_log_warn("the tenant's log grows without limit", LOG_ERR(&err));
            turns = false;
        }
        uint64_t left = kill_at_ns != 0 ? CORRAL_MIN(kill_at_ns - now, LOG_LOOK_NS) : LOG_LOOK_NS;
        const struct timespec wait = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                                      .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
        int signo = sigtimedwait(signals, NULL, &wait);
        if (signo == SIGHUP) {
            return;
        }
        if (signo == SIGTERM && kill_at_ns == 0) {
            (void)kill(program, SIGTERM);
            kill_at_ns = now + CORRAL_TENANT_GRACE_MS * CORRAL_NS_PER_MS;
        }
        while (reap_one(program, code, &ended)) {
        }
    }
}

enum corral_status corral_tenant_main(const struct corral_tenant_arguments *arguments, int *code,
                                      struct corral_error *err)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &signals, NULL) != 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) != 0 ||
        prctl(PR_SET_PDEATHSIG, SIGHUP) !=
            0) { /* it was SIGKILL until here: an agent that died before has taken us along */
        return corral_fail_sys(err, errno, "watching over %s", arguments->argv[0]);
    }
    const struct corral_process_spec spec = {.argv = arguments->argv,
                                             .program = arguments->argv[0],
                                             .folder = arguments->folder,
                                             .rlimit_data = arguments->rlimit_data};
    struct corral_process program;
    CORRAL_TRY(corral_process_start(&spec, &program, err));
    int ended_as = -SIGKILL;
    watch(program.pid, &ended_as, &signals);
    kill_everybody(program.pid, &ended_as, &signals);
    close(program.pidfd);
    *code = ended_as;
    return CORRAL_OK;
}
