#include "transport/weights/receiver_conn.h"

#include "base/clock.h"
#include "base/log.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* recv() calls for one connection before the others get their turn. */
#define RECEIVES_MAX 64

/* ---- sending ---- */

static enum corral_status conn_flush(struct conn *c, struct corral_error *err)
{
    while (c->out_from < c->out_to) {
        ssize_t n = send(c->fd, c->out + c->out_from, c->out_to - c->out_from, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return CORRAL_OK; /* POLLOUT goes on */
        }
        if (n < 0) {
            return corral_fail(err, CORRAL_PEER, "cannot answer: %s", strerrordesc_np(errno));
        }
        c->out_from += (size_t)n;
    }
    c->out_from = c->out_to = 0;
    return CORRAL_OK;
}

/* Queue an answer; receive() sends what is queued once its input is worked off, so that STAGED and APPLIED leave together. A peer that asks without
 * reading the answers is not a publisher: there is room for a few and no more. */
static enum corral_status reply(struct conn *c, enum wire_type type, uint64_t version, const void *payload,
                                size_t bytes, struct corral_error *err)
{
    if (sizeof c->out - c->out_to < WIRE_HEADER_BYTES + bytes) {
        CORRAL_TRY(conn_flush(c, err));
    }
    if (sizeof c->out - c->out_to < WIRE_HEADER_BYTES + bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "the publisher does not read its answers");
    }
    wire_put_header(c->out + c->out_to, type, version, bytes);
    if (bytes > 0) {
        memcpy(c->out + c->out_to + WIRE_HEADER_BYTES, payload, bytes);
    }
    c->out_to += WIRE_HEADER_BYTES + bytes;
    return CORRAL_OK;
}

static enum corral_status reply_error(struct conn *c, uint64_t version, const struct corral_error *why,
                                      struct corral_error *err)
{
    uint8_t payload[WIRE_PAYLOAD_MAX];
    size_t n = strnlen(why->text, WIRE_ERROR_TEXT_MAX);
    wire_put_u32(payload, (uint32_t)why->status);
    memcpy(payload + 4, why->text, n);
    return reply(c, WIRE_ERROR, version, payload, 4 + n, err);
}

/* ---- connections ---- */

static void conn_abort(struct corral_weight_receiver *r, struct conn *c)
{
    if (c->slot != NULL) {
        corral_weight_store_abort(r->store);
        c->slot = NULL;
    }
}

void conn_close(struct corral_weight_receiver *r, struct conn *c)
{
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (r->conn[i] == c) {
            r->conn[i] = NULL;
        }
    }
    conn_abort(r, c);
    close(c->fd);
    free(c);
}

void conn_drop(struct corral_weight_receiver *r, struct conn *c, const struct corral_error *why)
{
    struct corral_error ignored;
    corral_log_warn("weight publisher dropped, its unfinished version is discarded", LOG_STR("peer", c->peer),
                    LOG_ERR(why));
    if (why->status == CORRAL_PROTOCOL) {
        reply_error(c, c->version, why, &ignored);
        conn_flush(c, &ignored);
    }
    conn_close(r, c);
}

/* ---- frames ---- */

static enum corral_status on_hello(struct corral_weight_receiver *r, struct conn *c, const uint8_t *payload,
                                   struct corral_error *err)
{
    uint8_t answer[WIRE_NONCE_BYTES + WIRE_MAC_BYTES];
    if (wire_get_u64(payload) != r->run) {
        return corral_fail(err, CORRAL_PROTOCOL, "the publisher belongs to another run");
    }
    memcpy(c->nonce_p, payload + 8, WIRE_NONCE_BYTES);
    memcpy(answer, c->nonce_r, WIRE_NONCE_BYTES);
    wire_mac(r->secret, WIRE_LABEL_RECEIVER, r->run, c->nonce_p, c->nonce_r, answer + WIRE_NONCE_BYTES);
    c->state = CONN_PROOF;
    return reply(c, WIRE_CHALLENGE, 0, answer, sizeof answer, err);
}

static enum corral_status on_proof(struct corral_weight_receiver *r, struct conn *c, const uint8_t *payload,
                                   struct corral_error *err)
{
    uint8_t mac[WIRE_MAC_BYTES];
    wire_mac(r->secret, WIRE_LABEL_PUBLISHER, r->run, c->nonce_p, c->nonce_r, mac);
    if (!corral_bytes_equal(mac, payload, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL, "the publisher does not know this run's secret");
    }
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        struct conn *older = r->conn[i];
        if (older != NULL && older != c && conn_logged_in(older)) {
            corral_log_info("weight publisher replaced by a newer login", LOG_STR("peer", older->peer),
                            LOG_STR("by", c->peer));
            conn_close(r, older);
        }
    }
    c->state = CONN_IDLE;
    c->heard_ns = corral_now_ns(&corral_clock_monotonic);
    return reply(c, WIRE_WELCOME, corral_weight_store_version(r->store), NULL, 0, err);
}

static enum corral_status on_prepare(struct corral_weight_receiver *r, struct conn *c, uint64_t version,
                                     const uint8_t *payload, struct corral_error *err)
{
    void *slot = NULL;
    struct corral_error why = {0};
    c->version = version;
    c->bytes = wire_get_u64(payload + 16);
    if (corral_weight_store_begin(r->store, version, wire_get_digest(payload), c->bytes, &slot, &why) !=
        CORRAL_OK) {
        c->state = CONN_SKIP_HEAD;
        c->refused = version;
        return reply_error(c, version, &why, err);
    }
    c->slot = slot;
    c->state = CONN_DATA_HEAD;
    return CORRAL_OK;
}

static enum corral_status on_data_head(struct conn *c, const struct wire_frame *frame,
                                       struct corral_error *err)
{
    if (frame->version != c->version || frame->bytes != c->bytes) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "DATA of version %" PRIu64 ", %" PRIu64 " bytes, after PREPARE of %" PRIu64
                           ", %" PRIu64,
                           frame->version, frame->bytes, c->version, c->bytes);
    }
    c->left = frame->bytes;
    c->state = c->state == CONN_DATA_HEAD ? CONN_DATA : CONN_SKIP;
    return CORRAL_OK;
}

static enum corral_status on_data_end(struct conn *c, struct corral_error *err)
{
    uint8_t payload[16];
    if (c->state == CONN_SKIP) {
        c->state = CONN_IDLE;
        return CORRAL_OK;
    }
    c->digest = corral_digest_of(c->slot, c->bytes);
    c->state = CONN_STAGED;
    wire_put_digest(payload, c->digest);
    return reply(c, WIRE_STAGED, c->version, payload, sizeof payload, err);
}

static enum corral_status on_commit(struct corral_weight_receiver *r, struct conn *c, uint64_t version,
                                    const uint8_t *payload, struct corral_error *err)
{
    if (version != c->version || !corral_digest_equal(wire_get_digest(payload), c->digest)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "COMMIT of version %" PRIu64 " is not for what was staged (%" PRIu64 ")", version,
                           c->version);
    }
    struct corral_error why = {0};
    enum corral_status status = corral_weight_store_commit_digest(r->store, version, c->digest, &why);
    c->state = CONN_IDLE;
    if (status != CORRAL_OK) {
        conn_abort(r, c);
        return reply_error(c, version, &why, err);
    }
    c->slot = NULL;
    return reply(c, WIRE_APPLIED, version, NULL, 0, err);
}

static enum corral_status on_frame(struct corral_weight_receiver *r, struct conn *c,
                                   const struct wire_frame *frame, const uint8_t *payload,
                                   struct corral_error *err)
{
    /* What may come in each state; everything else ends the connection. */
    static const enum wire_type due[] = {
        [CONN_HELLO] = WIRE_HELLO,    [CONN_PROOF] = WIRE_PROOF,   [CONN_IDLE] = WIRE_PREPARE,
        [CONN_DATA_HEAD] = WIRE_DATA, [CONN_STAGED] = WIRE_COMMIT, [CONN_SKIP_HEAD] = WIRE_DATA,
    };
    if (c->state == CONN_IDLE && frame->type == WIRE_COMMIT && frame->version == c->refused) {
        c->refused = 0;
        return CORRAL_OK;
    }
    if (frame->type != due[c->state]) {
        return corral_fail(err, CORRAL_PROTOCOL, "frame %u where %u was due", frame->type, due[c->state]);
    }
    switch ((enum wire_type)frame->type) {
    case WIRE_HELLO:
        return on_hello(r, c, payload, err);
    case WIRE_PROOF:
        return on_proof(r, c, payload, err);
    case WIRE_PREPARE:
        return on_prepare(r, c, frame->version, payload, err);
    case WIRE_DATA:
        return on_data_head(c, frame, err);
    default:
        return on_commit(r, c, frame->version, payload, err);
    }
}

/* Work off what is in the buffer. */
static enum corral_status consume(struct corral_weight_receiver *r, struct conn *c, struct corral_error *err)
{
    for (;;) {
        size_t have = c->in_to - c->in_from;
        const uint8_t *from = c->in + c->in_from;
        if (c->state == CONN_DATA || c->state == CONN_SKIP) {
            size_t n = CORRAL_MIN(have, c->left);
            if (c->state == CONN_DATA && n > 0) {
                memcpy(c->slot + (c->bytes - c->left), from, n);
            }
            c->in_from += n;
            c->left -= n;
            if (c->left > 0) {
                break;
            }
            CORRAL_TRY(on_data_end(c, err));
            continue;
        }
        struct wire_frame frame;
        if (have < WIRE_HEADER_BYTES) {
            break;
        }
        CORRAL_TRY(wire_read_header(from, &frame, err));
        size_t payload = frame.type == WIRE_DATA ? 0 : frame.bytes; /* at most WIRE_PAYLOAD_MAX */
        if (have < WIRE_HEADER_BYTES + payload) {
            break;
        }
        c->in_from += WIRE_HEADER_BYTES + payload;
        CORRAL_TRY(on_frame(r, c, &frame, from + WIRE_HEADER_BYTES, err));
    }
    memmove(c->in, c->in + c->in_from, c->in_to - c->in_from);
    c->in_to -= c->in_from;
    c->in_from = 0;
    return CORRAL_OK;
}

/* One recv(). Large DATA goes straight into the slot. CORRAL_AGAIN: nothing more for now. */
static enum corral_status receive(struct corral_weight_receiver *r, struct conn *c, struct corral_error *err)
{
    bool direct = c->state == CONN_DATA && c->in_to == 0;
    void *to = direct ? c->slot + (c->bytes - c->left) : c->in + c->in_to;
    size_t room = direct ? c->left : sizeof c->in - c->in_to;
    ssize_t n = recv(c->fd, to, room, MSG_DONTWAIT);
    if (n < 0) {
        if (errno == EINTR) {
            return CORRAL_OK;
        }
        return errno == EAGAIN ? CORRAL_AGAIN : corral_fail(err, CORRAL_PEER, "%s", strerrordesc_np(errno));
    }
    if (n == 0) {
        return corral_fail(err, CORRAL_PEER, "the publisher closed the connection");
    }
    if (conn_logged_in(c)) {
        c->heard_ns = corral_now_ns(&corral_clock_monotonic);
    }
    if (direct) {
        c->left -= (uint64_t)n;
        if (c->left == 0) {
            CORRAL_TRY(on_data_end(c, err));
            CORRAL_TRY(conn_flush(c, err));
        }
        return CORRAL_OK;
    }
    c->in_to += (size_t)n;
    CORRAL_TRY(consume(r, c, err));
    CORRAL_TRY(conn_flush(c, err));
    return (size_t)n < room ? CORRAL_AGAIN : CORRAL_OK; /* a short read: the socket is empty */
}

void conn_serve(struct corral_weight_receiver *r, struct conn *c, short revents)
{
    struct corral_error why = {0};
    enum corral_status status = CORRAL_OK;
    if ((revents & POLLOUT) != 0) {
        status = conn_flush(c, &why);
    }
    if ((revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
        for (int i = 0; i < RECEIVES_MAX && status == CORRAL_OK; i++) {
            status = receive(r, c, &why);
        }
    }
    if (status == CORRAL_OK || status == CORRAL_AGAIN) {
        return;
    }
    if (status == CORRAL_PEER && (c->state == CONN_IDLE || c->state == CONN_HELLO) && c->in_to == 0) {
        conn_close(r, c); /* a goodbye between versions */
        return;
    }
    conn_drop(r, c, &why);
}
