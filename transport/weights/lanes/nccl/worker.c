#include "transport/weights/lanes/nccl/worker.h"

#include "base/clock.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_NS 50000 /* between two looks at NCCL while it works */

struct nccl_worker {
    struct nccl_worker_options options;
    const struct nccl *nccl;
    const struct corral_cuda *cuda;
    pthread_t thread;
    int event;
    pthread_mutex_t lock; /* guards what follows, up to the thread's own */
    pthread_cond_t changed;
    bool stop, finished, detached;
    bool want_id, have_id, want_join, joined;
    struct nccl_id id;
    int device;
    corral_cuda_context context;
    bool pin;
    struct nccl_memory memory;
    struct corral_error failed; /* status CORRAL_OK: not */
    struct nccl_transfer transfer[CORRAL_LANE_WINDOW_MAX];
    uint64_t posted, done;
    /* The thread's own. */
    nccl_comm comm;
    corral_cuda_stream stream;
    corral_cuda_event moved[CORRAL_LANE_WINDOW_MAX];
    uint64_t launched;
};

static _Atomic uint32_t abandoned;

uint32_t nccl_abandoned(void)
{
    return atomic_load_explicit(&abandoned, memory_order_relaxed); /* a count, nothing hangs on its order */
}

/* ---- the thread ---- */

static bool stopping(struct nccl_worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool stop = w->stop;
    pthread_mutex_unlock(&w->lock);
    return stop;
}

static void tell(struct nccl_worker *w)
{
    pthread_cond_broadcast(&w->changed);
    corral_lane_signal(w->event);
}

static void give_up(struct nccl_worker *w, const struct corral_error *why)
{
    pthread_mutex_lock(&w->lock);
    if (w->failed.status == CORRAL_OK) {
        w->failed = *why;
    }
    tell(w);
    pthread_mutex_unlock(&w->lock);
}

/* Until the communicator is idle, has failed, or the owner has had enough. */
static enum corral_status settle(struct nccl_worker *w, uint64_t deadline, const char *what,
                                 struct corral_error *err)
{
    for (;;) {
        int result = NCCL_IN_PROGRESS, asked = w->nccl->ncclCommGetAsyncError(w->comm, &result);
        if (asked != NCCL_SUCCESS) {
            result = asked;
        }
        if (result == NCCL_SUCCESS) {
            return CORRAL_OK;
        }
        if (result != NCCL_IN_PROGRESS) {
            return nccl_fail(w->nccl, result, w->comm, err, what);
        }
        if (stopping(w) || corral_now_ns(&corral_clock_monotonic) >= deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "%s: the other end does not take part in time", what);
        }
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
}

static enum corral_status make_memory(struct nccl_worker *w, struct nccl_memory *memory,
                                      struct corral_error *err)
{
    const struct corral_cuda *cuda = w->cuda;
    uint64_t bytes = w->options.window * w->options.slot_bytes;
    CORRAL_CUDA_TRY(cuda, cuStreamCreate(&w->stream, CORRAL_CUDA_STREAM_NON_BLOCKING), err,
                    "cannot make a CUDA stream for NCCL");
    for (uint32_t i = 0; i < w->options.window; i++) {
        CORRAL_CUDA_TRY(cuda, cuEventCreate(&w->moved[i], CORRAL_CUDA_EVENT_NO_TIMING), err,
                        "cannot make a CUDA event for NCCL");
    }
    CORRAL_CUDA_TRY(cuda, cuMemAlloc(&memory->staging, bytes), err,
                    "cannot allocate staging for weights on CUDA device %d", w->device);
    memory->bytes = bytes;
    if (w->pin) {
        void *pinned = NULL;
        CORRAL_CUDA_TRY(cuda, cuMemHostAlloc(&pinned, bytes, CORRAL_CUDA_HOST_PORTABLE), err,
                        "cannot pin host memory for weights");
        memory->pinned = pinned;
        memory->bytes += bytes;
    }
    return CORRAL_OK;
}

static enum corral_status make_comm(struct nccl_worker *w, struct corral_error *err)
{
    struct nccl_config config = {.size = sizeof config,
                                 .magic = NCCL_CONFIG_MAGIC,
                                 .version = NCCL_CONFIG_VERSION,
                                 .blocking = 0,
                                 .unset = NCCL_UNSET};
    nccl_comm comm = NULL;
    int result = w->nccl->ncclCommInitRankConfig(&comm, 2, w->id, w->options.rank, &config);
    w->comm = comm;
    if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS) {
        return nccl_fail(w->nccl, result, NULL, err, "cannot make a communicator");
    }
    return settle(w, corral_lane_deadline(w->options.open_timeout_ns), "cannot make a communicator", err);
}

static void join(struct nccl_worker *w)
{
    struct corral_error err = {0};
    struct nccl_memory memory = {0};
    enum corral_status status = make_memory(w, &memory, &err);
    if (status == CORRAL_OK) {
        status = make_comm(w, &err);
    }
    pthread_mutex_lock(&w->lock);
    w->memory = memory;
    w->joined = true;
    if (status != CORRAL_OK && w->failed.status == CORRAL_OK) {
        w->failed = err;
    }
    tell(w);
    pthread_mutex_unlock(&w->lock);
}

static void make_id(struct nccl_worker *w)
{
    struct nccl_id id;
    struct corral_error err = {0};
    int result = w->nccl->ncclGetUniqueId(&id);
    if (result != NCCL_SUCCESS) {
        nccl_fail(w->nccl, result, NULL, &err, "cannot make the id of a communicator");
        give_up(w, &err);
        return;
    }
    pthread_mutex_lock(&w->lock);
    w->id = id;
    w->have_id = true;
    tell(w);
    pthread_mutex_unlock(&w->lock);
}

static enum corral_status launch(struct nccl_worker *w, const struct nccl_transfer *t,
                                 struct corral_error *err)
{
    const struct nccl *n = w->nccl;
    if (t->after != NULL) {
        CORRAL_CUDA_TRY(w->cuda, cuStreamWaitEvent(w->stream, t->after, 0), err,
                        "cannot order NCCL after packing");
    }
    int result = n->ncclGroupStart();
    if (result == NCCL_SUCCESS) {
        int moved = w->options.rank == 0 ? n->ncclRecv((void *)(uintptr_t)t->address, t->bytes,
                                                       NCCL_TYPE_INT8, 1, w->comm, w->stream)
                                         : n->ncclSend((const void *)(uintptr_t)t->address, t->bytes,
                                                       NCCL_TYPE_INT8, 0, w->comm, w->stream);
        result = n->ncclGroupEnd();
        result = moved != NCCL_SUCCESS && moved != NCCL_IN_PROGRESS ? moved : result;
    }
    if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS) {
        return nccl_fail(n, result, w->comm, err, "cannot move a bucket");
    }
    CORRAL_TRY(settle(w, UINT64_MAX, "cannot move a bucket", err));
    CORRAL_CUDA_TRY(w->cuda, cuEventRecord(w->moved[w->launched % w->options.window], w->stream), err,
                    "cannot record a CUDA event");
    w->launched++;
    return CORRAL_OK;
}

/* Whether the oldest launched transfer is done; a communicator that has failed meanwhile is an error. */
static enum corral_status look(struct nccl_worker *w, uint64_t done, bool *is_done, struct corral_error *err)
{
    int result = w->cuda->cuEventQuery(w->moved[done % w->options.window]);
    *is_done = result == CORRAL_CUDA_SUCCESS;
    if (*is_done) {
        return CORRAL_OK;
    }
    if (result != CORRAL_CUDA_NOT_READY) {
        return corral_cuda_fail(w->cuda, result, err, "cannot move a bucket by NCCL");
    }
    int asked = NCCL_SUCCESS, answer = w->nccl->ncclCommGetAsyncError(w->comm, &asked);
    asked = answer != NCCL_SUCCESS ? answer : asked;
    return asked == NCCL_SUCCESS || asked == NCCL_IN_PROGRESS
               ? CORRAL_OK
               : nccl_fail(w->nccl, asked, w->comm, err, "the other end of the lane has failed");
}

/* One turn over the transfers. Takes and leaves the lock held. */
static void work(struct nccl_worker *w)
{
    uint64_t done = w->done;
    bool more = w->launched < w->posted;
    struct nccl_transfer t = w->transfer[w->launched % w->options.window];
    pthread_mutex_unlock(&w->lock);
    struct corral_error err = {0};
    enum corral_status status = CORRAL_OK;
    bool is_done = false;
    if (more) {
        status = launch(w, &t, &err);
    }
    if (status == CORRAL_OK && done < w->launched) {
        status = look(w, done, &is_done, &err);
    }
    if (status != CORRAL_OK) {
        give_up(w, &err);
    }
    pthread_mutex_lock(&w->lock);
    if (is_done) {
        w->done++;
        tell(w);
    }
}

static void wait_a_moment(struct nccl_worker *w)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += POLL_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&w->changed, &w->lock, &until);
}

static void serve(struct nccl_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        bool failed = w->failed.status != CORRAL_OK;
        if (failed || w->posted == w->done) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        uint64_t done = w->done;
        work(w);
        if (!w->stop && w->done == done && w->posted == w->launched) {
            wait_a_moment(w);
        }
    }
    pthread_mutex_unlock(&w->lock);
}

static void await_join(struct nccl_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->stop && !w->want_join) {
        if (w->want_id && !w->have_id && w->failed.status == CORRAL_OK) {
            pthread_mutex_unlock(&w->lock);
            make_id(w);
            pthread_mutex_lock(&w->lock);
        } else {
            pthread_cond_wait(&w->changed, &w->lock);
        }
    }
    pthread_mutex_unlock(&w->lock);
}

static void drop_memory(struct nccl_worker *w)
{
    for (uint32_t i = 0; i < w->options.window; i++) {
        if (w->moved[i] != NULL) {
            w->cuda->cuEventDestroy(w->moved[i]);
        }
    }
    if (w->memory.staging != 0) {
        w->cuda->cuMemFree(w->memory.staging);
    }
    if (w->memory.pinned != NULL) {
        w->cuda->cuMemFreeHost(w->memory.pinned);
    }
    if (w->stream != NULL) {
        w->cuda->cuStreamDestroy(w->stream);
    }
}

static void in_context(struct nccl_worker *w)
{
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    struct corral_error err = {0};
    if (corral_cuda_enter(&scope, w->cuda, w->context, &err) != CORRAL_OK) {
        give_up(w, &err);
        serve(w);
        return;
    }
    join(w);
    serve(w);
    if (w->comm != NULL) {
        w->nccl->ncclCommAbort(w->comm); /* local: needs no other end, and may be what hangs */
    }
    drop_memory(w);
}

static void destroy(struct nccl_worker *w)
{
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    close(w->event);
    free(w);
}

static void *run(void *arg)
{
    struct nccl_worker *w = arg;
    await_join(w);
    if (!stopping(w)) {
        in_context(w);
    }
    pthread_mutex_lock(&w->lock);
    w->finished = true;
    bool mine = w->detached;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (mine) {
        destroy(w);
        atomic_fetch_sub_explicit(&abandoned, 1, memory_order_relaxed);
    }
    return NULL;
}

/* ---- the owner ---- */

enum corral_status nccl_worker_start(struct nccl_worker **out, const struct nccl_worker_options *options,
                                     struct corral_error *err)
{
    const struct nccl *nccl = NULL;
    const struct corral_cuda *cuda = NULL;
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    CORRAL_TRY(nccl_open(&nccl, err));
    int event = -1;
    CORRAL_TRY(corral_lane_event(&event, err));
    struct nccl_worker *w = calloc(1, sizeof *w);
    if (w == NULL) {
        close(event);
        return corral_fail(err, CORRAL_NOMEM, "no memory for a lane");
    }
    *w = (struct nccl_worker){
        .options = *options, .nccl = nccl, .cuda = cuda, .event = event, .want_id = options->rank == 0};
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    struct corral_lane_thread thread = {0};
    enum corral_status status = corral_lane_start(&thread, run, w, err);
    if (status != CORRAL_OK) {
        destroy(w);
        return status;
    }
    w->thread = (pthread_t)thread.id;
    *out = w;
    return CORRAL_OK;
}

static bool wait_until(struct nccl_worker *w, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / CORRAL_NS_PER_S),
                             .tv_nsec = (long)(deadline_ns % CORRAL_NS_PER_S)};
    return pthread_cond_timedwait(&w->changed, &w->lock, &until) != ETIMEDOUT;
}

enum corral_status nccl_worker_id(struct nccl_worker *w, struct nccl_id *id, struct corral_error *err)
{
    uint64_t deadline = corral_lane_deadline(w->options.open_timeout_ns);
    pthread_mutex_lock(&w->lock);
    while (!w->have_id && w->failed.status == CORRAL_OK && wait_until(w, deadline)) {
    }
    struct corral_error failed = w->failed;
    bool have = w->have_id;
    *id = w->id;
    pthread_mutex_unlock(&w->lock);
    if (failed.status != CORRAL_OK) {
        return corral_fail(err, failed.status, "%s", failed.text);
    }
    return have ? CORRAL_OK : corral_fail(err, CORRAL_TIMEOUT, "NCCL has not made an id in time");
}

void nccl_worker_join(struct nccl_worker *w, const struct nccl_id *id, int device,
                      corral_cuda_context context, bool pin)
{
    pthread_mutex_lock(&w->lock);
    w->id = *id;
    w->device = device;
    w->context = context;
    w->pin = pin;
    w->want_join = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

enum corral_status nccl_worker_ready(struct nccl_worker *w, struct nccl_memory *memory,
                                     struct corral_error *err)
{
    pthread_mutex_lock(&w->lock);
    struct corral_error failed = w->failed;
    bool joined = w->joined;
    *memory = w->memory;
    pthread_mutex_unlock(&w->lock);
    if (failed.status != CORRAL_OK) {
        return corral_fail(err, failed.status, "%s", failed.text);
    }
    return joined ? CORRAL_OK : CORRAL_AGAIN;
}

void nccl_worker_post(struct nccl_worker *w, const struct nccl_transfer *transfer)
{
    pthread_mutex_lock(&w->lock);
    w->transfer[w->posted % w->options.window] = *transfer;
    w->posted++;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

enum corral_status nccl_worker_done(struct nccl_worker *w, uint64_t *done, struct corral_error *err)
{
    corral_lane_drain(w->event);
    pthread_mutex_lock(&w->lock);
    struct corral_error failed = w->failed;
    *done = w->done;
    pthread_mutex_unlock(&w->lock);
    return failed.status == CORRAL_OK ? CORRAL_OK : corral_fail(err, failed.status, "%s", failed.text);
}

int nccl_worker_fd(const struct nccl_worker *w)
{
    return w->event;
}

bool nccl_worker_stop(struct nccl_worker *w)
{
    if (w == NULL) {
        return false;
    }
    uint64_t deadline = corral_lane_deadline(w->options.stop_timeout_ns);
    pthread_t thread = w->thread;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->changed);
    while (!w->finished && wait_until(w, deadline)) {
    }
    bool finished = w->finished;
    if (!finished) {
        w->detached = true;
        atomic_fetch_add_explicit(&abandoned, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&w->lock);
    if (!finished) {
        pthread_detach(thread);
        return true;
    }
    pthread_join(thread, NULL);
    destroy(w);
    return false;
}
