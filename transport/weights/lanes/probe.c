#include "transport/weights/lanes/probe.h"

#include "base/clock.h"
#include "base/rng.h"
#include "transport/weights/lanes/support.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PUSHES 4 /* the first one finds memory that has not been touched and is not counted */
#define PINGS 33
#define SEED 7
#define REASON_NS (100 * CORRAL_NS_PER_MS)
#define AT_THE_OTHER_END "at the other end: "

enum message { MESSAGE_BLOB = 1, MESSAGE_DONE = 2, MESSAGE_FAILED = 3 };

struct probe {
    const struct corral_lane_ops *ops;
    struct corral_lane_options lane;
    int fd;
    uint64_t deadline_ns, bytes;
    struct corral_layout *layout;
    struct corral_reshard_plan *plan;
    struct corral_link *link;
    struct corral_lane *end;
    uint8_t *memory;
    int memory_fd;
    struct corral_shard shard; /* of `memory`; the lane's threads use it until the lane is closed */
};

static void probe_drop(struct probe *p)
{
    if (p->memory != NULL) {
        munmap(p->memory, p->bytes);
    }
    corral_cleanup_close(&p->memory_fd);
    corral_link_destroy(p->link);
    corral_reshard_plan_destroy(p->plan);
    corral_layout_destroy(p->layout);
}

/* ---- talking ---- */

static enum corral_status move(struct probe *p, void *data, size_t bytes, bool out, struct corral_error *err)
{
    for (size_t at = 0; at < bytes;) {
        if (!corral_lane_poll(p->fd, out ? POLLOUT : POLLIN, p->deadline_ns)) {
            return corral_fail(err, CORRAL_TIMEOUT, "probing the %s lane took too long", p->ops->name);
        }
        ssize_t n = out ? send(p->fd, (uint8_t *)data + at, bytes - at, MSG_DONTWAIT | MSG_NOSIGNAL)
                        : recv(p->fd, (uint8_t *)data + at, bytes - at, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            return corral_fail(err, CORRAL_PEER, "the other end of the probe has gone");
        }
        at += n > 0 ? (size_t)n : 0;
    }
    return CORRAL_OK;
}

static enum corral_status say(struct probe *p, enum message type, const void *data, uint32_t bytes,
                              struct corral_error *err)
{
    uint8_t message[8 + CORRAL_LANE_BLOB_MAX];
    corral_lane_put32(message, (uint32_t)type);
    corral_lane_put32(message + 4, bytes);
    if (bytes > 0) {
        memcpy(message + 8, data, bytes);
    }
    return move(p, message, 8 + bytes, true, err);
}

static enum corral_status hear(struct probe *p, enum message type, struct corral_lane_blob *blob,
                               struct corral_error *err)
{
    uint8_t head[8];
    struct corral_lane_blob got = {0};
    CORRAL_TRY(move(p, head, sizeof head, false, err));
    uint32_t got_type = corral_lane_get32(head);
    got.bytes = corral_lane_get32(head + 4);
    if (got.bytes > CORRAL_LANE_BLOB_MAX || (got_type != (uint32_t)type && got_type != MESSAGE_FAILED)) {
        return corral_fail(err, CORRAL_PROTOCOL, "the other end of the probe sent message %u of %u bytes",
                           got_type, got.bytes);
    }
    CORRAL_TRY(move(p, got.data, got.bytes, false, err));
    if (got_type == MESSAGE_FAILED) {
        uint32_t status = got.bytes >= 4 ? corral_lane_get32(got.data) : 0;
        uint32_t text = got.bytes >= 4 ? CORRAL_MIN(got.bytes - 4, 400u) : 0;
        return corral_fail(err, status == CORRAL_UNSUPPORTED ? CORRAL_UNSUPPORTED : CORRAL_PEER,
                           AT_THE_OTHER_END "%.*s", (int)text, (const char *)got.data + 4);
    }
    if (blob != NULL) {
        *blob = got;
    }
    return CORRAL_OK;
}

/* Our own failure, told to the other end so that it need not wait. */
static enum corral_status give_up(struct probe *p, enum corral_status status, const struct corral_error *why,
                                  struct corral_error *err)
{
    uint8_t data[404];
    uint32_t text = (uint32_t)strnlen(why->text, 400);
    corral_lane_put32(data, (uint32_t)status);
    memcpy(data + 4, why->text, text);
    if (status != CORRAL_PEER) {
        (void)say(p, MESSAGE_FAILED, data, 4 + text, NULL);
    }
    if (err != NULL) {
        *err = *why;
    }
    return status;
}

/* ---- set-up ---- */

/* Whole buckets and a small last one. */
static enum corral_status make_link(struct probe *p, uint64_t bucket_bytes, struct corral_error *err)
{
    uint32_t t;
    CORRAL_TRY(corral_layout_create(&p->layout, 1, err));
    CORRAL_TRY(corral_layout_add_tensor(p->layout, "probe", CORRAL_DTYPE_U8, 1, &p->bytes, &t, err));
    CORRAL_TRY(corral_layout_add_whole(p->layout, t, 0, 0, err));
    CORRAL_TRY(corral_reshard_plan_build(p->layout, p->layout, &p->plan, err));
    return corral_link_create(&p->link, p->plan, 0, 0, bucket_bytes, err);
}

static void fill(uint8_t *to, uint64_t from, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i += 8) { /* all multiples of 8 */
        uint64_t state = SEED + (from + i) * UINT64_C(0x9E3779B97F4A7C15);
        uint64_t word = corral_splitmix64(&state);
        memcpy(to + i, &word, sizeof word);
    }
}

static enum corral_status set_up(struct probe *p, int fd, const struct corral_lane_ops *ops,
                                 const struct corral_lane_probe_options *options, struct corral_error *err)
{
    uint64_t bucket = options->bucket_bytes == 0 ? 2u << 20 : options->bucket_bytes;
    uint64_t bytes = options->bytes == 0 ? 256u << 20 : options->bytes;
    *p = (struct probe){.ops = ops, .lane = options->lane, .fd = fd, .memory_fd = -1};
    p->deadline_ns =
        corral_lane_deadline(options->timeout_ns == 0 ? 20 * CORRAL_NS_PER_S : options->timeout_ns);
    if (bytes > CORRAL_LANE_PROBE_BYTES_MAX || bucket > CORRAL_BUCKET_BYTES_MAX ||
        bucket < CORRAL_BUCKET_BYTES_MIN) {
        return corral_fail(err, CORRAL_INVALID, "a probe of %" PRIu64 " bytes in buckets of %" PRIu64, bytes,
                           bucket);
    }
    p->bytes = (bytes + bucket - 1) / bucket * bucket + CORRAL_LANE_PROBE_SMALL;
    CORRAL_TRY(make_link(p, bucket, err));
    p->memory_fd = memfd_create("corral-lane-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (p->memory_fd < 0 || ftruncate(p->memory_fd, (off_t)p->bytes) != 0 ||
        fcntl(p->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return corral_fail_sys(err, errno, "cannot get %" PRIu64 " bytes to probe with", p->bytes);
    }
    void *base = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->memory_fd, 0);
    if (base == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map %" PRIu64 " bytes to probe with", p->bytes);
    }
    p->memory = base;
    p->shard = corral_shard_host(p->memory, p->bytes);
    return ops->available(&options->lane, err);
}

/* ---- receiving ---- */

static enum corral_status await_buckets(struct probe *p, uint32_t count, const struct corral_digest *digest,
                                        struct corral_error *err)
{
    for (uint32_t arrived = 0; arrived < count;) {
        uint32_t bucket[16], n = 0;
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        if (now >= p->deadline_ns) {
            return corral_fail(err, CORRAL_TIMEOUT, "probing the %s lane took too long", p->ops->name);
        }
        CORRAL_TRY(p->ops->rx_progress(p->end, CORRAL_MIN(p->deadline_ns - now, CORRAL_NS_PER_S), bucket, 16,
                                       &n, err));
        for (uint32_t i = 0; i < n; i++) {
            struct corral_digest d;
            CORRAL_TRY(p->shard.ops->digest(&p->shard, p->link, CORRAL_LINK_DESTINATION, bucket[i], &d, err));
            if (!corral_digest_equal(d, digest[bucket[i]])) {
                return corral_fail(err, CORRAL_PROTOCOL, "the %s lane damaged bucket %u", p->ops->name,
                                   bucket[i]);
            }
            CORRAL_TRY(p->ops->rx_taken(p->end, bucket[i], err));
        }
        arrived += n;
    }
    return say(p, MESSAGE_DONE, NULL, 0, err);
}

static enum corral_status receive_pushes(struct probe *p, const struct corral_digest *digest,
                                         struct corral_error *err)
{
    struct corral_lane_blob blob;
    p->shard.fd = p->memory_fd;
    CORRAL_TRY(p->ops->rx_open(&p->end, p->link, &p->lane, &blob, err));
    CORRAL_TRY(say(p, MESSAGE_BLOB, blob.data, blob.bytes, err));
    CORRAL_TRY(hear(p, MESSAGE_BLOB, &blob, err));
    CORRAL_TRY(p->ops->rx_connect(p->end, &blob, err));
    for (uint32_t push = 1; push <= PUSHES + 1; push++) {
        memset(p->memory, 0, p->bytes);
        CORRAL_TRY(p->ops->rx_begin(p->end, push, &p->shard, &blob, err));
        CORRAL_TRY(say(p, MESSAGE_BLOB, blob.data, blob.bytes, err));
        bool pings = push > PUSHES;
        for (uint32_t i = 0; i < (pings ? PINGS : 1u); i++) {
            CORRAL_TRY(await_buckets(p, pings ? 1 : p->link->buckets, digest, err));
        }
        CORRAL_TRY(hear(p, MESSAGE_DONE, NULL, err)); /* the sender's side of the push is over as well */
        CORRAL_TRY(p->ops->rx_end(p->end, true, err));
    }
    return CORRAL_OK;
}

static enum corral_status receive(struct probe *p, struct corral_error *err)
{
    uint64_t bucket_bytes = p->link->bucket_bytes;
    CORRAL_AUTO_FREE struct corral_digest *digest = calloc(p->link->buckets, sizeof *digest);
    CORRAL_AUTO_FREE uint8_t *bytes = malloc(bucket_bytes);
    if (digest == NULL || bytes == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot probe: out of memory");
    }
    for (uint32_t i = 0; i < p->link->buckets; i++) {
        fill(bytes, i * bucket_bytes, corral_link_bucket_size(p->link, i));
        digest[i] = corral_link_digest_packed(p->link, i, bytes);
    }
    return receive_pushes(p, digest, err);
}

enum corral_status corral_lane_probe_receive(int fd, const struct corral_lane_ops *ops,
                                             const struct corral_lane_probe_options *options,
                                             struct corral_error *err)
{
    struct probe p;
    struct corral_error why = {0};
    enum corral_status status = set_up(&p, fd, ops, options, &why);
    status = status == CORRAL_OK ? receive(&p, &why) : status;
    if (status != CORRAL_OK) {
        status = give_up(&p, status, &why, err); /* before the lane is closed: see real_reason() */
    }
    ops->rx_close(p.end,
                  NULL); /* its memory goes too: whoever may still write to it has a mapping of his own */
    probe_drop(&p);
    return status;
}

/* ---- sending ---- */

/* A lane that broke is often the other end's doing, which has said why before it closed. */
static enum corral_status real_reason(struct probe *p, enum corral_status status, struct corral_error *why)
{
    struct corral_error theirs;
    p->deadline_ns = corral_lane_deadline(REASON_NS);
    if (status != CORRAL_PEER || hear(p, MESSAGE_FAILED, NULL, &theirs) == CORRAL_OK ||
        strncmp(theirs.text, AT_THE_OTHER_END, sizeof AT_THE_OTHER_END - 1) != 0) {
        return status;
    }
    *why = theirs;
    return theirs.status;
}

static enum corral_status send_buckets(struct probe *p, uint32_t first, uint32_t count, uint64_t *total,
                                       uint64_t *ns, struct corral_error *err)
{
    uint64_t begun = corral_now_ns(&corral_clock_monotonic), left = 0;
    for (uint32_t sent = 0; sent < count || left < *total;) {
        enum corral_status status = sent < count ? p->ops->tx_send(p->end, first + sent, err) : CORRAL_AGAIN;
        if (status == CORRAL_OK) {
            sent++;
            (*total)++;
            continue;
        }
        if (status == CORRAL_AGAIN) {
            status = p->ops->tx_progress(p->end, 100 * CORRAL_NS_PER_MS, &left, err);
        }
        if (status != CORRAL_OK) {
            return status;
        }
        if (corral_now_ns(&corral_clock_monotonic) >= p->deadline_ns) {
            return corral_fail(err, CORRAL_TIMEOUT, "probing the %s lane took too long", p->ops->name);
        }
    }
    CORRAL_TRY(hear(p, MESSAGE_DONE, NULL, err));
    *ns = corral_now_ns(&corral_clock_monotonic) - begun;
    return CORRAL_OK;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static enum corral_status send_pushes(struct probe *p, uint64_t *push_ns, uint64_t *ping_ns,
                                      struct corral_error *err)
{
    struct corral_lane_blob blob, answer;
    CORRAL_TRY(hear(p, MESSAGE_BLOB, &blob, err));
    CORRAL_TRY(p->ops->tx_open(&p->end, p->link, &p->lane, &blob, &answer, err));
    CORRAL_TRY(say(p, MESSAGE_BLOB, answer.data, answer.bytes, err));
    for (uint32_t push = 1; push <= PUSHES + 1; push++) {
        uint64_t total = 0;
        CORRAL_TRY(hear(p, MESSAGE_BLOB, &blob, err));
        CORRAL_TRY(p->ops->tx_begin(p->end, push, &p->shard, &blob, err));
        if (push <= PUSHES) {
            CORRAL_TRY(send_buckets(p, 0, p->link->buckets, &total, &push_ns[push - 1], err));
        } else {
            for (uint32_t i = 0; i < PINGS; i++) {
                CORRAL_TRY(send_buckets(p, p->link->buckets - 1, 1, &total, &ping_ns[i], err));
            }
        }
        CORRAL_TRY(p->ops->tx_end(p->end, true, err));
        CORRAL_TRY(say(p, MESSAGE_DONE, NULL, 0, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_lane_probe_send(int fd, const struct corral_lane_ops *ops,
                                          const struct corral_lane_probe_options *options,
                                          struct corral_lane_probe_result *result, struct corral_error *err)
{
    struct probe p;
    struct corral_error why = {0};
    uint64_t push_ns[PUSHES], ping_ns[PINGS];
    enum corral_status status = set_up(&p, fd, ops, options, &why);
    if (status == CORRAL_OK) {
        fill(p.memory, 0, p.bytes);
        status = send_pushes(&p, push_ns, ping_ns, &why);
        status = status == CORRAL_OK ? status : real_reason(&p, status, &why);
        if (p.end != NULL) {
            ops->tx_close(p.end);
        }
    }
    if (status == CORRAL_OK) {
        qsort(push_ns + 1, PUSHES - 1, sizeof *push_ns, by_value);
        qsort(ping_ns, PINGS, sizeof *ping_ns, by_value);
        *result = (struct corral_lane_probe_result){.kind = ops->kind,
                                                    .bytes = p.bytes,
                                                    .push_ns = push_ns[1 + (PUSHES - 1) / 2],
                                                    .latency_ns = ping_ns[PINGS / 2]};
    } else {
        status = give_up(&p, status, &why, err);
    }
    probe_drop(&p);
    return status;
}

/* ---- in one process ---- */

struct receiver {
    int fd;
    const struct corral_lane_ops *ops;
    const struct corral_lane_probe_options *options;
};

static void *run_receiver(void *arg)
{
    const struct receiver *r = arg;
    (void)corral_lane_probe_receive(r->fd, r->ops, r->options, NULL); /* the sender hears why */
    (void)shutdown(r->fd, SHUT_RDWR);
    return NULL;
}

enum corral_status corral_lane_probe(const struct corral_lane_ops *ops,
                                     const struct corral_lane_probe_options *options,
                                     struct corral_lane_probe_result *result, struct corral_error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        return corral_fail_sys(err, errno, "cannot make the two ends of a probe");
    }
    CORRAL_AUTO_CLOSE int ours = pair[0], theirs = pair[1];
    struct receiver r = {.fd = theirs, .ops = ops, .options = options};
    struct corral_lane_thread thread = {0};
    CORRAL_TRY(corral_lane_start(&thread, run_receiver, &r, err));
    enum corral_status status = corral_lane_probe_send(ours, ops, options, result, err);
    (void)shutdown(ours, SHUT_RDWR);
    corral_lane_join(&thread);
    return status;
}

/* ---- choosing ---- */

double corral_lane_probe_rate(const struct corral_lane_probe_result *result)
{
    return result->push_ns == 0 ? 0 : (double)result->bytes / (double)result->push_ns;
}

enum corral_status corral_lane_choose(const struct corral_lane_probe_result *result, uint32_t count,
                                      uint32_t kinds, uint64_t bytes, enum corral_lane_kind *out,
                                      struct corral_error *err)
{
    double best = 0;
    bool found = false;
    for (uint32_t i = 0; i < count; i++) {
        double rate = corral_lane_probe_rate(&result[i]);
        if (rate <= 0 || (unsigned)result[i].kind >= CORRAL_LANE_KINDS ||
            (kinds >> result[i].kind & 1) == 0) {
            continue;
        }
        double ns = (double)result[i].latency_ns + (double)bytes / rate;
        if (!found || ns < best) {
            best = ns;
            *out = result[i].kind;
            found = true;
        }
    }
    return found ? CORRAL_OK
                 : corral_fail(err, CORRAL_NOT_FOUND, "none of the lanes that both sides have was measured");
}
