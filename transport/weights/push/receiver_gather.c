/* PREPAREs of all ranks are gathered: who is waited for, for how long, and which version is not begun at all. docs/spec/weight-push.md has the table. */
#include "transport/weights/push/receiver_internal.h"

#include <inttypes.h>

/* PREPARE for another version than the one under way. True: `c` has been dealt with. */
static bool settle_with_other(struct corral_push_receiver *r, struct push_conn *c, uint64_t version)
{
    struct corral_error why = {0};
    bool under_way = r->state == RECEIVING_DATA || r->state == RECEIVING_STAGED;
    if (under_way && version == r->version && r->link[c->hello.rank]->buckets == 0) {
        c->prepared = true; /* has nothing to send and comes late */
        return true;
    }
    if (under_way && version > r->version) {
        corral_fail(&why, CORRAL_STATE, "version %" PRIu64 " has been begun by rank %u", version,
                    c->hello.rank);
        receiving_abort(r, &why);
    } else if (under_way) {
        corral_fail(&why, CORRAL_STATE, "version %" PRIu64 " is under way", r->version);
        receiving_soft(r, c, version, PUSH_NO_RANK, &why);
        return true;
    }
    if (r->state == RECEIVING_ABORT || r->state == RECEIVING_PULL) {
        c->waiting = true;
        pulling_cancel(r); /* what the trainer has is newer, or the same */
        return true;
    }
    if (r->state == RECEIVING_GATHER && version < r->version) {
        corral_fail(&why, CORRAL_STATE, "version %" PRIu64 " has been begun", r->version);
        receiving_soft(r, c, version, PUSH_NO_RANK, &why);
        return true;
    }
    if (r->state == RECEIVING_GATHER && version > r->version) {
        corral_fail(&why, CORRAL_STATE, "version %" PRIu64 " has been begun by rank %u", version,
                    c->hello.rank);
        receiving_give_up(r, PUSH_NO_RANK, &why);
    }
    return false;
}

/* Reasons not to begin to gather. again: this rank has begun the version before. *absent: the rank for want of which, when there is one. */
static enum corral_status may_gather(struct corral_push_receiver *r, uint64_t version, bool again,
                                     uint32_t *absent, struct corral_error *err)
{
    uint32_t missing = receiving_missing(r, false);
    if (version == r->late_version &&
        !again) { /* the others are done with it: they would be waited for in vain */
        return corral_fail(err, CORRAL_TIMEOUT, "version %" PRIu64 " was given up: a rank was late", version);
    }
    if (missing != UINT32_MAX) {
        *absent = missing;
        return corral_fail(err, CORRAL_STATE, "rank %u is not connected to %s", missing, r->name);
    }
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        const struct push_conn *c = r->conn[i];
        if (c != NULL && conn_is_member(c) && c->passed == version) {
            *absent = c->hello.rank;
            return corral_fail(err, CORRAL_STATE, "rank %u takes no part in version %" PRIu64, c->hello.rank,
                               version);
        }
    }
    uint64_t current = 0;
    struct corral_digest digest;
    r->options.target->current(r->options.target_ctx, &current, &digest);
    if (version < current) {
        return corral_fail(err, CORRAL_INVALID,
                           "version %" PRIu64 " is below %s's %" PRIu64 ": versions only grow", version,
                           r->name, current);
    }
    return CORRAL_OK;
}

/* A rank without bytes may come after all is over. */
static bool late_spectator(struct corral_push_receiver *r, struct push_conn *c, uint64_t version)
{
    uint64_t current = 0;
    struct corral_digest digest = {0};
    r->options.target->current(r->options.target_ctx, &current, &digest);
    if (r->state != RECEIVING_NONE || version != current || c->hello.leader ||
        r->link[c->hello.rank]->buckets > 0) {
        return false;
    }
    uint8_t payload[24] = {0};
    wire_put_digest(payload, digest);
    conn_send(r, c, PUSH_APPLIED, version, payload, sizeof payload);
    return true;
}

enum corral_status receiving_prepare(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                                     const struct push_prepare *prepare, struct corral_error *err)
{
    struct corral_error why = {0};
    if (version == 0 || prepare->bytes != r->link[c->hello.rank]->bytes) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "rank %u announces version %" PRIu64 " with %" PRIu64 " bytes, not %" PRIu64,
                           c->hello.rank, version, prepare->bytes, r->link[c->hello.rank]->bytes);
    }
    c->prepare = *prepare;
    c->version = version;
    c->passed = 0;
    uint32_t absent = PUSH_NO_RANK;
    uint64_t now = push_now_ns();
    if (late_spectator(r, c, version) || settle_with_other(r, c, version)) {
        return CORRAL_OK;
    }
    if (c->state != CONN_READY) {
        return CORRAL_OK; /* lost while the others were told */
    }
    if (r->state == RECEIVING_NONE) {
        bool again = c->tried == version;
        c->tried = version;
        if (may_gather(r, version, again, &absent, &why) != CORRAL_OK) {
            receiving_soft(r, c, version, absent, &why);
            return CORRAL_OK;
        }
        r->version = version;
        r->begun_ns = now;
        r->late_version = r->gather_until_ns = 0;
        receiving_enter(r, RECEIVING_GATHER);
        pthread_mutex_lock(&r->status_lock);
        r->status.pushes++;
        pthread_mutex_unlock(&r->status_lock);
    }
    c->prepared = true;
    c->tried = version;
    uint64_t wait = prepare->patience_ns == 0 ? r->options.silence_ns
                                              : CORRAL_MIN(prepare->patience_ns, PUSH_NS_MAX) / 8 * 7;
    r->gather_until_ns = CORRAL_MAX(r->gather_until_ns, now + wait);
    if (receiving_missing(r, true) == UINT32_MAX) {
        r->skew_ns = now - r->begun_ns;
        r->slow_rank = c->hello.rank;
        receiving_begin(r);
    }
    return CORRAL_OK;
}

void receiving_pass(struct corral_push_receiver *r, struct push_conn *c, uint64_t version)
{
    c->passed = version;
    if (r->state == RECEIVING_GATHER && r->version == version) {
        struct corral_error why = {0};
        corral_fail(&why, CORRAL_STATE, "rank %u takes no part in version %" PRIu64, c->hello.rank, version);
        receiving_give_up(r, c->hello.rank, &why);
    }
}
