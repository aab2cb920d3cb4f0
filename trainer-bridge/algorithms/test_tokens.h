/* Batches for the tests of the token functions. */
#ifndef CORRAL_TRAINER_ALGORITHMS_TEST_TOKENS_H
#define CORRAL_TRAINER_ALGORITHMS_TEST_TOKENS_H

#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/algorithms/tokens.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEAR_BY(a, b, most)                                                  \
    do {                                                                     \
        double near_a_ = (double)(a), near_b_ = (double)(b);                 \
        if (!(fabs(near_a_ - near_b_) <= (most)*fmax(1.0, fabs(near_b_)))) { \
            fail_msg("%s is %.9g, %s is %.9g", #a, near_a_, #b, near_b_);    \
        }                                                                    \
    } while (0)
#define NEAR(a, b) NEAR_BY(a, b, 2e-6)

/* One group of three responses of 2, 3 and 1 tokens. */
#define GOLDEN_TOKENS 6u
struct golden {
    struct corral_tokens t;
    float reward[3], l[6], proximal[6], behave[6];
};

static inline struct golden golden_batch(void)
{
    static const uint32_t offsets[] = {0, 2, 5, 6};
    static const uint8_t mask[] = {1, 1, 1, 1, 1, 1};
    return (struct golden){
        .t = {.sequences = 3, .offsets = offsets, .mask = mask},
        .reward = {1, 0, .5f},
        .l = {-.5f, -1.2f, -.7f, -.3f, -2, -1},
        .proximal = {-.6f, -1, -.7f, -.9f, -1.6f, -1.3f},
        .behave = {-.55f, -1.1f, -.8f, -.9f, -1.9f, -1.35f},
    };
}

/* Random sequences of 0 to 29 tokens: some wholly masked, NaN under mask 0, one longer than a block of the loops. */
#define RAGGED_SEQUENCES 40u
#define RAGGED_TOKENS_MAX 2048u
struct ragged {
    struct corral_tokens t;
    uint32_t n, offsets[RAGGED_SEQUENCES + 1];
    uint8_t mask[RAGGED_TOKENS_MAX];
    float l[RAGGED_TOKENS_MAX], old[RAGGED_TOKENS_MAX], other[RAGGED_TOKENS_MAX];
    float advantage[RAGGED_TOKENS_MAX], weight[RAGGED_TOKENS_MAX], reward[RAGGED_TOKENS_MAX];
    float value[RAGGED_TOKENS_MAX];
    float per_sequence[RAGGED_SEQUENCES];
    double scale[RAGGED_SEQUENCES];
};

static inline void ragged_fill(struct ragged *g, uint64_t seed)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    g->n = 0;
    for (uint32_t s = 0; s < RAGGED_SEQUENCES; s++) {
        uint32_t length = s == 7 ? 700 : (uint32_t)corral_rng_below(&rng, 30);
        double trained = s % 9 == 4 ? 0 : 0.7;
        g->offsets[s] = g->n;
        g->per_sequence[s] = (float)corral_rng_normal(&rng);
        g->scale[s] = corral_rng_range(&rng, 0.1, 1);
        for (uint32_t i = 0; i < length; i++, g->n++) {
            uint32_t at = g->n;
            g->mask[at] = corral_rng_uniform(&rng) < trained;
            g->reward[at] = corral_rng_uniform(&rng) < 0.3 ? (float)corral_rng_normal(&rng) : 0.0f;
            float *const all[] = {&g->l[at], &g->old[at], &g->other[at], &g->advantage[at], &g->value[at]};
            for (size_t k = 0; k < CORRAL_COUNT_OF(all); k++) {
                *all[k] = g->mask[at] ? (float)(0.5 * corral_rng_normal(&rng)) - (k < 3 ? 1.5f : 0.0f) : NAN;
            }
            g->weight[at] = corral_rng_uniform(&rng) < 0.1 ? 0.0f : (float)corral_rng_range(&rng, 0.2, 2);
        }
    }
    g->offsets[RAGGED_SEQUENCES] = g->n;
    assert_true(g->n < RAGGED_TOKENS_MAX);
    g->t = (struct corral_tokens){.sequences = RAGGED_SEQUENCES, .offsets = g->offsets, .mask = g->mask};
}

/* Sequences first .. first + count - 1, over the same flat arrays. */
static inline struct corral_tokens ragged_view(const struct ragged *g, uint32_t first, uint32_t count)
{
    return (struct corral_tokens){.sequences = count, .offsets = g->offsets + first, .mask = g->mask};
}

#endif
