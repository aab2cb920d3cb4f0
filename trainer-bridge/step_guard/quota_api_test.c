/* <corral/quota.h> from outside: the agent's side is here, the program's in quota_api_program.c. */
#include "base/file.h"
#include "quota/proof/verify.h"
#include "tests/check.h"
#include "trainer-bridge/step_guard/step_guard.h"
#include <corral/quota.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static char folder[64], path[96];
static struct corral_error err;
static struct corral_quota *agent;
static int fd;

static int setup(void **state)
{
    (void)state;
    struct corral_quota_options options = {.pressure_wait_ms = 5000};
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    uint32_t out;
    strcpy(folder, "/tmp/corral-api.XXXXXX");
    if (!mkdtemp(folder) || !plan) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/chain", folder);
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(plan, "rollout", &out, &err));
    check_ok(corral_ledger_add_device(plan, "a:0", 100 * MIB, 10 * MIB, &out, &err));
    check_ok(corral_ledger_add_device(plan, "a:1", 100 * MIB, 10 * MIB, &out, &err));
    corral_ledger_set_uuid(plan, 1, (const uint8_t[16]){1, 2, 3});
    check_ok(corral_ledger_set_limits(plan, 1, 0, 20 * MIB, 60 * MIB, &err));
    check_ok(corral_ledger_set_limits(plan, 0, 0, 20 * MIB, 60 * MIB, &err));
    check_ok(corral_ledger_set_limits(plan, 0, 1, 20 * MIB, 60 * MIB, &err));
    check_ok(corral_ledger_check_plan(plan, 1.3, &err));
    check_ok(corral_quota_create(plan, &options, &fd, &agent, &err));
    free(plan);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    corral_quota_detach(agent);
    close(fd);
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static void surround(uint32_t role, bool trainer)
{
    char ledger[64], token[33];
    snprintf(ledger, sizeof ledger, "/proc/%d/fd/%d", (int)getppid(), fd);
    corral_quota_token(agent, role, token);
    setenv(CORRAL_QUOTA_ENV_LEDGER, ledger, 1);
    setenv(CORRAL_QUOTA_ENV_TOKEN, token, 1);
    setenv(CORRAL_QUOTA_ENV_DEVICE, "a:0", 1);
    if (trainer) {
        setenv(CORRAL_PROOF_ENV_CHAIN, path, 1);
        setenv(CORRAL_PROOF_ENV_RUN, "123", 1);
        setenv(CORRAL_PROOF_ENV_RANK, "2", 1);
    }
}

static int result_of(pid_t child)
{
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void outside_a_quota_there_is_nothing_to_open(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        unsetenv(CORRAL_QUOTA_ENV_LEDGER);
        unsetenv(CORRAL_QUOTA_ENV_TOKEN);
        execl(PROGRAM, PROGRAM, "none", NULL);
        _exit(127);
    }
    assert_int_equal(result_of(child), 0);
}

static void a_trainer_outside_leaves_a_chain_that_verifies(void **state)
{
    (void)state;
    for (uint32_t life = 1; life <= 2; life++) {
        pid_t child = fork();
        if (child == 0) {
            surround(0, true);
            execl(PROGRAM, PROGRAM, "steps", "25", NULL);
            _exit(127);
        }
        assert_int_equal(result_of(child), 0);
        static struct corral_proof_summary s;
        check_ok(corral_proof_verify(path, NULL, 0, &s, &err));
        assert_string_equal(s.broken, "");
        assert_int_equal(s.steps, 25);
        assert_int_equal(s.proven, 25);
        assert_int_equal(s.refused, life);
        assert_int_equal(s.rank, 2);
        assert_int_equal(s.run, 123);
        assert_int_equal(s.generation, life);
        assert_true(s.ended);
    }
}

static void a_process_sees_what_it_may_take(void **state)
{
    (void)state;
    int out[2];
    assert_int_equal(pipe(out), 0);
    pid_t child = fork();
    if (child == 0) {
        surround(1, false);
        dup2(out[1], STDOUT_FILENO);
        execl(PROGRAM, PROGRAM, "state", NULL);
        _exit(127);
    }
    close(out[1]);
    char line[200] = "";
    ssize_t n = read(out[0], line, sizeof line - 1);
    close(out[0]);
    assert_int_equal(result_of(child), 0);
    assert_true(n > 0);
    assert_string_equal(line, "a:0 rollout 20971520 62914560 0 62914560 0\n");
}

static void borrowers_hear_of_pressure(void **state)
{
    (void)state;
    int out[2], in[2];
    assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(in, O_CLOEXEC), 0);
    uint32_t trainer, rollout;
    check_ok(corral_quota_join(agent, "a:0", "rollout", &rollout, &err));
    check_ok(corral_quota_join(agent, "a:0", "trainer", &trainer, &err));
    check_ok(corral_quota_reserve(agent, rollout, 55 * MIB, "cache", &err)); /* 35 above its floor */
    corral_quota_commit(agent, rollout, 55 * MIB);
    pid_t child = fork();
    if (child == 0) {
        surround(1, false);
        dup2(out[1], STDOUT_FILENO);
        dup2(in[0], STDIN_FILENO);
        execl(PROGRAM, PROGRAM, "pressure", NULL);
        _exit(127);
    }
    close(out[1]);
    close(in[0]);
    FILE *said = fdopen(out[0], "r");
    char line[64];
    assert_non_null(fgets(line, sizeof line, said));
    assert_string_equal(line, "listening\n");
    pid_t waiter = fork(); /* 55 are taken, 10 are headroom: 40 more have to wait for the borrower */
    if (waiter == 0) {
        struct corral_quota *q = NULL;
        uint32_t h;
        bool asked = corral_quota_attach(fd, &q, NULL) == CORRAL_OK &&
                     corral_quota_join(q, "a:0", "trainer", &h, NULL) == CORRAL_OK;
        (void)!(asked && corral_quota_reserve(q, h, 40 * MIB, "waits", NULL) == CORRAL_OK);
        corral_quota_detach(q);
        _exit(0);
    }
    assert_non_null(fgets(line, sizeof line, said));
    assert_true(strtoull(line, NULL, 10) > 0);
    corral_quota_release(agent, rollout, 55 * MIB); /* as the engine would */
    assert_int_equal(result_of(waiter), 0);
    close(in[1]);
    assert_int_equal(result_of(child), 0);
    fclose(said);
}

/* A trainer on a GPU that asks for its limits before it touches the driver; the second attachment is the interposer in its process. */
static int trainer_on_gpu(void)
{
    struct corral_quota_client *q = NULL;
    struct corral_quota *interposer = NULL;
    struct corral_quota_state s = {.size = sizeof s};
    struct corral_step_result result = {.size = sizeof result};
    struct corral_quota_charge charge;
    uint32_t role, theirs;
    surround(0, true);
    setenv(CORRAL_QUOTA_ENV_DEVICE, "a:1", 1);
    if (corral_quota_open(&q, &err) != CORRAL_OK || corral_quota_state(q, &s, &err) != CORRAL_OK) {
        return 2;
    }
    if (corral_step_begin(q, 1, 0, &err) != CORRAL_STATE) {
        return 3; /* nobody would charge what the step takes */
    }
    if (corral_quota_attach_environment(&interposer, &role, &err) != CORRAL_OK ||
        corral_quota_join_index(interposer, 1, role, &theirs, &err) != CORRAL_OK ||
        corral_step_begin(q, 1, 50 * MIB, &err) != CORRAL_OK) {
        return 4;
    }
    /* Beyond its floor while borrowing is frozen: only what the step has booked. */
    if (corral_quota_take(interposer, theirs, 45 * MIB, CORRAL_KIND_DEVICE, "cuMemAlloc_v2", &charge, &err) !=
            CORRAL_OK ||
        corral_quota_state(q, &s, &err) != CORRAL_OK || s.available != 5 * MIB) {
        return 5;
    }
    if (corral_step_end(q, &result, &err) != CORRAL_OK || result.peak != 45 * MIB) {
        return 6;
    }
    corral_quota_close(q);
    corral_quota_detach(interposer);
    return 0;
}

static void steps_on_a_gpu_are_those_of_the_interposers_account(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        _exit(trainer_on_gpu());
    }
    assert_int_equal(WEXITSTATUS(result_of(child)), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(outside_a_quota_there_is_nothing_to_open),
        T(a_trainer_outside_leaves_a_chain_that_verifies),
        T(a_process_sees_what_it_may_take),
        T(borrowers_hear_of_pressure),
        T(steps_on_a_gpu_are_those_of_the_interposers_account),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
