/* A visitor's connection to a receiver (docs/spec/weight-push.md, Visitors): one frame at a time, waiting with a deadline. Used by both ends once the visitor has logged in, each on a thread that
 * may wait. Reads no byte beyond the frame it returns, so that the connection can be given to another protocol. Internal to push/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_VISIT_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_VISIT_H

#include "transport/weights/push/frame.h"

struct visit {
    struct push_io io;    /* fd: the owner's */
    const char *peer;     /* in messages */
    int stop_fd;          /* readable: give up; -1: none */
    uint64_t generation;  /* of the HELLO */
    uint64_t deadline_ns; /* of everything */
    uint64_t silence_ns, heard_ns;
};

struct visit_welcome {
    uint64_t version;
    struct corral_digest digest;
    uint32_t rank;
    char lanes[PUSH_LANES_MAX + 1];
};

/* Connects and logs in with role, rank, ranks, plan, link and bucket_bytes of `hello`; the rest is filled in. v->io.fd is open afterwards, whatever comes of it, unless it is -1. */
enum corral_status visit_login(struct visit *v, const char *endpoint, const struct corral_push_identity *id,
                               struct push_hello hello, struct visit_welcome *out, struct corral_error *err);
enum corral_status visit_say(struct visit *v, enum push_type type, uint64_t version, const void *payload,
                             uint32_t bytes, struct corral_error *err);
/* ABORT or ERROR, as far as it can be said at once. */
void visit_say_why(struct visit *v, enum push_type type, const struct corral_error *why);
/* Waits for a frame, or until `lane_fd` (-1: none) is readable, or `until_ns`: CORRAL_AGAIN then. The payload is good until the next call. ABORT and ERROR are failures here, with what the other end says;
 * so are silence, the deadline, and stop. WAIT is passed over. */
enum corral_status visit_hear(struct visit *v, int lane_fd, uint64_t until_ns, struct push_frame *frame,
                              const uint8_t **payload, struct corral_error *err);
/* One of the types in `types` (1u << type) is due. */
enum corral_status visit_expect(struct visit *v, uint32_t types, struct push_frame *frame,
                                const uint8_t **payload, struct corral_error *err);

#endif
