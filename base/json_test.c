#include "base/file.h"
#include "base/json.h"
#include "tests/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void release_json(json_t **value)
{
    json_decref(*value);
}

static enum corral_status parse(const char *text, struct corral_error *err)
{
    CORRAL_CLEANUP(release_json) json_t *value = NULL;
    return corral_json_parse(&value, "job.json", text, strlen(text), err);
}

static void reads_a_document(void **state)
{
    (void)state;
    struct corral_error err;
    static const char text[] = "{\"a\": [1, 2.5, \"x\"], \"b\": null} and no NUL";
    CORRAL_CLEANUP(release_json) json_t *value = NULL;
    check_ok(corral_json_parse(&value, "job.json", text, strlen(text) - strlen(" and no NUL"), &err));
    assert_int_equal(json_array_size(json_object_get(value, "a")), 3);
    assert_true(json_is_null(json_object_get(value, "b")));
}

static void errors_name_line_and_column(void **state)
{
    (void)state;
    struct corral_error err;
    check_status(parse("{\"a\": 1,\n \"b\": }", &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "job.json:2:7: error: "));
    check_status(parse("", &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "job.json:1:1: error: "));
}

static void refuses_what_is_not_json(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "{\"a\":1,\"a\":2}", "{\"a\":1} x",   "[1,]", "{'a':1}", "[NaN]", "[1e999]",
        "[\"\xff\"]",        "[\"\\u0000\"]", "[01]", "3",       "[",
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct corral_error err;
        check_status(parse(bad[i], &err), CORRAL_INVALID);
    }
}

static void refuses_deep_nesting_and_great_size(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_AUTO_FREE char *deep = malloc(1000001);
    memset(deep, '[', 1000000);
    deep[1000000] = '\0';
    check_status(parse(deep, &err), CORRAL_INVALID);
    json_t *value = NULL;
    check_status(corral_json_parse(&value, "big", deep, CORRAL_JSON_BYTES_MAX + 1, &err), CORRAL_INVALID);
    assert_null(value);
}

static void writes_one_compact_line_in_insertion_order(void **state)
{
    (void)state;
    struct corral_error err;
    char *text = NULL;
    size_t bytes = 0;
    CORRAL_CLEANUP(release_json)
    json_t *value = json_pack("{s:i,s:s,s:o,s:o}", "z", 1, "a", "two\nlines", "nan", corral_json_real(NAN),
                              "half", corral_json_real(0.5));
    FILE *to = open_memstream(&text, &bytes);
    check_ok(corral_json_line(to, value, &err));
    check_ok(corral_json_print(to, value, &err));
    fclose(to);
    assert_string_equal(text,
                        "{\"z\":1,\"a\":\"two\\nlines\",\"nan\":null,\"half\":0.5}\n"
                        "{\n  \"z\": 1,\n  \"a\": \"two\\nlines\",\n  \"nan\": null,\n  \"half\": 0.5\n}\n");
    free(text);
}

static void reals_survive_a_round_trip_and_the_rest_is_null(void **state)
{
    (void)state;
    struct corral_error err;
    static const double values[] = {0.1, 1e-300, 3.0, -2.5e17, 0.30000000000000004};
    for (size_t i = 0; i < CORRAL_COUNT_OF(values); i++) {
        char *text = NULL;
        size_t bytes = 0;
        FILE *to = open_memstream(&text, &bytes);
        CORRAL_CLEANUP(release_json) json_t *list = json_pack("[o]", corral_json_real(values[i]));
        check_ok(corral_json_line(to, list, &err));
        fclose(to);
        CORRAL_CLEANUP(release_json) json_t *back = NULL;
        check_ok(corral_json_parse(&back, "back", text, bytes, &err));
        assert_true(json_real_value(json_array_get(back, 0)) == values[i]);
        free(text);
    }
    assert_true(json_is_null(corral_json_real(INFINITY)) && json_is_null(corral_json_real(-INFINITY)));
}

static void a_full_disk_is_an_error(void **state)
{
    (void)state;
    struct corral_error err;
    FILE *full = fopen("/dev/full", "w");
    if (full == NULL) {
        skip();
    }
    CORRAL_CLEANUP(release_json) json_t *value = json_pack("[i]", 1);
    check_status(corral_json_line(full, value, &err), CORRAL_IO);
    check_status(corral_json_print(full, value, &err), CORRAL_IO);
    fclose(full);
}

static void reads_files_and_names_them_in_errors(void **state)
{
    (void)state;
    struct corral_error err;
    char folder[] = "/tmp/corral-json-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char path[64];
    snprintf(path, sizeof path, "%s/a.json", folder);
    json_t *value = NULL;
    check_status(corral_json_read_file(&value, path, &err), CORRAL_NOT_FOUND);
    check_ok(corral_file_write_atomic(path, "{\"a\":1}", 7, 0600, false, &err));
    check_ok(corral_json_read_file(&value, path, &err));
    assert_int_equal(json_integer_value(json_object_get(value, "a")), 1);
    json_decref(value);
    check_ok(corral_file_write_atomic(path, "{\"a\"", 4, 0600, false, &err));
    check_status(corral_json_read_file(&value, path, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "a.json:1:"));
    check_ok(corral_remove_tree(folder, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_document),
        cmocka_unit_test(errors_name_line_and_column),
        cmocka_unit_test(refuses_what_is_not_json),
        cmocka_unit_test(refuses_deep_nesting_and_great_size),
        cmocka_unit_test(writes_one_compact_line_in_insertion_order),
        cmocka_unit_test(reals_survive_a_round_trip_and_the_rest_is_null),
        cmocka_unit_test(a_full_disk_is_an_error),
        cmocka_unit_test(reads_files_and_names_them_in_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
