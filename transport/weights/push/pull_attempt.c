/* One attempt of a puller at one peer: login, lane, buckets, the digest of the whole, the flip. */
#include "transport/weights/push/pull_internal.h"
#include "transport/weights/push/visit.h"

#include "base/log.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARRIVED 1u
#define ANNOUNCED 2u
#define TAKEN 4u
#define ROOM 32u
#define SLICE_NS CORRAL_NS_PER_MS /* how long a lane without a descriptor is waited for at once */

/* One attempt at one peer. */
struct attempt {
    struct puller *p;
    struct visit visit;
    char lanes[PUSH_LANES_MAX + 1];
    uint64_t current;
    const struct corral_link *link;
    const struct corral_lane_ops *ops;
    struct corral_lane *lane;
    uint64_t held; /* of the receiver's account */
    struct push_prepare prepare;
    uint64_t version;
    bool begun, receiving;
    struct corral_shard shadow;
    uint8_t *flags, *damaged;   /* per bucket */
    struct corral_digest *sent; /* per bucket */
    uint32_t taken;
};

/* ---- buckets ---- */

static enum corral_status judge(struct attempt *a, uint32_t bucket, struct corral_error *err)
{
    uint8_t payload[8];
    uint64_t start = push_now_ns();
    struct corral_digest have;
    CORRAL_TRY(a->shadow.ops->digest(&a->shadow, a->link, CORRAL_LINK_DESTINATION, bucket, &have, err));
    CORRAL_TRY(a->ops->rx_taken(a->lane, bucket, err));
    bool ok = corral_digest_equal(have, a->sent[bucket]);
    a->p->last_ns = push_now_ns();
    a->p->hash_ns += a->p->last_ns - start;
    a->flags[bucket] = ok ? TAKEN : 0;
    a->taken += ok;
    if (!ok && ++a->damaged[bucket] == PUSH_ATTEMPTS_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "bucket %u from %s arrived damaged %u times", bucket,
                           a->visit.peer, PUSH_ATTEMPTS_MAX);
    }
    a->p->resent += !ok;
    wire_put_u32(payload, bucket);
    wire_put_u32(payload + 4, ok);
    return visit_say(&a->visit, PUSH_TAKEN, a->version, payload, sizeof payload, err);
}

static enum corral_status note(struct attempt *a, uint32_t bucket, uint8_t flag, struct corral_error *err)
{
    if (bucket >= a->link->buckets || (flag == ANNOUNCED && (a->flags[bucket] & (ANNOUNCED | TAKEN)) != 0)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s sends bucket %u, which is not due", a->visit.peer,
                           bucket);
    }
    if (a->flags[bucket] == TAKEN) { /* reported twice */
        return a->ops->rx_taken(a->lane, bucket, err);
    }
    a->flags[bucket] |= flag;
    return a->flags[bucket] == (ARRIVED | ANNOUNCED) ? judge(a, bucket, err) : CORRAL_OK;
}

static enum corral_status hear_bucket(struct attempt *a, uint64_t until_ns, struct corral_error *err)
{
    struct push_frame f;
    const uint8_t *payload;
    enum corral_status status = visit_hear(&a->visit, a->lane->fd, until_ns, &f, &payload, err);
    if (status != CORRAL_OK) {
        return status == CORRAL_AGAIN ? CORRAL_OK : status;
    }
    uint32_t bucket = wire_get_u32(payload);
    if (f.type != PUSH_SENT || f.version != a->version || bucket >= a->link->buckets ||
        (a->flags[bucket] & (ANNOUNCED | TAKEN)) != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: %s is not due", a->visit.peer, push_type_name(f.type));
    }
    a->sent[bucket] = wire_get_digest(payload + 8);
    return note(a, bucket, ANNOUNCED, err);
}

static enum corral_status receive(struct attempt *a, struct corral_error *err)
{
    while (a->taken < a->link->buckets) {
        uint32_t bucket[ROOM], count = 0;
        CORRAL_TRY(a->ops->rx_progress(a->lane, 0, bucket, ROOM, &count, err));
        if (count > 0) {
            a->visit.heard_ns = push_now_ns();
            a->p->first_ns = a->p->first_ns == 0 ? a->visit.heard_ns : a->p->first_ns;
        }
        for (uint32_t i = 0; i < count; i++) {
            CORRAL_TRY(note(a, bucket[i], ARRIVED, err));
        }
        uint64_t until = count > 0 ? 0 : a->lane->fd >= 0 ? UINT64_MAX : push_now_ns() + SLICE_NS;
        if (a->taken < a->link->buckets) {
            CORRAL_TRY(hear_bucket(a, until, err));
        }
    }
    a->receiving = false;
    return a->ops->rx_end(a->lane, true, err);
}

/* ---- the version ---- */

/* Of what is in final memory now, over the links of the plan: what a push of the same bytes would have. */
static enum corral_status final_digest(struct attempt *a, struct corral_digest *out, struct corral_error *err)
{
    struct corral_push_receiver *r = a->p->r;
    uint32_t sources = r->options.plan->sources, most = 1;
    for (uint32_t s = 0; s < sources; s++) {
        most = CORRAL_MAX(most, r->link[s]->buckets);
    }
    CORRAL_AUTO_FREE struct corral_digest *bucket = calloc(most, sizeof *bucket);
    CORRAL_AUTO_FREE struct corral_digest *link = calloc(sources, sizeof *link);
    if (!bucket || !link) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to check a pulled version");
    }
    for (uint32_t s = 0; s < sources; s++) {
        for (uint32_t b = 0; b < r->link[s]->buckets; b++) {
            CORRAL_TRY(
                a->shadow.ops->digest(&a->shadow, r->link[s], CORRAL_LINK_DESTINATION, b, &bucket[b], err));
        }
        link[s] = push_link_digest(r->link[s], bucket);
    }
    *out = push_version_digest(r->options.plan, r->options.rank, link);
    return CORRAL_OK;
}

static enum corral_status finish(struct attempt *a, struct corral_error *err)
{
    struct puller *p = a->p;
    const struct corral_push_receiver_options *o = &p->r->options;
    struct push_frame f;
    const uint8_t *payload;
    struct corral_digest digest;
    uint8_t applied[24];
    CORRAL_TRY(visit_expect(&a->visit, 1u << PUSH_COMMIT, &f, &payload, err));
    if (f.version != a->version || !corral_digest_equal(wire_get_digest(payload), a->prepare.known)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s ends another version than it began", a->visit.peer);
    }
    uint64_t start = push_now_ns();
    CORRAL_TRY(final_digest(a, &digest, err));
    if (!corral_digest_equal(digest, a->prepare.known) &&
        (!a->shadow.host ||
         !corral_digest_equal(corral_digest_of(a->shadow.host, a->shadow.bytes), a->prepare.known))) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "version %" PRIu64 " from %s: what arrived has another digest than the version",
                           a->version, a->visit.peer);
    }
    p->hash_ns += push_now_ns() - start;
    start = push_now_ns();
    CORRAL_TRY(o->target->commit(o->target_ctx, a->version, digest, err));
    a->begun = false;
    p->flip_ns = push_now_ns() - start;
    p->applied = true;
    p->version = a->version;
    p->digest = digest;
    wire_put_digest(applied, digest);
    wire_put_u64(applied + 16, p->flip_ns);
    struct corral_error ignored; /* it is ours, whether the peer hears it or not */
    (void)visit_say(&a->visit, PUSH_APPLIED, a->version, applied, sizeof applied, &ignored);
    return CORRAL_OK;
}

/* ---- the lane ---- */

static const struct corral_lane_ops *usable(const struct attempt *a, const char *name,
                                            struct corral_error *err)
{
    const struct corral_lane_ops *ops =
        push_lane_listed(a->lanes, name) ? receiver_lane_named(a->p->r, name) : NULL;
    if (!ops) {
        (void)corral_fail(err, CORRAL_UNSUPPORTED, "no %s lane here", name);
        return NULL;
    }
    return ops->available(&a->p->r->options.lane, err) == CORRAL_OK ? ops : NULL;
}

static enum corral_status account(struct attempt *a, struct corral_error *err)
{
    return push_account_hold(&a->p->r->account, &a->held, a->lane->memory_bytes, "staging of a weight pull",
                             err);
}

static void close_lane(struct attempt *a, int32_t *tainted)
{
    if (a->lane) {
        a->ops->rx_close(a->lane, tainted);
        a->lane = NULL;
        push_account_drop(&a->p->r->account, &a->held);
    }
}

/* Both ends stand at the end of it, or the peer hears why not. */
static enum corral_status open_lane(struct attempt *a, const char *name, bool *open, struct corral_error *err)
{
    struct push_frame f;
    const uint8_t *payload;
    struct corral_error why = {0};
    CORRAL_AUTO_FREE struct corral_lane_blob *blob = calloc(1, sizeof *blob);
    if (!blob) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to pull weights");
    }
    a->ops = usable(a, name, &why);
    if (a->ops && a->ops->rx_open(&a->lane, a->link, &a->p->r->options.lane, blob, &why) == CORRAL_OK) {
        CORRAL_TRY(visit_say(&a->visit, PUSH_OFFER, 0, blob->data, blob->bytes, err));
        CORRAL_TRY(visit_expect(&a->visit, 1u << PUSH_ANSWER | 1u << PUSH_NOLANE, &f, &payload, err));
        if (f.type == PUSH_ANSWER) {
            blob->bytes = f.bytes;
            memcpy(blob->data, payload, f.bytes);
            *open = a->ops->rx_connect(a->lane, blob, &why) == CORRAL_OK && account(a, &why) == CORRAL_OK;
        }
        if (*open) {
            snprintf(a->p->lane, sizeof a->p->lane, "%s", name);
            return visit_say(&a->visit, PUSH_READY, 0, NULL, 0, err);
        }
        int32_t nobody;
        close_lane(a, &nobody);
        if (f.type == PUSH_NOLANE) { /* the peer knows */
            return CORRAL_OK;
        }
    }
    visit_say_why(&a->visit, PUSH_NOLANE, &why);
    return CORRAL_OK;
}

static enum corral_status find_lane(struct attempt *a, struct corral_error *err)
{
    bool open = false;
    while (!open) {
        struct push_frame f;
        const uint8_t *payload;
        char name[PUSH_LANE_NAME_MAX];
        CORRAL_TRY(visit_expect(&a->visit, 1u << PUSH_LANE, &f, &payload, err));
        memcpy(name, payload, f.bytes);
        name[f.bytes] = '\0';
        CORRAL_TRY(open_lane(a, name, &open, err));
    }
    return CORRAL_OK;
}

/* ---- one peer ---- */

static enum corral_status begin(struct attempt *a, struct corral_error *err)
{
    const struct corral_push_receiver_options *o = &a->p->r->options;
    struct push_frame f;
    const uint8_t *payload;
    CORRAL_TRY(visit_expect(&a->visit, 1u << PUSH_PREPARE, &f, &payload, err));
    push_get_prepare(payload, &a->prepare);
    a->version = f.version;
    if (a->version <= a->current || a->prepare.bytes != a->link->bytes || a->prepare.base != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s gives version %" PRIu64 " of %" PRIu64 " bytes",
                           a->visit.peer, a->version, a->prepare.bytes);
    }
    CORRAL_TRY(o->target->begin(o->target_ctx, a->version, 0, &a->shadow, err));
    a->begun = true;
    if (a->shadow.bytes < a->link->destination_extent) {
        return corral_fail(err, CORRAL_INVALID, "the version does not fit into the target");
    }
    CORRAL_AUTO_FREE struct corral_lane_blob *place = calloc(1, sizeof *place);
    if (!place) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to pull weights");
    }
    CORRAL_TRY(a->ops->rx_begin(a->lane, a->prepare.push, &a->shadow, place, err));
    a->receiving = true;
    CORRAL_TRY(account(a, err));
    uint8_t payload_out[PUSH_PAYLOAD_MAX] = {0}; /* a pull has no base */
    memcpy(payload_out + PUSH_PLACE_HEAD, place->data, place->bytes);
    return visit_say(&a->visit, PUSH_PLACE, a->version, payload_out, PUSH_PLACE_HEAD + place->bytes, err);
}

static enum corral_status pull_it(struct attempt *a, struct corral_error *err)
{
    a->flags = calloc(a->link->buckets, 1);
    a->damaged = calloc(a->link->buckets, 1);
    a->sent = calloc(a->link->buckets, sizeof *a->sent);
    if (!a->flags || !a->damaged || !a->sent) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to pull %u buckets", a->link->buckets);
    }
    CORRAL_TRY(visit_say(&a->visit, PUSH_PULL, a->current, a->lanes, (uint32_t)strlen(a->lanes), err));
    CORRAL_TRY(find_lane(a, err));
    CORRAL_TRY(begin(a, err));
    CORRAL_TRY(receive(a, err));
    return finish(a, err);
}

/* Lane before shadow: nobody may write into what the target takes back. */
static void clean_up(struct attempt *a)
{
    const struct corral_push_receiver_options *o = &a->p->r->options;
    int32_t tainted = 0;
    struct corral_error ignored;
    if (a->lane) {
        if (a->receiving) {
            (void)a->ops->rx_end(a->lane, false, &ignored);
        }
        close_lane(a, &tainted);
    }
    if (a->begun) {
        o->target->abort(o->target_ctx, a->version, tainted);
    }
    if (a->visit.io.fd >= 0) {
        close(a->visit.io.fd);
    }
    free(a->flags);
    free(a->damaged);
    free(a->sent);
}

/* CORRAL_OK: it is applied, or the peer has nothing newer (p->applied says which). */
enum corral_status pull_from(struct puller *p, const char *peer, struct corral_error *err)
{
    struct corral_push_receiver *r = p->r;
    const struct corral_link *link = r->copy.link;
    struct corral_digest ignored;
    struct visit_welcome welcome;
    struct push_hello hello = {.role = PUSH_ROLE_PULLER,
                               .rank = r->options.rank,
                               .ranks = r->options.plan->sources,
                               .plan = r->options.plan->hash,
                               .link = link->hash,
                               .bucket_bytes = r->options.bucket_bytes};
    CORRAL_AUTO_FREE struct attempt *a = calloc(1, sizeof *a);
    if (!a) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to pull weights");
    }
    *a = (struct attempt){.p = p, .link = link};
    a->visit = (struct visit){.io = {.fd = -1},
                              .peer = peer,
                              .stop_fd = p->cancel_fd,
                              .deadline_ns = p->deadline_ns,
                              .silence_ns = r->options.silence_ns};
    receiver_lanes(r, a->lanes);
    r->options.target->current(r->options.target_ctx, &a->current, &ignored);
    p->first_ns = p->last_ns = p->hash_ns = 0;
    enum corral_status status = visit_login(&a->visit, peer, &r->options.identity, hello, &welcome, err);
    if (status == CORRAL_OK && welcome.version > a->current) {
        status = pull_it(a, err);
        if (status != CORRAL_OK) {
            visit_say_why(&a->visit, PUSH_ERROR, err);
        }
    }
    clean_up(a);
    return status;
}
