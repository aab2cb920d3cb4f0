#include "orchestrator/plan/plan.h"
#include "base/text.h"
#include "orchestrator/plan/memory.h"
#include "quota/fences/fence.h"
#include <stdlib.h>
#include <string.h>

#define DEVICES_TRIED_MAX 1024 /* when looking for the number of devices that would fit */

void corral_plan_destroy(struct corral_plan *plan)
{
    if (plan != NULL) {
        free(plan->worker);
        free(plan->cpu);
    }
    free(plan);
}

/* ---- the ledger of a node ---- */

enum corral_status corral_plan_ledger(const struct corral_plan *plan, uint32_t node,
                                      struct corral_ledger *out, struct corral_error *err)
{
    const struct corral_job *job = plan->job;
    const struct corral_job_node *n = &job->node[node];
    struct corral_ledger *l = out;
    corral_ledger_init(l);
    uint32_t id = 0;
    for (uint32_t p = 0; p < job->partition_count; p++) {
        CORRAL_TRY(corral_ledger_add_role(l, job->partition[p].name, &id, err));
    }
    for (uint32_t slot = 0; slot < n->device_count; slot++) {
        char name[CORRAL_LEDGER_NAME_MAX];
        corral_job_device_name(job, node, slot, name, sizeof name);
        CORRAL_TRY(
            corral_ledger_add_device(l, name, n->device_memory, corral_job_headroom(job, node), &id, err));
    }
    for (uint32_t p = 0; p < job->partition_count; p++) {
        const struct corral_job_partition *part = &job->partition[p];
        for (uint32_t d = 0; d < part->device_count; d++) {
            if (part->device[d].node == node) {
                CORRAL_TRY(
                    corral_ledger_set_limits(l, part->device[d].slot, p, part->floor, part->ceiling, err));
            }
        }
    }
    return corral_ledger_check_plan(l, job->memory.overcommit, err);
}

static enum corral_status check_ledgers(const struct corral_plan *plan, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_ledger *l = malloc(corral_ledger_bytes());
    if (l == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot check the plan: out of memory");
    }
    for (uint32_t node = 0; node < plan->job->node_count; node++) {
        CORRAL_TRY(corral_plan_ledger(plan, node, l, err));
    }
    return CORRAL_OK;
}

/* ---- who runs ---- */

static enum corral_status check_roles(const struct corral_job *job, struct corral_error *err)
{
    static const enum corral_role needed[] = {CORRAL_ROLE_TRAIN, CORRAL_ROLE_ROLLOUT};
    for (size_t i = 0; i < CORRAL_COUNT_OF(needed); i++) {
        if (corral_job_role_count(job, needed[i]) == 0) {
            return corral_fail(err, CORRAL_INVALID, "no partition has role = \"%s\"; a job needs one",
                               corral_role_name(needed[i]));
        }
    }
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *p = &job->partition[i];
        bool engine = p->role == CORRAL_ROLE_ROLLOUT || p->role == CORRAL_ROLE_EVAL;
        if (engine && job->model.kind == CORRAL_MODEL_TRANSFORMER &&
            p->device_count % job->engine.tensor_parallel != 0) {
            return corral_fail(err, CORRAL_INVALID,
                               "partition.%s has %u devices, not a multiple of engine.tensor_parallel (%u)",
                               p->name, p->device_count, job->engine.tensor_parallel);
        }
    }
    return CORRAL_OK;
}

static enum corral_status place_workers(struct corral_plan *plan, struct corral_error *err)
{
    const struct corral_job *job = plan->job;
    uint32_t count = corral_job_workers(job, NULL, 0);
    CORRAL_AUTO_FREE struct corral_job_worker *workers = calloc(count, sizeof *workers);
    plan->worker = calloc(count, sizeof *plan->worker);
    if (workers == NULL || plan->worker == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot lay out %u workers: out of memory", count);
    }
    plan->worker_count = corral_job_workers(job, workers, count);
    for (uint32_t i = 0; i < count; i++) {
        plan->worker[i].worker = workers[i];
        corral_job_device_name(job, workers[i].device.node, workers[i].device.slot, plan->worker[i].device,
                               sizeof plan->worker[i].device);
    }
    for (uint32_t i = 0; i < job->partition_count; i++) {
        if (job->partition[i].role == CORRAL_ROLE_TENANT) {
            plan->tenant[plan->tenant_count++] =
                (struct corral_plan_tenant){.partition = i, .node = job->partition[i].device[0].node};
        }
    }
    return CORRAL_OK;
}

/* ---- CPU sets ---- */

static bool is_local(const struct corral_job_node *n)
{
    return strcmp(n->address, "local") == 0;
}

/* Which devices of this machine's nodes have workers, and what they ask for. */
struct cpu_demand {
    bool used[CORRAL_JOB_NODES_MAX][CORRAL_JOB_NODE_DEVICES_MAX];
    uint32_t first[CORRAL_JOB_NODES_MAX][CORRAL_JOB_NODE_DEVICES_MAX];
    uint32_t count[CORRAL_JOB_NODES_MAX][CORRAL_JOB_NODE_DEVICES_MAX];
    uint32_t asked, sharing; /* CPUs asked for by number; devices that take a share of the rest */
};

static void demand_device(const struct corral_job *job, const struct corral_job_device *dev,
                          struct cpu_demand *d)
{
    bool *used = &d->used[dev->node][dev->slot];
    if (*used || !is_local(&job->node[dev->node])) {
        return;
    }
    *used = true;
    d->asked += job->node[dev->node].cpus;
    d->sharing += job->node[dev->node].cpus == 0;
}

static void demand_collect(const struct corral_plan *plan, struct cpu_demand *d)
{
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        demand_device(plan->job, &plan->worker[i].worker.device, d);
    }
    for (uint32_t i = 0; i < plan->tenant_count; i++) {
        const struct corral_job_partition *p = &plan->job->partition[plan->tenant[i].partition];
        for (uint32_t k = 0; k < p->device_count; k++) {
            demand_device(plan->job, &p->device[k], d);
        }
    }
}

/* Cut the machine's CPUs, which are in topology order, into neighbouring runs. With fewer CPUs than sharing devices a cut would only idle some
 * of them, so those devices all get the whole rest. */
static void demand_cut(const struct corral_job *job, uint32_t cpus, struct cpu_demand *d)
{
    uint32_t next = 0, share_index = 0;
    const uint32_t rest = cpus - d->asked;
    for (uint32_t node = 0; node < job->node_count; node++) {
        for (uint32_t slot = 0; slot < job->node[node].device_count; slot++) {
            uint32_t want = job->node[node].cpus;
            if (!d->used[node][slot]) {
                continue;
            }
            if (want > 0) {
                d->first[node][slot] = next;
                d->count[node][slot] = want;
                next += want;
            } else if (rest >= d->sharing) {
                uint32_t from = (uint32_t)((uint64_t)share_index * rest / d->sharing);
                uint32_t to = (uint32_t)((uint64_t)(share_index + 1) * rest / d->sharing);
                d->first[node][slot] = d->asked + from;
                d->count[node][slot] = to - from;
                share_index++;
            } else {
                d->first[node][slot] = rest > 0 ? d->asked : 0;
                d->count[node][slot] = rest > 0 ? rest : cpus;
            }
        }
    }
}

static enum corral_status place_cpus(struct corral_plan *plan, const struct corral_inventory *machine,
                                     struct corral_error *err)
{
    if (machine == NULL || machine->cpu_count == 0) {
        return CORRAL_OK;
    }
    CORRAL_AUTO_FREE struct cpu_demand *d = calloc(1, sizeof *d);
    plan->cpu = calloc(machine->cpu_count, sizeof *plan->cpu);
    if (d == NULL || plan->cpu == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot lay out CPU sets: out of memory");
    }
    memcpy(plan->cpu, machine->cpu, machine->cpu_count * sizeof *plan->cpu);
    plan->cpu_total = machine->cpu_count;
    demand_collect(plan, d);
    if (d->asked > machine->cpu_count) {
        return corral_fail(
            err, CORRAL_INVALID,
            "the devices of this machine's nodes ask for %u CPUs; it has %u: lower node.cpus, or leave "
            "it out for equal shares",
            d->asked, machine->cpu_count);
    }
    demand_cut(plan->job, machine->cpu_count, d);
    plan->cpus_shared = d->sharing > machine->cpu_count - d->asked;
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        struct corral_plan_worker *w = &plan->worker[i];
        w->cpu_first = d->first[w->worker.device.node][w->worker.device.slot];
        w->cpu_count = d->count[w->worker.device.node][w->worker.device.slot];
    }
    for (uint32_t i = 0; i < plan->tenant_count; i++) {
        struct corral_plan_tenant *t = &plan->tenant[i];
        const struct corral_job_partition *p = &plan->job->partition[t->partition];
        for (uint32_t k = 0; k < p->device_count; k++) {
            t->cpu_first[k] = d->first[t->node][p->device[k].slot];
            t->cpu_count[k] = d->count[t->node][p->device[k].slot];
        }
    }
    return CORRAL_OK;
}

/* Host devices are slices of this machine's memory; together they must exist. */
static enum corral_status check_host_memory(const struct corral_job *job,
                                            const struct corral_inventory *machine, struct corral_error *err)
{
    if (machine == NULL || machine->memory_total == 0) {
        return CORRAL_OK;
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < job->node_count; i++) {
        const struct corral_job_node *n = &job->node[i];
        uint64_t bytes = 0;
        if (n->kind != CORRAL_DEVICE_HOST || !is_local(n)) {
            continue;
        }
        if (__builtin_mul_overflow(n->device_memory, n->device_count, &bytes) ||
            __builtin_add_overflow(sum, bytes, &sum)) {
            sum = UINT64_MAX;
        }
    }
    if (sum > machine->memory_total) {
        char a[48], b[48];
        return corral_fail(err, CORRAL_INVALID, "host devices on this machine add up to %s; it has %s",
                           corral_format_bytes(sum, a, sizeof a),
                           corral_format_bytes(machine->memory_total, b, sizeof b));
    }
    return CORRAL_OK;
}

/* ---- does it fit, and what would ---- */

/* Up to the next MiB, so that the advice is a number people write. */
static const char *quota_text(uint64_t bytes, char out[48])
{
    const uint64_t unit = bytes >= UINT64_C(1) << 30 ? UINT64_C(1) << 30 : UINT64_C(1) << 20;
    return corral_format_bytes_exact((bytes / unit + (bytes % unit != 0)) * unit, out, 48);
}

static enum corral_status refuse_trainer(const struct corral_job *job, const struct corral_job_partition *p,
                                         uint32_t devices, const struct corral_plan_memory *m,
                                         struct corral_error *err)
{
    char need[48], have[48], quota[48], more[64] = "", lora[96] = "";
    struct corral_plan_memory other = {0};
    for (uint32_t n = devices + 1; job->trainer.method == CORRAL_TRAIN_FULL && n <= DEVICES_TRIED_MAX; n++) {
        CORRAL_TRY(corral_plan_trainer_memory(job, CORRAL_TRAIN_FULL, n, &other, err));
        if (other.need <= p->ceiling) {
            snprintf(more, sizeof more, "%u trainer devices, ", n);
            break;
        }
    }
    if (job->trainer.method == CORRAL_TRAIN_FULL) {
        CORRAL_TRY(corral_plan_trainer_memory(job, CORRAL_TRAIN_LORA, devices, &other, err));
        if (other.need <= p->ceiling) {
            char text[48];
            snprintf(lora, sizeof lora, ", or trainer.method = \"lora\" (%s)",
                     corral_format_bytes(other.need, text, sizeof text));
        }
    }
    return corral_fail(
        err, CORRAL_INVALID,
        "partition.%s: %s training of %.2fB parameters on %u device%s needs %s on each; the ceiling is "
        "%s. What fits: %sa ceiling of at least %s%s",
        p->name, job->trainer.method == CORRAL_TRAIN_FULL ? "full-parameter" : "LoRA",
        (double)corral_plan_params(job) / 1e9, devices, devices == 1 ? "" : "s",
        corral_format_bytes(m->need, need, sizeof need), corral_format_bytes(p->ceiling, have, sizeof have),
        more, quota_text(m->need, quota), lora);
}

static enum corral_status refuse_engine(const struct corral_job *job, const struct corral_job_partition *p,
                                        const struct corral_plan_memory *m, struct corral_error *err)
{
    char need[48], have[48], quota[48], parallel[64] = "";
    /* One full-context sequence is the least an engine must hold. */
    const uint64_t context = m->kv_per_token * job->model.context;
    const uint64_t least = m->need + (uint64_t)((double)context / job->engine.kv_fraction) + 1;
    for (uint32_t n = job->engine.tensor_parallel * 2; n <= p->device_count && n <= 64; n *= 2) {
        struct corral_plan_memory other = {0};
        CORRAL_TRY(corral_plan_engine_memory(job, p, n, &other, err));
        if (p->device_count % n == 0 && other.need < p->ceiling && other.kv_sequences > 0) {
            snprintf(parallel, sizeof parallel, ", or engine.tensor_parallel = %u", n);
            break;
        }
    }
    return corral_fail(
        err, CORRAL_INVALID,
        "partition.%s: an engine needs %s on each device before any KV cache, and %u tokens of it for "
        "one sequence; the ceiling is %s. What fits: a ceiling of at least %s%s",
        p->name, corral_format_bytes(m->need, need, sizeof need), job->model.context,
        corral_format_bytes(p->ceiling, have, sizeof have), quota_text(least, quota), parallel);
}

static enum corral_status transformer_partition(struct corral_plan *plan, uint32_t i,
                                                struct corral_error *err)
{
    const struct corral_job *job = plan->job;
    const struct corral_job_partition *p = &job->partition[i];
    struct corral_plan_memory *m = &plan->memory[i];
    if (p->workers_per_device != 1) {
        return corral_fail(
            err, CORRAL_INVALID,
            "partition.%s: workers_per_device must be 1 for a transformer: each would hold the model",
            p->name);
    }
    if (p->role == CORRAL_ROLE_TRAIN) {
        const uint32_t devices = corral_job_role_count(job, CORRAL_ROLE_TRAIN);
        CORRAL_TRY(corral_plan_trainer_memory(job, job->trainer.method, devices, m, err));
        return m->need > p->ceiling ? refuse_trainer(job, p, devices, m, err) : CORRAL_OK;
    }
    CORRAL_TRY(corral_plan_engine_memory(job, p, job->engine.tensor_parallel, m, err));
    return m->kv_sequences == 0 ? refuse_engine(job, p, m, err) : CORRAL_OK;
}

/* What is declared before each step has to fit at least alone. */
static enum corral_status check_peak(const struct corral_job *job, const struct corral_job_partition *p,
                                     struct corral_error *err)
{
    char peak[48], ceiling[48];
    uint64_t all = 0;
    if (p->role != CORRAL_ROLE_TRAIN ||
        (!__builtin_mul_overflow(job->trainer.peak, p->workers_per_device, &all) && all <= p->ceiling)) {
        return CORRAL_OK;
    }
    return corral_fail(
        err, CORRAL_INVALID,
        "partition.%s: trainer.peak of %s for each of %u process%s on a device is above the ceiling, %s",
        p->name, corral_format_bytes_exact(job->trainer.peak, peak, sizeof peak), p->workers_per_device,
        p->workers_per_device == 1 ? "" : "es",
        corral_format_bytes_exact(p->ceiling, ceiling, sizeof ceiling));
}

uint64_t corral_plan_ceiling_min(const struct corral_plan *plan, uint32_t partition)
{
    const struct corral_job *job = plan->job;
    const struct corral_job_partition *p = &job->partition[partition];
    uint64_t need = plan->memory[partition].need, spill = 0, peak = 0;
    if (p->role == CORRAL_ROLE_TENANT || job->model.kind != CORRAL_MODEL_MLP || need == 0) {
        return 0;
    }
    if (p->role == CORRAL_ROLE_TRAIN) {
        if (__builtin_mul_overflow(job->memory.spill, p->workers_per_device, &spill)) {
            spill = UINT64_MAX;
        }
        peak = job->trainer.peak * p->workers_per_device; /* check_peak(): no overflow */
    }
    need -= CORRAL_MIN(need, spill);
    return CORRAL_MAX(CORRAL_MAX(need, peak), (uint64_t)CORRAL_FENCE_PREFLIGHT_BYTES);
}

static enum corral_status mlp_partition(struct corral_plan *plan, uint32_t i,
                                        const struct corral_plan_env *env, struct corral_error *err)
{
    const struct corral_job_partition *p = &plan->job->partition[i];
    struct corral_plan_memory *m = &plan->memory[i];
    CORRAL_TRY(check_peak(plan->job, p, err));
    if (env == NULL || env->obs_dim == 0) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_plan_mlp_memory(plan->job, p, env, m, &plan->params, err));
    const uint64_t least = corral_plan_ceiling_min(plan, i);
    if (least > p->ceiling) {
        char need[48], have[48], quota[48];
        return corral_fail(
            err, CORRAL_INVALID,
            "partition.%s: its workers need %s on each device%s; the ceiling is %s. What fits: a ceiling "
            "of at least %s",
            p->name, corral_format_bytes(CORRAL_MAX(m->need, least), need, sizeof need),
            least < m->need ? ", less what they may spill (memory.spill)" : "",
            corral_format_bytes(p->ceiling, have, sizeof have), quota_text(least, quota));
    }
    return CORRAL_OK;
}

static enum corral_status check_memory(struct corral_plan *plan, const struct corral_plan_env *env,
                                       struct corral_error *err)
{
    const struct corral_job *job = plan->job;
    if (job->model.kind == CORRAL_MODEL_TRANSFORMER) {
        plan->params = corral_plan_params(job);
    }
    for (uint32_t i = 0; i < job->partition_count; i++) {
        plan->memory[i].partition = i;
        if (job->partition[i].role == CORRAL_ROLE_TENANT) {
            continue;
        }
        if (job->model.kind == CORRAL_MODEL_TRANSFORMER) {
            CORRAL_TRY(transformer_partition(plan, i, err));
        } else {
            CORRAL_TRY(mlp_partition(plan, i, env, err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_plan_build(const struct corral_job *job, const struct corral_inventory *machine,
                                     const struct corral_plan_env *env, struct corral_plan **out,
                                     struct corral_error *err)
{
    CORRAL_CLEANUP(corral_plan_destroyp) struct corral_plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot plan job %s: out of memory", job->name);
    }
    plan->job = job;
    plan->machine_gpus = machine != NULL ? (int32_t)machine->gpu_count : -1;
    CORRAL_TRY(check_roles(job, err));
    CORRAL_TRY(check_ledgers(plan, err));
    CORRAL_TRY(check_host_memory(job, machine, err));
    CORRAL_TRY(check_memory(plan, env, err));
    CORRAL_TRY(place_workers(plan, err));
    CORRAL_TRY(place_cpus(plan, machine, err));
    *out = CORRAL_STEAL(plan);
    return CORRAL_OK;
}
