#include "base/clock.h"
#include "transport/bus/bus.h"
#include "transport/bus/socket.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define CLIENT_LINGER_MS 200

struct corral_bus_client {
    void *socket;
    char endpoint[CORRAL_ZMQ_ENDPOINT_MAX];
    zmq_msg_t last; /* the bytes under the last reader handed out */
    bool has_last;
};

CORRAL_DEFINE_CLEANUP(struct corral_bus_client, corral_bus_client_destroy)

static enum corral_status no_room(const struct corral_bus_client *c, enum corral_status status,
                                  struct corral_error *err)
{
    return corral_fail(err, status, "send to %s: it does not read its messages", c->endpoint);
}

enum corral_status corral_bus_client_send(struct corral_bus_client *c, struct corral_mpack_writer *message,
                                          struct corral_error *err)
{
    enum corral_status status = corral_bus_client_send_within(c, message, 0, err);
    return status == CORRAL_TIMEOUT ? no_room(c, CORRAL_PEER, err) : status;
}

enum corral_status corral_bus_client_send_within(struct corral_bus_client *c,
                                                 struct corral_mpack_writer *message, uint32_t timeout_ms,
                                                 struct corral_error *err)
{
    const void *data;
    size_t bytes;
    CORRAL_TRY(corral_mpack_finish(message, &data, &bytes, err));
    if (bytes > CORRAL_BUS_MESSAGE_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "a control message of %zu bytes is larger than the limit of %u", bytes,
                           CORRAL_BUS_MESSAGE_BYTES_MAX);
    }
    int sent = zmq_send(c->socket, data, bytes, ZMQ_DONTWAIT);
    if (sent < 0 && zmq_errno() == EAGAIN && timeout_ms > 0) {
        zmq_pollitem_t room = {.socket = c->socket, .events = ZMQ_POLLOUT};
        (void)zmq_poll(&room, 1, (long)timeout_ms);
        sent = zmq_send(c->socket, data, bytes, ZMQ_DONTWAIT);
    }
    if (sent < 0 && zmq_errno() == EAGAIN) {
        return no_room(c, CORRAL_TIMEOUT, err);
    }
    return sent >= 0
               ? CORRAL_OK
               : corral_fail(err, CORRAL_PEER, "send to %s: %s", c->endpoint, zmq_strerror(zmq_errno()));
}

static enum corral_status say_hello(struct corral_bus_client *c,
                                    const struct corral_bus_client_config *config, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    if (w == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "log in at %s", c->endpoint);
    }
    corral_mpack_map(w, 9);
    corral_mpack_kv_str(w, "type", "hello");
    corral_mpack_kv_u64(w, "protocol", CORRAL_BUS_PROTOCOL);
    corral_mpack_kv_u64(w, "run", config->run);
    corral_mpack_kv_str(w, "token", config->token);
    corral_mpack_kv_str(w, "kind", config->hello.kind);
    corral_mpack_kv_str(w, "name", config->hello.name);
    corral_mpack_kv_u64(w, "epoch", config->hello.epoch);
    corral_mpack_kv_i64(w, "pid", config->hello.pid);
    corral_mpack_kv_str(w, "node", config->hello.node);
    return corral_bus_client_send(c, w, err);
}

/* The next message of one frame into c->last. CORRAL_AGAIN: none by the deadline. */
static enum corral_status receive_frame(struct corral_bus_client *c, uint64_t deadline_ns, bool wait,
                                        struct corral_error *err)
{
    if (c->has_last) {
        zmq_msg_close(&c->last);
    }
    zmq_msg_init(&c->last);
    c->has_last = true;
    for (;;) {
        if (zmq_msg_recv(&c->last, c->socket, ZMQ_DONTWAIT) >= 0) {
            bool several = zmq_msg_more(&c->last) != 0;
            while (zmq_msg_more(&c->last) != 0 && zmq_msg_recv(&c->last, c->socket, ZMQ_DONTWAIT) >= 0) {
            }
            if (several) {
                return corral_fail(err, CORRAL_PROTOCOL, "%s sent a message of several frames", c->endpoint);
            }
            return CORRAL_OK;
        }
        if (zmq_errno() != EAGAIN && zmq_errno() != EINTR) {
            return corral_fail_sys(err, zmq_errno(), "receive from %s", c->endpoint);
        }
        uint64_t now = wait ? corral_now_ns(&corral_clock_monotonic) : 0;
        if (!wait || now >= deadline_ns) {
            return corral_fail(err, CORRAL_AGAIN, "no message from %s", c->endpoint);
        }
        zmq_pollitem_t item = {.socket = c->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, (long)((deadline_ns - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS));
    }
}

static enum corral_status decode_last(struct corral_bus_client *c, char type[32],
                                      struct corral_mpack_reader **out, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
    enum corral_status status =
        corral_mpack_read(&reader, zmq_msg_data(&c->last), zmq_msg_size(&c->last), err);
    if (status == CORRAL_OK) {
        status = corral_mpack_get_str(corral_mpack_root(reader), "type", type, 32, err);
    }
    if (status != CORRAL_OK) {
        return corral_error_prefix(err, status, "message from %s", c->endpoint);
    }
    *out = CORRAL_STEAL(reader);
    return CORRAL_OK;
}

static enum corral_status refused(const struct corral_bus_client *c, enum corral_status status,
                                  const struct corral_mpack_reader *reader, struct corral_error *err)
{
    char reason[256] = "no reason given";
    (void)corral_mpack_get_str(corral_mpack_root(reader), "reason", reason, sizeof reason, NULL);
    return corral_fail(err, status, "refused by %s: %s", c->endpoint, reason);
}

enum corral_status corral_bus_client_receive(struct corral_bus_client *c, uint32_t timeout_ms, char type[32],
                                             struct corral_mpack_reader **out, struct corral_error *err)
{
    bool wait = timeout_ms > 0;
    uint64_t deadline =
        wait ? corral_now_ns(&corral_clock_monotonic) + (uint64_t)timeout_ms * CORRAL_NS_PER_MS : 0;
    for (;;) {
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        char found[32];
        CORRAL_TRY(receive_frame(c, deadline, wait, err));
        CORRAL_TRY(decode_last(c, found, &reader, err));
        if (strcmp(found, "refused") == 0) {
            return refused(c, CORRAL_PEER, reader, err);
        }
        if (strcmp(found, "probe") !=
            0) { /* a probe only asks whether the connection lives, which ZeroMQ has answered */
            memcpy(type, found, sizeof found);
            *out = CORRAL_STEAL(reader);
            return CORRAL_OK;
        }
    }
}

static enum corral_status await_welcome(struct corral_bus_client *c, uint32_t timeout_ms,
                                        struct corral_error *err)
{
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + (uint64_t)timeout_ms * CORRAL_NS_PER_MS;
    enum corral_status status = receive_frame(c, deadline, true, err);
    if (status == CORRAL_AGAIN) {
        return corral_fail(err, CORRAL_TIMEOUT, "no answer to the login at %s within %u ms", c->endpoint,
                           timeout_ms);
    }
    CORRAL_TRY(status);
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
    char type[32];
    uint64_t protocol;
    CORRAL_TRY(decode_last(c, type, &reader, err));
    if (strcmp(type, "refused") == 0) {
        return refused(c, CORRAL_INVALID, reader, err);
    }
    if (strcmp(type, "welcome") != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s answered the login with \"%s\"", c->endpoint, type);
    }
    CORRAL_TRY(corral_mpack_get_u64(corral_mpack_root(reader), "protocol", &protocol, err));
    if (protocol != CORRAL_BUS_PROTOCOL) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s speaks another protocol version", c->endpoint);
    }
    return CORRAL_OK;
}

enum corral_status corral_bus_client_create(struct corral_bus_client **out,
                                            const struct corral_bus_client_config *config,
                                            uint32_t timeout_ms, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_bus_client_destroyp) struct corral_bus_client *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create a control client");
    }
    if (config->endpoint == NULL || strlen(config->endpoint) >= sizeof c->endpoint || config->token == NULL) {
        return corral_fail(err, CORRAL_INVALID, "the control endpoint or token is missing or too long");
    }
    memcpy(c->endpoint, config->endpoint, strlen(config->endpoint) + 1);
    CORRAL_TRY(
        corral_zmq_open(config->zmq_context, ZMQ_DEALER, CORRAL_BUS_MESSAGE_BYTES_MAX, &c->socket, err));
    CORRAL_TRY(corral_zmq_connect(c->socket, config->endpoint, config->server_public_key, err));
    CORRAL_TRY(say_hello(c, config, err));
    CORRAL_TRY(await_welcome(c, timeout_ms, err));
    *out = CORRAL_STEAL(c);
    return CORRAL_OK;
}

void corral_bus_client_destroy(struct corral_bus_client *c)
{
    if (c == NULL) {
        return;
    }
    if (c->has_last) {
        zmq_msg_close(&c->last);
    }
    if (c->socket != NULL) {
        int linger = CLIENT_LINGER_MS;
        zmq_setsockopt(c->socket, ZMQ_LINGER, &linger, sizeof linger);
    }
    corral_zmq_close(c->socket);
    free(c);
}

void *corral_bus_client_socket(struct corral_bus_client *c)
{
    return c->socket;
}
