#include "base/clock.h"
#include "base/log.h"
#include "transport/trajectory/receiver_private.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESEND_WAIT_NS (50 * CORRAL_NS_PER_MS) /* between two requests to the same worker */

/* ---- telling ---- */

static enum corral_status tell(struct corral_traj_receiver *r, uint32_t route,
                               const struct corral_traj_message *m, struct corral_error *err)
{
    const void *data;
    size_t bytes;
    corral_traj_encode(r->writer, m);
    CORRAL_TRY(corral_mpack_finish(r->writer, &data, &bytes, err));
    return corral_zmq_route_send(r->socket, route, data, bytes, err);
}

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
                                        .acked = st->finished,
                                        .bytes = a->reclaiming && !a->reclaim_due ? 0 : a->limit};
        status = tell(r, st->route, &m, &err);
        if (status == CORRAL_OK) {
            st->credit_due = false;
            a->raised = false;
            st->told_limit = a->limit;
        }
    }
    if (st->live && status == CORRAL_OK && a->reclaim_due) {
        struct corral_traj_message m = {
            .type = CORRAL_TRAJ_RECLAIM, .session = st->session, .bytes = a->offset};
        status = tell(r, st->route, &m, &err);
        a->reclaim_due = status != CORRAL_OK;
    }
    if (st->live && status == CORRAL_OK && st->resend_due && now >= st->resend_at_ns) {
        struct corral_traj_message m = {
            .type = CORRAL_TRAJ_RESEND, .session = st->session, .fragment.sequence = st->received + 1};
        status = tell(r, st->route, &m, &err);
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
    (void)tell(r, route, &m, NULL); /* a stranger that does not listen is no loss */
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
        corral_log_warn("trajectory sender refused", LOG_U64("worker", m->fragment.worker),
                        LOG_STR("why", why));
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
    if (m->fragment.run != r->run) {
        return "another run";
    }
    if (m->fragment.worker >= r->workers || m->first == 0) {
        return "worker or sequence out of range";
    }
    const struct corral_traj_stream *st = &r->streams[m->fragment.worker];
    if (st->known && m->fragment.epoch < st->epoch) {
        return "a newer epoch of this worker is known";
    }
    if (st->known && m->fragment.epoch == st->epoch && m->first - 1 > st->received &&
        st->finished < st->received) {
        return "fragments that nobody acknowledged are missing"; /* only a broken sender lets go of those */
    }
    return NULL;
}

static void adopt(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                  const struct corral_traj_message *m)
{
    if (!st->known || m->fragment.epoch > st->epoch) {
        st->epoch = m->fragment.epoch;
        st->received = st->finished = 0;
    }
    if (!st->known) {
        st->cursor = (struct corral_traj_cursor){.worker = st->index, .epoch = st->epoch};
        st->known = true;
    }
    if (m->first - 1 > st->received) {
        /* An earlier receiver acknowledged these, and its state did not survive to say so. They can't come again. */
        r->stats.lost += m->first - 1 - st->received;
        corral_log_warn("trajectory fragments acknowledged by an earlier trainer are not in its saved state; "
                        "going on after them",
                        LOG_U64("worker", st->index), LOG_U64("epoch", st->epoch),
                        LOG_U64("fragments", m->first - 1 - st->received));
        st->received = st->finished = m->first - 1;
        st->cursor.epoch = st->epoch;
        st->cursor.sequence = st->finished;
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
    struct corral_traj_stream *st = &r->streams[m->fragment.worker];
    struct corral_traj_stream *before = corral_idmap_get(&r->by_route, in->route);
    if (before != NULL && before != st) {
        close_session(r, before);
    }
    close_session(r, st);
    adopt(r, st, m);
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
                                          .acked = st->finished,
                                          .received = st->received,
                                          .bytes = a->limit,
                                          .buffer = r->fragment_max};
    a->raised = false;
    st->told_limit = a->limit;
    if (tell(r, in->route, &welcome, NULL) != CORRAL_OK) {
        close_session(r, st);
    }
    corral_traj_receiver_share(r);
}

/* ---- fragments ---- */

/* Check the frame and copy it into one charged, aligned block. ZeroMQ's own buffers are neither charged nor aligned. */
static enum corral_status hold(struct corral_traj_receiver *r, struct corral_traj_incoming *in,
                               const struct corral_traj_message *m, struct corral_traj_held **out,
                               struct corral_error *err)
{
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES], at[CORRAL_FRAGMENT_FRAMES], total;
    const void *tensors[CORRAL_FRAGMENT_FRAMES];
    CORRAL_TRY(corral_traj_check_frame(m, zmq_msg_size(&in->frame), bytes, at, &total, err));
    CORRAL_AUTO_FREE struct corral_traj_held *h = calloc(1, sizeof *h);
    if (h == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "hold a trajectory fragment");
    }
    CORRAL_TRY(corral_traj_block_get(r->pool, total, &h->block, err));
    memcpy(h->block->memory, (const uint8_t *)zmq_msg_data(&in->frame) + CORRAL_TRAJ_AREA_BYTES, total);
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        tensors[i] = bytes[i] > 0 ? (uint8_t *)h->block->memory + at[i] : NULL;
    }
    h->fragment = m->fragment;
    corral_fragment_set_tensors(&h->fragment, tensors);
    h->bytes = corral_fragment_bytes(&h->fragment);
    if (!corral_fragment_boundaries_valid(&h->fragment)) {
        corral_traj_block_unref(h->block);
        return corral_fail(err, CORRAL_PROTOCOL, "boundaries do not ascend within the fragment");
    }
    *out = CORRAL_STEAL(h);
    return CORRAL_OK;
}

static void ask_again(struct corral_traj_receiver *r, struct corral_traj_stream *st)
{
    st->resend_due = true;
    corral_traj_receiver_mark(r, st);
}

/* Not the session's peer: a process that a newer epoch replaced, or one that does not know that its session is over. */
static void handle_stray(struct corral_traj_receiver *r, const struct corral_traj_incoming *in,
                         const struct corral_traj_message *m)
{
    const struct corral_fragment *f = &m->fragment;
    if (m->type == CORRAL_TRAJ_FRAGMENT && f->run == r->run && f->worker < CORRAL_TRAJ_WORKERS_MAX &&
        r->streams[f->worker].known && f->epoch < r->streams[f->worker].epoch) {
        r->stats.duplicates++;
        tell_simple(r, in->route, CORRAL_TRAJ_CREDIT, m->session, f->sequence, NULL);
        return;
    }
    tell_simple(r, in->route, CORRAL_TRAJ_REHELLO, m->session, 0, NULL);
}

static void handle_fragment(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                            struct corral_traj_incoming *in, const struct corral_traj_message *m,
                            struct corral_traj_held **out)
{
    struct corral_error err;
    const struct corral_fragment *f = &m->fragment;
    if (f->run != r->run || f->worker != st->index || f->epoch != st->epoch) {
        corral_traj_receiver_malformed(r, in->route, "a fragment of another stream than the hello said");
        return;
    }
    if (f->sequence <= st->received) {
        r->stats.duplicates++;
        st->credit_due = true;
        corral_traj_receiver_mark(r, st);
        return;
    }
    uint64_t total = corral_fragment_bytes(f);
    struct corral_credit_account *a = &r->credit.accounts[st->index];
    if (f->sequence != st->received + 1) {
        r->stats.gaps++;
        ask_again(r, st);
        return;
    }
    if (total > a->limit - a->offset) {
        corral_traj_receiver_malformed(r, in->route, "a fragment beyond the granted credit");
        ask_again(r, st);
        return;
    }
    enum corral_status status = hold(r, in, m, out, &err);
    if (status == CORRAL_DENIED || status == CORRAL_NOMEM) {
        r->stats.denied++;
        st->resend_at_ns = corral_now_ns(&corral_clock_monotonic) + RESEND_WAIT_NS;
        ask_again(r, st);
        return;
    }
    if (status != CORRAL_OK) {
        corral_traj_receiver_malformed(r, in->route, err.text);
        ask_again(r, st);
        return;
    }
    (void)corral_credit_take(&r->credit, st->index, total);
    st->received++;
    st->resend_due = false;
    st->resend_at_ns = 0;
    st->held_count++;
    r->stats.received++;
    r->stats.held_bytes += total;
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

void corral_traj_receiver_handle(struct corral_traj_receiver *r, struct corral_traj_incoming *in,
                                 struct corral_traj_held **out)
{
    struct corral_traj_message m;
    struct corral_error err;
    if (in->frames != 1) {
        corral_traj_receiver_malformed(r, in->route, "a trajectory message has one frame");
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
        handle_stray(r, in, &m);
    } else if (m.session != st->session) {
        r->stats.duplicates +=
            m.type == CORRAL_TRAJ_FRAGMENT; /* left over from before the last hello: comes again */
    } else if (m.type == CORRAL_TRAJ_FRAGMENT) {
        handle_fragment(r, st, in, &m, out);
    } else {
        handle_session_message(r, st, in, &m);
    }
}
