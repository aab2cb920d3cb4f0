/* One rank that has all the weights publishes them: into the store of its own node, directly, and to the receivers of other nodes (node_receiver.h) by the push protocol (push/push.h). What the built-in
 * learners use; a trainer whose ranks have different parts uses push/ itself or <corral/weights.h>. Used by one thread. Protocol: docs/spec/weight-push.md.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUBLISHER_H
#define CORRAL_TRANSPORT_WEIGHTS_PUBLISHER_H

#include "base/memory.h"
#include "transport/weights/form.h"
#include "transport/weights/push/push.h"
#include "transport/weights/store.h"
#include <stdbool.h>

struct corral_weight_publisher;

struct corral_publisher_options {
    const struct corral_manifest *manifest; /* of the weights as the learner has them */
    enum corral_weight_cast cast;           /* as stores have them and they travel: see form.h */
    uint64_t run,
        generation; /* generation: of the trainer group; receivers refuse one below what they have seen */
    const uint8_t *secret; /* 32 bytes, the run's */
    uint32_t deadline_ms;  /* per version and node */
    const char *lanes;     /* between nodes, in order of preference; NULL: "tcp" */
    /* To other nodes, what has changed since the version before, bit by bit; whole at least every anchor_every versions (0: 25). */
    bool delta;
    uint32_t anchor_every;
    const struct corral_allocator *memory; /* of the cast image; NULL: the heap's */
    struct corral_push_budget budget;      /* for staging of lanes and what deltas start from */
};

struct corral_publish_stats {
    uint64_t version, bytes; /* bytes: as stores have it */
    uint64_t copy_ns;        /* into this node's store: copied, digested, flipped */
    uint64_t gather_ns,
        pack_ns; /* reading the weights for other nodes; casting, digesting and encoding them */
    uint64_t wire_ns, stage_ns;  /* slowest node: buckets on their way; until their digest was compared */
    uint64_t apply_ns, pause_ns; /* until it has flipped; longest pause of readers at a flip */
    uint64_t whole_bytes;        /* what nodes that have it would have been sent whole and uncast */
    uint64_t moved_bytes;        /* what was sent to nodes */
    uint64_t memory;             /* held for lanes and deltas */
    uint32_t targets, dropped, resent_buckets;
    uint32_t deltas;             /* nodes that took it as a delta */
    struct corral_digest digest; /* XXH3-128 of the bytes in the stores */
};
enum corral_status corral_weight_publisher_create(struct corral_weight_publisher **out,
                                                  const struct corral_publisher_options *options,
                                                  struct corral_error *err);
void corral_weight_publisher_destroy(struct corral_weight_publisher *p);
/* For connections from now on. */
void corral_weight_publisher_set_generation(struct corral_weight_publisher *p, uint64_t generation);
/* This node's store, borrowed. One at most. */
enum corral_status corral_weight_publisher_add_store(struct corral_weight_publisher *p,
                                                     struct corral_weight_store *store,
                                                     struct corral_error *err);
/* The same node at the same endpoint is CORRAL_EXISTS, at another one it replaces the old. One that cannot be reached yet is kept and tried at each push. */
enum corral_status corral_weight_publisher_add_node(struct corral_weight_publisher *p, const char *node,
                                                    const char *endpoint, struct corral_error *err);
void corral_weight_publisher_remove(struct corral_weight_publisher *p, const char *node);
/* Fails when no target at all has it. The last version may be pushed again when the bytes are the same (CORRAL_INVALID otherwise). A target that has this version already (from a trainer that has
 * restarted since) counts as having got it when its digest is the same; otherwise it refuses, and is dropped for this version: a higher one is offered to it again. Blocks for the deadline at most. */
enum corral_status corral_weight_publisher_push(struct corral_weight_publisher *p, uint64_t version,
                                                const void *weights, uint64_t bytes,
                                                struct corral_publish_stats *stats, struct corral_error *err);

/* Offer the last pushed version again (the same weights) to every node that lacks it and has not refused it: dropped ones, with a growing pause
 * between attempts, and ones added since. Waits until all have it, but no longer than timeout_ms; 0 moves on what can be moved at once. For a loop that
 * waits for a node to come along: call it in every turn, a transfer goes on where it was; one that does not move for the publisher's deadline is
 * dropped and begun again. CORRAL_OK whether or not all have it now: see behind. CORRAL_INVALID: not the last pushed version. No system call when none is behind. */
enum corral_status corral_weight_publisher_catch_up(struct corral_weight_publisher *p, const void *weights,
                                                    uint64_t bytes, uint64_t version, uint32_t timeout_ms,
                                                    struct corral_error *err);
/* True while a node lacks the last pushed version and has not refused it. Hot path. */
bool corral_weight_publisher_behind(const struct corral_weight_publisher *p);

#endif
