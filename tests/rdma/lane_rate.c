/* lane-rate LANE [host=ADDRESS] [device=NAME] [streams=N] [window=N] [mib=N] [bucket-kib=N] [pushes=N] [work=none|copy|digest]
 * How fast one lane moves bytes between two processes: prints the MB/s of all pushes but the first, each from its first send until all its bytes are in final memory there and acknowledged here. Nothing is checked
 * (lane-pair does that). `none` leaves the copies between the weights and staging away, so that the wire is left; `digest` adds both sides' digests of every bucket. Exit status 0, 1, 2, or 77 with the reason. */
#include "base/clock.h"
#include "transport/weights/lanes/lane.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_NS (60 * CORRAL_NS_PER_S)

struct rate {
    const struct corral_lane_ops *ops;
    struct corral_lane_options options;
    uint64_t bytes, bucket_bytes;
    uint32_t pushes;
    bool copies, digests;
    struct corral_link *link;
    struct corral_shard shard;
    int peer;
};

static enum corral_status nothing_gathered(struct corral_shard *shard, const struct corral_link *link,
                                           uint32_t bucket, void *packed, struct corral_error *err)
{
    (void)shard, (void)link, (void)bucket, (void)packed, (void)err;
    return CORRAL_OK;
}

static enum corral_status nothing_scattered(struct corral_shard *shard, const struct corral_link *link,
                                            uint32_t bucket, const void *packed, struct corral_error *err)
{
    (void)shard, (void)link, (void)bucket, (void)packed, (void)err;
    return CORRAL_OK;
}

static enum corral_status make_link(struct rate *r, struct corral_error *err)
{
    struct corral_layout *layout[2];
    struct corral_reshard_plan *plan;
    const uint64_t dims[1] = {r->bytes};
    for (int i = 0; i < 2; i++) {
        uint32_t t;
        CORRAL_TRY(corral_layout_create(&layout[i], 1, err));
        CORRAL_TRY(corral_layout_add_tensor(layout[i], "w", CORRAL_DTYPE_U8, 1, dims, &t, err));
        CORRAL_TRY(corral_layout_add_whole(layout[i], t, 0, 0, err));
    }
    CORRAL_TRY(corral_reshard_plan_build(layout[0], layout[1], &plan, err));
    CORRAL_TRY(corral_link_create(&r->link, plan, 0, 0, r->bucket_bytes, err));
    uint8_t *memory = malloc(r->bytes);
    if (memory == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for the weights");
    }
    memset(memory, 0x5a, r->bytes);
    r->shard = corral_shard_host(memory, r->bytes);
    static struct corral_shard_ops idle;
    if (!r->copies) {
        idle = *r->shard.ops;
        idle.gather = nothing_gathered;
        idle.scatter = nothing_scattered;
        r->shard.ops = &idle;
    }
    return CORRAL_OK;
}

static enum corral_status tell(const struct rate *r, const struct corral_lane_blob *blob,
                               struct corral_error *err)
{
    bool told = send(r->peer, blob, sizeof *blob, MSG_NOSIGNAL) == (ssize_t)sizeof *blob;
    return told ? CORRAL_OK : corral_fail(err, CORRAL_PEER, "the other process has gone");
}

static enum corral_status hear(const struct rate *r, struct corral_lane_blob *blob, struct corral_error *err)
{
    bool heard = recv(r->peer, blob, sizeof *blob, 0) == (ssize_t)sizeof *blob;
    return heard ? CORRAL_OK : corral_fail(err, CORRAL_PEER, "the other process has gone");
}

static enum corral_status digest(struct rate *r, enum corral_link_side side, uint32_t bucket,
                                 struct corral_error *err)
{
    struct corral_digest d;
    return r->digests ? r->shard.ops->digest(&r->shard, r->link, side, bucket, &d, err) : CORRAL_OK;
}

static enum corral_status too_late(uint64_t begun, struct corral_error *err)
{
    bool late = corral_now_ns(&corral_clock_monotonic) - begun > PATIENCE_NS;
    return late ? corral_fail(err, CORRAL_TIMEOUT, "a push takes more than 60 s") : CORRAL_OK;
}

static enum corral_status receive(struct rate *r, struct corral_error *err)
{
    struct corral_lane_blob blob;
    struct corral_lane *rx;
    CORRAL_TRY(r->ops->rx_open(&rx, r->link, &r->options, &blob, err));
    CORRAL_TRY(tell(r, &blob, err));
    CORRAL_TRY(hear(r, &blob, err));
    CORRAL_TRY(r->ops->rx_connect(rx, &blob, err));
    for (uint64_t push = 1; push <= r->pushes; push++) {
        uint64_t begun = corral_now_ns(&corral_clock_monotonic);
        CORRAL_TRY(r->ops->rx_begin(rx, push, &r->shard, &blob, err));
        CORRAL_TRY(tell(r, &blob, err));
        for (uint32_t have = 0; have < r->link->buckets;) {
            uint32_t bucket[8], count = 0;
            CORRAL_TRY(
                r->ops->rx_progress(rx, CORRAL_NS_PER_S, bucket, CORRAL_COUNT_OF(bucket), &count, err));
            for (uint32_t i = 0; i < count; i++, have++) {
                CORRAL_TRY(digest(r, CORRAL_LINK_DESTINATION, bucket[i], err));
                CORRAL_TRY(r->ops->rx_taken(rx, bucket[i], err));
            }
            CORRAL_TRY(too_late(begun, err));
        }
        CORRAL_TRY(r->ops->rx_end(rx, true, err));
        CORRAL_TRY(tell(r, &blob, err)); /* done; what it says does not matter */
    }
    (void)hear(r, &blob, NULL); /* the sender's end */
    r->ops->rx_close(rx, NULL);
    return CORRAL_OK;
}

static enum corral_status send_all(struct rate *r, struct corral_lane *tx, uint64_t begun,
                                   struct corral_error *err)
{
    uint64_t left = 0;
    for (uint32_t sent = 0; left < r->link->buckets;) {
        enum corral_status status = sent < r->link->buckets ? r->ops->tx_send(tx, sent, err) : CORRAL_AGAIN;
        if (status == CORRAL_OK) {
            CORRAL_TRY(digest(r, CORRAL_LINK_SOURCE, sent++, err));
        } else if (status == CORRAL_AGAIN) {
            CORRAL_TRY(r->ops->tx_progress(tx, CORRAL_NS_PER_S, &left, err));
        } else {
            return status;
        }
        CORRAL_TRY(too_late(begun, err));
    }
    return CORRAL_OK;
}

static enum corral_status run_sender(struct rate *r, uint64_t *took, struct corral_error *err)
{
    struct corral_lane_blob blob, answer;
    struct corral_lane *tx;
    CORRAL_TRY(hear(r, &blob, err));
    CORRAL_TRY(r->ops->tx_open(&tx, r->link, &r->options, &blob, &answer, err));
    CORRAL_TRY(tell(r, &answer, err));
    *took = 0;
    for (uint64_t push = 1; push <= r->pushes; push++) {
        CORRAL_TRY(hear(r, &blob, err));
        CORRAL_TRY(r->ops->tx_begin(tx, push, &r->shard, &blob, err));
        uint64_t begun = corral_now_ns(&corral_clock_monotonic);
        CORRAL_TRY(send_all(r, tx, begun, err));
        CORRAL_TRY(hear(r, &blob, err));
        *took += push > 1 ? corral_now_ns(&corral_clock_monotonic) - begun : 0;
        CORRAL_TRY(r->ops->tx_end(tx, true, err));
    }
    CORRAL_TRY(tell(r, &answer, err));
    r->ops->tx_close(tx);
    return CORRAL_OK;
}

static int run(struct rate *r, const char *lane)
{
    struct corral_error err = {.text = ""};
    int pair[2];
    uint64_t took = 0;
    if (r->ops->available(&r->options, &err) != CORRAL_OK) {
        printf("skipped: %s\n", err.text);
        return 77;
    }
    if (make_link(r, &err) != CORRAL_OK || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        fprintf(stderr, "%s: cannot be set up: %s\n", lane, err.text);
        return 1;
    }
    fflush(NULL);
    pid_t child = fork();
    r->peer = pair[child == 0];
    close(pair[child != 0]);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        enum corral_status status = receive(r, &err);
        if (status != CORRAL_OK) {
            fprintf(stderr, "%s: receiver: %s\n", lane, err.text);
        }
        _exit(status == CORRAL_OK ? 0 : 1);
    }
    int how = 1;
    enum corral_status status = child > 0 ? run_sender(r, &took, &err) : CORRAL_IO;
    close(r->peer);
    if (child < 0 || waitpid(child, &how, 0) != child || status != CORRAL_OK || how != 0) {
        fprintf(stderr, "%s: FAILED: %s\n", lane, err.text);
        return 1;
    }
    double bytes = (double)r->bytes * (r->pushes - 1);
    printf("%.1f MB/s\n", bytes * 1e3 / (double)CORRAL_MAX(took, UINT64_C(1)));
    return 0;
}

static bool take(const char *argument, struct rate *r)
{
    const char *value = strchr(argument, '=');
    if (value == NULL) {
        return false;
    }
    size_t name = (size_t)(value++ - argument);
    uint64_t number = strtoull(value, NULL, 10);
#define IS(text) (strlen(text) == name && strncmp(argument, text, name) == 0)
    if (IS("host")) {
        r->options.local_host = value;
    } else if (IS("device")) {
        r->options.device = value;
    } else if (IS("work")) {
        r->copies = strcmp(value, "none") != 0;
        r->digests = strcmp(value, "digest") == 0;
    } else if (number == 0) {
        return false;
    } else if (IS("streams")) {
        r->options.streams = (uint32_t)number;
    } else if (IS("window")) {
        r->options.window = (uint32_t)number;
    } else if (IS("mib")) {
        r->bytes = number << 20;
    } else if (IS("bucket-kib")) {
        r->bucket_bytes = number << 10;
    } else if (IS("pushes")) {
        r->pushes = (uint32_t)number;
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct rate r = {.ops = argc > 1 ? corral_lane_named(argv[1]) : NULL,
                     .bytes = 16 << 20,
                     .bucket_bytes = 1 << 20,
                     .pushes = 5,
                     .copies = true};
    bool good = r.ops != NULL;
    for (int i = 2; i < argc; i++) {
        good = take(argv[i], &r) && good;
    }
    if (!good || r.pushes < 2) {
        fprintf(stderr,
                "usage: %s LANE [host=ADDRESS] [device=NAME] [streams=N] [window=N] [mib=N] [bucket-kib=N] "
                "[pushes=N, 2 or more] [work=none|copy|digest]\n",
                argv[0]);
        return 2;
    }
    return run(&r, argv[1]);
}
