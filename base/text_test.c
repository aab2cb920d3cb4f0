#include "base/rng.h"
#include "base/text.h"
#include "tests/check.h"
#include <math.h>
#include <string.h>

static void sizes_are_read_with_their_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"18GiB", UINT64_C(18) << 30},
        {"64 MiB", UINT64_C(64) << 20},
        {"512KB", 512000},
        {"1024B", 1024},
        {"1.5GiB", UINT64_C(3) << 29},
        {"0B", 0},
        {"0.5KiB", 512},
        {"2TB", UINT64_C(2000000000000)},
        {"1.000000001GB", 1000000001},
        {"16777215TiB", UINT64_C(16777215) << 40},
        {"18446744073709551615B", UINT64_MAX},
        {"007MB", 7000000},
    };
    struct corral_error err;
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        uint64_t bytes = 99;
        check_ok(corral_parse_bytes(cases[i].text, &bytes, &err));
        assert_true(bytes == cases[i].bytes);
    }
}

static void durations_are_read_with_their_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ns;
    } cases[] = {
        {"30s", UINT64_C(30000000000)},
        {"250ms", 250000000},
        {"5m", UINT64_C(300000000000)},
        {"2h", UINT64_C(7200000000000)},
        {"100us", 100000},
        {"7ns", 7},
        {"1.5s", 1500000000},
        {"0s", 0},
        {"0.25 h", UINT64_C(900000000000)},
    };
    struct corral_error err;
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        uint64_t ns = 99;
        check_ok(corral_parse_duration(cases[i].text, &ns, &err));
        assert_true(ns == cases[i].ns);
    }
}

static void refuses_quantities_that_are_not(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "64",
        "MiB",
        "-1MiB",
        "+1MiB",
        " 1MiB",
        "1MiB ",
        "1  MiB",
        "1Mib",
        "1mib",
        "1M",
        "1e3MiB",
        "1.MiB",
        ".5MiB",
        "1,5GiB",
        "0x10B",
        "1.5.5B",
        "nanGiB",
        "1GiB2",
        "16777216TiB",
        "18446744073709551616B",
        "99999999999999999999999TiB",
        "18446744073.709551616GB",
        "1.0000000000GiB",
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct corral_error err = {0};
        uint64_t value = 99;
        check_status(corral_parse_bytes(bad[i], &value, &err), CORRAL_INVALID);
        assert_int_equal(value, 99);
        assert_true(strlen(err.text) > 0);
        check_status(corral_parse_duration(bad[i], &value, NULL), CORRAL_INVALID);
    }
    uint64_t ns;
    check_status(corral_parse_duration("5124096h", &ns, NULL), CORRAL_INVALID);
    check_status(corral_parse_duration("30sec", &ns, NULL), CORRAL_INVALID);
}

static void a_bare_number_is_told_to_carry_its_unit(void **state)
{
    (void)state;
    struct corral_error err;
    uint64_t v;
    check_status(corral_parse_bytes("64", &v, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "no unit"));
    assert_non_null(strstr(err.text, "MiB"));
    check_status(corral_parse_duration("64", &v, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "30s"));
    check_status(corral_parse_bytes("64M", &v, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "`M`"));
}

static void exact_texts_parse_back_to_the_same_number(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 11);
    struct corral_error err;
    for (int i = 0; i < 20000; i++) {
        /* All magnitudes, and many round numbers. */
        uint64_t n = corral_rng_next(&rng) >> corral_rng_below(&rng, 64);
        n = i % 3 == 0 ? n & ~UINT64_C(0xFFFFF) : i % 3 == 1 ? n / 1000000 * 1000000 : n;
        char text[32];
        uint64_t back;
        check_ok(corral_parse_bytes(corral_format_bytes_exact(n, text, sizeof text), &back, &err));
        assert_true(back == n);
        check_ok(corral_parse_duration(corral_format_duration_exact(n, text, sizeof text), &back, &err));
        assert_true(back == n);
    }
}

static void sizes_are_printed_for_people(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
        const char *exact;
    } cases[] = {
        {0, "0 B", "0B"},
        {812, "812 B", "812B"},
        {1023, "1023 B", "1023B"},
        {1024, "1 KiB", "1KiB"},
        {1025, "1.0 KiB", "1025B"},
        {UINT64_C(64) << 20, "64 MiB", "64MiB"},
        {UINT64_C(3) << 29, "1.5 GiB", "1536MiB"},
        {(UINT64_C(1) << 30) - 1, "1.0 GiB", "1073741823B"},
        {500000000, "476.8 MiB", "500MB"},
        {UINT64_C(80) << 40, "80 TiB", "80TiB"},
        {UINT64_MAX, "16777216.0 TiB", "18446744073709551615B"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        char text[32];
        assert_string_equal(corral_format_bytes(cases[i].bytes, text, sizeof text), cases[i].text);
        assert_string_equal(corral_format_bytes_exact(cases[i].bytes, text, sizeof text), cases[i].exact);
    }
}

static void durations_are_printed_for_people(void **state)
{
    (void)state;
    static const struct {
        uint64_t ns;
        const char *text;
        const char *exact;
    } cases[] = {
        {0, "0 ns", "0s"},
        {812, "812 ns", "812ns"},
        {3100, "3.1 us", "3100ns"},
        {3100000, "3.1 ms", "3100us"},
        {250000000, "250.0 ms", "250ms"},
        {999960000, "1.00 s", "999960us"},
        {1240000000, "1.24 s", "1240ms"},
        {UINT64_C(30000000000), "30.0 s", "30s"},
        {UINT64_C(59990000000), "1m00s", "59990ms"},
        {UINT64_C(125000000000), "2m05s", "125s"},
        {UINT64_C(300000000000), "5m00s", "5m"},
        {UINT64_C(3599700000000), "1h00m", "3599700ms"},
        {UINT64_C(7320000000000), "2h02m", "122m"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        char text[32];
        assert_string_equal(corral_format_duration(cases[i].ns, text, sizeof text), cases[i].text);
        assert_string_equal(corral_format_duration_exact(cases[i].ns, text, sizeof text), cases[i].exact);
    }
}

static void counts_are_printed_for_people(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {0, "0"},       {57, "57"},      {0.5, "0.5"},      {9.96, "10"},        {999.4, "999"},
        {999.6, "1k"},  {1000, "1k"},    {1234, "1.2k"},    {118000, "118k"},    {1.2e6, "1.2M"},
        {999999, "1M"}, {3.4e9, "3.4G"}, {7e15, "7000T"},   {-57, "-57"},        {-1500, "-1.5k"},
        {-0.01, "0"},   {NAN, "nan"},    {INFINITY, "inf"}, {-INFINITY, "-inf"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        char text[32];
        assert_string_equal(corral_format_count(cases[i].value, text, sizeof text), cases[i].text);
    }
}

static void returns_are_printed_with_the_digits_that_matter(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {475, "475.0"},  {-97.31, "-97.3"}, {0.95, "0.95"}, {-0.762, "-0.76"}, {9.99, "9.99"},
        {9.996, "10.0"}, {-0.001, "0.00"},  {NAN, "-"},     {INFINITY, "inf"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        char text[32];
        assert_string_equal(corral_format_return(cases[i].value, text, sizeof text), cases[i].text);
    }
}

static void a_small_buffer_is_cut_and_terminated(void **state)
{
    (void)state;
    char text[5] = "????";
    assert_string_equal(corral_format_bytes(UINT64_C(64) << 20, text, sizeof text), "64 M");
}

static void edit_distance_counts_single_edits(void **state)
{
    (void)state;
    assert_int_equal(corral_edit_distance("", ""), 0);
    assert_int_equal(corral_edit_distance("", "abc"), 3);
    assert_int_equal(corral_edit_distance("abc", ""), 3);
    assert_int_equal(corral_edit_distance("partion", "partition"), 2);
    assert_int_equal(corral_edit_distance("trianer", "trainer"), 1); /* a swap is one edit */
    assert_int_equal(corral_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(corral_edit_distance("ca", "abc"), 3); /* no edit inside a swapped pair */
    char long_word[66];
    memset(long_word, 'a', 65);
    long_word[65] = '\0';
    assert_true(corral_edit_distance(long_word, long_word) == UINT32_MAX);
    assert_true(corral_edit_distance("a", long_word) == UINT32_MAX);
    assert_int_equal(corral_edit_distance(long_word + 1, long_word + 1), 0);
}

static void edit_distance_is_symmetric_and_bounded(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 12);
    for (int i = 0; i < 3000; i++) {
        char a[65] = {0};
        char b[65] = {0};
        const uint64_t an = corral_rng_below(&rng, 65);
        const uint64_t bn = corral_rng_below(&rng, 65);
        for (uint64_t j = 0; j < an; j++) {
            a[j] = (char)('a' + corral_rng_below(&rng, 3));
        }
        for (uint64_t j = 0; j < bn; j++) {
            b[j] = (char)('a' + corral_rng_below(&rng, 3));
        }
        const uint32_t d = corral_edit_distance(a, b);
        assert_int_equal(d, corral_edit_distance(b, a));
        assert_true(d >= (an > bn ? an - bn : bn - an) && d <= CORRAL_MAX(an, bn));
        assert_int_equal(corral_edit_distance(a, a), 0);
    }
}

static void the_nearest_name_is_a_likely_typo_or_none(void **state)
{
    (void)state;
    static const char *const names[] = {"partition", "trainer", "rollout", "eval", "x"};
    assert_string_equal(corral_nearest("partion", names, CORRAL_COUNT_OF(names)), "partition");
    assert_string_equal(corral_nearest("trianer", names, CORRAL_COUNT_OF(names)), "trainer");
    assert_string_equal(corral_nearest("evil", names, CORRAL_COUNT_OF(names)), "eval");
    assert_string_equal(corral_nearest("eval", names, CORRAL_COUNT_OF(names)), "eval");
    assert_null(corral_nearest("weights", names, CORRAL_COUNT_OF(names)));
    assert_null(corral_nearest("y", names, CORRAL_COUNT_OF(names)));
    assert_null(corral_nearest("", names, CORRAL_COUNT_OF(names)));
    assert_null(corral_nearest("trainer", names, 0));
}

static void whole_numbers_are_digits_only(void **state)
{
    (void)state;
    uint64_t v = 0;
    assert_true(corral_parse_u64("0", &v) && v == 0);
    assert_true(corral_parse_u64("18446744073709551615", &v) && v == UINT64_MAX);
    assert_true(corral_parse_u64("0042", &v) && v == 42);
    static const char *const bad[] = {"",   " 1", "1 ", "+1", "-1", "0x1", "1.0", "18446744073709551616",
                                      "1e3"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        v = 7;
        assert_false(corral_parse_u64(bad[i], &v));
        assert_int_equal(v, 7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_read_with_their_units),
        cmocka_unit_test(durations_are_read_with_their_units),
        cmocka_unit_test(refuses_quantities_that_are_not),
        cmocka_unit_test(a_bare_number_is_told_to_carry_its_unit),
        cmocka_unit_test(exact_texts_parse_back_to_the_same_number),
        cmocka_unit_test(sizes_are_printed_for_people),
        cmocka_unit_test(durations_are_printed_for_people),
        cmocka_unit_test(counts_are_printed_for_people),
        cmocka_unit_test(returns_are_printed_with_the_digits_that_matter),
        cmocka_unit_test(a_small_buffer_is_cut_and_terminated),
        cmocka_unit_test(edit_distance_counts_single_edits),
        cmocka_unit_test(edit_distance_is_symmetric_and_bounded),
        cmocka_unit_test(the_nearest_name_is_a_likely_typo_or_none),
        cmocka_unit_test(whole_numbers_are_digits_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
