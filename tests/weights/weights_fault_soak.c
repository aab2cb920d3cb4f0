/* Pushes weight versions from a trainer of two ranks to two engines of two ranks, all processes of their own, while senders and receivers are killed and stopped at random and the network between them delays,
 * stalls, cuts and corrupts. Engines' readers check every version that they get, word by word.
 *
 *     weights_fault_soak [--pushes N] [--seconds S] [--seed S] [--lanes shm,tcp] [--delta 1] [--pull 1] [--stores 1]
 *
 * --delta: a part of the model changes from version to version, and versions go as deltas. --pull: engines that are started again take the current version from the other engine. --stores: beside the engines two nodes as in a run of
 * Corral's own, whose publisher and receiver are killed and stopped too, and readers of their stores in processes of their own.
 * It fails when a read is torn, a version goes back, a push takes longer than its deadline and what was stopped meanwhile, or the engines do not come back to the newest version when the faults end.
 * Prints what was done; the same seed makes the same faults, not the same interleaving.
 */
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/text.h"
#include "tests/weights/stores.h"
#include "tests/weights/world.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STOP_MS_MAX 600u
#define MARGIN_MS 5000u   /* a busy machine; what is looked for never ends */
#define RECOVER_MS 30000u /* so long after the last fault everybody must be back */
#define QUIET_EVERY 100u

enum trouble {
    QUIET,
    KILL_SENDER,
    KILL_RECEIVER,
    STOP_SENDER,
    STOP_RECEIVER,
    NETWORK,
    KILL_NODE, /* these two with --stores */
    STOP_NODE,
    TROUBLES
};
static const char *const trouble_name[TROUBLES] = {"quiet",          "sender killed",    "receiver killed",
                                                   "sender stopped", "receiver stopped", "network fault",
                                                   "node killed",    "node stopped"};

struct soak {
    struct world *world;
    struct corral_rng rng;
    const char *lanes; /* allowed */
    char lane[4][16];
    uint32_t lane_count;
    pid_t proxy, sender[SENDERS], receiver[RECEIVERS];
    struct stores *stores;                              /* NULL: none */
    pid_t node[STORES], reader[STORES * STORE_READERS]; /* node 0 publishes, node 1 receives */
    uint64_t generation, version;
    uint64_t count[TROUBLES], whole, partial, failed, dropped, late_ms_max;
    char complaint[400];
};

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static void nap_us(uint64_t us)
{
    const struct timespec t = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    (void)nanosleep(&t, NULL);
}

/* ---- processes ---- */

/* 0 in the child, which dies with this process. */
static pid_t fork_child(void)
{
    pid_t parent = getpid(), pid = fork();
    if (pid == 0 && (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)) {
        _exit(3);
    }
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    return pid;
}

static const char *any_lane(struct soak *s)
{
    uint64_t i = corral_rng_below(&s->rng, s->lane_count + 1);
    return i == s->lane_count ? s->lanes : s->lane[i];
}

static void start_senders(struct soak *s)
{
    s->generation++;
    bool proxied = corral_rng_below(&s->rng, 4) != 0;
    for (uint32_t i = 0; i < SENDERS; i++) {
        s->sender[i] = fork_child();
        if (s->sender[i] == 0) {
            world_send(s->world, i, s->generation, s->lanes, proxied);
        }
    }
}

static void start_receiver(struct soak *s, uint32_t i)
{
    const char *lanes = any_lane(s);
    s->receiver[i] = fork_child();
    if (s->receiver[i] == 0) {
        world_receive(s->world, i, lanes);
    }
}

static void start_node(struct soak *s, uint32_t i)
{
    s->generation++;
    s->node[i] = fork_child();
    if (s->node[i] == 0 && i == 0) {
        stores_publish(s->world, s->stores, s->generation, s->lanes);
    }
    if (s->node[i] == 0) {
        stores_receive(s->world, s->stores, s->lanes);
    }
}

static void start_stores(struct soak *s)
{
    stores_make(s->stores);
    for (uint32_t i = 0; i < STORES; i++) {
        start_node(s, i);
    }
    for (uint32_t i = 0; i < STORES * STORE_READERS; i++) {
        s->reader[i] = fork_child();
        if (s->reader[i] == 0) {
            stores_read(s->world, s->stores, i / STORE_READERS, i % STORE_READERS);
        }
    }
}

static void end_child(pid_t *pid)
{
    if (*pid > 0) {
        kill(*pid, SIGKILL);
        (void)waitpid(*pid, NULL, 0);
    }
    *pid = 0;
}

/* Who died: by our hand, or the soak is over. */
static bool check_children(struct soak *s)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        snprintf(s->complaint, sizeof s->complaint, "process %d ended by itself: %s %d", (int)pid,
                 WIFSIGNALED(status) ? "signal" : "exit",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        return false;
    }
    return true;
}

/* One rank is not a group: all start again as the next generation. */
static void restart_senders(struct soak *s)
{
    for (uint32_t i = 0; i < SENDERS; i++) {
        end_child(&s->sender[i]);
    }
    start_senders(s);
}

/* ---- one push ---- */

static bool senders_done(struct soak *s)
{
    for (uint32_t i = 0; i < SENDERS; i++) {
        if (s->sender[i] > 0 &&
            atomic_load_explicit(&s->world->sender[i].done, memory_order_acquire) < s->version) {
            return false;
        }
    }
    return s->node[0] == 0 || atomic_load_explicit(&s->stores->done, memory_order_acquire) >= s->version;
}

/* Until every sender that lives is done. */
static bool wait_for_senders(struct soak *s, uint64_t begun, uint64_t extra_ms)
{
    uint64_t limit = begun + (DEADLINE_MS + extra_ms + MARGIN_MS) * CORRAL_NS_PER_MS;
    while (!senders_done(s)) {
        if (now_ns() > limit) {
            snprintf(s->complaint, sizeof s->complaint,
                     "push %" PRIu64 " hangs: %u ms after a deadline of %u ms (and %" PRIu64
                     " ms in which somebody was stopped)",
                     s->version, MARGIN_MS, DEADLINE_MS, extra_ms);
            return false;
        }
        nap_us(300);
        if (!check_children(s)) {
            return false;
        }
    }
    uint64_t took_ms = (now_ns() - begun) / CORRAL_NS_PER_MS, due_ms = DEADLINE_MS + extra_ms;
    s->late_ms_max = CORRAL_MAX(s->late_ms_max, took_ms > due_ms ? took_ms - due_ms : 0);
    return true;
}

static void arm_network(struct soak *s)
{
    struct proxy_shared *p = &s->world->proxy;
    p->fault = (enum proxy_fault)(1 + corral_rng_below(&s->rng, PROXY_FAULTS - 1));
    p->ms = (uint32_t)corral_rng_below(&s->rng, p->fault == PROXY_STALL ? 2 * DEADLINE_MS : 100);
    p->at = corral_rng_below(&s->rng, 1u << corral_rng_below(&s->rng, 17));
    p->pick = corral_rng_next(&s->rng);
    atomic_fetch_add_explicit(&p->armed, 1, memory_order_release);
}

/* Stops a process for a while in the middle of the push. Returns for how many ms. */
static uint64_t stop_for_a_while(struct soak *s, pid_t pid)
{
    uint64_t ms = corral_rng_below(&s->rng, STOP_MS_MAX);
    kill(pid, SIGSTOP);
    for (uint64_t end = now_ns() + ms * CORRAL_NS_PER_MS; now_ns() < end && !senders_done(s);) {
        nap_us(1000);
    }
    kill(pid, SIGCONT);
    return ms;
}

static uint64_t make_trouble(struct soak *s, enum trouble trouble, uint32_t *victim)
{
    *victim = (uint32_t)corral_rng_below(&s->rng, trouble == KILL_SENDER || trouble == STOP_SENDER ? SENDERS
                                                  : trouble == KILL_NODE || trouble == STOP_NODE   ? STORES
                                                                                                 : RECEIVERS);
    if (trouble == QUIET || trouble == NETWORK) {
        return 0;
    }
    nap_us(corral_rng_below(&s->rng, 1u << corral_rng_below(&s->rng, 15)));
    switch (trouble) {
    case KILL_SENDER:
        end_child(&s->sender[*victim]);
        return 0;
    case KILL_RECEIVER:
        end_child(&s->receiver[*victim]);
        return 0;
    case STOP_SENDER:
        return stop_for_a_while(s, s->sender[*victim]);
    case KILL_NODE:
        end_child(&s->node[*victim]);
        return 0;
    case STOP_NODE:
        return stop_for_a_while(s, s->node[*victim]);
    default:
        return stop_for_a_while(s, s->receiver[*victim]);
    }
}

static bool check_readers(struct soak *s)
{
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        const struct world_receiver *r = &s->world->receiver[i];
        if (r->torn || r->regressed || r->wrong) {
            snprintf(s->complaint, sizeof s->complaint,
                     "receiver %u: %" PRIu64 " torn reads, %" PRIu64 " regressions, %" PRIu64
                     " reads of versions from the future",
                     i, r->torn, r->regressed, r->wrong);
            return false;
        }
    }
    const char *stores = s->stores ? stores_complaint(s->stores) : "";
    snprintf(s->complaint, sizeof s->complaint, "%s", stores);
    return stores[0] == '\0';
}

static void count_result(struct soak *s)
{
    const struct world_sender *leader = &s->world->sender[0];
    bool heard = s->sender[0] > 0 && atomic_load_explicit(&leader->done, memory_order_acquire) == s->version;
    uint32_t applied = heard && leader->status == CORRAL_OK ? leader->result.applied : 0;
    s->dropped += heard && leader->status == CORRAL_OK ? leader->result.dropped : 0;
    s->whole += applied == RECEIVERS;
    s->partial += applied > 0 && applied < RECEIVERS;
    s->failed += applied == 0;
}

static bool push(struct soak *s, enum trouble trouble)
{
    uint32_t victim;
    s->count[trouble]++;
    if (trouble == NETWORK) {
        arm_network(s);
    }
    uint64_t begun = now_ns();
    s->version++;
    atomic_store_explicit(&s->world->go, s->version, memory_order_release);
    uint64_t extra_ms = make_trouble(s, trouble, &victim);
    if (!wait_for_senders(s, begun, extra_ms)) {
        return false;
    }
    count_result(s);
    if (trouble == KILL_SENDER) {
        restart_senders(s);
    } else if (trouble == KILL_RECEIVER) {
        start_receiver(s, victim);
    } else if (trouble == KILL_NODE) {
        start_node(s, victim);
    }
    return check_readers(s) && check_children(s);
}

static bool everybody_has(const struct soak *s, uint64_t version)
{
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        if (atomic_load_explicit(&s->world->receiver[i].version, memory_order_acquire) != version) {
            return false;
        }
    }
    return !s->stores || stores_have(s->stores, version);
}

/* Without faults all engines must come to the newest version. */
static bool recover(struct soak *s)
{
    for (uint64_t limit = now_ns() + RECOVER_MS * CORRAL_NS_PER_MS; now_ns() < limit;) {
        if (!push(s, QUIET)) {
            return false;
        }
        for (uint64_t end = now_ns() + 200 * CORRAL_NS_PER_MS; now_ns() < end;) {
            if (everybody_has(s, s->version)) {
                return true;
            }
            nap_us(500);
        }
    }
    const struct world_sender *leader = &s->world->sender[0];
    snprintf(s->complaint, sizeof s->complaint,
             "after %u ms without faults not everybody has version %" PRIu64
             ": the leader says %s, %u of %u: %s",
             RECOVER_MS, s->version, corral_status_name(leader->status), leader->result.applied,
             leader->result.subscribers, leader->text);
    return false;
}

static bool soak(struct soak *s, uint64_t pushes, uint64_t end_ns)
{
    if (!recover(s)) {
        return false;
    }
    for (uint64_t i = 0; i < pushes && now_ns() < end_ns; i++) {
        /* Half of the pushes have trouble. */
        enum trouble trouble =
            corral_rng_below(&s->rng, 2) == 0
                ? QUIET
                : (enum trouble)(1 + corral_rng_below(&s->rng, (s->stores ? TROUBLES : KILL_NODE) - 1));
        if (!push(s, trouble) || (i % QUIET_EVERY == QUIET_EVERY - 1 && !recover(s))) {
            return false;
        }
    }
    return recover(s);
}

/* ---- the program ---- */

static void report(const struct soak *s, uint64_t began)
{
    uint64_t reads = 0, slowest = 0;
    const struct proxy_shared *p = &s->world->proxy;
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        reads += s->world->receiver[i].reads;
        slowest = CORRAL_MAX(slowest, s->world->receiver[i].acquire_ns_max);
    }
    printf("%" PRIu64 " pushes in %.1f s: %" PRIu64 " applied by all, %" PRIu64 " by some, %" PRIu64
           " by none; %" PRIu64 " times a receiver was dropped; the latest answer came %" PRIu64
           " ms after its deadline\n",
           s->version, (double)(now_ns() - began) / 1e9, s->whole, s->partial, s->failed, s->dropped,
           s->late_ms_max);
    for (int i = 0; i < TROUBLES; i++) {
        printf("%s%s %" PRIu64, i ? ", " : "", trouble_name[i], s->count[i]);
    }
    printf("\nnetwork: %" PRIu64 " connections, %.1f MB; delayed %" PRIu64 ", stalled %" PRIu64
           ", cut %" PRIu64 ", reset %" PRIu64 ", corrupted %" PRIu64 "\n",
           p->connections, (double)p->bytes / 1e6, p->hit[PROXY_DELAY], p->hit[PROXY_STALL],
           p->hit[PROXY_CUT], p->hit[PROXY_RESET], p->hit[PROXY_CORRUPT]);
    if (s->stores) {
        uint64_t of_stores = 0;
        for (uint32_t i = 0; i < STORES * STORE_READERS; i++) {
            of_stores += s->stores->reader[i / STORE_READERS][i % STORE_READERS].reads;
        }
        printf("stores: %" PRIu64 " pushes, %" PRIu64 " of them deltas; %" PRIu64
               " reads by other processes checked\n",
               s->stores->pushed, s->stores->deltas, of_stores);
    }
    printf("%" PRIu64 " reads checked, none torn, no version regressed; longest wait of a reader %.2f ms\n",
           reads, (double)slowest / 1e6);
}

static bool take_lanes(struct soak *s)
{
    for (const char *at = s->lanes; *at; at += strcspn(at, ",")) {
        at += *at == ',';
        size_t length = strcspn(at, ",");
        if (length == 0 || length >= sizeof s->lane[0] || s->lane_count == CORRAL_COUNT_OF(s->lane)) {
            return false;
        }
        memcpy(s->lane[s->lane_count++], at, length);
    }
    return s->lane_count > 0;
}

struct arguments {
    uint64_t pushes, seconds, seed, delta, pull, stores;
};

static bool take_arguments(struct soak *s, int argc, char **argv, struct arguments *a)
{
    const struct {
        const char *name;
        uint64_t *number;
    } numbers[] = {{"--pushes", &a->pushes}, {"--seconds", &a->seconds}, {"--seed", &a->seed},
                   {"--delta", &a->delta},   {"--pull", &a->pull},       {"--stores", &a->stores}};
    bool good = argc % 2 == 1;
    s->lanes = "shm,tcp";
    for (int i = 1; i + 1 < argc && good; i += 2) {
        uint64_t *number = NULL;
        for (size_t k = 0; k < CORRAL_COUNT_OF(numbers); k++) {
            number = strcmp(argv[i], numbers[k].name) == 0 ? numbers[k].number : number;
        }
        if (number) {
            good = corral_parse_u64(argv[i + 1], number);
        } else {
            good = strcmp(argv[i], "--lanes") == 0;
            s->lanes = argv[i + 1];
        }
    }
    corral_rng_seed(&s->rng, a->seed);
    return good && take_lanes(s);
}

int main(int argc, char **argv)
{
    static struct soak s;
    struct arguments a = {.pushes = 1000, .seconds = 86400, .seed = 1};
    if (!take_arguments(&s, argc, argv, &a)) {
        fprintf(stderr,
                "usage: %s [--pushes N] [--seconds S] [--seed S] [--lanes LIST] [--delta 0|1] [--pull 0|1] "
                "[--stores 0|1]\n",
                argv[0]);
        return 2;
    }
    s.world = mmap(NULL, sizeof *s.world, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s.world == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    s.stores = a.stores
                   ? mmap(NULL, sizeof *s.stores, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
                   : NULL;
    if (s.stores == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    s.world->delta = a.delta != 0;
    atomic_store(&s.world->pulls, a.pull != 0);
    uint64_t began = now_ns();
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL); /* hundreds of drops are the purpose */
    s.proxy = fork_child();
    if (s.proxy == 0) {
        proxy_run(&s.world->proxy);
    }
    while (atomic_load(&s.world->proxy.port) == 0 && check_children(&s)) {
        nap_us(200);
    }
    start_senders(&s);
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        start_receiver(&s, i);
    }
    if (s.stores) {
        start_stores(&s);
    }
    bool good = soak(&s, a.pushes, began + a.seconds * CORRAL_NS_PER_S);
    for (uint32_t i = 0; i < STORES * STORE_READERS; i++) {
        end_child(&s.reader[i]);
    }
    for (uint32_t i = 0; i < STORES; i++) {
        end_child(&s.node[i]);
    }
    for (uint32_t i = 0; i < SENDERS; i++) {
        end_child(&s.sender[i]);
    }
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        end_child(&s.receiver[i]);
    }
    end_child(&s.proxy);
    if (!good) {
        fprintf(stderr, "failed at push %" PRIu64 ": %s\n", s.version, s.complaint);
        return 1;
    }
    report(&s, began);
    return 0;
}
