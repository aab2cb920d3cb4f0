#include "transport/weights/api/memory.h"
#include "transport/weights/link/shard_cuda.h"

#include <endian.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define REGIONS_MAX (1u << 20)

#define DEVICES_MAX 64
#define STAGING_BYTES 65536u /* for digesting what lies on a device */

struct corral_memory {
    uint64_t bytes; /* of the rank's range */
    struct corral_shard shard;
    const struct corral_cuda *cuda;           /* when a region is on a device */
    corral_cuda_context context[DEVICES_MAX]; /* retained */
    uint32_t count;
    struct corral_weights_region region[]; /* by offset */
};

/* ---- bytes of the range ---- */

/* The region that `offset` is in; the layout's pieces are covered, so there is one. */
static const struct corral_weights_region *region_at(const struct corral_memory *m, uint64_t offset)
{
    uint32_t low = 0, high = m->count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (m->region[middle].offset <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const struct corral_weights_region *r = &m->region[low];
    return offset >= r->offset && offset - r->offset < r->bytes ? r : NULL;
}

/* What is to happen with the bytes at an address. */
enum move { MOVE_OUT, MOVE_IN, MOVE_DIGEST };
struct mover {
    enum move move;
    uint8_t *packed; /* moves on */
    struct corral_digest_state *digest;
};

/* Between a device and host memory, synchronously. */
static enum corral_status move_device(const struct corral_memory *m, const struct corral_weights_region *r,
                                      uint64_t within, uint64_t bytes, struct mover *v,
                                      struct corral_error *err)
{
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    uint64_t at = (uint64_t)(uintptr_t)r->address + within;
    CORRAL_TRY(corral_cuda_enter(&scope, m->cuda, m->context[r->device], err));
    if (v->move == MOVE_IN) {
        CORRAL_CUDA_TRY(m->cuda, cuMemcpyHtoD(at, v->packed, bytes), err, "copy weights to device %d",
                        r->device);
        v->packed += bytes;
        return CORRAL_OK;
    }
    if (v->move == MOVE_OUT) {
        CORRAL_CUDA_TRY(m->cuda, cuMemcpyDtoH(v->packed, at, bytes), err, "copy weights from device %d",
                        r->device);
        v->packed += bytes;
        return CORRAL_OK;
    }
    uint8_t staging[STAGING_BYTES];
    for (uint64_t n; bytes > 0; at += n, bytes -= n) {
        n = CORRAL_MIN(bytes, (uint64_t)sizeof staging);
        CORRAL_CUDA_TRY(m->cuda, cuMemcpyDtoH(staging, at, n), err, "copy weights from device %d", r->device);
        corral_digest_add(v->digest, staging, n);
    }
    return CORRAL_OK;
}

static enum corral_status move_bytes(const struct corral_memory *m, const struct corral_weights_region *r,
                                     uint64_t within, uint64_t bytes, struct mover *v,
                                     struct corral_error *err)
{
    uint8_t *at = (uint8_t *)r->address + within;
    if (r->device >= 0) {
        return move_device(m, r, within, bytes, v, err);
    }
    if (v->move == MOVE_DIGEST) {
        corral_digest_add(v->digest, at, bytes);
        return CORRAL_OK;
    }
    memcpy(v->move == MOVE_OUT ? v->packed : at, v->move == MOVE_OUT ? at : v->packed, bytes);
    v->packed += bytes;
    return CORRAL_OK;
}

static enum corral_status move_span(const struct corral_memory *m, uint64_t offset, uint64_t bytes,
                                    struct mover *v, struct corral_error *err)
{
    while (bytes > 0) {
        const struct corral_weights_region *r = region_at(m, offset);
        if (!r) {
            return corral_fail(err, CORRAL_INVALID, "no region has byte %" PRIu64 " of this rank", offset);
        }
        uint64_t within = offset - r->offset, n = CORRAL_MIN(bytes, r->bytes - within);
        CORRAL_TRY(move_bytes(m, r, within, n, v, err));
        offset += n;
        bytes -= n;
    }
    return CORRAL_OK;
}

static enum corral_status move_bucket(const struct corral_memory *m, const struct corral_link *link,
                                      enum corral_link_side side, uint32_t bucket, struct mover *v,
                                      struct corral_error *err)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_span span;
    while (corral_link_next(link, &cursor, &span)) {
        uint64_t offset = side == CORRAL_LINK_SOURCE ? span.source_offset : span.destination_offset;
        CORRAL_TRY(move_span(m, offset, span.bytes, v, err));
    }
    return CORRAL_OK;
}

/* ---- the shard's ops ---- */

static enum corral_status gather(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err)
{
    struct mover v = {.move = MOVE_OUT, .packed = packed};
    return move_bucket(shard->ctx, link, CORRAL_LINK_SOURCE, bucket, &v, err);
}

static enum corral_status scatter(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                  const void *packed, struct corral_error *err)
{
    union {
        const void *from;
        uint8_t *moved; /* only read from with MOVE_IN */
    } bytes = {.from = packed};
    struct mover v = {.move = MOVE_IN, .packed = bytes.moved};
    return move_bucket(shard->ctx, link, CORRAL_LINK_DESTINATION, bucket, &v, err);
}

/* The definition of corral_link_digest(). */
static enum corral_status digest(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err)
{
    struct corral_digest_state state;
    uint64_t head[3] = {htole64(link->hash.lo), htole64(link->hash.hi), htole64(bucket)};
    struct mover v = {.move = MOVE_DIGEST, .digest = &state};
    corral_digest_begin(&state);
    corral_digest_add(&state, head, sizeof head);
    CORRAL_TRY(move_bucket(shard->ctx, link, side, bucket, &v, err));
    *out = corral_digest_end(&state);
    return CORRAL_OK;
}

static const struct corral_shard_ops regions_ops = {
    .name = "regions", .gather = gather, .scatter = scatter, .digest = digest};

struct corral_shard corral_memory_shard(struct corral_memory *m)
{
    return m->shard;
}

enum corral_status corral_memory_read(const struct corral_memory *m, uint64_t offset, uint64_t bytes,
                                      void *out, struct corral_error *err)
{
    struct mover v = {.move = MOVE_OUT, .packed = out};
    return move_span(m, offset, bytes, &v, err);
}

enum corral_status corral_memory_fill(struct corral_memory *m, const void *range, struct corral_error *err)
{
    union {
        const void *from;
        uint8_t *moved; /* only read from with MOVE_IN */
    } bytes = {.from = range};
    for (uint32_t i = 0; i < m->count; i++) {
        const struct corral_weights_region *r = &m->region[i];
        if (r->offset < m->bytes) {
            struct mover v = {.move = MOVE_IN, .packed = bytes.moved + r->offset};
            CORRAL_TRY(move_bytes(m, r, 0, CORRAL_MIN(r->bytes, m->bytes - r->offset), &v, err));
        }
    }
    return CORRAL_OK;
}

/* ---- making ---- */

static int by_offset(const void *a, const void *b)
{
    const struct corral_weights_region *x = a, *y = b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static enum corral_status take_regions(struct corral_memory *m, const struct corral_weights_region *regions,
                                       uint32_t count, struct corral_error *err)
{
    uint32_t stride = regions[0].size;
    if (stride < offsetof(struct corral_weights_region, address) + sizeof(void *) || stride > 4096 ||
        stride % 8 != 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "regions[0].size is %u; set it to sizeof(struct corral_weights_region)", stride);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct corral_weights_region *r = &m->region[i];
        memcpy(r, (const char *)regions + (uint64_t)i * stride, sizeof *r);
        if (r->size != stride || r->bytes == 0 || !r->address || r->offset + r->bytes < r->offset) {
            return corral_fail(err, CORRAL_INVALID, "region %u: size, bytes or address is not possible", i);
        }
        if (r->device >= DEVICES_MAX) {
            return corral_fail(err, CORRAL_INVALID, "region %u: CUDA device %d", i, r->device);
        }
    }
    m->count = count;
    qsort(m->region, count, sizeof m->region[0], by_offset);
    for (uint32_t i = 1; i < count; i++) {
        if (m->region[i].offset - m->region[i - 1].offset < m->region[i - 1].bytes) {
            return corral_fail(err, CORRAL_INVALID, "regions overlap at byte %" PRIu64, m->region[i].offset);
        }
    }
    return CORRAL_OK;
}

/* From its first byte to its last a piece must lie in regions that follow each other. */
static enum corral_status check_piece(const struct corral_memory *m, const struct corral_layout *l,
                                      const struct corral_piece *p, struct corral_error *err)
{
    const struct corral_layout_tensor *t = &l->tensor[p->tensor];
    uint64_t at = p->offset, end = at + corral_dtype_bytes(t->dtype);
    for (uint32_t d = 0; d < t->dims; d++) {
        end += (p->box.count[d] - 1) * p->stride[d];
    }
    while (at < end) {
        const struct corral_weights_region *r = region_at(m, at);
        if (!r) {
            return corral_fail(err, CORRAL_INVALID,
                               "tensor %s on rank %u: no region has byte %" PRIu64 " of the rank's range",
                               t->name, p->rank, at);
        }
        at = r->offset + r->bytes;
    }
    return CORRAL_OK;
}

static enum corral_status open_devices(struct corral_memory *m, struct corral_error *err)
{
    for (uint32_t i = 0; i < m->count; i++) {
        int device = m->region[i].device;
        if (device < 0) {
            continue;
        }
        CORRAL_TRY(corral_cuda_open(&m->cuda, err));
        if (!m->context[device]) {
            CORRAL_TRY(corral_cuda_primary(m->cuda, device, &m->context[device], err));
        }
    }
    return CORRAL_OK;
}

/* One region that is the whole range: lanes may read and write it in place. */
static enum corral_status make_shard(struct corral_memory *m, struct corral_error *err)
{
    const struct corral_weights_region *r = m->region;
    bool one = m->count == 1 && r->offset == 0 && r->bytes >= m->bytes;
    if (one && r->device >= 0) {
        return corral_shard_cuda_open(&m->shard, (uint64_t)(uintptr_t)r->address, r->bytes, r->device, NULL,
                                      err);
    }
    m->shard =
        one ? corral_shard_host(r->address, r->bytes)
            : (struct corral_shard){.ops = &regions_ops, .bytes = m->bytes, .fd = -1, .device = -1, .ctx = m};
    return CORRAL_OK;
}

enum corral_status corral_memory_create(struct corral_memory **out, const struct corral_layout *layout,
                                        uint32_t rank, const struct corral_weights_region *regions,
                                        uint32_t count, struct corral_error *err)
{
    if (rank >= layout->ranks) {
        return corral_fail(err, CORRAL_INVALID, "rank %u of a layout of %u", rank, layout->ranks);
    }
    if (!regions || count == 0 || count > REGIONS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%u regions; 1 to %u are possible", count, REGIONS_MAX);
    }
    CORRAL_CLEANUP(corral_memory_destroyp)
    struct corral_memory *m = calloc(1, sizeof *m + count * sizeof m->region[0]);
    if (!m) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for %u regions", count);
    }
    m->bytes = layout->rank_bytes[rank];
    CORRAL_TRY(take_regions(m, regions, count, err));
    for (uint32_t i = 0; i < layout->piece_count; i++) {
        if (layout->piece[i].rank == rank) {
            CORRAL_TRY(check_piece(m, layout, &layout->piece[i], err));
        }
    }
    CORRAL_TRY(open_devices(m, err));
    CORRAL_TRY(make_shard(m, err));
    *out = CORRAL_STEAL(m);
    return CORRAL_OK;
}

uint64_t corral_memory_staging(struct corral_memory *m)
{
    return m->shard.ops == &corral_shard_cuda_ops ? corral_shard_cuda_memory(&m->shard) : 0;
}

uint64_t corral_memory_staging_max(const struct corral_memory *m)
{
    return m->shard.ops == &corral_shard_cuda_ops
               ? UINT64_C(2) * CORRAL_SHARD_CUDA_SLOTS * CORRAL_SHARD_CUDA_HALF_BYTES
               : 0;
}

void corral_memory_destroy(struct corral_memory *m)
{
    if (!m) {
        return;
    }
    if (m->shard.ops == &corral_shard_cuda_ops) {
        corral_shard_cuda_close(&m->shard);
    }
    for (int i = 0; m->cuda && i < DEVICES_MAX; i++) {
        if (m->context[i]) {
            (void)m->cuda->cuDevicePrimaryCtxRelease(i);
        }
    }
    free(m);
}
