#include "transport/weights/push/visit.h"

#include "base/clock.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

/* Until the socket has one of `events`, the lane's descriptor is readable, or `until`. */
static enum corral_status wait_for(struct visit *v, short events, int lane_fd, uint64_t until,
                                   struct corral_error *err)
{
    struct pollfd fds[3] = {{.fd = v->io.fd, .events = events},
                            {.fd = lane_fd, .events = POLLIN},
                            {.fd = v->stop_fd, .events = POLLIN}};
    uint64_t now = now_ns(), left = until > now ? until - now : 0;
    struct timespec t = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                         .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
    if (ppoll(fds, 3, &t, NULL) > 0 && fds[2].revents != 0) {
        return corral_fail(err, CORRAL_STATE, "stopped");
    }
    return CORRAL_OK;
}

static enum corral_status check_time(const struct visit *v, struct corral_error *err)
{
    uint64_t now = now_ns();
    if (now >= v->deadline_ns) {
        return corral_fail(err, CORRAL_TIMEOUT, "%s: its time is over", v->peer);
    }
    return now < v->heard_ns + v->silence_ns
               ? CORRAL_OK
               : corral_fail(err, CORRAL_TIMEOUT, "%s has been silent for %" PRIu64 " ms", v->peer,
                             v->silence_ns / CORRAL_NS_PER_MS);
}

enum corral_status visit_say(struct visit *v, enum push_type type, uint64_t version, const void *payload,
                             uint32_t bytes, struct corral_error *err)
{
    struct push_frame f = {.type = type, .bytes = bytes, .generation = v->generation, .version = version};
    for (;;) {
        enum corral_status status = push_io_queue(&v->io, &f, payload, err);
        CORRAL_TRY(push_io_flush(&v->io, err));
        if (status == CORRAL_OK) {
            return CORRAL_OK; /* what did not leave at once goes with the next call */
        }
        CORRAL_TRY(check_time(v, err));
        CORRAL_TRY(wait_for(v, POLLOUT, -1, CORRAL_MIN(v->deadline_ns, v->heard_ns + v->silence_ns), err));
    }
}

void visit_say_why(struct visit *v, enum push_type type, const struct corral_error *why)
{
    uint8_t payload[4 + PUSH_TEXT_MAX];
    struct corral_error ignored;
    struct push_frame f = {.type = type, .generation = v->generation, .bytes = push_put_error(payload, why)};
    if (v->io.fd >= 0 && push_io_queue(&v->io, &f, payload, &ignored) == CORRAL_OK) {
        (void)push_io_flush(&v->io, &ignored);
    }
}

/* No byte beyond the frame that is being read. CORRAL_AGAIN: it is not whole yet. */
static enum corral_status read_frame(struct visit *v, struct push_frame *frame, const uint8_t **payload,
                                     struct corral_error *err)
{
    struct push_io *io = &v->io;
    for (;;) {
        uint32_t need = PUSH_HEADER_BYTES;
        if (io->in_to >= PUSH_HEADER_BYTES) {
            CORRAL_TRY(push_read_header(io->in, frame, err));
            need += frame->bytes;
            if (io->in_to == need) {
                break;
            }
        }
        ssize_t n = recv(io->fd, io->in + io->in_to, need - io->in_to, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 && errno == EAGAIN
                       ? CORRAL_AGAIN
                       : corral_fail(err, CORRAL_PEER, "%s: %s", v->peer,
                                     n == 0 ? "it closed the connection" : strerrordesc_np(errno));
        }
        io->in_to += (uint32_t)n;
    }
    io->in_to = 0;
    *payload = io->in + PUSH_HEADER_BYTES;
    return CORRAL_OK;
}

enum corral_status visit_hear(struct visit *v, int lane_fd, uint64_t until_ns, struct push_frame *frame,
                              const uint8_t **payload, struct corral_error *err)
{
    bool waited = false;
    for (;;) {
        struct push_frame f = {0};
        CORRAL_TRY(push_io_flush(&v->io, err));
        enum corral_status status = read_frame(v, &f, payload, err);
        if (status == CORRAL_OK) {
            v->heard_ns = now_ns();
            if (f.generation != v->generation) {
                return corral_fail(err, CORRAL_PROTOCOL, "%s answers another login", v->peer);
            }
            if (f.type == PUSH_ABORT || f.type == PUSH_ERROR) {
                return push_get_error(*payload, f.bytes, v->peer, err);
            }
            if (f.type != PUSH_WAIT) {
                *frame = f;
                return CORRAL_OK;
            }
            continue;
        }
        if (status != CORRAL_AGAIN) {
            return status;
        }
        CORRAL_TRY(check_time(v, err));
        if (waited || now_ns() >= until_ns) {
            return CORRAL_AGAIN;
        }
        short events = (short)(POLLIN | (v->io.out_to > 0 ? POLLOUT : 0));
        uint64_t until = CORRAL_MIN(until_ns, CORRAL_MIN(v->deadline_ns, v->heard_ns + v->silence_ns));
        CORRAL_TRY(wait_for(v, events, lane_fd, until, err));
        waited = lane_fd >= 0; /* the lane may be what woke us */
    }
}

enum corral_status visit_expect(struct visit *v, uint32_t types, struct push_frame *frame,
                                const uint8_t **payload, struct corral_error *err)
{
    enum corral_status status = visit_hear(v, -1, UINT64_MAX, frame, payload, err);
    if (status == CORRAL_OK && (types >> frame->type & 1u) == 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: %s is not due", v->peer, push_type_name(frame->type));
    }
    return status;
}

/* ---- login ---- */

static enum corral_status connect_to(struct visit *v, const char *endpoint, struct corral_error *err)
{
    struct sockaddr_storage address;
    socklen_t length = 0, error_bytes = sizeof(int);
    int error = 0;
    CORRAL_TRY(wire_resolve(endpoint, &address, &length, err));
    v->io.fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (v->io.fd < 0) {
        return corral_fail_sys(err, errno, "cannot connect to %s", endpoint);
    }
    wire_tune_socket(v->io.fd);
    if (connect(v->io.fd, (const struct sockaddr *)&address, length) == 0) {
        return CORRAL_OK;
    }
    if (errno != EINPROGRESS) {
        return corral_fail(err, CORRAL_PEER, "cannot connect to %s: %s", endpoint, strerrordesc_np(errno));
    }
    for (;;) {
        struct pollfd p = {.fd = v->io.fd, .events = POLLOUT};
        CORRAL_TRY(wait_for(v, POLLOUT, -1, CORRAL_MIN(v->deadline_ns, v->heard_ns + v->silence_ns), err));
        if (poll(&p, 1, 0) > 0) {
            break;
        }
        CORRAL_TRY(check_time(v, err));
    }
    getsockopt(v->io.fd, SOL_SOCKET, SO_ERROR, &error, &error_bytes);
    return error == 0
               ? CORRAL_OK
               : corral_fail(err, CORRAL_PEER, "cannot connect to %s: %s", endpoint, strerrordesc_np(error));
}

static void take_welcome(const struct push_frame *f, const uint8_t *payload, struct visit_welcome *out)
{
    *out = (struct visit_welcome){
        .version = f->version, .digest = wire_get_digest(payload), .rank = wire_get_u32(payload + 16)};
    memcpy(out->lanes, payload + 20, f->bytes - 20);
    for (char *c = out->lanes; *c != '\0'; c++) {
        *c = *c > ' ' && *c < 0x7f ? *c : '?';
    }
}

enum corral_status visit_login(struct visit *v, const char *endpoint, const struct corral_push_identity *id,
                               struct push_hello hello, struct visit_welcome *out, struct corral_error *err)
{
    uint8_t bytes[PUSH_HELLO_BYTES], mac[WIRE_MAC_BYTES];
    struct push_frame f;
    const uint8_t *payload;
    v->heard_ns = now_ns();
    v->generation = id->generation;
    v->io = (struct push_io){.fd = -1};
    CORRAL_TRY(connect_to(v, endpoint, err));
    hello.protocol = PUSH_PROTOCOL;
    hello.run = id->run;
    hello.generation = id->generation;
    corral_random_bytes(hello.nonce, sizeof hello.nonce);
    push_put_hello(bytes, &hello);
    CORRAL_TRY(visit_say(v, PUSH_HELLO, 0, bytes, sizeof bytes, err));
    CORRAL_TRY(visit_expect(v, 1u << PUSH_CHALLENGE, &f, &payload, err));
    push_mac(id->secret, PUSH_LABEL_RECEIVER, bytes, payload, mac);
    if (!corral_bytes_equal(mac, payload + WIRE_NONCE_BYTES, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s does not know this run's secret", endpoint);
    }
    push_mac(id->secret, PUSH_LABEL_VISITOR, bytes, payload, mac);
    CORRAL_TRY(visit_say(v, PUSH_PROOF, 0, mac, sizeof mac, err));
    CORRAL_TRY(visit_expect(v, 1u << PUSH_WELCOME, &f, &payload, err));
    take_welcome(&f, payload, out);
    return CORRAL_OK;
}
