/* Ranks of one trainer group that come late, and groups that must not mix. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/test_group.h"

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

static uint64_t pushes_at(struct test_group *g, uint32_t i)
{
    struct corral_push_receiver_status s;
    corral_push_receiver_status(g->rx[i], &s);
    return s.pushes;
}

static void start_push(struct test_group *g, uint32_t rank, uint64_t version)
{
    g->tx[rank].version = version;
    g->tx[rank].timeout_ns = 0;
    assert_int_equal(pthread_create(&g->tx[rank].thread, NULL, test_push_thread, &g->tx[rank]), 0);
}

/* Longer than receivers wait for a silent connection: what is declared is the sender's deadline. */
static void a_late_rank_is_waited_for_and_named(void **state)
{
    (void)state;
    const uint64_t silence_ns = CORRAL_NS_PER_S / 5;
    struct test_group g = {.lanes = "tcp", .silence_ns = silence_ns};
    test_group_make(&g, 21, 3, 1, 1, 90000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    test_mesh_fill(&g.mesh, 2);
    uint64_t before = pushes_at(&g, 0);
    start_push(&g, 0, 2);
    start_push(&g, 2, 2);
    while (pushes_at(&g, 0) == before) {
        sched_yield();
    }
    for (uint64_t end = now_ns() + 3 * silence_ns; now_ns() < end;) {
        sched_yield(); /* rank 1 is busy with something else for so long */
    }
    start_push(&g, 1, 2);
    for (uint32_t r = 0; r < 3; r++) {
        pthread_join(g.tx[r].thread, NULL);
    }
    check_applied(&g, 1);
    check_has(&g, 0, 2);
    assert_int_equal(g.tx[0].result.slow_rank, 1);
    assert_true(g.tx[0].result.skew_ns >= 3 * silence_ns);
    test_group_drop(&g);
}

static void a_rank_that_is_too_late_is_named_and_does_not_wait_for_the_others(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = 2 * CORRAL_NS_PER_S};
    test_group_make(&g, 22, 2, 1, 1, 90000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    test_mesh_fill(&g.mesh, 2);
    test_push_ranks(&g, 2, 0, 0, 1);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "rank 1 has not begun version 2"));
    assert_int_equal(g.tx[0].result.slow_rank, 1);
    assert_true(g.tx[0].result.skew_ns > 0);
    uint64_t begun = pushes_at(&g, 0);
    test_push_ranks(&g, 2, 0, 1, 2); /* here it comes, and is told that it is over */
    assert_int_equal(g.tx[1].result.applied, 0);
    assert_int_equal(pushes_at(&g, 0), begun);
    test_push(&g, 2); /* all of them, once more */
    check_applied(&g, 1);
    check_has(&g, 0, 2);
    test_group_drop(&g);
}

/* A second group's senders beside the first's: `other` has the mesh and the receivers of `g`. */
static void make_other(struct test_group *other, const struct test_group *g, uint64_t group)
{
    *other = *g;
    other->group = group;
    for (uint32_t r = 0; r < g->senders; r++) {
        other->tx[r] = (struct test_sender){.sender = NULL};
        test_sender_create(other, r);
        for (uint32_t i = 0; i < g->receivers; i++) {
            test_add(other, r, i, "");
        }
    }
}

static void drop_other(struct test_group *other)
{
    for (uint32_t r = 0; r < other->senders; r++) {
        corral_push_sender_destroy(other->tx[r].sender);
    }
}

static void a_second_group_of_the_same_generation_is_refused_while_the_first_is_there(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = 3 * CORRAL_NS_PER_S}, other;
    test_group_make(&g, 23, 2, 1, 1, 60000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    make_other(&other, &g, 0);
    test_push(&other, 2);
    check_status(other.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(other.tx[0].err.text, "second trainer group"));
    check_has(&g, 0, 1);
    test_mesh_fill(&g.mesh, 3);
    test_push(&g, 3); /* the first goes on, over the connections it had */
    check_applied(&g, 1);
    check_has(&g, 0, 3);
    drop_other(&other);
    test_group_drop(&g);
}

/* Only one rank of each is there: nothing but the groups' numbers tells them apart. */
static void ranks_of_two_groups_never_make_one_version(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = 3 * CORRAL_NS_PER_S, .group = 1}, other;
    test_group_make(&g, 24, 2, 1, 1, 60000, "");
    make_other(&other, &g, 2);
    start_push(&g, 0, 1);
    start_push(&other, 1, 1);
    pthread_join(g.tx[0].thread, NULL);
    pthread_join(other.tx[1].thread, NULL);
    assert_int_equal(g.target[0].begun, 0);
    check_has(&g, 0, 0);
    drop_other(&other);
    test_push(&g, 1);
    check_applied(&g, 1);
    test_group_drop(&g);
}

static void a_group_that_is_started_again_takes_the_place_of_one_that_is_gone(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"}, other;
    test_group_make(&g, 25, 2, 1, 1, 60000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    make_other(&other, &g, 0);
    drop_other(&g);
    memcpy(g.tx, other.tx, sizeof g.tx);
    test_mesh_fill(&g.mesh, 2);
    test_push(&g, 2);
    check_applied(&g, 1);
    check_has(&g, 0, 2);
    test_group_drop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_late_rank_is_waited_for_and_named),
        cmocka_unit_test(a_rank_that_is_too_late_is_named_and_does_not_wait_for_the_others),
        cmocka_unit_test(a_second_group_of_the_same_generation_is_refused_while_the_first_is_there),
        cmocka_unit_test(ranks_of_two_groups_never_make_one_version),
        cmocka_unit_test(a_group_that_is_started_again_takes_the_place_of_one_that_is_gone),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "push_group_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
