#include "base/clock.h"
#include "transport/trajectory/sender_private.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_AGAIN_NS \
    CORRAL_NS_PER_S /* silence after which an unanswered hello or a pending fragment is asked about */

static void on_frame_gone(void *data, void *hint)
{
    (void)data;
    corral_traj_block_unref(hint);
}

/* ---- sending messages ---- */

static bool send_message(struct corral_traj_sender *s, struct corral_traj_rank *r,
                         struct corral_traj_message *m)
{
    const void *data;
    size_t bytes;
    m->session = r->session;
    corral_traj_encode(s->writer, m);
    return corral_mpack_finish(s->writer, &data, &bytes, NULL) == CORRAL_OK &&
           zmq_send(r->socket, data, bytes, ZMQ_DONTWAIT) >= 0;
}

/* One frame, not one per tensor: ZeroMQ 4.3 aborts the process when a socket is closed just as its connection breaks inside a message of
 * several frames (session_base_t::clean_pipes; see its issue 3442). */
static bool send_fragment(struct corral_traj_sender *s, struct corral_traj_rank *r,
                          struct corral_traj_entry *e)
{
    struct corral_traj_message m = {.type = CORRAL_TRAJ_FRAGMENT,
                                    .session = r->session,
                                    .format = CORRAL_FRAGMENT_FORMAT,
                                    .fragment = e->fragment};
    if (e->session != r->session) {
        /* The header names the session. While ZeroMQ still holds the frame of an earlier one it can't be rewritten. */
        if (!corral_traj_block_exclusive(e->block) ||
            corral_traj_encode_area(s->writer, &m, e->block->memory, NULL) != CORRAL_OK) {
            return false;
        }
    }
    zmq_msg_t frame;
    corral_traj_block_ref(e->block);
    if (zmq_msg_init_data(&frame, e->block->memory, e->frame_bytes, on_frame_gone, e->block) != 0) {
        corral_traj_block_unref(e->block);
        return false;
    }
    if (zmq_msg_send(&frame, r->socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&frame);
        return false;
    }
    s->stats.sent++;
    s->stats.resent += e->sent;
    e->sent = true;
    e->session = r->session;
    return true;
}

void corral_traj_rank_want(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t bytes)
{
    uint64_t limit = r->offset + bytes;
    struct corral_traj_message m = {.type = CORRAL_TRAJ_WANT, .bytes = limit};
    if (r->wanted != limit && send_message(s, r, &m)) {
        r->wanted = limit;
    }
}

/* Send what is due, as far as credit goes. An entry sent before in this session has its credit already. */
void corral_traj_rank_pump(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    while (r->state == CORRAL_TRAJ_RANK_LIVE && r->unsent != NULL) {
        struct corral_traj_entry *e = r->unsent;
        bool counted = e->sent && e->session == r->session;
        if (!counted && e->bytes > r->limit - r->offset) {
            corral_traj_rank_want(s, r, e->bytes);
            return;
        }
        if (!send_fragment(s, r, e)) {
            return;
        }
        r->offset += counted ? 0 : e->bytes;
        r->unsent = e->next;
    }
}

/* ---- sessions ---- */

void corral_traj_rank_greet(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    r->session++;
    r->state = CORRAL_TRAJ_RANK_GREETING;
    r->offset = r->limit = r->wanted = 0;
    r->reclaim_due = false;
    struct corral_traj_message m = {
        .type = CORRAL_TRAJ_HELLO,
        .protocol = CORRAL_TRAJ_PROTOCOL,
        .fragment = {.run = s->run, .worker = s->worker, .epoch = s->epoch},
        .first = r->head != NULL ? r->head->fragment.sequence : r->last_sequence + 1,
    };
    memcpy(m.token, s->token, sizeof m.token);
    if (send_message(s, r, &m)) {
        r->state = CORRAL_TRAJ_RANK_WAITING;
        r->asked_ns = now;
    }
}

void corral_traj_rank_drop_head(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    struct corral_traj_entry *e = r->head;
    r->head = e->next;
    if (r->head == NULL) {
        r->tail = NULL;
    }
    if (r->unsent == e) {
        r->unsent = e->next;
    }
    s->stats.unacked_bytes -= e->bytes;
    corral_traj_block_unref(e->block);
    free(e);
}

static void acknowledge(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t acked)
{
    while (r->head != NULL && r->head->fragment.sequence <= acked) {
        corral_traj_rank_drop_head(s, r);
        s->stats.acked++;
    }
}

static void seek(struct corral_traj_rank *r, uint64_t sequence)
{
    struct corral_traj_entry *e = r->head;
    while (e != NULL && e->fragment.sequence < sequence) {
        e = e->next;
    }
    r->unsent = e;
}

static void on_welcome(struct corral_traj_sender *s, struct corral_traj_rank *r,
                       const struct corral_traj_message *m)
{
    if (r->state != CORRAL_TRAJ_RANK_WAITING) {
        return;
    }
    if (m->received > r->last_sequence || m->acked > m->received) {
        /* Going on would get new fragments dropped as duplicates. */
        snprintf(r->reason, sizeof r->reason,
                 "it has seen later fragments of epoch %u: the epoch was used before", s->epoch);
        r->state = CORRAL_TRAJ_RANK_REFUSED;
        return;
    }
    acknowledge(s, r, m->acked);
    seek(r, m->received + 1);
    r->limit = m->bytes;
    r->buffer = m->buffer;
    r->state = CORRAL_TRAJ_RANK_LIVE;
}

/* Give idle credit back; not what was granted for a fragment that is about to be sent, unless it is not sent for long. */
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
        acknowledge(s, r, m->acked);
        r->limit = CORRAL_MAX(r->limit, m->bytes);
    } else if (r->state == CORRAL_TRAJ_RANK_LIVE && m->type == CORRAL_TRAJ_RESEND) {
        seek(r, m->fragment.sequence);
    } else if (r->state == CORRAL_TRAJ_RANK_LIVE && m->type == CORRAL_TRAJ_RECLAIM) {
        r->reclaim_due = true;
        r->reclaimed_ns = now;
    }
}

/* Read everything that has come. True when there was something. */
bool corral_traj_rank_drain(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    bool any = false;
    zmq_msg_t part;
    zmq_msg_init(&part);
    for (int rc; (rc = zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT)) >= 0 || zmq_errno() == EINTR;) {
        struct corral_traj_message m;
        bool single = rc >= 0 && zmq_msg_more(&part) == 0;
        while (rc >= 0 && zmq_msg_more(&part) != 0) {
            rc = zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT);
        }
        any = true;
        /* What does not parse is not the receiver's: it is ignored, and silence is asked about in corral_traj_rank_service(). */
        if (single && corral_traj_decode(zmq_msg_data(&part), zmq_msg_size(&part), &m, NULL) == CORRAL_OK) {
            handle(s, r, &m, now);
        }
    }
    zmq_msg_close(&part);
    return any;
}

void corral_traj_rank_service(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    if (r->state == CORRAL_TRAJ_RANK_GREETING ||
        (r->state == CORRAL_TRAJ_RANK_WAITING && now - r->asked_ns > ASK_AGAIN_NS)) {
        corral_traj_rank_greet(s, r, now);
    }
    corral_traj_rank_pump(s, r);
    if (r->state == CORRAL_TRAJ_RANK_LIVE && r->reclaim_due) {
        answer_reclaim(s, r, now);
    }
    bool pending = r->head != NULL || r->wanted > r->limit;
    if (r->state == CORRAL_TRAJ_RANK_LIVE && pending && now - r->heard_ns > ASK_AGAIN_NS &&
        now - r->asked_ns > ASK_AGAIN_NS) {
        struct corral_traj_message ping = {.type = CORRAL_TRAJ_PING};
        r->asked_ns = now;
        r->wanted = 0; /* ask for the same credit once more as well */
        (void)send_message(s, r, &ping);
    }
}
