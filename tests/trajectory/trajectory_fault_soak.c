/* Streams records from producers to consumers with write-ahead logs, all processes of their own, while all of them and the coordinator that starts them again are killed and stopped at random, connections are cut, disks and
 * logs fill up, and checkpoints are lost. Then counts: every record that a producer was told is acknowledged was consumed by a checkpointed step exactly once, none twice, in order, with the right payload; and no
 * descriptor, file or segment is left over.
 *
 *     trajectory_fault_soak [--cycles N] [--seed S] [--carrier ipc|tcp|ring] [--producers P] [--consumers C]
 *     trajectory_fault_soak --soak SECONDS [...]        at full rate without faults: memory and descriptors stay as they are
 *
 * A cycle kills somebody, and every other one also does something worse. The same seed makes the same faults, not the same interleaving.
 */
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "tests/trajectory/troubles.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zmq.h>

#define PROGRESS_EVERY 16u /* cycles */
#define PROGRESS_MS 90000u /* so long without faults, and all must have moved; a busy machine */
#define END_MS 120000u
#define LONG_CYCLES 200u /* from here on there is time for long stops */
#define DESCRIPTORS_MORE \
    16u /* of a process, than at the beginning: segments of a log that wait for their sync, connections */
#define MEMORY_MORE (UINT64_C(8) << 20)

struct options {
    uint64_t cycles, seed, soak_seconds, producers, consumers;
    const char *carrier;
};

/* ---- what a process has ---- */

struct sample {
    uint64_t descriptors, memory;
};

static bool take_sample(pid_t pid, struct sample *out)
{
    char path[64], line[128];
    unsigned long long pages = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(path, "re");
    bool read = f != NULL && fgets(line, sizeof line, f) != NULL && sscanf(line, "%*u %llu", &pages) == 1;
    if (f != NULL) {
        fclose(f);
    }
    (void)snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    *out = (struct sample){.memory = pages * (uint64_t)sysconf(_SC_PAGESIZE)};
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        out->descriptors += e->d_name[0] != '.';
    }
    if (d) {
        closedir(d);
    }
    return read && d;
}

/* ---- progress ---- */

static uint64_t saves(const struct world *w, uint32_t i)
{
    return atomic_load_explicit(&w->consumer[i].saves, memory_order_acquire);
}

static uint64_t acked(const struct world *w, uint32_t i)
{
    return atomic_load_explicit(&w->producer[i].acked, memory_order_acquire);
}

static void complain_of_silence(struct theatre *t, const uint64_t *before)
{
    char text[400];
    int at = 0;
    for (uint32_t i = 0; i < t->w->producers + t->w->consumers && at < (int)sizeof text - 40; i++) {
        bool producer = i < t->w->producers;
        uint64_t now = producer ? acked(t->w, i) : saves(t->w, i - t->w->producers);
        at += snprintf(text + at, sizeof text - (size_t)at, " %s %u (%d): +%" PRIu64 ";",
                       producer ? "producer" : "consumer", producer ? i : i - t->w->producers,
                       (int)t->role[i].pid, now - before[i]);
    }
    world_complain(t->w, "no progress in %u ms without faults:%s", PROGRESS_MS, text);
}

/* Without faults everybody gets on: each producer is told of more, each consumer saves more. */
static bool make_progress(struct theatre *t)
{
    uint64_t before[ROLES_MAX];
    struct world *w = t->w;
    theatre_let_go(t);
    for (uint32_t i = 0; i < w->producers + w->consumers; i++) {
        before[i] = i < w->producers ? acked(w, i) : saves(w, i - w->producers);
    }
    for (uint64_t end = world_now_ns() + PROGRESS_MS * CORRAL_NS_PER_MS; world_now_ns() < end;) {
        bool moved = true;
        for (uint32_t i = 0; i < w->producers + w->consumers; i++) {
            moved &= (i < w->producers ? acked(w, i) : saves(w, i - w->producers)) > before[i];
        }
        if (moved) {
            return true;
        }
        if (!theatre_nap(t, 1000)) {
            return false;
        }
    }
    complain_of_silence(t, before);
    return false;
}

/* ---- the two kinds of run ---- */

static void take_samples(const struct theatre *t, struct sample *out)
{
    for (uint32_t i = 0; i < t->w->producers + t->w->consumers; i++) {
        (void)take_sample(t->role[i].pid, &out[i]);
    }
}

static bool check_descriptors(struct theatre *t, const struct sample *first)
{
    for (uint32_t i = 0; i < t->w->producers + t->w->consumers; i++) {
        struct sample now;
        if (!take_sample(t->role[i].pid, &now) || now.descriptors > first[i].descriptors + DESCRIPTORS_MORE) {
            world_complain(t->w, "process %u of %u has %" PRIu64 " descriptors; at the beginning %" PRIu64, i,
                           t->w->producers + t->w->consumers, now.descriptors, first[i].descriptors);
            return false;
        }
    }
    return true;
}

static bool run_faults(struct theatre *t, uint64_t cycles)
{
    struct sample first[ROLES_MAX];
    t->patient = cycles >= LONG_CYCLES;
    if (!make_progress(t)) {
        return false;
    }
    take_samples(t, first);
    for (uint64_t i = 0; i < cycles; i++) {
        t->spare_first = i >= cycles / 2;
        if (!theatre_nap(t, corral_rng_below(&t->rng, UINT64_C(1) << (4 + corral_rng_below(&t->rng, 18))))) {
            return false;
        }
        if (corral_rng_below(&t->rng, 2) == 0) {
            theatre_disturb_somebody(t);
            if (!theatre_nap(t, corral_rng_below(&t->rng, UINT64_C(1) << corral_rng_below(&t->rng, 20)))) {
                return false;
            }
        }
        theatre_kill_somebody(t);
        if ((i + 1) % PROGRESS_EVERY == 0 && !make_progress(t)) {
            return false;
        }
    }
    return make_progress(t) && make_progress(t) && check_descriptors(t, first);
}

/* The least that each process has in a third of the run: what is taken and given back again does not show in it, a leak does. */
static void note_least(const struct theatre *t, struct sample *least)
{
    struct sample now;
    for (uint32_t i = 0; i < t->w->producers + t->w->consumers; i++) {
        if (take_sample(t->role[i].pid, &now)) {
            least[i].descriptors = CORRAL_MIN(least[i].descriptors, now.descriptors);
            least[i].memory = CORRAL_MIN(least[i].memory, now.memory);
        }
    }
}

/* Memory settles in the first third; the second is compared with the last. */
static bool run_soak(struct theatre *t, uint64_t seconds)
{
    struct sample least[3][ROLES_MAX];
    memset(least, 0xff, sizeof least);
    if (!make_progress(t)) {
        return false;
    }
    uint64_t begun = world_now_ns(), took = seconds * CORRAL_NS_PER_S;
    for (uint64_t past; (past = world_now_ns() - begun) < took;) {
        note_least(t, least[past * 3 / took]);
        if (!theatre_nap(t, CORRAL_MIN(UINT64_C(1000000), seconds * 1000000 / 40))) {
            return false;
        }
    }
    for (uint32_t i = 0; i < t->w->producers + t->w->consumers; i++) {
        const struct sample *before = &least[1][i], *after = &least[2][i];
        printf("process %u: %" PRIu64 " KiB and %" PRIu64 " descriptors, then %" PRIu64 " KiB and %" PRIu64
               "\n",
               i, before->memory >> 10, before->descriptors, after->memory >> 10, after->descriptors);
        if (after->memory > before->memory + MEMORY_MORE || after->descriptors > before->descriptors) {
            world_complain(t->w, "process %u grows", i);
        }
    }
    return theatre_serve(t);
}

/* Producers end when all is acknowledged; then consumers, when all is consumed. */
static bool finish(struct theatre *t)
{
    struct world *w = t->w;
    for (uint32_t stage = PRODUCERS_END; stage <= CONSUMERS_END; stage++) {
        atomic_store_explicit(&w->finish, stage, memory_order_release);
        uint32_t from = stage == PRODUCERS_END ? 0 : w->producers;
        uint32_t to = stage == PRODUCERS_END ? w->producers : w->producers + w->consumers;
        uint64_t end = world_now_ns() + END_MS * CORRAL_NS_PER_MS;
        for (uint32_t i = from; i < to;) {
            if (atomic_load_explicit(&w->role[i].done, memory_order_acquire) != 0) {
                i++;
            } else if (world_now_ns() > end) {
                world_complain(w, "process %u does not end: not everything is %s after %u ms", i,
                               stage == PRODUCERS_END ? "acknowledged" : "consumed", END_MS);
                return false;
            } else if (!theatre_nap(t, 1000)) {
                return false;
            }
        }
    }
    return true;
}

/* ---- report ---- */

static uint64_t sum_of(const struct world *w, size_t offset)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < w->consumers; i++) {
        sum += atomic_load_explicit((const _Atomic uint64_t *)((const char *)&w->consumer[i] + offset),
                                    memory_order_relaxed);
    }
    return sum;
}
#define SUM(member) sum_of(w, offsetof(struct world_consumer, member))

static void report(const struct theatre *t, const struct verdict *v, double seconds)
{
    const struct world *w = t->w;
    uint64_t lives = 0, cuts = 0, resent = 0;
    for (uint32_t i = 0; i < w->producers + w->consumers; i++) {
        lives += atomic_load_explicit(&w->role[i].started, memory_order_relaxed);
        cuts += atomic_load_explicit(&w->role[i].cuts, memory_order_relaxed);
    }
    for (uint32_t i = 0; i < w->producers; i++) {
        resent += atomic_load_explicit(&w->producer[i].resent, memory_order_relaxed);
    }
    printf("%.1f s, %" PRIu64 " kills, %" PRIu64 " lives, %" PRIu64 " of the coordinator:", seconds, t->kills,
           lives, t->coordinator_lives);
    for (uint32_t i = 0; i < TROUBLES; i++) {
        printf(" %s %" PRIu64 "%s", trouble_name[i], t->count[i], i + 1 < TROUBLES ? "," : "\n");
    }
    printf("%" PRIu64 " records acknowledged in %" PRIu64 " streams, %" PRIu64 " consumed (%" PRIu64
           " of them without word to their producer), %.0f/s\n",
           v->acked, v->streams, v->consumed, v->unacked, (double)v->consumed / seconds);
    printf("received %" PRIu64 ", replayed %" PRIu64 ", duplicates %" PRIu64 ", sent again %" PRIu64
           ", not logged %" PRIu64 ", gaps %" PRIu64 ", denied %" PRIu64 ", sockets cut %" PRIu64
           ", checkpoints %" PRIu64 ", lost %" PRIu64 ", ends by disk %" PRIu64 ", rings %" PRIu64
           ", logs %" PRIu64 " KiB\n",
           SUM(received), SUM(replayed), SUM(duplicates), resent, SUM(unlogged), SUM(gaps), SUM(denied), cuts,
           SUM(saves), SUM(rollbacks), SUM(disk_ends), SUM(rings), v->log_bytes >> 10);
}

/* ---- main ---- */

static bool parse(int argc, char **argv, struct options *o)
{
    const struct {
        const char *name;
        uint64_t *value, max;
    } numbers[] = {{"--cycles", &o->cycles, 10000000},
                   {"--seed", &o->seed, UINT64_MAX},
                   {"--soak", &o->soak_seconds, 1000000},
                   {"--producers", &o->producers, PRODUCERS_MAX},
                   {"--consumers", &o->consumers, CONSUMERS_MAX}};
    for (int i = 1; i + 1 < argc; i += 2) {
        bool known = strcmp(argv[i], "--carrier") == 0;
        if (known) {
            o->carrier = argv[i + 1];
        }
        for (size_t k = 0; k < CORRAL_COUNT_OF(numbers); k++) {
            if (strcmp(argv[i], numbers[k].name) == 0) {
                known =
                    corral_parse_u64(argv[i + 1], numbers[k].value) && *numbers[k].value <= numbers[k].max;
            }
        }
        if (!known) {
            return false;
        }
    }
    return argc % 2 == 1 && o->producers > 0 && o->consumers > 0;
}

static bool make_world(struct world *w, const struct options *o)
{
    w->seed = o->seed;
    w->producers = (uint32_t)o->producers;
    w->consumers = (uint32_t)o->consumers;
    w->soak = o->soak_seconds > 0;
    static const char *const carriers[] = {
        [CARRIER_IPC] = "ipc", [CARRIER_TCP] = "tcp", [CARRIER_RING] = "ring"};
    uint32_t carrier = 0;
    while (carrier < CORRAL_COUNT_OF(carriers) && strcmp(o->carrier, carriers[carrier]) != 0) {
        carrier++;
    }
    if (carrier == CORRAL_COUNT_OF(carriers)) {
        return false;
    }
    w->carrier = (enum carrier)carrier;
    (void)snprintf(w->folder, sizeof w->folder, "/tmp/corral-traj-soak-XXXXXX");
    if (zmq_curve_keypair(w->public_key, w->secret_key) != 0 || mkdtemp(w->folder) == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < w->consumers; i++) {
        char path[PATH_BYTES];
        world_path(w, i, "", path);
        if (corral_mkdirs(path, 0700, NULL) != CORRAL_OK) {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {.cycles = 40, .seed = 1, .producers = 3, .consumers = 2, .carrier = "ipc"};
    (void)close_range(
        3, ~0u, 0); /* connections are cut by shutting down all sockets of a process: they must be its own */
    struct world *w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!parse(argc, argv, &o) || w == MAP_FAILED || !make_world(w, &o)) {
        fprintf(
            stderr,
            "usage: trajectory_fault_soak [--cycles N | --soak SECONDS] [--seed S] [--carrier ipc|tcp|ring] "
            "[--producers 1-%u] "
            "[--consumers 1-%u]\n",
            PRODUCERS_MAX, CONSUMERS_MAX);
        return 2;
    }
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "trajectory_fault_soak");
    setlinebuf(stdout);
    static struct theatre t;
    struct verdict verdict = {0};
    t.w = w;
    corral_rng_seed(&t.rng, o.seed);
    uint64_t begun = world_now_ns();
    theatre_begin(&t);
    bool right = (w->soak ? run_soak(&t, o.soak_seconds) : run_faults(&t, o.cycles)) && finish(&t);
    double seconds = (double)(world_now_ns() - begun) / 1e9;
    theatre_end(&t);
    if (w->carrier == CARRIER_RING && SUM(rings) == 0) {
        world_complain(w, "no ring was used");
    }
    right = right && verify_ledgers(w, &verdict);
    report(&t, &verdict, seconds);
    if (!right) {
        printf("FAILED (seed %" PRIu64 "): %s; files are in %s\n", o.seed, w->complaint, w->folder);
        return 1;
    }
    return corral_remove_tree(w->folder, NULL) == CORRAL_OK ? 0 : 1;
}
