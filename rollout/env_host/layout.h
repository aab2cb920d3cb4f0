/* Where each signal's buffer lies in one block of memory, private or shared with a child. Every buffer starts on a 64-byte boundary. */
#ifndef CORRAL_ROLLOUT_LAYOUT_H
#define CORRAL_ROLLOUT_LAYOUT_H

#include "rollout/env_host/registry.h"

#define CORRAL_VEC_ENVS_MAX (1u << 20)
#define CORRAL_VEC_BYTES_MAX (UINT64_C(1) << 38)

struct corral_env_layout {
    uint32_t envs, agents, rows;
    uint64_t obs_stride, action_stride, mask_stride;
    /* Offsets in the block. */
    uint64_t obs, final_obs, action, reward, terminated, truncated, active, mask, status;
    uint64_t ids, seeds; /* [envs]: arguments of reset and step */
    uint64_t bytes;
};

/* The description is valid. */
enum corral_status corral_env_layout_build(struct corral_env_layout *out, const struct corral_env_spec *spec,
                                           uint32_t envs, struct corral_error *err);
void corral_env_layout_bind(const struct corral_env_layout *layout, void *block,
                            struct corral_env_buffers *out);

#endif
