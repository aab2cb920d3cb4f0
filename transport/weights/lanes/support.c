#include "transport/weights/lanes/support.h"

#include "base/clock.h"
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BLOB_MAGIC 0x4c525243u /* "CRRL" */
#define BLOB_VERSION 1u
#define OPEN_TIMEOUT_NS (5 * CORRAL_NS_PER_S)

void corral_lane_put32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

void corral_lane_put64(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

uint32_t corral_lane_get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

uint64_t corral_lane_get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

void corral_lane_blob_begin(struct corral_lane_blob *blob, enum corral_lane_kind kind,
                            const struct corral_link *link)
{
    memset(blob, 0, sizeof *blob);
    corral_lane_put32(blob->data, BLOB_MAGIC);
    corral_lane_put32(blob->data + 4, BLOB_VERSION << 16 | (uint32_t)kind);
    corral_lane_put64(blob->data + 8, link->hash.lo);
    corral_lane_put64(blob->data + 16, link->hash.hi);
    blob->bytes = CORRAL_LANE_BLOB_HEAD;
}

enum corral_status corral_lane_blob_check(const struct corral_lane_blob *blob, enum corral_lane_kind kind,
                                          const struct corral_link *link, uint32_t bytes,
                                          struct corral_error *err)
{
    if (blob->bytes != bytes || bytes < CORRAL_LANE_BLOB_HEAD ||
        corral_lane_get32(blob->data) != BLOB_MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "a lane's message of %u bytes is malformed", blob->bytes);
    }
    if (corral_lane_get32(blob->data + 4) != (BLOB_VERSION << 16 | (uint32_t)kind)) {
        return corral_fail(err, CORRAL_PROTOCOL, "a lane's message is of another lane or version (%08x)",
                           corral_lane_get32(blob->data + 4));
    }
    if (corral_lane_get64(blob->data + 8) != link->hash.lo ||
        corral_lane_get64(blob->data + 16) != link->hash.hi) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "a lane's message is for another link than rank %u to rank %u of this plan",
                           link->source, link->destination);
    }
    return CORRAL_OK;
}

uint64_t corral_lane_run_bytes(const struct corral_link *link)
{
    uint64_t runs = 0;
    for (uint32_t i = 0; i < link->copy_count; i++) {
        runs += (link->start[i + 1] - link->start[i]) / link->copy[i].run_bytes;
    }
    return runs == 0 ? 0 : link->bytes / runs;
}

enum corral_status corral_lane_check_shard(const struct corral_shard *shard, const struct corral_link *link,
                                           enum corral_link_side side, struct corral_error *err)
{
    uint64_t need = side == CORRAL_LINK_SOURCE ? link->source_extent : link->destination_extent;
    if (shard->bytes < need) {
        return corral_fail(err, CORRAL_INVALID,
                           "a shard of %" PRIu64 " bytes; the link from rank %u to rank %u needs %" PRIu64,
                           shard->bytes, link->source, link->destination, need);
    }
    return CORRAL_OK;
}

enum corral_status corral_lane_deliver(struct corral_shard *destination, const struct corral_link *link,
                                       uint32_t bucket, const void *staged, uint64_t bytes,
                                       struct corral_error *err)
{
    uint64_t size = corral_link_bucket_size(link, bucket);
    if (bytes == size) {
        return destination->ops->scatter(destination, link, bucket, staged, err);
    }
    if (bytes == 0 || bytes > size || destination->ops->decode == NULL) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "bucket %u came with %" PRIu64 " of %" PRIu64 " bytes to a shard that %s", bucket,
                           bytes, size, destination->ops->decode == NULL ? "decodes nothing" : "has fewer");
    }
    return destination->ops->decode(destination, link, bucket, staged, bytes, err);
}

enum corral_status corral_lane_check_encoded(const struct corral_link *link, uint32_t bucket, uint64_t bytes,
                                             struct corral_error *err)
{
    if (bucket >= link->buckets || bytes == 0 || bytes >= corral_link_bucket_size(link, bucket)) {
        return corral_fail(err, CORRAL_STATE, "an encoding of %" PRIu64 " bytes for bucket %u of %u", bytes,
                           bucket, link->buckets);
    }
    return CORRAL_OK;
}

void corral_lane_signal(int event)
{
    uint64_t one = 1;
    ssize_t n;
    do {
        n = write(event, &one, sizeof one); /* EAGAIN: the counter is full, so it is readable anyway */
    } while (n < 0 && errno == EINTR);
}

bool corral_lane_drain(int event)
{
    uint64_t count;
    ssize_t n;
    do {
        n = read(event, &count, sizeof count);
    } while (n < 0 && errno == EINTR);
    return n > 0;
}

enum corral_status corral_lane_event(int *out, struct corral_error *err)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot make an eventfd for a lane");
    }
    *out = fd;
    return CORRAL_OK;
}

enum corral_status corral_lane_watch(int *epoll, int fd, uint32_t events, struct corral_error *err)
{
    if (*epoll < 0) {
        *epoll = epoll_create1(EPOLL_CLOEXEC);
        if (*epoll < 0) {
            return corral_fail_sys(err, errno, "cannot make an epoll instance for a lane");
        }
    }
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(*epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        return corral_fail_sys(err, errno, "cannot watch a lane's descriptor");
    }
    return CORRAL_OK;
}

uint64_t corral_lane_deadline(uint64_t timeout_ns)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    return timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
}

bool corral_lane_poll(int fd, short events, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        uint64_t left = now < deadline_ns ? deadline_ns - now : 0;
        struct timespec wait = {.tv_sec = (time_t)CORRAL_MIN(left / CORRAL_NS_PER_S, 3600u),
                                .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
        struct pollfd p = {.fd = fd, .events = events};
        if (ppoll(&p, 1, &wait, NULL) > 0) {
            return true;
        }
        if (now >= deadline_ns) {
            return false;
        }
    }
}

void corral_lane_wait(int epoll, uint64_t deadline_ns)
{
    (void)corral_lane_poll(epoll, POLLIN, deadline_ns);
}

uint32_t corral_lane_window(const struct corral_lane_options *options)
{
    uint32_t window = options->window == 0 ? CORRAL_LANE_WINDOW_DEFAULT : options->window;
    return CORRAL_MIN(window, (uint32_t)CORRAL_LANE_WINDOW_MAX);
}

uint64_t corral_lane_open_timeout(const struct corral_lane_options *options)
{
    return options->open_timeout_ns == 0 ? OPEN_TIMEOUT_NS : options->open_timeout_ns;
}

enum corral_status corral_lane_start(struct corral_lane_thread *thread, void *(*run)(void *), void *arg,
                                     struct corral_error *err)
{
    sigset_t all, before;
    pthread_t id;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&id, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed != 0) {
        return corral_fail_sys(err, failed, "cannot start a thread of a lane");
    }
    thread->id = (unsigned long)id;
    thread->started = true;
    return CORRAL_OK;
}

void corral_lane_join(struct corral_lane_thread *thread)
{
    if (thread->started) {
        pthread_join((pthread_t)thread->id, NULL);
        thread->started = false;
    }
}
