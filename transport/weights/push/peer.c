/* One receiver's way through one version, as this sender drives it. */
#include "transport/weights/push/sender_internal.h"

#include "base/log.h"
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BACKOFF_FIRST_NS (10 * CORRAL_NS_PER_MS)
#define BACKOFF_MAX_NS (2 * CORRAL_NS_PER_S)
#define BURST 4 /* buckets given to one lane before the other receivers get their turn */
#define OUT_RESERVE \
    4096u /* no more buckets are sent while the receiver reads so little of what it was told */
#define SPEAK_NS (CORRAL_NS_PER_S / 2) /* a WAIT when nothing else was said for so long in a version */

enum corral_status peer_queue(struct corral_push_sender *s, struct push_peer *p, enum push_type type,
                              uint64_t version, const void *payload, uint32_t bytes, struct corral_error *err)
{
    struct push_frame f = {
        .type = type, .bytes = bytes, .generation = s->options.identity.generation, .version = version};
    p->spoke_ns = push_now_ns();
    if (push_io_queue(&p->io, &f, payload, err) != CORRAL_OK) {
        return corral_fail(err, CORRAL_PEER, "%s does not read what it is told", p->name);
    }
    return push_io_flush(&p->io, err);
}

static void say_abort(struct corral_push_sender *s, struct push_peer *p, const struct corral_error *why)
{
    uint8_t payload[4 + PUSH_TEXT_MAX];
    struct corral_error ignored;
    uint32_t bytes = push_put_error(payload, why);
    (void)peer_queue(s, p, PUSH_ABORT, s->version, payload, bytes, &ignored);
}

enum corral_status peer_account(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err)
{
    return push_account_hold(&s->account, &p->held, p->lane == NULL ? 0 : p->lane->memory_bytes,
                             "staging of a weight lane", err);
}

void peer_drop(struct corral_push_sender *s, struct push_peer *p, bool fault, const struct corral_error *why)
{
    struct corral_error ignored;
    if (peer_in_version(p)) {
        say_abort(s, p, why);
    }
    if (p->lane != NULL) { /* before anything else may touch the source */
        if (p->state == PEER_SEND) {
            (void)p->lane->ops->tx_end(p->lane, false, &ignored);
        }
        p->lane->ops->tx_close(p->lane);
        p->lane = NULL;
        push_account_drop(&s->account, &p->held);
    }
    if (p->io.fd >= 0) {
        close(p->io.fd);
        p->io.fd = -1;
    }
    if (!p->down) {
        p->down = true;
        corral_log_warn("weight receiver dropped, it is connected again in the background",
                        LOG_STR("receiver", p->name), LOG_STR("endpoint", p->endpoint),
                        LOG_U64("version", s->version), LOG_ERR(why));
    }
    s->error = *why;
    corral_error_prefix(&s->error, why->status, "%s", p->name);
    if (p->waited || p->outcome == OUTCOME_UNDER_WAY) {
        p->outcome = OUTCOME_FAILED;
    }
    p->state = PEER_OUT;
    p->fresh = false;
    p->has = 0;
    p->retry_ns = fault ? push_now_ns() + p->backoff_ns : 0;
    if (fault) {
        p->backoff_ns = CORRAL_MIN(CORRAL_MAX(2 * p->backoff_ns, BACKOFF_FIRST_NS), BACKOFF_MAX_NS);
    }
}

/* ---- beginning ---- */

void peer_begin(struct corral_push_sender *s, struct push_peer *p)
{
    struct corral_error why = {0};
    uint8_t payload[PUSH_PREPARE_BYTES];
    struct corral_delta_version base = sender_offer_base(s, p);
    struct push_prepare prepare = {
        .push = ++p->push, .base = base.version, .bytes = p->cut->link->bytes, .base_digest = base.digest};
    uint64_t now = push_now_ns(), until = s->catching ? now : sender_patience_end(s);
    prepare.patience_ns = until > now ? until - now : 0;
    if (s->catching &&
        p->cut->staged ==
            s->version) { /* the source has not changed since: so it need not be sent to who has it */
        prepare.known = p->cut->whole;
    }
    push_put_prepare(payload, &prepare);
    p->next = p->taken = p->again_from = p->again_count = p->resent = 0;
    p->in_lane = p->left = p->moved = 0;
    p->offered = base.version;
    p->deltas = false;
    p->first_ns = p->taken_ns = p->staged_ns = p->commit_ns = p->applied_ns = s->start_ns;
    p->gather_ns = p->pack_ns = p->pause_ns = p->skew_ns = 0;
    p->slow_rank = PUSH_NO_RANK;
    p->moved_ns = now;
    memset(p->attempt, 0, p->cut->link->buckets);
    p->outcome = OUTCOME_UNDER_WAY;
    p->state = PEER_PLACE;
    p->begun_ns = now;
    if (peer_queue(s, p, PUSH_PREPARE, s->version, payload, sizeof payload, &why) != CORRAL_OK) {
        peer_drop(s, p, true, &why);
    }
}

enum corral_status peer_ready(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err)
{
    p->lanes_tried[0] = '\0';
    if (p->waited && p->outcome == OUTCOME_NONE) {
        peer_begin(s, p);
        return CORRAL_OK;
    }
    /* Too late for this version: say so, or the other ranks that have taken it in would wait for us. */
    return s->version == 0 ? CORRAL_OK : peer_queue(s, p, PUSH_PASS, s->version, NULL, 0, err);
}

enum corral_status peer_commit(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err)
{
    uint8_t payload[16];
    wire_put_digest(payload, p->digest);
    p->state = PEER_COMMIT;
    p->commit_ns = push_now_ns();
    return peer_queue(s, p, PUSH_COMMIT, s->version, payload, sizeof payload, err);
}

/* ---- buckets ---- */

static enum corral_status source_digest(struct corral_push_sender *s, struct push_peer *p, uint32_t bucket,
                                        struct corral_digest *out, struct corral_error *err)
{
    struct cut *cut = p->cut;
    if (!cut->known[bucket]) {
        CORRAL_TRY(s->source.ops->digest(&s->source, cut->link, CORRAL_LINK_SOURCE, bucket,
                                         &cut->digest[bucket], err));
        cut->known[bucket] = true;
    }
    *out = cut->digest[bucket];
    return CORRAL_OK;
}

/* As a delta the first time, where that is agreed upon and shorter. CORRAL_AGAIN: as many are in flight as fit. */
static enum corral_status give_to_lane(struct corral_push_sender *s, struct push_peer *p, uint32_t bucket,
                                       struct corral_error *err)
{
    struct cut *cut = p->cut;
    const void *encoded = NULL;
    uint64_t bytes = corral_link_bucket_size(cut->link, bucket), shorter = 0, start = push_now_ns();
    if (p->deltas && p->attempt[bucket] == 0) {
        uint64_t before = corral_base_gather_ns(cut->base);
        CORRAL_TRY(corral_base_encode(cut->base, &s->source, bucket, &encoded, &shorter, &cut->digest[bucket],
                                      &cut->known[bucket], err));
        uint64_t now = push_now_ns(), read = corral_base_gather_ns(cut->base) - before;
        p->gather_ns += read;
        p->pack_ns += now - start - CORRAL_MIN(read, now - start);
        start = now;
    }
    if (encoded == NULL) {
        CORRAL_TRY(p->lane->ops->tx_send(p->lane, bucket, err));
        p->gather_ns += push_now_ns() - start;
    } else {
        CORRAL_TRY(p->lane->ops->tx_send_encoded(p->lane, bucket, encoded, shorter, err));
        bytes = shorter;
    }
    p->moved += bytes;
    return CORRAL_OK;
}

/* CORRAL_AGAIN: as many are in flight as fit. */
static enum corral_status send_bucket(struct corral_push_sender *s, struct push_peer *p, uint32_t bucket,
                                      struct corral_error *err)
{
    uint8_t payload[24];
    struct corral_digest digest;
    uint64_t start = push_now_ns();
    CORRAL_TRY(give_to_lane(s, p, bucket, err));
    uint64_t given = push_now_ns();
    CORRAL_TRY(source_digest(s, p, bucket, &digest, err)); /* while the bucket is on its way */
    p->pack_ns += push_now_ns() - given;
    if (p->in_lane++ == 0) {
        p->first_ns = start;
    }
    p->attempt[bucket]++;
    wire_put_u32(payload, bucket);
    wire_put_u32(payload + 4, p->attempt[bucket]);
    wire_put_digest(payload + 8, digest);
    return peer_queue(s, p, PUSH_SENT, s->version, payload, sizeof payload, err);
}

static enum corral_status send_some(struct corral_push_sender *s, struct push_peer *p, bool *moved,
                                    struct corral_error *err)
{
    for (uint32_t i = 0; i < BURST && push_io_room(&p->io) > OUT_RESERVE; i++) {
        bool again = p->again_count > 0;
        if (!again && p->next == p->cut->link->buckets) {
            return CORRAL_OK;
        }
        uint32_t bucket = again ? p->again[p->again_from] : p->next;
        enum corral_status status = send_bucket(s, p, bucket, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        *moved = true;
        if (again) {
            p->again_from = (p->again_from + 1) % p->cut->link->buckets;
            p->again_count--;
        } else {
            p->next++;
        }
    }
    return CORRAL_OK;
}

static enum corral_status move(struct corral_push_sender *s, struct push_peer *p, bool *moved,
                               struct corral_error *err)
{
    uint64_t left = p->left;
    CORRAL_TRY(p->lane->ops->tx_progress(p->lane, 0, &p->left, err));
    *moved = *moved || p->left != left;
    CORRAL_TRY(send_some(s, p, moved, err));
    if (p->taken < p->cut->link->buckets || p->left < p->in_lane) {
        return CORRAL_OK;
    }
    CORRAL_TRY(p->lane->ops->tx_end(p->lane, true, err));
    p->state = PEER_STAGE;
    p->taken_ns = push_now_ns();
    *moved = true;
    return CORRAL_OK;
}

/* ---- frames ---- */

static enum corral_status on_place(struct corral_push_sender *s, struct push_peer *p,
                                   const struct push_frame *f, const uint8_t *payload,
                                   struct corral_error *err)
{
    struct corral_lane_blob place = {.bytes = f->bytes - PUSH_PLACE_HEAD};
    uint64_t base = wire_get_u64(payload);
    memcpy(place.data, payload + PUSH_PLACE_HEAD, place.bytes);
    if (base != 0 && base != p->offered) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s wants deltas on version %" PRIu64 ", not offered",
                           p->name, base);
    }
    p->deltas = base != 0;
    if (p->lane == NULL) {
        return corral_fail(err, CORRAL_PROTOCOL, "PLACE from %s, to which nothing moves", p->name);
    }
    CORRAL_TRY(p->lane->ops->tx_begin(p->lane, p->push, &s->source, &place, err));
    p->state = PEER_SEND;
    return peer_account(s, p, err);
}

static enum corral_status on_taken(struct push_peer *p, const uint8_t *payload, struct corral_error *err)
{
    uint32_t bucket = wire_get_u32(payload), ok = wire_get_u32(payload + 4);
    if (bucket >= p->cut->link->buckets || p->attempt[bucket] == 0 || ok > 1 ||
        p->taken + p->again_count >= p->cut->link->buckets) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s has taken bucket %u, which is not under way", p->name,
                           bucket);
    }
    if (ok == 1) {
        p->taken++;
        return CORRAL_OK;
    }
    if (p->attempt[bucket] >= PUSH_ATTEMPTS_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "bucket %u arrived damaged at %s %u times", bucket, p->name,
                           p->attempt[bucket]);
    }
    p->whole_next = p->whole_next || p->deltas;
    p->again[(p->again_from + p->again_count++) % p->cut->link->buckets] = bucket;
    p->resent++;
    return CORRAL_OK;
}

static enum corral_status on_staged(struct corral_push_sender *s, struct push_peer *p, const uint8_t *payload,
                                    struct corral_error *err)
{
    struct cut *cut = p->cut;
    p->digest = wire_get_digest(payload);
    p->skew_ns = wire_get_u64(payload + 32);
    p->slow_rank = p->skew_ns == 0 ? PUSH_NO_RANK : wire_get_u32(payload + 40);
    if (cut->staged == s->version && !corral_digest_equal(cut->whole, p->digest)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s has staged other bytes than another receiver of rank %u",
                           p->name, p->rank);
    }
    cut->staged = s->version;
    cut->whole = p->digest;
    p->staged_ns = push_now_ns();
    p->state = PEER_STAGED;
    return CORRAL_OK;
}

static enum corral_status on_applied(struct corral_push_sender *s, struct push_peer *p,
                                     const uint8_t *payload, struct corral_error *err)
{
    struct corral_digest digest = wire_get_digest(payload);
    if (s->options.leader && p->state == PEER_COMMIT && !corral_digest_equal(digest, p->digest)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s applied other bytes than it had staged", p->name);
    }
    if (s->options.leader && p->state == PEER_PLACE &&
        !(s->catching && p->cut->staged == s->version && corral_digest_equal(digest, p->cut->whole))) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "%s says that it has version %" PRIu64 ", which nobody sent it", p->name,
                           s->version);
    }
    p->digest = digest;
    p->pause_ns = wire_get_u64(payload + 16);
    p->applied_ns = push_now_ns();
    p->has = s->version;
    p->at = (struct corral_delta_version){s->version, digest};
    p->since_whole = p->deltas ? p->since_whole + 1 : 0;
    p->whole_next = p->whole_next && p->deltas;
    p->state = PEER_READY;
    p->outcome = OUTCOME_APPLIED;
    p->backoff_ns = 0;
    if (p->down) {
        p->down = false;
        corral_log_info("weight receiver is back", LOG_STR("receiver", p->name), LOG_U64("version", p->has));
    }
    return CORRAL_OK;
}

/* CORRAL_STATE: the connection ends, through no fault of the receiver's. */
static enum corral_status on_aborted(struct corral_push_sender *s, struct push_peer *p,
                                     const struct push_frame *f, const uint8_t *payload,
                                     struct corral_error *err)
{
    uint32_t after = wire_get_u32(payload);
    struct corral_error why = {0};
    (void)push_get_error(payload + PUSH_ABORTED_HEAD, f->bytes - PUSH_ABORTED_HEAD, "version given up", &why);
    p->slow_rank = wire_get_u32(payload + 4);
    p->skew_ns = p->slow_rank == PUSH_NO_RANK ? 0 : push_now_ns() - p->begun_ns;
    if (after == PUSH_AFTER_CLOSE || after >= PUSH_AFTER_KINDS || p->state == PEER_SEND) {
        return corral_fail(err, CORRAL_STATE, "%s", why.text);
    }
    p->state = after == PUSH_AFTER_READY ? PEER_READY : PEER_READING;
    p->outcome = OUTCOME_FAILED;
    p->refused = why.status == CORRAL_INVALID ? s->version : p->refused;
    s->error = why;
    corral_error_prefix(&s->error, why.status, "%s", p->name);
    return CORRAL_OK;
}

static enum corral_status on_frame(struct corral_push_sender *s, struct push_peer *p,
                                   const struct push_frame *f, const uint8_t *payload,
                                   struct corral_error *err)
{
    if (f->generation != s->options.identity.generation) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s answers generation %" PRIu64, p->name, f->generation);
    }
    if (f->type == PUSH_ERROR) {
        enum corral_status status = push_get_error(payload, f->bytes, "it says", err);
        p->refused = status == CORRAL_INVALID && peer_in_version(p) ? s->version : p->refused;
        return status;
    }
    if (!peer_in_version(p)) {
        return peer_login_frame(s, p, f, payload, err);
    }
    if (f->version != s->version) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: %s of version %" PRIu64 ", not %" PRIu64, p->name,
                           push_type_name(f->type), f->version, s->version);
    }
    switch ((enum push_type)f->type) {
    case PUSH_PLACE:
        if (p->state == PEER_PLACE) {
            return on_place(s, p, f, payload, err);
        }
        break;
    case PUSH_TAKEN:
        if (p->state == PEER_SEND) {
            return on_taken(p, payload, err);
        }
        break;
    case PUSH_STAGED:
        if (s->options.leader && (p->state == PEER_STAGE || (p->state == PEER_PLACE && p->lane == NULL))) {
            return on_staged(s, p, payload, err);
        }
        break;
    case PUSH_APPLIED:
        if (p->state == PEER_COMMIT || p->state == PEER_PLACE ||
            (p->state == PEER_STAGE && !s->options.leader)) {
            return on_applied(s, p, payload, err);
        }
        break;
    case PUSH_ABORTED:
        return on_aborted(s, p, f, payload, err);
    default:
        break;
    }
    return corral_fail(err, CORRAL_PROTOCOL, "%s from %s is not due", push_type_name(f->type), p->name);
}

/* Works off what has been received. The last TAKEN and what follows it may come together: the lane is to be ended first, so the rest waits until its last bucket has left. */
static enum corral_status consume(struct corral_push_sender *s, struct push_peer *p, bool *moved,
                                  struct corral_error *err)
{
    while (p->state > PEER_CONNECT) {
        struct push_frame f;
        const uint8_t *payload;
        if (p->state == PEER_SEND && p->taken == p->cut->link->buckets) {
            CORRAL_TRY(move(s, p, moved, err));
            if (p->state == PEER_SEND) {
                return CORRAL_OK;
            }
        }
        enum corral_status status = push_io_next(&p->io, &f, &payload, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        *moved = true;
        CORRAL_TRY(on_frame(s, p, &f, payload, err));
    }
    return CORRAL_OK;
}

static enum corral_status advance(struct corral_push_sender *s, struct push_peer *p, short revents,
                                  bool *moved, struct corral_error *err)
{
    if (p->state == PEER_CONNECT) {
        return (revents & (POLLOUT | POLLERR | POLLHUP)) != 0 ? peer_connected(s, p, err) : CORRAL_OK;
    }
    if (revents != 0) {
        CORRAL_TRY(push_io_flush(&p->io, err));
        enum corral_status status = push_io_receive(&p->io, err);
        /* What came before the end still counts: it may say why. */
        if (status != CORRAL_OK && status != CORRAL_AGAIN) {
            struct corral_error end = *err;
            CORRAL_TRY(consume(s, p, moved, err));
            *err = end;
            return status;
        }
    }
    CORRAL_TRY(consume(s, p, moved, err));
    if (p->state == PEER_SEND) {
        CORRAL_TRY(move(s, p, moved, err));
    }
    if (peer_in_version(p) && push_now_ns() - p->spoke_ns > SPEAK_NS && p->io.out_to == 0) {
        return peer_queue(s, p, PUSH_WAIT, s->version, NULL, 0, err);
    }
    return CORRAL_OK;
}

bool peer_advance(struct corral_push_sender *s, struct push_peer *p, short revents)
{
    bool moved = false;
    struct corral_error why = {0};
    if (p->state == PEER_OUT) {
        return false;
    }
    bool in_version = peer_in_version(p);
    enum corral_status status = advance(s, p, revents, &moved, &why);
    if (status != CORRAL_OK) { /* who is refused at login, as fenced, must not come back at once */
        peer_drop(s, p, status != CORRAL_STATE || !in_version, &why);
        return true;
    }
    p->moved_ns = moved ? push_now_ns() : p->moved_ns;
    return moved;
}
