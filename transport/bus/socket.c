#include "transport/bus/socket.h"
#include "base/hash.h"
#include "transport/bus/bus.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

struct int_option {
    int option, value;
};

static enum corral_status set_options(void *socket, const struct int_option *options, size_t count,
                                      struct corral_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (zmq_setsockopt(socket, options[i].option, &options[i].value, sizeof options[i].value) != 0) {
            return corral_fail_sys(err, zmq_errno(), "set ZeroMQ option %d", options[i].option);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_zmq_open(void *context, int type, uint64_t message_bytes_max, void **out,
                                   struct corral_error *err)
{
    void *socket = zmq_socket(context, type);
    if (socket == NULL) {
        return corral_fail_sys(err, zmq_errno(), "open a ZeroMQ socket");
    }
    static const struct int_option common[] = {
        {ZMQ_LINGER, 0},
        {ZMQ_SNDHWM, CORRAL_ZMQ_QUEUE_MAX},
        {ZMQ_RCVHWM, CORRAL_ZMQ_QUEUE_MAX},
        {ZMQ_HEARTBEAT_IVL, CORRAL_ZMQ_HEARTBEAT_MS},
        {ZMQ_HEARTBEAT_TIMEOUT, CORRAL_ZMQ_HEARTBEAT_TIMEOUT_MS},
        {ZMQ_HEARTBEAT_TTL, CORRAL_ZMQ_HEARTBEAT_TIMEOUT_MS},
        {ZMQ_HANDSHAKE_IVL, CORRAL_ZMQ_HANDSHAKE_MS},
        {ZMQ_RECONNECT_IVL, 50},
        {ZMQ_RECONNECT_IVL_MAX, 1000},
        {ZMQ_BACKLOG, 1024},
    };
    static const struct int_option router[] = {{ZMQ_ROUTER_MANDATORY, 1}};
    int64_t message_max = (int64_t)message_bytes_max;
    enum corral_status status = set_options(socket, common, CORRAL_COUNT_OF(common), err);
    if (status == CORRAL_OK && type == ZMQ_ROUTER) {
        status = set_options(socket, router, CORRAL_COUNT_OF(router), err);
    }
    if (status == CORRAL_OK &&
        zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &message_max, sizeof message_max) != 0) {
        status = corral_fail_sys(err, zmq_errno(), "bound the ZeroMQ message size");
    }
    if (status != CORRAL_OK) {
        zmq_close(socket);
        return status;
    }
    *out = socket;
    return CORRAL_OK;
}

void corral_zmq_close(void *socket)
{
    if (socket != NULL) {
        zmq_close(socket);
    }
}

bool corral_zmq_is_tcp(const char *endpoint)
{
    return strncmp(endpoint, "tcp://", 6) == 0;
}

bool corral_zmq_is_ipc(const char *endpoint)
{
    return strncmp(endpoint, "ipc://", 6) == 0;
}

static void wait_for_close_event(void *monitor)
{
    zmq_pollitem_t item = {.socket = monitor, .events = ZMQ_POLLIN};
    if (zmq_poll(&item, 1, 500) <= 0) {
        return;
    }
    zmq_msg_t part;
    for (int more = 1; more != 0;) {
        zmq_msg_init(&part);
        int rc = zmq_msg_recv(&part, monitor, ZMQ_DONTWAIT);
        more = rc >= 0 && zmq_msg_more(&part);
        zmq_msg_close(&part);
    }
}

void corral_zmq_close_bound(void *context, void *socket, const char *const *endpoints, size_t count)
{
    if (socket == NULL) {
        return;
    }
    char name[64];
    snprintf(name, sizeof name, "inproc://corral-close-%p", socket);
    void *monitor = NULL;
    if (zmq_socket_monitor(socket, name, ZMQ_EVENT_CLOSED) == 0) {
        monitor = zmq_socket(context, ZMQ_PAIR);
        int linger = 0;
        if (monitor != NULL && (zmq_setsockopt(monitor, ZMQ_LINGER, &linger, sizeof linger) != 0 ||
                                zmq_connect(monitor, name) != 0)) {
            zmq_close(monitor);
            monitor = NULL;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (!corral_zmq_is_ipc(endpoints[i]) || zmq_unbind(socket, endpoints[i]) != 0) {
            continue;
        }
        if (monitor != NULL) {
            wait_for_close_event(monitor);
        }
        (void)unlink(endpoints[i] + 6); /* some releases of ZeroMQ leave it */
    }
    zmq_socket_monitor(socket, NULL, 0);
    corral_zmq_close(monitor);
    zmq_close(socket);
}

static enum corral_status check_endpoint(const char *endpoint, const char *key, const char *key_name,
                                         struct corral_error *err)
{
    if (endpoint == NULL || (!corral_zmq_is_tcp(endpoint) && !corral_zmq_is_ipc(endpoint))) {
        return corral_fail(err, CORRAL_INVALID, "endpoint \"%s\" is neither ipc:// nor tcp://",
                           endpoint != NULL ? endpoint : "");
    }
    size_t path_max = sizeof((struct sockaddr_un *)NULL)->sun_path - 1;
    if (corral_zmq_is_ipc(endpoint) && strlen(endpoint + 6) > path_max) {
        return corral_fail(err, CORRAL_INVALID, "endpoint \"%s\": a socket path has at most %zu bytes",
                           endpoint, path_max);
    }
    if (corral_zmq_is_tcp(endpoint) && (key == NULL || strlen(key) != 40)) {
        return corral_fail(err, CORRAL_INVALID, "endpoint \"%s\" needs the %s (40 characters, Z85)", endpoint,
                           key_name);
    }
    return CORRAL_OK;
}

enum corral_status corral_zmq_bind(void *socket, const char *endpoint, const char *secret_key,
                                   char bound[CORRAL_ZMQ_ENDPOINT_MAX], struct corral_error *err)
{
    CORRAL_TRY(check_endpoint(endpoint, secret_key, "server's secret key", err));
    if (corral_zmq_is_tcp(endpoint)) {
        int yes = 1;
        if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes) != 0 ||
            zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 41) != 0) {
            return corral_fail_sys(err, zmq_errno(), "set the CURVE key of %s", endpoint);
        }
    }
    size_t bytes = CORRAL_ZMQ_ENDPOINT_MAX;
    if (zmq_bind(socket, endpoint) != 0) {
        return corral_fail_sys(err, zmq_errno(), "bind %s", endpoint);
    }
    if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &bytes) != 0) {
        return corral_fail_sys(err, zmq_errno(), "find the address bound for %s", endpoint);
    }
    return CORRAL_OK;
}

enum corral_status corral_zmq_connect(void *socket, const char *endpoint, const char *server_public_key,
                                      struct corral_error *err)
{
    CORRAL_TRY(check_endpoint(endpoint, server_public_key, "server's public key", err));
    if (corral_zmq_is_tcp(endpoint)) {
        char public_key[41], secret_key[41];
        CORRAL_TRY(corral_bus_keypair(public_key, secret_key, err));
        bool set = zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server_public_key, 41) == 0 &&
                   zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public_key, 41) == 0 &&
                   zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 41) == 0;
        explicit_bzero(secret_key, sizeof secret_key);
        if (!set) {
            return corral_fail_sys(err, zmq_errno(), "set the CURVE keys for %s", endpoint);
        }
    }
    if (zmq_connect(socket, endpoint) != 0) {
        return corral_fail_sys(err, zmq_errno(), "connect %s", endpoint);
    }
    return CORRAL_OK;
}

bool corral_zmq_route_parse(const void *data, size_t bytes, uint32_t *out)
{
    if (bytes != CORRAL_ZMQ_ROUTE_BYTES || ((const uint8_t *)data)[0] != 0) {
        return false;
    }
    memcpy(out, (const uint8_t *)data + 1, sizeof *out);
    return true;
}

enum corral_status corral_zmq_route_send(void *router, uint32_t route, const void *data, size_t bytes,
                                         struct corral_error *err)
{
    uint8_t id[CORRAL_ZMQ_ROUTE_BYTES] = {0};
    memcpy(id + 1, &route, sizeof route);
    if (zmq_send(router, id, sizeof id, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) {
        int sys = zmq_errno();
        enum corral_status status = corral_fail(err, CORRAL_PEER, "%s",
                                                sys == EHOSTUNREACH ? "the peer has gone"
                                                : sys == EAGAIN     ? "the peer does not read its messages"
                                                                    : zmq_strerror(sys));
        if (err != NULL) {
            err->sys = sys;
        }
        return status;
    }
    if (zmq_send(router, data, bytes, ZMQ_DONTWAIT) < 0) {
        return corral_fail(err, CORRAL_PEER, "send to a peer: %s", zmq_strerror(zmq_errno()));
    }
    return CORRAL_OK;
}

bool corral_zmq_token_equal(const char *a, const char *b)
{
    char padded[2][CORRAL_BUS_TOKEN_MAX] = {{0}};
    size_t a_bytes = strnlen(a, CORRAL_BUS_TOKEN_MAX), b_bytes = strnlen(b, CORRAL_BUS_TOKEN_MAX);
    if (a_bytes == CORRAL_BUS_TOKEN_MAX || b_bytes == CORRAL_BUS_TOKEN_MAX) {
        return false;
    }
    memcpy(padded[0], a, a_bytes);
    memcpy(padded[1], b, b_bytes);
    return corral_bytes_equal(padded[0], padded[1], CORRAL_BUS_TOKEN_MAX) != 0;
}

enum corral_status corral_bus_keypair(char public_key[41], char secret_key[41], struct corral_error *err)
{
    if (zmq_curve_keypair(public_key, secret_key) != 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "make a CURVE key pair: %s", zmq_strerror(zmq_errno()));
    }
    return CORRAL_OK;
}
