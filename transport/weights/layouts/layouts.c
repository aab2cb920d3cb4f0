#include "transport/weights/layouts/parameters.h"

#include <inttypes.h>
#include <stdlib.h>

/* The two names of a tied weight are one tensor, and one memory. */
static enum corral_status add_tensors(struct corral_layout *l, const struct corral_layouts_model *m,
                                      struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_layouts_count(m); i++) {
        struct parameter p;
        uint32_t index;
        corral_layouts_parameter(m, i, &p);
        if (p.tied) {
            CORRAL_TRY(corral_layout_add_alias(l, p.name, 0, err));
        } else {
            CORRAL_TRY(corral_layout_add_tensor(l, p.name, m->dtype, p.columns ? 2 : 1,
                                                (uint64_t[]){p.rows, p.columns}, &index, err));
        }
    }
    return CORRAL_OK;
}

static enum corral_status create(struct corral_layout **out, const struct corral_layouts_model *m,
                                 uint32_t ranks, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(corral_layouts_model_check(m, err));
    CORRAL_TRY(corral_layout_create(&l, ranks, err));
    CORRAL_TRY(add_tensors(l, m, err));
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

static uint64_t align(uint64_t at)
{
    return (at + CORRAL_LAYOUTS_ALIGN - 1) / CORRAL_LAYOUTS_ALIGN * CORRAL_LAYOUTS_ALIGN;
}

/* ---- one tensor-parallel rank ---- */

/* Rows or columns [first, first + count) of a parameter, in memory for `room` of them. */
struct part {
    uint64_t first, count, room;
};

static struct part part_of(const struct corral_layouts_model *m, const struct parameter *p, uint32_t tp,
                           uint32_t t, uint64_t vocab_multiple)
{
    uint64_t all = p->cut == CUT_COLUMNS ? p->columns : p->rows, each = all / tp;
    if (p->cut == CUT_NONE) {
        return (struct part){0, all, all};
    }
    if (p->cut == CUT_KV && m->kv_heads < tp) {
        return (struct part){t / (tp / m->kv_heads) * m->head_dim, m->head_dim, m->head_dim};
    }
    if (p->cut == CUT_VOCAB) {
        each = (all + vocab_multiple - 1) / vocab_multiple * vocab_multiple / tp;
        uint64_t first = CORRAL_MIN(all, t * each);
        return (struct part){first, CORRAL_MIN(all - first, each), each};
    }
    return (struct part){t * each, each, each};
}

static enum corral_status check_tp(const struct corral_layouts_model *m, uint32_t tp,
                                   struct corral_error *err)
{
    if (tp == 0 || m->heads % tp != 0 || m->ffn % tp != 0 ||
        (m->kv_heads % tp != 0 && tp % m->kv_heads != 0)) {
        return corral_fail(err, CORRAL_INVALID,
                           "tensor parallel %u: %" PRIu64 " query heads, %" PRIu64
                           " key/value heads and a feed-forward of %" PRIu64 " cannot be cut into it",
                           tp, m->heads, m->kv_heads, m->ffn);
    }
    return CORRAL_OK;
}

/* All parameters of tensor-parallel rank t, beginning at *at in the buffer of `rank`; *at moves behind them, padding included. A NULL layout only measures. */
static enum corral_status add_shard(struct corral_layout *l, const struct corral_layouts_model *m,
                                    uint32_t tp, uint32_t t, bool engine, uint32_t rank, uint64_t *at,
                                    struct corral_error *err)
{
    const uint64_t element = corral_dtype_bytes(m->dtype);
    const uint64_t multiple = engine ? (uint64_t)CORRAL_LAYOUTS_VOCAB_MULTIPLE * tp : tp;
    for (uint32_t i = 0; i < corral_layouts_count(m); i++) {
        struct parameter p;
        corral_layouts_parameter(m, i, &p);
        if (p.tied) {
            continue;
        }
        struct part part = part_of(m, &p, tp, t, multiple);
        uint64_t start = engine && p.fused ? *at : align(*at);
        uint64_t across = p.cut == CUT_COLUMNS ? p.rows : CORRAL_MAX(p.columns, 1u);
        if (l && part.count > 0) {
            CORRAL_TRY(corral_layout_add_slice(l, i, rank, p.cut == CUT_COLUMNS ? 1 : 0, part.first,
                                               part.count, start, err));
        }
        *at = start + part.room * across * element;
    }
    return CORRAL_OK;
}

/* ---- trainers ---- */

static enum corral_status add_flat_parts(struct corral_layout *l, const struct corral_layouts_model *m,
                                         struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_layouts_count(m); i++) {
        struct parameter p;
        corral_layouts_parameter(m, i, &p);
        uint64_t all = p.rows * CORRAL_MAX(p.columns, 1u), each = (all + l->ranks - 1) / l->ranks;
        for (uint32_t r = 0; r < l->ranks && !p.tied && r * each < all; r++) {
            CORRAL_TRY(corral_layout_add_flat(l, i, r, r * each, CORRAL_MIN(each, all - r * each),
                                              align(l->rank_bytes[r]), err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_layouts_of_trainer(struct corral_layout **out, const struct corral_layouts_model *m,
                                             enum corral_layouts_trainer kind, uint32_t ranks,
                                             struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(create(&l, m, ranks, err));
    if (kind == CORRAL_LAYOUTS_FSDP) {
        CORRAL_TRY(add_flat_parts(l, m, err));
    } else {
        uint32_t tp = kind == CORRAL_LAYOUTS_TP ? ranks : 1;
        CORRAL_TRY(check_tp(m, tp, err));
        for (uint32_t r = 0; r < ranks; r++) {
            uint64_t at = 0;
            CORRAL_TRY(add_shard(l, m, tp, tp == 1 ? 0 : r, false, r, &at, err));
        }
    }
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

/* ---- engines ---- */

enum corral_status corral_layouts_engine_bytes(const struct corral_layouts_model *m, uint32_t tp,
                                               uint64_t *out, struct corral_error *err)
{
    uint64_t at = 0;
    CORRAL_TRY(corral_layouts_model_check(m, err));
    CORRAL_TRY(check_tp(m, tp, err));
    CORRAL_TRY(add_shard(NULL, m, tp, 0, true, 0, &at, err));
    *out = at;
    return CORRAL_OK;
}

/* 0: more ranks than a layout has room for. */
static uint32_t ranks_of(uint32_t engines, uint32_t tp)
{
    uint32_t ranks;
    return __builtin_mul_overflow(engines, tp, &ranks) ? 0 : ranks;
}

enum corral_status corral_layouts_of_engines(struct corral_layout **out, const struct corral_layouts_model *m,
                                             uint32_t engines, uint32_t tp, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(create(&l, m, ranks_of(engines, tp), err));
    CORRAL_TRY(check_tp(m, tp, err));
    for (uint32_t r = 0; r < l->ranks; r++) {
        uint64_t at = 0;
        CORRAL_TRY(add_shard(l, m, tp, r % tp, true, r, &at, err));
    }
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

static enum corral_status check_nodes(uint32_t ranks, const uint32_t *node_of, uint32_t nodes,
                                      struct corral_error *err)
{
    if (ranks == 0 || ranks > CORRAL_LAYOUT_RANKS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "nodes: %u engine ranks; 1 to %d are possible", ranks,
                           CORRAL_LAYOUT_RANKS_MAX);
    }
    for (uint32_t i = 0; i < ranks; i++) {
        if (node_of[i] >= nodes) {
            return corral_fail(err, CORRAL_INVALID, "nodes: engine rank %u runs on node %u of %u", i,
                               node_of[i], nodes);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_layouts_of_nodes(struct corral_layout **out, const struct corral_layouts_model *m,
                                           uint32_t engines, uint32_t tp, const uint32_t *node_of,
                                           uint32_t nodes, uint64_t *offset, struct corral_error *err)
{
    const uint32_t ranks = ranks_of(engines, tp);
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    CORRAL_TRY(check_nodes(ranks, node_of, nodes, err));
    CORRAL_TRY(create(&l, m, nodes, err));
    CORRAL_TRY(check_tp(m, tp, err));
    CORRAL_AUTO_FREE uint64_t *place = malloc(sizeof *place * nodes * tp);
    CORRAL_AUTO_FREE uint64_t *end = calloc(nodes, sizeof *end);
    if (!place || !end) {
        return corral_fail(err, CORRAL_NOMEM, "nodes: no memory for %u × %u shards", nodes, tp);
    }
    for (size_t i = 0; i < (size_t)nodes * tp; i++) {
        place[i] = UINT64_MAX;
    }
    for (uint32_t i = 0; i < ranks; i++) {
        uint32_t node = node_of[i], t = i % tp;
        if (place[(size_t)node * tp + t] == UINT64_MAX) {
            place[(size_t)node * tp + t] = end[node] = align(end[node]);
            CORRAL_TRY(add_shard(l, m, tp, t, true, node, &end[node], err));
        }
    }
    for (size_t i = 0; offset && i < (size_t)nodes * tp; i++) {
        offset[i] = place[i];
    }
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}
