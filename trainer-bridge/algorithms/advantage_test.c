#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/algorithms/gae.h"
#include "trainer-bridge/algorithms/vtrace.h"
#include <math.h>
#include <string.h>

#define NEAR(a, b) assert_true(fabs((double)(a) - (double)(b)) < 2e-6 * (1 + fabs((double)(b))))

static void gae_gives_the_golden_numbers(void **state)
{
    (void)state;
    const float reward[4] = {1, 1, 1, 1}, value[4] = {.5f, .4f, .3f, .2f}, last = .1f;
    const uint8_t terminated[4] = {0, 1, 0, 0}, truncated[4] = {0};
    struct corral_segment s = {.steps = 4, .rows = 1, .reward = reward, .value = value, .last_value = &last};
    s.terminated = terminated;
    s.truncated = truncated;
    float a[4], r[4];
    corral_gae(&s, 0.99, 0.95, a, r);
    const double advantage[4] = {1.4603, .6, 1.74351, .899}, returns[4] = {1.9603, 1, 2.043509, 1.099};
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(fabs((double)a[i] - advantage[i]) < 2e-6 && fabs((double)r[i] - returns[i]) < 2e-6);
    }
}

static void vtrace_gives_the_golden_numbers(void **state)
{
    (void)state;
    float reward[5], ratio[5], last = 1, a[5], vs[5];
    const uint8_t zero[5] = {0};
    for (uint32_t i = 0; i < 5; i++) {
        reward[i] = (float)i;
        ratio[i] = 5.0f * ((float)i / 5.0f - 0.5f);
    }
    struct corral_segment s = {.steps = 5, .rows = 1, .reward = reward, .value = reward, .last_value = &last};
    s.terminated = s.truncated = zero;
    struct corral_vtrace_config c = {.gamma = 0.9, .lambda = 1, .rho_bar = 3.7, .c_bar = 1, .rho_pg = 2.2};
    corral_vtrace(&s, ratio, &c, a, vs);
    const double want_vs[5] = {.200182, 2.709682, 8.513628, 11.932397, 7.33};
    const double want_pg[5] = {.200182, 1.709682, 6.513628, 10.876614, 1.98};
    for (uint32_t i = 0; i < 5; i++) {
        assert_true(fabs((double)vs[i] - want_vs[i]) < 2e-6 && fabs((double)a[i] - want_pg[i]) < 2e-6);
    }
}

#define STEPS 40u
#define ROWS 7u
#define CELLS (STEPS * ROWS)

struct random_segment {
    struct corral_segment s;
    float reward[CELLS], value[CELLS], last[ROWS], boundary_value[CELLS], ratio[CELLS];
    uint8_t terminated[CELLS], truncated[CELLS], valid[CELLS];
    uint32_t boundary_at[CELLS];
};

static void randomise(struct random_segment *g, uint64_t seed)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    memset(g, 0, sizeof *g);
    uint32_t boundaries = 0;
    for (uint32_t i = 0; i < CELLS; i++) {
        g->reward[i] = (float)corral_rng_normal(&rng);
        g->value[i] = (float)corral_rng_normal(&rng);
        g->ratio[i] = (float)corral_rng_normal(&rng);
        g->terminated[i] = corral_rng_below(&rng, 9) == 0;
        g->truncated[i] = corral_rng_below(&rng, 9) == 0;
        g->valid[i] = corral_rng_below(&rng, 3) > 0;
        if (g->truncated[i] && !g->terminated[i]) {
            g->boundary_at[boundaries] = i;
            g->boundary_value[boundaries++] = (float)corral_rng_normal(&rng);
        }
    }
    for (uint32_t i = 0; i < ROWS; i++) {
        g->last[i] = (float)corral_rng_normal(&rng);
    }
    g->s = (struct corral_segment){.steps = STEPS,
                                   .rows = ROWS,
                                   .reward = g->reward,
                                   .value = g->value,
                                   .terminated = g->terminated,
                                   .truncated = g->truncated,
                                   .valid = g->valid,
                                   .last_value = g->last,
                                   .boundary_count = boundaries,
                                   .boundary_at = g->boundary_at,
                                   .boundary_value = g->boundary_value};
}

/* One row as a list of decisions, going forward: reward collected until the next decision or the end, and what follows. */
struct decision {
    uint32_t at;
    double reward, value, next_value, ratio;
    int ends; /* nothing of this row's later decisions belongs to the episode */
};

static uint32_t list_decisions(const struct random_segment *g, uint32_t row, struct decision *d)
{
    uint32_t n = 0;
    int open = 0; /* d[n - 1] still collects */
    for (uint32_t t = 0; t < STEPS; t++) {
        uint32_t at = t * ROWS + row;
        if (g->valid[at]) {
            if (open) {
                d[n - 1].next_value = g->value[at];
            }
            d[n++] = (struct decision){.at = at, .value = g->value[at], .ratio = exp((double)g->ratio[at])};
            open = 1;
        }
        if (open) {
            d[n - 1].reward += g->reward[at];
        }
        if (g->terminated[at] || g->truncated[at]) {
            double follow = 0;
            for (uint32_t b = 0; b < g->s.boundary_count; b++) {
                follow = g->boundary_at[b] == at ? g->boundary_value[b] : follow;
            }
            if (open) {
                d[n - 1].next_value = follow;
                d[n - 1].ends = 1;
            }
            open = 0;
        }
    }
    if (open) {
        d[n - 1].next_value = g->last[row];
        d[n - 1].ends = 1;
    }
    return n;
}

/* The definition: A_t = sum over k of (gamma lambda)^k delta_{t+k}. */
static void gae_matches_the_sum_over_decisions(void **state)
{
    (void)state;
    const double gamma = 0.97, lambda = 0.9;
    for (uint64_t seed = 1; seed < 20; seed++) {
        static struct random_segment g;
        randomise(&g, seed);
        float a[CELLS], r[CELLS];
        corral_gae(&g.s, gamma, lambda, a, r);
        for (uint32_t row = 0; row < ROWS; row++) {
            struct decision d[STEPS];
            uint32_t n = list_decisions(&g, row, d);
            for (uint32_t i = 0; i < n; i++) {
                double sum = 0, weight = 1;
                for (uint32_t k = i; k < n; k++) {
                    sum += weight * (d[k].reward + gamma * d[k].next_value - d[k].value);
                    weight *= gamma * lambda;
                    if (d[k].ends) {
                        break;
                    }
                }
                NEAR(a[d[i].at], sum);
                NEAR(r[d[i].at], sum + d[i].value);
            }
        }
        for (uint32_t i = 0; i < CELLS; i++) {
            assert_true(g.valid[i] || (a[i] == 0 && r[i] == 0));
        }
    }
}

/* The paper's equation 1: vs = V + sum over k of gamma^k (prod of c) delta. */
static void vtrace_matches_the_sum_over_decisions(void **state)
{
    (void)state;
    const struct corral_vtrace_config c = {
        .gamma = 0.95, .lambda = 0.8, .rho_bar = 1.1, .c_bar = 0.9, .rho_pg = 1.3};
    for (uint64_t seed = 1; seed < 20; seed++) {
        static struct random_segment g;
        randomise(&g, seed);
        float a[CELLS], vs[CELLS];
        corral_vtrace(&g.s, g.ratio, &c, a, vs);
        for (uint32_t row = 0; row < ROWS; row++) {
            struct decision d[STEPS];
            double target[STEPS];
            uint32_t n = list_decisions(&g, row, d);
            for (uint32_t i = 0; i < n; i++) {
                double weight = 1;
                target[i] = d[i].value;
                for (uint32_t k = i; k < n; k++) {
                    target[i] += weight * fmin(c.rho_bar, d[k].ratio) *
                                 (d[k].reward + c.gamma * d[k].next_value - d[k].value);
                    weight *= c.gamma * c.lambda * fmin(c.c_bar, d[k].ratio);
                    if (d[k].ends) {
                        break;
                    }
                }
                NEAR(vs[d[i].at], target[i]);
            }
            for (uint32_t i = 0; i < n; i++) {
                double after = d[i].ends ? d[i].next_value : target[i + 1];
                NEAR(a[d[i].at], fmin(c.rho_pg, d[i].ratio) * (d[i].reward + c.gamma * after - d[i].value));
            }
        }
    }
}

static void folded_rewards_give_the_same_advantages(void **state)
{
    (void)state;
    static struct random_segment g;
    randomise(&g, 77);
    float folded[CELLS], a[CELLS], r[CELLS], b[CELLS], q[CELLS];
    corral_gae(&g.s, 0.99, 0.95, a, r);
    corral_segment_fold_rewards(&g.s, folded);
    g.s.reward = folded;
    corral_gae(&g.s, 0.99, 0.95, b, q);
    for (uint32_t i = 0; i < CELLS; i++) {
        NEAR(a[i], b[i]);
        assert_true(g.valid[i] || folded[i] == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gae_gives_the_golden_numbers),
        cmocka_unit_test(vtrace_gives_the_golden_numbers),
        cmocka_unit_test(gae_matches_the_sum_over_decisions),
        cmocka_unit_test(vtrace_matches_the_sum_over_decisions),
        cmocka_unit_test(folded_rewards_give_the_same_advantages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
