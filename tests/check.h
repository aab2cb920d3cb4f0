/* cmocka with the headers it needs before it, in the order it needs them, out of clang-format's reach. */
#ifndef CORRAL_TESTS_CHECK_H
#define CORRAL_TESTS_CHECK_H
/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#define CORRAL_TEST_SKIPPED 77

/* Assert CORRAL_OK and show the error text otherwise; `err` is a struct corral_error in scope. */
#define check_ok(expr)                                                                  \
    do {                                                                                \
        enum corral_status check_status_ = (expr);                                      \
        if (check_status_ != CORRAL_OK) {                                               \
            fail_msg("%s: %s: %s", #expr, corral_status_name(check_status_), err.text); \
        }                                                                               \
    } while (0)
#define check_status(expr, expected) assert_int_equal((expr), (expected))

#endif
