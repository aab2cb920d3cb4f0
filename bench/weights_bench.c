/* Weight pushes over the shm and tcp lanes, as a ratio to the least the machine could do in the same run: memcpy of the same bytes for
 * shm, a raw loopback socket (send all, one byte back) for tcp. Each figure is the median of the rounds with its spread (min … max).
 * All in one process on loopback: the tcp figures include the receiver thread's share of the cores. */
#include "base/clock.h"
#include "base/log.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/publisher.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUNDS 7
#define RUN 1

static const uint8_t secret[32] = "benchmark";

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

struct figure {
    double median, min, max;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct figure summarise(double *sample)
{
    qsort(sample, ROUNDS, sizeof *sample, by_value);
    return (struct figure){.median = sample[ROUNDS / 2], .min = sample[0], .max = sample[ROUNDS - 1]};
}

/* ---- the raw socket ---- */

struct sink {
    int fd;
    uint64_t bytes;
    void *to;
};

/* Receives `bytes` into memory, answers with one byte, until the other end closes. */
static void *sink_run(void *arg)
{
    struct sink *s = arg;
    for (;;) {
        for (uint64_t got = 0; got < s->bytes;) {
            ssize_t n = recv(s->fd, (char *)s->to + got, s->bytes - got, 0);
            if (n <= 0) {
                return NULL;
            }
            got += (uint64_t)n;
        }
        if (send(s->fd, "x", 1, MSG_NOSIGNAL) != 1) {
            return NULL;
        }
    }
}

static int raw_pair(int pair[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    const int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0 ||
        connect(pair[0], (struct sockaddr *)&address, length) != 0) {
        return -1;
    }
    pair[1] = accept(listener, NULL, NULL);
    close(listener);
    for (int i = 0; i < 2; i++) {
        setsockopt(pair[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    return pair[1] < 0 ? -1 : 0;
}

static void raw_push(int fd, const char *data, uint64_t bytes)
{
    char byte;
    for (uint64_t sent = 0; sent < bytes;) {
        ssize_t n = send(fd, data + sent, bytes - sent, MSG_NOSIGNAL);
        if (n <= 0) {
            perror("send");
            exit(1);
        }
        sent += (uint64_t)n;
    }
    if (recv(fd, &byte, 1, 0) != 1) {
        perror("recv");
        exit(1);
    }
}

/* ---- one size ---- */

struct bench {
    uint64_t bytes, version;
    uint32_t pushes; /* per round */
    char *weights, *copy;
    struct corral_weight_store *local, *remote;
    struct corral_weight_receiver *receiver;
    struct corral_weight_publisher *shm, *tcp;
    int fd[2], raw[2];
    struct sink sink;
    pthread_t thread;
};

static enum corral_status start(struct bench *b, struct corral_error *err)
{
    struct corral_manifest *m = NULL;
    CORRAL_TRY(corral_manifest_create(&m, 1, err));
    CORRAL_TRY(corral_manifest_add(m, "w", CORRAL_DTYPE_U8, 1, &b->bytes, err));
    CORRAL_TRY(corral_weight_store_create(b->bytes, &b->fd[0], err));
    CORRAL_TRY(corral_weight_store_create(b->bytes, &b->fd[1], err));
    CORRAL_TRY(corral_weight_store_attach(b->fd[0], &b->local, err));
    CORRAL_TRY(corral_weight_store_attach(b->fd[1], &b->remote, err));
    const struct corral_node_receiver_options receiver = {.node = "remote",
                                                          .host = "127.0.0.1",
                                                          .manifest = m,
                                                          .store = b->remote,
                                                          .run = RUN,
                                                          .secret = secret};
    const struct corral_publisher_options publisher = {
        .manifest = m, .run = RUN, .secret = secret, .deadline_ms = 10000};
    CORRAL_TRY(corral_weight_receiver_start(&b->receiver, &receiver, err));
    CORRAL_TRY(corral_weight_publisher_create(&b->shm, &publisher, err));
    CORRAL_TRY(corral_weight_publisher_create(&b->tcp, &publisher, err));
    CORRAL_TRY(corral_weight_publisher_add_store(b->shm, b->local, err));
    CORRAL_TRY(corral_weight_publisher_add_node(b->tcp, "remote",
                                                corral_weight_receiver_endpoint(b->receiver), err));
    corral_manifest_destroy(m);
    b->weights = malloc(b->bytes);
    b->copy = malloc(b->bytes);
    b->sink = (struct sink){.bytes = b->bytes, .to = malloc(b->bytes)};
    if (b->weights == NULL || b->copy == NULL || b->sink.to == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for %llu bytes", (unsigned long long)b->bytes);
    }
    memset(b->copy, 1, b->bytes);
    memset(b->sink.to, 1, b->bytes);
    for (uint64_t i = 0; i < b->bytes; i++) {
        b->weights[i] = (char)(i * 31 >> 3);
    }
    if (raw_pair(b->raw) != 0) {
        return corral_fail_sys(err, errno, "cannot make a loopback pair");
    }
    b->sink.fd = b->raw[1];
    int sys = pthread_create(&b->thread, NULL, sink_run, &b->sink);
    return sys == 0 ? CORRAL_OK : corral_fail_sys(err, sys, "cannot start a thread");
}

static void stop(struct bench *b)
{
    shutdown(b->raw[0], SHUT_RDWR);
    pthread_join(b->thread, NULL);
    corral_weight_publisher_destroy(b->shm);
    corral_weight_publisher_destroy(b->tcp);
    corral_weight_receiver_stop(b->receiver);
    corral_weight_store_detach(b->local);
    corral_weight_store_detach(b->remote);
    for (int i = 0; i < 2; i++) {
        close(b->fd[i]);
        close(b->raw[i]);
    }
    free(b->weights);
    free(b->copy);
    free(b->sink.to);
}

/* Microseconds per push. */
static double time_pushes(struct bench *b, struct corral_weight_publisher *p)
{
    struct corral_error err = {0};
    uint64_t before = now_ns();
    for (uint32_t i = 0; i < b->pushes; i++) {
        if (corral_weight_publisher_push(p, ++b->version, b->weights, b->bytes, NULL, &err) != CORRAL_OK) {
            fprintf(stderr, "weights_bench: %s\n", err.text);
            exit(1);
        }
    }
    return (double)(now_ns() - before) / b->pushes / 1e3;
}

static double time_memcpy(struct bench *b)
{
    uint64_t before = now_ns();
    for (uint32_t i = 0; i < b->pushes; i++) {
        memcpy(b->copy, b->weights, b->bytes);
        __asm__ volatile("" : : "r"(b->copy) : "memory"); /* each copy is wanted */
    }
    return (double)(now_ns() - before) / b->pushes / 1e3;
}

static double time_raw(struct bench *b)
{
    uint64_t before = now_ns();
    for (uint32_t i = 0; i < b->pushes; i++) {
        raw_push(b->raw[0], b->weights, b->bytes);
    }
    return (double)(now_ns() - before) / b->pushes / 1e3;
}

static void print(const char *name, uint64_t bytes, struct figure us, struct figure ratio, const char *of)
{
    printf("%-6s %9llu B  %10.1f us/push (%.1f … %.1f)  %7.2f GB/s", name, (unsigned long long)bytes,
           us.median, us.min, us.max, (double)bytes / us.median / 1e3);
    if (of != NULL) {
        printf("  %5.2f x %s (%.2f … %.2f)", ratio.median, of, ratio.min, ratio.max);
    }
    printf("\n");
}

static enum corral_status bench(uint64_t bytes, uint32_t pushes, struct corral_error *err)
{
    struct bench b = {.bytes = bytes, .pushes = pushes};
    double copy[ROUNDS], shm[ROUNDS], raw[ROUNDS], tcp[ROUNDS], shm_ratio[ROUNDS], tcp_ratio[ROUNDS];
    CORRAL_TRY(start(&b, err));
    for (int i = -1; i < ROUNDS; i++) { /* round -1 touches every page and is not counted */
        int k = i < 0 ? 0 : i;
        copy[k] = time_memcpy(&b);
        shm[k] = time_pushes(&b, b.shm);
        raw[k] = time_raw(&b);
        tcp[k] = time_pushes(&b, b.tcp);
        shm_ratio[k] = shm[k] / copy[k];
        tcp_ratio[k] = tcp[k] / raw[k];
    }
    stop(&b);
    struct figure none = {0};
    print("memcpy", bytes, summarise(copy), none, NULL);
    print("shm", bytes, summarise(shm), summarise(shm_ratio), "memcpy");
    print("socket", bytes, summarise(raw), none, NULL);
    print("tcp", bytes, summarise(tcp), summarise(tcp_ratio), "socket");
    return CORRAL_OK;
}

int main(void)
{
    struct corral_error err = {0};
    enum corral_status status = bench(16 << 10, 500, &err);
    if (status == CORRAL_OK) {
        status = bench(64 << 20, 3, &err);
    }
    if (status != CORRAL_OK) {
        fprintf(stderr, "weights_bench: %s\n", err.text);
        return 1;
    }
    return 0;
}
