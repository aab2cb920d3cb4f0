/* Karmarkar-Karp differencing for k parts: partial solutions, each k sums with their members, the two with the largest spread merged largest on smallest until one is left. */
#include "trainer-bridge/batching/packing.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

struct slot { /* one part of a partial solution: its sum, and its members as a list */
    double sum;
    uint32_t first, last;
};

struct differencing {
    uint32_t parts, nodes, heap_count;
    struct slot *slot; /* [nodes][parts], each node's sorted by sum, largest first */
    uint32_t *next;    /* per weight: the next member of its part */
    uint32_t *heap;    /* of nodes, by spread */
};

static struct slot *node_slots(const struct differencing *d, uint32_t node)
{
    return d->slot + (size_t)node * d->parts;
}

static double spread(const struct differencing *d, uint32_t node)
{
    const struct slot *s = node_slots(d, node);
    return s[0].sum - s[d->parts - 1].sum;
}

static bool before(const struct differencing *d, uint32_t a, uint32_t b)
{
    double x = spread(d, a), y = spread(d, b);
    return x > y || (x == y && a < b);
}

static void sift_down(struct differencing *d, uint32_t i)
{
    for (;;) {
        uint32_t best = i;
        for (uint32_t child = 2 * i + 1; child <= 2 * i + 2 && child < d->heap_count; child++) {
            best = before(d, d->heap[child], d->heap[best]) ? child : best;
        }
        if (best == i) {
            return;
        }
        uint32_t swap = d->heap[i];
        d->heap[i] = d->heap[best];
        d->heap[best] = swap;
        i = best;
    }
}

static uint32_t pop(struct differencing *d)
{
    uint32_t top = d->heap[0];
    d->heap[0] = d->heap[--d->heap_count];
    sift_down(d, 0);
    return top;
}

static int larger_first(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;
    if (x->sum != y->sum) {
        return x->sum > y->sum ? -1 : 1;
    }
    return x->first < y->first ? -1 : x->first > y->first;
}

static void join(struct differencing *d, struct slot *to, const struct slot *from)
{
    to->sum += from->sum;
    if (from->first == NONE) {
        return;
    }
    if (to->first == NONE) {
        to->first = from->first;
    } else {
        d->next[to->last] = from->first;
    }
    to->last = from->last;
}

static void merge_all(struct differencing *d)
{
    for (uint32_t i = d->heap_count / 2; i-- > 0;) {
        sift_down(d, i);
    }
    while (d->heap_count > 1) {
        uint32_t a = pop(d), b = d->heap[0];
        struct slot *to = node_slots(d, b);
        const struct slot *from = node_slots(d, a);
        for (uint32_t i = 0; i < d->parts; i++) {
            join(d, &to[d->parts - 1 - i], &from[i]);
        }
        qsort(to, d->parts, sizeof *to, larger_first);
        sift_down(d,
                  0); /* its spread is smaller now, or as it was: never larger than the larger of the two */
    }
}

struct weighed {
    double weight;
    uint32_t index;
};

static int heavier_first(const void *a, const void *b)
{
    const struct weighed *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight > y->weight ? -1 : 1;
    }
    return x->index < y->index ? -1 : x->index > y->index;
}

/* With `equal`, a node begins with one member in each part, neighbours in weight. Otherwise with one member in all. */
static void begin(struct differencing *d, const struct weighed *sorted, uint32_t count, bool equal)
{
    uint32_t members = equal ? d->parts : 1;
    for (uint32_t i = 0; i < count; i++) {
        struct slot *s = node_slots(d, i / members) + i % members;
        *s = (struct slot){.sum = sorted[i].weight, .first = sorted[i].index, .last = sorted[i].index};
        d->next[i] = NONE;
    }
    for (uint32_t node = 0; node < d->nodes; node++) {
        for (uint32_t i = members; i < d->parts; i++) {
            node_slots(d, node)[i] = (struct slot){.first = NONE, .last = NONE};
        }
        d->heap[node] = node;
    }
    d->heap_count = d->nodes;
}

enum corral_status corral_pack_partition(const double *weight, uint32_t count, uint32_t parts, bool equal,
                                         uint32_t *part, struct corral_error *err)
{
    assert(parts > 0 && (!equal || count % parts == 0));
    if (count == 0) {
        return CORRAL_OK;
    }
    struct differencing d = {.parts = parts, .nodes = equal ? count / parts : count};
    CORRAL_AUTO_FREE struct weighed *sorted = calloc(count, sizeof *sorted);
    CORRAL_AUTO_FREE struct slot *slot = calloc((size_t)d.nodes * parts, sizeof *slot);
    CORRAL_AUTO_FREE uint32_t *next = calloc(count, sizeof *next);
    CORRAL_AUTO_FREE uint32_t *heap = calloc(d.nodes, sizeof *heap);
    if (sorted == NULL || slot == NULL || next == NULL || heap == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "spread %u sequences over %u ranks", count, parts);
    }
    for (uint32_t i = 0; i < count; i++) {
        sorted[i] = (struct weighed){.weight = weight[i], .index = i};
    }
    qsort(sorted, count, sizeof *sorted, heavier_first);
    d.slot = slot;
    d.next = next;
    d.heap = heap;
    begin(&d, sorted, count, equal);
    merge_all(&d);
    const struct slot *s = node_slots(&d, d.heap[0]);
    for (uint32_t p = 0; p < parts; p++) {
        for (uint32_t i = s[p].first; i != NONE; i = d.next[i]) {
            part[i] = p;
        }
    }
    return CORRAL_OK;
}
