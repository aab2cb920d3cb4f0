#include "transport/weights/reshard/layout.h"

#include <stdlib.h>
#include <string.h>

/* Open addressing over tensor names; a slot is index + 1. */
struct corral_layout_names {
    uint32_t capacity; /* a power of two, at most half full */
    uint32_t slot[];
};

enum corral_status corral_layout_create(struct corral_layout **out, uint32_t ranks, struct corral_error *err)
{
    if (ranks == 0 || ranks > CORRAL_LAYOUT_RANKS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "layout: %u ranks; 1 to %d are possible", ranks,
                           CORRAL_LAYOUT_RANKS_MAX);
    }
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = calloc(1, sizeof *l);
    if (l) {
        l->ranks = ranks;
        l->rank_bytes = calloc(ranks, sizeof *l->rank_bytes);
    }
    if (!l || !l->rank_bytes) {
        return corral_fail(err, CORRAL_NOMEM, "layout: no memory for %u ranks", ranks);
    }
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

void corral_layout_destroy(struct corral_layout *l)
{
    if (l) {
        free(l->tensor);
        free(l->piece);
        free(l->rank_bytes);
        free(l->names);
    }
    free(l);
}

/* ---- names ---- */

static uint32_t *name_slot(const struct corral_layout *l, struct corral_layout_names *names, const char *name)
{
    uint32_t at = (uint32_t)corral_digest_of(name, strlen(name)).lo & (names->capacity - 1);
    while (names->slot[at] != 0 && strcmp(l->tensor[names->slot[at] - 1].name, name) != 0) {
        at = (at + 1) & (names->capacity - 1);
    }
    return &names->slot[at];
}

uint32_t corral_layout_find(const struct corral_layout *l, const char *name)
{
    return l->names ? *name_slot(l, l->names, name) - 1 : UINT32_MAX;
}

static enum corral_status grow_names(struct corral_layout *l, struct corral_error *err)
{
    uint32_t capacity = l->names ? 2 * l->names->capacity : 256;
    struct corral_layout_names *names = calloc(1, sizeof *names + capacity * sizeof names->slot[0]);
    if (!names) {
        return corral_fail(err, CORRAL_NOMEM, "layout: no memory for the names of %u tensors", capacity / 2);
    }
    names->capacity = capacity;
    for (uint32_t i = 0; i < l->tensor_count; i++) {
        *name_slot(l, names, l->tensor[i].name) = i + 1;
    }
    free(l->names);
    l->names = names;
    return CORRAL_OK;
}

/* Room for one more of an array that doubles. */
static enum corral_status make_room(void **array, uint32_t *room, uint32_t count, uint32_t max, size_t each,
                                    const char *what, struct corral_error *err)
{
    if (count < *room) {
        return CORRAL_OK;
    }
    if (count >= max) {
        return corral_fail(err, CORRAL_INVALID, "layout: more than %u %s", max, what);
    }
    uint32_t wanted = CORRAL_MIN(CORRAL_MAX(2 * *room, 64u), max);
    void *grown = realloc(*array, wanted * each);
    if (!grown) {
        return corral_fail(err, CORRAL_NOMEM, "layout: no memory for %u %s", wanted, what);
    }
    *array = grown;
    *room = wanted;
    return CORRAL_OK;
}

/* ---- tensors ---- */

static enum corral_status check_shape(const char *name, enum corral_dtype dtype, uint32_t dims,
                                      const uint64_t *shape, struct corral_error *err)
{
    if (dims > CORRAL_TENSOR_RANK_MAX) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s: %u dimensions; at most %d", name, dims,
                           CORRAL_TENSOR_RANK_MAX);
    }
    uint64_t bytes = corral_dtype_bytes(dtype);
    for (uint32_t d = 0; d < dims; d++) {
        if (shape[d] == 0 || __builtin_mul_overflow(bytes, shape[d], &bytes) || bytes > INT64_MAX) {
            return corral_fail(err, CORRAL_INVALID, "tensor %s: dimension %u of %llu is not possible", name,
                               d, (unsigned long long)shape[d]);
        }
    }
    return CORRAL_OK;
}

static enum corral_status new_tensor(struct corral_layout *l, const char *name,
                                     struct corral_layout_tensor **out, struct corral_error *err)
{
    size_t length = strnlen(name, CORRAL_TENSOR_NAME_MAX);
    if (length == 0 || length == CORRAL_TENSOR_NAME_MAX) {
        return corral_fail(err, CORRAL_INVALID, "layout: a tensor's name has 1 to %d bytes",
                           CORRAL_TENSOR_NAME_MAX - 1);
    }
    if (corral_layout_find(l, name) != UINT32_MAX) {
        return corral_fail(err, CORRAL_INVALID, "layout: tensor %s is there twice", name);
    }
    CORRAL_TRY(make_room((void **)&l->tensor, &l->tensor_room, l->tensor_count, CORRAL_LAYOUT_TENSORS_MAX,
                         sizeof *l->tensor, "tensors", err));
    if (!l->names || 2 * (l->tensor_count + 1) > l->names->capacity) {
        CORRAL_TRY(grow_names(l, err));
    }
    struct corral_layout_tensor *t = &l->tensor[l->tensor_count];
    memset(t, 0, sizeof *t);
    memcpy(t->name, name, length);
    t->alias_of = l->tensor_count;
    *out = t;
    return CORRAL_OK;
}

static void accept_tensor(struct corral_layout *l)
{
    *name_slot(l, l->names, l->tensor[l->tensor_count].name) = l->tensor_count + 1;
    l->tensor_count++;
}

enum corral_status corral_layout_add_tensor(struct corral_layout *l, const char *name,
                                            enum corral_dtype dtype, uint32_t dims, const uint64_t *shape,
                                            uint32_t *out, struct corral_error *err)
{
    struct corral_layout_tensor *t;
    CORRAL_TRY(check_shape(name, dtype, dims, shape, err));
    CORRAL_TRY(new_tensor(l, name, &t, err));
    t->dtype = dtype;
    t->dims = dims;
    for (uint32_t d = 0; d < dims; d++) {
        t->shape[d] = shape[d];
    }
    *out = l->tensor_count;
    accept_tensor(l);
    return CORRAL_OK;
}

enum corral_status corral_layout_add_alias(struct corral_layout *l, const char *name, uint32_t tensor,
                                           struct corral_error *err)
{
    struct corral_layout_tensor *t;
    if (tensor >= l->tensor_count) {
        return corral_fail(err, CORRAL_INVALID, "layout: %s is tied to tensor %u of %u", name, tensor,
                           l->tensor_count);
    }
    CORRAL_TRY(new_tensor(l, name, &t, err));
    const struct corral_layout_tensor *of = &l->tensor[l->tensor[tensor].alias_of];
    t->dtype = of->dtype;
    t->dims = of->dims;
    memcpy(t->shape, of->shape, sizeof t->shape);
    t->alias_of = l->tensor[tensor].alias_of;
    accept_tensor(l);
    return CORRAL_OK;
}

/* ---- pieces ---- */

static void dense_stride(const struct corral_layout_tensor *t, const struct corral_box *box, uint64_t *stride)
{
    uint64_t bytes = corral_dtype_bytes(t->dtype);
    for (uint32_t d = t->dims; d-- > 0;) {
        stride[d] = bytes;
        bytes *= box->count[d];
    }
}

/* End of the last element, or false when it cannot be addressed. */
static bool piece_end(const struct corral_layout_tensor *t, const struct corral_piece *p, uint64_t *end)
{
    uint64_t at = p->offset;
    bool overflow = __builtin_add_overflow(at, corral_dtype_bytes(t->dtype), &at);
    for (uint32_t d = 0; d < t->dims; d++) {
        uint64_t step;
        overflow |= __builtin_mul_overflow(p->box.count[d] - 1, p->stride[d], &step);
        overflow |= __builtin_add_overflow(at, step, &at);
    }
    *end = at;
    return !overflow && at <= INT64_MAX;
}

enum corral_status corral_layout_add_box(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                         const struct corral_box *box, uint64_t offset,
                                         const uint64_t *stride, struct corral_error *err)
{
    if (tensor >= l->tensor_count || rank >= l->ranks) {
        return corral_fail(err, CORRAL_INVALID,
                           "layout: tensor %u on rank %u: there are %u tensors and %u ranks", tensor, rank,
                           l->tensor_count, l->ranks);
    }
    const struct corral_layout_tensor *t = &l->tensor[l->tensor[tensor].alias_of];
    struct corral_piece p = {.tensor = t->alias_of, .rank = rank, .offset = offset};
    for (uint32_t d = 0; d < t->dims; d++) {
        if (box->count[d] == 0 || box->first[d] >= t->shape[d] ||
            box->count[d] > t->shape[d] - box->first[d]) {
            return corral_fail(err, CORRAL_INVALID,
                               "tensor %s on rank %u: [%llu, +%llu) of dimension %u, which has %llu", t->name,
                               rank, (unsigned long long)box->first[d], (unsigned long long)box->count[d], d,
                               (unsigned long long)t->shape[d]);
        }
        p.box.first[d] = box->first[d];
        p.box.count[d] = box->count[d];
        p.stride[d] = stride ? stride[d] : 0;
    }
    if (!stride) {
        dense_stride(t, &p.box, p.stride);
    }
    uint64_t end;
    if (!piece_end(t, &p, &end)) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s on rank %u: ends beyond any address", t->name,
                           rank);
    }
    CORRAL_TRY(make_room((void **)&l->piece, &l->piece_room, l->piece_count, CORRAL_LAYOUT_PIECES_MAX,
                         sizeof *l->piece, "pieces", err));
    l->piece[l->piece_count++] = p;
    l->rank_bytes[rank] = CORRAL_MAX(l->rank_bytes[rank], end);
    return CORRAL_OK;
}

static struct corral_box whole(const struct corral_layout_tensor *t)
{
    struct corral_box box = {0};
    for (uint32_t d = 0; d < t->dims; d++) {
        box.count[d] = t->shape[d];
    }
    return box;
}

enum corral_status corral_layout_add_whole(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                           uint64_t offset, struct corral_error *err)
{
    struct corral_box box = {0};
    if (tensor < l->tensor_count) {
        box = whole(&l->tensor[tensor]);
    }
    return corral_layout_add_box(l, tensor, rank, &box, offset, NULL, err);
}

enum corral_status corral_layout_add_slice(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                           uint32_t dim, uint64_t first, uint64_t count, uint64_t offset,
                                           struct corral_error *err)
{
    struct corral_box box = {0};
    if (tensor < l->tensor_count) {
        const struct corral_layout_tensor *t = &l->tensor[tensor];
        if (dim >= t->dims) {
            return corral_fail(err, CORRAL_INVALID, "tensor %s: cut along dimension %u of %u", t->name, dim,
                               t->dims);
        }
        box = whole(t);
        box.first[dim] = first;
        box.count[dim] = count;
    }
    return corral_layout_add_box(l, tensor, rank, &box, offset, NULL, err);
}

struct flat {
    struct corral_layout *l;
    const struct corral_layout_tensor *t;
    uint32_t tensor, rank;
    uint64_t offset; /* of the next box */
    struct corral_box box;
};

static enum corral_status add_flat_box(struct flat *f, struct corral_error *err)
{
    CORRAL_TRY(corral_layout_add_box(f->l, f->tensor, f->rank, &f->box, f->offset, NULL, err));
    f->offset += corral_box_elements(&f->box, f->t->dims) * corral_dtype_bytes(f->t->dtype);
    return CORRAL_OK;
}

/* Elements [first, end) of the sub-tensor of dimensions dim.., the indices before it fixed in f->box: a part of the first row, whole rows, a part of the last. */
static enum corral_status add_flat_rows(struct flat *f, uint32_t dim, uint64_t first, uint64_t end,
                                        struct corral_error *err)
{
    uint64_t row = 1;
    for (uint32_t d = dim + 1; d < f->t->dims; d++) {
        row *= f->t->shape[d];
    }
    if (first % row != 0) {
        uint64_t stop = CORRAL_MIN(end, (first / row + 1) * row);
        f->box.first[dim] = first / row;
        f->box.count[dim] = 1;
        CORRAL_TRY(add_flat_rows(f, dim + 1, first % row, stop - first / row * row, err));
        first = stop;
    }
    if (end / row > first / row) {
        f->box.first[dim] = first / row;
        f->box.count[dim] = end / row - first / row;
        for (uint32_t d = dim + 1; d < f->t->dims; d++) {
            f->box.first[d] = 0;
            f->box.count[d] = f->t->shape[d];
        }
        CORRAL_TRY(add_flat_box(f, err));
        first = end / row * row;
    }
    if (first < end) {
        f->box.first[dim] = first / row;
        f->box.count[dim] = 1;
        return add_flat_rows(f, dim + 1, 0, end - first, err);
    }
    return CORRAL_OK;
}

enum corral_status corral_layout_add_flat(struct corral_layout *l, uint32_t tensor, uint32_t rank,
                                          uint64_t first, uint64_t count, uint64_t offset,
                                          struct corral_error *err)
{
    if (tensor >= l->tensor_count) {
        return corral_fail(err, CORRAL_INVALID, "layout: no tensor %u", tensor);
    }
    /* A copy: adding pieces never moves tensors, but the compiler and a reader need not know that. */
    struct corral_layout_tensor t = l->tensor[tensor];
    struct corral_box all = whole(&t);
    uint64_t elements = corral_box_elements(&all, t.dims);
    if (count == 0 || first >= elements || count > elements - first) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s on rank %u: elements [%llu, +%llu) of %llu",
                           t.name, rank, (unsigned long long)first, (unsigned long long)count,
                           (unsigned long long)elements);
    }
    if (t.dims == 0) {
        return corral_layout_add_whole(l, tensor, rank, offset, err);
    }
    struct flat f = {.l = l, .t = &t, .tensor = tensor, .rank = rank, .offset = offset, .box = all};
    uint32_t pieces = l->piece_count;
    enum corral_status status = add_flat_rows(&f, 0, first, first + count, err);
    if (status != CORRAL_OK) {
        l->piece_count = pieces;
    }
    return status;
}

/* ---- boxes ---- */

uint64_t corral_box_elements(const struct corral_box *box, uint32_t dims)
{
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; d++) {
        elements *= box->count[d];
    }
    return elements;
}

bool corral_box_intersect(const struct corral_box *a, const struct corral_box *b, uint32_t dims,
                          struct corral_box *out)
{
    struct corral_box both = {0};
    for (uint32_t d = 0; d < dims; d++) {
        uint64_t first = CORRAL_MAX(a->first[d], b->first[d]);
        uint64_t end = CORRAL_MIN(a->first[d] + a->count[d], b->first[d] + b->count[d]);
        if (first >= end) {
            return false;
        }
        both.first[d] = first;
        both.count[d] = end - first;
    }
    *out = both;
    return true;
}

/* ---- digest ---- */

struct corral_digest corral_layout_hash(const struct corral_layout *l)
{
    /* Digests of the parts, then one over them: field by field, so that padding does not count. */
    struct corral_digest digest = {l->ranks, l->tensor_count};
    for (uint32_t i = 0; i < l->tensor_count; i++) {
        const struct corral_layout_tensor *t = &l->tensor[i];
        struct corral_digest name = corral_digest_of(t->name, strlen(t->name));
        uint64_t field[7 + CORRAL_TENSOR_RANK_MAX] = {digest.lo,          digest.hi, name.lo,    name.hi,
                                                      (uint64_t)t->dtype, t->dims,   t->alias_of};
        memcpy(field + 7, t->shape, sizeof t->shape);
        digest = corral_digest_of(field, sizeof field);
    }
    for (uint32_t i = 0; i < l->piece_count; i++) {
        const struct corral_piece *p = &l->piece[i];
        uint64_t field[5 + 3 * CORRAL_TENSOR_RANK_MAX] = {digest.lo, digest.hi, p->tensor, p->rank,
                                                          p->offset};
        memcpy(field + 5, p->box.first, sizeof p->box.first);
        memcpy(field + 5 + CORRAL_TENSOR_RANK_MAX, p->box.count, sizeof p->box.count);
        memcpy(field + 5 + 2 * CORRAL_TENSOR_RANK_MAX, p->stride, sizeof p->stride);
        digest = corral_digest_of(field, sizeof field);
    }
    return digest;
}
