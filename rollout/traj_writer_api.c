/* The public writer of trajectories: <corral/rollout.h>, on transport/trajectory/sender.h. */
#include "base/clock.h"
#include "transport/trajectory/sender.h"
#include "worker/record_share.h"
#include <corral/rollout.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#define WINDOW_BYTES (UINT64_C(64) << 20)
#define IO_THREADS_MAX 16
#define RANKS_MAX CORRAL_SHARE_TRAINERS_MAX
#define WORKERS_MAX 1024
#define POLL_SLICE_MS 100u
#define EPOCH_ZERO 1577836800 /* 2020-01-01 */

struct corral_traj_writer {
    void *zmq;
    struct corral_traj_sender *sender;
    uint32_t ranks, turn, worker;
    struct corral_record_share share;
    uint32_t begun_rank;
    bool begun_in_turn; /* its rank was chosen by turn */
    void *begun;        /* the reserved record; NULL: none */
    uint64_t written;
};

void corral_traj_writer_close(struct corral_traj_writer *w)
{
    if (w == NULL) {
        return;
    }
    corral_traj_sender_destroy(w->sender, 0);
    if (w->zmq != NULL) {
        zmq_ctx_term(w->zmq);
    }
    free(w);
}

CORRAL_DEFINE_CLEANUP(struct corral_traj_writer, corral_traj_writer_close)

/* A program compiled with another release has a shorter or longer struct. */
static enum corral_status read_options(const struct corral_traj_writer_options *options,
                                       struct corral_traj_writer_options *out, struct corral_error *err)
{
    if (options == NULL || options->size < sizeof options->size || options->size > 4096) {
        return corral_fail(
            err, CORRAL_INVALID,
            "corral_traj_writer_open: set options->size to sizeof(struct corral_traj_writer_options)");
    }
    memset(out, 0, sizeof *out);
    memcpy(out, options, CORRAL_MIN(options->size, sizeof *out));
    if (out->endpoints == NULL || out->endpoint_count == 0 || out->endpoint_count > RANKS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "corral_traj_writer_open: %u endpoints, must be 1 to %d",
                           out->endpoints == NULL ? 0 : out->endpoint_count, RANKS_MAX);
    }
    if (out->worker >= WORKERS_MAX || out->io_threads > IO_THREADS_MAX || out->token == NULL) {
        return corral_fail(
            err, CORRAL_INVALID,
            "corral_traj_writer_open: worker %u must be below %d, io_threads %u at most %d, the token set",
            out->worker, WORKERS_MAX, out->io_threads, IO_THREADS_MAX);
    }
    out->window_bytes = out->window_bytes == 0 ? WINDOW_BYTES : out->window_bytes;
    out->io_threads = out->io_threads == 0 ? 1 : out->io_threads;
    if (out->epoch == 0) {
        out->epoch = (uint32_t)(time(NULL) - EPOCH_ZERO);
    }
    return CORRAL_OK;
}

enum corral_status corral_traj_writer_open(struct corral_traj_writer **out,
                                           const struct corral_traj_writer_options *options,
                                           struct corral_error *err)
{
    struct corral_traj_writer_options o;
    CORRAL_TRY(read_options(options, &o, err));
    CORRAL_CLEANUP(corral_traj_writer_closep) struct corral_traj_writer *w = calloc(1, sizeof *w);
    if (w == NULL || (w->zmq = zmq_ctx_new()) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "corral_traj_writer_open: out of memory");
    }
    if (zmq_ctx_set(w->zmq, ZMQ_IO_THREADS, (int)o.io_threads) != 0) {
        return corral_fail_sys(err, zmq_errno(), "corral_traj_writer_open: %u I/O threads", o.io_threads);
    }
    const struct corral_traj_sender_config config = {
        .zmq_context = w->zmq,
        .run = o.run,
        .worker = o.worker,
        .epoch = o.epoch,
        .window_bytes = o.window_bytes,
        .memory = &corral_allocator_heap,
        .token = o.token,
        .server_key = o.server_key,
        /* A ring would take the whole window: the options do not say how it is shared out among ranks. */
        .transport = CORRAL_TRAJ_ZMQ};
    CORRAL_TRY(corral_traj_sender_create(&w->sender, &config, err));
    for (w->ranks = 0; w->ranks < o.endpoint_count; w->ranks++) {
        CORRAL_TRY(corral_traj_sender_connect(w->sender, w->ranks, o.endpoints[w->ranks], err));
    }
    w->worker = o.worker;
    w->share = (struct corral_record_share){.seed = o.run, .live = UINT64_MAX >> (64 - w->ranks)};
    *out = CORRAL_STEAL(w);
    return CORRAL_OK;
}

/* Programs need not number their episodes, so records without a group are not dealt out by number. */
static uint32_t choose_rank(const struct corral_traj_writer *w, const struct corral_traj_record *record)
{
    if (record->group_size == 0) {
        return w->turn % w->ranks;
    }
    return corral_record_rank(
        &w->share, corral_record_key(w->worker, record->group_size, record->group, record->episode));
}

/* The text of the last refusal stays: it says who has no room. */
static enum corral_status timed_out(uint32_t timeout_ms, struct corral_error *err)
{
    if (err != NULL) {
        err->status = CORRAL_TIMEOUT;
        (void)corral_error_prefix(err, CORRAL_TIMEOUT, "no room within %u ms", timeout_ms);
    }
    return CORRAL_TIMEOUT;
}

/* Room at the rank, waiting for it until the deadline. */
static enum corral_status reserve(struct corral_traj_writer *w, uint32_t rank, uint64_t bytes,
                                  uint32_t timeout_ms, void **memory, struct corral_error *err)
{
    const uint64_t start = corral_now_ns(&corral_clock_monotonic),
                   wait_ns = (uint64_t)timeout_ms * CORRAL_NS_PER_MS;
    for (bool last = false;;) {
        const enum corral_status status = corral_traj_sender_reserve(w->sender, rank, bytes, memory, err);
        if (status != CORRAL_AGAIN) {
            return status;
        }
        if (last) {
            return timeout_ms == 0 ? status : timed_out(timeout_ms, err);
        }
        /* What the trainer has said is taken in at least once, without waiting when there is no time. */
        const uint64_t waited = corral_now_ns(&corral_clock_monotonic) - start;
        last = waited >= wait_ns;
        const uint64_t left_ms = last ? 0 : (wait_ns - waited) / CORRAL_NS_PER_MS + 1;
        CORRAL_TRY(corral_traj_sender_poll(w->sender, (uint32_t)CORRAL_MIN(left_ms, POLL_SLICE_MS), err));
    }
}

enum corral_status corral_traj_writer_begin(struct corral_traj_writer *w, uint32_t rank,
                                            const struct corral_traj_record *record, uint32_t timeout_ms,
                                            struct corral_error *err)
{
    uint64_t bytes;
    void *memory;
    w->begun = NULL; /* also when this one fails: commit() never sends an earlier one in its place */
    CORRAL_TRY(corral_traj_record_bytes(record, &bytes, err));
    const bool in_turn = rank == CORRAL_TRAJ_ANY_RANK && record->group_size == 0;
    rank = rank == CORRAL_TRAJ_ANY_RANK ? choose_rank(w, record) : rank;
    if (rank >= w->ranks) {
        return corral_fail(err, CORRAL_INVALID, "trainer rank %u: there are %u", rank, w->ranks);
    }
    CORRAL_TRY(reserve(w, rank, bytes, timeout_ms, &memory, err));
    CORRAL_TRY(corral_traj_record_encode(record, memory, bytes, err));
    w->begun = memory;
    w->begun_rank = rank;
    w->begun_in_turn = in_turn;
    return CORRAL_OK;
}

void *corral_traj_writer_place(struct corral_traj_writer *w, uint32_t i)
{
    return w->begun == NULL ? NULL : corral_traj_record_place(w->begun, i);
}

enum corral_status corral_traj_writer_commit(struct corral_traj_writer *w, uint64_t *sequence,
                                             struct corral_error *err)
{
    uint64_t number;
    if (w->begun == NULL) {
        return corral_fail(err, CORRAL_STATE, "corral_traj_writer_commit: no record was begun");
    }
    CORRAL_TRY(corral_traj_sender_commit(w->sender, w->begun_rank, &number, err));
    w->begun = NULL;
    w->turn += w->begun_in_turn;
    w->written++;
    if (sequence != NULL) {
        *sequence = number;
    }
    return CORRAL_OK;
}

enum corral_status corral_traj_writer_write(struct corral_traj_writer *w, uint32_t rank,
                                            const struct corral_traj_record *record, uint32_t timeout_ms,
                                            uint64_t *sequence, struct corral_error *err)
{
    CORRAL_TRY(corral_traj_writer_begin(w, rank, record, timeout_ms, err));
    for (uint32_t i = 0; i < record->tensor_count; i++) {
        if (record->tensors[i].data == NULL) {
            w->begun = NULL;
            return corral_fail(err, CORRAL_INVALID, "corral_traj_writer_write: tensor `%s` has no data",
                               record->tensors[i].name);
        }
    }
    return corral_traj_writer_commit(w, sequence, err);
}

enum corral_status corral_traj_writer_poll(struct corral_traj_writer *w, uint32_t timeout_ms,
                                           struct corral_error *err)
{
    return corral_traj_sender_poll(w->sender, timeout_ms, err);
}

enum corral_status corral_traj_writer_wait(struct corral_traj_writer *w, uint32_t timeout_ms,
                                           struct corral_error *err)
{
    const uint64_t start = corral_now_ns(&corral_clock_monotonic),
                   wait_ns = (uint64_t)timeout_ms * CORRAL_NS_PER_MS;
    struct corral_traj_sender_stats stats;
    CORRAL_TRY(corral_traj_sender_poll(w->sender, 0, err));
    for (;;) {
        corral_traj_sender_stats(w->sender, &stats);
        if (stats.unacked_bytes == 0) {
            return CORRAL_OK;
        }
        const uint64_t waited = corral_now_ns(&corral_clock_monotonic) - start;
        if (waited >= wait_ns) {
            return corral_fail(err, CORRAL_TIMEOUT,
                               "after %u ms the trainers have acknowledged %llu of %llu records", timeout_ms,
                               (unsigned long long)stats.acked, (unsigned long long)w->written);
        }
        const uint64_t left_ms = (wait_ns - waited) / CORRAL_NS_PER_MS + 1;
        CORRAL_TRY(corral_traj_sender_poll(w->sender, (uint32_t)CORRAL_MIN(left_ms, POLL_SLICE_MS), err));
    }
}

enum corral_status corral_traj_writer_connect(struct corral_traj_writer *w, uint32_t rank,
                                              const char *endpoint, struct corral_error *err)
{
    if (rank >= w->ranks) {
        return corral_fail(err, CORRAL_INVALID, "trainer rank %u: there are %u", rank, w->ranks);
    }
    w->begun = w->begun_rank == rank ? NULL : w->begun;
    return corral_traj_sender_connect(w->sender, rank, endpoint, err);
}

enum corral_status corral_traj_writer_stats(const struct corral_traj_writer *w,
                                            struct corral_traj_writer_stats *out, struct corral_error *err)
{
    struct corral_traj_sender_stats s;
    const size_t size = out->size;
    if (size < sizeof out->size || size > 4096) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_traj_writer_stats: set size to sizeof(struct corral_traj_writer_stats)");
    }
    corral_traj_sender_stats(w->sender, &s);
    const struct corral_traj_writer_stats all = {.size = size,
                                                 .written = w->written,
                                                 .acked = s.acked,
                                                 .resent = s.resent,
                                                 .unacked_bytes = s.unacked_bytes,
                                                 .blocked = s.blocked,
                                                 .blocked_ns = s.blocked_ns};
    memset(out, 0, size);
    memcpy(out, &all, CORRAL_MIN(size, sizeof all));
    return CORRAL_OK;
}
