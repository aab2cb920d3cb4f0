/* The messages of the trajectory plane (docs/spec/trajectory-stream.md): control messages as one struct, encoded and decoded by one table, and the header of a batch of records.
 * Private to trajectory/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WIRE_H
#define CORRAL_TRANSPORT_TRAJECTORY_WIRE_H

#include "base/mpack.h"
#include "transport/bus/bus.h"
#include "transport/trajectory/record/prologue.h"
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define CORRAL_TRAJ_PROTOCOL 2u
#define CORRAL_TRAJ_CONTROL_BYTES_MAX 1024  /* any message but records */
#define CORRAL_TRAJ_BATCH_MAGIC 0x32425443u /* "CTB2" */
#define CORRAL_TRAJ_BATCH_BYTES_MAX \
    (256u << 10)                            /* of several records in one message; a larger one goes alone */
#define CORRAL_TRAJ_ALONE_BYTES (64u << 10) /* from here on a record is not gathered with others */

enum corral_traj_type {
    CORRAL_TRAJ_HELLO,
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
    uint64_t run;
    uint32_t worker, epoch;
    uint64_t first;    /* hello: the lowest sequence the sender still has or will send */
    uint64_t acked;    /* cumulative: done with up to here */
    uint64_t finished; /* cumulative: finished up to here; with a log it is behind `acked` */
    uint64_t older;    /* records of earlier epochs of the worker that are not finished */
    uint64_t received; /* welcome: received up to here */
    uint64_t bytes;    /* cumulative byte limit, or what is wanted, see the spec */
    uint64_t buffer;   /* welcome: no record that counts for more than this is ever let in */
    uint64_t sequence; /* resend: go back to this one */
    char token[CORRAL_BUS_TOKEN_MAX];
    char reason[160];
};

/* Resets the writer and leaves the finished map in it: the whole frame. */
void corral_traj_encode(struct corral_mpack_writer *w, const struct corral_traj_message *m);
/* Any control message. Malformed, of unknown type or out of range: CORRAL_PROTOCOL. */
enum corral_status corral_traj_decode(const void *data, size_t bytes, struct corral_traj_message *out,
                                      struct corral_error *err);

/* In front of the records of one message. */
struct corral_traj_batch {
    uint32_t magic, protocol;
    uint64_t session;
    uint64_t first; /* sequence of the first record; the others follow without gaps */
    uint64_t bytes; /* of the records together: the rest of the frame */
    uint32_t count, reserved0;
    uint64_t reserved1[3];
};
static_assert(sizeof(struct corral_traj_batch) == 64, "docs/spec/trajectory-stream.md");

/* True when a frame claims to be a batch of records; anything else is a control message. */
bool corral_traj_is_batch(const void *data, size_t bytes);
/* The header, and that records of whole prologues fill the frame exactly, all of one (run, worker, epoch), numbered first, first + 1, …: CORRAL_PROTOCOL otherwise. The frame
 * need not be aligned. `first` gets the prologue of the first record. Hot path. */
enum corral_status corral_traj_batch_check(const void *frame, size_t bytes, struct corral_traj_batch *out,
                                           struct corral_traj_prologue *first, struct corral_error *err);
/* The size of the record at `at`, which has been checked. */
static inline uint64_t corral_traj_record_size(const void *at)
{
    uint64_t bytes;
    memcpy(&bytes, (const char *)at + offsetof(struct corral_traj_prologue, bytes), sizeof bytes);
    return bytes;
}

#endif
