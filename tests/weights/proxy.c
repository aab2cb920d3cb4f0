#include "tests/weights/proxy.h"
#include "base/clock.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAIRS_MAX 128u
#define CHUNK_BYTES 65536u

static struct proxy_shared *in_use;

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* ---- the side of the program under test ---- */

void proxy_use(struct proxy_shared *shared)
{
    in_use = shared;
}

int __real_connect(int fd, const struct sockaddr *address, socklen_t bytes);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t bytes);

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t bytes)
{
    if (!in_use || address->sa_family != AF_INET) {
        return __real_connect(fd, address, bytes);
    }
    struct sockaddr_in to, from = loopback(0);
    socklen_t length = sizeof from;
    memcpy(&to, address, sizeof to);
    /* Bound already: a lane that chose its address. Otherwise a source port is needed before the proxy sees it. */
    struct sockaddr_in bound;
    socklen_t bound_length = sizeof bound;
    if ((getsockname(fd, (struct sockaddr *)&bound, &bound_length) != 0 || bound.sin_port == 0) &&
        bind(fd, (struct sockaddr *)&from, sizeof from) != 0) {
        return -1;
    }
    if (getsockname(fd, (struct sockaddr *)&from, &length) != 0) {
        return -1;
    }
    atomic_store_explicit(&in_use->meant[ntohs(from.sin_port)], ntohs(to.sin_port), memory_order_release);
    to = loopback(atomic_load_explicit(&in_use->port, memory_order_acquire));
    return __real_connect(fd, (struct sockaddr *)&to, sizeof to);
}

/* ---- the proxy ---- */

struct way { /* one direction of a pair */
    uint32_t from, to;
    bool ended;
    uint8_t chunk[CHUNK_BYTES];
};
struct pair {
    int fd[2]; /* 0: who connected, 1: who was meant; -1: no such pair */
    struct way way[2];
    uint64_t quiet_until_ns, delay_until_ns;
    enum proxy_fault fault;
    uint32_t fault_way, ms;
    uint64_t fault_at;
};
struct proxy {
    struct proxy_shared *shared;
    struct pair pair[PAIRS_MAX];
    uint32_t armed;
};

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static void end_pair(struct pair *p, bool reset)
{
    const struct linger at_once = {.l_onoff = 1};
    for (int i = 0; i < 2; i++) {
        if (reset) {
            (void)setsockopt(p->fd[i], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        }
        close(p->fd[i]);
        p->fd[i] = -1;
    }
}

static void take_connection(struct proxy *x, int listener)
{
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    const int on = 1;
    int fd = accept4(listener, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        return;
    }
    uint16_t meant = atomic_load_explicit(&x->shared->meant[ntohs(from.sin_port)], memory_order_acquire);
    struct sockaddr_in to = loopback(meant);
    int other = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct pair *p = NULL;
    for (uint32_t i = 0; i < PAIRS_MAX && !p; i++) {
        p = x->pair[i].fd[0] < 0 ? &x->pair[i] : NULL;
    }
    /* On loopback connect() returns at once: there is a listener or there is none. */
    if (!p || other < 0 || __real_connect(other, (struct sockaddr *)&to, sizeof to) != 0) {
        close(fd);
        if (other >= 0) {
            close(other);
        }
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    memset(p, 0, offsetof(struct pair, way));
    p->fd[0] = fd;
    p->fd[1] = other;
    p->way[0].from = p->way[0].to = p->way[1].from = p->way[1].to = 0;
    p->way[0].ended = p->way[1].ended = false;
    p->quiet_until_ns = p->delay_until_ns = 0;
    p->fault = PROXY_NONE;
    atomic_fetch_add_explicit(&x->shared->connections, 1, memory_order_relaxed);
}

static void look_for_fault(struct proxy *x)
{
    uint32_t armed = atomic_load_explicit(&x->shared->armed, memory_order_acquire), live = 0;
    if (armed == x->armed) {
        return;
    }
    for (uint32_t i = 0; i < PAIRS_MAX; i++) {
        live += x->pair[i].fd[0] >= 0;
    }
    if (live == 0) {
        return; /* it waits for a connection */
    }
    x->armed = armed;
    uint64_t nth = x->shared->pick % live;
    for (uint32_t i = 0; i < PAIRS_MAX; i++) {
        struct pair *p = &x->pair[i];
        if (p->fd[0] >= 0 && nth-- == 0) {
            p->fault = x->shared->fault;
            p->fault_way = (x->shared->pick >> 32) % 4 ==
                           0; /* mostly towards the receiver: that is where the bytes go */
            p->fault_at = x->shared->at;
            p->ms = x->shared->ms;
            return;
        }
    }
}

/* The fault's byte is among the next `n`. True: the pair is gone. */
static bool strike(struct proxy *x, struct pair *p, struct way *w, uint32_t n)
{
    enum proxy_fault fault = p->fault;
    p->fault = PROXY_NONE;
    atomic_fetch_add_explicit(&x->shared->hit[fault], 1, memory_order_relaxed);
    switch (fault) {
    case PROXY_CORRUPT:
        w->chunk[w->from + p->fault_at % n] ^= (uint8_t)(1u << (p->fault_at % 8));
        return false;
    case PROXY_STALL:
        p->quiet_until_ns = now_ns() + p->ms * CORRAL_NS_PER_MS;
        return false;
    case PROXY_DELAY:
        p->delay_until_ns = now_ns() + p->ms * CORRAL_NS_PER_MS;
        return false;
    case PROXY_CUT:
    case PROXY_RESET:
        end_pair(p, fault == PROXY_RESET);
        return true;
    default:
        return false;
    }
}

/* Moves what there is in one direction. False: the pair is gone. */
static bool forward(struct proxy *x, struct pair *p, uint32_t i)
{
    struct way *w = &p->way[i];
    if (w->from == w->to && !w->ended) {
        ssize_t n = recv(p->fd[i], w->chunk, sizeof w->chunk, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            w->ended = true;
            (void)shutdown(p->fd[1 - i], SHUT_WR);
        }
        w->from = 0;
        w->to = n > 0 ? (uint32_t)n : 0;
        if (n > 0 && p->fault != PROXY_NONE && p->fault_way == i) {
            if (p->fault_at < (uint64_t)n) {
                if (strike(x, p, w, (uint32_t)n)) {
                    return false;
                }
            } else {
                p->fault_at -= (uint64_t)n;
            }
        }
    }
    if (w->from < w->to && p->quiet_until_ns <= now_ns()) {
        ssize_t n = send(p->fd[1 - i], w->chunk + w->from, w->to - w->from, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            end_pair(p, false);
            return false;
        }
        w->from += n > 0 ? (uint32_t)n : 0;
        atomic_fetch_add_explicit(&x->shared->bytes, n > 0 ? (uint64_t)n : 0, memory_order_relaxed);
        if (p->delay_until_ns > now_ns()) {
            p->quiet_until_ns = now_ns() + 2 * CORRAL_NS_PER_MS;
        }
    }
    if (p->way[0].ended && p->way[1].ended && p->way[0].from == p->way[0].to &&
        p->way[1].from == p->way[1].to) {
        end_pair(p, false);
        return false;
    }
    return true;
}

/* poll() what can go on; a pair that is quiet is looked at again when it ends. */
static uint32_t prepare_poll(struct proxy *x, int listener, struct pollfd *fds, int *timeout_ms)
{
    uint32_t count = 1;
    uint64_t now = now_ns();
    fds[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    *timeout_ms = 20; /* faults are armed without a wake-up */
    for (uint32_t i = 0; i < PAIRS_MAX; i++) {
        struct pair *p = &x->pair[i];
        if (p->fd[0] < 0) {
            continue;
        }
        if (p->quiet_until_ns > now) {
            *timeout_ms = CORRAL_MIN(*timeout_ms, 1);
            continue;
        }
        for (int k = 0; k < 2; k++) {
            const struct way *out = &p->way[k], *in = &p->way[1 - k];
            short events = (short)((out->from == out->to && !out->ended ? POLLIN : 0) |
                                   (in->from < in->to ? POLLOUT : 0));
            if (events) {
                fds[count++] = (struct pollfd){.fd = p->fd[k], .events = events};
            }
        }
    }
    return count;
}

_Noreturn void proxy_run(struct proxy_shared *shared)
{
    static struct proxy x;
    struct sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, 64) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
        _exit(1);
    }
    x.shared = shared;
    for (uint32_t i = 0; i < PAIRS_MAX; i++) {
        x.pair[i].fd[0] = x.pair[i].fd[1] = -1;
    }
    atomic_store_explicit(&shared->port, ntohs(address.sin_port), memory_order_release);
    for (;;) {
        struct pollfd fds[1 + 2 * PAIRS_MAX];
        int timeout_ms;
        uint32_t count = prepare_poll(&x, listener, fds, &timeout_ms);
        (void)poll(fds, count, timeout_ms);
        look_for_fault(&x);
        if (fds[0].revents) {
            take_connection(&x, listener);
        }
        for (uint32_t i = 0; i < PAIRS_MAX; i++) {
            struct pair *p = &x.pair[i];
            if (p->fd[0] >= 0 && p->quiet_until_ns <= now_ns() && forward(&x, p, 0)) {
                (void)forward(&x, p, 1);
            }
        }
    }
}
