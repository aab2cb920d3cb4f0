#include "tests/check.h"

#include "base/metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static char *print(const struct corral_metrics *m)
{
    char *text = NULL;
    size_t bytes = 0;
    struct corral_error err = {0};
    FILE *to = open_memstream(&text, &bytes);
    assert_non_null(to);
    check_ok(corral_metrics_print(m, to, &err));
    fclose(to);
    return text;
}

static void prints_the_text_format(void **state)
{
    (void)state;
    struct corral_metrics *m = corral_metrics_create();
    int steps = corral_metrics_family(m, "corral_steps_total", CORRAL_METRIC_COUNTER, "Steps\nso far \\");
    int loss = corral_metrics_family(m, "corral_loss", CORRAL_METRIC_GAUGE, "Loss");
    corral_metrics_family(m, "corral_unused", CORRAL_METRIC_GAUGE, "Never set");
    const char *const w0[] = {"worker", "rollout-0", "node", "a", NULL}, *const w1[] = {"worker", "x\"\\\ny",
                                                                                        NULL};
    corral_metrics_add(m, steps, w0, 2);
    corral_metrics_set(m, loss, NULL, 0.5);
    corral_metrics_add(m, steps, w1, 1);
    corral_metrics_add(m, steps, w0, 3);
    char *text = print(m);
    assert_string_equal(text, "# HELP corral_steps_total Steps\\nso far \\\\\n"
                              "# TYPE corral_steps_total counter\n"
                              "corral_steps_total{worker=\"rollout-0\",node=\"a\"} 5\n"
                              "corral_steps_total{worker=\"x\\\"\\\\\\ny\"} 1\n"
                              "# HELP corral_loss Loss\n"
                              "# TYPE corral_loss gauge\n"
                              "corral_loss 0.5\n");
    free(text);
    corral_metrics_destroy(m);
}

static void prints_numbers_prometheus_reads(void **state)
{
    (void)state;
    const struct {
        double value;
        const char *text;
    } cases[] = {{NAN, "m NaN\n"}, {INFINITY, "m +Inf\n"}, {-INFINITY, "m -Inf\n"},
                 {0.1, "m 0.1"},   {1e300, "m 1e+300"},    {4294967296.0, "m 4294967296\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct corral_metrics *m = corral_metrics_create();
        corral_metrics_set(m, corral_metrics_family(m, "m", CORRAL_METRIC_GAUGE, "h"), NULL, cases[i].value);
        char *text = print(m);
        assert_non_null(strstr(text, cases[i].text));
        free(text);
        corral_metrics_destroy(m);
    }
}

static void a_family_is_declared_once(void **state)
{
    (void)state;
    struct corral_metrics *m = corral_metrics_create();
    int a = corral_metrics_family(m, "a", CORRAL_METRIC_GAUGE, "h");
    assert_int_equal(corral_metrics_family(m, "a", CORRAL_METRIC_GAUGE, "h"), a);
    assert_true(corral_metrics_family(m, "a", CORRAL_METRIC_COUNTER, "h") < 0);
    assert_true(corral_metrics_family(m, "9a", CORRAL_METRIC_GAUGE, "h") < 0);
    assert_true(corral_metrics_family(m, "a b", CORRAL_METRIC_GAUGE, "h") < 0);
    assert_true(corral_metrics_family(m, "", CORRAL_METRIC_GAUGE, "h") < 0);
    corral_metrics_destroy(m);
}

static void series_beyond_the_limit_are_dropped_and_counted(void **state)
{
    (void)state;
    struct corral_metrics *m = corral_metrics_create();
    int a = corral_metrics_family(m, "a", CORRAL_METRIC_GAUGE, "h");
    char value[16];
    const char *const labels[] = {"n", value, NULL};
    for (int i = 0; i < CORRAL_METRIC_SERIES_MAX + 5; i++) {
        snprintf(value, sizeof value, "%d", i);
        corral_metrics_set(m, a, labels, i);
    }
    assert_int_equal(corral_metrics_dropped(m), 5);
    strcpy(value, "17");
    corral_metrics_add(m, a, labels, 1); /* an old series still works */
    assert_int_equal(corral_metrics_dropped(m), 5);
    char *text = print(m);
    assert_non_null(strstr(text, "a{n=\"17\"} 18\n"));
    assert_null(strstr(text, "a{n=\"8192\"}"));
    free(text);
    corral_metrics_destroy(m);
}

static void labels_that_do_not_fit_are_dropped(void **state)
{
    (void)state;
    struct corral_metrics *m = corral_metrics_create();
    int a = corral_metrics_family(m, "a", CORRAL_METRIC_GAUGE, "h");
    char value[4096];
    memset(value, '"', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    const char *const large[] = {"n", value, NULL}, *const odd[] = {"n", NULL};
    corral_metrics_set(m, a, large, 1);
    corral_metrics_set(m, a, odd, 1);
    corral_metrics_set(m, -1, NULL, 1);
    assert_int_equal(corral_metrics_dropped(m), 3);
    char *text = print(m);
    assert_string_equal(text, "");
    free(text);
    corral_metrics_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prints_the_text_format),
        cmocka_unit_test(prints_numbers_prometheus_reads),
        cmocka_unit_test(a_family_is_declared_once),
        cmocka_unit_test(series_beyond_the_limit_are_dropped_and_counted),
        cmocka_unit_test(labels_that_do_not_fit_are_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
