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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REWRITE_BYTES \
    ((uint64_t)1 << 20) /* of an existing chain's end: more than is written between two syncs */

#define TEAR_BYTES_MIN 8 /* zeros in a row */

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

/* The folder stays open: what the file's name means is asked there, wherever the folder is moved to. */
static enum corral_status open_folder(struct corral_chain *c, struct corral_error *err)
{
    char folder[PATH_BYTES];
    const char *slash = strrchr(c->path, '/');
    size_t bytes = slash ? (size_t)(slash - c->path) : 0;
    memcpy(folder, c->path, bytes);
    folder[bytes] = '\0';
    c->name = slash ? slash + 1 : c->path;
    c->folder_fd = open(!slash ? "." : bytes == 0 ? "/" : folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return c->folder_fd >= 0 ? CORRAL_OK : corral_fail_sys(err, errno, "opening the folder of %s", c->path);
}

/* The name of a new file must survive a power cut as its records do. */
static enum corral_status open_file(struct corral_chain *c, struct corral_error *err)
{
    CORRAL_TRY(open_folder(c, err));
    c->fd = openat(c->folder_fd, c->name, O_RDWR | O_CLOEXEC);
    bool made = c->fd < 0 && errno == ENOENT;
    if (made) {
        c->fd = openat(c->folder_fd, c->name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    }
    if (c->fd < 0) {
        return corral_fail_sys(err, errno, "opening %s", c->path);
    }
    CORRAL_TRY(lock(c, err));
    return !made || fsync(c->folder_fd) == 0
               ? CORRAL_OK
               : corral_fail_sys(err, errno, "syncing the folder of %s", c->path);
}

/* The writer's own note of a torn end has neither generation nor step: it does not hide the record before it. */
static bool says_where(const char *body, size_t start)
{
    static const char recovered[] = "\"type\":\"recovered\"";
    return strncmp(body + start, recovered, sizeof recovered - 1) != 0;
}

static enum corral_status keep_last(void *ctx, uint64_t n, const char *body, size_t bytes, const char *hash,
                                    struct corral_error *err)
{
    (void)n, (void)hash, (void)err;
    struct corral_chain *c = ctx;
    const char *type = memchr(body, ',', bytes);
    if (!type || says_where(type, 1)) {
        memcpy(c->found, body, bytes);
        c->found[bytes] = '\0';
    }
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
                          pwrite(c->fd, buffer, bytes, (off_t)at) == (ssize_t)bytes &&
                          corral_chain_sync_now(c) == 0)
               ? CORRAL_OK
               : corral_fail_sys(err, errno, "writing the end of %s once more", c->path);
}

/* A writer that is killed leaves no newline behind the zeros in its line, and a power cut whole sectors of them. Less than that, in a line that has its end, is damage: all behind it was written, and is not cut off. */
static enum corral_status check_tear(const struct corral_chain *c, uint64_t torn, struct corral_error *err)
{
    char line[CORRAL_CHAIN_LINE_MAX];
    if (torn == 0) {
        return CORRAL_OK;
    }
    ssize_t bytes = pread(c->fd, line, sizeof line, (off_t)c->size);
    if (bytes < 0) {
        return corral_fail_sys(err, errno, "reading %s", c->path);
    }
    const char *end = line + bytes, *zero = memchr(line, '\0', (size_t)bytes), *text = zero;
    while (text && text < end && *text == '\0') {
        text++;
    }
    return zero && text - zero < TEAR_BYTES_MIN && memchr(text, '\n', (size_t)(end - text))
               ? corral_fail(err, CORRAL_INVALID, "%s: record %" PRIu64 ": a zero byte is in it", c->path,
                             c->head.count + 1)
               : CORRAL_OK;
}

/* Room that the last writer did not use goes, and so does half a record. */
static enum corral_status trim(struct corral_chain *c, uint64_t torn, struct corral_error *err)
{
    struct corral_proof_record r = {
        .type = CORRAL_PROOF_RECOVERED, .wall_ns = corral_wall_ns(), .torn_bytes = torn};
    char body[512];
    if (corral_chain_cut(c) != 0) {
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
    c->last = c->found = calloc(1, CORRAL_CHAIN_LINE_MAX);
    if (!c->found) {
        return corral_fail(err, CORRAL_NOMEM, "opening %s", c->path);
    }
    CORRAL_TRY(corral_chain_open_files(c, open_file, err));
    CORRAL_TRY(verify(c, &torn, err));
    CORRAL_TRY(check_tear(c, torn, err));
    c->mapped = may_map && corral_chain_keeps_room(c->fd);
    corral_chain_watch(c);
    CORRAL_TRY(corral_chain_start_thread(c, err));
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
    c->fd = c->watch_fd = c->folder_fd = -1;
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
    if (c->thread_runs &&
        !c->foreign) { /* a thread does not come through a fork, and may hold its lock for ever */
        pthread_mutex_lock(&c->mutex);
        c->stop = true;
        pthread_cond_signal(&c->cond);
        pthread_mutex_unlock(&c->mutex);
        pthread_join(c->thread, NULL);
        if (!c->broken && c->room_to > c->size) {
            (void)corral_chain_cut(c); /* what was reserved and not written */
        }
        corral_chain_unmap(c);
        (void)corral_chain_sync_now(c);
        pthread_cond_destroy(&c->cond);
        pthread_mutex_destroy(&c->mutex);
        pthread_mutex_destroy(&c->sync_mutex);
    }
    corral_chain_close_files(c);
    free(c->found);
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
    c->broken = n > 0 && corral_chain_cut(c) != 0;
    return corral_fail_sys(err, error, "writing a record to %s", c->path);
}

static enum corral_status add_line(struct corral_chain *c, size_t bytes, struct corral_error *err)
{
    if (corral_chain_fits_window(c, bytes)) {
        copy_line(c, bytes);
    } else {
        CORRAL_TRY(write_line(c, bytes, err));
    }
    atomic_store_explicit(&c->size, c->size + bytes, memory_order_relaxed); /* for how much, not for what */
    return CORRAL_OK;
}

static enum corral_status check_writable(struct corral_chain *c, struct corral_error *err)
{
    CORRAL_TRY(corral_chain_check_process(c, err));
    int error =
        atomic_load_explicit(&c->sync_error, memory_order_acquire); /* pairs with corral_chain_sync_now() */
    if (error) {
        return corral_fail_sys(err, error, "syncing %s", c->path);
    }
    return c->broken ? corral_fail(err, CORRAL_STATE, "%s ends in half a record that could not be taken back",
                                   c->path)
                     : CORRAL_OK;
}

/* "{"n":12," and returns its length. */
static size_t put_number(char *out, uint64_t n)
{
    char digits[20];
    size_t at = sizeof digits, bytes = 5;
    memcpy(out, "{\"n\":", bytes);
    do {
        digits[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    while (at < sizeof digits) {
        out[bytes++] = digits[at++];
    }
    out[bytes] = ',';
    return bytes + 1;
}

/* The body's own brace lies where the comma behind the number will be. */
char *corral_chain_draft(struct corral_chain *c, size_t *room)
{
    char *json = c->line + HEX + 1;
    c->number_bytes = put_number(json, c->head.count + 1);
    char *body = json + c->number_bytes - 1;
    *room = (size_t)(c->line + sizeof c->line - body) - 1; /* the newline */
    return body;
}

static enum corral_status add_record(struct corral_chain *c, size_t bytes, struct corral_error *err)
{
    CORRAL_TRY(check_writable(c, err));
    char *json = c->line + HEX + 1;
    bool empty = bytes == 2;
    size_t json_bytes = empty ? c->number_bytes : c->number_bytes - 1 + bytes;
    json[c->number_bytes - 1] = empty ? '}' : ',';
    memcpy(c->line, c->head.hash, HEX);
    c->line[HEX] = ' ';
    uint8_t digest[32];
    char hash[CORRAL_CHAIN_HASH_HEX];
    corral_sha256(c->line, HEX + 1 + json_bytes, digest);
    corral_hex(digest, sizeof digest, hash);
    memcpy(c->line, hash, HEX);
    json[json_bytes] = '\n';
    CORRAL_TRY(corral_chain_check_file(c, err));
    CORRAL_TRY(add_line(c, HEX + 1 + json_bytes + 1, err));
    json[json_bytes] = '\0';
    if (!empty && says_where(json, c->number_bytes)) {
        c->last = json;
    }
    memcpy(c->head.hash, hash, sizeof hash);
    c->head.count++;
    corral_chain_mark_dirty(c);
    return CORRAL_OK;
}

enum corral_status corral_chain_append_draft(struct corral_chain *c, size_t bytes, struct corral_error *err)
{
    return bytes >= 2 ? add_record(c, bytes, err)
                      : corral_fail(err, CORRAL_INVALID, "a proof record must be an object");
}

enum corral_status corral_chain_append(struct corral_chain *c, const char *body, struct corral_error *err)
{
    size_t bytes = strlen(body), room;
    if (bytes < 2 || body[0] != '{' || body[bytes - 1] != '}' || memchr(body, '\n', bytes)) {
        return corral_fail(err, CORRAL_INVALID, "a proof record must be one object in one line");
    }
    char *to = corral_chain_draft(c, &room);
    if (bytes > room) {
        return corral_fail(err, CORRAL_INVALID, "a proof record of %zu bytes; at most %d fit", bytes,
                           CORRAL_CHAIN_LINE_MAX - 128);
    }
    memcpy(to, body, bytes);
    return add_record(c, bytes, err);
}

enum corral_status corral_chain_sync(struct corral_chain *c, struct corral_error *err)
{
    CORRAL_TRY(check_writable(c, err));
    int error = corral_chain_sync_now(c);
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
