/* envs_bench [--seconds S] [--json] [NAME...]: steps per second of the built-in environments on one thread, and the ratio to a plain scalar loop of the same
 * dynamics (envs_scalar.c). Both run in turns, so that a busy machine slows both; the median and the range over the turns are shown. Actions are drawn
 * beforehand; for TicTacToe picking a legal cell is part of what is timed, on both sides. Pin it: `taskset -c 1 envs_bench`. */
#include "bench/envs_scalar.h"
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TURNS 9
#define ACTION_SETS 64u
#define INSTANCES_MAX 1024u

static const char *const names[] = {"cartpole", "acrobot",   "mountain_car", "mountain_car_continuous",
                                    "pendulum", "gridworld", "tictactoe"};
static const uint32_t instances[] = {1, 8, 64, INSTANCES_MAX};

struct side {
    float *obs, *final_obs, *reward;
    uint8_t *terminated, *truncated, *active, *mask;
    int32_t *action, *status;
};

struct bench {
    const struct corral_env_ops *ops;
    struct corral_env_spec spec;
    uint32_t envs, rows;
    struct corral_env *env;
    const struct scalar_kind *kind;
    struct scalar_env *scalars;
    struct side plugin, scalar;
    int32_t *drawn; /* [ACTION_SETS][rows] */
    uint32_t set;
};

struct figure {
    double median, low, high;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *must(void *memory)
{
    if (memory == NULL) {
        fprintf(stderr, "envs_bench: out of memory\n");
        exit(1);
    }
    return memory;
}

static void side_open(struct side *side, const struct bench *b)
{
    size_t rows = b->rows, width = b->spec.obs_shape[0];
    side->obs = must(calloc(rows * width, sizeof(float)));
    side->final_obs = must(calloc(rows * width, sizeof(float)));
    side->reward = must(calloc(rows, sizeof(float)));
    side->terminated = must(calloc(rows, 1));
    side->truncated = must(calloc(rows, 1));
    side->active = must(malloc(rows));
    memset(side->active, 1, rows);
    side->mask = must(calloc(rows, 16));
    side->action = must(calloc(rows, sizeof(int32_t)));
    side->status = must(calloc(b->envs, sizeof(int32_t)));
}

static void side_close(struct side *side)
{
    free(side->obs);
    free(side->final_obs);
    free(side->reward);
    free(side->terminated);
    free(side->truncated);
    free(side->active);
    free(side->mask);
    free(side->action);
    free(side->status);
}

static void draw_actions(struct bench *b)
{
    struct corral_env_rng rng = {b->envs};
    b->drawn = must(malloc(sizeof(int32_t) * ACTION_SETS * b->rows));
    for (uint32_t i = 0; i < ACTION_SETS * b->rows; i++) {
        float number = (float)corral_env_rng_uniform(&rng, (double)b->spec.low[0], (double)b->spec.high[0]);
        if (b->spec.action_kind == CORRAL_ENV_CONTINUOUS) {
            memcpy(&b->drawn[i], &number, sizeof number);
        } else {
            b->drawn[i] = (int32_t)corral_env_rng_below(&rng, b->spec.choices[0]);
        }
    }
}

static struct scalar_rows scalar_rows(struct bench *b)
{
    const struct side *s = &b->scalar;
    const float *number = (const float *)(const void *)s->action;
    return (struct scalar_rows){s->obs,       s->final_obs, s->reward, s->terminated,
                                s->truncated, s->mask,      s->action, number};
}

static bool bench_open(struct bench *b, void *library, uint32_t envs)
{
    char error[200] = "";
    const struct corral_env_plugin *plugin = dlsym(library, "corral_env_plugin_v1");
    memset(b, 0, sizeof *b);
    b->ops = plugin->envs[0];
    b->spec.size = sizeof b->spec;
    b->envs = envs;
    b->ops->describe("{}", &b->spec, error, sizeof error);
    b->rows = envs * b->spec.agents;
    side_open(&b->plugin, b);
    side_open(&b->scalar, b);
    draw_actions(b);
    size_t obs_stride = sizeof(float) * b->spec.obs_shape[0];
    struct corral_env_buffers io = {.size = sizeof io,
                                    .envs = envs,
                                    .agents = b->spec.agents,
                                    .obs = b->plugin.obs,
                                    .obs_stride = obs_stride,
                                    .action = b->plugin.action,
                                    .action_stride = 4,
                                    .reward = b->plugin.reward,
                                    .terminated = b->plugin.terminated,
                                    .truncated = b->plugin.truncated,
                                    .active = b->plugin.active,
                                    .mask = b->plugin.mask,
                                    .mask_stride = b->spec.choices[0],
                                    .final_obs = b->plugin.final_obs,
                                    .status = b->plugin.status};
    if (b->ops->create("{}", &io, NULL, &b->env, error, sizeof error) != CORRAL_ENV_OK) {
        fprintf(stderr, "envs_bench: %s: %s\n", b->ops->id, error);
        return false;
    }
    b->kind = scalar_find(b->ops->id);
    b->scalars = must(calloc(envs, sizeof *b->scalars));
    for (uint32_t i = 0; i < envs; i++) {
        uint64_t seed = i;
        b->ops->reset(b->env, &i, 1, &seed);
        b->scalars[i].rng.state = i;
        b->kind->reset(&b->scalars[i], scalar_rows(b), i);
    }
    return true;
}

static void bench_close(struct bench *b)
{
    b->ops->destroy(b->env);
    side_close(&b->plugin);
    side_close(&b->scalar);
    free(b->scalars);
    free(b->drawn);
}

static void act(struct bench *b, struct side *side)
{
    const int32_t *drawn = b->drawn + (size_t)(b->set++ % ACTION_SETS) * b->rows;
    if ((b->spec.flags & CORRAL_ENV_MASKS) == 0) {
        memcpy(side->action, drawn, sizeof(int32_t) * b->rows);
        return;
    }
    uint32_t choices = b->spec.choices[0];
    for (uint32_t row = 0; row < b->rows; row++) {
        uint32_t choice = (uint32_t)drawn[row];
        while (!side->mask[(size_t)row * choices + choice]) {
            choice = choice + 1 == choices ? 0 : choice + 1;
        }
        side->action[row] = (int32_t)choice;
    }
}

/* Steps per second over about `seconds`. */
static double measure(struct bench *b, bool scalar, double seconds)
{
    uint64_t steps = 0;
    uint32_t calls = 1 + 16384 / b->envs;
    double start = now(), elapsed = 0;
    while (elapsed < seconds) {
        for (uint32_t i = 0; i < calls; i++) {
            act(b, scalar ? &b->scalar : &b->plugin);
            if (scalar) {
                b->kind->step_all(b->scalars, scalar_rows(b), b->envs);
            } else {
                b->ops->step(b->env, NULL, b->envs);
            }
        }
        steps += (uint64_t)calls * b->envs;
        elapsed = now() - start;
    }
    return (double)steps / elapsed;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct figure summarise(double *values)
{
    qsort(values, TURNS, sizeof *values, by_size);
    return (struct figure){values[TURNS / 2], values[0], values[TURNS - 1]};
}

static void report(const struct bench *b, struct figure plugin, struct figure scalar, struct figure ratio,
                   bool json)
{
    if (json) {
        printf("{\"bench\":\"envs\",\"env\":\"%s\",\"instances\":%u,\"turns\":%d,\"steps_s\":%.0f,\"steps_s_"
               "min\":%.0f,"
               "\"steps_s_max\":%.0f,\"scalar_steps_s\":%.0f,\"ratio\":%.3f,\"ratio_min\":%.3f,\"ratio_max\":"
               "%.3f}\n",
               b->ops->id, b->envs, TURNS, plugin.median, plugin.low, plugin.high, scalar.median,
               ratio.median, ratio.low, ratio.high);
    } else {
        printf("%-26s %5u %9.1f  %7.1f..%-7.1f %9.1f %8.2f  %6.2f..%.2f\n", b->ops->id, b->envs,
               plugin.median / 1e6, plugin.low / 1e6, plugin.high / 1e6, scalar.median / 1e6, ratio.median,
               ratio.low, ratio.high);
    }
}

static bool bench_one(const char *name, double seconds, bool json)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.so", CORRAL_ENV_PLUGIN_DIR, name);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "envs_bench: %s\n", dlerror());
        return false;
    }
    bool ok = true;
    for (size_t n = 0; ok && n < sizeof instances / sizeof instances[0]; n++) {
        struct bench b;
        double plugin[TURNS], scalar[TURNS], ratio[TURNS];
        ok = bench_open(&b, library, instances[n]);
        if (ok) {
            measure(&b, false, seconds); /* warm up */
        }
        for (int turn = 0; ok && turn < TURNS; turn++) {
            plugin[turn] = measure(&b, false, seconds);
            scalar[turn] = measure(&b, true, seconds);
            ratio[turn] = plugin[turn] / scalar[turn];
        }
        if (ok) {
            report(&b, summarise(plugin), summarise(scalar), summarise(ratio), json);
        }
        bench_close(&b);
    }
    dlclose(library);
    return ok;
}

int main(int argc, char **argv)
{
    double seconds = 0.05;
    bool json = false, named = false, ok = true;
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            json = true;
        } else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
            seconds = strtod(argv[++i], NULL);
        } else {
            fprintf(stderr, "usage: envs_bench [--seconds S] [--json] [NAME...]\n");
            return 2;
        }
    }
    if (!json) {
        printf("%-26s %5s %9s  %16s %9s %8s  %s\n", "environment", "n", "M steps/s", "range", "scalar",
               "ratio", "range");
    }
    for (; i < argc; i++) {
        named = true;
        ok = bench_one(argv[i], seconds, json) && ok;
    }
    for (size_t n = 0; !named && n < sizeof names / sizeof names[0]; n++) {
        ok = bench_one(names[n], seconds, json) && ok;
    }
    return ok ? 0 : 1;
}
