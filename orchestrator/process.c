#include "orchestrator/process.h"
#include "base/clock.h"
#include "base/json.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LAST_LINE_BYTES 4096
#define OPEN_FILES_MAX 4096 /* looked at one by one where the kernel has no close_range() */

/* Every descriptor above the standard ones closes when the program starts, however carelessly it was opened. */
static void close_all_on_exec(void)
{
    if (close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC) == 0) {
        return;
    }
    for (int fd = 3; fd < OPEN_FILES_MAX; fd++) {
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
}

/* Only async-signal-safe calls: the parent may have threads. */
static void become_child(const struct corral_process_spec *spec, pid_t parent, int log_fd)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(125); /* the parent died before the line above */
    }
    if (spec->new_group) {
        setpgid(0, 0);
    }
    if (spec->cpus) {
        (void)sched_setaffinity(0, sizeof *spec->cpus, spec->cpus);
    }
    close_all_on_exec();
    for (uint32_t i = 0; i < spec->fd_count; i++) {
        int flags = fcntl(spec->fds[i], F_GETFD);
        if (flags < 0 || fcntl(spec->fds[i], F_SETFD, flags & ~FD_CLOEXEC) != 0) {
            _exit(125);
        }
    }
    if (log_fd >= 0 && (dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0)) {
        _exit(125);
    }
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null_fd >= 0) {
        dup2(null_fd, 0);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv("/proc/self/exe", (char *const *)(uintptr_t)spec->argv);
    _exit(127);
}

enum corral_status corral_process_start(const struct corral_process_spec *spec, struct corral_process *out,
                                        struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int log_fd = -1;
    if (spec->log_path) {
        log_fd = open(spec->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (log_fd < 0) {
            return corral_fail_sys(err, errno, "opening %s", spec->log_path);
        }
    }
    pid_t parent = getpid();
    /* Not fork(): libraries' fork handlers (OpenBLAS joins its threads in one) have no business in a child that only executes. */
    pid_t pid = _Fork();
    if (pid < 0) {
        return corral_fail_sys(err, errno, "starting %s", spec->argv[1] ? spec->argv[1] : spec->argv[0]);
    }
    if (pid == 0) {
        become_child(spec, parent, log_fd);
    }
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        enum corral_status status = corral_fail_sys(err, errno, "watching process %d", pid);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return status;
    }
    (void)fcntl(pidfd, F_SETFD, FD_CLOEXEC);
    *out = (struct corral_process){
        .pid = pid, .pidfd = pidfd, .started_ns = corral_now_ns(&corral_clock_monotonic)};
    return CORRAL_OK;
}

void corral_process_signal(const struct corral_process *p, int signo)
{
    if (p->pid > 0) {
        (void)syscall(SYS_pidfd_send_signal, p->pidfd, signo, NULL, 0);
    }
}

enum corral_status corral_process_wait(struct corral_process *p, uint32_t wait_ms, int *code,
                                       struct corral_error *err)
{
    struct pollfd poller = {.fd = p->pidfd, .events = POLLIN};
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + wait_ms * CORRAL_NS_PER_MS;
    int ready;
    do {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        ready = poll(&poller, 1,
                     now >= deadline ? 0 : (int)CORRAL_MIN((deadline - now) / CORRAL_NS_PER_MS + 1, INT_MAX));
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) {
        return CORRAL_AGAIN;
    }
    if (ready < 0) {
        return corral_fail_sys(err, errno, "waiting for process %d", p->pid);
    }
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)p->pid, &info, WEXITED) != 0) {
        return corral_fail_sys(err, errno, "reaping process %d", p->pid);
    }
    *code = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
    close(p->pidfd);
    *p = (struct corral_process){.pidfd = -1};
    return CORRAL_OK;
}

/* The last non-empty line of a file, without its control characters. It is whatever the process wrote: not even text, perhaps. */
static void last_line(const char *path, char *out, size_t out_bytes)
{
    out[0] = 0;
    CORRAL_AUTO_CLOSE int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return;
    }
    off_t end = lseek(fd, 0, SEEK_END);
    off_t start = end > LAST_LINE_BYTES ? end - LAST_LINE_BYTES : 0;
    char text[LAST_LINE_BYTES];
    ssize_t n = pread(fd, text, sizeof text, start);
    while (n > 0 && (unsigned char)text[n - 1] <= ' ') {
        n--;
    }
    if (n <= 0) {
        return;
    }
    const char *before = memrchr(text, '\n', (size_t)n);
    const char *line = before ? before + 1 : text;
    size_t bytes = CORRAL_MIN((size_t)(text + n - line), out_bytes - 1);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)line[i];
        out[i] = c < 0x20 || c == 0x7f ? ' ' : line[i];
    }
    out[bytes] = 0;
}

/* What an error of our own log says: "TIME error WHAT…", or a JSON object. */
static bool error_said(const char *line, char *out, size_t out_bytes)
{
    if (line[0] != '{') {
        const char *level = strchr(line, ' ');
        bool is_error = level && strncmp(level, " error ", 7) == 0;
        snprintf(out, out_bytes, "%s", is_error ? level + 7 : "");
        return is_error;
    }
    json_t *root = json_loads(line, 0, NULL);
    const char *level = json_string_value(json_object_get(root, "level"));
    const char *event = json_string_value(json_object_get(root, "event"));
    const char *reason = json_string_value(json_object_get(root, "reason"));
    bool is_error = level && event && strcmp(level, "error") == 0;
    snprintf(out, out_bytes, "%s%s%s", is_error ? event : "", is_error && reason ? ": " : "",
             is_error && reason ? reason : "");
    json_decref(root);
    return is_error;
}

/* Reasons travel in messages and JSON files, which take valid UTF-8 only. */
static void replace_broken_characters(char *text)
{
    for (size_t i = 0; text[i];) {
        size_t length = 1;
        while ((text[i + length] & 0xc0) == 0x80 && length < 4) {
            length++;
        }
        json_t *valid = (unsigned char)text[i] < 0x80 ? NULL : json_stringn(text + i, length);
        if ((unsigned char)text[i] < 0x80) {
            length = 1;
        } else if (!valid) {
            memset(text + i, '?', length);
        }
        json_decref(valid);
        i += length;
    }
}

const char *corral_process_reason(int code, const char *log_path, char *out, size_t out_bytes)
{
    char line[1024], said[1024];
    last_line(log_path, line, sizeof line);
    if (code < 0) {
        const char *name = sigabbrev_np(-code);
        snprintf(out, out_bytes, "killed by SIG%s", name ? name : "?");
    } else if (code == 127) {
        snprintf(out, out_bytes, "its program could not be executed");
    } else if (code != 0 && error_said(line, said, sizeof said)) {
        snprintf(out, out_bytes, "%s", said);
        replace_broken_characters(out);
    } else {
        snprintf(out, out_bytes, "exit code %d", code);
    }
    return out;
}
