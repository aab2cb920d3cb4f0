#include "transport/weights/node_receiver.h"

#include "transport/weights/push/pull.h"
#include "transport/weights/push/store_target.h"

#include <stdlib.h>
#include <string.h>

struct corral_weight_receiver {
    struct corral_push_receiver *push;
    struct corral_reshard_plan *plan;
    struct corral_push_store_target target;
};

static enum corral_status whole_copy(const struct corral_manifest *manifest, struct corral_layout **out,
                                     struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(corral_layout_create(&l, 1, err));
    for (uint32_t i = 0; i < manifest->count; i++) {
        const struct corral_manifest_tensor *t = &manifest->tensor[i];
        uint32_t tensor;
        CORRAL_TRY(corral_layout_add_tensor(l, t->name, t->dtype, t->rank, t->shape, &tensor, err));
        CORRAL_TRY(corral_layout_add_whole(l, tensor, 0, t->offset, err));
    }
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

enum corral_status corral_manifest_plan(const struct corral_manifest *manifest,
                                        struct corral_reshard_plan **out, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(whole_copy(manifest, &l, err));
    return corral_reshard_plan_build(l, l, out, err);
}

static enum corral_status start(struct corral_weight_receiver *r,
                                const struct corral_node_receiver_options *o, struct corral_error *err)
{
    r->target = (struct corral_push_store_target){
        .store = o->store, .manifest = corral_manifest_hash(o->manifest), .bytes = o->manifest->bytes};
    CORRAL_TRY(corral_manifest_plan(o->manifest, &r->plan, err));
    struct corral_push_receiver_options options = {
        .name = o->node,
        .host = o->host,
        .replica = "",
        .identity = {.run = o->run},
        .plan = r->plan,
        .bucket_bytes = CORRAL_NODE_BUCKET_BYTES,
        .lane = {.local_host = o->host},
        .lanes = o->lanes ? o->lanes : "tcp",
        .target = &corral_push_store_target_ops,
        .target_ctx = &r->target,
    };
    memcpy(options.identity.secret, o->secret, sizeof options.identity.secret);
    return corral_push_receiver_start(&r->push, &options, err);
}

enum corral_status corral_weight_receiver_start(struct corral_weight_receiver **out,
                                                const struct corral_node_receiver_options *options,
                                                struct corral_error *err)
{
    struct corral_weight_receiver *r = calloc(1, sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to receive weights");
    }
    enum corral_status status = start(r, options, err);
    if (status != CORRAL_OK) {
        corral_weight_receiver_stop(r);
        return status;
    }
    *out = r;
    return CORRAL_OK;
}

void corral_weight_receiver_stop(struct corral_weight_receiver *r)
{
    if (!r) {
        return;
    }
    if (r->push) {
        corral_push_receiver_stop(r->push);
    }
    corral_reshard_plan_destroy(r->plan);
    free(r);
}

const char *corral_weight_receiver_endpoint(const struct corral_weight_receiver *r)
{
    return corral_push_receiver_endpoint(r->push);
}

void corral_weight_receiver_status(struct corral_weight_receiver *r, struct corral_push_receiver_status *out)
{
    corral_push_receiver_status(r->push, out);
}

enum corral_status corral_weight_receiver_pull(struct corral_weight_receiver *r, const char *const *peers,
                                               uint32_t count, uint64_t timeout_ns, struct corral_error *err)
{
    return corral_push_receiver_pull(r->push, peers, count, timeout_ns, err);
}

enum corral_status corral_weight_receiver_set_lanes(struct corral_weight_receiver *r, const char *lanes,
                                                    struct corral_error *err)
{
    return corral_push_receiver_set_lanes(r->push, lanes, err);
}
