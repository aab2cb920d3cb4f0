#include "rollout/env_host/vec.h"
#include "rollout/env_host/vec_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- creation ---- */

static uint64_t place(uint64_t *end, uint64_t bytes)
{
    uint64_t at = *end;
    *end = (at + bytes + 63) / 64 * 64;
    return at;
}

/* With block NULL only counts. */
static uint64_t place_own(struct corral_vec *v, char *block)
{
    const struct corral_env_layout *l = &v->backend->layout;
    uint64_t rows = l->rows, envs = l->envs, end = 0;
    uint64_t obs_bytes = v->convert ? rows * v->spec.obs_dim * sizeof(float) : 0;
    uint64_t action_bytes = v->continuous ? rows * l->action_stride : 0;
    uint64_t at[19] = {place(&end, obs_bytes), place(&end, obs_bytes), place(&end, action_bytes)};
    for (int i = 3; i < 19; i++) {
        static const uint8_t row_bytes[19] = {[3] = 1, [4] = 1, [5] = 4, [6] = 1, [7] = 1, [8] = 4};
        static const uint8_t env_bytes[19] = {[9] = 4,  [10] = 4, [11] = 4, [12] = 8, [13] = 1,
                                              [14] = 4, [15] = 4, [16] = 4, [17] = 4, [18] = 4};
        at[i] = place(&end, rows * row_bytes[i] + envs * env_bytes[i]);
    }
    if (block == NULL) {
        return end;
    }
    v->obs = v->convert ? (float *)(void *)(block + at[0]) : v->backend->buffers.obs;
    v->final_obs = v->convert ? (float *)(void *)(block + at[1]) : v->backend->buffers.final_obs;
    v->view.action = v->continuous ? block + at[2] : v->backend->action;
    v->active = (uint8_t *)block + at[3];
    v->done = (uint8_t *)block + at[4];
    v->kept_reward = (float *)(void *)(block + at[5]);
    v->kept_terminated = (uint8_t *)block + at[6];
    v->kept_truncated = (uint8_t *)block + at[7];
    v->flagged = (uint32_t *)(void *)(block + at[8]);
    v->done_rows = (uint32_t *)(void *)(block + at[9]);
    v->status = (int32_t *)(void *)(block + at[10]);
    v->episode_steps = (uint32_t *)(void *)(block + at[11]);
    v->stream = (uint64_t *)(void *)(block + at[12]);
    v->down = (uint8_t *)block + at[13];
    v->down_wait = (uint32_t *)(void *)(block + at[14]);
    v->voided = (uint32_t *)(void *)(block + at[15]);
    v->ended = (uint32_t *)(void *)(block + at[16]);
    v->fresh = (uint32_t *)(void *)(block + at[17]);
    v->retried = (uint32_t *)(void *)(block + at[18]);
    return end;
}

static void fill_spec(struct corral_vec *v)
{
    const struct corral_env_backend *b = v->backend;
    const struct corral_env_spec *s = &b->spec;
    struct corral_vec_spec *out = &v->spec;
    static_assert(sizeof out->id == sizeof b->id, "ids are copied whole");
    memcpy(out->id, b->id, sizeof out->id);
    out->obs_dim = corral_env_obs_dim(s);
    out->agents = s->agents;
    out->mask_bytes = (uint32_t)b->layout.mask_stride;
    out->action.kind = s->action_kind == CORRAL_ENV_DISCRETE         ? CORRAL_ACTION_DISCRETE
                       : s->action_kind == CORRAL_ENV_MULTI_DISCRETE ? CORRAL_ACTION_MULTI_DISCRETE
                                                                     : CORRAL_ACTION_CONTINUOUS;
    out->action.components = s->components;
    for (uint32_t c = 0; c < s->components; c++) {
        bool continuous = s->action_kind == CORRAL_ENV_CONTINUOUS;
        out->action.choices[c] = continuous ? 0 : s->choices[c];
        out->action.low[c] = continuous ? s->low[c] : 0;
        out->action.high[c] = continuous ? s->high[c] : 0;
    }
    out->max_episode_steps = s->max_episode_steps;
    out->reward_threshold = s->reward_threshold;
    out->snapshots = (s->flags & CORRAL_ENV_SNAPSHOTS) != 0;
}

static void fill_view(struct corral_vec *v)
{
    const struct corral_env_backend *b = v->backend;
    void *action = v->view.action;
    v->view = (struct corral_vec_view){
        .envs = b->layout.envs,
        .agents = b->layout.agents,
        .rows = b->layout.rows,
        .obs_dim = v->spec.obs_dim,
        .action_components = v->spec.action.components,
        .mask_bytes = v->spec.mask_bytes,
        .obs = v->obs,
        .action = action,
        .reward = b->buffers.reward,
        .terminated = b->buffers.terminated,
        .truncated = b->buffers.truncated,
        .active = v->active,
        .mask = b->buffers.mask,
        .final_obs = v->final_obs,
        .status = v->status,
        .episode_steps = v->episode_steps,
    };
}

enum corral_status corral_vec_create(struct corral_vec **out, const struct corral_vec_config *config,
                                     struct corral_error *err)
{
    struct corral_vec_config c = *config;
    c.memory = c.memory ? c.memory : &corral_allocator_heap;
    c.args_json = c.args_json ? c.args_json : "{}";
    CORRAL_CLEANUP(corral_backend_destroyp) struct corral_env_backend *backend = NULL;
    CORRAL_TRY(c.isolation == CORRAL_ISOLATION_PROCESS ? corral_backend_process(&backend, &c, err)
                                                       : corral_backend_in_process(&backend, &c, err));
    CORRAL_AUTO_FREE struct corral_vec *v = calloc(1, sizeof *v);
    if (v == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot make a vector of %s: out of memory", backend->id);
    }
    v->memory = c.memory;
    v->seed = c.seed;
    v->worker = c.worker;
    v->backend = backend;
    v->convert = backend->spec.obs_dtype != CORRAL_ENV_F32;
    v->continuous = backend->spec.action_kind == CORRAL_ENV_CONTINUOUS;
    v->per_row = backend->spec.agents > 1 || (backend->spec.flags & CORRAL_ENV_TURNS);
    fill_spec(v);
    v->own_bytes = place_own(v, NULL);
    CORRAL_TRY(corral_alloc(v->memory, v->own_bytes, "environment bookkeeping", &v->own, err));
    place_own(v, v->own);
    fill_view(v);
    memset(v->active, 1, v->view.rows);
    (void)CORRAL_STEAL(backend);
    *out = CORRAL_STEAL(v);
    return CORRAL_OK;
}

void corral_vec_destroy(struct corral_vec *v)
{
    if (v != NULL) {
        corral_backend_destroy(v->backend);
        corral_release(v->memory, v->own, v->own_bytes);
        free(v);
    }
}

const struct corral_vec_spec *corral_vec_spec(const struct corral_vec *v)
{
    return &v->spec;
}

const struct corral_vec_view *corral_vec_view(const struct corral_vec *v)
{
    return &v->view;
}

const struct corral_vec_stats *corral_vec_stats(const struct corral_vec *v)
{
    return &v->stats;
}
