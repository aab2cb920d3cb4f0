/* What the two halves of the tcp implementation share: joining (tcp_join.c) and exchanging (tcp.c). Internal.
 * The wire format is docs/spec/collective.md.
 */
#ifndef CORRAL_TRANSPORT_COLLECTIVE_TCP_H
#define CORRAL_TRANSPORT_COLLECTIVE_TCP_H

#include "transport/collective/call.h"

#define CORRAL_TCP_SECRET_BYTES 32

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "frames and tensors travel little-endian as they lie in memory");

struct corral_tcp_identity {
    uint32_t rank, ranks, generation;
    const uint8_t *secret;
};

/* Rank 0: accept and authenticate all others before the deadline; fd[1 .. ranks-1] are then the caller's. On failure none is open. */
enum corral_status corral_tcp_accept_all(struct corral_collective_listener *l,
                                         const struct corral_tcp_identity *self, uint64_t deadline_ns,
                                         int *fd, struct corral_error *err);
/* The others: connect to rank 0 and authenticate both ways. */
enum corral_status corral_tcp_connect(const char *endpoint, const struct corral_tcp_identity *self,
                                      uint64_t deadline_ns, int *fd, struct corral_error *err);

/* Milliseconds for poll() until the deadline, rounded up; 0 when it has passed. */
int corral_tcp_poll_ms(uint64_t deadline_ns);

#endif
