/* Random models cut in random ways, for the tests of links, lanes and pushes. Asserts; only for tests. Include "tests/check.h" first. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LINK_TEST_MESH_H
#define CORRAL_TRANSPORT_WEIGHTS_LINK_TEST_MESH_H

#include "base/rng.h"
#include "transport/weights/link/link.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_mesh {
    struct corral_layout *from, *to;
    struct corral_reshard_plan *plan;
    uint8_t **source, **expected; /* per rank: filled sources, and what the copies of the plan make of them */
};

/* One tensor over all ranks: flat ranges, slices of one dimension, whole everywhere, or whole in longer rows. */
static inline void test_mesh_scatter(struct corral_layout *l, uint32_t t, struct corral_rng *rng)
{
    struct corral_layout_tensor tensor = l->tensor[t];
    uint64_t elements = 1;
    for (uint32_t d = 0; d < tensor.dims; d++) {
        elements *= tensor.shape[d];
    }
    uint32_t way = (uint32_t)corral_rng_below(rng, 4), dim = (uint32_t)corral_rng_below(rng, tensor.dims);
    uint64_t all = way == 0 ? elements : tensor.shape[dim], done = 0;
    for (uint32_t r = 0; r < l->ranks; r++) {
        uint64_t end = r + 1 == l->ranks ? all : done + corral_rng_below(rng, all - done + 1);
        uint64_t offset = l->rank_bytes[r] + 8 * corral_rng_below(rng, 9);
        struct corral_box box = {0};
        uint64_t stride[CORRAL_TENSOR_RANK_MAX], bytes = corral_dtype_bytes(tensor.dtype);
        for (uint32_t d = tensor.dims; d-- > 0;) {
            box.count[d] = tensor.shape[d];
            stride[d] = bytes;
            bytes *= tensor.shape[d] + corral_rng_below(rng, 3);
        }
        enum corral_status status = CORRAL_OK;
        if (way == 2) {
            status = corral_layout_add_whole(l, t, r, offset, NULL);
        } else if (way == 3) {
            status = corral_layout_add_box(l, t, r, &box, offset, stride, NULL);
        } else if (end > done && way == 0) {
            status = corral_layout_add_flat(l, t, r, done, end - done, offset, NULL);
        } else if (end > done) {
            status = corral_layout_add_slice(l, t, r, dim, done, end - done, offset, NULL);
        }
        assert_int_equal(status, CORRAL_OK);
        done = end;
    }
}

static inline struct corral_layout *test_mesh_layout(struct corral_rng *rng, uint32_t ranks, uint32_t tensors,
                                                     const uint64_t shape[][3])
{
    struct corral_layout *l = NULL;
    assert_int_equal(corral_layout_create(&l, ranks, NULL), CORRAL_OK);
    for (uint32_t t = 0; t < tensors; t++) {
        static const enum corral_dtype dtype[] = {CORRAL_DTYPE_BF16, CORRAL_DTYPE_U8, CORRAL_DTYPE_F32};
        char name[16];
        uint32_t index;
        snprintf(name, sizeof name, "t%u", t);
        assert_int_equal(corral_layout_add_tensor(l, name, dtype[t % 3], 3, shape[t], &index, NULL),
                         CORRAL_OK);
        test_mesh_scatter(l, t, rng);
    }
    return l;
}

static inline uint8_t *test_mesh_buffer(uint64_t bytes, uint8_t value)
{
    uint8_t *buffer = malloc(bytes + 1);
    assert_non_null(buffer);
    memset(buffer, value, bytes + 1);
    return buffer;
}

/* Sources get bytes that depend on the seed and on nothing that repeats; expected is 0 where no copy goes. */
static inline void test_mesh_fill(struct test_mesh *m, uint64_t seed)
{
    for (uint32_t r = 0; r < m->from->ranks; r++) {
        uint64_t x = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15) + r;
        for (uint64_t i = 0; i < m->from->rank_bytes[r]; i++) {
            x = x * UINT64_C(6364136223846793005) + 1442695040888963407u;
            m->source[r][i] = (uint8_t)(x >> 56);
        }
    }
    for (uint32_t i = 0; i < m->plan->copy_count; i++) {
        const struct corral_reshard_copy *c = &m->plan->copy[i];
        corral_reshard_copy_run(c, m->source[c->source], m->expected[c->destination]);
    }
}

/* About `elements` elements per tensor. */
static inline struct test_mesh test_mesh_make(uint64_t seed, uint32_t sources, uint32_t destinations,
                                              uint32_t tensors, uint64_t elements)
{
    struct test_mesh m = {0};
    struct corral_rng rng;
    uint64_t shape[8][3];
    assert_true(tensors <= 8);
    corral_rng_seed(&rng, seed);
    for (uint32_t t = 0; t < tensors; t++) {
        shape[t][0] = 1 + corral_rng_below(&rng, 12);
        shape[t][1] = 1 + corral_rng_below(&rng, elements / shape[t][0]);
        shape[t][2] = 1 + elements / shape[t][0] / shape[t][1];
    }
    m.from = test_mesh_layout(&rng, sources, tensors, (const uint64_t(*)[3])shape);
    m.to = test_mesh_layout(&rng, destinations, tensors, (const uint64_t(*)[3])shape);
    struct corral_error err = {0};
    if (corral_reshard_plan_build(m.from, m.to, &m.plan, &err) != CORRAL_OK) {
        fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
    }
    m.source = calloc(sources, sizeof *m.source);
    m.expected = calloc(destinations, sizeof *m.expected);
    assert_true(m.source != NULL && m.expected != NULL);
    for (uint32_t r = 0; r < sources; r++) {
        m.source[r] = test_mesh_buffer(m.from->rank_bytes[r], 0);
    }
    for (uint32_t r = 0; r < destinations; r++) {
        m.expected[r] = test_mesh_buffer(m.to->rank_bytes[r], 0);
    }
    test_mesh_fill(&m, seed);
    return m;
}

static inline void test_mesh_drop(struct test_mesh *m)
{
    for (uint32_t r = 0; r < m->from->ranks; r++) {
        free(m->source[r]);
    }
    for (uint32_t r = 0; r < m->to->ranks; r++) {
        free(m->expected[r]);
    }
    free(m->source);
    free(m->expected);
    corral_reshard_plan_destroy(m->plan);
    corral_layout_destroy(m->from);
    corral_layout_destroy(m->to);
}

#endif
