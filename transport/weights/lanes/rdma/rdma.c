#include "transport/weights/lanes/rdma/internal.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

uint64_t corral_rdma_slot_bytes(const struct corral_link *link)
{
    uint64_t bytes = CORRAL_MIN(link->bytes, link->bucket_bytes);
    return (CORRAL_RDMA_HEADER + bytes + 4095) & ~UINT64_C(4095);
}

static enum corral_status watch(struct corral_rdma_lane *lane, int fd, struct corral_error *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(lane->base.fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        return corral_fail_sys(err, errno, "rdma: watching an event descriptor");
    }
    return CORRAL_OK;
}

enum corral_status corral_rdma_lane_create(struct corral_rdma_lane **out, const struct corral_link *link,
                                           const struct corral_verbs *verbs, bool sender,
                                           struct corral_error *err)
{
    CORRAL_CLEANUP(corral_rdma_lane_closep) struct corral_rdma_lane *lane = calloc(1, sizeof(*lane));
    if (lane == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "rdma: no memory for a lane");
    }
    lane->base = (struct corral_lane){.ops = &corral_lane_rdma_ops, .link = link, .fd = -1};
    lane->verbs = verbs;
    lane->sender = sender;
    lane->kick = -1;
    lane->slot_bytes = corral_rdma_slot_bytes(link);
    if (sender) {
        lane->wr = calloc(CORRAL_RDMA_SLICES_MAX + 1, sizeof(*lane->wr));
        lane->sge = calloc(CORRAL_RDMA_SLICES_MAX + 1, sizeof(*lane->sge));
        if (lane->wr == NULL || lane->sge == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "rdma: no memory for work requests");
        }
    }
    if ((lane->base.fd = epoll_create1(EPOLL_CLOEXEC)) < 0 ||
        (lane->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        return corral_fail_sys(err, errno, "rdma: event descriptor of a lane");
    }
    CORRAL_TRY(watch(lane, lane->kick, err));
    *out = CORRAL_STEAL(lane);
    return CORRAL_OK;
}

void corral_rdma_lane_close(struct corral_rdma_lane *lane)
{
    if (lane == NULL) {
        return;
    }
    for (uint32_t i = 0; i < lane->rails; i++) {
        corral_rdma_rail_close(&lane->rail[i], lane->verbs);
    }
    /* Only now: no adapter knows of it any more. */
    if (lane->staging != NULL) {
        munmap(lane->staging, lane->staging_bytes);
    }
    corral_cleanup_close(&lane->kick);
    corral_cleanup_close(&lane->base.fd);
    free(lane->wr);
    free(lane->sge);
    free(lane);
}

enum corral_status corral_rdma_staging_map(struct corral_rdma_lane *lane, uint32_t window,
                                           struct corral_error *err)
{
    uint64_t bytes = lane->slot_bytes * window;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return corral_fail_sys(err, errno, "rdma: %llu bytes of staging", (unsigned long long)bytes);
    }
    madvise(p, bytes, MADV_HUGEPAGE); /* fewer entries in the adapter's page table; only a wish */
    madvise(p, bytes, MADV_DONTFORK);
    lane->staging = p;
    lane->staging_bytes = bytes;
    lane->window = window;
    lane->base.memory_bytes = bytes;
    return CORRAL_OK;
}

enum corral_status corral_rdma_lane_add_rail(struct corral_rdma_lane *lane, struct corral_rdma_port *port,
                                             uint32_t streams, uint32_t send_depth, struct corral_error *err)
{
    struct corral_rdma_rail *rail = &lane->rail[lane->rails];
    struct corral_rdma_rail_needs needs = {
        .staging = lane->staging,
        .staging_bytes = lane->staging_bytes,
        .remote_write = !lane->sender,
        .queue_pairs = streams,
        .send_depth = send_depth,
        .receive_depth = 2 * lane->window,
    };
    CORRAL_TRY(corral_rdma_rail_open(rail, lane->verbs, port, &needs, err));
    lane->rails++;
    CORRAL_TRY(watch(lane, rail->channel->fd, err));
    return watch(lane, rail->port.context->async_fd, err);
}

enum corral_status corral_rdma_lane_connect(struct corral_rdma_lane *lane, struct corral_error *err)
{
    lane->queue_pairs = lane->rails * lane->streams;
    for (uint32_t r = 0; r < lane->rails; r++) {
        for (uint32_t s = 0; s < lane->streams; s++) {
            CORRAL_TRY(corral_rdma_rail_receive(&lane->rail[r], s, 2 * lane->window, err));
        }
        CORRAL_TRY(corral_rdma_rail_connect(&lane->rail[r], lane->verbs, &lane->peer[r], err));
        CORRAL_TRY(corral_rdma_rail_arm(&lane->rail[r], err));
    }
    lane->connected = true;
    return CORRAL_OK;
}

void corral_rdma_lane_describe(const struct corral_rdma_lane *lane, struct corral_rdma_address *out)
{
    memset(out, 0, sizeof(*out));
    out->generation = lane->generation;
    out->link = lane->base.link->hash;
    out->slot_bytes = lane->slot_bytes;
    out->window = (uint8_t)lane->window;
    out->rails = (uint8_t)lane->rails;
    out->streams = (uint8_t)lane->rail[0].qps;
    for (uint32_t i = 0; i < lane->rails; i++) {
        corral_rdma_rail_describe(&lane->rail[i], &out->rail[i]);
    }
}

enum corral_status corral_rdma_fail(struct corral_rdma_lane *lane, struct corral_error *err)
{
    if (lane->failed.status == CORRAL_OK) {
        lane->failed = *err;
    }
    return lane->failed.status;
}

enum corral_status corral_rdma_check(const struct corral_rdma_lane *lane, struct corral_error *err)
{
    if (lane->failed.status != CORRAL_OK) {
        return corral_fail(err, lane->failed.status, "%s", lane->failed.text);
    }
    if (!lane->connected) {
        return corral_fail(err, CORRAL_STATE, "rdma: the lane is not connected");
    }
    return CORRAL_OK;
}

static enum corral_status completion_error(const struct corral_rdma_lane *lane, uint32_t rail, uint32_t qp,
                                           const struct ibv_wc *wc, struct corral_error *err)
{
    bool peer = wc->status == IBV_WC_RETRY_EXC_ERR || wc->status == IBV_WC_RNR_RETRY_EXC_ERR ||
                wc->status == IBV_WC_REM_ABORT_ERR || wc->status == IBV_WC_REM_OP_ERR;
    return corral_fail(err, peer ? CORRAL_PEER : CORRAL_IO,
                       "rdma %s, queue pair 0x%x to 0x%x: %s (status %d, vendor error 0x%x)",
                       lane->rail[rail].port.name, wc->qp_num, lane->peer[rail].qpn[qp],
                       lane->verbs->wc_status_str(wc->status), wc->status, wc->vendor_err);
}

static enum corral_status poll_rail(struct corral_rdma_lane *lane, uint32_t r, struct corral_error *err)
{
    struct ibv_wc wc[CORRAL_RDMA_POLL_MAX];
    int n;
    do {
        n = ibv_poll_cq(lane->rail[r].cq, CORRAL_RDMA_POLL_MAX, wc);
        if (n < 0) {
            return corral_fail(err, CORRAL_IO, "rdma %s: the completion queue cannot be read",
                               lane->rail[r].port.name);
        }
        for (int i = 0; i < n; i++) { /* all of them, also those behind an error */
            lane->rail[r].receives[wc[i].wr_id % CORRAL_RDMA_STREAMS_MAX] -=
                (wc[i].wr_id & CORRAL_RDMA_RECEIVE) != 0;
        }
        for (int i = 0; i < n; i++) {
            uint32_t s = (uint32_t)(wc[i].wr_id % CORRAL_RDMA_STREAMS_MAX);
            if (wc[i].status != IBV_WC_SUCCESS) {
                return completion_error(lane, r, s, &wc[i], err);
            }
            uint32_t qp = r * lane->streams + s;
            if (wc[i].wr_id / CORRAL_RDMA_STREAMS_MAX == CORRAL_RDMA_PROBE) {
                lane->probing &= ~(1u << r);
                continue;
            }
            CORRAL_TRY(lane->sender ? corral_rdma_tx_completed(lane, qp, &wc[i], err)
                                    : corral_rdma_rx_completed(lane, qp, &wc[i], err));
        }
    } while (n == CORRAL_RDMA_POLL_MAX);
    return CORRAL_OK;
}

enum corral_status corral_rdma_poll(struct corral_rdma_lane *lane, struct corral_error *err)
{
    struct corral_error e = {.status = CORRAL_OK};
    for (uint32_t r = 0; r < lane->rails; r++) {
        if (poll_rail(lane, r, &e) != CORRAL_OK) {
            corral_rdma_fail(lane, &e);
            return corral_rdma_check(lane, err);
        }
    }
    return CORRAL_OK;
}

/* A queue may be armed again when its descriptor has been emptied. */
static enum corral_status take_events(struct corral_rdma_lane *lane, struct corral_error *err)
{
    struct corral_error e = {.status = CORRAL_OK};
    for (uint32_t r = 0; r < lane->rails; r++) {
        corral_rdma_rail_drain(&lane->rail[r], lane->verbs);
        if (corral_rdma_rail_events(&lane->rail[r], lane->verbs, &e) != CORRAL_OK) {
            corral_rdma_fail(lane, &e);
            return corral_rdma_check(lane, err);
        }
    }
    return CORRAL_OK;
}

static enum corral_status arm(struct corral_rdma_lane *lane, struct corral_error *err)
{
    struct corral_error e = {.status = CORRAL_OK};
    for (uint32_t r = 0; r < lane->rails; r++) {
        if (corral_rdma_rail_arm(&lane->rail[r], &e) != CORRAL_OK) {
            corral_rdma_fail(lane, &e);
            return corral_rdma_check(lane, err);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_rdma_wait(struct corral_rdma_lane *lane, uint64_t timeout_ns,
                                    bool (*ready)(const struct corral_rdma_lane *lane),
                                    struct corral_error *err)
{
    /* No system call while there is something to do: the queues stay armed, so base.fd may be readable once too often, never too seldom. A completion error says more than
     * the event of the adapter that comes with it, and is read first. */
    CORRAL_TRY(corral_rdma_poll(lane, err));
    if (ready(lane)) {
        return CORRAL_OK;
    }
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    for (;;) {
        CORRAL_TRY(take_events(lane, err));
        CORRAL_TRY(arm(lane, err));
        CORRAL_TRY(corral_rdma_poll(lane, err)); /* what came between the last look and the arming */
        uint64_t spent = corral_now_ns(&corral_clock_monotonic) - start;
        if (ready(lane) || spent >= timeout_ns) {
            return CORRAL_OK;
        }
        uint64_t rest = timeout_ns - spent;
        struct timespec ts = {.tv_sec = (time_t)CORRAL_MIN(rest / CORRAL_NS_PER_S, UINT64_C(86400)),
                              .tv_nsec = (long)(rest % CORRAL_NS_PER_S)};
        struct pollfd p = {.fd = lane->base.fd, .events = POLLIN};
        if (ppoll(&p, 1, &ts, NULL) < 0 && errno != EINTR) {
            return corral_fail_sys(err, errno, "rdma: waiting for completions");
        }
    }
}

static enum corral_status probe_rail(struct corral_rdma_lane *lane, uint32_t r, struct corral_error *err)
{
    if ((lane->probing >> r & 1) != 0) {
        return CORRAL_OK;
    }
    struct ibv_send_wr *bad, wr = {
                                 .wr_id = CORRAL_RDMA_PROBE * CORRAL_RDMA_STREAMS_MAX,
                                 .opcode = IBV_WR_RDMA_WRITE,
                                 .send_flags = IBV_SEND_SIGNALED,
                                 .wr.rdma = {lane->peer[r].staging, lane->peer[r].rkey},
                             };
    int rc = ibv_post_send(lane->rail[r].qp[0], &wr, &bad);
    if (rc != 0) {
        struct corral_error e;
        corral_fail_sys(&e, rc, "rdma %s: probing the other end", lane->rail[r].port.name);
        corral_rdma_fail(lane, &e);
        return corral_rdma_check(lane, err);
    }
    lane->probing |= 1u << r;
    return CORRAL_OK;
}

enum corral_status corral_rdma_probe(struct corral_rdma_lane *lane, bool waiting, struct corral_error *err)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (lane->changed || lane->moved_ns == 0) {
        lane->moved_ns = now;
    }
    if (!waiting || now - lane->moved_ns < CORRAL_RDMA_PROBE_NS) {
        return CORRAL_OK;
    }
    lane->moved_ns = now;
    for (uint32_t r = 0; r < lane->rails; r++) {
        CORRAL_TRY(probe_rail(lane, r, err));
    }
    return CORRAL_OK;
}

void corral_rdma_kick(struct corral_rdma_lane *lane, bool on)
{
    uint64_t value = 1;
    if (on != lane->kicked) {
        ssize_t n = on ? write(lane->kick, &value, sizeof(value)) : read(lane->kick, &value, sizeof(value));
        lane->kicked = n > 0 ? on : lane->kicked;
    }
}

static enum corral_status available(const struct corral_lane_options *options, struct corral_error *err)
{
    const struct corral_verbs *verbs;
    struct corral_rdma_port port[CORRAL_RDMA_RAILS_MAX];
    uint32_t count;
    CORRAL_TRY(corral_verbs_load(&verbs, err));
    CORRAL_TRY(corral_rdma_ports_open(verbs, options, port, &count, err));
    for (uint32_t i = 0; i < count; i++) {
        corral_rdma_port_close(verbs, &port[i]);
    }
    return CORRAL_OK;
}

static struct corral_rdma_lane *lane_of(struct corral_lane *lane)
{
    return (struct corral_rdma_lane *)lane;
}

static void rx_close(struct corral_lane *rx, int32_t *tainted_pid)
{
    corral_rdma_lane_close(lane_of(rx));
    if (tainted_pid != NULL) {
        *tainted_pid = 0; /* peers can only write into staging, and no longer into that */
    }
}

static void tx_close(struct corral_lane *tx)
{
    corral_rdma_lane_close(lane_of(tx));
}

const struct corral_lane_ops corral_lane_rdma_ops = {
    .name = "rdma",
    .kind = CORRAL_LANE_RDMA,
    .available = available,
    .rx_open = corral_rdma_rx_open,
    .rx_connect = corral_rdma_rx_connect,
    .rx_begin = corral_rdma_rx_begin,
    .rx_progress = corral_rdma_rx_progress,
    .rx_taken = corral_rdma_rx_taken,
    .rx_end = corral_rdma_rx_end,
    .rx_close = rx_close,
    .tx_open = corral_rdma_tx_open,
    .tx_begin = corral_rdma_tx_begin,
    .tx_send = corral_rdma_tx_send,
    .tx_send_encoded = corral_rdma_tx_send_encoded,
    .tx_progress = corral_rdma_tx_progress,
    .tx_end = corral_rdma_tx_end,
    .tx_close = tx_close,
};
