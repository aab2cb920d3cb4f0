/* <corral/weights.h>: the engine's side. */
#include "base/clock.h"
#include "transport/weights/api/buffers.h"
#include "transport/weights/api/internal.h"
#include "transport/weights/push/pull.h"

#include <stdlib.h>
#include <string.h>

#define BUSY_WAIT_MS_DEFAULT 2000u
#define PULL_MS_MAX UINT64_C(600000) /* a peer that is silent for 10 s is passed over much sooner */

struct corral_weights_subscriber {
    struct corral_weights_subscriber_options o;
    struct corral_push_identity identity;
    struct corral_card card; /* its own; owns the layout */
    struct corral_reshard_plan *plan;
    struct corral_memory *live; /* the engine's own memory, or NULL */
    struct corral_buffers *buffers;
    struct corral_push_receiver *receiver;
    char *lanes, *host, *rdma;
};

static enum corral_status take_text(char *to, size_t room, const char *text, const char *what,
                                    struct corral_error *err)
{
    size_t length = text ? strlen(text) : 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] <= ' ' || text[i] > '~') {
            return corral_fail(err, CORRAL_INVALID,
                               "subscriber: its %s has a byte that is not printable ASCII", what);
        }
    }
    if (length >= room) {
        return corral_fail(err, CORRAL_INVALID, "subscriber: its %s has %zu bytes; at most %zu", what, length,
                           room - 1);
    }
    memcpy(to, text ? text : "", length + 1);
    return CORRAL_OK;
}

static enum corral_status take_options(struct corral_weights_subscriber *s, struct corral_error *err)
{
    struct corral_weights_subscriber_options *o = &s->o;
    if (!o->layout || o->rank >= o->layout->l->ranks) {
        return corral_fail(err, CORRAL_INVALID, "subscriber: %s",
                           o->layout ? "its rank is not in its layout" : "it has no layout");
    }
    if (!o->name || !o->name[0]) {
        return corral_fail(err, CORRAL_INVALID, "subscriber: it has no name");
    }
    if (o->buffers > CORRAL_BUFFERS_MAX || o->buffers == 1 || (o->regions && o->auto_flip)) {
        return corral_fail(
            err, CORRAL_INVALID, "subscriber: %s",
            o->regions && o->auto_flip
                ? "auto_flip cannot be with regions: only the engine knows when nobody reads them"
                : "2 or 3 buffers are possible");
    }
    s->card = (struct corral_card){.kind = CORRAL_CARD_SUBSCRIBER, .rank = o->rank};
    CORRAL_TRY(take_text(s->card.name, sizeof s->card.name, o->name, "name", err));
    CORRAL_TRY(take_text(s->card.replica, sizeof s->card.replica, o->replica, "replica", err));
    CORRAL_TRY(corral_api_identity(o->identity, &s->identity, err));
    s->identity.generation = 0; /* the trainer's; an engine with a higher one of its own would fence it off */
    s->card.run = s->identity.run;
    CORRAL_TRY(corral_api_copy_text(&s->lanes, o->lanes ? o->lanes : CORRAL_API_LANES, err));
    CORRAL_TRY(corral_api_copy_text(&s->host, o->host ? o->host : "127.0.0.1", err));
    CORRAL_TRY(corral_api_copy_text(&s->rdma, o->rdma, err));
    return corral_api_copy_layout(o->layout->l, &s->card.layout, err);
}

static enum corral_status make_buffers(struct corral_weights_subscriber *s, struct corral_error *err)
{
    uint32_t wait_ms = s->o.busy_wait_ms ? s->o.busy_wait_ms : BUSY_WAIT_MS_DEFAULT;
    struct corral_buffers_options options = {
        .bytes = s->card.layout->rank_bytes[s->o.rank],
        .count = s->o.regions   ? 1
                 : s->o.buffers ? s->o.buffers
                                : 2,
        .auto_flip = s->o.auto_flip != 0,
        .busy_wait_ns = wait_ms * CORRAL_NS_PER_MS,
        .ready = s->o.ready,
        .ready_ctx = s->o.ready_ctx,
    };
    if (s->o.regions) {
        CORRAL_TRY(
            corral_memory_create(&s->live, s->card.layout, s->o.rank, s->o.regions, s->o.region_count, err));
        options.live = s->live;
    }
    return corral_buffers_create(&s->buffers, &options, err);
}

static enum corral_status listen_with(struct corral_weights_subscriber *s, const struct corral_card *trainer,
                                      struct corral_error *err)
{
    CORRAL_TRY(corral_reshard_plan_build(trainer->layout, s->card.layout, &s->plan, err));
    CORRAL_TRY(make_buffers(s, err));
    struct corral_push_receiver_options options = {
        .name = s->card.name,
        .host = s->host,
        .replica = s->card.replica,
        .rank = s->o.rank,
        .identity = s->identity,
        .plan = s->plan,
        .bucket_bytes = trainer->bucket_bytes,
        .lane = {.local_host = s->host, .device = s->rdma},
        .lanes = s->lanes,
        .target = &corral_buffers_target,
        .target_ctx = s->buffers,
        .budget = {.hold = s->o.hold, .ctx = s->o.hold_ctx},
    };
    CORRAL_TRY(corral_push_receiver_start(&s->receiver, &options, err));
    return take_text(s->card.endpoint, sizeof s->card.endpoint, corral_push_receiver_endpoint(s->receiver),
                     "endpoint", err);
}

/* Cards of other ranks are passed over; what comes of the pull is in the status. */
static enum corral_status pull_from_peers(struct corral_weights_subscriber *s, struct corral_error *err)
{
    const char *endpoint[CORRAL_PULL_PEERS_MAX];
    CORRAL_AUTO_FREE char(*text)[CORRAL_PULL_ENDPOINT_MAX] = calloc(CORRAL_PULL_PEERS_MAX, sizeof *text);
    uint32_t count = 0;
    if (!text) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to open a subscriber");
    }
    for (uint32_t i = 0; i < s->o.peer_count && count < CORRAL_PULL_PEERS_MAX; i++) {
        struct corral_card card;
        CORRAL_TRY(corral_card_decode(&card, s->o.peers[i].card, s->o.peers[i].card ? s->o.peers[i].bytes : 0,
                                      CORRAL_CARD_SUBSCRIBER, s->identity.run, s->identity.secret, err));
        if (card.rank == s->o.rank && strlen(card.endpoint) < CORRAL_PULL_ENDPOINT_MAX) {
            memcpy(text[count], card.endpoint, strlen(card.endpoint) + 1);
            endpoint[count] = text[count];
            count++;
        }
        corral_card_clear(&card);
    }
    return count == 0
               ? CORRAL_OK
               : corral_push_receiver_pull(s->receiver, endpoint, count, PULL_MS_MAX * CORRAL_NS_PER_MS, err);
}

static enum corral_status open_with(struct corral_weights_subscriber *s, struct corral_error *err)
{
    struct corral_card trainer;
    CORRAL_TRY(take_options(s, err));
    CORRAL_TRY(corral_card_decode(&trainer, s->o.trainer_card,
                                  s->o.trainer_card ? s->o.trainer_card_bytes : 0, CORRAL_CARD_TRAINER,
                                  s->identity.run, s->identity.secret, err));
    enum corral_status status = listen_with(s, &trainer, err);
    corral_card_clear(&trainer);
    return status == CORRAL_OK && s->o.peers ? pull_from_peers(s, err) : status;
}

enum corral_status corral_weights_subscriber_open(struct corral_weights_subscriber **out,
                                                  const struct corral_weights_subscriber_options *options,
                                                  struct corral_error *err)
{
    corral_api_quiet();
    struct corral_weights_subscriber *s = calloc(1, sizeof *s);
    if (!s) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to open a subscriber");
    }
    enum corral_status status = corral_api_take(&s->o, sizeof s->o, options, "subscriber options", err);
    if (status == CORRAL_OK) {
        status = open_with(s, err);
    }
    if (status != CORRAL_OK) {
        corral_weights_subscriber_close(s);
        return status;
    }
    *out = s;
    return CORRAL_OK;
}

void corral_weights_subscriber_close(struct corral_weights_subscriber *s)
{
    if (!s) {
        return;
    }
    if (s->buffers) {
        corral_buffers_close(s->buffers);
    }
    corral_push_receiver_stop(s->receiver);
    corral_buffers_destroy(s->buffers);
    corral_memory_destroy(s->live);
    corral_reshard_plan_destroy(s->plan);
    corral_card_clear(&s->card);
    free(s->lanes);
    free(s->host);
    free(s->rdma);
    free(s);
}

enum corral_status corral_weights_subscriber_card(const struct corral_weights_subscriber *s, void *out,
                                                  uint64_t *bytes, struct corral_error *err)
{
    return corral_api_give_card(&s->card, s->identity.secret, out, bytes, err);
}

uint64_t corral_weights_version(const struct corral_weights_subscriber *s)
{
    return corral_buffers_version(s->buffers);
}

uint64_t corral_weights_ready(const struct corral_weights_subscriber *s)
{
    return corral_buffers_ready(s->buffers);
}

enum corral_status corral_weights_wait(struct corral_weights_subscriber *s, uint64_t version,
                                       uint32_t timeout_ms, uint64_t *ready, struct corral_error *err)
{
    return corral_buffers_wait(s->buffers, version, timeout_ms * CORRAL_NS_PER_MS, ready, err);
}

enum corral_status corral_weights_flip(struct corral_weights_subscriber *s, uint64_t version,
                                       uint32_t timeout_ms, uint64_t *pause_ns, struct corral_error *err)
{
    return corral_buffers_flip(s->buffers, version, timeout_ms * CORRAL_NS_PER_MS, pause_ns, err);
}

enum corral_status corral_weights_acquire(struct corral_weights_subscriber *s,
                                          struct corral_weights_view *view, struct corral_error *err)
{
    if (!view || view->size < sizeof *view) {
        return corral_fail(err, CORRAL_INVALID, "view: size is %u; set it to the struct's sizeof",
                           view ? view->size : 0);
    }
    return corral_buffers_acquire(s->buffers, view, err);
}

void corral_weights_release(struct corral_weights_subscriber *s, struct corral_weights_view *view)
{
    if (view->base) {
        corral_buffers_release(s->buffers, view->buffer);
        view->base = NULL;
    }
}

enum corral_status corral_weights_subscriber_status(struct corral_weights_subscriber *s,
                                                    struct corral_weights_status *out,
                                                    struct corral_error *err)
{
    struct corral_push_receiver_status r = {.version = 0};
    struct corral_weights_status give = {.size = sizeof give};
    corral_push_receiver_status(s->receiver, &r);
    give.version = corral_buffers_version(s->buffers);
    give.ready = corral_buffers_ready(s->buffers);
    give.generation = r.generation;
    give.pushes = r.pushes;
    give.aborted = r.aborted;
    give.resent_buckets = r.resent_buckets;
    give.bytes = r.bytes;
    give.wire_ns = r.wire_ns;
    give.apply_ns = r.apply_ns;
    give.commit_ns = r.flip_ns;
    corral_buffers_times(s->buffers, &give.flip_ns, &give.flip_ns_max);
    give.digest[0] = r.digest.lo;
    give.digest[1] = r.digest.hi;
    give.memory = r.memory;
    give.pulls = r.pulls;
    memcpy(give.lane, r.lane, sizeof give.lane);
    memcpy(give.last_error, r.last_error, sizeof give.last_error);
    return corral_api_give(out, &give, sizeof give, "status", err);
}
