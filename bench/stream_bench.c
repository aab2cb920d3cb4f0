/* Records per second and GB/s of the trajectory stream between two processes, as a ratio to bare ZeroMQ DEALER/ROUTER moving single frames of the same
 * size with the same socket options in the same run. Trials alternate; median with the spread. Both sides write each record once into the memory that is sent. Bare ZeroMQ
 * acknowledges nothing, keeps nothing, checks nothing and leaves records unaligned in memory of its own; Corral copies them into aligned charged memory and finishes them in
 * batches of 32. Small records are compared with frames of 256 KiB, which is what they are gathered into at most.
 * The CPU time of both processes is reported too: on a busy machine it says more than the clock.
 *
 *   bench_trajectory [TRIALS [ipc|tcp]]          tcp: with CURVE, on both sides of the comparison
 */
#include "base/clock.h"
#include "base/text.h"
#include "transport/bus/bus.h"
#include "transport/bus/socket.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define TRIALS_MAX 31
#define BATCH 32
#define WINDOW (64u << 20)
#define TOKEN "bench"

struct job {
    uint64_t bytes, count;             /* of one record; records */
    uint64_t frame_bytes, frame_count; /* what bare ZeroMQ moves instead */
    bool tcp;
    char public_key[41], secret_key[41];
    char bind[TEST_PATH_MAX + 16];
    char endpoint[CORRAL_ZMQ_ENDPOINT_MAX];
    int told[2]; /* a pipe: where the receiver listens */
};

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_trajectory: %s failed\n", what);
        exit(1);
    }
}

struct result {
    double seconds, cpu; /* cpu: of both processes, all threads */
};

static double cpu_of(const struct rusage *u)
{
    return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
           (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) / 1e6;
}

static double own_cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return cpu_of(&u);
}

/* The child learns from the parent where to connect. */
static void wait_for_endpoint(struct job *j)
{
    close(j->told[1]);
    must(read(j->told[0], j->endpoint, sizeof j->endpoint) == sizeof j->endpoint, "endpoint");
    close(j->told[0]);
}

static void tell_endpoint(struct job *j)
{
    must(write(j->told[1], j->endpoint, sizeof j->endpoint) == sizeof j->endpoint, "endpoint");
    close(j->told[0]);
    close(j->told[1]);
}

/* A process that runs `body`; made before this one has a ZeroMQ context. */
static pid_t start(struct job *j, const char *folder, void (*body)(const struct job *))
{
    if (j->tcp) {
        snprintf(j->bind, sizeof j->bind, "tcp://127.0.0.1:*");
    } else {
        snprintf(j->bind, sizeof j->bind, "ipc://%s/bench", folder);
    }
    must(pipe(j->told) == 0, "pipe");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        wait_for_endpoint(j);
        body(j);
        _exit(0);
    }
    return child;
}

/* ---- bare ---- */

/* As many messages on either side as Corral's window holds: without this, bare ZeroMQ is measured paging in a gigabyte of queue. */
static void bound_queue(void *socket, const struct job *j)
{
    int messages = (int)CORRAL_MAX(WINDOW / j->frame_bytes / 2, (uint64_t)2);
    must(zmq_setsockopt(socket, ZMQ_SNDHWM, &messages, sizeof messages) == 0 &&
             zmq_setsockopt(socket, ZMQ_RCVHWM, &messages, sizeof messages) == 0,
         "bare queue");
}

static void bare_send(const struct job *j)
{
    void *context = zmq_ctx_new(), *socket = NULL;
    void *data = calloc(1, j->frame_bytes);
    must(data != NULL && corral_zmq_open(context, ZMQ_DEALER, UINT32_MAX, &socket, NULL) == CORRAL_OK,
         "bare sender");
    bound_queue(socket, j);
    must(corral_zmq_connect(socket, j->endpoint, j->tcp ? j->public_key : NULL, NULL) == CORRAL_OK,
         "bare sender");
    for (uint64_t i = 0; i < j->frame_count; i++) {
        zmq_msg_t m;
        must(zmq_msg_init_size(&m, j->frame_bytes) == 0, "bare message");
        memcpy(zmq_msg_data(&m), data, j->frame_bytes); /* a record is written once */
        must(zmq_msg_send(&m, socket, 0) >= 0, "bare send");
    }
    char done;
    must(zmq_recv(socket, &done, 1, 0) >= 0, "bare end");
    free(data);
    zmq_close(socket);
    zmq_ctx_term(context);
}

static double bare_receive(void *socket, const struct job *j)
{
    uint64_t begun = 0;
    zmq_msg_t id, m;
    zmq_msg_init(&id);
    zmq_msg_init(&m);
    for (uint64_t i = 0; i < j->frame_count; i++) {
        must(zmq_msg_recv(&id, socket, 0) >= 0 && zmq_msg_recv(&m, socket, 0) >= 0, "bare receive");
        begun = i == 0 ? corral_now_ns(&corral_clock_monotonic) : begun;
    }
    double seconds = (double)(corral_now_ns(&corral_clock_monotonic) - begun) / 1e9;
    zmq_msg_send(&id, socket, ZMQ_SNDMORE);
    zmq_send(socket, "", 1, 0);
    zmq_msg_close(&m);
    return seconds;
}

static struct result bare_trial(struct job *j, const char *folder)
{
    struct result result = {.cpu = own_cpu()};
    struct rusage used;
    pid_t child = start(j, folder, bare_send);
    void *context = zmq_ctx_new(), *socket = NULL;
    must(corral_zmq_open(context, ZMQ_ROUTER, UINT32_MAX, &socket, NULL) == CORRAL_OK, "bare receiver");
    bound_queue(socket, j);
    must(corral_zmq_bind(socket, j->bind, j->tcp ? j->secret_key : NULL, j->endpoint, NULL) == CORRAL_OK,
         "bare bind");
    tell_endpoint(j);
    result.seconds = bare_receive(socket, j);
    int status;
    must(wait4(child, &status, 0, &used) == child && status == 0, "bare child");
    zmq_close(socket);
    zmq_ctx_term(context);
    result.cpu = own_cpu() - result.cpu + cpu_of(&used);
    return result;
}

/* ---- corral ---- */

/* A record of as near to `wanted` bytes as can be; *bytes: how many. */
static void *make_record(uint64_t wanted, uint64_t *bytes)
{
    void *record = test_numbered_record(1, 0, 1, 1, 1, bytes);
    if (*bytes < wanted) {
        uint64_t payload = wanted - *bytes + 1;
        free(record);
        record = test_numbered_record(1, 0, 1, 1, payload, bytes);
    }
    return record;
}

static void corral_send(const struct job *j)
{
    void *context = zmq_ctx_new();
    struct corral_traj_sender *s = NULL;
    struct corral_traj_sender_config c = {.zmq_context = context,
                                          .run = 1,
                                          .epoch = 1,
                                          .window_bytes = WINDOW,
                                          .memory = &corral_allocator_heap,
                                          .token = TOKEN,
                                          .server_key = j->tcp ? j->public_key : NULL};
    uint64_t bytes;
    void *record = make_record(j->bytes, &bytes);
    must(bytes == j->bytes, "record");
    must(corral_traj_sender_create(&s, &c, NULL) == CORRAL_OK, "sender");
    must(corral_traj_sender_connect(s, 0, j->endpoint, NULL) == CORRAL_OK, "connect");
    for (uint64_t i = 0; i < j->count; i++) {
        enum corral_status status;
        void *memory;
        while ((status = corral_traj_sender_reserve(s, 0, j->bytes, &memory, NULL)) == CORRAL_AGAIN) {
            must(corral_traj_sender_poll(s, 100, NULL) == CORRAL_OK, "poll");
        }
        must(status == CORRAL_OK, "reserve");
        memcpy(memory, record, j->bytes);
        must(corral_traj_sender_commit(s, 0, NULL, NULL) == CORRAL_OK, "commit");
    }
    struct corral_traj_sender_stats stats;
    for (corral_traj_sender_stats(s, &stats); stats.unacked_bytes > 0; corral_traj_sender_stats(s, &stats)) {
        must(corral_traj_sender_poll(s, 100, NULL) == CORRAL_OK, "poll");
    }
    corral_traj_sender_destroy(s, 0);
    free(record);
    zmq_ctx_term(context);
}

static double corral_receive(struct corral_traj_receiver *r, const struct job *j)
{
    uint64_t begun = 0;
    const struct corral_traj_item *held[BATCH];
    uint32_t count = 0;
    for (uint64_t i = 0; i < j->count; i++) {
        while (corral_traj_receiver_next(r, 1000, &held[count], NULL) != CORRAL_OK) {
        }
        begun = i == 0 ? corral_now_ns(&corral_clock_monotonic) : begun;
        if (++count == BATCH || i + 1 == j->count) {
            for (uint32_t k = 0; k < count; k++) {
                corral_traj_receiver_finish(r, held[k]);
            }
            count = 0;
        }
    }
    return (double)(corral_now_ns(&corral_clock_monotonic) - begun) / 1e9;
}

static struct result corral_trial(struct job *j, const char *folder)
{
    struct result result = {.cpu = own_cpu()};
    struct rusage used;
    pid_t child = start(j, folder, corral_send);
    void *context = zmq_ctx_new();
    struct corral_traj_receiver *r = NULL;
    struct corral_traj_receiver_config c = {.zmq_context = context,
                                            .run = 1,
                                            .bind = j->bind,
                                            .buffer_bytes = WINDOW,
                                            .memory = &corral_allocator_heap,
                                            .token = TOKEN,
                                            .server_secret_key = j->tcp ? j->secret_key : NULL};
    must(corral_traj_receiver_create(&r, &c, NULL) == CORRAL_OK, "receiver");
    snprintf(j->endpoint, sizeof j->endpoint, "%s", corral_traj_receiver_endpoint(r));
    tell_endpoint(j);
    result.seconds = corral_receive(r, j);
    const struct corral_traj_item *none; /* the last acknowledgements may still have to go out */
    int status;
    pid_t gone;
    while ((gone = wait4(child, &status, WNOHANG, &used)) == 0) {
        (void)corral_traj_receiver_next(r, 10, &none, NULL);
    }
    must(gone == child && status == 0, "sender's process");
    corral_traj_receiver_destroy(r);
    zmq_ctx_term(context);
    result.cpu = own_cpu() - result.cpu + cpu_of(&used);
    return result;
}

/* ---- report ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void show(const char *what, double *seconds, double *cpu, int trials, double count, double bytes)
{
    qsort(seconds, (size_t)trials, sizeof *seconds, by_value);
    qsort(cpu, (size_t)trials, sizeof *cpu, by_value);
    double median = seconds[trials / 2];
    printf("  %-7s %9.0f /s  %6.3f GB/s  (spread %.0f … %.0f /s), cpu %.2f us each\n", what, count / median,
           count * bytes / median / 1e9, count / seconds[trials - 1], count / seconds[0],
           1e6 * cpu[trials / 2] / count);
}

static void show_ratio(const char *what, double *ratio, int trials)
{
    qsort(ratio, (size_t)trials, sizeof *ratio, by_value);
    printf("  %s %.2f of bare  (%.2f … %.2f)\n", what, ratio[trials / 2], ratio[0], ratio[trials - 1]);
}

static void compare(struct job *j, uint64_t bytes, uint64_t count, int trials, const char *folder)
{
    double bare[TRIALS_MAX], bare_cpu[TRIALS_MAX], own[TRIALS_MAX], own_cpu_used[TRIALS_MAX],
        rate[TRIALS_MAX], cpu[TRIALS_MAX];
    free(make_record(bytes, &j->bytes));
    bytes = j->bytes;
    j->count = count;
    j->frame_bytes = bytes >= 64u << 10 ? bytes : 256u << 10;
    j->frame_count = count * bytes / j->frame_bytes;
    for (int i = 0; i < trials; i++) {
        struct result plain = bare_trial(j, folder), ours = corral_trial(j, folder);
        bare[i] = plain.seconds;
        bare_cpu[i] = plain.cpu;
        own[i] = ours.seconds;
        own_cpu_used[i] = ours.cpu;
        rate[i] = plain.seconds / ours.seconds;
        cpu[i] = ours.cpu / plain.cpu;
    }
    printf("records of %llu bytes over %s, %llu per trial, %d trials; bare: frames of %llu bytes\n",
           (unsigned long long)bytes, j->tcp ? "tcp with CURVE" : "ipc", (unsigned long long)count, trials,
           (unsigned long long)j->frame_bytes);
    show("bare", bare, bare_cpu, trials, (double)(j->frame_count - 1), (double)j->frame_bytes);
    show("corral", own, own_cpu_used, trials, (double)(count - 1), (double)bytes);
    show_ratio("rate   ", rate, trials);
    show_ratio("cpu    ", cpu, trials);
    fflush(stdout); /* before the next fork */
}

int main(int argc, char **argv)
{
    char folder[TEST_PATH_MAX];
    uint64_t trials = 5;
    if (argc > 3 ||
        (argc >= 2 && (!corral_parse_u64(argv[1], &trials) || trials == 0 || trials > TRIALS_MAX)) ||
        (argc == 3 && strcmp(argv[2], "ipc") != 0 && strcmp(argv[2], "tcp") != 0)) {
        fprintf(stderr, "usage: bench_trajectory [TRIALS, 1 to %d [ipc|tcp]]\n", TRIALS_MAX);
        return 2;
    }
    struct job j = {.tcp = false};
    must(corral_bus_keypair(j.public_key, j.secret_key, NULL) == CORRAL_OK, "keys");
    test_folder_make(folder);
    for (int tcp = 0; tcp < 2; tcp++) {
        if (argc == 3 && (strcmp(argv[2], "tcp") == 0) != (tcp != 0)) {
            continue;
        }
        j.tcp = tcp != 0;
        compare(&j, 128, tcp ? 500000 : 1000000, (int)trials, folder);
        compare(&j, 1 << 10, tcp ? 100000 : 400000, (int)trials, folder);
        compare(&j, 64 << 10, tcp ? 4000 : 20000, (int)trials, folder);
        compare(&j, 1 << 20, tcp ? 250 : 2000, (int)trials, folder);
    }
    test_folder_remove(folder);
    return 0;
}
