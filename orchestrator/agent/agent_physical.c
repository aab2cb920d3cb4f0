/* What is physically there beside the ledger. Host devices: the resident memory of each holder's process; its statm stays open, so a look is one read. GPUs: NVML's memory per
 * process and device; processes are matched by pid, and where NVML sees other pids than we do (a container), or none, that is told as not known. */
#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/agent/agent_observe.h"
#include "orchestrator/agent/children.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TENANTS_NS CORRAL_NS_PER_S /* a look at them is one at every process of the machine */

static bool is_gpu(const struct corral_ledger_device *d)
{
    static const uint8_t none[sizeof d->uuid];
    return memcmp(d->uuid, none, sizeof none) != 0;
}

void corral_agent_physical_open(struct corral_agent_observer *o)
{
    struct corral_error err;
    for (uint32_t i = 0; i < CORRAL_LEDGER_DEVICES_MAX; i++) {
        o->gpu[i] = CORRAL_AGENT_NO_GPU;
        o->foreign[i] = CORRAL_OBSERVED_UNKNOWN;
    }
    for (uint32_t i = 0; i < o->ledger->device_count; i++) {
        if (!is_gpu(&o->ledger->device[i])) {
            continue;
        }
        if ((!o->gpus && corral_gpu_reader_open(&o->gpus, &err) != CORRAL_OK) ||
            corral_gpu_reader_find(o->gpus, o->ledger->device[i].uuid, &o->gpu[i], &err) != CORRAL_OK) {
            corral_log_warn("no physical readings of this GPU; steps on it cannot be proved",
                            LOG_STR("device", o->ledger->device[i].name), LOG_ERR(&err));
        }
    }
}

static void forget(struct observed_holder *h)
{
    corral_cleanup_close(&h->statm_fd);
    h->statm_fd = -1;
}

void corral_agent_physical_close(struct corral_agent_observer *o)
{
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        forget(&o->holder[i]);
    }
    corral_gpu_reader_close(o->gpus);
    o->gpus = NULL;
}

/* ---- host devices ---- */

static int open_statm(const struct corral_ledger_holder *holder)
{
    char path[48];
    snprintf(path, sizeof path, "/proc/%d/statm", (int)holder->pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && corral_process_start_time(holder->pid) != holder->start_time) {
        close(fd); /* the pid is somebody else's already */
        return -1;
    }
    return fd;
}

/* Resident bytes; 0 when the process has gone. */
static uint64_t read_statm(int fd)
{
    char text[128];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    const char *space = strchr(text, ' ');
    return space ? strtoull(space + 1, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/* A process with memory on several devices: its resident memory is of no single one of them. */
static bool on_one_device(const struct corral_ledger *l, const struct corral_ledger_holder *holder)
{
    for (uint32_t i = 0; i < l->holder_high; i++) {
        const struct corral_ledger_holder *other = &l->holder[i];
        if (other != holder && other->pid == holder->pid && other->device != holder->device) {
            return false;
        }
    }
    return true;
}

static uint64_t look_at_holder(struct corral_agent_observer *o, uint32_t slot, uint64_t now)
{
    const struct corral_ledger_holder *holder = &o->ledger->holder[slot];
    struct observed_holder *h = &o->holder[slot];
    if (h->statm_fd >= 0 && h->generation != holder->generation) {
        forget(h);
    }
    if (h->statm_fd < 0) {
        h->generation = holder->generation;
        h->statm_fd = open_statm(holder);
    }
    uint64_t bytes = h->statm_fd >= 0 ? read_statm(h->statm_fd) : 0;
    if (bytes > 0) {
        corral_quota_set_physical(o->agent->quota, holder->device, holder->pid, bytes, now);
    }
    return bytes;
}

/* A tenant of a host device holds its ceiling under the agent's name; what is really there is its processes'. With several devices it is of no single one of them. */
static void look_at_tenants(struct corral_agent_observer *o, uint64_t used[CORRAL_LEDGER_DEVICES_MAX],
                            uint64_t now)
{
    struct corral_agent *a = o->agent;
    pid_t root[CORRAL_JOB_PARTITIONS_MAX];
    if (a->tenant_count == 0 || a->job->node[a->node].kind != CORRAL_DEVICE_HOST) {
        return;
    }
    if (o->tenants_looked_ns == 0 || now - o->tenants_looked_ns >= TENANTS_NS) {
        for (uint32_t i = 0; i < a->tenant_count; i++) {
            root[i] = a->tenant[i].process.pid;
        }
        corral_children_resident(root, a->tenant_count, o->tenant_bytes);
        o->tenants_looked_ns = now;
    }
    for (uint32_t i = 0; i < a->tenant_count; i++) {
        const struct corral_agent_tenant *t = &a->tenant[i];
        if (t->partition->device_count == 1 && t->holder[0] != CORRAL_LEDGER_NONE) {
            uint64_t bytes = t->process.pid != 0 ? o->tenant_bytes[i] : 0;
            corral_quota_set_holder_physical(a->quota, t->holder[0], bytes, now);
            used[t->partition->device[0].slot] += bytes;
        }
    }
}

static void look_at_host(struct corral_agent_observer *o, uint64_t now)
{
    uint64_t used[CORRAL_LEDGER_DEVICES_MAX] = {0};
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        const struct corral_ledger_holder *holder = &o->ledger->holder[i];
        bool ours = i < o->ledger->holder_high && holder->pid != 0 && holder->pid != getpid() &&
                    holder->device < o->ledger->device_count;
        if (!ours || is_gpu(&o->ledger->device[holder->device])) {
            forget(&o->holder[i]);
        } else if (on_one_device(o->ledger, holder)) {
            used[holder->device] += look_at_holder(o, i, now);
        }
    }
    look_at_tenants(o, used, now);
    for (uint32_t d = 0; d < o->ledger->device_count; d++) {
        if (!is_gpu(&o->ledger->device[d])) { /* a slice of the host's memory has no strangers */
            o->device_used[d] = used[d];
            o->foreign[d] = 0;
            corral_quota_set_device_physical(o->agent->quota, d, used[d], 0, now);
        }
    }
}

/* ---- GPUs ---- */

/* The ledger's holder of that process on the device. */
static const struct corral_ledger_holder *holder_of(const struct corral_ledger *l, uint32_t device, pid_t pid)
{
    for (uint32_t i = 0; i < l->holder_high; i++) {
        if (l->holder[i].pid == pid && l->holder[i].device == device) {
            return &l->holder[i];
        }
    }
    return NULL;
}

/* The control server of MPS holds a context on behalf of its clients, who are accounted for themselves. */
static bool is_mps_server(pid_t pid)
{
    char path[48], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, name, sizeof name - 1) : 0;
    return n > 0 && strncmp(name, "nvidia-cuda-mps", 15) == 0;
}

static bool ledger_uses(const struct corral_ledger *l, uint32_t device)
{
    for (uint32_t r = 0; r < l->role_count; r++) {
        if (l->device[device].role[r].used > 0) {
            return true;
        }
    }
    return false;
}

static void tell_foreign(struct corral_agent_observer *o, uint32_t d, uint64_t foreign, pid_t pid)
{
    bool there = pid != 0;
    if (there && !o->foreign_told[d]) {
        corral_log_warn(
            "a process outside this run uses a fenced GPU; its memory is under no quota, and steps "
            "beside it are unproven",
            LOG_STR("device", o->ledger->device[d].name), LOG_I64("pid", pid), LOG_U64("bytes", foreign));
    }
    o->foreign_told[d] = there;
}

static void look_at_gpu(struct corral_agent_observer *o, uint32_t d, uint64_t now)
{
    struct corral_gpu_reading reading;
    corral_gpu_reader_memory(o->gpus, o->gpu[d], &reading);
    uint64_t foreign = 0, ours = 0;
    uint32_t matched = 0;
    pid_t stranger = 0;
    bool foreign_known = true;
    for (uint32_t i = 0; i < reading.process_count; i++) {
        const struct corral_gpu_process *p = &reading.process[i];
        if (holder_of(o->ledger, d, p->pid)) {
            matched++;
            ours += p->bytes;
            if (p->bytes_known) {
                corral_quota_set_physical(o->agent->quota, d, p->pid, p->bytes, now);
            }
        } else if (!is_mps_server(p->pid)) {
            stranger = p->pid;
            foreign += p->bytes;
            foreign_known &= p->bytes_known;
        }
    }
    if (!foreign_known) { /* somebody is there, the driver does not say with how much: all that is not ours */
        foreign = CORRAL_MAX(reading.used > ours ? reading.used - ours : 0, 1u);
    }
    /* The driver counts processes under numbers that mean nothing here, or keeps them to itself: who is foreign cannot be said. The ledger then gets no reading, and steps on the
     * device are unproven. */
    bool blind = !reading.processes_known || (matched == 0 && ledger_uses(o->ledger, d));
    o->device_used[d] = reading.used;
    o->foreign[d] = blind ? CORRAL_OBSERVED_UNKNOWN : (int64_t)foreign;
    if (!blind) {
        corral_quota_set_device_physical(o->agent->quota, d, reading.used, foreign, now);
    }
    tell_foreign(o, d, foreign, blind ? 0 : stranger);
}

void corral_agent_physical_look(struct corral_agent_observer *o, uint64_t now)
{
    look_at_host(o, now);
    for (uint32_t d = 0; d < o->ledger->device_count; d++) {
        if (o->gpu[d] != CORRAL_AGENT_NO_GPU) {
            look_at_gpu(o, d, now);
        }
    }
}
