#include "tests/check.h"

#include "base/clock.h"
#include "trainer-bridge/learners/ppo.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* CartPole-v1 (Barto, Sutton & Anderson 1983), double state, 500 steps at most. */
#define ENVS 8u
#define STEPS 128u
#define CELLS (ENVS * STEPS)
#define STEP_BUDGET 200000u
#define WINDOW 100u

struct pole {
    double s[4];
    uint32_t length;
};

static void reset(struct pole *p, struct corral_rng *rng)
{
    for (uint32_t i = 0; i < 4; i++) {
        p->s[i] = corral_rng_range(rng, -0.05, 0.05);
    }
    p->length = 0;
}

static bool falls(struct pole *p, int32_t action)
{
    double *s = p->s, force = action ? 10 : -10, cosine = cos(s[2]), sine = sin(s[2]);
    double push = (force + 0.05 * s[3] * s[3] * sine) / 1.1;
    double spin = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3 - 0.1 * cosine * cosine / 1.1));
    double drive = push - 0.05 * spin * cosine / 1.1;
    s[0] += 0.02 * s[1];
    s[1] += 0.02 * drive;
    s[2] += 0.02 * s[3];
    s[3] += 0.02 * spin;
    p->length++;
    return fabs(s[0]) > 2.4 || fabs(s[2]) > 0.20943951023931953;
}

struct play {
    struct pole pole[ENVS];
    struct corral_rng rng;
    float obs[CELLS * 4], log_prob[CELLS], reward[CELLS], last_obs[ENVS * 4], boundary_obs[CELLS * 4];
    int32_t action[CELLS];
    uint8_t terminated[CELLS], truncated[CELLS], valid[CELLS];
    uint64_t version[STEPS];
    uint32_t boundary_at[CELLS], boundaries, episodes;
    double window[WINDOW];
};

static void observe(const struct pole *p, float *out)
{
    for (uint32_t i = 0; i < 4; i++) {
        out[i] = (float)p->s[i];
    }
}

static void one_step(struct play *g, uint32_t at, uint32_t env)
{
    struct pole *p = &g->pole[env];
    g->reward[at] = 1;
    g->valid[at] = 1;
    g->terminated[at] = falls(p, g->action[at]);
    g->truncated[at] = !g->terminated[at] && p->length >= 500;
    if (g->truncated[at]) {
        g->boundary_at[g->boundaries] = at;
        observe(p, g->boundary_obs + (size_t)g->boundaries++ * 4);
    }
    if (g->terminated[at] || g->truncated[at]) {
        g->window[g->episodes++ % WINDOW] = p->length;
        reset(p, &g->rng);
    }
}

static struct corral_fragment collect(struct play *g, const struct corral_policy_layout *layout,
                                      const float *weights, struct corral_policy_workspace *ws)
{
    g->boundaries = 0;
    for (uint32_t t = 0; t < STEPS; t++) {
        uint32_t at = t * ENVS;
        for (uint32_t e = 0; e < ENVS; e++) {
            observe(&g->pole[e], g->obs + (size_t)(at + e) * 4);
        }
        corral_policy_act(layout, weights, ws, g->obs + (size_t)at * 4, NULL, ENVS, false, &g->rng,
                          g->action + at, g->log_prob + at, NULL);
        for (uint32_t e = 0; e < ENVS; e++) {
            one_step(g, at + e, e);
        }
    }
    for (uint32_t e = 0; e < ENVS; e++) {
        observe(&g->pole[e], g->last_obs + (size_t)e * 4);
    }
    return (struct corral_fragment){.steps = STEPS,
                                    .rows = ENVS,
                                    .obs_dim = 4,
                                    .action_components = 1,
                                    .boundary_count = g->boundaries,
                                    .obs = g->obs,
                                    .action = g->action,
                                    .log_prob = g->log_prob,
                                    .reward = g->reward,
                                    .terminated = g->terminated,
                                    .truncated = g->truncated,
                                    .valid = g->valid,
                                    .version = g->version,
                                    .last_obs = g->last_obs,
                                    .boundary_at = g->boundary_at,
                                    .boundary_obs = g->boundary_obs};
}

static double window_mean(const struct play *g)
{
    double sum = 0;
    for (uint32_t i = 0; i < WINDOW; i++) {
        sum += g->window[i];
    }
    return g->episodes < WINDOW ? 0 : sum / WINDOW;
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Environment steps until the mean of the last 100 training episodes is 475, or 0. */
static uint32_t train(uint64_t seed)
{
    struct corral_error err;
    struct corral_policy_spec spec = {.obs_dim = 4, .layers = 2, .hidden = {32, 32}, .normalise_obs = false};
    spec.action =
        (struct corral_action_spec){.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}};
    struct corral_ppo_config config = {.gamma = 0.99,
                                       .lambda = 0.95,
                                       .clip = 0.2,
                                       .clip_final = 0.2,
                                       .epochs = 10,
                                       .minibatch = 128,
                                       .lr = 1e-3,
                                       .lr_final = 0,
                                       .adam_beta1 = 0.9,
                                       .adam_beta2 = 0.999,
                                       .adam_eps = 1e-5,
                                       .entropy_coef = 0.005,
                                       .value_coef = 1,
                                       .max_grad_norm = 0.5,
                                       .normalise_advantage = true,
                                       .seed = seed};
    struct corral_policy_layout layout;
    struct corral_policy_workspace *ws = NULL;
    struct corral_ppo *learner = NULL;
    check_ok(corral_policy_layout_build(&spec, &layout, &err));
    check_ok(corral_policy_workspace_create(&ws, &layout, ENVS, false, &corral_allocator_heap, &err));
    check_ok(corral_ppo_create(&learner, &layout, &config, CELLS, NULL, &corral_allocator_heap, &err));
    struct play *g = calloc(1, sizeof *g);
    corral_rng_seed(&g->rng, seed + 1000);
    for (uint32_t e = 0; e < ENVS; e++) {
        reset(&g->pole[e], &g->rng);
    }
    double collecting = 0, learning = 0;
    uint32_t steps = 0, solved = 0;
    while (steps < STEP_BUDGET && !solved) {
        double start = cpu_seconds();
        struct corral_fragment f = collect(g, &layout, corral_ppo_weights(learner), ws);
        const struct corral_fragment *one = &f;
        double middle = cpu_seconds();
        struct corral_ppo_stats stats;
        check_ok(corral_ppo_step(learner, &one, 1, steps / (double)STEP_BUDGET, &stats, &err));
        collecting += middle - start;
        learning += cpu_seconds() - middle;
        steps += CELLS;
        solved = window_mean(g) >= 475 ? steps : 0;
    }
    print_message("seed %lu: %s at %u steps, mean %.1f over %u episodes; acting and environments %.3f s, "
                  "learner %.3f s\n",
                  (unsigned long)seed, solved ? "solved" : "not solved", steps, window_mean(g), g->episodes,
                  collecting, learning);
    free(g);
    corral_ppo_destroy(learner);
    corral_policy_workspace_destroy(ws);
    return solved;
}

static void cartpole_is_solved_within_200000_steps(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        assert_true(train(seed) > 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cartpole_is_solved_within_200000_steps)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
