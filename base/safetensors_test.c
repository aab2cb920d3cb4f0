#include "tests/check.h"

#include "base/file.h"
#include "base/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file in memory: header text padded to nothing, then `data_bytes` counting bytes. */
static size_t compose(uint8_t *out, const char *header, size_t data_bytes)
{
    uint64_t n = strlen(header);
    memcpy(out, &n, sizeof n); /* the tests run on little-endian machines, like everything else here */
    memcpy(out + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++) {
        out[8 + n + i] = (uint8_t)i;
    }
    return 8 + n + data_bytes;
}

static void expect_refused(const char *header, size_t data_bytes, enum corral_status status,
                           const char *contains)
{
    _Alignas(64) uint8_t file[4096];
    struct corral_error err = {0};
    struct corral_safetensors *f = NULL;
    size_t bytes = compose(file, header, data_bytes);
    check_status(corral_safetensors_open_memory(&f, "m", file, bytes, &err), status);
    assert_null(f);
    if (strstr(err.text, contains) == NULL) {
        fail_msg("unexpected error text: %s", err.text);
    }
}

#define TENSOR(name, dtype, shape, from, to) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void reads_tensors_in_the_order_of_their_bytes(void **state)
{
    (void)state;
    _Alignas(64) uint8_t file[4096];
    struct corral_error err = {0};
    struct corral_safetensors *f = NULL;
    size_t bytes =
        compose(file,
                "{" TENSOR("b", "U8", "[4]", 8, 12) "," TENSOR("a", "F32", "[1,2]", 0, 8) "," TENSOR(
                    "e", "I64", "[0]", 8, 8) ",\"__metadata__\":{\"k\":\"v\"}}",
                12);
    check_ok(corral_safetensors_open_memory(&f, "m", file, bytes, &err));
    assert_int_equal(corral_safetensors_count(f), 3);
    assert_string_equal(corral_safetensors_at(f, 0)->name, "a");
    assert_string_equal(corral_safetensors_at(f, 1)->name, "e");
    assert_string_equal(corral_safetensors_at(f, 2)->name, "b");
    assert_null(corral_safetensors_at(f, 3));
    const struct corral_tensor *a = corral_safetensors_find(f, "a");
    assert_int_equal(a->dtype, CORRAL_DTYPE_F32);
    assert_int_equal(a->rank, 2);
    assert_int_equal(a->shape[1], 2);
    assert_int_equal(a->bytes, 8);
    assert_int_equal(((const uint8_t *)corral_safetensors_find(f, "b")->data)[3], 11);
    assert_null(corral_safetensors_find(f, "absent"));
    assert_string_equal(corral_safetensors_metadata(f, "k"), "v");
    assert_null(corral_safetensors_metadata(f, "absent"));
    corral_safetensors_close(f);
}

/* The format does not align: whatever the header's length, data can be used in place. */
static void data_is_aligned_for_its_type(void **state)
{
    (void)state;
    _Alignas(64) uint8_t file[4096];
    for (int pad = 0; pad < 9; pad++) {
        char header[512];
        struct corral_error err = {0};
        struct corral_safetensors *f = NULL;
        snprintf(header, sizeof header,
                 "{" TENSOR("odd", "U8", "[3]", 0, 3) "," TENSOR("d", "F64", "[1]", 3, 11) "," TENSOR(
                     "h", "F16", "[1]", 11, 13) "}%*s",
                 pad, "");
        size_t bytes = compose(file, header, 13);
        check_ok(corral_safetensors_open_memory(&f, "m", file, bytes, &err));
        const struct corral_tensor *d = corral_safetensors_find(f, "d");
        assert_int_equal((uintptr_t)d->data % 8, 0);
        assert_int_equal(((const uint8_t *)d->data)[7], 10);
        assert_int_equal((uintptr_t)corral_safetensors_find(f, "h")->data % 2, 0);
        corral_safetensors_close(f);
    }
}

static void refuses_a_malformed_header(void **state)
{
    (void)state;
    expect_refused("[]", 0, CORRAL_PROTOCOL, "object");
    expect_refused("{" TENSOR("a", "F8_E8M0", "[4]", 0, 4) "}", 4, CORRAL_UNSUPPORTED, "F8_E8M0");
    expect_refused("{" TENSOR("a", "U8", "4", 0, 4) "}", 4, CORRAL_PROTOCOL, "shape");
    expect_refused("{" TENSOR("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, CORRAL_PROTOCOL, "shape");
    expect_refused("{" TENSOR("a", "U8", "[-4]", 0, 4) "}", 4, CORRAL_PROTOCOL, "shape[0]");
    expect_refused("{" TENSOR("a", "U8", "[4.0]", 0, 4) "}", 4, CORRAL_PROTOCOL, "shape[0]");
    expect_refused("{" TENSOR("a", "U8", "[4]", 0, 8) "}", 4, CORRAL_PROTOCOL, "data_offsets");
    expect_refused("{" TENSOR("a", "U8", "[4]", 4, 0) "}", 4, CORRAL_PROTOCOL, "data_offsets");
    expect_refused("{" TENSOR("a", "F32", "[4]", 0, 4) "}", 4, CORRAL_PROTOCOL, "shape and dtype");
    expect_refused("{\"a\":{}}", 4, CORRAL_PROTOCOL, "dtype");
    expect_refused("{\"a\":7}", 4, CORRAL_PROTOCOL, "dtype");
    expect_refused("{\"__metadata__\":{\"k\":1}}", 0, CORRAL_PROTOCOL, "__metadata__");
}

static void refuses_a_shape_that_overflows(void **state)
{
    (void)state;
    expect_refused("{" TENSOR("a", "F64", "[4294967296,4294967296]", 0, 0) "}", 0, CORRAL_PROTOCOL,
                   "shape and dtype");
    expect_refused("{" TENSOR("a", "F64", "[2305843009213693952]", 0, 0) "}", 0, CORRAL_PROTOCOL,
                   "shape and dtype");
}

static void refuses_holes_overlaps_and_tails(void **state)
{
    (void)state;
    expect_refused("{" TENSOR("a", "U8", "[2]", 0, 2) "," TENSOR("b", "U8", "[1]", 3, 4) "}", 4,
                   CORRAL_PROTOCOL, "hole");
    expect_refused("{" TENSOR("a", "U8", "[3]", 0, 3) "," TENSOR("b", "U8", "[2]", 2, 4) "}", 4,
                   CORRAL_PROTOCOL, "hole");
    expect_refused("{" TENSOR("a", "U8", "[3]", 0, 3) "}", 4, CORRAL_PROTOCOL, "after the last");
    expect_refused("{}", 1, CORRAL_PROTOCOL, "after the last");
}

static void refuses_duplicate_keys(void **state)
{
    (void)state;
    _Alignas(64) uint8_t file[4096];
    struct corral_error err = {0};
    struct corral_safetensors *f = NULL;
    size_t bytes =
        compose(file, "{" TENSOR("a", "U8", "[2]", 0, 2) "," TENSOR("a", "U8", "[2]", 2, 4) "}", 4);
    assert_int_not_equal(corral_safetensors_open_memory(&f, "m", file, bytes, &err), CORRAL_OK);
}

static void refuses_every_truncation(void **state)
{
    (void)state;
    _Alignas(64) uint8_t file[4096];
    struct corral_error err = {0};
    size_t bytes = compose(file, "{" TENSOR("a", "F32", "[2]", 0, 8) "}", 8);
    for (size_t cut = 0; cut < bytes; cut++) {
        struct corral_safetensors *f = NULL;
        uint8_t *exact = malloc(cut + 1); /* a read past the end is the sanitizer's to see */
        memcpy(exact, file, cut);
        assert_int_not_equal(corral_safetensors_open_memory(&f, "m", exact, cut, &err), CORRAL_OK);
        free(exact);
    }
}

static void refuses_a_header_larger_than_the_file(void **state)
{
    (void)state;
    uint8_t file[64] = {0};
    struct corral_error err = {0};
    struct corral_safetensors *f = NULL;
    memset(file, 0xff, 8);
    check_status(corral_safetensors_open_memory(&f, "m", file, sizeof file, &err), CORRAL_PROTOCOL);
}

/* ---- files ---- */

struct folder {
    char path[64], file[96];
};

static int setup(void **state)
{
    static struct folder d;
    strcpy(d.path, "/tmp/corral-safetensors-XXXXXX");
    assert_non_null(mkdtemp(d.path));
    snprintf(d.file, sizeof d.file, "%s/w.safetensors", d.path);
    *state = &d;
    return 0;
}

static int teardown(void **state)
{
    struct folder *d = *state;
    struct corral_error err = {0};
    check_ok(corral_remove_tree(d->path, &err));
    return 0;
}

static void what_is_written_is_read_back(void **state)
{
    struct folder *d = *state;
    struct corral_error err = {0};
    float w[6] = {1, 2, 3, 4, 5, 6};
    uint64_t step = 77;
    struct corral_tensor tensors[3] = {
        {.name = "layer.weight",
         .dtype = CORRAL_DTYPE_F32,
         .rank = 2,
         .shape = {2, 3},
         .data = w,
         .bytes = sizeof w},
        {.name = "step", .dtype = CORRAL_DTYPE_U64, .rank = 0, .data = &step, .bytes = sizeof step},
        {.name = "none", .dtype = CORRAL_DTYPE_F32, .rank = 1, .shape = {0}, .data = NULL, .bytes = 0},
    };
    struct corral_safetensors_pair meta[] = {{"run", "7f3a"}, {"quote", "\"\\\n"}};
    check_ok(corral_safetensors_write(d->file, tensors, 3, meta, 2, true, &err));
    struct corral_safetensors *f = NULL;
    check_ok(corral_safetensors_open(&f, d->file, &err));
    assert_int_equal(corral_safetensors_count(f), 3);
    const struct corral_tensor *t = corral_safetensors_find(f, "layer.weight");
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 2);
    assert_memory_equal(t->data, w, sizeof w);
    assert_int_equal((uintptr_t)t->data % 64, 0);
    assert_memory_equal(corral_safetensors_find(f, "step")->data, &step, sizeof step);
    assert_string_equal(corral_safetensors_metadata(f, "run"), "7f3a");
    assert_string_equal(corral_safetensors_metadata(f, "quote"), "\"\\\n");
    corral_safetensors_close(f);
}

static void refuses_to_write_what_it_could_not_read(void **state)
{
    struct folder *d = *state;
    struct corral_error err = {0};
    uint8_t b[4] = {0};
    struct corral_tensor good = {
        .name = "a", .dtype = CORRAL_DTYPE_U8, .rank = 1, .shape = {4}, .data = b, .bytes = 4};
    struct corral_tensor twice[2] = {good, good};
    check_status(corral_safetensors_write(d->file, twice, 2, NULL, 0, false, &err), CORRAL_INVALID);
    struct corral_tensor wrong = good;
    wrong.shape[0] = 5;
    check_status(corral_safetensors_write(d->file, &wrong, 1, NULL, 0, false, &err), CORRAL_INVALID);
    wrong = good;
    strcpy(wrong.name, "__metadata__");
    check_status(corral_safetensors_write(d->file, &wrong, 1, NULL, 0, false, &err), CORRAL_INVALID);
    assert_int_not_equal(access(d->file, F_OK), 0);
}

static void a_missing_file_is_not_found(void **state)
{
    struct folder *d = *state;
    struct corral_error err = {0};
    struct corral_safetensors *f = NULL;
    check_status(corral_safetensors_open(&f, d->file, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, d->file));
    check_status(corral_safetensors_open(&f, d->path, &err), CORRAL_PROTOCOL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tensors_in_the_order_of_their_bytes),
        cmocka_unit_test(data_is_aligned_for_its_type),
        cmocka_unit_test(refuses_a_malformed_header),
        cmocka_unit_test(refuses_a_shape_that_overflows),
        cmocka_unit_test(refuses_holes_overlaps_and_tails),
        cmocka_unit_test(refuses_duplicate_keys),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(refuses_a_header_larger_than_the_file),
        cmocka_unit_test_setup_teardown(what_is_written_is_read_back, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_to_write_what_it_could_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(a_missing_file_is_not_found, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
