#include "transport/weights/publisher.h"

#include "base/clock.h"
#include "transport/weights/wire.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum tcp_state { TCP_CONNECTING, TCP_CHALLENGED, TCP_PROVED, TCP_READY };

struct tcp_lane {
    struct corral_weight_lane base;
    enum tcp_state state;
    uint64_t run;
    uint8_t secret[32], nonce[WIRE_NONCE_BYTES];
    char endpoint[96];

    uint8_t out[2 * WIRE_FRAME_MAX]; /* control frames not yet sent: out_from … out_to */
    size_t out_from, out_to;
    uint8_t tail[WIRE_HEADER_BYTES + 16]; /* an early COMMIT, sent after the data: tail_from … tail_to */
    size_t tail_from, tail_to;
    uint8_t in[2 * WIRE_FRAME_MAX]; /* received and not yet worked off: in_from … in_to */
    size_t in_from, in_to;
    bool just_sent; /* the answer cannot be here yet: wait before trying to receive */

    uint64_t version, bytes, written; /* of the version being sent */
    uint64_t chunk_sent;              /* of the buffer given to write() */
    struct corral_digest staged;
    bool commit_sent;
};

static uint8_t *queue_frame(struct tcp_lane *l, enum wire_type type, uint64_t payload, size_t payload_room)
{
    uint8_t *to = l->out + l->out_to;
    wire_put_header(to, type, l->version, payload);
    l->out_to += WIRE_HEADER_BYTES + payload_room;
    return to + WIRE_HEADER_BYTES;
}

static enum corral_status again(struct tcp_lane *l, short events)
{
    l->base.events = events;
    return CORRAL_AGAIN;
}

static enum corral_status io_failed(struct tcp_lane *l, int sys, struct corral_error *err)
{
    return corral_fail(err, CORRAL_PEER, "%s broke the connection: %s", l->endpoint, strerrordesc_np(sys));
}

/* Take `n` sent bytes off the part that began at *from. Returns what is left of n. */
static size_t account(size_t n, size_t *from, size_t to)
{
    size_t part = CORRAL_MIN(n, to - *from);
    *from += part;
    return n - part;
}

/* Send what is queued, then `bytes` of data, then the tail; OK when all of it is out. */
static enum corral_status flush(struct tcp_lane *l, const uint8_t *data, uint64_t bytes,
                                struct corral_error *err)
{
    uint64_t most = l->base.burst_bytes == 0 ? UINT64_MAX : l->base.burst_bytes, sent = 0;
    while (l->out_from < l->out_to || l->chunk_sent < bytes || l->tail_from < l->tail_to) {
        if (sent >= most) {
            return again(l, POLLOUT);
        }
        uint64_t now = CORRAL_MIN(bytes - l->chunk_sent, most);
        struct iovec iov[3] = {
            {l->out + l->out_from, l->out_to - l->out_from},
            {(void *)((uintptr_t)data + l->chunk_sent), now},
            {l->tail + l->tail_from, now == bytes - l->chunk_sent ? l->tail_to - l->tail_from : 0}};
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = 3};
        ssize_t n = sendmsg(l->base.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN) {
                return again(l, POLLOUT);
            }
            return io_failed(l, errno, err);
        }
        sent += (uint64_t)n;
        size_t left = account((size_t)n, &l->out_from, l->out_to);
        left = account(left, &l->chunk_sent, bytes);
        account(left, &l->tail_from, l->tail_to);
        l->just_sent = true;
    }
    l->out_from = l->out_to = l->tail_from = l->tail_to = 0;
    return CORRAL_OK;
}

/* The text of an ERROR frame comes from outside: its status is kept within ours and its text printable. */
static enum corral_status refused(struct tcp_lane *l, const uint8_t *payload, uint64_t bytes,
                                  struct corral_error *err)
{
    char text[WIRE_ERROR_TEXT_MAX + 1];
    uint32_t status = wire_get_u32(payload);
    size_t n = bytes - 4;
    for (size_t i = 0; i < n; i++) {
        text[i] = (char)(payload[4 + i] >= 0x20 && payload[4 + i] != 0x7f ? payload[4 + i] : '?');
    }
    text[n] = '\0';
    if (status <= CORRAL_AGAIN || status > CORRAL_INTERNAL) {
        status = CORRAL_PROTOCOL;
    }
    return corral_fail(err, (enum corral_status)status, "%s refused: %s", l->endpoint, text);
}

/* CORRAL_OK when at least `needed` bytes are in the buffer. */
static enum corral_status fill(struct tcp_lane *l, size_t needed, struct corral_error *err)
{
    while (l->in_to - l->in_from < needed) {
        if (l->just_sent) {
            l->just_sent = false;
            return again(l, POLLIN);
        }
        ssize_t n = recv(l->base.fd, l->in + l->in_to, sizeof l->in - l->in_to, MSG_DONTWAIT);
        if (n == 0) {
            return corral_fail(err, CORRAL_PEER, "%s closed the connection", l->endpoint);
        }
        if (n < 0 && errno == EAGAIN) {
            return again(l, POLLIN);
        }
        if (n < 0 && errno != EINTR) {
            return io_failed(l, errno, err);
        }
        l->in_to += n > 0 ? (size_t)n : 0;
    }
    return CORRAL_OK;
}

/* Receive one whole frame of the expected type; *payload is good until the next call. */
static enum corral_status receive(struct tcp_lane *l, enum wire_type expected, const uint8_t **payload,
                                  struct corral_error *err)
{
    struct wire_frame frame;
    memmove(l->in, l->in + l->in_from, l->in_to - l->in_from);
    l->in_to -= l->in_from;
    l->in_from = 0;
    CORRAL_TRY(fill(l, WIRE_HEADER_BYTES, err));
    CORRAL_TRY(wire_read_header(l->in, &frame, err));
    if (frame.type == WIRE_DATA) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s sent a DATA frame", l->endpoint);
    }
    CORRAL_TRY(fill(l, WIRE_HEADER_BYTES + frame.bytes, err));
    l->in_from = WIRE_HEADER_BYTES + frame.bytes;
    *payload = l->in + WIRE_HEADER_BYTES;
    if (frame.type == WIRE_ERROR) {
        return refused(l, *payload, frame.bytes, err);
    }
    if (frame.type != expected || (expected >= WIRE_PREPARE && frame.version != l->version)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "%s sent frame %u for version %" PRIu64 " where %u for %" PRIu64 " was due",
                           l->endpoint, frame.type, frame.version, expected, l->version);
    }
    return CORRAL_OK;
}

/* ---- steps: none of them waits ---- */

static enum corral_status step_connect(struct tcp_lane *l, struct corral_error *err)
{
    struct pollfd p = {.fd = l->base.fd, .events = POLLOUT};
    if (poll(&p, 1, 0) == 0) {
        return again(l, POLLOUT);
    }
    int sys = 0;
    socklen_t size = sizeof sys;
    if (getsockopt(l->base.fd, SOL_SOCKET, SO_ERROR, &sys, &size) != 0) {
        sys = errno;
    }
    if (sys != 0) {
        return corral_fail(err, CORRAL_PEER, "cannot connect to weight receiver %s: %s", l->endpoint,
                           strerrordesc_np(sys));
    }
    uint8_t *hello = queue_frame(l, WIRE_HELLO, 8 + WIRE_NONCE_BYTES, 8 + WIRE_NONCE_BYTES);
    wire_put_u64(hello, l->run);
    memcpy(hello + 8, l->nonce, WIRE_NONCE_BYTES);
    l->state = TCP_CHALLENGED;
    return CORRAL_OK;
}

static enum corral_status step_challenged(struct tcp_lane *l, struct corral_error *err)
{
    const uint8_t *nonce;
    uint8_t mac[WIRE_MAC_BYTES];
    CORRAL_TRY(receive(l, WIRE_CHALLENGE, &nonce, err));
    wire_mac(l->secret, WIRE_LABEL_RECEIVER, l->run, l->nonce, nonce, mac);
    if (!corral_bytes_equal(mac, nonce + WIRE_NONCE_BYTES, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL, "weight receiver %s does not know this run's secret",
                           l->endpoint);
    }
    uint8_t *proof = queue_frame(l, WIRE_PROOF, WIRE_MAC_BYTES, WIRE_MAC_BYTES);
    wire_mac(l->secret, WIRE_LABEL_PUBLISHER, l->run, l->nonce, nonce, proof);
    l->state = TCP_PROVED;
    return CORRAL_OK;
}

static enum corral_status step_ready(struct tcp_lane *l, struct corral_error *err)
{
    const uint8_t *payload;
    while (l->state != TCP_READY) {
        if (l->state != TCP_CONNECTING) {
            CORRAL_TRY(flush(l, NULL, 0, err));
        }
        switch (l->state) {
        case TCP_CONNECTING:
            CORRAL_TRY(step_connect(l, err));
            break;
        case TCP_CHALLENGED:
            CORRAL_TRY(step_challenged(l, err));
            break;
        default:
            CORRAL_TRY(receive(l, WIRE_WELCOME, &payload, err));
            l->state = TCP_READY;
            break;
        }
    }
    return CORRAL_OK;
}

/* Repeat `step` until it is done, fails, or the deadline passes. Deadline 0: once. */
#define UNTIL(lane, deadline_ns, what, step)                     \
    for (;;) {                                                   \
        enum corral_status until_ = (step);                      \
        if (until_ != CORRAL_AGAIN || (deadline_ns) == 0) {      \
            return until_;                                       \
        }                                                        \
        CORRAL_TRY(wait_io((lane), (deadline_ns), (what), err)); \
    }

static enum corral_status wait_io(struct tcp_lane *l, uint64_t deadline_ns, const char *what,
                                  struct corral_error *err)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (now < deadline_ns) {
        uint64_t left = deadline_ns - now;
        struct timespec t = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                             .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
        struct pollfd p = {.fd = l->base.fd, .events = l->base.events};
        if (ppoll(&p, 1, &t, NULL) != 0) {
            return CORRAL_OK; /* ready, or interrupted: the step finds out */
        }
    }
    return corral_fail(err, CORRAL_TIMEOUT, "%s did not %s in time", l->endpoint, what);
}

static enum corral_status tcp_ready(struct corral_weight_lane *lane, uint64_t deadline_ns,
                                    struct corral_error *err)
{
    struct tcp_lane *l = (struct tcp_lane *)lane;
    UNTIL(l, deadline_ns, "log in", step_ready(l, err));
}

/* Nothing is sent yet: PREPARE and the head of DATA leave with the first bytes, in one packet when they are small. */
static enum corral_status tcp_prepare(struct corral_weight_lane *lane, uint64_t version,
                                      struct corral_digest manifest, uint64_t bytes, uint64_t deadline_ns,
                                      struct corral_error *err)
{
    struct tcp_lane *l = (struct tcp_lane *)lane;
    (void)deadline_ns;
    if (l->state != TCP_READY || l->out_to != 0) {
        return corral_fail(err, CORRAL_STATE, "%s is not ready for a weight version", l->endpoint);
    }
    l->version = version;
    l->bytes = bytes;
    l->written = l->chunk_sent = 0;
    l->commit_sent = false;
    uint8_t *payload = queue_frame(l, WIRE_PREPARE, 24, 24);
    wire_put_digest(payload, manifest);
    wire_put_u64(payload + 16, bytes);
    queue_frame(l, WIRE_DATA, bytes, 0);
    return CORRAL_OK;
}

static enum corral_status step_write(struct tcp_lane *l, const void *data, uint64_t bytes,
                                     struct corral_error *err)
{
    if (l->base.digest_known && !l->commit_sent && l->written + bytes == l->bytes) {
        wire_put_header(l->tail, WIRE_COMMIT, l->version, 16);
        wire_put_digest(l->tail + WIRE_HEADER_BYTES, l->base.digest);
        l->tail_to = sizeof l->tail;
        l->commit_sent = true;
    }
    CORRAL_TRY(flush(l, data, bytes, err));
    l->written += bytes;
    l->chunk_sent = 0;
    return CORRAL_OK;
}

static enum corral_status tcp_write(struct corral_weight_lane *lane, const void *data, uint64_t bytes,
                                    uint64_t deadline_ns, struct corral_error *err)
{
    struct tcp_lane *l = (struct tcp_lane *)lane;
    if (bytes > l->bytes - l->written) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " has more than its %" PRIu64 " bytes", l->version,
                           l->bytes);
    }
    UNTIL(l, deadline_ns, "take the weights", step_write(l, data, bytes, err));
}

static enum corral_status step_staged(struct tcp_lane *l, struct corral_digest *theirs,
                                      struct corral_error *err)
{
    const uint8_t *payload;
    CORRAL_TRY(flush(l, NULL, 0, err));
    CORRAL_TRY(receive(l, WIRE_STAGED, &payload, err));
    l->staged = wire_get_digest(payload);
    *theirs = l->staged;
    return CORRAL_OK;
}

static enum corral_status tcp_staged(struct corral_weight_lane *lane, struct corral_digest *theirs,
                                     uint64_t deadline_ns, struct corral_error *err)
{
    struct tcp_lane *l = (struct tcp_lane *)lane;
    if (l->written != l->bytes) {
        return corral_fail(err, CORRAL_STATE,
                           "weight version %" PRIu64 " is staged after %" PRIu64 " of %" PRIu64 " bytes",
                           l->version, l->written, l->bytes);
    }
    UNTIL(l, deadline_ns, "stage the weights", step_staged(l, theirs, err));
}

static enum corral_status step_commit(struct tcp_lane *l, struct corral_error *err)
{
    const uint8_t *payload;
    if (!l->commit_sent) {
        wire_put_digest(queue_frame(l, WIRE_COMMIT, 16, 16), l->staged);
        l->commit_sent = true;
    }
    CORRAL_TRY(flush(l, NULL, 0, err));
    return receive(l, WIRE_APPLIED, &payload, err);
}

static enum corral_status tcp_commit(struct corral_weight_lane *lane, uint64_t deadline_ns,
                                     struct corral_error *err)
{
    struct tcp_lane *l = (struct tcp_lane *)lane;
    UNTIL(l, deadline_ns, "apply the weights", step_commit(l, err));
}

static void tcp_close(struct corral_weight_lane *lane)
{
    struct tcp_lane *l = (struct tcp_lane *)lane;
    if (l->base.fd >= 0) {
        close(l->base.fd);
    }
    explicit_bzero(l->secret, sizeof l->secret);
    free(l);
}

static const struct corral_weight_lane_ops tcp_ops = {
    .name = "tcp",
    .ready = tcp_ready,
    .prepare = tcp_prepare,
    .write = tcp_write,
    .staged = tcp_staged,
    .commit = tcp_commit,
    .close = tcp_close,
};

static enum corral_status start_connect(struct tcp_lane *l, struct corral_error *err)
{
    struct sockaddr_storage address;
    socklen_t length = 0;
    CORRAL_TRY(wire_resolve(l->endpoint, &address, &length, err));
    l->base.fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->base.fd < 0) {
        return corral_fail_sys(err, errno, "cannot create a socket for %s", l->endpoint);
    }
    wire_tune_socket(l->base.fd);
    if (connect(l->base.fd, (const struct sockaddr *)&address, length) != 0 && errno != EINPROGRESS &&
        errno != EINTR) {
        return corral_fail(err, CORRAL_PEER, "cannot connect to weight receiver %s: %s", l->endpoint,
                           strerrordesc_np(errno));
    }
    return CORRAL_OK;
}

enum corral_status corral_weight_lane_tcp(const char *endpoint, uint64_t run, const uint8_t secret[32],
                                          uint64_t deadline_ns, struct corral_weight_lane **out,
                                          struct corral_error *err)
{
    if (strlen(endpoint) >= sizeof((struct tcp_lane *)NULL)->endpoint) {
        return corral_fail(err, CORRAL_INVALID, "weight endpoint '%.200s' is too long", endpoint);
    }
    struct tcp_lane *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot open a tcp weight lane: out of memory");
    }
    l->base.ops = &tcp_ops;
    l->base.fd = -1;
    l->run = run;
    memcpy(l->secret, secret, sizeof l->secret);
    strcpy(l->endpoint, endpoint);
    corral_random_bytes(l->nonce, sizeof l->nonce);
    enum corral_status status = start_connect(l, err);
    if (status == CORRAL_OK && deadline_ns != 0) {
        status = tcp_ready(&l->base, deadline_ns, err);
    }
    if (status != CORRAL_OK) {
        tcp_close(&l->base);
        return status;
    }
    *out = &l->base;
    return CORRAL_OK;
}
