/* ZeroMQ sockets the way every Corral plane opens them: LINGER 0, bounded messages and queues, heartbeats, a handshake deadline,
 * CURVE on tcp and plain ipc. Private to transport/. A socket belongs to one thread.
 */
#ifndef CORRAL_TRANSPORT_BUS_SOCKET_H
#define CORRAL_TRANSPORT_BUS_SOCKET_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_ZMQ_ENDPOINT_MAX 256
#define CORRAL_ZMQ_QUEUE_MAX 1000 /* messages per peer and direction */
#define CORRAL_ZMQ_HEARTBEAT_MS 3000
#define CORRAL_ZMQ_HEARTBEAT_TIMEOUT_MS 9000
#define CORRAL_ZMQ_HANDSHAKE_MS 5000

/* `type` is ZMQ_ROUTER (made MANDATORY: sending to a peer that has gone fails) or ZMQ_DEALER. */
enum corral_status corral_zmq_open(void *context, int type, uint64_t message_bytes_max, void **out,
                                   struct corral_error *err);
/* Closes at once, dropping what is queued. NULL is fine. */
void corral_zmq_close(void *socket);
/* Close a bound socket. Its ipc files are gone when this returns (waits at most 500 ms each), so the same path may be bound again:
 * some releases of ZeroMQ remove them in another thread, and would otherwise remove the successor's. */
void corral_zmq_close_bound(void *context, void *socket, const char *const *endpoints, size_t count);
/* tcp:// needs `secret_key` (Z85); ipc:// ignores it, so bind ipc endpoints before tcp ones. `bound` gets the address to connect to. */
enum corral_status corral_zmq_bind(void *socket, const char *endpoint, const char *secret_key,
                                   char bound[CORRAL_ZMQ_ENDPOINT_MAX], struct corral_error *err);
/* tcp:// needs the server's public key; a fresh client key pair is made. */
enum corral_status corral_zmq_connect(void *socket, const char *endpoint, const char *server_public_key,
                                      struct corral_error *err);
bool corral_zmq_is_tcp(const char *endpoint);
bool corral_zmq_is_ipc(const char *endpoint);

/* The routing ids that a ROUTER makes up are five bytes, a zero and a 32-bit number. A peer that picked its own id is foreign. */
#define CORRAL_ZMQ_ROUTE_BYTES 5
bool corral_zmq_route_parse(const void *data, size_t bytes, uint32_t *out);
/* One payload frame to one peer. CORRAL_PEER: it has gone (`sys` EHOSTUNREACH) or does not read (`sys` EAGAIN). Never blocks. */
enum corral_status corral_zmq_route_send(void *router, uint32_t route, const void *data, size_t bytes,
                                         struct corral_error *err);

/* Tokens compare in constant time; longer than CORRAL_BUS_TOKEN_MAX - 1 never match. */
bool corral_zmq_token_equal(const char *a, const char *b);

#endif
