/* What others do to the file of a chain while it is written: asked before every record, looked at only when something has been done. */
#include "quota/proof/internal.h"
#include <errno.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK ((uint64_t)512) /* of st_blocks */

static void stop_watching(struct corral_chain *c)
{
    (void)close(c->watch_fd);
    c->watch_fd = -1;
}

/* The chain's file still has its name in the folder it was opened in. */
static bool is_named(const struct corral_chain *c, const struct stat *st)
{
    struct stat named;
    return fstatat(c->folder_fd, c->name, &named, 0) == 0 && named.st_ino == st->st_ino &&
           named.st_dev == st->st_dev;
}

/* Before the first look at it. Without a watch, every record has a look of its own: as where records are written, of which the kernel would tell, too. */
void corral_chain_watch(struct corral_chain *c)
{
    char name[40];
    struct stat st;
    c->has_name = fstat(c->fd, &st) == 0 && is_named(c, &st);
    atomic_store_explicit(&c->look, true, memory_order_relaxed);
    if (!c->mapped) {
        return;
    }
    c->watch_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    (void)snprintf(name, sizeof name, "/proc/self/fd/%d", c->fd);
    if (c->watch_fd >= 0 &&
        inotify_add_watch(c->watch_fd, name, IN_MODIFY | IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF) < 0) {
        stop_watching(c);
    }
}

/* One read of what the kernel tells. When that is the end of the watch, there will be no more. */
static bool read_events(struct corral_chain *c)
{
    _Alignas(struct inotify_event) char events[512];
    ssize_t bytes = read(c->watch_fd, events, sizeof events);
    bool ended = false;
    for (ssize_t at = 0; at < bytes;) {
        const struct inotify_event *e = (const void *)(events + at);
        ended |= (e->mask & IN_IGNORED) != 0;
        at += (ssize_t)(sizeof *e + e->len);
    }
    if (ended) {
        stop_watching(c);
    }
    return bytes > 0 && !ended;
}

/* Whether the file may be another than at the last look. The kernel tells of it before truncate() or unlink() return there; to ask whether it has is a third of a look at the file. */
static bool was_touched(struct corral_chain *c)
{
    int bytes = 0;
    if (c->watch_fd < 0 || ioctl(c->watch_fd, FIONREAD, &bytes) != 0) {
        return true;
    }
    if (bytes > 0) {
        atomic_store_explicit(&c->look, true, memory_order_relaxed);
        while (read_events(c)) {
        }
    }
    return atomic_load_explicit(&c->look, memory_order_relaxed);
}

/* A copy into a page that the file does not have any more would be the process's end by SIGBUS, as one into a hole is when the disk is full; and a record in a file that its name does not
 * lead to is nobody's proof. Who cuts the file between this look and the copy still gets that. */
enum corral_status corral_chain_check_file(struct corral_chain *c, struct corral_error *err)
{
    struct stat st;
    if (!was_touched(c)) {
        return CORRAL_OK;
    }
    if (fstat(c->fd, &st) != 0) {
        return corral_fail_sys(err, errno, "looking at %s", c->path);
    }
    if ((uint64_t)st.st_size < (c->window ? c->room_to : c->size)) {
        return corral_fail(err, CORRAL_STATE, "somebody has cut %s short: its proof is broken", c->path);
    }
    if (c->window && (uint64_t)st.st_blocks * BLOCK < c->room_to) {
        return corral_fail(err, CORRAL_STATE, "somebody has taken blocks out of %s: its proof is broken",
                           c->path);
    }
    if (c->has_name && !is_named(c, &st)) {
        return corral_fail(err, CORRAL_STATE,
                           "somebody has moved, replaced or removed %s while it was written", c->path);
    }
    atomic_store_explicit(&c->look, false, memory_order_relaxed); /* what was found wrong stays wrong */
    return CORRAL_OK;
}
