#include "rollout/env_host/process_child.h"
#include "base/clock.h"
#include "base/sync.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SPINS = 200,
    LIFE_CHECK_MS = 10, /* how soon a crash is noticed when nothing else wakes the parent */
    QUIT_MS = 2000,
};

/* ---- the child's life ---- */

static void describe_death(const struct corral_process *p, int wstatus, const char *doing,
                           struct corral_error *err)
{
    if (WIFSIGNALED(wstatus)) {
        corral_fail(err, CORRAL_INFRA, "environment %s: its process died of signal %d (%s) in %s", p->base.id,
                    WTERMSIG(wstatus), strsignal(WTERMSIG(wstatus)), doing);
    } else {
        corral_fail(err, CORRAL_INFRA, "environment %s: its process died with exit status %d in %s",
                    p->base.id, WEXITSTATUS(wstatus), doing);
    }
}

static void release_charges(struct corral_process *p)
{
    for (uint32_t i = 0; i < CORRAL_PROCESS_CHARGES_MAX; i++) {
        if (p->charges[i].memory != NULL) {
            corral_release(p->memory, p->charges[i].memory, p->charges[i].bytes);
            p->charges[i].memory = NULL;
        }
    }
}

static void forget_child(struct corral_process *p)
{
    if (p->pidfd >= 0) {
        close(p->pidfd);
    }
    p->pidfd = -1;
    p->pid = 0;
    release_charges(p);
}

/* True when the child has ended; it is reaped then. A program that reaps all children itself leaves us ECHILD. */
static bool child_ended(struct corral_process *p, int *wstatus)
{
    *wstatus = 0;
    pid_t got;
    while ((got = waitpid(p->pid, wstatus, WNOHANG)) < 0 && errno == EINTR) {
    }
    return got != 0;
}

/* Through the pidfd, so that a number that has been given to another process meanwhile is never hit. */
void corral_process_kill(struct corral_process *p)
{
    if (p->pid == 0) {
        return;
    }
    if (syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0) == 0) {
        int wstatus;
        while (waitpid(p->pid, &wstatus, 0) < 0 && errno == EINTR) {
        }
    } else {
        int wstatus;
        (void)child_ended(p, &wstatus);
    }
    forget_child(p);
}

static int add_actions(const struct corral_process *p, posix_spawn_file_actions_t *actions)
{
    int rc = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(actions, p->shared, CORRAL_PROCESS_FD_SHARED);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(actions, p->snapshot, CORRAL_PROCESS_FD_SNAPSHOT);
    return rc ? rc : posix_spawn_file_actions_adddup2(actions, p->parent_fd, CORRAL_PROCESS_FD_PARENT);
}

enum corral_status corral_process_spawn(struct corral_process *p, struct corral_error *err)
{
    char *const argv[] = {p->program, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    pid_t pid = 0;
    int rc = add_actions(p, &actions);
    rc = rc ? rc : posix_spawn(&pid, p->program, &actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    if (rc != 0) {
        return corral_fail_sys(err, rc, "cannot start %s", p->program);
    }
    p->pid = pid;
    p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (p->pidfd < 0) {
        int code = errno;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        p->pid = 0;
        return corral_fail_sys(err, code, "cannot watch the environment process");
    }
    return CORRAL_OK;
}

/* ---- commands ---- */

static bool grant_charge(struct corral_process *p, uint64_t bytes)
{
    for (uint32_t i = 0; i < CORRAL_PROCESS_CHARGES_MAX; i++) {
        if (p->charges[i].memory == NULL) {
            p->charges[i].bytes = bytes;
            return corral_alloc(p->memory, bytes, "environment", &p->charges[i].memory, NULL) == CORRAL_OK;
        }
    }
    return false;
}

static void return_charge(struct corral_process *p, uint64_t bytes)
{
    for (uint32_t i = 0; i < CORRAL_PROCESS_CHARGES_MAX; i++) {
        if (p->charges[i].memory != NULL && p->charges[i].bytes == bytes) {
            corral_release(p->memory, p->charges[i].memory, bytes);
            p->charges[i].memory = NULL;
            return;
        }
    }
}

static void serve_request(struct corral_process *p)
{
    struct corral_process_control *control = p->control;
    uint32_t what =
        atomic_exchange_explicit(&control->request, CORRAL_PROCESS_ASK_NOTHING, memory_order_acquire);
    if (what == CORRAL_PROCESS_ASK_NOTHING) {
        return;
    }
    uint64_t bytes = control->request_bytes;
    bool granted = true;
    if (p->charges_real && what == CORRAL_PROCESS_ASK_CHARGE) {
        granted = bytes <= PTRDIFF_MAX && grant_charge(p, bytes);
    } else if (p->charges_real && what == CORRAL_PROCESS_ASK_RELEASE) {
        return_charge(p, bytes);
    }
    control->granted = granted;
    /* release: pairs with the child's acquire load of answer */
    atomic_fetch_add_explicit(&control->answer, 1, memory_order_release);
    corral_futex_wake_all(&control->answer);
}

/* Wait until the child is done with command `sequence`. OK, INFRA (it died; forgotten) or TIMEOUT (it still runs). */
static enum corral_status await_done(struct corral_process *p, uint32_t sequence, uint64_t deadline,
                                     const char *doing, struct corral_error *err)
{
    struct corral_process_control *control = p->control;
    for (uint64_t round = 0;; round++) {
        /* acquire: pairs with the child's release of event, which makes its results visible */
        uint32_t event = atomic_load_explicit(&control->event, memory_order_acquire);
        serve_request(p);
        if (atomic_load_explicit(&control->done, memory_order_relaxed) == sequence) {
            return CORRAL_OK;
        }
        if (round < SPINS) {
            continue;
        }
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (now >= deadline) {
            return CORRAL_TIMEOUT;
        }
        if (corral_futex_wait(&control->event, event,
                              CORRAL_MIN(deadline, now + LIFE_CHECK_MS * CORRAL_NS_PER_MS))) {
            continue;
        }
        int wstatus;
        if (child_ended(p, &wstatus)) {
            forget_child(p);
            describe_death(p, wstatus, doing, err);
            return CORRAL_INFRA;
        }
    }
}

static uint32_t post(struct corral_process *p, enum corral_process_op op)
{
    p->control->op = op;
    uint32_t sequence = ++p->sequence;
    /* release: pairs with the child's acquire load of command */
    atomic_store_explicit(&p->control->command, sequence, memory_order_release);
    corral_futex_wake_all(&p->control->command);
    return sequence;
}

enum corral_status corral_process_command(struct corral_process *p, enum corral_process_op op,
                                          uint32_t extra_ms, const char *doing, struct corral_error *err)
{
    uint64_t deadline =
        corral_now_ns(&corral_clock_monotonic) + ((uint64_t)p->step_timeout_ms + extra_ms) * CORRAL_NS_PER_MS;
    enum corral_status status = await_done(p, post(p, op), deadline, doing, err);
    if (status == CORRAL_TIMEOUT) {
        corral_process_kill(p);
        return corral_fail(err, CORRAL_INFRA,
                           "environment %s: its process hung in %s for %u ms and was killed", p->base.id,
                           doing, p->step_timeout_ms + extra_ms);
    }
    return status;
}

void corral_process_quit(struct corral_process *p)
{
    if (p->pid == 0) {
        return;
    }
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + QUIT_MS * CORRAL_NS_PER_MS;
    (void)post(p, CORRAL_PROCESS_QUIT);
    while (p->pid != 0 && corral_now_ns(&corral_clock_monotonic) < deadline) {
        struct pollfd exit_seen = {.fd = p->pidfd, .events = POLLIN};
        int wstatus;
        serve_request(p); /* the plug-in gives its memory back while it is destroyed */
        if (poll(&exit_seen, 1, 1) > 0 && child_ended(p, &wstatus)) {
            forget_child(p);
        }
    }
    corral_process_kill(p);
}
