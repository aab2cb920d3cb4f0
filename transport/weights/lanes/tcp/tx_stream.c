/* The sender's threads, one per connection: take the next piece, hand it to the kernel, again. */
#include "transport/weights/lanes/tcp/internal.h"

#include <errno.h>
#include <string.h>

/* The next piece of the oldest bucket that has any, into the stream's frame and iovec (from iov[1] on). With the lock held. */
static uint32_t claim(struct tcp_tx *tx, struct tcp_tx_stream *s)
{
    const struct corral_link *link = tx->base.link;
    struct tcp_job *job = &tx->job[tx->claiming % tx->window];
    uint64_t from = job->cursor.at;
    uint32_t n = 1;
    job->cursor.end = CORRAL_MIN(job->end, from + TCP_PIECE);
    uint64_t in_bucket = from - job->bucket * link->bucket_bytes;
    if (job->packed != NULL) {
        s->iov[1] = (struct iovec){.iov_base = (void *)(uintptr_t)(job->packed + in_bucket),
                                   .iov_len = job->cursor.end - from};
        job->cursor.at = job->cursor.end;
    } else {
        n = corral_link_iovec(link, &job->cursor, CORRAL_LINK_SOURCE, tx->source->host, s->iov + 1,
                              TCP_PIECE_IOVECS);
    }
    s->frame = (struct tcp_frame){.push = tx->push,
                                  .number = tx->claiming,
                                  .from = in_bucket,
                                  .total = job->end - job->bucket * link->bucket_bytes,
                                  .bucket = job->bucket,
                                  .bytes = (uint32_t)(job->cursor.at - from)};
    job->outstanding++;
    if (job->cursor.at == job->end) {
        tx->claiming++;
    }
    return n + 1;
}

void tcp_sent(struct iovec **iov, uint32_t *count, size_t done)
{
    while (*count > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (*count > 0) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

int tcp_send_all(int fd, struct iovec *iov, uint32_t count, int flags)
{
    while (count > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL | flags);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno;
        }
        tcp_sent(&iov, &count, (size_t)n);
    }
    return 0;
}

void tcp_finish(struct tcp_tx *tx, uint64_t number, int failed)
{
    struct tcp_job *job = &tx->job[number % tx->window];
    job->outstanding--;
    job->done = job->outstanding == 0 && job->cursor.at == job->end;
    uint64_t before = tx->left;
    while (tx->left < tx->claiming && tx->job[tx->left % tx->window].done) {
        tx->left++;
    }
    if (failed != 0 && tx->failed == 0) {
        tx->failed = failed;
    }
    if (tx->left != before || failed != 0) {
        corral_lane_signal(tx->event);
    }
}

static int send_piece(struct tcp_tx_stream *s, uint32_t count)
{
    uint8_t head[TCP_FRAME_BYTES];
    tcp_put_frame(head, &s->frame);
    s->iov[0] = (struct iovec){.iov_base = head, .iov_len = sizeof head};
    if (!s->zero.on && s->zero.pending == 0) {
        return tcp_send_all(s->fd, s->iov, count, 0);
    }
    /* The frame is on this stack: copied, and sent together with what follows. */
    int failed = tcp_send_all(s->fd, s->iov, 1, MSG_MORE);
    return failed != 0 ? failed : tcp_zero_send(s, s->iov + 1, count - 1, s->frame.number);
}

void tcp_wake_tx(struct tcp_tx *tx)
{
    pthread_cond_broadcast(&tx->work);
    for (uint32_t i = 0; i < tx->streams; i++) {
        if (tx->stream[i].zero.polling) {
            tx->stream[i].zero.polling = false;
            corral_lane_signal(tx->stream[i].zero.wake);
        }
    }
}

static void *stream(void *arg)
{
    struct tcp_tx_stream *s = arg;
    struct tcp_tx *tx = s->tx;
    pthread_mutex_lock(&tx->lock);
    for (;;) {
        while (!tx->stop && tx->failed == 0 && tx->claiming == tx->sent) {
            if (tx->zero_copy != CORRAL_LANE_ZERO_COPY_NEVER) {
                tcp_zero_idle(s);
            } else {
                pthread_cond_wait(&tx->work, &tx->lock);
            }
        }
        if (tx->stop || tx->failed != 0) {
            break;
        }
        uint32_t count = claim(tx, s);
        pthread_mutex_unlock(&tx->lock);
        int failed = send_piece(s, count);
        pthread_mutex_lock(&tx->lock);
        tcp_finish(tx, s->frame.number, failed);
    }
    pthread_mutex_unlock(&tx->lock);
    return NULL;
}

enum corral_status tcp_start_tx(struct tcp_tx *tx, struct corral_error *err)
{
    for (uint32_t i = 0; i < tx->streams; i++) {
        tx->stream[i].tx = tx;
        CORRAL_TRY(corral_lane_start(&tx->stream[i].thread, stream, &tx->stream[i], err));
    }
    return CORRAL_OK;
}

void tcp_stop_tx(struct tcp_tx *tx, bool cut)
{
    pthread_mutex_lock(&tx->lock);
    tx->stop = true;
    tcp_wake_tx(tx);
    pthread_mutex_unlock(&tx->lock);
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        if (cut && tx->stream[i].fd >= 0) {
            (void)shutdown(tx->stream[i].fd, SHUT_RDWR); /* wakes a thread that waits in sendmsg */
        }
    }
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        corral_lane_join(&tx->stream[i].thread);
    }
    for (uint32_t i = 0; cut && i < CORRAL_LANE_STREAMS_MAX; i++) {
        if (tx->stream[i].fd >= 0) {
            tcp_zero_abort(&tx->stream[i]);
        }
    }
}
