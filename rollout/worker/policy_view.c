#include "rollout/worker/policy_view.h"
#include "worker/policy_manifest.h"
#include <string.h>

enum corral_status corral_policy_view_open(struct corral_policy_view *v,
                                           const struct corral_policy_layout *layout,
                                           struct corral_weight_store *store, enum corral_weight_cast cast,
                                           const struct corral_allocator *memory, struct corral_error *err)
{
    memset(v, 0, sizeof *v);
    v->layout = layout;
    v->memory = memory;
    v->store = store;
    size_t bytes = layout->floats * sizeof(float);
    CORRAL_TRY(corral_policy_form(layout, cast, &v->form, err));
    v->manifest = corral_manifest_hash(corral_weight_form_manifest(v->form));
    v->bytes = corral_weight_form_manifest(v->form)->bytes;
    enum corral_status status = corral_alloc(memory, bytes, "policy weights", (void **)&v->weights, err);
    if (status == CORRAL_OK) {
        status = corral_alloc(memory, bytes, "incoming policy weights", (void **)&v->spare, err);
    }
    if (status == CORRAL_OK && corral_weight_form_casts(v->form)) {
        status = corral_alloc(memory, v->bytes, "incoming cast weights", &v->image, err);
    }
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
    corral_release(v->memory, v->image, v->bytes);
    corral_weight_form_destroy(v->form);
    memset(v, 0, sizeof *v);
}

enum corral_status corral_policy_view_refresh(struct corral_policy_view *v, struct corral_error *err)
{
    if (corral_weight_store_version(v->store) <= v->version) {
        return CORRAL_OK;
    }
    uint64_t version = 0;
    struct corral_digest digest;
    enum corral_status status = corral_weight_store_read(
        v->store, v->manifest, v->image ? v->image : v->spare, v->bytes, &version, &digest, err);
    if (status == CORRAL_AGAIN) {
        return CORRAL_OK;
    }
    CORRAL_TRY(status);
    if (v->image) {
        CORRAL_TRY(corral_weight_form_decode(v->form, v->image, v->spare, err));
    }
    float *filled = v->spare;
    v->spare = v->weights;
    v->weights = filled;
    v->version = version;
    return CORRAL_OK;
}
