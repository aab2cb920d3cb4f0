/* The push protocol, version 3 (docs/spec/weight-push.md): a version of the weights goes from the ranks of a sharded trainer to receivers that are cut differently, and becomes current
 * everywhere or nowhere on each replica.
 *
 *      senders (trainer ranks, one of them the leader)              receivers (a node's copy, an engine, …)
 *      PREPARE version, base, hashes, bytes        ------------->   shadow memory of the target is opened
 *      buckets over the link's lane, SENT(digest)  ------------->   digest of final memory compared; TAKEN, or again
 *                                                  <-------------   STAGED (digest of the whole) to the leader, when every sender's buckets are there
 *      leader: COMMIT to all staged in time        ------------->   flip, all shards of the node at once
 *                                                  <-------------   APPLIED
 *
 *  - Every connection is logged in both ways with the run's secret (HMAC), and carries run, group generation, rank and link hash; a sender with an older generation than the receiver has seen is refused.
 *  - Versions only grow at a receiver. The current one may be pushed again when its digest is the same: an APPLIED that was lost.
 *  - A receiver that is dead, slow or wrong is dropped at its deadline (its lane closed, its keys invalid) while the others commit; it is connected again in the background of later pushes.
 *    Receivers with the same non-empty `replica` commit together or not at all.
 *  - A sender that dies in the middle costs that version: receivers abort and keep what they had.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_PUSH_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_PUSH_H

#include "transport/weights/lanes/lane.h"

#define CORRAL_PUSH_SENDERS_MAX 256
#define CORRAL_PUSH_RECEIVERS_MAX 256
#define CORRAL_PUSH_NAME_MAX 64

struct corral_push_identity {
    uint64_t run, generation; /* generation: of the trainer group; grows when it restarts */
    uint8_t secret[32];
    /* Of the trainer group: the same in all its ranks and in no other group, drawn by whoever starts it. 0: unknown. Two groups with one run and generation are then told apart rank by rank: see the spec. */
    uint64_t group;
};

/* Who must be asked before memory is kept: for staging of lanes and for what deltas start from. `bytes` is all that this sender or receiver holds of it from now on; 0 at the end. Less than before is never refused. Any
 * thread. What is refused is given back at once: a lane is closed before a byte has moved on it, a version goes whole. */
struct corral_push_budget {
    enum corral_status (*hold)(void *ctx, uint64_t bytes, const char *what, struct corral_error *err);
    void *ctx;
};

/* ---- receiving ---- */

/* The current version, to be read for a while. */
struct corral_push_source {
    struct corral_shard shard;
    uint64_t version;
    struct corral_digest digest;
    uint64_t pin[2]; /* the target's */
};

/* Where versions end up. begin, commit, abort and taint are called by one thread of the receiver at a time, the others by any. `digest` of a version is the chain over its buckets' digests in (source rank, bucket) order, see the spec. */
struct corral_push_target_ops {
    /* What is current: version 0 when nothing. */
    void (*current)(void *ctx, uint64_t *version, struct corral_digest *digest);
    /* Open the shadow for a version; bytes nobody writes keep what the layout says (zero). CORRAL_INVALID: version below the current one, or memory does not fit. base: 0 for a full push. */
    enum corral_status (*begin)(void *ctx, uint64_t version, uint64_t base, struct corral_shard *shadow,
                                struct corral_error *err);
    /* Make it current, atomically for readers. */
    enum corral_status (*commit)(void *ctx, uint64_t version, struct corral_digest digest,
                                 struct corral_error *err);
    /* tainted_pid other than 0: that process may still write into the shadow, which must not be used again while it lives. */
    void (*abort)(void *ctx, uint64_t version, int32_t tainted_pid);
    /* One more such process, before abort. NULL: only the first is told. */
    void (*taint)(void *ctx, uint64_t version, int32_t tainted_pid);
    /* For peers that pull (pull.h): what is current. CORRAL_AGAIN: nothing. NULL, all three: nobody pulls from here. */
    enum corral_status (*source_open)(void *ctx, struct corral_push_source *out, struct corral_error *err);
    /* False: the memory has been given to another version since it was opened. */
    bool (*source_intact)(void *ctx, const struct corral_push_source *source);
    void (*source_close)(void *ctx, struct corral_push_source *source);
};

struct corral_push_receiver_options {
    const char *name;    /* of this receiver in messages: a node's name, "rollout-3" */
    const char *host;    /* to listen on, numeric; the port is the kernel's choice */
    const char *replica; /* "" : commits on its own */
    uint32_t rank;       /* its destination rank in the plan */
    struct corral_push_identity identity;
    const struct corral_reshard_plan *plan; /* borrowed, lives longer */
    uint64_t bucket_bytes;
    struct corral_lane_options lane;
    const char *lanes; /* allowed ones, in order of preference: "shm,tcp" */
    const struct corral_lane_ops *const
        *more_lanes; /* beyond those of lanes.c, up to a NULL; may be NULL. Names here come first */
    const struct corral_push_target_ops *target;
    void *target_ctx;
    uint64_t silence_ns; /* a connection that says nothing in the middle of a push is dropped; 0: 10 s */
    struct corral_push_budget budget; /* hold NULL: there is none */
};

struct corral_push_receiver;
/* Starts its threads and listens. */
enum corral_status corral_push_receiver_start(struct corral_push_receiver **out,
                                              const struct corral_push_receiver_options *options,
                                              struct corral_error *err);
void corral_push_receiver_stop(struct corral_push_receiver *r);
const char *corral_push_receiver_endpoint(const struct corral_push_receiver *r); /* "127.0.0.1:4711" */

/* What happened last, for `rlctl weights status`. Any thread. */
struct corral_push_receiver_status {
    uint64_t version, generation, pushes, aborted, resent_buckets;
    struct corral_digest digest;
    uint64_t wire_ns, apply_ns,
        flip_ns; /* of the last applied version: first byte to last bucket taken; digesting; commit */
    uint64_t bytes;
    char lane[32], last_error[200];
    uint64_t pulls; /* versions taken from peers (pull.h) */
    bool pulling;
    uint64_t memory; /* held by its lanes now */
};
void corral_push_receiver_status(struct corral_push_receiver *r, struct corral_push_receiver_status *out);

/* ---- sending ---- */

struct corral_push_sender_options {
    uint32_t rank;  /* source rank in the plan */
    bool leader;    /* exactly one of the group: rank 0 */
    uint32_t ranks; /* in the group */
    struct corral_push_identity identity;
    const struct corral_reshard_plan *plan;
    uint64_t bucket_bytes;
    struct corral_lane_options lane;
    const char *lanes; /* as above; the first that both allow and that opens is used */
    const struct corral_lane_ops *const *more_lanes;
    uint64_t deadline_ns; /* per version and receiver: everything from PREPARE to APPLIED */
    /* Deltas: of a version after the first, receivers that have the one before get what changed. Bucket by bucket: what would not get shorter goes whole. */
    bool delta;
    uint32_t anchor_every;        /* a receiver gets whole versions at least so often; 0: 25 */
    uint32_t delta_element_bytes; /* of what changes as one: 1, 2, 4 or 8; 0: 2 */
    struct corral_shard *
        base; /* with delta. NULL: the sender keeps a copy of what it has pushed, as large as what this rank sends. Otherwise borrowed memory that at each push has the version given as its `base` */
    struct corral_push_budget budget; /* hold NULL: there is none */
};
struct corral_push_sender;
enum corral_status corral_push_sender_create(struct corral_push_sender **out,
                                             const struct corral_push_sender_options *options,
                                             struct corral_error *err);
void corral_push_sender_destroy(struct corral_push_sender *s);
/* `rank`: its destination rank. Connects in the background of the next push. Adding a name twice with another endpoint replaces it (a restarted node). */
enum corral_status corral_push_sender_add(struct corral_push_sender *s, const char *name,
                                          const char *endpoint, uint32_t rank, const char *replica,
                                          struct corral_error *err);
void corral_push_sender_remove(struct corral_push_sender *s, const char *name);
bool corral_push_sender_has(const struct corral_push_sender *s, const char *name, const char *endpoint);
uint32_t corral_push_sender_receivers(const struct corral_push_sender *s);
/* The group has a new generation: connections of the old one end. */
void corral_push_sender_set_generation(struct corral_push_sender *s, uint64_t generation);

struct corral_push_result {
    uint64_t version, bytes;
    uint64_t moved; /* bytes given to lanes, also those sent again; fewer than `bytes` with deltas */
    uint32_t receivers, applied, dropped;
    /* Slowest receiver, as this sender saw it: gather (its own thread read the source, into lanes or for deltas), pack (digests and encodings), wire (first byte sent to last TAKEN), stage (to STAGED), commit (to APPLIED), and
     * the longest reader pause a receiver reported. */
    uint64_t gather_ns, pack_ns, wire_ns, stage_ns, commit_ns, pause_ns;
    /* How long the first rank to begin the version waited for the last, `slow_rank`, at the receiver that waited longest; of one that was given up for its absence too. Leader only when it was not given up.
     * slow_rank UINT32_MAX: nobody waited. */
    uint64_t skew_ns;
    uint32_t slow_rank;
    uint32_t resent_buckets;
    uint32_t deltas;             /* receivers that took this version as a delta */
    struct corral_digest digest; /* of receivers with the lowest rank; leader only */
    uint64_t memory;             /* held by lanes and for deltas after it */
};
/* All ranks of the group call it with the same version; each returns when its own part is over: the leader when every receiver has applied or been dropped, the others when every receiver has told them APPLIED
 * or ABORTED, or the deadline has passed. base: the version that options.base has, 0 for whole buckets to all; without options.base it is not looked at. The source must not change before that. CORRAL_PEER: nobody applied it (leader). Blocks at most deadline_ns. */
enum corral_status corral_push_sender_push(struct corral_push_sender *s, uint64_t version, uint64_t base,
                                           struct corral_shard *source, struct corral_push_result *result,
                                           struct corral_error *err);

/* Bring the version that was pushed last to receivers that lack it: ones added since, restarted, or dropped then. The source must still be that version's, in the same memory as long as something is under way. All ranks call it, as they do push; a receiver
 * that has the version says so and nothing moves. Waits for new connections too, timeout_ns at most; 0 moves on what can be moved at once. What is under way then goes on in the next call, and is given up by the next push, or when nothing has
 * moved for the sender's deadline. A receiver that refused the version (CORRAL_INVALID) is not offered it again. CORRAL_OK whether or not all have it then: see result. */
enum corral_status corral_push_sender_catch_up(struct corral_push_sender *s, uint64_t version,
                                               struct corral_shard *source, uint64_t timeout_ns,
                                               struct corral_push_result *result, struct corral_error *err);
/* How many receivers lack the version that was pushed last, and have not refused it. */
uint32_t corral_push_sender_behind(const struct corral_push_sender *s);
/* Bytes that are kept for deltas, for the ledger. */
uint64_t corral_push_sender_delta_memory(const struct corral_push_sender *s);

#endif
