/* Walking through one segment, also while it is written. Private to wal/. One thread.
 *
 * Nothing here tells a torn frame from a damaged one: segment_frame() says that there is none that is right. wal_evidence() looks for the difference. Every
 * frame and header names a position up to which all was durable when it was written, so one that is right, stands later and names the missing position or a
 * higher one proves that what is missing had been durable: damage. Without such evidence it never was, and the log ends there.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_SEGMENT_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_SEGMENT_H

#include "transport/trajectory/wal/files.h"
#include "transport/trajectory/wal/format.h"

struct wal_segment {
    int fd; /* -1: none */
    struct wal_head head;
    char name[WAL_NAME_BYTES];
    uint64_t at;       /* where the next frame begins … */
    uint64_t position; /* … and which it must be */
    uint8_t *window;   /* what was read last: [window_at, window_at + window_bytes) */
    uint64_t window_at, window_bytes, capacity;
};

/* Opens and stands before the first frame. CORRAL_NOT_FOUND: there is no such file; CORRAL_AGAIN: its header is not (yet) right. `s` has fd -1 or was opened before. */
enum corral_status wal_segment_open(struct wal_segment *s, int folder, uint64_t first,
                                    struct corral_error *err);
void wal_segment_close(struct wal_segment *s); /* keeps the memory for the next */
void wal_segment_free(struct wal_segment *s);
/* The frame at `at`; *data is valid until the next call. CORRAL_AGAIN: there is none that is right. Does not move on. */
enum corral_status wal_segment_frame(struct wal_segment *s, struct wal_frame *out, const uint8_t **data,
                                     struct corral_error *err);
/* Behind the frame that wal_segment_frame() gave. */
void wal_segment_skip(struct wal_segment *s, const struct wal_frame *f);

/* Is there proof that `position`, missing at s->at (or, with s NULL, with its whole segment), was durable once? */
enum corral_status wal_evidence(struct wal_segment *s, int folder, uint64_t position, bool *found,
                                struct corral_error *err);

#endif
