#include "tests/check.h"

#include "quota/ledger_internal.h"
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
    corral_ledger_commit(&ledger, t, 9); /* its record is still there; killed between the two halves of it: */
    ledger.pending = PENDING_CHARGE;
    ledger.holder[t].committed = 0;
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
    ledger.pending = UINT32_MAX;
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

/* ---- steps ---- */

static void a_step_books_its_peak_and_cannot_be_denied_it(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), r = join(rollout, 2);
    struct corral_ledger_denial why;
    assert_int_equal(corral_ledger_reserve(&ledger, t, 10 * MIB, NULL), CORRAL_OK);
    check_ok(corral_ledger_open_step(&ledger, t, 5, 50 * MIB, &why, &err));
    assert_int_equal(ledger.device[device].role[trainer].booked, 40 * MIB);
    assert_int_equal(corral_ledger_open_step(&ledger, t, 6, 1, &why, &err), CORRAL_STATE);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 40 * MIB + 1, &why), CORRAL_DENIED);
    assert_int_equal(why.reason, CORRAL_LEDGER_OVER_FLOORS);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 40 * MIB, &why), CORRAL_OK);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 40 * MIB, &why), CORRAL_OK);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 1, &why), CORRAL_DENIED);
    assert_true(corral_ledger_consistent(&ledger));
    struct corral_ledger_window w;
    check_ok(corral_ledger_close_step(&ledger, t, &w, &err));
    assert_int_equal(w.step, 5);
    assert_int_equal(w.declared, 50 * MIB);
    assert_int_equal(w.claim_peak, 100 * MIB);
    assert_int_equal(w.peak[trainer], 50 * MIB);
    assert_int_equal(w.holder_peak, 50 * MIB);
    assert_int_equal(w.denied[trainer], 1);
    assert_int_equal(w.denied[rollout], 1);
    assert_int_equal(ledger.device[device].role[trainer].booked, 0);
    assert_int_equal(corral_ledger_close_step(&ledger, t, &w, &err), CORRAL_STATE);
}

static void a_step_that_would_cross_is_refused(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    struct corral_ledger_denial why;
    assert_int_equal(corral_ledger_open_step(&ledger, t, 1, 50 * MIB + 1, &why, &err), CORRAL_DENIED);
    assert_int_equal(why.reason, CORRAL_LEDGER_OVER_FLOORS);
    assert_int_equal(ledger.device[device].steps_open, 0);
    assert_int_equal(ledger.device[device].role[trainer].denied, 1);
    assert_true(corral_ledger_consistent(&ledger));
}

static void while_a_step_is_open_nobody_borrows(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), r = join(rollout, 2);
    struct corral_ledger_denial why;
    assert_int_equal(corral_ledger_reserve(&ledger, r, 42 * MIB, NULL), CORRAL_OK); /* 2 MiB borrowed */
    check_ok(corral_ledger_open_step(&ledger, t, 1, 20 * MIB, &why, &err));
    assert_int_equal(corral_ledger_reserve(&ledger, r, 1, &why), CORRAL_DENIED);
    assert_int_equal(why.reason, CORRAL_LEDGER_FROZEN);
    assert_int_equal(ledger.device[device].role[rollout].used, 42 * MIB); /* what was borrowed before stays */
    assert_int_equal(corral_ledger_available(&ledger, t), 30 * MIB);      /* booked 20, and up to its floor */
    assert_int_equal(corral_ledger_reserve(&ledger, t, 30 * MIB + 1, &why), CORRAL_DENIED);
    assert_int_equal(why.reason, CORRAL_LEDGER_FROZEN);
    check_ok(corral_ledger_close_step(&ledger, t, NULL, &err));
    assert_int_equal(corral_ledger_reserve(&ledger, r, 1, &why), CORRAL_OK);
}

static void each_of_several_windows_has_its_own_peak(void **state)
{
    (void)state;
    uint32_t one = join(trainer, 1), two = join(trainer, 2);
    struct corral_ledger_window w;
    check_ok(corral_ledger_open_step(&ledger, one, 1, 10, NULL, &err));
    assert_int_equal(corral_ledger_reserve(&ledger, one, 10, NULL), CORRAL_OK);
    corral_ledger_rollback(&ledger, one, 10);
    check_ok(corral_ledger_open_step(&ledger, two, 2, 6, NULL, &err));
    assert_int_equal(corral_ledger_reserve(&ledger, two, 6, NULL), CORRAL_OK);
    corral_ledger_rollback(&ledger, two, 6);
    check_ok(corral_ledger_close_step(&ledger, one, &w, &err));
    assert_int_equal(w.peak[trainer], 10);
    assert_int_equal(w.holder_peak, 10);
    check_ok(corral_ledger_close_step(&ledger, two, &w, &err));
    assert_int_equal(w.peak[trainer], 6);
    assert_int_equal(w.holder_peak, 6);
}

static void leaving_closes_the_step(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    check_ok(corral_ledger_open_step(&ledger, t, 1, 40 * MIB, NULL, &err));
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].steps_open, 0);
    assert_int_equal(ledger.device[device].role[trainer].booked, 0);
    assert_true(corral_ledger_tables_consistent(&ledger));
}

/* ---- tagged charges ---- */

static uint32_t take(uint32_t holder, uint64_t bytes)
{
    uint32_t allocation = CORRAL_LEDGER_NONE;
    assert_int_equal(corral_ledger_take(&ledger, holder, bytes, CORRAL_KIND_VMM, &allocation, NULL),
                     CORRAL_OK);
    return allocation;
}

static void a_charge_is_tagged_with_kind_step_and_phase(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1);
    corral_ledger_set_phase(&ledger, t, 9, CORRAL_PHASE_BACKWARD);
    uint32_t at = take(t, 5);
    const struct corral_ledger_allocation *a = &ledger.allocation[at];
    assert_int_equal(a->step, 9);
    assert_int_equal(a->phase, CORRAL_PHASE_BACKWARD);
    assert_int_equal(a->kind, CORRAL_KIND_VMM);
    assert_int_equal(ledger.holder[t].reserved, 5);
    corral_ledger_keep(&ledger, at);
    assert_int_equal(ledger.holder[t].committed, 5);
    assert_int_equal(corral_ledger_resize(&ledger, at, 50 * MIB + 1, NULL), CORRAL_DENIED);
    assert_int_equal(corral_ledger_resize(&ledger, at, 8, NULL), CORRAL_OK);
    assert_int_equal(ledger.holder[t].kind_bytes[CORRAL_KIND_VMM], 8);
    uint32_t generation = a->generation;
    corral_ledger_give_back(&ledger, at);
    assert_int_equal(take(t, 1), at);
    assert_int_equal(a->generation, generation + 1);
    assert_true(corral_ledger_tables_consistent(&ledger));
}

static void what_was_measured_is_charged_as_far_as_it_fits(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), at;
    assert_int_equal(corral_ledger_take_measured(&ledger, t, 60 * MIB, CORRAL_KIND_OVERHEAD, &at), 50 * MIB);
    assert_int_equal(ledger.holder[t].committed, 50 * MIB);
    assert_true(corral_ledger_consistent(&ledger));
}

static void shared_memory_stays_charged_until_the_last_lets_go(void **state)
{
    (void)state;
    const uint64_t key[2] = {1, 2}, other[2] = {1, 3};
    uint32_t t = join(trainer, 1), r = join(rollout, 2), share, second;
    uint32_t at = take(t, 5 * MIB);
    assert_int_equal(corral_ledger_import(&ledger, r, key, &share, &err), CORRAL_NOT_FOUND);
    check_ok(corral_ledger_export(&ledger, at, key, &err));
    check_ok(corral_ledger_export(&ledger, at, key, &err));
    assert_int_equal(corral_ledger_export(&ledger, take(t, 1), key, &err), CORRAL_EXISTS);
    check_ok(corral_ledger_import(&ledger, r, key, &share, &err));
    check_ok(corral_ledger_import(&ledger, r, key, &second, &err));
    assert_int_equal(corral_ledger_import(&ledger, r, other, &share, &err), CORRAL_NOT_FOUND);
    corral_ledger_give_back(&ledger, at);
    assert_int_equal(ledger.device[device].role[trainer].used, 5 * MIB + 1);
    assert_int_equal(ledger.device[device].role[rollout].used, 0); /* charged once */
    corral_ledger_drop_share(&ledger, share);
    assert_int_equal(ledger.device[device].role[trainer].used, 5 * MIB + 1);
    corral_ledger_drop_share(&ledger, second);
    assert_int_equal(ledger.device[device].role[trainer].used, 1);
    assert_true(corral_ledger_tables_consistent(&ledger));
}

static void a_dead_owners_memory_moves_to_the_importer(void **state)
{
    (void)state;
    const uint64_t key[2] = {1, 2};
    uint32_t t = join(trainer, 1), r = join(rollout, 2), share;
    uint32_t at = take(t, 5 * MIB);
    check_ok(corral_ledger_export(&ledger, at, key, &err));
    check_ok(corral_ledger_import(&ledger, r, key, &share, &err));
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].role[trainer].used, 0);
    assert_int_equal(ledger.device[device].role[rollout].used, 5 * MIB);
    assert_int_equal(ledger.holder[t].pid, 0);
    assert_int_equal(corral_ledger_import(&ledger, r, key, &share, &err), CORRAL_NOT_FOUND);
    corral_ledger_drop_share(&ledger, 1);
    assert_int_equal(ledger.device[device].role[rollout].used, 0);
    assert_true(corral_ledger_tables_consistent(&ledger));
}

static void without_room_it_is_held_for_the_importer(void **state)
{
    (void)state;
    const uint64_t key[2] = {1, 2};
    uint32_t t = join(trainer, 1), r = join(rollout, 2), share;
    uint32_t at = take(t, 5 * MIB), full = take(r, 48 * MIB);
    check_ok(corral_ledger_export(&ledger, at, key, &err));
    check_ok(corral_ledger_import(&ledger, r, key, &share, &err));
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].role[trainer].used,
                     5 * MIB); /* 48 + 5 is over the ceiling of 50 */
    assert_int_equal(ledger.holder[t].left, 1);
    assert_true(corral_ledger_consistent(&ledger));
    corral_ledger_give_back(&ledger, full);
    corral_ledger_leave(&ledger, t); /* what reaping does: there is room now */
    assert_int_equal(ledger.device[device].role[trainer].used, 0);
    assert_int_equal(ledger.device[device].role[rollout].used, 5 * MIB);
    corral_ledger_leave(&ledger, r);
    assert_int_equal(ledger.device[device].role[rollout].used, 0);
    assert_int_equal(ledger.holder_high, 0);
    assert_true(corral_ledger_tables_consistent(&ledger));
}

static void an_importers_open_step_is_not_eaten_by_a_hand_over(void **state)
{
    (void)state;
    const uint64_t key[2] = {1, 2};
    uint32_t t = join(trainer, 1), r = join(rollout, 2), share;
    uint32_t at = take(t, 5 * MIB);
    check_ok(corral_ledger_export(&ledger, at, key, &err));
    check_ok(corral_ledger_import(&ledger, r, key, &share, &err));
    check_ok(corral_ledger_open_step(&ledger, r, 1, 20 * MIB, NULL, &err));
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].role[trainer].used, 5 * MIB);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 20 * MIB, NULL), CORRAL_OK);
    check_ok(corral_ledger_close_step(&ledger, r, NULL, &err));
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].role[rollout].used, 25 * MIB);
}

static void with_the_table_full_charges_go_on_untagged(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), at;
    for (uint32_t i = 0; i < CORRAL_LEDGER_ALLOCATIONS_MAX; i++) {
        assert_int_not_equal(take(t, 1), CORRAL_LEDGER_NONE);
    }
    assert_int_equal(corral_ledger_take(&ledger, t, 3, CORRAL_KIND_ARRAY, &at, NULL), CORRAL_OK);
    assert_int_equal(at, CORRAL_LEDGER_NONE);
    assert_int_equal(ledger.holder[t].kind_bytes[CORRAL_KIND_ARRAY], 3);
    corral_ledger_give_back_untagged(&ledger, t, 3, CORRAL_KIND_ARRAY);
    assert_int_equal(ledger.device[device].role[trainer].used, CORRAL_LEDGER_ALLOCATIONS_MAX);
    corral_ledger_leave(&ledger, t);
    assert_int_equal(ledger.device[device].role[trainer].used, 0);
    assert_true(corral_ledger_tables_consistent(&ledger));
}

/* ---- live limits, pressure ---- */

static void limits_change_live_within_the_rules(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), r = join(rollout, 2);
    assert_int_equal(corral_ledger_reserve(&ledger, t, 50 * MIB, NULL), CORRAL_OK);
    assert_int_equal(corral_ledger_change_limits(&ledger, device, trainer, 30 * MIB, 45 * MIB, &err),
                     CORRAL_STATE);
    assert_non_null(strstr(err.text, "5 MiB have to be given back"));
    assert_int_equal(corral_ledger_change_limits(&ledger, device, rollout, 45 * MIB, 50 * MIB, &err),
                     CORRAL_DENIED);
    assert_int_equal(corral_ledger_change_limits(&ledger, device, rollout, 61 * MIB, 61 * MIB, &err),
                     CORRAL_INVALID);
    assert_int_equal(corral_ledger_change_limits(&ledger, device, rollout, 40 * MIB, 51 * MIB, &err),
                     CORRAL_INVALID); /* 70 + 51 is more than 1.2 times 100 */
    assert_int_equal(corral_ledger_change_limits(&ledger, device, rollout, 2, 1, &err), CORRAL_INVALID);
    assert_int_equal(ledger.device[device].role[rollout].ceiling, 50 * MIB);
    corral_ledger_rollback(&ledger, t, 20 * MIB);
    check_ok(corral_ledger_change_limits(&ledger, device, trainer, 30 * MIB, 45 * MIB, &err));
    check_ok(corral_ledger_change_limits(&ledger, device, rollout, 50 * MIB, 60 * MIB, &err));
    assert_int_equal(corral_ledger_reserve(&ledger, r, 60 * MIB, NULL), CORRAL_OK);
    assert_true(corral_ledger_consistent(&ledger));
}

static void borrowers_are_asked_for_what_they_borrowed(void **state)
{
    (void)state;
    uint32_t r = join(rollout, 2);
    assert_int_equal(corral_ledger_ask(&ledger, device, trainer, 10), 0);
    assert_int_equal(corral_ledger_reserve(&ledger, r, 43 * MIB, NULL), CORRAL_OK);
    assert_int_equal(corral_ledger_ask(&ledger, device, trainer, 10 * MIB), 1u << rollout);
    assert_int_equal(ledger.device[device].role[rollout].wanted, 3 * MIB);
    assert_int_equal(corral_ledger_ask(&ledger, device, trainer, 0), 0);
    assert_int_equal(ledger.device[device].role[rollout].wanted, 0);
}

static void what_is_beside_the_quota_is_counted(void **state)
{
    (void)state;
    uint32_t t = join(trainer, 1), u = join(trainer, 2);
    corral_ledger_count_spilled(&ledger, t, 10);
    corral_ledger_count_spilled(&ledger, u, 5);
    corral_ledger_count_spilled(&ledger, t, -20);
    corral_ledger_count_pinned(&ledger, u, 7);
    assert_int_equal(ledger.device[device].role[trainer].spilled, 5);
    assert_int_equal(ledger.device[device].role[trainer].pinned, 7);
    corral_ledger_leave(&ledger, u);
    assert_int_equal(ledger.device[device].role[trainer].spilled, 0);
    assert_int_equal(ledger.device[device].role[trainer].pinned, 0);
}

static void devices_are_found_by_uuid(void **state)
{
    (void)state;
    static const uint8_t none[16] = {0}, uuid[16] = {1, 2, 3};
    assert_int_equal(corral_ledger_find_uuid(&ledger, none), UINT32_MAX);
    corral_ledger_set_uuid(&ledger, device, uuid);
    assert_int_equal(corral_ledger_find_uuid(&ledger, uuid), device);
    assert_string_equal(corral_ledger_kind_name(CORRAL_KIND_VMM), "vmm");
    assert_string_equal(corral_ledger_phase_name(CORRAL_PHASE_OPTIMIZER), "optimizer");
    assert_string_equal(corral_ledger_phase_name((enum corral_ledger_phase)99), "unknown");
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
        CASE(a_step_books_its_peak_and_cannot_be_denied_it),
        CASE(a_step_that_would_cross_is_refused),
        CASE(while_a_step_is_open_nobody_borrows),
        CASE(each_of_several_windows_has_its_own_peak),
        CASE(leaving_closes_the_step),
        CASE(a_charge_is_tagged_with_kind_step_and_phase),
        CASE(what_was_measured_is_charged_as_far_as_it_fits),
        CASE(shared_memory_stays_charged_until_the_last_lets_go),
        CASE(a_dead_owners_memory_moves_to_the_importer),
        CASE(without_room_it_is_held_for_the_importer),
        CASE(an_importers_open_step_is_not_eaten_by_a_hand_over),
        CASE(with_the_table_full_charges_go_on_untagged),
        CASE(limits_change_live_within_the_rules),
        CASE(borrowers_are_asked_for_what_they_borrowed),
        CASE(what_is_beside_the_quota_is_counted),
        CASE(devices_are_found_by_uuid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
