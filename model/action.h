/* What a policy decides: one space per environment, shared by the environment host, the policy and the learner. */
#ifndef CORRAL_MODEL_ACTION_H
#define CORRAL_MODEL_ACTION_H

#include <stdbool.h>
#include <stdint.h>

#define CORRAL_ACTION_COMPONENTS_MAX 16
#define CORRAL_ACTION_CHOICES_MAX 4096

enum corral_action_kind {
    CORRAL_ACTION_DISCRETE,       /* one component, int32 in [0, choices[0]) */
    CORRAL_ACTION_MULTI_DISCRETE, /* independent components, int32 each */
    CORRAL_ACTION_CONTINUOUS /* float32 each; the policy samples a diagonal Gaussian; clipped to [low, high] only when handed to the environment */
};

struct corral_action_spec {
    enum corral_action_kind kind;
    uint32_t components;
    uint32_t choices[CORRAL_ACTION_COMPONENTS_MAX];
    float low[CORRAL_ACTION_COMPONENTS_MAX], high[CORRAL_ACTION_COMPONENTS_MAX];
};

/* Width of the policy head: the sum of choices, or components for continuous. Also the bytes of one row of an action mask (discrete kinds). */
uint32_t corral_action_logits(const struct corral_action_spec *a);

#endif
