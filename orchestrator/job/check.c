/* What must hold over several values of a job, and the values that follow from others. */
#include "base/text.h"
#include "orchestrator/job/internal.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const struct origin *part_origin(const struct corral_job *job, uint32_t partition, const char *name)
{
    const char *section = job_partition_section(&job->partition[partition]);
    const struct origin *at =
        &job->origins->partition_option[partition][corral_option_find(section, name) - corral_options];
    return at->kind == ORIGIN_DEFAULT || at->kind == ORIGIN_DERIVED ? &job->origins->partition[partition]
                                                                    : at;
}

/* The place of a value, or of its section's first mention when it is a default: the top of the file. */
static struct origin *derived(struct corral_job *job, const char *section, const char *name)
{
    struct origin *at = &job->origins->option[corral_option_find(section, name) - corral_options];
    at->kind = ORIGIN_DERIVED;
    return at;
}

/* Names are ledger roles and log files, so one is nobody else's. */
static enum corral_status check_name(const struct corral_job *job, uint32_t i, struct corral_error *err)
{
    const struct corral_job_partition *p = &job->partition[i];
    char process[CORRAL_JOB_NAME_MAX + 8];
    for (uint32_t k = 0; k < i; k++) {
        if (strcmp(job->partition[k].name, p->name) == 0) {
            return job_error(job, part_origin(job, i, "name"), err, "`%s` is already the name of a %s",
                             p->name, job_partition_section(&job->partition[k]));
        }
    }
    bool taken = strcmp(p->name, "coordinator") == 0;
    for (uint32_t n = 0; n < job->node_count; n++) {
        snprintf(process, sizeof process, "agent-%s", job->node[n].name);
        taken |= strcmp(p->name, process) == 0;
    }
    for (uint32_t k = 0; k < i; k++) {
        const size_t length = strlen(job->partition[k].name);
        uint64_t number = 0;
        taken |= job->partition[k].role != CORRAL_ROLE_TENANT && p->name[length] == '-' &&
                 strncmp(p->name, job->partition[k].name, length) == 0 &&
                 corral_parse_u64(p->name + length + 1, &number);
    }
    return taken ? job_error(job, part_origin(job, i, "name"), err,
                             "`%s` is the name of another process of the run; choose another", p->name)
                 : CORRAL_OK;
}

static enum corral_status check_tenant(const struct corral_job *job, uint32_t i, struct corral_error *err)
{
    const struct corral_job_partition *p = &job->partition[i];
    CORRAL_TRY(check_name(job, i, err));
    for (uint32_t d = 1; d < p->device_count; d++) {
        if (p->device[d].node != p->device[0].node) {
            return job_error(
                job, part_origin(job, i, "gpus"), err,
                "tenant.%s is one process, and its devices are on nodes `%s` and `%s`; write one "
                "[[tenant]] for each node",
                p->name, job->node[p->device[0].node].name, job->node[p->device[d].node].name);
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_partition(struct corral_job *job, uint32_t i, struct corral_error *err)
{
    struct corral_job_partition *p = &job->partition[i];
    if (p->ceiling == UINT64_MAX) {
        p->ceiling = p->floor;
        job->origins
            ->partition_option[i][corral_option_find(job_partition_section(p), "ceiling") - corral_options]
            .kind = ORIGIN_DERIVED;
    }
    if (p->ceiling == 0) {
        return job_error(job, part_origin(job, i, "floor"), err,
                         "%s.%s may hold no memory at all: set ceiling", job_partition_section(p), p->name);
    }
    if (p->floor > p->ceiling) {
        char a[48], b[48];
        return job_error(job, part_origin(job, i, "ceiling"), err,
                         "`%s.%s.ceiling` (%s) is below its floor (%s)", job_partition_section(p), p->name,
                         corral_format_bytes_exact(p->ceiling, a, sizeof a),
                         corral_format_bytes_exact(p->floor, b, sizeof b));
    }
    return p->role == CORRAL_ROLE_TENANT ? check_tenant(job, i, err) : CORRAL_OK;
}

/* Compute shares of a shared device add up to at most the device. */
static enum corral_status check_compute(const struct corral_job *job, uint32_t i, struct corral_error *err)
{
    const struct corral_job_partition *p = &job->partition[i];
    if (!p->shared) {
        return CORRAL_OK;
    }
    for (uint32_t d = 0; d < p->device_count; d++) {
        uint32_t sum = p->compute;
        for (uint32_t q = 0; q < i; q++) {
            const struct corral_job_partition *other = &job->partition[q];
            for (uint32_t k = 0; k < other->device_count; k++) {
                bool same =
                    other->device[k].node == p->device[d].node && other->device[k].slot == p->device[d].slot;
                sum += same ? other->compute : 0;
            }
        }
        if (sum > 100) {
            char name[64];
            return job_error(
                job, part_origin(job, i, "compute"), err,
                "the compute shares on %s add up to %u percent; set `compute` of each, at most 100 together",
                corral_job_device_name(job, p->device[d].node, p->device[d].slot, name, sizeof name), sum);
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_partitions(struct corral_job *job, struct corral_error *err)
{
    if (job->partition_count == 0) {
        const struct origin top = {.kind = ORIGIN_FILE, .line = 1, .column = 1};
        return job_error(job, &top, err, "no [partition.NAME]: nothing would run");
    }
    for (uint32_t i = 0; i < job->partition_count; i++) {
        CORRAL_TRY(check_partition(job, i, err));
        CORRAL_TRY(check_compute(job, i, err));
        if (corral_job_workers(job, NULL, 0) > CORRAL_JOB_WORKERS_MAX) {
            return job_error(job, &job->origins->partition[i], err, "more than %d workers",
                             CORRAL_JOB_WORKERS_MAX);
        }
    }
    return CORRAL_OK;
}

static bool any_partition(const struct corral_job *job, bool gpu, bool tenant, bool share)
{
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *p = &job->partition[i];
        for (uint32_t d = 0; d < p->device_count; d++) {
            bool on_gpu = job->node[p->device[d].node].kind == CORRAL_DEVICE_GPU;
            if (on_gpu == gpu && (!tenant || p->role == CORRAL_ROLE_TENANT) && (!share || p->compute < 100)) {
                return true;
            }
        }
    }
    return false;
}

/* A fence that none of the job's devices can have is a wish nobody will grant: better said now. */
static enum corral_status check_fences(const struct corral_job *job, struct corral_error *err)
{
    static const struct {
        const char *name;
        bool gpu, tenant, share;
        const char *holds;
    } needs[] = {
        {"interposer", true, false, false, "processes on GPUs"},
        {"mps", true, false, false, "processes on GPUs"},
        {"dmem", true, false, false, "processes on GPUs"},
        {"cgroup-memory", false, false, false, "processes on host devices"},
        {"rlimit", false, true, false, "tenants on host devices"},
        {"cpu", false, false, true, "partitions on host devices with `compute` below 100"},
    };
    const char *name;
    for (uint32_t bit = 0; (name = corral_job_fence_name(bit)) != NULL; bit++) {
        for (size_t i = 0; i < CORRAL_COUNT_OF(needs) && (job->memory.fences & 1u << bit) != 0; i++) {
            if (strcmp(needs[i].name, name) == 0 &&
                !any_partition(job, needs[i].gpu, needs[i].tenant, needs[i].share)) {
                return job_error(job, job_origin(job, "memory", "fences"), err,
                                 "`memory.fences` asks for \"%s\", which holds %s; this job has none", name,
                                 needs[i].holds);
            }
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_mlp(struct corral_job *job, struct corral_error *err)
{
    if (job->env.id[0] == '\0') {
        return job_error(job, job_origin(job, "env", "id"), err, "missing key `env.id`");
    }
    if (job->trainer.backend != CORRAL_TRAINER_BUILTIN) {
        return job_error(job, job_origin(job, "trainer", "backend"), err,
                         "`trainer.backend` must be \"builtin\" when model.kind is \"mlp\"");
    }
    if (job->trainer.method != CORRAL_TRAIN_FULL) {
        return job_error(job, job_origin(job, "trainer", "method"), err,
                         "`trainer.method` must be \"full\" when model.kind is \"mlp\"");
    }
    if (job->engine.kind != CORRAL_ENGINE_BUILTIN) {
        return job_error(job, job_origin(job, "engine", "kind"), err,
                         "`engine.kind` must be \"builtin\" when model.kind is \"mlp\"");
    }
    return CORRAL_OK;
}

static enum corral_status check_transformer(struct corral_job *job, struct corral_error *err)
{
    const struct {
        const char *name;
        uint32_t value;
    } needed[] = {{"layers", job->model.layers},
                  {"hidden_size", job->model.hidden_size},
                  {"heads", job->model.heads},
                  {"ffn", job->model.ffn},
                  {"vocab", job->model.vocab}};
    const struct origin *kind = job_origin(job, "model", "kind");
    for (size_t i = 0; i < CORRAL_COUNT_OF(needed); i++) {
        if (needed[i].value == 0) {
            return job_error(job, kind, err,
                             "missing key `model.%s`: needed when model.kind is \"transformer\"",
                             needed[i].name);
        }
    }
    if (job->model.kv_heads == 0) {
        job->model.kv_heads = job->model.heads;
        derived(job, "model", "kv_heads");
    }
    if (job->model.heads % job->model.kv_heads != 0) {
        return job_error(job, job_origin(job, "model", "kv_heads"), err,
                         "`model.heads` (%u) must be a multiple of `model.kv_heads` (%u)", job->model.heads,
                         job->model.kv_heads);
    }
    if (job->model.head_dim == 0) {
        job->model.head_dim = job->model.hidden_size / job->model.heads;
        derived(job, "model", "head_dim");
        if (job->model.head_dim == 0) {
            return job_error(job, job_origin(job, "model", "heads"), err,
                             "`model.heads` (%u) is larger than `model.hidden_size` (%u)", job->model.heads,
                             job->model.hidden_size);
        }
    }
    if (job->trainer.backend == CORRAL_TRAINER_BUILTIN) {
        return job_error(
            job, job_origin(job, "trainer", "backend"), err,
            "`trainer.backend` \"builtin\" trains model.kind = \"mlp\" only; write backend = \"torch\"");
    }
    if (job->engine.kind == CORRAL_ENGINE_BUILTIN) {
        return job_error(job, job_origin(job, "engine", "kind"), err,
                         "`engine.kind` \"builtin\" runs model.kind = \"mlp\" only");
    }
    return CORRAL_OK;
}

static enum corral_status check_algorithm(struct corral_job *job, struct corral_error *err)
{
    if (isnan(job->algorithm.lr_final)) {
        job->algorithm.lr_final = job->algorithm.lr;
        derived(job, "algorithm", "lr_final");
    }
    if (isnan(job->algorithm.clip_final)) {
        job->algorithm.clip_final = job->algorithm.clip;
        derived(job, "algorithm", "clip_final");
    }
    bool lr_moves = job->algorithm.lr_final != job->algorithm.lr;
    bool clip_moves = job->algorithm.clip_final != job->algorithm.clip;
    if (job->algorithm.schedule_steps == 0) {
        if (job->stop.env_steps == 0 && (lr_moves || clip_moves)) {
            const char *name = lr_moves ? "lr_final" : "clip_final";
            return job_error(
                job, job_origin(job, "algorithm", name), err,
                "`algorithm.%s` needs algorithm.schedule_steps or stop.env_steps: how long the way is", name);
        }
        job->algorithm.schedule_steps = job->stop.env_steps;
        derived(job, "algorithm", "schedule_steps");
    }
    if (job->algorithm.batch != 0 && job->algorithm.minibatch > job->algorithm.batch) {
        return job_error(job, job_origin(job, "algorithm", "minibatch"), err,
                         "`algorithm.minibatch` (%u) is larger than `algorithm.batch` (%" PRIu64 ")",
                         job->algorithm.minibatch, job->algorithm.batch);
    }
    return CORRAL_OK;
}

static enum corral_status check_stop(const struct corral_job *job, struct corral_error *err)
{
    bool has_eval = corral_job_role_count(job, CORRAL_ROLE_EVAL) > 0;
    if (!isnan(job->stop.eval_return) && !has_eval) {
        return job_error(job, job_origin(job, "stop", "eval_return"), err,
                         "`stop.eval_return` needs a partition with role = \"eval\"");
    }
    if (job->stop.env_steps == 0 && job->stop.train_steps == 0 && job->stop.wall_ns == 0 &&
        isnan(job->stop.eval_return) && isnan(job->stop.train_return)) {
        const struct origin *at = job_origin(job, "stop", "env_steps");
        return job_error(
            job, at, err,
            "the job would never end: set one of stop.env_steps, train_steps, wall, eval_return, "
            "train_return");
    }
    return CORRAL_OK;
}

static enum corral_status check_fault(const struct corral_job *job, struct corral_error *err)
{
    if (job->fault.dead_after_ns < 3 * job->fault.heartbeat_ns) {
        return job_error(job, job_origin(job, "fault", "dead_after"), err,
                         "`fault.dead_after` must be at least three times `fault.heartbeat`");
    }
    if (job->fault.backoff_max_ns < job->fault.backoff_ns) {
        return job_error(job, job_origin(job, "fault", "backoff_max"), err,
                         "`fault.backoff_max` is below `fault.backoff`");
    }
    return CORRAL_OK;
}

static enum corral_status check_observe(const struct corral_job *job, struct corral_error *err)
{
    const char *text = job->observe.prometheus;
    if (text[0] == '\0') {
        return CORRAL_OK;
    }
    const char *colon = strrchr(text, ':');
    uint64_t port = 0;
    if (colon == NULL || colon == text || !corral_parse_u64(colon + 1, &port) || port > 65535) {
        return job_error(job, job_origin(job, "observe", "prometheus"), err,
                         "`observe.prometheus` must be \"HOST:PORT\", not \"%.60s\"", text);
    }
    return CORRAL_OK;
}

#define ANCHOR_EVERY_DEFAULT 25u /* as in options.c */

/* Deltas and casts that would do nothing are mistakes. */
static enum corral_status check_weights_form(const struct corral_job *job, struct corral_error *err)
{
    const struct origin *anchor = job_origin(job, "weights", "anchor_every");
    if (job->weights.delta && job->node_count == 1) {
        return job_error(
            job, job_origin(job, "weights", "delta"), err,
            "`weights.delta` = true has no use in a job of one node, where versions are written into the "
            "node's memory and not sent");
    }
    /* The default may stand there: the run folder's job file has every key. */
    if (!job->weights.delta && job->weights.anchor_every != ANCHOR_EVERY_DEFAULT) {
        return job_error(job, anchor, err,
                         "`weights.anchor_every` is for deltas; write `delta = true` beside it");
    }
    static const enum corral_weight_cast is[] = {[CORRAL_OPTION_BF16] = CORRAL_WEIGHT_CAST_BF16,
                                                 [CORRAL_OPTION_F16] = CORRAL_WEIGHT_CAST_F16,
                                                 [CORRAL_OPTION_F32] = CORRAL_WEIGHT_CAST_NONE};
    if (job->weights.cast != CORRAL_WEIGHT_CAST_NONE && job->model.kind == CORRAL_MODEL_TRANSFORMER &&
        job->weights.cast == is[job->model.dtype]) {
        return job_error(job, job_origin(job, "weights", "cast"), err,
                         "`weights.cast` is what `model.dtype` is already; write \"none\"");
    }
    return CORRAL_OK;
}

static enum corral_status check_weights(const struct corral_job *job, struct corral_error *err)
{
    const enum corral_weights_transport lane = job->weights.transport;
    if (lane == CORRAL_WEIGHTS_NCCL || lane == CORRAL_WEIGHTS_CUDA_IPC) {
        return job_error(
            job, job_origin(job, "weights", "transport"), err,
            "`weights.transport` = \"%s\" moves GPU memory, and a node's copy of this job's weights is in "
            "host memory; write \"auto\", \"tcp\" or \"rdma\"",
            lane == CORRAL_WEIGHTS_NCCL ? "nccl" : "cuda_ipc");
    }
    for (uint32_t i = 0; i < job->node_count && lane == CORRAL_WEIGHTS_SHM; i++) {
        if (strcmp(job->node[i].address, "local") != 0) {
            return job_error(
                job, job_origin(job, "weights", "transport"), err,
                "`weights.transport` = \"shm\" does not reach node %s, which is another machine; "
                "write \"auto\", \"tcp\" or \"rdma\"",
                job->node[i].name);
        }
    }
    return CORRAL_OK;
}

/* A log with a limit that is never trimmed would stop the run for good. */
static enum corral_status check_stream_log(const struct corral_job *job, struct corral_error *err)
{
    if (job->stream.durability != CORRAL_STREAM_WAL || job->stream.log_max == 0) {
        return CORRAL_OK;
    }
    if (job->stream.keep == CORRAL_STREAM_KEEP_ALL) {
        return job_error(
            job, job_origin(job, "stream", "log_max"), err,
            "`stream.log_max` limits what `stream.keep` = \"all\" keeps for good; leave one of them out");
    }
    if (job->checkpoint.every == 0) {
        return job_error(job, job_origin(job, "stream", "log_max"), err,
                         "`stream.log_max` needs `checkpoint.every`: the log is only trimmed at checkpoints");
    }
    return CORRAL_OK;
}

enum corral_status job_check(struct corral_job *job, struct corral_error *err)
{
    if (job->dir[0] == '\0') {
        return job_error(job, job_origin(job, "job", "dir"), err, "`job.dir` is empty");
    }
    CORRAL_TRY(check_partitions(job, err));
    CORRAL_TRY(check_fences(job, err));
    CORRAL_TRY(job->model.kind == CORRAL_MODEL_MLP ? check_mlp(job, err) : check_transformer(job, err));
    CORRAL_TRY(check_algorithm(job, err));
    CORRAL_TRY(check_stop(job, err));
    CORRAL_TRY(check_fault(job, err));
    CORRAL_TRY(check_observe(job, err));
    CORRAL_TRY(check_weights(job, err));
    CORRAL_TRY(check_weights_form(job, err));
    return check_stream_log(job, err);
}
