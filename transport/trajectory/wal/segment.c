#include "transport/trajectory/wal/segment.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW_BYTES (UINT64_C(256) << 10)

void wal_segment_close(struct wal_segment *s)
{
    if (s->fd >= 0) {
        close(s->fd);
    }
    s->fd = -1;
    s->window_bytes = 0;
}

void wal_segment_free(struct wal_segment *s)
{
    wal_segment_close(s);
    free(s->window);
    s->window = NULL;
    s->capacity = 0;
}

/* At least `bytes` from `at` into the window, as far as the file goes. */
static enum corral_status fill(struct wal_segment *s, uint64_t at, uint64_t bytes, struct corral_error *err)
{
    uint64_t want = CORRAL_MAX(bytes, WINDOW_BYTES);
    s->window_bytes = 0;
    if (s->capacity < want) {
        free(s->window);
        s->capacity = 0;
        s->window = aligned_alloc(WAL_ALIGN, wal_padded(want));
        if (s->window == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "no memory for a record of %llu bytes in %s",
                               (unsigned long long)bytes, s->name);
        }
        s->capacity = wal_padded(want);
    }
    s->window_at = at;
    while (s->window_bytes < want) {
        ssize_t n =
            pread(s->fd, s->window + s->window_bytes, want - s->window_bytes, (off_t)(at + s->window_bytes));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return corral_fail_sys(err, errno, "cannot read %s at offset %llu", s->name,
                                   (unsigned long long)at);
        }
        if (n == 0) {
            break;
        }
        s->window_bytes += (uint64_t)n;
    }
    return CORRAL_OK;
}

/* Where [at, at + bytes) lies in memory; NULL behind the end of the file. */
static enum corral_status look(struct wal_segment *s, uint64_t at, uint64_t bytes, bool fresh,
                               const uint8_t **out, struct corral_error *err)
{
    bool there = s->window_bytes > 0 && at >= s->window_at && at - s->window_at <= s->window_bytes &&
                 bytes <= s->window_bytes - (at - s->window_at);
    if (!there || fresh) {
        struct stat st;
        if (fstat(s->fd, &st) != 0) {
            return corral_fail_sys(err, errno, "cannot read %s", s->name);
        }
        /* Before memory is taken for what a header claims. */
        if (at > (uint64_t)st.st_size || bytes > (uint64_t)st.st_size - at) {
            *out = NULL;
            return CORRAL_OK;
        }
        CORRAL_TRY(fill(s, at, bytes, err));
    }
    *out = s->window_bytes >= at - s->window_at + bytes ? s->window + (at - s->window_at) : NULL;
    return CORRAL_OK;
}

enum corral_status wal_segment_open(struct wal_segment *s, int folder, uint64_t first,
                                    struct corral_error *err)
{
    wal_segment_close(s);
    wal_name(first, s->name);
    int fd = openat(folder, s->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        return corral_fail(err, CORRAL_NOT_FOUND, "the trajectory log has no segment %s", s->name);
    }
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot open %s", s->name);
    }
    s->fd = fd;
    s->at = WAL_ALIGN;
    s->position = first;
    const uint8_t *bytes = NULL;
    CORRAL_TRY(look(s, 0, WAL_ALIGN, true, &bytes, err));
    if (bytes == NULL || !wal_head_get(bytes, &s->head) || s->head.first != first) {
        s->head = (struct wal_head){0};
        return corral_fail(err, CORRAL_AGAIN, "%s: no segment header", s->name);
    }
    return CORRAL_OK;
}

static enum corral_status try_frame(struct wal_segment *s, bool fresh, struct wal_frame *out,
                                    const uint8_t **data, bool *right, struct corral_error *err)
{
    const uint8_t *bytes = NULL;
    struct wal_frame f;
    *right = false;
    CORRAL_TRY(look(s, s->at, WAL_ALIGN, fresh, &bytes, err));
    if (bytes == NULL || !wal_frame_get(bytes, &f) || f.salt != s->head.salt || f.position != s->position) {
        return CORRAL_OK;
    }
    CORRAL_TRY(look(s, s->at, WAL_ALIGN + wal_padded(f.stored), false, &bytes, err));
    if (bytes == NULL || wal_digest(bytes + WAL_ALIGN, f.stored) != f.digest) {
        return CORRAL_OK;
    }
    *right = true;
    *out = f;
    *data = bytes + WAL_ALIGN;
    return CORRAL_OK;
}

enum corral_status wal_segment_frame(struct wal_segment *s, struct wal_frame *out, const uint8_t **data,
                                     struct corral_error *err)
{
    bool right;
    CORRAL_TRY(try_frame(s, false, out, data, &right, err));
    if (!right) { /* what is in the window may be older than what is in the file */
        CORRAL_TRY(try_frame(s, true, out, data, &right, err));
    }
    return right ? CORRAL_OK
                 : corral_fail(err, CORRAL_AGAIN, "%s: nothing at offset %llu", s->name,
                               (unsigned long long)s->at);
}

void wal_segment_skip(struct wal_segment *s, const struct wal_frame *f)
{
    s->at += WAL_ALIGN + wal_padded(f->stored);
    s->position += (f->flags & WAL_FLAG_END) == 0;
}

/* Any frame header from `from` on, whatever its salt, that vouches for the position. */
static enum corral_status scan(struct wal_segment *s, uint64_t from, uint64_t position, bool *found,
                               struct corral_error *err)
{
    *found = false;
    for (uint64_t at = from;; at += WAL_ALIGN) {
        const uint8_t *bytes = NULL;
        struct wal_frame f;
        if (s->window_bytes == 0 || at >= s->window_at + s->window_bytes) {
            off_t data = lseek(s->fd, (off_t)at, SEEK_DATA); /* what was only preallocated is passed over */
            if (data < 0 && errno == ENXIO) {
                return CORRAL_OK;
            }
            at = data > 0 ? CORRAL_MAX(at, (uint64_t)data / WAL_ALIGN * WAL_ALIGN) : at;
        }
        CORRAL_TRY(look(s, at, WAL_ALIGN, false, &bytes, err));
        if (bytes == NULL) {
            return CORRAL_OK;
        }
        if (wal_frame_get(bytes, &f) && f.synced >= position) {
            *found = true;
            return CORRAL_OK;
        }
    }
}

static enum corral_status evidence_in_later(int folder, uint64_t first, uint64_t position, bool *found,
                                            struct corral_error *err)
{
    CORRAL_CLEANUP(wal_segment_free) struct wal_segment later = {.fd = -1};
    enum corral_status status = wal_segment_open(&later, folder, first, err);
    if (status == CORRAL_NOT_FOUND) {
        return CORRAL_OK; /* trimmed or cut meanwhile */
    }
    if (status != CORRAL_OK && status != CORRAL_AGAIN) {
        return status;
    }
    if (status == CORRAL_OK && later.head.synced >= position) {
        *found = true;
        return CORRAL_OK;
    }
    return scan(&later, WAL_ALIGN, position, found, err);
}

enum corral_status wal_evidence(struct wal_segment *s, int folder, uint64_t position, bool *found,
                                struct corral_error *err)
{
    *found = false;
    if (s != NULL) {
        s->window_bytes = 0;
        CORRAL_TRY(scan(s, s->at, position, found, err));
        s->window_bytes = 0;
    }
    CORRAL_CLEANUP(wal_list_free) struct wal_list list = {0};
    CORRAL_TRY(wal_list_read(&list, folder, err));
    for (uint32_t i = 0; i < list.count && !*found; i++) {
        if (list.first[i] >= position && (s == NULL || list.first[i] != s->head.first)) {
            CORRAL_TRY(evidence_in_later(folder, list.first[i], position, found, err));
        }
    }
    return CORRAL_OK;
}
