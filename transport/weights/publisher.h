/* Pushing versions: into the node's own store over the `shm` lane, and to other nodes' receivers over the `tcp` lane, behind one ops
 * table. A push is PREPARE(version, manifest, bytes) -> data into the receiver's store slot -> STAGED(digest) -> COMMIT -> flip ->
 * APPLIED. A target that is dead, slow or wrong by its deadline is dropped (logged, not too often) while the others commit. A new target is
 * waited for; one that was dropped is connected again in the background of later pushes, which wait for it only when no other target is left, and
 * of corral_weight_publisher_catch_up(), which brings it the version it has missed when no other push follows. Versions only grow; the
 * highest one may be pushed again with the same bytes. Used by one thread. Protocol: docs/spec/weights.md.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUBLISHER_H
#define CORRAL_TRANSPORT_WEIGHTS_PUBLISHER_H

#include "transport/weights/manifest.h"
#include "transport/weights/store.h"
#include <stdbool.h>

#define CORRAL_PUBLISHER_TARGETS_MAX 64

/* One connection to one target. Calls are made in this order: ready, then prepare, write, staged, commit for each version. Each waits until
 * its deadline (CLOCK_MONOTONIC); with deadline 0 it does what can be done now and returns CORRAL_AGAIN when it must be called
 * again, with the same arguments, once `fd` has one of `events` (poll). After any other failure only close is allowed. */
struct corral_weight_lane;
struct corral_weight_lane_ops {
    const char *name;
    enum corral_status (*ready)(struct corral_weight_lane *lane, uint64_t deadline_ns,
                                struct corral_error *err); /* connected and logged in */
    enum corral_status (*prepare)(struct corral_weight_lane *lane, uint64_t version,
                                  struct corral_digest manifest, uint64_t bytes, uint64_t deadline_ns,
                                  struct corral_error *err);
    enum corral_status (*write)(struct corral_weight_lane *lane, const void *data, uint64_t bytes,
                                uint64_t deadline_ns, struct corral_error *err);
    enum corral_status (*staged)(struct corral_weight_lane *lane, struct corral_digest *theirs,
                                 uint64_t deadline_ns, struct corral_error *err);
    enum corral_status (*commit)(struct corral_weight_lane *lane, uint64_t deadline_ns,
                                 struct corral_error *err); /* returns when applied */
    void (*close)(struct corral_weight_lane *lane);
};
struct corral_weight_lane {
    const struct corral_weight_lane_ops *ops;
    int fd;       /* -1: calls never return CORRAL_AGAIN */
    short events; /* what the last CORRAL_AGAIN waits for */
    /* Set before prepare by a caller who has already hashed what it will write: the lane may then ask for the commit along with the last byte,
     * which saves a round trip. The receiver commits only if its own digest is this one. */
    bool digest_known;
    struct corral_digest digest;
    uint64_t
        burst_bytes; /* one call with deadline 0 sends about this much before it returns CORRAL_AGAIN all the same; 0 = no limit */
};

enum corral_status corral_weight_lane_shm(struct corral_weight_store *store, struct corral_weight_lane **out,
                                          struct corral_error *err);
/* endpoint "HOST:PORT" or "[V6]:PORT"; run and secret authenticate both sides (HMAC-SHA256 challenge). Deadline 0 only starts to connect. */
enum corral_status corral_weight_lane_tcp(const char *endpoint, uint64_t run, const uint8_t secret[32],
                                          uint64_t deadline_ns, struct corral_weight_lane **out,
                                          struct corral_error *err);

struct corral_weight_publisher;
struct corral_publish_stats {
    uint64_t version, bytes;
    uint64_t wire_ns, apply_ns; /* slowest target */
    uint32_t targets, dropped;
    struct corral_digest digest;
};
enum corral_status corral_weight_publisher_create(struct corral_weight_publisher **out,
                                                  const struct corral_manifest *manifest, uint64_t run,
                                                  const uint8_t secret[32], uint32_t deadline_ms,
                                                  struct corral_error *err);
void corral_weight_publisher_destroy(struct corral_weight_publisher *p);
enum corral_status corral_weight_publisher_add_shm(struct corral_weight_publisher *p,
                                                   struct corral_weight_store *store,
                                                   struct corral_error *err);
/* Adding an endpoint twice is CORRAL_EXISTS. A target that cannot be reached yet is kept and tried at each push. */
enum corral_status corral_weight_publisher_add_tcp(struct corral_weight_publisher *p, const char *node,
                                                   const char *endpoint, struct corral_error *err);
void corral_weight_publisher_remove(struct corral_weight_publisher *p, const char *node);
/* Fails when no target at all has it. The last version may be pushed again when the bytes are the same (CORRAL_INVALID otherwise): targets
 * that have it are left alone. A target whose store has this version already (from a trainer that has restarted since) counts as having
 * got it when its digest is the same; otherwise it refuses, and is dropped for this version: a higher one is offered to it again. */
enum corral_status corral_weight_publisher_push(struct corral_weight_publisher *p, uint64_t version,
                                                const void *weights, uint64_t bytes,
                                                struct corral_publish_stats *stats, struct corral_error *err);

/* Offer the last pushed version again (the same weights) to every target that lacks it and has not refused it: dropped ones, with a growing pause
 * between attempts, and ones added since. Waits until all have it, but no longer than timeout_ms (the copy into this node's own store aside); 0 moves on what can be moved at once. For a loop that
 * waits for a node to come along: call it in every turn, a transfer goes on where it was; one that does not move for the publisher's deadline is
 * dropped and begun again. CORRAL_OK whether or not all have it now: see behind. CORRAL_INVALID: not the last pushed version. No system call when none is behind.
 * An endpoint with a host name is looked up when it is connected, which takes the resolver's time; numeric ones never block. */
enum corral_status corral_weight_publisher_catch_up(struct corral_weight_publisher *p, const void *weights,
                                                    uint64_t bytes, uint64_t version, uint32_t timeout_ms,
                                                    struct corral_error *err);
/* True while a target lacks the last pushed version and has not refused it. Hot path. */
bool corral_weight_publisher_behind(const struct corral_weight_publisher *p);

/* Receiving end, run by the agent: its own thread, listening on host:0, writing into the node's store. */
struct corral_weight_receiver;
enum corral_status corral_weight_receiver_start(struct corral_weight_receiver **out,
                                                struct corral_weight_store *store, const char *host,
                                                uint64_t run, const uint8_t secret[32], char *endpoint,
                                                size_t endpoint_bytes, struct corral_error *err);
void corral_weight_receiver_stop(struct corral_weight_receiver *r);

#endif
