/* The small connection beside a lane that moves its bytes on the device: which bucket comes next, which staging is free again, and that the other end is still there. Internal to the nccl and
 * cuda_ipc lanes.
 *
 * The receiver listens, on an abstract Unix socket (cuda_ipc: both are on one machine, and the kernel names the peer) or on TCP (nccl); the offer carries the address and a random token, the sender
 * connects and shows the token. Then both send frames of 32 bytes. Nothing here ever blocks longer than it is told to.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_SIDE_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_SIDE_H

#include "transport/weights/lanes/support.h"

#define CORRAL_SIDE_OPEN_TIMEOUT_NS UINT64_C(10000000000) /* when the options say 0 */
#define CORRAL_SIDE_ADDRESS_BYTES 64                      /* "@name" or "host:port", with its end */
#define CORRAL_SIDE_OFFER_BYTES (CORRAL_SIDE_ADDRESS_BYTES + CORRAL_LANE_TOKEN_BYTES)

struct corral_side_message {
    uint32_t type, bucket;
    uint64_t push, a, b;
};

struct corral_side {
    int listener, fd; /* -1: none */
    uint8_t token[CORRAL_LANE_TOKEN_BYTES];
    uint8_t in[32];
    uint32_t in_bytes; /* of a frame that has not arrived whole */
    int32_t peer_pid;  /* Unix: who is there; 0 otherwise */
};

static inline uint64_t corral_side_open_timeout(const struct corral_lane_options *options)
{
    return options->open_timeout_ns != 0 ? options->open_timeout_ns : CORRAL_SIDE_OPEN_TIMEOUT_NS;
}
void corral_side_init(struct corral_side *side);
/* host NULL: a Unix socket. Writes CORRAL_SIDE_OFFER_BYTES at `offer`. */
enum corral_status corral_side_listen(struct corral_side *side, const char *host, uint8_t *offer,
                                      struct corral_error *err);
/* Sender: connects to what the offer says and shows the token. CORRAL_PEER: nobody listens there, which for a Unix socket means another machine or another network namespace. */
enum corral_status corral_side_connect(struct corral_side *side, const uint8_t *offer, uint64_t timeout_ns,
                                       struct corral_error *err);
/* Receiver: takes the sender's connection; strangers without the token are turned away. */
enum corral_status corral_side_accept(struct corral_side *side, uint64_t timeout_ns,
                                      struct corral_error *err);

/* CORRAL_AGAIN: the connection is full, nothing was sent. CORRAL_PEER: the other end is gone. */
enum corral_status corral_side_send(struct corral_side *side, const struct corral_side_message *message,
                                    struct corral_error *err);
/* CORRAL_AGAIN: nothing there. */
enum corral_status corral_side_receive(struct corral_side *side, struct corral_side_message *message,
                                       struct corral_error *err);
void corral_side_close(struct corral_side *side);

#endif
