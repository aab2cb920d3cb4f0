/* One suite for every lane. A lane's test is a program of a line: `corral_test(weights_lane_NAME SOURCES weights/lanes/conformance_test.c ${CORRAL_LANE_CONFORMANCE} DEPS corral_transport ARGS NAME)`.
 * conformance_rig_test.c: a link with memory on both sides (the rig) and pushes over it. Cases: conformance_moves_test.c (bytes), conformance_deaths_test.c (processes that die, stop and leak).
 * Only for tests. Asserts. Include "tests/check.h" first.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_CONFORMANCE_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_CONFORMANCE_H

#include "transport/weights/lanes/lane.h"
#include <sys/types.h>

/* What is under test; set once by main. */
struct conformance {
    const struct corral_lane_ops *ops;
    struct corral_lane_options options;
};
extern struct conformance conformance;

enum rig_memory {
    RIG_HOST,   /* malloc */
    RIG_SHARED, /* a sealed memfd, at an odd offset in it; as a source the same as RIG_HOST */
    RIG_OPAQUE, /* no host address: only through gather and scatter */
};

/* A tensor of rows × columns bytes. The source has it whole, the destination a slice of each row: columns [first, first + count). All of them: one run. */
struct rig_shape {
    uint64_t rows, columns, first, count, bucket_bytes;
};

struct rig {
    struct corral_layout *from, *to;
    struct corral_reshard_plan *plan;
    struct corral_link *link;
    uint64_t source_bytes, destination_bytes;
    uint8_t *source, *destination, *expected; /* bytes that no copy writes must stay RIG_UNTOUCHED */
    enum rig_memory source_memory, destination_memory;
    struct corral_shard source_shard, destination_shard;
    int fd; /* of RIG_SHARED */
    void *mapping;
    uint64_t mapping_bytes;
    struct corral_lane *rx, *tx;
    uint64_t push;
    enum corral_status (*send)(struct rig *r, uint32_t bucket, struct corral_error *err); /* NULL: tx_send */
};
#define RIG_UNTOUCHED 0xA5

void rig_make(struct rig *r, struct rig_shape shape, enum rig_memory source, enum rig_memory destination);
void rig_drop(struct rig *r); /* also closes the lane */
/* New bytes in the source, the destination untouched again. */
void rig_fill(struct rig *r, uint64_t seed);
void rig_check(const struct rig *r); /* every byte of the destination */

void rig_open(struct rig *r, const struct corral_lane_options *options);
void rig_close(struct rig *r);
void rig_begin(struct rig *r, uint64_t push); /* both sides */
/* Send these buckets and wait until all have arrived, each exactly once. */
void rig_move(struct rig *r, const uint32_t *bucket, uint32_t count);
void rig_end(struct rig *r, bool ok);
void rig_push(struct rig *r, uint64_t push); /* begin, move all, end, check */

/* Counting that gives up: a case that waits longer than anything needs has failed. */
struct patience {
    uint64_t deadline_ns;
};
struct patience patience_start(void);
void patience_check(const struct patience *p, const char *what);

extern const struct CMUnitTest conformance_moves[], conformance_deaths[];
extern const size_t conformance_moves_count, conformance_deaths_count;

#endif
