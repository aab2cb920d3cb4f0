/* What a plug-in says of its environment, checked once, so that nothing later has to doubt it. */
#include "model/action.h"
#include "rollout/env_host/registry.h"
#include <assert.h>
#include <string.h>

uint32_t corral_env_dtype_bytes(enum corral_env_dtype dtype)
{
    switch (dtype) {
    case CORRAL_ENV_F32:
    case CORRAL_ENV_I32:
        return 4;
    case CORRAL_ENV_U8:
        return 1;
    case CORRAL_ENV_F64:
        return 8;
    }
    return 0;
}

uint32_t corral_env_obs_dim(const struct corral_env_spec *spec)
{
    uint32_t elements = 1;
    for (uint32_t i = 0; i < spec->obs_rank; i++) {
        elements *= spec->obs_shape[i];
    }
    return elements;
}

uint32_t corral_env_choices_sum(const struct corral_env_spec *spec)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < spec->components && spec->action_kind != CORRAL_ENV_CONTINUOUS; i++) {
        sum += spec->choices[i];
    }
    return sum;
}

const char *corral_env_status_name(int status)
{
    switch (status) {
    case CORRAL_ENV_OK:
        return "ok";
    case CORRAL_ENV_INVALID:
        return "invalid";
    case CORRAL_ENV_NOMEM:
        return "no-memory";
    case CORRAL_ENV_INFRA:
        return "infra";
    case CORRAL_ENV_TASK:
        return "task";
    case CORRAL_ENV_UNSUPPORTED:
        return "unsupported";
    case CORRAL_ENV_TOO_SMALL:
        return "too-small";
    default:
        return "unknown";
    }
}

static enum corral_status validate_obs(const char *id, const struct corral_env_spec *s,
                                       struct corral_error *err)
{
    if (corral_env_dtype_bytes(s->obs_dtype) == 0) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: obs_dtype %d is none of the known ones", id,
                           (int)s->obs_dtype);
    }
    if (s->obs_rank == 0 || s->obs_rank > CORRAL_ENV_RANK_MAX) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: obs_rank is %u; 1 to %d are possible", id,
                           s->obs_rank, CORRAL_ENV_RANK_MAX);
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < s->obs_rank; i++) {
        elements *= s->obs_shape[i];
        if (elements == 0 || elements > CORRAL_ENV_OBS_ELEMENTS_MAX) {
            return corral_fail(
                err, CORRAL_INVALID,
                "environment %s: an observation must have 1 to %u elements; obs_shape[%u] is %u", id,
                CORRAL_ENV_OBS_ELEMENTS_MAX, i, s->obs_shape[i]);
        }
    }
    if (!(s->obs_low <= s->obs_high)) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: obs_low %g is not at most obs_high %g", id,
                           s->obs_low, s->obs_high);
    }
    if (!(s->reward_low <= s->reward_high)) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: reward_low %g is not at most reward_high %g",
                           id, s->reward_low, s->reward_high);
    }
    return CORRAL_OK;
}

static enum corral_status validate_action(const char *id, const struct corral_env_spec *s,
                                          struct corral_error *err)
{
    bool discrete = s->action_kind == CORRAL_ENV_DISCRETE || s->action_kind == CORRAL_ENV_MULTI_DISCRETE;
    if (!discrete && s->action_kind != CORRAL_ENV_CONTINUOUS) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: action_kind %d is none of the known ones",
                           id, (int)s->action_kind);
    }
    uint32_t most = s->action_kind == CORRAL_ENV_DISCRETE ? 1 : CORRAL_ENV_COMPONENTS_MAX;
    if (s->components == 0 || s->components > most) {
        return corral_fail(err, CORRAL_INVALID,
                           "environment %s: an action of this kind has 1 to %u components, not %u", id, most,
                           s->components);
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->components; i++) {
        sum += discrete ? s->choices[i] : 0;
        if (discrete && (s->choices[i] == 0 || sum > CORRAL_ACTION_CHOICES_MAX)) {
            return corral_fail(err, CORRAL_INVALID,
                               "environment %s: choices[%u] is %u; every component needs 1 or more and all "
                               "together at most %d",
                               id, i, s->choices[i], CORRAL_ACTION_CHOICES_MAX);
        }
        if (!discrete && !(s->low[i] < s->high[i])) {
            return corral_fail(err, CORRAL_INVALID,
                               "environment %s: action component %u: low %g is not below high %g", id, i,
                               (double)s->low[i], (double)s->high[i]);
        }
    }
    if ((s->flags & CORRAL_ENV_MASKS) && !discrete) {
        return corral_fail(err, CORRAL_INVALID,
                           "environment %s: CORRAL_ENV_MASKS is for discrete actions only", id);
    }
    return CORRAL_OK;
}

enum corral_status corral_env_spec_validate(const char *id, const struct corral_env_spec *s,
                                            bool has_snapshots, struct corral_error *err)
{
    static_assert(CORRAL_ENV_COMPONENTS_MAX == CORRAL_ACTION_COMPONENTS_MAX,
                  "an action spec is copied component by component");
    if (s->agents == 0 || s->agents > CORRAL_ENV_AGENTS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: agents is %u; 1 to %d are possible", id,
                           s->agents, CORRAL_ENV_AGENTS_MAX);
    }
    if (s->autoreset != CORRAL_ENV_AUTORESET_SAME_STEP && s->autoreset != CORRAL_ENV_AUTORESET_NEXT_STEP &&
        s->autoreset != CORRAL_ENV_AUTORESET_OFF) {
        return corral_fail(err, CORRAL_INVALID, "environment %s: autoreset %d is none of the known ones", id,
                           (int)s->autoreset);
    }
    uint32_t known = CORRAL_ENV_MASKS | CORRAL_ENV_TURNS | CORRAL_ENV_SNAPSHOTS | CORRAL_ENV_NONDETERMINISTIC;
    if (s->flags & ~known) {
        return corral_fail(err, CORRAL_INVALID,
                           "environment %s: flags 0x%x has bits this runtime does not know", id, s->flags);
    }
    if ((s->flags & CORRAL_ENV_SNAPSHOTS) && !has_snapshots) {
        return corral_fail(err, CORRAL_INVALID,
                           "environment %s declares CORRAL_ENV_SNAPSHOTS and has no .snapshot and .restore",
                           id);
    }
    CORRAL_TRY(validate_obs(id, s, err));
    return validate_action(id, s, err);
}

enum corral_status corral_env_describe(const struct corral_env_ops *ops, const char *args_json,
                                       struct corral_env_spec *out, struct corral_error *err)
{
    struct corral_env_spec spec = {.size = sizeof spec};
    char text[256] = "";
    enum corral_env_status status = ops->describe(args_json ? args_json : "{}", &spec, text, sizeof text);
    text[sizeof text - 1] = '\0';
    if (status != CORRAL_ENV_OK) {
        return corral_fail(err, status == CORRAL_ENV_NOMEM ? CORRAL_NOMEM : CORRAL_INVALID,
                           "environment %s refuses its arguments %.100s: %s (%s)", ops->id,
                           args_json ? args_json : "{}", text[0] ? text : "it says no more",
                           corral_env_status_name(status));
    }
    CORRAL_TRY(corral_env_spec_validate(ops->id, &spec, ops->snapshot != NULL && ops->restore != NULL, err));
    *out = spec;
    return CORRAL_OK;
}

/* Not memcmp of the whole: the padding is anybody's. */
bool corral_env_spec_equal(const struct corral_env_spec *a, const struct corral_env_spec *b)
{
    static_assert(offsetof(struct corral_env_spec, obs_low) ==
                      offsetof(struct corral_env_spec, obs_shape) + sizeof a->obs_shape,
                  "no padding before obs_low");
    size_t front = offsetof(struct corral_env_spec, max_episode_steps) + sizeof a->max_episode_steps,
           back = offsetof(struct corral_env_spec, reward_low);
    return memcmp(a, b, front) == 0 &&
           memcmp((const char *)a + back, (const char *)b + back, sizeof *a - back) == 0;
}
