/* lanes_bench [MiB] [streams] [bucket KiB] [rounds]: what the weight lanes of one machine reach beside what the machine can do with the same bytes, the same two buffers and as many threads:
 *   memcpy        each thread a share, in one call: the yardstick of shm
 *   past caches   the same with the copy that the shm lane has (link/stream.h)
 *   bare sockets  as many bare loopback connections as the tcp lane has, a thread at each end, as the kernel sets them up: the yardstick of tcp
 *   the same, small buffers   with socket buffers as the tcp lane has them to an address of its own machine
 *   shm, tcp      the lane between two processes: until all has *arrived*; until the receiver has taken every bucket's digest *from final memory* and it was right, which is what the bound is about; and
 *                 with the sender taking the digests of its side as well, as a push does
 * The sender is another process. Before each measurement the destination is overwritten, so that what is right came, and so that all find the caches alike. Every round measures all, beginning with
 * another one each time; a share is of the yardstick of the same round. Exits 1 when a digest is wrong. */
#include "base/clock.h"
#include "base/rng.h"
#include "transport/weights/lanes/lane.h"
#include "transport/weights/link/stream.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS_MAX 99
#define STREAMS_MAX 16
#define SOCKET_CHUNK (1u << 20)
#define SOCKET_BUFFER (512 << 10) /* of the second kind of bare sockets */
#define PATIENCE_NS (30 * CORRAL_NS_PER_S)

static struct {
    uint64_t bytes;
    uint32_t streams, rounds;
    uint8_t *source, *destination;
    int fd; /* of the destination */
    struct corral_link *link;
    struct corral_digest *digest; /* per bucket, of the source */
    struct corral_lane_options options;
} bench;

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "lanes_bench: %s\n", what);
        exit(1);
    }
}

static void must_ok(enum corral_status status, const struct corral_error *err)
{
    must(status == CORRAL_OK, err->text);
}

/* ---- yardsticks ---- */

static uint64_t share_of(uint32_t thread)
{
    return bench.bytes / bench.streams * thread;
}

static uint64_t share_end(uint32_t thread)
{
    return thread + 1 == bench.streams ? bench.bytes : share_of(thread + 1);
}

static void *copy_share(void *arg)
{
    uint32_t i = (uint32_t)(uintptr_t)arg;
    memcpy(bench.destination + share_of(i), bench.source + share_of(i), share_end(i) - share_of(i));
    return NULL;
}

static void *stream_share(void *arg)
{
    uint32_t i = (uint32_t)(uintptr_t)arg;
    corral_stream_copy(bench.destination + share_of(i), bench.source + share_of(i),
                       share_end(i) - share_of(i));
    return NULL;
}

static void run_threads(void *(*run)(void *))
{
    pthread_t thread[STREAMS_MAX];
    for (uintptr_t i = 0; i < bench.streams; i++) {
        must(pthread_create(&thread[i], NULL, run, (void *)i) == 0, "no thread");
    }
    for (uint32_t i = 0; i < bench.streams; i++) {
        pthread_join(thread[i], NULL);
    }
}

static int bare[2][STREAMS_MAX]; /* this process's ends of the bare connections, of both kinds */
static int *raw = bare[0];       /* those that are measured now */

static void *send_share(void *arg)
{
    uint32_t i = (uint32_t)(uintptr_t)arg;
    for (uint64_t at = share_of(i), end = share_end(i); at < end;) {
        ssize_t n = send(raw[i], bench.source + at, CORRAL_MIN(end - at, SOCKET_CHUNK), MSG_NOSIGNAL);
        must(n > 0, "a bare connection broke");
        at += (uint64_t)n;
    }
    return NULL;
}

static void *receive_share(void *arg)
{
    uint32_t i = (uint32_t)(uintptr_t)arg;
    for (uint64_t at = share_of(i), end = share_end(i); at < end;) {
        ssize_t n = recv(raw[i], bench.destination + at, CORRAL_MIN(end - at, SOCKET_CHUNK), MSG_WAITALL);
        must(n > 0, "a bare connection broke");
        at += (uint64_t)n;
    }
    return NULL;
}

/* ---- the other process: sends what it is told to ---- */

enum order { SEND_RAW, SEND_RAW_SMALL, SEND_SHM, SEND_TCP };

struct orders {
    uint64_t push;
    enum order order;
    bool digests;
};

static void lane_sends(struct corral_lane *tx, uint64_t push, bool digests,
                       const struct corral_lane_blob *place)
{
    struct corral_error err;
    struct corral_shard source = corral_shard_host(bench.source, bench.bytes);
    must_ok(tx->ops->tx_begin(tx, push, &source, place, &err), &err);
    uint64_t left = 0;
    for (uint32_t sent = 0; left < bench.link->buckets;) {
        enum corral_status status =
            sent < bench.link->buckets ? tx->ops->tx_send(tx, sent, &err) : CORRAL_AGAIN;
        if (status == CORRAL_OK && digests) { /* while the bucket is on its way */
            struct corral_digest d;
            must_ok(source.ops->digest(&source, bench.link, CORRAL_LINK_SOURCE, sent, &d, &err), &err);
            must(corral_digest_equal(d, bench.digest[sent]), "a bucket's digest is wrong at its source");
        }
        sent += status == CORRAL_OK;
        if (status == CORRAL_AGAIN) {
            status = tx->ops->tx_progress(tx, CORRAL_NS_PER_S, &left, &err);
        }
        must_ok(status, &err);
    }
    must_ok(tx->ops->tx_end(tx, true, &err), &err);
}

static bool transfer(int fd, void *data, size_t bytes, bool out)
{
    return (out ? send(fd, data, bytes, MSG_NOSIGNAL) : recv(fd, data, bytes, MSG_WAITALL)) == (ssize_t)bytes;
}

static void set_buffer(int fd, int option, bool small)
{
    must(!small || setsockopt(fd, SOL_SOCKET, option, &(int){SOCKET_BUFFER}, sizeof(int)) == 0,
         "cannot set a socket's buffer");
}

static int connect_to(in_port_t port, bool small)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0, "no socket");
    set_buffer(fd, SO_SNDBUF, small);
    must(connect(fd, (struct sockaddr *)&to, sizeof to) == 0, "cannot connect");
    return fd;
}

static void be_the_sender(int control)
{
    struct corral_error err;
    struct corral_lane *tx[2];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int kind = 0; kind < 2; kind++) {
        in_port_t port;
        must(transfer(control, &port, sizeof port, false), "no port");
        for (uint32_t i = 0; i < bench.streams; i++) {
            bare[kind][i] = connect_to(port, kind == 1);
        }
    }
    for (int i = 0; i < 2; i++) {
        struct corral_lane_blob offer, answer;
        const struct corral_lane_ops *ops = i == 0 ? &corral_lane_shm_ops : &corral_lane_tcp_ops;
        must(transfer(control, &offer, sizeof offer, false), "no offer");
        must_ok(ops->tx_open(&tx[i], bench.link, &bench.options, &offer, &answer, &err), &err);
        must(transfer(control, &answer, sizeof answer, true), "cannot answer");
    }
    struct orders o;
    while (transfer(control, &o, sizeof o, false)) {
        struct corral_lane_blob place;
        if (o.order == SEND_RAW || o.order == SEND_RAW_SMALL) {
            raw = bare[o.order == SEND_RAW_SMALL];
            run_threads(send_share);
            continue;
        }
        must(transfer(control, &place, sizeof place, false), "no place");
        lane_sends(tx[o.order == SEND_TCP], o.push, o.digests, &place);
    }
    tx[0]->ops->tx_close(tx[0]);
    tx[1]->ops->tx_close(tx[1]);
    _exit(0);
}

/* ---- this process: receives and measures ---- */

static void accept_bare(int control, int kind)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(listener >= 0, "no socket");
    set_buffer(listener, SO_RCVBUF, kind == 1); /* what it accepts has it too */
    must(bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, STREAMS_MAX) == 0 &&
             getsockname(listener, (struct sockaddr *)&here, &length) == 0,
         "cannot listen");
    must(transfer(control, &here.sin_port, sizeof here.sin_port, true), "the sender has gone");
    for (uint32_t i = 0; i < bench.streams; i++) {
        bare[kind][i] = accept(listener, NULL, NULL);
        must(bare[kind][i] >= 0, "cannot accept");
    }
    close(listener);
}

static int start_sender(struct corral_lane *rx[2], pid_t *child)
{
    int pair[2];
    struct corral_error err;
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no socket pair");
    *child = fork();
    must(*child >= 0, "cannot fork");
    if (*child == 0) {
        close(pair[0]);
        be_the_sender(pair[1]);
    }
    close(pair[1]);
    accept_bare(pair[0], 0);
    accept_bare(pair[0], 1);
    for (int i = 0; i < 2; i++) {
        struct corral_lane_blob offer, answer;
        const struct corral_lane_ops *ops = i == 0 ? &corral_lane_shm_ops : &corral_lane_tcp_ops;
        must_ok(ops->rx_open(&rx[i], bench.link, &bench.options, &offer, &err), &err);
        must(transfer(pair[0], &offer, sizeof offer, true) &&
                 transfer(pair[0], &answer, sizeof answer, false),
             "the sender has gone");
        must_ok(ops->rx_connect(rx[i], &answer, &err), &err);
    }
    return pair[0];
}

enum checks { ARRIVED, DIGESTS, BOTH_DIGESTS };

static double measure_lane(struct corral_lane *rx, int control, uint64_t push, enum checks checks)
{
    struct corral_error err;
    struct corral_lane_blob place;
    struct orders o = {.push = push,
                       .order = rx->ops->kind == CORRAL_LANE_SHM ? SEND_SHM : SEND_TCP,
                       .digests = checks == BOTH_DIGESTS};
    struct corral_shard destination = corral_shard_host(bench.destination, bench.bytes);
    destination.fd = bench.fd;
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    must_ok(rx->ops->rx_begin(rx, push, &destination, &place, &err), &err);
    must(transfer(control, &o, sizeof o, true) && transfer(control, &place, sizeof place, true),
         "the sender has gone");
    for (uint32_t arrived = 0; arrived < bench.link->buckets;) {
        uint32_t bucket[16], count = 0;
        must_ok(rx->ops->rx_progress(rx, CORRAL_NS_PER_S, bucket, 16, &count, &err), &err);
        for (uint32_t i = 0; i < count; i++) {
            struct corral_digest d = {0, 0};
            if (checks != ARRIVED) {
                must_ok(destination.ops->digest(&destination, bench.link, CORRAL_LINK_DESTINATION, bucket[i],
                                                &d, &err),
                        &err);
                must(corral_digest_equal(d, bench.digest[bucket[i]]), "a bucket's digest is wrong");
            }
            must_ok(rx->ops->rx_taken(rx, bucket[i], &err), &err);
        }
        arrived += count;
        must(corral_now_ns(&corral_clock_monotonic) - begun < PATIENCE_NS, "a push does not end");
    }
    uint64_t ns = corral_now_ns(&corral_clock_monotonic) - begun;
    must_ok(rx->ops->rx_end(rx, true, &err), &err);
    return (double)bench.bytes / (double)ns;
}

static double measure_raw(int control, bool small)
{
    struct orders o = {.order = small ? SEND_RAW_SMALL : SEND_RAW};
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    raw = bare[small];
    must(transfer(control, &o, sizeof o, true), "the sender has gone");
    run_threads(receive_share);
    return (double)bench.bytes / (double)(corral_now_ns(&corral_clock_monotonic) - begun);
}

static double measure_copy(void *(*copy)(void *))
{
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    run_threads(copy);
    return (double)bench.bytes / (double)(corral_now_ns(&corral_clock_monotonic) - begun);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(const char *name, const double *value, const double *yardstick)
{
    double v[ROUNDS_MAX], share[ROUNDS_MAX];
    for (uint32_t i = 0; i < bench.rounds; i++) {
        v[i] = value[i];
        share[i] = value[i] / yardstick[i];
    }
    qsort(v, bench.rounds, sizeof *v, by_value);
    qsort(share, bench.rounds, sizeof *share, by_value);
    printf("%-28s %7.2f GB/s  (%.2f ... %.2f)   share %.2f  (%.2f ... %.2f)\n", name, v[bench.rounds / 2],
           v[0], v[bench.rounds - 1], share[bench.rounds / 2], share[0], share[bench.rounds - 1]);
}

static void set_up(uint64_t bucket_bytes, struct corral_layout *layout[2], struct corral_reshard_plan **plan)
{
    struct corral_error err;
    uint32_t t;
    for (int i = 0; i < 2; i++) {
        must_ok(corral_layout_create(&layout[i], 1, &err), &err);
        must_ok(corral_layout_add_tensor(layout[i], "w", CORRAL_DTYPE_U8, 1, &bench.bytes, &t, &err), &err);
        must_ok(corral_layout_add_whole(layout[i], t, 0, 0, &err), &err);
    }
    must_ok(corral_reshard_plan_build(layout[0], layout[1], plan, &err), &err);
    must_ok(corral_link_create(&bench.link, *plan, 0, 0, bucket_bytes, &err), &err);
    bench.source = mmap(NULL, bench.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bench.fd = memfd_create("lanes-bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(bench.fd >= 0 && ftruncate(bench.fd, (off_t)bench.bytes) == 0 &&
             fcntl(bench.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0,
         "cannot make the destination");
    bench.destination = mmap(NULL, bench.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bench.fd, 0);
    must(bench.source != MAP_FAILED && bench.destination != MAP_FAILED, "out of memory");
    uint64_t state = 1;
    for (uint64_t i = 0; i + 8 <= bench.bytes; i += 8) {
        uint64_t word = corral_splitmix64(&state);
        memcpy(bench.source + i, &word, sizeof word);
    }
    memset(bench.destination, 0, bench.bytes);
    bench.digest = calloc(bench.link->buckets, sizeof *bench.digest);
    must(bench.digest != NULL, "out of memory");
    for (uint32_t i = 0; i < bench.link->buckets; i++) {
        bench.digest[i] = corral_link_digest(bench.link, i, CORRAL_LINK_SOURCE, bench.source);
    }
}

enum { MEMCPY, STREAM_COPY, SHM, SHM_DIGESTS, SHM_BOTH, BARE, BARE_SMALL, TCP, TCP_DIGESTS, TCP_BOTH, ROWS };

static const struct row {
    const char *name;
    int yardstick;
} row[ROWS] = {
    [MEMCPY] = {"memcpy", MEMCPY},
    [STREAM_COPY] = {"past caches", MEMCPY},
    [SHM] = {"shm, arrived", MEMCPY},
    [SHM_DIGESTS] = {"shm, digests right", MEMCPY},
    [SHM_BOTH] = {"shm, digests of both sides", MEMCPY},
    [BARE] = {"bare sockets", BARE},
    [BARE_SMALL] = {"the same, small buffers", BARE},
    [TCP] = {"tcp, arrived", BARE},
    [TCP_DIGESTS] = {"tcp, digests right", BARE},
    [TCP_BOTH] = {"tcp, digests of both sides", BARE},
};

static double measure(int which, struct corral_lane *rx[2], int control, uint64_t push)
{
    memset(bench.destination, 0, bench.bytes);
    switch (which) {
    case MEMCPY:
        return measure_copy(copy_share);
    case STREAM_COPY:
        return measure_copy(stream_share);
    case BARE:
    case BARE_SMALL:
        return measure_raw(control, which == BARE_SMALL);
    default:
        return measure_lane(rx[which >= TCP], control, push,
                            (enum checks)(which - (which >= TCP ? TCP : SHM)));
    }
}

static void run_all(struct corral_lane *rx[2], int control)
{
    static double figure[ROWS][ROUNDS_MAX];
    uint64_t push = 0;
    for (int i = 0; i < ROWS; i++) { /* the first turn is not counted */
        (void)measure(i, rx, control, ++push);
    }
    for (uint32_t round = 0; round < bench.rounds; round++) {
        for (uint32_t i = 0; i < ROWS; i++) {
            uint32_t which = (i + round) % ROWS;
            figure[which][round] = measure((int)which, rx, control, ++push);
        }
    }
    printf("%llu MiB, %u streams, buckets of %llu KiB, window %u, %u rounds: median (least ... most)\n",
           (unsigned long long)(bench.bytes >> 20), bench.streams,
           (unsigned long long)(bench.link->bucket_bytes >> 10), bench.options.window, bench.rounds);
    for (int i = 0; i < ROWS; i++) {
        print(row[i].name, figure[i], figure[row[i].yardstick]);
    }
}

static uint64_t argument(int argc, char **argv, int index, uint64_t otherwise)
{
    return argc > index ? strtoull(argv[index], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    struct corral_layout *layout[2];
    struct corral_reshard_plan *plan;
    struct corral_lane *rx[2];
    pid_t child;
    bench.bytes = argument(argc, argv, 1, 512) << 20;
    bench.streams = (uint32_t)argument(argc, argv, 2, 2);
    bench.rounds = (uint32_t)argument(argc, argv, 4, 15);
    bench.options = (struct corral_lane_options){.streams = bench.streams, .window = 4};
    must(bench.bytes > 0 && bench.streams > 0 && bench.streams <= STREAMS_MAX && bench.rounds > 0 &&
             bench.rounds <= ROUNDS_MAX,
         "usage: lanes_bench [MiB] [streams 1-16] [bucket KiB] [rounds 1-99]");
    set_up(argument(argc, argv, 3, 2048) << 10, layout, &plan);
    int control = start_sender(rx, &child);
    run_all(rx, control);
    close(control);
    waitpid(child, NULL, 0);
    rx[0]->ops->rx_close(rx[0], NULL);
    rx[1]->ops->rx_close(rx[1], NULL);
    free(bench.digest);
    corral_link_destroy(bench.link);
    corral_reshard_plan_destroy(plan);
    corral_layout_destroy(layout[0]);
    corral_layout_destroy(layout[1]);
    return 0;
}
