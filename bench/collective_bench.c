/* Sums over the shm and tcp collectives: time of one sum_f32 in microseconds, its rate in bytes per rank, and the ratio to memcpy of
 * the same bytes by one process in the same run. Each figure is the median of the rounds with its spread (min … max). Ranks are
 * processes on this machine; the tcp ones talk over loopback. With more ranks than cores the figures are those of a crowded machine. */
#include "base/clock.h"
#include "transport/collective/collective.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 9
#define TIMEOUT_MS 60000
#define BYTES_PER_ROUND (UINT64_C(64) << 20)
#define CALLS_MAX 4000
#define CALLS_MIN 8

static const uint8_t secret[32] = "benchmark";
static const uint32_t sizes[] = {4, 11 * 1024, 64 * 1024, 1024 * 1024, 8 * 1024 * 1024};

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

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static uint32_t calls_for(uint32_t bytes)
{
    uint64_t calls = BYTES_PER_ROUND / 8 / bytes;
    return (uint32_t)CORRAL_MAX(CALLS_MIN, CORRAL_MIN(CALLS_MAX, calls));
}

/* Microseconds of one copy. The barrier keeps the compiler from dropping copies nobody reads. */
static double time_copies(char *to, const char *from, uint32_t bytes, uint32_t calls)
{
    uint64_t start = now_ns();
    for (uint32_t i = 0; i < calls; i++) {
        memcpy(to, from, bytes);
        __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
    }
    return (double)(now_ns() - start) / 1e3 / calls;
}

static bool time_sums(struct corral_collective *c, float *data, uint32_t bytes, uint32_t calls, double *us,
                      struct corral_error *err)
{
    if (c->ops->barrier(c, err) != CORRAL_OK) {
        return false;
    }
    uint64_t start = now_ns();
    for (uint32_t i = 0; i < calls; i++) {
        if (c->ops->sum_f32(c, data, bytes / sizeof *data, err) != CORRAL_OK) {
            return false;
        }
    }
    *us = (double)(now_ns() - start) / 1e3 / calls;
    return true;
}

static void print_row(const struct corral_collective *c, uint32_t bytes, double *sum, double *ratio)
{
    struct figure t = summarise(sum), r = summarise(ratio);
    printf("%-4s %5u %9u  %9.2f (%.2f … %.2f)  %7.2f GB/s  %8.2f (%.2f … %.2f)\n", c->ops->name, c->ranks,
           bytes, t.median, t.min, t.max, bytes / t.median / 1e3, r.median, r.min, r.max);
    fflush(stdout);
}

/* One rank's part; rank 0 prints. */
static int run_rank(struct corral_collective *c, struct corral_error *err)
{
    uint32_t largest = sizes[CORRAL_COUNT_OF(sizes) - 1];
    CORRAL_AUTO_FREE float *data = calloc(1, largest);
    CORRAL_AUTO_FREE char *copy = calloc(1, largest);
    if (!data || !copy) {
        return 1;
    }
    for (size_t k = 0; k < CORRAL_COUNT_OF(sizes); k++) {
        double sum[ROUNDS], ratio[ROUNDS];
        uint32_t calls = calls_for(sizes[k]);
        for (int round = -1; round < ROUNDS; round++) { /* -1 warms up */
            double us = 0, copy_us = c->rank == 0 ? time_copies(copy, (char *)data, sizes[k], calls) : 0;
            if (!time_sums(c, data, sizes[k], calls, &us, err)) {
                return 1;
            }
            if (round >= 0) {
                sum[round] = us;
                ratio[round] = copy_us > 0 ? us / copy_us : 0;
            }
        }
        if (c->rank == 0) {
            print_row(c, sizes[k], sum, ratio);
        }
    }
    return 0;
}

struct group {
    bool tcp;
    uint32_t ranks;
    int segment;
    struct corral_collective_listener *listener;
    char endpoint[128];
};

static int rank_main(const struct group *g, uint32_t rank)
{
    struct corral_error err = {0};
    struct corral_collective *c = NULL;
    enum corral_status status =
        g->tcp ? corral_collective_tcp_create(rank == 0 ? g->listener : NULL, g->endpoint, rank, g->ranks, 1,
                                              secret, TIMEOUT_MS, &c, &err)
               : corral_collective_shm_create(g->segment, rank, g->ranks, 1, TIMEOUT_MS, &c, &err);
    int result = status == CORRAL_OK ? run_rank(c, &err) : 1;
    if (result != 0) {
        fprintf(stderr, "collective_bench: rank %u: %s\n", rank, err.text);
    }
    corral_collective_destroy(c);
    return result;
}

static int run_group(bool tcp, uint32_t ranks)
{
    struct corral_error err = {0};
    struct group g = {.tcp = tcp, .ranks = ranks, .segment = -1};
    enum corral_status status =
        tcp ? corral_collective_tcp_listen("127.0.0.1", &g.listener, g.endpoint, sizeof g.endpoint, &err)
            : corral_collective_shm_segment(ranks, 256 * 1024, &g.segment, &err);
    if (status != CORRAL_OK) {
        fprintf(stderr, "collective_bench: %s\n", err.text);
        return 1;
    }
    for (uint32_t r = 1; r < ranks; r++) {
        if (fork() == 0) {
            _exit(rank_main(&g, r));
        }
    }
    int failed = rank_main(&g, 0), child = 0;
    while (wait(&child) > 0) {
        failed |= child;
    }
    corral_cleanup_close(&g.segment);
    return failed != 0;
}

int main(void)
{
    printf("%ld cores online, %d rounds, median (min … max)\n", sysconf(_SC_NPROCESSORS_ONLN), ROUNDS);
    printf("%-4s %5s %9s  %s  %s  %s\n", "lane", "ranks", "bytes", "microseconds per sum_f32",
           "bytes per rank", "times a memcpy of the same bytes");
    fflush(stdout);
    static const uint32_t ranks[] = {2, 4};
    int failed = 0;
    for (size_t i = 0; i < CORRAL_COUNT_OF(ranks); i++) {
        failed |= run_group(false, ranks[i]);
        failed |= run_group(true, ranks[i]);
    }
    return failed;
}
