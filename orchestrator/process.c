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
#include <sys/resource.h>
#include <sys/stat.h>
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

/* What is made ready before the fork: the child only makes system calls. */
struct start {
    const char *program; /* path */
    char *const *env;
    int log_fd;
    pid_t parent;
};

/* Told in the log the way our own programs tell an error, so that it is found as the reason of the exit. */
static _Noreturn void refuse(const char *line)
{
    (void)!write(2, line, strlen(line));
    _exit(125);
}

static void enter_limits(const struct corral_process_spec *spec)
{
    for (uint32_t i = 0; i < spec->cgroup_fd_count; i++) {
        if (write(spec->cgroup_fds[i], "0", 1) != 1) {
            refuse("- error it could not enter its control group\n");
        }
    }
    const struct rlimit limit = {.rlim_cur = spec->rlimit_data, .rlim_max = spec->rlimit_data};
    if (spec->rlimit_data != 0 && setrlimit(RLIMIT_DATA, &limit) != 0) {
        refuse("- error its memory limit (RLIMIT_DATA) could not be set\n");
    }
}

/* Only async-signal-safe calls: the parent may have threads. */
static void become_child(const struct corral_process_spec *spec, const struct start *start)
{
    const pid_t parent = start->parent;
    const int log_fd = start->log_fd;
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
    if (log_fd >= 0 && (dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0)) {
        _exit(125);
    }
    enter_limits(spec);
    close_all_on_exec();
    for (uint32_t i = 0; i < spec->fd_count; i++) {
        int flags = fcntl(spec->fds[i], F_GETFD);
        if (flags < 0 || fcntl(spec->fds[i], F_SETFD, flags & ~FD_CLOEXEC) != 0) {
            _exit(125);
        }
    }
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null_fd >= 0) {
        dup2(null_fd, 0);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (spec->program) {
        (void)signal(SIGPIPE, SIG_DFL); /* ours is ignored, which would be inherited */
    }
    if (spec->folder && chdir(spec->folder) != 0) {
        refuse("- error its folder cannot be entered\n");
    }
    execve(start->program, (char *const *)(uintptr_t)spec->argv, start->env);
    _exit(127);
}

static bool is_program(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* The path that the child executes, in `out`. */
static enum corral_status find_program(const struct corral_process_spec *spec, char out[PATH_MAX],
                                       struct corral_error *err)
{
    if (!spec->program) {
        strcpy(out, "/proc/self/exe");
        return CORRAL_OK;
    }
    if (strchr(spec->program, '/')) {
        bool below = spec->program[0] != '/' && spec->folder;
        int n = snprintf(out, PATH_MAX, "%s%s%s", below ? spec->folder : "", below ? "/" : "", spec->program);
        return n < PATH_MAX && is_program(out)
                   ? CORRAL_OK
                   : corral_fail(err, CORRAL_NOT_FOUND, "%s is no program that can be executed",
                                 spec->program);
    }
    const char *path = getenv("PATH");
    for (const char *p = path ? path : "/usr/bin:/bin"; *p;) {
        size_t length = strcspn(p, ":");
        int n = snprintf(out, PATH_MAX, "%.*s/%s", (int)length, p, spec->program);
        if (length > 0 && p[0] == '/' && n < PATH_MAX && is_program(out)) {
            return CORRAL_OK;
        }
        p += length + (p[length] == ':');
    }
    return corral_fail(err, CORRAL_NOT_FOUND, "there is no program %s in PATH", spec->program);
}

static enum corral_status check_start(const struct corral_process_spec *spec, char program[PATH_MAX],
                                      struct corral_error *err)
{
    struct stat st;
    if (spec->folder && (stat(spec->folder, &st) != 0 || !S_ISDIR(st.st_mode))) {
        return corral_fail(err, CORRAL_NOT_FOUND, "there is no folder %s", spec->folder);
    }
    return find_program(spec, program, err);
}

enum corral_status corral_process_check(const struct corral_process_spec *spec, struct corral_error *err)
{
    char program[PATH_MAX];
    return check_start(spec, program, err);
}

/* Whether "KEY=…" is of the same variable as "KEY=…" or "KEY". */
static bool same_key(const char *a, const char *b)
{
    size_t length = strcspn(b, "=");
    return strncmp(a, b, length) == 0 && (a[length] == '=' || a[length] == '\0');
}

/* Our environment with the changes of the spec; a later one wins. The strings are borrowed. */
static enum corral_status make_environment(const struct corral_process_spec *spec, const char ***out,
                                           struct corral_error *err)
{
    size_t count = 0, kept = 0;
    while (environ[count]) {
        count++;
    }
    const char **env = calloc(count + spec->env_count + 1, sizeof *env);
    if (!env) {
        return corral_fail(err, CORRAL_NOMEM, "starting %s: no room for its environment", spec->argv[0]);
    }
    for (size_t i = 0; i < count + spec->env_count; i++) {
        const char *entry = i < count ? environ[i] : spec->env[i - count];
        bool replaced = i >= count && !strchr(entry, '=');
        for (size_t k = i < count ? 0 : i - count + 1; k < spec->env_count && !replaced; k++) {
            replaced = same_key(entry, spec->env[k]);
        }
        if (!replaced) {
            env[kept++] = entry;
        }
    }
    *out = env;
    return CORRAL_OK;
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
    char program[PATH_MAX];
    CORRAL_AUTO_FREE const char **env = NULL;
    CORRAL_TRY(check_start(spec, program, err));
    CORRAL_TRY(make_environment(spec, &env, err));
    const struct start start = {
        .program = program, .env = (char *const *)(uintptr_t)env, .log_fd = log_fd, .parent = getpid()};
    /* Not fork(): libraries' fork handlers (OpenBLAS joins its threads in one) have no business in a child that only executes. */
    pid_t pid = _Fork();
    if (pid < 0) {
        return corral_fail_sys(err, errno, "starting %s", spec->argv[1] ? spec->argv[1] : spec->argv[0]);
    }
    if (pid == 0) {
        become_child(spec, &start);
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

/* `WHAT reason "WHY"`, as our log writes it, is told as `WHAT: WHY`. */
static void unquote_reason(char *said)
{
    static const char mark[] = " reason \"";
    char *at = strstr(said, mark), *end = said + strlen(said);
    const char *from = at ? at + sizeof mark - 1 : NULL;
    if (!at || from >= end || end[-1] != '"') {
        return;
    }
    *at++ = ':';
    *at++ = ' ';
    for (; from < end - 1; from++) {
        from += from[0] == '\\' && (from[1] == '"' || from[1] == '\\') && from + 1 < end - 1;
        *at++ = *from;
    }
    *at = 0;
}

/* What an error of our own log says: "TIME error WHAT…", or a JSON object. */
static bool error_said(const char *line, char *out, size_t out_bytes)
{
    if (line[0] != '{') {
        const char *level = strchr(line, ' ');
        bool is_error = level && strncmp(level, " error ", 7) == 0;
        snprintf(out, out_bytes, "%s", is_error ? level + 7 : "");
        unquote_reason(out);
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
