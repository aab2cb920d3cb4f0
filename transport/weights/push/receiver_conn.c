/* One connection of the receiver: opening the lane, and which frame may come when. */
#include "transport/weights/push/receiver_internal.h"

#include "base/log.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOODBYE_NS CORRAL_NS_PER_S
#define WHOLE_FOR 25 /* versions after one for whose deltas there was no memory */

/* ---- sending ---- */

void conn_send(struct corral_push_receiver *r, struct push_conn *c, enum push_type type, uint64_t version,
               const void *payload, uint32_t bytes)
{
    struct push_frame f = {
        .type = type, .bytes = bytes, .generation = c->hello.generation, .version = version};
    struct corral_error why = {0};
    if (push_io_queue(&c->io, &f, payload, &why) != CORRAL_OK && c->state < CONN_CLOSING) {
        corral_fail(&why, CORRAL_PROTOCOL, "the sender does not read its answers");
        conn_drop(r, c, &why);
    }
}

void conn_send_aborted(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                       enum push_after after, uint32_t absent, const struct corral_error *why)
{
    uint8_t payload[PUSH_ABORTED_HEAD + 4 + PUSH_TEXT_MAX];
    wire_put_u32(payload, after);
    wire_put_u32(payload + 4, absent);
    conn_send(r, c, PUSH_ABORTED, version, payload,
              PUSH_ABORTED_HEAD + push_put_error(payload + PUSH_ABORTED_HEAD, why));
}

static void send_error(struct corral_push_receiver *r, struct push_conn *c, enum push_type type,
                       const struct corral_error *why)
{
    uint8_t payload[4 + PUSH_TEXT_MAX];
    uint32_t bytes = push_put_error(payload, why);
    conn_send(r, c, type, c->version, payload, bytes);
}

void conn_drop(struct corral_push_receiver *r, struct push_conn *c, const struct corral_error *why)
{
    if (c->state == CONN_CLOSING) {
        return;
    }
    bool member = conn_is_member(c);
    if ((member && c->prepared) || why->status != CORRAL_PEER) {
        corral_log_warn("weight sender dropped", LOG_STR("peer", c->peer), LOG_U64("rank", c->hello.rank),
                        LOG_U64("version", c->prepared ? c->version : 0), LOG_ERR(why));
        receiver_note_error(r, why);
    }
    c->state = CONN_CLOSING;
    c->heard_ns = push_now_ns();
    send_error(r, c, PUSH_ERROR, why);
    if (c->worker != NULL) {
        worker_stop(c->worker);
    }
    if (member) {
        receiving_lost(r, c, why);
    }
}

bool conn_finish(struct corral_push_receiver *r, struct push_conn *c)
{
    struct corral_error ignored;
    if (c->io.fd >= 0 && (push_io_flush(&c->io, &ignored) != CORRAL_OK || c->io.out_to == 0 ||
                          push_now_ns() - c->heard_ns > GOODBYE_NS)) {
        close(c->io.fd);
        c->io.fd = -1;
    }
    if (c->io.fd >= 0 || c->worker != NULL) {
        return false;
    }
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        if (r->conn[i] == c) {
            r->conn[i] = NULL;
        }
    }
    free(c);
    return true;
}

/* ---- the lane ---- */

const struct corral_lane_ops *receiver_lane_named(const struct corral_push_receiver *r, const char *name)
{
    for (const struct corral_lane_ops *const *l = r->options.more_lanes; l != NULL && *l != NULL; l++) {
        if (strcmp((*l)->name, name) == 0) {
            return *l;
        }
    }
    return corral_lane_named(name);
}

static enum corral_status open_lane(struct corral_push_receiver *r, struct push_conn *c, const char *name,
                                    struct corral_error *err)
{
    char lanes[PUSH_LANES_MAX + 1];
    receiver_lanes(r, lanes);
    const struct corral_lane_ops *ops = push_lane_listed(lanes, name) ? receiver_lane_named(r, name) : NULL;
    if (ops == NULL) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "%s takes no %s lane", r->name, name);
    }
    CORRAL_TRY(ops->available(&r->options.lane, err));
    return worker_start(&c->worker, r->link[c->hello.rank], ops, &r->options.lane, r->report_fd, &r->account,
                        err);
}

static enum corral_status on_lane(struct corral_push_receiver *r, struct push_conn *c, const uint8_t *payload,
                                  uint32_t bytes, struct corral_error *err)
{
    char name[PUSH_LANE_NAME_MAX];
    if ((bytes == 0) != (r->link[c->hello.rank]->buckets == 0)) {
        return corral_fail(err, CORRAL_PROTOCOL, "rank %u %s", c->hello.rank,
                           bytes == 0 ? "wants no lane and has bytes to send"
                                      : "wants a lane and has nothing to send");
    }
    memcpy(name, payload, bytes);
    name[bytes] = '\0';
    worker_destroy(
        c->worker); /* the sender could not open its end of the last one; nothing has moved on it */
    c->worker = NULL;
    if (bytes == 0) {
        c->state = CONN_READY;
        receiving_announce(r);
        return CORRAL_OK;
    }
    struct corral_error why = {0};
    c->state = CONN_OFFER;
    if (open_lane(r, c, name, &why) != CORRAL_OK) {
        c->state = CONN_LANE;
        send_error(r, c, PUSH_NOLANE, &why);
    }
    return CORRAL_OK;
}

static enum corral_status on_answer(struct push_conn *c, const uint8_t *payload, uint32_t bytes)
{
    struct corral_lane_blob answer = {.bytes = bytes};
    memcpy(answer.data, payload, bytes);
    c->state = CONN_CONNECT;
    worker_connect(c->worker, &answer);
    return CORRAL_OK;
}

/* ---- what the worker says ---- */

static void report_lane(struct corral_push_receiver *r, struct push_conn *c, uint32_t events,
                        const struct corral_lane_blob *blob, const struct corral_error *why)
{
    if ((events & WORKER_FAILED) != 0 && c->state < CONN_READY) {
        corral_log_warn("weight lane not opened, the sender may try the next",
                        LOG_STR("lane", c->worker->ops->name), LOG_U64("rank", c->hello.rank), LOG_ERR(why));
        worker_destroy(c->worker);
        c->worker = NULL;
        c->state = CONN_LANE;
        send_error(r, c, PUSH_NOLANE, why);
        return;
    }
    if ((events & WORKER_FAILED) != 0) {
        r->whole_for = why->status == CORRAL_DENIED && r->base != 0 ? WHOLE_FOR : r->whole_for;
        conn_drop(r, c, why);
        return;
    }
    if ((events & WORKER_OFFERED) != 0) {
        c->state = CONN_ANSWER;
        conn_send(r, c, PUSH_OFFER, 0, blob->data, blob->bytes);
    }
    if ((events & WORKER_CONNECTED) != 0) {
        c->state = CONN_READY;
        receiving_announce(r);
    }
    if ((events & WORKER_PLACED) != 0 && c->prepared) {
        c->placed = true;
        uint8_t place[PUSH_PAYLOAD_MAX];
        wire_put_u64(place, r->base);
        memcpy(place + PUSH_PLACE_HEAD, blob->data, blob->bytes);
        conn_send(r, c, PUSH_PLACE, c->version, place, PUSH_PLACE_HEAD + blob->bytes);
    }
}

/* As many as fit; the others stay in the ring. */
static void report_verdicts(struct corral_push_receiver *r, struct push_conn *c)
{
    struct worker *w = c->worker;
    while (c->state == CONN_READY && c->prepared &&
           push_io_room(&c->io) > 2 * (PUSH_HEADER_BYTES + 8 + PUSH_TEXT_MAX)) {
        pthread_mutex_lock(&w->lock);
        bool any = w->verdict_count > 0;
        struct verdict v = any ? w->verdict[w->verdict_from] : (struct verdict){0};
        if (any) {
            w->verdict_from = (w->verdict_from + 1) % w->link->buckets;
            w->verdict_count--;
        }
        pthread_mutex_unlock(&w->lock);
        if (!any) {
            return;
        }
        uint8_t payload[8];
        wire_put_u32(payload, v.bucket);
        wire_put_u32(payload + 4, v.ok);
        r->moved_ns = push_now_ns();
        if (!v.ok) {
            pthread_mutex_lock(&r->status_lock);
            r->status.resent_buckets++;
            pthread_mutex_unlock(&r->status_lock);
        }
        conn_send(r, c, PUSH_TAKEN, c->version, payload, sizeof payload);
    }
}

void conn_report(struct corral_push_receiver *r, struct push_conn *c)
{
    struct worker *w = c->worker;
    pthread_mutex_lock(&w->lock);
    uint32_t events = w->events;
    struct corral_error why = w->error;
    int32_t tainted = w->tainted;
    struct corral_lane_blob blob;
    blob.bytes = 0;
    if ((events & (WORKER_OFFERED | WORKER_PLACED)) != 0) {
        blob = w->blob;
    }
    w->events = 0;
    pthread_mutex_unlock(&w->lock);
    if ((events & WORKER_CLOSED) != 0) {
        worker_destroy(w);
        c->worker = NULL;
        receiving_taint(r, c->placed ? tainted : 0);
        return;
    }
    if (c->state == CONN_CLOSING) {
        return;
    }
    report_lane(r, c, events, &blob, &why);
    if (c->worker == NULL || c->state != CONN_READY) {
        return;
    }
    report_verdicts(r, c);
    if ((events & WORKER_COMPLETE) == 0 || c->state != CONN_READY) {
        return;
    }
    pthread_mutex_lock(&w->lock);
    bool said = w->verdict_count == 0;
    w->events |=
        said ? 0 : WORKER_COMPLETE; /* STAGED comes after the last TAKEN: later, when there is room */
    pthread_mutex_unlock(&w->lock);
    if (said) {
        receiving_complete(r, c);
    }
}

/* ---- frames ---- */

static enum corral_status on_sent(struct corral_push_receiver *r, struct push_conn *c, uint64_t version,
                                  const uint8_t *payload, struct corral_error *err)
{
    uint32_t bucket = wire_get_u32(payload);
    if (!c->placed || version != c->version || r->state != RECEIVING_DATA ||
        bucket >= r->link[c->hello.rank]->buckets ||
        !worker_sent(c->worker, bucket, wire_get_digest(payload + 8))) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "rank %u says that it has sent bucket %u of version %" PRIu64 ", which is not due",
                           c->hello.rank, bucket, version);
    }
    return CORRAL_OK;
}

static enum corral_status on_member_frame(struct corral_push_receiver *r, struct push_conn *c,
                                          const struct push_frame *f, const uint8_t *payload,
                                          struct corral_error *err)
{
    struct push_prepare prepare;
    if (f->generation != c->hello.generation) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s of generation %" PRIu64 " in a connection of %" PRIu64,
                           push_type_name(f->type), f->generation, c->hello.generation);
    }
    switch ((enum push_type)f->type) {
    case PUSH_LANE:
        if (c->state == CONN_LANE || c->state == CONN_ANSWER) {
            return on_lane(r, c, payload, f->bytes, err);
        }
        break;
    case PUSH_ANSWER:
        if (c->state == CONN_ANSWER) {
            return on_answer(c, payload, f->bytes);
        }
        break;
    case PUSH_PREPARE:
        if (c->state == CONN_READY && !c->prepared && !c->waiting) {
            push_get_prepare(payload, &prepare);
            return receiving_prepare(r, c, f->version, &prepare, err);
        }
        break;
    case PUSH_SENT:
        if (c->state == CONN_READY) {
            return on_sent(r, c, f->version, payload, err);
        }
        break;
    case PUSH_COMMIT:
        if (c->state == CONN_READY) {
            return receiving_commit(r, c, f->version, wire_get_digest(payload), err);
        }
        break;
    case PUSH_PASS:
        receiving_pass(r, c, f->version);
        return CORRAL_OK;
    case PUSH_WAIT:
        r->moved_ns = c->hello.leader && r->state == RECEIVING_STAGED ? push_now_ns() : r->moved_ns;
        return CORRAL_OK;
    case PUSH_ABORT:
        return push_get_error(payload, f->bytes, "the sender gives up", err);
    default:
        break;
    }
    return corral_fail(err, CORRAL_PROTOCOL, "%s is not due", push_type_name(f->type));
}

static enum corral_status on_frame(struct corral_push_receiver *r, struct push_conn *c,
                                   const struct push_frame *f, const uint8_t *payload,
                                   struct corral_error *err)
{
    if (c->state == CONN_HELLO && f->type == PUSH_HELLO) {
        return login_hello(r, c, payload, err);
    }
    if (c->state == CONN_PROOF && f->type == PUSH_PROOF) {
        return login_proof(r, c, payload, err);
    }
    if (c->state == CONN_VISIT) {
        return visitors_admit(r, c, f, payload, err);
    }
    if (!conn_is_member(c)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s before the login", push_type_name(f->type));
    }
    c->heard_ns = push_now_ns();
    return on_member_frame(r, c, f, payload, err);
}

static enum corral_status serve(struct corral_push_receiver *r, struct push_conn *c, struct corral_error *err)
{
    enum corral_status status = push_io_receive(&c->io, err);
    if (status == CORRAL_AGAIN) {
        return CORRAL_OK;
    }
    CORRAL_TRY(status);
    while (c->state < CONN_CLOSING) { /* at most a buffer full, then the others get their turn */
        struct push_frame f;
        const uint8_t *payload;
        status = push_io_next(&c->io, &f, &payload, err);
        if (status == CORRAL_AGAIN) {
            break;
        }
        CORRAL_TRY(status);
        CORRAL_TRY(on_frame(r, c, &f, payload, err));
    }
    return CORRAL_OK;
}

void conn_serve(struct corral_push_receiver *r, struct push_conn *c, short revents)
{
    struct corral_error why = {0};
    enum corral_status status = CORRAL_OK;
    if ((revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
        status = serve(r, c, &why);
    }
    if (status == CORRAL_OK) {
        status = push_io_flush(&c->io, &why);
    }
    if (status != CORRAL_OK && c->state < CONN_CLOSING) {
        conn_drop(r, c, &why);
    }
}
