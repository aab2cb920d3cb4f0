/* Frames of the push protocol (docs/spec/weight-push.md), and a connection's buffers. Internal to push/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_FRAME_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_FRAME_H

#include "transport/weights/push/push.h"
#include "transport/weights/wire.h"

#define PUSH_MAGIC 0x32505743u /* "CWP2" */
#define PUSH_PROTOCOL 3u
#define PUSH_HEADER_BYTES 32u
#define PUSH_PLACE_HEAD 8u /* of a PLACE, before the lane's blob: the base's version */
#define PUSH_PAYLOAD_MAX (PUSH_PLACE_HEAD + CORRAL_LANE_BLOB_MAX)
#define PUSH_TEXT_MAX 200u
#define PUSH_LANES_MAX 128u /* bytes of a list of lane names */
#define PUSH_LANE_NAME_MAX 32u
#define PUSH_HELLO_BYTES 128u
#define PUSH_STAGED_BYTES 48u
#define PUSH_ABORTED_HEAD 8u /* of an ABORTED, before status and text */
#define PUSH_NO_RANK UINT32_MAX
#define PUSH_ATTEMPTS_MAX 3u /* of one bucket in one push */
#define PUSH_IN_BYTES (4u * (PUSH_HEADER_BYTES + PUSH_PAYLOAD_MAX))
#define PUSH_OUT_BYTES 65536u
#define PUSH_NS_MAX (UINT64_MAX / 4) /* of any time limit: now and it together stay a time */

enum push_type {
    PUSH_HELLO = 1,
    PUSH_CHALLENGE,
    PUSH_PROOF,
    PUSH_WELCOME,
    PUSH_LANE,
    PUSH_OFFER,
    PUSH_NOLANE,
    PUSH_ANSWER,
    PUSH_READY,
    PUSH_PREPARE,
    PUSH_PLACE,
    PUSH_SENT,
    PUSH_TAKEN,
    PUSH_STAGED,
    PUSH_COMMIT,
    PUSH_APPLIED,
    PUSH_ABORTED,
    PUSH_ABORT,
    PUSH_PASS,
    PUSH_WAIT,
    PUSH_ERROR,
    PUSH_PULL,
    PUSH_PROBE,
    PUSH_TYPES
};

/* What an ABORTED leaves of the connection. */
enum push_after {
    PUSH_AFTER_CLOSE,      /* data had moved: the receiver closes it */
    PUSH_AFTER_READY,      /* nothing had moved: good for the next version */
    PUSH_AFTER_INCOMPLETE, /* nothing had moved; another READY will come when every rank is there */
    PUSH_AFTER_KINDS
};

struct push_frame {
    uint32_t type, bytes;
    uint64_t generation, version;
};

/* CORRAL_PROTOCOL: magic, type, or a payload length that its type does not have. */
enum corral_status push_read_header(const uint8_t *from, struct push_frame *out, struct corral_error *err);
void push_put_header(uint8_t *to, const struct push_frame *frame);
const char *push_type_name(uint32_t type);

enum push_role { PUSH_ROLE_SENDER, PUSH_ROLE_PULLER, PUSH_ROLE_PROBER, PUSH_ROLES };

struct push_hello {
    uint64_t run, generation, bucket_bytes;
    uint32_t protocol, rank, ranks, leader;
    struct corral_digest plan, link;
    uint64_t role;           /* enum push_role */
    uint64_t group, process; /* of the trainer group, 0: unknown; of the sender that logs in */
    uint8_t nonce[WIRE_NONCE_BYTES];
};
void push_put_hello(uint8_t to[PUSH_HELLO_BYTES], const struct push_hello *hello);
void push_get_hello(const uint8_t from[PUSH_HELLO_BYTES], struct push_hello *out);

/* Covers everything that HELLO said, so that rank and generation cannot be changed on the way. */
#define PUSH_LABEL_RECEIVER "corral push receiver"
#define PUSH_LABEL_SENDER "corral push sender"
#define PUSH_LABEL_VISITOR "corral push visitor"
void push_mac(const uint8_t secret[32], const char *label, const uint8_t hello[PUSH_HELLO_BYTES],
              const uint8_t nonce_r[WIRE_NONCE_BYTES], uint8_t out[WIRE_MAC_BYTES]);

struct push_prepare {
    uint64_t push, bytes;
    uint64_t base; /* deltas on this version can be sent; 0: only whole buckets */
    struct corral_digest
        known; /* of the version at this receiver, when the leader knows it; otherwise zero */
    struct corral_digest base_digest; /* of the base at this receiver */
    uint64_t patience_ns; /* how long from now on the sender waits for STAGED; 0: it does not say */
};
#define PUSH_PREPARE_BYTES 64u
void push_put_prepare(uint8_t to[PUSH_PREPARE_BYTES], const struct push_prepare *prepare);
void push_get_prepare(const uint8_t from[PUSH_PREPARE_BYTES], struct push_prepare *out);

/* status u32, text. Returns the payload's length. */
uint32_t push_put_error(uint8_t *to, const struct corral_error *why);
/* Into `err`, "SAYS: TEXT"; what is not printable is replaced. Returns the status, never CORRAL_OK or CORRAL_AGAIN. */
enum corral_status push_get_error(const uint8_t *payload, uint32_t bytes, const char *says,
                                  struct corral_error *err);

/* The n-th name of a comma-separated list of lanes that the other list has too. False: no such. */
bool push_common_lane(const char *ours, const char *theirs, uint32_t n, char out[PUSH_LANE_NAME_MAX]);
bool push_lane_listed(const char *list, const char *name);

/* The digests of a link and of a version, see the spec. */
struct corral_digest push_link_digest(const struct corral_link *link, const struct corral_digest *bucket);
/* `link`: of the plan's links to `rank`, by source rank. */
struct corral_digest push_version_digest(const struct corral_reshard_plan *plan, uint32_t rank,
                                         const struct corral_digest *link);

/* ---- a connection's bytes ---- */

struct push_io {
    int fd;
    uint32_t in_from, in_to, out_from, out_to;
    uint8_t in[PUSH_IN_BYTES], out[PUSH_OUT_BYTES];
};
uint32_t push_io_room(const struct push_io *io);
/* Queue a frame. CORRAL_AGAIN: no room until the peer reads. */
enum corral_status push_io_queue(struct push_io *io, const struct push_frame *frame, const void *payload,
                                 struct corral_error *err);
enum corral_status push_io_flush(struct push_io *io, struct corral_error *err);
/* One recv(). CORRAL_AGAIN: nothing there. CORRAL_PEER: the end, or an error. */
enum corral_status push_io_receive(struct push_io *io, struct corral_error *err);
/* The next whole frame; the payload is good until the next call of receive. CORRAL_AGAIN: not there yet. */
enum corral_status push_io_next(struct push_io *io, struct push_frame *frame, const uint8_t **payload,
                                struct corral_error *err);

#endif
