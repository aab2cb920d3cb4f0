/* Sending from the source's own pages (MSG_ZEROCOPY). A piece is not done with when the kernel has taken it but when the kernel has said so of every send of it, in the connection's error queue. */
#include "transport/weights/lanes/tcp/internal.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <string.h>

#define ABORT_LOOKS 500
#define ABORT_LOOK_NS UINT64_C(1000000)

enum corral_status tcp_zero_open(struct tcp_tx_stream *s, struct corral_error *err)
{
    CORRAL_TRY(corral_lane_event(&s->zero.wake, err));
    s->zero.on = true;
    return CORRAL_OK;
}

static void judge(struct tcp_tx_stream *s, bool copied)
{
    struct tcp_zero *z = &s->zero;
    z->copied = copied ? z->copied + 1 : 0;
    if (z->copied >= TCP_ZERO_COPIED && s->tx->zero_copy == CORRAL_LANE_ZERO_COPY_TRY) {
        z->on = false;
    }
}

/* The sends with these numbers, in a circle of 2^32. With the lane's lock held. */
static void done_with(struct tcp_tx_stream *s, uint32_t from, uint32_t to, int failed)
{
    struct tcp_zero *z = &s->zero;
    for (uint32_t n = z->first; n != z->next; n++) {
        uint32_t i = n % TCP_ZERO_SENDS;
        if (n - from <= to - from && z->send[i].pending) {
            z->send[i].pending = false;
            z->pending--;
            tcp_finish(s->tx, z->send[i].job, failed);
        }
    }
    while (z->first != z->next && !z->send[z->first % TCP_ZERO_SENDS].pending) {
        z->first++;
    }
}

static const struct sock_extended_err *answer_of(struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        bool error = (c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) ||
                     (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR);
        const struct sock_extended_err *e = (const struct sock_extended_err *)CMSG_DATA(c);
        if (error && e->ee_errno == 0 && e->ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
            return e;
        }
    }
    return NULL;
}

/* Takes in all answers that there are; whether there was any. */
static bool take_answers(struct tcp_tx_stream *s)
{
    bool any = false;
    for (;;) {
        _Alignas(struct cmsghdr) uint8_t control[256];
        struct msghdr m = {.msg_control = control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(s->fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return any;
        }
        const struct sock_extended_err *e = answer_of(&m);
        if (e == NULL) {
            continue;
        }
        any = true;
        judge(s, (e->ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0);
        pthread_mutex_lock(&s->tx->lock);
        done_with(s, e->ee_info, e->ee_data, 0);
        pthread_mutex_unlock(&s->tx->lock);
    }
}

/* What is wrong with a connection of which poll() said these; 0: nothing. */
static int trouble(const struct tcp_tx_stream *s, short events)
{
    int failed = 0;
    socklen_t length = sizeof failed;
    if ((events & (POLLERR | POLLHUP)) == 0) {
        return 0;
    }
    (void)getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &failed, &length);
    return failed == 0 && (events & POLLHUP) != 0 ? EPIPE : failed;
}

/* Until some send is done with. */
static int wait_answer(struct tcp_tx_stream *s)
{
    for (;;) {
        struct pollfd p = {.fd = s->fd};
        if (take_answers(s)) {
            return 0;
        }
        if (poll(&p, 1, -1) < 0 && errno != EINTR) {
            return errno;
        }
        if (take_answers(s)) {
            return 0;
        }
        int failed = trouble(s, p.revents);
        if (failed != 0) {
            return failed;
        }
    }
}

static void remember(struct tcp_tx_stream *s, uint64_t job)
{
    struct tcp_zero *z = &s->zero;
    uint32_t i = z->next++ % TCP_ZERO_SENDS;
    z->send[i].pending = true;
    z->send[i].job = job;
    z->pending++;
    pthread_mutex_lock(&s->tx->lock);
    s->tx->job[job % s->tx->window].outstanding++;
    pthread_mutex_unlock(&s->tx->lock);
}

int tcp_zero_send(struct tcp_tx_stream *s, struct iovec *iov, uint32_t count, uint64_t job)
{
    struct tcp_zero *z = &s->zero;
    if (z->pending > 0) {
        (void)take_answers(s);
    }
    while (count > 0 && z->on) {
        int failed = 0;
        if (z->next - z->first == TCP_ZERO_SENDS) {
            failed = wait_answer(s);
        } else {
            struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
            ssize_t n = sendmsg(s->fd, &m, MSG_NOSIGNAL | MSG_ZEROCOPY);
            if (n > 0) {
                remember(s, job);
                tcp_sent(&iov, &count, (size_t)n);
            } else if (errno == ENOBUFS &&
                       z->pending > 0) { /* locked memory or answers, of which there are limits */
                failed = wait_answer(s);
            } else if (errno == ENOBUFS) {
                break; /* others use it up */
            } else if (errno != EINTR) {
                failed = errno;
            }
        }
        if (failed != 0) {
            return failed;
        }
    }
    return tcp_send_all(s->fd, iov, count, 0);
}

void tcp_zero_idle(struct tcp_tx_stream *s)
{
    struct tcp_tx *tx = s->tx;
    struct tcp_zero *z = &s->zero;
    z->polling = true; /* tcp_wake_tx() has the lock too: nothing is missed */
    pthread_mutex_unlock(&tx->lock);
    struct pollfd p[2] = {{.fd = z->wake, .events = POLLIN},
                          {.fd = z->hung_up ? -1 : s->fd, .events = z->gone ? 0 : POLLRDHUP}};
    int failed = 0;
    if (poll(p, 2, -1) > 0) {
        corral_lane_drain(z->wake);
        (void)take_answers(s);
        failed = trouble(s, p[1].revents);
        bool gone = failed != 0 || (p[1].revents & (POLLRDHUP | POLLHUP)) != 0;
        if (gone && !z->gone) {
            corral_lane_signal(tx->event); /* tx_progress() looks for itself */
        }
        z->gone = z->gone || gone;
        z->hung_up = z->hung_up || (p[1].revents & POLLHUP) != 0;
    }
    pthread_mutex_lock(&tx->lock);
    z->polling = false;
    if (failed != 0 && z->pending > 0) {
        done_with(s, z->first, z->next - 1, failed); /* nobody will say more of them */
    }
}

void tcp_zero_abort(struct tcp_tx_stream *s)
{
    if (s->zero.pending == 0) {
        return;
    }
    /* What was sent but not acknowledged would be sent again and again, from those pages. This drops it. */
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    (void)connect(s->fd, &none, sizeof none);
    /* An adapter may be at a packet still. A connection that is no more is always "readable", so nothing but the time can be waited for. */
    corral_lane_drain(s->zero.wake);
    for (int i = 0; i < ABORT_LOOKS; i++) {
        (void)take_answers(s);
        if (s->zero.pending == 0 ||
            corral_lane_poll(s->zero.wake, POLLIN, corral_lane_deadline(ABORT_LOOK_NS))) {
            return;
        }
    }
}
