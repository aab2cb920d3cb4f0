#include "transport/weights/lanes/nccl/side.h"

#include "base/clock.h"
#include "base/hash.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FRAME 32
#define CALLERS_MAX 16
#define BACKLOG 64

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_un un;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    };
    socklen_t bytes;
};

void corral_side_init(struct corral_side *side)
{
    *side = (struct corral_side){.listener = -1, .fd = -1};
}

/* ---- addresses ---- */

static bool parse_host(const char *host, uint16_t port, struct address *a)
{
    memset(a, 0, sizeof *a);
    if (inet_pton(AF_INET, host, &a->in.sin_addr) == 1) {
        a->in.sin_family = AF_INET;
        a->in.sin_port = htons(port);
        a->bytes = sizeof a->in;
        return true;
    }
    if (inet_pton(AF_INET6, host, &a->in6.sin6_addr) == 1) {
        a->in6.sin6_family = AF_INET6;
        a->in6.sin6_port = htons(port);
        a->bytes = sizeof a->in6;
        return true;
    }
    return false;
}

/* "@name": a Unix socket's abstract name. "host:port", the host numeric; an IPv6 address has colons of its own, the last one counts. */
static bool parse_address(const char *text, struct address *a)
{
    size_t length = strlen(text);
    if (text[0] == '@') {
        memset(a, 0, sizeof *a);
        a->un.sun_family = AF_UNIX;
        memcpy(a->un.sun_path + 1, text + 1, length - 1);
        a->bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
        return length > 1;
    }
    const char *colon = strrchr(text, ':');
    unsigned port = 0;
    char host[CORRAL_SIDE_ADDRESS_BYTES], rest;
    if (colon == NULL || sscanf(colon + 1, "%5u%c", &port, &rest) != 1 || port == 0 || port > UINT16_MAX) {
        return false;
    }
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    return parse_host(host, (uint16_t)port, a);
}

static enum corral_status say_address(int fd, const char *host, char text[CORRAL_SIDE_ADDRESS_BYTES],
                                      struct corral_error *err)
{
    struct address a = {.bytes = sizeof(struct sockaddr_in6)};
    if (getsockname(fd, &a.any, &a.bytes) != 0) {
        return corral_fail_sys(err, errno, "cannot find the address of a lane's listener");
    }
    unsigned port = ntohs(a.any.sa_family == AF_INET ? a.in.sin_port : a.in6.sin6_port);
    int length = snprintf(text, CORRAL_SIDE_ADDRESS_BYTES, "%s:%u", host, port);
    return length > 0 && length < CORRAL_SIDE_ADDRESS_BYTES
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "the address %s is too long", host);
}

/* ---- opening ---- */

enum corral_status corral_side_listen(struct corral_side *side, const char *host, uint8_t *offer,
                                      struct corral_error *err)
{
    char text[CORRAL_SIDE_ADDRESS_BYTES] = "";
    struct address a;
    uint8_t name[16];
    if (host == NULL) {
        char hex[2 * sizeof name + 1];
        corral_random_bytes(name, sizeof name);
        corral_hex(name, sizeof name, hex);
        snprintf(text, sizeof text, "@corral-%s", hex);
        parse_address(text, &a);
    } else if (!parse_host(host, 0, &a)) {
        return corral_fail(err, CORRAL_INVALID, "%s is not a numeric address to listen on", host);
    }
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, &a.any, a.bytes) != 0 || listen(fd, BACKLOG) != 0) {
        int failed = errno;
        corral_cleanup_close(&fd);
        return corral_fail_sys(err, failed, "cannot listen for a lane's sender on %s",
                               host != NULL ? host : text);
    }
    side->listener = fd;
    if (host != NULL) {
        CORRAL_TRY(say_address(fd, host, text, err));
    }
    corral_random_bytes(side->token, sizeof side->token);
    memcpy(offer, text, sizeof text);
    memcpy(offer + sizeof text, side->token, sizeof side->token);
    return CORRAL_OK;
}

static void set_up(struct corral_side *side)
{
    int on = 1;
    struct ucred peer = {0};
    socklen_t bytes = sizeof peer;
    /* Each fails for the other family. */
    (void)setsockopt(side->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (getsockopt(side->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.pid > 0) {
        side->peer_pid = peer.pid;
    }
}

static enum corral_status send_token(const struct corral_side *side, uint64_t deadline,
                                     struct corral_error *err)
{
    for (size_t at = 0; at < sizeof side->token;) {
        ssize_t n = send(side->fd, side->token + at, sizeof side->token - at, MSG_NOSIGNAL);
        if (n > 0) {
            at += (size_t)n;
        } else if (errno == EAGAIN) {
            if (!corral_lane_poll(side->fd, POLLOUT, deadline)) {
                return corral_fail(err, CORRAL_TIMEOUT, "a lane's receiver takes no connection");
            }
        } else if (errno != EINTR) {
            return corral_fail(err, CORRAL_PEER, "a lane's receiver has gone while it was connected to");
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_side_connect(struct corral_side *side, const uint8_t *offer, uint64_t timeout_ns,
                                       struct corral_error *err)
{
    char text[CORRAL_SIDE_ADDRESS_BYTES];
    struct address a;
    memcpy(text, offer, sizeof text);
    if (memchr(text, '\0', sizeof text) == NULL || !parse_address(text, &a)) {
        return corral_fail(err, CORRAL_PROTOCOL, "a lane's offer has no usable address");
    }
    memcpy(side->token, offer + sizeof text, sizeof side->token);
    side->fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (side->fd < 0) {
        return corral_fail_sys(err, errno, "cannot make a socket for a lane");
    }
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    if (connect(side->fd, &a.any, a.bytes) != 0) {
        int failed = errno;
        socklen_t bytes = sizeof failed;
        if (failed == EINPROGRESS) {
            if (!corral_lane_poll(side->fd, POLLOUT, deadline)) {
                return corral_fail(err, CORRAL_TIMEOUT, "%s does not answer", text);
            }
            failed = 0;
            getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &failed, &bytes);
        }
        if (failed != 0) {
            return corral_fail(
                err, CORRAL_PEER, "cannot connect to a lane's receiver at %s: %s%s", text, strerror(failed),
                text[0] == '@' ? " (is it on another machine or in another network namespace?)" : "");
        }
    }
    set_up(side);
    return send_token(side, deadline, err);
}

/* Callers that have not shown the token yet. None of them can use up the sender's time, however many come and say nothing: the one that has been silent longest makes room. */
struct caller {
    int fd;
    size_t got;
    uint8_t token[CORRAL_LANE_TOKEN_BYTES];
};

struct callers {
    uint32_t count;
    struct caller one[CALLERS_MAX];
};

static void forget(struct callers *c, uint32_t index)
{
    c->count--;
    memmove(&c->one[index], &c->one[index + 1], (c->count - index) * sizeof c->one[0]);
}

/* False: the listener is of no more use. */
static bool take_caller(struct callers *c, int listener, struct corral_error *err)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        bool later = errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
        if (!later) {
            corral_fail_sys(err, errno, "cannot accept a lane's sender");
        }
        return later;
    }
    struct ucred peer = {.uid = geteuid()};
    socklen_t bytes = sizeof peer;
    /* For TCP the kernel knows nobody: no process, no user. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.pid > 0 &&
        peer.uid != geteuid()) {
        close(fd);
        return true;
    }
    if (c->count == CALLERS_MAX) {
        close(c->one[0].fd);
        forget(c, 0);
    }
    c->one[c->count++] = (struct caller){.fd = fd};
    return true;
}

/* What a caller has to say. True: it is the sender, and its connection the side's. */
static bool hear(struct corral_side *side, struct callers *c, uint32_t index)
{
    struct caller *one = &c->one[index];
    ssize_t n = recv(one->fd, one->token + one->got, sizeof one->token - one->got, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    one->got += n > 0 ? (size_t)n : 0;
    if (n > 0 && one->got < sizeof one->token) {
        return false;
    }
    bool ours = n > 0 && corral_bytes_equal(one->token, side->token, sizeof one->token);
    if (ours) {
        side->fd = one->fd;
    } else {
        close(one->fd);
    }
    forget(c, index);
    return ours;
}

/* One wait for anybody. CORRAL_AGAIN: the sender has not been there. */
static enum corral_status attend(struct corral_side *side, struct callers *c, uint64_t left_ns,
                                 struct corral_error *err)
{
    struct pollfd p[CALLERS_MAX + 1];
    uint32_t known = c->count;
    for (uint32_t i = 0; i < known; i++) {
        p[i] = (struct pollfd){.fd = c->one[i].fd, .events = POLLIN};
    }
    p[known] = (struct pollfd){.fd = side->listener, .events = POLLIN};
    if (poll(p, known + 1, (int)CORRAL_MIN(left_ns / CORRAL_NS_PER_MS + 1, 60000u)) <= 0) {
        return CORRAL_AGAIN;
    }
    for (uint32_t i = known; i-- > 0;) { /* from the back: hear() closes gaps */
        if (p[i].revents != 0 && hear(side, c, i)) {
            return CORRAL_OK;
        }
    }
    return p[known].revents == 0 || take_caller(c, side->listener, err) ? CORRAL_AGAIN : CORRAL_IO;
}

enum corral_status corral_side_accept(struct corral_side *side, uint64_t timeout_ns, struct corral_error *err)
{
    struct callers callers = {.count = 0};
    uint64_t deadline = corral_lane_deadline(timeout_ns), now;
    enum corral_status status = CORRAL_AGAIN;
    while (status == CORRAL_AGAIN && (now = corral_now_ns(&corral_clock_monotonic)) < deadline) {
        status = attend(side, &callers, deadline - now, err);
    }
    for (uint32_t i = 0; i < callers.count; i++) {
        close(callers.one[i].fd);
    }
    if (status == CORRAL_AGAIN) {
        return corral_fail(err, CORRAL_TIMEOUT, "a lane's sender has not connected");
    }
    CORRAL_TRY(status);
    set_up(side);
    close(side->listener);
    side->listener = -1;
    return CORRAL_OK;
}

/* ---- frames ---- */

enum corral_status corral_side_send(struct corral_side *side, const struct corral_side_message *m,
                                    struct corral_error *err)
{
    uint8_t frame[FRAME];
    corral_lane_put32(frame, m->type);
    corral_lane_put32(frame + 4, m->bucket);
    corral_lane_put64(frame + 8, m->push);
    corral_lane_put64(frame + 16, m->a);
    corral_lane_put64(frame + 24, m->b);
    uint64_t deadline = 0;
    for (size_t at = 0; at < sizeof frame;) {
        ssize_t n = send(side->fd, frame + at, sizeof frame - at, MSG_NOSIGNAL);
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        if (errno == EINTR) {
            continue;
        }
        if (errno != EAGAIN) {
            return corral_fail(err, CORRAL_PEER, "the lane's other end has gone");
        }
        if (at == 0) {
            return CORRAL_AGAIN;
        }
        /* Half a frame is out: the rest must follow, or the connection is of no use any more. */
        deadline = deadline == 0 ? corral_lane_deadline(CORRAL_NS_PER_S) : deadline;
        if (!corral_lane_poll(side->fd, POLLOUT, deadline)) {
            return corral_fail(err, CORRAL_PEER, "the lane's other end takes no more messages");
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_side_receive(struct corral_side *side, struct corral_side_message *m,
                                       struct corral_error *err)
{
    while (side->in_bytes < FRAME) {
        ssize_t n = recv(side->fd, side->in + side->in_bytes, FRAME - side->in_bytes, 0);
        if (n > 0) {
            side->in_bytes += (uint32_t)n;
        } else if (n < 0 && errno == EAGAIN) {
            return CORRAL_AGAIN;
        } else if (n == 0 || errno != EINTR) {
            return corral_fail(err, CORRAL_PEER, "the lane's other end has gone");
        }
    }
    *m = (struct corral_side_message){.type = corral_lane_get32(side->in),
                                      .bucket = corral_lane_get32(side->in + 4),
                                      .push = corral_lane_get64(side->in + 8),
                                      .a = corral_lane_get64(side->in + 16),
                                      .b = corral_lane_get64(side->in + 24)};
    side->in_bytes = 0;
    return CORRAL_OK;
}

void corral_side_close(struct corral_side *side)
{
    corral_cleanup_close(&side->listener);
    corral_cleanup_close(&side->fd);
    side->listener = side->fd = -1;
}
