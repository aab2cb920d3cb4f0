/* The version under way at a receiver: once PREPAREs of all ranks are there (receiver_gather.c), their buckets go into one shadow, then the leader's COMMIT flips it. docs/spec/weight-push.md has the table. */
#include "transport/weights/push/receiver_internal.h"

#include "base/log.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LOGIN_NS (5 * CORRAL_NS_PER_S)

void receiving_enter(struct corral_push_receiver *r, enum receiving state)
{
    static const char *const names[] = {"none", "gather", "data", "staged", "abort", "pull"};
    corral_log_debug("weight push", LOG_STR("receiver", r->name), LOG_U64("version", r->version),
                     LOG_STR("from", names[r->state]), LOG_STR("to", names[state]));
    r->state = state;
    r->moved_ns = push_now_ns();
}

static void close_base(struct corral_push_receiver *r)
{
    if (r->base != 0) {
        r->options.target->source_close(r->options.target_ctx, &r->from);
    }
    r->base = 0;
}

/* ---- who takes part ---- */

static struct push_conn *member(const struct corral_push_receiver *r, uint32_t rank)
{
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && conn_is_member(c) && c->hello.rank == rank) {
            return c;
        }
    }
    return NULL;
}

static struct push_conn *leader(const struct corral_push_receiver *r)
{
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->state == CONN_READY && c->hello.leader) {
            return c;
        }
    }
    return NULL;
}

/* The first rank that has bytes for us, or leads, and is not there, or (prepared) has not PREPAREd; UINT32_MAX: all are. No leader at all counts as rank 0. */
uint32_t receiving_missing(const struct corral_push_receiver *r, bool prepared)
{
    for (uint32_t rank = 0; rank < r->options.plan->sources; rank++) {
        const struct push_conn *c = member(r, rank);
        bool there = c != NULL && c->state == CONN_READY && (!prepared || c->prepared);
        bool needed = r->link[rank]->buckets > 0 || (c != NULL && c->hello.leader);
        if (needed && !there) {
            return rank;
        }
    }
    return leader(r) == NULL ? 0 : UINT32_MAX;
}

void receiving_announce(struct corral_push_receiver *r)
{
    if (receiving_missing(r, false) != UINT32_MAX) {
        return;
    }
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->state == CONN_READY && !c->told_ready) {
            c->told_ready = true;
            conn_send(r, c, PUSH_READY, 0, NULL, 0);
        }
    }
}

/* ---- giving up ---- */

void receiving_soft(struct corral_push_receiver *r, struct push_conn *c, uint64_t version, uint32_t absent,
                    const struct corral_error *why)
{
    bool complete = receiving_missing(r, false) == UINT32_MAX;
    c->prepared = c->placed = c->waiting = false;
    c->told_ready = complete;
    conn_send_aborted(r, c, version, complete ? PUSH_AFTER_READY : PUSH_AFTER_INCOMPLETE, absent, why);
}

/* Nothing has moved: everybody keeps the connection. */
void receiving_give_up(struct corral_push_receiver *r, uint32_t absent, const struct corral_error *why)
{
    uint64_t version = r->version;
    receiving_enter(r, RECEIVING_NONE);
    receiver_note_error(r, why);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && conn_is_member(c) && c->prepared) {
            receiving_soft(r, c, version, absent, why);
        }
    }
}

void receiver_note_error(struct corral_push_receiver *r, const struct corral_error *why)
{
    pthread_mutex_lock(&r->status_lock);
    snprintf(r->status.last_error, sizeof r->status.last_error, "%.199s", why->text);
    pthread_mutex_unlock(&r->status_lock);
}

/* Bytes may have moved: every lane is closed, and only then the shadow is given back. */
void receiving_abort(struct corral_push_receiver *r, const struct corral_error *why)
{
    if (r->state != RECEIVING_DATA && r->state != RECEIVING_STAGED) {
        return;
    }
    corral_log_warn("weight version aborted, the current one stays", LOG_STR("receiver", r->name),
                    LOG_U64("version", r->version), LOG_ERR(why));
    receiver_note_error(r, why);
    receiving_enter(r, RECEIVING_ABORT);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->prepared && c->state < CONN_CLOSING) {
            conn_send_aborted(r, c, r->version, PUSH_AFTER_CLOSE, PUSH_NO_RANK, why);
            c->state = CONN_CLOSING;
            c->heard_ns = push_now_ns();
            if (c->worker != NULL) {
                worker_stop(c->worker);
            }
        }
    }
    receiving_settle(r);
}

void receiving_taint(struct corral_push_receiver *r, int32_t pid)
{
    if (pid == 0) {
        return;
    }
    struct corral_error why = {0};
    corral_fail(&why, CORRAL_PEER, "process %d may still write into the memory of version %" PRIu64, pid,
                r->version);
    if (r->state == RECEIVING_DATA || r->state == RECEIVING_STAGED) {
        receiving_abort(r, &why);
    }
    if (r->state != RECEIVING_ABORT) {
        return;
    }
    if (r->tainted != 0 && r->tainted != pid && r->options.target->taint != NULL) {
        r->options.target->taint(r->options.target_ctx, r->version, pid);
    } else {
        r->tainted = pid;
    }
}

void receiving_settle(struct corral_push_receiver *r)
{
    for (uint32_t i = 0; i < CONNS_MAX && r->state == RECEIVING_ABORT; i++) {
        const struct push_conn *c = r->conn[i];
        if (c != NULL && c->prepared && c->worker != NULL) {
            return;
        }
    }
    if (r->state != RECEIVING_ABORT) {
        return;
    }
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        if (r->conn[i] != NULL) {
            r->conn[i]->prepared = r->conn[i]->placed = false;
        }
    }
    close_base(r);
    r->options.target->abort(r->options.target_ctx, r->version, r->tainted);
    r->tainted = 0;
    pthread_mutex_lock(&r->status_lock);
    r->status.aborted++;
    pthread_mutex_unlock(&r->status_lock);
    receiving_over(r);
}

void receiving_pull_begins(struct corral_push_receiver *r)
{
    receiving_enter(r, RECEIVING_PULL);
}

void receiving_over(struct corral_push_receiver *r)
{
    receiving_enter(r, RECEIVING_NONE);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->state == CONN_READY && c->waiting) {
            struct corral_error err = {0};
            c->waiting = false;
            if (receiving_prepare(r, c, c->version, &c->prepare, &err) != CORRAL_OK) {
                conn_drop(r, c, &err);
            }
        }
    }
}

void receiving_lost(struct corral_push_receiver *r, struct push_conn *c, const struct corral_error *why)
{
    struct corral_error told = *why;
    corral_error_prefix(&told, why->status, "rank %u was lost", c->hello.rank);
    if (!c->prepared) {
        return;
    }
    if (r->state == RECEIVING_GATHER) {
        c->prepared = false;
        receiving_give_up(r, c->hello.rank, &told);
        return;
    }
    if (c->hello.leader || (r->state == RECEIVING_DATA && !r->complete[c->hello.rank])) {
        receiving_abort(r, &told);
    }
}

/* ---- getting on ---- */

static void applied(struct corral_push_receiver *r, struct corral_digest digest, uint64_t flip_ns)
{
    uint8_t payload[24];
    uint64_t version = r->version;
    wire_put_digest(payload, digest);
    wire_put_u64(payload + 16, flip_ns);
    receiving_enter(r, RECEIVING_NONE);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->prepared) {
            c->prepared = c->placed = false;
            if (conn_is_member(c)) {
                conn_send(r, c, PUSH_APPLIED, version, payload, sizeof payload);
            }
        }
    }
}

static void stage_when_complete(struct corral_push_receiver *r)
{
    for (uint32_t rank = 0; rank < r->options.plan->sources; rank++) {
        if (!r->complete[rank]) {
            return;
        }
    }
    r->digest = push_version_digest(r->options.plan, r->options.rank, r->link_digest);
    struct push_conn *to = leader(r);
    if (to == NULL || !to->prepared) {
        return; /* lost: the version is being aborted */
    }
    uint8_t payload[PUSH_STAGED_BYTES] = {0};
    wire_put_digest(payload, r->digest);
    wire_put_u64(payload + 16, r->last_ns - r->first_ns);
    wire_put_u64(payload + 24, r->hash_ns);
    wire_put_u64(payload + 32, r->skew_ns);
    wire_put_u32(payload + 40, r->slow_rank);
    receiving_enter(r, RECEIVING_STAGED);
    conn_send(r, to, PUSH_STAGED, r->version, payload, sizeof payload);
}

void receiving_complete(struct corral_push_receiver *r, struct push_conn *c)
{
    if (r->state != RECEIVING_DATA || !c->prepared) {
        return;
    }
    struct worker *w = c->worker;
    uint32_t rank = c->hello.rank;
    pthread_mutex_lock(&w->lock);
    r->link_digest[rank] = w->digest;
    r->first_ns = CORRAL_MIN(r->first_ns, w->first_ns);
    r->last_ns = CORRAL_MAX(r->last_ns, w->last_ns);
    r->hash_ns = CORRAL_MAX(r->hash_ns, w->hash_ns);
    pthread_mutex_unlock(&w->lock);
    r->complete[rank] = true;
    stage_when_complete(r);
}

/* Deltas only when every rank that has bytes sends them, on what is current here; the base stays open as long as the version is under way. */
static bool may_have_deltas(const struct corral_push_receiver *r, uint64_t current,
                            struct corral_digest digest)
{
    bool all = current != 0 && r->version > current && r->options.target->source_open != NULL;
    for (uint32_t rank = 0; rank < r->options.plan->sources && all; rank++) {
        const struct push_conn *c = member(r, rank);
        all = r->link[rank]->buckets == 0 || (c != NULL && c->prepare.base == current &&
                                              corral_digest_equal(c->prepare.base_digest, digest));
    }
    return all;
}

static void open_base(struct corral_push_receiver *r, uint64_t current, struct corral_digest digest)
{
    struct corral_error why = {0};
    r->base = 0;
    r->whole_for -= r->whole_for > 0;
    if (r->whole_for > 0 || !may_have_deltas(r, current, digest)) {
        return;
    }
    if (r->options.target->source_open(r->options.target_ctx, &r->from, &why) != CORRAL_OK) {
        corral_log_debug("no base for weight deltas, whole buckets are asked for",
                         LOG_STR("receiver", r->name), LOG_U64("version", r->version), LOG_ERR(&why));
        return;
    }
    r->base = current;
    if (r->from.version != current || !corral_digest_equal(r->from.digest, digest) ||
        r->from.shard.ops->fetch == NULL) {
        close_base(r);
    }
}

/* Every rank has PREPAREd: open the shadow and the lanes. */
void receiving_begin(struct corral_push_receiver *r)
{
    const struct push_conn *first = leader(r);
    uint64_t current = 0;
    struct corral_digest digest = {0}, none = {0};
    struct corral_error why = {0};
    r->options.target->current(r->options.target_ctx, &current, &digest);
    if (r->version == current && first != NULL && !corral_digest_equal(first->prepare.known, none) &&
        corral_digest_equal(first->prepare.known, digest)) {
        applied(r, digest, 0);
        return;
    }
    open_base(r, current, digest);
    if (r->options.target->begin(r->options.target_ctx, r->version, r->base, &r->shadow, &why) != CORRAL_OK) {
        close_base(r);
        receiving_give_up(r, PUSH_NO_RANK, &why);
        return;
    }
    r->first_ns = UINT64_MAX;
    r->last_ns = r->hash_ns = 0;
    receiving_enter(r, RECEIVING_DATA);
    for (uint32_t rank = 0; rank < r->options.plan->sources; rank++) {
        const struct corral_link *link = r->link[rank];
        r->complete[rank] = link->buckets == 0;
        if (link->buckets == 0) {
            r->link_digest[rank] = push_link_digest(link, NULL);
        }
        struct push_conn *c = member(r, rank);
        if (link->buckets > 0 && c != NULL && c->worker != NULL) {
            worker_begin(c->worker, c->prepare.push, &r->shadow, r->base != 0 ? &r->from : NULL, r->version);
        }
    }
    stage_when_complete(r);
}

static void note_applied(struct corral_push_receiver *r, uint64_t flip_ns)
{
    pthread_mutex_lock(&r->status_lock);
    struct corral_push_receiver_status *s = &r->status;
    s->version = r->version;
    s->digest = r->digest;
    s->wire_ns = r->last_ns > r->first_ns ? r->last_ns - r->first_ns : 0;
    s->apply_ns = r->hash_ns;
    s->flip_ns = flip_ns;
    s->bytes = r->options.plan->received[r->options.rank];
    s->lane[0] = '\0';
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        const struct push_conn *c = r->conn[i];
        if (c == NULL || !c->prepared || c->worker == NULL ||
            push_lane_listed(s->lane, c->worker->ops->name)) {
            continue;
        }
        size_t n = strlen(s->lane);
        snprintf(s->lane + n, sizeof s->lane - n, "%s%s", n > 0 ? "," : "", c->worker->ops->name);
    }
    pthread_mutex_unlock(&r->status_lock);
}

enum corral_status receiving_commit(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                                    struct corral_digest digest, struct corral_error *err)
{
    if (r->state != RECEIVING_STAGED || !c->prepared || !c->hello.leader || version != r->version ||
        !corral_digest_equal(digest, r->digest)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "COMMIT of version %" PRIu64 " by rank %u, which is not what is staged", version,
                           c->hello.rank);
    }
    struct corral_error why = {0};
    uint64_t start = push_now_ns();
    close_base(r);
    if (r->options.target->commit(r->options.target_ctx, version, digest, &why) != CORRAL_OK) {
        r->options.target->abort(r->options.target_ctx, version, 0);
        pthread_mutex_lock(&r->status_lock);
        r->status.aborted++;
        pthread_mutex_unlock(&r->status_lock);
        receiving_give_up(r, PUSH_NO_RANK, &why); /* every lane has ended well */
        return CORRAL_OK;
    }
    uint64_t flip_ns = push_now_ns() - start;
    note_applied(r, flip_ns);
    applied(r, digest, flip_ns);
    return CORRAL_OK;
}

/* ---- deadlines ---- */

static uint64_t conn_deadline(const struct corral_push_receiver *r, struct push_conn *c)
{
    if (c->state < CONN_LANE) {
        return c->heard_ns + LOGIN_NS;
    }
    if (r->state != RECEIVING_DATA || !c->prepared || r->complete[c->hello.rank] ||
        c->state == CONN_CLOSING) {
        return UINT64_MAX;
    }
    pthread_mutex_lock(&c->worker->lock);
    uint64_t heard = CORRAL_MAX(c->heard_ns, c->worker->heard_ns);
    pthread_mutex_unlock(&c->worker->lock);
    return heard + r->options.silence_ns;
}

static void give_up_late(struct corral_push_receiver *r)
{
    struct corral_error why = {0};
    if (r->state == RECEIVING_GATHER) {
        uint32_t absent = receiving_missing(r, true);
        corral_fail(&why, CORRAL_TIMEOUT,
                    "rank %u has not begun version %" PRIu64 " within %" PRIu64 " ms of the first", absent,
                    r->version, (push_now_ns() - r->begun_ns) / CORRAL_NS_PER_MS);
        r->late_version = r->version;
        receiving_give_up(r, absent, &why);
    } else {
        corral_fail(&why, CORRAL_TIMEOUT, "no COMMIT of version %" PRIu64 " within %" PRIu64 " ms",
                    r->version, r->options.silence_ns / CORRAL_NS_PER_MS);
        receiving_abort(r, &why);
    }
}

uint64_t receiving_tick(struct corral_push_receiver *r, uint64_t now)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        uint64_t deadline = c == NULL ? UINT64_MAX : conn_deadline(r, c);
        if (now >= deadline) {
            struct corral_error why = {0};
            corral_fail(&why, CORRAL_TIMEOUT, "rank %u fell silent in the middle of %s", c->hello.rank,
                        c->state < CONN_LANE ? "its login" : "a version");
            conn_drop(r, c, &why);
            deadline = now;
        }
        next = CORRAL_MIN(next, deadline);
    }
    if (r->state == RECEIVING_GATHER || r->state == RECEIVING_STAGED) {
        uint64_t until =
            r->state == RECEIVING_GATHER ? r->gather_until_ns : r->moved_ns + r->options.silence_ns;
        if (now >= until) {
            give_up_late(r);
        }
        next = CORRAL_MIN(next, until);
    }
    return next;
}
