#include "orchestrator/agent/limits.h"
#include "tests/check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
enum { TRAINER, ROLLOUT };

struct node {
    struct corral_quota *q;
    int fd;
    struct corral_limits limits;
};

/* Two devices of 100 MiB, headroom 10, overcommit 1.2: every byte of floors and ceilings is given away. */
static int setup(void **state)
{
    struct node *n = calloc(1, sizeof *n);
    struct corral_ledger *plan = calloc(1, corral_ledger_bytes());
    struct corral_error err;
    uint32_t out;
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(plan, "rollout", &out, &err));
    for (uint32_t d = 0; d < 2; d++) {
        check_ok(corral_ledger_add_device(plan, d ? "a:1" : "a:0", 100 * MIB, 10 * MIB, &out, &err));
        check_ok(corral_ledger_set_limits(plan, d, TRAINER, 50 * MIB, 70 * MIB, &err));
        check_ok(corral_ledger_set_limits(plan, d, ROLLOUT, 40 * MIB, 50 * MIB, &err));
    }
    check_ok(corral_ledger_check_plan(plan, 1.2, &err));
    check_ok(corral_quota_create(plan, NULL, &n->fd, &n->q, &err));
    free(plan);
    *state = n;
    return 0;
}

static int teardown(void **state)
{
    struct node *n = *state;
    corral_quota_detach(n->q);
    close(n->fd);
    free(n);
    return 0;
}

static const struct corral_ledger_role *role(const struct node *n, uint32_t device, uint32_t r)
{
    return &corral_quota_ledger(n->q)->device[device].role[r];
}

static void check_limits(const struct node *n, uint32_t r, uint64_t low, uint64_t high)
{
    for (uint32_t d = 0; d < 2; d++) {
        assert_int_equal(role(n, d, r)->floor, low * MIB);
        assert_int_equal(role(n, d, r)->ceiling, high * MIB);
    }
}

/* 0: leave it. */
static struct corral_limit_change change_of(const char *name, uint64_t low, uint64_t high)
{
    struct corral_limit_change c = {
        .set_floor = low > 0, .floor = low * MIB, .set_ceiling = high > 0, .ceiling = high * MIB};
    snprintf(c.role, sizeof c.role, "%s", name);
    return c;
}

static void takes_a_ceiling_down_and_up_on_every_device(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    struct corral_limit_change down = change_of("rollout", 0, 45), up = change_of("rollout", 0, 50);
    check_ok(corral_limits_plan(n->q, &down, 1, &n->limits, &err));
    assert_int_equal(n->limits.count, 2);
    check_ok(corral_limits_prepare(&n->limits, &err));
    check_ok(corral_limits_commit(&n->limits, &err));
    check_limits(n, ROLLOUT, 40, 45);
    check_ok(corral_limits_plan(n->q, &up, 1, &n->limits, &err));
    check_ok(corral_limits_prepare(&n->limits, &err));
    check_limits(n, ROLLOUT, 40, 45); /* nothing that could need taking back happens before the commit */
    check_ok(corral_limits_commit(&n->limits, &err));
    check_limits(n, ROLLOUT, 40, 50);
}

static void moves_floors_and_ceilings_between_roles_in_one_change(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    /* Neither half of it would fit alone. */
    struct corral_limit_change both[] = {change_of("rollout", 60, 80), change_of("trainer", 30, 40)};
    assert_int_equal(corral_limits_plan(n->q, both, 1, &n->limits, &err), CORRAL_INVALID);
    check_ok(corral_limits_plan(n->q, both, 2, &n->limits, &err));
    check_ok(corral_limits_prepare(&n->limits, &err));
    check_ok(corral_limits_commit(&n->limits, &err));
    check_limits(n, ROLLOUT, 60, 80);
    check_limits(n, TRAINER, 30, 40);
}

static void refuses_what_the_plan_would_refuse(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    const struct corral_limit_change bad[] = {change_of("rollout", 0, 51), change_of("rollout", 41, 0),
                                              change_of("rollout", 0, 39), change_of("nobody", 0, 10)};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        assert_int_equal(corral_limits_plan(n->q, &bad[i], 1, &n->limits, &err),
                         i == 3 ? CORRAL_NOT_FOUND : CORRAL_INVALID);
        assert_true(strlen(err.text) > 10);
    }
    struct corral_limit_change huge = change_of("rollout", 0, 50);
    huge.set_floor = true;
    huge.floor = huge.ceiling = UINT64_MAX;
    assert_int_equal(corral_limits_plan(n->q, &huge, 1, &n->limits, &err), CORRAL_INVALID);
    check_limits(n, ROLLOUT, 40, 50);
    check_limits(n, TRAINER, 50, 70);
}

static void holds_a_role_that_uses_more_until_it_gives_back(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    uint32_t h;
    check_ok(corral_quota_join(n->q, "a:1", "rollout", &h, &err));
    check_ok(corral_quota_reserve(n->q, h, 38 * MIB, "cache", &err));
    corral_quota_commit(n->q, h, 38 * MIB);
    struct corral_limit_change down = change_of("rollout", 30, 36);
    check_ok(corral_limits_plan(n->q, &down, 1, &n->limits, &err));
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_STATE);
    assert_non_null(strstr(err.text, "38 MiB"));
    assert_int_equal(role(n, 1, ROLLOUT)->wanted, 2 * MIB);
    /* Until it has, its floor stays its own; nothing above it is let out. */
    assert_int_equal(role(n, 1, ROLLOUT)->floor, 40 * MIB);
    assert_int_equal(role(n, 1, ROLLOUT)->ceiling, 40 * MIB);
    corral_quota_release(n->q, h, MIB);
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_STATE);
    corral_quota_release(n->q, h, 7 * MIB);
    check_ok(corral_limits_prepare(&n->limits, &err));
    check_ok(corral_limits_commit(&n->limits, &err));
    check_limits(n, ROLLOUT, 30, 36);
    assert_int_equal(role(n, 1, ROLLOUT)->wanted, 0);
}

static void undone_everything_is_as_before(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    uint32_t h;
    check_ok(corral_quota_join(n->q, "a:1", "rollout", &h, &err));
    check_ok(corral_quota_reserve(n->q, h, 38 * MIB, "cache", &err));
    struct corral_limit_change both[] = {change_of("rollout", 20, 36), change_of("trainer", 60, 75)};
    check_ok(corral_limits_plan(n->q, both, 2, &n->limits, &err));
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_STATE);
    check_ok(corral_limits_undo(&n->limits, &err));
    check_limits(n, ROLLOUT, 40, 50);
    check_limits(n, TRAINER, 50, 70);
    assert_int_equal(role(n, 1, ROLLOUT)->wanted, 0); /* nobody is asked for anything any more */
    corral_quota_rollback(n->q, h, 8 * MIB);
    check_ok(corral_limits_prepare(&n->limits, &err));
    assert_int_equal(role(n, 0, TRAINER)->floor, 60 * MIB);
    check_ok(corral_limits_undo(&n->limits, &err)); /* prepared in full, another node refused */
    check_limits(n, ROLLOUT, 40, 50);
    check_limits(n, TRAINER, 50, 70);
    check_ok(corral_quota_reserve(n->q, h, 8 * MIB, "cache", &err));
}

static void a_floor_waits_for_those_who_have_borrowed_its_room(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    uint32_t h;
    /* The trainer gives up some of its floor; rollout's grows only once the trainer, who uses it, gives back. */
    check_ok(corral_quota_join(n->q, "a:0", "trainer", &h, &err));
    check_ok(corral_quota_reserve(n->q, h, 45 * MIB, "model", &err));
    struct corral_limit_change both[] = {change_of("trainer", 40, 0), change_of("rollout", 50, 0)};
    check_ok(corral_limits_plan(n->q, both, 2, &n->limits, &err));
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_STATE);
    check_limits(n, TRAINER, 50, 70); /* what could not be moved together has not moved at all */
    assert_int_equal(role(n, 0, ROLLOUT)->floor, 40 * MIB);
    check_ok(corral_limits_undo(&n->limits, &err));
    assert_int_equal(role(n, 0, TRAINER)->wanted, 0);
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_STATE);
    corral_quota_rollback(n->q, h, 5 * MIB);
    check_ok(corral_limits_prepare(&n->limits, &err));
    check_ok(corral_limits_commit(&n->limits, &err));
    check_limits(n, TRAINER, 40, 70);
    check_limits(n, ROLLOUT, 50, 50);
}

static enum corral_status deaf_fence(void *ctx, uint32_t device, uint32_t r, uint64_t ceiling,
                                     struct corral_error *err)
{
    uint32_t *calls = ctx;
    (void)r, (void)ceiling;
    return ++*calls && device == 1 ? corral_fail(err, CORRAL_IO, "the kernel said no") : CORRAL_OK;
}

static void a_second_fence_that_refuses_refuses_the_change(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    uint32_t calls = 0;
    struct corral_limit_change down = change_of("rollout", 0, 45);
    check_ok(corral_limits_plan(n->q, &down, 1, &n->limits, &err));
    n->limits.fence = deaf_fence;
    n->limits.fence_ctx = &calls;
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_IO);
    assert_string_equal(err.text, "the kernel said no");
    assert_int_equal(calls, 2);
    n->limits.fence = NULL;
    check_ok(corral_limits_undo(&n->limits, &err));
    check_limits(n, ROLLOUT, 40, 50);
}

static void a_second_fence_that_refuses_more_refuses_it_before_the_commit(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    uint32_t calls = 0;
    struct corral_limit_change both[] = {change_of("rollout", 0, 60), change_of("trainer", 0, 60)};
    check_ok(corral_limits_plan(n->q, both, 2, &n->limits, &err));
    n->limits.fence = deaf_fence;
    n->limits.fence_ctx = &calls;
    assert_int_equal(corral_limits_prepare(&n->limits, &err), CORRAL_IO);
    n->limits.fence = NULL;
    check_ok(corral_limits_undo(&n->limits, &err));
    check_limits(n, ROLLOUT, 40, 50);
    check_limits(n, TRAINER, 50, 70);
}

static enum corral_status note_fence(void *ctx, uint32_t device, uint32_t r, uint64_t ceiling,
                                     struct corral_error *err)
{
    uint64_t *limit = ctx;
    (void)err;
    limit[2 * device + r] = ceiling / MIB;
    return CORRAL_OK;
}

static void the_second_fence_is_put_back_with_the_rest(void **state)
{
    struct node *n = *state;
    struct corral_error err;
    uint64_t limit[4] = {70, 50, 70, 50};
    struct corral_limit_change both[] = {change_of("rollout", 0, 60), change_of("trainer", 0, 60)};
    check_ok(corral_limits_plan(n->q, both, 2, &n->limits, &err));
    n->limits.fence = note_fence;
    n->limits.fence_ctx = limit;
    check_ok(corral_limits_prepare(&n->limits, &err));
    assert_int_equal(limit[ROLLOUT], 60);
    check_ok(corral_limits_undo(&n->limits, &err)); /* another node refused */
    const uint64_t before[4] = {70, 50, 70, 50};
    assert_memory_equal(limit, before, sizeof before);
}

/* A node that is ready at once must still be ready when the slowest one is, or half of the change would be made. */
static void a_prepared_node_waits_as_long_as_the_others_may_take(void **state)
{
    const uint64_t s = UINT64_C(1000000000);
    (void)state;
    assert_true(corral_limits_hold_until(100 * s, 700 * s) > 710 * s);
    assert_true(corral_limits_hold_until(100 * s, 100 * s) > 110 * s);
    assert_true(corral_limits_hold_until(100 * s, 99 * s) > 110 * s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(takes_a_ceiling_down_and_up_on_every_device, setup, teardown),
        cmocka_unit_test_setup_teardown(moves_floors_and_ceilings_between_roles_in_one_change, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(refuses_what_the_plan_would_refuse, setup, teardown),
        cmocka_unit_test_setup_teardown(holds_a_role_that_uses_more_until_it_gives_back, setup, teardown),
        cmocka_unit_test_setup_teardown(undone_everything_is_as_before, setup, teardown),
        cmocka_unit_test_setup_teardown(a_floor_waits_for_those_who_have_borrowed_its_room, setup, teardown),
        cmocka_unit_test_setup_teardown(a_second_fence_that_refuses_refuses_the_change, setup, teardown),
        cmocka_unit_test_setup_teardown(a_second_fence_that_refuses_more_refuses_it_before_the_commit, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_second_fence_is_put_back_with_the_rest, setup, teardown),
        cmocka_unit_test(a_prepared_node_waits_as_long_as_the_others_may_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
