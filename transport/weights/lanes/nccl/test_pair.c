#include "transport/weights/lanes/nccl/test_pair.h"

#include "base/clock.h"
#include "transport/weights/lanes/nccl/worker.h"
#include "transport/weights/link/shard_cuda.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PADDING 16
#define UNTOUCHED 0xA5

struct end {
    const struct pair_options *o;
    const struct corral_lane_ops *ops;
    bool receiver;
    int peer; /* to the other child */
    struct corral_layout *from, *to;
    struct corral_reshard_plan *plan;
    struct corral_link *link;
    uint64_t source_bytes, destination_bytes;
    uint8_t *source, *expected, *seen; /* on the host */
    void *memory;                      /* PAIR_HOST */
    uint64_t address;                  /* on the device */
    struct corral_shard shard;
    struct corral_lane *lane;
    struct pair_result result;
};

static uint64_t now(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

/* ---- the two sides' model ---- */

static enum corral_status make_link(struct end *e, struct corral_error *err)
{
    const struct pair_options *o = e->o;
    uint32_t t;
    uint64_t dims[2] = {o->rows, o->columns};
    uint64_t stride[2] = {o->count == o->columns ? o->columns : o->count + PADDING, 1};
    struct corral_box box = {.first = {0, o->first}, .count = {o->rows, o->count}};
    CORRAL_TRY(corral_layout_create(&e->from, 1, err));
    CORRAL_TRY(corral_layout_add_tensor(e->from, "w", CORRAL_DTYPE_U8, 2, dims, &t, err));
    CORRAL_TRY(corral_layout_add_whole(e->from, t, 0, 0, err));
    CORRAL_TRY(corral_layout_create(&e->to, 1, err));
    CORRAL_TRY(corral_layout_add_tensor(e->to, "w", CORRAL_DTYPE_U8, 2, dims, &t, err));
    CORRAL_TRY(corral_layout_add_box(e->to, t, 0, &box, 0, stride, err));
    CORRAL_TRY(corral_reshard_plan_build(e->from, e->to, &e->plan, err));
    CORRAL_TRY(corral_link_create(&e->link, e->plan, 0, 0, o->bucket_bytes, err));
    e->source_bytes = e->from->rank_bytes[0];
    e->destination_bytes = e->to->rank_bytes[0];
    e->source = malloc(e->source_bytes);
    e->expected = malloc(e->destination_bytes);
    e->seen = malloc(e->destination_bytes);
    return e->source != NULL && e->expected != NULL && e->seen != NULL
               ? CORRAL_OK
               : corral_fail(err, CORRAL_NOMEM, "no memory for the test's buffers");
}

/* Both children make the same bytes of a push. */
static void fill(struct end *e, uint64_t push)
{
    uint64_t x = push * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (uint64_t i = 0; i < e->source_bytes; i += sizeof x) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407u;
        memcpy(e->source + i, &x, CORRAL_MIN(e->source_bytes - i, (uint64_t)sizeof x));
    }
    memset(e->expected, UNTOUCHED, e->destination_bytes);
    for (uint32_t i = 0; i < e->plan->copy_count; i++) {
        corral_reshard_copy_run(&e->plan->copy[i], e->source, e->expected);
    }
}

static enum corral_status make_device_memory(struct end *e, enum pair_memory kind, uint64_t bytes,
                                             struct corral_error *err)
{
    const struct corral_cuda *cuda = NULL;
    corral_cuda_context context;
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    CORRAL_TRY(corral_cuda_primary(cuda, 0, &context, err));
    CORRAL_TRY(corral_cuda_enter(&scope, cuda, context, err));
    if (kind == PAIR_MANAGED) {
        int (*managed)(uint64_t *, size_t, unsigned) = (int (*)(uint64_t *, size_t, unsigned))dlsym(
            dlopen("libcuda.so.1", RTLD_NOW), "cuMemAllocManaged");
        int result = managed != NULL ? managed(&e->address, bytes, 1) : 801;
        if (result != CORRAL_CUDA_SUCCESS) {
            return corral_cuda_fail(cuda, result, err, "cannot allocate managed memory");
        }
    } else {
        CORRAL_CUDA_TRY(cuda, cuMemAlloc(&e->address, bytes), err, "cannot allocate device memory");
    }
    return corral_shard_cuda_open(&e->shard, e->address, bytes, 0, NULL, err);
}

static enum corral_status make_shard(struct end *e, struct corral_error *err)
{
    enum pair_memory kind = e->receiver ? e->o->destination : e->o->source;
    uint64_t bytes = e->receiver ? e->destination_bytes : e->source_bytes;
    if (kind != PAIR_HOST) {
        return make_device_memory(e, kind, bytes, err);
    }
    e->memory = malloc(bytes);
    e->shard = corral_shard_host(e->memory, bytes);
    return e->memory != NULL ? CORRAL_OK : corral_fail(err, CORRAL_NOMEM, "no memory for the test's shard");
}

/* Between a host buffer and the shard. */
static enum corral_status copy_shard(struct end *e, uint8_t *host, uint64_t bytes, bool in,
                                     struct corral_error *err)
{
    if (e->memory != NULL) {
        memcpy(in ? e->memory : host, in ? host : e->memory, bytes);
        return CORRAL_OK;
    }
    const struct corral_cuda *cuda = NULL;
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    CORRAL_TRY(corral_cuda_enter(&scope, cuda, corral_shard_cuda_context(&e->shard), err));
    if (in) {
        CORRAL_CUDA_TRY(cuda, cuMemcpyHtoD(e->address, host, bytes), err, "cannot fill device memory");
    } else {
        CORRAL_CUDA_TRY(cuda, cuMemcpyDtoH(host, e->address, bytes), err, "cannot read device memory");
    }
    return CORRAL_OK;
}

/* ---- between the children ---- */

static enum corral_status put(struct end *e, const void *data, size_t bytes, struct corral_error *err)
{
    return send(e->peer, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes
               ? CORRAL_OK
               : corral_fail(err, CORRAL_PEER, "the other process has gone");
}

static enum corral_status get(struct end *e, void *data, size_t bytes, struct corral_error *err)
{
    return recv(e->peer, data, bytes, MSG_WAITALL) == (ssize_t)bytes
               ? CORRAL_OK
               : corral_fail(err, CORRAL_PEER, "the other process has gone");
}

/* ---- the receiver ---- */

static enum corral_status receive_push(struct end *e, uint64_t push, bool last, struct corral_error *err)
{
    struct corral_lane_blob place;
    uint64_t all = e->link->buckets + e->o->resend, have = 0;
    char done = 1;
    memset(e->seen, UNTOUCHED, e->destination_bytes);
    CORRAL_TRY(copy_shard(e, e->seen, e->destination_bytes, true, err));
    CORRAL_TRY(e->ops->rx_begin(e->lane, push, &e->shard, &place, err));
    CORRAL_TRY(put(e, &place, sizeof place, err));
    uint64_t begun = now();
    while (have < all) {
        uint32_t bucket[8], count = 0;
        CORRAL_TRY(e->ops->rx_progress(e->lane, 10 * CORRAL_NS_PER_MS, bucket, 8, &count, err));
        for (uint32_t i = 0; i < count; i++, have++) {
            CORRAL_TRY(e->ops->rx_taken(e->lane, bucket[i], err));
        }
        if (last && e->o->receiver_dies_after != 0 && have >= e->o->receiver_dies_after) {
            raise(SIGKILL);
        }
        if (now() - begun > e->o->deadline_ns) {
            return corral_fail(err, CORRAL_TIMEOUT, "the receiver's deadline: %llu of %llu buckets",
                               (unsigned long long)have, (unsigned long long)all);
        }
    }
    uint64_t took = now() - begun;
    e->result.push_ns = e->result.push_ns == 0 ? took : CORRAL_MIN(e->result.push_ns, took);
    CORRAL_TRY(copy_shard(e, e->seen, e->destination_bytes, false, err));
    fill(e, push);
    if (memcmp(e->seen, e->expected, e->destination_bytes) != 0) {
        return corral_fail(err, CORRAL_INTERNAL, "push %llu brought wrong bytes", (unsigned long long)push);
    }
    CORRAL_TRY(put(e, &done, 1, err));
    return e->ops->rx_end(e->lane, true, err);
}

static enum corral_status receive(struct end *e, struct corral_error *err)
{
    struct corral_lane_blob offer, answer;
    CORRAL_TRY(e->ops->rx_open(&e->lane, e->link, &e->o->options, &offer, err));
    CORRAL_TRY(put(e, &offer, sizeof offer, err));
    CORRAL_TRY(get(e, &answer, sizeof answer, err));
    CORRAL_TRY(e->ops->rx_connect(e->lane, &answer, err));
    for (uint64_t push = 1; push <= e->o->pushes; push++) {
        CORRAL_TRY(receive_push(e, push, push == e->o->pushes, err));
        e->result.pushed++;
    }
    /* Stay until the sender has ended, so that it sees a lane that is there. */
    char ended;
    (void)get(e, &ended, 1, NULL);
    return CORRAL_OK;
}

/* ---- the sender ---- */

static enum corral_status await_done(struct end *e, uint64_t deadline, struct corral_error *err)
{
    char done;
    for (;;) {
        uint64_t left;
        ssize_t n = recv(e->peer, &done, 1, MSG_DONTWAIT);
        if (n == 1) {
            return CORRAL_OK;
        }
        if (n == 0 || errno != EAGAIN) {
            return corral_fail(err, CORRAL_PEER, "the other process has gone");
        }
        CORRAL_TRY(e->ops->tx_progress(e->lane, CORRAL_NS_PER_MS, &left, err));
        (void)corral_lane_poll(e->peer, 1, corral_lane_deadline(CORRAL_NS_PER_MS));
        if (now() > deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "the sender's deadline: the receiver is not done");
        }
    }
}

static enum corral_status send_push(struct end *e, uint64_t push, bool last, struct corral_error *err)
{
    struct corral_lane_blob place;
    uint64_t all = e->link->buckets + e->o->resend, left = 0, deadline = now() + e->o->deadline_ns;
    fill(e, push);
    CORRAL_TRY(copy_shard(e, e->source, e->source_bytes, true, err));
    CORRAL_TRY(get(e, &place, sizeof place, err));
    CORRAL_TRY(e->ops->tx_begin(e->lane, push, &e->shard, &place, err));
    uint64_t begun = now();
    bool dies = last && (e->o->sender_dies_after != 0 || e->o->sender_stops_after != 0);
    for (uint64_t sent = 0; left < all;) {
        enum corral_status status = CORRAL_AGAIN;
        if (sent < all) {
            status = e->ops->tx_send(e->lane, (uint32_t)(sent % e->link->buckets), err);
            sent += status == CORRAL_OK;
        }
        if (status == CORRAL_AGAIN || (dies && status == CORRAL_OK)) { /* dies after so many, exactly */
            status = e->ops->tx_progress(e->lane, status == CORRAL_AGAIN ? CORRAL_NS_PER_MS : 0, &left, err);
        }
        CORRAL_TRY(status);
        if (last && e->o->sender_dies_after != 0 && left >= e->o->sender_dies_after) {
            raise(SIGKILL);
        }
        if (last && e->o->sender_stops_after != 0 && left >= e->o->sender_stops_after) {
            raise(SIGSTOP);
        }
        if (now() > deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "the sender's deadline: %llu of %llu buckets",
                               (unsigned long long)left, (unsigned long long)all);
        }
    }
    CORRAL_TRY(await_done(e, deadline, err));
    uint64_t took = now() - begun;
    e->result.push_ns = e->result.push_ns == 0 ? took : CORRAL_MIN(e->result.push_ns, took);
    return e->ops->tx_end(e->lane, true, err);
}

static enum corral_status send_all(struct end *e, struct corral_error *err)
{
    struct corral_lane_blob offer, answer;
    CORRAL_TRY(get(e, &offer, sizeof offer, err));
    CORRAL_TRY(e->ops->tx_open(&e->lane, e->link, &e->o->options, &offer, &answer, err));
    CORRAL_TRY(put(e, &answer, sizeof answer, err));
    for (uint64_t push = 1; push <= e->o->pushes; push++) {
        CORRAL_TRY(send_push(e, push, push == e->o->pushes, err));
        e->result.pushed++;
    }
    return put(e, "", 1, err);
}

/* ---- a child ---- */

static void close_end(struct end *e)
{
    int32_t tainted = 0;
    uint64_t begun = now();
    if (e->lane != NULL && e->receiver) {
        e->ops->rx_close(e->lane, &tainted);
    } else if (e->lane != NULL) {
        e->ops->tx_close(e->lane);
    }
    e->result.close_ns = now() - begun;
    e->result.tainted = tainted;
    e->result.abandoned = nccl_abandoned();
    corral_shard_cuda_close(&e->shard);
    const struct corral_cuda *cuda = NULL;
    if (e->address != 0 && e->result.abandoned == 0 && tainted == 0 &&
        corral_cuda_open(&cuda, NULL) == CORRAL_OK) {
        cuda->cuDevicePrimaryCtxRelease(0);
    }
    free(e->memory);
    free(e->source);
    free(e->expected);
    free(e->seen);
    corral_link_destroy(e->link);
    corral_reshard_plan_destroy(e->plan);
    corral_layout_destroy(e->from);
    corral_layout_destroy(e->to);
}

static void child(const struct pair_options *o, bool receiver, int peer, int report)
{
    struct corral_error err = {0};
    struct end e = {.o = o, .receiver = receiver, .peer = peer, .ops = corral_lane_named(o->lane)};
    const char *value = receiver ? o->receiver_value : o->sender_value;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* NCCL refuses two ranks on one device unless they look like two hosts. */
    setenv("NCCL_HOSTID", receiver ? "corral-receiver" : "corral-sender", 0);
    if (o->variable != NULL && value != NULL) {
        setenv(o->variable, value, 1);
    }
    enum corral_status status =
        e.ops != NULL ? e.ops->available(&o->options, &err)
                      : corral_fail(&err, CORRAL_NOT_FOUND, "this build has no lane %s", o->lane);
    status = status == CORRAL_OK ? make_link(&e, &err) : status;
    status = status == CORRAL_OK ? make_shard(&e, &err) : status;
    if (status == CORRAL_OK) {
        status = receiver ? receive(&e, &err) : send_all(&e, &err);
    }
    e.result.reported = true;
    e.result.status = status;
    snprintf(e.result.text, sizeof e.result.text, "%.199s", err.text);
    close_end(&e);
    ssize_t n = write(report, &e.result, sizeof e.result);
    _exit(n == (ssize_t)sizeof e.result ? 0 : 1);
}

static pid_t start(const struct pair_options *o, bool receiver, int peer, int other, int *report)
{
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        return -1;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(other);
        close(pipe_fds[0]);
        child(o, receiver, peer, pipe_fds[1]);
    }
    close(pipe_fds[1]);
    *report = pipe_fds[0];
    return pid;
}

static void collect(pid_t pid, int report, struct pair_result *result)
{
    *result = (struct pair_result){0};
    if (read(report, result, sizeof *result) != (ssize_t)sizeof *result) {
        *result = (struct pair_result){0};
        snprintf(result->text, sizeof result->text, "the process died without a report");
    }
    close(report);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

bool pair_run(const struct pair_options *options, struct pair_result *receiver, struct pair_result *sender)
{
    int pair[2], report[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        return false;
    }
    pid_t to = start(options, true, pair[0], pair[1], &report[0]);
    pid_t from = to > 0 ? start(options, false, pair[1], pair[0], &report[1]) : -1;
    close(pair[0]);
    close(pair[1]);
    if (from <= 0) {
        if (to > 0) {
            kill(to, SIGKILL);
            waitpid(to, NULL, 0);
        }
        return false;
    }
    collect(to, report[0], receiver);
    if (options->sender_stops_after != 0) {
        kill(from, SIGKILL);
    }
    collect(from, report[1], sender);
    receiver->is_peer = receiver->tainted == from;
    return true;
}
