/* A policy layout as a weight-plane manifest: the same tensors at the same offsets, so the flat weight buffer is what travels. */
#ifndef CORRAL_WORKER_POLICY_MANIFEST_H
#define CORRAL_WORKER_POLICY_MANIFEST_H

#include "model/policy.h"
#include "transport/weights/form.h"

enum corral_status corral_policy_manifest(const struct corral_policy_layout *layout,
                                          struct corral_manifest **out, struct corral_error *err);
/* As the node's store has it. */
enum corral_status corral_policy_form(const struct corral_policy_layout *layout, enum corral_weight_cast cast,
                                      struct corral_weight_form **out, struct corral_error *err);

#endif
