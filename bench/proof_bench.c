/* What a proof costs a gradient step: begin, end and the record, beside nothing at all; and the parts of it. The share is of a step of 1 ms, or of the step time given.
 * On the step's own thread, in a step that only waits and in one that goes through 8 MiB of memory, each with what the chain's other thread takes, as if no core were idle; then the
 * time that passes with and without proof while every core computes in lock-step. Half of a step's work comes before begin, half inside: no part of the guard warms the caches for the other.
 * Ends with status 1 when a step that only waits pays more than 1 %, the other thread's time included, or when three quarters of the pairs with every core busy do.
 * usage: proof_bench [STEP_MICROSECONDS] */
#include "base/clock.h"
#include "base/file.h"
#include "trainer-bridge/step_guard/step_guard.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 3
#define ROUND_STEPS 1000
#define STEPS (ROUNDS * ROUND_STEPS)
#define MIB (UINT64_C(1) << 20)
#define WORK_BYTES (8 * MIB)
#define PAIRS 16
#define BLOCK_US 150000 /* of steps with proof, and of steps without */
#define CORES_MAX 256
#define SPINS 2000 /* before a thread that waits for the others lets somebody else run */

static struct corral_error err;
static uint64_t sample[STEPS];

static void must(enum corral_status status)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "proof_bench: %s\n", err.text);
        exit(1);
    }
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The step itself: back to back, the disk would get records far faster than any trainer makes them. A step that goes through memory leaves nothing of what the guard needs in the cache. */
static void work(double step_us, bool memory)
{
    static uint64_t weights[WORK_BYTES / sizeof(uint64_t)];
    static size_t at;
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + (uint64_t)(step_us * 1e3);
    while (corral_now_ns(&corral_clock_monotonic) < until) {
        for (size_t i = 0; memory && i < 512; i++) {
            weights[at++ % CORRAL_COUNT_OF(weights)] += i;
        }
    }
}

/* Returns the median of the quietest round, in microseconds: what other programs do meanwhile is not the step's cost. All are printed. */
static double report(const char *what, double step_us)
{
    uint64_t sum = 0;
    double round[ROUNDS], least = 0;
    for (int r = 0; r < ROUNDS; r++) {
        qsort(sample + r * ROUND_STEPS, ROUND_STEPS, sizeof *sample, by_value);
        round[r] = (double)sample[r * ROUND_STEPS + ROUND_STEPS / 2] / 1e3;
        least = r == 0 || round[r] < least ? round[r] : least;
    }
    for (int i = 0; i < STEPS; i++) {
        sum += sample[i];
    }
    qsort(sample, STEPS, sizeof *sample, by_value);
    double median = (double)sample[STEPS / 2] / 1e3, mean = (double)sum / STEPS / 1e3;
    printf("%-28s median %7.2f us  mean %7.2f us  p99 %7.2f us  = %5.2f %% of a step of %.0f us\n", what,
           median, mean, (double)sample[STEPS * 99 / 100] / 1e3, 100 * median / step_us, step_us);
    printf("%-28s medians of its rounds: %.2f %.2f %.2f us\n", "", round[0], round[1], round[2]);
    return least;
}

static struct corral_quota *make_node(uint32_t *holder)
{
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    struct corral_quota *quota = NULL;
    uint32_t out;
    int fd;
    if (!plan) {
        exit(1);
    }
    corral_ledger_init(plan);
    must(corral_ledger_add_role(plan, "trainer", &out, &err));
    must(corral_ledger_add_role(plan, "rollout", &out, &err));
    must(corral_ledger_add_device(plan, "a:0", 256 * MIB, 0, &out, &err));
    must(corral_ledger_set_limits(plan, 0, 0, 64 * MIB, 128 * MIB, &err));
    must(corral_ledger_set_limits(plan, 0, 1, 64 * MIB, 128 * MIB, &err));
    must(corral_ledger_check_plan(plan, 1.0, &err));
    must(corral_quota_create(plan, NULL, &fd, &quota, &err));
    free(plan);
    must(corral_quota_join(quota, "a:0", "trainer", holder, &err));
    return quota;
}

static uint64_t cpu_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Returns what a step pays, in microseconds: its own thread, and the chain's, which is the only other one. */
static double take_steps(struct corral_step_guard *guard, uint64_t *step, double step_us, bool memory)
{
    uint64_t others = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns(CLOCK_THREAD_CPUTIME_ID);
    for (uint64_t i = 0; i < STEPS; i++) {
        work(step_us / 2, memory);
        uint64_t start = corral_now_ns(&corral_clock_monotonic);
        must(corral_step_guard_begin(guard, ++*step, 0, &err));
        sample[i] = corral_now_ns(&corral_clock_monotonic) - start;
        work(step_us / 2, memory);
        start = corral_now_ns(&corral_clock_monotonic);
        must(corral_step_guard_end(guard, NULL, &err));
        sample[i] += corral_now_ns(&corral_clock_monotonic) - start;
    }
    others = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns(CLOCK_THREAD_CPUTIME_ID) - others;
    double own = report(memory ? "the same, caches cold" : "begin + end", step_us);
    double other = (double)others / STEPS / 1e3;
    printf("%-28s %.2f us of a core per step; with the quietest round's median %.2f us = %.2f %%\n",
           "  the chain's thread", other, own + other, 100 * (own + other) / step_us);
    return own + other;
}

/* ---- every core busy ---- */

struct crew {
    pthread_t thread[CORES_MAX];
    int cores; /* this thread's included */
    uint64_t rounds;
    atomic_int arrived;
    atomic_uint turn;
    atomic_bool over;
};
static struct crew crew;

/* The same work for each, whatever it takes. */
static void compute(uint64_t rounds)
{
    volatile double value = 1;
    for (uint64_t i = 0; i < rounds; i++) {
        value = value * 1.0000001 + 1e-9;
    }
}

static void meet(void)
{
    unsigned turn = atomic_load_explicit(&crew.turn, memory_order_acquire);
    if (atomic_fetch_add_explicit(&crew.arrived, 1, memory_order_acq_rel) + 1 == crew.cores) {
        atomic_store_explicit(&crew.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&crew.turn, turn + 1, memory_order_release);
        return;
    }
    for (unsigned i = 1; atomic_load_explicit(&crew.turn, memory_order_acquire) == turn; i++) {
        if (i % SPINS == 0) {
            sched_yield();
        }
    }
}

static void *member_main(void *arg)
{
    (void)arg;
    for (;;) {
        meet(); /* the step begins, or none does any more */
        if (atomic_load_explicit(&crew.over, memory_order_acquire)) {
            return NULL;
        }
        compute(crew.rounds);
        meet();
    }
}

/* So that a step takes the time wanted of a core that is not disturbed: the least of several tries. */
static uint64_t rounds_for(double step_us)
{
    const uint64_t tried = 100000;
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 50; i++) {
        uint64_t start = corral_now_ns(&corral_clock_monotonic);
        compute(tried);
        least = CORRAL_MIN(least, corral_now_ns(&corral_clock_monotonic) - start);
    }
    return (uint64_t)(step_us * 1e3 / (double)least * (double)tried);
}

/* Nanoseconds per step. */
static double take_block(struct corral_step_guard *guard, uint64_t *step, int steps)
{
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    for (int i = 0; i < steps; i++) {
        if (guard) {
            must(corral_step_guard_begin(guard, ++*step, 0, &err));
        }
        meet();
        compute(crew.rounds);
        meet();
        if (guard) {
            must(corral_step_guard_end(guard, NULL, &err));
        }
    }
    return (double)(corral_now_ns(&corral_clock_monotonic) - start) / steps;
}

static int by_share(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Pairs, with proof first in every other. Returns the lower quartile of what proof adds, as a share of the step. */
static double keep_all_cores_busy(struct corral_step_guard *guard, uint64_t *step, double step_us)
{
    double added[PAIRS], plain[PAIRS];
    const struct timespec rest = {0, 2L * CORRAL_CHAIN_SYNC_MS * 1000000};
    int steps = CORRAL_MAX((int)(BLOCK_US / step_us), 1);
    crew.cores = (int)CORRAL_MIN(sysconf(_SC_NPROCESSORS_ONLN), (long)CORES_MAX);
    crew.rounds = rounds_for(step_us);
    for (int i = 1; i < crew.cores; i++) {
        if (pthread_create(&crew.thread[i], NULL, member_main, NULL) != 0) {
            perror("proof_bench");
            exit(1);
        }
    }
    for (int i = 0; i < PAIRS; i++) {
        double with = 0;
        for (int half = 0; half < 2; half++) {
            bool proof = (i + half) % 2 == 0;
            *(proof ? &with : &plain[i]) = take_block(proof ? guard : NULL, step, steps);
            nanosleep(&rest, NULL); /* the chain's thread comes to rest before steps without proof */
        }
        added[i] = with / plain[i] - 1;
    }
    atomic_store_explicit(&crew.over, true, memory_order_release);
    meet();
    for (int i = 1; i < crew.cores; i++) {
        pthread_join(crew.thread[i], NULL);
    }
    qsort(added, PAIRS, sizeof *added, by_share);
    qsort(plain, PAIRS, sizeof *plain, by_share);
    printf("%-28s %d cores in lock-step, step without proof %.0f us (quartiles %.0f ... %.0f); with it %+.2f "
           "%% (%+.2f "
           "... %+.2f), %d pairs\n",
           "every core busy", crew.cores, plain[PAIRS / 2] / 1e3, plain[PAIRS / 4] / 1e3,
           plain[PAIRS * 3 / 4] / 1e3, 100 * added[PAIRS / 2], 100 * added[PAIRS / 4],
           100 * added[PAIRS * 3 / 4], PAIRS);
    return added[PAIRS / 4];
}

/* ---- */

int main(int argc, char **argv)
{
    double step_us = argc > 1 ? strtod(argv[1], NULL) : 1000;
    char folder[] = "corral-proof-bench.XXXXXX",
         path[64]; /* on the disk of the current folder, as a run's chains are */
    if (!mkdtemp(folder) || step_us <= 0) {
        perror("proof_bench");
        return 1;
    }
    snprintf(path, sizeof path, "%s/guard.chain", folder);
    uint32_t holder;
    struct corral_quota *quota = make_node(&holder);
    struct corral_step_guard_config config = {.quota = quota,
                                              .holder = holder,
                                              .run = 1,
                                              .chain_path = path,
                                              .fences = "ledger",
                                              .drift_max = 64 * MIB,
                                              .host_device = true};
    struct corral_step_guard *guard;
    must(corral_step_guard_create(&config, &guard, &err));
    uint64_t step = 0;
    double whole = take_steps(guard, &step, step_us, false);
    (void)take_steps(guard, &step, step_us, true);
    double busy = keep_all_cores_busy(guard, &step, step_us);
    corral_step_guard_destroy(guard);
    snprintf(path, sizeof path, "%s/chain", folder);
    struct corral_chain *chain;
    char body[1100];
    memset(body, 'x', sizeof body);
    memcpy(body, "{\"type\":\"", 9);
    memcpy(body + sizeof body - 3, "\"}", 3);
    must(corral_chain_open(path, &chain, &err));
    for (int i = 0; i < STEPS; i++) {
        work(step_us, false);
        uint64_t start = corral_now_ns(&corral_clock_monotonic);
        must(corral_chain_reserve(chain, &err));
        must(corral_chain_append(chain, body, &err));
        sample[i] = corral_now_ns(&corral_clock_monotonic) - start;
    }
    report("of it, the chain's append", step_us);
    corral_chain_close(chain);
    corral_quota_detach(quota);
    (void)corral_remove_tree(folder, NULL);
    return whole <= step_us / 100 && busy <= 0.01 ? 0 : 1; /* the bound that the project sets itself: 1 % */
}
