/* Do gradient steps slow inference? A rollout process runs a decode step (the forward pass of a policy for a fixed batch) in a loop under its quota, alone, and beside a trainer process
 * that takes gradient steps (forward, backward) under its own, each bracketed by the ledger's step. On two host devices (a CPU each), on a shared one, and on a shared one with compute
 * shares (cgroup cpu: each half) where the machine lets us. Per round, the ratio of p99 beside / alone; the median of the rounds with its spread. */
#include "base/clock.h"
#include "base/memory.h"
#include "model/policy.h"
#include "quota/fences/fence.h"
#include "quota/shared.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 7
#define DECODES 2000
#define DECODE_ROWS 32
#define TRAIN_ROWS 512
#define MIB (UINT64_C(1) << 20)

static struct corral_error err;

/* A benchmark may give up. */
static void need(enum corral_status status, const char *what)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "decode_latency: %s: %s\n", what, err.text);
        exit(1);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("decode_latency: sched_setaffinity");
        exit(1);
    }
}

/* ---- the model ---- */

struct model {
    struct corral_policy_layout layout;
    struct corral_policy_workspace *workspace;
    float *weights, *gradient, *obs, *log_prob, *entropy, *value;
    int32_t *action;
    struct corral_rng rng;
};

static void *room(size_t count)
{
    void *memory = calloc(count, sizeof(float));
    if (!memory) {
        fprintf(stderr, "decode_latency: out of memory\n");
        exit(1);
    }
    return memory;
}

static void make_model(struct model *m, uint32_t rows, bool training)
{
    struct corral_policy_spec spec = {
        .obs_dim = 64,
        .layers = 2,
        .hidden = {256, 256},
        .action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {16}}};
    need(corral_policy_layout_build(&spec, &m->layout, &err), "layout");
    need(corral_policy_workspace_create(&m->workspace, &m->layout, rows, training, &corral_allocator_heap,
                                        &err),
         "workspace");
    m->weights = room(m->layout.floats);
    m->gradient = room(m->layout.floats);
    m->obs = room((size_t)rows * spec.obs_dim);
    m->log_prob = room(rows);
    m->entropy = room(rows);
    m->value = room(rows);
    m->action = room(rows);
    corral_rng_seed(&m->rng, 7);
    corral_policy_init(&m->layout, m->weights, &m->rng);
    for (uint32_t i = 0; i < rows * spec.obs_dim; i++) {
        m->obs[i] = (float)corral_rng_normal(&m->rng);
    }
}

/* ---- the two processes ---- */

static uint32_t join(struct corral_quota *q, const char *role, uint64_t bytes)
{
    uint32_t holder;
    need(corral_quota_join(q, "a:0", role, &holder, &err), "join");
    need(corral_quota_reserve(q, holder, bytes, role, &err), "quota");
    corral_quota_commit(q, holder, bytes);
    return holder;
}

static void enter(const struct corral_fence_entry *entry)
{
    for (uint32_t i = 0; entry && i < entry->fd_count; i++) {
        if (write(entry->fd[i], "0", 1) != 1) {
            perror("decode_latency: entering a group");
            _exit(1);
        }
    }
}

static _Noreturn void train(int fd, int cpu, const struct corral_fence_entry *entry, int ready)
{
    struct corral_quota *q;
    struct model m;
    struct corral_ledger_window window;
    enter(entry);
    pin(cpu);
    need(corral_quota_attach(fd, &q, &err), "attach");
    uint32_t holder = join(q, "trainer", 16 * MIB);
    make_model(&m, TRAIN_ROWS, true);
    (void)!write(ready, "1", 1);
    for (uint64_t step = 1;; step++) {
        need(corral_quota_open_step(q, holder, step, 24 * MIB, &err), "step");
        corral_policy_evaluate(&m.layout, m.weights, m.workspace, m.obs, NULL, m.action, TRAIN_ROWS,
                               m.log_prob, m.entropy, m.value);
        corral_policy_backward(&m.layout, m.weights, m.workspace, m.log_prob, m.entropy, m.value, m.gradient);
        need(corral_quota_close_step(q, holder, &window, &err), "step end");
    }
}

/* p99 in microseconds, through the pipe. */
static _Noreturn void decode(int fd, int cpu, const struct corral_fence_entry *entry, int result)
{
    static double us[DECODES];
    struct corral_quota *q;
    struct model m;
    enter(entry);
    pin(cpu);
    need(corral_quota_attach(fd, &q, &err), "attach");
    (void)join(q, "rollout", 16 * MIB);
    make_model(&m, DECODE_ROWS, false);
    for (int i = -DECODES / 10; i < DECODES; i++) { /* the first tenth warms up */
        uint64_t start = corral_now_ns(&corral_clock_monotonic);
        corral_policy_act(&m.layout, m.weights, m.workspace, m.obs, NULL, DECODE_ROWS, false, &m.rng,
                          m.action, m.log_prob, m.value);
        if (i >= 0) {
            us[i] = (double)(corral_now_ns(&corral_clock_monotonic) - start) / 1e3;
        }
    }
    qsort(us, DECODES, sizeof us[0], by_value);
    double out[2] = {us[DECODES / 2], us[DECODES * 99 / 100]};
    _exit(write(result, out, sizeof out) == sizeof out ? 0 : 1);
}

/* ---- a measurement ---- */

struct setting {
    const char *name;
    int trainer_cpu, rollout_cpu;
    bool fenced;
    struct corral_fence_entry trainer, rollout;
};

static pid_t start_trainer(int fd, const struct setting *s)
{
    int ready[2];
    char byte;
    if (pipe2(ready, O_CLOEXEC) != 0) {
        perror("decode_latency: pipe");
        exit(1);
    }
    pid_t pid = fork();
    if (pid == 0) {
        train(fd, s->trainer_cpu, s->fenced ? &s->trainer : NULL, ready[1]);
    }
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1) {
        exit(1); /* it has said why */
    }
    close(ready[0]);
    return pid;
}

static void measure(int fd, const struct setting *s, double out[2])
{
    int result[2], status;
    if (pipe2(result, O_CLOEXEC) != 0) {
        perror("decode_latency: pipe");
        exit(1);
    }
    pid_t pid = fork();
    if (pid == 0) {
        decode(fd, s->rollout_cpu, s->fenced ? &s->rollout : NULL, result[1]);
    }
    close(result[1]);
    bool told = read(result[0], out, 2 * sizeof *out) == 2 * sizeof *out;
    close(result[0]);
    (void)waitpid(pid, &status, 0);
    if (!told) {
        exit(1);
    }
}

static void compare(struct corral_quota *q, int fd, const struct setting *s)
{
    double p99[ROUNDS], alone[2], beside[2];
    double p50_sum = 0;
    for (int i = 0; i < ROUNDS; i++) {
        measure(fd, s, alone);
        pid_t trainer = start_trainer(fd, s);
        measure(fd, s, beside);
        kill(trainer, SIGKILL);
        (void)waitpid(trainer, NULL, 0);
        corral_quota_reap(q);
        p99[i] = beside[1] / alone[1];
        p50_sum += alone[0];
    }
    qsort(p99, ROUNDS, sizeof p99[0], by_value);
    printf("%-32s p99 beside / alone  %.3f  (%.3f … %.3f over %d rounds; a decode takes %.0f us)\n", s->name,
           p99[ROUNDS / 2], p99[0], p99[ROUNDS - 1], ROUNDS, p50_sum / ROUNDS);
    (void)fflush(stdout);
}

static struct corral_quota *make_ledger(int *fd)
{
    struct corral_ledger *plan = calloc(1, corral_ledger_bytes());
    struct corral_quota *q;
    uint32_t out;
    if (!plan) {
        exit(1);
    }
    corral_ledger_init(plan);
    need(corral_ledger_add_role(plan, "trainer", &out, &err), "ledger");
    need(corral_ledger_add_role(plan, "rollout", &out, &err), "ledger");
    need(corral_ledger_add_device(plan, "a:0", 96 * MIB, 16 * MIB, &out, &err), "ledger");
    need(corral_ledger_set_limits(plan, 0, 0, 32 * MIB, 48 * MIB, &err), "ledger");
    need(corral_ledger_set_limits(plan, 0, 1, 32 * MIB, 48 * MIB, &err), "ledger");
    need(corral_ledger_check_plan(plan, 1.0, &err), "ledger");
    need(corral_quota_create(plan, NULL, fd, &q, &err), "ledger");
    free(plan);
    return q;
}

/* A group for each with half of the CPU. False, with the reason on stdout, where that cannot be had. */
static bool share_cpu(struct corral_fences *f, struct setting *s, const cpu_set_t *cpus)
{
    struct corral_fence_report report;
    uint32_t group[2];
    static const char *const roles[] = {"trainer", "rollout"};
    for (int i = 0; i < 2; i++) {
        struct corral_fence_group_spec spec = {.role = roles[i],
                                               .device = "a:0",
                                               .bytes = 48 * MIB,
                                               .processes = 1,
                                               .overhead = 256 * MIB,
                                               .compute_percent = 50,
                                               .cpus = cpus};
        need(corral_fences_add(f, &spec, &group[i], &err), "fences");
    }
    corral_fences_report(f, &report);
    if (!corral_fence_is_live(&report, "cpu")) {
        char line[512];
        printf("%-32s not measured: no cgroup cpu (%s)\n", s->name,
               corral_fence_report_line(&report, line, sizeof line));
        return false;
    }
    corral_fences_entry(f, group[0], &s->trainer);
    corral_fences_entry(f, group[1], &s->rollout);
    return true;
}

int main(void)
{
    cpu_set_t mine, one;
    int cpu[2] = {-1, -1}, found = 0, fd;
    sched_getaffinity(0, sizeof mine, &mine);
    for (int i = 0; i < CPU_SETSIZE && found < 2; i++) {
        if (CPU_ISSET(i, &mine)) {
            cpu[found++] = i;
        }
    }
    struct corral_quota *q = make_ledger(&fd);
    if (found == 2) {
        compare(
            q, fd,
            &(struct setting){.name = "devices of their own", .trainer_cpu = cpu[0], .rollout_cpu = cpu[1]});
    } else {
        puts("devices of their own             not measured: one CPU only");
    }
    struct setting shared = {.name = "shared device", .trainer_cpu = cpu[0], .rollout_cpu = cpu[0]};
    compare(q, fd, &shared);
    struct corral_fences *fences = NULL;
    CPU_ZERO(&one);
    CPU_SET(cpu[0], &one);
    shared.name = "shared device, compute shares";
    shared.fenced = true;
    need(corral_fences_open((uint64_t)getpid() << 31, "bench", &fences, &err), "fences");
    if (share_cpu(fences, &shared, &one)) {
        compare(q, fd, &shared);
    }
    corral_fences_close(fences);
    corral_quota_detach(q);
    close(fd);
    return 0;
}
