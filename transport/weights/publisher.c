#include "transport/weights/publisher.h"

#include "base/clock.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/push/push.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct corral_weight_publisher {
    struct corral_weight_form *form;
    struct corral_digest manifest; /* of the form's */
    uint64_t bytes;                /* of the form's */
    const struct corral_allocator *memory;
    void *image;                       /* the last version in its form; NULL when it is not cast */
    bool replaced;                     /* the image is of weights that were refused */
    struct corral_weight_store *store; /* this node's, or NULL */
    struct corral_reshard_plan *plan;
    struct corral_push_sender *sender;
    uint32_t nodes;
    uint64_t last; /* pushed version; 0: none */
    struct corral_digest digest;
};

static enum corral_status open_sender(struct corral_weight_publisher *p,
                                      const struct corral_publisher_options *o, struct corral_error *err)
{
    CORRAL_TRY(corral_manifest_plan(corral_weight_form_manifest(p->form), &p->plan, err));
    struct corral_push_sender_options options = {
        .leader = true,
        .ranks = 1,
        .identity = {.run = o->run, .generation = o->generation},
        .plan = p->plan,
        .bucket_bytes = CORRAL_NODE_BUCKET_BYTES,
        .lanes = o->lanes ? o->lanes : "tcp",
        .deadline_ns = o->deadline_ms * CORRAL_NS_PER_MS,
        .delta = o->delta,
        .anchor_every = o->anchor_every,
        .delta_element_bytes = corral_weight_form_element_bytes(p->form),
        .budget = o->budget,
    };
    memcpy(options.identity.secret, o->secret, sizeof options.identity.secret);
    return corral_push_sender_create(&p->sender, &options, err);
}

static enum corral_status make_form(struct corral_weight_publisher *p,
                                    const struct corral_publisher_options *o, struct corral_error *err)
{
    CORRAL_TRY(corral_weight_form_create(&p->form, o->manifest, o->cast, err));
    p->manifest = corral_manifest_hash(corral_weight_form_manifest(p->form));
    p->bytes = corral_weight_form_manifest(p->form)->bytes;
    p->memory = o->memory ? o->memory : &corral_allocator_heap;
    return corral_weight_form_casts(p->form)
               ? corral_alloc(p->memory, p->bytes, "cast weights", &p->image, err)
               : CORRAL_OK;
}

enum corral_status corral_weight_publisher_create(struct corral_weight_publisher **out,
                                                  const struct corral_publisher_options *options,
                                                  struct corral_error *err)
{
    if (options->manifest->bytes == 0 || options->deadline_ms == 0) {
        return corral_fail(err, CORRAL_INVALID, "a weight publisher needs weights and a deadline above 0 ms");
    }
    struct corral_weight_publisher *p = calloc(1, sizeof *p);
    if (!p) {
        return corral_fail(err, CORRAL_NOMEM, "cannot create a weight publisher: out of memory");
    }
    enum corral_status status = make_form(p, options, err);
    if (status == CORRAL_OK) {
        status = open_sender(p, options, err);
    }
    if (status != CORRAL_OK) {
        corral_weight_publisher_destroy(p);
        return status;
    }
    *out = p;
    return CORRAL_OK;
}

void corral_weight_publisher_destroy(struct corral_weight_publisher *p)
{
    if (!p) {
        return;
    }
    corral_push_sender_destroy(p->sender);
    corral_reshard_plan_destroy(p->plan);
    if (p->image) {
        corral_release(p->memory, p->image, p->bytes);
    }
    corral_weight_form_destroy(p->form);
    free(p);
}

void corral_weight_publisher_set_generation(struct corral_weight_publisher *p, uint64_t generation)
{
    corral_push_sender_set_generation(p->sender, generation);
}

enum corral_status corral_weight_publisher_add_store(struct corral_weight_publisher *p,
                                                     struct corral_weight_store *store,
                                                     struct corral_error *err)
{
    if (p->store) {
        return corral_fail(err, CORRAL_EXISTS, "the publisher has a store already");
    }
    p->store = store;
    return CORRAL_OK;
}

enum corral_status corral_weight_publisher_add_node(struct corral_weight_publisher *p, const char *node,
                                                    const char *endpoint, struct corral_error *err)
{
    if (corral_push_sender_has(p->sender, node, endpoint)) {
        return corral_fail(err, CORRAL_EXISTS, "node '%.64s' at %.96s is a target already", node, endpoint);
    }
    return corral_push_sender_add(p->sender, node, endpoint, 0, "", err);
}

void corral_weight_publisher_remove(struct corral_weight_publisher *p, const char *node)
{
    corral_push_sender_remove(p->sender, node);
}

/* No protocol within the node: the store's mapping is at hand. */
static enum corral_status fill_store(struct corral_weight_publisher *p, uint64_t version, const void *weights,
                                     struct corral_digest digest, struct corral_error *err)
{
    void *slot = NULL;
    CORRAL_TRY(corral_weight_store_begin(p->store, version, p->manifest, p->bytes, &slot, err));
    memcpy(slot, weights, p->bytes);
    struct corral_digest stored = corral_digest_of(slot, p->bytes);
    if (!corral_digest_equal(stored, digest)) {
        corral_weight_store_abort(p->store);
        return corral_fail(err, CORRAL_INTERNAL,
                           "weight version %" PRIu64 " is damaged after copying it to the node's store: the "
                           "weights changed meanwhile, or the memory is faulty",
                           version);
    }
    return corral_weight_store_commit_digest(p->store, version, stored, err);
}

static enum corral_status check(const struct corral_weight_publisher *p, uint64_t version, uint64_t bytes,
                                struct corral_error *err)
{
    if (bytes != corral_weight_form_source_bytes(p->form)) {
        return corral_fail(err, CORRAL_INVALID, "the weights have %" PRIu64 " bytes, the manifest %" PRIu64,
                           bytes, corral_weight_form_source_bytes(p->form));
    }
    if (version == 0 || version < p->last) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " after version %" PRIu64 ": versions only grow",
                           version, p->last);
    }
    return CORRAL_OK;
}

/* A shard serves both sides; as a source it is only read. */
static struct corral_shard source_shard(const struct corral_weight_publisher *p, const void *weights)
{
    union {
        const void *read_only;
        void *buffer;
    } pointer = {.read_only = weights};
    return corral_shard_host(pointer.buffer, p->bytes);
}

/* Whether the node's own store has it, and the other nodes. */
static enum corral_status push_all(struct corral_weight_publisher *p, uint64_t version, const void *weights,
                                   struct corral_publish_stats *s, struct corral_error *err)
{
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    enum corral_status here = CORRAL_OK, there = CORRAL_OK;
    if (p->store) {
        here = fill_store(p, version, weights, s->digest, err);
        s->copy_ns = corral_now_ns(&corral_clock_monotonic) - start;
        if (here == CORRAL_INVALID || here == CORRAL_INTERNAL) {
            return here; /* this version stands for other bytes: nobody may get them */
        }
    }
    s->targets = p->store && here == CORRAL_OK;
    s->dropped = p->store && here != CORRAL_OK;
    p->last = version;
    p->digest = s->digest;
    struct corral_push_result r = {0};
    struct corral_error why = {0};
    struct corral_shard source = source_shard(p, weights);
    there = corral_push_sender_push(p->sender, version, 0, &source, &r, &why);
    s->targets += r.applied;
    s->dropped += r.dropped;
    s->deltas = r.deltas;
    s->whole_bytes = r.applied * corral_weight_form_source_bytes(p->form);
    s->moved_bytes = r.moved;
    s->memory = r.memory;
    s->gather_ns = r.gather_ns;
    s->pack_ns += r.pack_ns;
    s->wire_ns = r.wire_ns;
    s->stage_ns = r.stage_ns;
    s->apply_ns = r.commit_ns;
    s->pause_ns = r.pause_ns;
    s->resent_buckets = r.resent_buckets;
    if (s->targets > 0) {
        return CORRAL_OK;
    }
    if (!p->store && corral_push_sender_receivers(p->sender) == 0) {
        return corral_fail(err, CORRAL_NOT_FOUND, "weight version %" PRIu64 " has nowhere to go", version);
    }
    if (!p->store && err) {
        *err = why;
    }
    return p->store ? here : there;
}

enum corral_status corral_weight_publisher_push(struct corral_weight_publisher *p, uint64_t version,
                                                const void *weights, uint64_t bytes,
                                                struct corral_publish_stats *stats, struct corral_error *err)
{
    CORRAL_TRY(check(p, version, bytes, err));
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    if (p->image) {
        CORRAL_TRY(corral_weight_form_encode(p->form, weights, p->image, err));
        weights = p->image;
    }
    uint64_t cast_ns = p->image ? corral_now_ns(&corral_clock_monotonic) - start : 0;
    struct corral_digest digest = corral_digest_of(weights, p->bytes);
    p->replaced = version == p->last && !corral_digest_equal(digest, p->digest);
    if (p->replaced) {
        return corral_fail(err, CORRAL_INVALID, "weight version %" PRIu64 " was pushed with other bytes",
                           version);
    }
    struct corral_publish_stats s = {
        .version = version, .bytes = p->bytes, .pack_ns = cast_ns, .digest = digest};
    CORRAL_TRY(push_all(p, version, weights, &s, err));
    if (stats) {
        *stats = s;
    }
    return CORRAL_OK;
}

enum corral_status corral_weight_publisher_catch_up(struct corral_weight_publisher *p, const void *weights,
                                                    uint64_t bytes, uint64_t version, uint32_t timeout_ms,
                                                    struct corral_error *err)
{
    CORRAL_TRY(check(p, version, bytes, err));
    if (version != p->last) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " is not the one pushed last, %" PRIu64, version,
                           p->last);
    }
    if (!corral_weight_publisher_behind(p)) {
        return CORRAL_OK;
    }
    if (p->image && p->replaced) {
        CORRAL_TRY(corral_weight_form_encode(p->form, weights, p->image, err));
        p->replaced = !corral_digest_equal(corral_digest_of(p->image, p->bytes), p->digest);
        if (p->replaced) {
            return corral_fail(err, CORRAL_INVALID, "these are not the weights of version %" PRIu64, version);
        }
    }
    struct corral_shard source = source_shard(p, p->image ? p->image : weights);
    return corral_push_sender_catch_up(p->sender, version, &source, timeout_ms * CORRAL_NS_PER_MS, NULL, err);
}

bool corral_weight_publisher_behind(const struct corral_weight_publisher *p)
{
    return p->last != 0 && corral_push_sender_behind(p->sender) > 0;
}
