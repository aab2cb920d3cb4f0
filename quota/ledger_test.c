#include "tests/check.h"

#include "quota/ledger.h"
#include <stdio.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)

static struct corral_ledger ledger;
static struct corral_error err;
static uint32_t device, trainer, rollout;

static int plan(void **state)
{
    (void)state;
    corral_ledger_init(&ledger);
    check_ok(corral_ledger_add_role(&ledger, "trainer", &trainer, &err));
    check_ok(corral_ledger_add_role(&ledger, "rollout", &rollout, &err));
    check_ok(corral_ledger_add_device(&ledger, "a:0", 100 * MIB, 10 * MIB, &device, &err));
    check_ok(corral_ledger_set_limits(&ledger, device, trainer, 30 * MIB, 70 * MIB, &err));
    check_ok(corral_ledger_set_limits(&ledger, device, rollout, 40 * MIB, 50 * MIB, &err));
    check_ok(corral_ledger_check_plan(&ledger, 1.2, &err));
    return 0;
}

static uint32_t join(uint32_t role, pid_t pid)
{
    uint32_t holder = UINT32_MAX;
    check_ok(corral_ledger_join(&ledger, device, role, pid, 7, &holder, &err));
    return holder;
}

static void an_unspent_floor_is_never_lent(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    struct corral_ledger_denial why;
    /* 100 - 10 headroom - 40 rollout floor: 50 is all the trainer gets, though its ceiling is 70. */
    assert_int_equal(corral_ledger_available(&ledger, t), 50 * MIB);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 50 * MIB + 1, &why), CORRAL_DENIED);
    assert_int_equal(why.reason, CORRAL_LEDGER_OVER_FLOORS);
    assert_int_equal(why.available, 50 * MIB);
    assert_int_equal(why.bytes, 50 * MIB + 1);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 50 * MIB, &why), CORRAL_OK);
    uint32_t r = join(rollout, 2);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 40 * MIB, &why), CORRAL_OK);
    assert_true(corral_ledger_consistent(&ledger));
    assert_int_equal(ledger.device[device].role[trainer].denied, 1);
}

static void a_ceiling_stops_growth_even_when_memory_is_free(void **state)
{
    (void)state;
    uint32_t r = join(rollout, 2);
    struct corral_ledger_denial why;
    assert_int_equal(corral_ledger_reserve(&ledger, r, 50 * MIB, &why), CORRAL_OK);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 1, &why), CORRAL_DENIED);
    assert_int_equal(why.reason, CORRAL_LEDGER_OVER_CEILING);
    assert_int_equal(why.available, 0);
}

static void sizes_near_the_end_of_the_type_are_denied(void **state)
{
    (void)state;
    uint32_t r = join(rollout, 2);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 1, NULL), CORRAL_OK);
    assert_int_equal(corral_ledger_reserve(&ledger, r, UINT64_MAX, NULL), CORRAL_DENIED);
    assert_int_equal(corral_ledger_reserve(&ledger, r, UINT64_MAX - 1, NULL), CORRAL_DENIED);
    assert_true(corral_ledger_consistent(&ledger));
}

static void charges_follow_the_life_of_an_allocation(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    const struct corral_ledger_role *role = &ledger.device[device].role[trainer];
    assert_int_equal(corral_ledger_reserve(&ledger, t, 9, NULL), CORRAL_OK);
    corral_ledger_commit(&ledger, t, 5);
    corral_ledger_rollback(&ledger, t, 4);
    assert_int_equal(role->used, 5);
    assert_int_equal(role->peak, 9);
    corral_ledger_release(&ledger, t, 5);
    assert_int_equal(role->used, 0);
    corral_ledger_reset_peaks(&ledger);
    assert_int_equal(role->peak, 0);
}

static void leaving_returns_every_charge(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 9, NULL), CORRAL_OK);
    corral_ledger_commit(&ledger, t, 5);
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].role[trainer].used, 0);
    assert_int_equal(ledger.holder_high, 0);
    assert_true(corral_ledger_consistent(&ledger));
}

static void a_slot_taken_again_has_a_new_generation(void **state)
{
    (void)state;
    uint32_t first = join(trainer, 1);
    uint32_t generation = ledger.holder[first].generation;
    corral_ledger_leave(&ledger, first);
    assert_int_equal(join(trainer, 3), first);
    assert_int_equal(ledger.holder[first].generation, generation + 1);
}

static void repair_finishes_the_pending_change(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 9, NULL), CORRAL_OK);
    ledger.pending_reserved = 0;
    ledger.pending_committed = 9;
    ledger.pending_holder = t + 1;
    ledger.holder[t].reserved = 0; /* killed between the two halves of a commit */
    assert_false(corral_ledger_consistent(&ledger));
    corral_ledger_repair(&ledger);
    assert_true(corral_ledger_consistent(&ledger));
    assert_int_equal(ledger.holder[t].committed, 9);
}

static void repair_survives_a_damaged_table(void **state)
{
    (void)state;
    join(trainer, 1);
    ledger.holder[0].role = UINT32_MAX;
    ledger.holder_high = UINT32_MAX;
    ledger.pending_holder = UINT32_MAX;
    corral_ledger_repair(&ledger);
    assert_false(corral_ledger_consistent(&ledger));
    corral_ledger_leave(&ledger, 0);
    assert_int_equal(ledger.holder[0].pid, 0);
}

static void inconsistency_is_seen(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 9, NULL), CORRAL_OK);
    ledger.device[device].role[trainer].used++;
    assert_false(corral_ledger_consistent(&ledger));
    corral_ledger_repair(&ledger);
    assert_true(corral_ledger_consistent(&ledger));
    ledger.holder[t].committed = 60 * MIB; /* eats the rollout floor */
    corral_ledger_repair(&ledger);
    assert_false(corral_ledger_consistent(&ledger));
}

static void slack_is_what_is_physically_left(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), r = join(rollout, 2);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 50 * MIB, NULL), CORRAL_OK);
    assert_int_equal(corral_ledger_slack(&ledger, device, rollout), 40 * MIB);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 15 * MIB, NULL), CORRAL_OK);
    assert_int_equal(corral_ledger_slack(&ledger, device, rollout), 25 * MIB);
}

static void an_impossible_plan_is_refused_with_what_would_fit(void **state)
{
    (void)state;
    check_ok(corral_ledger_set_limits(&ledger, device, trainer, 55 * MIB, 70 * MIB, &err));
    assert_int_equal(corral_ledger_check_plan(&ledger, 1.2, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "a:0"));
    assert_non_null(strstr(err.text, "5 MiB more"));
    assert_non_null(strstr(err.text, "at most 90 MiB"));
    check_ok(corral_ledger_set_limits(&ledger, device, trainer, 30 * MIB, 71 * MIB, &err));
    assert_int_equal(corral_ledger_check_plan(&ledger, 1.2, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "1 MiB more"));
    check_ok(corral_ledger_set_limits(&ledger, device, trainer, 30 * MIB, 20 * MIB, &err));
    assert_int_equal(corral_ledger_check_plan(&ledger, 1.2, &err), CORRAL_INVALID);
    check_ok(corral_ledger_set_limits(&ledger, device, trainer, UINT64_MAX, UINT64_MAX, &err));
    assert_int_equal(corral_ledger_check_plan(&ledger, 1.2, &err), CORRAL_INVALID);
    check_ok(corral_ledger_set_limits(&ledger, device, trainer, 30 * MIB, 70 * MIB, &err));
    assert_int_equal(corral_ledger_check_plan(&ledger, 0.9, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_check_plan(&ledger, 1.4, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_check_plan(&ledger, 0.0 / 0.0, &err), CORRAL_INVALID);
    check_ok(corral_ledger_check_plan(&ledger, 1.2, &err));
}

static void tables_and_names_have_limits(void **state)
{
    (void)state;
    char name[64];
    uint32_t out;
    memset(name, 'x', sizeof name);
    name[CORRAL_LEDGER_NAME_MAX] = '\0';
    assert_int_equal(corral_ledger_add_role(&ledger, name, &out, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_add_role(&ledger, "", &out, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_add_role(&ledger, "rollout", &out, &err), CORRAL_EXISTS);
    assert_int_equal(corral_ledger_add_device(&ledger, "a:0", 1, 0, &out, &err), CORRAL_EXISTS);
    assert_int_equal(corral_ledger_add_device(&ledger, "a:1", 1, 2, &out, &err), CORRAL_INVALID);
    for (uint32_t i = 1; i < CORRAL_LEDGER_DEVICES_MAX; i++) {
        snprintf(name, sizeof name, "b:%u", i);
        check_ok(corral_ledger_add_device(&ledger, name, 1, 0, &out, &err));
        assert_int_equal(out, i);
    }
    assert_int_equal(corral_ledger_add_device(&ledger, "c:0", 1, 0, &out, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_find_device(&ledger, "b:9"), 9);
    assert_int_equal(corral_ledger_find_device(&ledger, "z:9"), UINT32_MAX);
    assert_int_equal(corral_ledger_find_role(&ledger, "rollout"), rollout);
}

static void joining_needs_a_place_and_a_free_slot(void **state)
{
    (void)state;
    uint32_t out, eval;
    check_ok(corral_ledger_add_role(&ledger, "eval", &eval, &err));
    assert_int_equal(corral_ledger_join(&ledger, device, eval, 1, 0, &out, &err), CORRAL_NOT_FOUND);
    assert_int_equal(corral_ledger_join(&ledger, device, 9, 1, 0, &out, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_join(&ledger, 9, trainer, 1, 0, &out, &err), CORRAL_INVALID);
    assert_int_equal(corral_ledger_join(&ledger, device, trainer, 0, 0, &out, &err), CORRAL_INVALID);
    for (int i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        join(trainer, i + 1);
    }
    assert_int_equal(corral_ledger_join(&ledger, device, trainer, 1000, 0, &out, &err), CORRAL_NOMEM);
    assert_int_equal(corral_ledger_set_limits(&ledger, device, trainer, 0, 1, &err), CORRAL_STATE);
}

#define CASE(test) cmocka_unit_test_setup(test, plan)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(an_unspent_floor_is_never_lent),
        CASE(a_ceiling_stops_growth_even_when_memory_is_free),
        CASE(sizes_near_the_end_of_the_type_are_denied),
        CASE(charges_follow_the_life_of_an_allocation),
        CASE(leaving_returns_every_charge),
        CASE(a_slot_taken_again_has_a_new_generation),
        CASE(repair_finishes_the_pending_change),
        CASE(repair_survives_a_damaged_table),
        CASE(inconsistency_is_seen),
        CASE(slack_is_what_is_physically_left),
        CASE(an_impossible_plan_is_refused_with_what_would_fit),
        CASE(tables_and_names_have_limits),
        CASE(joining_needs_a_place_and_a_free_slot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
