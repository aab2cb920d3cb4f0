#include "transport/trajectory/wal/wal.h"
#include "base/file.h"
#include "transport/trajectory/wal/wal_private.h"
#include <corral/trajectory.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SEGMENT_BYTES_DEFAULT (UINT64_C(64) << 20)
#define SEGMENT_BYTES_MIN UINT64_C(4096)
#define SEGMENT_BYTES_MAX (UINT64_C(1) << 36)
#define SEGMENTS_OF_MAX 4 /* bytes_max holds at least so many */

static void destroy(struct corral_wal *w)
{
    if (w == NULL) {
        return;
    }
    wal_thread_stop(w);
    for (uint32_t i = 0; i < w->retired_count; i++) {
        close(w->retired[i].fd);
    }
    corral_cleanup_close(&w->active);
    corral_cleanup_close(&w->folder);
    corral_cleanup_close(&w->lock);
    corral_cleanup_close(&w->bell);
    pthread_cond_destroy(&w->to_thread);
    pthread_cond_destroy(&w->from_thread);
    pthread_mutex_destroy(&w->lock_of_thread);
    wal_packer_destroy(w->packer);
    free(w->closed);
    free(w);
}

CORRAL_DEFINE_CLEANUP(struct corral_wal, destroy)

static struct corral_wal *make(const struct corral_wal_options *o, const struct wal_files *files)
{
    struct corral_wal *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return NULL;
    }
    w->files = *files;
    w->folder = w->lock = w->bell = w->active = -1;
    w->run = o->run;
    w->sync = o->sync;
    w->zstd_level = o->zstd_level;
    w->bytes_max = o->bytes_max;
    w->segment_bytes = wal_padded(o->segment_bytes != 0 ? o->segment_bytes : SEGMENT_BYTES_DEFAULT);
    if (w->bytes_max != 0) {
        uint64_t part = w->bytes_max / SEGMENTS_OF_MAX / WAL_ALIGN * WAL_ALIGN;
        w->segment_bytes = CORRAL_MAX(CORRAL_MIN(w->segment_bytes, part), SEGMENT_BYTES_MIN);
    }
    pthread_mutex_init(&w->lock_of_thread, NULL);
    pthread_cond_init(&w->to_thread, NULL);
    pthread_cond_init(&w->from_thread, NULL);
    return w;
}

static enum corral_status check_options(const struct corral_wal_options *o, struct corral_error *err)
{
    if (o->folder == NULL || o->folder[0] == '\0' || strlen(o->folder) >= PATH_MAX - WAL_NAME_BYTES) {
        return corral_fail(err, CORRAL_INVALID, "trajectory log: the folder is not named, or too long");
    }
    if (o->segment_bytes != 0 &&
        (o->segment_bytes < SEGMENT_BYTES_MIN || o->segment_bytes > SEGMENT_BYTES_MAX)) {
        return corral_fail(err, CORRAL_INVALID, "trajectory log: segments of %llu bytes; %llu to %llu work",
                           (unsigned long long)o->segment_bytes, (unsigned long long)SEGMENT_BYTES_MIN,
                           (unsigned long long)SEGMENT_BYTES_MAX);
    }
    if (o->zstd_level < 0 || o->zstd_level > WAL_ZSTD_LEVEL_MAX) {
        return corral_fail(err, CORRAL_INVALID, "trajectory log: zstd level %d; 0 (off) to %d work",
                           o->zstd_level, WAL_ZSTD_LEVEL_MAX);
    }
    return CORRAL_OK;
}

static enum corral_status open_folder(struct corral_wal *w, const char *path, struct corral_error *err)
{
    char lock[PATH_MAX];
    memcpy(w->path, path, strlen(path) + 1);
    snprintf(lock, sizeof lock, "%.*s/lock", PATH_MAX - 8, w->path);
    CORRAL_TRY(corral_mkdirs(path, 0700, err));
    w->folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->folder < 0) {
        return corral_fail_sys(err, errno, "cannot open the trajectory log %s", path);
    }
    return corral_lock_file(lock, &w->lock, err);
}

enum corral_status wal_open_with(struct corral_wal **out, const struct corral_wal_options *o,
                                 const struct wal_files *files, struct corral_error *err)
{
    CORRAL_TRY(check_options(o, err));
    CORRAL_CLEANUP(destroyp) struct corral_wal *w = make(o, files);
    if (w == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a trajectory log");
    }
    if (o->zstd_level > 0) {
        CORRAL_TRY(wal_packer_create(&w->packer, err));
    }
    w->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->bell < 0) {
        return corral_fail_sys(err, errno, "cannot make an eventfd for a trajectory log");
    }
    CORRAL_TRY(open_folder(w, o->folder, err));
    CORRAL_TRY(wal_repair(w, err));
    enum corral_status status = wal_segment_begin(w, 0, err);
    if (status == CORRAL_DENIED) { /* what is kept may be trimmed: append() tries again */
        status = CORRAL_OK;
        w->first_of_active = w->last + 1;
    }
    CORRAL_TRY(status);
    /* From here on some segment is always there: a folder that a power cut emptied would begin again at 1. */
    if (w->files.sync_folder(w->files.ctx, w->folder) != 0) {
        return corral_fail_sys(err, errno, "cannot sync the folder %s", w->path);
    }
    CORRAL_TRY(wal_thread_start(w, err));
    *out = CORRAL_STEAL(w);
    return CORRAL_OK;
}

enum corral_status corral_wal_open(struct corral_wal **out, const struct corral_wal_options *o,
                                   struct corral_error *err)
{
    return wal_open_with(out, o, &wal_files_real, err);
}

static enum corral_status write_frame(struct corral_wal *w, uint32_t flags, uint64_t position,
                                      const void *data, uint64_t stored, uint64_t record,
                                      struct corral_error *err)
{
    static const uint8_t zeros[WAL_ALIGN];
    uint8_t header[WAL_ALIGN];
    struct wal_frame f = {.flags = flags,
                          .position = position,
                          .stored = stored,
                          .record = record,
                          .synced = atomic_load_explicit(&w->synced, memory_order_relaxed),
                          .salt = w->salt,
                          .digest = wal_digest(data, stored)};
    wal_frame_put(header, &f);
    struct iovec parts[] = {{.iov_base = header, .iov_len = sizeof header},
                            {.iov_base = (void *)(uintptr_t)data, .iov_len = stored},
                            {.iov_base = (void *)(uintptr_t)zeros, .iov_len = wal_padded(stored) - stored}};
    CORRAL_TRY(wal_write(&w->files, w->active, parts, CORRAL_COUNT_OF(parts), w->at, w->what, err));
    w->at += WAL_ALIGN + wal_padded(stored);
    return CORRAL_OK;
}

/* Room for a frame in the active segment. Only a refusal by bytes_max is not for good. */
static enum corral_status make_room(struct corral_wal *w, uint64_t frame, struct corral_error *err)
{
    if (w->active >= 0 && frame <= w->allocated - w->at) {
        return CORRAL_OK;
    }
    struct corral_error why = {0};
    enum corral_status status = wal_segment_begin(w, frame, &why);
    if (status == CORRAL_DENIED || status == CORRAL_NOMEM) {
        return corral_fail(err, status, "%s", why.text);
    }
    return status == CORRAL_OK ? CORRAL_OK : wal_fail(w, &why, err);
}

enum corral_status corral_wal_append(struct corral_wal *w, const void *record, uint64_t bytes,
                                     uint64_t *position, struct corral_error *err)
{
    CORRAL_TRY(wal_sound(w, err));
    if (bytes == 0 || bytes > CORRAL_TRAJ_RECORD_MAX) {
        return corral_fail(err, CORRAL_INVALID, "trajectory log: a record of %llu bytes",
                           (unsigned long long)bytes);
    }
    const void *data = record;
    uint64_t stored = bytes, packed_bytes = 0;
    if (w->zstd_level > 0) {
        const void *packed = NULL;
        CORRAL_TRY(wal_pack(w->packer, w->zstd_level, record, bytes, &packed, &packed_bytes, err));
        data = packed_bytes > 0 ? packed : data;
        stored = packed_bytes > 0 ? packed_bytes : stored;
    }
    CORRAL_TRY(make_room(w, WAL_ALIGN + wal_padded(stored), err));
    struct corral_error why = {0};
    uint32_t flags = packed_bytes > 0 ? WAL_FLAG_ZSTD : 0;
    if (write_frame(w, flags, w->last + 1, data, stored, bytes, &why) != CORRAL_OK) {
        return wal_fail(w, &why, err);
    }
    *position = ++w->last;
    atomic_store_explicit(&w->appended, w->last, memory_order_release); /* pairs with the thread's take() */
    if (w->sync == CORRAL_WAL_SYNC_GROUP) {
        wal_thread_wake(w);
    } else {
        wal_ring(w);
    }
    return CORRAL_OK;
}

/* A frame that says that all before it is durable: damage to the last records is then known for what it is. */
static enum corral_status write_end(struct corral_wal *w, struct corral_error *err)
{
    if (w->active < 0) {
        return CORRAL_OK;
    }
    if (w->allocated - w->at >= WAL_ALIGN) {
        CORRAL_TRY(write_frame(w, WAL_FLAG_END, w->last + 1, "", 0, 0, err));
    }
    if (w->files.truncate(w->files.ctx, w->active, w->at) != 0 ||
        w->files.sync(w->files.ctx, w->active) != 0) {
        return corral_fail_sys(err, errno, "cannot close %s", w->what);
    }
    return CORRAL_OK;
}

enum corral_status corral_wal_close(struct corral_wal *w, struct corral_error *err)
{
    if (w == NULL) {
        return CORRAL_OK;
    }
    wal_thread_stop(w);
    enum corral_status status = wal_sound(w, err);
    if (status == CORRAL_OK) {
        status = write_end(w, err);
    }
    destroy(w);
    return status;
}

enum corral_status corral_wal_durable(const struct corral_wal *w, uint64_t *position,
                                      struct corral_error *err)
{
    *position =
        atomic_load_explicit(w->sync == CORRAL_WAL_SYNC_GROUP ? &w->synced : &w->appended,
                             memory_order_acquire); /* pairs with the thread's settle(), or append() */
    return wal_sound(w, err);
}

int corral_wal_bell(const struct corral_wal *w)
{
    return w->bell;
}

uint64_t corral_wal_first(const struct corral_wal *w)
{
    return w->closed_count > 0 ? w->closed[0].first : w->first_of_active;
}

uint64_t corral_wal_last(const struct corral_wal *w)
{
    return w->last;
}
