#include "rollout/env_host/bench.h"
#include "base/clock.h"
#include "base/rng.h"
#include "model/policy.h"
#include "rollout/env_host/backend.h"
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ACTION_SETS = 16, PARTS = 5 };

struct bench {
    struct corral_vec_config config;
    struct corral_env_backend *backend; /* the plug-in alone */
    struct corral_vec *vec;
    const struct corral_vec_view *view;
    char *actions; /* ACTION_SETS sets for all rows */
    size_t set_bytes;
    uint32_t at;
    struct corral_rng rng;
    /* with a policy */
    struct corral_policy_layout layout;
    struct corral_policy_workspace *workspace;
    float *weights, *log_prob, *value;
    char *copied;
    size_t copied_bytes;
    struct corral_error err;
};

/* ---- actions ---- */

static void fill_actions(struct bench *b, const struct corral_action_spec *a, uint32_t rows)
{
    for (size_t i = 0; i < (size_t)ACTION_SETS * rows * a->components; i++) {
        uint32_t c = (uint32_t)(i % a->components);
        if (a->kind == CORRAL_ACTION_CONTINUOUS) {
            double low = isfinite(a->low[c]) ? (double)a->low[c] : -1,
                   high = isfinite(a->high[c]) ? (double)a->high[c] : low + 2;
            ((float *)(void *)b->actions)[i] =
                fminf(fmaxf((float)corral_rng_range(&b->rng, low, high), a->low[c]), a->high[c]);
        } else {
            ((int32_t *)(void *)b->actions)[i] = (int32_t)corral_rng_below(&b->rng, a->choices[c]);
        }
    }
}

/* Actions written in advance may be illegal now: take the next legal choice. */
static void make_legal(const uint8_t *mask, int32_t *action, const struct corral_action_spec *a,
                       uint32_t rows)
{
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t c = 0; c < a->components; c++, action++) {
            uint32_t choices = a->choices[c], at = (uint32_t)*action;
            for (uint32_t tried = 0; tried < choices && mask[at] == 0; tried++) {
                at = at + 1 == choices ? 0 : at + 1;
            }
            *action = (int32_t)at;
            mask += choices;
        }
    }
}

static void take_actions(struct bench *b, void *to, const uint8_t *mask, uint32_t rows)
{
    memcpy(to, b->actions + b->at * b->set_bytes, b->set_bytes);
    b->at = (b->at + 1) % ACTION_SETS;
    if (mask != NULL) {
        make_legal(mask, to, &corral_vec_spec(b->vec)->action, rows);
    }
}

/* ---- what is measured: each steps once; false on failure ---- */

typedef bool (*step_fn)(struct bench *b);

static bool step_alone(struct bench *b)
{
    struct corral_env_backend *e = b->backend;
    take_actions(b, e->action, e->buffers.mask, e->layout.rows);
    return e->ops->step(e, true, e->layout.envs, &b->err) == CORRAL_BACKEND_OK;
}

/* Without autoreset and masks the plug-in alone is not a loop one could run: ended environments are reset. */
static bool step_alone_with_resets(struct bench *b)
{
    struct corral_env_backend *e = b->backend;
    if (!step_alone(b)) {
        return false;
    }
    uint32_t count = 0;
    for (uint32_t env = 0; env < e->layout.envs; env++) {
        uint32_t over = 0;
        for (uint32_t row = env * e->layout.agents; row < (env + 1) * e->layout.agents; row++) {
            over += (e->buffers.terminated[row] | e->buffers.truncated[row]) != 0;
        }
        if (over == e->layout.agents) {
            e->ids[count] = env;
            e->seeds[count++] = corral_rng_next(&b->rng);
        }
    }
    return count == 0 || e->ops->reset(e, false, count, &b->err) == CORRAL_BACKEND_OK;
}

static bool step_vector(struct bench *b)
{
    take_actions(b, b->view->action, b->view->mask, b->view->rows);
    return corral_vec_step(b->vec, &b->err) == CORRAL_OK;
}

static bool step_policy(struct bench *b)
{
    const struct corral_vec_view *v = b->view;
    corral_policy_act(&b->layout, b->weights, b->workspace, v->obs, v->mask, v->rows, false, &b->rng,
                      v->action, b->log_prob, b->value);
    return corral_vec_step(b->vec, &b->err) == CORRAL_OK;
}

static bool step_copy(struct bench *b)
{
    memcpy(b->copied, b->view->obs, b->copied_bytes);
    __asm__ volatile("" : : "r"(b->copied) : "memory"); /* or the copy would be optimised away */
    return true;
}

/* ---- measuring ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool measure(struct bench *b, step_fn step, double seconds, struct corral_bench_rate *out)
{
    double rates[CORRAL_BENCH_RUNS];
    uint64_t batch = 1, slice = (uint64_t)(seconds / (CORRAL_BENCH_RUNS + 1) * 1e9);
    for (int run = -1; run < CORRAL_BENCH_RUNS;
         run++) { /* run -1 warms up and finds how many steps to take between two looks at the clock */
        uint64_t start = corral_now_ns(&corral_clock_monotonic), now = start, steps = 0;
        while (now - start < slice) {
            for (uint64_t i = 0; i < batch; i++) {
                if (!step(b)) {
                    return false;
                }
            }
            steps += batch;
            uint64_t last = now;
            now = corral_now_ns(&corral_clock_monotonic);
            batch = run < 0 && now - last < 20000 && batch < 1u << 20 ? batch * 2 : batch;
        }
        if (run >= 0) {
            rates[run] = (double)steps * b->view->envs / ((double)(now - start) * 1e-9);
        }
    }
    qsort(rates, CORRAL_BENCH_RUNS, sizeof rates[0], by_value);
    *out = (struct corral_bench_rate){
        .median = rates[CORRAL_BENCH_RUNS / 2], .low = rates[0], .high = rates[CORRAL_BENCH_RUNS - 1]};
    return true;
}

/* ---- set-up ---- */

static void bench_close(struct bench *b)
{
    corral_policy_workspace_destroy(b->workspace);
    corral_vec_destroy(b->vec);
    corral_backend_destroy(b->backend);
    free(b->actions);
    free(b->weights);
    free(b->log_prob);
    free(b->value);
    free(b->copied);
}

static enum corral_status open_vec(struct bench *b, enum corral_isolation isolation, struct corral_error *err)
{
    corral_vec_destroy(b->vec);
    b->vec = NULL;
    b->config.isolation = isolation;
    CORRAL_TRY(corral_vec_create(&b->vec, &b->config, err));
    b->view = corral_vec_view(b->vec);
    return corral_vec_reset(b->vec, err);
}

static enum corral_status open_alone(struct bench *b, struct corral_error *err)
{
    CORRAL_TRY(corral_backend_in_process(&b->backend, &b->config, err));
    for (uint32_t e = 0; e < b->config.envs; e++) {
        b->backend->seeds[e] = corral_seed_derive(b->config.seed, 0, e, 0);
    }
    struct corral_error why = {0};
    if (b->backend->ops->reset(b->backend, true, b->config.envs, &why) != CORRAL_BACKEND_OK) {
        return corral_fail(err, why.status, "%s", why.text);
    }
    return CORRAL_OK;
}

static enum corral_status open_policy(struct bench *b, struct corral_error *err)
{
    struct corral_policy_spec spec = {.obs_dim = b->view->obs_dim,
                                      .action = corral_vec_spec(b->vec)->action,
                                      .layers = 2,
                                      .hidden = {32, 32},
                                      .activation = CORRAL_TANH};
    CORRAL_TRY(corral_policy_layout_build(&spec, &b->layout, err));
    CORRAL_TRY(corral_policy_workspace_create(&b->workspace, &b->layout, b->view->rows, false,
                                              &corral_allocator_heap, err));
    b->weights = aligned_alloc(64, (b->layout.floats * sizeof(float) + 63) / 64 * 64);
    b->log_prob = calloc(b->view->rows, sizeof(float));
    b->value = calloc(b->view->rows, sizeof(float));
    if (b->weights == NULL || b->log_prob == NULL || b->value == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot measure with a policy: out of memory");
    }
    corral_policy_init(&b->layout, b->weights, &b->rng);
    return CORRAL_OK;
}

static enum corral_status prepare(struct bench *b, struct corral_error *err)
{
    CORRAL_TRY(open_vec(b, CORRAL_ISOLATION_IN_PROCESS, err));
    CORRAL_TRY(open_alone(b, err));
    b->set_bytes = (size_t)b->view->rows * b->view->action_components * 4;
    b->copied_bytes = (size_t)b->view->rows * b->view->obs_dim * sizeof(float);
    b->actions = malloc(ACTION_SETS * b->set_bytes);
    b->copied = malloc(b->copied_bytes);
    if (b->actions == NULL || b->copied == NULL) {
        return corral_fail(err, CORRAL_NOMEM,
                           "cannot write actions in advance for %u environments: out of memory",
                           b->config.envs);
    }
    fill_actions(b, &corral_vec_spec(b->vec)->action, b->view->rows);
    return CORRAL_OK;
}

static enum corral_status failed(const struct bench *b, struct corral_error *err)
{
    return corral_fail(err, b->err.status ? b->err.status : CORRAL_INFRA, "%s", b->err.text);
}

static enum corral_status measure_all(struct bench *b, double seconds, struct corral_bench_result *r,
                                      struct corral_error *err)
{
    double share = seconds / PARTS;
    CORRAL_TRY(prepare(b, err));
    bool resets = b->backend->spec.autoreset == CORRAL_ENV_AUTORESET_OFF;
    if (!measure(b, step_copy, share, &r->copy) ||
        !measure(b, resets ? step_alone_with_resets : step_alone, share, &r->alone) ||
        !measure(b, step_vector, share, &r->vector)) {
        return failed(b, err);
    }
    CORRAL_TRY(open_policy(b, err));
    if (!measure(b, step_policy, share, &r->policy)) {
        return failed(b, err);
    }
    r->envs = b->view->envs;
    r->agents = b->view->agents;
    r->obs_bytes = (uint32_t)(b->copied_bytes / b->view->envs);
    r->masked = b->view->mask != NULL;
    r->alone_to_copy = r->copy.median / r->alone.median;
    memcpy(r->id, corral_vec_spec(b->vec)->id, sizeof r->id);
    return CORRAL_OK;
}

enum corral_status corral_env_bench(const struct corral_bench_config *config, struct corral_bench_result *out,
                                    struct corral_error *err)
{
    CORRAL_CLEANUP(bench_close)
    struct bench b = {.config = {.id = config->id,
                                 .library = config->library,
                                 .args_json = config->args_json ? config->args_json : "{}",
                                 .envs = config->envs ? config->envs : CORRAL_BENCH_ENVS,
                                 .seed = config->seed,
                                 .memory = &corral_allocator_heap}};
    struct corral_bench_result r = {0};
    double seconds = config->seconds > 0 ? config->seconds : 7;
    corral_rng_seed(&b.rng, config->seed + 1);
    cpu_set_t before, one;
    CPU_ZERO(&one);
    int cpu = sched_getcpu();
    bool pinned = cpu >= 0 && sched_getaffinity(0, sizeof before, &before) == 0;
    if (pinned) {
        CPU_SET((size_t)cpu, &one);
        pinned = sched_setaffinity(0, sizeof one, &one) == 0;
    }
    enum corral_status status = measure_all(&b, seconds, &r, err);
    if (pinned) { /* the child of the next part has a core of its own */
        sched_setaffinity(0, sizeof before, &before);
    }
    CORRAL_TRY(status);
    CORRAL_TRY(open_vec(&b, CORRAL_ISOLATION_PROCESS, err));
    if (!measure(&b, step_vector, seconds / PARTS, &r.isolated)) {
        return failed(&b, err);
    }
    *out = r;
    return CORRAL_OK;
}
