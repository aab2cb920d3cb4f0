#include "base/clock.h"
#include "base/log.h"
#include "transport/trajectory/receiver_private.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESEND_WAIT_NS (50 * CORRAL_NS_PER_MS) /* between two requests to the same worker */

/* ---- telling ---- */

static void close_session(struct corral_traj_receiver *r, struct corral_traj_stream *st)
{
    if (st->live) {
        corral_idmap_remove(&r->by_route, st->route);
        corral_credit_close(&r->credit, st->index);
        st->live = false;
    }
}

void corral_traj_receiver_mark(struct corral_traj_receiver *r, struct corral_traj_stream *st)
{
    if (!st->dirty) {
        st->dirty = true;
        r->dirty[r->dirty_count++] = st->index;
    }
}

/* Tell one stream all it is owed. False: not everything could be told yet. */
static bool tell_stream(struct corral_traj_receiver *r, struct corral_traj_stream *st, uint64_t now)
{
    struct corral_credit_account *a = &r->credit.accounts[st->index];
    struct corral_error err = {.sys = 0};
    enum corral_status status = CORRAL_OK;
    if (st->live && (st->credit_due || a->raised)) {
        /* A grant is told before it is called back, so that whoever waited for it can use it. Between the call and its answer
         * no limit is told: it could undo the answer. */
        struct corral_traj_message m = {.type = CORRAL_TRAJ_CREDIT,
                                        .session = st->session,
                                        .acked = corral_traj_stream_acked(r, st),
                                        .finished = st->finished,
                                        .older = st->older,
                                        .bytes = a->reclaiming && !a->reclaim_due ? 0 : a->limit};
        status = corral_traj_receiver_tell(r, st->route, &m, &err);
        if (status == CORRAL_OK) {
            st->credit_due = false;
            a->raised = false;
            st->told_limit = a->limit;
        }
    }
    if (st->live && status == CORRAL_OK && a->reclaim_due) {
        struct corral_traj_message m = {
            .type = CORRAL_TRAJ_RECLAIM, .session = st->session, .bytes = a->offset};
        status = corral_traj_receiver_tell(r, st->route, &m, &err);
        a->reclaim_due = status != CORRAL_OK;
    }
    if (st->live && status == CORRAL_OK && st->resend_due && now >= st->resend_at_ns) {
        struct corral_traj_message m = {
            .type = CORRAL_TRAJ_RESEND, .session = st->session, .sequence = st->received + 1};
        status = corral_traj_receiver_tell(r, st->route, &m, &err);
        st->resend_due = status != CORRAL_OK;
        st->resend_at_ns = now + RESEND_WAIT_NS;
    }
    if (status != CORRAL_OK && err.sys == EHOSTUNREACH) {
        close_session(r, st);
        return true;
    }
    return !st->live || (!st->credit_due && !a->raised && !a->reclaim_due && !st->resend_due);
}

/* Tell every marked stream. True when a peer was found gone on the way. */
static bool tell_marked(struct corral_traj_receiver *r)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    uint32_t sessions = r->credit.sessions, count = r->dirty_count, kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct corral_traj_stream *st = &r->streams[r->dirty[i]];
        if (tell_stream(r, st, now)) {
            st->dirty = false;
        } else {
            r->dirty[kept++] = st->index;
        }
    }
    r->dirty_count = kept;
    return r->credit.sessions != sessions;
}

void corral_traj_receiver_flush(struct corral_traj_receiver *r)
{
    corral_traj_receiver_settle(r);
    while (r->dirty_count > 0 && tell_marked(r)) {
        corral_traj_receiver_share(
            r); /* the credit of who has gone is free for others, who are told in the next round */
    }
}

void corral_traj_receiver_share(struct corral_traj_receiver *r)
{
    corral_credit_share(&r->credit);
    for (uint32_t k = 0; k < r->credit.sessions; k++) {
        const struct corral_credit_account *a = &r->credit.accounts[r->credit.live[k]];
        if (a->raised || a->reclaim_due) {
            corral_traj_receiver_mark(r, &r->streams[r->credit.live[k]]);
        }
    }
}

static void tell_simple(struct corral_traj_receiver *r, uint32_t route, enum corral_traj_type type,
                        uint64_t session, uint64_t acked, const char *reason)
{
    struct corral_traj_message m = {.type = type, .session = session, .acked = acked};
    if (reason != NULL) {
        snprintf(m.reason, sizeof m.reason, "%s", reason);
    }
    (void)corral_traj_receiver_tell(r, route, &m, NULL); /* a stranger that does not listen is no loss */
}

/* ---- complaints ---- */

void corral_traj_receiver_malformed(struct corral_traj_receiver *r, uint32_t route, const char *why)
{
    struct corral_traj_stream *st = corral_idmap_get(&r->by_route, route);
    bool seen;
    r->stats.malformed++;
    if (st != NULL) {
        seen = st->complained;
        st->complained = true;
    } else {
        seen = corral_idring_seen(&r->strangers, route);
    }
    if (!seen) {
        corral_log_warn("malformed trajectory message dropped; more from this peer are counted only",
                        LOG_I64("worker", st != NULL ? (int64_t)st->index : -1), LOG_STR("why", why));
    }
}

static void refuse(struct corral_traj_receiver *r, const struct corral_traj_incoming *in,
                   const struct corral_traj_message *m, const char *why)
{
    r->stats.refused++;
    tell_simple(r, in->route, CORRAL_TRAJ_REFUSED, m->session, 0, why);
    if (!corral_idring_seen(&r->strangers, in->route)) {
        corral_log_warn("trajectory sender refused", LOG_U64("worker", m->worker), LOG_STR("why", why));
    }
}

/* ---- sessions ---- */

static const char *check_hello(const struct corral_traj_receiver *r, const struct corral_traj_message *m)
{
    if (m->protocol != CORRAL_TRAJ_PROTOCOL) {
        return "another protocol version";
    }
    if (!corral_zmq_token_equal(m->token, r->token)) {
        return "wrong token";
    }
    if (m->run != r->run) {
        return "another run";
    }
    return corral_traj_receiver_check_stream(r, m);
}

const char *corral_traj_receiver_check_stream(const struct corral_traj_receiver *r,
                                              const struct corral_traj_message *m)
{
    if (m->worker >= r->workers || m->first == 0) {
        return "worker or sequence out of range";
    }
    const struct corral_traj_stream *st = &r->streams[m->worker];
    if (st->known && m->epoch < st->epoch) {
        return "a newer epoch of this worker is known";
    }
    if (st->known && m->epoch == st->epoch && m->first - 1 > st->received &&
        corral_traj_stream_acked(r, st) < st->received) {
        return "records that nobody acknowledged are missing"; /* only a broken sender lets go of those */
    }
    return NULL;
}

void corral_traj_receiver_pass_over(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                    uint64_t sequence)
{
    if (sequence <= st->received) {
        return;
    }
    uint64_t lost = sequence - st->received;
    for (uint32_t i = 0; i < r->span_count; i++) { /* these are finished */
        const struct corral_traj_span *s = &r->spans[i];
        uint64_t from = CORRAL_MAX(s->first, st->received + 1), to = CORRAL_MIN(s->last, sequence);
        if (s->worker == st->index && s->epoch == st->epoch && from <= to) {
            lost -= CORRAL_MIN(lost, to - from + 1);
        }
    }
    if (lost > 0) {
        /* An earlier receiver acknowledged these, and its state did not survive to say so. They can't come again. */
        r->stats.lost += lost;
        corral_log_warn("trajectory records acknowledged by an earlier trainer are not in its saved state; "
                        "going on after them",
                        LOG_U64("worker", st->index), LOG_U64("epoch", st->epoch), LOG_U64("records", lost));
    }
    st->durable = st->durable == st->received ? sequence : st->durable;
    st->received = sequence;
    if (st->head == NULL) { /* else the cursor passes over them when it gets there */
        st->finished = st->received;
        st->cursor.epoch = st->epoch;
        st->cursor.sequence = st->finished;
    }
}

void corral_traj_receiver_adopt(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                const struct corral_traj_message *m)
{
    if (!st->known || m->epoch > st->epoch) {
        close_session(r, st);
        st->epoch = m->epoch;
        st->received = st->finished = st->durable = 0;
        st->older = st->held_count;
    }
    if (!st->known) {
        st->cursor = (struct corral_traj_cursor){.worker = st->index, .epoch = st->epoch};
        st->known = true;
    }
    corral_traj_receiver_pass_over(r, st, m->first - 1);
}

void corral_traj_receiver_hello_again(struct corral_traj_receiver *r, struct corral_traj_stream *st)
{
    if (st->live) {
        tell_simple(r, st->route, CORRAL_TRAJ_REHELLO, st->session, 0, NULL);
        close_session(r, st);
    }
}

static void handle_hello(struct corral_traj_receiver *r, const struct corral_traj_incoming *in,
                         const struct corral_traj_message *m)
{
    const char *why = check_hello(r, m);
    if (why != NULL) {
        refuse(r, in, m, why);
        return;
    }
    struct corral_traj_stream *st = &r->streams[m->worker];
    struct corral_traj_stream *before = corral_idmap_get(&r->by_route, in->route);
    if (before != NULL && before != st) {
        close_session(r, before);
    }
    close_session(r, st);
    corral_traj_receiver_adopt(r, st, m);
    if (!corral_idmap_put(&r->by_route, in->route, st)) {
        refuse(r, in, m, "too many workers");
        return;
    }
    st->live = true;
    st->complained &= st->route == in->route;
    st->route = in->route;
    st->session = m->session;
    st->credit_due = st->resend_due = false;
    st->resend_at_ns = 0;
    corral_credit_open(&r->credit, st->index);
    corral_credit_share(&r->credit);
    struct corral_credit_account *a = &r->credit.accounts[st->index];
    struct corral_traj_message welcome = {.type = CORRAL_TRAJ_WELCOME,
                                          .session = st->session,
                                          .acked = corral_traj_stream_acked(r, st),
                                          .finished = st->finished,
                                          .older = st->older,
                                          .received = st->received,
                                          .bytes = a->limit,
                                          .buffer = r->record_max};
    a->raised = false;
    st->told_limit = a->limit;
    if (corral_traj_receiver_tell(r, in->route, &welcome, NULL) != CORRAL_OK) {
        close_session(r, st);
    }
    corral_traj_receiver_share(r);
}

/* ---- records ---- */

static void ask_again(struct corral_traj_receiver *r, struct corral_traj_stream *st, bool later)
{
    if (later) {
        st->resend_at_ns = corral_now_ns(&corral_clock_monotonic) + RESEND_WAIT_NS;
    }
    st->resend_due = true;
    corral_traj_receiver_mark(r, st);
}

static void duplicates(struct corral_traj_receiver *r, struct corral_traj_stream *st, uint64_t count)
{
    r->stats.duplicates += count;
    st->credit_due = true;
    corral_traj_receiver_mark(r, st);
}

/* Not the session's peer: a process that a newer epoch replaced, or one that does not know that its session is over. */
static void handle_stray(struct corral_traj_receiver *r, const struct corral_traj_incoming *in,
                         uint64_t session, const struct corral_traj_batch *b,
                         const struct corral_traj_prologue *p)
{
    if (b != NULL && p->run == r->run && p->worker < CORRAL_TRAJ_WORKERS_MAX && r->streams[p->worker].known &&
        p->epoch < r->streams[p->worker].epoch) {
        r->stats.duplicates += b->count;
        tell_simple(r, in->route, CORRAL_TRAJ_CREDIT, session, b->first + b->count - 1, NULL);
        return;
    }
    tell_simple(r, in->route, CORRAL_TRAJ_REHELLO, session, 0, NULL);
}

/* The whole message has been checked; its records are taken in one by one. */
static void handle_records(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                           struct corral_traj_incoming *in, const struct corral_traj_batch *b,
                           const struct corral_traj_prologue *p)
{
    if (p->run != r->run || p->worker != st->index || p->epoch != st->epoch) {
        corral_traj_receiver_malformed(r, in->route, "records of another stream than the hello said");
        return;
    }
    if (b->first > st->received + 1) {
        r->stats.gaps += b->count;
        ask_again(r, st, false);
        return;
    }
    if (b->first + b->count - 1 <= st->received) {
        duplicates(r, st, b->count);
        return;
    }
    zmq_msg_init(&r->pending.frame);
    zmq_msg_move(&r->pending.frame, &in->frame);
    r->pending.at = (const uint8_t *)zmq_msg_data(&r->pending.frame) + sizeof *b;
    r->pending.left = b->count;
    r->pending.worker = st->index;
    r->pending.sequence = b->first;
}

static void end_pending(struct corral_traj_receiver *r)
{
    r->pending.left = 0;
    zmq_msg_close(&r->pending.frame);
}

/* Into memory, and into the log when there is one. */
static enum corral_status keep(struct corral_traj_receiver *r, struct corral_traj_stream *st, uint64_t bytes,
                               struct corral_traj_held **out)
{
    struct corral_traj_held *h;
    if (corral_traj_receiver_hold(r, r->pending.at, bytes, &h, NULL) != CORRAL_OK) {
        r->stats.denied++;
        return CORRAL_DENIED;
    }
    h->item.worker = st->index;
    h->item.epoch = st->epoch;
    h->item.sequence = r->pending.sequence;
    if (r->log != NULL && corral_traj_receiver_append(r, h, NULL) != CORRAL_OK) {
        corral_traj_receiver_unhold(r, h);
        r->stats.unlogged++;
        return CORRAL_DENIED;
    }
    *out = h;
    return CORRAL_OK;
}

/* The record in front of the pending message; false: it and the rest of the message are to come again. */
static bool take_record(struct corral_traj_receiver *r, struct corral_traj_stream *st, uint64_t bytes,
                        struct corral_traj_held **out)
{
    const struct corral_credit_account *a = &r->credit.accounts[st->index];
    uint64_t cost = corral_traj_cost(bytes);
    if (!st->live) {
        return false; /* its peer went meanwhile: it comes again in the next session */
    }
    if (cost > a->limit - a->offset) {
        corral_traj_receiver_malformed(r, st->route, "a record beyond the granted credit");
        ask_again(r, st, false);
        return false;
    }
    if (keep(r, st, bytes, out) != CORRAL_OK) {
        ask_again(r, st, true);
        return false;
    }
    (void)corral_credit_take(&r->credit, st->index, cost);
    st->received++;
    st->resend_due = false;
    st->resend_at_ns = 0;
    corral_traj_receiver_enlist(r, st, *out);
    return true;
}

struct corral_traj_held *corral_traj_receiver_take_pending(struct corral_traj_receiver *r)
{
    while (r->pending.left > 0) {
        struct corral_traj_stream *st = &r->streams[r->pending.worker];
        struct corral_traj_held *h = NULL;
        uint64_t bytes = corral_traj_record_size(r->pending.at);
        if (r->pending.sequence <= st->received) {
            duplicates(r, st, 1);
        } else if (!take_record(r, st, bytes, &h)) {
            end_pending(r);
            return NULL;
        }
        r->pending.at += bytes;
        r->pending.sequence++;
        if (r->pending.left == 1) {
            end_pending(r);
        } else {
            r->pending.left--;
        }
        if (h != NULL && r->span_count > 0 &&
            corral_traj_receiver_spanned(r, h->item.worker, h->item.epoch, h->item.sequence)) {
            corral_traj_receiver_finish(r, &h->item);
        } else if (h != NULL) {
            return h;
        }
    }
    return NULL;
}

/* ---- one message ---- */

static void handle_session_message(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                   const struct corral_traj_incoming *in, const struct corral_traj_message *m)
{
    switch (m->type) {
    case CORRAL_TRAJ_PING:
        st->credit_due = true;
        corral_traj_receiver_mark(r, st);
        return;
    case CORRAL_TRAJ_WANT:
        if (!corral_credit_want(&r->credit, st->index, m->bytes)) {
            corral_traj_receiver_malformed(r, in->route, "wants more credit than there is");
        }
        break;
    case CORRAL_TRAJ_LIMIT:
        if (!r->credit.accounts[st->index].reclaiming ||
            !corral_credit_returned(&r->credit, st->index, m->bytes)) {
            corral_traj_receiver_malformed(r, in->route, "gives back credit that it does not have");
        }
        break;
    default:
        corral_traj_receiver_malformed(r, in->route, "a message that only receivers send");
        return;
    }
    corral_traj_receiver_share(r);
}

static void handle_batch(struct corral_traj_receiver *r, struct corral_traj_incoming *in)
{
    struct corral_traj_batch b;
    struct corral_traj_prologue first;
    struct corral_error err;
    struct corral_traj_stream *st = corral_idmap_get(&r->by_route, in->route);
    if (corral_traj_batch_check(zmq_msg_data(&in->frame), zmq_msg_size(&in->frame), &b, &first, &err) !=
        CORRAL_OK) {
        corral_traj_receiver_malformed(r, in->route, err.text);
        if (st != NULL) {
            ask_again(r, st, false);
        }
        return;
    }
    if (st == NULL) {
        handle_stray(r, in, b.session, &b, &first);
    } else if (b.session != st->session) {
        r->stats.duplicates += b.count; /* left over from before the last hello: comes again */
    } else {
        handle_records(r, st, in, &b, &first);
    }
}

void corral_traj_receiver_handle(struct corral_traj_receiver *r, struct corral_traj_incoming *in)
{
    struct corral_traj_message m;
    struct corral_error err;
    if (in->frames != 1) {
        struct corral_traj_stream *from = corral_idmap_get(&r->by_route, in->route);
        corral_traj_receiver_malformed(r, in->route, "a trajectory message has one frame");
        if (from !=
            NULL) { /* with CURVE, a network that flips the bit for "more" gets through: the last records of a stream would be missed for ever */
            ask_again(r, from, false);
        }
        return;
    }
    if (corral_traj_is_batch(zmq_msg_data(&in->frame), zmq_msg_size(&in->frame))) {
        handle_batch(r, in);
        return;
    }
    if (corral_traj_decode(zmq_msg_data(&in->frame), zmq_msg_size(&in->frame), &m, &err) != CORRAL_OK) {
        corral_traj_receiver_malformed(r, in->route, err.text);
        return;
    }
    if (m.type == CORRAL_TRAJ_HELLO) {
        handle_hello(r, in, &m);
        return;
    }
    struct corral_traj_stream *st = corral_idmap_get(&r->by_route, in->route);
    if (st == NULL) {
        handle_stray(r, in, m.session, NULL, NULL);
    } else if (m.session == st->session) {
        handle_session_message(r, st, in, &m);
    }
}
