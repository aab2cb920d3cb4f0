/* Measuring a lane between two endpoints, and choosing by what was measured ("auto"; `rlctl weights probe`).
 *
 * The two ends talk over `fd`, a connected stream socket that the caller has opened and authenticated: one calls _send, the other _receive, with equal bytes and bucket_bytes.
 * Some pushes of synthesised bytes go over the lane into shared host memory; every bucket's digest is checked where it arrived. Then one small bucket goes back and forth for the latency.
 * Both block, at most timeout_ns, and leave `fd` open; after a failure it is of no more use. Memory: twice `bytes` on the two sides together, and the lane's own.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_PROBE_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_PROBE_H

#include "transport/weights/lanes/lane.h"

#define CORRAL_LANE_PROBE_BYTES_MAX (UINT64_C(4) << 30)
#define CORRAL_LANE_PROBE_SMALL 4096 /* bytes of the bucket that the latency is of */

struct corral_lane_probe_options {
    uint64_t bytes;        /* of a push; 0: 256 MiB */
    uint64_t bucket_bytes; /* 0: 2 MiB */
    uint64_t timeout_ns;   /* 0: 20 s */
    struct corral_lane_options lane;
};

struct corral_lane_probe_result {
    enum corral_lane_kind kind;
    uint64_t bytes;
    uint64_t
        push_ns; /* median: from the first byte sent until the receiver says that all digests are right */
    uint64_t latency_ns; /* median: from a small bucket's sending until the receiver says that it is there */
};

/* CORRAL_UNSUPPORTED, with the reason, when either side has not got the lane. */
enum corral_status corral_lane_probe_send(int fd, const struct corral_lane_ops *ops,
                                          const struct corral_lane_probe_options *options,
                                          struct corral_lane_probe_result *result, struct corral_error *err);
enum corral_status corral_lane_probe_receive(int fd, const struct corral_lane_ops *ops,
                                             const struct corral_lane_probe_options *options,
                                             struct corral_error *err);
/* Both ends in this process: what the lane reaches inside this machine. */
enum corral_status corral_lane_probe(const struct corral_lane_ops *ops,
                                     const struct corral_lane_probe_options *options,
                                     struct corral_lane_probe_result *result, struct corral_error *err);

double
corral_lane_probe_rate(const struct corral_lane_probe_result *result); /* bytes per ns, which is GB/s */
/* The one of `kinds` (1u << enum corral_lane_kind, what both sides have and allow) that moves `bytes` soonest, by latency and rate. CORRAL_NOT_FOUND: none of them was measured. */
enum corral_status corral_lane_choose(const struct corral_lane_probe_result *result, uint32_t count,
                                      uint32_t kinds, uint64_t bytes, enum corral_lane_kind *out,
                                      struct corral_error *err);

#endif
