#include "tests/check.h"

#include "base/toml.h"

#include <stdlib.h>
#include <string.h>

static struct corral_toml_doc *parse(const char *text)
{
    struct corral_toml_doc *doc = NULL;
    struct corral_error err = {0};
    check_ok(corral_toml_parse(&doc, "job.toml", text, strlen(text), &err));
    return doc;
}

static void expect_error(const char *text, size_t bytes, const char *begins, const char *contains)
{
    struct corral_toml_doc *doc = NULL;
    struct corral_error err = {0};
    check_status(corral_toml_parse(&doc, "job.toml", text, bytes, &err), CORRAL_INVALID);
    assert_null(doc);
    if (strncmp(err.text, begins, strlen(begins)) != 0 || strstr(err.text, contains) == NULL) {
        fail_msg("unexpected error text: %s", err.text);
    }
    for (const char *c = err.text; *c != '\0'; c++) {
        assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
    }
}

static void keeps_the_order_of_the_file(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse("zebra = 1\napple = 2\n[monkey]\nz = 1\na = 2\n[bear]\n");
    const struct corral_toml_node *root = corral_toml_root(doc);
    assert_int_equal(corral_toml_table_size(root), 4);
    assert_string_equal(corral_toml_table_key(root, 0), "zebra");
    assert_string_equal(corral_toml_table_key(root, 1), "apple");
    assert_string_equal(corral_toml_table_key(root, 2), "monkey");
    assert_string_equal(corral_toml_table_key(root, 3), "bear");
    const struct corral_toml_node *monkey = corral_toml_table_at(root, 2);
    assert_string_equal(corral_toml_table_key(monkey, 0), "z");
    assert_string_equal(corral_toml_table_key(monkey, 1), "a");
    corral_toml_destroy(doc);
}

static void knows_where_keys_and_values_are(void **state)
{
    (void)state;
    struct corral_toml_doc *doc =
        parse("[partition.trainer]\nfloor = \"1GiB\"\n  gpus   = [\"a:0\", \"a:1\"]\n");
    const struct corral_toml_node *root = corral_toml_root(doc);
    assert_int_equal(corral_toml_table_key_line(root, 0), 1);
    const struct corral_toml_node *trainer =
        corral_toml_table_get(corral_toml_table_get(root, "partition"), "trainer");
    assert_int_equal(corral_toml_line(trainer), 1);
    assert_int_equal(corral_toml_table_key_line(trainer, 0), 2);
    assert_int_equal(corral_toml_table_key_column(trainer, 0), 1);
    assert_int_equal(corral_toml_line(corral_toml_table_at(trainer, 0)), 2);
    assert_int_equal(corral_toml_column(corral_toml_table_at(trainer, 0)), 9);
    assert_int_equal(corral_toml_table_key_line(trainer, 1), 3);
    assert_int_equal(corral_toml_table_key_column(trainer, 1), 3);
    const struct corral_toml_node *gpus = corral_toml_table_at(trainer, 1);
    assert_int_equal(corral_toml_column(corral_toml_array_at(gpus, 1)), 20);
    corral_toml_destroy(doc);
}

static void dotted_header_keys_have_their_own_column(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse("[a]\n[partition.trainer]\n");
    const struct corral_toml_node *partition = corral_toml_table_get(corral_toml_root(doc), "partition");
    assert_int_equal(corral_toml_table_key_line(partition, 0), 2);
    assert_int_equal(corral_toml_table_key_column(partition, 0), 12);
    corral_toml_destroy(doc);
}

static void reads_every_kind(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse(
        "s = \"x\\u00e9\"\ni = -42\nf = 2.5\nb = true\nd = 2024-01-02\nt = { k = 1 }\na = [1, 2.0, [3]]\n");
    const struct corral_toml_node *root = corral_toml_root(doc);
    const enum corral_toml_kind kinds[] = {CORRAL_TOML_STRING, CORRAL_TOML_INTEGER, CORRAL_TOML_FLOAT,
                                           CORRAL_TOML_BOOL,   CORRAL_TOML_DATE,    CORRAL_TOML_TABLE,
                                           CORRAL_TOML_ARRAY};
    for (uint32_t i = 0; i < 7; i++) {
        assert_int_equal(corral_toml_kind(corral_toml_table_at(root, i)), kinds[i]);
    }
    assert_string_equal(corral_toml_string(corral_toml_table_at(root, 0)), "x\xc3\xa9");
    assert_int_equal(corral_toml_integer(corral_toml_table_at(root, 1)), -42);
    assert_true(corral_toml_float(corral_toml_table_at(root, 2)) == 2.5);
    assert_true(corral_toml_bool(corral_toml_table_at(root, 3)));
    const struct corral_toml_node *a = corral_toml_table_at(root, 6);
    assert_int_equal(corral_toml_array_size(a), 3);
    assert_int_equal(corral_toml_kind(corral_toml_array_at(a, 2)), CORRAL_TOML_ARRAY);
    assert_null(corral_toml_array_at(a, 3));
    assert_int_equal(corral_toml_table_size(a), 0);
    assert_int_equal(corral_toml_array_size(root), 0);
    assert_null(corral_toml_table_get(root, "absent"));
    corral_toml_destroy(doc);
}

static void array_of_tables_is_an_array(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse("[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n");
    const struct corral_toml_node *node = corral_toml_table_get(corral_toml_root(doc), "node");
    assert_int_equal(corral_toml_array_size(node), 2);
    const struct corral_toml_node *b = corral_toml_array_at(node, 1);
    assert_string_equal(corral_toml_string(corral_toml_table_get(b, "name")), "b");
    assert_int_equal(corral_toml_line(b), 3);
    corral_toml_destroy(doc);
}

static void an_empty_file_is_an_empty_table(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse("");
    assert_int_equal(corral_toml_table_size(corral_toml_root(doc)), 0);
    corral_toml_destroy(doc);
}

static void a_syntax_error_names_its_place(void **state)
{
    (void)state;
    expect_error("a = 1\nb = = 2\n", 14, "job.toml:2:", ": error: ");
}

static void an_error_is_one_line_whatever_it_quotes(void **state)
{
    (void)state;
    expect_error("a = t\n", 6, "job.toml:1:6: error: ", "saw 't\\n'");
    expect_error("a = i\x1b[2J\n", 10, "job.toml:1:", "error");
}

static void refuses_a_duplicate_key(void **state)
{
    (void)state;
    expect_error("a = 1\na = 2\n", 12, "job.toml:2:", "a");
}

static void refuses_nul_inside_a_string_or_key(void **state)
{
    (void)state;
    const char *string = "a = \"x\\u0000y\"\n";
    expect_error(string, strlen(string), "job.toml:1:5: error:", "NUL");
    const char *key = "\"x\\u0000y\" = 1\n";
    expect_error(key, strlen(key), "job.toml:1:1: error:", "NUL");
    expect_error("a\0b = 1\n", 8, "job.toml:1:", "error");
}

static void refuses_a_key_with_too_many_parts(void **state)
{
    (void)state;
    size_t bytes = CORRAL_TOML_FILE_BYTES_MAX;
    char *text = malloc(bytes);
    assert_non_null(text);
    for (size_t i = 0; i < bytes; i++) {
        text[i] = i % 2 == 0 ? 'a' : '.';
    }
    expect_error(text, bytes, "job.toml:1:", "parts");
    text[0] = '[';
    expect_error(text, bytes, "job.toml:1:", "parts");
    free(text);
}

static void refuses_deep_nesting(void **state)
{
    (void)state;
    char text[4096] = "a = ";
    memset(text + 4, '[', sizeof text - 5);
    text[sizeof text - 1] = '\0';
    expect_error(text, strlen(text), "job.toml:1:", "nested");
}

static void dots_in_strings_and_comments_are_no_key_parts(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse(
        "a = \"........................................\\\"....\" # .......................................\n"
        "b = '''.......................\n.......................'''\n"
        "c = \"\"\"...................\"\"........................\"\"\"\n"
        "d = '.........................................'\n");
    assert_int_equal(corral_toml_table_size(corral_toml_root(doc)), 4);
    corral_toml_destroy(doc);
}

static void refuses_what_the_parser_asserts_against(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place;
    } cases[] = {
        {"[ = 1", "job.toml:1:3: error: "},  {"a = 1\n[ = 1\nb = 2\n", "job.toml:2:3: error: "},
        {"[[ = 1", "job.toml:1:4: error: "}, {"# \xc3\xa4\n[ # x\n", "job.toml:2:3: error: "},
        {"[ ,", "job.toml:1:3: error: "},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        expect_error(cases[i].text, strlen(cases[i].text), cases[i].place, "");
    }
}

static void refuses_other_than_ascii_outside_strings(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place;
    } cases[] = {
        {"nam\xca\xa2 = 1\n", "job.toml:1:4: error: "},
        {"\xca\xa2 = 1\n", "job.toml:1:1: error: "},
        {"a = \"\xc3\xa4\"\nb = \xc3\xa4\n", "job.toml:2:5: error: "},
        {"a = \"\xc3\xa4\" \xc3\xa4\n", "job.toml:1:9: error: "},
        {"'''\n''' \xff", "job.toml:2:5: error: "},
        {"a = 'x'\xc2\xa0# no-break space", "job.toml:1:8: error: "},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        expect_error(cases[i].text, strlen(cases[i].text), cases[i].place, "not ASCII");
    }
}

static void reads_utf8_in_strings_and_comments(void **state)
{
    (void)state;
    struct corral_toml_doc *doc = parse("\xef\xbb\xbf# \xca\xa2 = 1\n"
                                        "a = \"\xca\xa2\" # \xc3\xa4\n"
                                        "b = '\xca\xa2'\n"
                                        "c = \"\"\"\n\xca\xa2\"\xca\xa2\"\"\"\"\n"
                                        "d = '''\xca\xa2\n'\xca\xa2''''\n"
                                        "\"\xca\xa2\" = \"\\\"\xca\xa2\"\n");
    const struct corral_toml_node *root = corral_toml_root(doc);
    static const char *const values[] = {"\xca\xa2", "\xca\xa2", "\xca\xa2\"\xca\xa2\"",
                                         "\xca\xa2\n'\xca\xa2'", "\"\xca\xa2"};
    assert_int_equal(corral_toml_table_size(root), CORRAL_COUNT_OF(values));
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(values); i++) {
        assert_string_equal(corral_toml_string(corral_toml_table_at(root, i)), values[i]);
    }
    assert_string_equal(corral_toml_table_key(root, 4), "\xca\xa2");
    corral_toml_destroy(doc);
    expect_error("a = \"\xff\"\n", 8, "job.toml:1:", "error");
}

static void refuses_a_file_beyond_the_limit(void **state)
{
    (void)state;
    size_t bytes = CORRAL_TOML_FILE_BYTES_MAX + 1;
    char *text = malloc(bytes);
    assert_non_null(text);
    memset(text, '\n', bytes);
    expect_error(text, bytes, "job.toml:1:1: error:", "1 MiB");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_the_order_of_the_file),
        cmocka_unit_test(knows_where_keys_and_values_are),
        cmocka_unit_test(dotted_header_keys_have_their_own_column),
        cmocka_unit_test(reads_every_kind),
        cmocka_unit_test(array_of_tables_is_an_array),
        cmocka_unit_test(an_empty_file_is_an_empty_table),
        cmocka_unit_test(a_syntax_error_names_its_place),
        cmocka_unit_test(an_error_is_one_line_whatever_it_quotes),
        cmocka_unit_test(refuses_a_duplicate_key),
        cmocka_unit_test(refuses_nul_inside_a_string_or_key),
        cmocka_unit_test(refuses_a_key_with_too_many_parts),
        cmocka_unit_test(refuses_deep_nesting),
        cmocka_unit_test(dots_in_strings_and_comments_are_no_key_parts),
        cmocka_unit_test(refuses_what_the_parser_asserts_against),
        cmocka_unit_test(refuses_other_than_ascii_outside_strings),
        cmocka_unit_test(reads_utf8_in_strings_and_comments),
        cmocka_unit_test(refuses_a_file_beyond_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
