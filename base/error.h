/* Making and passing on errors, and locals that clean themselves up.
 *
 * The first function to notice a failure writes the text: what was attempted, on what, why it failed. Callers pass
 * the status on with CORRAL_TRY, adding context with corral_error_prefix() when it helps. No function here
 * allocates or changes errno.
 */
#ifndef CORRAL_BASE_ERROR_H
#define CORRAL_BASE_ERROR_H

#include <corral/status.h>
#include <stdarg.h>
#include <stddef.h>

#define CORRAL_PRINTF(fmt_index, arg_index) __attribute__((format(printf, fmt_index, arg_index)))

/* Write the error and return `status`: `return corral_fail(err, CORRAL_INVALID, "...", ...)`. */
enum corral_status corral_fail(struct corral_error *err, enum corral_status status, const char *fmt, ...)
    CORRAL_PRINTF(3, 4);
/* As corral_fail() with CORRAL_IO; appends ": " and the text of `sys_errno`. */
enum corral_status corral_fail_sys(struct corral_error *err, int sys_errno, const char *fmt, ...)
    CORRAL_PRINTF(3, 4);
/* Put "prefix: " before the text already in `err` (NULL is fine). Returns err's status, or `status` when err is NULL. */
enum corral_status corral_error_prefix(struct corral_error *err, enum corral_status status, const char *fmt,
                                       ...) CORRAL_PRINTF(3, 4);

#define CORRAL_TRY(expr)                                \
    do {                                                \
        enum corral_status corral_try_status_ = (expr); \
        if (corral_try_status_ != CORRAL_OK) {          \
            return corral_try_status_;                  \
        }                                               \
    } while (0)

/* `CORRAL_CLEANUP(corral_thing_destroyp) struct corral_thing *t = NULL;` runs the function on &t at scope end.
 * CORRAL_STEAL(t) hands the value on and leaves NULL. */
#define CORRAL_CLEANUP(fn) __attribute__((cleanup(fn)))
#define CORRAL_STEAL(p)                          \
    __extension__({                              \
        __typeof__(p) corral_steal_value_ = (p); \
        (p) = NULL;                              \
        corral_steal_value_;                     \
    })
/* Define the `TYPE_destroyp(TYPE **)` companion of a destructor, for CORRAL_CLEANUP. */
#define CORRAL_DEFINE_CLEANUP(type, destroy) \
    static inline void destroy##p(type **p)  \
    {                                        \
        destroy(*p);                         \
    }

void corral_cleanup_free(void *pointer_to_pointer); /* free(*p) */
void corral_cleanup_close(int *fd);                 /* close(*fd) unless negative */

#define CORRAL_AUTO_FREE CORRAL_CLEANUP(corral_cleanup_free)
#define CORRAL_AUTO_CLOSE CORRAL_CLEANUP(corral_cleanup_close)

#define CORRAL_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define CORRAL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define CORRAL_MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
