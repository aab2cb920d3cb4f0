#include "transport/weights/api/buffers.h"
#include "base/clock.h"
#include "base/sync.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define NONE UINT32_MAX

enum state { FREE, SHADOW, READY, CURRENT };

struct buffer {
    int fd;
    void *memory;
    enum state state; /* under `change` */
    uint64_t version; /* of a ready or current one: written before it is current, not changed while it is */
    struct corral_digest digest;
    _Atomic uint32_t held; /* by readers */
};

struct corral_buffers {
    struct corral_buffers_options o;
    struct buffer buffer[CORRAL_BUFFERS_MAX];
    pthread_mutex_t change;      /* of states; never held while waiting */
    _Atomic uint32_t current;    /* index, or NONE: readers' way in */
    _Atomic uint64_t version;    /* current */
    _Atomic uint64_t newest;     /* committed */
    struct corral_digest digest; /* of newest, under `change` */
    _Atomic uint32_t events;     /* futex word: something that somebody may wait for has happened */
    _Atomic uint32_t waiters;
    atomic_bool closed;
    uint64_t flip_ns, flip_ns_max; /* under `change` */
};

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static uint64_t deadline_after(uint64_t timeout_ns)
{
    uint64_t deadline;
    return __builtin_add_overflow(now_ns(), timeout_ns, &deadline) ? UINT64_MAX : deadline;
}

/* ---- waiting ---- */

/* seq_cst throughout: who waits announces itself and then looks; who changes something changes it and then looks for waiters. One of the two sees the other. */
static void tell(struct corral_buffers *b)
{
    atomic_fetch_add_explicit(&b->events, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&b->waiters, memory_order_seq_cst) > 0) {
        corral_futex_wake_all(&b->events);
    }
}

typedef bool (*condition_fn)(struct corral_buffers *b, void *ctx);

/* Until the condition holds; false when the deadline has passed or the buffers are closed. */
static bool wait_until(struct corral_buffers *b, condition_fn condition, void *ctx, uint64_t deadline_ns)
{
    bool holds = condition(b, ctx);
    if (holds) {
        return true;
    }
    atomic_fetch_add_explicit(&b->waiters, 1, memory_order_seq_cst);
    for (bool in_time = true; in_time && !holds;) {
        uint32_t seen = atomic_load_explicit(&b->events, memory_order_seq_cst);
        holds = condition(b, ctx);
        in_time = !atomic_load_explicit(&b->closed, memory_order_acquire) &&
                  (holds || corral_futex_wait(&b->events, seen, deadline_ns));
    }
    atomic_fetch_sub_explicit(&b->waiters, 1, memory_order_relaxed);
    return holds || condition(b, ctx);
}

/* ---- memory ---- */

static enum corral_status make_memory(struct buffer *u, uint64_t bytes, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = memfd_create("corral-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "making memory for a weight version");
    }
    int code = posix_fallocate(fd, 0, (off_t)bytes); /* now, so that no later write can find none */
    if (code != 0) {
        return corral_fail_sys(err, code, "taking %" PRIu64 " bytes for a weight version", bytes);
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return corral_fail_sys(err, errno, "sealing memory of weights");
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        return corral_fail_sys(err, errno, "mapping %" PRIu64 " bytes for a weight version", bytes);
    }
    u->memory = memory;
    u->fd = fd;
    fd = -1;
    return CORRAL_OK;
}

static void drop_memory(struct buffer *u, uint64_t bytes)
{
    if (u->memory) {
        munmap(u->memory, bytes);
        close(u->fd);
    }
    u->memory = NULL;
    u->fd = -1;
}

enum corral_status corral_buffers_create(struct corral_buffers **out,
                                         const struct corral_buffers_options *options,
                                         struct corral_error *err)
{
    CORRAL_CLEANUP(corral_buffers_destroyp) struct corral_buffers *b = calloc(1, sizeof *b);
    if (!b) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for weight buffers");
    }
    b->o = *options;
    b->o.bytes = CORRAL_MAX(options->bytes, 1u);
    pthread_mutex_init(&b->change, NULL);
    atomic_init(&b->current, NONE);
    for (uint32_t i = 0; i < b->o.count; i++) {
        CORRAL_TRY(make_memory(&b->buffer[i], b->o.bytes, err));
    }
    *out = CORRAL_STEAL(b);
    return CORRAL_OK;
}

void corral_buffers_close(struct corral_buffers *b)
{
    atomic_store_explicit(&b->closed, true, memory_order_release);
    tell(b);
}

void corral_buffers_destroy(struct corral_buffers *b)
{
    if (!b) {
        return;
    }
    for (uint32_t i = 0; i < b->o.count; i++) {
        drop_memory(&b->buffer[i], b->o.bytes);
    }
    pthread_mutex_destroy(&b->change);
    free(b);
}

/* ---- readers ---- */

uint64_t corral_buffers_version(const struct corral_buffers *b)
{
    return atomic_load_explicit(&b->version, memory_order_acquire);
}

uint64_t corral_buffers_ready(const struct corral_buffers *b)
{
    return atomic_load_explicit(&b->newest, memory_order_acquire);
}

/* Holding a buffer and then seeing that it is current means that begin, which looks for holders after it saw that it was not current, has not taken it: both are seq_cst. */
enum corral_status corral_buffers_acquire(struct corral_buffers *b, struct corral_weights_view *view,
                                          struct corral_error *err)
{
    if (b->o.live) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "the weights are in the engine's own memory");
    }
    for (;;) {
        uint32_t i = atomic_load_explicit(&b->current, memory_order_seq_cst);
        if (i == NONE) {
            return corral_fail(err, CORRAL_AGAIN, "there is no version yet");
        }
        atomic_fetch_add_explicit(&b->buffer[i].held, 1, memory_order_seq_cst);
        if (atomic_load_explicit(&b->current, memory_order_seq_cst) == i) {
            view->buffer = i;
            view->version = b->buffer[i].version;
            view->bytes = b->o.bytes;
            view->base = b->buffer[i].memory;
            return CORRAL_OK;
        }
        corral_buffers_release(b, i);
    }
}

void corral_buffers_release(struct corral_buffers *b, uint32_t buffer)
{
    atomic_fetch_sub_explicit(&b->buffer[buffer].held, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&b->waiters, memory_order_seq_cst) > 0) {
        tell(b);
    }
}

struct wanted {
    uint64_t version;
};

static bool is_ready(struct corral_buffers *b, void *ctx)
{
    return corral_buffers_ready(b) >= ((struct wanted *)ctx)->version;
}

enum corral_status corral_buffers_wait(struct corral_buffers *b, uint64_t version, uint64_t timeout_ns,
                                       uint64_t *ready, struct corral_error *err)
{
    struct wanted w = {CORRAL_MAX(version, 1u)};
    if (!wait_until(b, is_ready, &w, deadline_after(timeout_ns))) {
        return corral_fail(err, CORRAL_TIMEOUT,
                           "version %" PRIu64 " of the weights is not here; the newest is %" PRIu64, version,
                           corral_buffers_ready(b));
    }
    if (ready) {
        *ready = corral_buffers_ready(b);
    }
    return CORRAL_OK;
}

/* ---- the flip ---- */

/* Under `change`. Buffers that were ready with older versions are free again. */
static enum corral_status make_current(struct corral_buffers *b, uint32_t index, struct corral_error *err)
{
    uint64_t started = now_ns();
    struct buffer *u = &b->buffer[index];
    if (b->o.live) {
        CORRAL_TRY(corral_memory_fill(b->o.live, u->memory, err));
    }
    for (uint32_t i = 0; i < b->o.count; i++) {
        struct buffer *other = &b->buffer[i];
        bool over = other->state == CURRENT || (other->state == READY && other->version < u->version);
        other->state = over ? FREE : other->state;
    }
    u->state = b->o.live ? FREE : CURRENT;
    atomic_store_explicit(&b->current, index, memory_order_seq_cst);
    atomic_store_explicit(&b->version, u->version, memory_order_release);
    b->flip_ns = now_ns() - started;
    b->flip_ns_max = CORRAL_MAX(b->flip_ns_max, b->flip_ns);
    return CORRAL_OK;
}

static uint32_t find_ready(const struct corral_buffers *b, uint64_t version)
{
    for (uint32_t i = 0; i < b->o.count; i++) {
        if (b->buffer[i].state == READY && b->buffer[i].version == version) {
            return i;
        }
    }
    return NONE;
}

enum corral_status corral_buffers_flip(struct corral_buffers *b, uint64_t version, uint64_t timeout_ns,
                                       uint64_t *pause_ns, struct corral_error *err)
{
    struct wanted w = {version};
    if (!wait_until(b, is_ready, &w, deadline_after(timeout_ns))) {
        return corral_fail(err, CORRAL_TIMEOUT,
                           "version %" PRIu64 " of the weights is not here; the newest is %" PRIu64, version,
                           corral_buffers_ready(b));
    }
    uint64_t started = now_ns();
    pthread_mutex_lock(&b->change);
    uint64_t current = corral_buffers_version(b);
    version = version == 0 ? corral_buffers_ready(b) : version;
    uint32_t index = find_ready(b, version);
    enum corral_status status = CORRAL_OK;
    if (version != current) {
        status =
            version < current
                ? corral_fail(err, CORRAL_INVALID,
                              "version %" PRIu64 " of the weights is current, not %" PRIu64, current, version)
            : index == NONE ? corral_fail(err, CORRAL_INVALID,
                                          "version %" PRIu64 " of the weights never came here", version)
                            : make_current(b, index, err);
    }
    pthread_mutex_unlock(&b->change);
    if (status == CORRAL_OK) {
        tell(b);
        if (pause_ns) {
            *pause_ns = now_ns() - started;
        }
    }
    return status;
}

void corral_buffers_times(struct corral_buffers *b, uint64_t *flip_ns, uint64_t *flip_ns_max)
{
    pthread_mutex_lock(&b->change);
    *flip_ns = b->flip_ns;
    *flip_ns_max = b->flip_ns_max;
    pthread_mutex_unlock(&b->change);
}

/* ---- the push target ---- */

static void target_current(void *ctx, uint64_t *version, struct corral_digest *digest)
{
    struct corral_buffers *b = ctx;
    pthread_mutex_lock(&b->change);
    *version = corral_buffers_ready(b);
    *digest = b->digest;
    pthread_mutex_unlock(&b->change);
}

/* Takes a free buffer that nobody holds. *ctx is a uint32_t for its index. */
static bool take_shadow(struct corral_buffers *b, void *ctx)
{
    uint32_t *index = ctx;
    pthread_mutex_lock(&b->change);
    for (uint32_t i = 0; i < b->o.count && *index == NONE; i++) {
        struct buffer *u = &b->buffer[i];
        if (u->state == FREE && atomic_load_explicit(&u->held, memory_order_seq_cst) == 0) {
            u->state = SHADOW;
            *index = i;
        }
    }
    pthread_mutex_unlock(&b->change);
    return *index != NONE;
}

static uint32_t find_shadow(const struct corral_buffers *b)
{
    for (uint32_t i = 0; i < b->o.count; i++) {
        if (b->buffer[i].state == SHADOW) {
            return i;
        }
    }
    return NONE;
}

static enum corral_status target_begin(void *ctx, uint64_t version, uint64_t base,
                                       struct corral_shard *shadow, struct corral_error *err)
{
    struct corral_buffers *b = ctx;
    uint64_t newest = corral_buffers_ready(b);
    uint32_t index = NONE;
    (void)base; /* all of the buffer is written, whichever way */
    if (version == 0 || version < newest) {
        return corral_fail(err, CORRAL_INVALID,
                           "version %" PRIu64 " is below %" PRIu64 ", which is here already", version,
                           newest);
    }
    if (!wait_until(b, take_shadow, &index, deadline_after(b->o.busy_wait_ns))) {
        return corral_fail(err, CORRAL_TIMEOUT,
                           "no buffer for version %" PRIu64
                           ": readers hold it, or an earlier version waits for its flip",
                           version);
    }
    struct buffer *u = &b->buffer[index];
    if (!u->memory) { /* given away to a sender that died; see target_abort */
        enum corral_status status = make_memory(u, b->o.bytes, err);
        if (status != CORRAL_OK) {
            pthread_mutex_lock(&b->change);
            u->state = FREE;
            pthread_mutex_unlock(&b->change);
            return status;
        }
    }
    *shadow = corral_shard_host(u->memory, b->o.bytes);
    shadow->fd = u->fd;
    return CORRAL_OK;
}

static enum corral_status target_commit(void *ctx, uint64_t version, struct corral_digest digest,
                                        struct corral_error *err)
{
    struct corral_buffers *b = ctx;
    enum corral_status status = CORRAL_OK;
    pthread_mutex_lock(&b->change);
    uint32_t index = find_shadow(b);
    uint64_t newest = corral_buffers_ready(b);
    bool news = version > newest;
    if (index == NONE || version < newest) {
        status = corral_fail(err, CORRAL_STATE, "version %" PRIu64 " was not begun", version);
    } else if (!news) {
        b->buffer[index].state = FREE;
        status = corral_digest_equal(digest, b->digest)
                     ? CORRAL_OK
                     : corral_fail(err, CORRAL_INVALID,
                                   "version %" PRIu64 " is here already with other bytes", version);
    } else {
        b->buffer[index].state = READY;
        b->buffer[index].version = version;
        b->buffer[index].digest = digest;
        status = b->o.auto_flip ? make_current(b, index, err) : CORRAL_OK;
    }
    if (status == CORRAL_OK && news) {
        b->digest = digest;
        atomic_store_explicit(&b->newest, version, memory_order_release);
    }
    pthread_mutex_unlock(&b->change);
    if (status == CORRAL_OK && news) {
        tell(b);
        if (b->o.ready) {
            b->o.ready(b->o.ready_ctx, version);
        }
    }
    return status;
}

static void target_abort(void *ctx, uint64_t version, int32_t tainted_pid)
{
    (void)version;
    struct corral_buffers *b = ctx;
    pthread_mutex_lock(&b->change);
    uint32_t index = find_shadow(b);
    if (index != NONE) {
        if (tainted_pid != 0) { /* its mapping stays with that process; the next version gets new memory */
            drop_memory(&b->buffer[index], b->o.bytes);
        }
        b->buffer[index].state = FREE;
        b->buffer[index].version = 0; /* a mix */
    }
    pthread_mutex_unlock(&b->change);
}

/* The newest version, held like a reader's: it is not given to another while it is read. */
static enum corral_status source_open(void *ctx, struct corral_push_source *out, struct corral_error *err)
{
    struct corral_buffers *b = ctx;
    enum corral_status status = corral_fail(err, CORRAL_AGAIN, "there is no version yet");
    pthread_mutex_lock(&b->change);
    for (uint32_t i = 0; i < b->o.count && status != CORRAL_OK; i++) {
        struct buffer *u = &b->buffer[i];
        if ((u->state == READY || u->state == CURRENT) && u->version == corral_buffers_ready(b)) {
            atomic_fetch_add_explicit(&u->held, 1, memory_order_seq_cst);
            *out = (struct corral_push_source){.shard = corral_shard_host(u->memory, b->o.bytes),
                                               .version = u->version,
                                               .digest = u->digest,
                                               .pin = {i}};
            status = CORRAL_OK;
        }
    }
    /* With memory of the engine's own there is one buffer, which still has what was flipped to. It is not held: the next version goes into the same memory, as a delta on itself. */
    const struct buffer *only = &b->buffer[0];
    if (status != CORRAL_OK && b->o.live && only->state == FREE && only->version != 0 &&
        only->version == corral_buffers_ready(b)) {
        *out = (struct corral_push_source){.shard = corral_shard_host(only->memory, b->o.bytes),
                                           .version = only->version,
                                           .digest = only->digest,
                                           .pin = {NONE}};
        status = CORRAL_OK;
    }
    pthread_mutex_unlock(&b->change);
    return status;
}

static bool source_intact(void *ctx, const struct corral_push_source *source)
{
    struct corral_buffers *b = ctx;
    if (source->pin[0] != NONE) {
        return true;
    }
    pthread_mutex_lock(&b->change);
    bool intact = b->buffer[0].state != SHADOW && b->buffer[0].version == source->version;
    pthread_mutex_unlock(&b->change);
    return intact;
}

static void source_close(void *ctx, struct corral_push_source *source)
{
    if (source->pin[0] != NONE) {
        corral_buffers_release(ctx, (uint32_t)source->pin[0]);
    }
}

const struct corral_push_target_ops corral_buffers_target = {.current = target_current,
                                                             .begin = target_begin,
                                                             .commit = target_commit,
                                                             .abort = target_abort,
                                                             .source_open = source_open,
                                                             .source_intact = source_intact,
                                                             .source_close = source_close};
