/* The plan against a naive reference: every element of every destination piece must be the one the global tensor has there, whatever the meshes. */
#include "transport/weights/reshard/plan.h"

#include "base/rng.h"
#include "tests/check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANKS_MAX 6
#define UNTOUCHED 0xEE

struct side {
    struct corral_layout *layout;
    uint8_t *buffer[RANKS_MAX];
};

static uint64_t below(struct corral_rng *rng, uint64_t n)
{
    return corral_rng_below(rng, n);
}

/* What the element of that tensor and row-major number is: something every byte of which depends on both. */
static void element_value(uint32_t tensor, uint64_t number, uint32_t bytes, uint8_t *out)
{
    uint64_t mixed =
        (number + 1) * UINT64_C(0x9E3779B97F4A7C15) ^ ((uint64_t)tensor + 1) * UINT64_C(0xC2B2AE3D27D4EB4F);
    memcpy(out, &mixed, bytes);
}

/* Calls for each element of a piece: its place in the buffer and its number in the global tensor. */
typedef void (*element_fn)(uint8_t *at, uint32_t tensor, uint64_t number, uint32_t bytes);
static void each_element(const struct side *s, const struct corral_piece *p, element_fn fn)
{
    const struct corral_layout_tensor *t = &s->layout->tensor[p->tensor];
    uint64_t elements = corral_box_elements(&p->box, t->dims);
    for (uint64_t e = 0; e < elements; e++) {
        uint64_t rest = e, number = 0, offset = p->offset, row = 1;
        for (uint32_t d = t->dims; d-- > 0;) {
            uint64_t i = rest % p->box.count[d];
            rest /= p->box.count[d];
            number += (p->box.first[d] + i) * row;
            row *= t->shape[d];
            offset += i * p->stride[d];
        }
        fn(s->buffer[p->rank] + offset, p->tensor, number, corral_dtype_bytes(t->dtype));
    }
}

static void fill_element(uint8_t *at, uint32_t tensor, uint64_t number, uint32_t bytes)
{
    element_value(tensor, number, bytes, at);
}

static void check_element(uint8_t *at, uint32_t tensor, uint64_t number, uint32_t bytes)
{
    uint8_t expected[8];
    element_value(tensor, number, bytes, expected);
    assert_memory_equal(at, expected, bytes);
    memset(at, UNTOUCHED, bytes); /* what is left over at the end was written by mistake */
}

static void make_buffers(struct side *s, uint8_t value)
{
    for (uint32_t r = 0; r < s->layout->ranks; r++) {
        s->buffer[r] = malloc(s->layout->rank_bytes[r] + 1);
        assert_non_null(s->buffer[r]);
        memset(s->buffer[r], value, s->layout->rank_bytes[r] + 1);
    }
}

static void drop_side(struct side *s)
{
    for (uint32_t r = 0; r < RANKS_MAX; r++) {
        free(s->buffer[r]);
    }
    corral_layout_destroy(s->layout);
}

static void add_tensors(struct corral_layout *l, uint32_t count, const uint64_t shape[][3],
                        const uint32_t *dims, const enum corral_dtype *dtype)
{
    for (uint32_t t = 0; t < count; t++) {
        char name[16];
        uint32_t index;
        snprintf(name, sizeof name, "t%u", t);
        assert_int_equal(corral_layout_add_tensor(l, name, dtype[t], dims[t], shape[t], &index, NULL),
                         CORRAL_OK);
        assert_int_equal(index, t);
    }
}

/* Columns of a box inside rows that are longer: what a fused or padded weight looks like. */
static void add_padded(struct corral_layout *l, uint32_t t, uint32_t rank, struct corral_rng *rng)
{
    const struct corral_layout_tensor *tensor = &l->tensor[t];
    struct corral_box box = {0};
    uint64_t stride[CORRAL_TENSOR_RANK_MAX], bytes = corral_dtype_bytes(tensor->dtype);
    for (uint32_t d = tensor->dims; d-- > 0;) {
        box.count[d] = tensor->shape[d];
        stride[d] = bytes;
        bytes *= tensor->shape[d] + below(rng, 3);
    }
    uint64_t offset = l->rank_bytes[rank] + below(rng, 5);
    assert_int_equal(corral_layout_add_box(l, t, rank, &box, offset, stride, NULL), CORRAL_OK);
}

static uint64_t next_offset(const struct corral_layout *l, uint32_t rank, struct corral_rng *rng)
{
    return l->rank_bytes[rank] + below(rng, 9);
}

/* One tensor over all ranks, in one of the ways frameworks do it. */
static void scatter(struct corral_layout *l, uint32_t t, struct corral_rng *rng)
{
    struct corral_layout_tensor tensor = l->tensor[t];
    uint64_t elements = 1;
    for (uint32_t d = 0; d < tensor.dims; d++) {
        elements *= tensor.shape[d];
    }
    uint32_t way = (uint32_t)below(rng, 4), dim = tensor.dims ? (uint32_t)below(rng, tensor.dims) : 0;
    uint64_t all = way == 0 ? elements : tensor.dims ? tensor.shape[dim] : 1, done = 0;
    for (uint32_t r = 0; r < l->ranks; r++) {
        uint64_t end = r + 1 == l->ranks ? all : done + below(rng, all - done + 1);
        if (way == 2 || tensor.dims == 0) {
            assert_int_equal(corral_layout_add_whole(l, t, r, next_offset(l, r, rng), NULL), CORRAL_OK);
        } else if (way == 3) {
            add_padded(l, t, r, rng);
        } else if (end > done && way == 0) {
            assert_int_equal(corral_layout_add_flat(l, t, r, done, end - done, next_offset(l, r, rng), NULL),
                             CORRAL_OK);
        } else if (end > done) {
            assert_int_equal(
                corral_layout_add_slice(l, t, r, dim, done, end - done, next_offset(l, r, rng), NULL),
                CORRAL_OK);
        }
        done = end;
    }
}

static void check_random_mesh(uint64_t seed)
{
    static const enum corral_dtype dtypes[] = {CORRAL_DTYPE_U8, CORRAL_DTYPE_BF16, CORRAL_DTYPE_F32,
                                               CORRAL_DTYPE_F64};
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    uint32_t count = 1 + (uint32_t)below(&rng, 4), dims[4];
    uint64_t shape[4][3];
    enum corral_dtype dtype[4];
    for (uint32_t t = 0; t < count; t++) {
        dims[t] = (uint32_t)below(&rng, 4);
        dtype[t] = dtypes[below(&rng, 4)];
        for (uint32_t d = 0; d < 3; d++) {
            shape[t][d] = 1 + below(&rng, 9);
        }
    }
    struct side from = {0}, to = {0};
    struct side *sides[2] = {&from, &to};
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(corral_layout_create(&sides[i]->layout, 1 + (uint32_t)below(&rng, RANKS_MAX), NULL),
                         CORRAL_OK);
        add_tensors(sides[i]->layout, count, (const uint64_t(*)[3])shape, dims, dtype);
        for (uint32_t t = 0; t < count; t++) {
            scatter(sides[i]->layout, t, &rng);
        }
        make_buffers(sides[i], UNTOUCHED);
    }
    for (uint32_t i = 0; i < from.layout->piece_count; i++) {
        each_element(&from, &from.layout->piece[i], fill_element);
    }
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL, *again = NULL;
    if (corral_reshard_plan_build(from.layout, to.layout, &plan, &err) != CORRAL_OK) {
        fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
    }
    assert_int_equal(corral_reshard_plan_build(from.layout, to.layout, &again, NULL), CORRAL_OK);
    assert_true(corral_digest_equal(plan->hash, again->hash));
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        const struct corral_reshard_copy *c = &plan->copy[i];
        bytes += corral_reshard_copy_bytes(c);
        if (i % 2) {
            corral_reshard_copy_run(c, from.buffer[c->source], to.buffer[c->destination]);
        } else {
            void *packed = malloc(corral_reshard_copy_bytes(c));
            corral_reshard_copy_pack(c, from.buffer[c->source], packed);
            corral_reshard_copy_unpack(c, packed, to.buffer[c->destination]);
            free(packed);
        }
    }
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < to.layout->piece_count; i++) {
        const struct corral_piece *p = &to.layout->piece[i];
        const struct corral_layout_tensor *t = &to.layout->tensor[p->tensor];
        wanted += corral_box_elements(&p->box, t->dims) * corral_dtype_bytes(t->dtype);
        each_element(&to, p, check_element);
    }
    assert_int_equal(bytes, wanted);
    assert_int_equal(plan->bytes, wanted);
    for (uint32_t r = 0; r < to.layout->ranks; r++) {
        for (uint64_t b = 0; b <= to.layout->rank_bytes[r]; b++) {
            assert_int_equal(to.buffer[r][b], UNTOUCHED);
        }
    }
    drop_side(&from);
    drop_side(&to);
}

static void any_mesh_onto_any_other_moves_each_byte_once_to_its_place(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5000; seed++) {
        check_random_mesh(seed);
    }
}

static struct corral_layout *layout_of(uint32_t ranks, uint64_t rows, uint64_t columns)
{
    struct corral_layout *l;
    uint32_t t;
    assert_int_equal(corral_layout_create(&l, ranks, NULL), CORRAL_OK);
    assert_int_equal(
        corral_layout_add_tensor(l, "w", CORRAL_DTYPE_BF16, 2, (uint64_t[]){rows, columns}, &t, NULL),
        CORRAL_OK);
    return l;
}

static void replicas_send_equally_much(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = layout_of(8, 64000, 4096);
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *to = layout_of(2, 64000, 4096);
    for (uint32_t r = 0; r < 8; r++) {
        assert_int_equal(corral_layout_add_whole(from, 0, r, 0, NULL), CORRAL_OK);
    }
    for (uint32_t r = 0; r < 2; r++) {
        assert_int_equal(corral_layout_add_slice(to, 0, r, 0, r * 32000, 32000, 0, NULL), CORRAL_OK);
    }
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL;
    assert_int_equal(corral_reshard_plan_build(from, to, &plan, NULL), CORRAL_OK);
    for (uint32_t r = 0; r < 8; r++) {
        assert_true(plan->sent[r] * 8 > plan->bytes * 9 / 10 && plan->sent[r] * 8 < plan->bytes * 11 / 10);
    }
    assert_int_equal(plan->contiguous_bytes, plan->bytes);
}

static void equal_layouts_become_one_run_per_rank(void **state)
{
    (void)state;
    struct corral_layout *side[2];
    for (uint32_t i = 0; i < 2; i++) {
        side[i] = layout_of(2, 8, 6);
        uint32_t t;
        assert_int_equal(
            corral_layout_add_tensor(side[i], "b", CORRAL_DTYPE_BF16, 1, (uint64_t[]){8}, &t, NULL),
            CORRAL_OK);
        for (uint32_t r = 0; r < 2; r++) {
            assert_int_equal(corral_layout_add_slice(side[i], 0, r, 0, r * 4, 4, 0, NULL), CORRAL_OK);
            assert_int_equal(corral_layout_add_slice(side[i], t, r, 0, r * 4, 4, 48, NULL), CORRAL_OK);
        }
    }
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL;
    assert_int_equal(corral_reshard_plan_build(side[0], side[1], &plan, NULL), CORRAL_OK);
    assert_int_equal(plan->copy_count, 2);
    assert_int_equal(plan->copy[0].dims, 0);
    assert_int_equal(plan->copy[0].run_bytes, 56);
    assert_int_equal(plan->copy[0].tensor, UINT32_MAX);
    corral_layout_destroy(side[0]);
    corral_layout_destroy(side[1]);
}

static void expect_refusal(const struct corral_layout *from, const struct corral_layout *to, const char *text)
{
    struct corral_error err = {0};
    struct corral_reshard_plan *plan = NULL;
    assert_int_equal(corral_reshard_plan_build(from, to, &plan, &err), CORRAL_INVALID);
    assert_string_equal(err.text, text);
    assert_null(plan);
}

static void says_what_the_source_lacks(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = layout_of(2, 8, 6);
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *to = layout_of(1, 8, 6);
    assert_int_equal(corral_layout_add_whole(to, 0, 0, 0, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_slice(from, 0, 1, 0, 0, 7, 0, NULL), CORRAL_OK);
    expect_refusal(
        from, to,
        "tensor w: no source rank has element [7, 0, …] (6 elements from there), which rank 0 needs");
    uint32_t t;
    assert_int_equal(corral_layout_add_tensor(to, "v", CORRAL_DTYPE_F32, 0, NULL, &t, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_whole(to, t, 0, 96, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_slice(from, 0, 0, 0, 7, 1, 0, NULL), CORRAL_OK);
    expect_refusal(from, to, "tensor v: the source has none of that name");
    assert_int_equal(corral_layout_add_tensor(from, "v", CORRAL_DTYPE_F16, 0, NULL, &t, NULL), CORRAL_OK);
    expect_refusal(from, to, "tensor v: F16 in the source, F32 in the destination");
}

static void refuses_a_destination_that_would_be_written_twice(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = layout_of(1, 8, 6);
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *to = layout_of(1, 8, 6);
    struct corral_box left = {.count = {8, 3}}, right = {.first = {0, 3}, .count = {8, 3}};
    uint64_t stride[2] = {12, 2};
    assert_int_equal(corral_layout_add_whole(from, 0, 0, 0, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_box(to, 0, 0, &left, 0, stride, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_box(to, 0, 0, &right, 6, stride, NULL),
                     CORRAL_OK); /* interleaved: fine */
    struct corral_reshard_plan *plan = NULL;
    assert_int_equal(corral_reshard_plan_build(from, to, &plan, NULL), CORRAL_OK);
    corral_reshard_plan_destroy(plan);
    assert_int_equal(corral_layout_add_box(to, 0, 0, &left, 4, stride, NULL), CORRAL_OK);
    expect_refusal(from, to, "rank 0: byte 4 of its buffer would be written by w and by w");
}

static void tied_weights_travel_once(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = layout_of(1, 8, 6);
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *to = NULL;
    assert_int_equal(corral_layout_add_whole(from, 0, 0, 0, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_alias(from, "head", 0, NULL), CORRAL_OK);
    uint32_t t;
    assert_int_equal(corral_layout_create(&to, 1, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_tensor(to, "head", CORRAL_DTYPE_BF16, 2, (uint64_t[]){8, 6}, &t, NULL),
                     CORRAL_OK);
    assert_int_equal(corral_layout_add_alias(to, "w", t, NULL), CORRAL_OK);
    assert_int_equal(corral_layout_add_whole(to, corral_layout_find(to, "w"), 0, 0, NULL), CORRAL_OK);
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL;
    assert_int_equal(corral_reshard_plan_build(from, to, &plan, NULL), CORRAL_OK);
    assert_int_equal(plan->bytes, 96);
}

static void refuses_layouts_that_cannot_be(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *l = layout_of(2, 8, 6);
    uint32_t t;
    uint64_t huge[2] = {UINT64_MAX / 2, 4}, none[1] = {0};
    assert_int_equal(corral_layout_add_tensor(l, "w", CORRAL_DTYPE_F32, 0, NULL, &t, NULL), CORRAL_INVALID);
    assert_int_equal(corral_layout_add_tensor(l, "huge", CORRAL_DTYPE_F32, 2, huge, &t, NULL),
                     CORRAL_INVALID);
    assert_int_equal(corral_layout_add_tensor(l, "none", CORRAL_DTYPE_F32, 1, none, &t, NULL),
                     CORRAL_INVALID);
    assert_int_equal(corral_layout_add_slice(l, 0, 0, 0, 4, 5, 0, NULL), CORRAL_INVALID);
    assert_int_equal(corral_layout_add_slice(l, 0, 0, 2, 0, 1, 0, NULL), CORRAL_INVALID);
    assert_int_equal(corral_layout_add_flat(l, 0, 0, 40, 9, 0, NULL), CORRAL_INVALID);
    assert_int_equal(corral_layout_add_whole(l, 0, 2, 0, NULL), CORRAL_INVALID);
    assert_int_equal(corral_layout_add_whole(l, 0, 0, UINT64_MAX - 8, NULL), CORRAL_INVALID);
    assert_int_equal(l->piece_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_mesh_onto_any_other_moves_each_byte_once_to_its_place),
        cmocka_unit_test(replicas_send_equally_much),
        cmocka_unit_test(equal_layouts_become_one_run_per_rank),
        cmocka_unit_test(says_what_the_source_lacks),
        cmocka_unit_test(refuses_a_destination_that_would_be_written_twice),
        cmocka_unit_test(tied_weights_travel_once),
        cmocka_unit_test(refuses_layouts_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
