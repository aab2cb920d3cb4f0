/* <corral/weights.h>: describing a model and how it lies on ranks. */
#include "transport/weights/api/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 64u

static_assert((int)CORRAL_WEIGHTS_U8 == CORRAL_DTYPE_U8 && (int)CORRAL_WEIGHTS_I32 == CORRAL_DTYPE_I32 &&
                  (int)CORRAL_WEIGHTS_I64 == CORRAL_DTYPE_I64 &&
                  (int)CORRAL_WEIGHTS_F16 == CORRAL_DTYPE_F16 &&
                  (int)CORRAL_WEIGHTS_BF16 == CORRAL_DTYPE_BF16 &&
                  (int)CORRAL_WEIGHTS_F32 == CORRAL_DTYPE_F32 &&
                  (int)CORRAL_WEIGHTS_F64 == CORRAL_DTYPE_F64 &&
                  (int)CORRAL_WEIGHTS_U64 == CORRAL_DTYPE_U64 &&
                  (int)CORRAL_WEIGHTS_F8_E4M3 == CORRAL_DTYPE_F8_E4M3 &&
                  (int)CORRAL_WEIGHTS_F8_E5M2 == CORRAL_DTYPE_F8_E5M2,
              "dtypes have the same numbers inside and outside");
static_assert(CORRAL_WEIGHTS_DIMS_MAX == CORRAL_TENSOR_RANK_MAX, "as many dimensions inside and outside");

enum corral_status corral_weights_layout_create(struct corral_weights_layout **out, uint32_t ranks,
                                                struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_weights_layout *l = calloc(1, sizeof *l);
    if (!l) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a layout");
    }
    CORRAL_TRY(corral_layout_create(&l->l, ranks, err));
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

void corral_weights_layout_destroy(struct corral_weights_layout *l)
{
    if (l) {
        corral_layout_destroy(l->l);
    }
    free(l);
}

enum corral_status corral_weights_layout_tensor(struct corral_weights_layout *l, const char *name,
                                                enum corral_weights_dtype dtype, uint32_t dims,
                                                const uint64_t *shape, uint32_t *tensor,
                                                struct corral_error *err)
{
    if ((uint32_t)dtype > CORRAL_WEIGHTS_F8_E5M2 || !name || !tensor || (dims > 0 && !shape)) {
        return corral_fail(err, CORRAL_INVALID, "tensor %s: dtype %u, %u dimensions%s",
                           name ? name : "(null)", (uint32_t)dtype, dims,
                           dims > 0 && !shape ? ", no shape" : "");
    }
    return corral_layout_add_tensor(l->l, name, (enum corral_dtype)dtype, dims, shape, tensor, err);
}

enum corral_status corral_weights_layout_alias(struct corral_weights_layout *l, const char *name,
                                               uint32_t tensor, struct corral_error *err)
{
    return name ? corral_layout_add_alias(l->l, name, tensor, err)
                : corral_fail(err, CORRAL_INVALID, "an alias without a name");
}

/* CORRAL_WEIGHTS_NEXT, for a rank that is there; others are refused by name later. */
static uint64_t resolve(const struct corral_weights_layout *l, uint32_t rank, uint64_t offset)
{
    if (offset != CORRAL_WEIGHTS_NEXT || rank >= l->l->ranks) {
        return offset;
    }
    return (l->l->rank_bytes[rank] + ALIGN - 1) / ALIGN * ALIGN;
}

static enum corral_status placed_at(enum corral_status status, uint64_t offset, uint64_t *placed)
{
    if (status == CORRAL_OK && placed) {
        *placed = offset;
    }
    return status;
}

enum corral_status corral_weights_layout_whole(struct corral_weights_layout *l, uint32_t tensor,
                                               uint32_t rank, uint64_t offset, uint64_t *placed,
                                               struct corral_error *err)
{
    offset = resolve(l, rank, offset);
    return placed_at(corral_layout_add_whole(l->l, tensor, rank, offset, err), offset, placed);
}

enum corral_status corral_weights_layout_slice(struct corral_weights_layout *l, uint32_t tensor,
                                               uint32_t rank, uint32_t dim, uint64_t first, uint64_t count,
                                               uint64_t offset, uint64_t *placed, struct corral_error *err)
{
    offset = resolve(l, rank, offset);
    return placed_at(corral_layout_add_slice(l->l, tensor, rank, dim, first, count, offset, err), offset,
                     placed);
}

enum corral_status corral_weights_layout_flat(struct corral_weights_layout *l, uint32_t tensor, uint32_t rank,
                                              uint64_t first, uint64_t count, uint64_t offset,
                                              uint64_t *placed, struct corral_error *err)
{
    offset = resolve(l, rank, offset);
    return placed_at(corral_layout_add_flat(l->l, tensor, rank, first, count, offset, err), offset, placed);
}

enum corral_status corral_weights_layout_box(struct corral_weights_layout *l, uint32_t tensor, uint32_t rank,
                                             const uint64_t *first, const uint64_t *count, uint64_t offset,
                                             const uint64_t *stride, uint64_t *placed,
                                             struct corral_error *err)
{
    struct corral_box box = {.first = {0}};
    if (tensor >= l->l->tensor_count || (stride && offset == CORRAL_WEIGHTS_NEXT)) {
        return corral_fail(err, CORRAL_INVALID, "box of tensor %u of %u: %s", tensor, l->l->tensor_count,
                           stride ? "with a stride it needs an offset" : "there is no such tensor");
    }
    uint32_t dims = l->l->tensor[tensor].dims;
    if (dims > 0 && (!first || !count)) {
        return corral_fail(err, CORRAL_INVALID, "box of tensor %u: first or count is missing", tensor);
    }
    for (uint32_t d = 0; d < dims; d++) {
        box.first[d] = first[d];
        box.count[d] = count[d];
    }
    offset = resolve(l, rank, offset);
    return placed_at(corral_layout_add_box(l->l, tensor, rank, &box, offset, stride, err), offset, placed);
}

uint64_t corral_weights_layout_bytes(const struct corral_weights_layout *l, uint32_t rank)
{
    return rank < l->l->ranks ? l->l->rank_bytes[rank] : 0;
}
