/* Actions on their way to the plug-in: checked, and continuous ones clipped into its own buffer. */
#include "rollout/env_host/vec_internal.h"
#include "rollout/env_host/vec_scan.h"
#include <math.h>

/* A mask without one legal choice forbids nothing: policies then treat all as legal, too. */
static bool forbidden(const struct corral_vec *v, uint32_t row, uint32_t first, uint32_t choices,
                      uint32_t choice)
{
    const uint8_t *mask = v->view.mask + (size_t)row * v->spec.mask_bytes + first;
    if (mask[choice] != 0) {
        return false;
    }
    for (uint32_t i = 0; i < choices; i++) {
        if (mask[i] != 0) {
            return true;
        }
    }
    return false;
}

static enum corral_status judge_row(struct corral_vec *v, uint32_t row, struct corral_error *err)
{
    const struct corral_action_spec *a = &v->spec.action;
    uint32_t env = row / v->view.agents, agent = row % v->view.agents, first = 0;
    for (uint32_t c = 0; c < a->components; first += a->choices[c++]) {
        size_t at = (size_t)row * a->components + c;
        int32_t *choice = (int32_t *)v->view.action + at;
        const float *value = (const float *)v->view.action + at;
        if (v->continuous) {
            if (!isfinite(*value) && v->active[row]) {
                return corral_fail(
                    err, CORRAL_INVALID,
                    "%s: the action of environment %u, agent %u, component %u is %g, not a finite number",
                    v->spec.id, env, agent, c, (double)*value);
            }
            if (!isfinite(*value)) {
                ((float *)v->backend->action)[at] = fminf(fmaxf(0, a->low[c]), a->high[c]);
            }
            continue;
        }
        if ((*choice < 0 || (uint32_t)*choice >= a->choices[c]) && v->active[row]) {
            return corral_fail(
                err, CORRAL_INVALID,
                "%s: the action of environment %u, agent %u, component %u is %d; it must be in [0, %u)",
                v->spec.id, env, agent, c, *choice, a->choices[c]);
        }
        if (*choice < 0 || (uint32_t)*choice >= a->choices[c]) {
            *choice = 0;
        }
        if (v->view.mask != NULL && v->active[row] &&
            forbidden(v, row, first, a->choices[c], (uint32_t)*choice)) {
            return corral_fail(
                err, CORRAL_INVALID,
                "%s: the action of environment %u, agent %u, component %u is %d, which its mask forbids",
                v->spec.id, env, agent, c, *choice);
        }
    }
    return CORRAL_OK;
}

/* The scan over all rows found something: on an active row it is the caller's mistake. */
static enum corral_status judge_actions(struct corral_vec *v, struct corral_error *err)
{
    for (uint32_t row = 0; row < v->view.rows; row++) {
        CORRAL_TRY(judge_row(v, row, err));
    }
    return CORRAL_OK;
}

static bool choices_bad(const struct corral_vec *v)
{
    const struct corral_action_spec *a = &v->spec.action;
    if (a->components == 1 && v->view.mask == NULL) {
        return corral_scan_out_of_range(v->view.action, v->view.rows, a->choices[0]);
    }
    uint32_t bad = 0;
    const int32_t *action = v->view.action;
    const uint8_t *mask = v->view.mask;
    for (uint32_t row = 0; row < v->view.rows; row++) {
        for (uint32_t c = 0; c < a->components; c++, action++) {
            bool outside = (uint32_t)*action >= a->choices[c];
            bad |= outside || (mask != NULL && mask[*action] == 0);
            mask = mask != NULL ? mask + a->choices[c] : NULL;
        }
    }
    return bad;
}

enum corral_status corral_vec_hand_over_actions(struct corral_vec *v, struct corral_error *err)
{
    const struct corral_action_spec *a = &v->spec.action;
    bool bad = v->continuous ? corral_scan_clip(v->view.action, v->backend->action, v->view.rows,
                                                a->components, a->low, a->high)
                             : choices_bad(v);
    return bad ? judge_actions(v, err) : CORRAL_OK;
}
