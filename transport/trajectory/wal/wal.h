/* A write-ahead log of trajectory records: what was appended and is durable survives kill -9 of everything and a power cut. File format: docs/spec/trajectory-wal.md.
 *
 * Segment files in one folder, NUMBER.wal, each begun with a header and followed by frames: length, position, digests (XXH3), the record as it is or compressed (zstd).
 * One writer (a lock file), any number of readers, also while it is written and after a crash. What a crash or a power cut left torn ends the log there; damage to what had been
 * durable is an error that names segment and offset. Each frame says up to where all was durable when it was written: that tells the two apart.
 *
 * POSITION: the number of a record in the log, from 1, without gaps. append() hands out positions; durable() is the highest of which all up to it survive a power cut by the fsync policy:
 *   CORRAL_WAL_SYNC_GROUP   fdatasync by the log's own thread, as soon as the one before has returned (group commit)
 *   CORRAL_WAL_SYNC_NEVER   durable = handed to the kernel: survives kill -9 of everything, not a power cut
 * A failed write or sync is sticky: every later call fails and durable() stays (a page that failed to be written may be forgotten by the kernel). Only a new open() goes on.
 * THREADS: append, trim and close from one thread; durable from any.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

struct corral_wal;
struct corral_wal_reader;

enum corral_wal_sync { CORRAL_WAL_SYNC_GROUP, CORRAL_WAL_SYNC_NEVER };

struct corral_wal_options {
    const char *folder; /* created, mode 0700 */
    uint64_t run;
    uint64_t segment_bytes; /* 0: 64 MiB */
    uint64_t
        bytes_max; /* of all segments: append beyond it fails with CORRAL_DENIED; 0: no limit but the disk */
    enum corral_wal_sync sync;
    int zstd_level; /* 0: records as they are */
};

struct corral_wal_item {
    uint64_t position;
    const void *data; /* the encoded record (include/corral/trajectory.h), aligned to 64 */
    uint64_t bytes;
};

/* Opens or creates; cuts a torn end off. */
enum corral_status corral_wal_open(struct corral_wal **out, const struct corral_wal_options *o,
                                   struct corral_error *err);
/* Syncs what was appended. */
enum corral_status corral_wal_close(struct corral_wal *w, struct corral_error *err);
enum corral_status corral_wal_append(struct corral_wal *w, const void *record, uint64_t bytes,
                                     uint64_t *position, struct corral_error *err);
/* The failure that is sticky, if there is one. */
enum corral_status corral_wal_durable(const struct corral_wal *w, uint64_t *position,
                                      struct corral_error *err);
int corral_wal_bell(const struct corral_wal *w); /* eventfd: readable when durable() grew or failed */
/* Nothing at or below `position` is needed any more: whole segments below it go. */
enum corral_status corral_wal_trim(struct corral_wal *w, uint64_t position, struct corral_error *err);
uint64_t
corral_wal_first(const struct corral_wal *w); /* the oldest position that is there; last + 1 when none */
uint64_t corral_wal_last(const struct corral_wal *w);

/* Reads from the oldest position >= from. May be opened beside the writer. */
enum corral_status corral_wal_reader_open(struct corral_wal_reader **out, const char *folder, uint64_t from,
                                          struct corral_error *err);
void corral_wal_reader_close(struct corral_wal_reader *r);
/* Until the next call. CORRAL_AGAIN: the end for now; CORRAL_PROTOCOL: damage, with segment and offset. */
enum corral_status corral_wal_reader_next(struct corral_wal_reader *r, struct corral_wal_item *out,
                                          struct corral_error *err);

/* What is in a log now, without reading its records. An empty one: first = 1 or what is to come next, last = first - 1. */
struct corral_wal_extent {
    uint64_t run; /* 0 when it is empty */
    uint64_t first, last;
    uint64_t bytes, segments;
    uint64_t begun_ns, newest_ns; /* wall clock: when its oldest and newest segment were begun */
};
enum corral_status corral_wal_measure(const char *folder, struct corral_wal_extent *out,
                                      struct corral_error *err);

#endif
