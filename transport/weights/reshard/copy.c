#include "transport/weights/reshard/internal.h"

#include <stdlib.h>
#include <string.h>

void corral_reshard_make_copy(const struct corral_piece *from, const struct corral_piece *to,
                              const struct corral_box *box, uint32_t dims, uint32_t element_bytes,
                              struct corral_reshard_copy *out)
{
    struct corral_reshard_copy c = {.source = from->rank,
                                    .destination = to->rank,
                                    .tensor = to->tensor,
                                    .source_offset = from->offset,
                                    .destination_offset = to->offset,
                                    .run_bytes = element_bytes};
    /* Loops from the inside out, in reverse; a dimension that continues the one inside it on both sides is that one, longer. */
    for (uint32_t d = dims; d-- > 0;) {
        c.source_offset += (box->first[d] - from->box.first[d]) * from->stride[d];
        c.destination_offset += (box->first[d] - to->box.first[d]) * to->stride[d];
        uint64_t n = box->count[d];
        if (n == 1) {
            continue;
        }
        uint32_t in = c.dims - 1;
        if (c.dims == 0 && from->stride[d] == c.run_bytes && to->stride[d] == c.run_bytes) {
            c.run_bytes *= n;
        } else if (c.dims > 0 && from->stride[d] == c.source_stride[in] * c.count[in] &&
                   to->stride[d] == c.destination_stride[in] * c.count[in]) {
            c.count[in] *= n;
        } else {
            c.count[c.dims] = n;
            c.source_stride[c.dims] = from->stride[d];
            c.destination_stride[c.dims] = to->stride[d];
            c.dims++;
        }
    }
    *out = c;
    for (uint32_t i = 0; i < c.dims; i++) { /* outermost first */
        out->count[i] = c.count[c.dims - 1 - i];
        out->source_stride[i] = c.source_stride[c.dims - 1 - i];
        out->destination_stride[i] = c.destination_stride[c.dims - 1 - i];
    }
}

/* ---- joining ---- */

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

static int by_place(const void *a, const void *b)
{
    const struct corral_reshard_copy *x = a, *y = b;
    int order = compare_u64(x->source, y->source);
    order = order ? order : compare_u64(x->destination, y->destination);
    return order ? order : compare_u64(x->destination_offset, y->destination_offset);
}

static bool same_ranks(const struct corral_reshard_copy *a, const struct corral_reshard_copy *b)
{
    return a->source == b->source && a->destination == b->destination;
}

/* b continues a: as one longer run, or as more turns of the same single loop. */
static bool join(struct corral_reshard_copy *a, const struct corral_reshard_copy *b)
{
    if (!same_ranks(a, b) || a->dims != b->dims || a->dims > 1) {
        return false;
    }
    uint64_t source_bytes = a->run_bytes, destination_bytes = a->run_bytes;
    if (a->dims == 1) {
        if (a->run_bytes != b->run_bytes || a->source_stride[0] != b->source_stride[0] ||
            a->destination_stride[0] != b->destination_stride[0]) {
            return false;
        }
        source_bytes = a->count[0] * a->source_stride[0];
        destination_bytes = a->count[0] * a->destination_stride[0];
    }
    if (a->source_offset + source_bytes != b->source_offset ||
        a->destination_offset + destination_bytes != b->destination_offset) {
        return false;
    }
    if (a->dims == 1) {
        a->count[0] += b->count[0];
    } else {
        a->run_bytes += b->run_bytes;
    }
    a->tensor = a->tensor == b->tensor ? a->tensor : UINT32_MAX;
    return true;
}

void corral_reshard_merge(struct corral_reshard_plan *plan)
{
    if (plan->copy_count == 0) {
        return;
    }
    qsort(plan->copy, plan->copy_count, sizeof *plan->copy, by_place);
    uint32_t kept = 0;
    for (uint32_t i = 1; i < plan->copy_count; i++) {
        if (!join(&plan->copy[kept], &plan->copy[i])) {
            plan->copy[++kept] = plan->copy[i];
        }
    }
    plan->copy_count = kept + 1;
}

/* ---- doing it ---- */

uint64_t corral_reshard_copy_bytes(const struct corral_reshard_copy *copy)
{
    uint64_t bytes = copy->run_bytes;
    for (uint32_t i = 0; i < copy->dims; i++) {
        bytes *= copy->count[i];
    }
    return bytes;
}

/* The loops over two sides, each with its strides; a packed side's strides are those of its own runs. */
static void run_loops(const struct corral_reshard_copy *c, uint32_t level, const uint8_t *source,
                      const uint64_t *source_stride, uint8_t *destination, const uint64_t *destination_stride)
{
    if (level == c->dims) {
        memcpy(destination, source, c->run_bytes);
        return;
    }
    for (uint64_t i = 0; i < c->count[level]; i++) {
        run_loops(c, level + 1, source + i * source_stride[level], source_stride,
                  destination + i * destination_stride[level], destination_stride);
    }
}

static void packed_stride(const struct corral_reshard_copy *c, uint64_t *stride)
{
    uint64_t bytes = c->run_bytes;
    for (uint32_t i = c->dims; i-- > 0;) {
        stride[i] = bytes;
        bytes *= c->count[i];
    }
}

void corral_reshard_copy_run(const struct corral_reshard_copy *copy, const void *source, void *destination)
{
    run_loops(copy, 0, (const uint8_t *)source + copy->source_offset, copy->source_stride,
              (uint8_t *)destination + copy->destination_offset, copy->destination_stride);
}

void corral_reshard_copy_pack(const struct corral_reshard_copy *copy, const void *source, void *packed)
{
    uint64_t stride[CORRAL_TENSOR_RANK_MAX];
    packed_stride(copy, stride);
    run_loops(copy, 0, (const uint8_t *)source + copy->source_offset, copy->source_stride, packed, stride);
}

void corral_reshard_copy_unpack(const struct corral_reshard_copy *copy, const void *packed, void *destination)
{
    uint64_t stride[CORRAL_TENSOR_RANK_MAX];
    packed_stride(copy, stride);
    run_loops(copy, 0, packed, stride, (uint8_t *)destination + copy->destination_offset,
              copy->destination_stride);
}
