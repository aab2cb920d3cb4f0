#include "orchestrator/plan/memory.h"
#include "base/text.h"
#include "rollout/worker/fragment_builder.h"
#include "trainer-bridge/learners/ppo.h"
#include "transport/trajectory/sender.h"
#include "transport/weights/node_receiver.h"
#include "worker/fragment_share.h"
#include <string.h>
#include <sys/mman.h>

static uint64_t dtype_bytes(enum corral_dtype_option dtype)
{
    return dtype == CORRAL_OPTION_F32 ? 4 : 2;
}

/* ---- shapes; the widest options still fit: 4096 layers x 2^24 x 2^20 x 16 B stays below 2^64 only because the sums below saturate ---- */

static uint64_t mul(uint64_t a, uint64_t b)
{
    uint64_t out;
    return __builtin_mul_overflow(a, b, &out) ? UINT64_MAX : out;
}

static uint64_t add(uint64_t a, uint64_t b)
{
    uint64_t out;
    return __builtin_add_overflow(a, b, &out) ? UINT64_MAX : out;
}

static uint64_t share(uint64_t bytes, uint64_t parts)
{
    return bytes / parts + (bytes % parts != 0);
}

static uint64_t query_width(const struct corral_job *job)
{
    return (uint64_t)job->model.heads * job->model.head_dim;
}

static uint64_t kv_width(const struct corral_job *job)
{
    return (uint64_t)job->model.kv_heads * job->model.head_dim;
}

uint64_t corral_plan_layer_params(const struct corral_job *job)
{
    const uint64_t h = job->model.hidden_size;
    uint64_t n = mul(2 * h, query_width(job)); /* q and o */
    n = add(n, mul(2 * h, kv_width(job)));     /* k and v */
    n = add(n, mul(3 * h, job->model.ffn));    /* gate, up, down */
    n = add(n, 2 * h);                         /* two norms */
    return job->model.qk_norm ? add(n, 2 * (uint64_t)job->model.head_dim) : n;
}

uint64_t corral_plan_params(const struct corral_job *job)
{
    if (job->model.params != 0) {
        return job->model.params;
    }
    uint64_t n = mul(job->model.layers, corral_plan_layer_params(job));
    n = add(n, mul(job->model.tied ? 1 : 2, mul(job->model.vocab, job->model.hidden_size)));
    return add(n, job->model.hidden_size);
}

uint64_t corral_plan_lora_params(const struct corral_job *job)
{
    const uint64_t h = job->model.hidden_size, q = query_width(job), kv = kv_width(job), ffn = job->model.ffn;
    const uint64_t widths = 2 * (h + q) + 2 * (h + kv) + 3 * (h + ffn);
    return mul(mul(job->trainer.lora_rank, job->model.layers), widths);
}

uint64_t corral_plan_kv_bytes_per_token(const struct corral_job *job)
{
    return mul(2 * (uint64_t)job->model.layers * dtype_bytes(job->model.dtype), kv_width(job));
}

uint64_t corral_plan_activation_bytes(const struct corral_job *job)
{
    const uint64_t h = job->model.hidden_size, q = query_width(job), kv = kv_width(job), ffn = job->model.ffn;
    /* norm, residual, norm, down; q, rotated q, attention; k, rotated k, v; gate, up, their product */
    return mul(dtype_bytes(job->model.dtype), 4 * h + 3 * q + 3 * kv + 3 * ffn);
}

uint32_t corral_plan_state_bytes_per_param(const struct corral_job *job)
{
    uint64_t master = job->trainer.master_weights && job->model.dtype != CORRAL_OPTION_F32 ? 4 : 0;
    uint64_t moments = job->trainer.optimizer == CORRAL_OPTIMIZER_ADAM8BIT ? 2 : 8;
    return (uint32_t)(dtype_bytes(job->model.dtype) + dtype_bytes(job->trainer.gradients) + master + moments);
}

/* ---- items ---- */

static void item(struct corral_plan_memory *m, uint64_t bytes, const char *what)
{
    if (bytes == 0 || m->item_count == CORRAL_PLAN_ITEMS_MAX) {
        return;
    }
    struct corral_plan_item *i = &m->item[m->item_count++];
    snprintf(i->what, sizeof i->what, "%s", what);
    i->bytes = bytes;
    m->need = add(m->need, bytes);
}

static enum corral_status checked(const struct corral_job *job, const struct corral_plan_memory *m,
                                  struct corral_error *err)
{
    if (m->need == UINT64_MAX) {
        return corral_fail(err, CORRAL_INVALID, "the model of job %s is too large to count", job->name);
    }
    return CORRAL_OK;
}

static void items_passes(const struct corral_job *job, struct corral_plan_memory *m)
{
    const uint64_t tokens = job->trainer.tokens_per_gpu;
    const uint64_t per_layer = mul(tokens, corral_plan_activation_bytes(job));
    char what[64];
    if (job->trainer.checkpointing) {
        snprintf(what, sizeof what, "activation checkpoints, %u tokens", job->trainer.tokens_per_gpu);
        uint64_t row = mul(job->model.hidden_size, dtype_bytes(job->model.dtype));
        item(m, mul(mul(job->model.layers, tokens), row), what);
        item(m, mul(2, per_layer), "one layer again, with gradients");
    } else {
        snprintf(what, sizeof what, "activations, %u tokens", job->trainer.tokens_per_gpu);
        item(m, mul(job->model.layers, per_layer), what);
        item(m, per_layer, "gradients of one layer's activations");
    }
    uint64_t rows = CORRAL_MIN(job->trainer.logits_chunk, job->trainer.tokens_per_gpu);
    snprintf(what, sizeof what, "logits and gradients, f32, %u tokens", (unsigned)rows);
    item(m, mul(mul(2 * 4, job->model.vocab), rows), what);
    item(m, CORRAL_PLAN_BLAS_BYTES, "matrix library workspace");
    item(m, CORRAL_PLAN_CONTEXT_BYTES, "context and fragmentation");
}

enum corral_status corral_plan_trainer_memory(const struct corral_job *job, enum corral_train_method method,
                                              uint32_t devices, struct corral_plan_memory *out,
                                              struct corral_error *err)
{
    const uint64_t params = corral_plan_params(job);
    struct corral_plan_memory m = {.partition = out->partition, .known = true};
    char what[64];
    if (method == CORRAL_TRAIN_LORA) {
        const uint64_t lora = corral_plan_lora_params(job);
        item(&m, mul(params, dtype_bytes(job->model.dtype)), "frozen base weights");
        snprintf(what, sizeof what, "adapters, rank %u: weight, gradient, m, v", job->trainer.lora_rank);
        item(&m, mul(lora, 8 + (job->trainer.optimizer == CORRAL_OPTIMIZER_ADAM8BIT ? 2 : 8)), what);
        item(&m, mul(lora, dtype_bytes(job->model.dtype)), "adapters to publish");
    } else {
        const uint64_t weight = dtype_bytes(job->model.dtype), gradient = dtype_bytes(job->trainer.gradients);
        const uint64_t rest = corral_plan_state_bytes_per_param(job) - weight - gradient;
        snprintf(what, sizeof what, "weights, 1/%u of %u B/param", devices, (unsigned)weight);
        item(&m, share(mul(params, weight), devices), what);
        snprintf(what, sizeof what, "gradients, 1/%u of %u B/param", devices, (unsigned)gradient);
        item(&m, share(mul(params, gradient), devices), what);
        snprintf(what, sizeof what, "master and moments, 1/%u of %u B/param", devices, (unsigned)rest);
        item(&m, share(mul(params, rest), devices), what);
        if (devices > 1) { /* this layer and the next */
            item(&m, mul(2 * weight, corral_plan_layer_params(job)), "two gathered layers");
        }
    }
    items_passes(job, &m);
    CORRAL_TRY(checked(job, &m, err));
    *out = m;
    return CORRAL_OK;
}

enum corral_status corral_plan_engine_memory(const struct corral_job *job,
                                             const struct corral_job_partition *p, uint32_t tensor_parallel,
                                             struct corral_plan_memory *out, struct corral_error *err)
{
    struct corral_plan_memory m = {.partition = out->partition, .known = true};
    const uint64_t bytes = dtype_bytes(job->model.dtype);
    const uint64_t weights = share(mul(corral_plan_params(job), bytes), tensor_parallel);
    char what[64];
    item(&m, weights, "weights");
    if (job->trainer.method == CORRAL_TRAIN_LORA) {
        item(&m, share(mul(2 * bytes, corral_plan_lora_params(job)), tensor_parallel),
             "adapters, two versions");
    } else {
        item(&m, weights, "shadow copy for the next version");
    }
    snprintf(what, sizeof what, "logits, f32, %u sequences", job->engine.max_sequences);
    item(&m, mul(mul(4, job->model.vocab), job->engine.max_sequences), what);
    snprintf(what, sizeof what, "prefill activations, %u tokens", CORRAL_PLAN_PREFILL_TOKENS);
    item(&m, share(mul(CORRAL_PLAN_PREFILL_TOKENS, corral_plan_activation_bytes(job)), tensor_parallel),
         what);
    item(&m, CORRAL_PLAN_CONTEXT_BYTES, "context and fragmentation");
    CORRAL_TRY(checked(job, &m, err));
    /* KV heads are cut over the devices; a device holds at least one. */
    uint64_t heads = share(job->model.kv_heads, tensor_parallel);
    m.kv_per_token = mul(2 * (uint64_t)job->model.layers * bytes, heads * job->model.head_dim);
    uint64_t left = m.need < p->ceiling ? p->ceiling - m.need : 0;
    m.kv_bytes = (uint64_t)((double)left * job->engine.kv_fraction);
    if (job->engine.kv_fraction >= 1) { /* exactly, not through a double */
        m.kv_bytes = left;
    }
    m.kv_tokens = m.kv_per_token > 0 ? m.kv_bytes / m.kv_per_token : 0;
    m.kv_sequences = m.kv_tokens / job->model.context;
    *out = m;
    return CORRAL_OK;
}

/* ---- mlp ---- */

static uint64_t transition_bytes(const struct corral_policy_spec *spec)
{
    uint64_t mask = spec->action.kind == CORRAL_ACTION_CONTINUOUS ? 0 : corral_action_logits(&spec->action);
    /* observation, action, log-probability, reward, terminated, truncated, active */
    return 4 * (uint64_t)spec->obs_dim + 4 * (uint64_t)spec->action.components + mask + 4 + 4 + 3;
}

/* What a part of a worker takes is asked of the part itself: it is made once with an allocator that counts. The memory is mapped and never touched, so that planning a job too large
 * for this machine costs nothing. */
struct counter {
    uint64_t bytes;
};

static size_t whole_pages(size_t bytes)
{
    return (CORRAL_MAX(bytes, (size_t)1) + 4095) / 4096 * 4096;
}

static enum corral_status count_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                      struct corral_error *err)
{
    void *p = bytes > SIZE_MAX - 4096 ? MAP_FAILED
                                      : mmap(NULL, whole_pages(bytes), PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        return corral_fail(err, CORRAL_INVALID, "%s would take %zu bytes, more than can be addressed", what,
                           bytes);
    }
    ((struct counter *)ctx)->bytes += whole_pages(bytes);
    *out = p;
    return CORRAL_OK;
}

static void count_release(void *ctx, void *memory, size_t bytes)
{
    (void)ctx;
    if (memory != NULL) {
        (void)munmap(memory, whole_pages(bytes));
    }
}

static enum corral_status workspace_bytes(const struct corral_policy_layout *layout, uint64_t rows,
                                          uint64_t *out, struct corral_error *err)
{
    struct counter c = {0};
    const struct corral_allocator counting = {count_alloc, count_release, &c};
    struct corral_policy_workspace *ws = NULL;
    CORRAL_TRY(corral_policy_workspace_create(&ws, layout, (uint32_t)CORRAL_MIN(rows, (uint64_t)UINT32_MAX),
                                              false, &counting, err));
    corral_policy_workspace_destroy(ws);
    *out = c.bytes;
    return CORRAL_OK;
}

static enum corral_status builder_bytes(const struct corral_job *job, const struct corral_policy_spec *spec,
                                        uint64_t rows, uint32_t agents, uint64_t *out,
                                        struct corral_error *err)
{
    struct counter c = {0};
    const struct corral_allocator counting = {count_alloc, count_release, &c};
    const bool continuous = spec->action.kind == CORRAL_ACTION_CONTINUOUS;
    const struct corral_vec_view view = {.envs = job->env.instances,
                                         .agents = agents,
                                         .rows = (uint32_t)rows,
                                         .obs_dim = spec->obs_dim,
                                         .action_components = spec->action.components,
                                         .mask_bytes = continuous ? 0 : corral_action_logits(&spec->action)};
    struct corral_fragment_builder builder;
    CORRAL_TRY(
        corral_fragment_builder_open(&builder, &view, continuous, job->rollout.fragment, &counting, err));
    corral_fragment_builder_close(&builder);
    *out = c.bytes;
    return CORRAL_OK;
}

static enum corral_status learner_bytes(const struct corral_job *job,
                                        const struct corral_policy_layout *layout, uint64_t batch,
                                        uint64_t *out, struct corral_error *err)
{
    struct counter c = {0};
    const struct corral_allocator counting = {count_alloc, count_release, &c};
    struct corral_ppo_config config;
    struct corral_ppo *ppo = NULL;
    corral_job_ppo_config(job, &config);
    CORRAL_TRY(corral_ppo_create(&ppo, layout, &config, (uint32_t)CORRAL_MIN(batch, (uint64_t)UINT32_MAX / 2),
                                 NULL, &counting, err));
    *out = c.bytes + 2 * corral_ppo_state_bytes(ppo);
    corral_ppo_destroy(ppo);
    return CORRAL_OK;
}

/* A vector's row buffers, and as much again for what the plug-in keeps. */
static uint64_t environment_bytes(const struct corral_policy_spec *spec, uint64_t rows)
{
    return 2 * rows * (2 * transition_bytes(spec) + 4 * (uint64_t)spec->obs_dim) + 4 * 4096;
}

/* What a rollout worker's lease lets it keep: rollout/worker/rollout_worker.h. */
static uint64_t leased_fragments(const struct corral_job *job, uint64_t rows)
{
    const uint32_t workers = CORRAL_MAX(1u, corral_job_role_count(job, CORRAL_ROLE_ROLLOUT));
    const uint32_t trainers = CORRAL_MAX(1u, corral_job_role_count(job, CORRAL_ROLE_TRAIN));
    return (uint64_t)corral_fragment_per_step(workers, trainers, job->algorithm.batch,
                                              rows * job->rollout.fragment) *
           (1 + (uint64_t)job->staleness.max_versions);
}

/* What is kept for the trainers: where it may go through rings, at least a ring to each of those that this worker sends to (ring_sizes() in orchestrator/worker/worker_config.c). */
static uint64_t sender_bytes(const struct corral_job *job, uint64_t leased, uint64_t fragment)
{
    const uint32_t workers = CORRAL_MAX(1u, corral_job_role_count(job, CORRAL_ROLE_ROLLOUT));
    const uint32_t trainers = CORRAL_MAX(1u, corral_job_role_count(job, CORRAL_ROLE_TRAIN));
    const uint64_t ranks = trainers / corral_fragment_common(workers, trainers);
    const uint64_t plain = leased * fragment, ring = CORRAL_MAX(leased / ranks, UINT64_C(2)) * fragment;
    const bool rings = job->stream.transport != CORRAL_STREAM_ZMQ;
    return 16384 + (rings ? CORRAL_MAX(plain, ranks * corral_traj_ring_bytes(ring)) : plain);
}

/* What a cast, and what deltas take besides: at most a copy of all that is sent, a quarter of it encoded, and three buckets. */
static void weight_form_items(const struct corral_job *job, uint64_t processes, uint64_t weights,
                              struct corral_plan_memory *m)
{
    if (job->weights.cast != CORRAL_WEIGHT_CAST_NONE) {
        item(m, processes * weights, "cast weights");
    }
    if (job->weights.delta) {
        item(m, processes * (weights + weights / 4 + 3 * CORRAL_MIN(weights, CORRAL_NODE_BUCKET_BYTES)),
             "what weight deltas start from");
    }
}

/* What the log of a trainer takes on disk: a gradient step's fragments, from the oldest kept checkpoint to the next that is written, what workers are ahead, twice because whole files
 * are deleted. */
static enum corral_status log_disk(const struct corral_job *job, uint64_t fragments, uint64_t fragment,
                                   struct corral_plan_memory *m, struct corral_error *err)
{
    if (job->stream.durability != CORRAL_STREAM_WAL) {
        return CORRAL_OK;
    }
    m->log_step = fragments * fragment;
    if (job->checkpoint.every == 0 || job->stream.keep == CORRAL_STREAM_KEEP_ALL) {
        return CORRAL_OK;
    }
    uint64_t steps =
        (job->checkpoint.keep + UINT64_C(1)) * job->checkpoint.every + 1 + job->staleness.max_versions;
    m->log_kept = 2 * (steps * m->log_step + job->stream.buffer);
    if (job->stream.log_max != 0 && job->stream.log_max < m->log_kept) {
        char limit[48], need[48];
        return corral_fail(err, CORRAL_INVALID,
                           "stream.log_max of %s: up to %llu gradient steps lie between the oldest of %u "
                           "kept checkpoints and "
                           "the next one, and the log of a trainer needs them all; at least %s are needed",
                           corral_format_bytes_exact(job->stream.log_max, limit, sizeof limit),
                           (unsigned long long)steps, job->checkpoint.keep,
                           corral_format_bytes(m->log_kept, need, sizeof need));
    }
    return CORRAL_OK;
}

static uint64_t fragment_bytes(const struct corral_job *job, const struct corral_policy_spec *spec,
                               uint64_t rows)
{
    return rows * job->rollout.fragment * transition_bytes(spec) + job->rollout.fragment * 8 +
           rows * 4 * spec->obs_dim + CORRAL_FRAGMENT_HEADER_BYTES;
}

enum corral_status corral_plan_mlp_memory(const struct corral_job *job, const struct corral_job_partition *p,
                                          const struct corral_plan_env *env, struct corral_plan_memory *out,
                                          uint64_t *params, struct corral_error *err)
{
    struct corral_policy_spec spec;
    struct corral_policy_layout layout;
    corral_job_policy_spec(job, env->obs_dim, &env->action, &spec);
    CORRAL_TRY(corral_policy_layout_build(&spec, &layout, err));
    struct corral_plan_memory m = {.partition = out->partition, .known = true};
    const uint64_t processes = p->workers_per_device;
    const uint64_t weights = 4 * layout.floats, trainable = 4 * layout.trainable_floats;
    const uint64_t rows = (uint64_t)job->env.instances * env->agents;
    char what[64];
    uint64_t bytes;
    if (p->role == CORRAL_ROLE_TRAIN) {
        const uint64_t trainers = CORRAL_MAX(1u, corral_job_role_count(job, CORRAL_ROLE_TRAIN));
        const uint64_t batch = share(corral_job_batch(job, env->agents), trainers);
        CORRAL_TRY(learner_bytes(job, &layout, batch, &bytes, err));
        item(&m, processes * weights, "weights");
        item(&m, processes * trainable, "gradients");
        item(&m, processes * 2 * trainable, "adam m and v");
        snprintf(what, sizeof what, "batch of %llu, activations, two committed states",
                 (unsigned long long)batch);
        item(&m, processes * (bytes - CORRAL_MIN(bytes, weights + 3 * trainable)), what);
        item(&m, processes * job->stream.buffer, "trajectory buffer");
        item(&m, processes * 4 * weights, "versions on their way");
        weight_form_items(job, processes, weights, &m);
        CORRAL_TRY(log_disk(job, share(batch, rows * job->rollout.fragment), fragment_bytes(job, &spec, rows),
                            &m, err));
    } else if (p->role == CORRAL_ROLE_ROLLOUT) {
        const uint64_t leased = leased_fragments(job, rows);
        const uint64_t fragment = fragment_bytes(job, &spec, rows);
        CORRAL_TRY(workspace_bytes(&layout, rows, &bytes, err));
        item(&m, processes * 2 * weights, "weights, two versions");
        if (job->weights.cast != CORRAL_WEIGHT_CAST_NONE) {
            item(&m, processes * weights, "incoming cast weights");
        }
        item(&m, processes * bytes, "activations");
        item(&m, processes * environment_bytes(&spec, rows), "environments");
        CORRAL_TRY(builder_bytes(job, &spec, rows, env->agents, &bytes, err));
        snprintf(what, sizeof what, "fragment in the making, %llu rows", (unsigned long long)rows);
        item(&m, processes * bytes, what);
        snprintf(what, sizeof what, "%llu fragments not yet trained on", (unsigned long long)leased);
        item(&m, processes * sender_bytes(job, leased, fragment * 3 / 2),
             what); /* half more: final observations, finished episodes, rounding */
    } else {
        const uint64_t eval_rows = CORRAL_MIN((uint64_t)job->eval.episodes, UINT64_C(1024)) * env->agents;
        CORRAL_TRY(workspace_bytes(&layout, eval_rows, &bytes, err));
        item(&m, processes * 2 * weights, "weights, two versions");
        if (job->weights.cast != CORRAL_WEIGHT_CAST_NONE) {
            item(&m, processes * weights, "incoming cast weights");
        }
        item(&m, processes * bytes, "activations");
        snprintf(what, sizeof what, "environments, %llu rows", (unsigned long long)eval_rows);
        item(&m, processes * environment_bytes(&spec, eval_rows), what);
    }
    if (p->device_count > 0 && job->node[p->device[0].node].kind == CORRAL_DEVICE_GPU) {
        item(&m, processes * CORRAL_PLAN_CONTEXT_BYTES, "driver contexts and fragmentation");
    }
    CORRAL_TRY(checked(job, &m, err));
    *params = layout.parameters;
    *out = m;
    return CORRAL_OK;
}
