/* The control plane: ZeroMQ ROUTER (coordinator) and DEALER (agents, workers, rlctl) carrying msgpack maps with a "type" key.
 * docs/spec/control.md lists every message. Limits: CORRAL_BUS_MESSAGE_BYTES_MAX per message; LINGER, HWM, MAXMSGSIZE and heartbeats are always set.
 * Endpoints: ipc:// in a 0700 folder, or tcp:// with CURVE. The first message of a peer must be "hello" with the run's token and
 * protocol version; a peer that fails is refused with a reason and never reaches the caller.
 */
#ifndef CORRAL_TRANSPORT_BUS_H
#define CORRAL_TRANSPORT_BUS_H

#include "base/loop.h"
#include "base/mpack.h"

#define CORRAL_BUS_PROTOCOL 1u
#define CORRAL_BUS_MESSAGE_BYTES_MAX (4u << 20)
#define CORRAL_BUS_PEERS_MAX 4096
#define CORRAL_BUS_NAME_MAX 64
#define CORRAL_BUS_TOKEN_MAX 80

/* What a peer said of itself in its hello. */
struct corral_bus_hello {
    char kind[16]; /* "agent", "worker", "cli" */
    char name
        [CORRAL_BUS_NAME_MAX]; /* "rollout-3"; unique among live peers of a kind: a newer epoch replaces an older peer */
    uint32_t epoch;
    int64_t pid;
    char node[CORRAL_BUS_NAME_MAX];
};

/* ---- server ---- */
struct corral_bus_server;
struct corral_bus_peer; /* owned by the server; `user` is free for the caller */
/* A newer epoch of a live peer's kind and name replaces it: the older peer object is freed when `joined` returns, so let go of it there.
 * The same epoch is let in again only when the older connection is dead. Both callbacks may drop the peer they were given. */
typedef void (*corral_bus_joined_fn)(void *ctx, struct corral_bus_peer *peer);
typedef void (*corral_bus_message_fn)(void *ctx, struct corral_bus_peer *peer, const char *type,
                                      const struct corral_mpack_node *message);
struct corral_bus_server_config {
    struct corral_loop *loop;
    void *zmq_context;
    const char *bind[4]; /* NULL-terminated: ipc://… and tcp://HOST:* */
    const char *token;
    uint64_t run;
    const char *server_secret_key; /* Z85; required for tcp:// */
    corral_bus_joined_fn joined;
    corral_bus_message_fn message;
    void *ctx;
};
enum corral_status corral_bus_server_create(struct corral_bus_server **out,
                                            const struct corral_bus_server_config *config,
                                            struct corral_error *err);
void corral_bus_server_destroy(
    struct corral_bus_server *s); /* not from inside a callback; its ipc files are gone afterwards */
struct corral_bus_server_stats {
    uint64_t peers, refused, malformed; /* logged in now; refusals sent; messages dropped as garbage */
};
void corral_bus_server_stats(const struct corral_bus_server *s, struct corral_bus_server_stats *out);
const char *corral_bus_server_endpoint(const struct corral_bus_server *s,
                                       uint32_t i); /* bound address; NULL past the end */
const struct corral_bus_hello *corral_bus_peer_hello(const struct corral_bus_peer *p);
void corral_bus_peer_set_user(struct corral_bus_peer *p, void *user);
void *corral_bus_peer_user(const struct corral_bus_peer *p);
uint64_t corral_bus_peer_heard_ns(const struct corral_bus_peer *p); /* monotonic time of its last message */
/* Forget a peer: later messages from it are refused until it says hello again. */
void corral_bus_server_drop(struct corral_bus_server *s, struct corral_bus_peer *p);
/* The writer must hold one finished map. Never blocks: a peer that is gone or not reading is CORRAL_PEER. */
enum corral_status corral_bus_server_send(struct corral_bus_server *s, struct corral_bus_peer *p,
                                          struct corral_mpack_writer *message, struct corral_error *err);

/* ---- client ---- */
struct corral_bus_client; /* one thread */
struct corral_bus_client_config {
    void *zmq_context;
    const char *endpoint;
    const char *token;
    uint64_t run;
    const char *server_public_key; /* Z85 for tcp://, else NULL */
    struct corral_bus_hello hello;
};
/* Connects, says hello, and waits for "welcome" (or a refusal: CORRAL_INVALID with its reason) at most timeout_ms (then CORRAL_TIMEOUT). */
enum corral_status corral_bus_client_create(struct corral_bus_client **out,
                                            const struct corral_bus_client_config *config,
                                            uint32_t timeout_ms, struct corral_error *err);
void corral_bus_client_destroy(struct corral_bus_client *c); /* sends what is queued for at most 200 ms */
/* Never waits. CORRAL_PEER: also when the server has stopped reading and the queue is full. */
enum corral_status corral_bus_client_send(struct corral_bus_client *c, struct corral_mpack_writer *message,
                                          struct corral_error *err);
/* Waits for room in the queue; CORRAL_TIMEOUT when there is none within timeout_ms, and the message is still the caller's to send. */
enum corral_status corral_bus_client_send_within(struct corral_bus_client *c,
                                                 struct corral_mpack_writer *message, uint32_t timeout_ms,
                                                 struct corral_error *err);
/* Next message: *out is the caller's to destroy, before the next receive; `type` is copied. CORRAL_AGAIN: none within timeout_ms. CORRAL_PEER: the server
 * does not know this client (any more): it was replaced, dropped, or the server was restarted; create a new client. Polling without one costs about a microsecond. */
enum corral_status corral_bus_client_receive(struct corral_bus_client *c, uint32_t timeout_ms, char type[32],
                                             struct corral_mpack_reader **out, struct corral_error *err);
void *corral_bus_client_socket(struct corral_bus_client *c); /* for corral_loop_zmq() */

/* A fresh CURVE key pair, Z85, 41 bytes each with the NUL. */
enum corral_status corral_bus_keypair(char public_key[41], char secret_key[41], struct corral_error *err);

#endif
