#include "quota/test_node.h"

#include "base/log.h"
#include "base/rng.h"
#include "quota/process.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static struct corral_error err;
static struct corral_ledger seen;

static uint64_t used(struct corral_quota *q, uint32_t role)
{
    corral_quota_snapshot(q, &seen);
    assert_true(corral_ledger_consistent(&seen));
    return seen.device[0].role[role].used;
}

static void another_process_sees_the_charge(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine = NULL;
        uint32_t holder = 0;
        bool ok = corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
                  corral_quota_join(mine, "a:0", "rollout", &holder, NULL) == CORRAL_OK &&
                  corral_quota_reserve(mine, holder, 5 * MIB, "test", NULL) == CORRAL_OK;
        corral_quota_commit(mine, holder, 3 * MIB);
        corral_quota_rollback(mine, holder, 2 * MIB);
        _exit(ok ? 0 : 1); /* without detaching */
    }
    assert_int_equal(test_wait(child), 0);
    assert_int_equal(used(q, ROLLOUT), 3 * MIB);
    assert_int_equal(corral_quota_reap(q), 1);
    assert_int_equal(used(q, ROLLOUT), 0);
    corral_quota_detach(q);
    close(fd);
}

static void detaching_gives_everything_back(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd), *mine;
    uint32_t holder;
    check_ok(corral_quota_attach(fd, &mine, &err));
    check_ok(corral_quota_join(mine, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(mine, holder, MIB, "test", &err));
    corral_quota_set_step(mine, holder, 12);
    assert_int_equal(used(q, ROLLOUT), MIB);
    assert_int_equal(seen.holder[holder].step, 12);
    assert_int_equal(seen.holder[holder].start_time, corral_process_start_time(getpid()));
    assert_int_equal(corral_quota_reap(q), 0);
    corral_quota_detach(mine);
    assert_int_equal(used(q, ROLLOUT), 0);
    corral_quota_detach(q);
    close(fd);
}

static void only_a_sealed_ledger_can_be_attached(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd), *mine = NULL;
    assert_int_not_equal(ftruncate(fd, 10), 0);
    assert_int_not_equal(ftruncate(fd, 10 << 20), 0);
    int plain = memfd_create("plain", MFD_CLOEXEC);
    assert_int_equal(corral_quota_attach(plain, &mine, &err), CORRAL_INVALID);
    close(plain);
    int empty = memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(ftruncate(empty, st.st_size), 0);
    assert_int_equal(fcntl(empty, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    assert_int_equal(corral_quota_attach(empty, &mine, &err), CORRAL_INVALID);
    close(empty);
    assert_int_equal(corral_quota_attach(-1, &mine, &err), CORRAL_IO);
    assert_null(mine);
    corral_quota_detach(q);
    close(fd);
}

static void unknown_names_are_named(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder = 77;
    assert_int_equal(corral_quota_join(q, "z:9", "rollout", &holder, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "z:9"));
    assert_int_equal(corral_quota_join(q, "a:0", "tenant", &holder, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "tenant"));
    assert_int_equal(holder, 77);
    corral_quota_detach(q);
    close(fd);
}

static void a_denial_is_one_structured_line(void **state)
{
    (void)state;
    int fd, pipe_fds[2];
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    char line[2048] = {0};
    assert_int_equal(pipe(pipe_fds), 0);
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    corral_quota_set_step(q, holder, 31);
    corral_log_configure(CORRAL_LOG_DEBUG, false, pipe_fds[1], NULL);
    assert_int_equal(corral_quota_reserve(q, holder, 51 * MIB, "adam moments", &err), CORRAL_DENIED);
    corral_log_configure(CORRAL_LOG_INFO, false, 2, NULL);
    close(pipe_fds[1]);
    assert_true(read(pipe_fds[0], line, sizeof line - 1) > 0);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    static const char *const parts[] = {"memory denied", "rollout",      "a:0",
                                        "step 31",       "adam moments", "53477376",
                                        "41943040",      "52428800",     "over ceiling"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(parts); i++) {
        if (!strstr(line, parts[i])) {
            fail_msg("\"%s\" is not in: %s", parts[i], line);
        }
    }
    assert_non_null(strstr(err.text, "50 MiB would fit"));
    close(pipe_fds[0]);
    corral_quota_detach(q);
    close(fd);
}

static void a_forked_copy_can_neither_take_nor_give_back(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(q, holder, MIB, "test", &err));
    corral_quota_commit(q, holder, MIB);
    pid_t child = fork();
    if (child == 0) {
        bool ok = corral_quota_reserve(q, holder, 1, "test", NULL) == CORRAL_STATE &&
                  corral_quota_join(q, "a:0", "rollout", &holder, NULL) == CORRAL_STATE;
        corral_quota_release(q, holder, MIB);
        corral_quota_detach(q);
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(test_wait(child), 0);
    assert_int_equal(used(q, ROLLOUT), MIB);
    corral_quota_detach(q);
    close(fd);
}

static void a_reaped_slot_is_not_the_old_owners(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder, again;
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(q, holder, MIB, "test", &err));
    corral_quota_reap_pid(q, getpid());
    assert_int_equal(used(q, ROLLOUT), 0);
    assert_int_equal(corral_quota_reserve(q, holder, MIB, "test", &err), CORRAL_STATE);
    check_ok(corral_quota_join(q, "a:0", "trainer", &again, &err));
    assert_int_equal(again, holder);
    corral_quota_detach(q);
    close(fd);
}

static void a_reused_pid_is_not_mistaken_for_life(void **state)
{
    (void)state;
    uint64_t start_time = corral_process_start_time(getpid());
    assert_true(start_time != 0);
    assert_false(corral_process_is_gone(getpid(), start_time));
    assert_false(corral_process_is_gone(getpid(), 0));
    assert_true(corral_process_is_gone(getpid(), start_time + 1));
    assert_int_equal(corral_process_start_time(0x7ffffff0), 0);
    assert_true(corral_process_is_gone(0x7ffffff0, 1));
}

static void a_zombie_is_reaped_before_its_parent_waits(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine;
        uint32_t holder;
        bool ok = corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
                  corral_quota_join(mine, "a:0", "trainer", &holder, NULL) == CORRAL_OK;
        _exit(ok ? 0 : 1);
    }
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(info.si_status, 0);
    assert_int_equal(corral_quota_reap(q), 1);
    assert_int_equal(test_wait(child), 0);
    corral_quota_detach(q);
    close(fd);
}

struct hammer {
    struct corral_quota *q;
    uint32_t holder;
    uint64_t seed;
};

static void *hammer_thread(void *arg)
{
    struct hammer *h = arg;
    struct corral_rng rng;
    corral_rng_seed(&rng, h->seed);
    for (int i = 0; i < 2000; i++) {
        uint64_t bytes = 1 + corral_rng_below(&rng, 10 * MIB);
        if (corral_quota_reserve(h->q, h->holder, bytes, "test", NULL) == CORRAL_OK) {
            corral_quota_commit(h->q, h->holder, bytes);
            corral_quota_release(h->q, h->holder, bytes);
        }
    }
    return NULL;
}

static void threads_share_one_attachment(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    pthread_t thread[4];
    struct hammer hammer[4];
    check_ok(corral_quota_join(q, "a:0", "trainer", &holder, &err));
    for (uint64_t i = 0; i < 4; i++) {
        hammer[i] = (struct hammer){.q = q, .holder = holder, .seed = i};
        assert_int_equal(pthread_create(&thread[i], NULL, hammer_thread, &hammer[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
    }
    assert_int_equal(used(q, TRAINER), 0);
    corral_quota_detach(q);
    close(fd);
}

static void the_environment_names_ledger_and_role(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd), *mine = NULL;
    char path[64], token[33];
    uint32_t role = 77;
    unsetenv(CORRAL_QUOTA_ENV_LEDGER);
    unsetenv(CORRAL_QUOTA_ENV_TOKEN);
    assert_int_equal(corral_quota_attach_environment(&mine, &role, &err), CORRAL_NOT_FOUND);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), fd);
    corral_quota_token(q, ROLLOUT, token);
    setenv(CORRAL_QUOTA_ENV_LEDGER, path, 1);
    assert_int_equal(corral_quota_attach_environment(&mine, &role, &err), CORRAL_INVALID);
    setenv(CORRAL_QUOTA_ENV_TOKEN, token, 1);
    check_ok(corral_quota_attach_environment(&mine, &role, &err));
    assert_int_equal(role, ROLLOUT);
    corral_quota_detach(mine);
    mine = NULL;
    token[5] = token[5] == '0' ? '1' : '0';
    setenv(CORRAL_QUOTA_ENV_TOKEN, token, 1);
    assert_int_equal(corral_quota_attach_environment(&mine, &role, &err), CORRAL_INVALID);
    setenv(CORRAL_QUOTA_ENV_TOKEN, "00", 1);
    assert_int_equal(corral_quota_attach_environment(&mine, &role, &err), CORRAL_INVALID);
    setenv(CORRAL_QUOTA_ENV_TOKEN, token, 1);
    setenv(CORRAL_QUOTA_ENV_LEDGER, "/proc/2147483000/fd/3", 1);
    assert_int_equal(corral_quota_attach_environment(&mine, &role, &err), CORRAL_PEER);
    setenv(CORRAL_QUOTA_ENV_LEDGER, "/dev/null", 1);
    assert_int_equal(corral_quota_attach_environment(&mine, &role, &err), CORRAL_INVALID);
    assert_null(mine);
    unsetenv(CORRAL_QUOTA_ENV_LEDGER);
    unsetenv(CORRAL_QUOTA_ENV_TOKEN);
    corral_quota_detach(q);
    close(fd);
}

static void a_kept_charge_shows_as_committed(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    struct corral_quota_charge charge, later;
    struct corral_ledger_allocation list[4];
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    corral_quota_set_phase(q, holder, 3, CORRAL_PHASE_ROLLOUT);
    check_ok(corral_quota_take(q, holder, MIB, CORRAL_KIND_POOL, "pool", &charge, &err));
    check_ok(corral_quota_take(q, holder, 7, CORRAL_KIND_POOL, "pool", &later, &err));
    corral_quota_keep(q, &charge);
    assert_int_equal(used(q, ROLLOUT), MIB + 7);
    assert_int_equal(seen.holder[holder].committed, MIB);
    assert_int_equal(seen.holder[holder].reserved, 7);
    assert_int_equal(corral_quota_allocations(q, holder, list, 4), 2);
    assert_int_equal(list[0].phase, CORRAL_PHASE_ROLLOUT);
    check_ok(corral_quota_resize(q, &charge, 2 * MIB, "pool", &err));
    assert_int_equal(charge.bytes, 2 * MIB);
    assert_int_equal(corral_quota_resize(q, &charge, 60 * MIB, "pool", &err), CORRAL_DENIED);
    assert_int_equal(charge.bytes, 2 * MIB);
    corral_quota_drop(q, &charge);
    corral_quota_drop(q, &charge); /* it is not its owner any more */
    corral_quota_drop(q, &later);
    assert_int_equal(used(q, ROLLOUT), 0);
    corral_quota_detach(q);
    close(fd);
}

/* A child that has taken all its role may, and has ended without a word. */
static void child_takes_and_dies(int fd, const char *role, uint64_t bytes)
{
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine;
        struct corral_quota_charge charge;
        uint32_t holder;
        bool ok =
            corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
            corral_quota_join(mine, "a:0", role, &holder, NULL) == CORRAL_OK &&
            corral_quota_take(mine, holder, bytes, CORRAL_KIND_DEVICE, "all", &charge, NULL) == CORRAL_OK;
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(test_wait(child), 0);
}

static void the_dead_are_reaped_before_anyone_is_denied(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder, step_holder;
    child_takes_and_dies(fd, "rollout", 50 * MIB);
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_reserve(q, holder, 50 * MIB, "next", &err));
    corral_quota_rollback(q, holder, 50 * MIB);
    child_takes_and_dies(fd, "rollout", 50 * MIB);
    check_ok(corral_quota_join(q, "a:0", "trainer", &step_holder, &err));
    check_ok(corral_quota_open_step(q, step_holder, 1, 50 * MIB, &err));
    assert_int_equal(used(q, ROLLOUT), 0);
    assert_int_equal(seen.device[0].role[ROLLOUT].denied, 0);
    corral_quota_detach(q);
    close(fd);
}

static void memory_that_others_map_outlives_its_owner(void **state)
{
    (void)state;
    int fd, told[2], go[2];
    const uint64_t key[2] = {11, 12};
    struct corral_quota *q = test_node(&fd);
    char byte;
    assert_int_equal(pipe(told), 0);
    assert_int_equal(pipe(go), 0);
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine;
        struct corral_quota_charge charge;
        uint32_t holder;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool ok =
            corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
            corral_quota_join(mine, "a:0", "trainer", &holder, NULL) == CORRAL_OK &&
            corral_quota_take(mine, holder, 9 * MIB, CORRAL_KIND_DEVICE, "w", &charge, NULL) == CORRAL_OK &&
            corral_quota_export(mine, &charge, key, NULL) == CORRAL_OK;
        ok = ok && write(told[1], "x", 1) == 1 && read(go[0], &byte, 1) == 1;
        _exit(ok ? 0 : 1);
    }
    uint32_t holder, share;
    assert_int_equal(read(told[0], &byte, 1), 1);
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_import(q, holder, key, &share, &err));
    assert_int_equal(used(q, TRAINER), 9 * MIB);
    assert_int_equal(kill(child, SIGKILL), 0);
    test_wait(child);
    corral_quota_reap(q);
    assert_int_equal(used(q, TRAINER), 0);
    assert_int_equal(used(q, ROLLOUT), 9 * MIB);
    corral_quota_drop_share(q, share);
    assert_int_equal(used(q, ROLLOUT), 0);
    for (int i = 0; i < 2; i++) {
        close(told[i]);
        close(go[i]);
    }
    corral_quota_detach(q);
    close(fd);
}

struct listener {
    struct corral_quota *q;
    uint32_t holder;
    struct corral_quota_charge *cache;
    uint64_t wanted;
};

static void *shrink_when_asked(void *arg)
{
    struct listener *l = arg;
    if (corral_quota_wait_pressure(l->q, l->holder, 10000, &l->wanted, NULL) == CORRAL_OK) {
        corral_quota_resize(l->q, l->cache, l->cache->bytes - l->wanted, "cache", NULL);
    }
    return NULL;
}

static void a_borrower_that_listens_shrinks_before_anyone_is_denied(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node_with(100 * MIB, 70 * MIB, 10000, &fd);
    uint32_t trainer, rollout;
    struct corral_quota_charge cache;
    pthread_t thread;
    check_ok(corral_quota_join(q, "a:0", "trainer", &trainer, &err));
    check_ok(corral_quota_join(q, "a:0", "rollout", &rollout, &err));
    check_ok(corral_quota_take(q, rollout, 50 * MIB, CORRAL_KIND_DEVICE, "cache", &cache, &err));
    /* Nobody listens: denied at once. */
    assert_int_equal(corral_quota_reserve(q, trainer, 45 * MIB, "test", &err), CORRAL_DENIED);
    check_ok(corral_quota_listen(q, rollout, &err));
    uint64_t wanted;
    assert_int_equal(corral_quota_wait_pressure(q, rollout, 0, &wanted, &err), CORRAL_TIMEOUT);
    struct listener listener = {.q = q, .holder = rollout, .cache = &cache};
    assert_int_equal(pthread_create(&thread, NULL, shrink_when_asked, &listener), 0);
    check_ok(corral_quota_reserve(q, trainer, 45 * MIB, "test", &err));
    pthread_join(thread, NULL);
    assert_int_equal(listener.wanted, 5 * MIB);
    assert_int_equal(cache.bytes, 45 * MIB);
    assert_int_equal(used(q, TRAINER), 45 * MIB);
    assert_int_equal(seen.device[0].role[TRAINER].denied, 1);
    assert_int_equal(seen.device[0].role[ROLLOUT].wanted, 0);
    corral_quota_detach(q);
    close(fd);
}

static void a_role_above_its_new_ceiling_is_held_and_asked(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    uint64_t wanted;
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    check_ok(corral_quota_listen(q, holder, &err));
    check_ok(corral_quota_reserve(q, holder, 46 * MIB, "test", &err));
    assert_int_equal(corral_quota_change_limits(q, 0, ROLLOUT, 40 * MIB, 42 * MIB, &err), CORRAL_STATE);
    assert_int_equal(corral_quota_ledger(q)->device[0].role[ROLLOUT].ceiling, 46 * MIB);
    assert_int_equal(corral_quota_reserve(q, holder, 1, "test", &err), CORRAL_DENIED);
    check_ok(corral_quota_wait_pressure(q, holder, 0, &wanted, &err));
    assert_int_equal(wanted, 4 * MIB);
    corral_quota_rollback(q, holder, wanted);
    check_ok(corral_quota_change_limits(q, 0, ROLLOUT, 40 * MIB, 42 * MIB, &err));
    assert_int_equal(corral_quota_ledger(q)->device[0].role[ROLLOUT].ceiling, 42 * MIB);
    corral_quota_detach(q);
    close(fd);
}

static void readings_reach_who_asks(void **state)
{
    (void)state;
    int fd;
    struct corral_quota *q = test_node(&fd);
    uint32_t holder;
    uint64_t short_by;
    struct corral_quota_charge charge;
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    corral_quota_set_physical(q, 0, getpid(), 123, 9);
    corral_quota_set_device_physical(q, 0, 1000, 20, 9);
    corral_quota_charge_measured(q, holder, 51 * MIB, CORRAL_KIND_OVERHEAD, &charge, &short_by);
    assert_int_equal(short_by, MIB);
    assert_int_equal(used(q, ROLLOUT), 50 * MIB);
    assert_int_equal(seen.holder[holder].physical, 123);
    assert_int_equal(seen.device[0].physical_foreign, 20);
    corral_quota_drop(q, &charge);
    assert_int_equal(used(q, ROLLOUT), 0);
    corral_quota_detach(q);
    close(fd);
}

#define VICTIMS_MAX 3

/* Charges that are named, imported and let go of, inside a step or not. */
static void share_and_step(struct corral_quota *q, uint32_t holder, struct corral_rng *rng)
{
    const uint64_t key[2] = {corral_rng_below(rng, 4), 1};
    struct corral_quota_charge charge;
    uint32_t share;
    bool stepping =
        corral_rng_below(rng, 2) == 0 && corral_quota_open_step(q, holder, 1, 6 * MIB, NULL) == CORRAL_OK;
    if (corral_quota_take(q, holder, 1000, CORRAL_KIND_VMM, "test", &charge, NULL) == CORRAL_OK) {
        corral_quota_keep(q, &charge);
        corral_quota_export(q, &charge, key, NULL);
        bool imported = corral_quota_import(q, holder, key, &share, NULL) == CORRAL_OK;
        corral_quota_drop(q, &charge);
        if (imported) {
            corral_quota_drop_share(q, share);
        }
    }
    if (stepping) {
        corral_quota_close_step(q, holder, NULL, NULL);
    }
}

/* Reserve, commit, roll back and release at random until killed, counting operations where the parent can see. */
static void victim(int fd, uint64_t seed, _Atomic uint32_t *operations)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct corral_rng rng;
    struct corral_quota *q;
    uint32_t holder;
    corral_rng_seed(&rng, seed);
    if (corral_quota_attach(fd, &q, NULL) != CORRAL_OK ||
        corral_quota_join(q, "a:0", seed % 2 != 0 ? "trainer" : "rollout", &holder, NULL) != CORRAL_OK) {
        _exit(1);
    }
    uint64_t committed = 0;
    for (;;) {
        uint64_t bytes = 1 + corral_rng_below(&rng, MIB);
        if (committed > 4 * MIB) {
            corral_quota_release(q, holder, committed);
            committed = 0;
        } else if (corral_quota_reserve(q, holder, bytes, "test", NULL) == CORRAL_OK) {
            if (bytes % 4 == 0) {
                corral_quota_rollback(q, holder, bytes);
            } else {
                corral_quota_commit(q, holder, bytes);
                committed += bytes;
            }
        }
        share_and_step(q, holder, &rng);
        atomic_fetch_add_explicit(operations, 1, memory_order_relaxed);
    }
}

static pid_t start_victim(int fd, uint64_t seed, _Atomic uint32_t *operations)
{
    atomic_store(operations, 0);
    pid_t child = fork();
    if (child == 0) {
        victim(fd, seed, operations);
    }
    assert_true(child > 0);
    return child;
}

static bool is_holder(struct corral_quota *q, pid_t pid)
{
    corral_quota_snapshot(q, &seen);
    for (uint32_t i = 0; i < seen.holder_high; i++) {
        if (seen.holder[i].pid == pid && !seen.holder[i].left) {
            return true;
        }
    }
    return false;
}

static void kill_at_random(uint32_t victims, uint32_t kills, uint64_t seed)
{
    int fd;
    struct corral_quota *q = test_node(&fd);
    _Atomic uint32_t *operations =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(operations, MAP_FAILED);
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    pid_t child[VICTIMS_MAX];
    uint32_t holder;
    for (uint32_t i = 0; i < victims; i++) {
        child[i] = start_victim(fd, i, &operations[i]);
    }
    check_ok(corral_quota_join(q, "a:0", "rollout", &holder, &err));
    for (uint32_t k = 0; k < kills; k++) {
        uint32_t v = k % victims, target = 1 + (uint32_t)corral_rng_below(&rng, 200);
        while (atomic_load_explicit(&operations[v], memory_order_relaxed) < target) {
            sched_yield();
        }
        for (uint64_t spin = corral_rng_below(&rng, 3000); spin > 0; spin--) {
            atomic_load_explicit(&operations[v],
                                 memory_order_relaxed); /* away from the end of an operation */
        }
        assert_int_equal(kill(child[v], SIGKILL), 0);
        assert_true(WIFSIGNALED(test_wait(child[v])));
        check_ok(corral_quota_reserve(q, holder, 1, "test", &err)); /* the next operation */
        corral_quota_snapshot(q, &seen);
        assert_true(corral_ledger_consistent(&seen));
        corral_quota_rollback(q, holder, 1);
        corral_quota_reap(q); /* if the repair has not done it */
        assert_false(is_holder(q, child[v]));
        child[v] = start_victim(fd, (uint64_t)k + victims, &operations[v]);
    }
    for (uint32_t i = 0; i < victims; i++) {
        kill(child[i], SIGKILL);
        test_wait(child[i]);
    }
    corral_quota_reap(q);
    print_message("%u kills, %u with the lock held\n", kills, corral_quota_repairs(q));
    assert_int_equal(used(q, TRAINER), 0);
    assert_int_equal(used(q, ROLLOUT), 0);
    munmap(operations, 4096);
    corral_quota_detach(q);
    close(fd);
}

static void a_kill_at_any_point_leaves_a_consistent_ledger(void **state)
{
    (void)state;
    kill_at_random(1, 300, 42);
}

static void a_kill_under_contention_leaves_a_consistent_ledger(void **state)
{
    (void)state;
    kill_at_random(VICTIMS_MAX, 150, 43);
}

static int quiet(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL);
    return 0;
}

#define CASE(test) cmocka_unit_test_setup(test, quiet)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(another_process_sees_the_charge),
        CASE(detaching_gives_everything_back),
        CASE(only_a_sealed_ledger_can_be_attached),
        CASE(unknown_names_are_named),
        CASE(a_denial_is_one_structured_line),
        CASE(a_forked_copy_can_neither_take_nor_give_back),
        CASE(a_reaped_slot_is_not_the_old_owners),
        CASE(a_reused_pid_is_not_mistaken_for_life),
        CASE(a_zombie_is_reaped_before_its_parent_waits),
        CASE(the_environment_names_ledger_and_role),
        CASE(a_kept_charge_shows_as_committed),
        CASE(the_dead_are_reaped_before_anyone_is_denied),
        CASE(memory_that_others_map_outlives_its_owner),
        CASE(a_borrower_that_listens_shrinks_before_anyone_is_denied),
        CASE(a_role_above_its_new_ceiling_is_held_and_asked),
        CASE(readings_reach_who_asks),
        CASE(threads_share_one_attachment),
        CASE(a_kill_at_any_point_leaves_a_consistent_ledger),
        CASE(a_kill_under_contention_leaves_a_consistent_ledger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
