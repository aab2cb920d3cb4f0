/* Reading and verifying a chain. chain_write.c is the writer. */
#include "base/file.h"
#include "base/hash.h"
#include "quota/proof/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 65536

void corral_chain_first_hash(char hash[CORRAL_CHAIN_HASH_HEX])
{
    memset(hash, '0', HEX);
    hash[HEX] = '\0';
}

/* ---- reading ---- */

static enum corral_status broken(const struct chain_reader *r, const char *why, struct corral_error *err)
{
    return corral_fail(err, CORRAL_INVALID, "%s: record %" PRIu64 ": %s", r->path, r->head.count + 1, why);
}

/* One line without its newline. */
static enum corral_status read_line(struct chain_reader *r, const char *line, size_t bytes,
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
    r->bytes += bytes + 1;
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

/* What follows the last record. Zeros at its end are room that the writer has not used; what is before them is torn. */
struct tail {
    uint64_t bytes, torn;
};

static void add_tail(struct tail *t, const char *data, size_t bytes)
{
    for (size_t i = bytes; i > 0; i--) {
        if (data[i - 1] != '\0') {
            t->torn = t->bytes + i;
            break;
        }
    }
    t->bytes += bytes;
}

/* The records among `have` bytes. *at: behind the last of them; *ended: a zero follows before the next newline, so no record does. */
static enum corral_status read_lines(struct chain_reader *r, const char *data, size_t have, size_t *at,
                                     bool *ended, struct corral_error *err)
{
    for (const char *newline; (newline = memchr(data + *at, '\n', have - *at)) != NULL;) {
        size_t bytes = (size_t)(newline - (data + *at));
        if (memchr(data + *at, '\0', bytes)) {
            *ended = true;
            return CORRAL_OK;
        }
        CORRAL_TRY(read_line(r, data + *at, bytes, err));
        *at += bytes + 1;
    }
    *ended = memchr(data + *at, '\0', have - *at) != NULL;
    return CORRAL_OK;
}

/* A record has no zero byte in it: from the first one on there are none. A line that never ends is torn, however long. */
enum corral_status corral_chain_read_all(int fd, struct chain_reader *r, uint64_t *torn,
                                         struct corral_error *err)
{
    CORRAL_AUTO_FREE char *buffer = malloc(READ_BYTES);
    if (!buffer) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", r->path);
    }
    size_t have = 0;
    struct tail tail = {0};
    bool end = false, ended = false, long_line = false;
    while (!end) {
        size_t at = 0;
        CORRAL_TRY(fill(fd, r->path, buffer, &have, &end, err));
        if (!ended && long_line) {
            const char *newline = memchr(buffer, '\n', have), *zero = memchr(buffer, '\0', have);
            if (newline && (!zero || newline < zero)) {
                return broken(r, "its line is too long", err);
            }
            ended = zero != NULL;
        } else if (!ended) {
            CORRAL_TRY(read_lines(r, buffer, have, &at, &ended, err));
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
        if (ended || have == READ_BYTES || end) {
            add_tail(&tail, buffer, have);
            long_line = !ended;
            have = 0;
        }
    }
    *torn = tail.torn;
    return CORRAL_OK;
}

/* Its writer lives, and holds its lock: what follows the last record is the next one on its way. */
static bool being_written(int fd)
{
    struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type == F_WRLCK;
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
    CORRAL_AUTO_FREE struct chain_reader *r = calloc(1, sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "reading %s", path);
    }
    r->path = path;
    r->fn = fn;
    r->ctx = ctx;
    corral_chain_first_hash(r->head.hash);
    uint64_t torn = 0;
    CORRAL_TRY(corral_chain_read_all(fd, r, &torn, err));
    if (head) {
        *head = r->head;
    }
    if (torn_bytes) {
        *torn_bytes = torn > 0 && being_written(fd) ? 0 : torn;
    }
    return CORRAL_OK;
}
