#include "base/file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER_DEPTH_MAX 128
/* How often a folder that others still fill is emptied again before giving up. */
#define REMOVE_PASSES_MAX 8

static enum corral_status open_existing(const char *path, int flags, int *fd_out, struct corral_error *err)
{
    const int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        enum corral_status status = corral_fail(err, CORRAL_NOT_FOUND, "cannot open %s: no such file", path);
        if (err != NULL) {
            err->sys = ENOENT;
        }
        return status;
    }
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot open %s", path);
    }
    *fd_out = fd;
    return CORRAL_OK;
}

enum corral_status corral_file_read(const char *path, size_t bytes_max, char **out, size_t *bytes,
                                    struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = -1;
    /* O_NONBLOCK: a FIFO in the file's place must not hang the open. */
    CORRAL_TRY(open_existing(path, O_RDONLY | O_NONBLOCK, &fd, err));
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "cannot read %s", path);
    }
    if (!S_ISREG(st.st_mode)) {
        return corral_fail(err, CORRAL_INVALID, "cannot read %s: not a regular file", path);
    }
    size_t capacity = 0;
    size_t used = 0;
    CORRAL_AUTO_FREE char *data = NULL;
    /* The size is a hint: the file may grow while it is read, and those of /proc claim to be empty. */
    size_t want = (uint64_t)st.st_size < bytes_max ? (size_t)st.st_size : bytes_max;
    for (;;) {
        if (used + 1 >= capacity) {
            capacity = capacity == 0 ? want + 2 : capacity * 2;
            char *grown = realloc(data, capacity);
            if (grown == NULL) {
                return corral_fail(err, CORRAL_NOMEM, "cannot read %s: out of memory for %zu bytes", path,
                                   capacity);
            }
            data = grown;
        }
        const ssize_t n = read(fd, data + used, capacity - 1 - used);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return corral_fail_sys(err, errno, "cannot read %s", path);
        }
        if (n == 0) {
            break;
        }
        used += (size_t)n;
        if (used > bytes_max) {
            return corral_fail(err, CORRAL_INVALID, "cannot read %s: larger than the %zu bytes allowed", path,
                               bytes_max);
        }
    }
    data[used] = '\0';
    if (bytes != NULL) {
        *bytes = used;
    }
    *out = CORRAL_STEAL(data);
    return CORRAL_OK;
}

enum corral_status corral_write_all(int fd, const void *data, size_t bytes, const char *what,
                                    struct corral_error *err)
{
    const char *p = data;
    size_t left = bytes;
    while (left > 0) {
        const ssize_t n = write(fd, p, left);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return corral_fail_sys(err, errno, "cannot write %s", what);
        }
        p += n;
        left -= (size_t)n;
    }
    return CORRAL_OK;
}

static enum corral_status sync_folder_of(const char *path, struct corral_error *err)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX] = ".";
    if (slash != NULL) {
        snprintf(folder, sizeof folder, "%.*s", (int)CORRAL_MAX(slash - path, (ptrdiff_t)1), path);
    }
    CORRAL_AUTO_CLOSE int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "%s is written, but its folder cannot be opened to be synced",
                               path);
    }
    /* Some file systems cannot sync a folder and need not. */
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) {
        return corral_fail_sys(err, errno, "%s is written, but its folder cannot be synced", path);
    }
    return CORRAL_OK;
}

static enum corral_status write_new(const char *temporary, const char *path, const void *data, size_t bytes,
                                    mode_t mode, bool durable, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot create %s", temporary);
    }
    CORRAL_TRY(corral_write_all(fd, data, bytes, path, err));
    if (durable && fsync(fd) != 0) {
        return corral_fail_sys(err, errno, "cannot sync %s", path);
    }
    const int closing = fd;
    fd = -1;
    if (close(closing) != 0) { /* network file systems report a full disk here */
        return corral_fail_sys(err, errno, "cannot write %s", path);
    }
    if (rename(temporary, path) != 0) {
        return corral_fail_sys(err, errno, "cannot rename %s to %s", temporary, path);
    }
    return CORRAL_OK;
}

enum corral_status corral_file_write_atomic(const char *path, const void *data, size_t bytes, mode_t mode,
                                            bool durable, struct corral_error *err)
{
    char temporary[PATH_MAX];
    /* The thread id is the process id on the main thread, and keeps two threads off one temporary. */
    const int n = snprintf(temporary, sizeof temporary, "%s.tmp.%d", path, (int)gettid());
    if (n < 0 || (size_t)n >= sizeof temporary) {
        return corral_fail(err, CORRAL_INVALID, "cannot write %s: the path is too long", path);
    }
    /* Left by a process of the same number that was killed. */
    if (unlink(temporary) != 0 && errno != ENOENT) {
        return corral_fail_sys(err, errno, "cannot remove %s", temporary);
    }
    enum corral_status status = write_new(temporary, path, data, bytes, mode, durable, err);
    if (status != CORRAL_OK) {
        unlink(temporary);
        return status;
    }
    return durable ? sync_folder_of(path, err) : CORRAL_OK;
}

static enum corral_status make_folder(const char *path, mode_t mode, struct corral_error *err)
{
    if (mkdir(path, mode) == 0) {
        return CORRAL_OK;
    }
    const int mkdir_errno = errno;
    struct stat st;
    /* Also answers for EROFS and EACCES, which come before EEXIST on some file systems. */
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        return CORRAL_OK;
    }
    return corral_fail_sys(err, mkdir_errno, "cannot make the folder %s", path);
}

enum corral_status corral_mkdirs(const char *path, mode_t mode, struct corral_error *err)
{
    char partial[PATH_MAX];
    const int n = snprintf(partial, sizeof partial, "%s", path);
    if (n <= 0 || (size_t)n >= sizeof partial) {
        return corral_fail(err, CORRAL_INVALID, "cannot make the folder `%s`: the path is %s", path,
                           n <= 0 ? "empty" : "too long");
    }
    for (char *p = partial + 1; *p != '\0'; p++) {
        if (*p == '/' && p[-1] != '/') {
            *p = '\0';
            CORRAL_TRY(make_folder(partial, mode | S_IWUSR | S_IXUSR, err));
            *p = '/';
        }
    }
    return make_folder(partial, mode, err);
}

static void close_folder(DIR **folder)
{
    if (*folder != NULL) {
        closedir(*folder);
    }
}

static enum corral_status remove_at(int at, const char *name, const char *top, int depth,
                                    struct corral_error *err);

/* One pass over a folder. Takes `fd`. */
static enum corral_status empty_folder(int fd, const char *top, int depth, struct corral_error *err)
{
    CORRAL_CLEANUP(close_folder) DIR *folder = fdopendir(fd);
    if (folder == NULL) {
        const int saved = errno;
        close(fd);
        return corral_fail_sys(err, saved, "cannot list a folder under %s", top);
    }
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (entry == NULL) {
            return errno == 0 ? CORRAL_OK : corral_fail_sys(err, errno, "cannot list a folder under %s", top);
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            CORRAL_TRY(remove_at(dirfd(folder), entry->d_name, top, depth, err));
        }
    }
}

static enum corral_status remove_at(int at, const char *name, const char *top, int depth,
                                    struct corral_error *err)
{
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT) {
        return CORRAL_OK;
    }
    const int unlink_errno = errno;
    if (unlink_errno != EISDIR && unlink_errno != EPERM) {
        return corral_fail_sys(err, unlink_errno, "cannot remove %s under %s", name, top);
    }
    if (depth >= FOLDER_DEPTH_MAX) {
        return corral_fail(err, CORRAL_INVALID, "cannot remove %s: more than %d folders deep", top,
                           FOLDER_DEPTH_MAX);
    }
    for (int pass = 0; pass < REMOVE_PASSES_MAX; pass++) {
        const int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT) {
            return CORRAL_OK;
        }
        if (fd < 0) {
            return corral_fail_sys(err, errno == ENOTDIR ? unlink_errno : errno, "cannot remove %s under %s",
                                   name, top);
        }
        CORRAL_TRY(empty_folder(fd, top, depth + 1, err));
        if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
            return CORRAL_OK;
        }
        if (errno != ENOTEMPTY && errno != EEXIST) {
            return corral_fail_sys(err, errno, "cannot remove the folder %s under %s", name, top);
        }
    }
    return corral_fail_sys(err, ENOTEMPTY, "cannot remove the folder %s under %s: something keeps filling it",
                           name, top);
}

enum corral_status corral_remove_tree(const char *path, struct corral_error *err)
{
    return remove_at(AT_FDCWD, path, path, 0, err);
}
