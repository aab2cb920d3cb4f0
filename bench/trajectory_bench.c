/* Fragments per second and GB/s of the trajectory plane over ipc between two processes, as a ratio to bare ZeroMQ DEALER/ROUTER moving single frames
 * of the same size in the same run. Trials of the two alternate; median of five with the spread. Bare ZeroMQ acknowledges nothing, keeps
 * nothing, checks nothing and hands out memory of its own; Corral copies into aligned charged memory, finishes fragments in batches of 32.
 * The CPU time of both processes is reported too: on a busy machine it says more than the clock.
 *
 *   bench_trajectory [TRIALS]
 */
#include "base/clock.h"
#include "base/text.h"
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
    uint64_t bytes, count;
    char endpoint[TEST_PATH_MAX + 16];
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

/* ---- bare ---- */

static void bare_send(const struct job *j)
{
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    void *data = calloc(1, j->bytes);
    must(data != NULL && zmq_connect(socket, j->endpoint) == 0, "bare sender");
    for (uint64_t i = 0; i < j->count; i++) {
        zmq_msg_t m;
        must(zmq_msg_init_size(&m, j->bytes) == 0, "bare message");
        memcpy(zmq_msg_data(&m), data,
               j->bytes); /* the caller's tensors stay the caller's: both sides of the comparison copy once */
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
    uint64_t start = 0;
    zmq_msg_t id, m;
    zmq_msg_init(&id);
    zmq_msg_init(&m);
    for (uint64_t i = 0; i < j->count; i++) {
        must(zmq_msg_recv(&id, socket, 0) >= 0 && zmq_msg_recv(&m, socket, 0) >= 0, "bare receive");
        start = i == 0 ? corral_now_ns(&corral_clock_monotonic) : start;
    }
    double seconds = (double)(corral_now_ns(&corral_clock_monotonic) - start) / 1e9;
    zmq_msg_send(&id, socket, ZMQ_SNDMORE);
    zmq_send(socket, "", 1, 0);
    zmq_msg_close(&m);
    return seconds;
}

static struct result bare_trial(struct job *j, const char *folder)
{
    struct result result = {.cpu = own_cpu()};
    struct rusage used;
    snprintf(j->endpoint, sizeof j->endpoint, "ipc://%s/bare", folder);
    pid_t child = fork(); /* before this process has a ZeroMQ context */
    if (child == 0) {
        bare_send(j);
        _exit(0);
    }
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_ROUTER);
    must(zmq_bind(socket, j->endpoint) == 0, "bare bind");
    result.seconds = bare_receive(socket, j);
    int status;
    must(wait4(child, &status, 0, &used) == child && status == 0, "bare child");
    zmq_close(socket);
    zmq_ctx_term(context);
    result.cpu = own_cpu() - result.cpu + cpu_of(&used);
    return result;
}

/* ---- corral ---- */

static void corral_send(const struct job *j)
{
    void *context = zmq_ctx_new();
    struct corral_traj_sender *s = NULL;
    struct corral_traj_sender_config c = {.zmq_context = context,
                                          .run = 1,
                                          .epoch = 1,
                                          .window_bytes = WINDOW,
                                          .memory = &corral_allocator_heap,
                                          .token = TOKEN};
    struct test_fragment t;
    test_fragment_sized(&t, j->bytes);
    must(corral_traj_sender_create(&s, &c, NULL) == CORRAL_OK, "sender");
    must(corral_traj_sender_connect(s, 0, j->endpoint, NULL) == CORRAL_OK, "connect");
    for (uint64_t i = 0; i < j->count; i++) {
        enum corral_status status;
        while ((status = corral_traj_sender_send(s, 0, &t.fragment, NULL)) == CORRAL_AGAIN) {
            must(corral_traj_sender_poll(s, 100, NULL) == CORRAL_OK, "poll");
        }
        must(status == CORRAL_OK, "send");
    }
    struct corral_traj_sender_stats stats;
    for (corral_traj_sender_stats(s, &stats); stats.unacked_bytes > 0; corral_traj_sender_stats(s, &stats)) {
        must(corral_traj_sender_poll(s, 100, NULL) == CORRAL_OK, "poll");
    }
    corral_traj_sender_destroy(s, 0);
    test_fragment_free(&t);
    zmq_ctx_term(context);
}

static double corral_receive(struct corral_traj_receiver *r, const struct job *j)
{
    uint64_t start = 0;
    const struct corral_fragment *held[BATCH];
    uint32_t count = 0;
    for (uint64_t i = 0; i < j->count; i++) {
        while (corral_traj_receiver_next(r, 1000, &held[count], NULL) != CORRAL_OK) {
        }
        start = i == 0 ? corral_now_ns(&corral_clock_monotonic) : start;
        if (++count == BATCH || i + 1 == j->count) {
            for (uint32_t k = 0; k < count; k++) {
                corral_traj_receiver_finish(r, held[k]);
            }
            count = 0;
        }
    }
    return (double)(corral_now_ns(&corral_clock_monotonic) - start) / 1e9;
}

static struct result corral_trial(struct job *j, const char *folder)
{
    struct result result = {.cpu = own_cpu()};
    struct rusage used;
    snprintf(j->endpoint, sizeof j->endpoint, "ipc://%s/traj", folder);
    pid_t child = fork();
    if (child == 0) {
        corral_send(j);
        _exit(0);
    }
    void *context = zmq_ctx_new();
    struct corral_traj_receiver *r = NULL;
    struct corral_traj_receiver_config c = {.zmq_context = context,
                                            .run = 1,
                                            .bind = j->endpoint,
                                            .buffer_bytes = WINDOW,
                                            .memory = &corral_allocator_heap,
                                            .token = TOKEN};
    must(corral_traj_receiver_create(&r, &c, NULL) == CORRAL_OK, "receiver");
    result.seconds = corral_receive(r, j);
    const struct corral_fragment *none; /* the last acknowledgements may still have to go out */
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

static void show(const char *what, double *seconds, double *cpu, int trials, const struct job *j)
{
    qsort(seconds, (size_t)trials, sizeof *seconds, by_value);
    qsort(cpu, (size_t)trials, sizeof *cpu, by_value);
    double median = seconds[trials / 2], n = (double)(j->count - 1);
    printf("  %-7s %9.0f /s  %6.3f GB/s  (spread %.0f … %.0f /s), cpu %.2f us each\n", what, n / median,
           n * (double)j->bytes / median / 1e9, n / seconds[trials - 1], n / seconds[0],
           1e6 * cpu[trials / 2] / n);
}

static void show_ratio(const char *what, double *ratio, int trials)
{
    qsort(ratio, (size_t)trials, sizeof *ratio, by_value);
    printf("  %s %.2f of bare  (%.2f … %.2f)\n", what, ratio[trials / 2], ratio[0], ratio[trials - 1]);
}

static void compare(uint64_t bytes, uint64_t count, int trials, const char *folder)
{
    struct test_fragment t;
    double bare[TRIALS_MAX], bare_cpu[TRIALS_MAX], own[TRIALS_MAX], own_cpu_used[TRIALS_MAX],
        rate[TRIALS_MAX], cpu[TRIALS_MAX];
    test_fragment_sized(&t, bytes);
    struct job j = {.bytes = corral_fragment_bytes(&t.fragment) - CORRAL_FRAGMENT_HEADER_BYTES,
                    .count = count};
    test_fragment_free(&t);
    for (int i = 0; i < trials; i++) {
        struct result plain = bare_trial(&j, folder), ours = corral_trial(&j, folder);
        bare[i] = plain.seconds;
        bare_cpu[i] = plain.cpu;
        own[i] = ours.seconds;
        own_cpu_used[i] = ours.cpu;
        rate[i] = plain.seconds / ours.seconds;
        cpu[i] = ours.cpu / plain.cpu;
    }
    printf("%llu KiB fragments (%llu bytes of tensors), %llu per trial, %d trials\n",
           (unsigned long long)(bytes >> 10), (unsigned long long)j.bytes, (unsigned long long)count, trials);
    show("bare", bare, bare_cpu, trials, &j);
    show("corral", own, own_cpu_used, trials, &j);
    show_ratio("rate   ", rate, trials);
    show_ratio("cpu    ", cpu, trials);
    fflush(stdout); /* before the next fork */
}

int main(int argc, char **argv)
{
    char folder[TEST_PATH_MAX];
    uint64_t trials = 5;
    if (argc > 2 ||
        (argc == 2 && (!corral_parse_u64(argv[1], &trials) || trials == 0 || trials > TRIALS_MAX))) {
        fprintf(stderr, "usage: bench_trajectory [TRIALS, 1 to %d]\n", TRIALS_MAX);
        return 2;
    }
    test_folder_make(folder);
    compare(4 << 10, 100000, (int)trials, folder);
    compare(64 << 10, 20000, (int)trials, folder);
    compare(1 << 20, 2000, (int)trials, folder);
    test_folder_remove(folder);
    return 0;
}
