#include "transport/weights/lanes/tcp/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define END_NS UINT64_C(1000000000)

void corral_tcp_tx_close(struct corral_lane *lane)
{
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    if (tx == NULL) {
        return;
    }
    tcp_stop_tx(tx, tx->active || tx->broken);
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        corral_cleanup_close(&tx->stream[i].fd);
        corral_cleanup_close(&tx->stream[i].zero.wake);
    }
    corral_cleanup_close(&tx->event);
    corral_cleanup_close(&tx->base.fd);
    pthread_mutex_destroy(&tx->lock);
    pthread_cond_destroy(&tx->work);
    free(tx->packed);
    free(tx);
}

static void close_tx(struct tcp_tx **tx)
{
    corral_tcp_tx_close(*tx != NULL ? &(*tx)->base : NULL);
}

static enum corral_status wait_connected(int fd, uint64_t deadline, struct corral_error *err)
{
    int failed = 0;
    socklen_t length = sizeof failed;
    if (!corral_lane_poll(fd, POLLOUT, deadline)) {
        return corral_fail(err, CORRAL_TIMEOUT, "the tcp lane's receiver does not accept connections");
    }
    (void)getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &length);
    return failed == 0 ? CORRAL_OK
                       : corral_fail_sys(err, failed, "cannot connect to the tcp lane's receiver");
}

static enum corral_status call(const struct tcp_offer *offer, const char *local_host, uint64_t deadline,
                               int *out, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd =
        socket(offer->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot make a socket for the tcp lane");
    }
    if (local_host != NULL) {
        struct sockaddr_storage from;
        socklen_t bytes;
        CORRAL_TRY(tcp_parse_host(local_host, &from, &bytes, err));
        if (from.ss_family == offer->address.ss_family && bind(fd, (struct sockaddr *)&from, bytes) != 0) {
            return corral_fail_sys(err, errno, "the tcp lane cannot send from %s", local_host);
        }
    }
    tcp_tune(fd);
    if (connect(fd, (const struct sockaddr *)&offer->address, offer->address_bytes) != 0) {
        if (errno != EINPROGRESS) {
            return corral_fail_sys(err, errno, "cannot connect to the tcp lane's receiver");
        }
        CORRAL_TRY(wait_connected(fd, deadline, err));
    }
    if (fcntl(fd, F_SETFL, 0) != 0) { /* blocking: its thread waits in it */
        return corral_fail_sys(err, errno, "cannot make a socket of the tcp lane wait");
    }
    tcp_settle(fd);
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

static enum corral_status connect_all(struct tcp_tx *tx, const struct tcp_offer *offer,
                                      const struct corral_lane_options *options, struct corral_error *err)
{
    uint64_t deadline = corral_lane_deadline(corral_lane_open_timeout(options));
    for (uint32_t i = 0; i < tx->streams; i++) {
        struct tcp_tx_stream *s = &tx->stream[i];
        CORRAL_TRY(call(offer, options->local_host, deadline, &s->fd, err));
        uint8_t hello[TCP_HELLO_BYTES];
        tcp_put_hello(hello, tx->base.link, offer->token, i);
        if (send(s->fd, hello, sizeof hello, MSG_NOSIGNAL) != (ssize_t)sizeof hello) {
            return corral_fail_sys(err, errno, "cannot greet the tcp lane's receiver");
        }
    }
    for (uint32_t i = 0; i < tx->streams && tx->zero_copy != CORRAL_LANE_ZERO_COPY_NEVER; i++) {
        if (setsockopt(tx->stream[i].fd, SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)) != 0) {
            tx->zero_copy = CORRAL_LANE_ZERO_COPY_NEVER; /* an old kernel */
        }
    }
    for (uint32_t i = 0; i < tx->streams; i++) {
        if (tx->zero_copy == CORRAL_LANE_ZERO_COPY_NEVER) {
            CORRAL_TRY(corral_lane_watch(&tx->base.fd, tx->stream[i].fd, EPOLLRDHUP, err));
        } else { /* its thread looks: epoll would also tell of every answer in the error queue */
            CORRAL_TRY(tcp_zero_open(&tx->stream[i], err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_tcp_tx_open(struct corral_lane **out, const struct corral_link *link,
                                      const struct corral_lane_options *options,
                                      const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                      struct corral_error *err)
{
    struct tcp_offer o;
    CORRAL_TRY(tcp_get_offer(offer, link, &o, err));
    CORRAL_CLEANUP(close_tx) struct tcp_tx *tx = calloc(1, sizeof *tx);
    if (tx == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot open the tcp lane: out of memory");
    }
    tx->base = (struct corral_lane){.ops = &corral_lane_tcp_ops, .link = link, .fd = -1};
    tx->event = -1;
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        tx->stream[i].fd = tx->stream[i].zero.wake = -1;
    }
    pthread_mutex_init(&tx->lock, NULL);
    pthread_cond_init(&tx->work, NULL);
    tx->window = corral_lane_window(options);
    tx->zero_copy = options->zero_copy;
    tx->run_bytes = corral_lane_run_bytes(link);
    tx->streams = options->streams == 0 ? o.streams : CORRAL_MIN(o.streams, options->streams);
    CORRAL_TRY(corral_lane_event(&tx->event, err));
    CORRAL_TRY(corral_lane_watch(&tx->base.fd, tx->event, EPOLLIN, err));
    CORRAL_TRY(connect_all(tx, &o, options, err));
    CORRAL_TRY(tcp_start_tx(tx, err));
    corral_lane_blob_begin(answer, CORRAL_LANE_TCP, link);
    corral_lane_put32(answer->data + answer->bytes, tx->streams);
    answer->bytes += 4;
    *out = &CORRAL_STEAL(tx)->base;
    return CORRAL_OK;
}

static bool needs_packing(const struct tcp_tx *tx, const struct corral_shard *source)
{
    return source->host == NULL || tx->run_bytes < TCP_SHORT_RUN;
}

static uint64_t bucket_room(const struct corral_link *link)
{
    return CORRAL_MAX(CORRAL_MIN(link->bucket_bytes, link->bytes), 1u);
}

enum corral_status corral_tcp_tx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *source,
                                       const struct corral_lane_blob *place, struct corral_error *err)
{
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    if (tx->active || tx->broken) {
        return corral_fail(err, CORRAL_STATE, "push %" PRIu64 " on a tcp lane that %s", push,
                           tx->active ? "is in another one" : "has failed and must be closed");
    }
    CORRAL_TRY(corral_lane_check_shard(source, lane->link, CORRAL_LINK_SOURCE, err));
    CORRAL_TRY(corral_lane_blob_check(place, CORRAL_LANE_TCP, lane->link, CORRAL_LANE_BLOB_HEAD + 8, err));
    if (corral_lane_get64(place->data + CORRAL_LANE_BLOB_HEAD) != push) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver's place is for another push than %" PRIu64,
                           push);
    }
    if (needs_packing(tx, source) && tx->packed == NULL) {
        tx->packed = malloc(tx->window * bucket_room(lane->link));
        if (tx->packed == NULL) {
            return corral_fail(err, CORRAL_NOMEM,
                               "cannot get %u buckets of %" PRIu64 " bytes for the tcp lane", tx->window,
                               bucket_room(lane->link));
        }
        lane->memory_bytes += tx->window * bucket_room(lane->link);
    }
    pthread_mutex_lock(&tx->lock);
    tx->source = source;
    tx->push = push;
    tx->sent = tx->claiming = tx->left = tx->reported = 0;
    pthread_mutex_unlock(&tx->lock);
    tx->active = true;
    return CORRAL_OK;
}

/* CORRAL_AGAIN: as many are in flight as fit. */
static enum corral_status may_send(struct tcp_tx *tx, uint32_t bucket, struct corral_error *err)
{
    const struct corral_link *link = tx->base.link;
    if (!tx->active || bucket >= link->buckets) {
        return corral_fail(err, CORRAL_STATE, "bucket %u of %u sent outside of a push", bucket,
                           link->buckets);
    }
    pthread_mutex_lock(&tx->lock);
    bool full = tx->sent - tx->left >= tx->window;
    int failed = tx->failed;
    pthread_mutex_unlock(&tx->lock);
    if (failed != 0) {
        return corral_fail(err, CORRAL_PEER, "the tcp lane to rank %u broke: %s", link->destination,
                           strerror(failed));
    }
    return full ? CORRAL_AGAIN : CORRAL_OK;
}

static void queue(struct tcp_tx *tx, const struct tcp_job *job)
{
    pthread_mutex_lock(&tx->lock);
    tx->job[tx->sent % tx->window] = *job;
    tx->sent++;
    tcp_wake_tx(tx);
    pthread_mutex_unlock(&tx->lock);
}

enum corral_status corral_tcp_tx_send(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    const struct corral_link *link = lane->link;
    CORRAL_TRY(may_send(tx, bucket, err));
    struct tcp_job job = {.bucket = bucket, .cursor = corral_link_seek(link, bucket)};
    job.end = job.cursor.end;
    if (needs_packing(tx, tx->source)) {
        /* On this thread, while the streams are at earlier buckets. */
        uint8_t *to = tx->packed + tx->sent % tx->window * bucket_room(link);
        CORRAL_TRY(tx->source->ops->gather(tx->source, link, bucket, to, err));
        job.packed = to;
    }
    queue(tx, &job);
    return CORRAL_OK;
}

enum corral_status corral_tcp_tx_send_encoded(struct corral_lane *lane, uint32_t bucket, const void *encoded,
                                              uint64_t bytes, struct corral_error *err)
{
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    CORRAL_TRY(corral_lane_check_encoded(lane->link, bucket, bytes, err));
    CORRAL_TRY(may_send(tx, bucket, err));
    struct tcp_job job = {
        .bucket = bucket, .cursor = corral_link_seek(lane->link, bucket), .packed = encoded};
    job.end = job.cursor.at + bytes;
    queue(tx, &job);
    return CORRAL_OK;
}

static bool receiver_gone(const struct tcp_tx *tx)
{
    struct pollfd p[CORRAL_LANE_STREAMS_MAX];
    for (uint32_t i = 0; i < tx->streams; i++) {
        p[i] = (struct pollfd){.fd = tx->stream[i].fd, .events = POLLRDHUP};
    }
    bool gone = false;
    if (poll(p, tx->streams, 0) > 0) {
        for (uint32_t i = 0; i < tx->streams; i++) { /* POLLERR: also an answer to a send from own pages */
            gone = gone || (p[i].revents & (POLLRDHUP | POLLHUP)) != 0;
        }
    }
    return gone;
}

enum corral_status corral_tcp_tx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint64_t *left,
                                          struct corral_error *err)
{
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    if (!tx->active) {
        return corral_fail(err, CORRAL_STATE, "progress of a tcp lane outside of a push");
    }
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    for (bool waited = false;; waited = true) {
        corral_lane_drain(tx->event);
        pthread_mutex_lock(&tx->lock);
        uint64_t now_left = tx->left;
        int failed = tx->failed;
        pthread_mutex_unlock(&tx->lock);
        if (failed != 0) {
            return corral_fail(err, CORRAL_PEER, "the tcp lane to rank %u broke: %s", lane->link->destination,
                               strerror(failed));
        }
        if (now_left == tx->reported && receiver_gone(tx)) {
            return corral_fail(err, CORRAL_PEER, "the receiver of the tcp lane has gone");
        }
        if (waited || now_left != tx->reported || timeout_ns == 0) {
            tx->reported = now_left;
            *left = now_left;
            return CORRAL_OK;
        }
        corral_lane_wait(lane->fd, deadline);
    }
}

/* What the receiver has taken has left, but the thread that sent it may not have said so yet. */
static bool all_left(struct tcp_tx *tx)
{
    uint64_t deadline = corral_lane_deadline(END_NS);
    for (;;) {
        corral_lane_drain(tx->event);
        pthread_mutex_lock(&tx->lock);
        bool whole = tx->left == tx->sent, failed = tx->failed != 0;
        pthread_mutex_unlock(&tx->lock);
        if (failed || whole || !corral_lane_poll(tx->event, POLLIN, deadline)) {
            return whole && !failed;
        }
    }
}

enum corral_status corral_tcp_tx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    if (!tx->active) {
        return corral_fail(err, CORRAL_STATE, "the end of a push that has not begun");
    }
    bool whole = ok ? all_left(tx) : false;
    tx->active = false;
    tx->broken = !ok || !whole;
    if (tx->broken) {
        tcp_stop_tx(tx, true); /* nobody reads the source any more after this */
    }
    tx->source = NULL;
    if (ok && !whole) {
        return corral_fail(err, CORRAL_STATE, "push %" PRIu64 " ended before its buckets had left", tx->push);
    }
    return CORRAL_OK;
}
