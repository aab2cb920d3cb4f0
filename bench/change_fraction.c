/* Which part of the weights changes between two pushes of real training: PPO on CartPole-v1 with the built-in environment, policy and learner, one push per gradient step. Elements that differ are
 * counted as f32 and after rounding to bf16, the precision in which engines run, and the bf16 delta is encoded. Adam moves a weight by at most about the learning rate per step
 * (column Adam: steps per push), and a bf16 weight only changes when that comes to half of its last place, |w| / 512 to |w| / 256. So the figure is a matter of the
 * learning rate, of the steps and of how large the weights are: language models are trained with one step per push at 1e-6 to 1e-5, this learner with 80 at 1e-3.
 * usage: change_fraction [pushes]; figures are the median over the pushes with their spread (min … max). */
#include "rollout/env_host/vec.h"
#include "trainer-bridge/learners/ppo.h"
#include "transport/weights/cast/cast.h"
#include "transport/weights/delta/delta.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENVS 8u
#define STEPS 128u
#define CELLS (ENVS * STEPS)
#define PUSHES_MAX 1000u

struct training {
    uint32_t width, epochs, minibatch;
    double lr;
};

struct run {
    struct corral_policy_layout layout;
    struct corral_vec *vec;
    struct corral_policy_workspace *ws;
    struct corral_ppo *learner;
    struct corral_rng rng;
    float obs[CELLS * 4], log_prob[CELLS], reward[CELLS], last_obs[ENVS * 4], boundary_obs[CELLS * 4];
    int32_t action[CELLS];
    uint8_t terminated[CELLS], truncated[CELLS], valid[CELLS];
    uint64_t version[STEPS], episodes, episode_steps;
    uint32_t boundary_at[CELLS], boundaries;
};

static void must(enum corral_status status, const struct corral_error *err)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "change_fraction: %s\n", err->text);
        exit(1);
    }
}

static void *memory(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (!p) {
        fprintf(stderr, "change_fraction: out of memory\n");
        exit(1);
    }
    return p;
}

/* After a step: what it gave, and the last observation of an episode that was cut off. */
static void note(struct run *r, const struct corral_vec_view *v, uint32_t at)
{
    memcpy(r->reward + at, v->reward, ENVS * sizeof *r->reward);
    memcpy(r->terminated + at, v->terminated, ENVS);
    memcpy(r->truncated + at, v->truncated, ENVS);
    for (uint32_t e = 0; e < ENVS; e++) {
        r->valid[at + e] = v->status[e] == 0;
        if (v->truncated[e] && !v->terminated[e]) {
            r->boundary_at[r->boundaries] = at + e;
            memcpy(r->boundary_obs + (size_t)r->boundaries++ * 4, v->final_obs + (size_t)e * 4, 16);
        }
        if (v->truncated[e] || v->terminated[e]) {
            r->episodes++;
            r->episode_steps += v->episode_steps[e];
        }
    }
}

static struct corral_fragment collect(struct run *r)
{
    struct corral_error err;
    const struct corral_vec_view *v = corral_vec_view(r->vec);
    r->boundaries = 0;
    for (uint32_t at = 0; at < CELLS; at += ENVS) {
        memcpy(r->obs + (size_t)at * 4, v->obs, sizeof(float) * ENVS * 4);
        corral_policy_act(&r->layout, corral_ppo_weights(r->learner), r->ws, v->obs, NULL, ENVS, false,
                          &r->rng, r->action + at, r->log_prob + at, NULL);
        memcpy(v->action, r->action + at, ENVS * sizeof *r->action);
        must(corral_vec_step(r->vec, &err), &err);
        note(r, v, at);
    }
    memcpy(r->last_obs, v->obs, sizeof r->last_obs);
    return (struct corral_fragment){.steps = STEPS,
                                    .rows = ENVS,
                                    .obs_dim = 4,
                                    .action_components = 1,
                                    .boundary_count = r->boundaries,
                                    .obs = r->obs,
                                    .action = r->action,
                                    .log_prob = r->log_prob,
                                    .reward = r->reward,
                                    .terminated = r->terminated,
                                    .truncated = r->truncated,
                                    .valid = r->valid,
                                    .version = r->version,
                                    .last_obs = r->last_obs,
                                    .boundary_at = r->boundary_at,
                                    .boundary_obs = r->boundary_obs};
}

/* `epochs` × CELLS / `minibatch` steps of Adam per push. */
static struct run *start(const struct training *t)
{
    struct corral_error err;
    struct run *r = memory(sizeof *r);
    struct corral_policy_spec spec = {.obs_dim = 4, .layers = 2, .hidden = {t->width, t->width}};
    spec.action =
        (struct corral_action_spec){.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}};
    struct corral_vec_config env = {.id = "CartPole-v1", .envs = ENVS, .seed = 1};
    struct corral_ppo_config config = {.gamma = 0.99,
                                       .lambda = 0.95,
                                       .clip = 0.2,
                                       .clip_final = 0.2,
                                       .epochs = t->epochs,
                                       .minibatch = t->minibatch,
                                       .lr = t->lr,
                                       .lr_final = t->lr,
                                       .adam_beta1 = 0.9,
                                       .adam_beta2 = 0.999,
                                       .adam_eps = 1e-5,
                                       .entropy_coef = 0.005,
                                       .value_coef = 1,
                                       .max_grad_norm = 0.5,
                                       .normalise_advantage = true,
                                       .seed = 1};
    must(corral_vec_create(&r->vec, &env, &err), &err);
    must(corral_vec_reset(r->vec, &err), &err);
    must(corral_policy_layout_build(&spec, &r->layout, &err), &err);
    must(corral_policy_workspace_create(&r->ws, &r->layout, ENVS, false, &corral_allocator_heap, &err), &err);
    must(corral_ppo_create(&r->learner, &r->layout, &config, CELLS, NULL, &corral_allocator_heap, &err),
         &err);
    corral_rng_seed(&r->rng, 1001);
    return r;
}

static void stop(struct run *r)
{
    corral_ppo_destroy(r->learner);
    corral_policy_workspace_destroy(r->ws);
    corral_vec_destroy(r->vec);
    free(r);
}

struct figure {
    double median, min, max;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct figure summarise(double *sample, uint32_t count)
{
    qsort(sample, count, sizeof *sample, by_value);
    return (struct figure){.median = sample[count / 2], .min = sample[0], .max = sample[count - 1]};
}

struct side {
    void *weights[2];
    uint32_t element_bytes;
    double *fraction, *moved;
};

static struct side side_of(uint64_t elements, uint32_t element_bytes, uint32_t pushes)
{
    return (struct side){.weights = {memory(elements * element_bytes), memory(elements * element_bytes)},
                         .element_bytes = element_bytes,
                         .fraction = memory(pushes * sizeof(double)),
                         .moved = memory(pushes * sizeof(double))};
}

static void drop_side(struct side *s)
{
    free(s->weights[0]);
    free(s->weights[1]);
    free(s->fraction);
    free(s->moved);
}

/* The fraction that differs between the two versions, and the bytes of the delta as part of the whole. */
static void compare(struct side *s, uint64_t elements, uint32_t push)
{
    struct corral_error err;
    struct corral_delta_part part = {.element_bytes = s->element_bytes,
                                     .elements = elements,
                                     .total = elements,
                                     .base = {push + 1, {0, 0}},
                                     .next = {push + 2, {0, 0}}};
    size_t room = corral_delta_room(&part), bytes;
    struct corral_delta_stats stats;
    CORRAL_AUTO_FREE void *delta = memory(room);
    must(corral_delta_encode(&part, s->weights[push % 2], s->weights[(push + 1) % 2], delta, room, &bytes,
                             &stats, &err),
         &err);
    s->fraction[push] = 100.0 * (double)stats.changed / (double)elements;
    s->moved[push] = 100.0 * (double)bytes / ((double)elements * s->element_bytes);
}

static void publish(const struct run *r, struct side *f32, struct side *bf16, uint32_t version)
{
    struct corral_error err;
    struct corral_cast cast = {CORRAL_DTYPE_F32, CORRAL_DTYPE_BF16, CORRAL_CAST_NONE, 1, r->layout.floats};
    memcpy(f32->weights[version % 2], corral_ppo_weights(r->learner), r->layout.floats * sizeof(float));
    must(corral_cast_run(&cast, f32->weights[version % 2], bf16->weights[version % 2], NULL, &err), &err);
}

static void measure(const struct training *t, uint32_t pushes)
{
    struct corral_error err;
    struct run *r = start(t);
    uint64_t elements = r->layout.floats;
    struct side f32 = side_of(elements, 4, pushes), bf16 = side_of(elements, 2, pushes);
    publish(r, &f32, &bf16, 0);
    for (uint32_t push = 0; push < pushes; push++) {
        struct corral_fragment fragment = collect(r);
        const struct corral_fragment *one = &fragment;
        struct corral_ppo_stats stats;
        must(corral_ppo_step(r->learner, &one, 1, 0, &stats, &err), &err);
        publish(r, &f32, &bf16, push + 1);
        compare(&f32, elements, push);
        compare(&bf16, elements, push);
    }
    struct figure f = summarise(f32.fraction, pushes), b = summarise(bf16.fraction, pushes),
                  m = summarise(bf16.moved, pushes);
    printf("%5u %8llu %7.0e %5u %8.1f %7.2f %% (%.2f … %.2f) %7.2f %% (%.2f … %.2f) %7.2f %% (%.2f … %.2f)\n",
           t->width, (unsigned long long)elements, t->lr, t->epochs * CELLS / t->minibatch,
           r->episodes ? (double)r->episode_steps / (double)r->episodes : 0.0, f.median, f.min, f.max,
           b.median, b.min, b.max, m.median, m.min, m.max);
    drop_side(&f32);
    drop_side(&bf16);
    stop(r);
}

int main(int argc, char **argv)
{
    static const struct training trainings[] = {
        {32, 10, 128, 1e-3},  {256, 10, 128, 1e-3},  {256, 10, 128, 1e-5},
        {256, 10, 128, 1e-6}, {256, 1, CELLS, 1e-5}, {256, 1, CELLS, 1e-6},
    };
    uint32_t pushes = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 60;
    if (pushes == 0 || pushes > PUSHES_MAX) {
        fprintf(stderr, "usage: change_fraction [1 to %u pushes]\n", PUSHES_MAX);
        return 2;
    }
    printf("width  weights      lr  Adam  episode   changed as f32            changed as bf16          bf16 "
           "delta / "
           "full\n");
    for (size_t i = 0; i < CORRAL_COUNT_OF(trainings); i++) {
        measure(&trainings[i], pushes);
    }
    return 0;
}
