#include "transport/weights/lanes/tcp/internal.h"

#include "base/clock.h"
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void rx_close(struct corral_lane *lane, int32_t *tainted_pid)
{
    struct tcp_rx *rx = (struct tcp_rx *)lane;
    if (tainted_pid != NULL) {
        *tainted_pid = 0; /* only this process writes, and its threads end here */
    }
    if (rx == NULL) {
        return;
    }
    tcp_stop_rx(rx);
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        corral_cleanup_close(&rx->stream[i].fd);
    }
    corral_cleanup_close(&rx->listener);
    corral_cleanup_close(&rx->event);
    pthread_mutex_destroy(&rx->lock);
    pthread_cond_destroy(&rx->room);
    free(rx->slots);
    free(rx);
}

static void close_rx(struct tcp_rx **rx)
{
    rx_close(*rx != NULL ? &(*rx)->base : NULL, NULL);
}

static uint32_t streams_of(const struct corral_lane_options *options)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t streams = options->streams != 0 ? options->streams : cores < 4 ? 2 : 4;
    return CORRAL_MIN(streams, (uint32_t)CORRAL_LANE_STREAMS_MAX);
}

static enum corral_status rx_open(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options, struct corral_lane_blob *offer,
                                  struct corral_error *err)
{
    CORRAL_CLEANUP(close_rx) struct tcp_rx *rx = calloc(1, sizeof *rx);
    if (rx == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot open the tcp lane: out of memory");
    }
    rx->base = (struct corral_lane){.ops = &corral_lane_tcp_ops, .link = link, .fd = -1};
    rx->listener = rx->event = -1;
    for (uint32_t i = 0; i < CORRAL_LANE_STREAMS_MAX; i++) {
        rx->stream[i].fd = -1;
    }
    pthread_mutex_init(&rx->lock, NULL);
    pthread_cond_init(&rx->room, NULL);
    rx->window = corral_lane_window(options);
    rx->open_timeout_ns = corral_lane_open_timeout(options);
    rx->run_bytes = corral_lane_run_bytes(link);
    rx->offer.streams = streams_of(options);
    corral_random_bytes(rx->offer.token, sizeof rx->offer.token);
    CORRAL_TRY(corral_lane_event(&rx->event, err));
    rx->base.fd = rx->event;
    const char *host = options->local_host != NULL ? options->local_host : "127.0.0.1";
    CORRAL_TRY(tcp_listen(host, &rx->listener, &rx->offer, err));
    tcp_put_offer(offer, link, &rx->offer);
    *out = &CORRAL_STEAL(rx)->base;
    return CORRAL_OK;
}

static enum corral_status rx_connect(struct corral_lane *lane, const struct corral_lane_blob *answer,
                                     struct corral_error *err)
{
    struct tcp_rx *rx = (struct tcp_rx *)lane;
    CORRAL_TRY(corral_lane_blob_check(answer, CORRAL_LANE_TCP, lane->link, CORRAL_LANE_BLOB_HEAD + 4, err));
    uint32_t streams = corral_lane_get32(answer->data + CORRAL_LANE_BLOB_HEAD);
    if (rx->streams != 0 || streams == 0 || streams > rx->offer.streams) {
        return corral_fail(err, CORRAL_PROTOCOL, "the tcp lane's answer has %u streams of %u", streams,
                           rx->offer.streams);
    }
    rx->streams = streams;
    int fd[CORRAL_LANE_STREAMS_MAX];
    memset(fd, 0xff, sizeof fd);
    enum corral_status status =
        tcp_accept(rx->listener, lane->link, &rx->offer, streams, rx->open_timeout_ns, fd, err);
    for (uint32_t i = 0; i < streams; i++) {
        rx->stream[i].fd = fd[i];
    }
    corral_cleanup_close(&rx->listener);
    rx->listener = -1;
    rx->broken = true; /* until the threads run */
    CORRAL_TRY(status);
    CORRAL_TRY(tcp_start_rx(rx, err));
    rx->broken = false;
    return CORRAL_OK;
}

static enum corral_status make_slots(struct tcp_rx *rx, struct corral_error *err)
{
    const struct corral_link *link = rx->base.link;
    if (rx->slots != NULL) {
        return CORRAL_OK;
    }
    rx->slot_bytes = CORRAL_MAX(CORRAL_MIN(link->bucket_bytes, link->bytes), 1u);
    rx->slots = malloc(rx->window * rx->slot_bytes);
    if (rx->slots == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot get %u buckets of %" PRIu64 " bytes for the tcp lane",
                           rx->window, rx->slot_bytes);
    }
    rx->base.memory_bytes += rx->window * rx->slot_bytes;
    return CORRAL_OK;
}

static enum corral_status rx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *destination,
                                   struct corral_lane_blob *place, struct corral_error *err)
{
    struct tcp_rx *rx = (struct tcp_rx *)lane;
    if (rx->active || rx->broken || rx->streams == 0 || push <= rx->push) {
        return corral_fail(err, CORRAL_STATE, "push %" PRIu64 " after %" PRIu64 " on a tcp lane that %s",
                           push, rx->push,
                           rx->active         ? "is in another one"
                           : rx->streams == 0 ? "is not connected"
                           : rx->broken       ? "has failed and must be closed"
                                              : "counts upwards");
    }
    CORRAL_TRY(corral_lane_check_shard(destination, lane->link, CORRAL_LINK_DESTINATION, err));
    bool staged = destination->host == NULL || rx->run_bytes < TCP_SHORT_RUN;
    if (staged) {
        CORRAL_TRY(make_slots(rx, err));
    }
    pthread_mutex_lock(&rx->lock);
    for (uint32_t i = 0; i < CORRAL_LANE_WINDOW_MAX; i++) {
        rx->entry[i] = (struct tcp_entry){.number = i};
    }
    rx->complete_first = rx->complete_count = 0;
    rx->push = push;
    rx->active = true;
    rx->staged = staged;
    rx->ring = staged ? rx->window : TCP_RING;
    rx->host = destination->host;
    rx->destination = destination;
    pthread_mutex_unlock(&rx->lock);
    corral_lane_blob_begin(place, CORRAL_LANE_TCP, lane->link);
    corral_lane_put64(place->data + place->bytes, push);
    place->bytes += 8;
    return CORRAL_OK;
}

/* The oldest complete bucket; false when there is none. */
static bool next_complete(struct tcp_rx *rx, uint32_t *entry, uint32_t *bucket)
{
    pthread_mutex_lock(&rx->lock);
    bool any = rx->complete_count > 0;
    if (any) {
        *entry = rx->complete[rx->complete_first];
        *bucket = rx->entry[*entry].bucket;
        rx->complete_first = (rx->complete_first + 1) % CORRAL_LANE_WINDOW_MAX;
        rx->complete_count--;
    }
    pthread_mutex_unlock(&rx->lock);
    return any;
}

static void free_entry(struct tcp_rx *rx, uint32_t entry)
{
    pthread_mutex_lock(&rx->lock);
    rx->entry[entry] = (struct tcp_entry){.number = rx->entry[entry].number + rx->ring};
    pthread_cond_broadcast(&rx->room);
    pthread_mutex_unlock(&rx->lock);
}

static enum corral_status take_all(struct tcp_rx *rx, uint32_t *bucket, uint32_t room, uint32_t *count,
                                   struct corral_error *err)
{
    uint32_t entry, which;
    while (*count < room && next_complete(rx, &entry, &which)) {
        if (rx->staged) {
            /* No thread changes the entry of a complete bucket before it is freed. */
            CORRAL_TRY(corral_lane_deliver(rx->destination, rx->base.link, which,
                                           rx->slots + entry * rx->slot_bytes, rx->entry[entry].total, err));
        }
        free_entry(rx, entry);
        bucket[(*count)++] = which;
    }
    return CORRAL_OK;
}

/* Whether anything is still to be taken, can still come, or why not. */
static enum corral_status outlook(struct tcp_rx *rx, bool *more, struct corral_error *err)
{
    pthread_mutex_lock(&rx->lock);
    uint32_t ended = 0;
    for (uint32_t i = 0; i < rx->streams; i++) {
        ended += rx->stream[i].ended;
    }
    *more = rx->complete_count > 0;
    enum corral_status status = rx->failed;
    struct corral_error failure = rx->failure;
    pthread_mutex_unlock(&rx->lock);
    if (status != CORRAL_OK) {
        return corral_fail(err, status, "%s", failure.text);
    }
    if (ended == rx->streams && !*more) {
        return corral_fail(err, CORRAL_PEER, "the sender of the tcp lane has gone");
    }
    return CORRAL_OK;
}

static enum corral_status rx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint32_t *bucket,
                                      uint32_t room, uint32_t *count, struct corral_error *err)
{
    struct tcp_rx *rx = (struct tcp_rx *)lane;
    if (!rx->active) {
        return corral_fail(err, CORRAL_STATE, "progress of a tcp lane outside of a push");
    }
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    for (;;) {
        uint32_t n = 0;
        bool more;
        corral_lane_drain(rx->event);
        CORRAL_TRY(take_all(rx, bucket, room, &n, err));
        enum corral_status status = outlook(rx, &more, err);
        if (more || status != CORRAL_OK) {
            corral_lane_signal(rx->event); /* stay readable */
        }
        if (n == 0 && status != CORRAL_OK) {
            return status;
        }
        if (n > 0 || room == 0 || timeout_ns == 0 || corral_now_ns(&corral_clock_monotonic) >= deadline) {
            *count = n;
            return CORRAL_OK;
        }
        if (!more) {
            corral_lane_wait(lane->fd, deadline);
        }
    }
}

static enum corral_status rx_taken(struct corral_lane *lane, uint32_t bucket, struct corral_error *err)
{
    const struct tcp_rx *rx = (struct tcp_rx *)lane;
    if (!rx->active || bucket >= lane->link->buckets) {
        return corral_fail(err, CORRAL_STATE, "bucket %u taken outside of a push", bucket);
    }
    return CORRAL_OK; /* its slot is free since it was scattered */
}

static enum corral_status rx_end(struct corral_lane *lane, bool ok, struct corral_error *err)
{
    struct tcp_rx *rx = (struct tcp_rx *)lane;
    if (!rx->active) {
        return corral_fail(err, CORRAL_STATE, "the end of a push that has not begun");
    }
    bool writing = false;
    pthread_mutex_lock(&rx->lock);
    rx->active = false;
    rx->ended_push = rx->push;
    for (uint32_t i = 0; i < rx->streams; i++) {
        writing = writing || rx->stream[i].writing;
    }
    pthread_cond_broadcast(&rx->room);
    pthread_mutex_unlock(&rx->lock);
    /* A bucket that was sent twice may still be coming in. Its thread must not be left in the middle of memory that the caller is about to use. */
    if (!ok || writing) {
        rx->broken = true;
        tcp_stop_rx(rx);
    }
    rx->destination = NULL;
    return CORRAL_OK;
}

static enum corral_status available(const struct corral_lane_options *options, struct corral_error *err)
{
    struct tcp_offer offer;
    CORRAL_AUTO_CLOSE int fd = -1;
    const char *host = options->local_host != NULL ? options->local_host : "127.0.0.1";
    struct corral_error why;
    if (tcp_listen(host, &fd, &offer, &why) != CORRAL_OK) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "%.400s", why.text);
    }
    return CORRAL_OK;
}

const struct corral_lane_ops corral_lane_tcp_ops = {
    .name = "tcp",
    .kind = CORRAL_LANE_TCP,
    .available = available,
    .rx_open = rx_open,
    .rx_connect = rx_connect,
    .rx_begin = rx_begin,
    .rx_progress = rx_progress,
    .rx_taken = rx_taken,
    .rx_end = rx_end,
    .rx_close = rx_close,
    .tx_open = corral_tcp_tx_open,
    .tx_begin = corral_tcp_tx_begin,
    .tx_send = corral_tcp_tx_send,
    .tx_progress = corral_tcp_tx_progress,
    .tx_end = corral_tcp_tx_end,
    .tx_close = corral_tcp_tx_close,
    .tx_send_encoded = corral_tcp_tx_send_encoded,
};
