/* Overcommit on a shared host device, end to end: a trainer process and a rollout process with real memory under one ledger, ceilings together 1.25 times the device. Rollout
 * borrows what the trainer leaves idle and gives it back when asked; nobody ever gets at the other's floor.
 * The processes are this program again, told what to do line by line through a pipe. */
#include "quota/shared.h"
#include "tests/check.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define CHUNKS_MAX 128

/* ---- the processes: memory in chunks of 1 MiB ---- */

static struct {
    struct corral_quota *quota;
    uint32_t holder;
    pthread_mutex_t pool_lock; /* guards chunk, charge and count: the listener gives back, too */
    void *chunk[CHUNKS_MAX];
    struct corral_quota_charge charge[CHUNKS_MAX];
    uint32_t count;
    pthread_t listener;
    uint64_t given_back;
} self = {.pool_lock = PTHREAD_MUTEX_INITIALIZER};

static bool take_one(void)
{
    struct corral_quota_charge charge;
    if (corral_quota_take(self.quota, self.holder, MIB, CORRAL_KIND_HOST, "chunk", &charge, NULL) !=
        CORRAL_OK) {
        return false;
    }
    void *memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        corral_quota_drop(self.quota, &charge);
        return false;
    }
    memset(memory, 0x5a, MIB);
    corral_quota_keep(self.quota, &charge);
    pthread_mutex_lock(&self.pool_lock);
    self.chunk[self.count] = memory;
    self.charge[self.count++] = charge;
    pthread_mutex_unlock(&self.pool_lock);
    return true;
}

static uint32_t have(void)
{
    pthread_mutex_lock(&self.pool_lock);
    uint32_t count = self.count;
    pthread_mutex_unlock(&self.pool_lock);
    return count;
}

static uint32_t take(uint32_t chunks)
{
    uint32_t taken = 0;
    while (taken < chunks && have() < CHUNKS_MAX && take_one()) {
        taken++;
    }
    return taken;
}

static void drop(uint64_t chunks)
{
    for (; chunks > 0; chunks--) {
        pthread_mutex_lock(&self.pool_lock);
        bool any = self.count > 0;
        void *memory = any ? self.chunk[--self.count] : NULL;
        struct corral_quota_charge charge = self.charge[any ? self.count : 0];
        pthread_mutex_unlock(&self.pool_lock);
        if (!any) {
            return;
        }
        munmap(memory, MIB); /* first the memory, then the charge: it is never lent twice */
        corral_quota_drop(self.quota, &charge);
    }
}

static void *listen_to_pressure(void *ctx)
{
    (void)ctx;
    for (;;) {
        uint64_t wanted;
        enum corral_status status = corral_quota_wait_pressure(self.quota, self.holder, 1000, &wanted, NULL);
        if (status == CORRAL_OK) {
            uint64_t chunks = (wanted + MIB - 1) / MIB;
            drop(chunks);
            __atomic_fetch_add(&self.given_back, chunks, __ATOMIC_RELAXED);
        } else if (status != CORRAL_TIMEOUT) {
            return NULL;
        }
    }
}

static void obey(const char *verb, uint64_t number)
{
    struct corral_error err = {0};
    struct corral_ledger_window window;
    enum corral_status status = CORRAL_OK;
    if (strcmp(verb, "take") == 0) {
        printf("%u\n", take((uint32_t)number));
    } else if (strcmp(verb, "drop") == 0) {
        drop(number);
        printf("%u\n", have());
    } else if (strcmp(verb, "have") == 0) {
        printf("%u\n", have());
    } else if (strcmp(verb, "listen") == 0) {
        status = corral_quota_listen(self.quota, self.holder, &err);
        printf("%d\n",
               status == CORRAL_OK && pthread_create(&self.listener, NULL, listen_to_pressure, NULL) == 0);
    } else if (strcmp(verb, "step") == 0) {
        status = corral_quota_open_step(self.quota, self.holder, 1, number * MIB, &err);
        printf("%d\n", status == CORRAL_OK);
    } else if (strcmp(verb, "end") == 0) {
        status = corral_quota_close_step(self.quota, self.holder, &window, &err);
        printf("%llu\n", status == CORRAL_OK ? (unsigned long long)(window.claim_peak / MIB) : 0);
    }
    (void)fflush(stdout);
}

static int process_main(const char *role)
{
    struct corral_error err;
    uint32_t index;
    char line[64], verb[16];
    unsigned long long number;
    if (corral_quota_attach_environment(&self.quota, &index, &err) != CORRAL_OK ||
        corral_quota_join(self.quota, "a:0", role, &self.holder, &err) != CORRAL_OK) {
        fprintf(stderr, "%s: %s\n", role, err.text);
        return 1;
    }
    puts("ready");
    (void)fflush(stdout);
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%15s %llu", verb, &number) == 2) {
        obey(verb, number);
    }
    _exit(0); /* the listener may be waiting; the ledger gets everything back all the same */
}

/* ---- the test's side ---- */

struct process {
    pid_t pid;
    FILE *to, *from;
};
struct node {
    struct corral_quota *quota;
    int fd;
    uint32_t trainer, rollout;
};

static const struct corral_ledger_role *role(const struct node *n, uint32_t r)
{
    return &corral_quota_ledger(n->quota)->device[0].role[r];
}

/* 100 MiB, headroom 4. Trainer 40 … 72, rollout 30 … 53: ceilings together 125. */
static int make_node(void **state)
{
    struct node *n = calloc(1, sizeof *n);
    struct corral_ledger *plan = calloc(1, corral_ledger_bytes());
    struct corral_error err;
    uint32_t device;
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &n->trainer, &err));
    check_ok(corral_ledger_add_role(plan, "rollout", &n->rollout, &err));
    check_ok(corral_ledger_add_device(plan, "a:0", 100 * MIB, 4 * MIB, &device, &err));
    check_ok(corral_ledger_set_limits(plan, 0, n->trainer, 40 * MIB, 72 * MIB, &err));
    check_ok(corral_ledger_set_limits(plan, 0, n->rollout, 30 * MIB, 53 * MIB, &err));
    check_ok(corral_ledger_check_plan(plan, 1.25, &err));
    struct corral_quota_options options = {.pressure_wait_ms = CORRAL_QUOTA_PRESSURE_MS_MAX};
    check_ok(corral_quota_create(plan, &options, &n->fd, &n->quota, &err));
    free(plan);
    *state = n;
    return 0;
}

static int drop_node(void **state)
{
    struct node *n = *state;
    corral_quota_detach(n->quota);
    close(n->fd);
    free(n);
    return 0;
}

static struct process start(const struct node *n, const char *name, uint32_t r)
{
    int to[2], from[2];
    struct process p;
    char path[64], token[33], answer[64] = "";
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), n->fd);
    corral_quota_token(n->quota, r, token);
    p.pid = fork();
    if (p.pid == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        setenv(CORRAL_QUOTA_ENV_LEDGER, path, 1);
        setenv(CORRAL_QUOTA_ENV_TOKEN, token, 1);
        execl("/proc/self/exe", "overcommit_test", name, (char *)NULL);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    p.to = fdopen(to[1], "w");
    p.from = fdopen(from[0], "r");
    assert_non_null(fgets(answer, sizeof answer, p.from));
    assert_string_equal(answer, "ready\n");
    return p;
}

static void send_line(const struct process *p, const char *verb, uint64_t number)
{
    fprintf(p->to, "%s %llu\n", verb, (unsigned long long)number);
    assert_int_equal(fflush(p->to), 0);
}

static uint64_t answer_of(const struct process *p)
{
    unsigned long long number = UINT64_MAX;
    assert_int_equal(fscanf(p->from, "%llu", &number), 1);
    return number;
}

static uint64_t ask(const struct process *p, const char *verb, uint64_t number)
{
    send_line(p, verb, number);
    return answer_of(p);
}

static void finish(struct process *p, bool killed)
{
    int status;
    if (killed) {
        kill(p->pid, SIGKILL);
    }
    (void)fclose(p->to);
    (void)fclose(p->from);
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    assert_true(killed ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void check_empty(const struct node *n)
{
    corral_quota_reap(n->quota);
    assert_int_equal(role(n, n->trainer)->used, 0);
    assert_int_equal(role(n, n->rollout)->used, 0);
    assert_true(corral_ledger_consistent(corral_quota_ledger(n->quota)));
}

static void rollout_borrows_idle_burst_and_a_step_gets_it_back(void **state)
{
    struct node *n = *state;
    struct process trainer = start(n, "trainer", n->trainer), rollout = start(n, "rollout", n->rollout);
    assert_int_equal(ask(&trainer, "take", 30), 30);
    assert_int_equal(ask(&rollout, "listen", 0), 1);
    assert_int_equal(ask(&rollout, "take", 60), 53); /* to its ceiling: 23 above its floor */
    /* The step needs 62; 62 + 53 + 4 do not fit. Rollout gives back 19 and the step opens, without a denial. */
    assert_int_equal(ask(&trainer, "step", 62), 1);
    assert_int_equal(role(n, n->trainer)->denied, 0);
    uint64_t left = ask(&rollout, "have", 0);
    assert_in_range(left, 30, 34); /* never below its floor */
    /* Booked is booked, and frozen is frozen. */
    assert_int_equal(ask(&rollout, "take", 1), 0);
    assert_int_equal(ask(&trainer, "take", 32), 32);
    assert_int_equal(ask(&trainer, "take", 1), 0);
    assert_in_range(ask(&trainer, "end", 0), 96, 100); /* the highest of all claims fitted the device */
    /* Afterwards what the trainer leaves is rollout's to borrow again. */
    assert_int_equal(ask(&trainer, "drop", 32), 30);
    (void)ask(&rollout, "take", 60);
    assert_int_equal(ask(&rollout, "have", 0), 53);
    finish(&rollout, false);
    finish(&trainer, false);
    check_empty(n);
}

static void the_trainer_never_gets_the_floor_of_rollout(void **state)
{
    struct node *n = *state;
    struct process trainer = start(n, "trainer", n->trainer), rollout = start(n, "rollout", n->rollout);
    /* Its ceiling is 72, but 100 - 4 - 30 is all there is without rollout's floor, which nobody uses. */
    assert_int_equal(ask(&trainer, "take", 72), 66);
    assert_int_equal(ask(&trainer, "step", 67), 0);
    assert_int_equal(ask(&rollout, "take", 30), 30); /* whole, at any time */
    assert_int_equal(ask(&rollout, "take", 1), 0);
    assert_int_equal(ask(&trainer, "step", 66), 1);
    assert_in_range(ask(&trainer, "end", 0), 100, 100);
    finish(&rollout, false);
    finish(&trainer, false);
    check_empty(n);
}

static void who_does_not_listen_is_not_waited_for_and_loses_nothing(void **state)
{
    struct node *n = *state;
    struct process trainer = start(n, "trainer", n->trainer), rollout = start(n, "rollout", n->rollout);
    assert_int_equal(ask(&rollout, "take", 53), 53);
    assert_int_equal(ask(&trainer, "take", 40), 40);
    assert_int_equal(ask(&trainer, "step", 62), 0);
    assert_int_equal(ask(&rollout, "have", 0), 53);
    assert_int_equal(ask(&trainer, "step", 43), 1); /* what is left fits */
    assert_true(ask(&trainer, "end", 0) <= 100);
    finish(&rollout, false);
    finish(&trainer, false);
    check_empty(n);
}

static void a_borrower_that_dies_while_it_is_asked_gives_back_everything(void **state)
{
    struct node *n = *state;
    struct process trainer = start(n, "trainer", n->trainer), rollout = start(n, "rollout", n->rollout);
    assert_int_equal(ask(&rollout, "listen", 0), 1);
    assert_int_equal(ask(&rollout, "take", 53), 53);
    int stopped = 0;
    kill(rollout.pid,
         SIGSTOP); /* asked, it will not answer; but its listener runs on for a moment after the signal */
    assert_int_equal(waitpid(rollout.pid, &stopped, WUNTRACED), rollout.pid);
    assert_true(WIFSTOPPED(stopped));
    send_line(&trainer, "step", 62);
    while (__atomic_load_n(&role(n, n->rollout)->wanted, __ATOMIC_RELAXED) == 0) {
        struct pollfd nothing = {.fd = -1};
        (void)poll(&nothing, 1, 1);
    }
    finish(&rollout, true);
    corral_quota_reap(n->quota); /* as the agent does when the pidfd tells it */
    assert_int_equal(answer_of(&trainer), 1);
    assert_int_equal(role(n, n->rollout)->used, 0);
    assert_true(ask(&trainer, "end", 0) <= 100);
    finish(&trainer, false);
    check_empty(n);
}

int main(int argc, char **argv)
{
    if (argc == 2) {
        return process_main(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rollout_borrows_idle_burst_and_a_step_gets_it_back, make_node,
                                        drop_node),
        cmocka_unit_test_setup_teardown(the_trainer_never_gets_the_floor_of_rollout, make_node, drop_node),
        cmocka_unit_test_setup_teardown(who_does_not_listen_is_not_waited_for_and_loses_nothing, make_node,
                                        drop_node),
        cmocka_unit_test_setup_teardown(a_borrower_that_dies_while_it_is_asked_gives_back_everything,
                                        make_node, drop_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
