#include "base/log.h"
#include "tests/check.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int sink = -1;

static int make_sink(void **state)
{
    (void)state;
    sink = memfd_create("log", MFD_CLOEXEC);
    return sink >= 0 && fcntl(sink, F_SETFL, O_APPEND) == 0 ? 0 : -1;
}

static int drop_sink(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, false, STDERR_FILENO, NULL);
    return close(sink);
}

/* Everything logged so far; free() it. */
static char *logged(size_t *bytes)
{
    const off_t n = lseek(sink, 0, SEEK_END);
    assert_true(n >= 0);
    char *text = malloc((size_t)n + 1);
    assert_int_equal(pread(sink, text, (size_t)n, 0), n);
    text[n] = '\0';
    if (bytes != NULL) {
        *bytes = (size_t)n;
    }
    return text;
}

static void check_matches(const char *pattern)
{
    CORRAL_AUTO_FREE char *text = logged(NULL);
    regex_t re;
    assert_int_equal(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
    const int rc = regexec(&re, text, 0, NULL, 0);
    regfree(&re);
    if (rc != 0) {
        fail_msg("`%s` does not match `%s`", text, pattern);
    }
}

static void a_text_line_has_time_level_phrase_and_fields(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, false, sink, NULL);
    corral_log_info("worker joined", LOG_STR("worker", "w3"), LOG_U64("slots", 16), LOG_I64("delta", -2),
                    LOG_F64("share", 0.25), LOG_BOOL("eval", true));
    check_matches("^[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3} info  worker joined worker w3 slots 16 delta -2 "
                  "share 0\\.25 eval true\n$");
}

static void the_program_name_is_on_every_line(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, false, sink, "agent");
    corral_log_error("gave up", LOG_U64("tries", 3));
    check_matches(" error agent: gave up tries 3\n$");
}

static void lines_below_the_level_are_dropped(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_WARN, false, sink, NULL);
    corral_log_debug("no", LOG_U64("n", 1));
    corral_log_info("no", LOG_U64("n", 2));
    corral_log_warn("yes", LOG_U64("n", 3));
    corral_log_error("yes", LOG_U64("n", 4));
    CORRAL_AUTO_FREE char *text = logged(NULL);
    assert_null(strstr(text, "no"));
    assert_non_null(strstr(text, "warn  yes n 3\n"));
    assert_non_null(strstr(text, "error yes n 4\n"));
}

static void a_hostile_string_stays_on_its_line(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, false, sink, NULL);
    corral_log_info("event", LOG_STR("a", "x\ny\t\"q\" \\ \x1b[2J\x7f\xff\xc2\x9b \xe2\x80\xa8"),
                    LOG_STR("b", ""), LOG_STR("c", NULL), LOG_STR("d", "caf\xc3\xa9"),
                    LOG_STR("e", "two words"));
    CORRAL_AUTO_FREE char *text = logged(NULL);
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_non_null(strstr(text, " a \"x\\ny\\t\\\"q\\\" \\\\ \\x1b[2J\\x7f\\xff\\xc2\\x9b \\xe2\\x80\\xa8\" "
                                 "b \"\" c - d caf\xc3\xa9 e \"two words\"\n"));
}

static json_t *only_json_line(void)
{
    size_t bytes;
    CORRAL_AUTO_FREE char *text = logged(&bytes);
    assert_true(bytes > 0 && bytes <= PIPE_BUF);
    assert_ptr_equal(strchr(text, '\n'), text + bytes - 1);
    json_error_t why;
    json_t *line = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    if (line == NULL) {
        fail_msg("%s: %s", why.text, text);
    }
    assert_int_equal(ftruncate(sink, 0), 0);
    return line;
}

static void a_json_line_holds_typed_fields(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, true, sink, "agent");
    corral_log_info("worker joined", LOG_STR("worker", "a \"b\"\n"), LOG_U64("slots", 16),
                    LOG_I64("delta", INT64_MIN), LOG_F64("share", 0.1), LOG_F64("nan", NAN),
                    LOG_F64("inf", -INFINITY), LOG_BOOL("eval", false), LOG_STR("none", NULL));
    json_t *line = only_json_line();
    assert_string_equal(json_string_value(json_object_get(line, "level")), "info");
    assert_string_equal(json_string_value(json_object_get(line, "program")), "agent");
    assert_string_equal(json_string_value(json_object_get(line, "event")), "worker joined");
    assert_string_equal(json_string_value(json_object_get(line, "worker")), "a \"b\"\n");
    assert_int_equal(json_integer_value(json_object_get(line, "slots")), 16);
    assert_true(json_integer_value(json_object_get(line, "delta")) == INT64_MIN);
    assert_true(json_real_value(json_object_get(line, "share")) == 0.1);
    assert_true(json_is_null(json_object_get(line, "nan")));
    assert_true(json_is_null(json_object_get(line, "inf")));
    assert_true(json_is_false(json_object_get(line, "eval")));
    assert_true(json_is_null(json_object_get(line, "none")));
    assert_int_equal(strlen(json_string_value(json_object_get(line, "time"))),
                     strlen("2024-01-01T00:00:00.000000Z"));
    json_decref(line);
}

static void any_bytes_in_a_string_give_valid_json(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, true, sink, NULL);
    static const char *const heads[] = {"",         "\xc3",     "\xe2\x82", "\xf0\x9f\x90",
                                        "\xed\xa0", "\xf4\x90", "\xe0\x80", "\xc0"};
    for (size_t h = 0; h < CORRAL_COUNT_OF(heads); h++) {
        for (int c = 1; c < 256; c++) {
            char text[8];
            snprintf(text, sizeof text, "%s%c", heads[h], c);
            corral_log_info("event", LOG_STR("s", text));
            json_decref(only_json_line());
        }
    }
}

static void an_oversized_line_is_cut_and_says_so(void **state)
{
    (void)state;
    static char huge[100000];
    memset(huge, '\n', sizeof huge - 1);
    corral_log_configure(CORRAL_LOG_INFO, true, sink, NULL);
    corral_log_info("event", LOG_STR("a", huge), LOG_U64("after", 7));
    json_t *line = only_json_line();
    assert_int_equal(json_integer_value(json_object_get(line, "after")), 7);
    const char *cut = json_string_value(json_object_get(line, "a"));
    assert_string_equal(cut + strlen(cut) - 4, "\n...");
    json_decref(line);
    corral_log_info("event", LOG_STR("a", huge), LOG_STR("b", huge), LOG_STR("c", huge), LOG_STR("d", huge),
                    LOG_STR("e", huge));
    line = only_json_line();
    assert_true(json_is_true(json_object_get(line, "truncated")));
    assert_non_null(json_object_get(line, "a"));
    assert_null(json_object_get(line, "e"));
    json_decref(line);
    corral_log_configure(CORRAL_LOG_INFO, false, sink, NULL);
    corral_log_info(huge, LOG_STR("a", huge));
    size_t bytes;
    CORRAL_AUTO_FREE char *text = logged(&bytes);
    assert_true(bytes <= PIPE_BUF);
    assert_string_equal(text + bytes - strlen(" truncated\n"), " truncated\n");
}

static void a_broken_sink_is_ignored_and_errno_kept(void **state)
{
    (void)state;
    const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    corral_log_configure(CORRAL_LOG_INFO, false, full, NULL);
    errno = EXDEV;
    corral_log_info("event", LOG_U64("n", 1));
    assert_int_equal(errno, EXDEV);
    if (full >= 0) {
        close(full);
    }
}

enum { THREADS = 4, LINES = 500 };

static void *log_many(void *arg)
{
    const uint64_t id = (uint64_t)(uintptr_t)arg;
    char filler[200];
    memset(filler, (int)('a' + id), sizeof filler - 1);
    filler[sizeof filler - 1] = '\0';
    for (uint64_t i = 0; i < LINES; i++) {
        corral_log_info("event", LOG_U64("thread", id), LOG_U64("i", i), LOG_STR("filler", filler));
    }
    return NULL;
}

static void lines_of_threads_do_not_mix(void **state)
{
    (void)state;
    corral_log_configure(CORRAL_LOG_INFO, true, sink, NULL);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, log_many, (void *)i), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    CORRAL_AUTO_FREE char *text = logged(NULL);
    json_int_t next[THREADS] = {0};
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        json_t *value = json_loads(line, 0, NULL);
        assert_non_null(value);
        const json_int_t thread = json_integer_value(json_object_get(value, "thread"));
        assert_true(thread >= 0 && thread < THREADS);
        assert_int_equal(json_integer_value(json_object_get(value, "i")), next[thread]++);
        json_decref(value);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(next[i], LINES);
    }
}

static void level_names_are_known(void **state)
{
    (void)state;
    enum corral_log_level level = CORRAL_LOG_ERROR;
    assert_true(corral_log_level_parse("debug", &level) && level == CORRAL_LOG_DEBUG);
    assert_true(corral_log_level_parse("info", &level) && level == CORRAL_LOG_INFO);
    assert_true(corral_log_level_parse("warn", &level) && level == CORRAL_LOG_WARN);
    assert_true(corral_log_level_parse("error", &level) && level == CORRAL_LOG_ERROR);
    assert_false(corral_log_level_parse("Error", &level) || corral_log_level_parse("", &level));
    assert_int_equal(level, CORRAL_LOG_ERROR);
}

#define sink_test(f) cmocka_unit_test_setup_teardown(f, make_sink, drop_sink)

int main(void)
{
    const struct CMUnitTest tests[] = {
        sink_test(a_text_line_has_time_level_phrase_and_fields),
        sink_test(the_program_name_is_on_every_line),
        sink_test(lines_below_the_level_are_dropped),
        sink_test(a_hostile_string_stays_on_its_line),
        sink_test(a_json_line_holds_typed_fields),
        sink_test(any_bytes_in_a_string_give_valid_json),
        sink_test(an_oversized_line_is_cut_and_says_so),
        sink_test(a_broken_sink_is_ignored_and_errno_kept),
        sink_test(lines_of_threads_do_not_mix),
        cmocka_unit_test(level_names_are_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
