#include "rollout/worker/policy_view.h"
#include "worker/policy_manifest.h"
#include <string.h>

enum corral_status corral_policy_view_open(struct corral_policy_view *v,
                                           const struct corral_policy_layout *layout,
                                           struct corral_weight_store *store,
                                           const struct corral_allocator *memory, struct corral_error *err)
{
    memset(v, 0, sizeof *v);
    v->layout = layout;
    v->memory = memory;
    v->store = store;
    struct corral_manifest *manifest = NULL;
    CORRAL_TRY(corral_policy_manifest(layout, &manifest, err));
    v->manifest = corral_manifest_hash(manifest);
    v->bytes = manifest->bytes;
    corral_manifest_destroy(manifest);
    size_t bytes = layout->floats * sizeof(float);
    CORRAL_TRY(corral_alloc(memory, bytes, "policy weights", (void **)&v->weights, err));
    enum corral_status status =
        corral_alloc(memory, bytes, "incoming policy weights", (void **)&v->spare, err);
    if (status != CORRAL_OK) {
        corral_policy_view_close(v);
    }
    return status;
}

void corral_policy_view_close(struct corral_policy_view *v)
{
    if (!v->memory) {
        return;
    }
    size_t bytes = v->layout->floats * sizeof(float);
    corral_release(v->memory, v->weights, bytes);
    corral_release(v->memory, v->spare, bytes);
    memset(v, 0, sizeof *v);
}

enum corral_status corral_policy_view_refresh(struct corral_policy_view *v, struct corral_error *err)
{
    if (corral_weight_store_version(v->store) <= v->version) {
        return CORRAL_OK;
    }
    uint64_t version = 0;
    struct corral_digest digest;
    enum corral_status status =
        corral_weight_store_read(v->store, v->manifest, v->spare, v->bytes, &version, &digest, err);
    if (status == CORRAL_AGAIN) {
        return CORRAL_OK;
    }
    CORRAL_TRY(status);
    float *filled = v->spare;
    v->spare = v->weights;
    v->weights = filled;
    v->version = version;
    return CORRAL_OK;
}
