/* Throw-away children that run into a fence. They make system calls only: the parent may have threads, and its locks are nobody's in the child. */
#include "base/clock.h"
#include "base/text.h"
#include "quota/fences/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHILD_WAIT_MS 3000
#define KILL_WAIT_MS 2000
#define PAGE_BYTES 4096
#define SPIN_CPU_NS (12 * CORRAL_NS_PER_MS)
#define SPIN_PERIOD_US 10000
#define SPIN_QUOTA_US 2000

/* What the child says, a byte each, in this order. */
#define SAID_ENTERED 'e'
#define SAID_CPUS 'c'
#define SAID_SPUN 's'
#define SAID_WITHIN 'w' /* half of the memory limit was there */
#define SAID_ALLOCATED 'm'

static void say(int fd, char what)
{
    (void)!write(fd, &what, 1);
}

static bool sees_only(int cpu)
{
    cpu_set_t seen;
    return sched_getaffinity(0, sizeof seen, &seen) == 0 && CPU_COUNT(&seen) == 1 && CPU_ISSET(cpu, &seen);
}

/* Asks for every CPU there could be: a cpuset leaves what it has. */
static bool cannot_widen(int cpu)
{
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    (void)sched_setaffinity(0, sizeof all, &all);
    return sees_only(cpu);
}

static void spin(uint64_t cpu_ns)
{
    struct timespec t;
    do {
        (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    } while ((uint64_t)t.tv_sec * CORRAL_NS_PER_S + (uint64_t)t.tv_nsec < cpu_ns);
}

static void touch(uint64_t bytes)
{
    volatile char *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (uint64_t i = 0; memory != MAP_FAILED && i < bytes; i += PAGE_BYTES) {
        memory[i] = 1;
    }
}

static void probe_child(const struct fence_probe_want *want, const int *enter, uint32_t enter_count, int out)
{
    for (uint32_t i = 0; i < enter_count; i++) {
        if (write(enter[i], "0", 1) != 1) {
            _exit(1);
        }
    }
    say(out, SAID_ENTERED);
    if (want->cpuset && sees_only(want->cpu_number) && cannot_widen(want->cpu_number)) {
        say(out, SAID_CPUS);
    }
    if (want->cpu) {
        spin(SPIN_CPU_NS);
        say(out, SAID_SPUN);
    }
    if (want->memory) {
        touch(want->memory_bytes / 2);
        say(out, SAID_WITHIN);
        touch(3 * want->memory_bytes);
        say(out, SAID_ALLOCATED);
    }
    _exit(0);
}

/* The same for all that is still wanted. */
static void judge_all(struct fence_probe *p, enum corral_fence_state state, const char *why)
{
    if (p->want.memory) {
        p->memory = state;
        fence_text(p->why_memory, sizeof p->why_memory, "%s", why);
    }
    if (p->want.cpuset) {
        p->cpuset = state;
        fence_text(p->why_cpuset, sizeof p->why_cpuset, "%s", why);
    }
    if (p->want.cpu) {
        p->cpu = state;
        fence_text(p->why_cpu, sizeof p->why_cpu, "%s", why);
    }
}

static void set_limits(struct fence_probe *p, const struct cgroup_tree *t)
{
    struct fence_probe_want *w = &p->want;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)w->cpu_number, &one);
    w->memory = w->memory && cgroup_set_memory(t, p->group, w->memory_bytes, true, p->why_memory);
    w->cpuset = w->cpuset && cgroup_set_cpus(t, p->group, &one, p->why_cpuset);
    w->cpu = w->cpu && cgroup_set_cpu_share(t, p->group, SPIN_QUOTA_US, SPIN_PERIOD_US, p->why_cpu);
}

pid_t fence_fork(int *pidfd)
{
    pid_t parent = getpid();
    pid_t pid = _Fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1);
        }
        return 0;
    }
    if (pid > 0) {
        *pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (*pidfd < 0) {
            int error = errno;
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            errno = error;
            return -1;
        }
    }
    return pid;
}

void fence_probe_start(struct fence_probe *p, const struct cgroup_tree *t, const char *group,
                       const struct fence_probe_want *want)
{
    char why[FENCE_WHY_BYTES];
    int enter[4], out[2];
    *p = (struct fence_probe){.pidfd = -1, .pipe = -1, .want = *want};
    p->memory = p->cpuset = p->cpu = CORRAL_FENCE_ABSENT;
    fence_text(p->group, sizeof p->group, "%s", group);
    if (!cgroup_group_make(t, group, why)) {
        judge_all(p, CORRAL_FENCE_ABSENT, why);
        return;
    }
    set_limits(p, t);
    if (!p->want.memory && !p->want.cpuset && !p->want.cpu) {
        cgroup_group_remove(t, group);
        return;
    }
    if (pipe2(out, O_CLOEXEC | O_NONBLOCK) != 0) {
        judge_all(p, CORRAL_FENCE_ABSENT, strerror(errno));
        cgroup_group_remove(t, group);
        return;
    }
    uint32_t count = cgroup_enter_fds(t, group, enter);
    p->pid = fence_fork(&p->pidfd);
    if (p->pid == 0) {
        probe_child(&p->want, enter, count, out[1]);
    }
    int error = errno;
    while (count > 0) {
        close(enter[--count]);
    }
    close(out[1]);
    p->pipe = out[0];
    p->running = p->pid > 0;
    if (!p->running) {
        close(p->pipe);
        judge_all(p, CORRAL_FENCE_FAILED, strerror(error));
        cgroup_group_remove(t, group);
    }
}

static uint64_t child_deadline(void)
{
    return corral_now_ns(&corral_clock_monotonic) + CHILD_WAIT_MS * CORRAL_NS_PER_MS;
}

static int wait_for(struct pollfd *poller, uint64_t deadline)
{
    int ready;
    do {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        ready = poll(poller, 1, now >= deadline ? 0 : (int)((deadline - now) / CORRAL_NS_PER_MS) + 1);
    } while (ready < 0 && errno == EINTR);
    return ready;
}

/* One that a driver holds in the kernel cannot be killed: it is left behind, rather than waited for for ever. */
int fence_reap(pid_t pid, int pidfd, uint64_t deadline)
{
    struct pollfd poller = {.fd = pidfd, .events = POLLIN};
    int ready = wait_for(&poller, deadline);
    if (ready <= 0) {
        (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        (void)wait_for(&poller, corral_now_ns(&corral_clock_monotonic) + KILL_WAIT_MS * CORRAL_NS_PER_MS);
    }
    int status = 0;
    while (waitpid(pid, &status, ready <= 0 ? WNOHANG : 0) < 0 && errno == EINTR) {
    }
    close(pidfd);
    return ready <= 0 ? INT_MIN : WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void judge_memory(struct fence_probe *p, const struct cgroup_tree *t, const char *said, int code)
{
    char limit[48];
    corral_format_bytes(p->want.memory_bytes, limit, sizeof limit);
    bool stopped = code == -SIGKILL && strchr(said, SAID_WITHIN) && !strchr(said, SAID_ALLOCATED) &&
                   cgroup_count(t, CGROUP_MEMORY, p->group, "oom_kill") > 0;
    p->memory = stopped ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED;
    if (stopped) {
        fence_text(p->why_memory, sizeof p->why_memory,
                   "a process was granted half of its limit of %s and stopped at it", limit);
    } else if (code == INT_MIN) {
        fence_text(p->why_memory, sizeof p->why_memory, "a process over its limit of %s hung", limit);
    } else {
        fence_text(p->why_memory, sizeof p->why_memory,
                   "a process with a limit of %s %s (end: %d); the kernel does not hold the limit", limit,
                   strchr(said, SAID_ALLOCATED) ? "got three times as much" : "did not run into it", code);
    }
}

static void judge(struct fence_probe *p, const struct cgroup_tree *t, const char *said, int code)
{
    if (!strchr(said, SAID_ENTERED)) {
        char why[FENCE_WHY_BYTES];
        fence_text(why, sizeof why, "a process could not enter its group (end: %d)", code);
        judge_all(p, CORRAL_FENCE_FAILED, why);
        return;
    }
    if (p->want.cpuset) {
        bool ok = strchr(said, SAID_CPUS) != NULL;
        p->cpuset = ok ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED;
        fence_text(p->why_cpuset, sizeof p->why_cpuset,
                   ok ? "a process saw only CPU %d, as set, and could not widen it"
                      : "a process saw other CPUs than CPU %d",
                   p->want.cpu_number);
    }
    if (p->want.cpu) {
        bool ok = strchr(said, SAID_SPUN) && cgroup_count(t, CGROUP_CPU, p->group, "nr_throttled") > 0;
        p->cpu = ok ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED;
        fence_text(p->why_cpu, sizeof p->why_cpu, "%s",
                   ok ? "a process was held to 20 % of a CPU, as set"
                      : "a process was not held to 20 % of a CPU");
    }
    if (p->want.memory) {
        judge_memory(p, t, said, code);
    }
}

void fence_probe_finish(struct fence_probe *p, const struct cgroup_tree *t)
{
    char said[16] = "";
    if (!p->running) {
        return;
    }
    int code = fence_reap(p->pid, p->pidfd, child_deadline());
    ssize_t got = read(p->pipe, said, sizeof said - 1);
    said[got > 0 ? got : 0] = '\0';
    close(p->pipe);
    p->running = false;
    p->pidfd = p->pipe = -1;
    judge(p, t, said, code);
    cgroup_group_remove(t, p->group);
}

int fence_child(int (*fn)(void *ctx), void *ctx)
{
    int pidfd = -1;
    pid_t pid = fence_fork(&pidfd);
    if (pid == 0) {
        _exit(fn(ctx));
    }
    return pid < 0 ? INT_MIN : fence_reap(pid, pidfd, child_deadline());
}
