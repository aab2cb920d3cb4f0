#include "tests/check.h"

#include "base/rng.h"
#include "worker/fragment_share.h"

#define CASES 20000

static struct corral_fragment_share random_share(struct corral_rng *rng, uint64_t *batch, uint64_t *fragment)
{
    struct corral_fragment_share s = {
        .workers = 1 + (uint32_t)corral_rng_below(rng, 40),
        .trainers = 1 + (uint32_t)corral_rng_below(rng, 24),
    };
    *batch = corral_rng_below(rng, 5000);
    *fragment = 1 + corral_rng_below(rng, 300);
    s.per_step = corral_fragment_per_step(s.workers, s.trainers, *batch, *fragment);
    return s;
}

static void the_round_is_the_smallest_that_deals_evenly_and_fills_the_batch(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    for (int i = 0; i < CASES; i++) {
        uint64_t batch, fragment, expected = 1;
        struct corral_fragment_share s = random_share(&rng, &batch, &fragment);
        while ((expected * s.workers) % s.trainers != 0 || expected * s.workers * fragment < batch) {
            expected++;
        }
        assert_int_equal(s.per_step, expected);
    }
    assert_int_equal(corral_fragment_per_step(1, 1, 0, 1), 1);
    assert_int_equal(corral_fragment_per_step(5, 6, 0, 128), 6);
    assert_int_equal(corral_fragment_per_step(1, 1, UINT64_MAX, 1), UINT32_MAX);
    assert_int_equal(corral_fragment_per_step(3, 1, UINT64_MAX, 7), UINT32_MAX);
    assert_int_equal(corral_fragment_per_step(1, 3, UINT64_MAX, UINT64_MAX - 1), 3);
}

static void quotas_add_up(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    for (int i = 0; i < CASES / 40; i++) {
        uint64_t batch, fragment, all = 0;
        struct corral_fragment_share s = random_share(&rng, &batch, &fragment);
        for (uint32_t rank = 0; rank < s.trainers; rank++) {
            uint64_t of_rank = 0;
            for (uint32_t w = 0; w < s.workers; w++) {
                of_rank += corral_fragment_quota(&s, w, rank);
            }
            assert_int_equal(of_rank * s.trainers,
                             (uint64_t)s.per_step * s.workers); /* every rank the same */
            all += of_rank;
        }
        assert_int_equal(all, (uint64_t)s.per_step * s.workers);
        for (uint32_t w = 0; w < s.workers; w++) {
            uint32_t of_worker = 0;
            for (uint32_t rank = 0; rank < s.trainers; rank++) {
                of_worker += corral_fragment_quota(&s, w, rank);
            }
            assert_int_equal(of_worker, s.per_step);
        }
    }
}

/* What the senders do, counted at the receivers: after every round each rank has what it waits for, no more and no less. */
static void both_ends_agree(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    for (int i = 0; i < CASES / 100; i++) {
        uint64_t batch, fragment;
        struct corral_fragment_share s = random_share(&rng, &batch, &fragment);
        uint32_t worker = (uint32_t)corral_rng_below(&rng, s.workers);
        uint64_t first = corral_rng_below(&rng, 1000) * s.per_step;
        uint32_t got[24] = {0};
        for (uint64_t number = first; number < first + s.per_step; number++) {
            uint32_t rank = corral_fragment_rank(&s, worker, number);
            assert_true(rank < s.trainers);
            got[rank]++;
        }
        for (uint32_t rank = 0; rank < s.trainers; rank++) {
            assert_int_equal(got[rank], corral_fragment_quota(&s, worker, rank));
        }
    }
}

static void large_numbers_do_not_wrap(void **state)
{
    (void)state;
    const struct corral_fragment_share s = {.workers = 1024, .trainers = 3, .per_step = 6};
    for (uint64_t k = 0; k < 6; k++) {
        uint64_t number = UINT64_C(6) * (UINT64_MAX / 6 - 1) + k;
        assert_int_equal(corral_fragment_rank(&s, 1023, number), corral_fragment_rank(&s, 1023, k));
    }
    const struct corral_fragment_share wide = {.workers = 1024, .trainers = 7, .per_step = 7 * 1000000};
    assert_int_equal(corral_fragment_rank(&wide, 5, 6999999), (UINT64_C(6999999) * 1024 + 5) % 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_round_is_the_smallest_that_deals_evenly_and_fills_the_batch),
        cmocka_unit_test(quotas_add_up),
        cmocka_unit_test(both_ends_agree),
        cmocka_unit_test(large_numbers_do_not_wrap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
