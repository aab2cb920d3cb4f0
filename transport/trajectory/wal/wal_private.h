/* The writer's insides, shared by wal.c (appending), wal_segments.c (segments come and go), wal_sync.c (its thread) and wal_repair.c (where it goes on). */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_PRIVATE_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_PRIVATE_H

#include "transport/trajectory/wal/compress.h"
#include "transport/trajectory/wal/files.h"
#include "transport/trajectory/wal/format.h"
#include "transport/trajectory/wal/wal.h"
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#define WAL_RETIRED_MAX 8 /* full segments that wait for their sync; append() waits beyond it */

struct wal_closed { /* a segment that is full */
    uint64_t first, bytes;
};

struct wal_retired {
    int fd;
    uint64_t bytes; /* used: the rest is cut off */
    uint64_t last;
};

struct corral_wal {
    struct wal_files files;
    char path[PATH_MAX];                  /* of the folder */
    char what[PATH_MAX + WAL_NAME_BYTES]; /* of the active segment, for errors */
    int folder, lock, bell;
    uint64_t run, segment_bytes, bytes_max;
    enum corral_wal_sync sync;
    int zstd_level;
    struct wal_packer *packer;

    /* the appending thread's */
    uint64_t last;            /* position appended last */
    uint64_t first_of_active; /* position of its first frame, there or to come */
    uint64_t salt, at, allocated;
    struct wal_closed *closed; /* ascending */
    uint32_t closed_count, closed_capacity;
    uint64_t closed_bytes;

    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t lock_of_thread; /* guards what follows */
    pthread_cond_t to_thread, from_thread;
    int active; /* its descriptor; written by the appending thread under the lock */
    struct wal_retired retired[WAL_RETIRED_MAX];
    uint32_t retired_count;
    bool folder_dirty, stop;
    struct corral_error failure; /* written once, before `failed` */

    _Atomic uint64_t appended; /* = last, for the thread; stored (release) after the bytes are in the file */
    _Atomic uint64_t synced;   /* survives a power cut; stored (release) by the thread after its fdatasync */
    _Atomic bool failed;       /* stored (release) after `failure`; read (acquire) before it */
};

/* wal_segments.c */
/* A new active segment that begins at last + 1; the one before, if any, is retired. Not sticky by itself. */
enum corral_status wal_segment_begin(struct corral_wal *w, uint64_t frame_bytes, struct corral_error *err);
enum corral_status wal_closed_add(struct corral_wal *w, uint64_t first, uint64_t bytes,
                                  struct corral_error *err);

/* wal_sync.c */
enum corral_status wal_thread_start(struct corral_wal *w, struct corral_error *err);
/* Syncs everything, unless the log has failed, and ends the thread. */
void wal_thread_stop(struct corral_wal *w);
void wal_thread_wake(struct corral_wal *w);
/* Make this failure the log's: the first one stays. Returns its status. */
enum corral_status wal_fail(struct corral_wal *w, const struct corral_error *why, struct corral_error *err);
/* CORRAL_OK unless the log has failed. */
enum corral_status wal_sound(const struct corral_wal *w, struct corral_error *err);
void wal_ring(struct corral_wal *w);

/* wal_repair.c: finds where the log ends, cuts off what is torn, fills `closed` and `last`. */
enum corral_status wal_repair(struct corral_wal *w, struct corral_error *err);

/* corral_wal_open() over another file system. */
enum corral_status wal_open_with(struct corral_wal **out, const struct corral_wal_options *o,
                                 const struct wal_files *files, struct corral_error *err);

#endif
