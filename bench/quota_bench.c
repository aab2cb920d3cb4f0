/* What charging costs: take + keep + drop of the node's ledger, alone and with eight processes at it, beside what any count costs
 * at all, a plain atomic add and subtract on shared memory under the same contention.
 *
 *     quota_bench [--processes N] [--rounds N]
 */
#include "base/log.h"
#include "base/text.h"
#include "quota/shared.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define PROCESSES_MAX 32
#define ROUNDS_MAX 1000000u

enum loop { CHARGE, ATOMIC };

struct board {
    _Atomic uint32_t ready, done;
    _Atomic uint64_t counter __attribute__((aligned(64)));
    float ns[]; /* rounds of the first process */
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static struct corral_quota *make_node(int *fd)
{
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    struct corral_quota *q = NULL;
    struct corral_error err = {0};
    uint32_t out;
    if (!plan) {
        return NULL;
    }
    corral_ledger_init(plan);
    bool ok = corral_ledger_add_role(plan, "trainer", &out, &err) == CORRAL_OK &&
              corral_ledger_add_role(plan, "rollout", &out, &err) == CORRAL_OK &&
              corral_ledger_add_role(plan, "eval", &out, &err) == CORRAL_OK &&
              corral_ledger_add_device(plan, "a:0", 1000 * MIB, 10 * MIB, &out, &err) == CORRAL_OK;
    for (uint32_t r = 0; ok && r < 3; r++) {
        ok = corral_ledger_set_limits(plan, 0, r, 200 * MIB, 400 * MIB, &err) == CORRAL_OK;
    }
    ok = ok && corral_ledger_check_plan(plan, 1.25, &err) == CORRAL_OK &&
         corral_quota_create(plan, NULL, fd, &q, &err) == CORRAL_OK;
    if (!ok) {
        fprintf(stderr, "quota_bench: %s\n", err.text);
    }
    free(plan);
    return q;
}

static bool one_round(enum loop loop, struct corral_quota *q, uint32_t holder, struct board *board)
{
    struct corral_quota_charge charge;
    if (loop == ATOMIC) {
        atomic_fetch_add(&board->counter, 4096);
        atomic_fetch_sub(&board->counter, 4096);
        return true;
    }
    if (corral_quota_take(q, holder, 4096, CORRAL_KIND_DEVICE, "bench", &charge, NULL) != CORRAL_OK) {
        return false;
    }
    corral_quota_keep(q, &charge);
    corral_quota_drop(q, &charge);
    return true;
}

/* All start together; the first measures its rounds, the others go on until it has done. */
static int child(enum loop loop, int fd, uint32_t me, uint32_t processes, uint32_t rounds,
                 struct board *board)
{
    struct corral_quota *q;
    uint32_t holder;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (corral_quota_attach(fd, &q, NULL) != CORRAL_OK ||
        corral_quota_join_index(q, 0, me % 3, &holder, NULL) != CORRAL_OK) {
        atomic_store(&board->done, 1);
        return 1;
    }
    atomic_fetch_add(&board->ready, 1);
    while (atomic_load(&board->ready) < processes && atomic_load(&board->done) == 0) {
        sched_yield();
    }
    bool ok = true;
    if (me != 0) {
        while (ok && atomic_load_explicit(&board->done, memory_order_relaxed) == 0) {
            ok = one_round(loop, q, holder, board);
        }
        return ok ? 0 : 1;
    }
    for (uint32_t i = 0; i < 1000 && ok; i++) {
        ok = one_round(loop, q, holder, board);
    }
    for (uint32_t i = 0; i < rounds && ok; i++) {
        uint64_t began = now_ns();
        ok = one_round(loop, q, holder, board);
        board->ns[i] = (float)(now_ns() - began);
    }
    atomic_store(&board->done, 1);
    return ok ? 0 : 1;
}

static int compare(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Median and 99th percentile in ns, less what reading the clock costs. */
static bool measure(enum loop loop, uint32_t processes, uint32_t rounds, struct board *board, double out[2])
{
    int fd, failed = 0;
    struct corral_quota *q = make_node(&fd);
    pid_t pid[PROCESSES_MAX];
    if (!q) {
        return false;
    }
    atomic_store(&board->ready, 0);
    atomic_store(&board->done, 0);
    for (uint32_t i = 0; i < processes; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            _exit(child(loop, fd, i, processes, rounds, board));
        }
    }
    for (uint32_t i = 0; i < processes; i++) {
        int status = -1;
        while (waitpid(pid[i], &status, 0) < 0 && errno == EINTR) {
        }
        failed += status != 0;
    }
    uint64_t began = now_ns();
    for (int i = 0; i < 1000; i++) {
        now_ns();
    }
    double clock = (double)(now_ns() - began) / 1000;
    qsort(board->ns, rounds, sizeof *board->ns, compare);
    out[0] = CORRAL_MAX(board->ns[rounds / 2] - clock, 0.0);
    out[1] = CORRAL_MAX(board->ns[(uint64_t)rounds * 99 / 100] - clock, 0.0);
    corral_quota_detach(q);
    close(fd);
    return failed == 0;
}

int main(int argc, char **argv)
{
    uint64_t processes = 8, rounds = 200000;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t *into = strcmp(argv[i], "--processes") == 0 ? &processes
                         : strcmp(argv[i], "--rounds") == 0  ? &rounds
                                                             : NULL;
        if (!into || !corral_parse_u64(argv[i + 1], into)) {
            fprintf(stderr, "usage: %s [--processes N] [--rounds N]\n", argv[0]);
            return 2;
        }
    }
    if (processes < 1 || processes > PROCESSES_MAX || rounds < 100 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "quota_bench: 1 to %d processes, 100 to %u rounds\n", PROCESSES_MAX, ROUNDS_MAX);
        return 2;
    }
    struct board *board = mmap(NULL, sizeof *board + ROUNDS_MAX * sizeof(float), PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED) {
        fprintf(stderr, "quota_bench: no memory\n");
        return 1;
    }
    printf("%-10s %14s %14s %14s %14s %8s\n", "processes", "charge median", "charge p99", "atomic median",
           "atomic p99", "ratio");
    const uint32_t sizes[2] = {1, (uint32_t)processes};
    for (int i = 0; i < 2; i++) {
        double charge[2], atomic[2];
        if (!measure(CHARGE, sizes[i], (uint32_t)rounds, board, charge) ||
            !measure(ATOMIC, sizes[i], (uint32_t)rounds, board, atomic)) {
            fprintf(stderr, "quota_bench: a process failed\n");
            return 1;
        }
        printf("%-10u %11.0f ns %11.0f ns %11.0f ns %11.0f ns %8.1f\n", sizes[i], charge[0], charge[1],
               atomic[0], atomic[1], charge[0] / CORRAL_MAX(atomic[0], 1.0));
    }
    return 0;
}
