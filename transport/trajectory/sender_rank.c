#include "base/clock.h"
#include "transport/trajectory/sender_private.h"
#include <stdio.h>
#include <string.h>

#define ASK_AGAIN_NS \
    CORRAL_NS_PER_S /* silence after which an unanswered hello or a pending record is asked about */

static bool send_message(struct corral_traj_sender *s, struct corral_traj_rank *r,
                         struct corral_traj_message *m)
{
    const void *data;
    size_t bytes;
    m->session = r->session;
    corral_traj_encode(s->writer, m);
    return corral_mpack_finish(s->writer, &data, &bytes, NULL) == CORRAL_OK &&
           r->carrier->send(r, data, bytes);
}

void corral_traj_rank_want(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t cost)
{
    uint64_t limit = r->offset + cost;
    struct corral_traj_message m = {.type = CORRAL_TRAJ_WANT, .bytes = limit};
    if (r->wanted != limit && send_message(s, r, &m)) {
        r->wanted = limit;
    }
}

/* ---- parcels ---- */

static uint64_t last_of(const struct corral_traj_parcel *p)
{
    return p->first + p->count - 1;
}

static uint64_t cost_of(const struct corral_traj_parcel *p)
{
    return p->bytes + p->count * (uint64_t)CORRAL_TRAJ_ITEM_BYTES;
}

/* What sending it takes from the credit: records sent before in this session, or received before it, have theirs. *fitting: how many records can go within `credit`; *next: what the one
 * after these takes. */
static uint64_t cost_to_send(const struct corral_traj_rank *r, struct corral_traj_parcel *p, uint64_t credit,
                             uint32_t *fitting, uint64_t *next)
{
    *fitting = p->count;
    *next = 0;
    if (last_of(p) <= r->counted) {
        return 0;
    }
    if (p->first > r->counted && cost_of(p) <= credit) {
        return cost_of(p);
    }
    uint64_t cost = 0, at = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        uint64_t bytes = corral_traj_record_size(corral_traj_parcel_records(p) + at);
        uint64_t one = p->first + i > r->counted ? corral_traj_cost(bytes) : 0;
        if (one > credit - cost) {
            *fitting = i;
            *next = one;
            break;
        }
        cost += one;
        at += bytes;
    }
    return cost;
}

static void remember_last(struct corral_traj_rank *r, struct corral_traj_parcel *p)
{
    corral_traj_block_ref(p->block);
    if (r->last != NULL) {
        corral_traj_block_unref(r->last->block);
    }
    r->last = p;
}

static bool send_parcel(struct corral_traj_sender *s, struct corral_traj_rank *r,
                        struct corral_traj_parcel *p)
{
    bool again = p->session != 0;
    if (p->session != r->session) {
        /* The header names the session. While the carrier still holds the one of an earlier session it can't be rewritten. */
        if (!corral_traj_parcel_free(p)) {
            return false;
        }
        struct corral_traj_batch *b = corral_traj_parcel_header(p);
        b->session = r->session;
        b->bytes = p->bytes;
        b->count = p->count;
    }
    if (!r->carrier->send_parcel(r, p)) {
        return false;
    }
    remember_last(r, p);
    p->session = r->session;
    s->stats.sent += p->count;
    s->stats.resent += again ? p->count : 0;
    s->stats.batches++;
    s->stats.bytes += p->bytes;
    return true;
}

void corral_traj_rank_pump(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    while (r->state == CORRAL_TRAJ_RANK_LIVE && r->unsent != NULL) {
        struct corral_traj_parcel *p = r->unsent;
        uint32_t fitting;
        uint64_t next, cost = cost_to_send(r, p, r->limit - r->offset, &fitting, &next);
        /* What does not fit any more (the credit of an earlier session was larger) goes record by record: the receiver may wait for the very first of them. */
        if (fitting < p->count &&
            (fitting == 0 || !corral_traj_parcel_free(p) || p->first + fitting - 1 <= r->counted ||
             corral_traj_parcel_split(s, r, p, fitting, NULL) != CORRAL_OK)) {
            if (fitting == 0 || p->first + fitting - 1 <= r->counted) {
                corral_traj_rank_want(s, r, next);
            }
            return;
        }
        if (!send_parcel(s, r, p)) {
            return;
        }
        r->offset += cost;
        r->counted = CORRAL_MAX(r->counted, last_of(p));
        r->unsent = p->next;
    }
}

static void drop_head(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    struct corral_traj_parcel *p = r->head;
    r->head = p->next;
    r->tail = r->head != NULL ? r->tail : NULL;
    r->unsent = r->unsent == p ? p->next : r->unsent;
    corral_traj_block_unref(p->block);
    (void)s;
}

static void release_cost(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t cost)
{
    r->unacked_bytes -= cost;
    s->stats.unacked_bytes -= cost;
}

void corral_traj_rank_acknowledge(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t acked)
{
    acked = CORRAL_MIN(acked, r->last_sequence);
    if (acked <= r->acked_sequence) {
        return;
    }
    if (r->ring != NULL) { /* there are no parcels */
        s->stats.acked += acked - r->acked_sequence;
        r->acked_sequence = acked;
        return;
    }
    for (struct corral_traj_parcel *p = r->head; p != NULL && p->first <= acked; p = r->head) {
        uint64_t from = CORRAL_MAX(p->first, r->acked_sequence + 1), to = CORRAL_MIN(last_of(p), acked);
        if (from > to) {
            break; /* only what comes after `acked` is left of it */
        }
        if (to == last_of(p)) {
            release_cost(s, r, p->bytes - p->acked_bytes + (to - from + 1) * CORRAL_TRAJ_ITEM_BYTES);
            drop_head(s, r);
        } else {
            for (uint64_t i = from; i <= to; i++) {
                uint64_t bytes = corral_traj_record_size(corral_traj_parcel_records(p) + p->acked_bytes);
                p->acked_bytes += bytes;
                release_cost(s, r, corral_traj_cost(bytes));
            }
        }
        s->stats.acked += to - from + 1;
        r->acked_sequence = to;
    }
}

void corral_traj_rank_drop(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    while (r->head != NULL) {
        release_cost(s, r, corral_traj_cost(r->head->bytes));
        drop_head(s, r);
    }
}

void corral_traj_rank_free(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    corral_traj_ring_free(s, r);
    while (r->head != NULL) {
        drop_head(s, r);
    }
    if (r->open != NULL) {
        corral_traj_block_unref(r->open->block);
    }
    if (r->alone != NULL) {
        corral_traj_block_unref(r->alone);
    }
    if (r->chunk != NULL) {
        corral_traj_block_unref(r->chunk);
    }
    if (r->last != NULL) {
        corral_traj_block_unref(r->last->block);
    }
}

/* What has been trained on or dropped: without a log the same as what is acknowledged. */
static void note_finished(struct corral_traj_rank *r, const struct corral_traj_message *m)
{
    r->finished_sequence = CORRAL_MAX(r->finished_sequence, CORRAL_MIN(m->finished, r->last_sequence));
    r->older = m->older;
}

/* ---- sessions ---- */

void corral_traj_rank_greet(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    r->session++;
    r->state = CORRAL_TRAJ_RANK_GREETING;
    r->offset = r->limit = r->wanted = 0;
    r->reclaim_due = false;
    corral_traj_gather_seal(r);
    if (r->ring != NULL && !corral_traj_ring_call(s, r, now)) {
        return;
    }
    struct corral_traj_message m = {
        .type = CORRAL_TRAJ_HELLO,
        .protocol = CORRAL_TRAJ_PROTOCOL,
        .run = s->run,
        .worker = s->worker,
        .epoch = s->epoch,
        .first = r->acked_sequence + 1,
    };
    memcpy(m.token, s->token, sizeof m.token);
    if (send_message(s, r, &m)) {
        r->state = CORRAL_TRAJ_RANK_WAITING;
        r->asked_ns = now;
    }
}

static void seek(struct corral_traj_rank *r, uint64_t sequence)
{
    struct corral_traj_parcel *p = r->head;
    while (p != NULL && last_of(p) < sequence) {
        p = p->next;
    }
    r->unsent = p;
}

static void on_welcome(struct corral_traj_sender *s, struct corral_traj_rank *r,
                       const struct corral_traj_message *m)
{
    if (r->state != CORRAL_TRAJ_RANK_WAITING) {
        return;
    }
    if (m->received > r->last_sequence || m->acked > m->received) {
        /* Going on would get new records dropped as duplicates. */
        snprintf(r->reason, sizeof r->reason,
                 "it has seen later records of epoch %u: the epoch was used before", s->epoch);
        r->state = CORRAL_TRAJ_RANK_REFUSED;
        return;
    }
    corral_traj_rank_acknowledge(s, r, m->acked);
    note_finished(r, m);
    if (r->ring != NULL && !r->answered && !corral_traj_ring_leave(s, r)) {
        return; /* another hello follows */
    }
    seek(r, m->received + 1);
    r->counted = m->received;
    r->limit = m->bytes;
    r->buffer = m->buffer;
    r->state = CORRAL_TRAJ_RANK_LIVE;
    r->welcomed = true;
}

/* Give idle credit back; not what was granted for a record that is about to be sent, unless it is not sent for long. */
static void answer_reclaim(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    if (r->offset < r->wanted && r->wanted <= r->limit && now - r->reclaimed_ns < ASK_AGAIN_NS) {
        return;
    }
    struct corral_traj_message answer = {.type = CORRAL_TRAJ_LIMIT, .bytes = r->offset};
    r->limit = r->offset;
    r->wanted = 0;
    r->reclaim_due = !send_message(s, r, &answer);
}

static void handle(struct corral_traj_sender *s, struct corral_traj_rank *r,
                   const struct corral_traj_message *m, uint64_t now)
{
    if (m->session != r->session) {
        return; /* about a session that is over */
    }
    r->heard_ns = now;
    if (m->type == CORRAL_TRAJ_WELCOME) {
        on_welcome(s, r, m);
    } else if (m->type == CORRAL_TRAJ_REFUSED) {
        r->state = CORRAL_TRAJ_RANK_REFUSED;
        memcpy(r->reason, m->reason, sizeof r->reason);
    } else if (m->type == CORRAL_TRAJ_REHELLO) {
        corral_traj_rank_greet(s, r, now);
    } else if (r->state == CORRAL_TRAJ_RANK_LIVE && m->type == CORRAL_TRAJ_CREDIT) {
        corral_traj_rank_acknowledge(s, r, m->acked);
        note_finished(r, m);
        r->limit = CORRAL_MAX(r->limit, m->bytes);
    } else if (r->state == CORRAL_TRAJ_RANK_LIVE && m->type == CORRAL_TRAJ_RESEND) {
        seek(r, m->sequence);
    } else if (r->state == CORRAL_TRAJ_RANK_LIVE && m->type == CORRAL_TRAJ_RECLAIM) {
        r->reclaim_due = true;
        r->reclaimed_ns = now;
    }
}

bool corral_traj_rank_drain(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    bool any = false;
    uint8_t frame[CORRAL_TRAJ_CONTROL_BYTES_MAX];
    for (size_t bytes; r->carrier->receive(r, frame, sizeof frame, &bytes); any = true) {
        struct corral_traj_message m;
        /* What does not parse is not the receiver's: it is ignored, and silence is asked about in corral_traj_rank_service(). */
        if (bytes > 0 && corral_traj_decode(frame, bytes, &m, NULL) == CORRAL_OK) {
            handle(s, r, &m, now);
        }
    }
    return any;
}

void corral_traj_rank_service(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    if (r->ring != NULL) {
        if (r->state == CORRAL_TRAJ_RANK_CALLING) {
            corral_traj_ring_hear(s, r, now);
        }
        corral_traj_ring_settle(s, r);
        if (r->state == CORRAL_TRAJ_RANK_LIVE && corral_traj_ring_lost(r, now)) {
            corral_traj_rank_greet(s, r, now);
        }
    }
    if (r->state == CORRAL_TRAJ_RANK_GREETING ||
        (r->state == CORRAL_TRAJ_RANK_WAITING && now - r->asked_ns > ASK_AGAIN_NS)) {
        corral_traj_rank_greet(s, r, now);
    }
    if (r->state == CORRAL_TRAJ_RANK_LIVE) {
        corral_traj_gather_seal(r);
    }
    corral_traj_rank_pump(s, r);
    if (r->state == CORRAL_TRAJ_RANK_LIVE && r->reclaim_due) {
        answer_reclaim(s, r, now);
    }
    bool pending =
        r->head != NULL || r->wanted > r->limit || r->finished_sequence < r->last_sequence || r->older > 0;
    if (r->state == CORRAL_TRAJ_RANK_LIVE && pending && now - r->heard_ns > ASK_AGAIN_NS &&
        now - r->asked_ns > ASK_AGAIN_NS) {
        struct corral_traj_message ping = {.type = CORRAL_TRAJ_PING};
        r->asked_ns = now;
        r->wanted = 0; /* ask for the same credit once more as well */
        (void)send_message(s, r, &ping);
    }
}
