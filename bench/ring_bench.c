/* The shared-memory ring between two processes: records per second, bandwidth as a ratio to memcpy, latency with both sides spinning and with the consumer asleep.
 *
 * WHAT IS COMPARED. Each record is written once by the producer (memcpy from a warm source buffer of 256 KiB into the ring, in place) and read once by the consumer (every byte, summed as 64-bit words, in place). The
 * baseline is memcpy in one process on one core from the same warm source into a buffer as large as the ring, in pieces of the record's size: it writes the same bytes to as much memory. "read" is what one
 * core does when it sums such a buffer: a bound of its own, since the consumer cannot be faster. Baseline and ring alternate, each figure is the median of the rounds with its spread.
 */
#include "base/clock.h"
#include "transport/trajectory/ring/ring.h"

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 31
#define SOURCE_BYTES (256u << 10)
#define LATENCY_SAMPLES 20000u
#define SLEEP_SAMPLES 1000u

static uint64_t ring_bytes =
    64u
    << 20; /* more than the last-level cache; in a smaller ring each store takes its line away from the other side first */
static uint64_t bytes_per_round = 128u << 20, records_per_round_max = 1u << 19;

struct shared { /* between the two processes, beside the ring */
    _Alignas(128) _Atomic uint64_t go, done;
    _Alignas(128) _Atomic uint64_t sum;
    _Alignas(128) _Atomic uint64_t turn;
};

struct figure {
    double median, min, max;
};

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct figure summarise(double *sample, size_t n)
{
    qsort(sample, n, sizeof *sample, by_value);
    return (struct figure){.median = sample[n / 2], .min = sample[0], .max = sample[n - 1]};
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* On a busy machine, a side that spins takes the time that the other one needs. */
#define SPINS 4096u

static bool pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) == 0;
}

static uint64_t sum_words(const void *data, uint64_t bytes)
{
    const uint64_t *word = data;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (uint64_t i = 0; i < bytes / 8; i += 4) {
        a += word[i];
        b += word[i + 1];
        c += word[i + 2];
        d += word[i + 3];
    }
    return a + b + c + d;
}

static void fatal(const char *what, const struct corral_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(1);
}

/* ---- throughput ---- */

static uint64_t records_of(uint64_t record_bytes)
{
    return CORRAL_MIN(records_per_round_max, CORRAL_MAX(bytes_per_round / record_bytes, 64));
}

static void produce(struct corral_ring *r, const uint8_t *source, uint64_t record_bytes, uint64_t records)
{
    struct corral_error err;
    uint64_t at = 0, spins = 0;
    for (uint64_t i = 0; i < records;) {
        void *to;
        enum corral_status status = corral_ring_reserve(r, record_bytes, &to, &err);
        if (status == CORRAL_AGAIN) {
            relax();
            if (++spins % SPINS == 0) {
                (void)corral_ring_wait(r, ring_bytes / 4, CORRAL_NS_PER_MS, NULL);
            }
            continue;
        }
        if (status != CORRAL_OK) {
            fatal("reserve", &err);
        }
        for (uint64_t done = 0; done < record_bytes;) {
            uint64_t part = CORRAL_MIN(record_bytes - done, SOURCE_BYTES - at);
            corral_ring_copy((uint8_t *)to + done, source + at, part);
            done += part;
            at = at + part == SOURCE_BYTES ? 0 : at + part;
        }
        corral_ring_commit(r, record_bytes);
        i++;
    }
}

static uint64_t consume(struct corral_ring *r, uint64_t records)
{
    struct corral_error err;
    uint64_t sum = 0, spins = 0;
    for (uint64_t i = 0; i < records;) {
        struct corral_ring_item item;
        enum corral_status status = corral_ring_next(r, &item, NULL);
        if (status == CORRAL_AGAIN) {
            relax();
            if (++spins % SPINS == 0) {
                (void)corral_ring_wait(r, 0, CORRAL_NS_PER_MS, NULL);
            }
            continue;
        }
        if (status != CORRAL_OK) {
            fprintf(stderr, "next failed\n");
            exit(1);
        }
        sum += sum_words(item.data, item.bytes);
        if (corral_ring_release(r, item.position, &err) != CORRAL_OK) {
            fatal("release", &err);
        }
        i++;
    }
    return sum;
}

static double copy_seconds(uint8_t *to, const uint8_t *source, uint64_t record_bytes, uint64_t records)
{
    uint64_t start = now_ns(), at = 0, target = 0;
    for (uint64_t i = 0; i < records; i++) {
        for (uint64_t done = 0; done < record_bytes;) {
            uint64_t part = CORRAL_MIN(record_bytes - done, SOURCE_BYTES - at);
            memcpy(to + target + done, source + at, part);
            done += part;
            at = at + part == SOURCE_BYTES ? 0 : at + part;
        }
        target = target + 2 * record_bytes > ring_bytes ? 0 : target + record_bytes;
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    return (double)(now_ns() - start) / 1e9;
}

static double read_seconds(const uint8_t *from, uint64_t record_bytes, uint64_t records, uint64_t *sum)
{
    uint64_t start = now_ns(), at = 0;
    for (uint64_t i = 0; i < records; i++) {
        *sum += sum_words(from + at, record_bytes);
        at = at + 2 * record_bytes > ring_bytes ? 0 : at + record_bytes;
    }
    return (double)(now_ns() - start) / 1e9;
}

static pid_t start_producer(struct shared *s, int fd[3],
                            void (*body)(struct corral_ring *, struct shared *, uint64_t), uint64_t argument)
{
    /* The child begins on its own processor: this one will be spinning. */
    pid_t parent = getpid(), pid = pin(0) ? fork() : -1;
    if (pid != 0) {
        if (pid < 0 || !pin(1)) {
            exit(1);
        }
        return pid;
    }
    struct corral_error err;
    struct corral_ring *side = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    if (corral_ring_attach(&side, CORRAL_RING_PRODUCER, fd, &err) != CORRAL_OK) {
        fatal("attach", &err);
    }
    body(side, s, argument);
    corral_ring_close(side);
    _exit(0);
}

static void throughput_body(struct corral_ring *r, struct shared *s, uint64_t record_bytes)
{
    uint8_t *source = aligned_alloc(64, SOURCE_BYTES), *target = aligned_alloc(4096, ring_bytes);
    if (source == NULL || target == NULL) {
        _exit(1);
    }
    for (uint64_t i = 0; i < SOURCE_BYTES; i++) {
        source[i] = (uint8_t)(i * 7);
    }
    memset(target, 1, ring_bytes);
    uint64_t records = records_of(record_bytes);
    for (uint64_t round = 1; round <= 2 * (ROUNDS + 1); round++) {
        for (uint64_t spins = 1; atomic_load_explicit(&s->go, memory_order_acquire) < round; spins++) {
            relax();
            if (spins % SPINS == 0) {
                sched_yield();
            }
        }
        if (round % 2 == 1) {
            double seconds = copy_seconds(target, source, record_bytes, records);
            atomic_store_explicit(&s->sum, (uint64_t)(seconds * 1e9), memory_order_relaxed);
        } else {
            produce(r, source, record_bytes, records);
        }
        atomic_store_explicit(&s->done, round, memory_order_release);
    }
    free(source);
    free(target);
}

struct pair {
    struct corral_ring *consumer;
    struct shared *shared;
    int fd[3];
    pid_t producer;
    char pages[64];
};

static void open_pair(struct pair *p, bool huge,
                      void (*body)(struct corral_ring *, struct shared *, uint64_t), uint64_t argument)
{
    struct corral_error err;
    struct corral_ring *made = NULL;
    if (corral_ring_create(&made, ring_bytes, huge, NULL, &err) != CORRAL_OK) {
        fatal("create", &err);
    }
    snprintf(p->pages, sizeof p->pages, "%s", corral_ring_pages(made));
    int fd[3];
    corral_ring_descriptors(made, fd);
    for (int i = 0; i < 3; i++) {
        p->fd[i] = dup(fd[i]);
    }
    corral_ring_close(made);
    p->shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p->shared == MAP_FAILED) {
        exit(1);
    }
    p->producer = start_producer(p->shared, p->fd, body, argument);
    if (corral_ring_attach(&p->consumer, CORRAL_RING_CONSUMER, p->fd, &err) != CORRAL_OK) {
        fatal("attach", &err);
    }
}

static void close_pair(struct pair *p)
{
    int status;
    waitpid(p->producer, &status, 0);
    corral_ring_close(p->consumer);
    munmap(p->shared, 4096);
    for (int i = 0; i < 3; i++) {
        close(p->fd[i]);
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "the producer failed\n");
        exit(1);
    }
}

static void wait_done(struct shared *s, uint64_t round)
{
    for (uint64_t spins = 1; atomic_load_explicit(&s->done, memory_order_acquire) < round; spins++) {
        relax();
        if (spins % SPINS == 0) {
            sched_yield();
        }
    }
}

static void throughput(uint64_t record_bytes, bool huge)
{
    struct pair p;
    open_pair(&p, huge, throughput_body, record_bytes);
    uint64_t records = records_of(record_bytes), sum = 0;
    double rate[ROUNDS], ratio[ROUNDS], copy[ROUNDS], reading[ROUNDS];
    uint8_t *memory = aligned_alloc(4096, ring_bytes);
    memset(memory, 1, ring_bytes);
    for (int round = -1; round < ROUNDS; round++) {
        uint64_t number = 2 * (uint64_t)(round + 1) + 1;
        atomic_store_explicit(&p.shared->go, number, memory_order_release);
        wait_done(p.shared, number);
        double copy_s = (double)atomic_load(&p.shared->sum) / 1e9;
        double read_s = read_seconds(memory, record_bytes, records, &sum);
        uint64_t start = now_ns();
        atomic_store_explicit(&p.shared->go, number + 1, memory_order_release);
        sum += consume(p.consumer, records);
        double ring_s = (double)(now_ns() - start) / 1e9;
        wait_done(p.shared, number + 1);
        if (round >= 0) {
            double gigabytes = (double)(records * record_bytes) / 1e9;
            rate[round] = (double)records / ring_s / 1e6;
            ratio[round] = copy_s / ring_s;
            copy[round] = gigabytes / copy_s;
            reading[round] = gigabytes / read_s;
        }
    }
    __asm__ volatile("" : : "r"(sum));
    free(memory);
    struct figure f = summarise(rate, ROUNDS), q = summarise(ratio, ROUNDS), c = summarise(copy, ROUNDS),
                  d = summarise(reading, ROUNDS);
    printf("%9llu B  %7.3f M/s (%.3f … %.3f)  %6.2f GB/s  memcpy %6.2f GB/s  read %6.2f GB/s  ratio to "
           "memcpy %.2f (%.2f … %.2f)\n",
           (unsigned long long)record_bytes, f.median, f.min, f.max, f.median * (double)record_bytes / 1e3,
           c.median, d.median, q.median, q.min, q.max);
    fflush(stdout);
    close_pair(&p);
}

/* ---- latency: one record at a time; its first word is the time just before commit ---- */

static void spin_body(struct corral_ring *r, struct shared *s, uint64_t samples)
{
    struct corral_error err;
    for (uint64_t i = 1; i <= samples; i++) {
        while (atomic_load_explicit(&s->turn, memory_order_acquire) < i) {
            relax();
        }
        void *to;
        if (corral_ring_reserve(r, 128, &to, &err) != CORRAL_OK) {
            fatal("reserve", &err);
        }
        memset(to, (int)i, 128);
        uint64_t start = now_ns();
        memcpy(to, &start, sizeof start);
        corral_ring_commit(r, 128);
    }
}

static void latency(bool asleep)
{
    uint64_t samples = asleep ? SLEEP_SAMPLES : LATENCY_SAMPLES;
    struct pair p;
    struct corral_error err;
    open_pair(&p, false, spin_body, samples);
    double *sample = calloc(samples, sizeof *sample);
    uint64_t clock_cost = now_ns();
    for (int i = 0; i < 1000; i++) {
        (void)now_ns();
    }
    clock_cost = (now_ns() - clock_cost) / 1001;
    for (uint64_t i = 0; i < samples; i++) {
        struct corral_ring_item item;
        enum corral_status status;
        if (asleep) {
            (void)corral_ring_arm(p.consumer, 0);
            atomic_store_explicit(&p.shared->turn, i + 1, memory_order_release);
            corral_ring_disarm(p.consumer);
            while ((status = corral_ring_wait(p.consumer, 0, UINT64_MAX, &err)) == CORRAL_OK &&
                   (status = corral_ring_next(p.consumer, &item, NULL)) == CORRAL_AGAIN) {
            }
        } else {
            atomic_store_explicit(&p.shared->turn, i + 1, memory_order_release);
            while ((status = corral_ring_next(p.consumer, &item, NULL)) == CORRAL_AGAIN) {
            }
        }
        uint64_t now = now_ns(), start;
        if (status != CORRAL_OK) {
            fatal("next", &err);
        }
        memcpy(&start, item.data, sizeof start);
        sample[i] = (double)(now - start);
        (void)sum_words(item.data, item.bytes);
        if (corral_ring_release(p.consumer, item.position, &err) != CORRAL_OK) {
            fatal("release", &err);
        }
    }
    qsort(sample, samples, sizeof *sample, by_value);
    printf("%-28s p50 %8.0f ns  p99 %8.0f ns  p99.9 %9.0f ns  (a clock reading, included: %llu ns)\n",
           asleep ? "latency, consumer asleep" : "latency, both spinning", sample[samples / 2],
           sample[samples * 99 / 100], sample[samples * 999 / 1000], (unsigned long long)clock_cost);
    fflush(stdout);
    free(sample);
    close_pair(&p);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            bytes_per_round /= 4;
            records_per_round_max /= 4;
        } else if (sscanf(argv[i], "--ring-mib=%lu", &ring_bytes) == 1) {
            ring_bytes <<= 20;
        } else {
            fprintf(stderr, "usage: %s [--quick] [--ring-mib=N]\n", argv[0]);
            return 2;
        }
    }
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2 || !pin(1)) {
        fprintf(stderr, "two processors are needed\n");
        return 77;
    }
    static const uint64_t sizes[] = {128, 1024, 16u << 10, 64u << 10, 256u << 10, 1u << 20};
    for (size_t i = 0; i < CORRAL_COUNT_OF(sizes); i++) {
        throughput(sizes[i], true);
    }
    latency(false);
    latency(true);
    return 0;
}
