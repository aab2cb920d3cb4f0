/* An encoded record as the stream hands it on (docs/spec/trajectory.md has the bytes). */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_ITEM_H
#define CORRAL_TRANSPORT_TRAJECTORY_ITEM_H

#include "base/error.h"
#include <stdint.h>

/* What keeping a record costs beside its bytes. Windows, credits and buffers count both. */
#define CORRAL_TRAJ_ITEM_BYTES 128u

/* How records go between two processes. AUTO: through a ring in shared memory when they are on one node, otherwise, and when that is not to be had, over ZeroMQ. */
enum corral_traj_transport { CORRAL_TRAJ_AUTO, CORRAL_TRAJ_SHM, CORRAL_TRAJ_ZMQ };

struct corral_traj_item {
    uint32_t worker, epoch;
    uint64_t sequence;
    const void *data; /* 64-byte aligned; its prologue is checked (identity, size), its map is not decoded */
    uint64_t bytes;
};

static inline uint64_t corral_traj_cost(uint64_t record_bytes)
{
    return record_bytes + CORRAL_TRAJ_ITEM_BYTES;
}

#endif
