/* Writing a chain: a record is copied into a shared mapping of its file, where it outlives the process at once; a thread makes it durable. Room is taken beforehand on file systems
 * where that is a promise, so that the copy can neither fail nor fault for want of it; on others a record is one pwrite(). */
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "quota/proof/internal.h"
#include "quota/proof/record.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define ROOM_BYTES ((uint64_t)256 << 10) /* taken from the disk ahead of the records */
#define WINDOW_BYTES ((uint64_t)4 << 20) /* mapped at a time; reaches beyond the file's end */
#define REWRITE_BYTES \
    ((uint64_t)1 << 20) /* of an existing chain's end: more than is written between two syncs */
#define WARM_BYTES_MIN ((uint64_t)16 << 10)
#define PAGE ((uint64_t)4096)
#define PATH_BYTES 1024

/* What the syncing thread has to do. The writer sets SYNC_WANTED; the rest is the thread's. */
enum sync_state { SYNC_ASLEEP, SYNC_AWAKE, SYNC_WANTED };

struct corral_chain {
    char path[PATH_BYTES];
    int fd;
    _Atomic uint64_t size; /* bytes of whole records; written by the writer's thread alone */
    uint64_t room_to;      /* up to where the disk has given room */
    bool broken;           /* half a line could not be taken back: the next open does it */
    bool mapped;           /* room is a promise here: records go through the window */
    bool no_reserve;       /* the file system cannot */
    bool counts_links;     /* the file system does, so that a file without any has been removed */
    char *window;          /* of the file, from window_at; NULL: none */
    uint64_t window_at;
    struct corral_chain_head head;
    struct corral_sha256_kept *sha;
    char *last; /* body of the last record that says where the trainer is, "" when there is none */
    char line[CORRAL_CHAIN_LINE_MAX]; /* 64 digits, space, body, newline */
    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex; /* guards stop, and the window against the thread's warming of it */
    pthread_cond_t cond;
    bool stop;
    _Atomic enum sync_state state;
    pthread_mutex_t
        sync_mutex; /* one fdatasync at a time: the kernel tells of a failure once, to whoever asks first */
    atomic_int sync_error; /* the first failure; stays */
};

int (*corral_chain_fdatasync)(int fd) = fdatasync;

/* ---- making it durable ---- */

/* A sync that failed may have lost what it was for, and the next one succeeds without it: nothing may be built on this chain any more. */
static int sync_now(struct corral_chain *c)
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

/* The disk write-protects what it has written. Taking the page faults here, for as much as was written since the last sync, spares them the writer. */
static void warm(struct corral_chain *c, uint64_t written)
{
#ifdef MADV_POPULATE_WRITE
    uint64_t from = atomic_load_explicit(&c->size, memory_order_relaxed) / PAGE * PAGE;
    uint64_t bytes = CORRAL_MAX(WARM_BYTES_MIN, written + written / 2) / PAGE * PAGE;
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

/* Half of the promised time, or the end. */
static void pause_thread(struct corral_chain *c)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += CORRAL_CHAIN_SYNC_MS * 1000000L / 2; /* the other half is for the disk */
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    while (!c->stop && pthread_cond_timedwait(&c->cond, &c->mutex, &until) == 0) {
    }
}

/* It looks twice in the promised time while records come, and sleeps once it has found none: a writer that writes often never wakes it. */
static void *sync_main(void *arg)
{
    struct corral_chain *c = arg;
    uint64_t synced = atomic_load_explicit(&c->size, memory_order_relaxed);
    pthread_mutex_lock(&c->mutex);
    while (!c->stop) {
        pause_thread(c);
        /* Pairs with mark_dirty(): what was written before it is in this sync. */
        enum sync_state found = atomic_exchange_explicit(&c->state, SYNC_AWAKE, memory_order_acq_rel);
        if (found == SYNC_WANTED) {
            uint64_t size = atomic_load_explicit(&c->size, memory_order_relaxed);
            pthread_mutex_unlock(&c->mutex);
            (void)sync_now(c);
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
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

static void mark_dirty(struct corral_chain *c)
{
    /* Pairs with the thread's exchanges. */
    if (atomic_exchange_explicit(&c->state, SYNC_WANTED, memory_order_acq_rel) == SYNC_ASLEEP) {
        pthread_mutex_lock(&c->mutex);
        pthread_cond_signal(&c->cond);
        pthread_mutex_unlock(&c->mutex);
    }
}

static enum corral_status start_thread(struct corral_chain *c, struct corral_error *err)
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

static void unmap(struct corral_chain *c)
{
    if (c->window) {
        (void)munmap(c->window, WINDOW_BYTES);
        c->window = NULL;
    }
}

/* Cut the file behind its records; nothing may be mapped there then. */
static int cut(struct corral_chain *c)
{
    if (c->thread_runs) {
        pthread_mutex_lock(&c->mutex);
    }
    unmap(c);
    c->room_to = c->size;
    if (c->thread_runs) {
        pthread_mutex_unlock(&c->mutex);
    }
    return ftruncate(c->fd, (off_t)c->size);
}

/* Where blocks that were taken can be written later, whatever else happens to the disk. Where each write goes to new blocks, or over a network, it cannot be told. */
static bool keeps_room(int fd)
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
    unmap(c);
    void *window = mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, (off_t)at);
    c->mapped = window != MAP_FAILED;
    c->window = c->mapped ? window : NULL;
    c->window_at = at;
}

static bool fits_window(const struct corral_chain *c, uint64_t bytes)
{
    return c->window && c->size + bytes <= CORRAL_MIN(c->room_to, c->window_at + WINDOW_BYTES);
}

enum corral_status corral_chain_reserve(struct corral_chain *c, struct corral_error *err)
{
    const uint64_t want = 2 * (uint64_t)CORRAL_CHAIN_LINE_MAX;
    if (c->no_reserve || (c->mapped ? fits_window(c, want) : c->size + want <= c->room_to)) {
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
    if (c->mapped && !fits_window(c, want)) {
        map_window(c);
    }
    warm(c, 0);
    pthread_mutex_unlock(&c->mutex);
    return CORRAL_OK;
}

/* ---- opening and closing ---- */

/* One writer: a second one would fork the chain. */
static enum corral_status lock(const struct corral_chain *c, struct corral_error *err)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(c->fd, F_OFD_SETLK, &l) == 0) {
        return CORRAL_OK;
    }
    return errno == EAGAIN || errno == EACCES
               ? corral_fail(err, CORRAL_EXISTS, "%s is being written by another process", c->path)
               : corral_fail_sys(err, errno, "locking %s", c->path);
}

/* The name of a new file must survive a power cut as its records do. */
static enum corral_status sync_folder(const char *path, struct corral_error *err)
{
    char folder[PATH_BYTES];
    const char *slash = strrchr(path, '/');
    size_t bytes = slash ? (size_t)(slash - path) : 0;
    memcpy(folder, path, bytes);
    folder[bytes] = '\0';
    const char *name = !slash ? "." : bytes == 0 ? "/" : folder;
    CORRAL_AUTO_CLOSE int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 && fsync(fd) == 0 ? CORRAL_OK
                                     : corral_fail_sys(err, errno, "syncing the folder of %s", path);
}

static enum corral_status open_file(struct corral_chain *c, struct corral_error *err)
{
    c->fd = open(c->path, O_RDWR | O_CLOEXEC);
    bool made = c->fd < 0 && errno == ENOENT;
    if (made) {
        c->fd = open(c->path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    }
    if (c->fd < 0) {
        return corral_fail_sys(err, errno, "opening %s", c->path);
    }
    CORRAL_TRY(lock(c, err));
    return made ? sync_folder(c->path, err) : CORRAL_OK;
}

/* The writer's own note of a torn end has neither generation nor step: it does not hide the record before it. */
static void remember(struct corral_chain *c, const char *body, size_t bytes)
{
    static const char recovered[] = "\"type\":\"recovered\"";
    const char *type = memchr(body, ',', bytes);
    if (type && strncmp(type + 1, recovered, sizeof recovered - 1) == 0) {
        return;
    }
    memcpy(c->last, body, bytes);
    c->last[bytes] = '\0';
}

static enum corral_status keep_last(void *ctx, uint64_t n, const char *body, size_t bytes, const char *hash,
                                    struct corral_error *err)
{
    (void)n, (void)hash, (void)err;
    remember(ctx, body, bytes);
    return CORRAL_OK;
}

static enum corral_status verify(struct corral_chain *c, uint64_t *torn, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct chain_reader *r = calloc(1, sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", c->path);
    }
    r->path = c->path;
    r->fn = keep_last;
    r->ctx = c;
    corral_chain_first_hash(r->head.hash);
    CORRAL_TRY(corral_chain_read_all(c->fd, r, torn, err));
    c->head = r->head;
    c->size = c->room_to = r->bytes;
    return CORRAL_OK;
}

/* When the last writer's sync failed and the writer died of it, the kernel holds pages that look written and are not, and will not tell. What can be among them is written once more. */
static enum corral_status rewrite_end(struct corral_chain *c, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *buffer = malloc(REWRITE_BYTES);
    uint64_t size = c->size, at = size > REWRITE_BYTES ? size - REWRITE_BYTES : 0;
    size_t bytes = (size_t)(size - at);
    if (!buffer) {
        return corral_fail(err, CORRAL_NOMEM, "opening %s", c->path);
    }
    errno = EIO; /* a file that has become shorter */
    return bytes == 0 || (pread(c->fd, buffer, bytes, (off_t)at) == (ssize_t)bytes &&
                          pwrite(c->fd, buffer, bytes, (off_t)at) == (ssize_t)bytes && sync_now(c) == 0)
               ? CORRAL_OK
               : corral_fail_sys(err, errno, "writing the end of %s once more", c->path);
}

/* Room that the last writer did not use goes, and so does half a record. */
static enum corral_status trim(struct corral_chain *c, uint64_t torn, struct corral_error *err)
{
    struct corral_proof_record r = {
        .type = CORRAL_PROOF_RECOVERED, .wall_ns = corral_wall_ns(), .torn_bytes = torn};
    char body[512];
    if (cut(c) != 0) {
        return corral_fail_sys(err, errno, "cutting off the torn end of %s", c->path);
    }
    CORRAL_TRY(rewrite_end(c, err));
    if (torn == 0) {
        return CORRAL_OK;
    }
    return corral_proof_write(&r, body, sizeof body)
               ? corral_chain_append(c, body, err)
               : corral_fail(err, CORRAL_INTERNAL, "recovering %s", c->path);
}

static enum corral_status prepare(struct corral_chain *c, bool may_map, struct corral_error *err)
{
    uint64_t torn = 0;
    c->last = calloc(1, CORRAL_CHAIN_LINE_MAX);
    c->sha = corral_sha256_create();
    if (!c->last || !c->sha) {
        return corral_fail(err, CORRAL_NOMEM, "opening %s", c->path);
    }
    CORRAL_TRY(open_file(c, err));
    CORRAL_TRY(verify(c, &torn, err));
    struct stat st;
    c->counts_links = fstat(c->fd, &st) == 0 && st.st_nlink > 0;
    CORRAL_TRY(start_thread(c, err));
    c->mapped = may_map && keeps_room(c->fd);
    return trim(c, torn, err);
}

static enum corral_status open_chain(const char *path, bool may_map, struct corral_chain **out,
                                     struct corral_error *err)
{
    if (strlen(path) >= PATH_BYTES) {
        return corral_fail(err, CORRAL_INVALID, "the path of a proof chain is too long: %.80s…", path);
    }
    struct corral_chain *c = calloc(1, sizeof *c);
    if (!c) {
        return corral_fail(err, CORRAL_NOMEM, "opening %s", path);
    }
    c->fd = -1;
    memcpy(c->path, path, strlen(path) + 1);
    enum corral_status status = prepare(c, may_map, err);
    if (status != CORRAL_OK) {
        corral_chain_close(c);
        return status;
    }
    *out = c;
    return CORRAL_OK;
}

enum corral_status corral_chain_open(const char *path, struct corral_chain **out, struct corral_error *err)
{
    return open_chain(path, true, out, err);
}

enum corral_status corral_chain_open_unmapped(const char *path, struct corral_chain **out,
                                              struct corral_error *err)
{
    return open_chain(path, false, out, err);
}

void corral_chain_close(struct corral_chain *c)
{
    if (!c) {
        return;
    }
    if (c->thread_runs) {
        pthread_mutex_lock(&c->mutex);
        c->stop = true;
        pthread_cond_signal(&c->cond);
        pthread_mutex_unlock(&c->mutex);
        pthread_join(c->thread, NULL);
        if (!c->broken && c->room_to > c->size) {
            (void)cut(c); /* what was reserved and not written */
        }
        unmap(c);
        (void)sync_now(c);
        pthread_cond_destroy(&c->cond);
        pthread_mutex_destroy(&c->mutex);
        pthread_mutex_destroy(&c->sync_mutex);
    }
    if (c->fd >= 0) {
        (void)close(c->fd);
    }
    corral_sha256_destroy(c->sha);
    free(c->last);
    free(c);
}

/* ---- records ---- */

/* The newline makes it a record, and goes last: a kill in the middle of the copy leaves a torn line, whatever order the bytes before it are copied in. */
static void copy_line(struct corral_chain *c, size_t bytes)
{
    char *to = c->window + (c->size - c->window_at);
    memcpy(to, c->line, bytes - 1);
    __atomic_store_n(to + bytes - 1, '\n', __ATOMIC_RELEASE);
}

static enum corral_status write_line(struct corral_chain *c, size_t bytes, struct corral_error *err)
{
    ssize_t n;
    do {
        n = pwrite(c->fd, c->line, bytes, (off_t)c->size);
    } while (n < 0 && errno == EINTR);
    if (n == (ssize_t)bytes) {
        return CORRAL_OK;
    }
    int error = n < 0 ? errno : ENOSPC; /* a short write of a small line: no room for the rest */
    c->broken = n > 0 && cut(c) != 0;
    return corral_fail_sys(err, error, "writing a record to %s", c->path);
}

static enum corral_status add_line(struct corral_chain *c, size_t bytes, struct corral_error *err)
{
    if (fits_window(c, bytes)) {
        copy_line(c, bytes);
    } else {
        CORRAL_TRY(write_line(c, bytes, err));
    }
    atomic_store_explicit(&c->size, c->size + bytes, memory_order_relaxed); /* for how much, not for what */
    return CORRAL_OK;
}

static enum corral_status check_writable(struct corral_chain *c, struct corral_error *err)
{
    int error = atomic_load_explicit(&c->sync_error, memory_order_acquire); /* pairs with sync_now() */
    if (error) {
        return corral_fail_sys(err, error, "syncing %s", c->path);
    }
    return c->broken ? corral_fail(err, CORRAL_STATE, "%s ends in half a record that could not be taken back",
                                   c->path)
                     : CORRAL_OK;
}

/* A copy into a page that the file does not have any more would be the process's end by SIGBUS, and a record in a file without a name nobody's proof. Who cuts the file between
 * this look and the copy still gets that. */
static enum corral_status check_file(const struct corral_chain *c, struct corral_error *err)
{
    struct stat st;
    if (fstat(c->fd, &st) != 0) {
        return corral_fail_sys(err, errno, "looking at %s", c->path);
    }
    if ((uint64_t)st.st_size < (c->window ? c->room_to : c->size)) {
        return corral_fail(err, CORRAL_STATE, "somebody has cut %s short: its proof is broken", c->path);
    }
    return c->counts_links && st.st_nlink == 0
               ? corral_fail(err, CORRAL_STATE, "somebody has removed %s while it was written", c->path)
               : CORRAL_OK;
}

/* "{"n":12," and returns its length. */
static size_t put_number(char *out, uint64_t n, bool more)
{
    char digits[20];
    size_t at = sizeof digits, bytes = 5;
    memcpy(out, "{\"n\":", bytes);
    do {
        digits[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    memcpy(out + bytes, digits + at, sizeof digits - at);
    bytes += sizeof digits - at;
    out[bytes] = ',';
    return bytes + more;
}

enum corral_status corral_chain_append(struct corral_chain *c, const char *body, struct corral_error *err)
{
    size_t bytes = strlen(body);
    if (bytes < 2 || body[0] != '{' || body[bytes - 1] != '}' || memchr(body, '\n', bytes)) {
        return corral_fail(err, CORRAL_INVALID, "a proof record must be one object in one line");
    }
    CORRAL_TRY(check_writable(c, err));
    char *json = c->line + HEX + 1;
    size_t start = put_number(json, c->head.count + 1, bytes > 2);
    size_t json_bytes = start + bytes - 1;
    if (HEX + 1 + json_bytes + 1 > CORRAL_CHAIN_LINE_MAX) {
        return corral_fail(err, CORRAL_INVALID, "a proof record of %zu bytes; at most %d fit", bytes,
                           CORRAL_CHAIN_LINE_MAX - 128);
    }
    memcpy(json + start, body + 1, bytes - 1);
    memcpy(c->line, c->head.hash, HEX);
    c->line[HEX] = ' ';
    uint8_t digest[32];
    char hash[CORRAL_CHAIN_HASH_HEX];
    corral_sha256_again(c->sha, c->line, HEX + 1 + json_bytes, digest);
    corral_hex(digest, sizeof digest, hash);
    memcpy(c->line, hash, HEX);
    json[json_bytes] = '\n';
    CORRAL_TRY(check_file(c, err));
    CORRAL_TRY(add_line(c, HEX + 1 + json_bytes + 1, err));
    json[json_bytes] = '\0';
    remember(c, json, json_bytes);
    memcpy(c->head.hash, hash, sizeof hash);
    c->head.count++;
    mark_dirty(c);
    return CORRAL_OK;
}

enum corral_status corral_chain_sync(struct corral_chain *c, struct corral_error *err)
{
    CORRAL_TRY(check_writable(c, err));
    int error = sync_now(c);
    return error == 0 ? CORRAL_OK : corral_fail_sys(err, error, "syncing %s", c->path);
}

void corral_chain_head(const struct corral_chain *c, struct corral_chain_head *out)
{
    *out = c->head;
}

const char *corral_chain_last(const struct corral_chain *c)
{
    return c->last;
}
