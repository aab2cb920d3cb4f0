/* The small files of a group, and why one could not be written. */
#include "quota/fences/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Writes the whole of `text`; 0 or an errno. The kernel takes one write as one value. */
int cgroup_write(const char *dir, const char *file, const char *text)
{
    char path[FENCE_PATH_BYTES + 512];
    fence_text(path, sizeof path, "%s/%s", dir, file);
    CORRAL_AUTO_CLOSE int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (fd < 0) {
        return errno;
    }
    ssize_t wrote;
    do {
        wrote = write(fd, text, strlen(text));
    } while (wrote < 0 && errno == EINTR);
    return wrote < 0 ? errno : wrote == (ssize_t)strlen(text) ? 0 : EIO;
}

int cgroup_write_number(const char *dir, const char *file, uint64_t value)
{
    char text[32];
    fence_text(text, sizeof text, "%" PRIu64, value);
    return cgroup_write(dir, file, text);
}

/* The first line, without its end. False: not there. */
bool cgroup_read_line(const char *dir, const char *file, char *out, size_t out_bytes)
{
    char path[FENCE_PATH_BYTES + 512];
    fence_text(path, sizeof path, "%s/%s", dir, file);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, out, out_bytes - 1);
    if (got < 0) {
        return false;
    }
    out[got] = '\0';
    out[strcspn(out, "\n")] = '\0';
    return true;
}

bool cgroup_read_number(const char *dir, const char *file, uint64_t *out)
{
    char text[64], *end;
    if (!cgroup_read_line(dir, file, text, sizeof text) || text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno == 0 && (*end == '\0' || *end == ' ');
}

bool cgroup_has_word(const char *list, const char *word)
{
    size_t bytes = strlen(word);
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += bytes) {
        if ((at == list || at[-1] == ' ') && (at[bytes] == ' ' || at[bytes] == '\0')) {
            return true;
        }
    }
    return false;
}

void cgroup_explain(char why[FENCE_WHY_BYTES], int error, bool v2, const char *where)
{
    const char *shown = strlen(where) > 70 ? where + strlen(where) - 70 : where;
    if ((error == EACCES || error == EPERM) && v2) {
        fence_text(
            why, FENCE_WHY_BYTES,
            "no permission below %s; `systemd-run --user --scope -p Delegate=yes rlctl …` gives a group of "
            "one's own",
            shown);
    } else if (error == EACCES || error == EPERM) {
        fence_text(why, FENCE_WHY_BYTES,
                   "no permission below %s; an admin can chown a group there to this user", shown);
    } else if (error == EROFS) {
        fence_text(why, FENCE_WHY_BYTES, "%s is mounted read-only (a container without writable cgroups)",
                   shown);
    } else {
        fence_text(why, FENCE_WHY_BYTES, "%s: %s", shown, strerror(error));
    }
}
