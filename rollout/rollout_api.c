/* The public face of a vector: <corral/rollout.h>. */
#include "rollout/env_host/vec.h"
#include <assert.h>
#include <corral/rollout.h>
#include <stdlib.h>
#include <string.h>

static_assert(CORRAL_ENVS_COMPONENTS_MAX == CORRAL_ACTION_COMPONENTS_MAX,
              "actions are described alike inside and outside");

struct corral_envs {
    struct corral_vec *vec;
    struct corral_envs_buffers buffers;
};

static void fill_buffers(struct corral_envs *envs)
{
    const struct corral_vec_view *v = corral_vec_view(envs->vec);
    const struct corral_vec_spec *s = corral_vec_spec(envs->vec);
    static const uint32_t kinds[] = {[CORRAL_ACTION_DISCRETE] = CORRAL_ENVS_DISCRETE,
                                     [CORRAL_ACTION_MULTI_DISCRETE] = CORRAL_ENVS_MULTI_DISCRETE,
                                     [CORRAL_ACTION_CONTINUOUS] = CORRAL_ENVS_CONTINUOUS};
    envs->buffers = (struct corral_envs_buffers){
        .size = sizeof envs->buffers,
        .envs = v->envs,
        .agents = v->agents,
        .rows = v->rows,
        .obs_dim = v->obs_dim,
        .action_kind = kinds[s->action.kind],
        .action_components = s->action.components,
        .mask_bytes = v->mask_bytes,
        .max_episode_steps = s->max_episode_steps,
        .reward_threshold = s->reward_threshold,
        .obs = v->obs,
        .action = v->action,
        .reward = v->reward,
        .terminated = v->terminated,
        .truncated = v->truncated,
        .active = v->active,
        .mask = v->mask,
        .final_obs = v->final_obs,
        .status = v->status,
        .episode_steps = v->episode_steps,
    };
    memcpy(envs->buffers.choices, s->action.choices, sizeof envs->buffers.choices);
    memcpy(envs->buffers.low, s->action.low, sizeof envs->buffers.low);
    memcpy(envs->buffers.high, s->action.high, sizeof envs->buffers.high);
}

/* A program compiled with another release has a shorter or longer struct. */
static enum corral_status read_options(const struct corral_make_options *options,
                                       struct corral_make_options *out, struct corral_error *err)
{
    memset(out, 0, sizeof *out);
    if (options == NULL) {
        return CORRAL_OK;
    }
    if (options->size < sizeof options->size || options->size > 4096) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_make: options->size is %zu; set it to sizeof(struct corral_make_options)",
                           options->size);
    }
    memcpy(out, options, CORRAL_MIN(options->size, sizeof *out));
    if (out->isolation > CORRAL_ENVS_CHILD) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_make: options->isolation is %u, which is none of the known ones",
                           out->isolation);
    }
    return CORRAL_OK;
}

enum corral_status corral_make(struct corral_envs **out, const char *id, uint32_t env_num,
                               const struct corral_make_options *options, struct corral_error *err)
{
    struct corral_make_options o;
    CORRAL_TRY(read_options(options, &o, err));
    CORRAL_AUTO_FREE struct corral_envs *envs = calloc(1, sizeof *envs);
    if (envs == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "corral_make: out of memory");
    }
    struct corral_vec_config config = {
        .id = id,
        .library = o.library,
        .args_json = o.args_json,
        .envs = env_num,
        .seed = o.seed,
        .worker = o.worker,
        .isolation =
            o.isolation == CORRAL_ENVS_CHILD ? CORRAL_ISOLATION_PROCESS : CORRAL_ISOLATION_IN_PROCESS,
        .step_timeout_ms = o.step_timeout_ms,
        .restarts_max = o.restarts_max,
    };
    CORRAL_TRY(corral_vec_create(&envs->vec, &config, err));
    fill_buffers(envs);
    *out = CORRAL_STEAL(envs);
    return CORRAL_OK;
}

enum corral_status corral_envs_reset(struct corral_envs *envs, struct corral_error *err)
{
    return corral_vec_reset(envs->vec, err);
}

enum corral_status corral_envs_step(struct corral_envs *envs, struct corral_error *err)
{
    return corral_vec_step(envs->vec, err);
}

const struct corral_envs_buffers *corral_envs_buffers(const struct corral_envs *envs)
{
    return &envs->buffers;
}

const char *corral_envs_id(const struct corral_envs *envs)
{
    return corral_vec_spec(envs->vec)->id;
}

enum corral_status corral_envs_stats(const struct corral_envs *envs, struct corral_envs_stats *out,
                                     struct corral_error *err)
{
    const struct corral_vec_stats *s = corral_vec_stats(envs->vec);
    struct corral_envs_stats all = {.size = sizeof all,
                                    .steps = s->steps,
                                    .episodes = s->episodes,
                                    .voided = s->voided,
                                    .nonfinite = s->nonfinite,
                                    .restarts = s->restarts};
    static_assert(sizeof all.last_fault == sizeof s->last_fault, "copied whole");
    memcpy(all.last_fault, s->last_fault, sizeof all.last_fault);
    if (out->size < sizeof out->size || out->size > 4096) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_envs_stats: out->size is %zu; set it to sizeof(struct corral_envs_stats)",
                           out->size);
    }
    all.size = CORRAL_MIN(out->size, sizeof all);
    memcpy(out, &all, all.size);
    return CORRAL_OK;
}

enum corral_status corral_envs_snapshot(struct corral_envs *envs, void *buffer, uint64_t *bytes,
                                        struct corral_error *err)
{
    return corral_vec_snapshot(envs->vec, buffer, bytes, err);
}

enum corral_status corral_envs_restore(struct corral_envs *envs, const void *buffer, uint64_t bytes,
                                       struct corral_error *err)
{
    return corral_vec_restore(envs->vec, buffer, bytes, err);
}

void corral_envs_close(struct corral_envs *envs)
{
    if (envs != NULL) {
        corral_vec_destroy(envs->vec);
        free(envs);
    }
}
