/* The log's own thread: makes durable what was appended, as soon as the sync before has returned, and finishes full segments. */
#include "transport/trajectory/wal/wal_private.h"
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

void wal_ring(struct corral_wal *w)
{
    uint64_t one = 1;
    ssize_t n = write(w->bell, &one, sizeof one);
    (void)n; /* full: it is readable anyway */
}

enum corral_status wal_sound(const struct corral_wal *w, struct corral_error *err)
{
    if (!atomic_load_explicit(&w->failed, memory_order_acquire)) { /* pairs with wal_fail() */
        return CORRAL_OK;
    }
    if (err != NULL) {
        *err = w->failure;
    }
    return w->failure.status;
}

static void fail_locked(struct corral_wal *w, const struct corral_error *why)
{
    if (!atomic_load_explicit(&w->failed, memory_order_relaxed)) {
        w->failure = *why;
        atomic_store_explicit(&w->failed, true, memory_order_release); /* pairs with wal_sound() */
    }
    pthread_cond_broadcast(&w->from_thread);
    pthread_cond_signal(&w->to_thread);
}

enum corral_status wal_fail(struct corral_wal *w, const struct corral_error *why, struct corral_error *err)
{
    pthread_mutex_lock(&w->lock_of_thread);
    fail_locked(w, why);
    pthread_mutex_unlock(&w->lock_of_thread);
    wal_ring(w);
    return wal_sound(w, err);
}

void wal_thread_wake(struct corral_wal *w)
{
    pthread_mutex_lock(&w->lock_of_thread);
    pthread_cond_signal(&w->to_thread);
    pthread_mutex_unlock(&w->lock_of_thread);
}

struct work { /* what one round makes durable */
    struct wal_retired retired[WAL_RETIRED_MAX];
    uint32_t retired_count;
    int active; /* -1: not this time */
    bool folder;
    uint64_t upto;
};

static bool wanted(const struct corral_wal *w)
{
    bool frames = w->sync == CORRAL_WAL_SYNC_GROUP || w->stop;
    return w->stop || w->retired_count > 0 || w->folder_dirty ||
           (frames && atomic_load_explicit(&w->appended, memory_order_relaxed) >
                          atomic_load_explicit(&w->synced, memory_order_relaxed));
}

static void take(struct corral_wal *w, struct work *out)
{
    *out = (struct work){.retired_count = w->retired_count, .active = -1, .folder = w->folder_dirty};
    memcpy(out->retired, w->retired, w->retired_count * sizeof w->retired[0]);
    if (w->retired_count > 0) {
        out->upto = w->retired[w->retired_count - 1].last;
    }
    if (w->sync == CORRAL_WAL_SYNC_GROUP || w->stop) {
        out->active = w->active;
        out->upto = atomic_load_explicit(&w->appended, memory_order_acquire); /* pairs with append() */
    }
    w->folder_dirty = false;
}

/* A segment that somebody deleted takes its records with it, however often it is synced. */
static enum corral_status still_there(const struct corral_wal *w, int fd, struct corral_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "the trajectory log %s cannot be looked at", w->path);
    }
    return st.st_nlink > 0
               ? CORRAL_OK
               : corral_fail(err, CORRAL_IO, "%s: a segment was deleted while it was written", w->path);
}

/* `last`: its last position; up to `synced` it may have been trimmed. */
static enum corral_status sync_one(struct corral_wal *w, int fd, uint64_t last, struct corral_error *err)
{
    if (w->files.sync(w->files.ctx, fd) != 0) {
        return corral_fail_sys(err, errno, "cannot sync the trajectory log %s", w->path);
    }
    return last > atomic_load_explicit(&w->synced, memory_order_relaxed) ? still_there(w, fd, err)
                                                                         : CORRAL_OK;
}

static enum corral_status do_work(struct corral_wal *w, const struct work *job, struct corral_error *err)
{
    for (uint32_t i = 0; i < job->retired_count; i++) {
        const struct wal_retired *r = &job->retired[i];
        if (w->files.truncate(w->files.ctx, r->fd, r->bytes) != 0) {
            return corral_fail_sys(err, errno, "cannot cut a full segment of %s", w->path);
        }
        CORRAL_TRY(sync_one(w, r->fd, r->last, err));
    }
    if (job->active >= 0) {
        CORRAL_TRY(sync_one(w, job->active, job->upto, err));
    }
    if (job->folder && w->files.sync_folder(w->files.ctx, w->folder) != 0) {
        return corral_fail_sys(err, errno, "cannot sync the folder %s", w->path);
    }
    return CORRAL_OK;
}

/* Under the lock. The retired ones of `job` are the oldest in the table. */
static void settle(struct corral_wal *w, const struct work *job, const struct corral_error *failure)
{
    for (uint32_t i = 0; i < job->retired_count; i++) {
        close(job->retired[i].fd);
    }
    w->retired_count -= job->retired_count;
    memmove(w->retired, w->retired + job->retired_count, w->retired_count * sizeof w->retired[0]);
    if (failure->status != CORRAL_OK) {
        fail_locked(w, failure);
    } else if (job->upto > atomic_load_explicit(&w->synced, memory_order_relaxed)) {
        atomic_store_explicit(&w->synced, job->upto, memory_order_release); /* pairs with durable(), trim() */
    }
    pthread_cond_broadcast(&w->from_thread);
}

static void *run(void *arg)
{
    struct corral_wal *w = arg;
    pthread_mutex_lock(&w->lock_of_thread);
    for (bool last = false; !last && !atomic_load_explicit(&w->failed, memory_order_relaxed);) {
        while (!wanted(w) && !atomic_load_explicit(&w->failed, memory_order_relaxed)) {
            pthread_cond_wait(&w->to_thread, &w->lock_of_thread);
        }
        if (atomic_load_explicit(&w->failed, memory_order_relaxed)) {
            break;
        }
        last = w->stop;
        struct work job;
        struct corral_error failure = {.status = CORRAL_OK};
        take(w, &job);
        pthread_mutex_unlock(&w->lock_of_thread);
        do_work(w, &job, &failure);
        pthread_mutex_lock(&w->lock_of_thread);
        settle(w, &job, &failure);
        wal_ring(w);
    }
    pthread_mutex_unlock(&w->lock_of_thread);
    return NULL;
}

enum corral_status wal_thread_start(struct corral_wal *w, struct corral_error *err)
{
    int failed = pthread_create(&w->thread, NULL, run, w);
    if (failed != 0) {
        return corral_fail_sys(err, failed, "cannot start the thread of the trajectory log %s", w->path);
    }
    w->thread_runs = true;
    return CORRAL_OK;
}

void wal_thread_stop(struct corral_wal *w)
{
    if (!w->thread_runs) {
        return;
    }
    pthread_mutex_lock(&w->lock_of_thread);
    w->stop = true;
    pthread_cond_signal(&w->to_thread);
    pthread_mutex_unlock(&w->lock_of_thread);
    pthread_join(w->thread, NULL);
    w->thread_runs = false;
}
