#include "quota/shared_internal.h"

#include "base/log.h"
#include "quota/process.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define OURS_BYTES ((size_t)4096)
#define LOCK_TRIES 24 /* with pauses between them: one or two microseconds, longer than an operation takes */
#define LOCK_PAUSES 8
#define TOKEN_BYTES 16

/* ---- the lock ---- */

/* A process died with the lock: its operation is finished or forgotten, the totals are the holders' again, and what it held
 * goes back if it is dead altogether. */
static void take_over(struct shared_ledger *s)
{
    corral_ledger_repair(&s->ledger);
    atomic_fetch_add_explicit(&s->repairs, 1, memory_order_relaxed);
    pthread_mutex_consistent(&s->ledger_lock);
    corral_quota_reap_owner(s);
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits at most CORRAL_QUOTA_LOCK_MS_MAX. The thread sanitizer follows a robust lock only through the form without a deadline. */
static int lock_with_deadline(pthread_mutex_t *mutex)
{
#if defined(__SANITIZE_THREAD__)
    return pthread_mutex_lock(mutex);
#else
    int rc = EBUSY;
    for (int i = 0; i < LOCK_TRIES && rc == EBUSY; i++) {
        for (int p = 0; p < LOCK_PAUSES; p++) {
            relax();
        }
        rc = pthread_mutex_trylock(mutex);
    }
    if (rc != EBUSY) {
        return rc;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CORRAL_QUOTA_LOCK_MS_MAX / 1000;
    return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &until);
#endif
}

enum corral_status corral_quota_lock(struct corral_quota *q, struct corral_error *err)
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

void corral_quota_unlock(struct corral_quota *q)
{
    pthread_mutex_unlock(&q->shared->ledger_lock);
}

void corral_quota_unlock_released(struct corral_quota *q, uint32_t device)
{
    struct shared_ledger *s = q->shared;
    uint64_t bit = UINT64_C(1) << (device % CORRAL_LEDGER_DEVICES_MAX);
    /* Relaxed: both sides are under the lock. */
    bool waited = (atomic_load_explicit(&s->waiting, memory_order_relaxed) & bit) != 0;
    if (waited) {
        atomic_fetch_and_explicit(&s->waiting, ~bit, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->released, 1, memory_order_relaxed);
    }
    corral_quota_unlock(q);
    if (waited) {
        syscall(SYS_futex, &s->released, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

bool corral_quota_lock_patiently(struct corral_quota *q)
{
    struct corral_error err;
    enum corral_status status;
    while ((status = corral_quota_lock(q, &err)) == CORRAL_TIMEOUT) {
        corral_log_warn("memory ledger busy, still waiting", LOG_ERR(&err));
    }
    if (status != CORRAL_OK) {
        corral_log_error("memory ledger unusable", LOG_ERR(&err));
    }
    return status == CORRAL_OK;
}

bool corral_quota_is_attached(const struct corral_quota *q)
{
    return q->ours ? *q->ours == 1 : q->pid == getpid();
}

enum corral_status corral_quota_check_process(const struct corral_quota *q, struct corral_error *err)
{
    if (!corral_quota_is_attached(q)) {
        return corral_fail(err, CORRAL_STATE,
                           "memory ledger: attached by process %d; attach again after fork", (int)q->pid);
    }
    return CORRAL_OK;
}

bool corral_quota_is_ours(const struct corral_quota *q, uint32_t holder)
{
    if (holder >= CORRAL_LEDGER_HOLDERS_MAX || q->joined[holder] == 0) {
        return false;
    }
    const struct corral_ledger_holder *h = &q->shared->ledger.holder[holder];
    return h->pid == (int32_t)q->pid && h->generation == q->joined[holder] && !h->left &&
           h->device < CORRAL_LEDGER_DEVICES_MAX && h->role < CORRAL_LEDGER_ROLES_MAX;
}

bool corral_quota_lock_ours(struct corral_quota *q, uint32_t holder)
{
    if (!corral_quota_is_attached(q) || !corral_quota_lock_patiently(q)) {
        return false;
    }
    if (!corral_quota_is_ours(q, holder)) {
        corral_quota_unlock(q);
        return false;
    }
    return true;
}

/* ---- the mapping ---- */

static void quota_free(struct corral_quota *q)
{
    if (q && q->shared) {
        munmap(q->shared, sizeof *q->shared);
    }
    if (q && q->ours) {
        munmap((void *)(uintptr_t)q->ours, OURS_BYTES);
    }
    free(q);
}
CORRAL_DEFINE_CLEANUP(struct corral_quota, quota_free)

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

/* A page that a fork() leaves zero in the child. */
static const volatile uint32_t *page_of_ours(void)
{
    uint32_t *page = mmap(NULL, OURS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return NULL;
    }
    if (madvise(page, OURS_BYTES, MADV_WIPEONFORK) != 0) {
        munmap(page, OURS_BYTES);
        return NULL;
    }
    *page = 1;
    return page;
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
    q->ours = page_of_ours();
    *out = CORRAL_STEAL(q);
    return CORRAL_OK;
}

static enum corral_status draw_tokens(struct corral_ledger *l, struct corral_error *err)
{
    for (uint32_t r = 0; r < l->role_count; r++) {
        ssize_t got;
        do {
            got = getrandom(l->role_token[r], TOKEN_BYTES, 0);
        } while (got < 0 && errno == EINTR);
        if (got != TOKEN_BYTES) {
            return corral_fail_sys(err, errno, "memory ledger: draw the token of a role");
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_create(const struct corral_ledger *plan,
                                       const struct corral_quota_options *options, struct corral_error *err)
{
    if (plan->holder_high != 0 || !corral_ledger_consistent(plan)) {
        return corral_fail(err, CORRAL_INVALID,
                           "memory ledger: not a plan: it has holders, or its floors do not fit");
    }
    if (options && options->pressure_wait_ms > CORRAL_QUOTA_PRESSURE_MS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "memory ledger: a pressure wait of %u ms; at most %d do",
                           options->pressure_wait_ms, CORRAL_QUOTA_PRESSURE_MS_MAX);
    }
    return CORRAL_OK;
}

enum corral_status corral_quota_create(const struct corral_ledger *plan,
                                       const struct corral_quota_options *options, int *fd_out,
                                       struct corral_quota **out, struct corral_error *err)
{
    CORRAL_TRY(check_create(plan, options, err));
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
    struct shared_ledger *s = q->shared;
    CORRAL_TRY(init_lock(s, err));
    memcpy(&s->ledger, plan,
           offsetof(struct corral_ledger, share)); /* a plan has no shares and no allocations */
    s->ledger.allocation_free = s->ledger.allocation_high = 0;
    s->ledger.share_free = s->ledger.share_high = 0;
    CORRAL_TRY(draw_tokens(&s->ledger, err));
    s->pressure_wait_ms = options ? options->pressure_wait_ms : 0;
    s->bytes = sizeof *s;
    s->version = SHARED_VERSION;
    s->magic = SHARED_MAGIC;
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

static bool parse_token(const char *hex, uint8_t out[TOKEN_BYTES])
{
    if (strlen(hex) != 2 * TOKEN_BYTES || strspn(hex, "0123456789abcdef") != 2 * TOKEN_BYTES) {
        return false;
    }
    for (size_t i = 0; i < TOKEN_BYTES; i++) {
        unsigned byte = 0;
        sscanf(hex + 2 * i, "%2x", &byte);
        out[i] = (uint8_t)byte;
    }
    return true;
}

/* Every byte of every token is looked at, so that the time taken says nothing about them. */
static uint32_t role_of_token(const struct corral_ledger *l, const uint8_t token[TOKEN_BYTES])
{
    uint32_t found = CORRAL_LEDGER_NONE;
    for (uint32_t r = 0; r < CORRAL_MIN(l->role_count, CORRAL_LEDGER_ROLES_MAX); r++) {
        unsigned difference = 0;
        for (size_t i = 0; i < TOKEN_BYTES; i++) {
            difference |= (unsigned)(l->role_token[r][i] ^ token[i]);
        }
        found = difference == 0 ? r : found;
    }
    return found;
}

enum corral_status corral_quota_attach_environment(struct corral_quota **out, uint32_t *role,
                                                   struct corral_error *err)
{
    const char *path = getenv(CORRAL_QUOTA_ENV_LEDGER), *hex = getenv(CORRAL_QUOTA_ENV_TOKEN);
    if (!path && !hex) {
        return corral_fail(err, CORRAL_NOT_FOUND,
                           "memory ledger: this process was not started under a quota");
    }
    uint8_t token[TOKEN_BYTES];
    if (!path || !hex || !parse_token(hex, token)) {
        return corral_fail(err, CORRAL_INVALID, "memory ledger: %s and %s do not name a ledger and a role",
                           CORRAL_QUOTA_ENV_LEDGER, CORRAL_QUOTA_ENV_TOKEN);
    }
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ESRCH)) {
        return corral_fail(err, CORRAL_PEER, "memory ledger: %s is gone, and its agent with it", path);
    }
    if (fd < 0) {
        return corral_fail_sys(err, errno, "memory ledger: open %s", path);
    }
    CORRAL_CLEANUP(quota_freep) struct corral_quota *q = NULL;
    CORRAL_TRY(corral_quota_attach(fd, &q, err));
    uint32_t found = role_of_token(&q->shared->ledger, token);
    if (found == CORRAL_LEDGER_NONE) {
        return corral_fail(err, CORRAL_INVALID, "memory ledger: the token is no role's of this ledger");
    }
    *role = found;
    *out = CORRAL_STEAL(q);
    return CORRAL_OK;
}

void corral_quota_detach(struct corral_quota *q)
{
    if (!q) {
        return;
    }
    if (corral_quota_is_attached(q) && corral_quota_lock_patiently(q)) {
        uint64_t devices = 0;
        for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
            if (corral_quota_is_ours(q, i) && !q->borrowed[i]) {
                devices |= UINT64_C(1) << q->shared->ledger.holder[i].device;
                corral_ledger_leave(&q->shared->ledger, i);
            }
        }
        corral_quota_unlock(q);
        for (uint32_t d = 0; devices != 0 && d < CORRAL_LEDGER_DEVICES_MAX; d++) {
            if ((devices >> d & 1) != 0 && corral_quota_lock_patiently(q)) {
                corral_quota_unlock_released(q, d);
            }
        }
    }
    quota_free(q);
}

void corral_quota_token(const struct corral_quota *q, uint32_t role, char out[33])
{
    out[0] = '\0';
    for (size_t i = 0; role < CORRAL_LEDGER_ROLES_MAX && i < TOKEN_BYTES; i++) {
        snprintf(out + 2 * i, 3, "%02x", q->shared->ledger.role_token[role][i]);
    }
}

const struct corral_ledger *corral_quota_ledger(const struct corral_quota *q)
{
    return &q->shared->ledger;
}

/* ---- joining ---- */

enum corral_status corral_quota_join_index(struct corral_quota *q, uint32_t device, uint32_t role,
                                           uint32_t *holder, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    struct corral_ledger *l = &q->shared->ledger;
    uint64_t start_time = corral_process_start_time(q->pid);
    uint32_t slot;
    CORRAL_TRY(corral_quota_lock(q, err));
    enum corral_status status = corral_ledger_join(l, device, role, q->pid, start_time, &slot, err);
    if (status == CORRAL_NOMEM) { /* slots of the dead may be among them */
        corral_quota_unlock(q);
        corral_quota_reap(q);
        CORRAL_TRY(corral_quota_lock(q, err));
        status = corral_ledger_join(l, device, role, q->pid, start_time, &slot, err);
    }
    if (status == CORRAL_OK) {
        q->joined[slot] = l->holder[slot].generation;
        q->borrowed[slot] = false;
        *holder = slot;
    }
    corral_quota_unlock(q);
    return status;
}

enum corral_status corral_quota_borrow_holder(struct corral_quota *q, uint32_t device, uint32_t role,
                                              uint32_t *holder, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    const struct corral_ledger *l = &q->shared->ledger;
    CORRAL_TRY(corral_quota_lock(q, err));
    uint32_t found = CORRAL_LEDGER_NONE;
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX && found == CORRAL_LEDGER_NONE; i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        bool theirs = !corral_quota_is_ours(q, i) || q->borrowed[i];
        if (h->pid == (int32_t)q->pid && !h->left && h->device == device && h->role == role && theirs) {
            found = i;
            q->joined[i] = h->generation;
            q->borrowed[i] = true;
        }
    }
    corral_quota_unlock(q);
    if (found == CORRAL_LEDGER_NONE) {
        return corral_fail(err, CORRAL_NOT_FOUND,
                           "memory ledger: nothing in this process holds memory there yet");
    }
    *holder = found;
    return CORRAL_OK;
}

enum corral_status corral_quota_join(struct corral_quota *q, const char *device, const char *role,
                                     uint32_t *holder, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    const struct corral_ledger *l = &q->shared->ledger;
    uint32_t d = corral_ledger_find_device(l, device); /* names do not change after creation */
    if (d == UINT32_MAX) {
        return corral_fail(err, CORRAL_NOT_FOUND, "memory ledger: no device \"%s\"", device);
    }
    uint32_t r = corral_ledger_find_role(l, role);
    if (r == UINT32_MAX) {
        return corral_fail(err, CORRAL_NOT_FOUND, "memory ledger: no role \"%s\"", role);
    }
    return corral_quota_join_index(q, d, r, holder, err);
}

uint32_t corral_quota_repairs(const struct corral_quota *q)
{
    return atomic_load_explicit(&q->shared->repairs, memory_order_relaxed);
}
