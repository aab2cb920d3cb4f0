/* A node's weight store (store.h) as the target of pushes: the shadow is the store's next slot, in the shared mapping, so that a sender on the same machine may write in place. The slot's digest is
 * the chain over the push's buckets; readers keep working as they do. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_STORE_TARGET_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_STORE_TARGET_H

#include "transport/weights/push/push.h"
#include "transport/weights/store.h"

/* ctx of the ops. The store is borrowed, and its writer side belongs to the receiver. */
struct corral_push_store_target {
    struct corral_weight_store *store;
    struct corral_digest manifest; /* what readers give to corral_weight_store_read() */
    uint64_t bytes;                /* of a slot: the rank's in the destination layout, or the manifest's */
};
extern const struct corral_push_target_ops corral_push_store_target_ops;

#endif
