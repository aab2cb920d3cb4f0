#include "transport/trajectory/wal/test_power.h"
#include "tests/check.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 512
#define EVENTS_MAX 16384
#define SECTOR 512u

enum kind { WRITTEN, SIZED, SYNCED, NAMED, UNNAMED, FOLDER_SYNCED };

struct event {
    enum kind kind;
    uint32_t file;
    uint64_t at, bytes; /* SIZED: bytes; SYNCED, FOLDER_SYNCED: `at` is the event count when the sync began */
    uint8_t *data;
    char name[WAL_NAME_BYTES];
};

struct file {
    int fd; /* kept open, so that its number is not used again */
    ino_t number;
    uint64_t bytes; /* when the recording began */
    uint8_t *data;
    char name[WAL_NAME_BYTES]; /* then */
};

struct power {
    pthread_mutex_t lock;
    struct file files[FILES_MAX];
    uint32_t file_count;
    struct event *events;
    uint64_t event_count;
};

static uint32_t find(struct power *p, int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    for (uint32_t i = 0; i < p->file_count; i++) {
        if (p->files[i].number == st.st_ino) {
            return i;
        }
    }
    fail_msg("a file that was never made");
    return 0;
}

static struct file *add_file(struct power *p, int fd)
{
    struct stat st;
    assert_true(p->file_count < FILES_MAX && fstat(fd, &st) == 0);
    struct file *f = &p->files[p->file_count++];
    *f = (struct file){.fd = dup(fd), .number = st.st_ino};
    assert_true(f->fd >= 0);
    return f;
}

static struct event *add(struct power *p, enum kind kind, uint32_t file)
{
    assert_true(p->event_count < EVENTS_MAX);
    struct event *e = &p->events[p->event_count++];
    *e = (struct event){.kind = kind, .file = file};
    return e;
}

static int power_create_file(void *ctx, int folder, const char *name, uint64_t bytes)
{
    struct power *p = ctx;
    int fd = wal_files_real.create(NULL, folder, name, bytes);
    assert_true(fd >= 0);
    pthread_mutex_lock(&p->lock);
    add_file(p, fd);
    add(p, SIZED, p->file_count - 1)->bytes = bytes;
    snprintf(add(p, NAMED, p->file_count - 1)->name, WAL_NAME_BYTES, "%s", name);
    pthread_mutex_unlock(&p->lock);
    return fd;
}

static ssize_t power_pwritev(void *ctx, int fd, const struct iovec *parts, int count, uint64_t at)
{
    struct power *p = ctx;
    ssize_t n = wal_files_real.pwritev(NULL, fd, parts, count, at);
    assert_true(n > 0);
    pthread_mutex_lock(&p->lock);
    struct event *e = add(p, WRITTEN, find(p, fd));
    e->at = at;
    e->bytes = (uint64_t)n;
    e->data = malloc((size_t)n);
    uint64_t done = 0;
    for (int i = 0; i < count; i++) {
        uint64_t take = CORRAL_MIN(parts[i].iov_len, e->bytes - done);
        if (take > 0) {
            memcpy(e->data + done, parts[i].iov_base, take);
        }
        done += take;
    }
    pthread_mutex_unlock(&p->lock);
    return n;
}

static int power_truncate(void *ctx, int fd, uint64_t bytes)
{
    struct power *p = ctx;
    pthread_mutex_lock(&p->lock);
    add(p, SIZED, find(p, fd))->bytes = bytes;
    pthread_mutex_unlock(&p->lock);
    return wal_files_real.truncate(NULL, fd, bytes);
}

/* Only what was written before the sync began is promised. No real sync: nothing here outlives the test. */
static int power_sync(void *ctx, int fd)
{
    struct power *p = ctx;
    uint64_t begun = power_now(p);
    sched_yield(); /* others may write while it is under way */
    pthread_mutex_lock(&p->lock);
    add(p, SYNCED, find(p, fd))->at = begun;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static int power_sync_folder(void *ctx, int folder)
{
    (void)folder;
    struct power *p = ctx;
    uint64_t begun = power_now(p);
    sched_yield();
    pthread_mutex_lock(&p->lock);
    add(p, FOLDER_SYNCED, 0)->at = begun;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static int power_rename(void *ctx, int folder, const char *from, const char *to)
{
    struct power *p = ctx;
    int fd = openat(folder, from, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    pthread_mutex_lock(&p->lock);
    uint32_t file = find(p, fd);
    snprintf(add(p, NAMED, file)->name, WAL_NAME_BYTES, "%s", to);
    snprintf(add(p, UNNAMED, file)->name, WAL_NAME_BYTES, "%s", from);
    pthread_mutex_unlock(&p->lock);
    close(fd);
    return wal_files_real.rename(NULL, folder, from, to);
}

static int power_unlink(void *ctx, int folder, const char *name)
{
    struct power *p = ctx;
    int failed = wal_files_real.unlink(NULL, folder, name);
    if (failed == 0) {
        int code = errno;
        pthread_mutex_lock(&p->lock);
        snprintf(add(p, UNNAMED, 0)->name, WAL_NAME_BYTES, "%s", name);
        pthread_mutex_unlock(&p->lock);
        errno = code;
    }
    return failed;
}

struct wal_files power_files(struct power *p)
{
    return (struct wal_files){.create = power_create_file,
                              .pwritev = power_pwritev,
                              .truncate = power_truncate,
                              .sync = power_sync,
                              .sync_folder = power_sync_folder,
                              .rename = power_rename,
                              .unlink = power_unlink,
                              .ctx = p};
}

uint64_t power_now(struct power *p)
{
    pthread_mutex_lock(&p->lock);
    uint64_t now = p->event_count;
    pthread_mutex_unlock(&p->lock);
    return now;
}

struct power *power_create(const char *folder)
{
    struct power *p = calloc(1, sizeof *p);
    p->events = calloc(EVENTS_MAX, sizeof *p->events);
    pthread_mutex_init(&p->lock, NULL);
    int at = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        int fd = openat(at, e->d_name, O_RDONLY | O_CLOEXEC);
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        if (S_ISREG(st.st_mode) && strcmp(e->d_name, "lock") != 0) {
            struct file *f = add_file(p, fd);
            f->bytes = (uint64_t)st.st_size;
            f->data = malloc(f->bytes + 1);
            assert_int_equal(pread(fd, f->data, f->bytes, 0), f->bytes);
            memcpy(f->name, e->d_name, strnlen(e->d_name, WAL_NAME_BYTES - 1));
        }
        close(fd);
    }
    closedir(dir);
    close(at);
    return p;
}

void power_destroy(struct power *p)
{
    for (uint32_t i = 0; i < p->file_count; i++) {
        close(p->files[i].fd);
        free(p->files[i].data);
    }
    for (uint64_t i = 0; i < p->event_count; i++) {
        free(p->events[i].data);
    }
    pthread_mutex_destroy(&p->lock);
    free(p->events);
    free(p);
}

/* ---- the image ---- */

struct image { /* of one file */
    uint8_t *data;
    uint64_t bytes, capacity;
};

static void resize(struct image *m, uint64_t bytes)
{
    if (bytes > m->capacity) {
        m->data = realloc(m->data, bytes);
        assert_non_null(m->data);
        m->capacity = bytes;
    }
    if (bytes > m->bytes) {
        memset(m->data + m->bytes, 0, bytes - m->bytes);
    }
    m->bytes = bytes;
}

/* Sector by sector, each with probability `keep`. */
static void apply_write(struct image *m, const struct event *e, double keep, struct corral_rng *rng)
{
    for (uint64_t at = e->at; at < e->at + e->bytes;) {
        uint64_t end = CORRAL_MIN((at / SECTOR + 1) * SECTOR, e->at + e->bytes);
        if (keep >= 1 || corral_rng_uniform(rng) < keep) {
            if (end > m->bytes) {
                resize(m, end);
            }
            memcpy(m->data + at, e->data + (at - e->at), end - at);
        }
        at = end;
    }
}

/* The event count up to which a file, or the folder, is durable at `at`. */
static uint64_t durable_upto(const struct power *p, uint64_t at, bool folder, uint32_t file)
{
    uint64_t upto = 0;
    for (uint64_t i = 0; i < at; i++) {
        const struct event *e = &p->events[i];
        if (folder ? e->kind == FOLDER_SYNCED : e->kind == SYNCED && e->file == file) {
            upto = CORRAL_MAX(upto, e->at);
        }
    }
    return upto;
}

static void write_image(const struct power *p, uint32_t file, uint64_t at, double keep,
                        struct corral_rng *rng, const char *path)
{
    struct image m = {0};
    resize(&m, p->files[file].bytes);
    if (m.bytes > 0) {
        memcpy(m.data, p->files[file].data, m.bytes);
    }
    uint64_t durable = durable_upto(p, at, false, file);
    for (uint64_t i = 0; i < at; i++) {
        const struct event *e = &p->events[i];
        if (e->file != file) {
            continue;
        }
        if (e->kind == WRITTEN) {
            apply_write(&m, e, i < durable ? 1 : keep, rng);
        } else if (e->kind == SIZED && (i < durable || corral_rng_uniform(rng) < keep)) {
            resize(&m, e->bytes);
        }
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(m.bytes > 0 ? pwrite(fd, m.data, m.bytes, 0) : 0, m.bytes);
    close(fd);
    free(m.data);
}

struct names {
    char name[FILES_MAX][WAL_NAME_BYTES];
    uint32_t file[FILES_MAX];
    uint32_t count;
};

static void set_name(struct names *n, const char *name, bool there, uint32_t file)
{
    uint32_t i = 0;
    while (i < n->count && strcmp(n->name[i], name) != 0) {
        i++;
    }
    if (there && i == n->count) {
        snprintf(n->name[n->count++], WAL_NAME_BYTES, "%s", name);
    }
    if (there) {
        n->file[i] = file;
    } else if (i < n->count) {
        n->count--;
        memmove(n->name[i], n->name[n->count], WAL_NAME_BYTES);
        n->file[i] = n->file[n->count];
    }
}

void power_cut(struct power *p, uint64_t at, double keep, struct corral_rng *rng, const char *to)
{
    struct names *n = calloc(1, sizeof *n);
    for (uint32_t i = 0; i < p->file_count; i++) {
        if (p->files[i].name[0] != '\0') {
            set_name(n, p->files[i].name, true, i);
        }
    }
    uint64_t durable = durable_upto(p, at, true, 0);
    for (uint64_t i = 0; i < at; i++) {
        const struct event *e = &p->events[i];
        if ((e->kind == NAMED || e->kind == UNNAMED) && (i < durable || corral_rng_uniform(rng) < keep)) {
            set_name(n, e->name, e->kind == NAMED, e->file);
        }
    }
    for (uint32_t i = 0; i < n->count; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", to, n->name[i]);
        write_image(p, n->file[i], at, keep, rng, path);
    }
    free(n);
}
