/* Collectives between the workers of one partition, behind one ops table. Every rank gets the same bits: sums are taken in
 * rank order. One thread per rank; all ranks call the same operations in the same order; sequence numbers and lengths are
 * checked, so a mismatch is an error that names the rank, not a hang. Every wait has a deadline (CORRAL_TIMEOUT names the missing rank).
 * A rank that dies, leaves or breaks off is noticed before the deadline (CORRAL_PEER, or the status that rank broke off with).
 * After any failure the group is broken: all later calls return CORRAL_STATE; destroy it and build a new one. What a failed
 * call leaves in its buffers is undefined. A rank that waits can be given something else to do meanwhile: corral_collective_set_progress().
 * Layouts and the wire format are in docs/spec/collective.md.
 */
#ifndef CORRAL_TRANSPORT_COLLECTIVE_H
#define CORRAL_TRANSPORT_COLLECTIVE_H

#include "base/memory.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_COLLECTIVE_RANKS_MAX 64

struct corral_collective; /* opaque base of every implementation */

struct corral_collective_ops {
    const char *name; /* "shm", "tcp", "self" */
    /* In place, hot path: data[i] = sum over ranks of data[i]. count may be larger than the staging area: done in pieces. */
    enum corral_status (*sum_f32)(struct corral_collective *c, float *data, uint32_t count,
                                  struct corral_error *err);
    enum corral_status (*sum_f64)(struct corral_collective *c, double *data, uint32_t count,
                                  struct corral_error *err);
    /* out[rank * bytes ...] from every rank; bytes equal on all. */
    enum corral_status (*gather)(struct corral_collective *c, const void *mine, uint32_t bytes, void *out,
                                 struct corral_error *err);
    /* From rank 0 to all, in place. */
    enum corral_status (*broadcast)(struct corral_collective *c, void *data, uint64_t bytes,
                                    struct corral_error *err);
    enum corral_status (*barrier)(struct corral_collective *c, struct corral_error *err);
    void (*destroy)(struct corral_collective *c);
};

struct corral_collective {
    const struct corral_collective_ops *ops;
    uint32_t rank, ranks;
    /* The rest belongs to corral_collective_set_progress() and the implementation. */
    void (*progress)(void *ctx);
    void *progress_ctx;
    uint64_t progress_due_ns; /* of the operation under way; 0: it has not waited yet */
    bool in_progress;         /* the function is running */
};

/* From now on `fn` (NULL: nothing) is called by the waiting thread at least every 5 ms while an operation waits for other ranks, for the
 * first time when it has waited that long; never when nothing waits, and never from within itself. It must be quick: this rank is late for the
 * others while it runs. It must not destroy the collective; an operation called from it is refused (CORRAL_STATE) and changes nothing. Time spent in it counts
 * towards deadlines, but what has arrived meanwhile is taken before a deadline is looked at. Not to be called from `fn`. */
void corral_collective_set_progress(struct corral_collective *c, void (*fn)(void *ctx), void *ctx);

/* One rank: every operation is local. */
enum corral_status corral_collective_self_create(struct corral_collective **out, struct corral_error *err);

/* Ranks on one node: a shared mapping made by the agent (memfd, inherited). `generation` separates successive groups in one
 * mapping: a restarted group uses a larger one (CORRAL_EXISTS otherwise) and never sees the old one's data. staging_bytes is the size of
 * one piece; each rank has two. Waits spin briefly, then sleep on a futex. */
enum corral_status corral_collective_shm_segment(uint32_t ranks, uint64_t staging_bytes, int *fd_out,
                                                 struct corral_error *err);
enum corral_status corral_collective_shm_create(int fd, uint32_t rank, uint32_t ranks, uint32_t generation,
                                                uint32_t timeout_ms, struct corral_collective **out,
                                                struct corral_error *err);

/* Ranks on several nodes: rank 0 listens, the others connect; reduce at rank 0 in rank order, then fan out. `secret` authenticates
 * (HMAC challenge) every connection. Rank 0 binds first: corral_collective_tcp_listen() gives the endpoint to publish. */
struct corral_collective_listener;
enum corral_status corral_collective_tcp_listen(const char *host, struct corral_collective_listener **out,
                                                char *endpoint, size_t endpoint_bytes,
                                                struct corral_error *err);
void corral_collective_listener_destroy(struct corral_collective_listener *l);
enum corral_status
corral_collective_tcp_create(struct corral_collective_listener *listener /* rank 0 only, taken */,
                             const char *endpoint, uint32_t rank, uint32_t ranks, uint32_t generation,
                             const uint8_t secret[32], uint32_t timeout_ms, struct corral_collective **out,
                             struct corral_error *err);

static inline void corral_collective_destroy(struct corral_collective *c)
{
    if (c) {
        c->ops->destroy(c);
    }
}

#endif
