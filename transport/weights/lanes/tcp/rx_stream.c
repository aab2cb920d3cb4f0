/* The receiver's threads, one per connection: read a frame, find its place, let the kernel put the bytes there, again. */
#include "transport/weights/lanes/tcp/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define IOVECS 64

enum admission { ADMIT, DISCARD, STOP };

/* With the lock held. */
static void fail(struct tcp_rx *rx, enum corral_status status, const char *what)
{
    if (rx->failed == CORRAL_OK && !rx->stop) {
        rx->failed = status;
        (void)corral_fail(&rx->failure, status, "the tcp lane from rank %u: %s", rx->base.link->source, what);
    }
    corral_lane_signal(rx->event);
}

/* False at the end of the connection. *begun: some bytes had come. */
static bool read_all(int fd, void *out, size_t bytes, bool *begun)
{
    size_t got = 0;
    *begun = false;
    while (got < bytes) {
        ssize_t n = recv(fd, (uint8_t *)out + got, bytes - got, MSG_WAITALL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        got += (size_t)n;
        *begun = true;
    }
    return true;
}

static bool read_iov(int fd, struct iovec *iov, uint32_t count)
{
    while (count > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = recvmsg(fd, &m, MSG_WAITALL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        size_t done = (size_t)n;
        while (count > 0 && done >= iov->iov_len) {
            done -= iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + done;
            iov->iov_len -= done;
        }
    }
    return true;
}

/* Where the piece belongs. Waits while its entry is for an earlier bucket: pieces of one connection come in rising numbers, so the connection with the lowest one never waits here, and the others only for it.
 * With the lock held. */
static enum admission admit(struct tcp_rx_stream *s, const struct tcp_frame *f)
{
    struct tcp_rx *rx = s->rx;
    for (;;) {
        if (rx->stop || rx->failed != CORRAL_OK) {
            return STOP;
        }
        if (f->push <= rx->ended_push) {
            return DISCARD; /* a bucket that was sent twice and came after the end */
        }
        if (!rx->active || f->push != rx->push) {
            fail(rx, CORRAL_PROTOCOL, "a piece of a push that has not begun");
            return STOP;
        }
        uint32_t index = (uint32_t)(f->number % rx->ring);
        struct tcp_entry *e = &rx->entry[index];
        if (f->number < e->number) {
            fail(rx, CORRAL_PROTOCOL, "a piece of a bucket that is complete");
            return STOP;
        }
        if (f->number == e->number) {
            if (!e->used) {
                e->used = true;
                e->bucket = f->bucket;
                e->total = f->total;
            }
            if (e->bucket != f->bucket || e->total != f->total || f->bytes > e->total - e->claimed) {
                fail(rx, CORRAL_PROTOCOL, "pieces that overlap");
                return STOP;
            }
            if (!rx->staged && e->total != corral_link_bucket_size(rx->base.link, f->bucket)) {
                fail(rx, CORRAL_PROTOCOL, "an encoded bucket for memory that takes them as they are");
                return STOP;
            }
            e->claimed += f->bytes;
            s->writing = true;
            return ADMIT;
        }
        pthread_cond_wait(&rx->room, &rx->lock);
    }
}

/* With the lock held. */
static void arrived(struct tcp_rx_stream *s, const struct tcp_frame *f)
{
    struct tcp_rx *rx = s->rx;
    s->writing = false;
    if (!rx->active || f->push != rx->push) {
        return; /* rx_end() cuts the connections when a piece is being written */
    }
    uint32_t index = (uint32_t)(f->number % rx->ring);
    struct tcp_entry *e = &rx->entry[index];
    e->got += f->bytes;
    if (e->got == e->total) {
        rx->complete[(rx->complete_first + rx->complete_count++) % CORRAL_LANE_WINDOW_MAX] = index;
        corral_lane_signal(rx->event);
    }
}

static bool discard(int fd, uint64_t bytes)
{
    uint8_t scratch[16384];
    bool begun;
    while (bytes > 0) {
        size_t n = CORRAL_MIN(bytes, sizeof scratch);
        if (!read_all(fd, scratch, n, &begun)) {
            return false;
        }
        bytes -= n;
    }
    return true;
}

static bool read_in_place(struct tcp_rx_stream *s, const struct tcp_frame *f, uint8_t *host)
{
    const struct corral_link *link = s->rx->base.link;
    struct corral_link_cursor cursor = corral_link_seek(link, f->bucket);
    struct corral_span span;
    uint64_t start = cursor.at;
    cursor.end = start + f->from;
    while (corral_link_next(link, &cursor, &span)) {
        /* go to the piece */
    }
    cursor.end = start + f->from + f->bytes;
    for (;;) {
        struct iovec iov[IOVECS];
        uint32_t n = corral_link_iovec(link, &cursor, CORRAL_LINK_DESTINATION, host, iov, IOVECS);
        if (n == 0) {
            return true;
        }
        if (!read_iov(s->fd, iov, n)) {
            return false;
        }
    }
}

/* False when the connection is of no more use. */
static bool one_piece(struct tcp_rx_stream *s, bool *torn)
{
    struct tcp_rx *rx = s->rx;
    uint8_t head[TCP_FRAME_BYTES];
    struct tcp_frame f = {0};
    if (!read_all(s->fd, head, sizeof head, torn)) {
        return false;
    }
    *torn = true;
    bool good = tcp_get_frame(head, rx->base.link, &f);
    pthread_mutex_lock(&rx->lock);
    if (!good) {
        fail(rx, CORRAL_PROTOCOL, "a malformed frame");
    }
    enum admission a = good ? admit(s, &f) : STOP;
    uint8_t *host = rx->host;
    bool staged = rx->staged;
    uint8_t *slot = staged ? rx->slots + f.number % rx->ring * rx->slot_bytes : NULL;
    pthread_mutex_unlock(&rx->lock);
    if (a == STOP) {
        return false;
    }
    bool ok;
    if (a == DISCARD) {
        return discard(s->fd, f.bytes);
    }
    if (staged) {
        struct iovec iov = {.iov_base = slot + f.from, .iov_len = f.bytes};
        ok = read_iov(s->fd, &iov, 1);
    } else {
        ok = read_in_place(s, &f, host);
    }
    pthread_mutex_lock(&rx->lock);
    if (ok) {
        arrived(s, &f);
    } else {
        s->writing = false;
    }
    pthread_mutex_unlock(&rx->lock);
    return ok;
}

static void *stream(void *arg)
{
    struct tcp_rx_stream *s = arg;
    bool torn = false;
    while (one_piece(s, &torn)) {
        torn = false;
    }
    pthread_mutex_lock(&s->rx->lock);
    s->ended = true;
    if (torn) {
        fail(s->rx, CORRAL_PEER, "a connection broke in the middle of a bucket");
    }
    corral_lane_signal(s->rx->event);
    pthread_mutex_unlock(&s->rx->lock);
    return NULL;
}

enum corral_status tcp_start_rx(struct tcp_rx *rx, struct corral_error *err)
{
    for (uint32_t i = 0; i < rx->streams; i++) {
        rx->stream[i].rx = rx;
        CORRAL_TRY(corral_lane_start(&rx->stream[i].thread, stream, &rx->stream[i], err));
    }
    return CORRAL_OK;
}

void tcp_stop_rx(struct tcp_rx *rx)
{
    pthread_mutex_lock(&rx->lock);
    rx->stop = true;
    pthread_cond_broadcast(&rx->room);
    pthread_mutex_unlock(&rx->lock);
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        if (rx->stream[i].fd >= 0) {
            (void)shutdown(rx->stream[i].fd, SHUT_RDWR); /* wakes a thread that waits in recvmsg */
        }
    }
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        corral_lane_join(&rx->stream[i].thread);
    }
}
