/* rlctl stop: ask a run's coordinator to end it in order, wait until it has, and see to it that nothing is left. */
#include "base/clock.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TIMEOUT_S 30
#define TIMEOUT_S_MAX 86400
/* After SIGKILL of the coordinator the kernel kills the rest at once; this is for slow exits (large memory, core dumps). */
#define AFTER_KILL_MS 10000
#define PROCESSES_MAX 4096

static void help(void)
{
    printf("Usage: rlctl stop [RUN] [--timeout SECONDS] [--dir DIR] [--json]\n\n"
           "Ends a run in order: the trainers write a checkpoint, everybody stops. Waits until it has ended; "
           "what does not\n"
           "end in time is killed.\n"
           "RUN is a run's id, the beginning of one, its folder, or \"last\" or nothing for the newest.\n\n"
           "      --timeout SECONDS  how long to wait before killing it (default: %d)\n"
           "      --dir DIR          where runs are (default: runs)\n"
           "  -j, --json             the result as JSON\n"
           "  -h, --help             this text\n\n"
           "Exit code: 0 it ended or was not running, 1 it had to be killed or could not be stopped, 2 no "
           "such run.\n\n"
           "Examples:\n"
           "  rlctl stop\n"
           "  rlctl stop 7f3a --timeout 60\n",
           TIMEOUT_S);
}

/* The run's processes on this machine, held by pidfds. */
struct processes {
    int *fd;
    pid_t *pid;
    size_t count;
};

static bool link_is(pid_t pid, const char *which, const char *wanted)
{
    char path[64], target[CORRAL_RUN_PATH_MAX];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, which);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n <= 0) {
        return false;
    }
    target[n] = '\0';
    return strcmp(target, wanted) == 0;
}

static bool read_exe(pid_t pid, char out[CORRAL_RUN_PATH_MAX])
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
    ssize_t n = readlink(path, out, CORRAL_RUN_PATH_MAX - 1);
    out[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* Every process of a run has the run folder as its current directory and runs the same program. */
static void find_processes(struct processes *p, const char *run_path, const char *exe)
{
    DIR *d = opendir("/proc");
    for (struct dirent *e = d ? readdir(d) : NULL; e && p->count < PROCESSES_MAX; e = readdir(d)) {
        uint64_t number;
        if (!isdigit((unsigned char)e->d_name[0]) || !corral_parse_u64(e->d_name, &number) ||
            number > INT32_MAX) {
            continue;
        }
        pid_t pid = (pid_t)number;
        int fd = pid == getpid() ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
        if (fd < 0) {
            continue;
        }
        /* Looked at after the pidfd was opened: it is this process and no other. */
        if (link_is(pid, "cwd", run_path) && link_is(pid, "exe", exe)) {
            p->fd[p->count] = fd;
            p->pid[p->count++] = pid;
        } else {
            close(fd);
        }
    }
    if (d) {
        closedir(d);
    }
}

static void processes_free(struct processes *p)
{
    for (size_t i = 0; i < p->count; i++) {
        close(p->fd[i]);
    }
    free(p->fd);
    free(p->pid);
}

/* True when the process behind the pidfd is gone before the deadline. */
static bool wait_gone(int pidfd, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        uint64_t left_ms =
            now < deadline_ns ? (deadline_ns - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS : 0;
        struct pollfd fd = {.fd = pidfd, .events = POLLIN};
        int n = poll(&fd, 1, (int)CORRAL_MIN(left_ms, (uint64_t)INT32_MAX));
        if (n > 0) {
            return true;
        }
        if ((n < 0 && errno != EINTR) || left_ms == 0) {
            return false;
        }
    }
}

static uint64_t deadline_after_ms(uint64_t ms)
{
    return corral_now_ns(&corral_clock_monotonic) + ms * CORRAL_NS_PER_MS;
}

static enum corral_status send_signal(int pidfd, int signo, pid_t pid, struct corral_error *err)
{
    if (syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, 0) == 0 || errno == ESRCH) {
        return CORRAL_OK;
    }
    return corral_fail_sys(err, errno, "signalling the run's process %d", (int)pid);
}

/* The coordinator first; its children die with it (PDEATHSIG). Who is still there after a while gets its own. */
static enum corral_status kill_all(const char *path, int pidfd, pid_t pid, struct corral_error *err)
{
    char exe[CORRAL_RUN_PATH_MAX];
    CORRAL_CLEANUP(processes_free)
    struct processes p = {.fd = calloc(PROCESSES_MAX, sizeof(int)),
                          .pid = calloc(PROCESSES_MAX, sizeof(pid_t))};
    if (!p.fd || !p.pid) {
        return corral_fail(err, CORRAL_NOMEM, "stopping %s", path);
    }
    if (read_exe(pid, exe)) {
        find_processes(&p, path, exe);
    }
    CORRAL_TRY(send_signal(pidfd, SIGKILL, pid, err));
    uint64_t deadline = deadline_after_ms(AFTER_KILL_MS);
    if (!wait_gone(pidfd, deadline)) {
        return corral_fail(err, CORRAL_TIMEOUT,
                           "process %d does not die of SIGKILL: the kernel is busy with it", (int)pid);
    }
    for (size_t i = 0; i < p.count; i++) {
        if (!wait_gone(p.fd[i], deadline)) {
            CORRAL_TRY(send_signal(p.fd[i], SIGKILL, p.pid[i], err));
            if (!wait_gone(p.fd[i], deadline_after_ms(1000))) {
                return corral_fail(err, CORRAL_TIMEOUT, "process %d outlives its run's coordinator",
                                   (int)p.pid[i]);
            }
        }
    }
    return CORRAL_OK;
}

struct result {
    bool was_running, killed;
    uint64_t waited_ns;
};

static enum corral_status stop(const char *path, uint64_t timeout_s, struct result *r,
                               struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int pidfd = -1;
    pid_t pid = 0;
    CORRAL_TRY(corral_run_view_coordinator(path, &pidfd, &pid, err));
    if (pidfd < 0) {
        return CORRAL_OK;
    }
    r->was_running = true;
    uint64_t began = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(send_signal(pidfd, SIGTERM, pid, err));
    if (!wait_gone(pidfd, deadline_after_ms(timeout_s * 1000))) {
        fprintf(stderr, "rlctl stop: not over after %" PRIu64 " s (--timeout); killing it\n", timeout_s);
        r->killed = true;
        CORRAL_TRY(kill_all(path, pidfd, pid, err));
    }
    r->waited_ns = corral_now_ns(&corral_clock_monotonic) - began;
    return CORRAL_OK;
}

static int print_json(const struct corral_run_view *v, const struct result *r)
{
    struct corral_error err;
    json_t *root =
        json_pack("{s:s, s:s, s:b, s:b, s:s, s:s, s:I}", "run", v->id, "path", v->path, "was_running",
                  r->was_running, "killed", r->killed, "state", corral_run_view_state(v), "reason",
                  corral_run_view_reason(v), "checkpoint_step", (json_int_t)v->checkpoint_step);
    enum corral_status status = corral_json_print(stdout, root, &err);
    json_decref(root);
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}

static int print_text(const struct corral_run_view *v, const struct result *r)
{
    char waited[32], plain[512];
    const char *state = corral_run_view_state(v), *reason = corral_run_view_reason(v);
    corral_format_duration(r->waited_ns, waited, sizeof waited);
    if (!r->was_running) {
        printf("run %s is not running: %s", v->id, state);
    } else if (r->killed) {
        printf("run %s was killed after %s, and nothing of it is left", v->id, waited);
    } else {
        printf("run %s ended in %s: %s", v->id, waited, state);
    }
    bool same = strncmp(reason, state, strlen(state)) == 0; /* not "stopped, stopped by ..." */
    printf("%s%s\n", same || !reason[0] ? "" : ", ",
           corral_view_plain(same ? reason + strlen(state) : reason, plain, sizeof plain));
    if (v->checkpoint_step) {
        printf("checkpoint of step %" PRIu64 "; go on with `rlctl resume %s`\n", v->checkpoint_step, v->id);
    } else if (r->was_running) {
        printf("no checkpoint yet; `rlctl resume %s` begins again\n", v->id);
    }
    return cli_flush();
}

struct arguments {
    const char *dir;
    uint64_t timeout_s;
    bool json;
};

/* Returns an exit code, or -1 to go on. */
static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {{"dir", required_argument, NULL, 'd'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            a->dir = optarg;
            break;
        case 't':
            if (!corral_parse_u64(optarg, &a->timeout_s) || a->timeout_s > TIMEOUT_S_MAX) {
                return corral_cli_usage("stop", "--timeout wants whole seconds up to %d, not `%s`",
                                        TIMEOUT_S_MAX, optarg);
            }
            break;
        case 'j':
            a->json = true;
            break;
        case 'h':
            help();
            return cli_flush();
        default:
            return corral_cli_usage("stop", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind > 1) {
        return corral_cli_usage("stop", "one run at a time");
    }
    return -1;
}

int corral_cmd_stop(int argc, char **argv)
{
    struct arguments a = {.dir = "runs", .timeout_s = TIMEOUT_S};
    int code = parse(argc, argv, &a);
    if (code >= 0) {
        return code;
    }
    struct corral_error err;
    char path[CORRAL_RUN_PATH_MAX];
    struct result result = {.was_running = false};
    if (corral_run_folder_find(a.dir, optind < argc ? argv[optind] : NULL, path, &err) != CORRAL_OK ||
        stop(path, a.timeout_s, &result, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    CORRAL_CLEANUP(corral_run_view_free) struct corral_run_view view;
    corral_run_view_read(&view, path);
    code = a.json ? print_json(&view, &result) : print_text(&view, &result);
    return code == CORRAL_EXIT_DONE && result.killed ? CORRAL_EXIT_FAILED : code;
}
