/* Records per second from one process to another, for bench/trajectory/peers.sh: each record has 1 KiB of tensors, a reward, an identity. The producer encodes every one from its facts, the consumer
 * checks and decodes every one, looks at its tensors, and lets go of it.
 *
 *   trajectory_pair ring COUNT     the shared-memory ring
 *   trajectory_pair ipc COUNT      <corral/rollout.h>'s writer to a receiver over ipc://; acknowledged and kept until then
 *   trajectory_pair tcp COUNT      the same over tcp:// on loopback with CURVE
 *
 * Prints records per second, counted at the consumer from its first record to its last.
 */
#include "base/clock.h"
#include "base/text.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/ring/ring.h"
#include "transport/trajectory/test_support.h"
#include <corral/rollout.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define RING_BYTES (16u << 20)
#define WINDOW (32u << 20)
#define TOKEN "bench"
#define FINISH_EVERY 64

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "trajectory_pair: %s failed\n", what);
        _exit(1);
    }
}

static float obs[128], log_prob[64];
static int32_t action[64];
static const struct corral_traj_tensor tensors[] = {
    {.name = "obs", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {128}, .data = obs},
    {.name = "action", .dtype = CORRAL_TRAJ_I32, .dims = 1, .shape = {64}, .data = action},
    {.name = "log_prob", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {64}, .data = log_prob},
};

static struct corral_traj_record record_number(uint64_t i, struct corral_traj_score *reward)
{
    *reward = (struct corral_traj_score){"reward", (double)(i % 100)};
    obs[0] = (float)i;
    return (struct corral_traj_record){.size = sizeof(struct corral_traj_record),
                                       .sequence = i,
                                       .env = "calc",
                                       .episode = i,
                                       .tokens = 64,
                                       .version_min = 7,
                                       .version_max = 7,
                                       .scores = reward,
                                       .score_count = 1,
                                       .tensors = tensors,
                                       .tensor_count = 3};
}

/* What a consumer does with a record before it lets go of it. */
static void consume(const void *data, uint64_t bytes, uint64_t expected)
{
    static struct corral_traj_view view;
    static volatile double sink;
    must(corral_traj_record_decode(data, bytes, &view, NULL) == CORRAL_OK, "decode");
    must(view.record.episode == expected && view.record.tensor_count == 3, "order");
    sink = view.scores[0].value + ((const float *)view.tensors[0].data)[0];
    (void)sink;
}

static void report(uint64_t count, uint64_t start)
{
    printf("%.0f\n", (double)(count - 1) * 1e9 / (double)(corral_now_ns(&corral_clock_monotonic) - start));
    fflush(stdout);
}

static void join(pid_t child)
{
    int status;
    must(waitpid(child, &status, 0) == child && status == 0, "the other process");
}

/* ---- ring ---- */

static void ring_produce(struct corral_ring *ring, uint64_t count)
{
    struct corral_traj_score reward;
    uint64_t bytes;
    for (uint64_t i = 1; i <= count; i++) {
        const struct corral_traj_record r = record_number(i, &reward);
        void *memory;
        enum corral_status status;
        must(corral_traj_record_bytes(&r, &bytes, NULL) == CORRAL_OK, "size");
        while ((status = corral_ring_reserve(ring, bytes, &memory, NULL)) == CORRAL_AGAIN) {
            (void)corral_ring_wait(ring, bytes, CORRAL_NS_PER_MS, NULL);
        }
        must(status == CORRAL_OK && corral_traj_record_encode(&r, memory, bytes, NULL) == CORRAL_OK,
             "encode");
        corral_ring_commit(ring, bytes);
    }
    while (corral_ring_unreleased(ring) > 0) {
        (void)corral_ring_wait(ring, RING_BYTES / 2, CORRAL_NS_PER_MS, NULL);
    }
}

static void ring_pair(uint64_t count)
{
    struct corral_ring *ring = NULL, *mine = NULL;
    int fd[3];
    must(corral_ring_create(&ring, RING_BYTES, false, NULL, NULL) == CORRAL_OK, "ring");
    corral_ring_descriptors(ring, fd);
    const pid_t child = fork(); /* the consumer: the ring's producer is the process that made it */
    must(child >= 0, "fork");
    if (child == 0) {
        uint64_t start = 0;
        struct corral_ring_item item;
        must(corral_ring_attach(&mine, CORRAL_RING_CONSUMER, fd, NULL) == CORRAL_OK, "attach");
        for (uint64_t i = 1; i <= count; i++) {
            while (corral_ring_next(mine, &item, NULL) != CORRAL_OK) {
                (void)corral_ring_wait(mine, 0, CORRAL_NS_PER_MS, NULL);
            }
            start = i == 1 ? corral_now_ns(&corral_clock_monotonic) : start;
            consume(item.data, item.bytes, i);
            must(corral_ring_release(mine, item.position, NULL) == CORRAL_OK, "release");
        }
        report(count, start);
        corral_ring_close(mine);
        _exit(0);
    }
    ring_produce(ring, count);
    join(child);
    corral_ring_close(ring);
}

/* ---- writer to receiver ---- */

static void produce(const char *endpoint, const char *key, uint64_t count)
{
    struct corral_traj_writer *w = NULL;
    struct corral_traj_score reward;
    const struct corral_traj_writer_options o = {.size = sizeof o,
                                                 .run = 1,
                                                 .token = TOKEN,
                                                 .epoch = 1,
                                                 .endpoints = &endpoint,
                                                 .endpoint_count = 1,
                                                 .server_key = key,
                                                 .window_bytes = WINDOW};
    must(corral_traj_writer_open(&w, &o, NULL) == CORRAL_OK, "writer");
    for (uint64_t i = 1; i <= count; i++) {
        const struct corral_traj_record r = record_number(i, &reward);
        must(corral_traj_writer_write(w, 0, &r, 30000, NULL, NULL) == CORRAL_OK, "write");
    }
    must(corral_traj_writer_wait(w, 30000, NULL) == CORRAL_OK, "acknowledgement");
    corral_traj_writer_close(w);
}

static void receive(struct corral_traj_receiver *r, uint64_t count)
{
    const struct corral_traj_item *held[FINISH_EVERY];
    uint64_t start = 0;
    uint32_t n = 0;
    for (uint64_t i = 1; i <= count; i++) {
        while (corral_traj_receiver_next(r, 1000, &held[n], NULL) != CORRAL_OK) {
        }
        start = i == 1 ? corral_now_ns(&corral_clock_monotonic) : start;
        consume(held[n]->data, held[n]->bytes, i);
        if (++n == FINISH_EVERY || i == count) {
            for (uint32_t k = 0; k < n; k++) {
                corral_traj_receiver_finish(r, held[k]);
            }
            n = 0;
        }
    }
    report(count, start);
}

static void stream_pair(bool tcp, uint64_t count)
{
    char folder[TEST_PATH_MAX], endpoint[256] = "tcp://127.0.0.1:*", public_key[41], secret_key[41];
    int from_parent[2];
    test_folder_make(folder);
    must(zmq_curve_keypair(public_key, secret_key) == 0 && pipe(from_parent) == 0, "keys");
    if (!tcp) {
        snprintf(endpoint, sizeof endpoint, "ipc://%s/traj", folder);
    }
    const pid_t child = fork(); /* before this process has a ZeroMQ context */
    must(child >= 0, "fork");
    if (child == 0) {
        must(read(from_parent[0], endpoint, sizeof endpoint) == sizeof endpoint, "endpoint");
        produce(endpoint, tcp ? public_key : NULL, count);
        _exit(0);
    }
    void *zmq = zmq_ctx_new();
    struct corral_traj_receiver *r = NULL;
    const struct corral_traj_receiver_config c = {.zmq_context = zmq,
                                                  .run = 1,
                                                  .bind = endpoint,
                                                  .buffer_bytes = WINDOW,
                                                  .memory = &corral_allocator_heap,
                                                  .token = TOKEN,
                                                  .server_secret_key = tcp ? secret_key : NULL};
    must(corral_traj_receiver_create(&r, &c, NULL) == CORRAL_OK, "receiver");
    snprintf(endpoint, sizeof endpoint, "%s", corral_traj_receiver_endpoint(r));
    must(write(from_parent[1], endpoint, sizeof endpoint) == sizeof endpoint, "endpoint");
    receive(r, count);
    const struct corral_traj_item *none; /* the last acknowledgements may still have to go out */
    int status;
    while (waitpid(child, &status, WNOHANG) == 0) {
        (void)corral_traj_receiver_next(r, 10, &none, NULL);
    }
    must(status == 0, "the other process");
    corral_traj_receiver_destroy(r);
    zmq_ctx_term(zmq);
    test_folder_remove(folder);
}

int main(int argc, char **argv)
{
    uint64_t count;
    if (argc != 3 || !corral_parse_u64(argv[2], &count) || count < 2) {
        fprintf(stderr, "usage: trajectory_pair ring|ipc|tcp COUNT\n");
        return 2;
    }
    if (strcmp(argv[1], "ring") == 0) {
        ring_pair(count);
    } else if (strcmp(argv[1], "ipc") == 0 || strcmp(argv[1], "tcp") == 0) {
        stream_pair(argv[1][0] == 't', count);
    } else {
        fprintf(stderr, "usage: trajectory_pair ring|ipc|tcp COUNT\n");
        return 2;
    }
    return 0;
}
