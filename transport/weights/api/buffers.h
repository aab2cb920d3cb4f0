/* The versions that one subscriber holds: a few buffers, of which one is current, one may be filled (the shadow), and others wait for their flip. A push target (push/push.h).
 *
 *      free -> shadow (begin) -> ready (commit) -> current (flip) -> free (the next flip)
 *                 \-> free (abort)
 *
 * Readers hold the current buffer by a count and never wait; a new version waits for a buffer that is free and that nobody holds. Versions are flipped to in order or skipped, never undone.
 * Each buffer is a sealed memfd of its own, so a sender on this machine may be given one of them; one that a dying sender may still write to is exchanged for a new one.
 * Threads: acquire, release and the versions from any; the target from the receiver's; flip from one.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_API_BUFFERS_H
#define CORRAL_TRANSPORT_WEIGHTS_API_BUFFERS_H

#include "transport/weights/api/memory.h"
#include "transport/weights/push/push.h"

#define CORRAL_BUFFERS_MAX 3

struct corral_buffers;

struct corral_buffers_options {
    uint64_t bytes;
    uint32_t count;             /* 2 or 3; with `live` 1 */
    struct corral_memory *live; /* a flip copies there; NULL: readers read the buffers. Borrowed. */
    bool auto_flip;
    uint64_t busy_wait_ns;
    corral_weights_ready_fn ready;
    void *ready_ctx;
};

enum corral_status corral_buffers_create(struct corral_buffers **out,
                                         const struct corral_buffers_options *options,
                                         struct corral_error *err);
/* Ends every wait, now and later: begin fails. Before the receiver is stopped. */
void corral_buffers_close(struct corral_buffers *b);
void corral_buffers_destroy(struct corral_buffers *b);
CORRAL_DEFINE_CLEANUP(struct corral_buffers, corral_buffers_destroy)

extern const struct corral_push_target_ops corral_buffers_target; /* ctx: the buffers */

uint64_t corral_buffers_version(const struct corral_buffers *b); /* current; 0: none */
uint64_t corral_buffers_ready(const struct corral_buffers *b);   /* newest committed */
enum corral_status corral_buffers_wait(struct corral_buffers *b, uint64_t version, uint64_t timeout_ns,
                                       uint64_t *ready, struct corral_error *err);
enum corral_status corral_buffers_flip(struct corral_buffers *b, uint64_t version, uint64_t timeout_ns,
                                       uint64_t *pause_ns, struct corral_error *err);
enum corral_status corral_buffers_acquire(struct corral_buffers *b, struct corral_weights_view *view,
                                          struct corral_error *err);
void corral_buffers_release(struct corral_buffers *b, uint32_t buffer);
void corral_buffers_times(struct corral_buffers *b, uint64_t *flip_ns, uint64_t *flip_ns_max);

#endif
