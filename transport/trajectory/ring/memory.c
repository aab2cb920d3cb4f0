/* A ring's memory: made, filled, sealed, mapped twice, charged. */
#include "base/hash.h"
#include "transport/trajectory/ring/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define HUGE_BYTES (UINT64_C(2) << 20)
#define POPULATE_BYTES_MAX (UINT64_C(1) << 30) /* larger rings get their page tables as they are used */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* ---- quota ---- */

/* An allocation that stands for the ring's bytes: charged like any other, its own pages given back at once, since the ring's are the ones that are used. */
static enum corral_status charge_bytes(struct corral_ring *r, const struct corral_allocator *charge,
                                       uint64_t bytes, struct corral_error *err)
{
    if (charge == NULL) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_alloc(charge, bytes, "trajectory ring", &r->charged, err));
    r->charge = charge;
    r->charged_bytes = bytes;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)r->charged;
    uintptr_t first = (from + page - 1) / page * page, end = (from + bytes) / page * page;
    if (end > first) {
        (void)madvise((void *)first, end - first, MADV_DONTNEED);
    }
    return CORRAL_OK;
}

static void uncharge(struct corral_ring *r)
{
    if (r->charge != NULL) {
        corral_release(r->charge, r->charged, r->charged_bytes);
    }
    r->charge = NULL;
    r->charged = NULL;
}

/* ---- file ---- */

static int fill(int fd, uint64_t bytes)
{
    int rc;
    do {
        rc = fallocate(fd, 0, 0, (off_t)bytes);
    } while (rc != 0 && errno == EINTR);
    return rc == 0 ? 0 : errno;
}

/* Pages that the kernel makes huge by itself come only by touching a mapping, and only where it is set to do so; it matters little when this fails. */
static void ask_for_huge(int fd, uint64_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) {
        (void)(madvise(at, bytes, MADV_HUGEPAGE) == 0 && madvise(at, bytes, MADV_POPULATE_WRITE) == 0);
        munmap(at, bytes);
    }
}

static enum corral_status open_memory(struct corral_ring *r, unsigned flags, uint64_t bytes, bool huge_pages,
                                      struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = memfd_create("corral-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        return corral_fail_sys(err, errno, "cannot make a trajectory ring of %llu bytes",
                               (unsigned long long)bytes);
    }
    if (huge_pages && flags == 0) {
        ask_for_huge(fd, bytes);
    }
    /* Pages are taken now, so that a full machine is an error here and not a SIGBUS in the middle of a record. */
    int sys = fill(fd, bytes);
    if (sys == ENOSPC || sys == ENOMEM) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a trajectory ring of %llu bytes",
                           (unsigned long long)bytes);
    }
    if (sys != 0) {
        return corral_fail_sys(err, sys, "cannot fill a trajectory ring of %llu bytes",
                               (unsigned long long)bytes);
    }
    if (fcntl(fd, F_ADD_SEALS, SEALS) != 0) {
        return corral_fail_sys(err, errno, "cannot seal a trajectory ring");
    }
    r->fd[0] = fd;
    fd = -1;
    return CORRAL_OK;
}

static enum corral_status make_memory(struct corral_ring *r, uint64_t bytes, bool huge_pages,
                                      const struct corral_allocator *charge, struct corral_error *err)
{
    if (huge_pages) {
        uint64_t capacity = (bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
        CORRAL_TRY(charge_bytes(r, charge, capacity + HUGE_BYTES, err));
        if (open_memory(r, MFD_HUGETLB | MFD_HUGE_2MB, capacity + HUGE_BYTES, true, NULL) == CORRAL_OK) {
            r->capacity = capacity;
            r->flags |= RING_FLAG_HUGE;
            return CORRAL_OK;
        }
        uncharge(r);
    }
    r->capacity = (bytes + RING_CONTROL_BYTES - 1) / RING_CONTROL_BYTES * RING_CONTROL_BYTES;
    CORRAL_TRY(charge_bytes(r, charge, r->capacity + RING_CONTROL_BYTES, err));
    return open_memory(r, 0, r->capacity + RING_CONTROL_BYTES, huge_pages, err);
}

static uint64_t header_check(const struct ring_control *c)
{
    return corral_digest_of(c, offsetof(struct ring_control, check)).lo;
}

enum corral_status ring_memory_create(struct corral_ring *r, uint64_t bytes, bool huge_pages,
                                      const struct corral_allocator *charge, struct corral_error *err)
{
    CORRAL_TRY(make_memory(r, bytes, huge_pages, charge, err));
    for (int i = 1; i < 3; i++) {
        r->fd[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (r->fd[i] < 0) {
            return corral_fail_sys(err, errno, "cannot make the bells of a trajectory ring");
        }
    }
    if (ring_light_register()) {
        r->flags |= RING_FLAG_LIGHT;
    }
    corral_random_bytes(&r->key, sizeof r->key);
    uint64_t page = r->flags & RING_FLAG_HUGE ? HUGE_BYTES : RING_CONTROL_BYTES;
    struct ring_control *c =
        mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd[0], (off_t)r->capacity);
    if (c == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map the control page of a trajectory ring");
    }
    c->magic = RING_MAGIC;
    c->version = RING_VERSION;
    c->key = r->key;
    c->capacity = r->capacity;
    c->flags = r->flags;
    c->check = header_check(c);
    munmap(c, page);
    return CORRAL_OK;
}

/* ---- mapping ---- */

/* A range of addresses that begins at a multiple of a huge page. */
static void *reserve_range(uint64_t bytes)
{
    uint8_t *at =
        mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return NULL;
    }
    uint64_t before = (HUGE_BYTES - (uintptr_t)at % HUGE_BYTES) % HUGE_BYTES;
    if (before > 0) {
        munmap(at, before);
    }
    munmap(at + before + bytes, HUGE_BYTES - before);
    return at + before;
}

/* capacity bytes, the same bytes again, control page: one range. */
static enum corral_status map_all(struct corral_ring *r, uint64_t page, struct corral_error *err)
{
    uint64_t bytes = 2 * r->capacity + page;
    uint8_t *at = reserve_range(bytes);
    if (at == NULL) {
        return corral_fail_sys(err, errno, "no addresses for a trajectory ring of %llu bytes",
                               (unsigned long long)r->capacity);
    }
    int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED;
    if (mmap(at, r->capacity, prot, flags, r->fd[0], 0) == MAP_FAILED ||
        mmap(at + r->capacity, r->capacity, prot, flags, r->fd[0], 0) == MAP_FAILED ||
        mmap(at + 2 * r->capacity, page, prot, flags, r->fd[0], (off_t)r->capacity) == MAP_FAILED) {
        int sys = errno;
        munmap(at, bytes);
        return corral_fail_sys(err, sys, "cannot map a trajectory ring of %llu bytes",
                               (unsigned long long)r->capacity);
    }
    r->data = at;
    r->control = (struct ring_control *)(at + 2 * r->capacity);
    r->map_bytes = bytes;
    return CORRAL_OK;
}

static enum corral_status check_memory(int fd, uint64_t *capacity, uint64_t *page, struct corral_error *err)
{
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0) {
        return corral_fail_sys(err, errno, "trajectory ring: descriptor %d", fd);
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) {
        return corral_fail(err, CORRAL_INVALID, "trajectory ring: descriptor %d is not a sealed memfd", fd);
    }
    uint64_t bytes = (uint64_t)st.st_size;
    *page = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : RING_CONTROL_BYTES;
    if (st.st_size < 0 || *page < RING_CONTROL_BYTES || bytes % *page != 0 ||
        bytes < CORRAL_RING_BYTES_MIN + *page || bytes > CORRAL_RING_BYTES_MAX + *page) {
        return corral_fail(err, CORRAL_INVALID, "trajectory ring: descriptor %d has %lld bytes", fd,
                           (long long)st.st_size);
    }
    *capacity = bytes - *page;
    return CORRAL_OK;
}

/* A bell of another kind could block whoever rings it. */
static enum corral_status check_bell(int fd, struct corral_error *err)
{
    char path[32], kind[32] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, kind, sizeof kind - 1);
    int flags = fcntl(fd, F_GETFL);
    if (n <= 0 || strcmp(kind, "anon_inode:[eventfd]") != 0 || flags < 0 || (flags & O_NONBLOCK) == 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "trajectory ring: descriptor %d is not a non-blocking eventfd", fd);
    }
    return CORRAL_OK;
}

static enum corral_status check_control(struct corral_ring *r, struct corral_error *err)
{
    struct ring_control c;
    memcpy(&c, r->control, offsetof(struct ring_control, check) + sizeof c.check);
    if (c.magic != RING_MAGIC || c.version != RING_VERSION) {
        return corral_fail(err, CORRAL_PROTOCOL, "not a trajectory ring of version %u", RING_VERSION);
    }
    if (c.check != header_check(&c) || c.capacity != r->capacity) {
        return corral_fail(err, CORRAL_PROTOCOL, "the control page of a trajectory ring is damaged");
    }
    if ((c.flags & RING_FLAG_LIGHT) && !ring_light_register()) {
        return corral_fail(
            err, CORRAL_UNSUPPORTED,
            "the other side of a trajectory ring relies on membarrier, which this process does not have");
    }
    r->key = c.key;
    r->flags = c.flags;
    return CORRAL_OK;
}

static const char *name_pages(const struct corral_ring *r)
{
    if (r->flags & RING_FLAG_HUGE) {
        return "huge";
    }
    return r->advised ? "base, huge where the kernel makes them" : "base";
}

enum corral_status ring_memory_map(struct corral_ring *r, struct corral_error *err)
{
    uint64_t page;
    CORRAL_TRY(check_memory(r->fd[0], &r->capacity, &page, err));
    CORRAL_TRY(check_bell(r->fd[1], err));
    CORRAL_TRY(check_bell(r->fd[2], err));
    CORRAL_TRY(map_all(r, page, err));
    CORRAL_TRY(check_control(r, err));
    r->advised = (r->flags & RING_FLAG_HUGE) == 0 && r->capacity >= HUGE_BYTES &&
                 madvise(r->data, 2 * r->capacity, MADV_HUGEPAGE) == 0;
    r->pages = name_pages(r);
    if (r->capacity <= POPULATE_BYTES_MAX) {
        /* Page tables now rather than a fault at each page; an older kernel makes them as they are used. */
        (void)madvise(r->data, 2 * r->capacity, MADV_POPULATE_WRITE);
    }
    return CORRAL_OK;
}

void ring_memory_free(struct corral_ring *r)
{
    if (r->data != NULL) {
        munmap(r->data, r->map_bytes);
    }
    for (int i = 0; i < 3; i++) {
        corral_cleanup_close(&r->fd[i]);
    }
    uncharge(r); /* gone first, uncharged second: the quota never shows room that is not there */
}
