#include "transport/trajectory/wal/compress.h"
#include "transport/trajectory/wal/segment.h"
#include "transport/trajectory/wal/wal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct corral_wal_reader {
    char path[PATH_MAX];
    int folder;
    struct wal_segment segment; /* fd -1: none yet */
    uint64_t from;              /* the next position, or the first wanted one */
    uint64_t quiet;             /* missing position for which no evidence of damage was found */
    uint64_t run;
    bool run_known;
    struct wal_packer *packer;
};

void corral_wal_reader_close(struct corral_wal_reader *r)
{
    if (r == NULL) {
        return;
    }
    wal_segment_free(&r->segment);
    wal_packer_destroy(r->packer);
    corral_cleanup_close(&r->folder);
    free(r);
}

CORRAL_DEFINE_CLEANUP(struct corral_wal_reader, corral_wal_reader_close)

enum corral_status corral_wal_reader_open(struct corral_wal_reader **out, const char *folder, uint64_t from,
                                          struct corral_error *err)
{
    if (strlen(folder) >= PATH_MAX) {
        return corral_fail(err, CORRAL_INVALID, "trajectory log: the folder's name is too long");
    }
    CORRAL_CLEANUP(corral_wal_reader_closep) struct corral_wal_reader *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a reader of %s", folder);
    }
    memcpy(r->path, folder, strlen(folder) + 1);
    r->segment.fd = -1;
    r->from = from;
    r->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->folder < 0 && errno == ENOENT) {
        return corral_fail(err, CORRAL_NOT_FOUND, "there is no trajectory log %s", folder);
    }
    if (r->folder < 0) {
        return corral_fail_sys(err, errno, "cannot open the trajectory log %s", folder);
    }
    *out = CORRAL_STEAL(r);
    return CORRAL_OK;
}

/* In the segment that is being read, or (offset 0) in that which begins with the position. */
static enum corral_status damaged(const struct corral_wal_reader *r, uint64_t at, uint64_t position,
                                  struct corral_error *err)
{
    char name[WAL_NAME_BYTES];
    wal_name(at != 0 ? r->segment.head.first : position, name);
    return corral_fail(err, CORRAL_PROTOCOL,
                       "%s/%s is damaged at offset %" PRIu64 ": record %" PRIu64
                       " was durable and cannot be read any more",
                       r->path, name, at, position);
}

static enum corral_status check_run(struct corral_wal_reader *r, struct corral_error *err)
{
    if (r->run_known && r->run != r->segment.head.run) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s/%s belongs to another run than the segment before it",
                           r->path, r->segment.name);
    }
    r->run = r->segment.head.run;
    r->run_known = true;
    return CORRAL_OK;
}

/* What was missing has come meanwhile, in the same segment or the next, or was trimmed. */
static bool has_come(struct corral_wal_reader *r, struct wal_segment *s, uint64_t position)
{
    struct wal_frame f;
    const uint8_t *data;
    char next[WAL_NAME_BYTES];
    struct stat st;
    wal_name(position, next);
    return wal_segment_frame(s, &f, &data, NULL) == CORRAL_OK ||
           (fstat(s->fd, &st) == 0 && st.st_nlink == 0) ||
           (position != s->head.first && faccessat(r->folder, next, F_OK, 0) == 0);
}

/* A missing position is damage only if something vouches that it was durable; looked for once per position. `s`: the segment that may still get it, or NULL. */
static enum corral_status nothing_yet(struct corral_wal_reader *r, struct wal_segment *s, uint64_t at,
                                      uint64_t position, struct corral_error *err)
{
    if (r->quiet != position) {
        bool found;
        CORRAL_TRY(wal_evidence(s, r->folder, position, &found, err));
        if (found && (s == NULL || !has_come(r, s, position))) {
            return damaged(r, at, position, err);
        }
        r->quiet = found ? r->quiet : position;
    }
    return corral_fail(err, CORRAL_AGAIN, "%s: the end, at record %" PRIu64, r->path, position);
}

/* Opens the segment in which r->from is, or the oldest behind it. CORRAL_AGAIN: there is none yet. */
static enum corral_status enter(struct corral_wal_reader *r, struct corral_error *err)
{
    CORRAL_CLEANUP(wal_list_free) struct wal_list list = {0};
    CORRAL_TRY(wal_list_read(&list, r->folder, err));
    if (list.count == 0) {
        struct stat st;
        if (fstat(r->folder, &st) == 0 && st.st_nlink == 0) {
            return corral_fail(err, CORRAL_NOT_FOUND, "the trajectory log %s was deleted", r->path);
        }
        return corral_fail(err, CORRAL_AGAIN, "%s: the end, at its beginning", r->path);
    }
    uint32_t i = 0;
    while (i + 1 < list.count && list.first[i + 1] <= r->from) {
        i++;
    }
    enum corral_status status = wal_segment_open(&r->segment, r->folder, list.first[i], err);
    /* After a power cut, one before it may be missing: only where all before it was durable can reading begin. */
    while (i > 0 &&
           (status == CORRAL_AGAIN || (status == CORRAL_OK && r->segment.head.synced != list.first[i] - 1))) {
        status = wal_segment_open(&r->segment, r->folder, list.first[--i], err);
    }
    if (status == CORRAL_OK) {
        return check_run(r, err);
    }
    wal_segment_close(&r->segment);
    if (status == CORRAL_NOT_FOUND) { /* trimmed since the folder was listed */
        return corral_fail(err, CORRAL_AGAIN, "%s: the end, at its beginning", r->path);
    }
    return status == CORRAL_AGAIN ? nothing_yet(r, NULL, 0, list.first[i], err) : status;
}

/* Behind the last frame of a segment: on to the next. CORRAL_AGAIN: nothing there yet. */
static enum corral_status go_on(struct corral_wal_reader *r, struct corral_error *err)
{
    struct wal_segment *s = &r->segment;
    uint64_t position = s->position;
    char next[WAL_NAME_BYTES];
    struct stat st;
    wal_name(position, next);
    if (position != s->head.first && faccessat(r->folder, next, F_OK, 0) == 0) {
        struct wal_segment old = *s;
        s->fd = -1;
        s->window = NULL;
        s->capacity = s->window_bytes = 0;
        enum corral_status status = wal_segment_open(s, r->folder, position, err);
        if (status == CORRAL_OK) {
            wal_segment_free(&old);
            return check_run(r, err);
        }
        wal_segment_free(s);
        *s = old;
        if (status == CORRAL_NOT_FOUND) { /* trimmed in this instant: the next call sees it */
            return corral_fail(err, CORRAL_AGAIN, "%s: the end, at record %" PRIu64, r->path, position);
        }
        return status == CORRAL_AGAIN ? nothing_yet(r, NULL, 0, position, err) : status;
    }
    if (fstat(s->fd, &st) == 0 && st.st_nlink == 0) { /* deleted under us: what is there now? */
        wal_segment_close(s);
        r->from = position;
        return enter(r, err);
    }
    return nothing_yet(r, s, s->at, position, err);
}

static enum corral_status give(struct corral_wal_reader *r, const struct wal_frame *f, const uint8_t *data,
                               struct corral_wal_item *out, struct corral_error *err)
{
    const void *record = data;
    if (f->flags & WAL_FLAG_ZSTD) {
        if (r->packer == NULL) {
            CORRAL_TRY(wal_packer_create(&r->packer, err));
        }
        enum corral_status status = wal_unpack(r->packer, data, f->stored, f->record, &record, err);
        if (status != CORRAL_OK) {
            return corral_error_prefix(err, status, "%s/%s", r->path, r->segment.name);
        }
    }
    *out = (struct corral_wal_item){.position = f->position, .data = record, .bytes = f->record};
    return CORRAL_OK;
}

enum corral_status corral_wal_reader_next(struct corral_wal_reader *r, struct corral_wal_item *out,
                                          struct corral_error *err)
{
    if (r->segment.fd < 0) {
        CORRAL_TRY(enter(r, err));
    }
    for (;;) {
        struct wal_frame f;
        const uint8_t *data = NULL;
        enum corral_status status = wal_segment_frame(&r->segment, &f, &data, err);
        if (status == CORRAL_AGAIN || (status == CORRAL_OK && (f.flags & WAL_FLAG_END))) {
            CORRAL_TRY(go_on(r, err));
            continue;
        }
        CORRAL_TRY(status);
        if (f.position >= r->from) {
            CORRAL_TRY(give(r, &f, data, out, err));
            r->from = f.position + 1;
            wal_segment_skip(&r->segment, &f);
            return CORRAL_OK;
        }
        wal_segment_skip(&r->segment, &f);
    }
}

enum corral_status corral_wal_measure(const char *folder, struct corral_wal_extent *out,
                                      struct corral_error *err)
{
    CORRAL_CLEANUP(corral_wal_reader_closep) struct corral_wal_reader *r = NULL;
    struct corral_wal_extent e = {.first = 1};
    struct corral_wal_item item;
    CORRAL_TRY(corral_wal_reader_open(&r, folder, UINT64_MAX - 1, err));
    enum corral_status status = corral_wal_reader_next(r, &item, err); /* to the end, from where it is near */
    if (status != CORRAL_AGAIN) {
        return status == CORRAL_OK ? corral_fail(err, CORRAL_PROTOCOL, "%s: positions out of range", folder)
                                   : status;
    }
    CORRAL_CLEANUP(wal_list_free) struct wal_list list = {0};
    CORRAL_TRY(wal_list_read(&list, r->folder, err));
    for (uint32_t i = 0; i < list.count; i++) {
        char name[WAL_NAME_BYTES];
        struct stat st;
        wal_name(list.first[i], name);
        if (fstatat(r->folder, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            e.bytes += (uint64_t)st.st_size;
            e.segments++;
        }
    }
    if (list.count > 0) {
        e.first = list.first[0];
    }
    e.last = r->segment.fd >= 0 ? CORRAL_MAX(r->segment.position, e.first) - 1 : e.first - 1;
    e.run = r->run;
    CORRAL_CLEANUP(wal_segment_free) struct wal_segment oldest = {.fd = -1};
    if (list.count > 0 && wal_segment_open(&oldest, r->folder, list.first[0], NULL) == CORRAL_OK) {
        e.begun_ns = oldest.head.created_ns;
        e.newest_ns = r->segment.fd >= 0 ? r->segment.head.created_ns : e.begun_ns;
    }
    *out = e;
    return CORRAL_OK;
}
