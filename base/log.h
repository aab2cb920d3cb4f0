/* Logging for programs; libraries return errors instead. One event is one line: a constant lower-case phrase plus typed
 * fields, rendered as text or as a JSON object per line, to stderr.
 *
 *   corral_log_info("worker joined", LOG_STR("worker", id), LOG_U64("slots", n));
 *   12:00:01.123 info  worker joined worker w3 slots 16
 *
 * error: we gave up. warn: degraded, and the line says what happens next. info: a change an operator cares about.
 * debug: everything else. Threads: any; a line is written with one write(2). Strings are escaped so a line stays one line.
 */
#ifndef CORRAL_BASE_LOG_H
#define CORRAL_BASE_LOG_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

enum corral_log_level { CORRAL_LOG_DEBUG, CORRAL_LOG_INFO, CORRAL_LOG_WARN, CORRAL_LOG_ERROR };

struct corral_log_field {
    const char *name;
    enum { CORRAL_FIELD_STR, CORRAL_FIELD_I64, CORRAL_FIELD_U64, CORRAL_FIELD_F64, CORRAL_FIELD_BOOL } kind;
    union {
        const char *str;
        int64_t i64;
        uint64_t u64;
        double f64;
        bool boolean;
    } value;
};

#define LOG_STR(n, v) ((struct corral_log_field){.name = (n), .kind = CORRAL_FIELD_STR, .value.str = (v)})
#define LOG_I64(n, v) \
    ((struct corral_log_field){.name = (n), .kind = CORRAL_FIELD_I64, .value.i64 = (int64_t)(v)})
#define LOG_U64(n, v) \
    ((struct corral_log_field){.name = (n), .kind = CORRAL_FIELD_U64, .value.u64 = (uint64_t)(v)})
#define LOG_F64(n, v) \
    ((struct corral_log_field){.name = (n), .kind = CORRAL_FIELD_F64, .value.f64 = (double)(v)})
#define LOG_BOOL(n, v) \
    ((struct corral_log_field){.name = (n), .kind = CORRAL_FIELD_BOOL, .value.boolean = (v)})
#define LOG_ERR(e) LOG_STR("reason", (e)->text)

/* Process-wide set-up, called once by main: lowest level shown, JSON or text, the descriptor (default 2), and a name
 * that every line carries (NULL: none). */
void corral_log_configure(enum corral_log_level lowest, bool json, int fd, const char *program);
/* "debug" … "error" → level; false when unknown. */
bool corral_log_level_parse(const char *name, enum corral_log_level *out);

void corral_log_write(enum corral_log_level level, const char *phrase, const struct corral_log_field *fields,
                      size_t count);

#define CORRAL_LOG_AT(level, phrase, ...)                                         \
    do {                                                                          \
        const struct corral_log_field corral_log_fields_[] = {__VA_ARGS__};       \
        corral_log_write((level), (phrase), corral_log_fields_,                   \
                         sizeof corral_log_fields_ / sizeof *corral_log_fields_); \
    } while (0)
/* Each takes a phrase and at least one field. */
#define corral_log_debug(phrase, ...) CORRAL_LOG_AT(CORRAL_LOG_DEBUG, phrase, __VA_ARGS__)
#define corral_log_info(phrase, ...) CORRAL_LOG_AT(CORRAL_LOG_INFO, phrase, __VA_ARGS__)
#define corral_log_warn(phrase, ...) CORRAL_LOG_AT(CORRAL_LOG_WARN, phrase, __VA_ARGS__)
#define corral_log_error(phrase, ...) CORRAL_LOG_AT(CORRAL_LOG_ERROR, phrase, __VA_ARGS__)

#endif
