/* What a publisher knows about each target, and one target's way through one version. Internal to transport/weights. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUBLISHER_PRIVATE_H
#define CORRAL_TRANSPORT_WEIGHTS_PUBLISHER_PRIVATE_H

#include "base/clock.h"
#include "transport/weights/publisher.h"

#define TARGET_NAME_BYTES 96

/* Where a target stands in the version on offer. */
enum target_phase {
    PHASE_OUT,     /* not under way: failed, or not to be connected yet */
    PHASE_CONNECT, /* may last over several pushes */
    PHASE_WRITE,
    PHASE_STAGE,
    PHASE_COMMIT,
    PHASE_DONE,
};

struct target {
    char node[TARGET_NAME_BYTES], endpoint[TARGET_NAME_BYTES]; /* shm: "local" and "" */
    struct corral_weight_store *store;                         /* shm: borrowed */
    struct corral_weight_lane *lane;                           /* tcp: NULL while dropped */
    enum target_phase phase;
    uint64_t has; /* the last version it is known to have; 0 = none */
    uint64_t
        refused; /* the last version it will never take: it has another, or is for another model; 0 = none */
    bool down;   /* dropped; connected again without holding up a push */
    bool
        reused; /* the connection is older than this push: losing it says nothing about the receiver of now */
    uint64_t moved_ns; /* when the attempt under way began or last got on */
    uint64_t retry_ns, backoff_ns;
    uint64_t staged_ns, applied_ns;
    /* Logging, which a target that comes and goes must not drive. */
    uint64_t logged_ns; /* the last drop that was; 0 = none */
    uint32_t unlogged;  /* drops since */
    bool told_down, told_refused;
};

struct corral_weight_publisher {
    struct corral_digest manifest;
    uint64_t bytes, run, deadline_ns;
    uint8_t secret[32];
    uint64_t last; /* the highest version a target has got */
    struct corral_digest last_digest;
    uint64_t offered;            /* the version of the last push, successful or not */
    struct corral_digest digest; /* of what was offered */
    bool digest_known;
    struct target target[CORRAL_PUBLISHER_TARGETS_MAX];
    uint32_t count;
};

/* One push, or one call of catch_up. */
struct push {
    uint64_t version;
    const void *weights;
    uint64_t start_ns, deadline_ns;
    uint64_t burst_bytes; /* of each lane */
    struct corral_digest digest;
    bool digest_known;
    struct corral_error last; /* of a target that failed */
};

static inline uint64_t publisher_now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static inline bool target_is_tcp(const struct target *t)
{
    return t->endpoint[0] != '\0';
}

static inline bool target_under_way(const struct target *t)
{
    return t->phase != PHASE_OUT && t->phase != PHASE_DONE;
}

/* True while `version` is still to be offered to the target. */
static inline bool target_lacks(const struct target *t, uint64_t version)
{
    return t->has < version && t->refused != version;
}

void target_init(struct target *t);
void target_close(struct target *t);
void target_drop(struct target *t, struct push *push, const struct corral_error *why);
/* Drop it for having taken longer than the publisher's deadline. */
void target_drop_late(const struct corral_weight_publisher *p, struct target *t, struct push *push);
/* Begin to offer it the push's version and go as far as possible without waiting. `now`: without regard to when it may be tried again. */
void target_start(struct corral_weight_publisher *p, struct target *t, bool now, struct push *push);
/* As far as it goes without waiting. */
void target_advance(struct corral_weight_publisher *p, struct target *t, struct push *push);
void publisher_hash(const struct corral_weight_publisher *p, struct push *push);

#endif
