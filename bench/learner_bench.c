/* The built-in learner: transitions per second of PPO updates (forward, loss, backward, clipping, Adam; every epoch counts its
 * transitions), and the ratio of its arithmetic rate to that of one large single-threaded cblas_sgemm in the same run. Only the multiply-adds of
 * the layers are counted; tanh, softmax, loss and Adam come on top, so the ratio stays below 1 by what they cost. Then rows per
 * second of acting (both towers, sampling). Each figure is the median of the rounds with its spread (min … max). */
#include "model/gemm.h"
#include "trainer-bridge/learners/ppo.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS 9
#define SIDE 1024
#define CELLS 2048u
#define ROWS 64u
#define EPOCHS 10u

struct figure {
    double median, min, max;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct figure summarise(double *sample)
{
    qsort(sample, ROUNDS, sizeof *sample, by_value);
    return (struct figure){.median = sample[ROUNDS / 2], .min = sample[0], .max = sample[ROUNDS - 1]};
}

/* Processor time of this thread: neighbours on the machine disturb it less than the clock on the wall. */
static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double seconds_since(uint64_t start)
{
    return (double)(now_ns() - start) / 1e9;
}

/* Floating-point operations per second of a square product. */
static double product_rate(void)
{
    static float a[SIDE * SIDE], b[SIDE * SIDE], c[SIDE * SIDE];
    for (size_t i = 0; i < SIDE * SIDE; i++) {
        a[i] = b[i] = (float)(i % 7) * 0.25f;
    }
    uint64_t start = now_ns();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, SIDE, SIDE, SIDE, 1, a, SIDE, b, SIDE, 0, c, SIDE);
    return 2.0 * SIDE * SIDE * SIDE / seconds_since(start);
}

/* Of one transition, forward and backward: three products per layer, two for the first, which passes no gradient on. */
static double operations_of(const struct corral_policy_layout *layout)
{
    double sum = 0;
    for (uint32_t t = 0; t < layout->tensors; t++) {
        const struct corral_policy_tensor *w = &layout->tensor[t];
        bool first = w->rank == 2 && strstr(w->name, ".0.weight");
        sum += w->rank == 2 ? (first ? 4.0 : 6.0) * (double)w->count : 0;
    }
    return sum;
}

struct load {
    struct corral_fragment fragment;
    float *obs, *log_prob, *reward, *last_obs;
    int32_t *action;
    uint8_t *zero, *one;
    uint64_t *version;
};

static void free_load(struct load *l)
{
    void *all[] = {l->obs, l->log_prob, l->reward, l->last_obs, l->action, l->zero, l->one, l->version};
    for (size_t i = 0; i < CORRAL_COUNT_OF(all); i++) {
        free(all[i]);
    }
}

static bool make_load(struct load *l, const struct corral_policy_layout *layout, struct corral_rng *rng)
{
    uint32_t dim = layout->spec.obs_dim, components = layout->spec.action.components;
    *l = (struct load){.obs = calloc(CELLS * dim, 4),
                       .log_prob = calloc(CELLS, 4),
                       .reward = calloc(CELLS, 4),
                       .last_obs = calloc(ROWS * dim, 4),
                       .action = calloc(CELLS * components, 4),
                       .zero = calloc(CELLS, 1),
                       .one = calloc(CELLS, 1),
                       .version = calloc(CELLS, 8)};
    if (!l->obs || !l->log_prob || !l->reward || !l->last_obs || !l->action || !l->zero || !l->one ||
        !l->version) {
        return false;
    }
    for (uint32_t i = 0; i < CELLS * dim; i++) {
        l->obs[i] = (float)corral_rng_normal(rng);
    }
    for (uint32_t i = 0; i < CELLS; i++) {
        l->reward[i] = (float)corral_rng_normal(rng);
    }
    memset(l->one, 1, CELLS);
    l->fragment =
        (struct corral_fragment){.steps = CELLS / ROWS,
                                 .rows = ROWS,
                                 .obs_dim = dim,
                                 .action_components = components,
                                 .action_continuous = layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS,
                                 .obs = l->obs,
                                 .action = l->action,
                                 .log_prob = l->log_prob,
                                 .reward = l->reward,
                                 .terminated = l->zero,
                                 .truncated = l->zero,
                                 .valid = l->one,
                                 .version = l->version,
                                 .last_obs = l->last_obs};
    return true;
}

struct shape {
    const char *name;
    uint32_t obs_dim, layers, width, minibatch;
    bool continuous;
    uint32_t actions;
};

static const struct shape shapes[] = {
    {"cartpole 4-32-32-2, minibatch 128", 4, 2, 32, 128, false, 2},
    {"17-64-64-6 Gaussian, minibatch 256", 17, 2, 64, 256, true, 6},
    {"64-256-256-8, minibatch 1024", 64, 2, 256, 1024, false, 8},
    {"64-1024-1024-8, minibatch 1024", 64, 2, 1024, 1024, false, 8},
};

static struct corral_policy_spec spec_of(const struct shape *s)
{
    struct corral_policy_spec spec = {.obs_dim = s->obs_dim, .layers = s->layers, .normalise_obs = true};
    for (uint32_t l = 0; l < s->layers; l++) {
        spec.hidden[l] = s->width;
    }
    spec.action.kind = s->continuous ? CORRAL_ACTION_CONTINUOUS : CORRAL_ACTION_DISCRETE;
    spec.action.components = s->continuous ? s->actions : 1;
    spec.action.choices[0] = s->actions;
    for (uint32_t c = 0; c < spec.action.components; c++) {
        spec.action.low[c] = -1;
        spec.action.high[c] = 1;
    }
    return spec;
}

static enum corral_status bench_update(const struct shape *s, const struct corral_policy_layout *layout,
                                       struct corral_error *err)
{
    struct corral_ppo_config config = {.gamma = 0.99,
                                       .lambda = 0.95,
                                       .clip = 0.2,
                                       .clip_final = 0.2,
                                       .epochs = EPOCHS,
                                       .minibatch = s->minibatch,
                                       .lr = 1e-5,
                                       .lr_final = 1e-5,
                                       .adam_beta1 = 0.9,
                                       .adam_beta2 = 0.999,
                                       .adam_eps = 1e-5,
                                       .value_coef = 0.5,
                                       .max_grad_norm = 0.5,
                                       .normalise_advantage = true,
                                       .seed = 1};
    struct corral_ppo *p = NULL;
    struct load load;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    CORRAL_TRY(corral_ppo_create(&p, layout, &config, CELLS, NULL, &corral_allocator_heap, err));
    enum corral_status status =
        make_load(&load, layout, &rng) ? CORRAL_OK : corral_fail(err, CORRAL_NOMEM, "no memory");
    double rate[ROUNDS], ratio[ROUNDS];
    const struct corral_fragment *one = &load.fragment;
    for (int round = -1; round < ROUNDS && status == CORRAL_OK; round++) { /* -1 warms up */
        struct corral_ppo_stats stats;
        double product = product_rate();
        uint64_t start = now_ns();
        status = corral_ppo_step(p, &one, 1, 0, &stats, err);
        double per_second = (double)CELLS * EPOCHS / seconds_since(start);
        if (round >= 0) {
            rate[round] = per_second;
            ratio[round] = per_second * operations_of(layout) / product;
        }
    }
    if (status == CORRAL_OK) {
        struct figure r = summarise(rate), q = summarise(ratio);
        printf("%-36s %10.0f (%.0f … %.0f) transitions/s   %.3f (%.3f … %.3f) of sgemm\n", s->name, r.median,
               r.min, r.max, q.median, q.min, q.max);
    }
    free_load(&load);
    corral_ppo_destroy(p);
    return status;
}

static enum corral_status bench_act(const struct corral_policy_layout *layout, uint32_t rows,
                                    struct corral_error *err)
{
    struct corral_policy_workspace *ws = NULL;
    CORRAL_TRY(corral_policy_workspace_create(&ws, layout, rows, false, &corral_allocator_heap, err));
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    CORRAL_AUTO_FREE float *weights = calloc(layout->floats, 4);
    CORRAL_AUTO_FREE float *obs = calloc((size_t)rows * layout->spec.obs_dim, 4);
    CORRAL_AUTO_FREE int32_t *action = calloc((size_t)rows * layout->spec.action.components, 4);
    CORRAL_AUTO_FREE float *out = calloc(2 * (size_t)rows, 4);
    enum corral_status status = CORRAL_OK;
    if (!weights || !obs || !action || !out) {
        status = corral_fail(err, CORRAL_NOMEM, "no memory");
    } else {
        double us[ROUNDS];
        corral_policy_init(layout, weights, &rng);
        uint32_t calls = (uint32_t)CORRAL_MAX(20, 2000000000 / (operations_of(layout) * rows));
        for (int round = -1; round < ROUNDS; round++) {
            uint64_t start = now_ns();
            for (uint32_t i = 0; i < calls; i++) {
                corral_policy_act(layout, weights, ws, obs, NULL, rows, false, &rng, action, out, out + rows);
            }
            if (round >= 0) {
                us[round] = seconds_since(start) * 1e6 / calls;
            }
        }
        struct figure f = summarise(us);
        printf("  act %4u rows %10.2f (%.2f … %.2f) us   %.0f rows/s\n", rows, f.median, f.min, f.max,
               rows / f.median * 1e6);
    }
    corral_policy_workspace_destroy(ws);
    return status;
}

int main(void)
{
    struct corral_error err = {0};
    corral_gemm_prepare();
    printf("kernels %s, OpenBLAS %s, %d rounds, median (min … max)\n", corral_kernels()->name,
           corral_gemm_uses_blas() ? "checked and used for large shapes" : "failed its check: not used",
           ROUNDS);
    for (size_t i = 0; i < CORRAL_COUNT_OF(shapes); i++) {
        struct corral_policy_layout layout;
        struct corral_policy_spec spec = spec_of(&shapes[i]);
        static const uint32_t rows[] = {8, 16, 64, 256};
        enum corral_status status = corral_policy_layout_build(&spec, &layout, &err);
        status = status == CORRAL_OK ? bench_update(&shapes[i], &layout, &err) : status;
        for (size_t k = 0; k < CORRAL_COUNT_OF(rows) && status == CORRAL_OK; k++) {
            status = bench_act(&layout, rows[k], &err);
        }
        if (status != CORRAL_OK) {
            fprintf(stderr, "learner_bench: %s\n", err.text);
            return 1;
        }
    }
    return 0;
}
