#include "quota/proof/chain.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "quota/proof/record.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEX 64
#define READ_BYTES 65536
#define RESERVE_BYTES (256u << 10) /* taken from the disk ahead of the records */
#define PATH_BYTES 1024

struct corral_chain {
    char path[PATH_BYTES];
    int fd;
    uint64_t size, reserved_to; /* bytes of whole records; up to where the disk has given room */
    bool broken;                /* half a line could not be taken back: the next open does it */
    bool no_reserve;            /* the file system cannot */
    struct corral_chain_head head;
    char *last; /* body of the last record that says where the trainer is, "" when there is none */
    char line[CORRAL_CHAIN_LINE_MAX]; /* 64 digits, space, body, newline */
    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex; /* guards dirty, stop, sync_error */
    pthread_cond_t cond;
    bool dirty, stop;
    int sync_error;
};

static void first_hash(char hash[CORRAL_CHAIN_HASH_HEX])
{
    memset(hash, '0', HEX);
    hash[HEX] = '\0';
}

/* ---- reading ---- */

struct reader {
    const char *path;
    corral_chain_record_fn fn;
    void *ctx;
    struct corral_chain_head head;
    char scratch[CORRAL_CHAIN_LINE_MAX];
};

static enum corral_status broken(const struct reader *r, const char *why, struct corral_error *err)
{
    return corral_fail(err, CORRAL_INVALID, "%s: record %" PRIu64 ": %s", r->path, r->head.count + 1, why);
}

/* One line without its newline. */
static enum corral_status read_line(struct reader *r, const char *line, size_t bytes,
                                    struct corral_error *err)
{
    char start[40], hash[CORRAL_CHAIN_HASH_HEX];
    int start_bytes = snprintf(start, sizeof start, "{\"n\":%" PRIu64, r->head.count + 1);
    if (bytes < HEX + 4 || bytes >= CORRAL_CHAIN_LINE_MAX || line[HEX] != ' ' || line[HEX + 1] != '{' ||
        line[bytes - 1] != '}') {
        return broken(r, "not a record: it must be 64 hex digits, a space and an object", err);
    }
    const char *body = line + HEX + 1;
    size_t body_bytes = bytes - HEX - 1;
    uint8_t digest[32];
    memcpy(r->scratch, r->head.hash, HEX);
    r->scratch[HEX] = ' ';
    memcpy(r->scratch + HEX + 1, body, body_bytes);
    corral_sha256(r->scratch, HEX + 1 + body_bytes, digest);
    corral_hex(digest, sizeof digest, hash);
    if (memcmp(hash, line, HEX) != 0) {
        return broken(r, "its hash is not that of the record before and its own text", err);
    }
    char after = body_bytes > (size_t)start_bytes ? body[start_bytes] : '\0';
    if (memcmp(body, start, CORRAL_MIN((size_t)start_bytes, body_bytes)) != 0 ||
        (after != ',' && after != '}')) {
        return broken(r, "its number is another", err);
    }
    uint64_t n = r->head.count + 1;
    if (r->fn) {
        memmove(r->scratch, r->scratch + HEX + 1, body_bytes);
        r->scratch[body_bytes] = '\0';
        CORRAL_TRY(r->fn(r->ctx, n, r->scratch, body_bytes, hash, err));
    }
    memcpy(r->head.hash, hash, sizeof hash);
    r->head.count = n;
    return CORRAL_OK;
}

static enum corral_status fill(int fd, const char *path, char *buffer, size_t *have, bool *end,
                               struct corral_error *err)
{
    while (*have < READ_BYTES && !*end) {
        ssize_t n = read(fd, buffer + *have, READ_BYTES - *have);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return corral_fail_sys(err, errno, "reading %s", path);
        }
        *end = n == 0;
        *have += (size_t)n;
    }
    return CORRAL_OK;
}

/* From the descriptor's position to the end. A line that never ends is torn, however long: a power cut may leave blocks of zeros. */
static enum corral_status read_all(int fd, struct reader *r, uint64_t *torn, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *buffer = malloc(READ_BYTES);
    if (!buffer) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", r->path);
    }
    size_t have = 0;
    uint64_t skipped = 0; /* of a line longer than the buffer */
    bool end = false;
    while (!end) {
        CORRAL_TRY(fill(fd, r->path, buffer, &have, &end, err));
        size_t at = 0;
        for (char *newline; (newline = memchr(buffer + at, '\n', have - at)) != NULL;) {
            if (skipped > 0) {
                return broken(r, "its line is too long", err);
            }
            CORRAL_TRY(read_line(r, buffer + at, (size_t)(newline - (buffer + at)), err));
            at = (size_t)(newline - buffer) + 1;
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
        if (have == READ_BYTES) {
            skipped += have;
            have = 0;
        }
    }
    *torn = skipped + have;
    return CORRAL_OK;
}

enum corral_status corral_chain_read(const char *path, corral_chain_record_fn fn, void *ctx,
                                     struct corral_chain_head *head, uint64_t *torn_bytes,
                                     struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? corral_fail(err, CORRAL_NOT_FOUND, "there is no %s", path)
                               : corral_fail_sys(err, errno, "opening %s", path);
    }
    CORRAL_AUTO_FREE struct reader *r = calloc(1, sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", path);
    }
    r->path = path;
    r->fn = fn;
    r->ctx = ctx;
    first_hash(r->head.hash);
    uint64_t torn = 0;
    CORRAL_TRY(read_all(fd, r, &torn, err));
    if (head) {
        *head = r->head;
    }
    if (torn_bytes) {
        *torn_bytes = torn;
    }
    return CORRAL_OK;
}

/* ---- writing ---- */

static void *sync_main(void *arg)
{
    struct corral_chain *c = arg;
    pthread_mutex_lock(&c->mutex);
    while (!c->stop) {
        if (!c->dirty) {
            pthread_cond_wait(&c->cond, &c->mutex);
            continue;
        }
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += CORRAL_CHAIN_SYNC_MS * 1000000L / 2; /* the other half is for the disk */
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        while (!c->stop && pthread_cond_timedwait(&c->cond, &c->mutex, &until) == 0) {
        }
        c->dirty = false;
        pthread_mutex_unlock(&c->mutex);
        int error = fdatasync(c->fd) == 0 ? 0 : errno;
        pthread_mutex_lock(&c->mutex);
        c->sync_error = c->sync_error ? c->sync_error : error;
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

static enum corral_status start_thread(struct corral_chain *c, struct corral_error *err)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&c->mutex, NULL);
    int code = pthread_create(&c->thread, NULL, sync_main, c);
    c->thread_runs = code == 0;
    return code == 0 ? CORRAL_OK : corral_fail_sys(err, code, "starting the thread that syncs %s", c->path);
}

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
    c->fd = open(c->path, O_RDWR | O_APPEND | O_CLOEXEC);
    bool made = c->fd < 0 && errno == ENOENT;
    if (made) {
        c->fd = open(c->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
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
    CORRAL_AUTO_FREE struct reader *r = calloc(1, sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", c->path);
    }
    r->path = c->path;
    r->fn = keep_last;
    r->ctx = c;
    first_hash(r->head.hash);
    struct stat st;
    CORRAL_TRY(read_all(c->fd, r, torn, err));
    if (fstat(c->fd, &st) != 0) {
        return corral_fail_sys(err, errno, "reading the size of %s", c->path);
    }
    c->head = r->head;
    c->size = c->reserved_to = (uint64_t)st.st_size - *torn;
    return CORRAL_OK;
}

static enum corral_status cut_off(struct corral_chain *c, uint64_t torn, struct corral_error *err)
{
    struct corral_proof_record r = {
        .type = CORRAL_PROOF_RECOVERED, .wall_ns = corral_wall_ns(), .torn_bytes = torn};
    char body[512];
    if (ftruncate(c->fd, (off_t)c->size) != 0) {
        return corral_fail_sys(err, errno, "cutting off the torn end of %s", c->path);
    }
    return corral_proof_write(&r, body, sizeof body)
               ? corral_chain_append(c, body, err)
               : corral_fail(err, CORRAL_INTERNAL, "recovering %s", c->path);
}

enum corral_status corral_chain_open(const char *path, struct corral_chain **out, struct corral_error *err)
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
    uint64_t torn = 0;
    c->last = calloc(1, CORRAL_CHAIN_LINE_MAX);
    enum corral_status status =
        c->last ? open_file(c, err) : corral_fail(err, CORRAL_NOMEM, "opening %s", path);
    if (status == CORRAL_OK) {
        status = verify(c, &torn, err);
    }
    if (status == CORRAL_OK) {
        status = start_thread(c, err);
    }
    if (status == CORRAL_OK && torn > 0) {
        status = cut_off(c, torn, err);
    }
    if (status != CORRAL_OK) {
        corral_chain_close(c);
        return status;
    }
    *out = c;
    return CORRAL_OK;
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
        pthread_cond_destroy(&c->cond);
        pthread_mutex_destroy(&c->mutex);
    }
    if (c->fd >= 0) {
        if (c->reserved_to > c->size) {
            (void)!ftruncate(c->fd, (off_t)c->size); /* what was reserved and not written */
        }
        (void)fdatasync(c->fd);
        (void)close(c->fd);
    }
    free(c->last);
    free(c);
}

enum corral_status corral_chain_reserve(struct corral_chain *c, struct corral_error *err)
{
    if (c->no_reserve || c->size + 2 * (uint64_t)CORRAL_CHAIN_LINE_MAX <= c->reserved_to) {
        return CORRAL_OK;
    }
    uint64_t end = c->size + RESERVE_BYTES;
    if (fallocate(c->fd, FALLOC_FL_KEEP_SIZE, (off_t)c->size, RESERVE_BYTES) == 0) {
        c->reserved_to = end;
        return CORRAL_OK;
    }
    if (errno == EOPNOTSUPP || errno == ENOSYS) {
        c->no_reserve = true;
        return CORRAL_OK;
    }
    return corral_fail_sys(err, errno, "making room for proof records in %s", c->path);
}

static enum corral_status append_bytes(struct corral_chain *c, size_t bytes, struct corral_error *err)
{
    ssize_t n;
    do {
        n = write(c->fd, c->line, bytes);
    } while (n < 0 && errno == EINTR);
    if (n == (ssize_t)bytes) {
        c->size += bytes;
        return CORRAL_OK;
    }
    int error = n < 0 ? errno : ENOSPC; /* a short write of a small line: no room for the rest */
    c->broken = n > 0 && ftruncate(c->fd, (off_t)c->size) != 0;
    return corral_fail_sys(err, error, "writing a record to %s", c->path);
}

static void mark_dirty(struct corral_chain *c)
{
    pthread_mutex_lock(&c->mutex);
    if (!c->dirty) {
        c->dirty = true;
        pthread_cond_signal(&c->cond);
    }
    pthread_mutex_unlock(&c->mutex);
}

/* A sync that failed may have lost what it was for: nothing may be built on it. */
static enum corral_status check_writable(struct corral_chain *c, struct corral_error *err)
{
    pthread_mutex_lock(&c->mutex);
    int error = c->sync_error;
    pthread_mutex_unlock(&c->mutex);
    if (error) {
        return corral_fail_sys(err, error, "syncing %s", c->path);
    }
    return c->broken ? corral_fail(err, CORRAL_STATE, "%s ends in half a record that could not be taken back",
                                   c->path)
                     : CORRAL_OK;
}

enum corral_status corral_chain_append(struct corral_chain *c, const char *body, struct corral_error *err)
{
    size_t bytes = strlen(body);
    if (bytes < 2 || body[0] != '{' || body[bytes - 1] != '}' || memchr(body, '\n', bytes)) {
        return corral_fail(err, CORRAL_INVALID, "a proof record must be one object in one line");
    }
    CORRAL_TRY(check_writable(c, err));
    char *json = c->line + HEX + 1;
    int start = snprintf(json, 40, "{\"n\":%" PRIu64 "%s", c->head.count + 1, bytes > 2 ? "," : "");
    size_t json_bytes = (size_t)start + bytes - 1;
    if (HEX + 1 + json_bytes + 1 > CORRAL_CHAIN_LINE_MAX) {
        return corral_fail(err, CORRAL_INVALID, "a proof record of %zu bytes; at most %d fit", bytes,
                           CORRAL_CHAIN_LINE_MAX - 128);
    }
    memcpy(json + start, body + 1, bytes - 1);
    memcpy(c->line, c->head.hash, HEX);
    c->line[HEX] = ' ';
    uint8_t digest[32];
    char hash[CORRAL_CHAIN_HASH_HEX];
    corral_sha256(c->line, HEX + 1 + json_bytes, digest);
    corral_hex(digest, sizeof digest, hash);
    memcpy(c->line, hash, HEX);
    json[json_bytes] = '\n';
    CORRAL_TRY(append_bytes(c, HEX + 1 + json_bytes + 1, err));
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
    return fdatasync(c->fd) == 0 ? CORRAL_OK : corral_fail_sys(err, errno, "syncing %s", c->path);
}

void corral_chain_head(const struct corral_chain *c, struct corral_chain_head *out)
{
    *out = c->head;
}

const char *corral_chain_last(const struct corral_chain *c)
{
    return c->last;
}
