/* The shard that makes a bucket's bytes out of the trainer's: each piece of the cast layout is a segment of the rank's range, produced row by row. */
#include "transport/weights/cast/internal.h"
#include "transport/weights/cast/plan.h"

#include <endian.h>
#include <inttypes.h>
#include <pthread.h>

#define CHUNK 2048u /* elements at once; a multiple of a block */
#define ELEMENT_MAX 8u

_Static_assert(CHUNK % CORRAL_CAST_BLOCK == 0, "chunks begin at blocks");

struct segment {
    uint64_t offset, bytes; /* in the cast range */
    bool is_scale;
    enum corral_dtype from, to;
    enum corral_cast_scaling scaling;
    uint64_t rows, inner; /* elements: `rows` rows of `inner` that are contiguous in the trainer's memory */
    uint32_t outer;       /* dimensions that count the rows */
    uint64_t count[CORRAL_TENSOR_RANK_MAX], stride[CORRAL_TENSOR_RANK_MAX], origin;
    uint64_t matrix_rows; /* of one matrix, for tiles */
    float *scale;         /* of the values, and what a scale segment is */
};

struct corral_cast_source {
    struct corral_cast_memory memory;
    const struct corral_cast_kernels *kernels;
    uint64_t bytes, scales;
    float *scale;
    pthread_mutex_t lock;           /* guards what follows */
    bool last;                      /* there is one */
    struct corral_digest last_link; /* its hash */
    uint32_t last_bucket;
    struct corral_digest last_digest; /* of the bucket gathered last, for who asks for it next */
    uint32_t count;
    struct segment segment[];
};

/* ---- making ---- */

static void shape_rows(struct segment *g, const struct corral_layout_tensor *t, const struct corral_piece *p)
{
    uint32_t element = corral_dtype_bytes(t->dtype), d = t->dims;
    g->inner = g->rows = 1;
    g->origin = p->offset;
    if (d > 0) {
        g->inner = p->box.count[--d];
    }
    /* Without scales rows that follow each other are one. */
    while (d > 0 && g->scaling == CORRAL_CAST_NONE && p->stride[d - 1] == g->inner * element) {
        g->inner *= p->box.count[--d];
    }
    g->outer = d;
    for (uint32_t i = 0; i < d; i++) {
        g->count[i] = p->box.count[i];
        g->stride[i] = p->stride[i];
        g->rows *= p->box.count[i];
    }
    g->matrix_rows = d > 0 ? g->count[d - 1] : 1;
}

static uint64_t blocks_across(const struct segment *g)
{
    return (g->inner + CORRAL_CAST_BLOCK - 1) / CORRAL_CAST_BLOCK;
}

static uint64_t scale_row(const struct segment *g, uint64_t row)
{
    if (g->scaling == CORRAL_CAST_BLOCKS) {
        return row;
    }
    uint64_t down = (g->matrix_rows + CORRAL_CAST_BLOCK - 1) / CORRAL_CAST_BLOCK;
    return row / g->matrix_rows * down + row % g->matrix_rows / CORRAL_CAST_BLOCK;
}

static uint64_t scales_of(const struct segment *g)
{
    return g->scaling == CORRAL_CAST_NONE ? 0 : (scale_row(g, g->rows - 1) + 1) * blocks_across(g);
}

/* The cast layout has, for each piece of the trainer's in their order, the values and then their scales if there are any. */
static enum corral_status add_segments(struct corral_cast_source *s, const struct corral_layout *layout,
                                       const struct corral_layout *made, const struct corral_cast_rule *rules,
                                       uint32_t count, uint32_t rank, struct corral_error *err)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < layout->piece_count; i++) {
        const struct corral_piece *p = &layout->piece[i];
        const struct corral_layout_tensor *t = &layout->tensor[p->tensor];
        const struct corral_cast_rule *rule = corral_cast_rule_of(t, rules, count);
        bool scaled = rule != NULL && rule->scaling != CORRAL_CAST_NONE;
        uint32_t here = at;
        at += 1 + scaled;
        if (p->rank != rank) {
            continue;
        }
        if (t->dims > 0 && p->box.count[t->dims - 1] > 1 &&
            p->stride[t->dims - 1] != corral_dtype_bytes(t->dtype)) {
            return corral_fail(err, CORRAL_UNSUPPORTED,
                               "%s on rank %u: rows are not contiguous, which a cast on the way needs",
                               t->name, rank);
        }
        struct segment *g = &s->segment[s->count++];
        g->from = t->dtype;
        g->to = rule != NULL ? rule->to : t->dtype;
        g->scaling = rule != NULL ? rule->scaling : CORRAL_CAST_NONE;
        shape_rows(g, t, p);
        g->offset = made->piece[here].offset;
        g->bytes = g->rows * g->inner * corral_dtype_bytes(g->to);
        if (scaled) {
            struct segment *c = &s->segment[s->count++];
            *c = (struct segment){.is_scale = true,
                                  .offset = made->piece[here + 1].offset,
                                  .bytes = scales_of(g) * sizeof(float)};
            s->scales += scales_of(g);
        }
    }
    return CORRAL_OK;
}

static enum corral_status take_scales(struct corral_cast_source *s, struct corral_error *err)
{
    s->scale = calloc(s->scales + 1, sizeof *s->scale);
    if (s->scale == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for %" PRIu64 " scales", s->scales);
    }
    float *next = s->scale;
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->segment[i].is_scale) {
            s->segment[i].scale = s->segment[i - 1].scale = next;
            next += s->segment[i].bytes / sizeof(float);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_cast_source_create(struct corral_cast_source **out,
                                             const struct corral_layout *layout,
                                             const struct corral_cast_rule *rules, uint32_t count,
                                             uint32_t rank, const struct corral_cast_memory *memory,
                                             struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *made = NULL;
    if (rank >= layout->ranks) {
        return corral_fail(err, CORRAL_INVALID, "rank %u of a layout of %u", rank, layout->ranks);
    }
    CORRAL_TRY(corral_cast_layout(layout, rules, count, &made, err));
    CORRAL_CLEANUP(corral_cast_source_destroyp)
    struct corral_cast_source *s = calloc(1, sizeof *s + made->piece_count * sizeof s->segment[0]);
    if (s == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a cast of %u pieces", made->piece_count);
    }
    const struct corral_cast_kernels *all[CAST_KERNELS_MAX];
    pthread_mutex_init(&s->lock, NULL);
    s->kernels = all[corral_cast_kernels_all(all) - 1];
    s->memory = *memory;
    s->bytes = made->rank_bytes[rank];
    CORRAL_TRY(add_segments(s, layout, made, rules, count, rank, err));
    CORRAL_TRY(take_scales(s, err));
    *out = CORRAL_STEAL(s);
    return CORRAL_OK;
}

void corral_cast_source_destroy(struct corral_cast_source *s)
{
    if (s != NULL) {
        pthread_mutex_destroy(&s->lock);
        free(s->scale);
        free(s);
    }
}

uint64_t corral_cast_source_memory(const struct corral_cast_source *s)
{
    return s->scales * sizeof(float) + s->count * sizeof s->segment[0];
}

/* ---- the trainer's bytes ---- */

/* `n` elements from `column` of a row on: where they are, or in `room`. */
static enum corral_status fetch(const struct corral_cast_source *s, const struct segment *g, uint64_t row,
                                uint64_t column, uint64_t n, void *room, const void **out,
                                struct corral_error *err)
{
    uint64_t at = g->origin + column * corral_dtype_bytes(g->from);
    for (uint32_t d = g->outer; d-- > 0; row /= g->count[d]) {
        at += row % g->count[d] * g->stride[d];
    }
    if (s->memory.host != NULL) {
        *out = (const uint8_t *)s->memory.host + at;
        return CORRAL_OK;
    }
    CORRAL_TRY(s->memory.read(s->memory.ctx, at, n * corral_dtype_bytes(g->from), room, err));
    *out = room;
    return CORRAL_OK;
}

static enum corral_status measure(struct corral_cast_source *s, struct segment *g, struct corral_error *err)
{
    _Alignas(64) uint8_t room[CHUNK * ELEMENT_MAX];
    uint64_t across = blocks_across(g), all = scales_of(g);
    memset(g->scale, 0, all * sizeof *g->scale);
    for (uint64_t row = 0; row < g->rows; row++) {
        float *scale = g->scale + scale_row(g, row) * across;
        for (uint64_t column = 0; column < g->inner; column += CHUNK) {
            uint64_t n = CORRAL_MIN(g->inner - column, (uint64_t)CHUNK);
            const void *from;
            CORRAL_TRY(fetch(s, g, row, column, n, room, &from, err));
            for (uint64_t i = 0; i < n; i += CORRAL_CAST_BLOCK) {
                float *one = &scale[(column + i) / CORRAL_CAST_BLOCK];
                const uint8_t *at = (const uint8_t *)from + i * corral_dtype_bytes(g->from);
                *one = cast_float(s->kernels->amax(
                    g->from, at, CORRAL_MIN(n - i, (uint64_t)CORRAL_CAST_BLOCK), cast_bits(*one)));
            }
        }
    }
    for (uint64_t i = 0; i < all; i++) {
        g->scale[i] = corral_cast_scale_of(g->to, g->scale[i]);
    }
    return CORRAL_OK;
}

enum corral_status corral_cast_source_prepare(struct corral_cast_source *s, struct corral_error *err)
{
    pthread_mutex_lock(&s->lock);
    s->last = false;
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < s->count; i++) {
        if (!s->segment[i].is_scale && s->segment[i].scaling != CORRAL_CAST_NONE) {
            CORRAL_TRY(measure(s, &s->segment[i], err));
        }
    }
    return CORRAL_OK;
}

/* ---- producing ---- */

/* Where bytes go: packed, into a digest, or both. The first `skip` of what is produced are not wanted, and nothing after `left`. */
struct sink {
    uint8_t *packed;
    struct corral_digest_state *digest;
    uint64_t skip, left;
};

static void put(struct sink *k, const void *data, uint64_t bytes)
{
    uint64_t skip = CORRAL_MIN(k->skip, bytes), n = CORRAL_MIN(bytes - skip, k->left);
    const uint8_t *from = (const uint8_t *)data + skip;
    k->skip -= skip;
    k->left -= n;
    if (k->packed != NULL) {
        memcpy(k->packed, from, n);
        k->packed += n;
    } else {
        corral_digest_add(k->digest, from, n);
    }
}

static void convert(const struct corral_cast_source *s, const struct segment *g, uint64_t row,
                    uint64_t column, uint64_t n, const uint8_t *from, uint8_t *to)
{
    uint32_t in = corral_dtype_bytes(g->from), out = corral_dtype_bytes(g->to);
    if (g->scaling == CORRAL_CAST_NONE) {
        s->kernels->row(g->from, g->to, from, to, n, 1);
        return;
    }
    const float *scale = g->scale + scale_row(g, row) * blocks_across(g);
    for (uint64_t i = 0; i < n;) {
        uint64_t block = (column + i) / CORRAL_CAST_BLOCK;
        uint64_t m = CORRAL_MIN(n - i, (block + 1) * CORRAL_CAST_BLOCK - (column + i));
        s->kernels->row(g->from, g->to, from + i * in, to + i * out, m, scale[block]);
        i += m;
    }
}

/* Bytes from `within` of the segment on, as many as the sink takes. */
static enum corral_status produce(const struct corral_cast_source *s, const struct segment *g,
                                  uint64_t within, struct sink *k, struct corral_error *err)
{
    _Alignas(64) uint8_t room[CHUNK * ELEMENT_MAX], made[CHUNK * ELEMENT_MAX];
    if (g->is_scale) {
        put(k, (const uint8_t *)g->scale + within, k->left);
        return CORRAL_OK;
    }
    uint32_t out = corral_dtype_bytes(g->to);
    k->skip = within % out;
    for (uint64_t e = within / out; k->left > 0;) {
        uint64_t row = e / g->inner, column = e % g->inner;
        uint64_t wanted = (k->skip + k->left + out - 1) / out;
        uint64_t n = CORRAL_MIN(CORRAL_MIN(g->inner - column, wanted), (uint64_t)CHUNK);
        const void *from;
        CORRAL_TRY(fetch(s, g, row, column, n, room, &from, err));
        if (g->from != g->to) {
            convert(s, g, row, column, n, from, made);
            from = made;
        }
        put(k, from, n * out);
        e += n;
    }
    return CORRAL_OK;
}

static const struct segment *segment_at(const struct corral_cast_source *s, uint64_t offset)
{
    uint32_t low = 0, high = s->count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (s->segment[middle].offset <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const struct segment *g = &s->segment[low];
    return s->count > 0 && offset >= g->offset && offset - g->offset < g->bytes ? g : NULL;
}

static enum corral_status produce_bucket(const struct corral_cast_source *s, const struct corral_link *link,
                                         uint32_t bucket, struct sink *k, struct corral_error *err)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_span span;
    while (corral_link_next(link, &cursor, &span)) {
        while (span.bytes > 0) {
            const struct segment *g = segment_at(s, span.source_offset);
            if (g == NULL) {
                return corral_fail(err, CORRAL_INVALID, "byte %" PRIu64 " is of no tensor of this rank",
                                   span.source_offset);
            }
            uint64_t within = span.source_offset - g->offset;
            uint64_t n = CORRAL_MIN(span.bytes, g->bytes - within);
            k->left = n;
            k->skip = 0;
            CORRAL_TRY(produce(s, g, within, k, err));
            span.source_offset += n;
            span.bytes -= n;
        }
    }
    return CORRAL_OK;
}

/* ---- the shard ---- */

static enum corral_status gather(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err)
{
    struct corral_cast_source *s = shard->ctx;
    struct sink k = {.packed = packed};
    CORRAL_TRY(produce_bucket(s, link, bucket, &k, err));
    struct corral_digest digest = corral_link_digest_packed(link, bucket, packed);
    pthread_mutex_lock(&s->lock);
    s->last = true;
    s->last_link = link->hash;
    s->last_bucket = bucket;
    s->last_digest = digest;
    pthread_mutex_unlock(&s->lock);
    return CORRAL_OK;
}

static enum corral_status scatter(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                  const void *packed, struct corral_error *err)
{
    (void)shard, (void)link, (void)bucket, (void)packed;
    return corral_fail(err, CORRAL_UNSUPPORTED, "what is cast on the way is a source only");
}

/* The definition of corral_link_digest(). */
static enum corral_status digest(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err)
{
    struct corral_cast_source *s = shard->ctx;
    if (side != CORRAL_LINK_SOURCE) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "what is cast on the way is a source only");
    }
    pthread_mutex_lock(&s->lock);
    bool known = s->last && s->last_bucket == bucket && corral_digest_equal(s->last_link, link->hash);
    struct corral_digest last = s->last_digest;
    pthread_mutex_unlock(&s->lock);
    if (known) {
        *out = last;
        return CORRAL_OK;
    }
    struct corral_digest_state state;
    struct sink k = {.digest = &state};
    uint64_t head[3] = {htole64(link->hash.lo), htole64(link->hash.hi), htole64(bucket)};
    corral_digest_begin(&state);
    corral_digest_add(&state, head, sizeof head);
    CORRAL_TRY(produce_bucket(s, link, bucket, &k, err));
    *out = corral_digest_end(&state);
    return CORRAL_OK;
}

struct corral_shard corral_cast_source_shard(struct corral_cast_source *s)
{
    static const struct corral_shard_ops ops = {
        .name = "cast", .gather = gather, .scatter = scatter, .digest = digest};
    return (struct corral_shard){.ops = &ops, .bytes = s->bytes, .fd = -1, .device = -1, .ctx = s};
}
