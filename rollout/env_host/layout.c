#include "rollout/env_host/layout.h"

enum { BUFFER_ALIGNMENT = 64 };

/* `bytes` fits: rows <= 2^30 and a stride <= 2^27. The sum is checked once at the end. */
static uint64_t place(uint64_t *end, uint64_t bytes)
{
    uint64_t at = *end;
    *end = (at + bytes + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
    return at;
}

enum corral_status corral_env_layout_build(struct corral_env_layout *out, const struct corral_env_spec *spec,
                                           uint32_t envs, struct corral_error *err)
{
    if (envs == 0 || envs > CORRAL_VEC_ENVS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "the number of environments is %u; 1 to %u are possible",
                           envs, CORRAL_VEC_ENVS_MAX);
    }
    uint64_t rows = (uint64_t)envs * spec->agents, end = 0;
    bool masks = spec->flags & CORRAL_ENV_MASKS;
    struct corral_env_layout l = {.envs = envs, .agents = spec->agents, .rows = (uint32_t)rows};
    l.obs_stride = (uint64_t)corral_env_obs_dim(spec) * corral_env_dtype_bytes(spec->obs_dtype);
    l.action_stride = (uint64_t)spec->components * 4;
    l.mask_stride = masks ? corral_env_choices_sum(spec) : 0;
    l.obs = place(&end, rows * l.obs_stride);
    l.final_obs = place(&end, rows * l.obs_stride);
    l.action = place(&end, rows * l.action_stride);
    l.reward = place(&end, rows * sizeof(float));
    l.terminated = place(&end, rows);
    l.truncated = place(&end, rows);
    l.active = place(&end, rows);
    l.mask = place(&end, rows * l.mask_stride);
    l.status = place(&end, envs * sizeof(int32_t));
    l.ids = place(&end, envs * sizeof(uint32_t));
    l.seeds = place(&end, envs * sizeof(uint64_t));
    l.bytes = end;
    if (rows > UINT32_MAX / 2 || end > CORRAL_VEC_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "%u environments of %u agents with observations of %llu bytes need %llu bytes of "
                           "buffers; use fewer environments",
                           envs, spec->agents, (unsigned long long)l.obs_stride, (unsigned long long)end);
    }
    *out = l;
    return CORRAL_OK;
}

void corral_env_layout_bind(const struct corral_env_layout *l, void *block, struct corral_env_buffers *out)
{
    char *base = block;
    *out = (struct corral_env_buffers){
        .size = sizeof *out,
        .envs = l->envs,
        .agents = l->agents,
        .obs = base + l->obs,
        .obs_stride = l->obs_stride,
        .action = base + l->action,
        .action_stride = l->action_stride,
        .reward = (float *)(base + l->reward),
        .terminated = (uint8_t *)base + l->terminated,
        .truncated = (uint8_t *)base + l->truncated,
        .active = (uint8_t *)base + l->active,
        .mask = l->mask_stride ? (uint8_t *)base + l->mask : NULL,
        .mask_stride = l->mask_stride,
        .final_obs = base + l->final_obs,
        .status = (int32_t *)(base + l->status),
    };
    for (uint32_t row = 0; row < l->rows; row++) {
        out->active[row] = 1;
    }
}
