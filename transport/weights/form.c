#include "transport/weights/form.h"

#include "transport/weights/cast/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One tensor: from the learner's bytes to the image's, and its scales there. */
struct piece {
    uint64_t from, to, scales, bytes; /* offsets; bytes: of the learner's */
    bool cast;
    struct corral_cast how;
};

struct corral_weight_form {
    struct corral_manifest *manifest;
    uint64_t source_bytes;
    enum corral_weight_cast cast;
    uint32_t count;
    struct piece piece[];
};

static struct corral_cast_rule rule_of(enum corral_weight_cast cast)
{
    static const struct corral_cast_rule rules[CORRAL_WEIGHT_CASTS] = {
        [CORRAL_WEIGHT_CAST_BF16] = {.to = CORRAL_DTYPE_BF16, .scaling = CORRAL_CAST_NONE},
        [CORRAL_WEIGHT_CAST_F16] = {.to = CORRAL_DTYPE_F16, .scaling = CORRAL_CAST_NONE},
        [CORRAL_WEIGHT_CAST_FP8] = {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_BLOCKS},
    };
    return rules[cast];
}

/* Whether the rule is for it, and how; `t` as it is in the learner's manifest. */
static enum corral_status plan_piece(const struct corral_weight_form *f,
                                     const struct corral_manifest_tensor *t, struct piece *p,
                                     struct corral_error *err)
{
    struct corral_cast_rule rule = rule_of(f->cast);
    struct corral_layout_tensor named = {.dtype = t->dtype, .dims = t->rank};
    memcpy(named.name, t->name, sizeof named.name);
    *p = (struct piece){.from = t->offset, .bytes = t->bytes};
    if (f->cast == CORRAL_WEIGHT_CAST_NONE || corral_cast_rule_of(&named, &rule, 1) == NULL) {
        return CORRAL_OK;
    }
    p->cast = true;
    p->how = (struct corral_cast){.from = t->dtype,
                                  .to = rule.to,
                                  .scaling = rule.scaling,
                                  .rows = 1,
                                  .columns = t->shape[t->rank - 1]};
    for (uint32_t d = 0; d + 1 < t->rank; d++) {
        p->how.rows *= t->shape[d];
    }
    return corral_cast_check(&p->how, err);
}

static enum corral_status add_scales(struct corral_weight_form *f, const struct corral_manifest_tensor *t,
                                     struct piece *p, struct corral_error *err)
{
    char name[CORRAL_TENSOR_NAME_MAX + sizeof CORRAL_CAST_SCALE_SUFFIX];
    uint64_t shape[CORRAL_TENSOR_RANK_MAX];
    (void)snprintf(name, sizeof name, "%s" CORRAL_CAST_SCALE_SUFFIX, t->name);
    memcpy(shape, t->shape, sizeof shape);
    shape[t->rank - 1] = (shape[t->rank - 1] + CORRAL_CAST_BLOCK - 1) / CORRAL_CAST_BLOCK;
    CORRAL_TRY(corral_manifest_add(f->manifest, name, CORRAL_DTYPE_F32, t->rank, shape, err));
    p->scales = f->manifest->tensor[f->manifest->count - 1].offset;
    return CORRAL_OK;
}

static enum corral_status add_tensor(struct corral_weight_form *f, const struct corral_manifest_tensor *t,
                                     struct corral_error *err)
{
    struct piece *p = &f->piece[f->count];
    CORRAL_TRY(plan_piece(f, t, p, err));
    CORRAL_TRY(
        corral_manifest_add(f->manifest, t->name, p->cast ? p->how.to : t->dtype, t->rank, t->shape, err));
    p->to = f->manifest->tensor[f->manifest->count - 1].offset;
    f->count++;
    return p->cast && p->how.scaling != CORRAL_CAST_NONE ? add_scales(f, t, p, err) : CORRAL_OK;
}

enum corral_status corral_weight_form_create(struct corral_weight_form **out,
                                             const struct corral_manifest *from, enum corral_weight_cast cast,
                                             struct corral_error *err)
{
    uint32_t room = CORRAL_MIN(2 * from->count, (uint32_t)CORRAL_MANIFEST_TENSORS_MAX);
    CORRAL_CLEANUP(corral_weight_form_destroyp)
    struct corral_weight_form *f = calloc(1, sizeof *f + from->count * sizeof f->piece[0]);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for the form of %u tensors", from->count);
    }
    f->cast = cast;
    f->source_bytes = from->bytes;
    CORRAL_TRY(corral_manifest_create(&f->manifest, room, err));
    for (uint32_t i = 0; i < from->count; i++) {
        CORRAL_TRY(add_tensor(f, &from->tensor[i], err));
    }
    *out = CORRAL_STEAL(f);
    return CORRAL_OK;
}

void corral_weight_form_destroy(struct corral_weight_form *f)
{
    if (f != NULL) {
        corral_manifest_destroy(f->manifest);
        free(f);
    }
}

const struct corral_manifest *corral_weight_form_manifest(const struct corral_weight_form *f)
{
    return f->manifest;
}

bool corral_weight_form_casts(const struct corral_weight_form *f)
{
    return f->cast != CORRAL_WEIGHT_CAST_NONE;
}

uint64_t corral_weight_form_source_bytes(const struct corral_weight_form *f)
{
    return f->source_bytes;
}

uint32_t corral_weight_form_element_bytes(const struct corral_weight_form *f)
{
    return f->cast == CORRAL_WEIGHT_CAST_NONE ? 4 : corral_dtype_bytes(rule_of(f->cast).to);
}

enum corral_status corral_weight_form_encode(const struct corral_weight_form *f, const void *weights,
                                             void *image, struct corral_error *err)
{
    for (uint32_t i = 0; i < f->count; i++) {
        const struct piece *p = &f->piece[i];
        const uint8_t *from = (const uint8_t *)weights + p->from;
        uint8_t *to = (uint8_t *)image + p->to;
        if (!p->cast) {
            memcpy(to, from, p->bytes);
            continue;
        }
        bool scaled = p->how.scaling != CORRAL_CAST_NONE;
        CORRAL_TRY(corral_cast_run(&p->how, from, to,
                                   scaled ? (float *)(void *)((uint8_t *)image + p->scales) : NULL, err));
    }
    return CORRAL_OK;
}

/* What is cast was f32: corral_cast_back() gives that. */
enum corral_status corral_weight_form_decode(const struct corral_weight_form *f, const void *image,
                                             void *weights, struct corral_error *err)
{
    for (uint32_t i = 0; i < f->count; i++) {
        const struct piece *p = &f->piece[i];
        const uint8_t *from = (const uint8_t *)image + p->to;
        uint8_t *to = (uint8_t *)weights + p->from;
        if (!p->cast) {
            memcpy(to, from, p->bytes);
            continue;
        }
        if (p->how.from != CORRAL_DTYPE_F32) {
            return corral_fail(err, CORRAL_UNSUPPORTED, "weights that were not f32 cannot be cast back");
        }
        const void *scales = (const uint8_t *)image + p->scales;
        CORRAL_TRY(corral_cast_back(&p->how, from, p->how.scaling != CORRAL_CAST_NONE ? scales : NULL,
                                    (float *)(void *)to, err));
    }
    return CORRAL_OK;
}
