/* The fences of one run on one node: a tree of cgroups, what each group asked for, and what it got. */
#include "base/text.h"
#include "quota/fences/internal.h"
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define GROUPS_MAX 1024
#define PIDS_MAX 4096
/* Per process beside its quota: code, libraries, stacks, and the shared mappings that are charged to whoever touches them first. */
#define OVERHEAD_BYTES (512 * FENCE_MIB)
#define GPU_OVERHEAD_BYTES \
    (1024 * FENCE_MIB) /* a context, its modules, NCCL: the ledger measures them, this only has to be above */
#define PROBE_BYTES (8 * FENCE_MIB)
#define SHARE_PERIOD_US 100000
#define SHARE_QUOTA_US_MIN 1000 /* the kernel takes no less */

enum fence { MEMORY, CPUSET, CPU, DMEM, MPS, RLIMIT, AFFINITY, FENCES };
static const char *const fence_names[FENCES] = {"cgroup-memory", "cpuset", "cpu",     "dmem",
                                                "mps",           "rlimit", "affinity"};

struct outcome {
    bool wanted, live;
    char text[FENCE_WHY_BYTES];
};

struct group {
    char name[96], role[CORRAL_LEDGER_NAME_MAX], device[CORRAL_LEDGER_NAME_MAX];
    char gpu_uuid[64];
    bool gpu, tenant;
    uint32_t processes;
    uint64_t bytes, overhead, rlimit;
    struct outcome outcome[FENCES];
    uint32_t fd_count, env_count;
    int fd[4];
    char env[CORRAL_FENCE_ENV_MAX][CORRAL_FENCE_ENV_BYTES];
};

struct corral_fences {
    struct cgroup_tree tree;
    struct fence_probe probe;       /* memory and cpuset, from the start */
    struct fence_probe share_probe; /* cpu, from the first group with a share */
    bool share_probed, mps_asked, dmem_tried;
    struct fence_mps mps;
    enum corral_fence_state dmem; /* once tried: what a process in a group of its own found */
    char dmem_text[FENCE_WHY_BYTES];
    bool ledger_live;
    char ledger_text[FENCE_WHY_BYTES];
    struct group *group[GROUPS_MAX];
    uint32_t group_count;
};

/* ---- open and close ---- */

struct own_leftovers {
    uint64_t run;
    const char *node;
};

/* What an agent of this run and node left, and empty groups of anybody who is gone: dying with its coordinator, an agent has no time to remove its own. */
static void remove_leftover(void *ctx, const char *path, const struct cgroup_owner *owner)
{
    const struct own_leftovers *want = ctx;
    bool same = owner->run == want->run && strcmp(owner->node, want->node) == 0;
    if (cgroup_owner_is_gone(owner) && (same || cgroup_populated(path) == 0)) {
        (void)cgroup_remove_path(&cgroup_kernel_ops, path);
    }
}

/* The first CPU this process may use; -1: unknown. */
static int first_cpu(void)
{
    cpu_set_t own;
    if (sched_getaffinity(0, sizeof own, &own) != 0) {
        return -1;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET((size_t)cpu, &own)) {
            return cpu;
        }
    }
    return -1;
}

enum corral_status corral_fences_open(uint64_t run, const char *node, struct corral_fences **out,
                                      struct corral_error *err)
{
    struct cgroup_host host;
    struct cgroup_owner self;
    char name[CGROUP_NAME_BYTES];
    struct corral_fences *f = calloc(1, sizeof *f);
    if (!f) {
        return corral_fail(err, CORRAL_NOMEM, "fences of node %s: out of memory", node);
    }
    cgroup_find_here(&host);
    cgroup_tree_name(run, node, name);
    if (cgroup_parse_tree_name(name, &self)) {
        struct own_leftovers want = {.run = run, .node = self.node};
        cgroup_each_own_tree(&host, remove_leftover, &want);
    }
    cgroup_tree_open(&f->tree, &host, name, &cgroup_kernel_ops);
    int cpu = first_cpu();
    struct fence_probe_want probe = {
        .memory = true, .cpuset = cpu >= 0, .memory_bytes = PROBE_BYTES, .cpu_number = cpu};
    fence_probe_start(&f->probe, &f->tree, "probe", &probe);
    f->ledger_live = fence_try_ledger(f->ledger_text);
    *out = f;
    return CORRAL_OK;
}

static void free_group(struct group *g)
{
    for (uint32_t i = 0; g && i < g->fd_count; i++) {
        close(g->fd[i]);
    }
    free(g);
}

void corral_fences_close(struct corral_fences *f)
{
    if (!f) {
        return;
    }
    fence_probe_finish(&f->probe, &f->tree);
    if (f->share_probed) {
        fence_probe_finish(&f->share_probe, &f->tree);
    }
    for (uint32_t i = 0; i < f->group_count; i++) {
        free_group(f->group[i]);
    }
    cgroup_tree_close(&f->tree);
    free(f);
}

/* ---- a group ---- */

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* The kernel's limit: above what the ledger lets the role have, so that the ledger denies first and nobody is killed for a denial. A tenant of a host device does not know the
 * ledger; its limit is the quota. */
static uint64_t limit_of(const struct group *g, uint64_t bytes)
{
    if (g->tenant && !g->gpu) {
        return saturating_add(bytes, g->overhead);
    }
    uint64_t each = g->overhead ? g->overhead : g->gpu ? GPU_OVERHEAD_BYTES : OVERHEAD_BYTES;
    uint64_t processes = g->processes ? g->processes : 1;
    return CORRAL_MIN(saturating_add(bytes, each > UINT64_MAX / processes ? UINT64_MAX : each * processes),
                      (uint64_t)INT64_MAX / 4096 * 4096);
}

static void set_outcome(struct group *g, enum fence fence, bool live, const char *text)
{
    g->outcome[fence].wanted = true;
    g->outcome[fence].live = live;
    fence_text(g->outcome[fence].text, sizeof g->outcome[fence].text, "%s", text);
}

static void add_memory(const struct corral_fences *f, struct group *g)
{
    char text[FENCE_WHY_BYTES], size[48];
    uint64_t limit = limit_of(g, g->bytes);
    bool live = cgroup_set_memory(&f->tree, g->name, limit, g->tenant, text);
    if (live) {
        fence_text(text, sizeof text, "%s", corral_format_bytes(limit, size, sizeof size));
    }
    set_outcome(g, MEMORY, live, text);
}

static void add_cpus(const struct corral_fences *f, struct group *g, const cpu_set_t *cpus)
{
    char text[FENCE_WHY_BYTES], list[128];
    cpu_set_t own, both;
    bool known = sched_getaffinity(0, sizeof own, &own) == 0;
    CPU_AND(&both, cpus, &own);
    bool allowed = known && CPU_COUNT(cpus) > 0 && CPU_EQUAL(&both, cpus);
    fence_text(text, sizeof text, allowed ? "CPUs %s" : "CPUs %s are not all this process's to give",
               cgroup_format_cpus(cpus, list, sizeof list));
    set_outcome(g, AFFINITY, allowed, text);
    bool live = cgroup_set_cpus(&f->tree, g->name, cpus, text);
    if (live) {
        fence_text(text, sizeof text, "CPUs %s", list);
    }
    set_outcome(g, CPUSET, live, text);
}

static void add_share(struct corral_fences *f, struct group *g, const struct corral_fence_group_spec *spec)
{
    char text[FENCE_WHY_BYTES];
    cpu_set_t own;
    int cpus = spec->cpus                                    ? CPU_COUNT(spec->cpus)
               : sched_getaffinity(0, sizeof own, &own) == 0 ? CPU_COUNT(&own)
                                                             : 1;
    uint64_t quota =
        (uint64_t)spec->compute_percent * (uint64_t)(cpus > 0 ? cpus : 1) * SHARE_PERIOD_US / 100;
    if (!f->share_probed) {
        f->share_probed = true;
        fence_probe_start(&f->share_probe, &f->tree, "probe-share", &(struct fence_probe_want){.cpu = true});
    }
    quota = CORRAL_MAX(quota, (uint64_t)SHARE_QUOTA_US_MIN);
    bool live = cgroup_set_cpu_share(&f->tree, g->name, quota, SHARE_PERIOD_US, text);
    if (live) {
        fence_text(text, sizeof text, "%u %% of %d CPUs", spec->compute_percent, cpus);
    }
    set_outcome(g, CPU, live, text);
}

static void add_env(struct group *g, const char *name, const char *value)
{
    if (g->env_count < CORRAL_FENCE_ENV_MAX) {
        fence_text(g->env[g->env_count++], CORRAL_FENCE_ENV_BYTES, "%s=%s", name, value);
    }
}

/* A process may take the role's whole ceiling alone, so that is each one's limit: MPS limits processes, not roles. */
static void add_mps(struct corral_fences *f, struct group *g, uint32_t compute_percent)
{
    char text[FENCE_WHY_BYTES], limit[128], percent[16];
    if (!f->mps_asked) {
        f->mps_asked = true;
        fence_mps_try(g->gpu_uuid, &f->mps);
    }
    bool share = compute_percent > 0 && compute_percent < 100;
    if (!f->mps.live || (share && !f->mps.shares)) {
        set_outcome(g, MPS, false, f->mps.why);
        return;
    }
    uint64_t each = saturating_add(g->bytes, g->overhead ? g->overhead : GPU_OVERHEAD_BYTES);
    if (!fence_mps_limit(g->gpu_uuid, each, limit, sizeof limit)) {
        fence_text(text, sizeof text, "`%.50s` is no GPU UUID, and one bad entry would drop every limit",
                   g->gpu_uuid);
        set_outcome(g, MPS, false, text);
        return;
    }
    g->env_count = 0;
    add_env(g, "CUDA_MPS_PIPE_DIRECTORY", f->mps.pipe);
    add_env(g, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", limit);
    if (share) {
        fence_text(percent, sizeof percent, "%u", compute_percent);
        add_env(g, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percent);
    }
    fence_text(text, sizeof text, "%s per process (not per role)", limit);
    set_outcome(g, MPS, true, text);
}

static void add_dmem(struct corral_fences *f, struct group *g)
{
    char text[FENCE_WHY_BYTES], size[48];
    uint64_t limit = limit_of(g, g->bytes);
    if (!f->dmem_tried) {
        f->dmem_tried = true;
        f->dmem = cgroup_try_dmem(&f->tree, g->gpu_uuid, f->dmem_text);
    }
    bool live = f->dmem == CORRAL_FENCE_LIVE;
    fence_text(text, sizeof text, "%s", f->dmem_text);
    live = live && cgroup_set_dmem(&f->tree, g->name, g->gpu_uuid, limit, text);
    if (live) {
        fence_text(text, sizeof text, "%s; %.120s", corral_format_bytes(limit, size, sizeof size),
                   f->dmem_text);
    }
    set_outcome(g, DMEM, live, text);
}

static void add_rlimit(struct group *g)
{
    char text[FENCE_WHY_BYTES], size[48];
    struct rlimit now;
    g->rlimit = limit_of(g, g->bytes);
    bool ok = getrlimit(RLIMIT_DATA, &now) == 0;
    if (ok && now.rlim_max != RLIM_INFINITY && now.rlim_max < g->rlimit) {
        g->rlimit = now.rlim_max; /* what holds already is tighter */
    }
    fence_text(text, sizeof text, "%s per process", corral_format_bytes(g->rlimit, size, sizeof size));
    set_outcome(g, RLIMIT, ok, ok ? text : "RLIMIT_DATA cannot be read");
}

static void name_group(struct group *g)
{
    fence_text(g->name, sizeof g->name, "%s-%s", g->role, g->device);
    for (char *c = g->name; *c; c++) {
        if (!isalnum((unsigned char)*c) && !strchr("-_.:", *c)) {
            *c = '_';
        }
    }
}

enum corral_status corral_fences_add(struct corral_fences *f, const struct corral_fence_group_spec *spec,
                                     uint32_t *group, struct corral_error *err)
{
    char why[FENCE_WHY_BYTES];
    if (f->group_count == GROUPS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "fences: more than %d groups", GROUPS_MAX);
    }
    if (strlen(spec->role) >= CORRAL_LEDGER_NAME_MAX || strlen(spec->device) >= CORRAL_LEDGER_NAME_MAX ||
        !memchr(spec->gpu_uuid, '\0', sizeof spec->gpu_uuid)) {
        return corral_fail(err, CORRAL_INVALID, "fences: a name is too long");
    }
    struct group *g = calloc(1, sizeof *g);
    if (!g) {
        return corral_fail(err, CORRAL_NOMEM, "fences of %s on %s: out of memory", spec->role, spec->device);
    }
    g->gpu = spec->gpu;
    g->tenant = spec->tenant;
    g->processes = spec->processes;
    g->bytes = spec->bytes;
    g->overhead = spec->overhead;
    fence_text(g->role, sizeof g->role, "%s", spec->role);
    fence_text(g->device, sizeof g->device, "%s", spec->device);
    fence_text(g->gpu_uuid, sizeof g->gpu_uuid, "%s", spec->gpu_uuid);
    name_group(g);
    /* What is not made here is noted by each of the fences below. */
    (void)cgroup_group_make(&f->tree, g->name, why);
    if (spec->gpu) {
        add_dmem(f, g);
        add_mps(f, g, spec->compute_percent);
    } else {
        add_memory(f, g);
    }
    if (spec->cpus) {
        add_cpus(f, g, spec->cpus);
    }
    if (!spec->gpu && spec->compute_percent > 0 && spec->compute_percent < 100) { /* a GPU's share is MPS's */
        add_share(f, g, spec);
    }
    if (spec->tenant && !spec->gpu) {
        add_rlimit(g);
    }
    g->fd_count = cgroup_enter_fds(&f->tree, g->name, g->fd);
    f->group[f->group_count] = g;
    *group = f->group_count++;
    return CORRAL_OK;
}

void corral_fences_entry(const struct corral_fences *f, uint32_t group, struct corral_fence_entry *out)
{
    memset(out, 0, sizeof *out);
    if (group >= f->group_count) {
        return;
    }
    const struct group *g = f->group[group];
    out->env_count = g->env_count;
    for (uint32_t i = 0; i < g->env_count; i++) {
        out->env[i] = g->env[i];
    }
    out->fd_count = g->fd_count;
    memcpy(out->fd, g->fd, sizeof g->fd);
    out->rlimit_data = g->rlimit;
}

/* ---- live change ---- */

static void change_rlimit(const struct corral_fences *f, struct group *g)
{
    pid_t pid[PIDS_MAX];
    struct rlimit limit = {.rlim_cur = g->rlimit, .rlim_max = g->rlimit};
    uint32_t count = cgroup_pids(&f->tree, g->name, pid, PIDS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        (void)prlimit(pid[i], RLIMIT_DATA, &limit, NULL); /* one that has ended needs none */
    }
}

enum corral_status corral_fences_resize(struct corral_fences *f, uint32_t group, uint64_t bytes,
                                        struct corral_error *err)
{
    char why[FENCE_WHY_BYTES];
    if (group >= f->group_count) {
        return corral_fail(err, CORRAL_INVALID, "fences: there is no group %u", group);
    }
    struct group *g = f->group[group];
    uint64_t limit = limit_of(g, bytes);
    uint64_t used = g->outcome[MEMORY].live ? cgroup_memory_used(&f->tree, g->name) : UINT64_MAX;
    if (used != UINT64_MAX && used > limit) {
        /* Version 2 would kill to get below it. */
        char has[48], may[48];
        return corral_fail(err, CORRAL_STATE, "%s on %s uses %s, more than its new kernel limit of %s",
                           g->role, g->device, corral_format_bytes(used, has, sizeof has),
                           corral_format_bytes(limit, may, sizeof may));
    }
    if (g->outcome[MEMORY].live && !cgroup_set_memory(&f->tree, g->name, limit, g->tenant, why)) {
        return corral_fail(err, CORRAL_IO, "%s on %s keeps its kernel limit: %s", g->role, g->device, why);
    }
    if (g->outcome[DMEM].live && !cgroup_set_dmem(&f->tree, g->name, g->gpu_uuid, limit, why)) {
        return corral_fail(err, CORRAL_IO, "%s on %s keeps its device memory limit: %s", g->role, g->device,
                           why);
    }
    g->bytes = bytes;
    if (g->outcome[MEMORY].live) {
        add_memory(f, g);
    }
    if (g->outcome[RLIMIT].live) {
        add_rlimit(g);
        change_rlimit(f, g);
    }
    if (g->outcome[MPS].live) { /* for processes that start from now on */
        char text[128];
        uint64_t each = saturating_add(bytes, g->overhead ? g->overhead : GPU_OVERHEAD_BYTES);
        if (fence_mps_limit(g->gpu_uuid, each, text, sizeof text)) {
            fence_text(g->env[1], CORRAL_FENCE_ENV_BYTES, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=%s", text);
        }
    }
    return CORRAL_OK;
}

/* ---- report ---- */

/* What the probe found outranks what was set: a limit that the kernel does not hold is no fence. */
static void apply_probe(enum fence fence, const struct fence_probe *p, const struct fence_probe *share,
                        enum corral_fence_state *state, char text[FENCE_WHY_BYTES])
{
    enum corral_fence_state found = fence == MEMORY ? p->memory : fence == CPUSET ? p->cpuset : share->cpu;
    const char *why = fence == MEMORY ? p->why_memory : fence == CPUSET ? p->why_cpuset : share->why_cpu;
    if (*state != CORRAL_FENCE_LIVE) {
        return;
    }
    *state = found;
    char set[FENCE_WHY_BYTES];
    fence_text(set, sizeof set, "%s", text);
    fence_text(text, FENCE_WHY_BYTES, found == CORRAL_FENCE_LIVE ? "%s%s%s" : "%.0s%.0s%s", set, "; ", why);
}

static void report_fence(const struct corral_fences *f, enum fence fence, struct corral_fence_report *out)
{
    enum corral_fence_state state = CORRAL_FENCE_LIVE;
    uint32_t wanted = 0;
    char text[FENCE_WHY_BYTES] = "";
    for (uint32_t i = 0; i < f->group_count; i++) {
        const struct outcome *o = &f->group[i]->outcome[fence];
        if (!o->wanted) {
            continue;
        }
        bool first = wanted++ == 0;
        if (!o->live && state == CORRAL_FENCE_LIVE) {
            state = CORRAL_FENCE_ABSENT;
            fence_text(text, sizeof text, "%s", o->text);
        } else if (first) {
            fence_text(text, sizeof text, "%s: %s", f->group[i]->name, o->text);
        }
    }
    if (wanted == 0) {
        return;
    }
    if (state == CORRAL_FENCE_LIVE && wanted > 1) {
        fence_text(text, sizeof text, "%u groups", wanted);
    }
    if (fence == MEMORY || fence == CPUSET || fence == CPU) {
        apply_probe(fence, &f->probe, &f->share_probe, &state, text);
    }
    corral_fence_report_set(out, fence_names[fence], state, text);
}

void corral_fences_report(const struct corral_fences *f, struct corral_fence_report *out)
{
    static const enum fence order[] = {AFFINITY, MEMORY, CPUSET, CPU, RLIMIT, MPS, DMEM};
    /* Finishing the probes is not a change that a caller can see. */
    struct corral_fences *own = (struct corral_fences *)(uintptr_t)f;
    fence_probe_finish(&own->probe, &own->tree);
    if (own->share_probed) {
        fence_probe_finish(&own->share_probe, &own->tree);
    }
    memset(out, 0, sizeof *out);
    corral_fence_report_set(out, "ledger", f->ledger_live ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED,
                            f->ledger_text);
    for (size_t i = 0; i < CORRAL_COUNT_OF(order); i++) {
        report_fence(f, order[i], out);
    }
}
