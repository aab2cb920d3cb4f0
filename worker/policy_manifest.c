#include "worker/policy_manifest.h"

enum corral_status corral_policy_manifest(const struct corral_policy_layout *layout,
                                          struct corral_manifest **out, struct corral_error *err)
{
    struct corral_manifest *m = NULL;
    CORRAL_TRY(corral_manifest_create(&m, layout->tensors, err));
    for (uint32_t i = 0; i < layout->tensors; i++) {
        const struct corral_policy_tensor *t = &layout->tensor[i];
        enum corral_status status = corral_manifest_add(m, t->name, CORRAL_DTYPE_F32, t->rank, t->shape, err);
        if (status == CORRAL_OK && m->tensor[i].offset != t->offset * sizeof(float)) {
            status = corral_fail(err, CORRAL_INTERNAL,
                                 "tensor %s: the manifest's offset %llu differs from the layout's %llu",
                                 t->name, (unsigned long long)m->tensor[i].offset,
                                 (unsigned long long)(t->offset * sizeof(float)));
        }
        if (status != CORRAL_OK) {
            corral_manifest_destroy(m);
            return status;
        }
    }
    *out = m;
    return CORRAL_OK;
}

enum corral_status corral_policy_form(const struct corral_policy_layout *layout, enum corral_weight_cast cast,
                                      struct corral_weight_form **out, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_manifest_destroyp) struct corral_manifest *manifest = NULL;
    CORRAL_TRY(corral_policy_manifest(layout, &manifest, err));
    return corral_weight_form_create(out, manifest, cast, err);
}
