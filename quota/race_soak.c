/* Racing allocations by many processes under random SIGKILL, through every operation and kind, while an observer takes a floor to the
 * byte at random times and looks for a ceiling passed or a sum that does not add up. At the end the ledger must be exactly zero.
 *
 *     quota_race_soak [--operations N] [--processes N] [--kills [--recovery-ms N]] [--seed N]
 *
 * After every other kill the agent's next operation is timed that has to give everything of the dead back. With --recovery-ms it fails when one took that long; what the others
 * have of the processors meanwhile is in it (bench/quota_recovery_bench measures it alone).
 */
#include "quota/shared_internal.h"

#include "base/log.h"
#include "base/rng.h"
#include "base/text.h"
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
#define PROCESSES_MAX 64
#define CHARGES 48
#define SHARES 8
#define KEYS 32
#define GUARD_FLOOR (12 * MIB + 345)

enum role { TRAINER, ROLLOUT, GUARD, ROLES };

#define TIMED_MAX 65536

struct options {
    uint64_t operations, seed, recovery_ms;
    uint32_t processes;
    bool kills;
};

/* Between the processes, beside the ledger. */
struct board {
    _Atomic uint64_t operations, denied, shared_imports, steps;
    _Atomic uint64_t floors_taken, looks;
    _Atomic bool stop_observer;
};

static struct board *board;

/* ---- a worker ---- */

struct worker {
    struct corral_quota *q;
    struct corral_rng rng;
    uint32_t holder, charge_count, share_count;
    struct corral_quota_charge charge[CHARGES];
    uint32_t share[SHARES];
    uint64_t reserved, committed, step;
    bool stepping;
};

static uint32_t pick(struct worker *w, uint32_t below)
{
    return (uint32_t)corral_rng_below(&w->rng, below);
}

static void count_denied(enum corral_status status)
{
    if (status == CORRAL_DENIED) {
        atomic_fetch_add_explicit(&board->denied, 1, memory_order_relaxed);
    }
}

static void take_one(struct worker *w)
{
    struct corral_quota_charge *c = &w->charge[w->charge_count];
    enum corral_ledger_kind kind = (enum corral_ledger_kind)pick(w, CORRAL_KINDS);
    uint64_t bytes = corral_rng_below(&w->rng, 4 * MIB), short_by;
    if (w->charge_count == CHARGES) {
        return;
    }
    if (pick(w, 16) == 0) {
        corral_quota_charge_measured(w->q, w->holder, bytes, kind, c, &short_by);
        w->charge_count++;
        return;
    }
    enum corral_status status = corral_quota_take(w->q, w->holder, bytes, kind, "soak", c, NULL);
    count_denied(status);
    if (status == CORRAL_OK) {
        if (pick(w, 4) != 0) {
            corral_quota_keep(w->q, c);
        }
        w->charge_count++;
    }
}

static void drop_one(struct worker *w)
{
    if (w->charge_count > 0) {
        uint32_t at = pick(w, w->charge_count);
        corral_quota_drop(w->q, &w->charge[at]);
        w->charge[at] = w->charge[--w->charge_count];
    }
}

static void untagged(struct worker *w)
{
    uint64_t bytes = 1 + corral_rng_below(&w->rng, MIB);
    if (w->reserved > 0 && pick(w, 2) == 0) {
        corral_quota_commit(w->q, w->holder, w->reserved);
        w->committed += w->reserved;
        w->reserved = 0;
    } else if (w->reserved > 0) {
        corral_quota_rollback(w->q, w->holder, w->reserved);
        w->reserved = 0;
    } else if (w->committed > 2 * MIB) {
        corral_quota_release(w->q, w->holder, w->committed);
        w->committed = 0;
    } else {
        enum corral_status status = corral_quota_reserve(w->q, w->holder, bytes, "soak", NULL);
        count_denied(status);
        w->reserved += status == CORRAL_OK ? bytes : 0;
    }
}

static void share_one(struct worker *w)
{
    uint64_t key[2] = {pick(w, KEYS), 0x5eed};
    if (w->share_count == SHARES || (w->share_count > 0 && pick(w, 3) == 0)) {
        corral_quota_drop_share(w->q, w->share[--w->share_count]);
    } else if (w->charge_count > 0 && pick(w, 2) == 0) {
        corral_quota_export(w->q, &w->charge[pick(w, w->charge_count)], key, NULL);
    } else if (corral_quota_import(w->q, w->holder, key, &w->share[w->share_count], NULL) == CORRAL_OK) {
        w->share_count++;
        atomic_fetch_add_explicit(&board->shared_imports, 1, memory_order_relaxed);
    }
}

static void step_one(struct worker *w)
{
    if (w->stepping) {
        struct corral_ledger_window window;
        corral_quota_close_step(w->q, w->holder, &window, NULL);
        w->stepping = false;
        return;
    }
    uint64_t declared = corral_rng_below(&w->rng, 24 * MIB);
    enum corral_status status = corral_quota_open_step(w->q, w->holder, ++w->step, declared, NULL);
    count_denied(status);
    w->stepping = status == CORRAL_OK;
    atomic_fetch_add_explicit(&board->steps, w->stepping, memory_order_relaxed);
}

static void operate(struct worker *w)
{
    uint32_t what = pick(w, 100);
    if (what < 35) {
        take_one(w);
    } else if (what < 65) {
        drop_one(w);
    } else if (what < 75) {
        untagged(w);
    } else if (what < 85 && w->charge_count > 0) {
        count_denied(corral_quota_resize(w->q, &w->charge[pick(w, w->charge_count)],
                                         corral_rng_below(&w->rng, 4 * MIB), "soak", NULL));
    } else if (what < 93) {
        share_one(w);
    } else if (what < 97) {
        step_one(w);
    } else {
        int64_t bytes = (int64_t)corral_rng_below(&w->rng, MIB) - (int64_t)(MIB / 2);
        corral_quota_count_spilled(w->q, w->holder, bytes);
        corral_quota_count_pinned(w->q, w->holder, -bytes);
        corral_quota_set_phase(w->q, w->holder, w->step, (enum corral_ledger_phase)pick(w, CORRAL_PHASES));
    }
}

static int work(int fd, uint64_t seed, const struct options *o)
{
    static struct worker w;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    w = (struct worker){0};
    corral_rng_seed(&w.rng, seed);
    if (corral_quota_attach(fd, &w.q, NULL) != CORRAL_OK ||
        corral_quota_join(w.q, "a:0", seed % 2 != 0 ? "trainer" : "rollout", &w.holder, NULL) != CORRAL_OK) {
        return 1;
    }
    while (atomic_fetch_add_explicit(&board->operations, 1, memory_order_relaxed) < o->operations) {
        operate(&w);
    }
    if (seed % 4 < 2) {
        corral_quota_detach(w.q);
    } /* else as if it had crashed: reaped */
    return 0;
}

/* ---- the observer ---- */

static int fault(const char *what)
{
    fprintf(stderr, "race_soak: %s\n", what);
    return 1;
}

static int observe(int fd, uint64_t seed)
{
    struct corral_quota *q;
    struct corral_rng rng;
    uint32_t holder;
    struct corral_ledger *seen = malloc(corral_ledger_bytes());
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    corral_rng_seed(&rng, seed);
    if (!seen || corral_quota_attach(fd, &q, NULL) != CORRAL_OK ||
        corral_quota_join(q, "a:0", "guard", &holder, NULL) != CORRAL_OK) {
        return fault("the observer cannot attach");
    }
    while (!atomic_load_explicit(&board->stop_observer, memory_order_relaxed)) {
        corral_quota_snapshot(q, seen);
        if (!corral_ledger_consistent(seen)) {
            return fault("sums, ceilings or floors do not hold");
        }
        atomic_fetch_add_explicit(&board->looks, 1, memory_order_relaxed);
        if (corral_rng_below(&rng, 4) == 0) {
            struct corral_quota_charge charge;
            if (corral_quota_take(q, holder, GUARD_FLOOR, CORRAL_KIND_DEVICE, "floor", &charge, NULL) !=
                CORRAL_OK) {
                return fault("a floor could not be taken to the byte");
            }
            corral_quota_keep(q, &charge);
            corral_quota_snapshot(q, seen);
            bool exact = corral_ledger_consistent(seen) && seen->device[0].role[GUARD].used == GUARD_FLOOR;
            corral_quota_drop(q, &charge);
            if (!exact) {
                return fault("with a floor taken, the sums do not hold");
            }
            atomic_fetch_add_explicit(&board->floors_taken, 1, memory_order_relaxed);
        }
        sched_yield();
    }
    corral_quota_detach(q);
    free(seen);
    return 0;
}

/* ---- the agent: starts, kills, reaps, changes limits ---- */

static pid_t start_worker(int fd, uint64_t seed, const struct options *o)
{
    pid_t child = fork();
    if (child == 0) {
        _exit(work(fd, seed, o));
    }
    return child;
}

static int wait_for(pid_t pid)
{
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
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
              corral_ledger_add_role(plan, "guard", &out, err) == CORRAL_OK &&
              corral_ledger_add_device(plan, "a:0", 128 * MIB, 8 * MIB, &out, err) == CORRAL_OK &&
              corral_ledger_set_limits(plan, 0, TRAINER, 30 * MIB, 70 * MIB, err) == CORRAL_OK &&
              corral_ledger_set_limits(plan, 0, ROLLOUT, 40 * MIB, 55 * MIB, err) == CORRAL_OK &&
              corral_ledger_set_limits(plan, 0, GUARD, GUARD_FLOOR, GUARD_FLOOR, err) == CORRAL_OK &&
              corral_ledger_check_plan(plan, 1.25, err) == CORRAL_OK &&
              corral_quota_create(plan, NULL, fd, q, err) == CORRAL_OK;
    free(plan);
    return ok;
}

/* Of the first operations after kills. */
static uint64_t timed_ns[TIMED_MAX];
static uint32_t timed_count;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* What the agent does when it hears of a death. False: something of the dead is left. */
static bool recover(struct corral_quota *q, pid_t dead)
{
    const struct corral_ledger *l = corral_quota_ledger(q);
    uint64_t began = now_ns();
    corral_quota_reap_pid(q, dead);
    if (timed_count < TIMED_MAX) {
        timed_ns[timed_count++] = now_ns() - began;
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        /* One that has left has only what others still use. */
        if (__atomic_load_n(&l->holder[i].pid, __ATOMIC_RELAXED) == dead && !l->holder[i].left) {
            return false;
        }
    }
    return true;
}

static int compare_ns(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

/* False: one took too long. */
static bool report_recovery(const struct options *o)
{
    if (timed_count == 0) {
        return true;
    }
    qsort(timed_ns, timed_count, sizeof *timed_ns, compare_ns);
    uint64_t max = timed_ns[timed_count - 1];
    printf("first operation after a kill, %u times: median %.3f ms, p99 %.3f ms, max %.3f ms\n", timed_count,
           (double)timed_ns[timed_count / 2] / 1e6, (double)timed_ns[(uint64_t)timed_count * 99 / 100] / 1e6,
           (double)max / 1e6);
    return o->recovery_ms == 0 || max < o->recovery_ms * UINT64_C(1000000);
}

/* Every other time whoever had the lock last: it may have it still. */
static uint32_t victim(const struct corral_quota *q, const struct options *o, struct corral_rng *rng,
                       const pid_t *child)
{
    uint32_t v = (uint32_t)corral_rng_below(rng, o->processes);
    bool by_owner = corral_rng_below(rng, 2) == 0;
    pid_t owner = atomic_load_explicit(&q->shared->owner_pid, memory_order_relaxed);
    for (uint32_t i = 0; by_owner && i < o->processes; i++) {
        if (child[i] == owner) {
            return i;
        }
    }
    return v;
}

/* Kill one after the other at random times, until the work is done. False: something of a dead one was left. */
static bool harass(struct corral_quota *q, int fd, const struct options *o, struct corral_rng *rng,
                   pid_t *child, uint64_t *killed)
{
    uint64_t kills = 0;
    bool ok = true;
    while (ok && atomic_load_explicit(&board->operations, memory_order_relaxed) < o->operations) {
        struct timespec random_time = {.tv_nsec = (long)corral_rng_below(rng, 1500000)};
        nanosleep(&random_time, NULL);
        uint32_t v = victim(q, o, rng, child);
        if (kill(child[v], SIGKILL) != 0) {
            continue;
        }
        kills += WIFSIGNALED(wait_for(child[v]));
        ok = kills % 2 == 0 || recover(q, child[v]);
        child[v] = start_worker(fd, o->seed + o->processes + kills, o);
        if (kills % 8 == 0) {
            uint64_t ceiling = (40 + corral_rng_below(rng, 30)) * MIB;
            corral_quota_change_limits(q, 0, TRAINER, 30 * MIB, ceiling, NULL);
        }
        if (kills % 16 == 0) {
            corral_quota_reap(q);
        }
    }
    *killed = kills;
    return ok;
}

static bool is_zero(struct corral_quota *q)
{
    const struct corral_ledger *l = corral_quota_ledger(q);
    bool zero = corral_ledger_consistent(l) && corral_ledger_tables_consistent(l) && l->holder_high == 0 &&
                l->device[0].steps_open == 0;
    for (uint32_t r = 0; r < ROLES; r++) {
        const struct corral_ledger_role *role = &l->device[0].role[r];
        zero = zero && role->used == 0 && role->booked == 0 && role->spilled == 0 && role->pinned == 0;
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_ALLOCATIONS_MAX; i++) {
        zero = zero && l->allocation[i].holder == 0;
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_SHARES_MAX; i++) {
        zero = zero && l->share[i].allocation == 0;
    }
    return zero;
}

static void report(struct corral_quota *q, const struct options *o, uint64_t kills, double seconds)
{
    printf("%llu operations by %u processes in %.1f s (%.0f/s), %llu kills, %u repairs\n"
           "%llu denied, %llu imports, %llu steps; %llu looks, floor taken to the byte %llu times; ledger "
           "zero\n",
           (unsigned long long)o->operations, o->processes, seconds, (double)o->operations / seconds,
           (unsigned long long)kills, corral_quota_repairs(q),
           (unsigned long long)atomic_load(&board->denied),
           (unsigned long long)atomic_load(&board->shared_imports),
           (unsigned long long)atomic_load(&board->steps), (unsigned long long)atomic_load(&board->looks),
           (unsigned long long)atomic_load(&board->floors_taken));
}

static int run(const struct options *o)
{
    struct corral_error err = {0};
    struct corral_quota *q;
    struct corral_rng rng;
    struct timespec began, ended;
    pid_t child[PROCESSES_MAX];
    int fd, failed = 0;
    if (!make_node(&fd, &q, &err)) {
        return fault(err.text);
    }
    corral_rng_seed(&rng, o->seed);
    clock_gettime(CLOCK_MONOTONIC, &began);
    pid_t observer = fork();
    if (observer == 0) {
        _exit(observe(fd, o->seed + 1));
    }
    for (uint32_t i = 0; i < o->processes; i++) {
        child[i] = start_worker(fd, o->seed + i, o);
    }
    uint64_t kills = 0;
    bool recovered = !o->kills || harass(q, fd, o, &rng, child, &kills);
    for (uint32_t i = 0; i < o->processes; i++) {
        int status = wait_for(child[i]);
        failed += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    atomic_store(&board->stop_observer, true);
    int status = wait_for(observer);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    corral_quota_reap(q);
    if (failed != 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        return fault("a worker or the observer failed");
    }
    if (!recovered) {
        return fault("the dead were reaped, and something of one was left");
    }
    if (!is_zero(q)) {
        return fault("everybody has gone, and the ledger is not zero");
    }
    report(q, o, kills,
           (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
    corral_quota_detach(q);
    close(fd);
    return report_recovery(o) ? 0 : fault("a recovery took too long");
}

int main(int argc, char **argv)
{
    struct options o = {.operations = 200000, .processes = 8, .seed = 1};
    for (int i = 1; i < argc; i++) {
        uint64_t value = 0;
        if (strcmp(argv[i], "--kills") == 0) {
            o.kills = true;
        } else if (i + 1 >= argc || !corral_parse_u64(argv[i + 1], &value)) {
            fprintf(stderr,
                    "usage: %s [--operations N] [--processes N] [--kills] [--recovery-ms N] [--seed N]\n",
                    argv[0]);
            return 2;
        } else if (strcmp(argv[i], "--operations") == 0) {
            o.operations = value;
            i++;
        } else if (strcmp(argv[i], "--processes") == 0 && value >= 1 && value <= PROCESSES_MAX) {
            o.processes = (uint32_t)value;
            i++;
        } else if (strcmp(argv[i], "--recovery-ms") == 0) {
            o.recovery_ms = value;
            i++;
        } else if (strcmp(argv[i], "--seed") == 0) {
            o.seed = value;
            i++;
        } else {
            fprintf(stderr, "%s: %s %s makes no sense\n", argv[0], argv[i], argv[i + 1]);
            return 2;
        }
    }
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED) {
        return fault("no memory");
    }
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL);
    return run(&o);
}
