/* Two ends of a lane in two processes, both forked from one that never touches a device: for tests of lanes whose memory belongs to a process, and for measuring any lane. Only for tests and programs. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_TEST_PAIR_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_TEST_PAIR_H

#include "transport/weights/lanes/lane.h"

enum pair_memory {
    PAIR_HOST,
    PAIR_DEVICE,  /* cuMemAlloc: can be exported */
    PAIR_MANAGED, /* cuMemAllocManaged: cannot */
};

/* A tensor of rows × columns bytes, of which the destination has columns [first, first + count) with 16 bytes of padding, or, when that is all, the whole as one run. */
struct pair_options {
    const char *lane;
    struct corral_lane_options options;
    uint64_t rows, columns, first, count, bucket_bytes, deadline_ns; /* deadline of a push */
    uint32_t pushes, resend; /* resend: buckets from 0 on that are sent twice */
    enum pair_memory source, destination;
    /* Set in one child's environment: "CORRAL_FAKENCCL", "die:3". NULL: nothing. */
    const char *variable, *sender_value, *receiver_value;
    uint32_t sender_dies_after, receiver_dies_after,
        sender_stops_after; /* buckets of the last push; 0: never */
};

struct pair_result {
    bool reported; /* false: it died first */
    enum corral_status status;
    char text[200];
    uint32_t pushed;   /* pushes that ended well and were right in every byte */
    int32_t tainted;   /* receiver: the sender's pid, or 0 */
    bool is_peer;      /* tainted is the sender */
    uint64_t push_ns;  /* of the fastest push, from begin to the last bucket */
    uint64_t close_ns; /* closing the lane */
    uint32_t abandoned;
};

/* False: it could not be run, and *receiver says why. Both processes have ended on return. */
bool pair_run(const struct pair_options *options, struct pair_result *receiver, struct pair_result *sender);

#endif
