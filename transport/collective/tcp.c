/* Ranks on several nodes: a star through rank 0. Each piece of a call goes up from every rank with its description, is added or
 * assembled at rank 0 in rank order, and comes down with the outcome. When rank 0 finds a rank missing or out of step it tells the
 * others which, so that all of them stop at once. */
#include "transport/collective/tcp.h"
#include "base/clock.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAME_MAGIC UINT32_C(0x46435143) /* "CQCF" */
#define PIECE_BYTES_MAX (256 * 1024)     /* so rank 0 needs at most this much per rank */

struct tcp_frame {
    uint32_t magic, generation, piece;
    uint32_t payload_bytes; /* that follow */
    struct corral_call call;
    uint32_t status, culprit; /* down only: enum corral_status and the rank it is about */
};
_Static_assert(sizeof(struct tcp_frame) == 48, "wire");

/* One direction of one connection during one piece. */
struct stream {
    struct tcp_frame frame;
    char *payload;
    size_t payload_bytes; /* expected or to be sent */
    size_t done;          /* of frame and payload together */
};

struct tcp_group {
    struct corral_collective base;
    int fd[CORRAL_COLLECTIVE_RANKS_MAX]; /* rank 0: of every other rank; the others: fd[0] */
    struct stream stream[CORRAL_COLLECTIVE_RANKS_MAX];
    char *
        parts; /* rank 0: PIECE_BYTES_MAX for each other rank, then for the answer; the others: for the answer */
    uint32_t generation, piece, timeout_ms;
    bool broken;
};

typedef void (*add_fn)(void *out, const void *a, const void *b, size_t bytes);

static struct tcp_group *group_of(struct corral_collective *c)
{
    return (struct tcp_group *)c; /* base is the first member */
}

static char *part_of(const struct tcp_group *g, uint32_t rank)
{
    return g->parts + (size_t)(rank - 1) * PIECE_BYTES_MAX;
}

static char *answer_of(const struct tcp_group *g)
{
    return g->base.rank == 0 ? part_of(g, g->base.ranks) : g->parts;
}

static uint64_t deadline_of(const struct tcp_group *g)
{
    return corral_now_ns(&corral_clock_monotonic) + g->timeout_ms * CORRAL_NS_PER_MS;
}

static bool stream_is_done(const struct stream *s)
{
    return s->done == sizeof s->frame + s->payload_bytes;
}

static enum corral_status fail_gone(uint32_t rank, struct corral_error *err)
{
    return corral_fail(err, CORRAL_PEER, "tcp collective: rank %u has gone", rank);
}

static void hang_up(struct tcp_group *g)
{
    g->broken = true;
    for (uint32_t r = 0; r < CORRAL_COLLECTIVE_RANKS_MAX; r++) {
        corral_cleanup_close(&g->fd[r]);
        g->fd[r] = -1;
    }
}

/* Send as much as fits now. */
static enum corral_status push(int fd, uint32_t rank, struct stream *s, struct corral_error *err)
{
    while (!stream_is_done(s)) {
        struct iovec io[2];
        struct msghdr message = {.msg_iov = io};
        if (s->done < sizeof s->frame) {
            io[message.msg_iovlen++] =
                (struct iovec){.iov_base = (char *)&s->frame + s->done, .iov_len = sizeof s->frame - s->done};
        }
        size_t sent = s->done > sizeof s->frame ? s->done - sizeof s->frame : 0;
        if (s->payload_bytes > sent) {
            io[message.msg_iovlen++] =
                (struct iovec){.iov_base = s->payload + sent, .iov_len = s->payload_bytes - sent};
        }
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EAGAIN ? CORRAL_AGAIN : fail_gone(rank, err);
        }
        s->done += (size_t)n;
    }
    return CORRAL_OK;
}

/* What a frame must look like before its payload is read. */
static enum corral_status check_frame(const struct tcp_group *g, uint32_t rank, const struct stream *s,
                                      const struct corral_call *call, struct corral_error *err)
{
    const struct tcp_frame *f = &s->frame;
    if (f->magic != FRAME_MAGIC || f->generation != g->generation) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "tcp collective: rank %u sent something that is not a frame of this group", rank);
    }
    if (f->status != CORRAL_OK && rank == 0) {
        return corral_fail(
            err, f->status <= CORRAL_INTERNAL ? (enum corral_status)f->status : CORRAL_PROTOCOL,
            "collective %s: rank 0 has broken the group off: %s of rank %u", corral_call_name(call->op),
            f->status <= CORRAL_INTERNAL ? corral_status_name((enum corral_status)f->status) : "failure",
            f->culprit);
    }
    if (f->piece != g->piece || !corral_call_equal(&f->call, call)) {
        return corral_call_mismatch(rank, &f->call, g->base.rank, call, err);
    }
    if (f->payload_bytes != s->payload_bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "tcp collective: rank %u sends %u bytes, expected %zu", rank,
                           f->payload_bytes, s->payload_bytes);
    }
    return CORRAL_OK;
}

/* Receive as much as there is. */
static enum corral_status pull(struct tcp_group *g, int fd, uint32_t rank, struct stream *s,
                               const struct corral_call *call, struct corral_error *err)
{
    while (!stream_is_done(s)) {
        bool head = s->done < sizeof s->frame;
        size_t got = head ? s->done : s->done - sizeof s->frame;
        char *to = (head ? (char *)&s->frame : s->payload) + got;
        ssize_t n = recv(fd, to, (head ? sizeof s->frame : s->payload_bytes) - got, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 && errno == EAGAIN ? CORRAL_AGAIN : fail_gone(rank, err);
        }
        s->done += (size_t)n;
        if (head && s->done == sizeof s->frame) {
            CORRAL_TRY(check_frame(g, rank, s, call, err));
        }
    }
    return CORRAL_OK;
}

static struct tcp_frame frame_of(const struct tcp_group *g, const struct corral_call *call,
                                 size_t payload_bytes)
{
    return (struct tcp_frame){.magic = FRAME_MAGIC,
                              .generation = g->generation,
                              .piece = g->piece,
                              .payload_bytes = (uint32_t)payload_bytes,
                              .call = *call};
}

/* Rank 0: tell everyone who is still there why it ends, as far as that goes without waiting. */
static enum corral_status abort_group(struct tcp_group *g, const struct corral_call *call,
                                      enum corral_status status, uint32_t culprit)
{
    g->broken = true;
    for (uint32_t r = 1; r < g->base.ranks; r++) {
        struct stream s = {.frame = frame_of(g, call, 0)};
        s.frame.status = status;
        s.frame.culprit = culprit;
        push(g->fd[r], r, &s, NULL);
    }
    return status;
}

/* Milliseconds to sleep when nothing could be moved at `now`. Calls the progress function when it is due. */
static int wait_ms(struct tcp_group *g, uint64_t now, uint64_t deadline)
{
    uint64_t due = corral_call_progress(&g->base, now);
    return corral_tcp_poll_ms(CORRAL_MIN(deadline, due));
}

/* Rank 0: move every stream on, up or down, until all are done. *culprit is the rank that failed. */
static enum corral_status run_streams(struct tcp_group *g, const struct corral_call *call, bool down,
                                      uint32_t *culprit, struct corral_error *err)
{
    uint64_t deadline = deadline_of(g);
    for (;;) {
        struct pollfd p[CORRAL_COLLECTIVE_RANKS_MAX];
        uint32_t waiting = 0;
        for (uint32_t r = 1; r < g->base.ranks; r++) {
            struct stream *s = &g->stream[r];
            enum corral_status status = down ? push(g->fd[r], r, s, err) : pull(g, g->fd[r], r, s, call, err);
            if (status == CORRAL_AGAIN) {
                *culprit = waiting == 0 ? r : *culprit;
                p[waiting++] = (struct pollfd){.fd = g->fd[r], .events = down ? POLLOUT : POLLIN};
            } else if (status != CORRAL_OK) {
                *culprit = r;
                return status;
            }
        }
        if (waiting == 0) {
            return CORRAL_OK;
        }
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (now >= deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "collective %s: rank %u did not come within %u ms",
                               corral_call_name(call->op), *culprit, g->timeout_ms);
        }
        if (poll(p, waiting, wait_ms(g, now, deadline)) < 0 && errno != EINTR) {
            *culprit = 0;
            return corral_fail_sys(err, errno, "tcp collective: wait for ranks");
        }
    }
}

/* Rank 0: receive every rank's part of up_bytes into part_of(r). */
static enum corral_status collect(struct tcp_group *g, const struct corral_call *call, size_t up_bytes,
                                  struct corral_error *err)
{
    uint32_t culprit = 0;
    for (uint32_t r = 1; r < g->base.ranks; r++) {
        g->stream[r] = (struct stream){.payload = part_of(g, r), .payload_bytes = up_bytes};
    }
    enum corral_status status = run_streams(g, call, false, &culprit, err);
    return status == CORRAL_OK ? status : abort_group(g, call, status, culprit);
}

/* Rank 0: send the answer to every rank. */
static enum corral_status fan_out(struct tcp_group *g, const struct corral_call *call, char *answer,
                                  size_t bytes, struct corral_error *err)
{
    uint32_t culprit = 0;
    for (uint32_t r = 1; r < g->base.ranks; r++) {
        g->stream[r] =
            (struct stream){.frame = frame_of(g, call, bytes), .payload = answer, .payload_bytes = bytes};
    }
    enum corral_status status = run_streams(g, call, true, &culprit, err);
    if (status != CORRAL_OK) {
        hang_up(g); /* some are in the middle of an answer: there is no other way to tell them */
    }
    return status;
}

/* The other ranks: send this rank's part and receive the answer. The answer may come early, when it is a refusal. */
static enum corral_status converse(struct tcp_group *g, struct stream *up, struct stream *down,
                                   const struct corral_call *call, struct corral_error *err)
{
    /* Twice as long as rank 0 waits for any one rank, so that its word on who is missing comes before our own deadline. */
    uint64_t deadline = deadline_of(g) + g->timeout_ms * CORRAL_NS_PER_MS;
    for (;;) {
        enum corral_status sent = push(g->fd[0], 0, up, err);
        enum corral_status got = pull(g, g->fd[0], 0, down, call, err);
        if (got == CORRAL_OK && !stream_is_done(up)) {
            return corral_fail(err, CORRAL_PROTOCOL, "tcp collective: rank 0 answered before it was asked");
        }
        if (got != CORRAL_AGAIN) {
            return got; /* a refusal waiting to be read says more than a failed send */
        }
        if (sent != CORRAL_OK && sent != CORRAL_AGAIN) {
            return fail_gone(0, err);
        }
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (now >= deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "collective %s: rank 0 did not answer within 2 x %u ms",
                               corral_call_name(call->op), g->timeout_ms);
        }
        struct pollfd p = {.fd = g->fd[0], .events = (short)(POLLIN | (sent == CORRAL_AGAIN ? POLLOUT : 0))};
        if (poll(&p, 1, wait_ms(g, now, deadline)) < 0 && errno != EINTR) {
            return corral_fail_sys(err, errno, "tcp collective: wait for rank 0");
        }
    }
}

static enum corral_status talk(struct tcp_group *g, const struct corral_call *call, const void *mine,
                               size_t up_bytes, void *answer, size_t down_bytes, struct corral_error *err)
{
    struct stream up = {.frame = frame_of(g, call, up_bytes),
                        .payload = (char *)(uintptr_t)mine, /* only read: iovec has no const */
                        .payload_bytes = up_bytes};
    struct stream down = {.payload = answer, .payload_bytes = down_bytes};
    enum corral_status status = converse(g, &up, &down, call, err);
    if (status != CORRAL_OK) {
        hang_up(g);
    }
    return status;
}

static enum corral_status begin_piece(struct tcp_group *g, const struct corral_call *call,
                                      struct corral_error *err)
{
    CORRAL_TRY(corral_call_begin(&g->base, call, err));
    if (g->broken) {
        return corral_fail(err, CORRAL_STATE, "collective %s: the group is broken by an earlier failure",
                           corral_call_name(call->op));
    }
    g->piece++;
    return CORRAL_OK;
}

static struct corral_call piece_at(enum corral_call_op op, uint64_t total, uint64_t offset,
                                   uint64_t bytes_max)
{
    uint64_t bytes = CORRAL_MIN(bytes_max, total - offset);
    return (struct corral_call){.op = op, .bytes = (uint32_t)bytes, .total = total, .offset = offset};
}

static enum corral_status sum_piece(struct tcp_group *g, const struct corral_call *call, add_fn add,
                                    char *data, struct corral_error *err)
{
    CORRAL_TRY(begin_piece(g, call, err));
    if (g->base.rank != 0) {
        /* The answer lands where the part was: rank 0 answers only after it has all of it. A refusal has no payload. */
        return talk(g, call, data, call->bytes, data, call->bytes, err);
    }
    CORRAL_TRY(collect(g, call, call->bytes, err));
    for (uint32_t r = 1; r < g->base.ranks; r++) {
        add(data, data, part_of(g, r), call->bytes);
    }
    return fan_out(g, call, data, call->bytes, err);
}

static enum corral_status sum(struct corral_collective *c, enum corral_call_op op, add_fn add, void *data,
                              uint64_t total, struct corral_error *err)
{
    uint64_t offset = 0;
    do {
        struct corral_call call = piece_at(op, total, offset, PIECE_BYTES_MAX);
        CORRAL_TRY(sum_piece(group_of(c), &call, add, (char *)data + offset, err));
        offset += call.bytes;
    } while (offset < total);
    return CORRAL_OK;
}

static enum corral_status tcp_sum_f32(struct corral_collective *c, float *data, uint32_t count,
                                      struct corral_error *err)
{
    return sum(c, CORRAL_CALL_SUM_F32, corral_add_f32, data, (uint64_t)count * sizeof *data, err);
}

static enum corral_status tcp_sum_f64(struct corral_collective *c, double *data, uint32_t count,
                                      struct corral_error *err)
{
    return sum(c, CORRAL_CALL_SUM_F64, corral_add_f64, data, (uint64_t)count * sizeof *data, err);
}

static enum corral_status gather_piece(struct tcp_group *g, const struct corral_call *call, const char *mine,
                                       struct corral_error *err)
{
    size_t n = call->bytes, all = n * g->base.ranks;
    char *answer = answer_of(g);
    CORRAL_TRY(begin_piece(g, call, err));
    if (g->base.rank != 0) {
        return talk(g, call, mine, n, answer, all, err);
    }
    CORRAL_TRY(collect(g, call, n, err));
    for (uint32_t r = 0; r < g->base.ranks && n > 0; r++) {
        memcpy(answer + r * n, r == 0 ? mine : part_of(g, r), n);
    }
    return fan_out(g, call, answer, all, err);
}

static enum corral_status tcp_gather(struct corral_collective *c, const void *mine, uint32_t bytes, void *out,
                                     struct corral_error *err)
{
    struct tcp_group *g = group_of(c);
    uint64_t offset = 0;
    do {
        struct corral_call call = piece_at(CORRAL_CALL_GATHER, bytes, offset, PIECE_BYTES_MAX / c->ranks);
        CORRAL_TRY(gather_piece(g, &call, (const char *)mine + offset, err));
        for (uint32_t r = 0; r < c->ranks && call.bytes > 0; r++) {
            memcpy((char *)out + (uint64_t)r * bytes + offset, answer_of(g) + (size_t)r * call.bytes,
                   call.bytes);
        }
        offset += call.bytes;
    } while (offset < bytes);
    return CORRAL_OK;
}

static enum corral_status tcp_broadcast(struct corral_collective *c, void *data, uint64_t bytes,
                                        struct corral_error *err)
{
    struct tcp_group *g = group_of(c);
    uint64_t offset = 0;
    do {
        struct corral_call call = piece_at(CORRAL_CALL_BROADCAST, bytes, offset, PIECE_BYTES_MAX);
        char *at = (char *)data + offset;
        CORRAL_TRY(begin_piece(g, &call, err));
        if (c->rank != 0) {
            CORRAL_TRY(talk(g, &call, NULL, 0, at, call.bytes, err));
        } else {
            CORRAL_TRY(collect(g, &call, 0, err));
            CORRAL_TRY(fan_out(g, &call, at, call.bytes, err));
        }
        offset += call.bytes;
    } while (offset < bytes);
    return CORRAL_OK;
}

static enum corral_status tcp_barrier(struct corral_collective *c, struct corral_error *err)
{
    struct tcp_group *g = group_of(c);
    const struct corral_call call = {.op = CORRAL_CALL_BARRIER};
    CORRAL_TRY(begin_piece(g, &call, err));
    if (c->rank != 0) {
        return talk(g, &call, NULL, 0, NULL, 0, err);
    }
    CORRAL_TRY(collect(g, &call, 0, err));
    return fan_out(g, &call, NULL, 0, err);
}

static void group_free(struct tcp_group *g)
{
    if (g) {
        hang_up(g);
        free(g->parts);
    }
    free(g);
}
CORRAL_DEFINE_CLEANUP(struct tcp_group, group_free)

static void tcp_destroy(struct corral_collective *c)
{
    group_free(group_of(c));
}

static const struct corral_collective_ops tcp_ops = {
    .name = "tcp",
    .sum_f32 = tcp_sum_f32,
    .sum_f64 = tcp_sum_f64,
    .gather = tcp_gather,
    .broadcast = tcp_broadcast,
    .barrier = tcp_barrier,
    .destroy = tcp_destroy,
};

static enum corral_status make_group(uint32_t rank, uint32_t ranks, uint32_t generation, uint32_t timeout_ms,
                                     struct tcp_group **out, struct corral_error *err)
{
    CORRAL_TRY(corral_call_check_ranks("tcp", rank, ranks, err));
    CORRAL_CLEANUP(group_freep) struct tcp_group *g = calloc(1, sizeof *g);
    if (!g) {
        return corral_fail(err, CORRAL_NOMEM, "tcp collective: no memory");
    }
    memset(g->fd, 0xff, sizeof g->fd); /* -1: none */
    g->base = (struct corral_collective){.ops = &tcp_ops, .rank = rank, .ranks = ranks};
    g->generation = generation;
    g->timeout_ms = timeout_ms;
    uint32_t pieces = rank == 0 ? ranks : 1;
    g->parts = malloc((size_t)pieces * PIECE_BYTES_MAX);
    if (!g->parts) {
        return corral_fail(err, CORRAL_NOMEM, "tcp collective: no memory for %u pieces", pieces);
    }
    *out = CORRAL_STEAL(g);
    return CORRAL_OK;
}

static void listener_destroyp(struct corral_collective_listener **l)
{
    corral_collective_listener_destroy(*l);
}

enum corral_status corral_collective_tcp_create(struct corral_collective_listener *listener,
                                                const char *endpoint, uint32_t rank, uint32_t ranks,
                                                uint32_t generation, const uint8_t secret[32],
                                                uint32_t timeout_ms, struct corral_collective **out,
                                                struct corral_error *err)
{
    CORRAL_CLEANUP(listener_destroyp) struct corral_collective_listener *taken = listener;
    CORRAL_CLEANUP(group_freep) struct tcp_group *g = NULL;
    CORRAL_TRY(make_group(rank, ranks, generation, timeout_ms, &g, err));
    const struct corral_tcp_identity self = {
        .rank = rank, .ranks = ranks, .generation = generation, .secret = secret};
    if (rank != 0) {
        CORRAL_TRY(corral_tcp_connect(endpoint, &self, deadline_of(g), &g->fd[0], err));
    } else if (!taken) {
        return corral_fail(err, CORRAL_INVALID, "tcp collective: rank 0 needs a listener");
    } else {
        CORRAL_TRY(corral_tcp_accept_all(taken, &self, deadline_of(g), g->fd, err));
    }
    struct tcp_group *done = CORRAL_STEAL(g);
    *out = &done->base;
    return CORRAL_OK;
}
