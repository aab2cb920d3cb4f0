#include "base/mpack.h"
#include "base/rng.h"
#include "tests/check.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* The test is linked with --wrap=realloc: the writer's next growth fails while this is set. */
static bool fail_realloc;
void *__real_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes)
{
    return fail_realloc ? NULL : __real_realloc(p, bytes);
}

/* Decode from a heap copy of exactly the given size, so that a read past the end is caught by the sanitizers. */
static enum corral_status read_exact(const void *data, size_t bytes, struct corral_error *err)
{
    CORRAL_AUTO_FREE uint8_t *copy = malloc(bytes == 0 ? 1 : bytes);
    if (bytes > 0) {
        memcpy(copy, data, bytes);
    }
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    enum corral_status status = corral_mpack_read(&r, copy, bytes, err);
    assert_true((status == CORRAL_OK) == (r != NULL));
    return status;
}

#define READ_BYTES(err, ...) \
    read_exact((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), (err))

static void write_sample(struct corral_mpack_writer *w)
{
    corral_mpack_map(w, 12);
    corral_mpack_kv_str(w, "type", "hello");
    corral_mpack_kv_u64(w, "big", UINT64_MAX);
    corral_mpack_kv_i64(w, "low", INT64_MIN);
    corral_mpack_kv_i64(w, "positive", 77);
    corral_mpack_kv_f64(w, "pi", 3.14159);
    corral_mpack_kv_bool(w, "yes", true);
    corral_mpack_kv_bool(w, "no", false);
    corral_mpack_kv_bin(w, "blob", "\0\1\2", 3);
    corral_mpack_kv_bin(w, "none", NULL, 0);
    corral_mpack_kv_str(w, "empty", "");
    corral_mpack_str(w, "list");
    corral_mpack_array(w, 3);
    corral_mpack_u64(w, 1);
    corral_mpack_f64(w, 0.5);
    corral_mpack_str(w, "two");
    corral_mpack_str(w, "inner");
    corral_mpack_map(w, 1);
    corral_mpack_kv_u64(w, "x", 300);
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    write_sample(w);
    const void *data;
    size_t bytes;
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    check_ok(corral_mpack_read(&r, data, bytes, &err));
    const struct corral_mpack_node *root = corral_mpack_root(r);
    char text[16];
    uint64_t u;
    int64_t i;
    double f;
    bool b;
    const void *blob;
    size_t blob_bytes;
    check_ok(corral_mpack_get_str(root, "type", text, sizeof text, &err));
    assert_string_equal(text, "hello");
    check_ok(corral_mpack_get_u64(root, "big", &u, &err));
    assert_true(u == UINT64_MAX);
    check_ok(corral_mpack_get_i64(root, "low", &i, &err));
    assert_true(i == INT64_MIN);
    check_ok(corral_mpack_get_i64(root, "positive", &i, &err));
    assert_int_equal(i, 77);
    check_ok(corral_mpack_get_u64(root, "positive", &u,
                                  &err)); /* the sign is in the value, not in the writer's type */
    check_ok(corral_mpack_get_f64(root, "pi", &f, &err));
    assert_true(f == 3.14159);
    check_ok(corral_mpack_get_f64(root, "low", &f, &err));
    assert_true(f == -0x1p63);
    check_ok(corral_mpack_get_f64(root, "big", &f, &err));
    assert_true(f == 0x1p64);
    check_ok(corral_mpack_get_bool(root, "yes", &b, &err));
    assert_true(b);
    check_ok(corral_mpack_get_bool(root, "no", &b, &err));
    assert_false(b);
    check_ok(corral_mpack_get_bin(root, "blob", &blob, &blob_bytes, &err));
    assert_int_equal(blob_bytes, 3);
    assert_memory_equal(blob, "\0\1\2", 3);
    assert_true((const char *)blob > (const char *)data && (const char *)blob < (const char *)data + bytes);
    check_ok(corral_mpack_get_bin(root, "none", &blob, &blob_bytes, &err));
    assert_int_equal(blob_bytes, 0);
    check_ok(corral_mpack_get_str(root, "empty", text, 1, &err));
    assert_string_equal(text, "");
    assert_true(corral_mpack_has(root, "blob"));
    assert_false(corral_mpack_has(root, "blo"));
}

static void nested_values_are_reached_through_nodes(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    write_sample(w);
    const void *data;
    size_t bytes;
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    check_ok(corral_mpack_read(&r, data, bytes, &err));
    const struct corral_mpack_node *list;
    const struct corral_mpack_node *inner;
    uint64_t u;
    double f;
    char text[4];
    check_ok(corral_mpack_get_node(corral_mpack_root(r), "list", &list, &err));
    check_ok(corral_mpack_get_node(corral_mpack_root(r), "inner", &inner, &err));
    assert_int_equal(corral_mpack_count(list), 3);
    assert_int_equal(corral_mpack_count(inner), 0);
    check_ok(corral_mpack_node_u64(corral_mpack_at(list, 0), &u, &err));
    check_ok(corral_mpack_node_f64(corral_mpack_at(list, 1), &f, &err));
    check_ok(corral_mpack_node_str(corral_mpack_at(list, 2), text, sizeof text, &err));
    assert_string_equal(text, "two");
    assert_null(corral_mpack_at(list, 3));
    assert_null(corral_mpack_at(inner, 0));
    /* A peer that sends a short list is found out by the element that is not there. */
    check_status(corral_mpack_node_u64(corral_mpack_at(list, 3), &u, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_node_u64(corral_mpack_at(list, 1), &u, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_node_f64(corral_mpack_at(list, 2), &f, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_node_str(corral_mpack_at(list, 0), text, sizeof text, &err), CORRAL_PROTOCOL);
    check_ok(corral_mpack_get_u64(inner, "x", &u, &err));
    assert_int_equal(u, 300);
    check_status(corral_mpack_get_u64(list, "x", &u, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_u64(corral_mpack_at(list, 9), "x", &u, &err), CORRAL_PROTOCOL);
    assert_false(corral_mpack_has(list, "x"));
    assert_false(corral_mpack_has(NULL, "x"));
}

static void a_wrong_type_names_the_key_and_leaves_the_output(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    write_sample(w);
    const void *data;
    size_t bytes;
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    check_ok(corral_mpack_read(&r, data, bytes, &err));
    const struct corral_mpack_node *root = corral_mpack_root(r);
    const struct corral_mpack_node *node = root;
    char text[4] = "abc";
    uint64_t u = 5;
    int64_t i = 5;
    double f = 5.0;
    bool b = true;
    check_status(corral_mpack_get_u64(root, "type", &u, &err), CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "`type`"));
    check_status(corral_mpack_get_u64(root, "low", &u, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_u64(root, "absent", &u, &err), CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "`absent` is missing"));
    check_status(corral_mpack_get_i64(root, "big", &i, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_i64(root, "pi", &i, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_f64(root, "yes", &f, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_bool(root, "pi", &b, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_str(root, "blob", text, sizeof text, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_str(root, "type", text, sizeof text, &err), CORRAL_PROTOCOL); /* too long */
    check_status(corral_mpack_get_str(root, "type", text, 0, &err), CORRAL_PROTOCOL);
    check_status(corral_mpack_get_node(root, "pi", &node, &err), CORRAL_PROTOCOL);
    const void *blob = &u;
    size_t n = 5;
    check_status(corral_mpack_get_bin(root, "type", &blob, &n, &err), CORRAL_PROTOCOL);
    assert_true(u == 5 && i == 5 && f == 5.0 && b && n == 5 && blob == &u && node == root);
    assert_string_equal(text, "abc");
}

static void refuses_a_key_that_is_there_twice(void **state)
{
    (void)state;
    struct corral_error err;
    static const uint8_t twice[] = {0x82, 0xA1, 'k', 1, 0xA1, 'k', 2};
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    check_ok(corral_mpack_read(&r, twice, sizeof twice, &err));
    uint64_t u;
    check_status(corral_mpack_get_u64(corral_mpack_root(r), "k", &u, &err), CORRAL_PROTOCOL);
}

static void refuses_a_string_with_a_nul_in_it(void **state)
{
    (void)state;
    struct corral_error err;
    static const uint8_t bytes[] = {0x81, 0xA1, 'k', 0xA3, 'a', 0, 'b'};
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    check_ok(corral_mpack_read(&r, bytes, sizeof bytes, &err));
    char text[16];
    check_status(corral_mpack_get_str(corral_mpack_root(r), "k", text, sizeof text, &err), CORRAL_PROTOCOL);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    write_sample(w);
    const void *data;
    size_t bytes;
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    check_ok(read_exact(data, bytes, &err));
    for (size_t n = 0; n < bytes; n++) {
        check_status(read_exact(data, n, &err), CORRAL_PROTOCOL);
        assert_non_null(strstr(err.text, "at byte"));
    }
}

static void trailing_bytes_are_refused(void **state)
{
    (void)state;
    struct corral_error err;
    check_ok(READ_BYTES(&err, 0x80));
    check_status(READ_BYTES(&err, 0x80, 0xC0), CORRAL_PROTOCOL);
    check_status(READ_BYTES(&err, 0x80, 0x80), CORRAL_PROTOCOL);
}

static void counts_beyond_the_bytes_are_refused_where_they_are_declared(void **state)
{
    (void)state;
    static const struct {
        uint8_t bytes[8];
        size_t count;
        const char *problem;
    } cases[] = {
        {{0x81, 0xA1, 'k', 0xDD, 0xFF, 0xFF, 0xFF, 0xFF}, 8, "byte 8: declares more elements"}, /* array 32 */
        {{0x81, 0xA1, 'k', 0xDF, 0xFF, 0xFF, 0xFF, 0xFF}, 8, "byte 8: declares more elements"}, /* map 32 */
        {{0xDF, 0x80, 0x00, 0x00, 0x00},
         5,
         "byte 5: declares more elements"}, /* twice that overflows 32 bits */
        {{0x81, 0xA1, 'k', 0xDC, 0xFF, 0xFF, 1, 2}, 8, "byte 6: declares more elements"},    /* array 16 */
        {{0x81, 0xA1, 'k', 0xC6, 0xFF, 0xFF, 0xFF, 0xFF}, 8, "byte 8: declares more bytes"}, /* bin 32 */
        {{0x81, 0xDB, 0xFF, 0xFF, 0xFF, 0xFF, 'k', 1}, 8, "byte 6: declares more bytes"},    /* str 32 */
        {{0x82, 0xA1, 'k', 1}, 4, "byte 1: declares more elements"}, /* two pairs in three bytes */
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        struct corral_error err;
        check_status(read_exact(cases[i].bytes, cases[i].count, &err), CORRAL_PROTOCOL);
        if (strstr(err.text, cases[i].problem) == NULL) {
            fail_msg("case %zu: %s", i, err.text);
        }
    }
}

static void types_outside_the_protocol_are_refused(void **state)
{
    (void)state;
    struct corral_error err;
    static const uint8_t refused[] = {0xC1, 0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8};
    for (size_t i = 0; i < sizeof refused; i++) {
        uint8_t message[40] = {0x81, 0xA1, 'k', refused[i]};
        check_status(read_exact(message, sizeof message, &err), CORRAL_PROTOCOL);
    }
    check_status(READ_BYTES(&err, 0x90), CORRAL_PROTOCOL); /* the top is no map */
    check_status(READ_BYTES(&err, 0x01), CORRAL_PROTOCOL);
    check_status(READ_BYTES(&err, 0x81, 0x01, 0x01), CORRAL_PROTOCOL); /* a key that is no string */
    check_status(READ_BYTES(&err, 0x81, 0x80, 0x01), CORRAL_PROTOCOL); /* a map as key */
    check_ok(READ_BYTES(&err, 0x81, 0xA1, 'k', 0xC0));                 /* nil is a value */
}

static size_t nest(uint8_t *out, uint32_t levels, bool maps)
{
    size_t n = 0;
    for (uint32_t i = 0; i < levels; i++) {
        if (maps || i == 0) {
            out[n++] = 0x81;
            out[n++] = 0xA1;
            out[n++] = 'k';
        } else {
            out[n++] = 0x91;
        }
    }
    out[n++] = 0x01;
    return n;
}

static void depth_is_bounded(void **state)
{
    (void)state;
    struct corral_error err;
    static uint8_t message[3 * 100000 + 1];
    for (int maps = 0; maps < 2; maps++) {
        check_ok(read_exact(message, nest(message, CORRAL_MPACK_DEPTH_MAX, maps), &err));
        check_status(read_exact(message, nest(message, CORRAL_MPACK_DEPTH_MAX + 1, maps), &err),
                     CORRAL_PROTOCOL);
        check_status(read_exact(message, nest(message, 100000, maps), &err), CORRAL_PROTOCOL);
        assert_non_null(strstr(err.text, "too deep"));
    }
}

static void the_number_of_objects_is_bounded(void **state)
{
    (void)state;
    struct corral_error err;
    /* Map, key, array and the elements are objects. */
    for (uint32_t extra = 0; extra < 2; extra++) {
        CORRAL_CLEANUP(corral_mpack_writer_destroyp)
        struct corral_mpack_writer *w = corral_mpack_writer_create();
        const uint32_t count = CORRAL_MPACK_OBJECTS_MAX - 3 + extra;
        corral_mpack_map(w, 1);
        corral_mpack_str(w, "k");
        corral_mpack_array(w, count);
        for (uint32_t i = 0; i < count; i++) {
            corral_mpack_u64(w, i);
        }
        const void *data;
        size_t bytes;
        check_ok(corral_mpack_finish(w, &data, &bytes, &err));
        check_status(read_exact(data, bytes, &err), extra == 0 ? CORRAL_OK : CORRAL_PROTOCOL);
    }
}

static void damaged_messages_never_crash_the_reader(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 21);
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    write_sample(w);
    const void *data;
    size_t bytes;
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    uint8_t damaged[512];
    assert_true(bytes < sizeof damaged);
    int refused = 0;
    for (int i = 0; i < 20000; i++) {
        memcpy(damaged, data, bytes);
        for (uint64_t k = corral_rng_below(&rng, 3) + 1; k > 0; k--) {
            damaged[corral_rng_below(&rng, bytes)] = (uint8_t)corral_rng_next(&rng);
        }
        const enum corral_status status = read_exact(damaged, bytes, &err);
        assert_true(status == CORRAL_OK || status == CORRAL_PROTOCOL);
        refused += status != CORRAL_OK;
    }
    assert_true(refused > 1000);
}

static void a_writer_that_failed_once_says_so_at_the_end(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    static char blob[100000];
    corral_mpack_map(w, 2);
    fail_realloc = true;
    corral_mpack_kv_bin(w, "a", blob, sizeof blob);
    fail_realloc = false;
    corral_mpack_kv_u64(w, "b", 1);
    const void *data = &err;
    size_t bytes = 5;
    check_status(corral_mpack_finish(w, &data, &bytes, &err), CORRAL_NOMEM);
    assert_true(data == &err && bytes == 5);
    corral_mpack_writer_reset(w);
    corral_mpack_map(w, 1);
    corral_mpack_kv_u64(w, "b", 1);
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    assert_int_equal(bytes, 4);
}

static void a_miscounted_map_is_found_by_its_writer(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    const void *data;
    size_t bytes;
    check_status(corral_mpack_finish(w, &data, &bytes, &err), CORRAL_INTERNAL); /* nothing written */
    corral_mpack_map(w, 2);
    corral_mpack_kv_u64(w, "a", 1);
    check_status(corral_mpack_finish(w, &data, &bytes, &err), CORRAL_INTERNAL);
    corral_mpack_kv_u64(w, "b", 1);
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    corral_mpack_kv_u64(w, "c", 1);
    check_status(corral_mpack_finish(w, &data, &bytes, &err), CORRAL_INTERNAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(nested_values_are_reached_through_nodes),
        cmocka_unit_test(a_wrong_type_names_the_key_and_leaves_the_output),
        cmocka_unit_test(refuses_a_key_that_is_there_twice),
        cmocka_unit_test(refuses_a_string_with_a_nul_in_it),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(trailing_bytes_are_refused),
        cmocka_unit_test(counts_beyond_the_bytes_are_refused_where_they_are_declared),
        cmocka_unit_test(types_outside_the_protocol_are_refused),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(the_number_of_objects_is_bounded),
        cmocka_unit_test(damaged_messages_never_crash_the_reader),
        cmocka_unit_test(a_writer_that_failed_once_says_so_at_the_end),
        cmocka_unit_test(a_miscounted_map_is_found_by_its_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
