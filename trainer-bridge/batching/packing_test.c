#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/packing.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_MAX 2000
#define BINS_MAX 4096

static struct corral_pack_config config_of(uint64_t budget, uint32_t ranks, bool equal)
{
    return (struct corral_pack_config){
        .budget = budget, .ranks = ranks, .equal_bins = equal, .cost_linear = 1, .cost_quadratic = 1e-4};
}

static void random_lengths(struct corral_rng *rng, uint64_t *tokens, uint32_t count, uint64_t budget)
{
    double long_ones = corral_rng_uniform(rng);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t most = corral_rng_uniform(rng) < long_ones ? budget : 1 + budget / 8;
        tokens[i] = 1 + corral_rng_below(rng, most);
    }
}

/* Everything that must hold of a packing, and the figures again from the places alone. */
static void check_packing(const struct corral_pack_config *c, const uint64_t *tokens, uint32_t count,
                          const struct corral_pack_place *place, const struct corral_pack_stats *s)
{
    static uint64_t fill[CORRAL_PACK_RANKS_MAX][BINS_MAX];
    uint64_t total = 0;
    uint32_t bins = 0, rounds = 0;
    double cost[CORRAL_PACK_RANKS_MAX] = {0}, all = 0, worst = 0;
    memset(fill, 0, sizeof fill);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(place[i].rank < c->ranks && place[i].round < BINS_MAX);
        fill[place[i].rank][place[i].round] += tokens[i];
        assert_true(fill[place[i].rank][place[i].round] <= c->budget);
        cost[place[i].rank] += (double)tokens[i] + 1e-4 * (double)tokens[i] * (double)tokens[i];
        total += tokens[i];
        rounds = CORRAL_MAX(rounds, place[i].round + 1);
    }
    for (uint32_t r = 0; r < c->ranks; r++) {
        for (uint32_t k = 0; k < rounds; k++) {
            bins += fill[r][k] > 0;
            assert_true(c->equal_bins || k == 0 || fill[r][k] == 0 || fill[r][k - 1] > 0);
        }
        all += cost[r];
        worst = fmax(worst, cost[r]);
    }
    assert_int_equal(bins, s->bins);
    assert_int_equal(rounds, s->rounds);
    assert_true(fabs(s->padding - (1 - (double)total / ((double)bins * (double)c->budget))) < 1e-9);
    assert_true(fabs(s->imbalance - (worst * c->ranks / all - 1)) < 1e-9);
    assert_true(s->imbalance_rounds >= s->imbalance - 1e-9 && s->padding_rounds >= s->padding - 1e-9);
}

static void every_sequence_is_in_one_bin_and_no_bin_is_over_the_budget(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    static uint64_t tokens[COUNT_MAX];
    static struct corral_pack_place place[COUNT_MAX], again[COUNT_MAX];
    for (int round = 0; round < 400; round++) {
        uint64_t budget = 1 + corral_rng_below(&rng, round % 10 == 0 ? 100000 : 300);
        uint32_t count = 1 + (uint32_t)corral_rng_below(&rng, round % 7 == 0 ? COUNT_MAX : 60);
        struct corral_pack_config c =
            config_of(budget, 1 + (uint32_t)corral_rng_below(&rng, 9), round % 2 == 0);
        struct corral_pack_stats s;
        random_lengths(&rng, tokens, count, budget);
        memset(place, 0xff, sizeof place);
        check_ok(corral_pack(&c, tokens, count, place, &s, &err));
        check_packing(&c, tokens, count, place, &s);
        check_ok(corral_pack(&c, tokens, count, again, NULL, &err));
        assert_memory_equal(place, again, count * sizeof place[0]);
    }
}

static void names_the_sequence_that_is_too_long(void **state)
{
    (void)state;
    struct corral_error err;
    uint64_t tokens[3] = {5, 11, 7};
    struct corral_pack_place place[3];
    struct corral_pack_config c = config_of(10, 2, false);
    check_status(corral_pack(&c, tokens, 3, place, NULL, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "sequence 1 has 11 tokens and the budget of a bin is 10"));
    tokens[1] = 0;
    check_status(corral_pack(&c, tokens, 3, place, NULL, &err), CORRAL_INVALID);
    tokens[1] = 10;
    check_ok(corral_pack(&c, tokens, 3, place, NULL, &err));
    check_ok(corral_pack(&c, tokens, 0, place, NULL, &err));
    struct corral_pack_config wrong[] = {config_of(0, 1, false),
                                         config_of(CORRAL_PACK_BUDGET_MAX + 1, 1, false),
                                         config_of(10, 0, false), config_of(10, 65, false)};
    for (size_t i = 0; i < CORRAL_COUNT_OF(wrong); i++) {
        check_status(corral_pack(&wrong[i], tokens, 3, place, NULL, &err), CORRAL_INVALID);
    }
    c.cost_linear = c.cost_quadratic = 0;
    check_status(corral_pack(&c, tokens, 3, place, NULL, &err), CORRAL_INVALID);
    c.cost_linear = NAN;
    check_status(corral_pack(&c, tokens, 3, place, NULL, &err), CORRAL_INVALID);
}

/* ---- best fit against a plain one, and against the best there is ---- */

static uint32_t naive_best_fit(uint64_t budget, const uint64_t *sorted, uint32_t count)
{
    static uint64_t room[COUNT_MAX];
    uint32_t bins = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t best = bins;
        for (uint32_t b = 0; b < bins; b++) {
            if (room[b] >= sorted[i] && (best == bins || room[b] < room[best])) {
                best = b;
            }
        }
        if (best == bins) {
            room[bins++] = budget;
        }
        room[best] -= sorted[i];
    }
    return bins;
}

static uint32_t fewest_bins(uint64_t budget, const uint64_t *tokens, uint32_t count, uint64_t *fill,
                            uint32_t bins, uint32_t best)
{
    if (count == 0 || bins >= best) {
        return CORRAL_MIN(bins, best);
    }
    for (uint32_t b = 0; b < bins; b++) {
        if (fill[b] + tokens[0] <= budget) {
            fill[b] += tokens[0];
            best = fewest_bins(budget, tokens + 1, count - 1, fill, bins, best);
            fill[b] -= tokens[0];
        }
    }
    fill[bins] = tokens[0];
    return fewest_bins(budget, tokens + 1, count - 1, fill, bins + 1, best);
}

static int most_first(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

static void packs_as_best_fit_decreasing_does(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    static uint64_t tokens[COUNT_MAX];
    static uint32_t order[COUNT_MAX], bin[COUNT_MAX];
    for (uint32_t i = 0; i < COUNT_MAX; i++) {
        order[i] = i;
    }
    for (int round = 0; round < 200; round++) {
        bool small = round % 2 == 0;
        uint64_t budget = 1 + corral_rng_below(&rng, small ? 40 : 70000), fill[16];
        uint32_t count = 1 + (uint32_t)corral_rng_below(&rng, small ? 9 : 700), bins;
        random_lengths(&rng, tokens, count, budget);
        qsort(tokens, count, sizeof tokens[0], most_first);
        check_ok(corral_pack_best_fit(budget, tokens, order, count, bin, &bins, &err));
        assert_int_equal(bins, naive_best_fit(budget, tokens, count));
        if (small) {
            uint32_t least = fewest_bins(budget, tokens, count, fill, 0, count);
            assert_true(bins >= least && 9 * bins <= 11 * least + 6); /* the bound that is proved for it */
        }
    }
}

/* ---- differencing ---- */

static double worst_of(const double *weight, uint32_t count, const uint32_t *part, uint32_t parts,
                       uint32_t *members)
{
    double sum[CORRAL_PACK_RANKS_MAX] = {0}, worst = 0;
    memset(members, 0, parts * sizeof members[0]);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(part[i] < parts);
        sum[part[i]] += weight[i];
        members[part[i]]++;
    }
    for (uint32_t p = 0; p < parts; p++) {
        worst = fmax(worst, sum[p]);
    }
    return worst;
}

static void spreads_far_more_evenly_than_turn_by_turn(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    double ours[2] = {0}, turns[2] = {0}; /* [equal] */
    for (int round = 0; round < 200; round++) {
        double weight[256], total = 0, heaviest = 0;
        uint32_t part[256], members[CORRAL_PACK_RANKS_MAX], turn[256];
        uint32_t parts = 1 + (uint32_t)corral_rng_below(&rng, 16);
        bool equal = round % 2 == 0;
        uint32_t count = parts * (1 + (uint32_t)corral_rng_below(&rng, 16));
        for (uint32_t i = 0; i < count; i++) {
            weight[i] = exp(corral_rng_normal(&rng));
            total += weight[i];
            heaviest = fmax(heaviest, weight[i]);
            turn[i] = i % parts;
        }
        memset(part, 0xff, sizeof part);
        check_ok(corral_pack_partition(weight, count, parts, equal, part, &err));
        double mean = total / parts, worst = worst_of(weight, count, part, parts, members);
        for (uint32_t p = 0; p < parts && equal; p++) {
            assert_int_equal(members[p], count / parts);
        }
        assert_true(worst <= mean + heaviest + 1e-9); /* nobody is further off than one member */
        if (count >= 8 * parts) {
            ours[equal] += worst / fmax(mean, heaviest) - 1;
            turns[equal] += worst_of(weight, count, turn, parts, members) / fmax(mean, heaviest) - 1;
        }
    }
    assert_true(ours[0] * 20 < turns[0]);
    assert_true(ours[1] * 2 < turns[1]); /* as many members in each: lone heavy ones cannot be made up for */
}

static void two_parts_as_karmarkar_and_karp_have_it(void **state)
{
    (void)state;
    struct corral_error err;
    const double weight[5] = {8, 7, 6, 5, 4}; /* differencing leaves 2: {8, 6} and {7, 5, 4} */
    uint32_t part[5], members[2];
    check_ok(corral_pack_partition(weight, 5, 2, false, part, &err));
    assert_true(worst_of(weight, 5, part, 2, members) == 16);
}

static void real_lengths_waste_little(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 4);
    static uint64_t tokens[512];
    static struct corral_pack_place place[512];
    for (int equal = 0; equal < 2; equal++) {
        double padding = 0, imbalance = 0;
        for (int round = 0; round < 20; round++) {
            struct corral_pack_config c = config_of(16384, 8, equal);
            struct corral_pack_stats s;
            for (uint32_t i = 0; i < 512;
                 i++) { /* log-normal around 1,000, cut at 8,192, as completions are */
                double n = 1000 * exp(0.8 * corral_rng_normal(&rng));
                tokens[i] = (uint64_t)fmin(fmax(n, 16), 8192);
            }
            check_ok(corral_pack(&c, tokens, 512, place, &s, &err));
            check_packing(&c, tokens, 512, place, &s);
            padding += s.padding_rounds / 20;
            imbalance += s.imbalance_rounds / 20;
        }
        assert_true(padding < 0.12 && imbalance < 0.12);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_sequence_is_in_one_bin_and_no_bin_is_over_the_budget),
        cmocka_unit_test(names_the_sequence_that_is_too_long),
        cmocka_unit_test(packs_as_best_fit_decreasing_does),
        cmocka_unit_test(spreads_far_more_evenly_than_turn_by_turn),
        cmocka_unit_test(two_parts_as_karmarkar_and_karp_have_it),
        cmocka_unit_test(real_lengths_waste_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
