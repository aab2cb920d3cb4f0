/* Making a chain's records durable, and the room for them. The thread of a chain is here. */
#include "quota/proof/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define ROOM_BYTES ((uint64_t)256 << 10) /* taken from the disk ahead of the records */
#define WARM_BYTES_MIN ((uint64_t)16 << 10)
#define PAGE ((uint64_t)4096)

int (*corral_chain_fdatasync)(int fd) = fdatasync;

/* ---- making it durable ---- */

/* A sync that failed may have lost what it was for, and the next one succeeds without it: nothing may be built on this chain any more. */
int corral_chain_sync_now(struct corral_chain *c)
{
    pthread_mutex_lock(&c->sync_mutex);
    int error = corral_chain_fdatasync(c->fd) == 0 ? 0 : errno;
    int before = atomic_load_explicit(&c->sync_error, memory_order_relaxed); /* only written here */
    if (error && !before) {
        atomic_store_explicit(&c->sync_error, error, memory_order_release); /* pairs with check_writable() */
    }
    pthread_mutex_unlock(&c->sync_mutex);
    return before ? before : error;
}

/* The disk write-protects what it has written. Taking the page faults here, for as much as was written since the last sync, spares them the writer. What is taken in vain is written in vain, too. */
static void warm(struct corral_chain *c, uint64_t written)
{
#ifdef MADV_POPULATE_WRITE
    uint64_t from = atomic_load_explicit(&c->size, memory_order_relaxed) / PAGE * PAGE;
    uint64_t bytes = CORRAL_MAX(WARM_BYTES_MIN, written + written / 8) / PAGE * PAGE;
    if (c->window && from >= c->window_at) {
        uint64_t to = CORRAL_MIN(from + bytes, CORRAL_MIN(c->room_to, c->window_at + WINDOW_BYTES));
        if (to > from) {
            (void)madvise(c->window + (from - c->window_at), to - from, MADV_POPULATE_WRITE);
        }
    }
#else
    (void)c, (void)written;
#endif
}

/* Nine tenths of the promised time since the last sync began, or the end: a sync costs the machine as much whether it is for one record or for a hundred. */
static void pause_thread(struct corral_chain *c, const struct timespec *since)
{
    struct timespec until = *since;
    until.tv_nsec += CORRAL_CHAIN_SYNC_MS * 1000000L / 10 * 9;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    while (!c->stop && pthread_cond_timedwait(&c->cond, &c->mutex, &until) == 0) {
    }
}

/* It syncs within the promised time while records come, and sleeps once it has found none: a writer that writes often never wakes it. */
static void *sync_main(void *arg)
{
    struct corral_chain *c = arg;
    uint64_t synced = atomic_load_explicit(&c->size, memory_order_relaxed);
    struct timespec since;
    clock_gettime(CLOCK_MONOTONIC, &since);
    pthread_mutex_lock(&c->mutex);
    while (!c->stop) {
        pause_thread(c, &since);
        clock_gettime(CLOCK_MONOTONIC, &since);
        /* Pairs with corral_chain_mark_dirty(): what was written before it is in this sync. */
        enum sync_state found = atomic_exchange_explicit(&c->state, SYNC_AWAKE, memory_order_acq_rel);
        if (found == SYNC_WANTED) {
            uint64_t size = atomic_load_explicit(&c->size, memory_order_relaxed);
            pthread_mutex_unlock(&c->mutex);
            (void)corral_chain_sync_now(c);
            pthread_mutex_lock(&c->mutex);
            warm(c, size - synced);
            synced = size;
            continue;
        }
        found = SYNC_AWAKE;
        (void)atomic_compare_exchange_strong_explicit(&c->state, &found, SYNC_ASLEEP, memory_order_acq_rel,
                                                      memory_order_acquire);
        while (!c->stop && atomic_load_explicit(&c->state, memory_order_acquire) == SYNC_ASLEEP) {
            pthread_cond_wait(&c->cond, &c->mutex);
        }
        clock_gettime(CLOCK_MONOTONIC, &since);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

void corral_chain_mark_dirty(struct corral_chain *c)
{
    /* Pairs with the thread's exchanges. */
    if (atomic_exchange_explicit(&c->state, SYNC_WANTED, memory_order_acq_rel) == SYNC_ASLEEP) {
        pthread_mutex_lock(&c->mutex);
        pthread_cond_signal(&c->cond);
        pthread_mutex_unlock(&c->mutex);
    }
}

enum corral_status corral_chain_start_thread(struct corral_chain *c, struct corral_error *err)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_mutex_init(&c->sync_mutex, NULL);
    int code = pthread_create(&c->thread, NULL, sync_main, c);
    c->thread_runs = code == 0;
    return code == 0 ? CORRAL_OK : corral_fail_sys(err, code, "starting the thread that syncs %s", c->path);
}

/* ---- room for records ---- */

void corral_chain_unmap(struct corral_chain *c)
{
    if (c->window) {
        (void)munmap(c->window, WINDOW_BYTES);
        c->window = NULL;
    }
}

/* Cut the file behind its records; nothing may be mapped there then. */
int corral_chain_cut(struct corral_chain *c)
{
    if (c->thread_runs) {
        pthread_mutex_lock(&c->mutex);
    }
    corral_chain_unmap(c);
    c->room_to = c->size;
    if (c->thread_runs) {
        pthread_mutex_unlock(&c->mutex);
    }
    return ftruncate(c->fd, (off_t)c->size);
}

/* Where blocks that were taken can be written later, whatever else happens to the disk. Where each write goes to new blocks, or over a network, it cannot be told. */
bool corral_chain_keeps_room(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 &&
           (fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_SUPER_MAGIC || fs.f_type == TMPFS_MAGIC) &&
           sysconf(_SC_PAGESIZE) == (long)PAGE;
}

/* The window begins with the page of the next record. No window is no failure: records are written, then. */
static void map_window(struct corral_chain *c)
{
    uint64_t at = c->size / PAGE * PAGE;
    corral_chain_unmap(c);
    void *window = mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, (off_t)at);
    c->mapped = window != MAP_FAILED;
    c->window = c->mapped ? window : NULL;
    c->window_at = at;
}

bool corral_chain_fits_window(const struct corral_chain *c, uint64_t bytes)
{
    return c->window && c->size + bytes <= CORRAL_MIN(c->room_to, c->window_at + WINDOW_BYTES);
}

enum corral_status corral_chain_reserve(struct corral_chain *c, struct corral_error *err)
{
    const uint64_t want = 2 * (uint64_t)CORRAL_CHAIN_LINE_MAX;
    CORRAL_TRY(corral_chain_check_process(c, err));
    if (c->no_reserve || (c->mapped ? corral_chain_fits_window(c, want) : c->size + want <= c->room_to)) {
        return CORRAL_OK;
    }
    uint64_t room_to = c->room_to;
    if (c->size + want > room_to) {
        if (fallocate(c->fd, c->mapped ? 0 : FALLOC_FL_KEEP_SIZE, (off_t)c->size, (off_t)ROOM_BYTES) != 0) {
            if (errno != EOPNOTSUPP && errno != ENOSYS) {
                return corral_fail_sys(err, errno, "making room for proof records in %s", c->path);
            }
            c->no_reserve = true;
            c->mapped = false;
            return CORRAL_OK;
        }
        room_to = c->size + ROOM_BYTES;
    }
    pthread_mutex_lock(&c->mutex);
    c->room_to = room_to;
    if (c->mapped && !corral_chain_fits_window(c, want)) {
        map_window(c);
    }
    warm(c, 0);
    pthread_mutex_unlock(&c->mutex);
    return CORRAL_OK;
}
