/* Weights in another precision in stores and on the way, with and without deltas. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/publisher.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS 160
#define COLUMNS 200 /* one block of 128 and a part of one */

static const uint8_t secret[32] = "the run's secret, 32 bytes long";

struct model {
    struct corral_manifest *manifest;
    float *weights, *back;
    uint64_t floats;
};

static struct model make_model(void)
{
    static const uint64_t matrix[2] = {ROWS, COLUMNS}, bias[1] = {ROWS}, embed[2] = {8, 16};
    struct model m = {.manifest = NULL};
    struct corral_error err = {0};
    check_ok(corral_manifest_create(&m.manifest, 3, &err));
    check_ok(corral_manifest_add(m.manifest, "policy.0.bias", CORRAL_DTYPE_F32, 1, bias, &err));
    check_ok(corral_manifest_add(m.manifest, "policy.0.weight", CORRAL_DTYPE_F32, 2, matrix, &err));
    check_ok(corral_manifest_add(m.manifest, "embed", CORRAL_DTYPE_F32, 2, embed, &err));
    m.floats = m.manifest->bytes / sizeof(float);
    m.weights = calloc(m.floats, sizeof(float));
    m.back = calloc(m.floats, sizeof(float));
    assert_true(m.weights != NULL && m.back != NULL);
    for (uint64_t i = 0; i < m.floats; i++) {
        m.weights[i] = sinf((float)i) * (1 + (float)(i % 7));
    }
    return m;
}

static void drop_model(struct model *m)
{
    corral_manifest_destroy(m->manifest);
    free(m->weights);
    free(m->back);
}

static void check_form(enum corral_weight_cast cast, enum corral_dtype dtype, float most)
{
    struct model m = make_model();
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_weight_form_destroyp) struct corral_weight_form *f = NULL;
    check_ok(corral_weight_form_create(&f, m.manifest, cast, &err));
    const struct corral_manifest *made = corral_weight_form_manifest(f);
    assert_int_equal(made->tensor[1].dtype, dtype);
    assert_int_equal(made->tensor[0].dtype, CORRAL_DTYPE_F32);
    assert_int_equal(made->count, cast == CORRAL_WEIGHT_CAST_FP8 ? 4 : 3);
    assert_int_equal(corral_weight_form_source_bytes(f), m.manifest->bytes);
    void *image = calloc(1, made->bytes), *again = calloc(1, made->bytes);
    assert_true(image != NULL && again != NULL);
    check_ok(corral_weight_form_encode(f, m.weights, image, &err));
    check_ok(corral_weight_form_decode(f, image, m.back, &err));
    const uint64_t first = m.manifest->tensor[1].offset / 4;
    for (uint64_t i = 0; i < m.floats; i++) {
        bool matrix = i >= first && i < first + ROWS * COLUMNS;
        float off = fabsf(m.back[i] - m.weights[i]);
        assert_true(matrix ? off <= most * fabsf(m.weights[i]) + 1e-2f * (cast == CORRAL_WEIGHT_CAST_FP8)
                           : off == 0);
    }
    /* What readers have is in the form already, bit by bit: acting on it and sending it again loses nothing. */
    check_ok(corral_weight_form_encode(f, m.back, again, &err));
    assert_true(cast == CORRAL_WEIGHT_CAST_FP8 || memcmp(image, again, made->bytes) == 0);
    free(image);
    free(again);
    drop_model(&m);
}

static void matrices_are_cast_and_nothing_else_is(void **state)
{
    (void)state;
    check_form(CORRAL_WEIGHT_CAST_NONE, CORRAL_DTYPE_F32, 0);
    check_form(CORRAL_WEIGHT_CAST_BF16, CORRAL_DTYPE_BF16, 0x1p-8f);
    check_form(CORRAL_WEIGHT_CAST_F16, CORRAL_DTYPE_F16, 0x1p-11f);
    check_form(CORRAL_WEIGHT_CAST_FP8, CORRAL_DTYPE_F8_E4M3, 0x1p-4f);
}

struct node {
    int fd;
    struct corral_weight_store *store, *reader;
    struct corral_weight_receiver *receiver;
};

static struct node start_node(const struct corral_manifest *manifest)
{
    struct node n = {.fd = -1};
    struct corral_error err = {0};
    check_ok(corral_weight_store_create(manifest->bytes, &n.fd, &err));
    check_ok(corral_weight_store_attach(n.fd, &n.store, &err));
    check_ok(corral_weight_store_attach(n.fd, &n.reader, &err));
    const struct corral_node_receiver_options options = {
        .node = "b", .host = "127.0.0.1", .manifest = manifest, .store = n.store, .run = 3, .secret = secret};
    check_ok(corral_weight_receiver_start(&n.receiver, &options, &err));
    return n;
}

static void stop_node(struct node *n)
{
    corral_weight_receiver_stop(n->receiver);
    corral_weight_store_detach(n->store);
    corral_weight_store_detach(n->reader);
    close(n->fd);
}

/* The version at a store, as a worker sees it; compared with what it is without having travelled. */
static void check_reader(struct corral_weight_store *store, const struct corral_weight_form *f,
                         struct model *m, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_digest digest;
    const struct corral_manifest *made = corral_weight_form_manifest(f);
    uint64_t got = 0;
    void *image = calloc(1, made->bytes), *expected = calloc(1, made->bytes);
    assert_true(image != NULL && expected != NULL);
    check_ok(
        corral_weight_store_read(store, corral_manifest_hash(made), image, made->bytes, &got, &digest, &err));
    assert_int_equal(got, version);
    check_ok(corral_weight_form_encode(f, m->weights, expected, &err));
    assert_memory_equal(image, expected, made->bytes);
    free(image);
    free(expected);
}

static void versions_go_cast_and_as_deltas_to_other_nodes(void **state)
{
    (void)state;
    struct model m = make_model();
    struct corral_error err = {0};
    struct corral_publish_stats s;
    struct corral_weight_publisher *p = NULL;
    CORRAL_CLEANUP(corral_weight_form_destroyp) struct corral_weight_form *f = NULL;
    check_ok(corral_weight_form_create(&f, m.manifest, CORRAL_WEIGHT_CAST_BF16, &err));
    const struct corral_manifest *made = corral_weight_form_manifest(f);
    struct node here = start_node(made), there = start_node(made);
    const struct corral_publisher_options options = {.manifest = m.manifest,
                                                     .cast = CORRAL_WEIGHT_CAST_BF16,
                                                     .run = 3,
                                                     .secret = secret,
                                                     .deadline_ms = 20000,
                                                     .delta = true,
                                                     .anchor_every = 4};
    check_ok(corral_weight_publisher_create(&p, &options, &err));
    check_ok(corral_weight_publisher_add_store(p, here.reader, &err));
    check_ok(corral_weight_publisher_add_node(p, "b", corral_weight_receiver_endpoint(there.receiver), &err));
    for (uint64_t v = 1; v <= 9; v++) {
        for (uint64_t i = v; i < m.floats; i += 97) {
            m.weights[i] += 1;
        }
        check_ok(corral_weight_publisher_push(p, v, m.weights, m.manifest->bytes, &s, &err));
        bool whole = v % 4 == 1; /* anchors */
        assert_int_equal(s.deltas, !whole);
        assert_int_equal(s.whole_bytes, m.manifest->bytes);
        assert_true(s.moved_bytes > 0 && s.moved_bytes * (whole ? 1 : 10) < s.whole_bytes);
        assert_true(s.memory >= made->bytes);
        check_reader(here.reader, f, &m, v);
        check_reader(there.reader, f, &m, v);
    }
    m.weights[0] +=
        1; /* other bytes under the same number: refused, and what nodes may still be sent is not touched */
    check_status(corral_weight_publisher_push(p, 9, m.weights, m.manifest->bytes, &s, &err), CORRAL_INVALID);
    corral_weight_publisher_remove(p, "b");
    check_ok(corral_weight_publisher_add_node(p, "b", corral_weight_receiver_endpoint(there.receiver), &err));
    check_status(corral_weight_publisher_catch_up(p, m.weights, m.manifest->bytes, 9, 5000, &err),
                 CORRAL_INVALID);
    m.weights[0] -= 1;
    check_ok(corral_weight_publisher_catch_up(p, m.weights, m.manifest->bytes, 9, 5000, &err));
    assert_false(corral_weight_publisher_behind(p));
    check_reader(there.reader, f, &m, 9);
    corral_weight_publisher_destroy(p);
    stop_node(&here);
    stop_node(&there);
    drop_model(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices_are_cast_and_nothing_else_is),
        cmocka_unit_test(versions_go_cast_and_as_deltas_to_other_nodes),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "form_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
