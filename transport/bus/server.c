#include "base/clock.h"
#include "base/log.h"
#include "transport/bus/bus.h"
#include "transport/bus/idmap.h"
#include "transport/bus/socket.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define BIND_MAX 4
#define BATCH_MAX 64 /* messages handled per callback, so that timers and signals get their turn */
#define FRAMES_MAX 2 /* routing id, payload */

struct corral_bus_peer {
    struct corral_bus_hello hello;
    uint32_t route;
    uint64_t heard_ns;
    void *user;
    bool complained; /* its first malformed message was logged */
    struct corral_bus_peer *next, **link;
};

struct corral_bus_server {
    struct corral_loop *loop;
    void *context, *socket;
    struct corral_loop_watch *watch;
    char bound[BIND_MAX][CORRAL_ZMQ_ENDPOINT_MAX];
    uint32_t bound_count;
    char token[CORRAL_BUS_TOKEN_MAX];
    uint64_t run;
    corral_bus_joined_fn joined;
    corral_bus_message_fn message;
    void *ctx;
    struct corral_bus_peer *peers;
    struct corral_idmap by_route;
    struct corral_idring strangers;
    struct corral_mpack_writer *writer; /* for replies of the server itself */
    struct corral_bus_server_stats stats;
    bool in_callback;
};

/* ---- peers ---- */

static struct corral_bus_peer *peer_add(struct corral_bus_server *s, const struct corral_bus_hello *hello,
                                        uint32_t route)
{
    struct corral_bus_peer *p = calloc(1, sizeof *p);
    if (p == NULL || !corral_idmap_put(&s->by_route, route, p)) {
        free(p);
        return NULL;
    }
    p->hello = *hello;
    p->route = route;
    p->next = s->peers;
    p->link = &s->peers;
    if (p->next != NULL) {
        p->next->link = &p->next;
    }
    s->peers = p;
    s->stats.peers++;
    return p;
}

/* Out of every table; the caller frees. */
static void peer_unlink(struct corral_bus_server *s, struct corral_bus_peer *p)
{
    *p->link = p->next;
    if (p->next != NULL) {
        p->next->link = p->link;
    }
    if (corral_idmap_get(&s->by_route, p->route) == p) {
        corral_idmap_remove(&s->by_route, p->route);
    }
    s->stats.peers--;
}

static struct corral_bus_peer *peer_named(const struct corral_bus_server *s,
                                          const struct corral_bus_hello *hello)
{
    for (struct corral_bus_peer *p = s->peers; p != NULL; p = p->next) {
        if (strcmp(p->hello.kind, hello->kind) == 0 && strcmp(p->hello.name, hello->name) == 0) {
            return p;
        }
    }
    return NULL;
}

void corral_bus_server_drop(struct corral_bus_server *s, struct corral_bus_peer *p)
{
    peer_unlink(s, p);
    free(p);
}

const struct corral_bus_hello *corral_bus_peer_hello(const struct corral_bus_peer *p)
{
    return &p->hello;
}

void corral_bus_peer_set_user(struct corral_bus_peer *p, void *user)
{
    p->user = user;
}

void *corral_bus_peer_user(const struct corral_bus_peer *p)
{
    return p->user;
}

uint64_t corral_bus_peer_heard_ns(const struct corral_bus_peer *p)
{
    return p->heard_ns;
}

/* ---- sending ---- */

static enum corral_status route_send(struct corral_bus_server *s, uint32_t route,
                                     struct corral_mpack_writer *message, struct corral_error *err)
{
    const void *data;
    size_t bytes;
    CORRAL_TRY(corral_mpack_finish(message, &data, &bytes, err));
    if (bytes > CORRAL_BUS_MESSAGE_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "a control message of %zu bytes is larger than the limit of %u", bytes,
                           CORRAL_BUS_MESSAGE_BYTES_MAX);
    }
    enum corral_status status = corral_zmq_route_send(s->socket, route, data, bytes, err);
    if (!s->in_callback && s->watch != NULL) {
        corral_loop_zmq_kick(s->watch);
    }
    return status;
}

enum corral_status corral_bus_server_send(struct corral_bus_server *s, struct corral_bus_peer *p,
                                          struct corral_mpack_writer *message, struct corral_error *err)
{
    enum corral_status status = route_send(s, p->route, message, err);
    if (status == CORRAL_OK) {
        return CORRAL_OK;
    }
    return corral_error_prefix(err, status, "send to %s %s", p->hello.kind, p->hello.name);
}

/* {type, key: value}; a peer that can't take it has gone, and nobody is waiting for it. */
static enum corral_status reply(struct corral_bus_server *s, uint32_t route, const char *type,
                                const char *reason, struct corral_error *err)
{
    corral_mpack_writer_reset(s->writer);
    corral_mpack_map(s->writer, 2);
    corral_mpack_kv_str(s->writer, "type", type);
    if (reason != NULL) {
        corral_mpack_kv_str(s->writer, "reason", reason);
    } else {
        corral_mpack_kv_u64(s->writer, "protocol", CORRAL_BUS_PROTOCOL);
    }
    return route_send(s, route, s->writer, err);
}

/* ---- login ---- */

static void refuse(struct corral_bus_server *s, uint32_t route, const char *name, const char *reason)
{
    s->stats.refused++;
    (void)reply(s, route, "refused", reason, NULL);
    if (!corral_idring_seen(&s->strangers, route)) {
        corral_log_warn("control peer refused", LOG_STR("name", name), LOG_STR("why", reason));
    }
}

static bool name_is_plain(const char *name)
{
    for (const char *c = name; *c != '\0'; c++) {
        if (*c <= ' ' || *c >= 0x7f) {
            return false;
        }
    }
    return name[0] != '\0';
}

/* The reason for a refusal, or NULL. */
static const char *check_hello(const struct corral_bus_server *s, const struct corral_mpack_node *root,
                               struct corral_bus_hello *hello, struct corral_error *err)
{
    uint64_t protocol, run, epoch;
    char token[CORRAL_BUS_TOKEN_MAX];
    if (corral_mpack_get_u64(root, "protocol", &protocol, err) != CORRAL_OK ||
        corral_mpack_get_u64(root, "run", &run, err) != CORRAL_OK ||
        corral_mpack_get_str(root, "token", token, sizeof token, err) != CORRAL_OK ||
        corral_mpack_get_str(root, "kind", hello->kind, sizeof hello->kind, err) != CORRAL_OK ||
        corral_mpack_get_str(root, "name", hello->name, sizeof hello->name, err) != CORRAL_OK ||
        corral_mpack_get_u64(root, "epoch", &epoch, err) != CORRAL_OK ||
        corral_mpack_get_i64(root, "pid", &hello->pid, err) != CORRAL_OK ||
        corral_mpack_get_str(root, "node", hello->node, sizeof hello->node, err) != CORRAL_OK) {
        return err->text;
    }
    hello->epoch = (uint32_t)epoch;
    if (protocol != CORRAL_BUS_PROTOCOL) {
        return "another protocol version";
    }
    /* The token first: only who knows it learns more about this run. */
    if (!corral_zmq_token_equal(token, s->token)) {
        return "wrong token";
    }
    if (run != s->run) {
        return "another run";
    }
    if (epoch > UINT32_MAX || !name_is_plain(hello->name) || !name_is_plain(hello->kind)) {
        return "name, kind or epoch is malformed";
    }
    return NULL;
}

/* Whether `older` may be replaced by a peer with this hello. A connection that was lost leaves a peer with the same epoch behind; a probe
 * tells it from one that lives. */
static bool may_replace(struct corral_bus_server *s, const struct corral_bus_peer *older,
                        const struct corral_bus_hello *hello)
{
    if (hello->epoch != older->hello.epoch) {
        return hello->epoch > older->hello.epoch;
    }
    struct corral_error err = {.sys = 0};
    return reply(s, older->route, "probe", NULL, &err) == CORRAL_PEER && err.sys == EHOSTUNREACH;
}

static void handle_hello(struct corral_bus_server *s, uint32_t route, const struct corral_mpack_node *root)
{
    struct corral_bus_hello hello = {.kind = ""};
    struct corral_error err;
    const char *why = check_hello(s, root, &hello, &err);
    if (why != NULL) {
        refuse(s, route, hello.name, why);
        return;
    }
    struct corral_bus_peer *same_route = corral_idmap_get(&s->by_route, route);
    struct corral_bus_peer *older = peer_named(s, &hello);
    if (same_route != NULL && same_route != older) {
        refuse(s, route, hello.name, "this connection has logged in under another name");
        return;
    }
    if (older != NULL && older->route != route && !may_replace(s, older, &hello)) {
        refuse(s, route, hello.name, "a peer of this name with this or a newer epoch is logged in");
        return;
    }
    if (older != NULL && older->route == route && hello.epoch <= older->hello.epoch) {
        refuse(s, route, hello.name, "already logged in");
        return;
    }
    if (older != NULL) {
        peer_unlink(s, older);
    }
    struct corral_bus_peer *p = peer_add(s, &hello, route);
    if (p == NULL) {
        free(older);
        refuse(s, route, hello.name, "too many peers");
        return;
    }
    p->heard_ns = corral_now_ns(&corral_clock_monotonic);
    if (older != NULL && older->route != route) {
        (void)reply(s, older->route, "refused", "replaced by a newer epoch of the same name", NULL);
    }
    if (reply(s, route, "welcome", NULL, &err) != CORRAL_OK) {
        corral_bus_server_drop(s, p);
    } else if (s->joined != NULL) {
        s->joined(s->ctx, p);
    }
    free(older); /* only now: the caller may still hold it until joined has told it otherwise */
}

/* ---- receiving ---- */

static void complain(struct corral_bus_server *s, uint32_t route, const char *why)
{
    struct corral_bus_peer *p = corral_idmap_get(&s->by_route, route);
    s->stats.malformed++;
    if (p != NULL && !p->complained) {
        p->complained = true;
        corral_log_warn("malformed control message dropped; more from this peer are counted only",
                        LOG_STR("name", p->hello.name), LOG_STR("why", why));
    } else if (p == NULL && !corral_idring_seen(&s->strangers, route)) {
        corral_log_warn("malformed control message dropped; more from this peer are counted only",
                        LOG_STR("name", "?"), LOG_STR("why", why));
    }
}

static void handle_payload(struct corral_bus_server *s, uint32_t route, const void *data, size_t bytes)
{
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
    struct corral_error err;
    char type[32];
    if (corral_mpack_read(&reader, data, bytes, &err) != CORRAL_OK) {
        complain(s, route, err.text);
        return;
    }
    const struct corral_mpack_node *root = corral_mpack_root(reader);
    if (corral_mpack_get_str(root, "type", type, sizeof type, &err) != CORRAL_OK) {
        complain(s, route, err.text);
        return;
    }
    if (strcmp(type, "hello") == 0) {
        handle_hello(s, route, root);
        return;
    }
    struct corral_bus_peer *p = corral_idmap_get(&s->by_route, route);
    if (p == NULL) {
        refuse(s, route, "?", "not logged in: say hello first");
        return;
    }
    p->heard_ns = corral_now_ns(&corral_clock_monotonic);
    if (s->message != NULL) {
        s->message(s->ctx, p, type, root);
    }
}

struct incoming {
    zmq_msg_t part[FRAMES_MAX];
    uint32_t parts; /* initialised ones */
    uint32_t total; /* frames of the message, extra ones included */
};

static void incoming_close(struct incoming *m)
{
    for (uint32_t i = 0; i < m->parts; i++) {
        zmq_msg_close(&m->part[i]);
    }
}

/* One multipart message; frames beyond FRAMES_MAX are read and thrown away. False when there is none. */
static bool incoming_receive(void *socket, struct incoming *m)
{
    *m = (struct incoming){.parts = 0};
    for (bool more = true; more;) {
        zmq_msg_t extra, *part = m->parts < FRAMES_MAX ? &m->part[m->parts] : &extra;
        zmq_msg_init(part);
        int rc = zmq_msg_recv(part, socket, ZMQ_DONTWAIT);
        more = rc >= 0 && zmq_msg_more(part) != 0;
        if (rc >= 0) {
            m->total++;
        }
        if (part == &extra || rc < 0) {
            zmq_msg_close(part);
        } else {
            m->parts++;
        }
    }
    return m->total > 0;
}

CORRAL_DEFINE_CLEANUP(struct incoming, incoming_close)

static void on_readable(void *ctx, void *socket)
{
    struct corral_bus_server *s = ctx;
    s->in_callback = true;
    struct incoming m;
    for (uint32_t i = 0; i < BATCH_MAX && incoming_receive(socket, &m); i++) {
        CORRAL_CLEANUP(incoming_closep) struct incoming *open = &m;
        uint32_t route;
        if (!corral_zmq_route_parse(zmq_msg_data(&open->part[0]), zmq_msg_size(&open->part[0]), &route)) {
            s->stats.malformed++; /* a peer that chose its own routing id; there is no name to log it under */
        } else if (open->total != FRAMES_MAX) {
            complain(s, route, "a control message has one frame");
        } else {
            handle_payload(s, route, zmq_msg_data(&open->part[1]), zmq_msg_size(&open->part[1]));
        }
    }
    s->in_callback = false;
}

/* ---- life ---- */

static enum corral_status bind_all(struct corral_bus_server *s, const struct corral_bus_server_config *c,
                                   struct corral_error *err)
{
    for (uint32_t i = 0; i < BIND_MAX && c->bind[i] != NULL; i++) {
        s->bound_count = i + 1;
    }
    if (s->bound_count == 0) {
        return corral_fail(err, CORRAL_INVALID, "the control plane has no endpoint to bind");
    }
    /* ipc first: once CURVE is switched on it holds for every later bind of the socket. */
    for (int tcp = 0; tcp <= 1; tcp++) {
        for (uint32_t i = 0; i < s->bound_count; i++) {
            if (corral_zmq_is_tcp(c->bind[i]) == (tcp == 1)) {
                CORRAL_TRY(corral_zmq_bind(s->socket, c->bind[i], c->server_secret_key, s->bound[i], err));
            }
        }
    }
    return CORRAL_OK;
}

CORRAL_DEFINE_CLEANUP(struct corral_bus_server, corral_bus_server_destroy)

enum corral_status corral_bus_server_create(struct corral_bus_server **out,
                                            const struct corral_bus_server_config *config,
                                            struct corral_error *err)
{
    if (config->token == NULL || strlen(config->token) >= CORRAL_BUS_TOKEN_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "the control plane's token is missing or longer than %d characters",
                           CORRAL_BUS_TOKEN_MAX - 1);
    }
    CORRAL_CLEANUP(corral_bus_server_destroyp) struct corral_bus_server *s = calloc(1, sizeof *s);
    if (s == NULL || !corral_idmap_init(&s->by_route, CORRAL_BUS_PEERS_MAX) ||
        (s->writer = corral_mpack_writer_create()) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create the control plane's server");
    }
    s->loop = config->loop;
    s->context = config->zmq_context;
    s->run = config->run;
    s->joined = config->joined;
    s->message = config->message;
    s->ctx = config->ctx;
    memcpy(s->token, config->token, strlen(config->token) + 1);
    CORRAL_TRY(corral_zmq_open(s->context, ZMQ_ROUTER, CORRAL_BUS_MESSAGE_BYTES_MAX, &s->socket, err));
    CORRAL_TRY(bind_all(s, config, err));
    CORRAL_TRY(corral_loop_zmq(s->loop, s->socket, on_readable, s, &s->watch, err));
    *out = CORRAL_STEAL(s);
    return CORRAL_OK;
}

void corral_bus_server_destroy(struct corral_bus_server *s)
{
    if (s == NULL) {
        return;
    }
    corral_loop_remove(s->watch);
    const char *endpoints[BIND_MAX];
    for (uint32_t i = 0; i < s->bound_count; i++) {
        endpoints[i] = s->bound[i];
    }
    corral_zmq_close_bound(s->context, s->socket, endpoints, s->bound_count);
    while (s->peers != NULL) {
        corral_bus_server_drop(s, s->peers);
    }
    corral_idmap_free(&s->by_route);
    corral_mpack_writer_destroy(s->writer);
    free(s);
}

const char *corral_bus_server_endpoint(const struct corral_bus_server *s, uint32_t i)
{
    return i < s->bound_count ? s->bound[i] : NULL;
}

void corral_bus_server_stats(const struct corral_bus_server *s, struct corral_bus_server_stats *out)
{
    *out = s->stats;
}
