#include "transport/weights/api/layout_bytes.h"
#include "transport/weights/wire.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x31594c43u /* "CLY1" */
#define HEADER_BYTES 16u
#define TENSOR_BYTES 8u   /* before shape and name */
#define PIECE_BYTES 16u   /* before the box */
#define PER_DIM_BYTES 24u /* of a piece */

uint64_t corral_layout_saved_bytes(const struct corral_layout *l)
{
    uint64_t bytes = HEADER_BYTES;
    for (uint32_t i = 0; i < l->tensor_count; i++) {
        const struct corral_layout_tensor *t = &l->tensor[i];
        bytes += TENSOR_BYTES + strlen(t->name) + (t->alias_of == i ? 8u * t->dims : 0);
    }
    for (uint32_t i = 0; i < l->piece_count; i++) {
        bytes += PIECE_BYTES + (uint64_t)PER_DIM_BYTES * l->tensor[l->piece[i].tensor].dims;
    }
    return bytes;
}

static uint8_t *save_tensor(const struct corral_layout_tensor *t, uint32_t index, uint8_t *at)
{
    bool alias = t->alias_of != index;
    size_t name = strlen(t->name);
    at[0] = (uint8_t)name;
    at[1] = alias ? 0 : (uint8_t)t->dtype;
    at[2] = alias ? 0 : (uint8_t)t->dims;
    at[3] = 0;
    wire_put_u32(at + 4, t->alias_of);
    at += TENSOR_BYTES;
    for (uint32_t d = 0; !alias && d < t->dims; d++, at += 8) {
        wire_put_u64(at, t->shape[d]);
    }
    memcpy(at, t->name, name);
    return at + name;
}

static uint8_t *save_piece(const struct corral_piece *p, uint32_t dims, uint8_t *at)
{
    wire_put_u32(at, p->tensor);
    wire_put_u32(at + 4, p->rank);
    wire_put_u64(at + 8, p->offset);
    at += PIECE_BYTES;
    for (uint32_t d = 0; d < dims; d++, at += PER_DIM_BYTES) {
        wire_put_u64(at, p->box.first[d]);
        wire_put_u64(at + 8, p->box.count[d]);
        wire_put_u64(at + 16, p->stride[d]);
    }
    return at;
}

void corral_layout_save(const struct corral_layout *l, uint8_t *out)
{
    wire_put_u32(out, MAGIC);
    wire_put_u32(out + 4, l->ranks);
    wire_put_u32(out + 8, l->tensor_count);
    wire_put_u32(out + 12, l->piece_count);
    uint8_t *at = out + HEADER_BYTES;
    for (uint32_t i = 0; i < l->tensor_count; i++) {
        at = save_tensor(&l->tensor[i], i, at);
    }
    for (uint32_t i = 0; i < l->piece_count; i++) {
        at = save_piece(&l->piece[i], l->tensor[l->piece[i].tensor].dims, at);
    }
}

struct reader {
    const uint8_t *at, *end;
};

/* The next `bytes`, or NULL when there are not so many. */
static const uint8_t *take(struct reader *r, uint64_t bytes)
{
    if ((uint64_t)(r->end - r->at) < bytes) {
        return NULL;
    }
    const uint8_t *from = r->at;
    r->at += bytes;
    return from;
}

static enum corral_status cut_short(struct corral_error *err)
{
    return corral_fail(err, CORRAL_PROTOCOL, "saved layout: it ends too early");
}

static enum corral_status load_tensor(struct corral_layout *l, struct reader *r, struct corral_error *err)
{
    uint32_t index = l->tensor_count, added;
    uint64_t shape[CORRAL_TENSOR_RANK_MAX];
    char name[CORRAL_TENSOR_NAME_MAX];
    const uint8_t *head = take(r, TENSOR_BYTES);
    if (!head) {
        return cut_short(err);
    }
    uint32_t length = head[0], dtype = head[1], dims = head[2], alias_of = wire_get_u32(head + 4);
    if (length == 0 || length >= sizeof name || dtype > CORRAL_DTYPE_F8_E5M2 ||
        dims > CORRAL_TENSOR_RANK_MAX || head[3] != 0 || alias_of > index ||
        (alias_of < index && (dtype != 0 || dims != 0))) {
        return corral_fail(err, CORRAL_PROTOCOL, "saved layout: tensor %u is malformed", index);
    }
    for (uint32_t d = 0; d < dims; d++) {
        const uint8_t *value = take(r, 8);
        if (!value) {
            return cut_short(err);
        }
        shape[d] = wire_get_u64(value);
    }
    const uint8_t *text = take(r, length);
    if (!text || memchr(text, '\0', length)) {
        return text ? corral_fail(err, CORRAL_PROTOCOL, "saved layout: the name of tensor %u is malformed",
                                  index)
                    : cut_short(err);
    }
    memcpy(name, text, length);
    name[length] = '\0';
    if (alias_of < index) {
        return l->tensor[alias_of].alias_of == alias_of
                   ? corral_layout_add_alias(l, name, alias_of, err)
                   : corral_fail(err, CORRAL_PROTOCOL, "saved layout: tensor %u is tied to a tied one",
                                 index);
    }
    return corral_layout_add_tensor(l, name, (enum corral_dtype)dtype, dims, shape, &added, err);
}

static enum corral_status load_piece(struct corral_layout *l, struct reader *r, struct corral_error *err)
{
    const uint8_t *head = take(r, PIECE_BYTES);
    if (!head) {
        return cut_short(err);
    }
    uint32_t tensor = wire_get_u32(head);
    if (tensor >= l->tensor_count || l->tensor[tensor].alias_of != tensor) {
        return corral_fail(err, CORRAL_PROTOCOL, "saved layout: piece %u is of tensor %u", l->piece_count,
                           tensor);
    }
    struct corral_box box = {.first = {0}};
    uint64_t stride[CORRAL_TENSOR_RANK_MAX] = {0};
    for (uint32_t d = 0; d < l->tensor[tensor].dims; d++) {
        const uint8_t *dim = take(r, PER_DIM_BYTES);
        if (!dim) {
            return cut_short(err);
        }
        box.first[d] = wire_get_u64(dim);
        box.count[d] = wire_get_u64(dim + 8);
        stride[d] = wire_get_u64(dim + 16);
    }
    return corral_layout_add_box(l, tensor, wire_get_u32(head + 4), &box, wire_get_u64(head + 8), stride,
                                 err);
}

enum corral_status corral_layout_load(struct corral_layout **out, const uint8_t *data, uint64_t bytes,
                                      struct corral_error *err)
{
    struct reader r = {data, data + bytes};
    const uint8_t *head = take(&r, HEADER_BYTES);
    if (!head || wire_get_u32(head) != MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "not a saved layout");
    }
    uint32_t tensors = wire_get_u32(head + 8), pieces = wire_get_u32(head + 12);
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(corral_layout_create(&l, wire_get_u32(head + 4), err));
    for (uint32_t i = 0; i < tensors; i++) {
        CORRAL_TRY(load_tensor(l, &r, err));
    }
    for (uint32_t i = 0; i < pieces; i++) {
        CORRAL_TRY(load_piece(l, &r, err));
    }
    if (r.at != r.end) {
        return corral_fail(err, CORRAL_PROTOCOL, "saved layout: %td bytes too many", r.end - r.at);
    }
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

static bool same_tensor(const struct corral_layout *a, uint32_t i, const struct corral_layout *b, uint32_t k)
{
    const struct corral_layout_tensor *x = &a->tensor[i], *y = &b->tensor[k];
    return x->dtype == y->dtype && x->dims == y->dims &&
           memcmp(x->shape, y->shape, x->dims * sizeof x->shape[0]) == 0 &&
           strcmp(a->tensor[x->alias_of].name, b->tensor[y->alias_of].name) == 0;
}

static enum corral_status merge_tensor(struct corral_layout *l, const struct corral_layout *from, uint32_t i,
                                       uint32_t *out, struct corral_error *err)
{
    const struct corral_layout_tensor *t = &from->tensor[i];
    uint32_t have = corral_layout_find(l, t->name);
    if (have != UINT32_MAX) {
        *out = have;
        return same_tensor(l, have, from, i)
                   ? CORRAL_OK
                   : corral_fail(
                         err, CORRAL_INVALID,
                         "layouts cannot be merged: tensor %s has another dtype, shape or tie in each",
                         t->name);
    }
    *out = l->tensor_count;
    return t->alias_of == i ? corral_layout_add_tensor(l, t->name, t->dtype, t->dims, t->shape, out, err)
                            : corral_layout_add_alias(
                                  l, t->name, corral_layout_find(l, from->tensor[t->alias_of].name), err);
}

enum corral_status corral_layout_merge(struct corral_layout *l, const struct corral_layout *from,
                                       struct corral_error *err)
{
    if (l->ranks != from->ranks) {
        return corral_fail(err, CORRAL_INVALID, "layouts cannot be merged: %u ranks and %u", l->ranks,
                           from->ranks);
    }
    CORRAL_AUTO_FREE uint32_t *index = calloc((size_t)from->tensor_count + 1, sizeof *index);
    if (!index) {
        return corral_fail(err, CORRAL_NOMEM, "layout: no memory to merge %u tensors", from->tensor_count);
    }
    for (uint32_t i = 0; i < from->tensor_count; i++) {
        CORRAL_TRY(merge_tensor(l, from, i, &index[i], err));
    }
    for (uint32_t i = 0; i < from->piece_count; i++) {
        const struct corral_piece *p = &from->piece[i];
        CORRAL_TRY(corral_layout_add_box(l, index[p->tensor], p->rank, &p->box, p->offset, p->stride, err));
    }
    return CORRAL_OK;
}
