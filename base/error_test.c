#include "base/error.h"
#include "tests/check.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void every_status_has_its_own_name(void **state)
{
    (void)state;
    for (int i = CORRAL_OK; i <= CORRAL_INTERNAL; i++) {
        assert_string_not_equal(corral_status_name((enum corral_status)i), "unknown");
        for (int j = CORRAL_OK; j < i; j++) {
            assert_string_not_equal(corral_status_name((enum corral_status)i),
                                    corral_status_name((enum corral_status)j));
        }
    }
    assert_string_equal(corral_status_name((enum corral_status)(CORRAL_INTERNAL + 1)), "unknown");
    assert_string_equal(corral_status_name((enum corral_status) - 1), "unknown");
    assert_string_equal(corral_status_name(CORRAL_NOT_FOUND), "not-found");
}

static void fail_fills_the_error_and_returns_the_status(void **state)
{
    (void)state;
    struct corral_error err = {.sys = 7};
    errno = EAGAIN;
    check_status(corral_fail(&err, CORRAL_DENIED, "role %s, %d bytes", "trainer", 12), CORRAL_DENIED);
    assert_int_equal(err.status, CORRAL_DENIED);
    assert_int_equal(err.sys, 0);
    assert_string_equal(err.text, "role trainer, 12 bytes");
    assert_int_equal(errno, EAGAIN);
}

static void a_null_error_is_allowed_everywhere(void **state)
{
    (void)state;
    check_status(corral_fail(NULL, CORRAL_PEER, "x"), CORRAL_PEER);
    check_status(corral_fail_sys(NULL, ENOSPC, "x"), CORRAL_IO);
    check_status(corral_error_prefix(NULL, CORRAL_STATE, "x"), CORRAL_STATE);
}

static void fail_sys_names_the_errno(void **state)
{
    (void)state;
    struct corral_error err;
    check_status(corral_fail_sys(&err, ENOSPC, "cannot write %s", "journal"), CORRAL_IO);
    assert_int_equal(err.sys, ENOSPC);
    assert_string_equal(err.text, "cannot write journal: No space left on device");
    corral_fail_sys(&err, 99999, "cannot write");
    assert_string_equal(err.text, "cannot write: error 99999");
}

static void prefix_keeps_status_and_errno_and_nests(void **state)
{
    (void)state;
    struct corral_error err;
    corral_fail_sys(&err, ENOSPC, "cannot write");
    check_status(corral_error_prefix(&err, CORRAL_INTERNAL, "checkpoint %d", 3), CORRAL_IO);
    assert_string_equal(err.text, "checkpoint 3: cannot write: No space left on device");
    assert_int_equal(err.sys, ENOSPC);
    /* The old text may be an argument of the new one. */
    corral_fail(&err, CORRAL_INVALID, "again (%s)", err.text);
    assert_string_equal(err.text, "again (checkpoint 3: cannot write: No space left on device)");
}

static void prefix_on_an_untouched_error_takes_the_given_status(void **state)
{
    (void)state;
    struct corral_error err = {0};
    check_status(corral_error_prefix(&err, CORRAL_PEER, "agent a"), CORRAL_PEER);
    assert_int_equal(err.status, CORRAL_PEER);
}

static void a_long_text_is_cut_at_a_whole_character(void **state)
{
    (void)state;
    for (int pad = 0; pad < 4; pad++) {
        char source[1024];
        memset(source, 'x', (size_t)pad);
        size_t n = (size_t)pad;
        while (n + 5 < sizeof source) {
            memcpy(source + n, "\xF0\x9F\x90\x8E", 4); /* a horse */
            n += 4;
        }
        source[n] = '\0';
        struct corral_error err;
        corral_fail(&err, CORRAL_INVALID, "%s", source);
        const size_t length = strlen(err.text);
        assert_true(length < sizeof err.text && length > sizeof err.text - 5);
        assert_int_equal((length - (size_t)pad) % 4, 0);
    }
}

static enum corral_status passes_on(enum corral_status inner, int *reached)
{
    CORRAL_TRY(inner);
    *reached = 1;
    return CORRAL_OK;
}

static void try_leaves_at_the_first_failure(void **state)
{
    (void)state;
    int reached = 0;
    check_status(passes_on(CORRAL_TIMEOUT, &reached), CORRAL_TIMEOUT);
    assert_int_equal(reached, 0);
    check_status(passes_on(CORRAL_OK, &reached), CORRAL_OK);
    assert_int_equal(reached, 1);
}

static int descriptor_after_scope(void)
{
    CORRAL_AUTO_CLOSE int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CORRAL_AUTO_FREE char *unused = malloc(8); /* a leak here fails the sanitizer build */
    (void)unused;
    return fd;
}

static void cleanup_closes_and_steal_hands_on(void **state)
{
    (void)state;
    const int fd = descriptor_after_scope();
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    char *p = malloc(4);
    char *q = CORRAL_STEAL(p);
    assert_null(p);
    assert_non_null(q);
    free(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_its_own_name),
        cmocka_unit_test(fail_fills_the_error_and_returns_the_status),
        cmocka_unit_test(a_null_error_is_allowed_everywhere),
        cmocka_unit_test(fail_sys_names_the_errno),
        cmocka_unit_test(prefix_keeps_status_and_errno_and_nests),
        cmocka_unit_test(prefix_on_an_untouched_error_takes_the_given_status),
        cmocka_unit_test(a_long_text_is_cut_at_a_whole_character),
        cmocka_unit_test(try_leaves_at_the_first_failure),
        cmocka_unit_test(cleanup_closes_and_steal_hands_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
