/* Ledger and checkpoints. A step is consumed when a checkpoint counts its part of the ledger: cursors and ledger length change together, by one rename. Two checkpoints are kept, and the log
 * is trimmed to what the older one does not need. */
#include "base/hash.h"
#include "tests/trajectory/consumer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x31746b636b616f73)

_Noreturn void consumer_disk_end(struct consumer *c, const char *what)
{
    if (atomic_load_explicit(&c->me->disk_faults, memory_order_acquire) == 0) {
        world_die(c->w, "consumer %u: %s, and nobody broke the disk", c->rank, what);
    }
    _exit(EXIT_DISK);
}

static bool write_whole(int fd, const void *data, uint64_t bytes)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t n = write(fd, at, bytes);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        at += n > 0 ? n : 0;
        bytes -= n > 0 ? (uint64_t)n : 0;
    }
    return true;
}

static uint64_t digest_of(const struct checkpoint *p)
{
    return corral_digest_of(p, offsetof(struct checkpoint, digest)).lo;
}

static bool load(const struct world *w, uint32_t rank, const char *name, struct checkpoint *out)
{
    char path[PATH_BYTES];
    world_path(w, rank, name, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    bool whole = read(fd, out, sizeof *out) == (ssize_t)sizeof *out && out->magic == MAGIC &&
                 out->digest == digest_of(out);
    close(fd);
    return whole;
}

/* What there is after any kill: both, the older alone, the newer alone (the very first), none. */
static bool load_newest(const struct world *w, uint32_t rank, struct checkpoint *out)
{
    return load(w, rank, "checkpoint", out) || load(w, rank, "checkpoint.old", out);
}

bool checkpoint_ledger_bytes(const struct world *w, uint32_t rank, uint64_t *bytes)
{
    struct checkpoint p;
    bool there = load_newest(w, rank, &p);
    *bytes = there ? p.ledger_bytes : 0;
    return there;
}

/* As if the newest had been damaged: only where there is another. */
static void lose_newest(struct consumer *c)
{
    char path[PATH_BYTES];
    struct checkpoint old;
    if (atomic_exchange_explicit(&c->me->lose_newest, 0, memory_order_relaxed) == 0 ||
        !load(c->w, c->rank, "checkpoint.old", &old)) {
        return;
    }
    world_path(c->w, c->rank, "checkpoint", path);
    if (unlink(path) == 0) {
        atomic_fetch_add_explicit(&c->me->rollbacks, 1, memory_order_relaxed);
    }
}

void checkpoint_restore(struct consumer *c)
{
    char path[PATH_BYTES];
    struct stat st;
    lose_newest(c);
    memset(&c->now, 0, sizeof c->now);
    (void)load_newest(c->w, c->rank, &c->now);
    c->has_before = load(c->w, c->rank, "checkpoint.old", &c->before);
    c->restored = c->now;
    world_path(c->w, c->rank, "ledger", path);
    c->ledger = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (c->ledger < 0 || fstat(c->ledger, &st) != 0 || (uint64_t)st.st_size < c->now.ledger_bytes ||
        ftruncate(c->ledger, (off_t)c->now.ledger_bytes) != 0) {
        world_die(c->w, "consumer %u: the ledger is shorter than the checkpoint says, or can't be opened",
                  c->rank);
    }
    c->ledger_bytes = c->now.ledger_bytes;
    c->saved = c->now.saved;
    atomic_store_explicit(&c->me->saved, c->saved, memory_order_relaxed);
}

void ledger_append(struct consumer *c, const struct ledger_entry *entries, uint32_t count)
{
    if (!write_whole(c->ledger, entries, count * sizeof *entries)) {
        consumer_disk_end(c, "the ledger can't be written");
    }
    c->ledger_bytes += count * sizeof *entries;
    for (uint32_t i = 0; i < count; i++) {
        c->saved += entries[i].count;
    }
}

static bool put(struct consumer *c, const struct checkpoint *p)
{
    char temporary[PATH_BYTES], path[PATH_BYTES], old[PATH_BYTES];
    world_path(c->w, c->rank, "checkpoint.tmp", temporary);
    world_path(c->w, c->rank, "checkpoint", path);
    world_path(c->w, c->rank, "checkpoint.old", old);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return false;
    }
    bool whole = write_whole(fd, p, sizeof *p);
    close(fd);
    if (!whole) {
        return false;
    }
    c->has_before = rename(path, old) == 0 || c->has_before;
    return rename(temporary, path) == 0;
}

void checkpoint_save(struct consumer *c, const struct corral_traj_item *const *taken, uint32_t count)
{
    static struct checkpoint next;
    memset(&next, 0, sizeof next);
    next.magic = MAGIC;
    next.saved = c->saved;
    next.ledger_bytes = c->ledger_bytes;
    next.log_low = corral_stream_log_low(c->log);
    next.cursor_count = corral_traj_receiver_cursors(c->receiver, taken, count, next.cursor, PRODUCERS_MAX);
    next.span_count = corral_traj_receiver_spans(c->receiver, taken, count, next.span, SPANS_MAX);
    if (next.span_count > SPANS_MAX) {
        world_die(c->w, "consumer %u: %u spans", c->rank, next.span_count);
    }
    next.digest = digest_of(&next);
    bool had = c->now.magic == MAGIC;
    if (!put(c, &next)) {
        consumer_disk_end(c, "the checkpoint can't be written");
    }
    /* After a rollback the older one stays until there are two again. */
    if (had) {
        c->before = c->now;
    }
    c->now = next;
    c->saved_at_step = c->steps;
    atomic_store_explicit(&c->me->saved, c->saved, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->saves, 1, memory_order_release);
    struct corral_error err;
    if (c->has_before && c->before.log_low > c->trimmed) {
        if (corral_stream_log_trim(c->log, c->before.log_low, &err) != CORRAL_OK) {
            consumer_disk_end(c, err.text);
        }
        c->trimmed = c->before.log_low;
    }
}
