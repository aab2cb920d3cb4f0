#include "tests/trajectory/troubles.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define STOP_MS_MAX 400u
#define STOP_LONG_MS 10500u /* past ZeroMQ's heartbeat timeout of 9 s */
#define HOLD_MS_MAX 500u

const char *const trouble_name[TROUBLES] = {"producer killed", "consumer killed",  "coordinator killed",
                                            "several killed",  "all killed",       "newest checkpoint lost",
                                            "stopped",         "stopped for long", "connections cut",
                                            "disk full",       "log full"};

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

static uint32_t roles(const struct theatre *t)
{
    return t->w->producers + t->w->consumers;
}

static void start(struct theatre *t, uint32_t i)
{
    struct world *w = t->w;
    atomic_fetch_add_explicit(&w->role[i].started, 1, memory_order_relaxed);
    atomic_store_explicit(&w->role[i].alive, 1, memory_order_release);
    t->role[i] = (struct place){.pid = fork_child()};
    if (t->role[i].pid == 0) {
        if (w->carrier == CARRIER_TCP && i < w->producers) {
            proxy_use(&w->proxy);
        }
        if (i < w->producers) {
            producer_run(w, i);
        }
        consumer_run(w, i - w->producers);
    }
}

static void start_coordinator(struct theatre *t)
{
    t->coordinator_lives++;
    t->coordinator = (struct place){.pid = fork_child()};
    if (t->coordinator.pid == 0) {
        coordinator_run(t->w);
    }
}

void theatre_begin(struct theatre *t)
{
    start_coordinator(t);
    if (t->w->carrier == CARRIER_TCP) {
        t->network = (struct place){.pid = fork_child()};
        if (t->network.pid == 0) {
            proxy_run(&t->w->proxy);
        }
        while (atomic_load_explicit(&t->w->proxy.port, memory_order_acquire) == 0) {
            world_nap_us(500);
        }
    }
}

/* How role i ended: by our hand, in order, or because its disk was broken on purpose. */
static void judge(struct theatre *t, uint32_t i, int status)
{
    struct world *w = t->w;
    bool consumer = i >= w->producers;
    struct world_consumer *c = consumer ? &w->consumer[i - w->producers] : NULL;
    uint32_t finish = atomic_load_explicit(&w->finish, memory_order_relaxed);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 &&
        finish >= (consumer ? CONSUMERS_END : PRODUCERS_END)) {
        atomic_store_explicit(&w->role[i].done, 1, memory_order_release);
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_DISK && consumer) {
        atomic_fetch_add_explicit(&c->disk_ends, 1, memory_order_relaxed);
    } else if (!(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && t->role[i].killed)) {
        world_complain(w, "%s %u ended by itself: %s %d", consumer ? "consumer" : "producer",
                       consumer ? i - w->producers : i, WIFSIGNALED(status) ? "signal" : "exit",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
    t->role[i] = (struct place){.pid = 0};
    atomic_store_explicit(&w->role[i].alive, 0, memory_order_release);
}

static void reap(struct theatre *t)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == t->coordinator.pid && t->coordinator.killed) {
            start_coordinator(t);
            continue;
        }
        uint32_t i = 0;
        while (i < roles(t) && t->role[i].pid != pid) {
            i++;
        }
        if (i < roles(t)) {
            judge(t, i, status);
        } else {
            world_complain(t->w, "the coordinator or the network ended by itself: %d", status);
        }
    }
}

bool theatre_serve(struct theatre *t)
{
    reap(t);
    uint64_t now = world_now_ns();
    for (uint32_t i = 0; i < roles(t); i++) {
        struct place *p = &t->role[i];
        if (p->pid > 0 && p->stopped_until_ns != 0 && now >= p->stopped_until_ns) {
            kill(p->pid, SIGCONT);
            p->stopped_until_ns = 0;
        }
        uint64_t started = atomic_load_explicit(&t->w->role[i].started, memory_order_relaxed);
        if (p->pid == 0 &&
            atomic_load_explicit(&t->w->role[i].ordered, memory_order_acquire) == started + 1) {
            start(t, i);
        }
    }
    return atomic_load_explicit(&t->w->complained, memory_order_acquire) == 0;
}

bool theatre_nap(struct theatre *t, uint64_t us)
{
    for (uint64_t end = world_now_ns() + us * 1000, now; (now = world_now_ns()) < end;) {
        if (!theatre_serve(t)) {
            return false;
        }
        world_nap_us(CORRAL_MIN(UINT64_C(500), (end - now) / 1000 + 1));
    }
    return theatre_serve(t);
}

/* ---- troubles ---- */

static void kill_place(struct theatre *t, struct place *p)
{
    if (p->pid > 0 && !p->killed) {
        p->killed = true;
        t->kills++;
        kill(p->pid, SIGKILL);
    }
}

static void kill_role(struct theatre *t, uint32_t i)
{
    if (i != 0 || !t->spare_first) {
        kill_place(t, &t->role[i]);
    }
}

static uint32_t any_producer(struct theatre *t)
{
    uint32_t first = t->spare_first && t->w->producers > 1;
    return first + (uint32_t)corral_rng_below(&t->rng, t->w->producers - first);
}

static uint32_t any_consumer(struct theatre *t)
{
    return t->w->producers + (uint32_t)corral_rng_below(&t->rng, t->w->consumers);
}

static struct world_consumer *consumer_of(struct theatre *t, uint32_t role)
{
    return &t->w->consumer[role - t->w->producers];
}

void theatre_kill_somebody(struct theatre *t)
{
    static const uint8_t odds[] = {KILL_PRODUCER, KILL_PRODUCER,    KILL_CONSUMER,
                                   KILL_CONSUMER, KILL_CONSUMER,    KILL_SEVERAL,
                                   KILL_ALL,      KILL_COORDINATOR, LOSE_CHECKPOINT};
    enum trouble trouble = odds[corral_rng_below(&t->rng, sizeof odds)];
    uint32_t role = trouble == KILL_PRODUCER ? any_producer(t) : any_consumer(t);
    t->count[trouble]++;
    switch (trouble) {
    case KILL_COORDINATOR:
        kill_place(t, &t->coordinator);
        return;
    case KILL_ALL:
    case KILL_SEVERAL:
        for (uint32_t i = 0; i < roles(t); i++) {
            if (trouble == KILL_ALL || corral_rng_below(&t->rng, 2) == 0) {
                kill_role(t, i);
            }
        }
        if (trouble == KILL_ALL || corral_rng_below(&t->rng, 2) == 0) {
            kill_place(t, &t->coordinator);
        }
        return;
    case LOSE_CHECKPOINT:
        atomic_store_explicit(&consumer_of(t, role)->lose_newest, 1, memory_order_relaxed);
        kill_role(t, role);
        return;
    default:
        kill_role(t, role);
    }
}

static void stop_role(struct theatre *t, uint32_t i, uint64_t ms)
{
    struct place *p = &t->role[i];
    if (p->pid > 0 && !p->killed) {
        kill(p->pid, SIGSTOP);
        p->stopped_until_ns = world_now_ns() + ms * CORRAL_NS_PER_MS;
    }
}

/* Files of that process may not grow beyond a size from now on: writes fail, or end in the middle. */
static void break_disk(struct theatre *t, uint32_t role)
{
    struct place *p = &t->role[role];
    uint64_t size = corral_rng_below(&t->rng, UINT64_C(1) << (1 + corral_rng_below(&t->rng, 21)));
    struct rlimit limit = {.rlim_cur = size, .rlim_max = RLIM_INFINITY};
    if (p->pid > 0 && !p->killed) {
        atomic_fetch_add_explicit(&consumer_of(t, role)->disk_faults, 1, memory_order_release);
        (void)prlimit(p->pid, RLIMIT_FSIZE, &limit, NULL);
    }
}

static void cut_network(struct theatre *t)
{
    struct proxy_shared *p = &t->w->proxy;
    p->fault = (enum proxy_fault)(1 + corral_rng_below(&t->rng, PROXY_FAULTS - 1));
    p->ms = (uint32_t)corral_rng_below(&t->rng, STOP_MS_MAX);
    p->at = corral_rng_below(&t->rng, UINT64_C(1) << corral_rng_below(&t->rng, 17));
    p->pick = corral_rng_next(&t->rng);
    atomic_fetch_add_explicit(&p->armed, 1, memory_order_release);
}

void theatre_disturb_somebody(struct theatre *t)
{
    enum trouble trouble = (enum trouble)(STOP + corral_rng_below(&t->rng, TROUBLES - STOP));
    uint32_t role = (uint32_t)corral_rng_below(&t->rng, roles(t)), consumer = any_consumer(t);
    if (trouble == STOP_LONG && (!t->patient || corral_rng_below(&t->rng, 8) != 0)) {
        trouble = STOP;
    }
    t->count[trouble]++;
    switch (trouble) {
    case STOP:
        stop_role(t, role, corral_rng_below(&t->rng, STOP_MS_MAX));
        return;
    case STOP_LONG:
        stop_role(t, role, STOP_LONG_MS);
        return;
    case DISK_FULL:
        break_disk(t, consumer);
        return;
    case LOG_FULL:
        atomic_store_explicit(&consumer_of(t, consumer)->hold_until_ns,
                              world_now_ns() + corral_rng_below(&t->rng, HOLD_MS_MAX) * CORRAL_NS_PER_MS,
                              memory_order_release);
        return;
    default:
        if (t->w->carrier == CARRIER_TCP && corral_rng_below(&t->rng, 4) != 0) {
            cut_network(t);
        } else {
            atomic_fetch_add_explicit(&t->w->role[role].cut, 1, memory_order_relaxed);
        }
    }
}

void theatre_let_go(struct theatre *t)
{
    for (uint32_t i = 0; i < roles(t); i++) {
        t->role[i].stopped_until_ns = t->role[i].stopped_until_ns != 0 ? 1 : 0;
    }
    for (uint32_t i = 0; i < t->w->consumers; i++) {
        atomic_store_explicit(&t->w->consumer[i].hold_until_ns, 0, memory_order_release);
    }
}

static void end_place(struct place *p)
{
    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        (void)waitpid(p->pid, NULL, 0);
    }
    p->pid = 0;
}

void theatre_end(struct theatre *t)
{
    end_place(&t->coordinator);
    end_place(&t->network);
    for (uint32_t i = 0; i < roles(t); i++) {
        end_place(&t->role[i]);
    }
}
