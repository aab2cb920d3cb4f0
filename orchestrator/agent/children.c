#include "orchestrator/agent/children.h"
#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The parent of a process that has not ended, from /proc/PID/stat: "PID (NAME) STATE PPID …"; the name may hold anything. 0: ended. */
static pid_t parent_of(const char *pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) {
        (void)fclose(f);
    }
    text[n] = '\0';
    const char *end = strrchr(text, ')');
    int parent = 0;
    char state = 'Z';
    return end && sscanf(end + 1, " %c %d", &state, &parent) == 2 && state != 'Z' ? parent : 0;
}

uint32_t corral_children_kill(corral_children_keep_fn keep, void *ctx)
{
    uint32_t count = 0;
    DIR *d = opendir("/proc");
    if (!d) {
        return 0;
    }
    for (const struct dirent *e = readdir(d); e; e = readdir(d)) {
        pid_t pid = isdigit((unsigned char)e->d_name[0]) ? (pid_t)atoi(e->d_name) : 0;
        if (pid > 0 && parent_of(e->d_name) == getpid() && !(keep && keep(ctx, pid))) {
            (void)kill(pid, SIGKILL); /* a child of ours: nobody else can have its number before we reap it */
            count++;
        }
    }
    (void)closedir(d);
    return count;
}

void corral_children_reap(corral_children_keep_fn keep, void *ctx)
{
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0 ||
            (keep && keep(ctx, info.si_pid))) {
            return; /* one that is kept hides those behind it until its own watcher has reaped it */
        }
        (void)waitpid(info.si_pid, NULL, WNOHANG);
    }
}
