/* Casting on the way gives, cut any way, what casting the whole tensors and cutting afterwards gives. */
#include "tests/check.h"

#include "base/rng.h"
#include "transport/weights/cast/source.h"
#include <stdlib.h>
#include <string.h>

#define TENSORS 5
#define ROWS 640
#define COLUMNS 384

static const struct corral_layout_tensor tensors[TENSORS] = {
    {.name = "embed.weight", .dtype = CORRAL_DTYPE_BF16, .dims = 2, .shape = {100, 96}},
    {.name = "layer.0.up.weight", .dtype = CORRAL_DTYPE_BF16, .dims = 2, .shape = {ROWS, COLUMNS}},
    {.name = "layer.0.norm.weight", .dtype = CORRAL_DTYPE_F32, .dims = 1, .shape = {COLUMNS}},
    {.name = "layer.0.down.weight", .dtype = CORRAL_DTYPE_BF16, .dims = 2, .shape = {ROWS - 3, COLUMNS - 5}},
    {.name = "layer.0.experts.weight", .dtype = CORRAL_DTYPE_F32, .dims = 3, .shape = {4, 256, 130}},
};

enum cut { WHOLE, BY_ROWS, BY_COLUMNS };

/* Embedding and norm whole everywhere; the others in parts at multiples of 128. */
static struct corral_layout *layout_of(uint32_t ranks, enum cut cut)
{
    struct corral_layout *l = NULL;
    struct corral_error err;
    check_ok(corral_layout_create(&l, ranks, &err));
    for (uint32_t t = 0; t < TENSORS; t++) {
        const struct corral_layout_tensor *x = &tensors[t];
        uint32_t index, dim = cut == BY_COLUMNS ? x->dims - 1 : x->dims == 3 ? 0 : x->dims - 2;
        check_ok(corral_layout_add_tensor(l, x->name, x->dtype, x->dims, x->shape, &index, &err));
        for (uint32_t r = 0; r < ranks; r++) {
            uint64_t block = dim == 0 && x->dims == 3 ? 1 : 128, blocks;
            if (cut == WHOLE || t == 0 || x->dims == 1) {
                check_ok(corral_layout_add_whole(l, t, r, (l->rank_bytes[r] + 7) / 8 * 8, &err));
                continue;
            }
            blocks = (x->shape[dim] + block - 1) / block;
            uint64_t first = blocks * r / ranks * block, end = blocks * (r + 1) / ranks * block;
            end = end < x->shape[dim] ? end : x->shape[dim];
            if (first < end) {
                check_ok(corral_layout_add_slice(l, t, r, dim, first, end - first,
                                                 (l->rank_bytes[r] + 7) / 8 * 8, &err));
            }
        }
    }
    return l;
}

/* Random weights with zeros, huge and tiny ones, whole, as they lie in `l` (one rank). */
static uint8_t *whole_weights(const struct corral_layout *l, struct corral_rng *rng)
{
    uint8_t *memory = calloc(1, l->rank_bytes[0]);
    assert_non_null(memory);
    for (uint32_t i = 0; i < l->piece_count; i++) {
        const struct corral_layout_tensor *t = &l->tensor[l->piece[i].tensor];
        uint64_t n = corral_box_elements(&l->piece[i].box, t->dims);
        for (uint64_t e = 0; e < n; e++) {
            float x = ((float)corral_rng_below(rng, 20001) - 10000) / 10000;
            uint64_t odd = corral_rng_below(rng, 1000);
            x = odd == 0 ? 0 : odd == 1 ? 1e30f : odd == 2 ? 1e-30f : x;
            uint32_t bits;
            memcpy(&bits, &x, 4);
            uint16_t upper = (uint16_t)(bits >> 16);
            memcpy(memory + l->piece[i].offset + e * corral_dtype_bytes(t->dtype),
                   t->dtype == CORRAL_DTYPE_F32 ? (void *)&bits : (void *)&upper,
                   corral_dtype_bytes(t->dtype));
        }
    }
    return memory;
}

/* What the cast layout of one rank holds, by casting whole tensors. */
static uint8_t *cast_whole(const struct corral_layout *l, const struct corral_layout *made,
                           const struct corral_cast_rule *rule, const uint8_t *weights)
{
    uint8_t *out = calloc(1, made->rank_bytes[0]);
    struct corral_error err;
    assert_non_null(out);
    for (uint32_t t = 0, at = 0; t < TENSORS; t++, at++) {
        const struct corral_layout_tensor *x = &l->tensor[t];
        uint8_t *to = out + made->piece[at].offset;
        const uint8_t *from = weights + l->piece[t].offset;
        if (made->tensor[t].dtype == x->dtype) {
            memcpy(to, from, corral_box_elements(&l->piece[t].box, x->dims) * corral_dtype_bytes(x->dtype));
            continue;
        }
        float *scales = NULL;
        if (rule->scaling != CORRAL_CAST_NONE) {
            scales = (float *)(void *)(out + made->piece[++at].offset);
        }
        uint64_t matrices = x->dims == 3 ? x->shape[0] : 1;
        struct corral_cast c = {.from = x->dtype,
                                .to = rule->to,
                                .scaling = rule->scaling,
                                .rows = x->shape[x->dims - 2],
                                .columns = x->shape[x->dims - 1]};
        for (uint64_t m = 0; m < matrices; m++) {
            uint64_t elements = c.rows * c.columns;
            check_ok(corral_cast_run(&c, from + m * elements * corral_dtype_bytes(c.from),
                                     to + m * elements * corral_dtype_bytes(c.to),
                                     scales == NULL ? NULL : scales + m * corral_cast_scale_count(&c), &err));
        }
    }
    return out;
}

static uint8_t **recut(const struct corral_layout *from, const struct corral_layout *to, const uint8_t *whole)
{
    struct corral_reshard_plan *plan = NULL;
    struct corral_error err;
    uint8_t **out = calloc(to->ranks, sizeof *out);
    assert_non_null(out);
    check_ok(corral_reshard_plan_build(from, to, &plan, &err));
    for (uint32_t r = 0; r < to->ranks; r++) {
        out[r] = calloc(1, to->rank_bytes[r] + 1);
        assert_non_null(out[r]);
    }
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        corral_reshard_copy_run(&plan->copy[i], whole, out[plan->copy[i].destination]);
    }
    corral_reshard_plan_destroy(plan);
    return out;
}

static void drop(uint8_t **memory, uint32_t ranks)
{
    for (uint32_t r = 0; r < ranks; r++) {
        free(memory[r]);
    }
    free(memory);
}

static enum corral_status read_bytes(void *ctx, uint64_t offset, uint64_t bytes, void *out,
                                     struct corral_error *err)
{
    (void)err;
    memcpy(out, (const uint8_t *)ctx + offset, bytes);
    return CORRAL_OK;
}

/* Every bucket of every link, gathered and put where it belongs. */
static void move_all(const struct corral_reshard_plan *plan, struct corral_shard *source, uint32_t rank,
                     uint8_t **destination)
{
    struct corral_error err;
    for (uint32_t d = 0; d < plan->destinations; d++) {
        CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *link = NULL;
        check_ok(corral_link_create(&link, plan, rank, d, CORRAL_BUCKET_BYTES_MIN, &err));
        CORRAL_AUTO_FREE uint8_t *packed = malloc(CORRAL_BUCKET_BYTES_MIN);
        assert_non_null(packed);
        for (uint32_t b = 0; b < link->buckets; b++) {
            struct corral_digest before, after;
            check_ok(source->ops->digest(source, link, CORRAL_LINK_SOURCE, b, &before, &err));
            check_ok(source->ops->gather(source, link, b, packed, &err));
            check_ok(source->ops->digest(source, link, CORRAL_LINK_SOURCE, b, &after, &err));
            assert_true(corral_digest_equal(before, after));
            assert_true(corral_digest_equal(before, corral_link_digest_packed(link, b, packed)));
            corral_link_unpack(link, b, packed, destination[d]);
        }
    }
}

static void check_cast(struct corral_cast_rule rule, enum cut trainer, enum cut engine, bool by_reading)
{
    struct corral_rng rng;
    struct corral_error err;
    corral_rng_seed(&rng, (uint64_t)rule.scaling * 10 + trainer);
    struct corral_layout *one = layout_of(1, WHOLE), *from = layout_of(4, trainer),
                         *to = layout_of(2, engine);
    struct corral_layout *one_cast = NULL, *from_cast = NULL, *to_cast = NULL;
    check_ok(corral_cast_layout(one, &rule, 1, &one_cast, &err));
    check_ok(corral_cast_layout(from, &rule, 1, &from_cast, &err));
    check_ok(corral_cast_layout(to, &rule, 1, &to_cast, &err));
    uint8_t *weights = whole_weights(one, &rng), *cast = cast_whole(one, one_cast, &rule, weights);
    uint8_t **source = recut(one, from, weights), **expected = recut(one_cast, to_cast, cast);
    uint8_t **have = calloc(2, sizeof *have);
    assert_non_null(have);
    for (uint32_t r = 0; r < 2; r++) {
        have[r] = calloc(1, to_cast->rank_bytes[r] + 1);
    }
    struct corral_reshard_plan *plan = NULL;
    check_ok(corral_reshard_plan_build(from_cast, to_cast, &plan, &err));
    for (uint32_t r = 0; r < 4; r++) {
        struct corral_cast_memory memory = {
            .host = by_reading ? NULL : source[r], .read = read_bytes, .ctx = source[r]};
        struct corral_cast_source *s = NULL;
        check_ok(corral_cast_source_create(&s, from, &rule, 1, r, &memory, &err));
        check_ok(corral_cast_source_prepare(s, &err));
        struct corral_shard shard = corral_cast_source_shard(s);
        assert_int_equal(shard.bytes, from_cast->rank_bytes[r]);
        move_all(plan, &shard, r, have);
        corral_cast_source_destroy(s);
    }
    for (uint32_t r = 0; r < 2; r++) {
        assert_memory_equal(have[r], expected[r], to_cast->rank_bytes[r]);
    }
    corral_reshard_plan_destroy(plan);
    drop(have, 2);
    drop(source, 4);
    drop(expected, 2);
    free(weights);
    free(cast);
    struct corral_layout *all[] = {one, from, to, one_cast, from_cast, to_cast};
    for (size_t i = 0; i < CORRAL_COUNT_OF(all); i++) {
        corral_layout_destroy(all[i]);
    }
}

static void what_is_cast_on_the_way_is_what_is_cast_whole(void **state)
{
    (void)state;
    static const struct corral_cast_rule rules[] = {
        {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_BLOCKS},
        {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_TILES},
        {.to = CORRAL_DTYPE_F8_E5M2, .scaling = CORRAL_CAST_NONE},
        {.pattern = "layer.*.down.weight", .to = CORRAL_DTYPE_F16},
        {.pattern = "*experts*", .to = CORRAL_DTYPE_BF16},
        {.pattern = "nothing", .to = CORRAL_DTYPE_BF16},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(rules); i++) {
        check_cast(rules[i], BY_ROWS, BY_COLUMNS, false);
        check_cast(rules[i], BY_COLUMNS, BY_ROWS, i % 2 == 0);
        check_cast(rules[i], WHOLE, BY_ROWS, true);
    }
}

static void a_part_of_a_block_is_refused_by_name(void **state)
{
    (void)state;
    const struct corral_cast_rule tiles = {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_TILES},
                                  blocks = {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_BLOCKS};
    const uint64_t shape[] = {256, 256};
    struct corral_layout *l = NULL, *made = NULL;
    struct corral_error err;
    uint32_t t;
    check_ok(corral_layout_create(&l, 2, &err));
    check_ok(corral_layout_add_tensor(l, "w.weight", CORRAL_DTYPE_BF16, 2, shape, &t, &err));
    check_ok(corral_layout_add_flat(l, t, 0, 0, 100 * 256, 0, &err));
    check_ok(corral_layout_add_flat(l, t, 1, 100 * 256, 156 * 256, 0, &err));
    check_status(corral_cast_layout(l, &tiles, 1, &made, &err), CORRAL_UNSUPPORTED);
    assert_non_null(strstr(err.text, "w.weight"));
    check_ok(corral_cast_layout(l, &blocks, 1, &made, &err));
    assert_int_equal(corral_layout_find(made, "w.weight_scale_inv"), 1);
    corral_layout_destroy(made);
    corral_layout_destroy(l);
}

static void rules_that_cannot_be_followed_are_refused(void **state)
{
    (void)state;
    const struct corral_cast_rule bad[] = {
        {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_TENSOR},
        {.to = CORRAL_DTYPE_BF16, .scaling = CORRAL_CAST_BLOCKS, .pattern = "*experts*"},
        {.to = CORRAL_DTYPE_I32},
        {.to = CORRAL_DTYPE_F8_E4M3, .scaling = CORRAL_CAST_TILES, .pattern = "*norm*"},
    };
    struct corral_layout *l = layout_of(1, WHOLE), *made = NULL;
    struct corral_error err;
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        check_status(corral_cast_layout(l, &bad[i], 1, &made, &err), CORRAL_INVALID);
    }
    corral_layout_destroy(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_cast_on_the_way_is_what_is_cast_whole),
        cmocka_unit_test(a_part_of_a_block_is_refused_by_name),
        cmocka_unit_test(rules_that_cannot_be_followed_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
