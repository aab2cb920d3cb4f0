/* A small planned node for the tests of this folder: device a:0 of 100 MiB, 10 MiB headroom, a trainer and a rollout role. */
#ifndef CORRAL_QUOTA_TEST_NODE_H
#define CORRAL_QUOTA_TEST_NODE_H

#include "quota/shared.h"
#include "tests/check.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>

#define MIB (UINT64_C(1) << 20)
#define TRAINER 0
#define ROLLOUT 1

static inline struct corral_quota *test_node_with(uint64_t physical, uint64_t trainer_ceiling,
                                                  uint32_t pressure_wait_ms, int *fd)
{
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    struct corral_quota_options options = {.pressure_wait_ms = pressure_wait_ms};
    assert_non_null(plan);
    struct corral_error err;
    struct corral_quota *q = NULL;
    uint32_t out;
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(plan, "rollout", &out, &err));
    check_ok(corral_ledger_add_device(plan, "a:0", physical, 10 * MIB, &out, &err));
    check_ok(corral_ledger_set_limits(plan, 0, TRAINER, 30 * MIB, trainer_ceiling, &err));
    check_ok(corral_ledger_set_limits(plan, 0, ROLLOUT, 40 * MIB, 50 * MIB, &err));
    check_ok(corral_ledger_check_plan(plan, 1.3, &err));
    check_ok(corral_quota_create(plan, &options, fd, &q, &err));
    free(plan);
    return q;
}

static inline struct corral_quota *test_node_sized(uint64_t physical, uint64_t trainer_ceiling, int *fd)
{
    return test_node_with(physical, trainer_ceiling, 0, fd);
}

static inline struct corral_quota *test_node(int *fd)
{
    return test_node_sized(100 * MIB, 70 * MIB, fd);
}

static inline int test_wait(pid_t pid)
{
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

#endif
