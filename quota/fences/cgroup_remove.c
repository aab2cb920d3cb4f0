/* Removing groups with all that is in them, and finding those whose run is gone. */
#include "base/clock.h"
#include "base/file.h"
#include "quota/fences/internal.h"
#include "quota/process.h"
#include "quota/shared.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REMOVE_WAIT_NS (UINT64_C(3) * CORRAL_NS_PER_S)
#define DEPTH_MAX 16
#define FOLDERS_MAX 20000
#define PIDS_FILE_BYTES_MAX ((size_t)1 << 20)
#define NAME_PREFIX "corral-"

/* ---- killing ---- */

static char *read_procs(const char *path)
{
    char file[FENCE_PATH_BYTES + 64];
    char *text = NULL;
    size_t bytes;
    fence_text(file, sizeof file, "%s/cgroup.procs", path);
    return corral_file_read(file, PIDS_FILE_BYTES_MAX, &text, &bytes, NULL) == CORRAL_OK ? text : NULL;
}

static bool has_pid(const char *path, long pid)
{
    CORRAL_AUTO_FREE char *text = read_procs(path);
    for (char *at = text; at && *at;) {
        char *end;
        if (strtol(at, &end, 10) == pid) {
            return true;
        }
        at = *end == '\n' ? end + 1 : NULL;
    }
    return false;
}

static void wait_end(int pidfd, uint64_t deadline)
{
    struct pollfd poller = {.fd = pidfd, .events = POLLIN};
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (now < deadline) {
        (void)poll(&poller, 1, (int)((deadline - now) / CORRAL_NS_PER_MS) + 1);
    }
}

/* A pid in the list may be of another process by the time it is signalled. The descriptor names one process for good; that it is in the group is looked up after it was opened. False: out of reach. */
static bool kill_one(const char *path, long pid, uint64_t deadline)
{
    if (pid <= 1 || pid == getpid()) {
        return false; /* 0: a process of another pid namespace, out of our reach */
    }
    CORRAL_AUTO_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (pidfd < 0 || !has_pid(path, pid)) {
        return true;
    }
    if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) != 0) {
        return errno == ESRCH;
    }
    wait_end(pidfd, deadline);
    return true;
}

static void kill_all(const char *path, uint64_t deadline)
{
    char file[FENCE_PATH_BYTES + 64];
    fence_text(file, sizeof file, "%s/cgroup.kill", path);
    CORRAL_AUTO_CLOSE int kill_fd = open(file, O_WRONLY | O_CLOEXEC);
    if (kill_fd >= 0) {
        (void)!write(kill_fd, "1", 1);
    }
    /* One that forks faster than it is killed is caught in a later round. */
    do {
        CORRAL_AUTO_FREE char *text = read_procs(path);
        char *save = NULL;
        bool reached = false;
        for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line;
             line = strtok_r(NULL, "\n", &save)) {
            reached = kill_one(path, strtol(line, NULL, 10), deadline) || reached;
        }
        if (!reached) {
            return; /* nobody left, or nobody that we can reach */
        }
    } while (corral_now_ns(&corral_clock_monotonic) < deadline);
}

/* ---- walking ---- */

typedef bool (*folder_fn)(void *ctx, const char *path, const char *name); /* false: not into it */
struct walk {
    folder_fn enter;
    void (*leave)(void *ctx, const char *path);
    void *ctx;
    uint32_t left; /* folders that may still be looked at */
};

static void walk_folder(struct walk *w, const char *path, unsigned depth)
{
    DIR *dir = depth < DEPTH_MAX ? opendir(path) : NULL;
    if (!dir) {
        return;
    }
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        char child[FENCE_PATH_BYTES];
        bool fits = strlen(path) + strlen(e->d_name) + 2 <= sizeof child;
        if (e->d_type != DT_DIR || e->d_name[0] == '.' || !fits || w->left == 0) {
            continue;
        }
        w->left--;
        fence_text(child, sizeof child, "%s/%s", path, e->d_name);
        if (w->enter(w->ctx, child, e->d_name)) {
            walk_folder(w, child, depth + 1);
        }
        if (w->leave) {
            w->leave(w->ctx, child);
        }
    }
    closedir(dir);
}

static bool enter_all(void *ctx, const char *path, const char *name)
{
    (void)ctx;
    (void)path;
    (void)name;
    return true;
}

struct removal {
    const struct cgroup_ops *ops;
    uint64_t deadline;
    int error;
};

static void remove_one(void *ctx, const char *path)
{
    struct removal *r = ctx;
    int error = 0;
    do {
        kill_all(path, r->deadline);
        error = r->ops->remove(path);
        if (error == EBUSY) {
            (void)poll(NULL, 0, 1); /* the kernel is still taking the last process out */
        }
    } while (error == EBUSY && corral_now_ns(&corral_clock_monotonic) < r->deadline);
    if (error != 0 && error != ENOENT) {
        r->error = error;
    }
}

int cgroup_remove_path(const struct cgroup_ops *ops, const char *path)
{
    struct removal r = {.ops = ops, .deadline = corral_now_ns(&corral_clock_monotonic) + REMOVE_WAIT_NS};
    struct walk w = {.enter = enter_all, .leave = remove_one, .ctx = &r, .left = FOLDERS_MAX};
    struct stat st;
    if (stat(path, &st) != 0) {
        return errno == ENOENT ? 0 : errno;
    }
    walk_folder(&w, path, 0);
    remove_one(&r, path);
    return r.error;
}

static bool count_processes(void *ctx, const char *path, const char *name)
{
    uint32_t *count = ctx;
    CORRAL_AUTO_FREE char *text = read_procs(path);
    (void)name;
    for (const char *at = text; at && *at; at++) {
        *count += *at == '\n';
    }
    return true;
}

uint32_t cgroup_populated(const char *path)
{
    uint32_t count = 0;
    struct walk w = {.enter = count_processes, .ctx = &count, .left = FOLDERS_MAX};
    (void)count_processes(&count, path, "");
    walk_folder(&w, path, 0);
    return count;
}

/* ---- names and owners ---- */

/* The number that tells pid namespaces apart; 0: unknown. */
static uint64_t own_pid_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

void cgroup_tree_name(uint64_t run, const char *node, char out[CGROUP_NAME_BYTES])
{
    fence_text(out, CGROUP_NAME_BYTES, NAME_PREFIX "%016" PRIx64 "-%d-%" PRIu64 "-%" PRIu64 "-%.31s", run,
               (int)getpid(), corral_process_start_time(getpid()), own_pid_namespace(), node);
    for (char *c = out; *c; c++) {
        if (!isalnum((unsigned char)*c) && !strchr("-_.", *c)) {
            *c = '_';
        }
    }
}

static bool take_number(const char **at, uint64_t max, uint64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)**at)) {
        return false;
    }
    errno = 0;
    *out = strtoull(*at, &end, 10);
    if (errno != 0 || *out > max || *end != '-') {
        return false;
    }
    *at = end + 1;
    return true;
}

bool cgroup_parse_tree_name(const char *name, struct cgroup_owner *out)
{
    size_t prefix = strlen(NAME_PREFIX);
    struct cgroup_owner owner = {0};
    if (strncmp(name, NAME_PREFIX, prefix) != 0) {
        return false;
    }
    const char *at = name + prefix;
    for (int i = 0; i < 16; i++) {
        if (!isxdigit((unsigned char)at[i]) || isupper((unsigned char)at[i])) {
            return false;
        }
    }
    uint64_t pid;
    owner.run = strtoull(at, NULL, 16);
    if (at[16] != '-') {
        return false;
    }
    at += 17;
    if (!take_number(&at, INT32_MAX, &pid) || pid == 0 || !take_number(&at, UINT64_MAX, &owner.start_time) ||
        owner.start_time == 0 || !take_number(&at, UINT64_MAX, &owner.pid_namespace) ||
        strlen(at) >= sizeof owner.node) {
        return false;
    }
    owner.pid = (pid_t)pid;
    fence_text(owner.node, sizeof owner.node, "%s", at);
    *out = owner;
    return true;
}

bool cgroup_owner_is_gone(const struct cgroup_owner *owner)
{
    uint64_t here = own_pid_namespace();
    return here != 0 && here == owner->pid_namespace && corral_process_is_gone(owner->pid, owner->start_time);
}

struct search {
    cgroup_tree_fn fn;
    void *ctx;
};

static bool look(void *ctx, const char *path, const char *name)
{
    const struct search *s = ctx;
    struct cgroup_owner owner;
    if (!cgroup_parse_tree_name(name, &owner)) {
        return true;
    }
    s->fn(s->ctx, path, &owner);
    return false;
}

static void each_tree(const struct cgroup_host *host, cgroup_tree_fn fn, void *ctx, bool own)
{
    struct search s = {.fn = fn, .ctx = ctx};
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        const struct cgroup_place *place = &host->place[c];
        bool seen = !place->found;
        for (unsigned before = 0; before < c && !seen; before++) {
            seen = host->place[before].found && strcmp(host->place[before].mount, place->mount) == 0;
        }
        struct walk w = {.enter = look, .ctx = &s, .left = FOLDERS_MAX};
        if (!seen) {
            walk_folder(&w, own ? place->own : place->mount, own ? DEPTH_MAX - 1 : 0);
        }
    }
}

void cgroup_each_tree(const struct cgroup_host *host, cgroup_tree_fn fn, void *ctx)
{
    each_tree(host, fn, ctx, false);
}

void cgroup_each_own_tree(const struct cgroup_host *host, cgroup_tree_fn fn, void *ctx)
{
    each_tree(host, fn, ctx, true);
}
