/* The groups of one run: made below this process's own group, so that whatever limits this process limits them too. Limits are set and read back. */
#include "base/file.h"
#include "quota/fences/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUP_FILE_BYTES_MAX ((size_t)1 << 20)
#define GATHER_ROUNDS_MAX 8
#define SELF_GROUP "corral-self" /* where our own processes go when version 2 wants none beside groups */

static int kernel_make(const char *path)
{
    return mkdir(path, 0755) == 0 ? 0 : errno;
}

static int kernel_remove(const char *path)
{
    return rmdir(path) == 0 ? 0 : errno;
}

const struct cgroup_ops cgroup_kernel_ops = {.make = kernel_make, .remove = kernel_remove};

/* ---- version 2: enabling a controller for groups below ---- */

/* Processes keep version 2 from having controllers below their group. When all of them run this very program, they move to a group of their own. */
static bool gather_ourselves(const char *own, const struct cgroup_ops *ops, char why[FENCE_WHY_BYTES])
{
    char procs[FENCE_PATH_BYTES + 64], self[FENCE_PATH_BYTES + 64], mine[512], theirs[512];
    fence_text(procs, sizeof procs, "%s/cgroup.procs", own);
    fence_text(self, sizeof self, "%s/" SELF_GROUP, own);
    CORRAL_AUTO_FREE char *list = NULL;
    size_t bytes;
    ssize_t length = readlink("/proc/self/exe", mine, sizeof mine);
    if (length <= 0 || corral_file_read(procs, GROUP_FILE_BYTES_MAX, &list, &bytes, NULL) != CORRAL_OK) {
        fence_text(why, FENCE_WHY_BYTES, "the processes in this group cannot be read");
        return false;
    }
    char *save = NULL;
    CORRAL_AUTO_FREE char *copy = strdup(list);
    for (char *pid = copy ? strtok_r(copy, "\n", &save) : NULL; pid; pid = strtok_r(NULL, "\n", &save)) {
        char exe[64];
        fence_text(exe, sizeof exe, "/proc/%.20s/exe", pid);
        if (readlink(exe, theirs, sizeof theirs) != length || memcmp(theirs, mine, (size_t)length) != 0) {
            fence_text(
                why, FENCE_WHY_BYTES,
                "process %.20s shares this group; start with `systemd-run --user --scope -p Delegate=yes "
                "rlctl …` to have one of its own",
                pid);
            return false;
        }
    }
    int error = ops->make(self);
    if (error != 0 && error != EEXIST) {
        cgroup_explain(why, error, true, own);
        return false;
    }
    for (char *pid = strtok_r(list, "\n", &save); pid; pid = strtok_r(NULL, "\n", &save)) {
        error = cgroup_write(self, "cgroup.procs", pid);
        if (error != 0 && error != ESRCH) {
            cgroup_explain(why, error, true, self);
            return false;
        }
    }
    return true;
}

static bool enable_below(const char *dir, const char *controller, const struct cgroup_ops *ops,
                         bool may_gather, char why[FENCE_WHY_BYTES])
{
    char enabled[512], wanted[32];
    if (cgroup_read_line(dir, "cgroup.subtree_control", enabled, sizeof enabled) &&
        cgroup_has_word(enabled, controller)) {
        return true;
    }
    fence_text(wanted, sizeof wanted, "+%s", controller);
    int error = cgroup_write(dir, "cgroup.subtree_control", wanted);
    for (int round = 0; error == EBUSY && may_gather && round < GATHER_ROUNDS_MAX; round++) {
        if (!gather_ourselves(dir, ops, why)) {
            return false;
        }
        error = cgroup_write(dir, "cgroup.subtree_control", wanted);
    }
    if (error != 0) {
        cgroup_explain(why, error, true, dir);
    }
    return error == 0;
}

bool cgroup_offered(const char *own, const char *controller)
{
    char offered[512];
    return cgroup_read_line(own, "cgroup.controllers", offered, sizeof offered) &&
           cgroup_has_word(offered, controller);
}

static bool open_v2(struct cgroup_side *side, const char *own, const char *controller,
                    const struct cgroup_ops *ops)
{
    char offered[512];
    if (!cgroup_read_line(own, "cgroup.controllers", offered, sizeof offered)) {
        cgroup_explain(side->why, errno, true, own);
        return false;
    }
    if (!cgroup_has_word(offered, controller)) {
        fence_text(side->why, sizeof side->why, "this group is not given %s (it has: %.80s)%s", controller,
                   offered[0] ? offered : "none",
                   strcmp(controller, "dmem") == 0
                       ? "; dmem needs Linux 6.14 and a driver that uses it"
                       : "; an admin can delegate it: Delegate=memory cpu cpuset");
        return false;
    }
    int error = ops->make(side->base);
    if (error != 0 && error != EEXIST) {
        cgroup_explain(side->why, error, true, own);
        return false;
    }
    return enable_below(own, controller, ops, true, side->why) &&
           enable_below(side->base, controller, ops, false, side->why);
}

/* ---- version 1 ---- */

/* A new cpuset group is empty and takes nobody: give it all that its parent has. */
static int inherit_cpuset(const char *parent, const char *dir)
{
    char cpus[1024], mems[1024];
    if (!cgroup_read_line(parent, "cpuset.effective_cpus", cpus, sizeof cpus) &&
        !cgroup_read_line(parent, "cpuset.cpus", cpus, sizeof cpus)) {
        return ENOENT;
    }
    if (!cgroup_read_line(parent, "cpuset.effective_mems", mems, sizeof mems) &&
        !cgroup_read_line(parent, "cpuset.mems", mems, sizeof mems)) {
        return ENOENT;
    }
    int error = cgroup_write(dir, "cpuset.cpus", cpus);
    return error != 0 ? error : cgroup_write(dir, "cpuset.mems", mems);
}

static bool open_v1(struct cgroup_side *side, const char *own, enum cgroup_controller c,
                    const struct cgroup_ops *ops)
{
    int error = ops->make(side->base);
    if (error == EEXIST) {
        error = 0;
    }
    if (error == 0 && c == CGROUP_CPUSET) {
        error = inherit_cpuset(own, side->base);
    }
    if (error != 0) {
        cgroup_explain(side->why, error, false, own);
    }
    return error == 0;
}

void cgroup_tree_open(struct cgroup_tree *t, const struct cgroup_host *host, const char *name,
                      const struct cgroup_ops *ops)
{
    memset(t, 0, sizeof *t);
    t->ops = ops;
    fence_text(t->name, sizeof t->name, "%s", name);
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        const struct cgroup_place *place = &host->place[c];
        struct cgroup_side *side = &t->side[c];
        char own[FENCE_PATH_BYTES];
        fence_text(side->why, sizeof side->why, "%s", place->why);
        side->v2 = place->v2;
        if (!place->found) {
            continue;
        }
        fence_text(own, sizeof own, "%s", place->own);
        size_t end = strlen(own), tail = strlen("/" SELF_GROUP);
        if (place->v2 && end > tail && strcmp(own + end - tail, "/" SELF_GROUP) == 0) {
            own[end - tail] = '\0'; /* another process of the run has already moved us */
        }
        if (strlen(own) + strlen(name) + 2 > sizeof side->base) {
            fence_text(side->why, sizeof side->why, "the path of this process's group is too long");
            continue;
        }
        fence_text(side->mount, sizeof side->mount, "%s", place->mount);
        fence_text(side->base, sizeof side->base, "%s/%s", own, name);
        side->live = place->v2 ? open_v2(side, own, cgroup_controller_name(c), ops)
                               : open_v1(side, own, (enum cgroup_controller)c, ops);
    }
}

/* Controllers can share a hierarchy: is this the first that has its folder? */
static bool first_of_base(const struct cgroup_tree *t, unsigned c, bool live_only)
{
    for (unsigned before = 0; before < c; before++) {
        if ((!live_only || t->side[before].live) && strcmp(t->side[before].base, t->side[c].base) == 0) {
            return false;
        }
    }
    return t->side[c].base[0] != '\0' && (!live_only || t->side[c].live);
}

void cgroup_tree_close(struct cgroup_tree *t)
{
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        if (first_of_base(t, c, false)) {
            (void)cgroup_remove_path(t->ops, t->side[c].base);
        }
    }
    memset(t, 0, sizeof *t);
}

static void group_path(const struct cgroup_tree *t, unsigned c, const char *group, char *out,
                       size_t out_bytes)
{
    fence_text(out, out_bytes, "%s/%s", t->side[c].base, group);
}

bool cgroup_group_make(const struct cgroup_tree *t, const char *group, char why[FENCE_WHY_BYTES])
{
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        char path[FENCE_PATH_BYTES];
        if (!t->side[c].live) {
            continue;
        }
        int error = 0;
        group_path(t, c, group, path, sizeof path);
        if (first_of_base(t, c, true)) {
            error = t->ops->make(path);
        }
        if ((error == 0 || error == EEXIST) && c == CGROUP_CPUSET && !t->side[c].v2) {
            error = inherit_cpuset(t->side[c].base, path);
        }
        if (error != 0 && error != EEXIST) {
            cgroup_explain(why, error, t->side[c].v2, path);
            return false;
        }
    }
    return true;
}

void cgroup_group_remove(const struct cgroup_tree *t, const char *group)
{
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        char path[FENCE_PATH_BYTES];
        if (first_of_base(t, c, true)) {
            group_path(t, c, group, path, sizeof path);
            (void)cgroup_remove_path(t->ops, path);
        }
    }
}

/* The group's folder, or false and the reason. */
static bool live_path(const struct cgroup_tree *t, enum cgroup_controller c, const char *group,
                      char path[FENCE_PATH_BYTES], char why[FENCE_WHY_BYTES])
{
    if (!t->side[c].live) {
        fence_text(why, FENCE_WHY_BYTES, "%s", t->side[c].why);
        return false;
    }
    group_path(t, c, group, path, FENCE_PATH_BYTES);
    return true;
}

static bool memory_v1(const char *path, uint64_t bytes, bool strict, char why[FENCE_WHY_BYTES])
{
    (void)cgroup_write(path, "memory.oom_control", "0"); /* a process over the limit must not hang there */
    uint64_t both = strict ? bytes : INT64_MAX;
    /* memory + swap is never below memory: whichever order the old values need. */
    int error = cgroup_write_number(path, "memory.limit_in_bytes", bytes);
    int swap_error = cgroup_write_number(path, "memory.memsw.limit_in_bytes", both);
    if (error != 0) {
        error = cgroup_write_number(path, "memory.limit_in_bytes", bytes);
    }
    if (error == 0 && swap_error != 0 &&
        swap_error != ENOENT) { /* no such file: swap is not accounted here */
        error = strict ? swap_error : 0;
    }
    if (error != 0) {
        cgroup_explain(why, error, false, path);
    }
    return error == 0;
}

static bool memory_v2(const char *path, uint64_t bytes, bool strict, char why[FENCE_WHY_BYTES])
{
    (void)cgroup_write(path, "memory.oom.group", "0");
    (void)cgroup_write(path, "memory.high", "max");
    int error = cgroup_write_number(path, "memory.max", bytes);
    if (error == 0) {
        int swap_error = cgroup_write(path, "memory.swap.max", strict ? "0" : "max");
        error = strict && swap_error != ENOENT ? swap_error : 0;
    }
    if (error != 0) {
        cgroup_explain(why, error, true, path);
    }
    return error == 0;
}

bool cgroup_set_memory(const struct cgroup_tree *t, const char *group, uint64_t bytes, bool strict,
                       char why[FENCE_WHY_BYTES])
{
    char path[FENCE_PATH_BYTES];
    uint64_t is = 0;
    if (!live_path(t, CGROUP_MEMORY, group, path, why)) {
        return false;
    }
    bool v2 = t->side[CGROUP_MEMORY].v2;
    if (!(v2 ? memory_v2(path, bytes, strict, why) : memory_v1(path, bytes, strict, why))) {
        return false;
    }
    /* The kernel rounds down to pages. */
    if (!cgroup_read_number(path, v2 ? "memory.max" : "memory.limit_in_bytes", &is) || is > bytes ||
        bytes - is >= (UINT64_C(1) << 16)) {
        fence_text(why, FENCE_WHY_BYTES, "the memory limit reads back as %" PRIu64 ", not %" PRIu64, is,
                   bytes);
        return false;
    }
    return true;
}

uint64_t cgroup_memory_used(const struct cgroup_tree *t, const char *group)
{
    char path[FENCE_PATH_BYTES], why[FENCE_WHY_BYTES];
    uint64_t used;
    bool known = live_path(t, CGROUP_MEMORY, group, path, why) &&
                 cgroup_read_number(
                     path, t->side[CGROUP_MEMORY].v2 ? "memory.current" : "memory.usage_in_bytes", &used);
    return known ? used : UINT64_MAX;
}

const char *cgroup_format_cpus(const cpu_set_t *cpus, char *out, size_t out_bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (int cpu = 0; cpu < CPU_SETSIZE && used < out_bytes; cpu++) {
        int last = cpu;
        if (!CPU_ISSET(cpu, cpus)) {
            continue;
        }
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, cpus)) {
            last++;
        }
        const char *comma = used > 0 ? "," : "";
        int wrote = last > cpu ? snprintf(out + used, out_bytes - used, "%s%d-%d", comma, cpu, last)
                               : snprintf(out + used, out_bytes - used, "%s%d", comma, cpu);
        used += (size_t)wrote;
        cpu = last;
    }
    return out;
}

bool cgroup_set_cpus(const struct cgroup_tree *t, const char *group, const cpu_set_t *cpus,
                     char why[FENCE_WHY_BYTES])
{
    char path[FENCE_PATH_BYTES], list[1024], is[1024];
    if (!live_path(t, CGROUP_CPUSET, group, path, why)) {
        return false;
    }
    cgroup_format_cpus(cpus, list, sizeof list);
    int error = cgroup_write(path, "cpuset.cpus", list);
    if (error != 0) {
        cgroup_explain(why, error, t->side[CGROUP_CPUSET].v2, path);
        return false;
    }
    if (!cgroup_read_line(path, "cpuset.cpus", is, sizeof is) || strcmp(is, list) != 0) {
        fence_text(why, FENCE_WHY_BYTES, "the group's CPUs read back as %.60s, not %.60s", is, list);
        return false;
    }
    return true;
}

bool cgroup_set_cpu_share(const struct cgroup_tree *t, const char *group, uint64_t quota_us,
                          uint64_t period_us, char why[FENCE_WHY_BYTES])
{
    char path[FENCE_PATH_BYTES], text[64], is[64];
    if (!live_path(t, CGROUP_CPU, group, path, why)) {
        return false;
    }
    bool v2 = t->side[CGROUP_CPU].v2;
    int error;
    if (v2) {
        fence_text(text, sizeof text, "%" PRIu64 " %" PRIu64, quota_us, period_us);
        error = cgroup_write(path, "cpu.max", text);
    } else {
        fence_text(text, sizeof text, "%" PRIu64, quota_us);
        error = cgroup_write_number(path, "cpu.cfs_period_us", period_us);
        error = error != 0 ? error : cgroup_write(path, "cpu.cfs_quota_us", text);
    }
    if (error != 0) {
        cgroup_explain(why, error, v2, path);
        return false;
    }
    if (!cgroup_read_line(path, v2 ? "cpu.max" : "cpu.cfs_quota_us", is, sizeof is) ||
        strcmp(is, text) != 0) {
        fence_text(why, FENCE_WHY_BYTES, "the CPU share reads back as %.60s, not %.60s", is, text);
        return false;
    }
    return true;
}

uint64_t cgroup_count(const struct cgroup_tree *t, enum cgroup_controller c, const char *group,
                      const char *key)
{
    char path[FENCE_PATH_BYTES], file[FENCE_PATH_BYTES + 64], why[FENCE_WHY_BYTES];
    CORRAL_AUTO_FREE char *text = NULL;
    size_t bytes;
    if (!live_path(t, c, group, path, why)) {
        return 0;
    }
    const char *name = c == CGROUP_CPU ? "cpu.stat" : t->side[c].v2 ? "memory.events" : "memory.oom_control";
    fence_text(file, sizeof file, "%s/%s", path, name);
    if (corral_file_read(file, GROUP_FILE_BYTES_MAX, &text, &bytes, NULL) != CORRAL_OK) {
        return 0;
    }
    char *save = NULL;
    size_t length = strlen(key);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            return strtoull(line + length + 1, NULL, 10);
        }
    }
    return 0;
}

uint32_t cgroup_enter_fds(const struct cgroup_tree *t, const char *group, int fd[4])
{
    _Static_assert(CGROUP_CONTROLLERS <= 4, "a descriptor for each");
    uint32_t count = 0;
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        char path[FENCE_PATH_BYTES], file[FENCE_PATH_BYTES + 64];
        if (!first_of_base(t, c, true)) {
            continue;
        }
        group_path(t, c, group, path, sizeof path);
        fence_text(file, sizeof file, "%s/cgroup.procs", path);
        int opened = open(file, O_WRONLY | O_CLOEXEC);
        if (opened >= 0) {
            fd[count++] = opened;
        }
    }
    return count;
}

uint32_t cgroup_pids(const struct cgroup_tree *t, const char *group, pid_t *out, uint32_t max)
{
    for (unsigned c = 0; c < CGROUP_CONTROLLERS; c++) {
        char path[FENCE_PATH_BYTES], file[FENCE_PATH_BYTES + 64];
        CORRAL_AUTO_FREE char *text = NULL;
        size_t bytes;
        uint32_t count = 0;
        if (!t->side[c].live) {
            continue;
        }
        group_path(t, c, group, path, sizeof path);
        fence_text(file, sizeof file, "%s/cgroup.procs", path);
        if (corral_file_read(file, GROUP_FILE_BYTES_MAX, &text, &bytes, NULL) != CORRAL_OK) {
            return 0;
        }
        char *save = NULL;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
            if (count < max) {
                out[count] = (pid_t)strtol(line, NULL, 10);
            }
            count++;
        }
        return CORRAL_MIN(count, max);
    }
    return 0;
}
