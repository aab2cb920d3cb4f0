/* What learners use beside policy.h: rows picked by index out of large arrays, with observations normalised once per
 * step instead of once per epoch. Same thread rules as policy.h. Hot path.
 */
#ifndef CORRAL_MODEL_POLICY_BATCH_H
#define CORRAL_MODEL_POLICY_BATCH_H

#include "model/policy.h"

/* Rows in one workspace. */
#define CORRAL_POLICY_ROWS_MAX (1u << 20)

struct corral_policy_batch {
    const float *obs;    /* [..][D] */
    bool obs_normalised; /* obs comes from corral_policy_normalise() */
    const uint8_t *mask; /* [..][M] or NULL */
    const uint8_t *const
        *mask_rows;        /* instead of mask: one pointer per row of the arrays, NULL where all is legal */
    const void *action;    /* [..][A]; not read for values only */
    const uint32_t *index; /* row i of the batch is row index[i] of the arrays; NULL: row i */
    uint32_t n;            /* <= the workspace's rows */
};

/* Observations as the towers see them, row-major, bit for bit what act and evaluate compute. out may be obs. */
void corral_policy_normalise(const struct corral_policy_layout *layout, const float *weights,
                             const float *obs, uint64_t n, float *out);
/* As corral_policy_evaluate() and corral_policy_value(). entropy and value may be NULL: value NULL skips its tower. */
void corral_policy_evaluate_batch(const struct corral_policy_layout *layout, const float *weights,
                                  struct corral_policy_workspace *ws, const struct corral_policy_batch *batch,
                                  float *log_prob, float *entropy, float *value);
void corral_policy_value_batch(const struct corral_policy_layout *layout, const float *weights,
                               struct corral_policy_workspace *ws, const struct corral_policy_batch *batch,
                               float *value);
/* The rows the workspace was created for. */
uint32_t corral_policy_workspace_rows(const struct corral_policy_workspace *ws);

/* Positions in layout->tensor. */
enum corral_policy_tower { CORRAL_TOWER_POLICY, CORRAL_TOWER_VALUE };
/* Weight of a tower's layer (layer == spec.layers: the head); its bias is the next one. */
static inline uint32_t corral_policy_weight_at(const struct corral_policy_layout *layout,
                                               enum corral_policy_tower tower, uint32_t layer)
{
    return 2 * (layout->spec.layers + 1) * (uint32_t)tower + 2 * layer;
}
/* log_std, for continuous actions only. */
static inline uint32_t corral_policy_log_std_at(const struct corral_policy_layout *layout)
{
    return 4 * (layout->spec.layers + 1);
}
/* obs.mean; obs.var and obs.count follow. */
static inline uint32_t corral_policy_stats_at(const struct corral_policy_layout *layout)
{
    return 4 * (layout->spec.layers + 1) + (layout->spec.action.kind == CORRAL_ACTION_CONTINUOUS);
}

#endif
