#include "base/error.h"
#include "base/rng.h"
#include "tests/check.h"
#include <math.h>
#include <stdbool.h>

static void splitmix64_gives_the_published_sequence(void **state)
{
    (void)state;
    static const uint64_t expected[] = {UINT64_C(6457827717110365317), UINT64_C(3203168211198807973),
                                        UINT64_C(9817491932198370423), UINT64_C(4593380528125082431),
                                        UINT64_C(16408922859458223821)};
    uint64_t s = 1234567;
    for (size_t i = 0; i < CORRAL_COUNT_OF(expected); i++) {
        assert_true(corral_splitmix64(&s) == expected[i]);
    }
}

static void xoshiro256pp_gives_the_published_sequence(void **state)
{
    (void)state;
    static const uint64_t expected[] = {UINT64_C(41943041),
                                        UINT64_C(58720359),
                                        UINT64_C(3588806011781223),
                                        UINT64_C(3591011842654386),
                                        UINT64_C(9228616714210784205),
                                        UINT64_C(9973669472204895162),
                                        UINT64_C(14011001112246962877),
                                        UINT64_C(12406186145184390807),
                                        UINT64_C(15849039046786891736),
                                        UINT64_C(10450023813501588000)};
    struct corral_rng rng = {.s = {1, 2, 3, 4}};
    for (size_t i = 0; i < CORRAL_COUNT_OF(expected); i++) {
        assert_true(corral_rng_next(&rng) == expected[i]);
    }
}

static void seeding_and_draws_never_change(void **state)
{
    (void)state;
    /* Recorded once. A change here breaks the replay of every earlier run. */
    struct corral_rng rng;
    corral_rng_seed(&rng, 42);
    assert_true(corral_rng_next(&rng) == UINT64_C(15021278609987233951));
    assert_true(corral_rng_uniform(&rng) == 0x1.467905d15dbccp-2);
    assert_true(corral_rng_uniformf(&rng) == 0x1.f7c0f80000000p-1f);
    assert_true(corral_rng_range(&rng, -2.0, 3.0) == 0x1.81741ce040390p+0);
    assert_true(corral_rng_below(&rng, 1000) == 793);
    assert_true(corral_rng_normal(&rng) == 0x1.dfa7fb0e60da8p-3);
    assert_true(corral_seed_derive(42, 1, 2, 3) == UINT64_C(4591807362961508349));
}

static void a_copied_state_continues_the_same_sequence(void **state)
{
    (void)state;
    struct corral_rng a;
    corral_rng_seed(&a, 7);
    for (int i = 0; i < 17; i++) {
        corral_rng_normal(&a);
    }
    struct corral_rng b = a;
    for (int i = 0; i < 1000; i++) {
        assert_true(corral_rng_normal(&a) == corral_rng_normal(&b));
    }
    assert_memory_equal(&a, &b, sizeof a);
}

static void derived_seeds_differ_in_every_coordinate(void **state)
{
    (void)state;
    enum { SIDE = 8, COUNT = SIDE * SIDE * SIDE * 2 };
    static uint64_t seeds[COUNT];
    size_t n = 0;
    for (uint64_t seed = 0; seed < 2; seed++) {
        for (uint64_t i = 0; i < SIDE * SIDE * SIDE; i++) {
            seeds[n++] = corral_seed_derive(seed, i / 64, i / 8 % 8, i % 8);
        }
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_true(seeds[i] != seeds[j]);
        }
    }
}

static void below_is_in_range_and_even(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    uint32_t counts[6] = {0};
    for (int i = 0; i < 60000; i++) {
        const uint64_t v = corral_rng_below(&rng, 6);
        assert_true(v < 6);
        counts[v]++;
    }
    for (int i = 0; i < 6; i++) {
        assert_in_range(counts[i], 9600, 10400); /* four standard deviations are 365 */
    }
    assert_int_equal(corral_rng_below(&rng, 1), 0);
    /* A quarter of the draws is rejected for this n; without that, half of the results would be multiples of three. */
    const uint64_t n = UINT64_C(3) << 62;
    int multiples = 0;
    for (int i = 0; i < 30000; i++) {
        const uint64_t v = corral_rng_below(&rng, n);
        assert_true(v < n);
        multiples += v % 3 == 0;
    }
    assert_in_range(multiples, 9600, 10400);
}

static void uniforms_stay_below_one_and_centre_on_a_half(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    double sum = 0.0;
    double sumf = 0.0;
    for (int i = 0; i < 100000; i++) {
        const double u = corral_rng_uniform(&rng);
        const float f = corral_rng_uniformf(&rng);
        assert_true(u >= 0.0 && u < 1.0 && f >= 0.0f && f < 1.0f);
        sum += u;
        sumf += (double)f;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005);
    assert_true(fabs(sumf / 100000 - 0.5) < 0.005);
    /* The largest draw is still below one. */
    struct corral_rng top = {.s = {0, 0, 0, 0}};
    top.s[0] = UINT64_MAX;
    top.s[3] = 0; /* rotl(~0, 23) + ~0 = ~0 - 1 */
    assert_true(corral_rng_uniform(&top) < 1.0);
}

static void normals_have_the_right_moments(void **state)
{
    (void)state;
    enum { N = 200000 };
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    double m1 = 0.0, m2 = 0.0, m3 = 0.0, m4 = 0.0;
    for (int i = 0; i < N; i++) {
        const double x = corral_rng_normal(&rng);
        m1 += x;
        m2 += x * x;
        m3 += x * x * x;
        m4 += x * x * x * x;
    }
    assert_true(fabs(m1 / N) < 0.01);
    assert_true(fabs(m2 / N - 1.0) < 0.02);
    assert_true(fabs(m3 / N) < 0.04);
    assert_true(fabs(m4 / N - 3.0) < 0.12);
}

static void normals_agree_with_libm_to_the_last_bits(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 4);
    for (int i = 0; i < 20000; i++) {
        struct corral_rng again = rng;
        const double got = corral_rng_normal(&rng);
        double u, v, r;
        do {
            u = 2.0 * corral_rng_uniform(&again) - 1.0;
            v = 2.0 * corral_rng_uniform(&again) - 1.0;
            r = u * u + v * v;
        } while (r >= 1.0 || r == 0.0);
        const double expected = u * sqrt(-2.0 * log(r) / r);
        assert_true(fabs(got - expected) <= 4e-15 * fabs(expected));
    }
}

static void a_permutation_holds_each_index_once(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (uint32_t n = 0; n <= 50; n++) {
        uint32_t order[50];
        bool seen[50] = {false};
        corral_rng_permutation(&rng, order, n);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(order[i] < n && !seen[order[i]]);
            seen[order[i]] = true;
        }
    }
}

static void every_permutation_of_three_is_as_likely(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 6);
    uint32_t counts[27] = {0};
    for (int i = 0; i < 60000; i++) {
        uint32_t p[3];
        corral_rng_permutation(&rng, p, 3);
        counts[p[0] * 9 + p[1] * 3 + p[2]]++;
    }
    int kinds = 0;
    for (int i = 0; i < 27; i++) {
        if (counts[i] != 0) {
            kinds++;
            assert_in_range(counts[i], 9600, 10400);
        }
    }
    assert_int_equal(kinds, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splitmix64_gives_the_published_sequence),
        cmocka_unit_test(xoshiro256pp_gives_the_published_sequence),
        cmocka_unit_test(seeding_and_draws_never_change),
        cmocka_unit_test(a_copied_state_continues_the_same_sequence),
        cmocka_unit_test(derived_seeds_differ_in_every_coordinate),
        cmocka_unit_test(below_is_in_range_and_even),
        cmocka_unit_test(uniforms_stay_below_one_and_centre_on_a_half),
        cmocka_unit_test(normals_have_the_right_moments),
        cmocka_unit_test(normals_agree_with_libm_to_the_last_bits),
        cmocka_unit_test(a_permutation_holds_each_index_once),
        cmocka_unit_test(every_permutation_of_three_is_as_likely),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
