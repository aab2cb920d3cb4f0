/* A puller, shared by its thread's two halves. Internal to push/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_PULL_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_PULL_INTERNAL_H

#include "transport/weights/push/pull.h"
#include "transport/weights/push/receiver_internal.h"
#include <stdatomic.h>

struct puller {
    struct corral_push_receiver *r; /* what does not change after its start, and the target */
    char peer[CORRAL_PULL_PEERS_MAX][CORRAL_PULL_ENDPOINT_MAX];
    uint32_t count;
    uint64_t timeout_ns, deadline_ns;
    int cancel_fd;
    pthread_t thread;
    atomic_bool ended; /* release; what follows is the control thread's then */
    bool applied, tried;
    uint64_t version, first_ns, last_ns, hash_ns, flip_ns;
    struct corral_digest digest;
    uint32_t resent;
    char lane[PUSH_LANE_NAME_MAX];
    struct corral_error error; /* of the peer that failed last; CORRAL_OK: none had anything newer */
};

/* pull_attempt.c, on the puller's thread: takes the current version from one peer, if it has a newer one. */
enum corral_status pull_from(struct puller *p, const char *peer, struct corral_error *err);

#endif
