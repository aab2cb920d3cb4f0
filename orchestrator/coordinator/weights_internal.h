/* What weights.c and weights_desk.c share. */
#ifndef CORRAL_ORCHESTRATOR_COORDINATOR_WEIGHTS_INTERNAL_H
#define CORRAL_ORCHESTRATOR_COORDINATOR_WEIGHTS_INTERNAL_H

#include "base/hash.h"
#include "orchestrator/coordinator/internal.h"
#include "orchestrator/weight_lanes.h"

/* Of a node, as its agent said last. */
struct node_weights {
    uint64_t version, bytes, wire_ns, apply_ns, flip_ns, pushes, aborted, resent, pulls;
    char digest[CORRAL_DIGEST_TEXT], lane[32], error[200];
    char picked[16]; /* the lane that was chosen by measurement; "": none was */
    uint64_t behind_ns,
        told_ns; /* since when it has an older version than another node; when it was told to pull */
};

/* Of the last push, as the leading trainer said. */
struct push_weights {
    uint64_t version, bytes, copy_ns, gather_ns, pack_ns, wire_ns, stage_ns, apply_ns, pause_ns;
    uint64_t targets, dropped, resent, whole_bytes, moved_bytes, deltas, memory;
    /* Since the run began. */
    uint64_t dropped_total, resent_total, whole_total, moved_total, deltas_total;
};

/* Lanes being measured: between all nodes for a client (`rlctl weights probe`), or from the trainer's node to each other one, to choose. One pair at a time, so that none disturbs another:
 *   state     event                              next
 *   free      a client asks                      measuring, for it
 *   free      the run is to start, `auto`,       measuring, to choose
 *             and the weights are large
 *   measuring the agent has answered, or is late the next pair; after the last one free
 *   measuring the client has gone                free
 */
struct weights_desk {
    bool busy;
    struct corral_bus_peer *client; /* NULL: to choose */
    uint64_t request, deadline_ns, bytes;
    char lanes[CORRAL_WEIGHT_LANES_MAX];
    uint32_t from, to; /* nodes */
    uint64_t requests;
    bool chosen, choosing;
};

struct coordinator_weights {
    struct node_weights node[CORRAL_JOB_NODES_MAX];
    struct push_weights push;
    struct weights_desk desk;
};

#endif
