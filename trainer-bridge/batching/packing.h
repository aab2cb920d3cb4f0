/* Sequences of different lengths into token budgets, spread over trainer ranks. Pure: the same input gives the same packing. One call allocates scratch memory and frees it.
 *
 * A bin is what one forward and backward pass takes: sequences one after the other, at most `budget` tokens. Each rank works through its bins in rounds 0, 1, 2 …; a gradient step takes as long as its slowest rank.
 *
 * Two ways, for two kinds of trainer:
 *   equal_bins false  sequences are spread over ranks by cost (Karmarkar-Karp differencing), then each rank packs its own (best fit, decreasing). Best balance; ranks may have different numbers of bins.
 *   equal_bins true   every rank has the same number of bins (collectives inside a pass): bins are filled evenly by cost within the budget, then spread over ranks by differencing, as many to each; round k has
 *                     the ranks' k-th most costly bins.
 * Cost of a sequence of n tokens: linear * n + quadratic * n * n. */
#ifndef CORRAL_TRAINER_PACKING_H
#define CORRAL_TRAINER_PACKING_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_PACK_BUDGET_MAX (1u << 24)
#define CORRAL_PACK_SEQUENCES_MAX (1u << 18)
#define CORRAL_PACK_RANKS_MAX 64u

struct corral_pack_config {
    uint64_t budget; /* tokens of a bin; scratch memory takes about 4 bytes of it per token */
    uint32_t ranks;
    bool equal_bins;
    double cost_linear, cost_quadratic; /* not negative, not both 0 */
};
struct corral_pack_place {
    uint32_t rank, round;
};
struct corral_pack_stats {
    uint32_t bins;       /* with something in them */
    uint32_t bins_least; /* tokens / budget, rounded up: no packing has fewer */
    uint32_t rounds;     /* most bins of a rank; with equal_bins those of every rank, the last may be empty */
    double padding;      /* share of the bins' tokens that nothing fills */
    double
        padding_rounds; /* the same of rounds * ranks bins: what ranks that wait for each other waste too */
    double imbalance;   /* the slowest rank's cost over the mean, less 1 */
    double
        imbalance_rounds; /* sum over rounds of the most costly bin, over the mean cost of a rank, less 1: when ranks meet after every round */
};

/* Sequence i of tokens[i] goes to place[i]. CORRAL_INVALID: out of range, or a sequence of 0 tokens or above the budget (named). `stats` may be NULL. */
enum corral_status corral_pack(const struct corral_pack_config *config, const uint64_t *tokens,
                               uint32_t count, struct corral_pack_place *place,
                               struct corral_pack_stats *stats, struct corral_error *err);

/* ---- the two halves, for others ---- */
/* Best fit decreasing: bin[order[i]] for the `count` sequences of `order`, which is sorted by tokens, most first. Returns the number of bins. */
enum corral_status corral_pack_best_fit(uint64_t budget, const uint64_t *tokens, const uint32_t *order,
                                        uint32_t count, uint32_t *bin, uint32_t *bins,
                                        struct corral_error *err);
/* Differencing: part[i] of weight[i], in `parts` parts of sums as equal as possible; with `equal` each has as many members, and count is a multiple of parts. */
enum corral_status corral_pack_partition(const double *weight, uint32_t count, uint32_t parts, bool equal,
                                         uint32_t *part, struct corral_error *err);

#endif
