#include "trainer-bridge/batching/packing.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct work {
    const struct corral_pack_config *c;
    const uint64_t *tokens;
    uint32_t count, bins;
    uint32_t *order; /* by tokens, most first; equal ones by index */
    uint32_t *bin;   /* per sequence */
    uint32_t *part;  /* scratch: per sequence or bin */
    uint32_t *list;  /* scratch: per sequence */
    double *cost;    /* scratch: per sequence or bin */
    uint64_t *fill;  /* scratch: per bin */
};

static double cost_of(const struct corral_pack_config *c, uint64_t tokens)
{
    double n = (double)tokens;
    return c->cost_linear * n + c->cost_quadratic * n * n;
}

static enum corral_status check(const struct corral_pack_config *c, const uint64_t *tokens, uint32_t count,
                                struct corral_error *err)
{
    if (c->budget == 0 || c->budget > CORRAL_PACK_BUDGET_MAX || c->ranks == 0 ||
        c->ranks > CORRAL_PACK_RANKS_MAX || count > CORRAL_PACK_SEQUENCES_MAX) {
        return corral_fail(
            err, CORRAL_INVALID,
            "packing %u sequences into bins of %llu tokens for %u ranks: at most %u, %u and %u", count,
            (unsigned long long)c->budget, c->ranks, CORRAL_PACK_SEQUENCES_MAX, CORRAL_PACK_BUDGET_MAX,
            CORRAL_PACK_RANKS_MAX);
    }
    if (!(c->cost_linear >= 0 && c->cost_quadratic >= 0 && c->cost_linear + c->cost_quadratic > 0 &&
          isfinite(c->cost_linear + c->cost_quadratic))) {
        return corral_fail(err, CORRAL_INVALID, "packing: costs %g and %g are negative or nothing",
                           c->cost_linear, c->cost_quadratic);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (tokens[i] == 0 || tokens[i] > c->budget) {
            return corral_fail(
                err, CORRAL_INVALID, "sequence %u has %llu tokens and the budget of a bin is %llu: %s", i,
                (unsigned long long)tokens[i], (unsigned long long)c->budget,
                tokens[i] == 0 ? "there is nothing to pack" : "cut it, drop it, or raise the budget");
        }
    }
    return CORRAL_OK;
}

/* ---- order: most tokens first, stable, by counting passes of 8 bits ---- */

static void sort_by_tokens(struct work *w)
{
    uint32_t *from = w->order, *to = w->list;
    for (uint32_t i = 0; i < w->count; i++) {
        from[i] = i;
    }
    for (uint32_t shift = 0; shift < 32;
         shift += 8) { /* an even number of passes: the result is in `order` */
        uint32_t at[257] = {0};
        for (uint32_t i = 0; i < w->count; i++) {
            at[256 - (w->tokens[i] >> shift & 255)]++; /* at[255 - digit + 1] */
        }
        for (uint32_t d = 1; d < 257; d++) {
            at[d] += at[d - 1];
        }
        for (uint32_t i = 0; i < w->count; i++) {
            to[at[255 - (w->tokens[from[i]] >> shift & 255)]++] = from[i];
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
}

/* ---- ranks first ---- */

static enum corral_status pack_ranks_first(struct work *w, struct corral_pack_place *place,
                                           struct corral_error *err)
{
    for (uint32_t i = 0; i < w->count; i++) {
        w->cost[i] = cost_of(w->c, w->tokens[i]);
    }
    CORRAL_TRY(corral_pack_partition(w->cost, w->count, w->c->ranks, false, w->part, err));
    for (uint32_t rank = 0; rank < w->c->ranks; rank++) {
        uint32_t mine = 0, bins = 0;
        for (uint32_t i = 0; i < w->count; i++) {
            if (w->part[w->order[i]] == rank) {
                w->list[mine++] = w->order[i];
            }
        }
        CORRAL_TRY(corral_pack_best_fit(w->c->budget, w->tokens, w->list, mine, w->bin, &bins, err));
        for (uint32_t i = 0; i < mine; i++) {
            place[w->list[i]] = (struct corral_pack_place){.rank = rank, .round = w->bin[w->list[i]]};
        }
    }
    return CORRAL_OK;
}

/* ---- bins first ---- */

/* A heap of bins, the least costly on top. */
static bool cheaper(const struct work *w, uint32_t a, uint32_t b)
{
    return w->cost[a] < w->cost[b] || (w->cost[a] == w->cost[b] && a < b);
}

static void sift(const struct work *w, uint32_t *heap, uint32_t count, uint32_t i)
{
    for (;;) {
        uint32_t best = i;
        for (uint32_t child = 2 * i + 1; child <= 2 * i + 2 && child < count; child++) {
            best = cheaper(w, heap[child], heap[best]) ? child : best;
        }
        if (best == i) {
            return;
        }
        uint32_t swap = heap[i];
        heap[i] = heap[best];
        heap[best] = swap;
        i = best;
    }
}

static void push(const struct work *w, uint32_t *heap, uint32_t count, uint32_t bin)
{
    uint32_t i = count;
    heap[i] = bin;
    while (i > 0 && cheaper(w, heap[i], heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        heap[(i - 1) / 2] = bin;
        i = (i - 1) / 2;
    }
}

/* Longest first into the least costly of `bins` bins that has room. False: a sequence found none; `bin` is not changed then. */
static bool fill_evenly(struct work *w, uint32_t bins)
{
    uint32_t *heap = w->part, count = bins;
    uint64_t smallest = w->tokens[w->order[w->count - 1]];
    for (uint32_t b = 0; b < bins; b++) {
        w->cost[b] = 0;
        w->fill[b] = 0;
        heap[b] = b;
    }
    for (uint32_t i = 0; i < w->count; i++) {
        uint32_t s = w->order[i], aside = 0;
        while (count > 0 && w->fill[heap[0]] + w->tokens[s] > w->c->budget) {
            uint32_t full = heap[0];
            heap[0] = heap[--count];
            sift(w, heap, count, 0);
            heap[bins - 1 - aside++] = full; /* the room that the heap has given up */
        }
        if (count == 0) {
            return false;
        }
        uint32_t b = heap[0];
        w->list[s] = b;
        w->fill[b] += w->tokens[s];
        w->cost[b] += cost_of(w->c, w->tokens[s]);
        sift(w, heap, count, 0);
        for (; aside > 0; aside--) {
            uint32_t full = heap[bins - aside];
            if (w->fill[full] + smallest <= w->c->budget) { /* else nothing that is left fits it */
                push(w, heap, count++, full);
            }
        }
    }
    memcpy(w->bin, w->list, w->count * sizeof w->bin[0]);
    return true;
}

static void bin_costs(struct work *w, uint32_t bins)
{
    memset(w->cost, 0, bins * sizeof w->cost[0]);
    for (uint32_t i = 0; i < w->count; i++) {
        w->cost[w->bin[i]] += cost_of(w->c, w->tokens[i]);
    }
}

struct ranked {
    double cost;
    uint32_t bin, rank;
};

static int by_rank_then_cost(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->rank != y->rank) {
        return x->rank < y->rank ? -1 : 1;
    }
    if (x->cost != y->cost) {
        return x->cost > y->cost ? -1 : 1;
    }
    return x->bin < y->bin ? -1 : x->bin > y->bin;
}

static enum corral_status pack_bins_first(struct work *w, struct corral_pack_place *place,
                                          struct corral_error *err)
{
    uint32_t least;
    CORRAL_TRY(corral_pack_best_fit(w->c->budget, w->tokens, w->order, w->count, w->bin, &least, err));
    uint32_t bins = (least + w->c->ranks - 1) / w->c->ranks * w->c->ranks;
    fill_evenly(
        w,
        bins); /* where that finds no place, the bins that best fit has made stay, and some of the last round are empty */
    bin_costs(w, bins);
    CORRAL_TRY(corral_pack_partition(w->cost, bins, w->c->ranks, true, w->part, err));
    CORRAL_AUTO_FREE struct ranked *ranked = calloc(CORRAL_MAX(bins, 1u), sizeof *ranked);
    if (ranked == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "pack into %u bins", bins);
    }
    for (uint32_t b = 0; b < bins; b++) {
        ranked[b] = (struct ranked){.cost = w->cost[b], .bin = b, .rank = w->part[b]};
    }
    qsort(ranked, bins, sizeof *ranked, by_rank_then_cost);
    uint32_t *at = w->part; /* bin → its place in that order, which is rank by rank, each with as many */
    for (uint32_t i = 0; i < bins; i++) {
        at[ranked[i].bin] = i;
    }
    uint32_t rounds = bins / w->c->ranks;
    for (uint32_t i = 0; i < w->count; i++) {
        uint32_t p = at[w->bin[i]];
        place[i] = (struct corral_pack_place){.rank = p / rounds, .round = p % rounds};
    }
    return CORRAL_OK;
}

/* ---- figures ---- */

static enum corral_status measure(const struct work *w, const struct corral_pack_place *place,
                                  struct corral_pack_stats *s, struct corral_error *err)
{
    uint32_t ranks = w->c->ranks;
    uint64_t tokens = 0;
    *s = (struct corral_pack_stats){.bins = 0};
    for (uint32_t i = 0; i < w->count; i++) {
        tokens += w->tokens[i];
        s->rounds = CORRAL_MAX(s->rounds, place[i].round + 1);
    }
    if (w->count == 0) {
        return CORRAL_OK;
    }
    CORRAL_AUTO_FREE double *cost = calloc((size_t)s->rounds * ranks, sizeof *cost);
    if (cost == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "measure a packing of %u rounds", s->rounds);
    }
    for (uint32_t i = 0; i < w->count; i++) {
        cost[(size_t)place[i].rank * s->rounds + place[i].round] += cost_of(w->c, w->tokens[i]);
    }
    double total = 0, worst = 0, lockstep = 0;
    for (uint32_t r = 0; r < ranks; r++) {
        double sum = 0;
        for (uint32_t k = 0; k < s->rounds; k++) {
            sum += cost[(size_t)r * s->rounds + k];
            s->bins += cost[(size_t)r * s->rounds + k] > 0;
        }
        total += sum;
        worst = CORRAL_MAX(worst, sum);
    }
    for (uint32_t k = 0; k < s->rounds; k++) {
        double most = 0;
        for (uint32_t r = 0; r < ranks; r++) {
            most = CORRAL_MAX(most, cost[(size_t)r * s->rounds + k]);
        }
        lockstep += most;
    }
    s->bins_least = (uint32_t)((tokens + w->c->budget - 1) / w->c->budget);
    s->padding = 1 - (double)tokens / ((double)s->bins * (double)w->c->budget);
    s->padding_rounds = 1 - (double)tokens / ((double)s->rounds * ranks * (double)w->c->budget);
    s->imbalance = worst * ranks / total - 1;
    s->imbalance_rounds = lockstep * ranks / total - 1;
    return CORRAL_OK;
}

enum corral_status corral_pack(const struct corral_pack_config *config, const uint64_t *tokens,
                               uint32_t count, struct corral_pack_place *place,
                               struct corral_pack_stats *stats, struct corral_error *err)
{
    CORRAL_TRY(check(config, tokens, count, err));
    uint32_t room = count + config->ranks; /* bins may be rounded up to a multiple of ranks */
    CORRAL_AUTO_FREE uint32_t *words = calloc((size_t)room * 4, sizeof *words);
    CORRAL_AUTO_FREE double *cost = calloc(room, sizeof *cost);
    CORRAL_AUTO_FREE uint64_t *fill = calloc(room, sizeof *fill);
    if (words == NULL || cost == NULL || fill == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "pack %u sequences", count);
    }
    struct work w = {.c = config,
                     .tokens = tokens,
                     .count = count,
                     .order = words,
                     .bin = words + room,
                     .part = words + 2 * (size_t)room,
                     .list = words + 3 * (size_t)room,
                     .cost = cost,
                     .fill = fill};
    sort_by_tokens(&w);
    if (count > 0) {
        CORRAL_TRY((config->equal_bins ? pack_bins_first : pack_ranks_first)(&w, place, err));
    }
    return stats != NULL ? measure(&w, place, stats, err) : CORRAL_OK;
}
