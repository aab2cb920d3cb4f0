/* How long each device and role was busy. Host devices: CPU time of the role's processes over the CPUs of the device; a CPU that several devices share counts for each in part. GPUs:
 * NVML's shares, integrated over the time between two looks. */
#include "base/clock.h"
#include "orchestrator/agent/agent_observe.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FAMILY_DEPTH_MAX 4
#define FAMILY_MAX 64 /* processes of one worker that are looked at */

/* ---- CPUs of a device ---- */

/* A worker of (node, slot) stands for its device: all of one device have the same CPUs. */
static bool first_of_device(const struct corral_plan *plan, uint32_t i)
{
    const struct corral_job_device *d = &plan->worker[i].worker.device;
    for (uint32_t k = 0; k < i; k++) {
        const struct corral_job_device *other = &plan->worker[k].worker.device;
        if (other->node == d->node && other->slot == d->slot) {
            return false;
        }
    }
    return true;
}

static void count_users(const struct corral_plan *plan, uint32_t *users)
{
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        const struct corral_plan_worker *w = &plan->worker[i];
        for (uint32_t c = 0; first_of_device(plan, i) && c < w->cpu_count; c++) {
            users[w->cpu_first + c]++;
        }
    }
}

void corral_agent_utilisation_open(struct corral_agent_observer *o)
{
    const struct corral_agent *a = o->agent;
    const struct corral_plan *plan = a->plan;
    double even = (double)sysconf(_SC_NPROCESSORS_ONLN) / CORRAL_MAX(o->ledger->device_count, 1u);
    CORRAL_AUTO_FREE uint32_t *users = calloc(CORRAL_MAX(plan->cpu_total, 1u), sizeof *users);
    for (uint32_t d = 0; d < o->ledger->device_count; d++) {
        o->cpus[d] = even;
        o->busy_known[d] = o->role_busy_known[d] = true;
    }
    if (!users) {
        return;
    }
    count_users(plan, users);
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        const struct corral_plan_worker *w = &plan->worker[i];
        if (w->worker.device.node != a->node || w->cpu_count == 0 ||
            w->worker.device.slot >= CORRAL_LEDGER_DEVICES_MAX) {
            continue;
        }
        double cpus = 0;
        for (uint32_t c = 0; c < w->cpu_count; c++) {
            cpus += 1.0 / users[w->cpu_first + c];
        }
        o->cpus[w->worker.device.slot] = cpus;
    }
}

/* ---- CPU time of a process and its children ---- */

static uint64_t own_cpu_ns(pid_t pid)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0) {
        return 0;
    }
    return (uint64_t)t.tv_sec * CORRAL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static size_t read_proc(pid_t pid, const char *what, char *out, size_t out_bytes)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, what);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, out_bytes - 1) : 0;
    out[n > 0 ? n : 0] = '\0';
    return n > 0 ? (size_t)n : 0;
}

/* Of children that it has waited for: fields 16 and 17 of stat, in clock ticks. */
static uint64_t waited_cpu_ns(pid_t pid)
{
    char text[1024];
    if (read_proc(pid, "stat", text, sizeof text) == 0) {
        return 0;
    }
    const char *at = strrchr(text, ')'); /* the name may hold anything */
    unsigned long long user, system;
    if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %llu %llu", &user,
                      &system) != 2) {
        return 0;
    }
    return (user + system) * (CORRAL_NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t family_cpu_ns(pid_t pid, uint32_t depth, uint32_t *seen)
{
    uint64_t total = own_cpu_ns(pid);
    if (depth == FAMILY_DEPTH_MAX || ++*seen > FAMILY_MAX) {
        return total;
    }
    char name[48], text[1024];
    total += waited_cpu_ns(pid);
    snprintf(name, sizeof name, "task/%d/children", (int)pid);
    (void)read_proc(pid, name, text, sizeof text);
    char *at = text;
    for (char *end = NULL;; at = end) {
        long child = strtol(at, &end, 10);
        if (end == at || child <= 0) {
            return total;
        }
        total += family_cpu_ns((pid_t)child, depth + 1, seen);
    }
}

static bool may_have_children(const struct corral_agent *a, const struct corral_agent_worker *w)
{
    return w->plan->worker.role != CORRAL_ROLE_TRAIN && a->job->env.isolation == CORRAL_ISOLATION_PROCESS;
}

static void look_at_worker(struct corral_agent_observer *o, uint32_t i)
{
    const struct corral_agent_worker *w = &o->agent->worker[i];
    struct observed_process *p = &o->process[i];
    uint32_t seen = 0;
    pid_t pid = w->process.pid;
    if (pid == 0) {
        return;
    }
    if (p->pid != pid) {
        *p = (struct observed_process){.pid = pid};
    }
    uint64_t cpu_ns = may_have_children(o->agent, w) ? family_cpu_ns(pid, 0, &seen) : own_cpu_ns(pid);
    uint32_t device = w->plan->worker.device.slot, role = w->plan->worker.partition;
    /* A child that is gone without having been waited for takes its time along: never backwards. */
    if (cpu_ns > p->cpu_ns && device < o->ledger->device_count && role < o->ledger->role_count) {
        double busy = (double)(cpu_ns - p->cpu_ns) / o->cpus[device];
        o->busy_ns[device][role] += busy;
        o->device_busy_ns[device] += busy;
        p->cpu_ns = cpu_ns;
    }
}

/* A tenant is one process with what it starts, on all its devices. */
static void look_at_tenant(struct corral_agent_observer *o, uint32_t i)
{
    const struct corral_agent_tenant *t = &o->agent->tenant[i];
    struct observed_process *p = &o->tenant[i];
    uint32_t seen = 0, devices = 0, role = (uint32_t)(t->partition - o->agent->job->partition);
    pid_t pid = t->process.pid;
    double cpus = 0;
    if (pid == 0 || role >= o->ledger->role_count) {
        return;
    }
    if (p->pid != pid) {
        *p = (struct observed_process){.pid = pid};
    }
    for (uint32_t d = 0; d < o->ledger->device_count; d++) {
        bool here = o->ledger->device[d].role[role].ceiling > 0;
        devices += here;
        cpus += here ? o->cpus[d] : 0;
    }
    uint64_t cpu_ns = family_cpu_ns(pid, 0, &seen);
    if (cpu_ns <= p->cpu_ns || devices == 0) {
        return;
    }
    double busy =
        (double)(cpu_ns - p->cpu_ns) / cpus; /* spread evenly: which device it worked for cannot be seen */
    for (uint32_t d = 0; d < o->ledger->device_count; d++) {
        if (o->ledger->device[d].role[role].ceiling > 0) {
            o->busy_ns[d][role] += busy;
            o->device_busy_ns[d] += busy;
        }
    }
    p->cpu_ns = cpu_ns;
}

/* ---- GPUs ---- */

static uint32_t role_of(const struct corral_ledger *l, uint32_t device, pid_t pid)
{
    for (uint32_t i = 0; i < l->holder_high; i++) {
        if (l->holder[i].pid == pid && l->holder[i].device == device) {
            return l->holder[i].role;
        }
    }
    return CORRAL_LEDGER_NONE;
}

static uint32_t only_role(const struct corral_ledger_device *d, uint32_t role_count)
{
    uint32_t found = CORRAL_LEDGER_NONE;
    for (uint32_t r = 0; r < role_count; r++) {
        if (d->role[r].ceiling > 0) {
            if (found != CORRAL_LEDGER_NONE) {
                return CORRAL_LEDGER_NONE;
            }
            found = r;
        }
    }
    return found;
}

static void look_at_gpu(struct corral_agent_observer *o, uint32_t d, double passed_ns)
{
    struct corral_gpu_busy busy;
    corral_gpu_reader_busy(o->gpus, o->gpu[d], &busy);
    o->busy_known[d] = busy.device_known;
    o->device_busy_ns[d] += busy.device * passed_ns;
    uint32_t alone = only_role(&o->ledger->device[d], o->ledger->role_count);
    if (alone != CORRAL_LEDGER_NONE) {
        o->role_busy_known[d] = busy.device_known;
        o->busy_ns[d][alone] += busy.device * passed_ns;
        return;
    }
    o->role_busy_known[d] = busy.processes_known;
    for (uint32_t i = 0; i < busy.process_count; i++) {
        uint32_t role = role_of(o->ledger, d, busy.process[i].pid);
        if (role < o->ledger->role_count) {
            o->busy_ns[d][role] += busy.process[i].busy * passed_ns;
        }
    }
}

void corral_agent_utilisation_look(struct corral_agent_observer *o, uint64_t now)
{
    bool host = o->agent->job->node[o->agent->node].kind == CORRAL_DEVICE_HOST;
    for (uint32_t i = 0; host && i < o->agent->worker_count; i++) {
        look_at_worker(o, i);
    }
    for (uint32_t i = 0; host && i < o->agent->tenant_count; i++) {
        look_at_tenant(o, i);
    }
    for (uint32_t d = 0; d < o->ledger->device_count; d++) {
        if (o->gpu[d] != CORRAL_AGENT_NO_GPU) {
            look_at_gpu(o, d, (double)(now - o->looked_ns));
        } else if (!host) {
            o->busy_known[d] = o->role_busy_known[d] = false;
        }
    }
}

void corral_agent_utilisation_fill(const struct corral_agent_observer *o, struct corral_observed *out)
{
    uint64_t wall = o->looked_ns - o->started_ns;
    for (uint32_t d = 0; d < out->device_count; d++) {
        struct corral_observed_device *device = &out->device[d];
        device->wall_ns = wall;
        device->busy_ns = (uint64_t)CORRAL_MIN(o->device_busy_ns[d], (double)wall);
        device->busy_known = o->busy_known[d];
        for (uint32_t r = 0; r < o->ledger->role_count; r++) {
            struct corral_observed_role *role = corral_observed_find(device, o->ledger->role_name[r]);
            if (role) {
                role->busy_ns = (uint64_t)CORRAL_MIN(o->busy_ns[d][r], (double)wall);
                role->busy_known = o->role_busy_known[d];
            }
        }
    }
}
