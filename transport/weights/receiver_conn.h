/* One connection of the weight receiver: its frames and their states (docs/spec/weights.md). Internal to transport/weights. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_RECEIVER_CONN_H
#define CORRAL_TRANSPORT_WEIGHTS_RECEIVER_CONN_H

#include "transport/weights/publisher.h"
#include "transport/weights/wire.h"
#include <pthread.h>

#define CONNECTIONS_MAX 8
#define IN_BYTES 65536u

enum conn_state {
    CONN_HELLO,
    CONN_PROOF,
    CONN_IDLE,
    CONN_DATA_HEAD, /* PREPARE was taken; the head of DATA follows */
    CONN_DATA,
    CONN_STAGED,
    CONN_SKIP_HEAD, /* PREPARE was refused; its DATA is on the way all the same */
    CONN_SKIP,
};

struct conn {
    int fd;
    enum conn_state state;
    char peer[80];
    uint64_t heard_ns; /* until the login is done: when the connection came */
    uint8_t nonce_p[WIRE_NONCE_BYTES], nonce_r[WIRE_NONCE_BYTES];
    uint64_t version, bytes, left; /* of the version being received; left: DATA bytes still to come */
    uint64_t refused; /* the last version refused: its COMMIT may be on the way already; 0 = none */
    uint8_t *slot;    /* not NULL: this connection has begun a version in the store */
    struct corral_digest digest;
    size_t in_from, in_to, out_from, out_to;
    uint8_t out[4 * WIRE_FRAME_MAX];
    uint8_t in[IN_BYTES];
};

struct corral_weight_receiver {
    struct corral_weight_store *store; /* borrowed; its writer side is this thread's */
    uint64_t run;
    uint8_t secret[32];
    int listen_fd, stop_fd;
    pthread_t thread;
    bool started;
    struct conn *conn[CONNECTIONS_MAX];
    uint64_t accept_after_ns;
};

static inline bool conn_logged_in(const struct conn *c)
{
    return c->state >= CONN_IDLE;
}

/* Work off what poll() reported. May close `c`, and others when `c` has logged in. */
void conn_serve(struct corral_weight_receiver *r, struct conn *c, short revents);
/* Close, giving up what it had begun in the store. */
void conn_close(struct corral_weight_receiver *r, struct conn *c);
/* The same for a reason: logged, and told to the peer when it is the peer's fault. */
void conn_drop(struct corral_weight_receiver *r, struct conn *c, const struct corral_error *why);

#endif
