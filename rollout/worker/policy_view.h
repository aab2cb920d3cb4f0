/* The policy a worker acts with: a private copy of one weight version, replaced whole at a step boundary. */
#ifndef CORRAL_ROLLOUT_POLICY_VIEW_H
#define CORRAL_ROLLOUT_POLICY_VIEW_H

#include "model/policy.h"
#include "transport/weights/form.h"
#include "transport/weights/store.h"

struct corral_policy_view {
    const struct corral_policy_layout *layout;
    const struct corral_allocator *memory;
    struct corral_weight_store *store;
    struct corral_weight_form *form; /* of the store's versions */
    struct corral_digest manifest;
    uint64_t bytes; /* of a version in the store */
    void *image;    /* a version as the store has it, when it is cast; NULL otherwise */
    float *weights,
        *spare;       /* `spare` receives the next version, so that a failed read leaves `weights` whole */
    uint64_t version; /* 0: none yet */
};

enum corral_status corral_policy_view_open(struct corral_policy_view *v,
                                           const struct corral_policy_layout *layout,
                                           struct corral_weight_store *store, enum corral_weight_cast cast,
                                           const struct corral_allocator *memory, struct corral_error *err);
void corral_policy_view_close(struct corral_policy_view *v);
/* Take the newest version when there is a newer one than ours: one atomic load when there is not. */
enum corral_status corral_policy_view_refresh(struct corral_policy_view *v, struct corral_error *err);

#endif
