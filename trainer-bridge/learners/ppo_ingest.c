/* Fragments come from peers: everything the learner relies on is checked here, before anything is changed. */
#include "trainer-bridge/learners/ppo_internal.h"
#include <math.h>
#include <string.h>

static enum corral_status refuse(const struct corral_fragment *f, struct corral_error *err,
                                 enum corral_status status)
{
    return corral_error_prefix(err, status, "fragment %llu of worker %u", (unsigned long long)f->sequence,
                               f->worker);
}

static enum corral_status check_shape(const struct corral_ppo *p, const struct corral_fragment *f,
                                      struct corral_error *err)
{
    const struct corral_policy_spec *spec = &p->layout.spec;
    bool continuous = spec->action.kind == CORRAL_ACTION_CONTINUOUS;
    uint32_t mask = continuous ? 0 : corral_action_logits(&spec->action);
    if (f->steps < 1 || f->steps > CORRAL_FRAGMENT_STEPS_MAX || f->rows < 1 ||
        f->rows > CORRAL_FRAGMENT_ROWS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%u steps of %u rows", f->steps, f->rows);
    }
    if (f->obs_dim != spec->obs_dim || f->action_components != spec->action.components ||
        f->action_continuous != continuous || (f->mask_bytes != 0 && f->mask_bytes != mask)) {
        return corral_fail(
            err, CORRAL_INVALID,
            "%u observation values, %u %s actions, %u mask bytes; the policy has %u, %u %s, 0 or %u",
            f->obs_dim, f->action_components, f->action_continuous ? "continuous" : "discrete", f->mask_bytes,
            spec->obs_dim, spec->action.components, continuous ? "continuous" : "discrete", mask);
    }
    if (!f->obs || !f->action || !f->log_prob || !f->reward || !f->terminated || !f->truncated || !f->valid ||
        !f->last_obs || (f->mask_bytes && !f->mask) ||
        (f->boundary_count && (!f->boundary_at || !f->boundary_obs))) {
        return corral_fail(err, CORRAL_INVALID, "a tensor is missing");
    }
    return CORRAL_OK;
}

static bool all_finite(const float *x, size_t n)
{
    float sum = 0; /* x * 0 is 0 for every number and NaN for the rest */
    for (size_t i = 0; i < n; i++) {
        sum += x[i] * 0.0f;
    }
    return sum == 0;
}

static enum corral_status check_boundaries(const struct corral_fragment *f, struct corral_error *err)
{
    size_t cells = (size_t)f->steps * f->rows;
    uint32_t next = 0;
    for (size_t at = 0; at < cells; at++) {
        if (f->truncated[at] && !f->terminated[at]) {
            if (next >= f->boundary_count || f->boundary_at[next] != at) {
                return corral_fail(err, CORRAL_INVALID,
                                   "step %zu of row %zu was truncated without a final observation",
                                   at / f->rows, at % f->rows);
            }
            next++;
        }
    }
    if (next != f->boundary_count) {
        return corral_fail(err, CORRAL_INVALID, "%u final observations for %u truncations", f->boundary_count,
                           next);
    }
    return CORRAL_OK;
}

static bool any_legal(const uint8_t *legal, uint32_t choices)
{
    for (uint32_t j = 0; j < choices; j++) {
        if (legal[j]) {
            return true;
        }
    }
    return false;
}

static enum corral_status check_action(const struct corral_action_spec *a, const int32_t *action,
                                       const uint8_t *legal, struct corral_error *err)
{
    for (uint32_t c = 0; c < a->components; c++) {
        if (action[c] < 0 || (uint32_t)action[c] >= a->choices[c]) {
            return corral_fail(err, CORRAL_INVALID, "action %d of component %u, which has %u choices",
                               action[c], c, a->choices[c]);
        }
        if (legal) {
            if (!legal[action[c]] && any_legal(legal, a->choices[c])) {
                return corral_fail(err, CORRAL_INVALID, "action %d of component %u is illegal by its mask",
                                   action[c], c);
            }
            legal += a->choices[c];
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_cells(const struct corral_ppo *p, const struct corral_fragment *f,
                                      struct corral_error *err)
{
    const struct corral_action_spec *a = &p->layout.spec.action;
    size_t cells = (size_t)f->steps * f->rows;
    if (!all_finite(f->reward, cells)) {
        return corral_fail(err, CORRAL_INVALID, "a reward is not a finite number");
    }
    for (size_t at = 0; at < cells; at++) {
        if (!f->valid[at]) {
            continue;
        }
        if (!isfinite(f->log_prob[at]) || !all_finite(f->obs + at * f->obs_dim, f->obs_dim)) {
            return corral_fail(err, CORRAL_INVALID, "step %zu of row %zu: %s is not finite", at / f->rows,
                               at % f->rows,
                               isfinite(f->log_prob[at]) ? "the observation" : "the log-probability");
        }
        if (f->action_continuous) {
            if (!all_finite((const float *)f->action + at * a->components, a->components)) {
                return corral_fail(err, CORRAL_INVALID, "step %zu of row %zu: the action is not finite",
                                   at / f->rows, at % f->rows);
            }
        } else {
            CORRAL_TRY(check_action(a, (const int32_t *)f->action + at * a->components,
                                    f->mask_bytes ? f->mask + at * f->mask_bytes : NULL, err));
        }
    }
    if (!all_finite(f->last_obs, (size_t)f->rows * f->obs_dim) ||
        !all_finite(f->boundary_obs, (size_t)f->boundary_count * f->obs_dim)) {
        return corral_fail(err, CORRAL_INVALID, "a final observation is not finite");
    }
    return CORRAL_OK;
}

static enum corral_status check_fragment(const struct corral_ppo *p, const struct corral_fragment *f,
                                         struct corral_error *err)
{
    CORRAL_TRY(check_shape(p, f, err));
    CORRAL_TRY(check_boundaries(f, err));
    return check_cells(p, f, err);
}

static void append(struct corral_ppo *p, const struct corral_fragment *f)
{
    uint32_t cells = f->steps * f->rows, components = f->action_components, at = p->dense;
    corral_policy_normalise(&p->layout, p->weights, f->obs, cells, p->obs + (size_t)at * f->obs_dim);
    memcpy(p->action + (size_t)at * components, f->action, (size_t)cells * components * sizeof(float));
    memcpy(p->old_log_prob + at, f->log_prob, cells * sizeof(float));
    for (uint32_t i = 0; i < cells; i++) {
        if (p->mask_rows) {
            p->mask_rows[at + i] = f->mask_bytes ? f->mask + (size_t)i * f->mask_bytes : NULL;
        }
        if (f->valid[i]) {
            p->valid_at[p->valid++] = at + i;
        }
    }
    p->any_mask = p->any_mask || f->mask_bytes != 0;
    p->dense += cells;
}

enum corral_status corral_ppo_ingest(struct corral_ppo *p, const struct corral_fragment *const *fragments,
                                     uint32_t count, struct corral_error *err)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        enum corral_status status = check_fragment(p, fragments[i], err);
        if (status != CORRAL_OK) {
            return refuse(fragments[i], err, status);
        }
        total += (uint64_t)fragments[i]->steps * fragments[i]->rows;
        if (total > p->transitions_max) {
            return refuse(fragments[i], err,
                          corral_fail(err, CORRAL_INVALID, "brings the step to %llu transitions, room for %u",
                                      (unsigned long long)total, p->transitions_max));
        }
    }
    p->dense = p->valid = 0;
    p->any_mask = false;
    for (uint32_t i = 0; i < count; i++) {
        append(p, fragments[i]);
    }
    return CORRAL_OK;
}
