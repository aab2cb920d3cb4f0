/* Starting and watching child processes. A child dies with the process that started it (PDEATHSIG, checked for the race with an early death of the parent), is watched
 * through a pidfd, and can never be confused with a later process of the same pid. It inherits the standard descriptors and those named, nothing else. */
#ifndef CORRAL_ORCHESTRATOR_PROCESS_H
#define CORRAL_ORCHESTRATOR_PROCESS_H

#include "base/error.h"
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CORRAL_PROCESS_FDS_MAX 8
#define CORRAL_PROCESS_CGROUPS_MAX 4

struct corral_process_spec {
    const char *const *argv; /* argv[0] is shown */
    const char *
        program; /* NULL: this executable; a name without a slash is looked for in PATH, any other is relative to `folder` */
    const char *folder;     /* its current directory; NULL: as the parent */
    const char *const *env; /* "KEY=VALUE" to add or replace, "KEY" to take away */
    uint32_t env_count;
    int cgroup_fds
        [CORRAL_PROCESS_CGROUPS_MAX]; /* cgroup.procs files that the child enters; it does not start when it cannot */
    uint32_t cgroup_fd_count;
    uint64_t rlimit_data;            /* 0: as the parent */
    const char *log_path;            /* stdout and stderr are appended here; NULL: inherited */
    const cpu_set_t *cpus;           /* NULL: as the parent */
    int fds[CORRAL_PROCESS_FDS_MAX]; /* kept open in the child under the same numbers */
    uint32_t fd_count;
    bool new_group; /* its own process group, so that Ctrl-C reaches only the parent */
};

struct corral_process {
    pid_t pid; /* 0: none */
    int pidfd;
    uint64_t started_ns;
};

/* Whether the program and the folder of the spec are there; CORRAL_NOT_FOUND says which is not. Starting checks it, too. */
enum corral_status corral_process_check(const struct corral_process_spec *spec, struct corral_error *err);
enum corral_status corral_process_start(const struct corral_process_spec *spec, struct corral_process *out,
                                        struct corral_error *err);
/* Send a signal through the pidfd; a process that is already gone is fine. */
void corral_process_signal(const struct corral_process *p, int signo);
/* Reap it: exit code, or -signal. CORRAL_AGAIN while it runs and wait_ms has passed. Closes the pidfd when reaped. */
enum corral_status corral_process_wait(struct corral_process *p, uint32_t wait_ms, int *code,
                                       struct corral_error *err);
/* "exit code 1", "killed by SIGKILL", or what the process said of itself when the last line of its log is an error. One line of valid UTF-8. */
const char *corral_process_reason(int code, const char *log_path, char *out, size_t out_bytes);

#endif
