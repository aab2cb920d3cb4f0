/* Made-up fragments for the learner's tests: random observations, ends, invalid steps and masks, with actions from given weights. */
#ifndef CORRAL_TRAINER_LEARNERS_TEST_BATCH_H
#define CORRAL_TRAINER_LEARNERS_TEST_BATCH_H

#include "trainer-bridge/learners/ppo.h"

#define TEST_CELLS_MAX 512u
#define TEST_OBS 3u
#define TEST_MASK 7u

struct test_batch {
    struct corral_fragment fragment;
    float obs[TEST_CELLS_MAX * TEST_OBS], log_prob[TEST_CELLS_MAX], reward[TEST_CELLS_MAX];
    float last_obs[TEST_CELLS_MAX * TEST_OBS], boundary_obs[TEST_CELLS_MAX * TEST_OBS];
    int32_t action[TEST_CELLS_MAX * 2]; /* float bits for continuous */
    uint8_t terminated[TEST_CELLS_MAX], truncated[TEST_CELLS_MAX], valid[TEST_CELLS_MAX];
    uint8_t mask[TEST_CELLS_MAX * TEST_MASK];
    uint64_t version[TEST_CELLS_MAX];
    uint32_t boundary_at[TEST_CELLS_MAX];
};

struct test_shape {
    uint32_t worker, steps, rows;
    uint64_t seed;
};

/* obs_dim 3; discrete {3}, multi-discrete {3, 4}, or two continuous actions; observations normalised; two hidden layers of 16. */
struct corral_policy_layout test_layout(enum corral_action_kind kind);
struct corral_ppo_config test_config(void);
void test_batch_fill(struct test_batch *b, const struct corral_policy_layout *layout, const float *weights,
                     struct test_shape shape);

#endif
