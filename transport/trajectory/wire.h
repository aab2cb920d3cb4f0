/* The messages of the trajectory plane (docs/spec/trajectory.md) as one struct, encoded and decoded by one table. Private to trajectory/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WIRE_H
#define CORRAL_TRANSPORT_TRAJECTORY_WIRE_H

#include "base/mpack.h"
#include "transport/bus/bus.h"
#include "transport/trajectory/fragment.h"

#define CORRAL_TRAJ_PROTOCOL 1u
#define CORRAL_TRAJ_CONTROL_BYTES_MAX 1024 /* any message but a fragment */
/* A fragment's frame: magic, header length, msgpack header, zeros up to the area's end, tensors. */
#define CORRAL_TRAJ_MAGIC 0x31465243u /* "CRF1" */
#define CORRAL_TRAJ_AREA_BYTES 384u

enum corral_traj_type {
    CORRAL_TRAJ_HELLO,
    CORRAL_TRAJ_FRAGMENT,
    CORRAL_TRAJ_WANT,
    CORRAL_TRAJ_LIMIT,
    CORRAL_TRAJ_PING,
    CORRAL_TRAJ_WELCOME,
    CORRAL_TRAJ_REFUSED,
    CORRAL_TRAJ_REHELLO,
    CORRAL_TRAJ_CREDIT,
    CORRAL_TRAJ_RESEND,
    CORRAL_TRAJ_RECLAIM,
    CORRAL_TRAJ_TYPES,
};

struct corral_traj_message {
    enum corral_traj_type type;
    uint64_t session, protocol;
    uint64_t first;    /* hello: the lowest sequence the sender still has or will send */
    uint64_t acked;    /* cumulative: finished up to here */
    uint64_t received; /* welcome: received up to here */
    uint64_t bytes;    /* cumulative byte limit, or what is wanted, see the spec */
    uint64_t buffer;   /* welcome: no fragment larger than this is ever let in */
    uint64_t format;
    struct corral_fragment fragment; /* run, worker, epoch, sequence, shapes; never pointers */
    char token[CORRAL_BUS_TOKEN_MAX];
    char reason[160];
};

/* Resets the writer and leaves the finished map in it: the whole frame, or a fragment's header. */
void corral_traj_encode(struct corral_mpack_writer *w, const struct corral_traj_message *m);
/* The area in front of a fragment's tensors. */
enum corral_status corral_traj_encode_area(struct corral_mpack_writer *w, const struct corral_traj_message *m,
                                           uint8_t area[CORRAL_TRAJ_AREA_BYTES], struct corral_error *err);
/* Any frame. Malformed, of unknown type or out of range: CORRAL_PROTOCOL. Of a fragment, the header alone is looked at. */
enum corral_status corral_traj_decode(const void *data, size_t bytes, struct corral_traj_message *out,
                                      struct corral_error *err);
/* A decoded fragment's shapes against the size of its frame: offsets of the tensors behind the area, and their bytes together. */
enum corral_status corral_traj_check_frame(const struct corral_traj_message *m, size_t frame_bytes,
                                           uint64_t bytes[CORRAL_FRAGMENT_FRAMES],
                                           uint64_t offsets[CORRAL_FRAGMENT_FRAMES], uint64_t *total,
                                           struct corral_error *err);

/* The tensors of a fragment as an array in frame order. */
void corral_fragment_tensors(const struct corral_fragment *f, const void *out[CORRAL_FRAGMENT_FRAMES]);
void corral_fragment_set_tensors(struct corral_fragment *f, const void *const in[CORRAL_FRAGMENT_FRAMES]);
/* Boundaries must ascend and lie inside: they are used as indices. */
bool corral_fragment_boundaries_valid(const struct corral_fragment *f);

/* Where tensor i starts in one 64-byte aligned block; returns the bytes of the block, never above corral_fragment_bytes(). */
uint64_t corral_fragment_offsets(const uint64_t bytes[CORRAL_FRAGMENT_FRAMES],
                                 uint64_t offsets[CORRAL_FRAGMENT_FRAMES]);

#endif
