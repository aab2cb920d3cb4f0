#include "tests/check.h"

#include "transport/weights/manifest.h"

#include <stdio.h>
#include <string.h>

static struct corral_manifest *two(const char *first, enum corral_dtype dtype, uint64_t rows)
{
    struct corral_error err = {0};
    struct corral_manifest *m = NULL;
    uint64_t shape[2] = {rows, 3}, bias[1] = {5};
    check_ok(corral_manifest_create(&m, 2, &err));
    check_ok(corral_manifest_add(m, first, dtype, 2, shape, &err));
    check_ok(corral_manifest_add(m, "bias", CORRAL_DTYPE_F32, 1, bias, &err));
    return m;
}

static void tensors_start_on_64_bytes(void **state)
{
    (void)state;
    struct corral_manifest *m = two("weight", CORRAL_DTYPE_F32, 2);
    assert_int_equal(m->tensor[0].offset, 0);
    assert_int_equal(m->tensor[0].bytes, 24);
    assert_int_equal(m->tensor[1].offset, 64);
    assert_int_equal(m->bytes, 64 + 20);
    corral_manifest_destroy(m);
}

static void any_difference_changes_the_hash(void **state)
{
    (void)state;
    struct corral_manifest *m[5] = {two("weight", CORRAL_DTYPE_F32, 2), two("weight", CORRAL_DTYPE_F32, 2),
                                    two("weighs", CORRAL_DTYPE_F32, 2), two("weight", CORRAL_DTYPE_I32, 2),
                                    two("weight", CORRAL_DTYPE_F32, 3)};
    struct corral_digest base = corral_manifest_hash(m[0]);
    assert_true(corral_digest_equal(base, corral_manifest_hash(m[1])));
    for (int i = 2; i < 5; i++) {
        assert_false(corral_digest_equal(base, corral_manifest_hash(m[i])));
    }
    for (int i = 0; i < 5; i++) {
        corral_manifest_destroy(m[i]);
    }
}

static void refuses_what_does_not_fit(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_manifest *m = NULL;
    uint64_t shape[2] = {UINT64_C(1) << 40, UINT64_C(1) << 40}, one[1] = {1};
    check_status(corral_manifest_create(&m, 0, &err), CORRAL_INVALID);
    check_status(corral_manifest_create(&m, CORRAL_MANIFEST_TENSORS_MAX + 1, &err), CORRAL_INVALID);
    check_ok(corral_manifest_create(&m, 1, &err));
    check_status(corral_manifest_add(m, "a", CORRAL_DTYPE_F32, 2, shape, &err), CORRAL_INVALID);
    check_status(corral_manifest_add(m, "", CORRAL_DTYPE_F32, 1, one, &err), CORRAL_INVALID);
    char name[CORRAL_TENSOR_NAME_MAX + 1];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    check_status(corral_manifest_add(m, name, CORRAL_DTYPE_F32, 1, one, &err), CORRAL_INVALID);
    check_ok(corral_manifest_add(m, "a", CORRAL_DTYPE_F32, 1, one, &err));
    check_status(corral_manifest_add(m, "b", CORRAL_DTYPE_F32, 1, one, &err), CORRAL_INVALID);
    assert_int_equal(m->bytes, 4);
    corral_manifest_destroy(m);
}

static void refuses_a_name_used_twice(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_manifest *m = NULL;
    uint64_t one[1] = {1};
    check_ok(corral_manifest_create(&m, 2, &err));
    check_ok(corral_manifest_add(m, "a", CORRAL_DTYPE_F32, 1, one, &err));
    check_status(corral_manifest_add(m, "a", CORRAL_DTYPE_F32, 1, one, &err), CORRAL_EXISTS);
    corral_manifest_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_start_on_64_bytes),
        cmocka_unit_test(any_difference_changes_the_hash),
        cmocka_unit_test(refuses_what_does_not_fit),
        cmocka_unit_test(refuses_a_name_used_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
