#include "model/action.h"

uint32_t corral_action_logits(const struct corral_action_spec *a)
{
    if (a->kind == CORRAL_ACTION_CONTINUOUS) {
        return a->components;
    }
    uint32_t logits = 0;
    for (uint32_t c = 0; c < a->components && c < CORRAL_ACTION_COMPONENTS_MAX; c++) {
        logits += a->choices[c];
    }
    return logits;
}
