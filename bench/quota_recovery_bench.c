/* How soon is the memory of a killed process there again? A process that charges, exports, opens steps and gives back without a pause is killed at a random time, and the next operation of somebody
 * else asks for all that its role may have, which only fits when nothing of the dead is left. Measured is that operation alone: repair of the ledger if the lock was held, finding
 * the dead, giving back. Beside them a bystander has filled the tables: many live holders to look at, many allocations to go through.
 *
 *     quota_recovery_bench [--kills N] [--holders N] [--allocations N]
 *
 * Exit status 1: an operation took RECOVERY_MS_MAX or longer, was refused, or left sums that do not add up.
 */
#include "base/log.h"
#include "base/rng.h"
#include "base/text.h"
#include "quota/shared.h"
#include <errno.h>
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
#define RECOVERY_MS_MAX 10
#define KILLS_MAX 100000
#define CHARGES 64
#define VICTIM_CEILING (400 * MIB)
#define BEFORE_KILL_NS_MAX 500000

struct options {
    uint64_t kills, holders, allocations;
};

struct board {
    _Atomic uint32_t ready;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static int complain(const char *what)
{
    fprintf(stderr, "quota_recovery_bench: %s\n", what);
    return 1;
}

static bool make_node(int *fd, struct corral_quota **q, struct corral_error *err)
{
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    uint32_t out;
    if (!plan) {
        return false;
    }
    corral_ledger_init(plan);
    bool ok = corral_ledger_add_role(plan, "trainer", &out, err) == CORRAL_OK &&
              corral_ledger_add_role(plan, "rollout", &out, err) == CORRAL_OK &&
              corral_ledger_add_device(plan, "a:0", 2000 * MIB, 10 * MIB, &out, err) == CORRAL_OK &&
              corral_ledger_set_limits(plan, 0, 0, VICTIM_CEILING, VICTIM_CEILING, err) == CORRAL_OK &&
              corral_ledger_set_limits(plan, 0, 1, 1000 * MIB, 1500 * MIB, err) == CORRAL_OK &&
              corral_ledger_check_plan(plan, 1.25, err) == CORRAL_OK &&
              corral_quota_create(plan, NULL, fd, q, err) == CORRAL_OK;
    free(plan);
    return ok;
}

/* Many holders with many small allocations, and then nothing but alive. */
static void stand_by(int fd, const struct options *o, struct board *board)
{
    struct corral_quota *q;
    struct corral_quota_charge charge;
    uint32_t holder = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    bool ok = corral_quota_attach(fd, &q, NULL) == CORRAL_OK;
    for (uint64_t i = 0; ok && i < o->holders; i++) {
        ok = corral_quota_join_index(q, 0, 1, &holder, NULL) == CORRAL_OK;
    }
    for (uint64_t i = 0; ok && i < o->allocations; i++) {
        ok = corral_quota_take(q, holder, 4096, CORRAL_KIND_DEVICE, "bench", &charge, NULL) == CORRAL_OK;
        if (ok) {
            corral_quota_keep(q, &charge);
        }
    }
    atomic_store(&board->ready, ok ? 1 : 2);
    for (;;) {
        pause();
    }
}

/* Every kind of operation, until killed. */
static void suffer(int fd, uint64_t seed, struct board *board)
{
    struct corral_quota *q;
    struct corral_rng rng;
    struct corral_quota_charge charge[CHARGES];
    uint32_t holder, held = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    corral_rng_seed(&rng, seed);
    if (corral_quota_attach(fd, &q, NULL) != CORRAL_OK ||
        corral_quota_join_index(q, 0, 0, &holder, NULL) != CORRAL_OK) {
        atomic_store(&board->ready, 2);
        return;
    }
    atomic_store(&board->ready, 1);
    for (uint64_t step = 0;; step++) {
        uint64_t what = corral_rng_below(&rng, 100), key[2] = {seed, step};
        if (held < CHARGES && what < 55) {
            uint64_t bytes = 1 + corral_rng_below(&rng, 4 * MIB);
            if (corral_quota_take(q, holder, bytes, CORRAL_KIND_DEVICE, "bench", &charge[held], NULL) ==
                CORRAL_OK) {
                corral_quota_keep(q, &charge[held++]);
            }
        } else if (held > 0 && what < 90) {
            corral_quota_drop(q, &charge[--held]);
        } else if (held > 0 && what < 95) {
            corral_quota_export(q, &charge[held - 1], key, NULL);
        } else {
            (void)corral_quota_open_step(q, holder, step, MIB, NULL);
            (void)corral_quota_close_step(q, holder, NULL, NULL);
        }
    }
}

static bool is_ready(struct board *board)
{
    uint32_t r;
    while ((r = atomic_load(&board->ready)) == 0) {
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    atomic_store(&board->ready, 0);
    return r == 1;
}

static bool kill_one(int fd, uint64_t seed, struct corral_rng *rng, struct board *board)
{
    pid_t child = fork();
    if (child == 0) {
        suffer(fd, seed, board);
        _exit(1);
    }
    bool ok = child > 0 && is_ready(board);
    nanosleep(&(struct timespec){.tv_nsec = (long)corral_rng_below(rng, BEFORE_KILL_NS_MAX)}, NULL);
    kill(child, SIGKILL);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return ok && WIFSIGNALED(status);
}

/* The next operation. Its nanoseconds; 0: refused. */
static uint64_t recover(struct corral_quota *q, uint32_t holder, struct corral_error *err)
{
    struct corral_quota_charge all;
    uint64_t began = now_ns();
    enum corral_status status =
        corral_quota_take(q, holder, VICTIM_CEILING, CORRAL_KIND_DEVICE, "the next operation", &all, err);
    uint64_t took = now_ns() - began;
    if (status != CORRAL_OK) {
        return 0;
    }
    corral_quota_drop(q, &all);
    return CORRAL_MAX(took, 1);
}

static int compare(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

static int run(struct corral_quota *q, int fd, const struct options *o, struct board *board)
{
    static uint64_t ns[KILLS_MAX];
    struct corral_error err = {0};
    struct corral_rng rng;
    uint32_t holder;
    corral_rng_seed(&rng, now_ns());
    if (corral_quota_join_index(q, 0, 0, &holder, &err) != CORRAL_OK) {
        return complain(err.text);
    }
    for (uint64_t i = 0; i < o->kills; i++) {
        if (!kill_one(fd, i + 1, &rng, board)) {
            return complain("a victim could not be started");
        }
        ns[i] = recover(q, holder, &err);
        if (ns[i] == 0) {
            return complain(err.text);
        }
    }
    if (!corral_ledger_consistent(corral_quota_ledger(q)) ||
        !corral_ledger_tables_consistent(corral_quota_ledger(q))) {
        return complain("the sums do not add up");
    }
    qsort(ns, o->kills, sizeof *ns, compare);
    bool met = ns[o->kills - 1] < RECOVERY_MS_MAX * UINT64_C(1000000);
    printf(
        "%llu kills, %u of them inside an operation; beside them %llu holders, %llu allocations\n"
        "next operation, with everything given back: median %.3f ms, p99 %.3f ms, max %.3f ms; bound %d ms: "
        "%s\n",
        (unsigned long long)o->kills, corral_quota_repairs(q), (unsigned long long)o->holders,
        (unsigned long long)o->allocations, (double)ns[o->kills / 2] / 1e6,
        (double)ns[o->kills * 99 / 100] / 1e6, (double)ns[o->kills - 1] / 1e6, RECOVERY_MS_MAX,
        met ? "ok" : "MISSED");
    return met ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct options o = {.kills = 500, .holders = 64, .allocations = 50000};
    struct corral_error err = {0};
    struct corral_quota *q;
    int fd;
    for (int i = 1; i < argc; i += 2) {
        uint64_t *into = strcmp(argv[i], "--kills") == 0         ? &o.kills
                         : strcmp(argv[i], "--holders") == 0     ? &o.holders
                         : strcmp(argv[i], "--allocations") == 0 ? &o.allocations
                                                                 : NULL;
        if (!into || i + 1 == argc || !corral_parse_u64(argv[i + 1], into)) {
            fprintf(stderr, "usage: %s [--kills N] [--holders N] [--allocations N]\n", argv[0]);
            return 2;
        }
    }
    if (o.kills < 1 || o.kills > KILLS_MAX || o.holders < 1 || o.holders > CORRAL_LEDGER_HOLDERS_MAX - 2 ||
        o.allocations > CORRAL_LEDGER_ALLOCATIONS_MAX - CHARGES) {
        fprintf(stderr, "quota_recovery_bench: 1 to %d kills, 1 to %d holders, 0 to %d allocations\n",
                KILLS_MAX, CORRAL_LEDGER_HOLDERS_MAX - 2, CORRAL_LEDGER_ALLOCATIONS_MAX - CHARGES);
        return 2;
    }
    struct board *board =
        mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL);
    if (board == MAP_FAILED || !make_node(&fd, &q, &err)) {
        return complain(err.text);
    }
    pid_t bystander = fork();
    if (bystander == 0) {
        stand_by(fd, &o, board);
    }
    int rc = is_ready(board) ? run(q, fd, &o, board) : complain("the bystander could not fill the ledger");
    kill(bystander, SIGKILL);
    waitpid(bystander, NULL, 0);
    corral_quota_detach(q);
    close(fd);
    return rc;
}
