/* Where a log goes on after whatever happened to its last writer: docs/spec/trajectory-wal.md, "Opening". */
#include "transport/trajectory/wal/segment.h"
#include "transport/trajectory/wal/wal_private.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The newest segment before which all was durable: nothing before it can be torn. */
static enum corral_status begin_at(struct corral_wal *w, const struct wal_list *list, uint32_t *out,
                                   struct corral_error *err)
{
    CORRAL_CLEANUP(wal_segment_free) struct wal_segment s = {.fd = -1};
    uint32_t i = list->count - 1;
    for (;; i--) {
        enum corral_status status = wal_segment_open(&s, w->folder, list->first[i], err);
        if (status != CORRAL_OK && status != CORRAL_AGAIN) {
            return status;
        }
        if (status == CORRAL_OK && s.head.run != w->run) {
            return corral_fail(err, CORRAL_INVALID,
                               "%s/%s belongs to run %llx, not to %llx: a trajectory log is never shared",
                               w->path, s.name, (unsigned long long)s.head.run, (unsigned long long)w->run);
        }
        if (i == 0 || (status == CORRAL_OK && s.head.synced == list->first[i] - 1)) {
            *out = i;
            return CORRAL_OK;
        }
    }
}

struct end {
    uint32_t unsure;   /* index of the first segment that may not be durable as a whole */
    uint32_t segment;  /* of the last one that has anything to keep */
    uint64_t at;       /* where it ends */
    uint64_t position; /* the next one */
};

static enum corral_status damage(const struct corral_wal *w, const char *name, uint64_t at, uint64_t position,
                                 struct corral_error *err)
{
    return corral_fail(err, CORRAL_PROTOCOL,
                       "%s/%s is damaged at offset %llu: record %llu was durable and cannot be read any more",
                       w->path, name, (unsigned long long)at, (unsigned long long)position);
}

static enum corral_status walk(struct wal_segment *s, struct corral_error *err)
{
    enum corral_status status = CORRAL_OK;
    while (status == CORRAL_OK) {
        struct wal_frame f;
        const uint8_t *data;
        status = wal_segment_frame(s, &f, &data, err);
        if (status == CORRAL_OK) {
            wal_segment_skip(s, &f);
        }
        if (status == CORRAL_OK && (f.flags & WAL_FLAG_END)) {
            break;
        }
    }
    return status == CORRAL_AGAIN ? CORRAL_OK : status;
}

static enum corral_status find_end(struct corral_wal *w, const struct wal_list *list, struct end *out,
                                   struct corral_error *err)
{
    CORRAL_CLEANUP(wal_segment_free) struct wal_segment s = {.fd = -1};
    uint32_t i = 0;
    CORRAL_TRY(begin_at(w, list, &i, err));
    struct end end = {.unsure = i, .segment = i, .position = list->first[i]};
    bool headless = false;
    for (;; i++) {
        enum corral_status status = wal_segment_open(&s, w->folder, list->first[i], err);
        if (status != CORRAL_OK && status != CORRAL_AGAIN) {
            return status;
        }
        headless = status == CORRAL_AGAIN;
        if (headless) {
            break; /* its creation was not durable, so neither is anything in or behind it */
        }
        CORRAL_TRY(walk(&s, err));
        end = (struct end){.unsure = end.unsure, .segment = i, .at = s.at, .position = s.position};
        if (i + 1 >= list->count || list->first[i + 1] > s.position) {
            break;
        }
        if (list->first[i + 1] < s.position) {
            return corral_fail(err, CORRAL_PROTOCOL, "%s/%s reaches into the segment behind it", w->path,
                               s.name);
        }
    }
    bool found;
    CORRAL_TRY(wal_evidence(headless ? NULL : &s, w->folder, end.position, &found, err));
    if (found) {
        return damage(w, s.name, headless ? 0 : s.at, end.position, err);
    }
    *out = end;
    return CORRAL_OK;
}

/* bytes 0: all of it is right, and only to be made durable. */
static enum corral_status settle(struct corral_wal *w, uint64_t first, uint64_t bytes,
                                 struct corral_error *err)
{
    char name[WAL_NAME_BYTES];
    wal_name(first, name);
    CORRAL_AUTO_CLOSE int fd = openat(w->folder, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot open %s/%s", w->path, name);
    }
    if ((bytes != 0 && w->files.truncate(w->files.ctx, fd, bytes) != 0) ||
        w->files.sync(w->files.ctx, fd) != 0) {
        return corral_fail_sys(err, errno, "cannot settle the end of %s/%s", w->path, name);
    }
    return CORRAL_OK;
}

static enum corral_status settle_all(struct corral_wal *w, const struct wal_list *list, const struct end *end,
                                     struct corral_error *err)
{
    for (uint32_t i = end->unsure; i < end->segment; i++) {
        CORRAL_TRY(settle(w, list->first[i], 0, err));
    }
    /* Without a record, the new segment takes its name and place. */
    return end->position > list->first[end->segment] ? settle(w, list->first[end->segment], end->at, err)
                                                     : CORRAL_OK;
}

/* Before anything new is begun: what follows the end must never be mistaken for what is written from now on. */
static enum corral_status drop_behind(struct corral_wal *w, const struct wal_list *list,
                                      const struct end *end, struct corral_error *err)
{
    for (uint32_t i = list->count - 1; i > end->segment; i--) {
        char name[WAL_NAME_BYTES];
        wal_name(list->first[i], name);
        if (w->files.unlink(w->files.ctx, w->folder, name) != 0 && errno != ENOENT) {
            return corral_fail_sys(err, errno, "cannot delete %s/%s, which is not durable", w->path, name);
        }
    }
    if (w->files.sync_folder(w->files.ctx, w->folder) != 0) {
        return corral_fail_sys(err, errno, "cannot sync the folder %s", w->path);
    }
    return CORRAL_OK;
}

static enum corral_status note_closed(struct corral_wal *w, const struct wal_list *list,
                                      const struct end *end, struct corral_error *err)
{
    for (uint32_t i = 0; i <= end->segment && list->first[i] < end->position; i++) {
        char name[WAL_NAME_BYTES];
        struct stat st;
        wal_name(list->first[i], name);
        if (fstatat(w->folder, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
            return corral_fail_sys(err, errno, "cannot look at %s/%s", w->path, name);
        }
        CORRAL_TRY(wal_closed_add(w, list->first[i], (uint64_t)st.st_size, err));
    }
    return CORRAL_OK;
}

enum corral_status wal_repair(struct corral_wal *w, struct corral_error *err)
{
    if (w->files.unlink(w->files.ctx, w->folder, WAL_NEW_NAME) != 0 && errno != ENOENT) {
        return corral_fail_sys(err, errno, "cannot delete %s/%s", w->path, WAL_NEW_NAME);
    }
    CORRAL_CLEANUP(wal_list_free) struct wal_list list = {0};
    CORRAL_TRY(wal_list_read(&list, w->folder, err));
    if (list.count == 0) {
        return CORRAL_OK;
    }
    struct end end = {0};
    CORRAL_TRY(find_end(w, &list, &end, err));
    CORRAL_TRY(settle_all(w, &list, &end, err));
    CORRAL_TRY(drop_behind(w, &list, &end, err));
    CORRAL_TRY(note_closed(w, &list, &end, err));
    w->last = end.position - 1;
    atomic_store_explicit(&w->appended, w->last, memory_order_relaxed);
    atomic_store_explicit(&w->synced, w->last, memory_order_relaxed);
    return CORRAL_OK;
}
