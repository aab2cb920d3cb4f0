/* <corral/weights.h>: the trainer's side. */
#include "base/clock.h"
#include "transport/weights/api/internal.h"
#include "transport/weights/api/memory.h"
#include "transport/weights/cast/source.h"
#include "transport/weights/push/account.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET_BYTES_DEFAULT (8u << 20)
#define DEADLINE_MS_DEFAULT 30000u

/* The push's sender needs the plan, and the plan the engine's layout: both come with the first subscriber's card. */
struct corral_weights_publisher {
    struct corral_weights_publisher_options o;
    struct corral_push_identity identity;
    struct corral_layout *source, *destination;
    struct corral_memory *memory;
    struct corral_shard shard;
    struct corral_cast_source *cast; /* NULL: weights go as they are */
    struct corral_reshard_plan *plan;
    struct corral_push_sender *sender;
    uint32_t subscribers;
    char *lanes, *host, *rdma;
    struct push_account account; /* of what the caller is asked for */
    uint64_t lanes_held, staging_held;
};

static enum corral_status hold_lanes(void *ctx, uint64_t bytes, const char *what, struct corral_error *err)
{
    struct corral_weights_publisher *p = ctx;
    return push_account_hold(&p->account, &p->lanes_held, bytes, what, err);
}

/* Gathering from a device stages in pinned host memory, as much as links at work need: asked for before, settled afterwards. */
static enum corral_status hold_staging(struct corral_weights_publisher *p, uint64_t bytes,
                                       struct corral_error *err)
{
    return push_account_hold(&p->account, &p->staging_held, bytes, "staging of weights on a device", err);
}

static enum corral_status check(const struct corral_weights_publisher *p, struct corral_error *err)
{
    if (p->o.bucket_bytes < CORRAL_BUCKET_BYTES_MIN || p->o.bucket_bytes > CORRAL_BUCKET_BYTES_MAX ||
        p->o.bucket_bytes % 4096 != 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "buckets of %" PRIu64 " bytes: 64 KiB to 1 GiB, a multiple of 4096",
                           p->o.bucket_bytes);
    }
    if (!p->o.layout || p->o.rank >= p->o.layout->l->ranks) {
        return corral_fail(err, CORRAL_INVALID, "publisher: %s",
                           p->o.layout ? "its rank is not in its layout" : "it has no layout");
    }
    return CORRAL_OK;
}

static_assert((int)CORRAL_WEIGHTS_UNSCALED == CORRAL_CAST_NONE &&
                  (int)CORRAL_WEIGHTS_BLOCKS == CORRAL_CAST_BLOCKS &&
                  (int)CORRAL_WEIGHTS_TILES == CORRAL_CAST_TILES,
              "scalings have the same numbers inside and outside");

static enum corral_status take_rules(const struct corral_weights_publisher_options *o,
                                     struct corral_cast_rule *rules, struct corral_error *err)
{
    const char *at = (const char *)o->casts;
    if (o->cast_count > CORRAL_CAST_RULES_MAX || !o->casts) {
        return corral_fail(err, CORRAL_INVALID, "publisher: %u casts, of which %u are possible",
                           o->cast_count, o->casts ? CORRAL_CAST_RULES_MAX : 0);
    }
    for (uint32_t i = 0; i < o->cast_count; i++) {
        struct corral_weights_cast c;
        CORRAL_TRY(corral_api_take(&c, sizeof c, at, "cast", err));
        if (c.to > CORRAL_WEIGHTS_F8_E5M2 || c.scaling > CORRAL_WEIGHTS_TILES) {
            return corral_fail(err, CORRAL_INVALID, "publisher: cast %u to dtype %u, scaling %u", i, c.to,
                               c.scaling);
        }
        rules[i] = (struct corral_cast_rule){.pattern = c.pattern,
                                             .to = (enum corral_dtype)c.to,
                                             .scaling = (enum corral_cast_scaling)c.scaling};
        at += o->casts->size;
    }
    return CORRAL_OK;
}

static enum corral_status read_memory(void *ctx, uint64_t offset, uint64_t bytes, void *out,
                                      struct corral_error *err)
{
    return corral_memory_read(ctx, offset, bytes, out, err);
}

/* From here on the source is what the engines see: its layout, and a shard that makes its bytes. */
static enum corral_status make_cast(struct corral_weights_publisher *p, struct corral_error *err)
{
    struct corral_cast_rule rules[CORRAL_CAST_RULES_MAX];
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *made = NULL;
    if (p->o.cast_count == 0) {
        return CORRAL_OK;
    }
    CORRAL_TRY(take_rules(&p->o, rules, err));
    CORRAL_TRY(corral_cast_layout(p->source, rules, p->o.cast_count, &made, err));
    struct corral_cast_memory memory = {.host = p->shard.host, .read = read_memory, .ctx = p->memory};
    CORRAL_TRY(
        corral_cast_source_create(&p->cast, p->source, rules, p->o.cast_count, p->o.rank, &memory, err));
    p->shard = corral_cast_source_shard(p->cast);
    corral_layout_destroy(p->source);
    p->source = CORRAL_STEAL(made);
    return CORRAL_OK;
}

enum corral_status corral_weights_publisher_open(struct corral_weights_publisher **out,
                                                 const struct corral_weights_publisher_options *options,
                                                 struct corral_error *err)
{
    corral_api_quiet();
    struct corral_weights_publisher *p = calloc(1, sizeof *p);
    if (!p) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to open a publisher");
    }
    enum corral_status status = corral_api_take(&p->o, sizeof p->o, options, "publisher options", err);
    push_account_make(&p->account, &(struct corral_push_budget){.hold = p->o.hold, .ctx = p->o.hold_ctx});
    if (status == CORRAL_OK) {
        p->o.bucket_bytes = p->o.bucket_bytes ? p->o.bucket_bytes : BUCKET_BYTES_DEFAULT;
        p->o.deadline_ms = p->o.deadline_ms ? p->o.deadline_ms : DEADLINE_MS_DEFAULT;
        status = check(p, err);
    }
    if (status == CORRAL_OK) {
        status = corral_api_identity(p->o.identity, &p->identity, err);
    }
    if (status == CORRAL_OK) {
        status = corral_api_copy_layout(p->o.layout->l, &p->source, err);
    }
    if (status == CORRAL_OK) {
        status = corral_memory_create(&p->memory, p->source, p->o.rank, p->o.regions, p->o.region_count, err);
    }
    if (status == CORRAL_OK) {
        p->shard = corral_memory_shard(p->memory);
        status = make_cast(p, err);
    }
    if (status == CORRAL_OK) {
        status = corral_api_copy_text(&p->lanes, p->o.lanes ? p->o.lanes : CORRAL_API_LANES, err);
    }
    if (status == CORRAL_OK) {
        status = corral_api_copy_text(&p->host, p->o.host, err);
    }
    if (status == CORRAL_OK) {
        status = corral_api_copy_text(&p->rdma, p->o.rdma, err);
    }
    if (status != CORRAL_OK) {
        corral_weights_publisher_close(p);
        return status;
    }
    *out = p;
    return CORRAL_OK;
}

void corral_weights_publisher_close(struct corral_weights_publisher *p)
{
    if (!p) {
        return;
    }
    corral_push_sender_destroy(p->sender);
    corral_reshard_plan_destroy(p->plan);
    corral_layout_destroy(p->source);
    corral_layout_destroy(p->destination);
    corral_cast_source_destroy(p->cast);
    corral_memory_destroy(p->memory);
    push_account_drop(&p->account, &p->staging_held);
    push_account_end(&p->account);
    free(p->lanes);
    free(p->host);
    free(p->rdma);
    free(p);
}

enum corral_status corral_weights_publisher_card(const struct corral_weights_publisher *p, void *out,
                                                 uint64_t *bytes, struct corral_error *err)
{
    struct corral_card card = {.kind = CORRAL_CARD_TRAINER,
                               .run = p->identity.run,
                               .bucket_bytes = p->o.bucket_bytes,
                               .layout = p->source};
    return corral_api_give_card(&card, p->identity.secret, out, bytes, err);
}

/* The first subscriber says how engines lie. */
static enum corral_status start(struct corral_weights_publisher *p, struct corral_card *card,
                                struct corral_error *err)
{
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL;
    CORRAL_TRY(corral_reshard_plan_build(p->source, card->layout, &plan, err));
    struct corral_push_sender_options options = {
        .rank = p->o.rank,
        .leader = p->o.rank == 0,
        .ranks = p->source->ranks,
        .identity = p->identity,
        .plan = plan,
        .bucket_bytes = p->o.bucket_bytes,
        .lane = {.local_host = p->host, .device = p->rdma},
        .lanes = p->lanes,
        .deadline_ns = p->o.deadline_ms * CORRAL_NS_PER_MS,
        .delta = p->o.delta != 0,
        .anchor_every = p->o.anchor_every,
        .delta_element_bytes = p->o.delta_element_bytes,
        .budget = {.hold = hold_lanes, .ctx = p},
    };
    CORRAL_TRY(corral_push_sender_create(&p->sender, &options, err));
    p->plan = CORRAL_STEAL(plan);
    p->destination = CORRAL_STEAL(card->layout);
    return CORRAL_OK;
}

static enum corral_status add_card(struct corral_weights_publisher *p, struct corral_card *card,
                                   struct corral_error *err)
{
    if (!p->sender) {
        CORRAL_TRY(start(p, card, err));
    } else if (!corral_digest_equal(corral_layout_hash(card->layout), corral_layout_hash(p->destination))) {
        return corral_fail(
            err, CORRAL_INVALID,
            "subscriber %s lies otherwise than those before it: a publisher serves replicas of one "
            "engine",
            card->name);
    }
    return corral_push_sender_add(p->sender, card->name, card->endpoint, card->rank, card->replica, err);
}

enum corral_status corral_weights_publisher_add(struct corral_weights_publisher *p, const void *card,
                                                uint64_t bytes, struct corral_error *err)
{
    struct corral_card c;
    CORRAL_TRY(corral_card_decode(&c, card, bytes, CORRAL_CARD_SUBSCRIBER, p->identity.run,
                                  p->identity.secret, err));
    enum corral_status status = add_card(p, &c, err);
    corral_card_clear(&c);
    return status;
}

void corral_weights_publisher_remove(struct corral_weights_publisher *p, const char *name)
{
    if (p->sender && name) {
        corral_push_sender_remove(p->sender, name);
    }
}

enum corral_status corral_weights_publish(struct corral_weights_publisher *p, uint64_t version,
                                          struct corral_weights_result *result, struct corral_error *err)
{
    struct corral_push_result r = {.version = 0};
    struct corral_weights_result give = {.size = sizeof give};
    if (!p->sender) {
        return corral_fail(err, CORRAL_STATE,
                           "version %" PRIu64 " has nobody to go to: add a subscriber's card", version);
    }
    uint64_t started = corral_now_ns(&corral_clock_monotonic);
    if (p->cast) {
        CORRAL_TRY(corral_cast_source_prepare(p->cast, err));
    }
    uint64_t cast_ns = corral_now_ns(&corral_clock_monotonic) - started;
    CORRAL_TRY(hold_staging(p, CORRAL_MAX(p->staging_held, corral_memory_staging_max(p->memory)), err));
    enum corral_status status = corral_push_sender_push(p->sender, version, 0, &p->shard, &r, err);
    struct corral_error more; /* what is there is there; the next version asks again */
    (void)hold_staging(p, corral_memory_staging(p->memory), &more);
    CORRAL_TRY(status);
    if (!result) {
        return CORRAL_OK;
    }
    give.subscribers = r.receivers;
    give.applied = r.applied;
    give.dropped = r.dropped;
    give.version = version;
    give.bytes = r.bytes;
    give.total_ns = corral_now_ns(&corral_clock_monotonic) - started;
    give.pack_ns = r.pack_ns + cast_ns;
    give.wire_ns = r.wire_ns;
    give.stage_ns = r.stage_ns;
    give.commit_ns = r.commit_ns;
    give.pause_ns = r.pause_ns;
    give.resent_buckets = r.resent_buckets;
    give.moved = r.moved;
    give.deltas = r.deltas;
    give.slow_rank = r.slow_rank;
    give.skew_ns = r.skew_ns;
    give.gather_ns = r.gather_ns;
    give.memory = push_account_total(&p->account);
    give.delta_memory = corral_push_sender_delta_memory(p->sender);
    give.digest[0] = r.digest.lo;
    give.digest[1] = r.digest.hi;
    return corral_api_give(result, &give, sizeof give, "result", err);
}
