#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/groups.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define G 4
#define GROUPS 200
#define SECOND UINT64_C(1000000000)

static struct corral_groups *make(struct corral_groups_config c)
{
    struct corral_error err;
    struct corral_groups *g;
    check_ok(corral_groups_create(&g, &c, &err));
    return g;
}

static enum corral_group_fate add(struct corral_groups *g, uint64_t id, uint32_t index, double score,
                                  uint64_t now)
{
    struct corral_error err;
    enum corral_group_fate fate;
    struct corral_group_item item = {.index = index, .score = score, .tokens = 1};
    check_ok(corral_groups_add(g, id, &item, now, &fate, &err));
    return fate;
}

static enum corral_group_fate lose(struct corral_groups *g, uint64_t id, uint32_t index, uint64_t now)
{
    struct corral_error err;
    enum corral_group_fate fate;
    check_ok(corral_groups_fail(g, id, index, now, &fate, &err));
    return fate;
}

static double score_of(uint64_t id, uint32_t index)
{
    return (double)(corral_seed_derive(id, index, 0, 0) % 3);
}

static void shuffle(struct corral_rng *rng, uint32_t *order, uint32_t n, uint32_t within)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = i + (uint32_t)corral_rng_below(rng, CORRAL_MIN(within, n - i)), swap = order[i];
        order[i] = order[k];
        order[k] = swap;
    }
}

/* Whatever the order of arrival, ordered groups come out by id, with the same completions by index, and the same verdicts. */
static void the_same_completions_in_any_order_give_the_same_groups(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    for (int round = 0; round < 50; round++) {
        struct corral_groups *g = make((struct corral_groups_config){
            .group_size = G, .groups_max = 32, .ordered = true, .drop_flat = round % 2 == 0, .first = 1000});
        static uint32_t order[G * GROUPS], back[G * GROUPS];
        uint32_t held_back = 0, out = 0;
        for (uint32_t i = 0; i < G * GROUPS; i++) {
            order[i] = i;
        }
        shuffle(&rng, order, G * GROUPS, 1 + (uint32_t)corral_rng_below(&rng, 500));
        for (uint32_t i = 0; i < G * GROUPS || (held_back > 0 && i < 2 * G * GROUPS); i++) {
            if (i < G * GROUPS) {
                back[held_back++] = order[i];
            }
            for (uint32_t k = 0; k < held_back;) { /* what is beyond the window is added again */
                uint32_t id = back[k] / G, index = back[k] % G;
                enum corral_group_fate fate = add(g, 1000 + id, index, score_of(id, index), 0);
                assert_true(fate == CORRAL_GROUP_KEPT || fate == CORRAL_GROUP_BEYOND);
                if (fate == CORRAL_GROUP_KEPT) {
                    back[k] = back[--held_back];
                } else {
                    k++;
                }
            }
            struct corral_group group;
            struct corral_group_item items[G];
            while (corral_groups_next(g, 0, &group, items)) {
                assert_int_equal(group.id, 1000 + out);
                assert_int_equal(group.count, G);
                bool flat = true;
                for (uint32_t k = 0; k < G; k++) {
                    assert_int_equal(items[k].index, k);
                    assert_true(items[k].score == score_of(out, k));
                    flat = flat && score_of(out, k) == score_of(out, 0);
                }
                assert_int_equal(group.flat, flat);
                assert_int_equal(group.verdict,
                                 flat && round % 2 == 0 ? CORRAL_GROUP_FLAT : CORRAL_GROUP_COMPLETE);
                out++;
            }
        }
        assert_int_equal(out, GROUPS);
        assert_int_equal(held_back, 0);
        assert_int_equal(corral_groups_position(g), 1000 + GROUPS);
        corral_groups_destroy(g);
    }
}

/* Random adds, failures and deadlines against counting by hand: nothing is lost, nothing comes out twice. */
static void every_completion_comes_out_once_or_is_refused(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    for (int round = 0; round < 100; round++) {
        bool ordered = round % 2 == 0;
        struct corral_groups_config c = {.group_size = G,
                                         .group_min = 1 + (uint32_t)corral_rng_below(&rng, G),
                                         .groups_max = 1 + (uint32_t)corral_rng_below(&rng, 9),
                                         .replacements_max = (uint32_t)corral_rng_below(&rng, 3),
                                         .deadline_ns = 40,
                                         .ordered = ordered};
        struct corral_groups *g = make(c);
        uint32_t kept = 0, came = 0, asked = 0, groups = 0;
        uint64_t next_id = 0, id, now = 0;
        uint32_t index;
        for (; now < 1500; now++) {
            id = corral_rng_below(&rng, 4) + (ordered ? corral_groups_position(g) : now / 10);
            index = (uint32_t)corral_rng_below(&rng, G);
            if (corral_rng_below(&rng, 5) == 0) {
                lose(g, id, index, now);
            } else {
                kept += add(g, id, index, 0, now) == CORRAL_GROUP_KEPT;
            }
            while (corral_groups_replacement(g, &id, &index)) {
                asked++;
                assert_true(index < G);
            }
            struct corral_group group;
            struct corral_group_item items[G];
            while (corral_groups_next(g, now, &group, items)) {
                assert_true(!ordered || group.id == next_id);
                next_id++;
                groups++;
                came += group.count;
                assert_int_equal(group.verdict, group.count == G             ? CORRAL_GROUP_COMPLETE
                                                : group.count >= c.group_min ? CORRAL_GROUP_SHORT
                                                                             : CORRAL_GROUP_TOO_FEW);
                for (uint32_t k = 1; k < group.count; k++) {
                    assert_true(items[k].index > items[k - 1].index);
                }
                assert_int_equal(add(g, group.id, 0, 0, now), CORRAL_GROUP_LATE);
            }
            assert_true(corral_groups_deadline(g) > now);
        }
        struct corral_groups_stats s;
        corral_groups_stats(g, &s);
        assert_int_equal(kept, came + s.held);
        assert_int_equal(groups, s.complete + s.shortened + s.too_few);
        assert_int_equal(asked, s.asked);
        assert_true(groups > 20 && s.open <= c.groups_max);
        corral_groups_destroy(g);
    }
}

static void a_failed_completion_is_asked_for_again_and_then_given_up(void **state)
{
    (void)state;
    struct corral_groups *g = make((struct corral_groups_config){
        .group_size = 2, .group_min = 1, .groups_max = 2, .replacements_max = 1});
    struct corral_group group;
    struct corral_group_item items[2];
    uint64_t id;
    uint32_t index;
    assert_int_equal(add(g, 7, 0, 1, 0), CORRAL_GROUP_KEPT);
    assert_int_equal(lose(g, 7, 1, 0), CORRAL_GROUP_KEPT);
    assert_true(corral_groups_replacement(g, &id, &index));
    assert_true(id == 7 && index == 1);
    assert_false(corral_groups_replacement(g, &id, &index));
    assert_false(corral_groups_next(g, 0, &group, items));
    assert_int_equal(lose(g, 7, 1, 0), CORRAL_GROUP_KEPT); /* the replacement failed too */
    assert_false(corral_groups_replacement(g, &id, &index));
    assert_true(corral_groups_next(g, 0, &group, items));
    assert_int_equal(group.verdict, CORRAL_GROUP_SHORT);
    assert_int_equal(add(g, 7, 1, 1, 0), CORRAL_GROUP_LATE);
    assert_int_equal(lose(g, 7, 1, 0), CORRAL_GROUP_LATE);
    assert_int_equal(add(g, 8, 1, 1, 0), CORRAL_GROUP_KEPT);
    assert_int_equal(add(g, 8, 1, 1, 0), CORRAL_GROUP_SURPLUS);
    assert_int_equal(lose(g, 8, 1, 0),
                     CORRAL_GROUP_SURPLUS); /* it is here: a failure of a copy means nothing */
    assert_int_equal(add(g, 9, 0, 1, 0), CORRAL_GROUP_KEPT);
    assert_int_equal(add(g, 10, 0, 1, 0), CORRAL_GROUP_BEYOND);
    corral_groups_destroy(g);
}

static void a_group_that_is_overdue_is_decided_even_when_nothing_of_it_came(void **state)
{
    (void)state;
    struct corral_groups *g = make((struct corral_groups_config){
        .group_size = 2, .group_min = 2, .groups_max = 4, .deadline_ns = 5 * SECOND, .ordered = true});
    struct corral_group group;
    struct corral_group_item items[2];
    uint64_t id;
    uint32_t have, need;
    assert_false(corral_groups_waiting_for(g, &id, &have, &need));
    assert_int_equal(add(g, 2, 0, 1, SECOND), CORRAL_GROUP_KEPT);
    assert_int_equal(add(g, 2, 1, 3, SECOND), CORRAL_GROUP_KEPT);
    assert_true(corral_groups_waiting_for(g, &id, &have, &need));
    assert_true(id == 0 && have == 0 && need == 2);
    assert_int_equal(add(g, 1, 0, 1, 2 * SECOND), CORRAL_GROUP_KEPT);
    assert_false(corral_groups_next(g, 5 * SECOND, &group, items));
    assert_true(corral_groups_deadline(g) == 6 * SECOND);
    for (uint64_t want = 0; want < 2; want++) {
        assert_true(corral_groups_next(g, 6 * SECOND, &group, items));
        assert_true(group.id == want && group.verdict == CORRAL_GROUP_TOO_FEW && group.count == want);
    }
    assert_true(corral_groups_next(g, 6 * SECOND, &group, items));
    assert_true(group.id == 2 && group.verdict == CORRAL_GROUP_COMPLETE && !group.flat);
    assert_true(group.mean == 2 && fabs(group.deviation - sqrt(2)) < 1e-12);
    assert_true(corral_groups_deadline(g) == UINT64_MAX);
    corral_groups_destroy(g);
}

static void what_waits_beyond_the_window_waits_with_a_deadline(void **state)
{
    (void)state;
    struct corral_groups *g = make((struct corral_groups_config){
        .group_size = 1, .groups_max = 4, .deadline_ns = 5 * SECOND, .ordered = true});
    struct corral_group group;
    struct corral_group_item item;
    uint64_t now = SECOND;
    assert_int_equal(add(g, 10, 0, 1, now), CORRAL_GROUP_BEYOND); /* nothing of 0 to 9 ever comes */
    assert_true(corral_groups_deadline(g) == 6 * SECOND);
    for (uint32_t out = 0; add(g, 10, 0, 1, now) == CORRAL_GROUP_BEYOND;) {
        assert_true(corral_groups_deadline(g) != UINT64_MAX);
        now = corral_groups_deadline(g);
        assert_true(now <= 16 * SECOND);
        for (; corral_groups_next(g, now, &group, &item); out++) {
            assert_true(group.id == out && group.verdict == CORRAL_GROUP_TOO_FEW);
        }
    }
    while (corral_groups_next(g, now += SECOND, &group, &item) && group.id < 10) {
    }
    assert_true(group.id == 10 || corral_groups_deadline(g) != UINT64_MAX);
    corral_groups_destroy(g);
}

static void groups_that_came_out_before_a_restart_are_passed_over(void **state)
{
    (void)state;
    const uint64_t skip[] = {5, 6, 8};
    struct corral_groups *g = make((struct corral_groups_config){
        .group_size = 1, .groups_max = 4, .ordered = true, .first = 4, .skip = skip, .skip_count = 3});
    struct corral_group group;
    struct corral_group_item item;
    assert_int_equal(add(g, 7, 0, 1, 0), CORRAL_GROUP_KEPT);
    assert_false(corral_groups_next(g, 0, &group, &item));
    assert_int_equal(add(g, 6, 0, 1, 0), CORRAL_GROUP_SURPLUS);
    assert_int_equal(add(g, 8, 0, 1, 0), CORRAL_GROUP_BEYOND);
    assert_int_equal(add(g, 4, 0, 1, 0), CORRAL_GROUP_KEPT);
    assert_true(corral_groups_next(g, 0, &group, &item) && group.id == 4);
    assert_true(corral_groups_next(g, 0, &group, &item) && group.id == 7);
    assert_false(corral_groups_next(g, 0, &group, &item));
    assert_int_equal(add(g, 9, 0, 1, 0), CORRAL_GROUP_KEPT);
    assert_true(corral_groups_next(g, 0, &group, &item) && group.id == 9);
    corral_groups_destroy(g);
}

static void refuses_what_is_out_of_range(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_groups *g;
    enum corral_group_fate fate;
    struct corral_groups_config wrong[] = {
        {.group_size = 0, .groups_max = 1},
        {.group_size = 2, .groups_max = 0},
        {.group_size = 2, .group_min = 3, .groups_max = 1},
        {.group_size = CORRAL_GROUP_SIZE_MAX + 1, .groups_max = 1},
        {.group_size = 4096, .groups_max = 4096},
        {.group_size = 2, .groups_max = 1, .flat_within = NAN},
        {.group_size = 2, .groups_max = 1, .replacements_max = 256},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(wrong); i++) {
        check_status(corral_groups_create(&g, &wrong[i], &err), CORRAL_INVALID);
    }
    g = make((struct corral_groups_config){.group_size = 2, .groups_max = 1});
    struct corral_group_item item = {.index = 2};
    check_status(corral_groups_add(g, 1, &item, 0, &fate, &err), CORRAL_INVALID);
    item = (struct corral_group_item){.index = 1, .score = NAN};
    check_status(corral_groups_add(g, 1, &item, 0, &fate, &err), CORRAL_INVALID);
    check_status(corral_groups_fail(g, 1, 2, 0, &fate, &err), CORRAL_INVALID);
    corral_groups_destroy(g);
    corral_groups_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_completions_in_any_order_give_the_same_groups),
        cmocka_unit_test(every_completion_comes_out_once_or_is_refused),
        cmocka_unit_test(a_failed_completion_is_asked_for_again_and_then_given_up),
        cmocka_unit_test(a_group_that_is_overdue_is_decided_even_when_nothing_of_it_came),
        cmocka_unit_test(what_waits_beyond_the_window_waits_with_a_deadline),
        cmocka_unit_test(groups_that_came_out_before_a_restart_are_passed_over),
        cmocka_unit_test(refuses_what_is_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
