/* What stands around the node's processes beside the ledger: kernel and driver limits (quota/fences), and the environment by which a process finds its quota. */
#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/agent/gpu_claim.h"
#include "quota/cuda/interposer_path.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct corral_job_node *node_of(const struct corral_agent *a)
{
    return &a->job->node[a->node];
}

static bool has_gpus(const struct corral_agent *a)
{
    return node_of(a)->kind == CORRAL_DEVICE_GPU;
}

static const struct corral_inventory_gpu *gpu_of(const struct corral_agent *a, uint32_t slot)
{
    return &a->machine->gpu[node_of(a)->device_index[slot]];
}

/* ---- GPUs ---- */

/* "GPU-6f1b2c3d-…" */
static bool parse_uuid(const char *text, uint8_t out[16])
{
    uint32_t digits = 0;
    memset(out, 0, 16);
    if (strncmp(text, "GPU-", 4) != 0) {
        return false;
    }
    for (const char *p = text + 4; *p; p++) {
        const char *hex = "0123456789abcdef", *at = strchr(hex, *p | 0x20);
        if (*p == '-') {
            continue;
        }
        if (!at || digits == 32) {
            return false;
        }
        out[digits / 2] = (uint8_t)(out[digits / 2] << 4 | (at - hex));
        digits++;
    }
    return digits == 32;
}

static bool uses_slot(const struct corral_job *job, uint32_t node, uint32_t slot)
{
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *p = &job->partition[i];
        for (uint32_t k = 0; k < p->device_count; k++) {
            if (p->device[k].node == node && p->device[k].slot == slot) {
                return true;
            }
        }
    }
    return false;
}

enum corral_status corral_agent_check_gpus(struct corral_agent *a, struct corral_ledger *ledger,
                                           struct corral_error *err)
{
    const struct corral_job_node *n = node_of(a);
    for (uint32_t slot = 0; slot < n->device_count && has_gpus(a); slot++) {
        uint8_t uuid[16];
        char real[48], told[48];
        if (n->device_index[slot] >= a->machine->gpu_count) {
            return corral_fail(err, CORRAL_NOT_FOUND, "node %s has no GPU %u: it has %u%s%s", n->name,
                               n->device_index[slot], a->machine->gpu_count,
                               a->machine->gpu_note[0] ? ", because " : "", a->machine->gpu_note);
        }
        const struct corral_inventory_gpu *g = gpu_of(a, slot);
        if (g->memory_total < n->device_memory) {
            return corral_fail(err, CORRAL_INVALID,
                               "GPU %u of node %s (%s) has %s; the job says gpu_memory = %s",
                               n->device_index[slot], n->name, g->name,
                               corral_format_bytes_exact(g->memory_total, real, sizeof real),
                               corral_format_bytes_exact(n->device_memory, told, sizeof told));
        }
        if (!parse_uuid(g->uuid, uuid)) {
            return corral_fail(err, CORRAL_UNSUPPORTED,
                               "GPU %u of node %s is named \"%.60s\": only whole GPUs (GPU-…) can be fenced",
                               n->device_index[slot], n->name, g->uuid);
        }
        corral_ledger_set_uuid(ledger, slot, uuid);
        if (uses_slot(a->job, a->node, slot) &&
            corral_gpu_claim(g->uuid, &a->gpu_claim[slot], err) != CORRAL_OK) {
            return corral_error_prefix(err, CORRAL_EXISTS, "GPU %u of node %s", n->device_index[slot],
                                       n->name);
        }
    }
    return CORRAL_OK;
}

/* ---- groups ---- */

static void add_cpus(const struct corral_agent *a, uint32_t first, uint32_t count, cpu_set_t *set)
{
    for (uint32_t i = 0; i < count; i++) {
        CPU_SET(a->plan->cpu[first + i], set);
    }
}

/* The CPUs of a partition's processes on these slots. False: any. */
static bool cpus_of(const struct corral_agent *a, uint32_t partition, const uint32_t *slots,
                    uint32_t slot_count, cpu_set_t *set)
{
    CPU_ZERO(set);
    for (uint32_t i = 0; i < a->plan->worker_count; i++) {
        const struct corral_plan_worker *w = &a->plan->worker[i];
        if (w->worker.partition == partition && w->worker.device.node == a->node &&
            w->worker.device.slot == slots[0]) {
            add_cpus(a, w->cpu_first, w->cpu_count, set);
            break; /* the others on the device have the same ones */
        }
    }
    for (uint32_t i = 0; i < a->plan->tenant_count; i++) {
        const struct corral_plan_tenant *t = &a->plan->tenant[i];
        for (uint32_t k = 0; t->partition == partition && k < slot_count; k++) {
            add_cpus(a, t->cpu_first[k], t->cpu_count[k], set);
        }
    }
    return CPU_COUNT(set) > 0;
}

static enum corral_status add_group(struct corral_agent *a, uint32_t partition, const uint32_t *slots,
                                    uint32_t slot_count, struct corral_error *err)
{
    const struct corral_job_partition *p = &a->job->partition[partition];
    const bool tenant = p->role == CORRAL_ROLE_TENANT;
    char device[CORRAL_LEDGER_NAME_MAX];
    cpu_set_t cpus;
    const bool pinned = cpus_of(a, partition, slots, slot_count, &cpus);
    struct corral_fence_group_spec spec = {
        .role = p->name,
        .device = corral_job_device_name(a->job, a->node, slots[0], device, sizeof device),
        .gpu = has_gpus(a),
        .bytes = p->ceiling * slot_count,
        .processes = tenant ? 1 : p->workers_per_device,
        .compute_percent = p->compute,
        .cpus = pinned ? &cpus : NULL,
        .tenant = tenant,
    };
    if (spec.gpu) {
        snprintf(spec.gpu_uuid, sizeof spec.gpu_uuid, "%.63s", gpu_of(a, slots[0])->uuid);
        spec.bytes = p->ceiling;
    }
    uint32_t group;
    CORRAL_TRY(corral_fences_add(a->fences, &spec, &group, err));
    for (uint32_t i = 0; i < slot_count; i++) {
        a->fence_group[partition][slots[i]] = group;
    }
    return CORRAL_OK;
}

/* A worker has one device, a tenant has all of its own: one group for all of them. */
static enum corral_status add_groups(struct corral_agent *a, struct corral_error *err)
{
    for (uint32_t i = 0; i < a->job->partition_count; i++) {
        const struct corral_job_partition *p = &a->job->partition[i];
        uint32_t slots[CORRAL_JOB_NODE_DEVICES_MAX], count = 0;
        for (uint32_t k = 0; k < p->device_count; k++) {
            if (p->device[k].node == a->node) {
                slots[count++] = p->device[k].slot;
            }
        }
        if (count > 0 && p->role == CORRAL_ROLE_TENANT) {
            CORRAL_TRY(add_group(a, i, slots, count, err));
            continue;
        }
        for (uint32_t k = 0; k < count; k++) {
            CORRAL_TRY(add_group(a, i, &slots[k], 1, err));
        }
    }
    return CORRAL_OK;
}

/* ---- what must be live ---- */

static bool has_host_tenant(const struct corral_agent *a)
{
    for (uint32_t i = 0; i < a->plan->tenant_count; i++) {
        if (a->plan->tenant[i].node == a->node && !has_gpus(a)) {
            return true;
        }
    }
    return false;
}

static bool shares_compute(const struct corral_agent *a)
{
    for (uint32_t i = 0; i < a->job->partition_count; i++) {
        const struct corral_job_partition *p = &a->job->partition[i];
        for (uint32_t k = 0; k < p->device_count && p->compute < 100; k++) {
            if (p->device[k].node == a->node) {
                return true;
            }
        }
    }
    return false;
}

/* Whether this node has anything that the fence could hold. */
static bool applies(const struct corral_agent *a, const char *fence)
{
    static const char *const of_gpus[] = {"interposer", "mps", "dmem"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(of_gpus); i++) {
        if (strcmp(fence, of_gpus[i]) == 0) {
            return has_gpus(a);
        }
    }
    if (strcmp(fence, "rlimit") == 0) {
        return has_host_tenant(a);
    }
    if (strcmp(fence, "cpu") == 0) {
        return !has_gpus(a) && shares_compute(a);
    }
    return strcmp(fence, "cgroup-memory") != 0 || !has_gpus(a);
}

static const struct corral_fence_status *find_fence(const struct corral_fence_report *r, const char *name)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (strcmp(r->fence[i].name, name) == 0) {
            return &r->fence[i];
        }
    }
    return NULL;
}

static enum corral_status check_required(const struct corral_agent *a, struct corral_error *err)
{
    const char *name;
    for (uint32_t bit = 0; (name = corral_job_fence_name(bit)) != NULL; bit++) {
        bool always = strcmp(name, "ledger") == 0 || strcmp(name, "interposer") == 0;
        bool wanted = (a->job->memory.fences & 1u << bit) != 0;
        const struct corral_fence_status *fence = find_fence(&a->fence_report, name);
        if (!applies(a, name) || (!wanted && !(always && fence)) ||
            (fence && fence->state == CORRAL_FENCE_LIVE)) {
            continue;
        }
        return corral_fail(err, CORRAL_UNSUPPORTED, "node %s: the fence %s is required%s and is not live: %s",
                           node_of(a)->name, name, wanted ? " (memory.fences)" : "",
                           fence && fence->detail[0] ? fence->detail : "this machine does not have it");
    }
    return CORRAL_OK;
}

/* It is tried by each process that it stands around, from inside, before that process does anything else: whoever is told of a run that has started is told the truth. */
static void report_interposer(struct corral_agent *a)
{
    struct corral_fence_report *r = &a->fence_report;
    if (!has_gpus(a) || find_fence(r, "interposer") || r->count == CORRAL_FENCES_MAX) {
        return;
    }
    const uint32_t at = r->count > 0 ? 1 : 0; /* after the ledger */
    memmove(&r->fence[at + 1], &r->fence[at], (r->count - at) * sizeof r->fence[0]);
    r->fence[at] = (struct corral_fence_status){.name = "interposer", .state = CORRAL_FENCE_LIVE};
    snprintf(r->fence[at].detail, sizeof r->fence[at].detail, "tried in every process before it starts");
    r->count++;
}

enum corral_status corral_agent_begin_fences(struct corral_agent *a, const char *node,
                                             struct corral_error *err)
{
    corral_fence_canary_is("/proc/self/exe");
    return corral_fences_open(a->launch.run, node, &a->fences, err);
}

enum corral_status corral_agent_make_fences(struct corral_agent *a, struct corral_error *err)
{
    memset(a->fence_group, 0xff, sizeof a->fence_group);
    /* Two of them may hang, one under MPS and one under dmem: a fence less is told, and no reason to be late. */
    uint64_t wait_ms = a->job->fault.start_timeout_ns / 3 / CORRAL_NS_PER_MS;
    corral_fence_canary_wait((uint32_t)CORRAL_MIN(wait_ms, UINT64_C(30000)));
    if (!getcwd(a->folder, sizeof a->folder)) {
        return corral_fail_sys(err, errno, "reading the path of the run folder");
    }
    if (has_gpus(a)) {
        CORRAL_TRY(corral_cuda_interposer_path(a->interposer, sizeof a->interposer, err));
    }
    return add_groups(a, err);
}

enum corral_status corral_agent_check_fences(struct corral_agent *a, struct corral_error *err)
{
    corral_fences_report(a->fences, &a->fence_report);
    report_interposer(a);
    corral_fence_report_live(&a->fence_report, a->fences_live, sizeof a->fences_live);
    char line[512];
    corral_log_info("fences",
                    LOG_STR("state", corral_fence_report_line(&a->fence_report, line, sizeof line)));
    return check_required(a, err);
}

void corral_agent_close_fences(struct corral_agent *a)
{
    corral_fences_close(a->fences);
    a->fences = NULL;
}

/* ---- environments ---- */

/* A string that does not fit would be a limit that is silently missing: it is noticed in corral_agent_surround(). */
void corral_agent_add_env(struct corral_agent_surroundings *s, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    size_t room = sizeof s->text - s->text_used;
    int n = vsnprintf(s->text + s->text_used, room, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= room || s->env_count >= CORRAL_AGENT_ENV_MAX) {
        s->env_count = CORRAL_AGENT_ENV_MAX + 1;
        return;
    }
    s->env[s->env_count++] = s->text + s->text_used;
    s->text_used += (size_t)n + 1;
}

static void add_quota_env(const struct corral_agent *a, uint32_t partition, const uint32_t *slots,
                          const char *log, struct corral_agent_surroundings *s)
{
    const struct corral_job_partition *p = &a->job->partition[partition];
    char token[33], device[CORRAL_LEDGER_NAME_MAX];
    corral_quota_token(a->quota, partition, token);
    corral_agent_add_env(s, "%s=/proc/%d/fd/%d", CORRAL_QUOTA_ENV_LEDGER, (int)getpid(), a->ledger_fd);
    corral_agent_add_env(s, "%s=%s", CORRAL_QUOTA_ENV_TOKEN, token);
    corral_agent_add_env(s, "%s=%s/%s", CORRAL_QUOTA_ENV_LOG, a->folder, log);
    corral_agent_add_env(s, "%s=%s", CORRAL_QUOTA_ENV_UNKNOWN,
                         a->job->memory.unknown_driver == CORRAL_UNKNOWN_DRIVER_REFUSE ? "refuse"
                                                                                       : "unproven");
    if (p->role == CORRAL_ROLE_TRAIN && a->job->memory.spill > 0) {
        corral_agent_add_env(s, "%s=%llu", CORRAL_QUOTA_ENV_SPILL, (unsigned long long)a->job->memory.spill);
    } else {
        corral_agent_add_env(s, "%s", CORRAL_QUOTA_ENV_SPILL);
    }
    corral_agent_add_env(s, "CORRAL_QUOTA_DEVICE=%s",
                         corral_job_device_name(a->job, a->node, slots[0], device, sizeof device));
    corral_agent_add_env(s, "%s=%s", CORRAL_WORKER_ENV_FENCES, a->fences_live);
}

static void add_proof_env(const struct corral_agent *a, int64_t rank, struct corral_agent_surroundings *s)
{
    char path[256];
    if (rank < 0) {
        corral_agent_add_env(s, "CORRAL_PROOF");
        corral_agent_add_env(s, "CORRAL_PROOF_RUN");
        corral_agent_add_env(s, "CORRAL_PROOF_RANK");
        corral_agent_add_env(s, "CORRAL_PROOF_DRIFT");
        return;
    }
    corral_job_proof_path((uint32_t)rank, path, sizeof path);
    corral_agent_add_env(s, "CORRAL_PROOF=%s/%s", a->folder, path);
    corral_agent_add_env(s, "CORRAL_PROOF_RUN=%llu", (unsigned long long)a->launch.run);
    corral_agent_add_env(s, "CORRAL_PROOF_RANK=%u", (unsigned)rank);
    corral_agent_add_env(s, "CORRAL_PROOF_DRIFT=%llu", (unsigned long long)a->job->memory.drift);
}

/* A process on host devices sees no GPU: it has no quota there. */
static void add_gpu_env(const struct corral_agent *a, const uint32_t *slots, uint32_t slot_count,
                        struct corral_agent_surroundings *s)
{
    char list[CORRAL_JOB_NODE_DEVICES_MAX * 48] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < slot_count && has_gpus(a); i++) {
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%.46s", i > 0 ? "," : "",
                                 gpu_of(a, slots[i])->uuid);
    }
    corral_agent_add_env(s, "CUDA_VISIBLE_DEVICES=%s", list);
    if (!has_gpus(a)) {
        return;
    }
    const char *preload = getenv("LD_PRELOAD");
    corral_agent_add_env(s, "CUDA_DEVICE_ORDER=PCI_BUS_ID");
    corral_agent_add_env(s, "LD_PRELOAD=%s%s%s", a->interposer, preload && preload[0] ? ":" : "",
                         preload ? preload : "");
}

enum corral_status corral_agent_surround(const struct corral_agent *a, uint32_t partition,
                                         const uint32_t *slots, uint32_t slot_count, int64_t rank,
                                         const char *log, struct corral_agent_surroundings *out,
                                         struct corral_error *err)
{
    memset(out, 0, sizeof *out);
    out->pinned = cpus_of(a, partition, slots, slot_count, &out->cpus);
    corral_fences_entry(a->fences, a->fence_group[partition][slots[0]], &out->fences);
    add_quota_env(a, partition, slots, log, out);
    add_proof_env(a, rank, out);
    add_gpu_env(a, slots, slot_count, out);
    for (uint32_t i = 0; i < out->fences.env_count; i++) {
        corral_agent_add_env(out, "%s", out->fences.env[i]);
    }
    return out->env_count <= CORRAL_AGENT_ENV_MAX
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "the environment of a process of %s does not fit",
                             a->job->partition[partition].name);
}

void corral_agent_apply_surroundings(const struct corral_agent_surroundings *s,
                                     struct corral_process_spec *spec)
{
    spec->env = s->env;
    spec->env_count = s->env_count;
    spec->cpus = s->pinned ? &s->cpus : NULL;
    spec->cgroup_fd_count = CORRAL_MIN(s->fences.fd_count, (uint32_t)CORRAL_PROCESS_CGROUPS_MAX);
    memcpy(spec->cgroup_fds, s->fences.fd, sizeof spec->cgroup_fds);
}
