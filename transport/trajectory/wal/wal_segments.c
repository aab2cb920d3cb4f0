/* Segments of a log come and go. */
#include "base/clock.h"
#include "base/hash.h"
#include "transport/trajectory/wal/wal_private.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum corral_status wal_closed_add(struct corral_wal *w, uint64_t first, uint64_t bytes,
                                  struct corral_error *err)
{
    if (w->closed_count == w->closed_capacity) {
        uint32_t capacity = w->closed_capacity == 0 ? 64 : w->closed_capacity * 2;
        struct wal_closed *grown = realloc(w->closed, capacity * sizeof *grown);
        if (grown == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "a trajectory log of %u segments", w->closed_count);
        }
        w->closed = grown;
        w->closed_capacity = capacity;
    }
    w->closed[w->closed_count++] = (struct wal_closed){first, bytes};
    w->closed_bytes += bytes;
    return CORRAL_OK;
}

/* A file with its header under its final name. What is not durable yet the thread makes so. */
static enum corral_status create(struct corral_wal *w, uint64_t bytes, uint64_t salt, int *out,
                                 struct corral_error *err)
{
    char name[WAL_NAME_BYTES];
    uint8_t head[WAL_ALIGN];
    struct wal_head h = {.run = w->run,
                         .first = w->last + 1,
                         .salt = salt,
                         .synced = atomic_load_explicit(&w->synced, memory_order_relaxed),
                         .created_ns = corral_wall_ns()};
    wal_name(h.first, name);
    wal_head_put(head, &h);
    CORRAL_AUTO_CLOSE int fd = w->files.create(w->files.ctx, w->folder, WAL_NEW_NAME, bytes);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot make the segment %s/%s of %llu bytes", w->path, name,
                               (unsigned long long)bytes);
    }
    struct iovec part = {.iov_base = head, .iov_len = sizeof head};
    enum corral_status status = wal_write(&w->files, fd, &part, 1, 0, name, err);
    if (status == CORRAL_OK && w->files.rename(w->files.ctx, w->folder, WAL_NEW_NAME, name) != 0) {
        status = corral_fail_sys(err, errno, "cannot rename a new segment to %s/%s", w->path, name);
    }
    if (status != CORRAL_OK) {
        w->files.unlink(w->files.ctx, w->folder, WAL_NEW_NAME);
        return status;
    }
    snprintf(w->what, sizeof w->what, "%.*s/%s", PATH_MAX - 2, w->path, name);
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

/* The full segment goes to the thread, which cuts its unused end off, syncs and closes it. */
static void retire(struct corral_wal *w, int next)
{
    pthread_mutex_lock(&w->lock_of_thread);
    while (w->retired_count == WAL_RETIRED_MAX && !atomic_load_explicit(&w->failed, memory_order_relaxed)) {
        pthread_cond_wait(&w->from_thread, &w->lock_of_thread);
    }
    if (w->active >= 0 && w->retired_count < WAL_RETIRED_MAX) {
        w->retired[w->retired_count++] = (struct wal_retired){w->active, w->at, w->last};
    } else if (w->active >= 0) { /* the log has failed: nothing will be synced any more */
        close(w->active);
    }
    w->active = next;
    w->folder_dirty = true;
    pthread_cond_signal(&w->to_thread);
    pthread_mutex_unlock(&w->lock_of_thread);
}

static enum corral_status allowed(const struct corral_wal *w, uint64_t kept, uint64_t bytes,
                                  struct corral_error *err)
{
    if (w->bytes_max == 0 || (kept <= w->bytes_max && bytes <= w->bytes_max - kept)) {
        return CORRAL_OK;
    }
    return corral_fail(err, CORRAL_DENIED,
                       "the trajectory log %s is full: %llu bytes are kept, and one more segment of %llu "
                       "would be more than the %llu allowed",
                       w->path, (unsigned long long)kept, (unsigned long long)bytes,
                       (unsigned long long)w->bytes_max);
}

/* An empty segment is not replaced by one of the same name: readers and the thread have it open. */
static enum corral_status enlarge(struct corral_wal *w, uint64_t bytes, struct corral_error *err)
{
    CORRAL_TRY(allowed(w, w->closed_bytes, bytes, err));
    if (w->files.truncate(w->files.ctx, w->active, bytes) != 0) {
        return corral_fail_sys(err, errno, "cannot make room for %llu bytes in %s", (unsigned long long)bytes,
                               w->what);
    }
    w->allocated = bytes;
    return CORRAL_OK;
}

enum corral_status wal_segment_begin(struct corral_wal *w, uint64_t frame_bytes, struct corral_error *err)
{
    uint64_t bytes = CORRAL_MAX(w->segment_bytes, WAL_ALIGN + frame_bytes);
    bool full = w->active >= 0;
    if (full && w->last < w->first_of_active) {
        return enlarge(w, bytes, err);
    }
    CORRAL_TRY(allowed(w, w->closed_bytes + (full ? w->at : 0), bytes, err)); /* its unused end goes */
    if (full) { /* room in the table first: nothing may fail once the new file is there */
        CORRAL_TRY(wal_closed_add(w, w->first_of_active, w->at, err));
        w->closed_count--;
        w->closed_bytes -= w->at;
    }
    uint64_t salt = 0;
    int fd = -1;
    corral_random_bytes(&salt, sizeof salt);
    CORRAL_TRY(create(w, bytes, salt, &fd, err));
    if (full) {
        w->closed[w->closed_count++] = (struct wal_closed){w->first_of_active, w->at};
        w->closed_bytes += w->at;
    }
    retire(w, fd);
    w->salt = salt;
    w->first_of_active = w->last + 1;
    w->at = WAL_ALIGN;
    w->allocated = bytes;
    return CORRAL_OK;
}

static enum corral_status sync_folder(struct corral_wal *w, struct corral_error *err)
{
    return w->files.sync_folder(w->files.ctx, w->folder) == 0
               ? CORRAL_OK
               : corral_fail_sys(err, errno, "cannot sync the folder %s", w->path);
}

/* Oldest first and each made durable before the next, so that no crash leaves a gap. The newest segment never goes: it says how far the log was. */
static enum corral_status drop(struct corral_wal *w, uint64_t upto, struct corral_error *err)
{
    uint32_t gone = 0, most = w->active < 0 && w->closed_count > 0 ? w->closed_count - 1 : w->closed_count;
    /* The segment behind must not be forgotten when the one before it is gone. */
    enum corral_status status = most > 0 ? sync_folder(w, err) : CORRAL_OK;
    while (gone < most && status == CORRAL_OK) {
        uint64_t next = gone + 1 < w->closed_count ? w->closed[gone + 1].first : w->first_of_active;
        if (next - 1 > upto) {
            break;
        }
        char name[WAL_NAME_BYTES];
        wal_name(w->closed[gone].first, name);
        if (w->files.unlink(w->files.ctx, w->folder, name) != 0 && errno != ENOENT) {
            status = corral_fail_sys(err, errno, "cannot delete the segment %s/%s", w->path, name);
            break;
        }
        w->closed_bytes -= w->closed[gone].bytes;
        gone++;
        status = sync_folder(w, err);
    }
    w->closed_count -= gone;
    if (gone > 0) {
        memmove(w->closed, w->closed + gone, w->closed_count * sizeof w->closed[0]);
    }
    return status;
}

/* A log that was full when it was opened has no active segment. The one closed segment that is left goes as soon as there is one behind it, so it takes no room. */
static enum corral_status begin_behind_last(struct corral_wal *w, struct corral_error *err)
{
    uint64_t bytes = w->closed[0].bytes;
    w->closed_bytes -= bytes;
    enum corral_status status = wal_segment_begin(w, 0, err);
    w->closed_bytes += bytes;
    return status;
}

enum corral_status corral_wal_trim(struct corral_wal *w, uint64_t position, struct corral_error *err)
{
    CORRAL_TRY(wal_sound(w, err));
    uint64_t synced = atomic_load_explicit(&w->synced, memory_order_acquire); /* pairs with the thread's */
    uint64_t upto = CORRAL_MIN(position, synced); /* its segment may still be waiting for its sync */
    CORRAL_TRY(drop(w, upto, err));
    if (w->active >= 0 || w->closed_count != 1 || w->last > upto) {
        return CORRAL_OK;
    }
    CORRAL_TRY(begin_behind_last(w, err));
    return drop(w, upto, err);
}
