/* Holders seen and used through another attachment of the same process, room, and charges that are measured afterwards. */
#include "quota/test_node.h"
#include <string.h>
#include <unistd.h>

static struct corral_error err;
static struct corral_quota *agent, *first, *second;
static uint32_t holder;
static int fd;

static int setup(void **state)
{
    (void)state;
    agent = test_node(&fd);
    check_ok(corral_quota_attach(fd, &first, &err));
    check_ok(corral_quota_attach(fd, &second, &err));
    check_ok(corral_quota_join(first, "a:0", "trainer", &holder, &err));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    corral_quota_detach(second);
    corral_quota_detach(first);
    corral_quota_detach(agent);
    close(fd);
    return 0;
}

static uint64_t denied(void)
{
    return corral_quota_ledger(agent)->device[0].role[TRAINER].denied;
}

static void a_holder_is_borrowed_by_another_attachment_of_the_process(void **state)
{
    (void)state;
    uint32_t borrowed = 99, again = 99;
    struct corral_ledger_holder h;
    assert_int_equal(corral_quota_borrow_holder(second, 0, ROLLOUT, &borrowed, &err), CORRAL_NOT_FOUND);
    assert_int_equal(corral_quota_borrow_holder(second, 7, TRAINER, &borrowed, &err), CORRAL_NOT_FOUND);
    assert_int_equal(borrowed, 99);
    assert_false(corral_quota_read_holder(second, holder, &h)); /* not before it is borrowed */
    check_ok(corral_quota_borrow_holder(second, 0, TRAINER, &borrowed, &err));
    check_ok(corral_quota_borrow_holder(second, 0, TRAINER, &again, &err));
    assert_int_equal(borrowed, holder);
    assert_int_equal(again, holder);
    check_ok(corral_quota_reserve(second, borrowed, 5 * MIB, "borrowed", &err));
    corral_quota_commit(second, borrowed, 5 * MIB);
    assert_true(corral_quota_read_holder(first, holder, &h));
    assert_int_equal(h.committed, 5 * MIB);
}

static void what_is_borrowed_is_left_by_its_owner_alone(void **state)
{
    (void)state;
    uint32_t borrowed;
    struct corral_ledger_holder h;
    check_ok(corral_quota_borrow_holder(second, 0, TRAINER, &borrowed, &err));
    check_ok(corral_quota_reserve(first, holder, MIB, "owner", &err));
    corral_quota_commit(first, holder, MIB);
    corral_quota_detach(second);
    second = NULL;
    assert_true(corral_quota_read_holder(first, holder, &h));
    assert_int_equal(h.committed, MIB);
    check_ok(corral_quota_attach(fd, &second, &err));
    check_ok(corral_quota_borrow_holder(second, 0, TRAINER, &borrowed, &err));
    corral_quota_detach(first);
    first = NULL;
    assert_false(corral_quota_read_holder(second, borrowed, &h)); /* it has gone with its owner */
    assert_int_equal(corral_quota_reserve(second, borrowed, MIB, "gone", &err), CORRAL_STATE);
    assert_int_equal(corral_quota_borrow_holder(second, 0, TRAINER, &borrowed, &err), CORRAL_NOT_FOUND);
    check_ok(corral_quota_attach(fd, &first, &err));
}

static void a_forked_child_borrows_nothing_of_its_parent(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        struct corral_quota *mine = NULL;
        uint32_t found;
        bool none = corral_quota_attach(fd, &mine, NULL) == CORRAL_OK &&
                    corral_quota_borrow_holder(mine, 0, TRAINER, &found, NULL) == CORRAL_NOT_FOUND;
        _exit(none ? 0 : 1);
    }
    assert_int_equal(test_wait(child), 0);
}

static void room_is_what_a_newcomer_could_take(void **state)
{
    (void)state;
    uint32_t rollout;
    assert_int_equal(corral_quota_room(second, 0, TRAINER), 50 * MIB); /* 100 - headroom - rollout's floor */
    assert_int_equal(corral_quota_room(second, 0, ROLLOUT), 50 * MIB); /* its ceiling */
    check_ok(corral_quota_join(second, "a:0", "rollout", &rollout, &err));
    check_ok(corral_quota_reserve(second, rollout, 45 * MIB, "burst", &err));
    assert_int_equal(corral_quota_room(second, 0, TRAINER), 45 * MIB);
    assert_int_equal(corral_quota_room(second, 0, ROLLOUT), 5 * MIB);
    uint64_t room = corral_quota_room(second, 0, TRAINER);
    assert_int_equal(corral_quota_reserve(first, holder, room + 1, "one more", &err), CORRAL_DENIED);
    check_ok(corral_quota_reserve(first, holder, room, "all of it", &err));
    assert_int_equal(corral_quota_room(second, 0, TRAINER), 0);
    assert_int_equal(corral_quota_room(second, 7, TRAINER), 0);
    assert_int_equal(corral_quota_room(second, UINT32_MAX, TRAINER), 0);
    assert_int_equal(corral_quota_room(second, 0, UINT32_MAX), 0);
}

static void what_was_measured_is_charged_as_far_as_there_is_room(void **state)
{
    (void)state;
    struct corral_quota_charge charge;
    struct corral_ledger_holder h;
    uint64_t short_by = 1;
    corral_quota_charge_measured(first, holder, 4 * MIB, CORRAL_KIND_OVERHEAD, &charge, &short_by);
    assert_int_equal(short_by, 0);
    corral_quota_resize_measured(first, &charge, 9 * MIB, &short_by);
    assert_int_equal(short_by, 0);
    assert_int_equal(charge.bytes, 9 * MIB);
    corral_quota_resize_measured(first, &charge, 60 * MIB, &short_by);
    assert_int_equal(short_by, 10 * MIB);
    assert_int_equal(charge.bytes, 50 * MIB);
    corral_quota_resize_measured(first, &charge, 3 * MIB, &short_by);
    assert_int_equal(short_by, 0);
    assert_int_equal(charge.bytes, 3 * MIB);
    assert_true(corral_quota_read_holder(first, holder, &h));
    assert_int_equal(h.committed + h.reserved, 3 * MIB);
    assert_int_equal(h.kind_bytes[CORRAL_KIND_OVERHEAD], 3 * MIB);
    assert_int_equal(denied(), 0); /* measuring is not asking */
    corral_quota_drop(first, &charge);
    assert_int_equal(corral_quota_ledger(agent)->device[0].role[TRAINER].used, 0);
}

static void a_charge_of_another_s_holder_is_not_resized(void **state)
{
    (void)state;
    struct corral_quota_charge charge;
    uint64_t short_by = 0;
    corral_quota_charge_measured(first, holder, 4 * MIB, CORRAL_KIND_OVERHEAD, &charge, &short_by);
    corral_quota_resize_measured(second, &charge, 9 * MIB, &short_by);
    assert_int_equal(short_by, 5 * MIB);
    assert_int_equal(charge.bytes, 4 * MIB);
    assert_int_equal(corral_quota_ledger(agent)->device[0].role[TRAINER].used, 4 * MIB);
    corral_quota_drop(first, &charge);
}

static void a_rehearsal_is_refused_and_not_counted(void **state)
{
    (void)state;
    uint32_t borrowed;
    check_ok(corral_quota_borrow_holder(second, 0, TRAINER, &borrowed, &err));
    corral_quota_mark_rehearsing(second, borrowed, true);
    assert_int_equal(corral_quota_reserve(first, holder, 90 * MIB, "rehearsed", &err), CORRAL_DENIED);
    assert_int_equal(denied(), 0);
    check_ok(corral_quota_reserve(first, holder, MIB, "within", &err));
    corral_quota_rollback(first, holder, MIB);
    corral_quota_mark_rehearsing(second, borrowed, false);
    assert_int_equal(corral_quota_reserve(first, holder, 90 * MIB, "in earnest", &err), CORRAL_DENIED);
    assert_int_equal(denied(), 1);
    uint32_t rollout;
    check_ok(corral_quota_join(first, "a:0", "rollout", &rollout, &err));
    corral_quota_mark_rehearsing(second, rollout, true); /* not its own, not borrowed */
    assert_int_equal(corral_quota_reserve(first, rollout, 90 * MIB, "in earnest", &err), CORRAL_DENIED);
    assert_int_equal(corral_quota_ledger(agent)->device[0].role[ROLLOUT].denied, 1);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_holder_is_borrowed_by_another_attachment_of_the_process),
        T(what_is_borrowed_is_left_by_its_owner_alone),
        T(a_forked_child_borrows_nothing_of_its_parent),
        T(room_is_what_a_newcomer_could_take),
        T(what_was_measured_is_charged_as_far_as_there_is_room),
        T(a_charge_of_another_s_holder_is_not_resized),
        T(a_rehearsal_is_refused_and_not_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
