/* Each fence against a real process: what this machine could have. */
#include "quota/fences/internal.h"
#include "quota/shared.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define TRY_MEMORY_BYTES (32 * FENCE_MIB)
#define TRY_RLIMIT_BYTES (64 * FENCE_MIB)
#define QUOTA_BYTES (64 * FENCE_MIB)

/* ---- ledger ---- */

static enum corral_status plan_one_role(struct corral_ledger *l, struct corral_error *err)
{
    uint32_t role, device;
    corral_ledger_init(l);
    CORRAL_TRY(corral_ledger_add_role(l, "try", &role, err));
    CORRAL_TRY(corral_ledger_add_device(l, "try:0", 4 * QUOTA_BYTES, 0, &device, err));
    CORRAL_TRY(corral_ledger_set_limits(l, device, role, QUOTA_BYTES, QUOTA_BYTES, err));
    return corral_ledger_check_plan(l, 1.0, err);
}

bool fence_try_ledger(char why[FENCE_WHY_BYTES])
{
    struct corral_error err = {0};
    struct corral_ledger_denial denial;
    uint32_t holder = 0;
    CORRAL_AUTO_FREE struct corral_ledger *l = calloc(1, corral_ledger_bytes());
    if (!l) {
        fence_text(why, FENCE_WHY_BYTES, "out of memory");
        return false;
    }
    enum corral_status status = plan_one_role(l, &err);
    if (status == CORRAL_OK) {
        status = corral_ledger_join(l, 0, 0, getpid(), corral_process_start_time(getpid()), &holder, &err);
    }
    if (status != CORRAL_OK) {
        fence_text(why, FENCE_WHY_BYTES, "a ledger cannot be made: %.150s", err.text);
        return false;
    }
    bool within = corral_ledger_reserve(l, holder, QUOTA_BYTES, NULL) == CORRAL_OK;
    bool over = corral_ledger_reserve(l, holder, 1, &denial) == CORRAL_OK;
    fence_text(why, FENCE_WHY_BYTES, "%s",
               !within ? "an allocation within a quota was denied"
               : over  ? "an allocation over a quota was not denied"
                       : "granted a whole quota and denied one byte more");
    return within && !over;
}

/* The same through the shared mapping that workers attach to. */
static bool try_shared_ledger(char why[FENCE_WHY_BYTES])
{
    struct corral_error err = {0};
    struct corral_quota *q = NULL;
    uint32_t holder;
    CORRAL_AUTO_CLOSE int fd = -1;
    CORRAL_AUTO_FREE struct corral_ledger *l = calloc(1, corral_ledger_bytes());
    enum corral_status status = l ? plan_one_role(l, &err) : corral_fail(&err, CORRAL_NOMEM, "out of memory");
    if (status == CORRAL_OK) {
        status = corral_quota_create(l, NULL, &fd, &q, &err);
    }
    if (status == CORRAL_OK) {
        status = corral_quota_join(q, "try:0", "try", &holder, &err);
    }
    if (status == CORRAL_OK) {
        status = corral_fence_preflight_host(q, holder, &err);
    }
    corral_quota_detach(q);
    fence_text(why, FENCE_WHY_BYTES, "%.190s",
               status == CORRAL_OK
                   ? "shared mapping; granted within the quota, denied over it, in each host family"
                   : err.text);
    return status == CORRAL_OK;
}

/* ---- rlimit and affinity ---- */

/* What this process has already counts in its child. */
static uint64_t own_data_bytes(void)
{
    unsigned long long data = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    bool known = f && fscanf(f, "%*u %*u %*u %*u %*u %llu", &data) == 1;
    if (f) {
        (void)fclose(f);
    }
    return known ? data * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static int rlimit_child(void *ctx)
{
    const uint64_t bytes = *(const uint64_t *)ctx + TRY_RLIMIT_BYTES;
    struct rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};
    if (setrlimit(RLIMIT_DATA, &limit) != 0) {
        return 2;
    }
    void *within =
        mmap(NULL, TRY_RLIMIT_BYTES / 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (within == MAP_FAILED) {
        return 3;
    }
    void *over = mmap(NULL, 2 * TRY_RLIMIT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return over == MAP_FAILED && errno == ENOMEM ? 0 : 1;
}

static int affinity_child(void *ctx)
{
    const cpu_set_t *one = ctx;
    cpu_set_t seen;
    return sched_setaffinity(0, sizeof *one, one) == 0 && sched_getaffinity(0, sizeof seen, &seen) == 0 &&
                   CPU_EQUAL(one, &seen)
               ? 0
               : 1;
}

static void try_affinity(struct corral_fence_report *out)
{
    cpu_set_t own, one;
    char list[96], text[FENCE_WHY_BYTES];
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof own, &own) != 0) {
        fence_text(text, sizeof text, "this process's CPUs cannot be read: %s", strerror(errno));
        corral_fence_report_set(out, "affinity", CORRAL_FENCE_FAILED, text);
        return;
    }
    for (size_t cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &own)) {
            CPU_SET(cpu, &one);
        }
    }
    int code = fence_child(affinity_child, &one);
    fence_text(text, sizeof text,
               code == 0 ? "CPUs %s usable; a process was held to one"
                         : "CPUs %s usable, but a process was not held to one",
               cgroup_format_cpus(&own, list, sizeof list));
    corral_fence_report_set(out, "affinity", code == 0 ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED, text);
}

static void try_rlimit(struct corral_fence_report *out)
{
    uint64_t own = own_data_bytes();
    int code = fence_child(rlimit_child, &own);
    if (code == 2) {
        corral_fence_report_set(out, "rlimit", CORRAL_FENCE_ABSENT, "RLIMIT_DATA cannot be set here");
    } else {
        corral_fence_report_set(out, "rlimit", code == 0 ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED,
                                code == 0 ? "a process with 64 MiB more was granted 16 MiB and denied 128 MiB"
                                : code == 3 ? "a process with 64 MiB was denied 16 MiB"
                                            : "a process with 64 MiB was not denied 128 MiB");
    }
}

/* ---- cgroups ---- */

static void try_cgroups(struct corral_fence_report *out)
{
    struct cgroup_host host;
    char name[CGROUP_NAME_BYTES], text[FENCE_WHY_BYTES];
    CORRAL_AUTO_FREE struct cgroup_tree *t = malloc(sizeof *t);
    if (!t) {
        corral_fence_report_set(out, "cgroup-memory", CORRAL_FENCE_ABSENT, "out of memory");
        return;
    }
    cpu_set_t own;
    int cpu = 0;
    bool known = sched_getaffinity(0, sizeof own, &own) == 0;
    while (known && cpu < CPU_SETSIZE - 1 && !CPU_ISSET((size_t)cpu, &own)) {
        cpu++;
    }
    cgroup_find_here(&host);
    cgroup_tree_name(0, "try", name);
    cgroup_tree_open(t, &host, name, &cgroup_kernel_ops);
    struct fence_probe probe;
    struct fence_probe_want want = {
        .memory = true, .cpuset = known, .cpu = true, .memory_bytes = TRY_MEMORY_BYTES, .cpu_number = cpu};
    fence_probe_start(&probe, t, "probe", &want);
    fence_probe_finish(&probe, t);
    corral_fence_report_set(out, "cgroup-memory", probe.memory, probe.why_memory);
    corral_fence_report_set(out, "cpuset", probe.cpuset, probe.why_cpuset);
    corral_fence_report_set(out, "cpu", probe.cpu, probe.why_cpu);
    enum corral_fence_state dmem = cgroup_try_dmem(t, "", text);
    corral_fence_report_set(out, "dmem", dmem, text);
    cgroup_tree_close(t);
}

enum corral_status corral_fences_try(struct corral_fence_report *out, struct corral_error *err)
{
    char why[FENCE_WHY_BYTES];
    struct fence_mps mps;
    (void)err;
    memset(out, 0, sizeof *out);
    bool ledger = fence_try_ledger(why) && try_shared_ledger(why);
    corral_fence_report_set(out, "ledger", ledger ? CORRAL_FENCE_LIVE : CORRAL_FENCE_FAILED, why);
    try_affinity(out);
    try_rlimit(out);
    try_cgroups(out);
    fence_mps_try("", &mps);
    fence_text(why, sizeof why, mps.live ? "%.150s; limits are per process, not per role" : "%.190s",
               mps.why);
    corral_fence_report_set(out, "mps",
                            mps.live    ? CORRAL_FENCE_LIVE
                            : mps.tried ? CORRAL_FENCE_FAILED
                                        : CORRAL_FENCE_ABSENT,
                            why);
    return CORRAL_OK;
}
