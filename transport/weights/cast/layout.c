/* The layout that a cast makes of a layout. */
#include "transport/weights/cast/plan.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ALIGNMENT 256u

static bool castable(enum corral_dtype dtype)
{
    return dtype == CORRAL_DTYPE_F32 || dtype == CORRAL_DTYPE_F16 || dtype == CORRAL_DTYPE_BF16;
}

static bool linear(const struct corral_layout_tensor *t)
{
    return t->dims >= 2 && castable(t->dtype) && strstr(t->name, "embed") == NULL &&
           strstr(t->name, "lm_head") == NULL;
}

const struct corral_cast_rule *corral_cast_rule_of(const struct corral_layout_tensor *t,
                                                   const struct corral_cast_rule *rules, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const char *pattern = rules[i].pattern;
        if (pattern == NULL ? linear(t) : fnmatch(pattern, t->name, 0) == 0) {
            return rules[i].to == t->dtype ? NULL : &rules[i];
        }
    }
    return NULL;
}

uint32_t corral_cast_block_of(const struct corral_cast_rule *rule, uint32_t dims, uint32_t dim)
{
    bool last = dim + 1 == dims, before = dim + 2 == dims;
    return (last && rule->scaling != CORRAL_CAST_NONE) || (before && rule->scaling == CORRAL_CAST_TILES)
               ? CORRAL_CAST_BLOCK
               : 1;
}

static enum corral_status check_rule(const struct corral_cast_rule *rule,
                                     const struct corral_layout_tensor *t, struct corral_error *err)
{
    struct corral_cast cast = {
        .from = t->dtype, .to = rule->to, .scaling = rule->scaling, .rows = 1, .columns = 1};
    if (rule->scaling == CORRAL_CAST_GIVEN || rule->scaling == CORRAL_CAST_TENSOR) {
        return corral_fail(err, CORRAL_INVALID, "%s: one scale per tensor is not cast on the way", t->name);
    }
    if (t->dims == 0 || (rule->scaling == CORRAL_CAST_TILES && t->dims < 2)) {
        return corral_fail(err, CORRAL_INVALID, "%s has %u dimensions, too few for such blocks", t->name,
                           t->dims);
    }
    struct corral_error why = {0};
    if (corral_cast_check(&cast, &why) != CORRAL_OK) {
        return corral_fail(err, CORRAL_INVALID, "%s: %s", t->name, why.text);
    }
    return CORRAL_OK;
}

/* Tensor i of `out` for each tensor of the layout, and its scales after all of them. */
static enum corral_status add_tensors(const struct corral_layout *layout,
                                      const struct corral_cast_rule *rules, uint32_t count,
                                      struct corral_layout *out, uint32_t *scale_of, struct corral_error *err)
{
    uint32_t index;
    for (uint32_t i = 0; i < layout->tensor_count; i++) {
        const struct corral_layout_tensor *t = &layout->tensor[i];
        const struct corral_cast_rule *rule = corral_cast_rule_of(t, rules, count);
        if (t->alias_of != i) {
            CORRAL_TRY(corral_layout_add_alias(out, t->name, t->alias_of, err));
            continue;
        }
        if (rule != NULL) {
            CORRAL_TRY(check_rule(rule, t, err));
        }
        CORRAL_TRY(corral_layout_add_tensor(out, t->name, rule != NULL ? rule->to : t->dtype, t->dims,
                                            t->shape, &index, err));
    }
    for (uint32_t i = 0; i < layout->tensor_count; i++) {
        const struct corral_layout_tensor *t = &layout->tensor[i];
        const struct corral_cast_rule *rule = corral_cast_rule_of(t, rules, count);
        scale_of[i] = UINT32_MAX;
        if (t->alias_of != i || rule == NULL || rule->scaling == CORRAL_CAST_NONE) {
            continue;
        }
        char name[CORRAL_TENSOR_NAME_MAX + sizeof CORRAL_CAST_SCALE_SUFFIX];
        uint64_t shape[CORRAL_TENSOR_RANK_MAX];
        (void)snprintf(name, sizeof name, "%s" CORRAL_CAST_SCALE_SUFFIX, t->name);
        for (uint32_t d = 0; d < t->dims; d++) {
            uint32_t block = corral_cast_block_of(rule, t->dims, d);
            shape[d] = (t->shape[d] + block - 1) / block;
        }
        CORRAL_TRY(corral_layout_add_tensor(out, name, CORRAL_DTYPE_F32, t->dims, shape, &scale_of[i], err));
    }
    return CORRAL_OK;
}

static enum corral_status scale_box(const struct corral_cast_rule *rule, const struct corral_layout_tensor *t,
                                    const struct corral_piece *p, struct corral_box *out,
                                    struct corral_error *err)
{
    *out = p->box;
    for (uint32_t d = 0; d < t->dims; d++) {
        uint32_t block = corral_cast_block_of(rule, t->dims, d);
        uint64_t end = p->box.first[d] + p->box.count[d];
        if (p->box.first[d] % block != 0 || (end % block != 0 && end != t->shape[d])) {
            return corral_fail(
                err, CORRAL_UNSUPPORTED,
                "rank %u has %" PRIu64 " to %" PRIu64
                " of dimension %u of %s: a cast in blocks of %u needs whole blocks on each rank",
                p->rank, p->box.first[d], end, d, t->name, block);
        }
        out->first[d] = p->box.first[d] / block;
        out->count[d] = (p->box.count[d] + block - 1) / block;
    }
    return CORRAL_OK;
}

static uint64_t next_offset(const struct corral_layout *l, uint32_t rank)
{
    return (l->rank_bytes[rank] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static enum corral_status add_pieces(const struct corral_layout *layout, const struct corral_cast_rule *rules,
                                     uint32_t count, struct corral_layout *out, const uint32_t *scale_of,
                                     struct corral_error *err)
{
    for (uint32_t i = 0; i < layout->piece_count; i++) {
        const struct corral_piece *p = &layout->piece[i];
        const struct corral_layout_tensor *t = &layout->tensor[p->tensor];
        CORRAL_TRY(
            corral_layout_add_box(out, p->tensor, p->rank, &p->box, next_offset(out, p->rank), NULL, err));
        if (scale_of[p->tensor] != UINT32_MAX) {
            struct corral_box box;
            CORRAL_TRY(scale_box(corral_cast_rule_of(t, rules, count), t, p, &box, err));
            CORRAL_TRY(corral_layout_add_box(out, scale_of[p->tensor], p->rank, &box,
                                             next_offset(out, p->rank), NULL, err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_cast_layout(const struct corral_layout *layout,
                                      const struct corral_cast_rule *rules, uint32_t count,
                                      struct corral_layout **out, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = NULL;
    if (count > CORRAL_CAST_RULES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%u rules for casts; at most %u", count,
                           CORRAL_CAST_RULES_MAX);
    }
    CORRAL_AUTO_FREE uint32_t *scale_of = calloc((size_t)layout->tensor_count + 1, sizeof *scale_of);
    if (scale_of == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a cast of %u tensors", layout->tensor_count);
    }
    CORRAL_TRY(corral_layout_create(&l, layout->ranks, err));
    CORRAL_TRY(add_tensors(layout, rules, count, l, scale_of, err));
    CORRAL_TRY(add_pieces(layout, rules, count, l, scale_of, err));
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}
