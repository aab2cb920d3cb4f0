/* All lanes between two ends, one after the other: what `rlctl weights probe` shows and what weights.transport = "auto" chooses by. Blocks; a thread that may. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_MEASURE_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_MEASURE_H

#include "transport/weights/push/pull.h"

struct corral_lane_measure {
    const struct corral_lane_ops *ops;
    enum corral_status status; /* CORRAL_UNSUPPORTED: one side has not got it; others: it does not work */
    char reason[200];
    struct corral_lane_probe_result result;
};

/* Lanes in the order of enum corral_lane_kind, those that `lanes` names (NULL or "": all). endpoint: of the other node's receiver; NULL or "": within this process, without identity. Returns how many. */
uint32_t corral_lanes_measure(const char *endpoint, const struct corral_push_identity *identity,
                              const char *lanes, const struct corral_lane_probe_options *options,
                              struct corral_lane_measure out[CORRAL_LANE_KINDS]);
/* CORRAL_INVALID: a name that no lane has. */
enum corral_status corral_lanes_check_names(const char *lanes, struct corral_error *err);
/* What this machine's memcpy does between two buffers of `bytes` with as many threads as the shm lane, in bytes per ns; 0: no memory. Some tens of milliseconds. */
double corral_memcpy_rate(uint64_t bytes);

#endif
