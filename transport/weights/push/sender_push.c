/* The loop that drives a sender's receivers through one version: who takes part, who is waited for, when the leader commits. */
#include "transport/weights/push/sender_internal.h"

#include "base/log.h"
#include <inttypes.h>
#include <poll.h>
#include <string.h>

#define LOOK_NS (100 * CORRAL_NS_PER_MS) /* no wait is longer: deadlines of single receivers are looked at */
#define LINGER_NS \
    (50 *         \
     CORRAL_NS_PER_MS) /* so long a push that is over waits for the next step of a login in its background */
#define LANE_LOOK_NS (CORRAL_NS_PER_MS / 2) /* for lanes without a descriptor */

/* ---- the loop ---- */

/* Waits up to `timeout_ns` for any of them, then moves each on. True: something moved. */
static bool turn(struct corral_push_sender *s, uint64_t timeout_ns)
{
    struct pollfd fds[2 * CORRAL_PUSH_RECEIVERS_MAX];
    for (uint32_t i = 0; i < s->peers; i++) {
        const struct push_peer *p = s->peer[i];
        bool connecting = p->state == PEER_CONNECT, lane = p->state == PEER_SEND;
        short events = (short)(connecting ? POLLOUT : POLLIN | (p->io.out_to > 0 ? POLLOUT : 0));
        fds[2 * i] = (struct pollfd){.fd = p->state == PEER_OUT ? -1 : p->io.fd, .events = events};
        fds[2 * i + 1] = (struct pollfd){.fd = lane ? p->lane->fd : -1, .events = POLLIN};
        if (lane && p->lane->fd < 0) {
            timeout_ns = CORRAL_MIN(timeout_ns, LANE_LOOK_NS);
        }
    }
    struct timespec t = {.tv_sec = (time_t)(timeout_ns / CORRAL_NS_PER_S),
                         .tv_nsec = (long)(timeout_ns % CORRAL_NS_PER_S)};
    if (ppoll(fds, 2 * s->peers, &t, NULL) < 0) {
        return false;
    }
    bool moved = false;
    for (uint32_t i = 0; i < s->peers; i++) {
        moved = peer_advance(s, s->peer[i], fds[2 * i].revents) || moved;
    }
    return moved;
}

static bool live(const struct push_peer *p)
{
    return p->state == PEER_READY || p->fresh;
}

static bool mates(const struct push_peer *a, const struct push_peer *b)
{
    return a != b && a->replica[0] != '\0' && strcmp(a->replica, b->replica) == 0;
}

/* With all of its replica. */
static bool whole_and_live(const struct corral_push_sender *s, const struct push_peer *p)
{
    bool all = live(p);
    for (uint32_t i = 0; i < s->peers && all; i++) {
        all = !mates(p, s->peer[i]) || live(s->peer[i]);
    }
    return all;
}

/* Who this push waits for. A receiver that was dropped is connected in its background, unless there is no other that can take part. */
static void choose(struct corral_push_sender *s)
{
    bool any = false;
    for (uint32_t i = 0; i < s->peers && !any; i++) {
        any = whole_and_live(s, s->peer[i]);
    }
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        p->outcome = OUTCOME_NONE;
        p->resent = 0;
        p->moved = 0;
        p->skew_ns = 0;
        p->slow_rank = PUSH_NO_RANK;
        p->waited = live(p) || !any;
    }
}

/* A replica of which a part is not to be had does not begin. */
static bool mate_missing(const struct corral_push_sender *s, const struct push_peer *p)
{
    for (uint32_t i = 0; i < s->peers; i++) {
        const struct push_peer *m = s->peer[i];
        if (mates(p, m) && !m->waited && m->has != s->version) {
            return true;
        }
    }
    return false;
}

static void begin_all(struct corral_push_sender *s)
{
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        struct corral_error why = {0};
        if (p->waited && s->options.leader && mate_missing(s, p)) {
            p->waited = false;
            corral_fail(&s->error, CORRAL_PEER, "%s: another shard of replica %s is not connected", p->name,
                        p->replica);
            if (p->state == PEER_READY &&
                peer_queue(s, p, PUSH_PASS, s->version, NULL, 0, &why) != CORRAL_OK) {
                peer_drop(s, p, true, &why);
            }
        } else if (p->state == PEER_READY && p->waited) {
            peer_begin(s, p);
        }
        if (p->state == PEER_OUT && p->outcome != OUTCOME_FAILED &&
            (p->waited || s->start_ns >= p->retry_ns)) {
            peer_connect(s, p);
        }
    }
}

static bool under_way(const struct push_peer *p)
{
    return p->outcome == OUTCOME_UNDER_WAY || (p->waited && p->outcome == OUTCOME_NONE);
}

static void drop_late(struct corral_push_sender *s, struct push_peer *p, const char *what)
{
    struct corral_error why = {0};
    corral_fail(&why, CORRAL_TIMEOUT, "did not %s within %" PRIu64 " ms", what,
                (push_now_ns() - s->start_ns) / CORRAL_NS_PER_MS);
    peer_drop(s, p, true, &why);
}

/* Parts of a replica whose other part has failed are given up with it. */
static void fail_mates(struct corral_push_sender *s)
{
    for (uint32_t i = 0; i < s->peers; i++) {
        for (uint32_t k = 0; k < s->peers; k++) {
            struct push_peer *p = s->peer[i], *m = s->peer[k];
            if (mates(p, m) && m->outcome == OUTCOME_FAILED && p->outcome == OUTCOME_UNDER_WAY &&
                p->state < PEER_COMMIT) {
                struct corral_error why = {0};
                corral_fail(&why, CORRAL_STATE, "%s, a part of the same replica %s, has failed", m->name,
                            p->replica);
                peer_drop(s, p, false, &why);
            }
        }
    }
}

/* The whole replica has staged, or has it already. */
static bool replica_staged(const struct corral_push_sender *s, const struct push_peer *p)
{
    for (uint32_t i = 0; i < s->peers; i++) {
        const struct push_peer *m = s->peer[i];
        if (mates(p, m) && m->has != s->version && m->state < PEER_STAGED) {
            return false;
        }
    }
    return true;
}

/* Leader: a replica that has staged commits; it does not wait for others, which may be slow or dead. */
static void decide(struct corral_push_sender *s, uint64_t now)
{
    bool late = !s->catching && now >= sender_patience_end(s);
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        if (late && under_way(p) && p->state < PEER_STAGED) {
            drop_late(s, p, p->state < PEER_READY ? "log in" : "stage the weights");
        }
    }
    fail_mates(s);
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        struct corral_error why = {0};
        if (p->state == PEER_STAGED && replica_staged(s, p) && peer_commit(s, p, &why) != CORRAL_OK) {
            peer_drop(s, p, true, &why);
        }
    }
}

/* Connections that do not come about are begun again; while catching up, so are those that broke. */
static void tend(struct corral_push_sender *s, uint64_t now)
{
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        if (p->state > PEER_OUT && p->state < PEER_READING && now - p->step_ns > s->options.deadline_ns) {
            drop_late(s, p, "log in");
        }
        if (s->catching && peer_in_version(p) && now - p->moved_ns > s->options.deadline_ns) {
            p->waited = true;
            drop_late(s, p, "move");
        }
        if (s->catching && p->waited && p->state == PEER_OUT && now >= p->retry_ns) {
            p->outcome = OUTCOME_NONE;
            peer_connect(s, p);
        }
    }
}

static bool finished(const struct corral_push_sender *s)
{
    for (uint32_t i = 0; i < s->peers; i++) {
        const struct push_peer *p = s->peer[i];
        if (under_way(p) || (s->catching && p->waited && p->state == PEER_OUT)) {
            return false;
        }
    }
    return true;
}

static bool logging_in(const struct corral_push_sender *s, uint64_t now)
{
    bool any = false;
    for (uint32_t i = 0; i < s->peers && !any; i++) {
        const struct push_peer *p = s->peer[i];
        any = p->state > PEER_OUT && p->state < PEER_READY && now - p->step_ns < LINGER_NS;
    }
    return any;
}

/* Nothing moves between pushes, and a login takes some round trips: without this, one that is longer than a push would never end. */
static void linger(struct corral_push_sender *s)
{
    for (uint64_t now = push_now_ns(); now < s->deadline_ns && logging_in(s, now); now = push_now_ns()) {
        (void)turn(s, CORRAL_MIN(LINGER_NS / 4, s->deadline_ns - now));
    }
}

/* At least one turn, however little time there is. */
static void drive(struct corral_push_sender *s)
{
    for (bool moved = true, turned = false;; turned = true) {
        uint64_t now = push_now_ns();
        tend(s, now);
        if (s->options.leader) {
            decide(s, now);
        }
        if (finished(s) || (turned && now >= s->deadline_ns)) {
            break;
        }
        moved = turn(s, moved || now >= s->deadline_ns ? 0 : CORRAL_MIN(LOOK_NS, s->deadline_ns - now));
    }
    if (s->catching) {
        return; /* what is under way goes on in the next call */
    }
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        if (peer_in_version(p) || (under_way(p) && p->state != PEER_OUT)) {
            drop_late(s, p,
                      p->state == PEER_COMMIT ? "apply the weights"
                      : p->state < PEER_READY ? "log in"
                                              : "take the weights");
        }
    }
    linger(s);
}

static void sum_up(struct corral_push_sender *s, struct corral_push_result *out)
{
    struct corral_push_result r = {.version = s->version, .receivers = s->peers, .slow_rank = PUSH_NO_RANK};
    uint32_t lowest = UINT32_MAX;
    for (uint32_t i = 0; i < s->peers; i++) {
        const struct push_peer *p = s->peer[i];
        r.resent_buckets += p->resent;
        r.moved += p->moved;
        if (p->slow_rank != PUSH_NO_RANK && p->skew_ns >= r.skew_ns) {
            r.skew_ns = p->skew_ns;
            r.slow_rank = p->slow_rank;
        }
        r.deltas += p->outcome == OUTCOME_APPLIED && p->deltas;
        if (p->outcome != OUTCOME_APPLIED) {
            r.dropped += p->has != s->version;
            r.applied += p->has == s->version;
            continue;
        }
        r.applied++;
        r.bytes += p->next == p->cut->link->buckets ? p->cut->link->bytes : 0;
        r.gather_ns = CORRAL_MAX(r.gather_ns, p->gather_ns);
        r.pack_ns = CORRAL_MAX(r.pack_ns, p->pack_ns);
        r.wire_ns = CORRAL_MAX(r.wire_ns, p->taken_ns - p->first_ns);
        if (s->options.leader && p->staged_ns >= p->taken_ns && p->commit_ns >= p->staged_ns) {
            r.stage_ns = CORRAL_MAX(r.stage_ns, p->staged_ns - p->taken_ns);
            r.commit_ns = CORRAL_MAX(r.commit_ns, p->applied_ns - p->commit_ns);
        }
        r.pause_ns = CORRAL_MAX(r.pause_ns, p->pause_ns);
        if (s->options.leader && p->rank < lowest) {
            lowest = p->rank;
            r.digest = p->digest;
        }
    }
    *out = r;
}

static void run(struct corral_push_sender *s, uint64_t version, uint64_t base, struct corral_shard *source,
                uint64_t deadline_ns, struct corral_push_result *result)
{
    s->deadline_ns = push_now_ns() + CORRAL_MIN(deadline_ns, PUSH_NS_MAX);
    while (turn(s, 0)) { /* what has come since the last push */
        if (push_now_ns() >= s->deadline_ns) {
            break;
        }
    }
    s->version = version;
    s->base = base;
    s->source = *source;
    s->start_ns = push_now_ns();
    s->error = (struct corral_error){0};
    for (uint32_t i = 0; i < s->cuts; i++) {
        memset(s->cut[i]->known, 0, s->cut[i]->link->buckets * sizeof *s->cut[i]->known);
        s->cut[i]->staged = 0;
        if (s->cut[i]->base != NULL) {
            corral_base_begin(s->cut[i]->base, version);
        }
    }
    sender_ask_for_bases(s);
    choose(s);
    begin_all(s);
    drive(s);
    s->last = version;
    sum_up(s, result);
    sender_keep_bases(s);
    result->memory = push_account_total(&s->account);
}

static enum corral_status check_push(const struct corral_push_sender *s, uint64_t version,
                                     const struct corral_shard *source, struct corral_error *err)
{
    if (version == 0 || version < s->last) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " after %" PRIu64 ": versions only grow", version,
                           s->last);
    }
    for (uint32_t i = 0; i < s->cuts; i++) {
        if (s->cut[i]->link->source_extent > source->bytes) {
            return corral_fail(err, CORRAL_INVALID,
                               "rank %u's shard has %" PRIu64 " bytes; the plan reads %" PRIu64,
                               s->options.rank, source->bytes, s->cut[i]->link->source_extent);
        }
    }
    return CORRAL_OK;
}

/* What was still under way to receivers that had missed the version before. */
static void give_up_catching(struct corral_push_sender *s, uint64_t version)
{
    struct corral_error why = {0};
    corral_fail(&why, CORRAL_STATE, "version %" PRIu64 " is pushed now", version);
    s->catching = false;
    for (uint32_t i = 0; i < s->peers; i++) {
        if (peer_in_version(s->peer[i])) {
            peer_drop(s, s->peer[i], false, &why);
        }
    }
}

enum corral_status corral_push_sender_push(struct corral_push_sender *s, uint64_t version, uint64_t base,
                                           struct corral_shard *source, struct corral_push_result *result,
                                           struct corral_error *err)
{
    CORRAL_TRY(check_push(s, version, source, err));
    struct corral_push_result r = {0};
    s->catching = false;
    give_up_catching(s, version);
    for (uint32_t i = 0; i < s->peers; i++) {
        s->peer[i]->has = 0; /* the same number may stand for other bytes now: the receiver will say */
    }
    run(s, version, base, source, s->options.deadline_ns, &r);
    if (result != NULL) {
        *result = r;
    }
    if (s->options.leader && r.applied == 0) {
        return corral_fail(err, CORRAL_PEER, "no receiver has applied weight version %" PRIu64 ": %s",
                           version, s->peers == 0 ? "there is none" : s->error.text);
    }
    return CORRAL_OK;
}

/* Something is under way from an earlier call. */
static bool moving(const struct corral_push_sender *s)
{
    bool any = false;
    for (uint32_t i = 0; i < s->peers && !any; i++) {
        any = peer_in_version(s->peer[i]);
    }
    return any;
}

enum corral_status corral_push_sender_catch_up(struct corral_push_sender *s, uint64_t version,
                                               struct corral_shard *source, uint64_t timeout_ns,
                                               struct corral_push_result *result, struct corral_error *err)
{
    CORRAL_TRY(check_push(s, version, source, err));
    if (version != s->last) {
        return corral_fail(err, CORRAL_INVALID, "version %" PRIu64 " is not the one pushed last, %" PRIu64,
                           version, s->last);
    }
    struct corral_push_result r = {0};
    bool begun = s->catching;
    s->catching = true;
    s->version = version;
    s->base = 0;
    if (!moving(s)) { /* lanes' threads read it otherwise */
        s->source = *source;
    }
    s->start_ns = push_now_ns();
    s->deadline_ns = s->start_ns + CORRAL_MIN(timeout_ns, PUSH_NS_MAX);
    for (uint32_t i = 0; i < s->peers; i++) {
        struct push_peer *p = s->peer[i];
        p->waited = p->has != version && p->refused != version;
        if (!begun || !peer_in_version(p)) {
            p->outcome = OUTCOME_NONE;
            p->resent = 0;
        }
    }
    begin_all(s);
    drive(s);
    sum_up(s, &r);
    sender_keep_bases(s);
    if (result != NULL) {
        *result = r;
    }
    return CORRAL_OK;
}
