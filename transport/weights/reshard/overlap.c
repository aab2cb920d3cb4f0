/* No byte of a destination buffer may belong to two pieces. Extents are compared first; only where they overlap (columns of a fused weight interleave) are the runs laid out. */
#include "transport/weights/reshard/internal.h"

#include <stdlib.h>

#define RUNS_MAX (UINT64_C(1) << 24) /* of pieces whose extents overlap: beyond it the layout is refused */

struct extent {
    uint64_t first, end;
    uint32_t rank, piece;
};

static int by_rank_and_first(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->rank != y->rank) {
        return x->rank < y->rank ? -1 : 1;
    }
    return x->first < y->first ? -1 : x->first > y->first;
}

static struct extent extent_of(const struct corral_layout *l, uint32_t piece)
{
    const struct corral_piece *p = &l->piece[piece];
    const struct corral_layout_tensor *t = &l->tensor[p->tensor];
    uint64_t end = p->offset + corral_dtype_bytes(t->dtype);
    for (uint32_t d = 0; d < t->dims; d++) {
        end += (p->box.count[d] - 1) * p->stride[d];
    }
    return (struct extent){p->offset, end, p->rank, piece};
}

/* A piece onto itself is the copy whose loops are the piece's runs. */
static struct corral_reshard_copy runs_of(const struct corral_layout *l, uint32_t piece)
{
    const struct corral_piece *p = &l->piece[piece];
    const struct corral_layout_tensor *t = &l->tensor[p->tensor];
    struct corral_reshard_copy c;
    corral_reshard_make_copy(p, p, &p->box, t->dims, corral_dtype_bytes(t->dtype), &c);
    return c;
}

static void lay_out(const struct corral_reshard_copy *c, uint32_t level, uint64_t at, uint32_t piece,
                    struct extent **out)
{
    if (level == c->dims) {
        *(*out)++ = (struct extent){at, at + c->run_bytes, c->destination, piece};
        return;
    }
    for (uint64_t i = 0; i < c->count[level]; i++) {
        lay_out(c, level + 1, at + i * c->destination_stride[level], piece, out);
    }
}

static enum corral_status twice(const struct corral_layout *l, const struct extent *a, const struct extent *b,
                                struct corral_error *err)
{
    return corral_fail(err, CORRAL_INVALID,
                       "rank %u: byte %llu of its buffer would be written by %s and by %s", b->rank,
                       (unsigned long long)b->first, l->tensor[l->piece[a->piece].tensor].name,
                       l->tensor[l->piece[b->piece].tensor].name);
}

static enum corral_status check_runs(const struct corral_layout *l, const struct extent *group,
                                     uint32_t count, struct corral_error *err)
{
    uint64_t runs = 0;
    for (uint32_t i = 0; i < count && runs <= RUNS_MAX; i++) {
        struct corral_reshard_copy c = runs_of(l, group[i].piece);
        runs += corral_reshard_copy_bytes(&c) / c.run_bytes;
    }
    CORRAL_AUTO_FREE struct extent *run = runs <= RUNS_MAX ? calloc(runs, sizeof *run) : NULL;
    if (!run) {
        return corral_fail(err, runs <= RUNS_MAX ? CORRAL_NOMEM : CORRAL_INVALID,
                           "rank %u: the pieces around byte %llu interleave in %llu runs, too many to check",
                           group->rank, (unsigned long long)group->first, (unsigned long long)runs);
    }
    struct extent *at = run;
    for (uint32_t i = 0; i < count; i++) {
        struct corral_reshard_copy c = runs_of(l, group[i].piece);
        lay_out(&c, 0, c.destination_offset, group[i].piece, &at);
    }
    qsort(run, runs, sizeof *run, by_rank_and_first);
    for (uint64_t i = 1; i < runs; i++) {
        if (run[i].first < run[i - 1].end) {
            return twice(l, &run[i - 1], &run[i], err);
        }
    }
    return CORRAL_OK;
}

/* A stride below what it steps over makes a piece overlap itself. */
static bool is_strided(const struct corral_layout *l, uint32_t piece)
{
    struct corral_reshard_copy c = runs_of(l, piece);
    return c.dims > 0;
}

enum corral_status corral_reshard_check_destination(const struct corral_layout *l, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct extent *extent = calloc((size_t)l->piece_count + 1, sizeof *extent);
    if (!extent) {
        return corral_fail(err, CORRAL_NOMEM, "reshard plan: no memory");
    }
    for (uint32_t i = 0; i < l->piece_count; i++) {
        extent[i] = extent_of(l, i);
    }
    qsort(extent, l->piece_count, sizeof *extent, by_rank_and_first);
    for (uint32_t i = 0; i < l->piece_count;) {
        uint32_t count = 1;
        uint64_t end = extent[i].end;
        while (i + count < l->piece_count && extent[i + count].rank == extent[i].rank &&
               extent[i + count].first < end) {
            end = CORRAL_MAX(end, extent[i + count].end);
            count++;
        }
        if (count > 1 || is_strided(l, extent[i].piece)) {
            CORRAL_TRY(check_runs(l, extent + i, count, err));
        }
        i += count;
    }
    return CORRAL_OK;
}
