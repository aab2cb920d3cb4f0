/* A node's end of publishing: threads of the node's agent that take versions off the wire into the node's store. The other end is publisher.h. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_NODE_RECEIVER_H
#define CORRAL_TRANSPORT_WEIGHTS_NODE_RECEIVER_H

#include "transport/weights/manifest.h"
#include "transport/weights/push/push.h"
#include "transport/weights/store.h"

struct corral_weight_receiver;

struct corral_node_receiver_options {
    const char *node; /* its name, in messages */
    const char *host; /* numeric address to listen on */
    const struct corral_manifest *manifest;
    struct corral_weight_store *store; /* borrowed; the receiver is its writer from now on */
    uint64_t run;
    const uint8_t *secret; /* 32 bytes */
    const char *lanes;     /* NULL: "tcp" */
};
enum corral_status corral_weight_receiver_start(struct corral_weight_receiver **out,
                                                const struct corral_node_receiver_options *options,
                                                struct corral_error *err);
void corral_weight_receiver_stop(struct corral_weight_receiver *r);
const char *corral_weight_receiver_endpoint(const struct corral_weight_receiver *r); /* "192.0.2.7:4711" */
void corral_weight_receiver_status(struct corral_weight_receiver *r, struct corral_push_receiver_status *out);
/* As corral_push_receiver_pull and _set_lanes. */
enum corral_status corral_weight_receiver_pull(struct corral_weight_receiver *r, const char *const *peers,
                                               uint32_t count, uint64_t timeout_ns, struct corral_error *err);
enum corral_status corral_weight_receiver_set_lanes(struct corral_weight_receiver *r, const char *lanes,
                                                    struct corral_error *err);

/* What both ends compute: one rank that has everything, and any number of nodes that get everything. */
#define CORRAL_NODE_BUCKET_BYTES (UINT64_C(4) << 20)
enum corral_status corral_manifest_plan(const struct corral_manifest *manifest,
                                        struct corral_reshard_plan **out, struct corral_error *err);

#endif
