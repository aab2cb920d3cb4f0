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

/* ---- what they hold ---- */

struct family {
    pid_t pid, parent;
};

static uint64_t resident_of(const char *pid)
{
    char path[64];
    unsigned long long all = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%.20s/statm", pid);
    FILE *f = fopen(path, "re");
    bool read = f && fscanf(f, "%llu %llu", &all, &resident) == 2;
    if (f) {
        (void)fclose(f);
    }
    return read ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static struct family *read_processes(uint32_t *count)
{
    uint32_t room = 0;
    struct family *all = NULL;
    DIR *d = opendir("/proc");
    *count = 0;
    for (const struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        pid_t pid = isdigit((unsigned char)e->d_name[0]) ? (pid_t)atoi(e->d_name) : 0;
        pid_t parent = pid > 0 ? parent_of(e->d_name) : 0;
        if (parent <= 0) {
            continue;
        }
        if (*count == room) {
            struct family *grown = realloc(all, (room = room ? room * 2 : 256) * sizeof *all);
            if (!grown) {
                break;
            }
            all = grown;
        }
        all[(*count)++] = (struct family){.pid = pid, .parent = parent};
    }
    if (d) {
        (void)closedir(d);
    }
    return all;
}

static int by_pid(const void *a, const void *b)
{
    const struct family *x = a, *y = b;
    return (x->pid > y->pid) - (x->pid < y->pid);
}

/* Which of the roots the process is below; `roots`: none. The way up is bounded: the list is of several moments, and may have a circle. */
static uint32_t root_of(const struct family *all, uint32_t count, pid_t pid, const pid_t *root,
                        uint32_t roots)
{
    for (uint32_t steps = 0; pid > 0 && steps < count; steps++) {
        for (uint32_t i = 0; i < roots; i++) {
            if (pid == root[i]) {
                return i;
            }
        }
        const struct family key = {.pid = pid};
        const struct family *found = bsearch(&key, all, count, sizeof *all, by_pid);
        pid = found ? found->parent : 0;
    }
    return roots;
}

void corral_children_resident(const pid_t *root, uint32_t roots, uint64_t *bytes)
{
    uint32_t count;
    struct family *all = read_processes(&count);
    memset(bytes, 0, roots * sizeof *bytes);
    if (all) {
        qsort(all, count, sizeof *all, by_pid);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = root_of(all, count, all[i].pid, root, roots);
        if (at < roots) {
            char pid[24];
            snprintf(pid, sizeof pid, "%d", (int)all[i].pid);
            bytes[at] += resident_of(pid);
        }
    }
    free(all);
}
