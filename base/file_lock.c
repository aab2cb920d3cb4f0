#include "base/file.h"
#include "base/text.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Open-file-description locks: they live as long as the descriptor, and F_OFD_GETLK asks without taking. */

/* The file may be replaced between our open and our lock; beyond this somebody is deleting it in a loop. */
#define REOPEN_MAX 16
/* A holder writes its name right after taking the lock; a reader that comes in between looks again. */
#define HOLDER_LOOKS_MAX 64
#define LOCK_TEXT_MAX 64

/* Start time of a process in clock ticks since boot (field 22 of its stat file); false when it is gone. */
static bool process_start_time(pid_t pid, uint64_t *out)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char text[1024];
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0) {
        return false;
    }
    text[n] = '\0';
    /* The command name is in parentheses and may hold any character; what follows is plain. */
    char *rest = strrchr(text, ')');
    if (rest == NULL) {
        return false;
    }
    char *save = NULL;
    const char *field = strtok_r(rest + 1, " ", &save); /* field 3 */
    for (int i = 3; i < 22 && field != NULL; i++) {
        field = strtok_r(NULL, " ", &save);
    }
    return field != NULL && corral_parse_u64(field, out);
}

static bool read_holder(int fd, pid_t *pid, uint64_t *start_time)
{
    char text[LOCK_TEXT_MAX];
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n <= 0 || text[n - 1] != '\n') {
        return false;
    }
    text[n - 1] = '\0';
    char *space = strchr(text, ' ');
    if (space == NULL) {
        return false;
    }
    *space = '\0';
    uint64_t number;
    uint64_t start;
    if (!corral_parse_u64(text, &number) || !corral_parse_u64(space + 1, &start) || number == 0 ||
        number > INT32_MAX) {
        return false;
    }
    *pid = (pid_t)number;
    *start_time = start;
    return true;
}

/* Who holds the open lock file; pid 0: nobody. */
static enum corral_status find_holder(int fd, const char *path, pid_t *pid, uint64_t *start_time,
                                      struct corral_error *err)
{
    bool named = false;
    pid_t holder = 0;
    uint64_t started = 0;
    for (int look = 0; look < HOLDER_LOOKS_MAX; look++) {
        struct flock query = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        if (fcntl(fd, F_OFD_GETLK, &query) != 0) {
            return corral_fail_sys(err, errno, "cannot ask for the holder of %s", path);
        }
        if (query.l_type == F_UNLCK) {
            *pid = 0;
            *start_time = 0;
            return CORRAL_OK;
        }
        uint64_t really;
        named = read_holder(fd, &holder, &started);
        if (named && process_start_time(holder, &really) && really == started) {
            break;
        }
        /* Held, and the name is missing or that of an earlier holder: the new one is about to write its own. */
        sched_yield();
    }
    if (!named) {
        return corral_fail(err, CORRAL_AGAIN, "%s is held, but its holder has not written its name", path);
    }
    /* Possibly a process we cannot see from here (another pid namespace): its name is still the best answer. */
    *pid = holder;
    *start_time = started;
    return CORRAL_OK;
}

static enum corral_status fail_held(int fd, const char *path, struct corral_error *err)
{
    pid_t pid = 0;
    uint64_t start_time = 0;
    if (find_holder(fd, path, &pid, &start_time, NULL) == CORRAL_OK && pid != 0) {
        return corral_fail(err, CORRAL_EXISTS, "%s is locked by process %d", path, (int)pid);
    }
    return corral_fail(err, CORRAL_EXISTS, "%s is locked by another process", path);
}

static enum corral_status write_name(int fd, const char *path, struct corral_error *err)
{
    uint64_t start_time;
    if (!process_start_time(getpid(), &start_time)) {
        return corral_fail(err, CORRAL_IO, "cannot lock %s: cannot read this process's start time from /proc",
                           path);
    }
    char text[LOCK_TEXT_MAX];
    const int n = snprintf(text, sizeof text, "%d %" PRIu64 "\n", (int)getpid(), start_time);
    if (ftruncate(fd, 0) != 0) {
        return corral_fail_sys(err, errno, "cannot write %s", path);
    }
    return corral_write_all(fd, text, (size_t)n, path, err);
}

static bool still_the_file(int fd, const char *path)
{
    struct stat ours;
    struct stat named;
    return fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_dev == named.st_dev &&
           ours.st_ino == named.st_ino;
}

enum corral_status corral_lock_file(const char *path, int *fd_out, struct corral_error *err)
{
    for (int i = 0; i < REOPEN_MAX; i++) {
        CORRAL_AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0) {
            return corral_fail_sys(err, errno, "cannot open the lock file %s", path);
        }
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        if (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
            if (errno == EAGAIN || errno == EACCES) {
                return fail_held(fd, path, err);
            }
            return corral_fail_sys(err, errno, "cannot lock %s", path);
        }
        if (!still_the_file(fd, path)) {
            continue; /* we locked a file nobody else will find */
        }
        CORRAL_TRY(write_name(fd, path, err));
        *fd_out = fd;
        fd = -1;
        return CORRAL_OK;
    }
    return corral_fail(err, CORRAL_IO, "cannot lock %s: it keeps being replaced", path);
}

enum corral_status corral_lock_holder(const char *path, pid_t *pid, uint64_t *start_time,
                                      struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        *pid = 0;
        *start_time = 0;
        return CORRAL_OK;
    }
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot open the lock file %s", path);
    }
    return find_holder(fd, path, pid, start_time, err);
}
