/* The plan as a table and as JSON. */
#include "base/text.h"
#include "orchestrator/plan/plan.h"
#include <string.h>

#define SET_TEXT 256

/* "0-3,6" of a worker's CPUs; "" when it is not pinned. Not sorted: topology order, as they were cut. */
static const char *cpus_text(const struct corral_plan *plan, const struct corral_plan_worker *w, char *out,
                             size_t out_bytes)
{
    size_t used = 0;
    out[0] = '\0';
    const uint32_t *cpu = plan->cpu + w->cpu_first;
    for (uint32_t i = 0; i < w->cpu_count && used + 24 < out_bytes;) {
        uint32_t k = i;
        while (k + 1 < w->cpu_count && cpu[k + 1] == cpu[k] + 1) {
            k++;
        }
        used += (size_t)snprintf(out + used, out_bytes - used, k > i ? "%s%u-%u" : "%s%u", i > 0 ? "," : "",
                                 cpu[i], cpu[k]);
        i = k + 1;
    }
    return out;
}

static void print_head(const struct corral_plan *plan, FILE *to)
{
    const struct corral_job *job = plan->job;
    uint32_t gpus = 0, hosts = 0;
    for (uint32_t i = 0; i < job->node_count; i++) {
        *(job->node[i].kind == CORRAL_DEVICE_GPU ? &gpus : &hosts) += job->node[i].device_count;
    }
    fprintf(to, "%s  %u node%s", job->name, job->node_count, job->node_count == 1 ? "" : "s");
    if (gpus > 0) {
        fprintf(to, ", %u GPU%s", gpus, gpus == 1 ? "" : "s");
    }
    if (hosts > 0) {
        fprintf(to, ", %u host device%s", hosts, hosts == 1 ? "" : "s");
    }
    if (plan->params >= 1000000000) {
        fprintf(to, ", %.2fB parameters", (double)plan->params / 1e9);
    } else if (plan->params > 0) {
        fprintf(to, ", %llu parameters", (unsigned long long)plan->params);
    }
    fprintf(to, ", %u worker%s", plan->worker_count, plan->worker_count == 1 ? "" : "s");
    if (plan->tenant_count > 0) {
        fprintf(to, ", %u tenant%s", plan->tenant_count, plan->tenant_count == 1 ? "" : "s");
    }
    fputc('\n', to);
}

static void print_nodes(const struct corral_plan *plan, FILE *to)
{
    const struct corral_job *job = plan->job;
    fprintf(to, "\n%-12s %-6s %8s %12s %12s  %s\n", "NODE", "KIND", "DEVICES", "EACH", "HEADROOM", "ADDRESS");
    for (uint32_t i = 0; i < job->node_count; i++) {
        const struct corral_job_node *n = &job->node[i];
        char each[48], head[48];
        fprintf(to, "%-12s %-6s %8u %12s %12s  %s%s", n->name, corral_device_kind_name(n->kind),
                n->device_count, corral_format_bytes(n->device_memory, each, sizeof each),
                corral_format_bytes(corral_job_headroom(job, i), head, sizeof head), n->address,
                n->as_found ? " (as found)" : "");
        /* Fine for a plan, not for a launch. */
        if (n->kind == CORRAL_DEVICE_GPU && strcmp(n->address, "local") == 0 && plan->machine_gpus >= 0 &&
            (uint32_t)plan->machine_gpus < n->device_count) {
            fprintf(to, " (this machine has %d GPUs)", plan->machine_gpus);
        }
        fputc('\n', to);
    }
}

static void print_partitions(const struct corral_plan *plan, FILE *to)
{
    const struct corral_job *job = plan->job;
    fprintf(to, "\n%-12s %-8s %-20s %8s %12s %12s %8s\n", "PARTITION", "ROLE", "DEVICES", "WORKERS", "FLOOR",
            "CEILING", "COMPUTE");
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *p = &job->partition[i];
        char set[SET_TEXT], floor[48], ceiling[48];
        fprintf(to, "%-12s %-8s %-20s %8u %12s %12s %7u%%%s\n", p->name, corral_role_name(p->role),
                corral_job_device_set(job, p, set, sizeof set),
                p->role == CORRAL_ROLE_TENANT ? 1 : p->device_count * p->workers_per_device,
                corral_format_bytes(p->floor, floor, sizeof floor),
                corral_format_bytes(p->ceiling, ceiling, sizeof ceiling), p->compute,
                p->shared ? " shared" : "");
    }
}

static void print_memory(const struct corral_plan *plan, FILE *to)
{
    for (uint32_t i = 0; i < plan->job->partition_count; i++) {
        const struct corral_plan_memory *m = &plan->memory[i];
        const struct corral_job_partition *p = &plan->job->partition[i];
        char a[48], b[48];
        if (!m->known) {
            continue;
        }
        fprintf(to, "\nmemory of %s, each device\n", p->name);
        for (uint32_t k = 0; k < m->item_count; k++) {
            fprintf(to, "  %-50s %12s\n", m->item[k].what,
                    corral_format_bytes(m->item[k].bytes, a, sizeof a));
        }
        fprintf(to, "  %-50s %12s of %s\n", "total", corral_format_bytes(m->need, a, sizeof a),
                corral_format_bytes(p->ceiling, b, sizeof b));
        if (m->need > p->floor) {
            fprintf(to, "  %-50s %12s above the floor: needs what others leave\n", "",
                    corral_format_bytes(m->need - p->floor, a, sizeof a));
        }
        if (m->kv_bytes > 0) {
            fprintf(to, "  %-50s %12s, %llu B/token\n", "KV cache",
                    corral_format_bytes(m->kv_bytes, a, sizeof a), (unsigned long long)m->kv_per_token);
            fprintf(to, "  %-50s %12llu tokens = %llu sequences of %u\n", "",
                    (unsigned long long)m->kv_tokens, (unsigned long long)m->kv_sequences,
                    plan->job->model.context);
        }
    }
}

static void print_disk(const struct corral_plan *plan, FILE *to)
{
    for (uint32_t i = 0; i < plan->job->partition_count; i++) {
        const struct corral_plan_memory *m = &plan->memory[i];
        char step[48], kept[48];
        if (!m->known || m->log_step == 0) {
            continue;
        }
        fprintf(to, "\ntrajectory log of %s, on disk, each trainer\n  %-50s %12s\n",
                plan->job->partition[i].name, "one gradient step",
                corral_format_bytes(m->log_step, step, sizeof step));
        if (m->log_kept > 0) {
            fprintf(to, "  %-50s %12s\n", "kept at most, trimmed at checkpoints",
                    corral_format_bytes(m->log_kept, kept, sizeof kept));
        } else {
            fprintf(to, "  %-50s %12s\n", "kept", "all steps");
        }
    }
}

static void print_processes(const struct corral_plan *plan, FILE *to)
{
    fprintf(to, "\n%-20s %-14s %s\n", "PROCESS", "DEVICE", "CPUS");
    fprintf(to, "%-20s %-14s %s\n", "coordinator", "-", "any");
    for (uint32_t i = 0; i < plan->job->node_count; i++) {
        fprintf(to, "agent %-14s %-14s %s\n", plan->job->node[i].name, "-", "any");
    }
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        const struct corral_plan_worker *w = &plan->worker[i];
        char cpus[SET_TEXT];
        cpus_text(plan, w, cpus, sizeof cpus);
        fprintf(to, "%-20s %-14s %s%s\n", w->worker.name, w->device, w->cpu_count > 0 ? cpus : "any",
                w->cpu_count > 0 && plan->cpus_shared ? " shared" : "");
    }
    for (uint32_t i = 0; i < plan->tenant_count; i++) {
        const struct corral_job_partition *p = &plan->job->partition[plan->tenant[i].partition];
        char set[SET_TEXT];
        fprintf(to, "%-20s %-14s those of its devices: %s\n", p->name,
                corral_job_device_set(plan->job, p, set, sizeof set), p->command);
    }
}

enum corral_status corral_plan_print(const struct corral_plan *plan, FILE *to, struct corral_error *err)
{
    print_head(plan, to);
    print_nodes(plan, to);
    print_partitions(plan, to);
    print_memory(plan, to);
    print_disk(plan, to);
    print_processes(plan, to);
    return ferror(to) != 0 ? corral_fail(err, CORRAL_IO, "cannot write the plan") : CORRAL_OK;
}

/* ---- JSON ---- */

static json_t *nodes_json(const struct corral_plan *plan)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < plan->job->node_count; i++) {
        const struct corral_job_node *n = &plan->job->node[i];
        json_t *indices = json_array();
        for (uint32_t k = 0; k < n->device_count; k++) {
            json_array_append_new(indices, json_integer(n->device_index[k]));
        }
        json_array_append_new(array,
                              json_pack("{s:s, s:s, s:s, s:o, s:I, s:I}", "name", n->name, "address",
                                        n->address, "kind", corral_device_kind_name(n->kind), "devices",
                                        indices, "device_memory", (json_int_t)n->device_memory, "headroom",
                                        (json_int_t)corral_job_headroom(plan->job, i)));
    }
    return array;
}

static json_t *memory_json(const struct corral_plan_memory *m)
{
    if (!m->known) {
        return json_null();
    }
    json_t *items = json_array();
    for (uint32_t i = 0; i < m->item_count; i++) {
        json_array_append_new(
            items, json_pack("{s:s, s:I}", "what", m->item[i].what, "bytes", (json_int_t)m->item[i].bytes));
    }
    return json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "items", items, "log_bytes_per_step",
                     (json_int_t)m->log_step, "log_bytes_kept", (json_int_t)m->log_kept, "need",
                     (json_int_t)m->need, "kv_bytes", (json_int_t)m->kv_bytes, "kv_bytes_per_token",
                     (json_int_t)m->kv_per_token, "kv_tokens", (json_int_t)m->kv_tokens, "kv_sequences",
                     (json_int_t)m->kv_sequences);
}

static json_t *partitions_json(const struct corral_plan *plan)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < plan->job->partition_count; i++) {
        const struct corral_job_partition *p = &plan->job->partition[i];
        json_t *devices = json_array();
        for (uint32_t k = 0; k < p->device_count; k++) {
            char name[64];
            corral_job_device_name(plan->job, p->device[k].node, p->device[k].slot, name, sizeof name);
            json_array_append_new(devices, json_string(name));
        }
        json_array_append_new(array,
                              json_pack("{s:s, s:s, s:o, s:I, s:I, s:i, s:i, s:b, s:o}", "name", p->name,
                                        "role", corral_role_name(p->role), "devices", devices, "floor",
                                        (json_int_t)p->floor, "ceiling", (json_int_t)p->ceiling, "compute",
                                        (int)p->compute, "workers_per_device", (int)p->workers_per_device,
                                        "shared", p->shared, "memory", memory_json(&plan->memory[i])));
    }
    return array;
}

static json_t *workers_json(const struct corral_plan *plan)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        const struct corral_plan_worker *w = &plan->worker[i];
        json_t *cpus = json_array();
        for (uint32_t k = 0; k < w->cpu_count; k++) {
            json_array_append_new(cpus, json_integer(plan->cpu[w->cpu_first + k]));
        }
        json_array_append_new(array,
                              json_pack("{s:s, s:s, s:s, s:s, s:i, s:o}", "name", w->worker.name, "role",
                                        corral_role_name(w->worker.role), "node",
                                        plan->job->node[w->worker.device.node].name, "device", w->device,
                                        "role_index", (int)w->worker.role_index, "cpus", cpus));
    }
    return array;
}

static json_t *tenants_json(const struct corral_plan *plan)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < plan->tenant_count; i++) {
        const struct corral_job_partition *p = &plan->job->partition[plan->tenant[i].partition];
        const char *argv[CORRAL_JOB_ARGV_MAX + 1];
        json_t *command = json_array();
        for (uint32_t k = 0; k < corral_job_command(p, argv); k++) {
            json_array_append_new(command, json_string(argv[k]));
        }
        json_array_append_new(array, json_pack("{s:s, s:s, s:o, s:s}", "name", p->name, "node",
                                               plan->job->node[plan->tenant[i].node].name, "command", command,
                                               "restart", corral_restart_name(p->restart)));
    }
    return array;
}

json_t *corral_plan_json(const struct corral_plan *plan)
{
    return json_pack("{s:s, s:I, s:f, s:o, s:o, s:o, s:o}", "name", plan->job->name, "params",
                     (json_int_t)plan->params, "overcommit", plan->job->memory.overcommit, "nodes",
                     nodes_json(plan), "partitions", partitions_json(plan), "workers", workers_json(plan),
                     "tenants", tenants_json(plan));
}
