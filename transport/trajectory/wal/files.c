#include "transport/trajectory/wal/files.h"
#include "base/text.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NUMBER_DIGITS 20
#define SEGMENTS_MAX (1u << 20)

static int real_create(void *ctx, int folder, const char *name, uint64_t bytes)
{
    (void)ctx;
    int fd = openat(folder, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -1;
    }
    int failed = posix_fallocate(fd, 0, (off_t)bytes); /* its fall-back writes; EOPNOTSUPP only elsewhere */
    if (failed == EOPNOTSUPP || failed == EINVAL || failed == ENOSYS) {
        failed = ftruncate(fd, (off_t)bytes) != 0 ? errno : 0;
    }
    if (failed != 0) {
        close(fd);
        unlinkat(folder, name, 0);
        errno = failed;
        return -1;
    }
    return fd;
}

static ssize_t real_pwritev(void *ctx, int fd, const struct iovec *parts, int count, uint64_t at)
{
    (void)ctx;
    return pwritev(fd, parts, count, (off_t)at);
}

static int real_truncate(void *ctx, int fd, uint64_t bytes)
{
    (void)ctx;
    return ftruncate(fd, (off_t)bytes);
}

static int real_sync(void *ctx, int fd)
{
    (void)ctx;
    return fdatasync(fd);
}

static int real_sync_folder(void *ctx, int folder)
{
    (void)ctx;
    /* Some file systems cannot sync a folder and need not. */
    return fsync(folder) != 0 && errno != EINVAL && errno != ENOTSUP ? -1 : 0;
}

static int real_rename(void *ctx, int folder, const char *from, const char *to)
{
    (void)ctx;
    return renameat(folder, from, folder, to);
}

static int real_unlink(void *ctx, int folder, const char *name)
{
    (void)ctx;
    return unlinkat(folder, name, 0);
}

const struct wal_files wal_files_real = {.create = real_create,
                                         .pwritev = real_pwritev,
                                         .truncate = real_truncate,
                                         .sync = real_sync,
                                         .sync_folder = real_sync_folder,
                                         .rename = real_rename,
                                         .unlink = real_unlink};

void wal_name(uint64_t first, char out[WAL_NAME_BYTES])
{
    snprintf(out, WAL_NAME_BYTES, "%0*" PRIu64 ".wal", NUMBER_DIGITS, first);
}

/* 0: not a segment. */
static uint64_t number_of(const char *name)
{
    char digits[NUMBER_DIGITS + 1];
    uint64_t number = 0;
    if (strlen(name) != NUMBER_DIGITS + 4 || strcmp(name + NUMBER_DIGITS, ".wal") != 0) {
        return 0;
    }
    memcpy(digits, name, NUMBER_DIGITS);
    digits[NUMBER_DIGITS] = '\0';
    return corral_parse_u64(digits, &number) && number != UINT64_MAX ? number : 0;
}

static int ascending(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

void wal_list_free(struct wal_list *l)
{
    free(l->first);
    *l = (struct wal_list){0};
}

static void close_folder(DIR **folder)
{
    if (*folder != NULL) {
        closedir(*folder);
    }
}

enum corral_status wal_list_read(struct wal_list *out, int folder, struct corral_error *err)
{
    CORRAL_CLEANUP(wal_list_free) struct wal_list l = {0};
    CORRAL_AUTO_CLOSE int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CORRAL_CLEANUP(close_folder) DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (dir == NULL) {
        return corral_fail_sys(err, errno, "cannot list the folder of a trajectory log");
    }
    again = -1;
    uint32_t capacity = 0;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (entry == NULL && errno != 0) {
            return corral_fail_sys(err, errno, "cannot list the folder of a trajectory log");
        }
        if (entry == NULL) {
            break;
        }
        uint64_t number = number_of(entry->d_name);
        if (number == 0) {
            continue;
        }
        if (l.count == capacity) {
            capacity = capacity == 0 ? 64 : capacity * 2;
            uint64_t *grown = capacity > SEGMENTS_MAX ? NULL : realloc(l.first, capacity * sizeof l.first[0]);
            if (grown == NULL) {
                return corral_fail(err, CORRAL_NOMEM, "a trajectory log of more than %u segments", l.count);
            }
            l.first = grown;
        }
        l.first[l.count++] = number;
    }
    if (l.count > 0) {
        qsort(l.first, l.count, sizeof l.first[0], ascending);
    }
    *out = l;
    l = (struct wal_list){0};
    return CORRAL_OK;
}

enum corral_status wal_write(const struct wal_files *files, int fd, struct iovec *parts, int count,
                             uint64_t at, const char *what, struct corral_error *err)
{
    while (count > 0) {
        ssize_t n = files->pwritev(files->ctx, fd, parts, count, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return corral_fail_sys(err, n < 0 ? errno : EIO, "cannot write %s", what);
        }
        at += (uint64_t)n;
        size_t left = (size_t)n;
        while (count > 0 && left >= parts->iov_len) {
            left -= parts->iov_len;
            parts++;
            count--;
        }
        if (left > 0) {
            parts->iov_base = (char *)parts->iov_base + left;
            parts->iov_len -= left;
        }
    }
    return CORRAL_OK;
}
