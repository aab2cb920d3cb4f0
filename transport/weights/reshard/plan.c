/* Cover every destination piece with intersections of source pieces, each byte once; then make the copies as long as the memory allows. */
#include "transport/weights/reshard/plan.h"

#include "transport/weights/reshard/internal.h"
#include <stdlib.h>
#include <string.h>

#define CHUNKS_PER_SOURCE 8 /* of all bytes: pieces above are cut, so that replicas can share them */
#define CHUNK_BYTES_MIN (UINT64_C(1) << 20)
#define UNCOVERED_MAX 4096 /* boxes left of one destination piece at one time */

struct builder {
    const struct corral_layout *source, *destination;
    struct corral_reshard_plan *plan;
    uint32_t copy_room;
    uint32_t *by_tensor;    /* source pieces, grouped by tensor */
    uint32_t *tensor_start; /* into by_tensor; source->tensor_count + 1 */
    uint64_t chunk_bytes;
    struct corral_box *uncovered; /* a stack */
    uint32_t uncovered_count;
};

static void builder_free(struct builder *b)
{
    free(b->by_tensor);
    free(b->tensor_start);
    free(b->uncovered);
    corral_reshard_plan_destroy(b->plan);
}

void corral_reshard_plan_destroy(struct corral_reshard_plan *plan)
{
    if (plan) {
        free(plan->copy);
        free(plan->sent);
        free(plan->received);
    }
    free(plan);
}

/* ---- set-up ---- */

static enum corral_status builder_init(struct builder *b, const struct corral_layout *source,
                                       const struct corral_layout *destination, struct corral_error *err)
{
    *b = (struct builder){.source = source, .destination = destination, .plan = calloc(1, sizeof *b->plan)};
    b->by_tensor = calloc((size_t)source->piece_count + 1, sizeof *b->by_tensor);
    b->tensor_start = calloc((size_t)source->tensor_count + 2, sizeof *b->tensor_start);
    b->uncovered = calloc(UNCOVERED_MAX, sizeof *b->uncovered);
    if (b->plan) {
        b->plan->sources = source->ranks;
        b->plan->destinations = destination->ranks;
        b->plan->sent = calloc(source->ranks, sizeof *b->plan->sent);
        b->plan->received = calloc(destination->ranks, sizeof *b->plan->received);
    }
    if (!b->plan || !b->by_tensor || !b->tensor_start || !b->uncovered || !b->plan->sent ||
        !b->plan->received) {
        return corral_fail(err, CORRAL_NOMEM, "reshard plan: no memory");
    }
    for (uint32_t i = 0; i < source->piece_count; i++) {
        b->tensor_start[source->piece[i].tensor + 2]++;
    }
    for (uint32_t t = 0; t < source->tensor_count; t++) {
        b->tensor_start[t + 2] += b->tensor_start[t + 1];
    }
    for (uint32_t i = 0; i < source->piece_count; i++) {
        b->by_tensor[b->tensor_start[source->piece[i].tensor + 1]++] = i;
    }
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < destination->piece_count; i++) {
        bytes += corral_reshard_piece_bytes(destination, &destination->piece[i]);
    }
    b->chunk_bytes = CORRAL_MAX(bytes / ((uint64_t)source->ranks * CHUNKS_PER_SOURCE), CHUNK_BYTES_MIN);
    return CORRAL_OK;
}

uint64_t corral_reshard_piece_bytes(const struct corral_layout *l, const struct corral_piece *p)
{
    const struct corral_layout_tensor *t = &l->tensor[p->tensor];
    return corral_box_elements(&p->box, t->dims) * corral_dtype_bytes(t->dtype);
}

/* The source's tensor of that name (or of any name it is tied to), of the same dtype and shape. */
static enum corral_status match_tensor(const struct builder *b, uint32_t tensor, uint32_t *out,
                                       struct corral_error *err)
{
    const struct corral_layout *d = b->destination;
    uint32_t found = UINT32_MAX;
    for (uint32_t i = tensor; i < d->tensor_count && found == UINT32_MAX; i++) {
        if (d->tensor[i].alias_of == tensor) {
            found = corral_layout_find(b->source, d->tensor[i].name);
        }
    }
    const struct corral_layout_tensor *t = &d->tensor[tensor];
    if (found == UINT32_MAX) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s: the source has none of that name", t->name);
    }
    const struct corral_layout_tensor *s = &b->source->tensor[found];
    if (s->dtype != t->dtype) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s: %s in the source, %s in the destination", t->name,
                           corral_dtype_name(s->dtype), corral_dtype_name(t->dtype));
    }
    if (s->dims != t->dims || memcmp(s->shape, t->shape, sizeof s->shape) != 0) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s: the source has another shape", t->name);
    }
    *out = s->alias_of;
    return CORRAL_OK;
}

/* ---- covering ---- */

static enum corral_status push(struct builder *b, const struct corral_box *box, const char *name,
                               struct corral_error *err)
{
    if (b->uncovered_count == UNCOVERED_MAX) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s: its pieces are cut into more than %d parts", name,
                           UNCOVERED_MAX);
    }
    b->uncovered[b->uncovered_count++] = *box;
    return CORRAL_OK;
}

/* What is left of `from` without `taken`, which lies inside it: at most two boxes per dimension. */
static enum corral_status push_rest(struct builder *b, struct corral_box from, const struct corral_box *taken,
                                    uint32_t dims, const char *name, struct corral_error *err)
{
    for (uint32_t d = 0; d < dims; d++) {
        uint64_t from_end = from.first[d] + from.count[d], end = taken->first[d] + taken->count[d];
        struct corral_box side = from;
        if (from.first[d] < taken->first[d]) {
            side.count[d] = taken->first[d] - from.first[d];
            CORRAL_TRY(push(b, &side, name, err));
        }
        if (end < from_end) {
            side.first[d] = end;
            side.count[d] = from_end - end;
            CORRAL_TRY(push(b, &side, name, err));
        }
        from.first[d] = taken->first[d];
        from.count[d] = taken->count[d];
    }
    return CORRAL_OK;
}

static enum corral_status add_copy(struct builder *b, const struct corral_piece *from,
                                   const struct corral_piece *to, const struct corral_box *box,
                                   struct corral_error *err)
{
    struct corral_reshard_plan *p = b->plan;
    if (p->copy_count == b->copy_room) {
        uint32_t room = b->copy_room ? 2 * b->copy_room : 1024;
        struct corral_reshard_copy *grown =
            room > b->copy_room ? realloc(p->copy, room * sizeof *grown) : NULL;
        if (!grown) {
            return corral_fail(err, CORRAL_NOMEM, "reshard plan: no memory for %u copies", room);
        }
        p->copy = grown;
        b->copy_room = room;
    }
    const struct corral_layout_tensor *t = &b->destination->tensor[to->tensor];
    struct corral_reshard_copy *c = &p->copy[p->copy_count++];
    corral_reshard_make_copy(from, to, box, t->dims, corral_dtype_bytes(t->dtype), c);
    uint64_t bytes = corral_reshard_copy_bytes(c);
    p->sent[from->rank] += bytes;
    p->received[to->rank] += bytes;
    p->bytes += bytes;
    return CORRAL_OK;
}

/* Of the source pieces that have some of the box: the one that has most of it; of those the one whose rank has sent least, then the lowest. */
static const struct corral_piece *choose(const struct builder *b, uint32_t tensor, uint32_t dims,
                                         const struct corral_box *box, struct corral_box *part)
{
    const struct corral_piece *best = NULL;
    uint64_t most = 0;
    for (uint32_t i = b->tensor_start[tensor]; i < b->tensor_start[tensor + 1]; i++) {
        const struct corral_piece *p = &b->source->piece[b->by_tensor[i]];
        struct corral_box both;
        if (!corral_box_intersect(box, &p->box, dims, &both)) {
            continue;
        }
        uint64_t elements = corral_box_elements(&both, dims);
        const uint64_t *sent = b->plan->sent;
        if (!best || elements > most || (elements == most && sent[p->rank] < sent[best->rank])) {
            best = p;
            most = elements;
            *part = both;
        }
    }
    return best;
}

static enum corral_status cover(struct builder *b, const struct corral_piece *to, uint32_t source_tensor,
                                struct corral_error *err)
{
    const struct corral_layout_tensor *t = &b->destination->tensor[to->tensor];
    while (b->uncovered_count > 0) {
        struct corral_box box = b->uncovered[--b->uncovered_count], part;
        const struct corral_piece *from = choose(b, source_tensor, t->dims, &box, &part);
        if (!from) {
            return corral_fail(
                err, CORRAL_INVALID,
                "tensor %s: no source rank has element [%llu, %llu, …] (%llu elements from there), "
                "which rank %u needs",
                t->name, (unsigned long long)box.first[0], (unsigned long long)box.first[1],
                (unsigned long long)corral_box_elements(&box, t->dims), to->rank);
        }
        CORRAL_TRY(push_rest(b, box, &part, t->dims, t->name, err));
        CORRAL_TRY(add_copy(b, from, to, &part, err));
    }
    return CORRAL_OK;
}

/* Parts of at most chunk_bytes, cut along the first dimension that can be. */
static enum corral_status push_chunks(struct builder *b, const struct corral_piece *to,
                                      struct corral_error *err)
{
    const struct corral_layout_tensor *t = &b->destination->tensor[to->tensor];
    uint32_t dim = 0;
    while (dim + 1 < t->dims && to->box.count[dim] == 1) {
        dim++;
    }
    uint64_t bytes = corral_reshard_piece_bytes(b->destination, to);
    uint64_t parts =
        t->dims == 0 ? 1 : CORRAL_MIN((bytes + b->chunk_bytes - 1) / b->chunk_bytes, to->box.count[dim]);
    parts = CORRAL_MIN(parts, UNCOVERED_MAX / 2);
    for (uint64_t i = 0; i < parts; i++) {
        struct corral_box box = to->box;
        if (parts > 1) {
            uint64_t n = to->box.count[dim], from = n / parts * i + CORRAL_MIN(i, n % parts);
            box.first[dim] += from;
            box.count[dim] = n / parts + (i < n % parts);
        }
        CORRAL_TRY(push(b, &box, t->name, err));
    }
    return CORRAL_OK;
}

struct sized {
    uint64_t bytes;
    uint32_t piece;
};

static int larger_first(const void *a, const void *b)
{
    const struct sized *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes > y->bytes ? -1 : 1;
    }
    return x->piece < y->piece ? -1 : x->piece > y->piece;
}

/* Large pieces first: the small ones then even out what each source sends. */
static enum corral_status cover_all(struct builder *b, struct corral_error *err)
{
    const struct corral_layout *d = b->destination;
    CORRAL_AUTO_FREE struct sized *order = calloc((size_t)d->piece_count + 1, sizeof *order);
    CORRAL_AUTO_FREE uint32_t *matched = calloc((size_t)d->tensor_count + 1, sizeof *matched);
    if (!order || !matched) {
        return corral_fail(err, CORRAL_NOMEM, "reshard plan: no memory");
    }
    for (uint32_t i = 0; i < d->piece_count; i++) {
        order[i] = (struct sized){corral_reshard_piece_bytes(d, &d->piece[i]), i};
    }
    qsort(order, d->piece_count, sizeof *order, larger_first);
    for (uint32_t i = 0; i < d->piece_count; i++) {
        const struct corral_piece *to = &d->piece[order[i].piece];
        uint32_t *source = &matched[to->tensor];
        if (*source == 0) {
            CORRAL_TRY(match_tensor(b, to->tensor, source, err));
            ++*source;
        }
        CORRAL_TRY(push_chunks(b, to, err));
        CORRAL_TRY(cover(b, to, *source - 1, err));
    }
    return CORRAL_OK;
}

/* ---- the result ---- */

static struct corral_digest hash_plan(const struct builder *b)
{
    struct corral_digest s = corral_layout_hash(b->source), d = corral_layout_hash(b->destination);
    uint64_t both[4] = {s.lo, s.hi, d.lo, d.hi};
    struct corral_digest digest = corral_digest_of(both, sizeof both);
    for (uint32_t i = 0; i < b->plan->copy_count; i++) {
        const struct corral_reshard_copy *c = &b->plan->copy[i];
        uint64_t field[8 + 3 * CORRAL_TENSOR_RANK_MAX] = {digest.lo,
                                                          digest.hi,
                                                          c->source,
                                                          c->destination,
                                                          c->dims,
                                                          c->source_offset,
                                                          c->destination_offset,
                                                          c->run_bytes};
        memcpy(field + 8, c->count, sizeof c->count);
        memcpy(field + 8 + CORRAL_TENSOR_RANK_MAX, c->source_stride, sizeof c->source_stride);
        memcpy(field + 8 + 2 * CORRAL_TENSOR_RANK_MAX, c->destination_stride, sizeof c->destination_stride);
        digest = corral_digest_of(field, sizeof field);
    }
    return digest;
}

enum corral_status corral_reshard_plan_build(const struct corral_layout *source,
                                             const struct corral_layout *destination,
                                             struct corral_reshard_plan **out, struct corral_error *err)
{
    CORRAL_CLEANUP(builder_free) struct builder b;
    CORRAL_TRY(builder_init(&b, source, destination, err));
    CORRAL_TRY(corral_reshard_check_destination(destination, err));
    CORRAL_TRY(cover_all(&b, err));
    corral_reshard_merge(b.plan);
    for (uint32_t i = 0; i < b.plan->copy_count; i++) {
        b.plan->contiguous_bytes += b.plan->copy[i].dims == 0 ? b.plan->copy[i].run_bytes : 0;
    }
    b.plan->hash = hash_plan(&b);
    *out = CORRAL_STEAL(b.plan);
    return CORRAL_OK;
}
