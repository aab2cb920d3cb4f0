#include "orchestrator/agent/tenant_log.h"
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK UINT64_C(4096)
#define OLD_PARTS 2 /* limits that are kept of what is old */
#define END ".log"
#define OLD_END ".old.log"

/* The file's own path, and that of the older part. */
static enum corral_status name_files(int fd, char path[PATH_MAX], char old[PATH_MAX],
                                     struct corral_error *err)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, PATH_MAX - 1);
    if (bytes < 0) {
        return corral_fail_sys(err, errno, "finding the log's name");
    }
    path[bytes] = '\0';
    size_t stem = (size_t)bytes - strlen(END);
    if ((size_t)bytes <= strlen(END) || strcmp(path + stem, END) != 0 || stem + sizeof OLD_END > PATH_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%.200s is no log's name", path);
    }
    memcpy(old, path, stem);
    memcpy(old + stem, OLD_END, sizeof OLD_END);
    return CORRAL_OK;
}

/* What is in [at, end): not to an end that a program may move on faster than it is copied. */
static enum corral_status copy(int from, uint64_t at, uint64_t end, int to, struct corral_error *err)
{
    char buffer[65536];
    while (at < end) {
        ssize_t got = pread(from, buffer, CORRAL_MIN(sizeof buffer, end - at), (off_t)at);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got == 0 ? CORRAL_OK : corral_fail_sys(err, errno, "reading a log");
        }
        for (ssize_t done = 0; done < got;) {
            ssize_t put = write(to, buffer + done, (size_t)(got - done));
            if (put < 0 && errno != EINTR) {
                return corral_fail_sys(err, errno, "writing what is old of a log");
            }
            done += put > 0 ? put : 0;
        }
        at += (uint64_t)got;
    }
    return CORRAL_OK;
}

/* The end of the log, as it is now, goes to `old`, and the log begins anew. */
static enum corral_status move_away(int from, const char *old, uint64_t bytes_max, struct corral_error *err)
{
    struct stat st;
    CORRAL_AUTO_CLOSE int to = open(old, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (to < 0 || fstat(from, &st) != 0) {
        corral_fail_sys(err, errno, "opening %s", old);
        return ftruncate(from, 0) == 0 ? CORRAL_IO : corral_fail_sys(err, errno, "cutting a log");
    }
    /* A program may write more than the limit between two looks: what is kept is bounded all the same. */
    uint64_t end = (uint64_t)st.st_size, most = OLD_PARTS * CORRAL_MAX(bytes_max, BLOCK);
    enum corral_status status = copy(from, end > most ? end - most : 0, end, to, err);
    if (status == CORRAL_OK && end >= BLOCK &&
        fallocate(from, FALLOC_FL_COLLAPSE_RANGE, 0, (off_t)(end / BLOCK * BLOCK)) == 0) {
        return CORRAL_OK;
    }
    if (status == CORRAL_OK && fstat(from, &st) == 0) { /* and what has come meanwhile */
        status = copy(from, end, CORRAL_MIN((uint64_t)st.st_size, end + most), to, err);
    }
    if (status != CORRAL_OK) {
        (void)unlink(old); /* a full disk: the limit matters more than what is old */
    }
    return ftruncate(from, 0) == 0 ? status : corral_fail_sys(err, errno, "cutting a log");
}

enum corral_status corral_tenant_log_turn(int fd, uint64_t bytes_max, bool *turned, struct corral_error *err)
{
    struct stat st;
    char path[PATH_MAX], old[PATH_MAX];
    if (turned) {
        *turned = false;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size <= bytes_max ||
        !(fcntl(fd, F_GETFL) & O_APPEND)) {
        return CORRAL_OK;
    }
    CORRAL_TRY(name_files(fd, path, old, err));
    CORRAL_AUTO_CLOSE int from = open(path, O_RDWR | O_CLOEXEC);
    struct stat same;
    if (from < 0 || fstat(from, &same) != 0 || same.st_ino != st.st_ino || same.st_dev != st.st_dev) {
        return corral_fail(err, CORRAL_NOT_FOUND, "%.200s is not the log any more", path);
    }
    enum corral_status status = move_away(from, old, bytes_max, err);
    if (turned) {
        *turned = true;
    }
    return status;
}
