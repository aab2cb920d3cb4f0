/* The rules of a vector: episodes, voids, seeds. vec.h states them. */
#include "base/rng.h"
#include "rollout/env_host/vec_internal.h"
#include "rollout/env_host/vec_scan.h"
#include <stdio.h>
#include <string.h>

enum { DOWN_SHIFT_MAX = 6 };

/* ---- one environment ---- */

bool corral_vec_take_obs(struct corral_vec *v, uint32_t e)
{
    const struct corral_env_backend *b = v->backend;
    size_t first = (size_t)e * v->view.agents, n = (size_t)v->view.agents * v->spec.obs_dim;
    if (v->convert) {
        return !corral_scan_convert(b->spec.obs_dtype,
                                    (const char *)b->buffers.obs + first * b->buffers.obs_stride,
                                    v->obs + first * v->spec.obs_dim, n);
    }
    return !corral_scan_nonfinite(v->obs + first * v->spec.obs_dim, n);
}

static void clear_rows(struct corral_vec *v, uint32_t e)
{
    const struct corral_env_buffers *buf = &v->backend->buffers;
    size_t first = (size_t)e * v->view.agents, n = v->view.agents;
    memset(buf->reward + first, 0, n * sizeof(float));
    memset(buf->terminated + first, 0, n);
    memset(buf->truncated + first, 0, n);
    memset(v->done + first, 0, n);
    v->done_rows[e] = 0;
}

static void show_status(struct corral_vec *v, uint32_t e, enum corral_status status)
{
    v->status[e] = (int32_t)status;
    v->status_shown = true;
}

static void void_episode(struct corral_vec *v, uint32_t e, int plugin_status)
{
    const char *why = "it produced a NaN or an infinity";
    enum corral_status status = CORRAL_INFRA;
    if (plugin_status != CORRAL_ENV_OK) {
        why = corral_env_status_name(plugin_status);
        status = plugin_status == CORRAL_ENV_TASK || plugin_status == CORRAL_ENV_INVALID ? CORRAL_INVALID
                 : plugin_status == CORRAL_ENV_NOMEM                                     ? CORRAL_NOMEM
                                                                                         : CORRAL_INFRA;
    } else {
        v->stats.nonfinite++;
    }
    snprintf(v->stats.last_fault, sizeof v->stats.last_fault, "environment %s number %u, step %u: %s",
             v->spec.id, e, v->episode_steps[e], why);
    v->stats.voided++;
    v->voided[v->voided_count++] = e;
    show_status(v, e, status);
    clear_rows(v, e);
}

static void go_down(struct corral_vec *v, uint32_t e, int plugin_status, bool ended_well)
{
    if (v->down[e] == 0) {
        v->down_count++;
    }
    v->down[e] = (uint8_t)CORRAL_MIN(v->down[e] + 1, 1 + DOWN_SHIFT_MAX);
    v->down_wait[e] = 1u << (v->down[e] - 1);
    snprintf(v->stats.last_fault, sizeof v->stats.last_fault, "environment %s number %u: reset failed: %s",
             v->spec.id, e,
             plugin_status ? corral_env_status_name(plugin_status)
                           : "its first observation has a NaN or an infinity");
    memset(v->obs + (size_t)e * v->view.agents * v->spec.obs_dim, 0,
           (size_t)v->view.agents * v->spec.obs_dim * sizeof(float));
    if (!ended_well) {
        show_status(v, e, CORRAL_INFRA);
    }
}

static void come_up(struct corral_vec *v, uint32_t e)
{
    if (v->down[e] != 0) {
        v->down[e] = 0;
        v->down_count--;
    }
}

void corral_vec_show_active(struct corral_vec *v)
{
    if (v->per_row) {
        corral_scan_active(v->backend->buffers.active, v->done, v->active, v->view.rows);
    } else if (v->stats.down > 0) {
        memset(v->active, 1, v->view.rows); /* as it always is, but for those that were down */
    }
    for (uint32_t e = 0; v->down_count > 0 && e < v->view.envs; e++) {
        if (v->down[e]) {
            memset(v->active + (size_t)e * v->view.agents, 0, v->view.agents);
        }
    }
    v->stats.down = v->down_count;
}

/* ---- reset ---- */

static uint64_t next_seed(struct corral_vec *v, uint32_t e)
{
    return corral_seed_derive(v->seed, v->worker, e, v->stream[e]++);
}

/* How environment e came out of its reset. */
static void take_reset(struct corral_vec *v, uint32_t e, bool ended_well)
{
    int32_t status = v->backend->buffers.status[e];
    if (corral_vec_take_obs(v, e) && status == CORRAL_ENV_OK) {
        come_up(v, e);
    } else {
        v->backend->buffers.status[e] = CORRAL_ENV_OK;
        go_down(v, e, status, ended_well);
    }
}

static enum corral_backend_outcome reset_all(struct corral_vec *v, struct corral_error *err)
{
    for (uint32_t e = 0; e < v->view.envs; e++) {
        v->backend->seeds[e] = next_seed(v, e);
        v->backend->buffers.status[e] = CORRAL_ENV_OK;
    }
    enum corral_backend_outcome outcome = v->backend->ops->reset(v->backend, true, v->view.envs, err);
    if (outcome != CORRAL_BACKEND_OK) {
        return outcome;
    }
    for (uint32_t e = 0; e < v->view.envs; e++) {
        clear_rows(v, e);
        take_reset(v, e, false);
    }
    return CORRAL_BACKEND_OK;
}

static void note_loss(struct corral_vec *v, const struct corral_error *why)
{
    v->stats.restarts = v->backend->restarts;
    snprintf(v->stats.last_fault, sizeof v->stats.last_fault, "%.*s", (int)sizeof v->stats.last_fault - 1,
             why->text);
}

static enum corral_status pass_on(struct corral_error *err, const struct corral_error *from)
{
    if (err != NULL) {
        *err = *from;
    }
    return from->status;
}

enum corral_status corral_vec_recover(struct corral_vec *v, struct corral_error *err)
{
    struct corral_error why = {0};
    for (;;) {
        enum corral_backend_outcome outcome = reset_all(v, &why);
        if (outcome == CORRAL_BACKEND_OK) {
            v->fresh_count = 0;
            for (uint32_t e = 0; e < v->view.envs; e++) {
                v->fresh[v->fresh_count++] = e;
            }
            corral_vec_show_active(v);
            return CORRAL_OK;
        }
        if (outcome == CORRAL_BACKEND_FAILED) {
            return pass_on(err, &why);
        }
        note_loss(v, &why);
    }
}

enum corral_status corral_vec_lose_all(struct corral_vec *v, const struct corral_error *why,
                                       struct corral_error *err)
{
    note_loss(v, why);
    for (uint32_t e = 0; e < v->view.envs; e++) {
        v->stats.voided += v->down[e] == 0 && v->status[e] == 0;
        show_status(v, e, CORRAL_INFRA);
    }
    return corral_vec_recover(v, err);
}

enum corral_status corral_vec_reset(struct corral_vec *v, struct corral_error *err)
{
    memset(v->status, 0, v->view.envs * sizeof *v->status);
    v->status_shown = false;
    v->all_down_steps = 0;
    CORRAL_TRY(corral_vec_recover(v, err));
    memset(v->episode_steps, 0, v->view.envs * sizeof *v->episode_steps);
    v->fresh_count = 0;
    v->ready = true;
    return CORRAL_OK;
}

/* ---- step ---- */

/* A row has just been flagged. Its last observation goes to final_obs; false when that is not finite. */
static bool take_final(struct corral_vec *v, uint32_t row)
{
    const struct corral_env_backend *b = v->backend;
    size_t at = (size_t)row * v->spec.obs_dim, n = v->spec.obs_dim;
    if (b->spec.autoreset != CORRAL_ENV_AUTORESET_SAME_STEP) {
        memcpy(v->final_obs + at, v->obs + at, n * sizeof(float)); /* already converted and found finite */
        return true;
    }
    if (v->convert) {
        return !corral_scan_convert(b->spec.obs_dtype,
                                    (const char *)b->buffers.final_obs + (size_t)row * b->buffers.obs_stride,
                                    v->final_obs + at, n);
    }
    return !corral_scan_nonfinite(v->final_obs + at, n);
}

static void end_row(struct corral_vec *v, uint32_t row)
{
    const struct corral_env_buffers *buf = &v->backend->buffers;
    uint32_t e = row / v->view.agents;
    if (v->status[e] != 0) {
        return; /* void; its rows are cleared */
    }
    if (v->done[row]) { /* flagged earlier in this episode */
        buf->terminated[row] = buf->truncated[row] = 0;
        return;
    }
    buf->terminated[row] = buf->terminated[row] != 0;
    buf->truncated[row] = buf->truncated[row] != 0;
    if (!take_final(v, row)) {
        void_episode(v, e, CORRAL_ENV_OK);
        return;
    }
    v->done[row] = 1;
    if (++v->done_rows[e] == v->view.agents) {
        v->ended[v->ended_count++] = e;
    }
}

static void find_voids(struct corral_vec *v)
{
    const struct corral_env_buffers *buf = &v->backend->buffers;
    for (uint32_t e = 0; e < v->view.envs; e++) {
        if (v->down[e]) {
            continue;
        }
        bool finite = corral_vec_take_obs(v, e) &&
                      !corral_scan_nonfinite(buf->reward + (size_t)e * v->view.agents, v->view.agents);
        if (buf->status[e] != CORRAL_ENV_OK || !finite) {
            void_episode(v, e, buf->status[e]);
        }
    }
}

/* Save (or put back) what the step left in the rows of ended episodes while the plug-in starts the next ones. */
static void keep_rows(struct corral_vec *v, bool save)
{
    const struct corral_env_buffers *buf = &v->backend->buffers;
    uint32_t n = v->view.agents;
    for (uint32_t i = 0; i < v->ended_count; i++) {
        size_t row = (size_t)v->ended[i] * n;
        memcpy(save ? v->kept_reward + row : buf->reward + row,
               save ? buf->reward + row : v->kept_reward + row, n * sizeof(float));
        memcpy(save ? v->kept_terminated + row : buf->terminated + row,
               save ? buf->terminated + row : v->kept_terminated + row, n);
        memcpy(save ? v->kept_truncated + row : buf->truncated + row,
               save ? buf->truncated + row : v->kept_truncated + row, n);
    }
}

static uint32_t ask_reset(struct corral_vec *v, uint32_t at, uint32_t e)
{
    v->backend->ids[at] = e;
    v->backend->seeds[at] = next_seed(v, e);
    v->backend->buffers.status[e] = CORRAL_ENV_OK;
    return at + 1;
}

/* Environments that are down and due for another attempt; listed in v->retried, for a child could change the ids that both share. */
static uint32_t ask_down(struct corral_vec *v)
{
    uint32_t at = 0;
    bool all = v->down_count == v->view.envs;
    for (uint32_t e = 0; v->down_count > 0 && e < v->view.envs; e++) {
        if (v->down[e] && (all || --v->down_wait[e] == 0)) {
            v->retried[at] = e;
            v->fresh[v->fresh_count++] = e;
            at = ask_reset(v, at, e);
        }
    }
    return at;
}

/* One reset() for all that need one: environments that are down, voided ones, and (without autoreset) those that ended. */
static enum corral_backend_outcome reset_some(struct corral_vec *v, uint32_t ended, struct corral_error *err)
{
    uint32_t retried = ask_down(v), count = retried;
    for (uint32_t i = 0; i < v->voided_count; i++) {
        count = ask_reset(v, count, v->voided[i]);
    }
    for (uint32_t i = 0; i < ended; i++) {
        count = ask_reset(v, count, v->ended[i]);
    }
    if (count == 0) {
        return CORRAL_BACKEND_OK;
    }
    enum corral_backend_outcome outcome = v->backend->ops->reset(v->backend, false, count, err);
    if (outcome != CORRAL_BACKEND_OK) {
        return outcome;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t after = i - retried;
        uint32_t e = i < retried               ? v->retried[i]
                     : after < v->voided_count ? v->voided[after]
                                               : v->ended[after - v->voided_count];
        take_reset(v, e, i >= retried + v->voided_count);
        clear_rows(v, e);
    }
    return CORRAL_BACKEND_OK;
}

static enum corral_backend_outcome start_next_episodes(struct corral_vec *v, struct corral_error *err)
{
    struct corral_env_backend *b = v->backend;
    bool off = b->spec.autoreset == CORRAL_ENV_AUTORESET_OFF,
         next = b->spec.autoreset == CORRAL_ENV_AUTORESET_NEXT_STEP;
    enum corral_backend_outcome outcome = CORRAL_BACKEND_OK;
    if (v->ended_count > 0 && (off || next)) {
        keep_rows(v, true);
    }
    if (v->ended_count > 0 && next) {
        memcpy(b->ids, v->ended, v->ended_count * sizeof *b->ids);
        outcome = b->ops->step(b, false, v->ended_count, err);
        for (uint32_t i = 0; outcome == CORRAL_BACKEND_OK && i < v->ended_count; i++) {
            take_reset(v, v->ended[i], true);
        }
    }
    if (outcome == CORRAL_BACKEND_OK &&
        (v->voided_count > 0 || v->down_count > 0 || (off && v->ended_count > 0))) {
        outcome = reset_some(v, off ? v->ended_count : 0, err);
    }
    if (outcome == CORRAL_BACKEND_OK && v->ended_count > 0 && (off || next)) {
        keep_rows(v, false);
    }
    return outcome;
}

/* Something ended, failed or is down: the part of a step that most steps do not need. */
static enum corral_status settle(struct corral_vec *v, size_t flagged, bool troubled,
                                 struct corral_error *err)
{
    v->voided_count = v->ended_count = 0;
    if (troubled) {
        find_voids(v);
    }
    for (size_t i = 0; i < flagged; i++) {
        end_row(v, v->flagged[i]);
    }
    v->stats.episodes += v->ended_count;
    for (uint32_t i = 0; i < v->ended_count; i++) {
        uint32_t e = v->ended[i];
        v->fresh[v->fresh_count++] = e;
        v->done_rows[e] = 0;
        memset(v->done + (size_t)e * v->view.agents, 0, v->view.agents);
    }
    for (uint32_t i = 0; i < v->voided_count; i++) {
        v->fresh[v->fresh_count++] = v->voided[i];
    }
    struct corral_error why = {0};
    enum corral_backend_outcome outcome = start_next_episodes(v, &why);
    if (outcome == CORRAL_BACKEND_LOST) {
        return corral_vec_lose_all(v, &why, err);
    }
    return outcome == CORRAL_BACKEND_FAILED ? pass_on(err, &why) : CORRAL_OK;
}

static uint32_t list_up(struct corral_vec *v)
{
    uint32_t count = 0;
    for (uint32_t e = 0; e < v->view.envs; e++) {
        if (!v->down[e]) {
            v->backend->ids[count++] = e;
        } else {
            show_status(v, e, CORRAL_INFRA);
        }
    }
    return count;
}

static void begin_step(struct corral_vec *v)
{
    for (uint32_t i = 0; i < v->fresh_count; i++) {
        v->episode_steps[v->fresh[i]] = 0;
    }
    v->fresh_count = 0;
    if (v->status_shown) {
        memset(v->status, 0, v->view.envs * sizeof *v->status);
        v->status_shown = false;
    }
}

static enum corral_status check_some_are_up(struct corral_vec *v, struct corral_error *err)
{
    v->all_down_steps = v->down_count == v->view.envs ? v->all_down_steps + 1 : 0;
    if (v->all_down_steps >= CORRAL_VEC_ALL_DOWN_MAX) {
        return corral_fail(err, CORRAL_INFRA,
                           "%s: none of %u environments could be reset in %d attempts; the last: %s",
                           v->spec.id, v->view.envs, CORRAL_VEC_ALL_DOWN_MAX, v->stats.last_fault);
    }
    return CORRAL_OK;
}

enum corral_status corral_vec_step(struct corral_vec *v, struct corral_error *err)
{
    const struct corral_env_buffers *buf = &v->backend->buffers;
    uint32_t rows = v->view.rows, envs = v->view.envs;
    if (!v->ready) {
        return corral_fail(err, CORRAL_STATE, "%s: step before the first reset", v->spec.id);
    }
    CORRAL_TRY(corral_vec_hand_over_actions(v, err));
    begin_step(v);
    uint32_t count = v->down_count > 0 ? list_up(v) : envs;
    if (count > 0) {
        struct corral_error why = {0};
        enum corral_backend_outcome outcome =
            v->backend->ops->step(v->backend, v->down_count == 0, count, &why);
        if (outcome == CORRAL_BACKEND_LOST) {
            return corral_vec_lose_all(v, &why, err);
        }
        if (outcome == CORRAL_BACKEND_FAILED) {
            return pass_on(err, &why);
        }
    }
    v->stats.steps++;
    corral_scan_increment(v->episode_steps, envs);
    size_t flagged = corral_scan_flagged(buf->terminated, buf->truncated, rows, v->flagged);
    size_t elements = (size_t)rows * v->spec.obs_dim;
    bool bad_obs = v->convert ? corral_scan_convert(v->backend->spec.obs_dtype, buf->obs, v->obs, elements)
                              : corral_scan_nonfinite(v->obs, elements);
    bool troubled =
        bad_obs || corral_scan_nonfinite(buf->reward, rows) || corral_scan_any_i32(buf->status, envs);
    if (flagged > 0 || troubled || v->down_count > 0) {
        CORRAL_TRY(settle(v, flagged, troubled, err));
        CORRAL_TRY(check_some_are_up(v, err));
    }
    corral_vec_show_active(v);
    return CORRAL_OK;
}
