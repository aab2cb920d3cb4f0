#include "transport/weights/lanes/tcp/internal.h"

#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static bool is_wildcard(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET6) {
        return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)address)->sin6_addr);
    }
    return ((const struct sockaddr_in *)address)->sin_addr.s_addr == INADDR_ANY;
}

enum corral_status tcp_listen(const char *host, int *out, struct tcp_offer *offer, struct corral_error *err)
{
    CORRAL_TRY(tcp_parse_host(host, &offer->address, &offer->address_bytes, err));
    if (is_wildcard(&offer->address)) {
        return corral_fail(err, CORRAL_INVALID,
                           "the tcp lane cannot offer %s to its sender: name one of this machine's addresses",
                           host);
    }
    CORRAL_AUTO_CLOSE int fd =
        socket(offer->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    offer->address_bytes =
        offer->address.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (fd < 0 || bind(fd, (struct sockaddr *)&offer->address, offer->address_bytes) != 0 ||
        listen(fd, CORRAL_LANE_STREAMS_MAX + TCP_STRANGERS_MAX) != 0 ||
        getsockname(fd, (struct sockaddr *)&offer->address, &offer->address_bytes) != 0) {
        return corral_fail_sys(err, errno, "the tcp lane cannot listen on %s", host);
    }
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

struct stranger {
    int fd;
    uint32_t got;
    uint8_t hello[TCP_HELLO_BYTES];
};

struct acceptor {
    const struct corral_link *link;
    const struct tcp_offer *offer;
    uint32_t streams, connected, strangers;
    int *fd;
    struct stranger stranger[TCP_STRANGERS_MAX];
};

static void forget(struct acceptor *a, uint32_t index)
{
    a->strangers--;
    memmove(&a->stranger[index], &a->stranger[index + 1], (a->strangers - index) * sizeof a->stranger[0]);
}

static void take_caller(struct acceptor *a, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return;
    }
    if (a->strangers == TCP_STRANGERS_MAX) { /* the one that has been silent longest makes room */
        close(a->stranger[0].fd);
        forget(a, 0);
    }
    a->stranger[a->strangers++] = (struct stranger){.fd = fd};
}

/* What a stranger has said so far; it becomes a stream, is sent away, or is waited for. */
static void hear(struct acceptor *a, uint32_t index)
{
    struct stranger *s = &a->stranger[index];
    ssize_t n = recv(s->fd, s->hello + s->got, sizeof s->hello - s->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    s->got += n > 0 ? (uint32_t)n : 0;
    if (n > 0 && s->got < sizeof s->hello) {
        return;
    }
    uint32_t stream = 0;
    bool ours = n > 0 && tcp_get_hello(s->hello, a->link, a->offer->token, a->streams, &stream) &&
                a->fd[stream] < 0 && fcntl(s->fd, F_SETFL, 0) == 0; /* 0: blocking, its thread waits in it */
    if (ours) {
        tcp_tune(s->fd);
        tcp_settle(s->fd);
        a->fd[stream] = s->fd;
        a->connected++;
    } else {
        close(s->fd);
    }
    forget(a, index);
}

enum corral_status tcp_accept(int listener, const struct corral_link *link, const struct tcp_offer *offer,
                              uint32_t streams, uint64_t timeout_ns, int *fd, struct corral_error *err)
{
    struct acceptor a = {.link = link, .offer = offer, .streams = streams, .fd = fd};
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    while (a.connected < streams) {
        struct pollfd p[TCP_STRANGERS_MAX + 1];
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (now >= deadline) {
            break;
        }
        for (uint32_t i = 0; i < a.strangers; i++) {
            p[i] = (struct pollfd){.fd = a.stranger[i].fd, .events = POLLIN};
        }
        uint32_t strangers = a.strangers;
        p[strangers] = (struct pollfd){.fd = listener, .events = POLLIN};
        uint64_t ms = (deadline - now) / CORRAL_NS_PER_MS + 1;
        if (poll(p, strangers + 1, (int)CORRAL_MIN(ms, 60000u)) <= 0) {
            continue;
        }
        for (uint32_t i = strangers; i-- > 0;) { /* from the back: hear() closes gaps */
            if (p[i].revents != 0) {
                hear(&a, i);
            }
        }
        if (p[strangers].revents != 0) {
            take_caller(&a, listener);
        }
    }
    for (uint32_t i = 0; i < a.strangers; i++) {
        close(a.stranger[i].fd);
    }
    if (a.connected < streams) {
        return corral_fail(err, CORRAL_PEER, "%u of %u connections of the tcp lane came in time", a.connected,
                           streams);
    }
    return CORRAL_OK;
}
