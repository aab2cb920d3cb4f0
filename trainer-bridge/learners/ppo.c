#include "trainer-bridge/learners/ppo.h"
#include "base/clock.h"
#include "model/carver.h"
#include "trainer-bridge/learners/ppo_internal.h"
#include <math.h>
#include <string.h>

#define TRANSITIONS_MAX (1u << 26)
#define EPOCHS_MAX 1000u

struct range {
    const char *name;
    double value, low, high;
};

static enum corral_status check_config(const struct corral_ppo_config *c, struct corral_error *err)
{
    const struct range ranges[] = {
        {"gamma", c->gamma, 0, 1},
        {"lambda", c->lambda, 0, 1},
        {"clip", c->clip, 1e-6, 1e6},
        {"clip_final", c->clip_final, 0, 1e6},
        {"value_clip", c->value_clip, 0, 1e6},
        {"epochs", c->epochs, 1, EPOCHS_MAX},
        {"minibatch", c->minibatch, 1, 1u << 30},
        {"lr", c->lr, 0, 1e3},
        {"lr_final", c->lr_final, 0, 1e3},
        {"adam_beta1", c->adam_beta1, 0, 0.999999},
        {"adam_beta2", c->adam_beta2, 0, 0.9999999},
        {"adam_eps", c->adam_eps, 1e-30, 1},
        {"entropy_coef", c->entropy_coef, -1e6, 1e6},
        {"value_coef", c->value_coef, 0, 1e6},
        {"max_grad_norm", c->max_grad_norm, 0, 1e30},
        {"target_kl", c->target_kl, 0, 1e6},
        {"reward_clip", c->reward_clip, c->normalise_reward ? 1e-6 : -INFINITY, INFINITY},
        {"vtrace_rho", c->vtrace_rho, c->advantage == CORRAL_ADVANTAGE_VTRACE ? 1e-6 : -INFINITY, INFINITY},
        {"vtrace_c", c->vtrace_c, c->advantage == CORRAL_ADVANTAGE_VTRACE ? 1e-6 : -INFINITY, INFINITY},
    };
    if (c->advantage != CORRAL_ADVANTAGE_GAE && c->advantage != CORRAL_ADVANTAGE_VTRACE) {
        return corral_fail(err, CORRAL_INVALID, "ppo: unknown kind of advantage %d", (int)c->advantage);
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(ranges); i++) {
        if (!(ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high)) {
            return corral_fail(err, CORRAL_INVALID, "ppo: %s is %g, must be %g to %g", ranges[i].name,
                               ranges[i].value, ranges[i].low, ranges[i].high);
        }
    }
    return CORRAL_OK;
}

static void place_model(struct corral_ppo *p, struct corral_carver *c)
{
    uint64_t floats = p->layout.floats, trainable = p->layout.trainable_floats, dim = p->layout.spec.obs_dim;
    p->weights = corral_carve(c, floats * sizeof(float));
    p->adam_m = corral_carve(c, trainable * sizeof(float));
    p->adam_v = corral_carve(c, trainable * sizeof(float));
    p->grad = corral_carve(c, (trainable + CORRAL_PPO_SUMS) * sizeof(float));
    p->backup = corral_carve(c, (floats + 2 * trainable) * sizeof(float));
    p->obs_mean = corral_carve(c, dim * sizeof(double));
    p->obs_m2 = corral_carve(c, dim * sizeof(double));
    p->batch_mean = corral_carve(c, (1 + dim) * sizeof(double));
    p->batch_m2 = corral_carve(c, dim * sizeof(double));
    if (p->config.normalise_reward) {
        p->returns.slots = corral_carve(c, CORRAL_RETURN_SLOTS * sizeof *p->returns.slots);
        p->returns.changes = corral_carve(c, (uint64_t)p->transitions_max * sizeof *p->returns.changes);
        p->returns.changes_max = p->transitions_max;
    }
}

static void place_batch(struct corral_ppo *p, struct corral_carver *c)
{
    const struct corral_policy_spec *spec = &p->layout.spec;
    uint64_t t = p->transitions_max;
    p->obs = corral_carve(c, t * spec->obs_dim * sizeof(float));
    p->action = corral_carve(c, t * spec->action.components * sizeof(float));
    if (spec->action.kind != CORRAL_ACTION_CONTINUOUS) {
        p->mask_rows = corral_carve(c, t * sizeof *p->mask_rows);
    }
    float **each[] = {&p->old_log_prob, &p->reward,     &p->value,         &p->advantage,
                      &p->target,       &p->last_value, &p->boundary_value};
    for (size_t i = 0; i < CORRAL_COUNT_OF(each); i++) {
        *each[i] = corral_carve(c, t * sizeof(float));
    }
    p->valid_at = corral_carve(c, t * sizeof *p->valid_at);
    p->order = corral_carve(c, t * p->ranks * sizeof *p->order);
    p->whiten_sums = corral_carve(c, 2 * (uint64_t)p->minibatches_max * sizeof *p->whiten_sums);
    p->member = corral_carve(c, p->piece * sizeof *p->member);
    p->piece_floats = corral_carve(c, 11 * (uint64_t)p->piece * sizeof *p->piece_floats);
}

static void place(struct corral_ppo *p, struct corral_carver *c)
{
    corral_carve(c, sizeof *p);
    place_model(p, c);
    place_batch(p, c);
}

enum corral_status corral_ppo_create(struct corral_ppo **out, const struct corral_policy_layout *layout,
                                     const struct corral_ppo_config *config, uint32_t transitions_max,
                                     struct corral_collective *collective,
                                     const struct corral_allocator *memory, struct corral_error *err)
{
    CORRAL_TRY(check_config(config, err));
    if (transitions_max < 1 || transitions_max > TRANSITIONS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "ppo: room for %u transitions, must be 1 to %u",
                           transitions_max, TRANSITIONS_MAX);
    }
    struct corral_ppo draft = {
        .memory = *memory, .config = *config, .layout = *layout, .transitions_max = transitions_max};
    draft.ranks = collective ? collective->ranks : 1;
    draft.rank = collective ? collective->rank : 0;
    draft.collective = draft.ranks > 1 ? collective : NULL;
    if (draft.ranks < 1 || draft.ranks > CORRAL_COLLECTIVE_RANKS_MAX || draft.rank >= draft.ranks) {
        return corral_fail(err, CORRAL_INVALID, "ppo: rank %u of %u", draft.rank, draft.ranks);
    }
    draft.piece = CORRAL_MIN(CORRAL_MIN(config->minibatch, CORRAL_PPO_PIECE_MAX), transitions_max);
    draft.minibatches_max = (uint32_t)((uint64_t)transitions_max * draft.ranks / config->minibatch + 1);
    struct corral_carver carver = {0};
    place(&draft, &carver);
    draft.bytes = carver.used;
    void *block = NULL;
    CORRAL_TRY(corral_alloc(memory, draft.bytes, "ppo learner", &block, err));
    struct corral_ppo *p = block;
    *p = draft;
    carver = (struct corral_carver){.base = block};
    place(p, &carver);
    enum corral_status status =
        corral_policy_workspace_create(&p->ws, &p->layout, p->piece, true, memory, err);
    if (status != CORRAL_OK) {
        corral_ppo_destroy(p);
        return status;
    }
    struct corral_rng init;
    corral_rng_seed(&init, corral_seed_derive(config->seed, 0, 0, 0));
    corral_rng_seed(&p->now.rng, corral_seed_derive(config->seed, 1, 0, 0));
    corral_policy_init(&p->layout, p->weights, &init);
    *out = p;
    return CORRAL_OK;
}

void corral_ppo_destroy(struct corral_ppo *p)
{
    if (p) {
        struct corral_allocator memory = p->memory;
        corral_policy_workspace_destroy(p->ws);
        corral_release(&memory, p, p->bytes);
    }
}

const float *corral_ppo_weights(const struct corral_ppo *p)
{
    return p->weights;
}

uint64_t corral_ppo_step_count(const struct corral_ppo *p)
{
    return p->now.step;
}

enum corral_status corral_ppo_sum_f64(struct corral_ppo *p, double *data, uint32_t count,
                                      struct corral_error *err)
{
    if (!p->collective) {
        return CORRAL_OK;
    }
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(p->collective->ops->sum_f64(p->collective, data, count, err));
    p->reduce_ns += corral_now_ns(&corral_clock_monotonic) - start;
    return CORRAL_OK;
}

enum corral_status corral_ppo_sum_f32(struct corral_ppo *p, float *data, uint64_t count,
                                      struct corral_error *err)
{
    if (!p->collective) {
        return CORRAL_OK;
    }
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(p->collective->ops->sum_f32(p->collective, data, (uint32_t)count, err));
    p->reduce_ns += corral_now_ns(&corral_clock_monotonic) - start;
    return CORRAL_OK;
}

enum corral_status corral_ppo_gather(struct corral_ppo *p, const void *mine, uint32_t bytes, void *out,
                                     struct corral_error *err)
{
    if (!p->collective) {
        memcpy(out, mine, bytes);
        return CORRAL_OK;
    }
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(p->collective->ops->gather(p->collective, mine, bytes, out, err));
    p->reduce_ns += corral_now_ns(&corral_clock_monotonic) - start;
    return CORRAL_OK;
}

/* What every rank tells the others before anything else: a rank that refuses its fragments must not leave the others waiting. */
struct roll_call {
    uint32_t status, valid;
    double progress;
    uint64_t step;
};

static enum corral_status call_roll(struct corral_ppo *p, enum corral_status status, double progress,
                                    struct corral_error *err)
{
    struct roll_call mine = {
        .status = (uint32_t)status, .valid = p->valid, .progress = progress, .step = p->now.step};
    struct roll_call all[CORRAL_COLLECTIVE_RANKS_MAX];
    struct corral_error *from_reduce = status == CORRAL_OK ? err : NULL; /* keep the first error's text */
    enum corral_status told = corral_ppo_gather(p, &mine, sizeof mine, all, from_reduce);
    if (status != CORRAL_OK || told != CORRAL_OK) {
        return status != CORRAL_OK ? status : told;
    }
    uint64_t total = 0;
    for (uint32_t r = 0; r < p->ranks; r++) {
        if (all[r].status != CORRAL_OK) {
            return corral_fail(err, CORRAL_INVALID, "ppo: rank %u refused its fragments (%s)", r,
                               corral_status_name((enum corral_status)all[r].status));
        }
        if (memcmp(&all[r].progress, &progress, sizeof progress) != 0 || all[r].step != p->now.step) {
            return corral_fail(err, CORRAL_STATE,
                               "ppo: rank %u is at step %llu, progress %g; rank %u at %llu, %g", r,
                               (unsigned long long)all[r].step, all[r].progress, p->rank,
                               (unsigned long long)p->now.step, progress);
        }
        p->offset = r == p->rank ? (uint32_t)total : p->offset;
        total += all[r].valid;
    }
    if (total == 0) {
        return corral_fail(err, CORRAL_INVALID, "ppo: no valid transition in the step");
    }
    if (total > (uint64_t)p->transitions_max * p->ranks) {
        return corral_fail(err, CORRAL_INVALID, "ppo: %llu transitions over all ranks, room for %llu",
                           (unsigned long long)total, (unsigned long long)p->transitions_max * p->ranks);
    }
    p->total = (uint32_t)total;
    return CORRAL_OK;
}

static void remember(struct corral_ppo *p)
{
    uint64_t floats = p->layout.floats, trainable = p->layout.trainable_floats;
    p->before = p->now;
    memcpy(p->backup, p->weights, floats * sizeof *p->backup);
    memcpy(p->backup + floats, p->adam_m, trainable * sizeof *p->backup);
    memcpy(p->backup + floats + trainable, p->adam_v, trainable * sizeof *p->backup);
}

static void roll_back(struct corral_ppo *p)
{
    uint64_t floats = p->layout.floats, trainable = p->layout.trainable_floats;
    p->now = p->before;
    memcpy(p->weights, p->backup, floats * sizeof *p->backup);
    memcpy(p->adam_m, p->backup + floats, trainable * sizeof *p->backup);
    memcpy(p->adam_v, p->backup + floats + trainable, trainable * sizeof *p->backup);
    corral_return_rollback(&p->returns);
}

void corral_ppo_on_phase(struct corral_ppo *p, corral_ppo_phase_fn fn, void *ctx)
{
    p->on_phase = fn;
    p->phase_ctx = ctx;
}

static void enter(const struct corral_ppo *p, enum corral_ppo_phase phase)
{
    if (p->on_phase) {
        p->on_phase(p->phase_ctx, phase);
    }
}

/* Settling comes last and changes the observation statistics only when its last reduction has succeeded. */
static enum corral_status run_step(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                   uint32_t count, double progress, struct corral_ppo_stats *stats,
                                   struct corral_error *err)
{
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    enter(p, CORRAL_PPO_PREPARING);
    CORRAL_TRY(corral_ppo_prepare(p, fragments, count, stats, err));
    uint64_t prepared = corral_now_ns(&corral_clock_monotonic);
    enter(p, CORRAL_PPO_UPDATING);
    CORRAL_TRY(corral_ppo_update(p, progress, stats, err));
    CORRAL_TRY(corral_ppo_settle(p, fragments, count, err));
    stats->prepare_ns += prepared - start;
    stats->update_ns = corral_now_ns(&corral_clock_monotonic) - prepared;
    return CORRAL_OK;
}

enum corral_status corral_ppo_step(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                   uint32_t count, double progress, struct corral_ppo_stats *stats,
                                   struct corral_error *err)
{
    struct corral_ppo_stats result = {0};
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    p->reduce_ns = 0;
    p->valid = p->dense = 0;
    CORRAL_TRY(call_roll(p, corral_ppo_ingest(p, fragments, count, err), progress, err));
    remember(p);
    result.prepare_ns = corral_now_ns(&corral_clock_monotonic) - start;
    enum corral_status status = run_step(p, fragments, count, progress, &result, err);
    enter(p, CORRAL_PPO_OVER);
    if (status != CORRAL_OK) {
        roll_back(p);
        return status;
    }
    corral_return_commit(&p->returns);
    p->now.step++;
    result.step = p->now.step;
    result.transitions = p->total;
    result.reduce_ns = p->reduce_ns;
    *stats = result;
    return CORRAL_OK;
}
