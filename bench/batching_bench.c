/* How well and how fast batches are packed, and what bookkeeping costs per record.
 *
 * Packing: sequences as completions are long (log-normal around 1,000 tokens, cut at 8,192) into bins of 16,384 tokens over 8 ranks, cost n + n*n/8192. Compared with what is written first when nobody thinks about it: bins filled in the order
 * of arrival, ranks in turn. Padding is the share of rounds * ranks bins that nothing fills; imbalance is the slowest rank's cost over the mean, less 1; lockstep is the same when ranks meet after every round.
 * Bookkeeping: nanoseconds per record through groups, handoff, replay and its sampling. Median of the rounds, with the least and the most. */
#include "base/clock.h"
#include "base/rng.h"
#include "trainer-bridge/batching/groups.h"
#include "trainer-bridge/batching/handoff.h"
#include "trainer-bridge/batching/packing.h"
#include "trainer-bridge/batching/replay.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 15
#define SEQUENCES_MAX 16384
#define RANKS 8
#define BUDGET 16384
#define RECORDS 100000

static uint64_t tokens[SEQUENCES_MAX];
static struct corral_pack_place place[SEQUENCES_MAX];

struct spread {
    double value[ROUNDS];
};

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_spread(const char *what, struct spread *s, double scale, const char *unit)
{
    qsort(s->value, ROUNDS, sizeof s->value[0], ascending);
    printf("  %-34s %9.2f %s  (%.2f ... %.2f)\n", what, s->value[ROUNDS / 2] * scale, unit,
           s->value[0] * scale, s->value[ROUNDS - 1] * scale);
}

static double seconds(void)
{
    return (double)corral_now_ns(&corral_clock_monotonic) / 1e9;
}

static void must(enum corral_status status, const struct corral_error *err)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "batching_bench: %s\n", err->text);
        exit(1);
    }
}

/* In the order they come: the next bin when one does not fit; bins to ranks in turn. */
static void pack_naively(uint32_t count, struct corral_pack_stats *s)
{
    static double cost[SEQUENCES_MAX];
    double rank_cost[RANKS] = {0}, total = 0, worst = 0, lockstep = 0;
    uint64_t fill = 0, all = 0;
    uint32_t bin = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (fill + tokens[i] > BUDGET) {
            bin++;
            fill = 0;
        }
        cost[bin] = fill == 0 ? 0 : cost[bin];
        double n = (double)tokens[i], c = n + n * n / 8192;
        fill += tokens[i];
        all += tokens[i];
        cost[bin] += c;
        rank_cost[bin % RANKS] += c;
        total += c;
    }
    *s = (struct corral_pack_stats){.bins = bin + 1, .rounds = bin / RANKS + 1};
    for (uint32_t r = 0; r < RANKS; r++) {
        worst = fmax(worst, rank_cost[r]);
    }
    for (uint32_t k = 0; k < s->rounds; k++) {
        double most = 0;
        for (uint32_t b = k * RANKS; b < (k + 1) * RANKS && b <= bin; b++) {
            most = fmax(most, cost[b]);
        }
        lockstep += most;
    }
    s->padding_rounds = 1 - (double)all / ((double)s->rounds * RANKS * BUDGET);
    s->imbalance = worst * RANKS / total - 1;
    s->imbalance_rounds = lockstep * RANKS / total - 1;
}

static void bench_packing(uint32_t count)
{
    static const char *const name[3] = {"arrival order", "ranks first", "equal bins"};
    struct spread padding[3], imbalance[3], lockstep[3], ns[3];
    struct corral_rng rng;
    corral_rng_seed(&rng, count);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < count; i++) {
            tokens[i] = (uint64_t)fmin(fmax(1000 * exp(0.8 * corral_rng_normal(&rng)), 16), 8192);
        }
        for (uint32_t way = 0; way < 3; way++) {
            struct corral_error err;
            struct corral_pack_stats s;
            struct corral_pack_config c = {.budget = BUDGET,
                                           .ranks = RANKS,
                                           .equal_bins = way == 2,
                                           .cost_linear = 1,
                                           .cost_quadratic = 1.0 / 8192};
            double begun = seconds();
            if (way == 0) {
                pack_naively(count, &s);
            } else {
                must(corral_pack(&c, tokens, count, place, &s, &err), &err);
            }
            ns[way].value[round] = (seconds() - begun) * 1e9 / count;
            padding[way].value[round] = s.padding_rounds;
            imbalance[way].value[round] = s.imbalance;
            lockstep[way].value[round] = s.imbalance_rounds;
        }
    }
    printf("packing %u sequences\n", count);
    for (uint32_t way = 0; way < 3; way++) {
        printf(" %s\n", name[way]);
        print_spread("padding", &padding[way], 100, "%");
        print_spread("imbalance", &imbalance[way], 100, "%");
        print_spread("imbalance, in lockstep", &lockstep[way], 100, "%");
        print_spread("time per sequence", &ns[way], 1, "ns");
    }
}

static void on_finish(void *ctx, void *user)
{
    (void)user;
    ++*(uint64_t *)ctx;
}

static double time_groups(void)
{
    struct corral_error err;
    struct corral_groups *g;
    struct corral_groups_config c = {.group_size = 8, .groups_max = 256, .ordered = true};
    must(corral_groups_create(&g, &c, &err), &err);
    double begun = seconds();
    for (uint32_t i = 0; i < RECORDS; i++) {
        struct corral_group_item item = {.index = i % 8, .score = i % 3}, out[8];
        struct corral_group group;
        enum corral_group_fate fate;
        must(corral_groups_add(g, i / 8, &item, 0, &fate, &err), &err);
        (void)corral_groups_next(g, 0, &group, out);
    }
    double took = seconds() - begun;
    corral_groups_destroy(g);
    return took;
}

static double time_handoff(void)
{
    struct corral_error err;
    struct corral_handoff *h;
    struct corral_handoff_record *held[64];
    uint64_t finished = 0;
    bool fresh;
    must(corral_handoff_create(&h, on_finish, &finished, &err), &err);
    double begun = seconds();
    for (uint32_t i = 0; i < RECORDS; i++) {
        if (i >= 64) {
            corral_handoff_use(h, held[i % 64]);
        }
        must(corral_handoff_add(h, i % 16, 1, i / 16 + 1, NULL, &fresh, &held[i % 64], &err), &err);
    }
    double took = seconds() - begun;
    corral_handoff_destroy(h);
    return took;
}

/* Inserts into a full buffer of 100,000 items, or samples from it. */
static double time_replay(bool sample)
{
    struct corral_error err;
    struct corral_replay *r;
    struct corral_rng rng;
    uint64_t key;
    struct corral_replay_config c = {
        .order = CORRAL_REPLAY_PRIORITISED, .items_max = RECORDS, .bytes_max = UINT64_MAX, .alpha = 0.6};
    corral_rng_seed(&rng, 1);
    must(corral_replay_create(&r, &c, &err), &err);
    double begun = 0;
    for (uint32_t i = 0; i < 2 * RECORDS; i++) {
        begun = i == RECORDS ? seconds() : begun;
        if (i < RECORDS || !sample) {
            must(corral_replay_insert(r, 1, corral_rng_uniform(&rng), NULL, &key, &err), &err);
            continue;
        }
        struct corral_replay_sample s;
        must(corral_replay_take(r, &rng, 0.4, &s, &err), &err);
        corral_replay_give_back(r, s.key);
    }
    double took = seconds() - begun;
    corral_replay_destroy(r);
    return took;
}

int main(void)
{
    bench_packing(512);
    bench_packing(SEQUENCES_MAX);
    struct spread groups, handoff, insert, sample;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        groups.value[i] = time_groups();
        handoff.value[i] = time_handoff();
        insert.value[i] = time_replay(false);
        sample.value[i] = time_replay(true);
    }
    printf("bookkeeping per record\n");
    print_spread("groups of 8, in order", &groups, 1e9 / RECORDS, "ns");
    print_spread("handoff", &handoff, 1e9 / RECORDS, "ns");
    print_spread("prioritised replay, insert", &insert, 1e9 / RECORDS, "ns");
    print_spread("prioritised replay, sample", &sample, 1e9 / RECORDS, "ns");
    return 0;
}
