#include "quota/shared.h"

#include "base/log.h"
#include "base/text.h"
#include "quota/process.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SHARED_MAGIC UINT32_C(0x53435143) /* "CQCS" */
#define SHARED_VERSION 1
#define SHARED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct shared_ledger {
    uint32_t magic, version;
    uint64_t bytes;
    pthread_mutex_t ledger_lock;
    _Atomic int32_t owner_pid; /* who has the lock, for the text of a timeout only */
    _Atomic uint32_t repairs;
    struct corral_ledger ledger __attribute__((aligned(64)));
};

struct corral_quota {
    struct shared_ledger *shared;
    pid_t pid; /* the process that attached */
    uint32_t joined
        [CORRAL_LEDGER_HOLDERS_MAX]; /* generation of the slots this attachment took; 0: not ours. Under the lock. */
};

static void quota_free(struct corral_quota *q)
{
    if (q && q->shared) {
        munmap(q->shared, sizeof *q->shared);
    }
    free(q);
}
CORRAL_DEFINE_CLEANUP(struct corral_quota, quota_free)

/* A process died with the lock: its operation is finished or forgotten, and the totals are the holders' again. */
static void take_over(struct shared_ledger *s)
{
    corral_ledger_repair(&s->ledger);
    atomic_fetch_add_explicit(&s->repairs, 1, memory_order_relaxed);
    pthread_mutex_consistent(&s->ledger_lock);
}

/* Waits at most CORRAL_QUOTA_LOCK_MS_MAX. The thread sanitizer follows a robust lock only through the form without a deadline. */
static int lock_with_deadline(pthread_mutex_t *mutex)
{
#if defined(__SANITIZE_THREAD__)
    return pthread_mutex_lock(mutex);
#else
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CORRAL_QUOTA_LOCK_MS_MAX / 1000;
    return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &until);
#endif
}

static enum corral_status lock(struct corral_quota *q, struct corral_error *err)
{
    struct shared_ledger *s = q->shared;
    int rc = pthread_mutex_trylock(&s->ledger_lock);
    if (rc == EBUSY) {
        rc = lock_with_deadline(&s->ledger_lock);
    }
    if (rc == EOWNERDEAD) {
        take_over(s);
        rc = 0;
    }
    if (rc == ETIMEDOUT) {
        return corral_fail(
            err, CORRAL_TIMEOUT, "memory ledger: process %d has held the lock for %d s; is it stopped?",
            (int)atomic_load_explicit(&s->owner_pid, memory_order_relaxed), CORRAL_QUOTA_LOCK_MS_MAX / 1000);
    }
    if (rc != 0) {
        return corral_fail(err, CORRAL_INTERNAL, "memory ledger: the lock is damaged: %s", strerror(rc));
    }
    atomic_store_explicit(&s->owner_pid, (int32_t)q->pid, memory_order_relaxed);
    return CORRAL_OK;
}

static void unlock(struct corral_quota *q)
{
    pthread_mutex_unlock(&q->shared->ledger_lock);
}

/* For changes that must not be lost: outwaits a stopped lock holder, saying so. False only when the lock is damaged. */
static bool lock_patiently(struct corral_quota *q)
{
    struct corral_error err;
    enum corral_status status;
    while ((status = lock(q, &err)) == CORRAL_TIMEOUT) {
        corral_log_warn("memory ledger busy, still waiting", LOG_ERR(&err));
    }
    if (status != CORRAL_OK) {
        corral_log_error("memory ledger unusable", LOG_ERR(&err));
    }
    return status == CORRAL_OK;
}

static enum corral_status init_lock(struct shared_ledger *s, struct corral_error *err)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    int rc = pthread_mutex_init(&s->ledger_lock, &attr);
    pthread_mutexattr_destroy(&attr);
    return rc == 0 ? CORRAL_OK : corral_fail_sys(err, rc, "memory ledger: make the lock");
}

static enum corral_status map_shared(int fd, struct corral_quota **out, struct corral_error *err)
{
    CORRAL_CLEANUP(quota_freep) struct corral_quota *q = calloc(1, sizeof *q);
    if (!q) {
        return corral_fail(err, CORRAL_NOMEM, "memory ledger: no memory to attach");
    }
    void *map = mmap(NULL, sizeof *q->shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        return corral_fail_sys(err, errno, "memory ledger: map");
    }
    q->shared = map;
    q->pid = getpid();
    *out = CORRAL_STEAL(q);
    return CORRAL_OK;
}

enum corral_status corral_quota_create(const struct corral_ledger *plan, int *fd_out,
                                       struct corral_quota **out, struct corral_error *err)
{
    if (plan->holder_high != 0 || !corral_ledger_consistent(plan)) {
        return corral_fail(err, CORRAL_INVALID,
                           "memory ledger: not a plan: it has holders, or its floors do not fit");
    }
    CORRAL_AUTO_CLOSE int fd = memfd_create("corral-quota", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "memory ledger: create");
    }
    /* Pages are taken now: a write to a shared page that cannot be had later would be a signal, not an error. */
    int rc = posix_fallocate(fd, 0, sizeof(struct shared_ledger));
    if (rc != 0) {
        return corral_fail_sys(err, rc, "memory ledger: size");
    }
    if (fcntl(fd, F_ADD_SEALS, SHARED_SEALS) != 0) {
        return corral_fail_sys(err, errno, "memory ledger: seal");
    }
    CORRAL_CLEANUP(quota_freep) struct corral_quota *q = NULL;
    CORRAL_TRY(map_shared(fd, &q, err));
    CORRAL_TRY(init_lock(q->shared, err));
    q->shared->ledger = *plan;
    q->shared->bytes = sizeof *q->shared;
    q->shared->version = SHARED_VERSION;
    q->shared->magic = SHARED_MAGIC;
    *fd_out = fd;
    fd = -1;
    *out = CORRAL_STEAL(q);
    return CORRAL_OK;
}

enum corral_status corral_quota_attach(int fd, struct corral_quota **out, struct corral_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "memory ledger: descriptor %d", fd);
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SHARED_SEALS) != SHARED_SEALS) {
        return corral_fail(err, CORRAL_INVALID, "memory ledger: descriptor %d is not a sealed mapping", fd);
    }
    if (st.st_size != (off_t)sizeof(struct shared_ledger)) {
        return corral_fail(err, CORRAL_INVALID, "memory ledger: descriptor %d has %lld bytes, expected %zu",
                           fd, (long long)st.st_size, sizeof(struct shared_ledger));
    }
    CORRAL_CLEANUP(quota_freep) struct corral_quota *q = NULL;
    CORRAL_TRY(map_shared(fd, &q, err));
    const struct shared_ledger *s = q->shared;
    if (s->magic != SHARED_MAGIC || s->version != SHARED_VERSION || s->bytes != sizeof *s ||
        s->ledger.magic != CORRAL_LEDGER_MAGIC || s->ledger.version != CORRAL_LEDGER_VERSION) {
        return corral_fail(
            err, CORRAL_INVALID,
            "memory ledger: descriptor %d is not a ledger of this version (%u.%u, expected %d.%d)", fd,
            s->version, s->ledger.version, SHARED_VERSION, CORRAL_LEDGER_VERSION);
    }
    *out = CORRAL_STEAL(q);
    return CORRAL_OK;
}

/* Under the lock. A slot is ours when this attachment took it and nobody has taken it since. */
static bool is_ours(const struct corral_quota *q, uint32_t holder)
{
    if (holder >= CORRAL_LEDGER_HOLDERS_MAX || q->joined[holder] == 0) {
        return false;
    }
    const struct corral_ledger_holder *h = &q->shared->ledger.holder[holder];
    return h->pid == (int32_t)q->pid && h->generation == q->joined[holder];
}

void corral_quota_detach(struct corral_quota *q)
{
    if (!q) {
        return;
    }
    if (q->pid == getpid() && lock_patiently(q)) {
        for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
            if (is_ours(q, i)) {
                corral_ledger_leave(&q->shared->ledger, i);
            }
        }
        unlock(q);
    }
    quota_free(q);
}

static enum corral_status check_process(const struct corral_quota *q, struct corral_error *err)
{
    if (q->pid != getpid()) {
        return corral_fail(err, CORRAL_STATE,
                           "memory ledger: attached by process %d; attach again after fork", (int)q->pid);
    }
    return CORRAL_OK;
}

enum corral_status corral_quota_join(struct corral_quota *q, const char *device, const char *role,
                                     uint32_t *holder, struct corral_error *err)
{
    CORRAL_TRY(check_process(q, err));
    struct corral_ledger *l = &q->shared->ledger;
    uint32_t d = corral_ledger_find_device(l, device); /* names do not change after creation */
    if (d == UINT32_MAX) {
        return corral_fail(err, CORRAL_NOT_FOUND, "memory ledger: no device \"%s\"", device);
    }
    uint32_t r = corral_ledger_find_role(l, role);
    if (r == UINT32_MAX) {
        return corral_fail(err, CORRAL_NOT_FOUND, "memory ledger: no role \"%s\"", role);
    }
    uint64_t start_time = corral_process_start_time(q->pid);
    uint32_t slot;
    CORRAL_TRY(lock(q, err));
    enum corral_status status = corral_ledger_join(l, d, r, q->pid, start_time, &slot, err);
    if (status == CORRAL_OK) {
        q->joined[slot] = l->holder[slot].generation;
        *holder = slot;
    }
    unlock(q);
    return status;
}

static enum corral_status report_denial(const struct corral_quota *q, const struct corral_ledger_denial *why,
                                        uint64_t step, const char *what, struct corral_error *err)
{
    const struct corral_ledger *l = &q->shared->ledger;
    const char *role = l->role_name[why->role], *device = l->device[why->device].name;
    const char *reason = corral_ledger_reason_name(why->reason);
    corral_log_warn("memory denied", LOG_STR("role", role), LOG_STR("device", device), LOG_I64("pid", q->pid),
                    LOG_U64("step", step), LOG_STR("what", what), LOG_U64("size", why->bytes),
                    LOG_U64("used", why->used), LOG_U64("floor", why->floor),
                    LOG_U64("ceiling", why->ceiling), LOG_STR("reason", reason));
    char a[32], b[32], c[32], d[32];
    return corral_fail(
        err, CORRAL_DENIED, "%s: %s for %s on %s denied, %s: %s of ceiling %s used, %s would fit", what,
        corral_format_bytes(why->bytes, a, sizeof a), role, device, reason,
        corral_format_bytes(why->used, b, sizeof b), corral_format_bytes(why->ceiling, c, sizeof c),
        corral_format_bytes(why->available, d, sizeof d));
}

enum corral_status corral_quota_reserve(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                        const char *what, struct corral_error *err)
{
    CORRAL_TRY(check_process(q, err));
    CORRAL_TRY(lock(q, err));
    if (!is_ours(q, holder)) {
        unlock(q);
        return corral_fail(err, CORRAL_STATE, "memory ledger: slot %u is not this process's any more",
                           holder);
    }
    struct corral_ledger_denial why;
    uint64_t step = q->shared->ledger.holder[holder].step;
    enum corral_status status = corral_ledger_reserve(&q->shared->ledger, holder, bytes, &why);
    unlock(q);
    return status == CORRAL_DENIED ? report_denial(q, &why, step, what, err) : status;
}

/* Lock for a change of our own slot. False, unlocked, when it is not ours: a forked child's copy of its parent's memory
 * is not charged, so giving it back changes nothing. */
static bool lock_ours(struct corral_quota *q, uint32_t holder)
{
    if (q->pid != getpid() || !lock_patiently(q)) {
        return false;
    }
    if (!is_ours(q, holder)) {
        unlock(q);
        return false;
    }
    return true;
}

void corral_quota_commit(struct corral_quota *q, uint32_t holder, uint64_t bytes)
{
    if (lock_ours(q, holder)) {
        corral_ledger_commit(&q->shared->ledger, holder, bytes);
        unlock(q);
    }
}

void corral_quota_rollback(struct corral_quota *q, uint32_t holder, uint64_t bytes)
{
    if (lock_ours(q, holder)) {
        corral_ledger_rollback(&q->shared->ledger, holder, bytes);
        unlock(q);
    }
}

void corral_quota_release(struct corral_quota *q, uint32_t holder, uint64_t bytes)
{
    if (lock_ours(q, holder)) {
        corral_ledger_release(&q->shared->ledger, holder, bytes);
        unlock(q);
    }
}

void corral_quota_set_step(struct corral_quota *q, uint32_t holder, uint64_t step)
{
    if (lock_ours(q, holder)) {
        q->shared->ledger.holder[holder].step = step;
        unlock(q);
    }
}

/* The slots in use, copied under the lock so that /proc is read without it. */
static uint32_t copy_holders(struct corral_quota *q, struct corral_ledger_holder *out)
{
    if (!lock_patiently(q)) {
        return 0;
    }
    const struct corral_ledger *l = &q->shared->ledger;
    uint32_t high = CORRAL_MIN(l->holder_high, CORRAL_LEDGER_HOLDERS_MAX);
    memcpy(out, l->holder, high * sizeof *out);
    unlock(q);
    return high;
}

/* Free slot i if it is still the one that was seen. */
static bool leave_if_same(struct corral_quota *q, uint32_t i, const struct corral_ledger_holder *seen)
{
    if (!lock_patiently(q)) {
        return false;
    }
    const struct corral_ledger_holder *h = &q->shared->ledger.holder[i];
    bool same = h->pid == seen->pid && h->generation == seen->generation;
    if (same) {
        corral_ledger_leave(&q->shared->ledger, i);
    }
    unlock(q);
    return same;
}

uint32_t corral_quota_reap(struct corral_quota *q)
{
    struct corral_ledger_holder seen[CORRAL_LEDGER_HOLDERS_MAX];
    uint32_t high = copy_holders(q, seen), freed = 0;
    for (uint32_t i = 0; i < high; i++) {
        if (seen[i].pid != 0 && corral_process_is_gone(seen[i].pid, seen[i].start_time)) {
            freed += leave_if_same(q, i, &seen[i]);
        }
    }
    return freed;
}

void corral_quota_reap_pid(struct corral_quota *q, pid_t pid)
{
    struct corral_ledger_holder seen[CORRAL_LEDGER_HOLDERS_MAX];
    uint32_t high = copy_holders(q, seen);
    for (uint32_t i = 0; i < high; i++) {
        if (seen[i].pid != 0 && seen[i].pid == (int32_t)pid) {
            leave_if_same(q, i, &seen[i]);
        }
    }
}

void corral_quota_snapshot(struct corral_quota *q, struct corral_ledger *out)
{
    if (lock_patiently(q)) {
        *out = q->shared->ledger;
        unlock(q);
    } else {
        corral_ledger_init(out);
    }
}

uint32_t corral_quota_repairs(const struct corral_quota *q)
{
    return atomic_load_explicit(&q->shared->repairs, memory_order_relaxed);
}
