#include "trainer-bridge/learners/test_batch.h"
#include "tests/check.h"

#include <string.h>

struct corral_policy_layout test_layout(enum corral_action_kind kind)
{
    struct corral_error err;
    struct corral_policy_spec s = {
        .obs_dim = TEST_OBS, .layers = 2, .hidden = {16, 16}, .normalise_obs = true};
    s.action.kind = kind;
    s.action.components = kind == CORRAL_ACTION_DISCRETE ? 1 : 2;
    for (uint32_t c = 0; c < 2; c++) {
        s.action.choices[c] = 3 + c;
        s.action.low[c] = -1;
        s.action.high[c] = 1;
    }
    struct corral_policy_layout layout;
    check_ok(corral_policy_layout_build(&s, &layout, &err));
    return layout;
}

struct corral_ppo_config test_config(void)
{
    return (struct corral_ppo_config){.gamma = 0.97,
                                      .lambda = 0.9,
                                      .clip = 0.2,
                                      .clip_final = 0.1,
                                      .vtrace_rho = 1,
                                      .vtrace_c = 1,
                                      .epochs = 3,
                                      .minibatch = 64,
                                      .lr = 1e-3,
                                      .lr_final = 1e-4,
                                      .adam_beta1 = 0.9,
                                      .adam_beta2 = 0.999,
                                      .adam_eps = 1e-5,
                                      .entropy_coef = 0.01,
                                      .value_coef = 0.5,
                                      .max_grad_norm = 0.5,
                                      .normalise_advantage = true,
                                      .reward_clip = 10,
                                      .seed = 7};
}

static void fill_inputs(struct test_batch *b, uint32_t cells, struct corral_rng *rng)
{
    uint32_t boundaries = 0;
    for (uint32_t i = 0; i < cells; i++) {
        for (uint32_t d = 0; d < TEST_OBS; d++) {
            b->obs[i * TEST_OBS + d] = 3.0f * (float)d + (1.0f + (float)d) * (float)corral_rng_normal(rng);
            b->last_obs[i * TEST_OBS + d] = (float)corral_rng_normal(rng);
        }
        b->reward[i] = (float)corral_rng_normal(rng);
        b->valid[i] = corral_rng_below(rng, 5) > 0;
        b->terminated[i] = corral_rng_below(rng, 12) == 0;
        b->truncated[i] = corral_rng_below(rng, 12) == 0;
        if (b->truncated[i] && !b->terminated[i]) {
            b->boundary_at[boundaries] = i;
            for (uint32_t d = 0; d < TEST_OBS; d++) {
                b->boundary_obs[boundaries * TEST_OBS + d] = (float)corral_rng_normal(rng);
            }
            boundaries++;
        }
        for (uint32_t j = 0; j < TEST_MASK; j++) {
            b->mask[i * TEST_MASK + j] = corral_rng_below(rng, 4) > 0;
        }
    }
    b->fragment.boundary_count = boundaries;
}

void test_batch_fill(struct test_batch *b, const struct corral_policy_layout *layout, const float *weights,
                     struct test_shape shape)
{
    struct corral_error err;
    struct corral_rng rng;
    uint32_t cells = shape.steps * shape.rows;
    assert_true(cells <= TEST_CELLS_MAX);
    bool continuous = layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS;
    memset(b, 0, sizeof *b);
    corral_rng_seed(&rng, shape.seed);
    fill_inputs(b, cells, &rng);
    struct corral_policy_workspace *ws = NULL;
    check_ok(corral_policy_workspace_create(&ws, layout, cells, false, &corral_allocator_heap, &err));
    corral_policy_act(layout, weights, ws, b->obs, continuous ? NULL : b->mask, cells, false, &rng, b->action,
                      b->log_prob, NULL);
    corral_policy_workspace_destroy(ws);
    struct corral_fragment *f = &b->fragment;
    f->worker = shape.worker;
    f->sequence = 1;
    f->steps = shape.steps;
    f->rows = shape.rows;
    f->obs_dim = TEST_OBS;
    f->action_components = layout->spec.action.components;
    f->action_continuous = continuous;
    f->mask_bytes = continuous ? 0 : corral_action_logits(&layout->spec.action);
    f->obs = b->obs;
    f->action = b->action;
    f->log_prob = b->log_prob;
    f->reward = b->reward;
    f->terminated = b->terminated;
    f->truncated = b->truncated;
    f->valid = b->valid;
    f->version = b->version;
    f->mask = continuous ? NULL : b->mask;
    f->last_obs = b->last_obs;
    f->boundary_at = b->boundary_at;
    f->boundary_obs = b->boundary_obs;
}
